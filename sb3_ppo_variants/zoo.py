"""
Registration with the RL Zoo, so that ``python -m rl_zoo3.train --algo ppo_klpen`` works.

An installed package needs nothing from here: ``_sb3_ppo_variants_hook`` calls ``register_module`` when the Zoo is imported.
Where the hook does not run (``SB3_PPO_VARIANTS_NO_ZOO=1``, or the package is on ``PYTHONPATH`` without being installed),
``register()`` does the same by hand. This module imports the Zoo only when one of the two is called.
"""

import functools
import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_ppo_variants import masks, recurrent_policies
from sb3_ppo_variants.adaptive import AdaptiveLearningRate
from sb3_ppo_variants.ppo import ProximalPolicyOptimization
from sb3_ppo_variants.variants import KLPenaltyPPO, PPOClip, PPOFixedKL, PPOKLPen

if TYPE_CHECKING:
    import optuna

ALGOS: dict[str, type[BaseAlgorithm]] = {"ppo_clip": PPOClip, "ppo_fixedkl": PPOFixedKL, "ppo_klpen": PPOKLPen}

# Arguments that may be texts such as "lin_0.2", of a class and its subclasses
SCHEDULES: dict[type[BaseAlgorithm], tuple[str, ...]] = {
    ProximalPolicyOptimization: ("learning_rate", "clip_range", "clip_range_vf", "ent_coef", "vf_coef"),
    PPOFixedKL: ("kl_coef",),
    PPOKLPen: ("kl_target",),
}


def hyperparams_path(algo: str) -> Path:
    """Where the hyperparameters of an algorithm are: inside the package once installed, beside it in the source tree."""
    package = Path(__file__).resolve().parent
    root = package if (package / "hyperparams").is_dir() else package.parent
    return root / "hyperparams" / f"{algo}.yml"


class _WithoutClipRange:
    """An Optuna trial that does not draw a ``clip_range``."""

    def __init__(self, trial: "optuna.Trial") -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return None if name == "clip_range" else self._trial.suggest_categorical(name, choices)


def sample_ppo_fixedkl_params(trial: "optuna.Trial", *others: Any) -> dict[str, Any]:
    """Search space of ``PPOFixedKL``: the Zoo's for PPO, and beta in a range around the paper's 0.3 to 10."""
    from rl_zoo3.hyperparams_opt import sample_ppo_params

    return {**sample_ppo_params(trial, *others), "kl_coef": trial.suggest_float("kl_coef", 0.1, 30, log=True)}


def sample_ppo_klpen_params(trial: "optuna.Trial", *others: Any) -> dict[str, Any]:
    """Search space of ``PPOKLPen``: the Zoo's for PPO, d_targ around the paper's 0.003 to 0.03, and beta's first value."""
    from rl_zoo3.hyperparams_opt import sample_ppo_params

    return {
        **sample_ppo_params(trial, *others),
        "kl_target": trial.suggest_float("kl_target", 0.001, 0.1, log=True),
        "init_kl_coef": trial.suggest_float("init_kl_coef", 0.1, 10, log=True),
    }


def _schedule(name: str, text: str) -> Any:
    """What a text such as lin_0.2 means. The Zoo takes any text before the underscore, and fails without a word on 1e-3."""
    from rl_zoo3.utils import SimpleLinearSchedule

    kinds: dict[str, Any] = {"lin": SimpleLinearSchedule}
    if name == "learning_rate":
        kinds["adaptive"] = AdaptiveLearningRate
    number = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    matched = re.fullmatch(rf"({'|'.join(kinds)})_({number})", text)
    if matched is not None:
        try:
            return kinds[matched[1]](float(matched[2]))
        except ValueError as error:
            raise ValueError(f"{name} is {text!r}, but {error}") from error
    expected = " or ".join(["lin_0.2", *(["adaptive_0.01"] if "adaptive" in kinds else [])])
    hint = " (in YAML, 1e-3 is a text: write 0.001 or !!float 1e-3)" if re.fullmatch(number, text) else ""
    raise ValueError(f"{name} must be a number or a schedule such as {expected}, but is the text {text!r}{hint}")


def _takes_masks(policy: Any) -> bool:
    """Whether a policy takes masks: its class, its name, or the path of its class."""
    from rl_zoo3.utils import get_class_by_name

    if isinstance(policy, str) and "." in policy:
        policy = get_class_by_name(policy)
    return recurrent_policies.takes_masks(policy) if isinstance(policy, type) else str(policy).startswith("Maskable")


