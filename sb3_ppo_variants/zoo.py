"""
Registration with the RL Zoo, so that ``python -m rl_zoo3.train --algo ppo_klpen`` works.

An installed package needs nothing from here: ``_sb3_ppo_variants_hook`` calls ``register_module`` when the Zoo is imported.
Where the hook does not run (``SB3_PPO_VARIANTS_NO_ZOO=1``, or the package is on ``PYTHONPATH`` without being installed),
``register()`` does the same by hand. This module imports the Zoo only when one of the two is called.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_ppo_variants.kl_penalty import KLPenaltyPPO
from sb3_ppo_variants.loading import parameters_of
from sb3_ppo_variants.ppo_clip import PPOClip
from sb3_ppo_variants.ppo_fixedkl import PPOFixedKL
from sb3_ppo_variants.ppo_klpen import PPOKLPen
from sb3_ppo_variants.proximal import ProximalPolicyOptimization

if TYPE_CHECKING:
    import optuna

ALGOS: dict[str, type[BaseAlgorithm]] = {
    "ppo_clip": PPOClip,
    "ppo_fixedkl": PPOFixedKL,
    "ppo_klpen": PPOKLPen,
}

OLDEST_ZOO = (2, 7)
INSTALL = f'pip install "rl_zoo3>={".".join(map(str, OLDEST_ZOO))},<3"'

# Coefficients whose string schedules ("lin_0.2") the Zoo converts itself for every algorithm, and those that it does not know,
# of a class and its subclasses
ZOO_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
OWN_SCHEDULES: dict[type[BaseAlgorithm], tuple[str, ...]] = {
    ProximalPolicyOptimization: ("ent_coef", "vf_coef"),  # type: ignore[type-abstract]
    PPOFixedKL: ("kl_coef",),
    PPOKLPen: ("target_kl",),
}

# Trial attribute by which the experiment manager tells the samplers that clipping is on: they see nothing else of it
CLIPPING = "clipping"


def hyperparams_path(algo: str) -> Path:
    """
    Where this package's hyperparameters for the Zoo are.

    :param algo: id of the algorithm in the Zoo
    :return: path of the YAML file, which need not exist
    """
    # Inside the package once installed, beside it in the source tree
    package = Path(__file__).resolve().parent
    root = package if (package / "hyperparams").is_dir() else package.parent
    return root / "hyperparams" / f"{algo}.yml"


def sample_onpolicy_params(trial: "optuna.Trial") -> dict[str, Any]:
    """
    What the three search spaces share: that of the Zoo's PPO without ``clip_range``.

    :param trial: the trial to sample for
    :return: sampled values, not yet converted to hyperparameters
    """
    params: dict[str, Any] = {
        "batch_size_pow": trial.suggest_int("batch_size_pow", 2, 10),
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 12),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.03, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-4, 0.1, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 0.002, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.1, log=True),
        "n_epochs": trial.suggest_categorical("n_epochs", [1, 5, 10, 20]),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.3, 2),
        "net_arch": trial.suggest_categorical("net_arch", ["tiny", "small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    # The values that the powers and complements stand for, to be read in the Zoo's report
    trial.set_user_attr("gamma", 1 - params["one_minus_gamma"])
    trial.set_user_attr("gae_lambda", 1 - params["one_minus_gae_lambda"])
    trial.set_user_attr("n_steps", 2 ** params["n_steps_pow"])
    trial.set_user_attr("batch_size", 2 ** params["batch_size_pow"])
    return params


def _sample_clip_range(trial: "optuna.Trial") -> dict[str, Any]:
    return {"clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3, 0.4])}


def _convert(params: dict[str, Any]) -> dict[str, Any]:
    from rl_zoo3.hyperparams_opt import convert_onpolicy_params

    return convert_onpolicy_params(params)


def sample_ppo_clip_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Search space of ``PPOClip``: the same as that of the Zoo's PPO.

    :param trial: the trial to sample for
    :param n_actions: not used, as in the Zoo's PPO
    :param n_envs: not used
    :param additional_args: not used
    :return: sampled hyperparameters
    """
    return _convert(sample_onpolicy_params(trial) | _sample_clip_range(trial))


