"""What is run: the settings of Table 1, the tasks, the seeds, and the variants of what the paper leaves open."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch as th
import yaml
from stable_baselines3.common.utils import LinearSchedule

from benchmarks.paper import figure3
from benchmarks.provenance import VARIABLES
from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen
from sb3_ppo_variants.objectives import Coefficients, Terms, policy_gradient
from sb3_ppo_variants.ppo import ProximalPolicyOptimization

TABLE_3 = Path(__file__).parents[2] / "hyperparams" / "paper" / "table3_mujoco.yml"

# Section 6.1, in the versions of Gymnasium that have the rewards of the paper's -v1
TASKS = (
    "HalfCheetah-v4",
    "Hopper-v4",
    "InvertedDoublePendulum-v4",
    "InvertedPendulum-v4",
    "Reacher-v4",
    "Swimmer-v4",
    "Walker2d-v4",
)


class PPOPolicyGradient(PPOClip):
    """
    L^PG, equation (2), over several epochs of minibatches: section 2.1 says, without numbers, that it was "similar or worse
    than the 'no clipping or penalty' setting".
    """

    objective = staticmethod(policy_gradient)


def log_clipped_surrogate(terms: Terms, coef: Coefficients) -> th.Tensor:
    """
    Equation (7) with log r in place of r where it clips: E[min(r A, exp(clip(log r, -epsilon, epsilon)) A)]. The ratio may go
    from exp(-epsilon) to exp(epsilon), as far down as up in nats.

    :param terms: those of a minibatch
    :param coef: ``clip_range`` is epsilon
    :return: the objective per sample, shape ``(batch,)``
    """
    epsilon = coef["clip_range"]
    clipped_ratio = th.exp(th.clamp(terms.log_ratio, -epsilon, epsilon))  # type: ignore[arg-type]
    return th.min(terms.advantages * terms.ratio, terms.advantages * clipped_ratio)


class PPOLogClip(PPOClip):
    """
    Section 6.1: "we also tried clipping in log space, but found the performance to be no better". The paper has no equation
    and no epsilon for it. Limits of log(1 - epsilon) and log(1 + epsilon) would be equation (7) itself, so they are taken to
    be -epsilon and epsilon.
    """

    objective = staticmethod(log_clipped_surrogate)


class PessimisticValues(ProximalPolicyOptimization):
    """
    The value loss of ppo1 at its release (openai/baselines, 2017-07-20), with a ``clip_range_vf``: of the squared errors of a
    value and of the clipped value, the larger one, so that a value that has gone the wrong way is pulled back. SB3 has that of
    the clipped value alone.
    """

    def coefficients(self) -> dict[str, float]:
        """As in the base class, and what the loss asks for."""
        return {**super().coefficients(), "pessimistic_vf": 1.0}


@dataclass(frozen=True)
class Setting:
    """
    A row of Table 1.

    :param label: its name in tables and figures
    :param algorithm: class of the algorithm
    :param kwargs: what it is given beyond Table 3
    """

    label: str
    algorithm: type[ProximalPolicyOptimization]
    kwargs: dict[str, Any] = field(default_factory=dict)


# The eleven rows of Table 1, in its order, and two that the text mentions without numbers
SETTINGS = {
    "none": Setting("No clipping or penalty", PPOFixedKL, {"kl_coef": 0.0}),
    **{f"clip_{x}": Setting(f"Clipping, epsilon = {x}", PPOClip, {"clip_range": x}) for x in (0.1, 0.2, 0.3)},
    **{
        f"adaptive_kl_{x}": Setting(f"Adaptive KL, d_targ = {x}", PPOKLPen, {"kl_target": x, "init_kl_coef": 1.0})
        for x in (0.003, 0.01, 0.03)
    },
    **{f"fixed_kl_{x:g}": Setting(f"Fixed KL, beta = {x:g}", PPOFixedKL, {"kl_coef": x}) for x in (0.3, 1.0, 3.0, 10.0)},
    "policy_gradient": Setting("L^PG over several epochs", PPOPolicyGradient),
    "log_clip_0.2": Setting("Clipping in log space, epsilon = 0.2", PPOLogClip, {"clip_range": 0.2}),
}

# What "a random policy" may mean, which scores 0
REFERENCES = {"uniform": "Uniform actions", "untrained": "The policy before training"}


@dataclass(frozen=True)
class Variant:
    """
    What the paper leaves open.

    :param label: its name in tables
    :param bounded_actions: whether actions are clipped to the bounds of the action space
    :param normalized_rewards: whether the algorithm sees rewards divided by the running standard deviation of the return,
        clipped to +-10
    :param raw_observations: whether observations are not normalised
    :param pessimistic_values: whether the value loss is that of ``PessimisticValues``
    :param kwargs: hyperparameters in place of those in ``TABLE_3``
    """

    label: str
    bounded_actions: bool = False
    normalized_rewards: bool = False
    raw_observations: bool = False
    pessimistic_values: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    # As in the authors' code: the main study
    "paper": Variant("as in ppo1"),
    # Actions clipped, advantages standardised in each minibatch, gradient clipped, value function's loss halved: together, and
    # each alone
    "sb3": Variant(
        "four of SB3's conventions",
        bounded_actions=True,
        kwargs={"normalize_advantage": True, "max_grad_norm": 0.5, "vf_coef": 0.5},
    ),
    "bounded_actions": Variant("actions clipped to their bounds", bounded_actions=True),
    "minibatch_advantages": Variant("advantages standardised in each minibatch", kwargs={"normalize_advantage": True}),
    # The norm is that of all gradients, so the weight of the value function's loss counts here
    "clipped_gradient": Variant(
        "gradient clipped at 0.5, value function's loss halved", kwargs={"max_grad_norm": 0.5, "vf_coef": 0.5}
    ),
    # As in the authors' next code, openai/baselines ppo2, which the paper's may have been nearer to
    "normalized_rewards": Variant("rewards normalised, as in ppo2", normalized_rewards=True),
    # ppo2 weights half the mean squared error of the values by a half
    "ppo2": Variant(
        "five of ppo2's conventions",
        normalized_rewards=True,
        pessimistic_values=True,
        kwargs={"normalize_advantage": True, "max_grad_norm": 0.5, "vf_coef": 0.25, "clip_range_vf": 0.2},
    ),
    # What section 6.1 does not mention
    "raw_observations": Variant("observations not normalised", raw_observations=True),
    "raw_advantages": Variant("advantages not standardised", kwargs={"normalize_advantage": False}),
    "raw": Variant(
        "neither observations nor advantages normalised",
        raw_observations=True,
        kwargs={"normalize_advantage": False},
    ),
    # As in ppo1's later script, and at its release
    "annealed": Variant("step size annealed to 0", kwargs={"learning_rate": LinearSchedule(3e-4, 0.0, 1.0)}),
    "small_epsilon": Variant(
        "Adam's epsilon 1e-8", kwargs={"policy_kwargs": {"log_std_init": 0.0, "optimizer_kwargs": {"eps": 1e-8}}}
    ),
    # Whether what Adam remembers of large gradients is what holds back a policy whose gradient is not clipped
    "short_memory": Variant(
        "Adam's beta_2 0.9, not 0.999",
        kwargs={"policy_kwargs": {"log_std_init": 0.0, "optimizer_kwargs": {"eps": 1e-5, "betas": (0.9, 0.9)}}},
    ),
    # Removed three weeks later. ppo1 has one parameter for both clippings, whose default was 0.2
    "clipped_values": Variant(
        "value function clipped by 0.2, its loss halved, as at ppo1's release",
        pessimistic_values=True,
        kwargs={"clip_range_vf": 0.2, "vf_coef": 0.5},
    ),
}


@dataclass(frozen=True, order=True)
class Run:
    """
    A run.

    :param variant: name in ``VARIANTS``
    :param setting: name in ``SETTINGS``, ``REFERENCES`` or ``figure3.ALL``
    :param env: id of the task
    :param seed: the seed
    """

    variant: str
    setting: str
    env: str
    seed: int

    @property
    def name(self) -> str:
        """A name of its own, fit for a file."""
        return f"{self.variant}-{self.setting}-{self.env}-{self.seed}"


# Section 6.1
TIMESTEPS = 1_000_000
# Chosen before the first run. The paper's three, and seven more: at first for the settings that are compared most
SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4, 5, 6, 7, 8, 9)


def planned(variant: str, settings: Iterable[str], seeds: Sequence[int] = SEEDS, envs: Sequence[str] = TASKS) -> list[Run]:
    """
    Runs of some settings.

    :param variant: name in ``VARIANTS``
    :param settings: their names
    :param seeds: the seeds
    :param envs: ids of the tasks
    :return: a run of each setting in each task with each seed
    """
    return [Run(variant, setting, env, seed) for seed in seeds for setting in settings for env in envs]


# The parts of the study, in the order in which they are run
STAGES: dict[str, list[Run]] = {
    # Table 1
    "table1": planned("paper", [name for name in (*REFERENCES, *SETTINGS) if name != "log_clip_0.2"]),
    # What other conventions make of "no clipping or penalty": Stable-Baselines3's together, then each alone
    "details_sb3": planned("sb3", ["none", "clip_0.2"]) + planned("bounded_actions", ["untrained"]),
    # In search of the paper's collapse on HalfCheetah, there alone. Planned when Table 1 was complete
    "details_cheetah": [
        Run(variant, "none", "HalfCheetah-v4", seed)
        for seed in SEEDS
        for variant in ("raw_observations", "raw_advantages", "annealed", "small_epsilon")
    ],
    # There it collapses with each seed. All tasks, and clipping, were added then
    "details_raw": planned("raw", ["none"]),
    "details_raw_clip": planned("raw", ["clip_0.2"]),
    "seeds_clip_0.2": planned("paper", ["clip_0.2"], MORE_SEEDS),
    "seeds_adaptive_kl_0.01": planned("paper", ["adaptive_kl_0.01"], MORE_SEEDS),
    "seeds_fixed_kl_3": planned("paper", ["fixed_kl_3"], MORE_SEEDS),
    "seeds_none": planned("paper", ["none"], MORE_SEEDS),
    # The authors' code before and after ppo1 has them, so clipping was added, before any of these runs
    "details_normalized_rewards": planned("normalized_rewards", ["none", "clip_0.2"]),
    # These two, and the last seeds, were planned when all above had been seen
    "log_clip": planned("paper", ["log_clip_0.2"]),
    "details_clipped_values": planned("clipped_values", ["none", "clip_0.2"]),
    # Planned with the normalised rewards
    "details_bounded_actions": planned("bounded_actions", ["none"]),
    "details_minibatch_advantages": planned("minibatch_advantages", ["none"]),
    "details_clipped_gradient": planned("clipped_gradient", ["none"]),
    # Planned when two thirds of those above had been seen: HalfCheetah collapses there with each seed
    "details_ppo2": planned("ppo2", ["none"], envs=["HalfCheetah-v4"]),
    # Planned when those had been seen
    "details_short_memory": planned("short_memory", ["none"], envs=["HalfCheetah-v4"]),
    # What clipping at 0.2 is compared with in section 6.2
    "figure3": planned("paper", figure3.CONTESTANTS, figure3.SEEDS),
    # Planned when runs of A2C had been seen
    "figure3_later": planned("paper", figure3.LATER, figure3.SEEDS),
    "seeds_clip_0.1": planned("paper", ["clip_0.1"], MORE_SEEDS),
    "seeds_clip_0.3": planned("paper", ["clip_0.3"], MORE_SEEDS),
    "seeds_adaptive_kl_0.003": planned("paper", ["adaptive_kl_0.003"], MORE_SEEDS),
    "seeds_adaptive_kl_0.03": planned("paper", ["adaptive_kl_0.03"], MORE_SEEDS),
    "seeds_fixed_kl_0.3": planned("paper", ["fixed_kl_0.3"], MORE_SEEDS),
    "seeds_fixed_kl_1": planned("paper", ["fixed_kl_1"], MORE_SEEDS),
    "seeds_fixed_kl_10": planned("paper", ["fixed_kl_10"], MORE_SEEDS),
}

# Runs of another length, which choose what is run; they have a directory of their own
PILOTS: dict[str, list[Run]] = {
    stage: planned(
        "paper",
        [name for of_one in candidates.values() for name in of_one],
        figure3.PILOT_SEEDS,
        figure3.PILOT_TASKS,
    )
    for stage, candidates in (
        ("figure3_pilot", figure3.CANDIDATES),
        ("figure3_later_pilot", figure3.LATER_CANDIDATES),
    )
}


def hyperparameters(run: Run) -> dict[str, Any]:
    """
    The arguments of a run's algorithm.

    :param run: the run
    :return: arguments by name
    """
    if run.setting in figure3.ALL:
        return figure3.ALL[run.setting].kwargs
    with TABLE_3.open(encoding="utf-8") as file:
        table = yaml.safe_load(file)[run.env]
    # What the Zoo takes for itself
    for name in ("n_timesteps", "policy", "n_envs", "normalize", "env_wrapper"):
        del table[name]
    return {**table, **VARIANTS[run.variant].kwargs, **SETTINGS[run.setting].kwargs}


def command(run: Run, row: Mapping[str, Any]) -> str:
    """
    The command that makes a run again.

    :param run: the run
    :param row: its row: commit, length and, but for older ones, which were made with none of them set, ``VARIABLES``
    :return: for a shell, in a checkout of the repository
    """
    commit, timesteps = row["commit"], row["timesteps"]
    checkout = "" if commit == "unknown" else f"git checkout {commit.removesuffix('+')} && "
    variables = dict(part.split("=", 1) for part in row.get("variables", "").split("; ") if part)
    unset = [f"-u {name}" for name in VARIABLES if name not in variables]
    environment = " ".join(["env", *unset, *(f"{name}={shlex.quote(value)}" for name, value in variables.items())])
    # A pilot's run is in no other stage, and in none that is run without being named
    stage = next((f"--stages {name} " for name, runs in PILOTS.items() if run in runs), "")
    selection = f"{stage}--variants {run.variant} --settings {run.setting} --envs {run.env} --seeds {run.seed}"
    length = "" if timesteps == TIMESTEPS else f" --timesteps {timesteps}"
    changed = "  # with changes that had not been committed" if commit.endswith("+") else ""
    return f"{checkout}{environment} python -m benchmarks.paper run {selection}{length} --results ../again{changed}"
