"""What benchmarks/speed.py measures: cases, contestants, and what these can be without."""

import importlib
import importlib.util
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch as th


@dataclass(frozen=True)
class Case:
    """
    What is trained.

    :param env: id of the environment
    :param n_envs: number of environments
    :param updates: number of rollouts and updates in a turn
    :param normalize: whether VecNormalize is used
    :param policy: name of the policy
    :param kwargs: hyperparameters
    :param actions: name and argument of the action space of an environment that costs nothing, with action masks
    :param has_floor: whether the network takes most of the time, so that the network alone is a contestant, too
    :param further: names of further contestants
    """

    env: str
    n_envs: int = 1
    updates: int = 1
    normalize: bool = False
    policy: str = "MlpPolicy"
    kwargs: dict[str, Any] = field(default_factory=dict)
    actions: tuple[str, Any] | None = None
    has_floor: bool = False
    further: tuple[str, ...] = ()


def masked(kind: str, argument: Any, n_envs: int, n_steps: int, has_floor: bool = False) -> Case:
    """A case with action masks."""
    kwargs = {"n_steps": n_steps, "batch_size": 64, "n_epochs": 10}
    return Case("masks", n_envs, policy="MaskableMlpPolicy", kwargs=kwargs, actions=(kind, argument), has_floor=has_floor)


# The Zoo's settings
CARTPOLE = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "learning_rate": 1e-3}
PENDULUM = {"n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3, "use_sde": True, "sde_sample_freq": 4}
# Of RecurrentPPO, what its cases with MuJoCo have in common
LSTM_64 = {"n_steps": 256, "batch_size": 128, "policy_kwargs": {"lstm_hidden_size": 64}}

CASES = {
    "HalfCheetah-v4, 1 env": Case("HalfCheetah-v4"),
    "HalfCheetah-v4, 8 envs": Case("HalfCheetah-v4", n_envs=8, kwargs={"n_steps": 256}),
    "HalfCheetah-v4, VecNormalize": Case("HalfCheetah-v4", normalize=True),
    "HalfCheetah-v4, Dict of two parts": Case("HalfCheetah-v4", policy="MultiInputPolicy"),
    "Hopper-v4, 1 env": Case("Hopper-v4"),
    "CartPole-v1": Case("CartPole-v1", n_envs=8, updates=20, kwargs=CARTPOLE),
    "Pendulum-v1, gSDE": Case("Pendulum-v1", n_envs=4, kwargs=PENDULUM),
    "images 84x84x4, 8 envs": Case(
        "images",
        n_envs=8,
        policy="CnnPolicy",
        kwargs={"n_steps": 32, "batch_size": 256, "n_epochs": 4, "learning_rate": 2.5e-4, "ent_coef": 0.01},
        has_floor=True,
    ),
    "masks, Discrete(12), 8 envs": masked("Discrete", 12, n_envs=8, n_steps=256),
    "masks, Discrete(1400), 8 envs": masked("Discrete", 1400, n_envs=8, n_steps=128, has_floor=True),
    "masks, MultiDiscrete([7, 7, 7, 4]), 8 envs": masked("MultiDiscrete", [7, 7, 7, 4], n_envs=8, n_steps=256),
    "masks, MultiBinary(339), 16 envs": masked("MultiBinary", 339, n_envs=16, n_steps=16),
    # RecurrentPPO is fast where no episode starts in a rollout: four of them have a whole episode, of 1,000 steps
    "LSTM, HalfCheetah-v4, 8 envs": Case(
        "HalfCheetah-v4",
        n_envs=8,
        updates=4,
        policy="MlpLstmPolicy",
        kwargs=LSTM_64,
        further=("PPOClip, sequences of 16", "PPOClip, sequences of 32"),
    ),
    "LSTM, Hopper-v4, 8 envs": Case("Hopper-v4", n_envs=8, policy="MlpLstmPolicy", kwargs=LSTM_64),
    # contrib's default of 256 units
    "LSTM of 256, CartPole-v1": Case("CartPole-v1", n_envs=8, updates=4, policy="MlpLstmPolicy", kwargs=CARTPOLE),
    "LSTM, PendulumNoVel-v1, gSDE": Case(
        "PendulumNoVel-v1",
        n_envs=4,
        normalize=True,
        policy="MlpLstmPolicy",
        kwargs={
            **PENDULUM,
            "batch_size": 128,
            "policy_kwargs": {
                "ortho_init": False,
                "activation_fn": th.nn.ReLU,
                "lstm_hidden_size": 64,
                "enable_critic_lstm": True,
                "net_arch": {"pi": [64], "vf": [64]},
            },
        },
    ),
}

CONTESTANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SB3 PPO": ("stable_baselines3", "PPO", {}),
    "MaskablePPO": ("sb3_contrib", "MaskablePPO", {}),
    "RecurrentPPO": ("sb3_contrib", "RecurrentPPO", {}),
    "SBX PPO": ("sbx", "PPO", {}),
    "PPOClip, reference": ("sb3_ppo_variants", "PPOClip", {"compile": False}),
    "PPOClip": ("sb3_ppo_variants", "PPOClip", {"compile": True}),
    "PPOKLPen": ("sb3_ppo_variants", "PPOKLPen", {"compile": True}),
    "PPOFixedKL": ("sb3_ppo_variants", "PPOFixedKL", {"compile": True}),
    "PPOClip, sequences of 16": ("sb3_ppo_variants", "PPOClip", {"compile": True, "sequence_length": 16}),
    "PPOClip, sequences of 32": ("sb3_ppo_variants", "PPOClip", {"compile": True, "sequence_length": 32}),
}

