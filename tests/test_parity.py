"""PPOClip(compile=False) is SB3's PPO bit for bit, with fast lanes and without, and the variants are each other in places."""

import inspect
from collections import namedtuple

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from support import (
    ACTION_SPACES,
    BOX_ENV,
    POLICIES,
    DropoutExtractor,
    HalvedAdvantages,
    InEachRollout,
    InEachStep,
    InPlaceExtractor,
    LinearExtractor,
    NoisyExtractor,
    OwnNetworks,
    OwnPolicy,
    RunningMeanExtractor,
    SpaceEnv,
    assert_same_training,
    equal,
    space_env,
    train,
    with_extractor,
)
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen, kinds, lanes, ppo, rollout


@pytest.fixture
def both(monkeypatch):
    """Trains SB3's PPO, and PPOClip without and with fast lanes, which must be the same; returns the first and the last."""

    def trained(policy="MlpPolicy", make_env=BOX_ENV, **kwargs):
        expected = train(PPO, policy, make_env, **kwargs)
        for switch in ("0", "1"):
            monkeypatch.setenv(lanes.SWITCH, switch)
            actual = train(PPOClip, policy, make_env, compile=False, **kwargs)
            assert_same_training(expected, actual)
        return expected, actual

    return trained


@pytest.mark.parametrize(
    ("observation", "action"),
    # Each action of vectors, each kind of observation
    [
        *(("box", action) for action in ACTION_SPACES),
        *(("discrete", "box"), ("image", "discrete"), ("dict", "multibinary"), ("parts", "multidiscrete")),
    ],
)
def test_policies_and_spaces(observation, action, both):
    expected, _ = both(POLICIES[observation], space_env(observation, action), n_updates=2, n_epochs=2)
    # The training did something
    assert expected[1][-1]["train/approx_kl"] > 0


# In an order of their own, with a field more
OwnSamples = namedtuple("OwnSamples", ["weights", *reversed(RolloutBufferSamples._fields)])


class OwnOrder(RolloutBuffer):
    """A custom rollout buffer, with a random generator of its own, whose samples are no tuple of SB3's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rng = np.random.default_rng(0)

    def get(self, batch_size=None):
        *_, everything = super().get()
        for index in np.split(self.rng.permutation(self.buffer_size * self.n_envs), 4):
            samples = {name: tensor[index] for name, tensor in everything._asdict().items()}
            yield OwnSamples(weights=th.ones(len(index)), **samples)


SETTINGS = {
    # The last one has one sample, of 52
    "truncated minibatches": {"batch_size": 17},
    "larger than the rollout": {"batch_size": 100},
    "numbers": {"ent_coef": 0.02, "vf_coef": 0.8, "max_grad_norm": 0.01, "gamma": 0.9, "gae_lambda": 0.7},
    "no advantage normalization": {"normalize_advantage": False, "batch_size": 1, "n_epochs": 1, "n_steps": 13},
    "value clipping": {"clip_range_vf": 0.1},
    "early stop": {"target_kl": 1e-3, "learning_rate": 3e-3, "n_epochs": 3, "resume": True},
    "schedules": {
        "resume": True,
        **{name: LinearSchedule(0.3, 0.0, 1.0) for name in ("learning_rate", "clip_range", "clip_range_vf")},
    },
    "sde": {"use_sde": True, "sde_sample_freq": 4, "resume": True},
    "sde, extractor with parameters": {"use_sde": True, **with_extractor(LinearExtractor)},
    "squashed sde": {"use_sde": True, "policy_kwargs": {"squash_output": True, "use_expln": True, "full_std": False}},
    "separate extractors": {"policy_kwargs": {"share_features_extractor": False, "net_arch": [16]}},
    "optimizer": {
        "policy_kwargs": {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"momentum": 0.5}, "ortho_init": False}
    },
    "adam": {"policy_kwargs": {"optimizer_kwargs": {"betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.01}}},
    "dropout and batch norm": with_extractor(DropoutExtractor),
    "noise in evaluation": with_extractor(NoisyExtractor),
    "running mean": with_extractor(RunningMeanExtractor),
    "overwritten input": with_extractor(InPlaceExtractor),
    "custom buffer, extractor with parameters": {"rollout_buffer_class": HalvedAdvantages, **with_extractor(LinearExtractor)},
    "custom buffer with its own order and samples": {"rollout_buffer_class": OwnOrder, "resume": True},
    "activation with parameters": {"policy_kwargs": {"activation_fn": th.nn.PReLU}},
    "infinite limits": {"max_grad_norm": float("inf"), "clip_range_vf": float("inf"), "target_kl": float("inf")},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_settings(setting, both):
    expected, _ = both(**{"n_updates": 2, "n_epochs": 2, **SETTINGS[setting]})
    if setting == "early stop":
        # 2 * 2 updates of 3 epochs, had none ended early
        assert 4 < expected[0]._n_updates < 12


@pytest.mark.parametrize("off", ["adam", "advantages", "buffer", "env", "straight"])
def test_each_lane_by_itself_changes_nothing(off, monkeypatch):
    def make_env():
        return VecNormalize(BOX_ENV())

    expected = train(PPOClip, make_env=make_env, compile=False)
    asked, served = set(), set()

    def lane(name, *objects):
        asked.add(name)
        made = None if name == off else lanes.lane(name, *objects)
        served.update([name] if made is not None else [])
        return made

    for module in (kinds, ppo, rollout):
        monkeypatch.setattr(module, "lane", lane)
    assert_same_training(expected, train(PPOClip, make_env=make_env, compile=False))
    assert asked == {"adam", "advantages", "buffer", "env", "straight"}
    assert served == asked - {off}


class FlatValues(ActorCriticPolicy):
    """Values without a second dimension."""

    def forward(self, obs, deterministic=False):
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, values.flatten(), log_prob


class Evaluates(ActorCriticPolicy):
    """Overwrites the actions, and needs gradients in its evaluation."""

    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions.mul_(0.5))
        (gradient,) = th.autograd.grad(log_prob.sum(), self.action_net.bias, create_graph=True)
        return values + 1e-3 * gradient.norm(), log_prob, entropy


class InFloat64(ActorCriticPolicy):
    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values, log_prob.double(), entropy


@pytest.mark.filterwarnings("ignore:The log probabilities of the actions in the rollout")
@pytest.mark.parametrize("policy", [FlatValues, Evaluates, InFloat64, OwnPolicy, OwnNetworks])
def test_custom_policies(policy, both):
    _, actual = both(policy, n_updates=2, n_epochs=2)
    assert actual[1][-1]["train/kl"] > 0


class WithoutDistribution(OwnNetworks):
    """As a policy that is written for SB3's PPO, which calls no other method."""

    def get_distribution(self, obs):
        raise AttributeError("mlp_extractor")


