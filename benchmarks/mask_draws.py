"""
Whether an invalid action is ever drawn: many draws with random masks over all kinds of action spaces.

    python -m benchmarks.mask_draws [--draws 1e8]

Each path makes that many draws, an action of all of its parts being one: rollouts in NumPy, as when updates are compiled, and
in torch. contrib's own policy makes a hundredth of them. Logits are far apart, so that many probabilities are tiny or 0, and
masks leave between one action and all.

Writes benchmarks/results/mask_draws.csv, and fails if one action was invalid.
"""

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from benchmarks.masked_env import random_masks
from benchmarks.provenance import current_commit
from sb3_ppo_variants.buffers import MaskedRolloutBuffer
from sb3_ppo_variants.compiled.numpy_policy import NumpyPolicy
from sb3_ppo_variants.fast.masked import StraightMasked
from sb3_ppo_variants.kinds import Masked
from sb3_ppo_variants.masks import heads_of
from sb3_ppo_variants.policies import FeedForward

RESULTS = Path(__file__).parent / "results" / "mask_draws.csv"
# Spaces, and their share of the draws: a draw of a large one takes as long as many of a small one
SPACES: list[tuple[spaces.Space, float]] = [
    (spaces.Discrete(2), 0.2),
    (spaces.Discrete(12), 0.2),
    (spaces.Discrete(1400), 0.005),
    (spaces.MultiDiscrete([3, 4, 2]), 0.195),
    (spaces.MultiDiscrete([7, 7, 7, 4]), 0.195),
    (spaces.MultiBinary(6), 0.2),
    (spaces.MultiBinary(339), 0.005),
]
# Paths, and the share of the draws that each makes
PATHS = {"numpy": 1.0, "torch": 1.0, "contrib": 0.01}
OBSERVATION = spaces.Box(-1, 1, (4,))
# Steps of a rollout, and actions of all environments in a step
N_STEPS = 32
N_ACTIONS = 2**18


def make_policy(space: spaces.Space, spread: float = 30.0) -> Any:
    """
    A policy whose logits are linear in the observation.

    :param space: the action space
    :param spread: how far apart they are
    :return: the policy
    """
    policy: Any = MaskableActorCriticPolicy(OBSERVATION, space, lambda _: 1e-3, net_arch=[])
    with th.no_grad():
        policy.action_net.weight.normal_(std=spread)
    return policy


def acting(path: str, policy: Any, n_envs: int) -> FeedForward:
    """
    What acts in a rollout.

    :param path: name of the path
    :param policy: the policy
    :param n_envs: number of environments
    :return: for ``N_STEPS`` steps
    """
    if path == "contrib":
        return Masked(policy)
    if path == "torch":
        return StraightMasked(policy)
    return NumpyPolicy(policy, MaskedRolloutBuffer(N_STEPS, OBSERVATION, policy.action_space, n_envs=n_envs))


def count_invalid(path: str, space: spaces.Space, draws: int, rng: np.random.Generator) -> tuple[int, int]:
    """
    Draw actions.

    :param path: name of the path
    :param space: the action space
    :param draws: how many at least
    :param rng: random generator of observations and masks
    :return: number of draws, and of those of which a part is invalid
    """
    heads = heads_of(space)
    starts = np.cumsum(heads) - heads
    n_envs = min(N_ACTIONS // sum(heads), -(-draws // N_STEPS))
    policy, found, invalid = make_policy(space), 0, 0
    while found < draws:
        actor = acting(path, policy, n_envs)
        for probability in np.linspace(0, 1, N_STEPS):
            masks = random_masks(heads, n_envs, rng, probability)
            observations = rng.uniform(-1, 1, (n_envs, *OBSERVATION.shape)).astype(np.float32)
            actions = actor.act(observations, {"action_masks": masks}).actions.reshape(n_envs, -1).astype(int)
            is_action = (actions >= 0) & (actions < np.array(heads))
            is_valid = is_action & masks[np.arange(n_envs)[:, None], starts + np.where(is_action, actions, 0)]
            found += n_envs
            invalid += int((~is_valid.all(axis=1)).sum())
    return found, invalid


def main() -> None:
    """Draw, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=float, default=1e8, help="number of draws on each path")
    args = parser.parse_args()
    th.set_num_threads(1)
    th.manual_seed(0)
    rng, commit, rows = np.random.default_rng(0), current_commit(), []
    for path, path_share in PATHS.items():
        for space, share in SPACES:
            start = time.perf_counter()
            draws, invalid = count_invalid(path, space, int(args.draws * path_share * share), rng)
            seconds = round(time.perf_counter() - start, 1)
            row: dict[str, Any] = {"path": path, "space": str(space), "draws": draws, "invalid": invalid, "seconds": seconds}
            rows.append({**row, "commit": commit})
            print(*row.values(), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for path in PATHS:
        own = [row for row in rows if row["path"] == path]
        draws, invalid = (sum(row[key] for row in own) for key in ("draws", "invalid"))
        print(f"{path}: {invalid} of {draws:.2e} draws are invalid")
    sys.exit(any(row["invalid"] for row in rows))


if __name__ == "__main__":
    main()
