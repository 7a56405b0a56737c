"""Evaluation of policies, with action masks and memory."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
from stable_baselines3.common import evaluation
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_ppo_variants import masks, recurrent_policies


def evaluate_policy(
    model: PolicyPredictor,
    env: gym.Env | VecEnv,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
    reward_threshold: float | None = None,
    return_episode_rewards: bool = False,
    warn: bool = True,
) -> tuple[float, float] | tuple[list[float], list[int]]:
    """
    SB3's ``evaluate_policy``, except that a model that takes action masks gets those of the environment, wherever they come
    from. The states of a policy with memory are passed on from step to step, which contrib's function for masks does not do.

    :param model: this package's, SB3's or contrib's: an algorithm, a policy, or whatever else predicts
    :param env: the environment, or a vectorized one
    :param n_eval_episodes: number of episodes
    :param deterministic: whether to take the likeliest actions
    :param render: whether to render
    :param callback: called after each step with ``locals()`` and ``globals()`` of SB3's function
    :param reward_threshold: as in SB3, an ``AssertionError`` is raised unless the mean return is above it; ``None`` for none
    :param return_episode_rewards: whether to return lists instead of mean and standard deviation
    :param warn: whether to warn if there is no ``Monitor``
    :return: mean and standard deviation of the returns, or the returns and lengths of the episodes
    :raises ValueError: if the model takes masks and the environment gives none
    """
    vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    options = n_eval_episodes, deterministic, render, callback, reward_threshold, return_episode_rewards, warn
    policy = getattr(model, "policy", model)
    if not (isinstance(policy, BasePolicy) and recurrent_policies.takes_masks(type(policy))):
        return evaluation.evaluate_policy(model, vec_env, *options)

    def predict(observation: Any, **kwargs: Any) -> Any:
        found = masks.given_or_found(None, observation, policy.action_space)
        return model.predict(masks.features(policy, observation), action_masks=found, **kwargs)  # type: ignore[call-arg]

    predictor: Any = SimpleNamespace(predict=predict)
    before = {name: method for name, method in vars(vec_env).items() if name in ("reset", "step_wait")}
    masks.attach_masks(vec_env)
    try:
        return evaluation.evaluate_policy(predictor, vec_env, *options)
    finally:
        del vec_env.reset, vec_env.step_wait
        vars(vec_env).update(before)