@pytest.mark.filterwarnings("ignore:KL.* is not known, as WithoutDistribution.get_distribution raises AttributeError")
def test_policies_without_a_distribution():
    expected = train(PPO, WithoutDistribution)
    with pytest.warns(UserWarning, match=r"is not known, as WithoutDistribution.* raises AttributeError: mlp_extractor"):
        actual = train(PPOClip, WithoutDistribution, compile=False)
    assert_same_training(expected, actual)
    assert "train/kl" not in actual[1][-1]
    with pytest.raises(AttributeError, match="mlp_extractor"):
        train(PPOFixedKL, WithoutDistribution)


class TwoLikeliest(ActorCriticPolicy):
    """Never takes any but the two likeliest actions, so that an update may rule out what was taken."""

    def _get_action_dist_from_latent(self, latent_pi):
        logits = self.action_net(latent_pi)
        ruled_out = logits < logits.topk(2).values[..., -1:]
        return self.action_dist.proba_distribution(logits.masked_fill(ruled_out, -th.inf))


def test_kl_that_is_infinite_is_but_logged(both):
    args, kwargs = (TwoLikeliest, space_env("box", "discrete")), {"learning_rate": 0.01}
    expected, actual = both(*args, **kwargs)
    assert actual[1][-1]["train/kl"] == actual[1][-1]["train/approx_kl"] == np.inf
    assert_same_training(expected, train(PPOFixedKL, *args, clip_range=0.2, kl_coef=0, **kwargs))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        train(PPOFixedKL, *args, **kwargs)


class Double(th.nn.Flatten):
    def forward(self, observations):
        return 2 * super().forward(observations)


def test_policies_that_are_changed_before_training(both):
    def change(model):
        model.policy.log_std.requires_grad_(False)
        model.policy.mlp_extractor.policy_net[0].weight.requires_grad_(False)
        model.policy.features_extractor.flatten = Double()

    both(change=change)


def test_parameters_may_change_in_a_rollout(both):
    def change(model):
        model.policy.load_from_vector(0.99 * model.policy.parameters_to_vector())
        model.policy.log_std.data.sub_(0.01)
        model.policy.action_net.weight.data = 1.01 * model.policy.action_net.weight.data

    both(callback=InEachStep(change))


def test_callbacks_see_gradients(fast):
    seen = {PPO: [], PPOClip: []}
    for cls, gradients in seen.items():
        keep = InEachRollout(lambda model, kept=gradients: kept.append([p.grad for p in model.policy.parameters()]))
        train(cls, callback=keep)
    assert equal(seen[PPO], seen[PPOClip])
    # Those of the last step before each rollout
    assert [gradients[0] is not None for gradients in seen[PPO]] == [False, True, True]


def test_hooks_for_all_modules_and_optimizers_are_called():
    calls, counts = [], []
    handles = [
        register_optimizer_step_post_hook(lambda *_: calls.append("step")),
        th.nn.modules.module.register_module_forward_hook(lambda *_: calls.append("forward")),
    ]
    try:
        for cls in (PPO, PPOClip):
            calls.clear()
            train(cls, n_updates=1)
            counts.append((calls.count("step"), calls.count("forward")))
    finally:
        for handle in handles:
            handle.remove()
    # 3 epochs of 4 minibatches; the KL takes passes of its own
    assert counts[0][0] == counts[1][0] == 12
    assert counts[1][1] >= counts[0][1] > 26


