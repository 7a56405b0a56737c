"""evaluate_policy: masks from each source, and memory."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from masked_support import WAYS, GivesMasks, masked_env
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable import evaluation as maskable_evaluation
from stable_baselines3 import PPO
from stable_baselines3.common import evaluation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor

from sb3_ppo_variants import PPOClip, evaluate_policy, masks
from sb3_ppo_variants.recurrent_policies import MaskableMlpLstmPolicy


class Recall(gym.Env):
    """
    The first observation shows a number, 0, 1 and 2 in turn, and that it is the first; the others are empty. The reward is
    1 if the last action is that number. Episodes take 2 steps more than the number.
    """

    observation_space = spaces.Box(0, 1, (4,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self):
        self.number = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number = (self.number + 1) % 3
        self.left = 2 + self.number
        return np.append(np.eye(3, dtype=np.float32)[self.number], np.float32(1)), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(4, np.float32), float(self.left == 0 and action == self.number), self.left == 0, False, {}


class RecallWithMasks(GivesMasks):
    """The number is possible in the last step only, where one of the others is not."""

    def new_mask(self):
        mask = np.ones(3, bool)
        mask[self.env.number if self.env.left > 1 else (self.env.number + 1) % 3] = False
        return mask


def policy_that_remembers():
    policy = MaskableMlpLstmPolicy(
        Recall.observation_space,
        Recall.action_space,
        lambda _: 1e-3,
        net_arch=[],
        lstm_hidden_size=3,
        recurrent_layer_type="gru",
    )
    memory = policy.lstm_actor
    with th.no_grad():
        for parameter in (*memory.parameters(), *policy.action_net.parameters()):
            parameter.zero_()
        # The update gate keeps what there is, but in the first step; the candidate is the number
        memory.weight_ih_l0[3:6, 3] = -100
        memory.bias_ih_l0[3:6] = 50
        memory.weight_ih_l0[6:, :3] = 10 * th.eye(3)
        policy.action_net.weight.copy_(10 * th.eye(3))
    return policy


@pytest.mark.parametrize("way", WAYS)
def test_masks_and_memory(way):
    policy = policy_that_remembers()
    env = make_vec_env(lambda: RecallWithMasks(Recall(), way), 2)
    # An episode that the first environment has begun is left, and its second number comes first
    expected = [1.0] * 6, [3, 3, 4, 4, 2, 2]
    env.reset()
    assert evaluate_policy(policy, env, 6, return_episode_rewards=True) == expected
    assert evaluate_policy(policy, Monitor(RecallWithMasks(Recall(), way)), 3, return_episode_rewards=True) == (
        [1.0] * 3,
        [2, 3, 4],
    )
    assert evaluate_policy(policy, env, 6, deterministic=False) == (1.0, 0.0)


def test_contribs_function_would_forget():
    env = make_vec_env(lambda: RecallWithMasks(Recall(), "method"), 1)
    with pytest.raises(ValueError, match=r"contrib's maskable evaluate_policy never hands states on"):
        maskable_evaluation.evaluate_policy(policy_that_remembers(), env, 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", [PPOClip, MaskablePPO])
def test_masks_without_memory(cls, way):
    # The environments accept no invalid action
    env = masked_env("box", "multidiscrete", way)()
    policy = {PPOClip: "MaskableMlpPolicy", MaskablePPO: "MultiInputPolicy" if way == "observation" else "MlpPolicy"}[cls]
    model = cls(policy, env, n_steps=26, batch_size=13, seed=0)
    for one in (model, model.policy):
        lengths = evaluate_policy(one, env, 4, deterministic=False, return_episode_rewards=True)[1]
        assert lengths == [13] * 4


def test_plain_models():
    model = PPO("MlpPolicy", "CartPole-v1", seed=0)
    env = make_vec_env("CartPole-v1", 2)
    returns = []
    for evaluate in (evaluate_policy, evaluation.evaluate_policy):
        env.seed(0)
        returns.append(evaluate(model, env, 6))
    assert returns[0] == returns[1]


@pytest.mark.parametrize("way", ["info", "method"])
def test_the_environment_is_as_before(way):
    env = make_vec_env(lambda: RecallWithMasks(Recall(), way), 2)
    policy = policy_that_remembers()
    methods = env.reset, env.step_wait
    names = {"reset", "step_wait"}
    evaluate_policy(policy, env, 2)
    assert (env.reset, env.step_wait) == methods
    assert names.isdisjoint(vars(env))

    def fail(*_):
        raise RuntimeError("a callback fails")

    with pytest.raises(RuntimeError, match="a callback fails"):
        evaluate_policy(policy, env, 2, callback=fail)
    assert names.isdisjoint(vars(env))

    masks.attach_masks(env)
    attached = env.reset, env.step_wait
    evaluate_policy(policy, env, 2)
    assert (env.reset, env.step_wait) == attached


def test_a_model_with_masks_needs_some():
    env = make_vec_env(Recall, 1)
    with pytest.raises(ValueError, match="The policy takes action masks, but the environment gives none"):
        evaluate_policy(policy_that_remembers(), env)
    assert "reset" not in vars(env)
