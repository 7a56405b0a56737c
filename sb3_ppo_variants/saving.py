"""Models from files: of the same class, of SB3's ``PPO``, and of another variant."""

import io
import pathlib
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)


def load(
    cls: type[Algorithm],
    path: str | pathlib.Path | io.BufferedIOBase,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    print_system_info: bool = False,
    force_reset: bool = True,
    **kwargs: Any,
) -> Algorithm:
    """
    Load a model from a zip-file, as SB3 does, but with errors that name what is wrong. The file may also be of SB3's ``PPO``,
    of contrib's ``MaskablePPO`` or ``RecurrentPPO``, or of another variant: a ``clip_range`` or ``kl_coef`` that means
    something else there is not taken from the file.

    :param cls: the class of the algorithm
    :param path: path to the file (or a file-like)
    :param env: environment to run the loaded model on; has priority over any saved environment
    :param device: device on which the code should run
    :param custom_objects: objects to use instead of the saved ones, by name
    :param print_system_info: whether to print system info from the saved model and the current system
    :param force_reset: reset the environment before training
    :param kwargs: arguments of the constructor to change; the ``compile=True`` of a saved model becomes ``"auto"``
    :return: the loaded model
    :raises TypeError: if ``kwargs`` has a name that the class does not know
    :raises ValueError: if the file is damaged, or no model of PPO
    """
    default = vars(cls(policy=ActorCriticPolicy, env=None, _init_setup_model=False))  # type: ignore[call-arg]
    # SB3's load takes some of the environment besides the arguments
    known = {*default, "observation_space", "action_space", "n_envs", "lr_schedule", "stats_window_size"}
    unknown = sorted(kwargs.keys() - known)
    if unknown:
        raise TypeError(f"{cls.__name__}.load() got an unexpected keyword argument: {', '.join(unknown)}")
    if "stats_window_size" in kwargs:
        # The one argument that is not kept under its own name
        kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
    saved = load_from_zip_file(path, custom_objects=custom_objects, device=device)[0] or {}
    # Another algorithm's hyperparameters would be taken for those of PPO
    if not saved.keys() & {"clip_range", "n_epochs"}:
        raise ValueError(f"{path} is no model of PPO: it has no clip_range and no n_epochs")
    # What means something else in the class that loads it
    replaced: dict[str, Any] = {}
    if ("kl_coef" in saved) != ("kl_coef" in default):
        # Of the surrogate, or of one in addition to the penalty
        replaced["clip_range"] = default["clip_range"]
    if "kl_coef_bounds" in default and not isinstance(saved.get("kl_coef"), int | float):
        # Where beta is to be adapted, a number goes on, but no schedule
        replaced["kl_coef"] = kwargs.get("init_kl_coef", default["kl_coef"])
    if "compile" not in saved:
        # For MaskablePPO, whatever is in the observation is a feature
        replaced["_mask_is_feature"] = True
    changed = {name: value for name, value in replaced.items() if name not in (custom_objects or {})} | kwargs
    options = (env, device, custom_objects, print_system_info, force_reset)
    model: Any = BaseAlgorithm.load.__func__(cls, path, *options, **changed)  # type: ignore[attr-defined]
    for name in {"kl_coef", "init_kl_coef", "kl_coef_bounds", "kl_target"} - known:
        # A file with `kl_coef` counts as that of a model with a penalty, which this is not: it may be saved again
        vars(model).pop(name, None)
    if "kl_coef" in kwargs:
        # SB3's load has not checked it
        model.kl_coef = kwargs["kl_coef"]
    if model.compile is True and "compile" not in kwargs:
        # There may be no compiler where it is loaded
        model.compile = "auto"
    return model