def test_update_that_ends_before_its_first_step(both):
    callback = InEachStep(lambda model: model.policy.log_std.data.sub_(0.05))
    _, actual = both(target_kl=1e-9, callback=callback)
    assert actual[0].policy.optimizer.state_dict()["state"] == {}
    assert "train/grad_norm" not in actual[1][-1]


def patch(owner, name, change):
    method = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: change(method(*args, **kwargs)))


def change_methods(model):
    patch(model.policy.mlp_extractor, "forward_actor", lambda latent: 2 * latent)
    patch(model.policy.action_dist, "log_prob", lambda log_prob: 1.1 * log_prob)
    patch(model.policy, "evaluate_actions", lambda result: (1.5 * result[0], *result[1:]))
    patch(model.env, "step_wait", lambda step: (step[0], 0.5 * step[1], *step[2:]))


def test_without_lanes_changed_methods_are_called(monkeypatch):
    """Lanes do not see methods that are set on objects of SB3's own classes."""
    monkeypatch.setenv("SB3_PPO_VARIANTS_FAST", "0")
    assert_same_training(*(train(cls, n_updates=2, change=change_methods) for cls in (PPO, PPOClip)))


class MissingEnv(SpaceEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        observation[self.steps % 5] = np.nan if self.steps % 2 else np.inf
        return observation, *rest


class Cleans(LinearExtractor):
    """Knows what to do with observations that are missing or infinite."""

    def forward(self, observations):
        return super().forward(th.nan_to_num(observations, nan=0.0, posinf=1.0, neginf=-1.0))


def test_policy_that_cleans_its_observations(both):
    both(make_env=space_env("box", "box", env_class=MissingEnv), **with_extractor(Cleans))


@pytest.mark.parametrize("cls", [PPOClip, PPOFixedKL, PPOKLPen])
def test_arguments_of_sb3(cls):
    theirs, ours = (list(inspect.signature(c).parameters.values()) for c in (PPO, cls))
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    for a, b in zip(theirs, ours, strict=False):
        # What makes a KL variant: no clipping
        assert (a.default == b.default) == (a.name != "clip_range" or cls is PPOClip), a.name
        assert a.kind == b.kind
    assert all(p.kind == inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize(("vec_env", "kwargs"), [(DummyVecEnv, {}), (SubprocVecEnv, {"start_method": "fork"})])
def test_vec_normalize_and_a_real_environment(vec_env, kwargs, both):
    def make_env():
        return VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=5, vec_env_cls=vec_env, vec_env_kwargs=kwargs))

    expected, actual = both(make_env=make_env, n_updates=2, n_steps=250, batch_size=100, n_epochs=1)
    assert equal(*(vars(model.get_vec_normalize_env().obs_rms) for model, _ in (expected, actual)))


class FirstTheCritic(PPOClip):
    """Its objective does not depend on the policy."""

    objective = staticmethod(lambda terms, coef: th.zeros_like(terms.advantages))


def without_gradients(model):
    """SB3's PPO with the same loss: 0 times the policy's part of it."""
    patch(model.policy, "evaluate_actions", lambda result: (result[0], result[1].detach(), result[2]))


def test_objective_that_does_not_depend_on_the_policy(fast):
    # With an entropy of weight 0, which has gradients of 0
    expected, _ = train(PPO, change=without_gradients)
    actual, rows = train(FirstTheCritic, compile=False)
    assert equal(expected.policy.state_dict(), actual.policy.state_dict())
    assert equal(expected.policy.optimizer.state_dict(), actual.policy.optimizer.state_dict())
    assert rows[-1]["train/policy_gradient_loss"] == rows[-1]["train/approx_kl"] == 0
    assert rows[-1]["train/grad_norm"] > 0


def test_fixed_kl_without_penalty_is_clip():
    assert_same_training(train(PPOClip, clip_range=0.15), train(PPOFixedKL, clip_range=0.15, kl_coef=0))


def test_adaptive_kl_inside_the_band_is_fixed_kl():
    kwargs = {"learning_rate": 1e-3, "n_epochs": 5}
    fixed = train(PPOFixedKL, kl_coef=2.0, **kwargs)
    kls = [row["train/kl"] for row in fixed[1] if "train/kl" in row]
    kl_target = (min(kls) * max(kls)) ** 0.5
    assert max(kls) < 1.5 * kl_target, "the band is too narrow for this test"
    adaptive = train(PPOKLPen, init_kl_coef=2.0, kl_target=kl_target, **kwargs)
    assert_same_training(fixed, adaptive)
    assert adaptive[0].kl_coef == 2.0
    # And outside the band it is not
    other, _ = train(PPOKLPen, init_kl_coef=2.0, kl_target=100 * kl_target, **kwargs)
    assert not equal(fixed[0].policy.state_dict(), other.policy.state_dict())
