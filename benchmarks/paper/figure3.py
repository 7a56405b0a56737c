"""
What is run for Figure 3, section 6.2: the five algorithms that PPO is compared with, and the candidates among which a pilot
chooses what their sources leave open. docs/figure3.md has the plan.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule

from benchmarks.contestants.a2c_trust_region import A2CTrustRegion
from benchmarks.contestants.cem import CEM
from benchmarks.contestants.quick_rollouts import A2C, TRPO
from benchmarks.contestants.rmsprop import RMSPROP
from benchmarks.contestants.vanilla_policy_gradient import HOMEWORK_4, VanillaPolicyGradient

# The setting of Table 1 that stands for PPO, as in the paper
PPO = "clip_0.2"
SEEDS = tuple(range(10))

# The pilot: neither tasks nor seeds of Figure 3
PILOT_TASKS = ("Ant-v4", "Pendulum-v1")
PILOT_SEEDS = (100, 101)


@dataclass(frozen=True)
class Contestant:
    """
    An algorithm as it is run.

    :param label: its name in tables and figures
    :param algorithm: its class
    :param kwargs: its arguments
    :param n_envs: number of environments
    """

    label: str
    algorithm: type[BaseAlgorithm]
    kwargs: dict[str, Any] = field(default_factory=dict)
    n_envs: int = 1


# openai/baselines, trpo_mpi/run_mujoco.py at its release, July 2017; the last three are constants of its trpo_mpi.py
TRPO_OF_THE_RELEASE = Contestant(
    "TRPO",
    TRPO,
    {
        "n_steps": 1024,
        "target_kl": 0.01,
        "cg_max_steps": 10,
        "cg_damping": 0.1,
        "gamma": 0.99,
        "gae_lambda": 0.98,
        "n_critic_updates": 5,
        "learning_rate": 1e-3,
        "batch_size": 64,
        "line_search_shrinking_factor": 0.5,
        "line_search_max_iter": 10,
    },
)

# openai/baselines, a2c: 5 steps, the gradient clipped at 0.5, RMSprop; its 0.0007 is annealed
_STEP_SIZES = (0.0002, 0.0007, 0.002, 0.007)
_A2C: dict[str, Any] = {"n_steps": 5, "gamma": 0.99, "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5}


def _a2c(label: str, algorithm: type[A2C], learning_rate: float | Schedule, **kwargs: Any) -> Contestant:
    return Contestant(label, algorithm, {**_A2C, "learning_rate": learning_rate, **kwargs}, n_envs=8)


def _vanilla(kl_target: float, gae_lambda: float) -> Contestant:
    learning_rate = replace(HOMEWORK_4, kl_target=kl_target)
    # T as PPO's. Compiled for the sake of its rollouts, as "auto" does for PPO: by itself, one step per rollout would not pay
    arguments = {"n_steps": 2048, "gamma": 0.99, "gae_lambda": gae_lambda, "learning_rate": learning_rate, "compile": True}
    return Contestant("Vanilla policy gradient, adaptive step size", VanillaPolicyGradient, arguments)


def _cem(layers: list[int], std: float) -> Contestant:
    noise = LinearSchedule(0.1 * std, 0.0, 0.5)
    arguments = {"population_size": 50, "elite_fraction": 0.2, "initial_std": std, "extra_std": noise}
    return Contestant("CEM", CEM, {**arguments, "policy_kwargs": {"net_arch": {"pi": layers, "vf": []}}})


# By contestant and by name
CANDIDATES: dict[str, dict[str, Contestant]] = {
    "a2c": {f"a2c_{x}": _a2c("A2C", A2C, x) for x in _STEP_SIZES},
    # delta and alpha as in openai/baselines, acer
    "a2c_trust_region": {
        f"a2c_trust_region_{x}": _a2c("A2C with trust region", A2CTrustRegion, x, delta=1.0, alpha=0.99) for x in _STEP_SIZES
    },
    "vanilla": {f"vanilla_kl_{kl}_lambda_{lam}": _vanilla(kl, lam) for kl in (0.002, 0.01) for lam in (0.95, 1.0)},
    "cem": {
        f"cem_{name}_std_{std}": _cem(layers, std)
        for name, layers in (("linear", []), ("mlp", [64, 64]))
        for std in (0.1, 1.0)
    },
}

# What the plan's A2C leaves to SB3, as in openai/baselines. Added when runs of A2C had been seen: no part of the comparison
OF_BASELINES: dict[str, Any] = {"vf_coef": 0.25, "ent_coef": 0.01, "policy_kwargs": RMSPROP}
LATER_CANDIDATES: dict[str, dict[str, Contestant]] = {
    "a2c_baselines": {
        f"a2c_baselines_{x}": _a2c("A2C as in openai/baselines", A2C, LinearSchedule(x, 0.0, 1.0), **OF_BASELINES)
        for x in _STEP_SIZES
    },
}

# By the pilot
CHOSEN = {
    "a2c": "a2c_0.002",
    "a2c_trust_region": "a2c_trust_region_0.002",
    "vanilla": "vanilla_kl_0.002_lambda_0.95",
    "cem": "cem_mlp_std_0.1",
}

CONTESTANTS = {
    "trpo": TRPO_OF_THE_RELEASE,
    **{name: CANDIDATES[name][chosen] for name, chosen in CHOSEN.items()},
}

LATER_CHOSEN = {"a2c_baselines": "a2c_baselines_0.007"}

LATER = {name: LATER_CANDIDATES[name][chosen] for name, chosen in LATER_CHOSEN.items()}

# All that a run can name
ALL = {
    **CONTESTANTS,
    **LATER,
    **{name: one for candidates in (CANDIDATES | LATER_CANDIDATES).values() for name, one in candidates.items()},
}
