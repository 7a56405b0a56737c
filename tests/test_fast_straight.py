"""The straight line by itself: what Stable-Baselines3's policies compute and draw, bit for bit."""

import copy

import numpy as np
import pytest
import support
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from support import ACTION_SPACES, InPlaceExtractor, LinearExtractor, OwnPolicy, equal
from torch.utils import _pytree as pytree

from sb3_ppo_variants import NonFinitePolicyError
from sb3_ppo_variants.fast import straight
from sb3_ppo_variants.loss import Batch
from sb3_ppo_variants.policies import FeedForward, is_standard_mlp


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
    return th.as_tensor(np.array(actions), dtype=th.float32 if action == "box" else th.int64)


def observe(space, n):
    """Observations of a space, as an environment of SB3's returns them."""
    if isinstance(space, spaces.Dict):
        return {name: observe(part, n) for name, part in space.spaces.items()}
    return np.stack([space.sample() for _ in range(n)])


def assert_same_rollouts(policy):
    """Of SB3's policy and of the lane, which is returned."""
    lane, reference = straight.lane(policy), FeedForward(policy)
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    for n_envs in (1, 4, 4):
        observations = observe(space, n_envs)
        results = []
        for kind in (reference, lane):
            th.manual_seed(1)
            if policy.use_sde:
                policy.reset_noise(n_envs)
            # A policy may overwrite its input
            seen = copy.deepcopy(observations)
            results.append((*kind.act(seen), kind.value(copy.deepcopy(observations)), seen, th.rand(1)))
        assert equal(*results)
        dtypes = [[getattr(leaf, "dtype", None) for leaf in pytree.tree_leaves(result)] for result in results]
        assert dtypes[0] == dtypes[1]
        # Parameters may change between two steps
        with th.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.1)
    return lane


@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_numbers_gradients_and_draws(architecture, action):
    policy = make_policy(action=action, **ARCHITECTURES[architecture])
    lane = assert_same_rollouts(policy)
    assert type(lane) is straight.StraightMlp
    batch = Batch(th.randn(32, 5), draw(action, 32), *(th.zeros(32) for _ in range(4)), ())
    results = []
    for kind in (FeedForward(policy), lane):
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


def own_layer():
    policy = make_policy()
    policy.mlp_extractor.policy_net[1] = Twice()
    return policy


# Policies by the class that serves them
SERVED = {
    straight.StraightMlp: {
        "activation": lambda: make_policy(activation_fn=th.nn.LeakyReLU),
        "discrete observations": lambda: make_policy(observation="discrete"),
        "of several parts": lambda: make_policy(observation="multidiscrete"),
        "parts": lambda: make_policy(MultiInputActorCriticPolicy, "parts", "multidiscrete"),
        "parts apart": lambda: make_policy(MultiInputActorCriticPolicy, "parts", share_features_extractor=False),
        "actions of several dimensions": lambda: make_policy(action="matrix"),
    },
    straight.Straight: {
        "images": lambda: make_policy(ActorCriticCnnPolicy, "image", "discrete"),
        "vector and image": lambda: make_policy(MultiInputActorCriticPolicy, "dict", "multidiscrete"),
        "extractor": lambda: make_policy(features_extractor_class=LinearExtractor),
        "extractors": lambda: make_policy(features_extractor_class=LinearExtractor, share_features_extractor=False),
        "overwritten input": lambda: make_policy(features_extractor_class=InPlaceExtractor),
        "layer": own_layer,
        "activation with parameters": lambda: make_policy(activation_fn=th.nn.PReLU),
        "image as a vector": lambda: make_policy(observation="image"),
    },
    straight.StraightSde: {
        "sde": lambda: make_policy(use_sde=True),
        "sde with an extractor": lambda: make_policy(
            use_sde=True, squash_output=True, features_extractor_class=LinearExtractor
        ),
    },
}


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, policies in SERVED.items() for name in policies])
def test_policies_that_are_served(cls, name):
    assert type(assert_same_rollouts(SERVED[cls][name]())) is cls


def test_other_policies_are_not():
    hooked, without_bias, own_ends, double = (make_policy() for _ in range(4))
    hooked.value_net.register_forward_hook(lambda *_: None)
    assert type(straight.lane(without_bias)) is straight.StraightMlp
    without_bias.action_net = th.nn.Linear(64, 3, bias=False)
    own_ends.action_net = th.nn.Sequential(own_ends.action_net, th.nn.Tanh())
    double.value_net = double.value_net.double()
    others = [hooked, own_ends, double, make_policy(OwnPolicy), make_policy(action="multibinary")]
    assert [straight.lane(policy) for policy in others] == [None] * len(others)
    # Draws random numbers
    random = make_policy(activation_fn=th.nn.RReLU)
    assert [type(straight.lane(policy)) for policy in (without_bias, random)] == [straight.Straight] * 2


class OwnBuild(ActorCriticPolicy):
    """Neither an action_net nor a value_net."""

    def _build(self, lr_schedule):
        self.net = th.nn.Linear(5, 3)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))


def replaced(cls, part, module):
    """A policy whose critic has another extractor than its actor."""
    policy = make_policy(cls, part, share_features_extractor=False)
    extractor = policy.vf_features_extractor
    if cls is ActorCriticPolicy:
        extractor.flatten = module
    else:
        extractor.extractors["vector"] = module
    return policy


def test_policies_that_are_no_vectors():
    others = [
        replaced(ActorCriticPolicy, "box", th.nn.Sequential(th.nn.Flatten(), th.nn.Tanh())),
        replaced(MultiInputActorCriticPolicy, "parts", th.nn.Sequential(th.nn.Flatten(), th.nn.Tanh())),
        # An image that is not scaled
        make_policy(MultiInputActorCriticPolicy, "dict", normalize_images=False),
    ]
    assert [type(assert_same_rollouts(policy)) for policy in others] == [straight.Straight] * 3
    assert straight.lane(support.make_policy(OwnBuild)) is None
    # SB3's for SAC: a subclass of the Gaussian
    squashed = make_policy()
    squashed.action_dist = SquashedDiagGaussianDistribution(3)
    assert straight.lane(squashed) is None
    assert not is_standard_mlp(squashed)


@pytest.mark.parametrize("observation", ["box", "image"])
@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete"])
@pytest.mark.parametrize("part", ["action_net", "value_net"])
def test_what_is_not_finite(observation, action, part):
    """It is not acted on; but for logits of -inf, which are of actions that are never taken."""
    policy = make_policy(ActorCriticCnnPolicy if observation == "image" else ActorCriticPolicy, observation, action)
    observations = observe(policy.observation_space, 2)
    for number in (np.nan, np.inf, -np.inf):
        with th.no_grad():
            getattr(policy, part).bias[0] = number
        if part == "action_net" and action != "box" and number == -np.inf:
            assert (straight.lane(policy).act(observations).actions.reshape(2, -1)[:, 0] > 0).all()
            continue
        with pytest.raises(NonFinitePolicyError, match=f"policy.{part}.bias"):
            straight.lane(policy).act(observations)