# Takes part in cases with has_floor
FLOOR = "floor: the network alone"

PRODUCTS = "matrix products as they are written"
# What "PPOClip" is without one of its techniques: attributes of the package that are replaced
LANES = "sb3_ppo_variants.fast"
ABLATIONS: dict[str, list[str]] = {
    "all techniques": [],
    "rollouts without the NumPy policy": ["numpy_policy"],
    "and without the straight-line one": ["numpy_policy", "straight"],
    "SB3's step of DummyVecEnv": ["env"],
    "SB3's RolloutBuffer.add": ["buffer"],
    "SB3's computation of the advantages": ["advantages"],
    "no fast lane": ["env", "buffer", "advantages", "straight"],
    PRODUCTS: ["transposition"],
    "the traced step interpreted, not compiled": ["inductor"],
    "reference path, all techniques": ["reference"],
    "reference path, SB3's optimizer": ["reference", "adam"],
    "reference path, no fast lane": ["reference", "env", "buffer", "advantages", "straight", "adam"],
}


def switch_off(techniques: list[str]) -> dict[str, Any]:
    """
    Replace techniques by what SB3 does.

    :param techniques: names of fast lanes, or of other techniques
    :return: arguments for ``PPOClip``
    """
    from sb3_ppo_variants import optimizer
    from sb3_ppo_variants.compiled import inductor, numpy_policy

    for technique in techniques:
        if technique == "numpy_policy":
            numpy_policy.NumpyPolicy.supports = staticmethod(lambda policy: False)  # type: ignore[method-assign]
        elif technique == "transposition":
            for module in (inductor, optimizer):
                setattr(module, "is_quicker_transposed", lambda n_rows, n_columns: False)  # noqa: B010
        elif technique == "inductor":
            inductor.compile_graph = lambda graph, arguments: lambda arguments: graph(*arguments)
        elif technique != "reference":
            importlib.import_module(f"{LANES}.{technique}").lane = lambda *objects: None  # type: ignore[attr-defined]
    return {"compile": "reference" not in techniques}


def contestants(case: str) -> list[str]:
    """
    Who takes part in a case.

    :param case: name of the case
    :return: names of the contestants
    """
    floor = [FLOOR] if case in CASES and CASES[case].has_floor else []
    policy = CASES[case].policy if case in CASES else ""
    for kind, peer in (("Maskable", "MaskablePPO"), ("Lstm", "RecurrentPPO")):
        if kind in policy:
            return [peer, "PPOClip, reference", "PPOClip", "PPOKLPen", *CASES[case].further, *floor]
    names = [name for name in CONTESTANTS if CONTESTANTS[name][0] != "sb3_contrib" and "sequences" not in name]
    # It has no policy for dictionaries
    has_sbx = importlib.util.find_spec("sbx") is not None and policy != "MultiInputPolicy"
    names = [name for name in names if name != "SBX PPO" or has_sbx] + floor
    # The KL variants do the same work everywhere
    return names if case == "HalfCheetah-v4, 1 env" else [name for name in names if "KL" not in name]


def make_env(case: Case) -> Any:
    """
    The vectorized environment of a case.

    :param case: the case
    :return: the environment
    """
    import gymnasium as gym
    import numpy as np
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from benchmarks.masked_env import Free

    if "NoVel" in case.env:
        import rl_zoo3.import_envs  # noqa: F401

    class Images(gym.Env):
        """Images that cost nothing, so that the convolutions are what is measured."""

        observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        action_space = gym.spaces.Discrete(6)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.images = self.np_random.integers(0, 256, (16, 4, 84, 84), dtype=np.uint8)
            self.steps = 0
            return self.images[0], {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.steps += 1
            return self.images[self.steps % 16], float(action == self.steps % 6), False, self.steps == 200, {}

    class TwoParts(gym.ObservationWrapper[Any, Any, Any]):
        """A dictionary of positions and velocities."""

        def __init__(self, env: gym.Env[Any, Any]) -> None:
            super().__init__(env)
            parts = [gym.spaces.Box(-np.inf, np.inf, (n,), np.float64) for n in (8, 9)]
            self.observation_space = gym.spaces.Dict(dict(zip(("positions", "velocities"), parts, strict=True)))

        def observation(self, observation: Any) -> Any:
            return {"positions": observation[:8], "velocities": observation[8:]}

    single: Any = Images if case.env == "images" else case.env
    if case.actions is not None:
        kind, argument = case.actions
        single = partial(Free, getattr(gym.spaces, kind)(argument))
    wrapper = TwoParts if case.policy == "MultiInputPolicy" else None
    env = make_vec_env(single, n_envs=case.n_envs, seed=0, wrapper_class=wrapper)
    return VecNormalize(env) if case.normalize else env
