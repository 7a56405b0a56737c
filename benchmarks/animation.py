"""
A picture of a trained HalfCheetah that runs.

    python -m benchmarks.animation

Trains ``PPOClip`` for a million timesteps with the settings that the RL Zoo has found for SB3's PPO, which takes some minutes,
writes docs/figures/half_cheetah.webp, and prints the return of the episode that is seen. From a few starts, the HalfCheetah
falls on its nose and stays there.

MuJoCo draws without a screen by EGL, or by OSMesa with ``MUJOCO_GL=osmesa``; on Debian and Ubuntu, ``apt-get install libegl1``
or ``libosmesa6`` if these are missing.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ppo_variants import PPOClip

ENV = "HalfCheetah-v4"
PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "half_cheetah.webp"
# Of HalfCheetah-v4 in the Zoo's ppo.yml
KWARGS: dict[str, Any] = {
    "n_steps": 512,
    "batch_size": 64,
    "n_epochs": 20,
    "gamma": 0.98,
    "gae_lambda": 0.92,
    "learning_rate": 2.0633e-05,
    "ent_coef": 0.000401762,
    "vf_coef": 0.58096,
    "clip_range": 0.1,
    "max_grad_norm": 0.8,
    "policy_kwargs": {"log_std_init": -2, "ortho_init": False, "activation_fn": th.nn.ReLU, "net_arch": [256, 256]},
}


def train(timesteps: int, seed: int = 0) -> PPOClip:
    """
    Train the HalfCheetah.

    :param timesteps: number of timesteps
    :param seed: the seed
    :return: the model, whose environment can be drawn
    """
    picture = {"render_mode": "rgb_array", "width": 640, "height": 320, "camera_name": "track"}
    env = VecNormalize(make_vec_env(ENV, seed=seed, env_kwargs=picture), gamma=KWARGS["gamma"])
    return PPOClip("MlpPolicy", env, seed=seed, device="cpu", **KWARGS).learn(timesteps)


def play(model: PPOClip, first: int, n_frames: int, seed: int = 1) -> tuple[list[np.ndarray], float]:
    """
    Play an episode by the mean actions.

    :param model: the model
    :param first: number of the step before which the first frame is
    :param n_frames: number of frames, one a step
    :param seed: the seed of the episode
    :return: frames of shape (height, width, 3), and the return of the whole episode
    """
    env: Any = model.get_env()
    env.training = env.norm_reward = False
    env.seed(seed)
    frames, total, step, done = [], 0.0, 0, False
    observations = env.reset()
    while not done:
        if first <= step < first + n_frames:
            # Without most of the sky
            frames.append(env.render()[110:])
        observations, (reward,), (done,), _ = env.step(model.predict(observations, deterministic=True)[0])
        total, step = total + reward, step + 1
    return frames, total


def write(frames: list[np.ndarray], path: Path, fps: int = 20) -> None:
    """
    Write an animated picture that starts anew when it ends.

    :param frames: frames of shape (height, width, 3)
    :param path: where it goes; the suffix says the format
    :param fps: frames a second
    """
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others, duration=1000 // fps, loop=0, quality=50, method=6)


def main() -> None:
    """Train, play, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=1_000_000, help="length of the training")
    parser.add_argument("--frames", type=int, default=80, help="number of frames, of 1/20 s each; the floor ends after 40 m")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the picture")
    args = parser.parse_args()
    # Sums over several threads round differently
    th.set_num_threads(1)
    os.environ.setdefault("MUJOCO_GL", "egl")
    frames, total = play(train(args.timesteps), 10, args.frames)
    write(frames, args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB, an episode of return {total:.0f}")


if __name__ == "__main__":
    main()
