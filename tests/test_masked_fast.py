"""Action masks on the compiled path, and bits of contrib where there are many actions."""

import numpy as np
import pytest
import torch as th
from compiled_support import assert_steps_agree_in_float64, needs_new_torch, reference_and_compiled, trained
from gymnasium import spaces
from masked_support import masked_env
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.env_util import make_vec_env
from support import SpaceEnv, make_model

from benchmarks.masked_env import random_masks
from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen
from sb3_ppo_variants.buffers import MaskedRolloutBuffer
from sb3_ppo_variants.compiled.numpy_policy import NumpyPolicy
from sb3_ppo_variants.fast.masked import IS_OLD, MANY, StraightMasked
from sb3_ppo_variants.kinds import Masked, kind_of
from sb3_ppo_variants.kl import kl_categorical
from sb3_ppo_variants.loss import Batch
from sb3_ppo_variants.masks import heads_of
from sb3_ppo_variants.rollout import Rollout

ACTION_SPACES = {
    "discrete": spaces.Discrete(7),
    "even": spaces.MultiDiscrete([4, 4]),
    "uneven": spaces.MultiDiscrete([5, 2, 2, 3]),
    "multibinary": spaces.MultiBinary(4),
    "many": spaces.MultiDiscrete([3 * MANY, 2]),
}
OBSERVATIONS = spaces.Box(-1, 1, (5,))


class Derived(MaskableActorCriticPolicy):
    """A policy of a user's."""


def policy_of(space, scale=3.0):
    th.manual_seed(0)
    policy = MaskableActorCriticPolicy(OBSERVATIONS, space, lambda _: 1e-3)
    with th.no_grad():
        # Far from uniform
        policy.action_net.weight.mul_(100 * scale)
    return policy


