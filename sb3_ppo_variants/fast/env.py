"""Steps of ``DummyVecEnv`` and ``VecNormalize`` with fewer deep copies and temporary arrays, to the same attributes."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

# Immutable, so that a deep copy is the object itself
IMMUTABLE = frozenset((bool, int, float, str, type(None), np.bool_, np.int32, np.int64, np.float32, np.float64))

EnvStep = Callable[[np.ndarray], VecEnvStepReturn]


def lane(env: VecEnv) -> EnvStep | None:
    """A function that does what ``env.step`` does."""
    if type(env) is DummyVecEnv and not isinstance(env.observation_space, spaces.Tuple):
        return partial(_step_dummy, env)
    if type(env) is VecNormalize and isinstance(env.observation_space, spaces.Box | spaces.Dict):
        return partial(_step_normalize, env, lane(env.venv) or env.venv.step)
    return None


def _step_dummy(env: DummyVecEnv, actions: np.ndarray) -> VecEnvStepReturn:
    env.actions = actions
    buffers = env.buf_obs
    whole = buffers.get(None)  # type: ignore[call-overload]
    for i, single in enumerate(env.envs):
        obs, env.buf_rews[i], terminated, truncated, info = single.step(actions[i])
        env.buf_dones[i] = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        if terminated or truncated:
            info["terminal_observation"] = obs
            obs, env.reset_infos[i] = single.reset()
        env.buf_infos[i] = info
        if whole is not None:
            whole[i] = obs
            continue
        for name, buffer in buffers.items():
            buffer[i] = obs[name]
    observations = _copy_observations(buffers if whole is None else whole)
    return observations, env.buf_rews.copy(), env.buf_dones.copy(), [_copy(info) for info in env.buf_infos]


def _copy_observations(observations: Any) -> Any:
    if isinstance(observations, np.ndarray):
        return observations.copy()
    return type(observations)((name, part.copy()) for name, part in observations.items())


def _copy(info: dict[str, Any]) -> dict[str, Any]:
    if type(info) is not dict:
        return deepcopy(info)
    if IMMUTABLE.issuperset(map(type, info.values())):
        return info.copy()
    return {key: value if type(value) in IMMUTABLE else deepcopy(value) for key, value in info.items()}


def _step_normalize(env: VecNormalize, step: EnvStep, actions: np.ndarray) -> VecEnvStepReturn:
    obs: Any
    obs, rewards, dones, infos = step(actions)
    env.old_obs = obs
    env.old_reward = rewards
    if not env.norm_obs:
        normalized = _copy_observations(obs)
    elif isinstance(env.obs_rms, dict):
        for name, statistics in env.obs_rms.items() if env.training else ():
            _update(statistics, obs[name])
        normalized = _copy_observations(obs)
        for name in env.norm_obs_keys or ():
            normalized[name] = _normalized(env, obs[name], env.obs_rms[name])
    else:
        if env.training:
            _update(env.obs_rms, obs)
        normalized = _normalized(env, obs, env.obs_rms)
    if env.training:
        env.returns = env.returns * env.gamma + rewards
        _update(env.ret_rms, env.returns)
    if env.norm_reward:
        rewards = rewards / np.sqrt(env.ret_rms.var + env.epsilon)
        np.minimum(np.maximum(rewards, -env.clip_reward, out=rewards), env.clip_reward, out=rewards)
    for i in np.flatnonzero(dones):
        if "terminal_observation" in infos[i]:
            infos[i]["terminal_observation"] = env.normalize_obs(infos[i]["terminal_observation"])
    env.returns[dones] = 0
    return normalized, rewards.astype(np.float32), dones, infos


def _normalized(env: VecNormalize, obs: np.ndarray, statistics: RunningMeanStd) -> np.ndarray:
    normalized = obs - statistics.mean
    normalized /= np.sqrt(statistics.var + env.epsilon)
    np.minimum(np.maximum(normalized, -env.clip_obs, out=normalized), env.clip_obs, out=normalized)
    return normalized.astype(np.float32)


def _update(statistics: RunningMeanStd, batch: np.ndarray) -> None:
    """``statistics.update(batch)``."""
    if len(batch) == 1:
        # The mean of one row is the row, and its variance is 0
        count, total = statistics.count, statistics.count + 1
        delta = batch[0] - statistics.mean
        statistics.mean = statistics.mean + delta / total
        statistics.var = (statistics.var * count + delta * delta * count / total) / total
        statistics.count = total
        return
    if batch.dtype not in (np.float32, np.float64):
        # np.mean sums other types in a wider one
        statistics.update(batch)
        return
    # What np.mean and np.var compute, without their overhead
    mean = np.add.reduce(batch, axis=0) / len(batch)
    deviations = batch - mean
    np.multiply(deviations, deviations, out=deviations)
    statistics.update_from_moments(mean, np.add.reduce(deviations, axis=0) / len(batch), len(batch))