def _experiment_manager(base: Any) -> Any:
    """
    Make the experiment manager that takes the place of the Zoo's, a subclass of it. They differ for this package's algorithms
    only, and for those that a user derives from them.
    """
    from rl_zoo3.utils import ALGOS as ALL_ALGOS

    class ExperimentManager(base):
        __doc__ = base.__doc__

        def __init__(self, args: Any, algo: str, *others: Any, **kwargs: Any) -> None:
            if algo in ALGOS:
                kwargs["config"] = kwargs.get("config") or str(hyperparams_path(algo))
            super().__init__(args, algo, *others, **kwargs)

        def _is_a(self, cls: type[BaseAlgorithm]) -> bool:
            algorithm = ALL_ALGOS[self.algo]
            return isinstance(algorithm, type) and issubclass(algorithm, cls)

        def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
            if not self._is_a(ProximalPolicyOptimization):
                return super()._preprocess_hyperparams(hyperparams)
            # The Zoo takes neither None, which here means "no clipping", nor schedules from Python files
            own = [name for cls, names in SCHEDULES.items() if self._is_a(cls) for name in names if name in hyperparams]
            result, *others = super()._preprocess_hyperparams({k: v for k, v in hyperparams.items() if k not in own})
            for name in own:
                value = hyperparams[name]
                result[name] = _schedule(name, value) if isinstance(value, str) else value
            self._takes_masks = _takes_masks(result.get("policy"))
            return (result, *others)

        def objective(self, trial: "optuna.Trial") -> float:
            if self._is_a(KLPenaltyPPO) and self._hyperparams.get("clip_range") is None:
                trial = _WithoutClipRange(trial)  # type: ignore[assignment]
            return float(super().objective(trial))

        def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
            env = super().create_envs(n_envs, eval_env, no_log)
            if eval_env and self._is_a(ProximalPolicyOptimization) and self._takes_masks:
                masks.attach_masks(env)
            return env

    # Pickled by reference (the Zoo does so for ARS), the name must lead to what stands there
    ExperimentManager.__module__ = base.__module__
    ExperimentManager.__qualname__ = base.__qualname__
    return ExperimentManager


def _register_algorithms() -> None:
    from rl_zoo3 import utils

    for algo, algorithm in ALGOS.items():
        utils.ALGOS.setdefault(algo, algorithm)
    # By which enjoy and record_video get their environment
    create_test_env = utils.create_test_env

    @functools.wraps(create_test_env)
    def create_with_masks(*args: Any, **kwargs: Any) -> Any:
        # Before the Zoo takes some of them out
        takes_masks = _takes_masks((kwargs.get("hyperparams") or {}).get("policy"))
        env = create_test_env(*args, **kwargs)
        if takes_masks:
            masks.attach_masks(env)
        return env

    _replace("create_test_env", create_test_env, create_with_masks)


def _replace(name: str, old: Any, new: Any) -> None:
    """The Zoo's scripts, if imported before a late call of ``register``, hold a name of their own."""
    for path, module in list(sys.modules.items()):
        if path.partition(".")[0] == "rl_zoo3" and getattr(module, name, None) is old:
            setattr(module, name, new)


def _register_samplers() -> None:
    from rl_zoo3 import hyperparams_opt

    samplers: dict[str, Any] = {
        "ppo_clip": hyperparams_opt.sample_ppo_params,
        "ppo_fixedkl": sample_ppo_fixedkl_params,
        "ppo_klpen": sample_ppo_klpen_params,
    }
    for algo, sampler in samplers.items():
        hyperparams_opt.HYPERPARAMS_SAMPLER.setdefault(algo, sampler)
        hyperparams_opt.HYPERPARAMS_CONVERTER.setdefault(algo, hyperparams_opt.convert_onpolicy_params)


def _register_manager() -> None:
    from rl_zoo3 import exp_manager

    base = exp_manager.ExperimentManager
    _replace("ExperimentManager", base, _experiment_manager(base))


_REGISTRARS = {
    "rl_zoo3.utils": _register_algorithms,
    "rl_zoo3.hyperparams_opt": _register_samplers,
    "rl_zoo3.exp_manager": _register_manager,
}


@functools.cache
def register_module(name: str) -> None:
    """Register what belongs to one module of the Zoo, which has been imported. Repeated calls do nothing."""
    _REGISTRARS[name]()


def register() -> None:
    """Import the RL Zoo and register everything with it. Repeated calls do nothing."""
    for name in _REGISTRARS:
        importlib.import_module(name)
        register_module(name)