def sample_ppo_fixedkl_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Search space of ``PPOFixedKL``: beta about the paper's 0.3 to 10, and ``clip_range`` only where clipping is on.

    :param trial: the trial to sample for
    :param n_actions: not used, as in the Zoo's PPO
    :param n_envs: not used
    :param additional_args: not used
    :return: sampled hyperparameters
    """
    params = sample_onpolicy_params(trial)
    params["kl_coef"] = trial.suggest_float("kl_coef", 0.1, 30, log=True)
    if trial.user_attrs.get(CLIPPING, False):
        params |= _sample_clip_range(trial)
    return _convert(params)


def sample_ppo_klpen_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Search space of ``PPOKLPen``: d_targ about the paper's 0.003 to 0.03, beta's first value, and ``clip_range`` only where
    clipping is on.

    :param trial: the trial to sample for
    :param n_actions: not used, as in the Zoo's PPO
    :param n_envs: not used
    :param additional_args: not used
    :return: sampled hyperparameters
    """
    params = sample_onpolicy_params(trial)
    params["target_kl"] = trial.suggest_float("target_kl", 0.001, 0.1, log=True)
    params["init_kl_coef"] = trial.suggest_float("init_kl_coef", 0.1, 10, log=True)
    if trial.user_attrs.get(CLIPPING, False):
        params |= _sample_clip_range(trial)
    return _convert(params)


SAMPLERS: dict[str, Callable[..., dict[str, Any]]] = {
    "ppo_clip": sample_ppo_clip_params,
    "ppo_fixedkl": sample_ppo_fixedkl_params,
    "ppo_klpen": sample_ppo_klpen_params,
}


