"""The straight MLP by itself: what Stable-Baselines3's policy computes and draws, bit for bit."""

import numpy as np
import pytest
import support
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from support import ACTION_SPACES, OBSERVATION_SPACES, InPlaceExtractor, OwnPolicy, equal

from sb3_ppo_variants.fast import mlp
from sb3_ppo_variants.loss import Batch
from sb3_ppo_variants.policies import FeedForward


def make_policy(*args, **kwargs):
    policy = support.make_policy(*args, **kwargs)
    # SB3's initial means are next to 0
    with th.no_grad():
        policy.action_net.weight.mul_(50)
    return policy


ARCHITECTURES = {
    "default": {},
    "ReLU, three layers": {"activation_fn": th.nn.ReLU, "net_arch": [16, 16, 16]},
    "apart": {"activation_fn": th.nn.ELU, "net_arch": {"pi": [7], "vf": [32, 5]}, "log_std_init": -1.0},
    "none": {"net_arch": []},
}


def draw(action, n):
    space = ACTION_SPACES[action]
    actions = [space.sample() for _ in range(n)]
    return th.as_tensor(np.array(actions), dtype=th.int64 if action == "discrete" else th.float32)


@pytest.mark.parametrize("action", ["box", "discrete"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_numbers_gradients_and_draws(architecture, action):
    policy = make_policy(action=action, **ARCHITECTURES[architecture])
    straight, reference = mlp.lane(policy), FeedForward(policy)
    assert straight is not None
    rng = np.random.default_rng(0)
    for n_envs in (1, 4, 4):
        observations = rng.normal(size=(n_envs, 5)).astype(np.float32)
        results = []
        for kind in (reference, straight):
            th.manual_seed(1)
            results.append((*kind.act(observations), kind.value(observations), th.rand(1)))
        assert equal(*results)
        assert [getattr(part, "dtype", None) for part in results[0]] == [getattr(part, "dtype", None) for part in results[1]]
        # Parameters may change between two steps
        with th.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.1)

    batch = Batch(th.randn(32, 5), draw(action, 32), *(th.zeros(32) for _ in range(4)), ())
    results = []
    for kind in (reference, straight):
        evaluation = kind.evaluate(batch)
        parts = evaluation[:3]
        form = evaluation.closed_form()
        policy.optimizer.zero_grad()
        loss = sum((i + 1) * part.square().mean() for i, part in enumerate((*parts, *form.parameters)))
        loss.backward()
        gradients = [parameter.grad for parameter in policy.parameters()]
        results.append((*parts, form.divergence, form.parameters, kind.distributions(batch.observations), gradients))
    assert equal(*results)
    assert all(gradient.abs().max() > 0 for gradient in results[0][-1])


class Twice(th.nn.Tanh):
    def forward(self, latent):
        return 2 * super().forward(latent)


def test_lane_is_for_mlp_policy_on_vectors_alone():
    assert mlp.lane(make_policy()) is not None
    assert mlp.lane(make_policy(activation_fn=th.nn.LeakyReLU)) is not None
    hooked, own_layer, without_bias = make_policy(), make_policy(), make_policy()
    hooked.value_net.register_forward_hook(lambda *_: None)
    own_layer.mlp_extractor.policy_net[1] = Twice()
    without_bias.action_net = th.nn.Linear(64, 3, bias=False)
    others = [
        hooked,
        own_layer,
        without_bias,
        make_policy(OwnPolicy),
        make_policy(observation="discrete"),
        make_policy(action="multidiscrete"),
        make_policy(action="multibinary"),
        make_policy(use_sde=True),
        make_policy(activation_fn=th.nn.PReLU),
        # Draws random numbers
        make_policy(activation_fn=th.nn.RReLU),
        make_policy(features_extractor_class=InPlaceExtractor),
        ActorCriticPolicy(OBSERVATION_SPACES["box"], spaces.Box(-1, 1, (2, 3)), lambda _: 1e-3),
    ]
    assert [mlp.lane(policy) for policy in others] == [None] * len(others)