@pytest.mark.skipif(IS_OLD, reason="contrib is too old for the lane")
@pytest.mark.parametrize("name", ACTION_SPACES)
def test_lane_has_contribs_bits_and_gradients(name):
    space, rng = ACTION_SPACES[name], np.random.default_rng(0)
    policy = policy_of(space)
    observations, masks = rng.uniform(-1, 1, (64, 5)).astype(np.float32), random_masks(heads_of(space), 64, rng, 0.4)
    found = []
    for kind in (Masked(policy), StraightMasked(policy)):
        th.manual_seed(1)
        action = kind.act(observations, {"action_masks": masks})
        actions = th.as_tensor(action.actions, dtype=th.float32)
        actions = actions.long() if isinstance(space, spaces.Discrete) else actions
        numbers = [th.as_tensor(observations), actions, *[th.zeros(64)] * 4, ()]
        evaluation = kind.evaluate(Batch(*numbers, {"action_masks": th.as_tensor(masks)}))
        loss = evaluation.values.mean() + (evaluation.log_prob * 0.7 + evaluation.entropy * 0.3).mean()
        gradients = th.autograd.grad(loss, list(policy.parameters()))
        (form,) = evaluation.closed_form().parameters
        found.append([actions, action.values, action.log_probs, evaluation.log_prob, evaluation.entropy, form, *gradients])
    assert all(map(th.equal, *found))
    assert min(gradient.abs().max() for gradient in found[0][6:]) > 0


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_no_invalid_action_in_numpy_and_the_right_frequencies(name):
    space, rng = ACTION_SPACES[name], np.random.default_rng(0)
    n_steps, n_envs, heads = 20, 2_000, heads_of(space)
    policy = policy_of(space)
    buffer = MaskedRolloutBuffer(n_steps, OBSERVATIONS, space, device="cpu", n_envs=n_envs)
    quick = NumpyPolicy(policy, buffer)
    # The same state and mask everywhere in the first half of the environments
    observations, masks = rng.uniform(-1, 1, (n_envs, 5)).astype(np.float32), random_masks(heads, n_envs, rng, 0.4)
    observations[: n_envs // 2], masks[: n_envs // 2] = observations[0], masks[0] | (np.arange(sum(heads)) % 3 == 0)
    starts = np.cumsum([0, *heads[:-1]])
    counts = np.zeros(sum(heads))
    for _ in range(n_steps):
        action = quick.act(observations, {"action_masks": masks})
        chosen = action.actions.reshape(n_envs, -1) + starts
        assert np.take_along_axis(masks, chosen, axis=1).all()
        np.add.at(counts, chosen[: n_envs // 2], 1)
    with th.no_grad():
        actions = th.as_tensor(action.actions)
        values, log_prob, _ = policy.evaluate_actions(th.as_tensor(observations), actions, action_masks=masks)
        distribution = policy.get_distribution(th.as_tensor(observations[:1]), masks[:1])
    th.testing.assert_close(th.as_tensor(action.log_probs), log_prob, rtol=1e-4, atol=1e-4)
    th.testing.assert_close(th.as_tensor(action.values), values, rtol=1e-4, atol=1e-5)
    parts = getattr(distribution, "distributions", None) or [distribution.distribution]
    expected = 20_000 * th.cat([part.probs[0] for part in parts]).numpy()
    # Six standard deviations
    assert (np.abs(counts - expected) <= 6 * np.sqrt(expected) + 1).all()
    assert counts[~masks[0]].sum() == 0


@pytest.mark.parametrize("name", ACTION_SPACES)
@pytest.mark.parametrize(("number", "possible"), [(0.0, "last"), (1 - 2**-24, "first")])
def test_no_invalid_action_at_the_ends_of_the_uniform_numbers(name, number, possible):
    space = ACTION_SPACES[name]
    heads = heads_of(space)
    quick = NumpyPolicy(policy_of(space, scale=0.0), MaskedRolloutBuffer(1, OBSERVATIONS, space, device="cpu", n_envs=1))
    quick.uniform[:] = number
    expected = [n - 1 if possible == "last" else 0 for n in heads]
    mask = np.concatenate([np.arange(n) == action for n, action in zip(heads, expected, strict=True)])
    action = quick.act(np.zeros((1, 5), np.float32), {"action_masks": mask[None]})
    assert action.actions.flatten().tolist() == expected


@needs_new_torch
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("action", "cls", "kwargs"),
    [
        ("discrete", PPOClip, {}),
        ("multidiscrete", PPOFixedKL, {"kl_coef": 3.0}),
        ("multibinary", PPOKLPen, {"normalize_advantage": "batch"}),
    ],
)
@pytest.mark.filterwarnings("ignore:The log probabilities of the actions in the rollout")
def test_compiled_steps_with_masks_are_those_of_the_reference(action, cls, kwargs):
    make_env = masked_env("box", action)
    assert_steps_agree_in_float64(trained(cls, "MaskableMlpPolicy", make_env, ent_coef=0.01, **kwargs))


@needs_new_torch
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("policy", "observation"), [(Derived, "box"), ("MaskableMultiInputPolicy", "dict")])
def test_other_policies_with_masks_compile(policy, observation):
    model = trained(PPOKLPen, policy, masked_env(observation, "multidiscrete", "observation"))
    reference, compiled = reference_and_compiled(model)
    assert compiled.is_compiled
    assert reference.off(compiled) < 1e-4


@needs_new_torch
@pytest.mark.parametrize(
    ("policy", "observation", "way"),
    [("MaskableMlpPolicy", "box", "info"), ("MaskableMultiInputPolicy", "parts", "observation")],
)
def test_compiled_training_with_masks(policy, observation, way):
    """The environment accepts no invalid action."""
    model = make_model(PPOKLPen, policy, masked_env(observation, "multidiscrete", way)(), compile=True)
    model.learn(52 * 3)
    assert model._uses_compiled
    assert type(model._acting(model.rollout_buffer)) is NumpyPolicy
    assert model.rollout_buffer.action_masks.dtype == bool


def test_kl_of_several_parts_of_hand_worked_numbers():
    # Parts of 2 and 3 actions, one masked in each row: log 0 stands for it
    old = th.tensor([[0.5, 0.5, 0.25, 0.75, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0]]).log().clamp(min=-1e8)
    new = th.tensor([[0.25, 0.75, 0.5, 0.5, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0]]).log().clamp(min=-1e8).requires_grad_()
    kl = kl_categorical(old, new)
    # 0.5 log 2 + 0.5 log(2 / 3) = 0.143841, and 0.25 log(1 / 2) + 0.75 log(3 / 2) = 0.130812; the second row leaves no choice
    assert kl.tolist() == [pytest.approx(0.143841 + 0.130812, abs=1e-6), 0.0]
    kl.sum().backward()
    # Minus the old probabilities; the probability 0 of a masked action gives exactly 0
    assert new.grad.tolist() == [[-0.5, -0.5, -0.25, -0.75, 0.0], [-1.0, 0.0, -1.0, 0.0, 0.0]]


def test_kl_that_is_only_logged_with_many_actions():
    space = spaces.Discrete(300)
    env = make_vec_env(lambda: SpaceEnv(OBSERVATIONS, space), 2, seed=0)
    for cls, n_measured in ((PPOClip, 7), (PPOKLPen, 52)):
        model = make_model(cls, env=env, compile=False).learn(52)
        # 52 states, or every 8th
        old = Rollout(model.rollout_buffer, kind_of(model.policy), needs_kl=model._needs_kl())
        assert len(old.measured[0].observations) == n_measured
        assert model.logger.name_to_value["train/kl"] > 0