def _check_schedule(name: str, value: Any) -> None:
    # The Zoo's own conversion takes any text before the underscore, and fails without a word on texts such as 1e-3
    if isinstance(value, str) and re.fullmatch(r"lin_[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value) is None:
        hint = " (in YAML, 1e-3 is a text: write 0.001 or !!float 1e-3)" if _is_number(value) else ""
        raise ValueError(f"{name} must be a number or a schedule such as lin_0.2, but is the text {value!r}{hint}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _experiment_manager(base: Any) -> Any:
    """
    Make the experiment manager that takes the place of the Zoo's. It differs for this package's algorithms only, and for those
    that a user derives from them.

    :param base: the Zoo's ``ExperimentManager``
    :return: a subclass of it
    """
    from rl_zoo3.utils import ALGOS as ALL_ALGOS
    from rl_zoo3.utils import SimpleLinearSchedule

    signature = inspect.signature(base.__init__)

    class ExperimentManager(base):
        __doc__ = base.__doc__
        _registered_by = __name__

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.algo in ALGOS and not signature.bind(self, *args, **kwargs).arguments.get("config"):
                self.config = str(hyperparams_path(self.algo))

        def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
            algorithm = ALL_ALGOS[self.algo]
            if not (isinstance(algorithm, type) and issubclass(algorithm, ProximalPolicyOptimization)):
                return super()._preprocess_hyperparams(hyperparams)
            own_names = {name for cls, names in OWN_SCHEDULES.items() if issubclass(algorithm, cls) for name in names}
            own: dict[str, Any] = {}
            for name in (*ZOO_SCHEDULES, *own_names):
                value = hyperparams.get(name)
                _check_schedule(name, value)
                if name in own_names and isinstance(value, str):
                    own[name] = SimpleLinearSchedule(value.removeprefix("lin_"))
                elif name in hyperparams and value is None:
                    # For these classes None means "no clipping"; the Zoo takes no None
                    own[name] = None
            result, *others = super()._preprocess_hyperparams({k: v for k, v in hyperparams.items() if k not in own})
            result.update(own)
            self._check_keys(algorithm, result)
            return (result, *others)

        def _check_keys(self, algorithm: type[BaseAlgorithm], hyperparams: dict[str, Any]) -> None:
            """Constructor and ``load`` name unknown hyperparameters, too, but do not say where they come from."""
            # For `load`, beta is one: a training may go on with another
            state = {"kl_coef"} if self.continue_training and issubclass(algorithm, KLPenaltyPPO) else set()
            unknown = sorted(hyperparams.keys() - parameters_of(algorithm) - state)
            if unknown:
                study = f", the study {self.study_name}" if self.trial_id else ""
                raise ValueError(
                    f"{self.algo} has no hyperparameter {', '.join(map(repr, unknown))}, "
                    f"but {self.config}{study} or the command line gives it"
                )

        def objective(self, trial: "optuna.Trial") -> float:
            algorithm = ALL_ALGOS[self.algo]
            if isinstance(algorithm, type) and issubclass(algorithm, KLPenaltyPPO):
                trial.set_user_attr(CLIPPING, self._hyperparams.get("clip_range") is not None)
            return float(super().objective(trial))

    # Pickled by reference (the Zoo does so for ARS), the name must lead to what stands there
    ExperimentManager.__module__ = base.__module__
    ExperimentManager.__qualname__ = base.__qualname__
    return ExperimentManager


def _register_algorithms() -> None:
    from rl_zoo3 import utils

    for algo, algorithm in ALGOS.items():
        utils.ALGOS.setdefault(algo, algorithm)


def _register_samplers() -> None:
    from rl_zoo3 import hyperparams_opt

    for algo, sampler in SAMPLERS.items():
        hyperparams_opt.HYPERPARAMS_SAMPLER.setdefault(algo, sampler)
        hyperparams_opt.HYPERPARAMS_CONVERTER.setdefault(algo, hyperparams_opt.convert_onpolicy_params)


def _register_manager() -> None:
    from rl_zoo3 import exp_manager

    base = exp_manager.ExperimentManager
    if getattr(base, "_registered_by", None) == __name__:
        return
    manager = _experiment_manager(base)
    # The Zoo's scripts, if imported before a late call of register(), hold a name of their own
    for name, module in list(sys.modules.items()):
        if name.startswith("rl_zoo3.") and getattr(module, "ExperimentManager", None) is base:
            module.ExperimentManager = manager  # type: ignore[attr-defined]


_REGISTRARS = {
    "rl_zoo3.utils": _register_algorithms,
    "rl_zoo3.hyperparams_opt": _register_samplers,
    "rl_zoo3.exp_manager": _register_manager,
}


def check_zoo() -> None:
    """
    Check, without importing it, that there is an RL Zoo that this package works with.

    :raises ImportError: if there is none, or if it is too old; says what to install
    """
    oldest = ".".join(map(str, OLDEST_ZOO))
    advice = f"install one with: {INSTALL}"
    loaded = sys.modules.get("rl_zoo3")
    spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec("rl_zoo3")
    if spec is None or spec.origin is None:
        raise ImportError(f"the RL Zoo (rl_zoo3) is not installed; {advice}", name="rl_zoo3")
    # The Zoo reads its version from this file, but older ones do so after importing all else
    version_file = Path(spec.origin).parent / "version.txt"
    version = version_file.read_text(encoding="utf-8").strip() if version_file.is_file() else "unknown"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < OLDEST_ZOO:
        raise ImportError(
            f"the RL Zoo (rl_zoo3) {version} is too old, {oldest} is the oldest that works; {advice}", name="rl_zoo3"
        )


def register_module(name: str) -> None:
    """
    Register what belongs to one module of the Zoo, which has been imported.

    :param name: ``rl_zoo3.utils``, ``rl_zoo3.hyperparams_opt`` or ``rl_zoo3.exp_manager``
    :raises ImportError: if the Zoo is too old
    """
    check_zoo()
    _REGISTRARS[name]()


def register() -> None:
    """
    Import the RL Zoo and register everything with it. Repeated calls do nothing.

    :raises ImportError: if the Zoo is absent or too old, or does not import; says what to do
    """
    check_zoo()
    for name in _REGISTRARS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"the RL Zoo (rl_zoo3) is installed, but importing {name} failed: {error}; install what it needs, "
                f"for example with: {INSTALL}",
                name=name,
            ) from error
        register_module(name)
