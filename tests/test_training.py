"""The variants in training: KL control, logging, callbacks, custom objectives."""

import copy
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from conftest import OBSERVATION_SPACES, SpaceEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution, MultiCategoricalDistribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from test_parity import POLICIES, ClonesInForward, InPlaceExtractor, Record, equal, space_env, train

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen, inductor
from sb3_ppo_variants.inference import evaluate_policy, unvalidated_distributions
from sb3_ppo_variants.kl import kl_normal, kl_old_new
from sb3_ppo_variants.objectives import policy_gradient
from sb3_ppo_variants.rollout import Rollout

ALGORITHMS = [PPOClip, PPOFixedKL, PPOKLPen]


def updates(rows):
    return [row for row in rows if "train/loss" in row]


@pytest.mark.parametrize("cls", [PPOFixedKL, PPOKLPen])
@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete", "multibinary"])
@pytest.mark.parametrize("observation", ["box", "dict"])
def test_kl_penalty_trains_on_every_space(cls, observation, action):
    _, rows = train(cls, POLICIES[observation], space_env(observation, action), n_updates=2, learning_rate=1e-3)
    assert 0 < updates(rows)[-1]["train/kl"] < 1


@pytest.mark.parametrize("cls", [PPOFixedKL, PPOKLPen])
@pytest.mark.parametrize("squash_output", [False, True])
def test_kl_penalty_with_gsde(cls, squash_output):
    kwargs = {"use_sde": True, "policy_kwargs": {"squash_output": squash_output}}
    _, rows = train(cls, "MlpPolicy", space_env("box", "box"), learning_rate=1e-3, **kwargs)
    assert updates(rows)[-1]["train/kl"] > 0


def test_logged_kl_is_exact():
    class KeepOldPolicy(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.old = {name: value.clone() for name, value in self.model.policy.state_dict().items()}

    callback = KeepOldPolicy()
    env = SpaceEnv(OBSERVATION_SPACES["box"], spaces.Box(-2, 2, (3,)))
    model = PPOClip("MlpPolicy", env, learning_rate=0.02, n_steps=64, n_epochs=4, seed=0)
    model.learn(64, callback)
    observations = th.as_tensor(model.rollout_buffer.observations.reshape(-1, 5))
    new = model.policy.get_distribution(observations).distribution
    mean, std = new.mean.detach(), new.stddev.detach()
    model.policy.load_state_dict(callback.old)
    old = model.policy.get_distribution(observations).distribution
    # Gaussian KL with variances written out, in float64
    s0, s1, m0, m1 = (x.double() for x in (old.stddev, std, old.mean, mean))
    expected = (th.log(s1 / s0) + (s0**2 + (m0 - m1) ** 2) / (2 * s1**2) - 0.5).sum(dim=1).mean().item()
    assert expected > 1e-4
    assert model.logger.name_to_value["train/kl"] == pytest.approx(expected, rel=1e-4)
    # And not the other direction
    other = kl_normal(mean, std, old.mean, old.stddev).mean().item()
    assert other != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("n_epochs", [1, 4])
@pytest.mark.parametrize("batch_size", [13, 52])
def test_beta_changes_once_per_update(n_epochs, batch_size):
    kwargs = {"n_epochs": n_epochs, "batch_size": batch_size}
    # Far above every KL that can occur: beta is halved in each of the five updates
    model, rows = train(PPOKLPen, "MlpPolicy", space_env("box", "box"), n_updates=5, target_kl=1e3, **kwargs)
    assert model.kl_coef == 1 / 2**5
    # Each update is logged with the beta that it used
    assert [row["train/kl_coef"] for row in updates(rows)] == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]
    assert {row["train/kl_target"] for row in updates(rows)} == {1e3}
    model, _ = train(PPOKLPen, "MlpPolicy", space_env("box", "box"), n_updates=5, target_kl=1e-9, **kwargs)
    assert model.kl_coef == 2**5


def test_beta_stays_within_its_bounds():
    kwargs = {"target_kl": 1e3, "kl_coef_bounds": (0.3, 4.0), "init_kl_coef": 2.0}
    model, rows = train(PPOKLPen, "MlpPolicy", space_env("box", "box"), n_updates=5, **kwargs)
    assert [row["train/kl_coef"] for row in updates(rows)] == [2, 1, 0.5, 0.3, 0.3]
    assert model.kl_coef == 0.3


def test_beta_holds_the_kl_near_its_target_and_without_it_the_kl_runs_away():
    """Section 4, on a real task: Pendulum-v1 with a step size at which nothing else keeps the policy in place."""
    target_kl = 0.01

    def kls(cls, **own):
        record = Record()
        model = cls("MlpPolicy", "Pendulum-v1", learning_rate=0.01, n_steps=512, max_grad_norm=None, seed=0, **own)
        model.set_logger(Logger(None, [record]))
        model.learn(512 * 16)
        return np.array([row["train/kl"] for row in updates(record.rows)]), model

    controlled, adaptive = kls(PPOKLPen, target_kl=target_kl, init_kl_coef=1e-2)
    free, _ = kls(PPOFixedKL, kl_coef=0)
    # A beta that is much too small grows until the KL is near its target
    assert np.median(controlled[:4]) > 1.5 * target_kl
    assert adaptive.kl_coef > 8 * adaptive.init_kl_coef
    late = np.median(controlled[-8:])
    assert target_kl / 3 < late < 3 * target_kl
    assert np.median(free[-8:]) > 30 * late


def test_schedules_of_coefficients():
    # The third of three updates sees the progress 1/3 (after the second rollout), 0 at the end
    kwargs = {
        "ent_coef": LinearSchedule(0.3, 0.0, 1.0),
        "vf_coef": LinearSchedule(0.6, 0.0, 1.0),
        "kl_coef": LinearSchedule(9.0, 0.0, 1.0),
        "clip_range": LinearSchedule(0.3, 0.0, 1.0),
    }
    model, rows = train(PPOFixedKL, "MlpPolicy", space_env("box", "box"), **kwargs)
    assert [row["train/kl_coef"] for row in updates(rows)] == pytest.approx([6, 3, 0])
    assert [row["train/ent_coef"] for row in updates(rows)] == pytest.approx([0.2, 0.1, 0])
    assert [row["train/vf_coef"] for row in updates(rows)] == pytest.approx([0.4, 0.2, 0])
    assert [row["train/clip_range"] for row in updates(rows)] == pytest.approx([0.2, 0.1, 0])
    assert model.kl_coef == 0
    _, rows = train(PPOKLPen, "MlpPolicy", space_env("box", "box"), target_kl=LinearSchedule(0.03, 0.0, 1.0))
    assert [row["train/kl_target"] for row in updates(rows)] == pytest.approx([0.02, 0.01, 0])


def test_scheduled_coefficient_is_what_a_constant_is():
    make_env = space_env("box", "box")
    constant, _ = train(PPOFixedKL, "MlpPolicy", make_env, kl_coef=2.0, ent_coef=0.01)
    scheduled, _ = train(PPOFixedKL, "MlpPolicy", make_env, kl_coef=lambda _: 2.0, ent_coef=lambda _: 0.01)
    assert equal(constant.policy.state_dict(), scheduled.policy.state_dict())


def test_advantages_normalized_once_a_batch():
    class SeenAdvantages(PPOClip):
        def surrogate(self, terms, coef):
            seen.append(terms.advantages)
            return super().surrogate(terms, coef)

    seen = []
    kwargs = {"n_epochs": 1, "n_updates": 1}
    train(SeenAdvantages, "MlpPolicy", space_env("box", "box"), normalize_advantage="batch", **kwargs)
    batch = th.cat(seen)
    assert batch.mean().item() == pytest.approx(0, abs=1e-6)
    assert batch.std(unbiased=False).item() == pytest.approx(1, abs=1e-6)
    assert max(abs(minibatch.mean().item()) for minibatch in seen) > 0.05
    seen.clear()
    train(SeenAdvantages, "MlpPolicy", space_env("box", "box"), normalize_advantage=True, **kwargs)
    assert [minibatch.mean().item() for minibatch in seen] == pytest.approx([0] * len(seen), abs=1e-6)


def test_gradient_norm_is_not_clipped_with_none():
    make_env = space_env("box", "box")
    unclipped, _ = train(PPOClip, "MlpPolicy", make_env, max_grad_norm=None)
    loose, _ = train(PPOClip, "MlpPolicy", make_env, max_grad_norm=1e9)
    tight, _ = train(PPOClip, "MlpPolicy", make_env, max_grad_norm=1e-3)
    assert equal(unclipped.policy.state_dict(), loose.policy.state_dict())
    assert not equal(unclipped.policy.state_dict(), tight.policy.state_dict())


@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete", "multibinary", "gSDE"])
@pytest.mark.parametrize(("observation", "compile_"), [("image", False), ("dict", False), ("box", False), ("box", True)])
def test_distributions_kept_in_the_rollout_are_those_of_the_old_policy(observation, compile_, action, monkeypatch):
    monkeypatch.setattr(inductor, "compile_graph", lambda graph, arguments: lambda arguments: graph(*arguments))

    class CompareDistributions(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer = copy.deepcopy(self.model.rollout_buffer)
            of_buffer = self.model._kept.of(buffer)
            assert of_buffer
            kept = Rollout(buffer, self.model.policy, of_buffer).data.old_parameters
            computed = Rollout(buffer, self.model.policy).data.old_parameters
            for one, other in zip(kept, computed, strict=True):
                assert one.shape == other.shape
                th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            # Not the same by chance: they depend on the observation
            assert (computed[0] - computed[0][0]).abs().max() > 1e-3
            self.compared = True

    callback = CompareDistributions()
    make_env = space_env(observation, "box" if action == "gSDE" else action, n_envs=3)
    kwargs = {"n_steps": 26, "batch_size": 13, "seed": 0, "use_sde": action == "gSDE", "compile": compile_}
    model = PPOClip(POLICIES[observation], make_env(), **kwargs)
    with th.no_grad():
        for parameter in model.policy.action_net.parameters():
            parameter.mul_(100)
    model.learn(1, callback)
    assert callback.compared
    # Those of one update are not taken for those of another
    assert model._kept is None


def halve(model):
    whole = model.rollout_buffer
    half = RolloutBuffer(13, whole.observation_space, whole.action_space, n_envs=whole.n_envs)
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        setattr(half, name, getattr(whole, name)[:13].copy())
    half.pos, half.full = 13, True
    model.rollout_buffer = half


def normalize(model):
    for observations in model.rollout_buffer.observations.values():
        observations[:] = observations // 2


def shuffle(model):
    model.rollout_buffer.observations = model.rollout_buffer.observations[::-1]


@pytest.mark.parametrize(("observation", "change"), [("box", halve), ("dict", normalize), ("image", shuffle)])
def test_distributions_are_those_of_the_observations(observation, change):
    """A callback may change them before they are learned from, and so may a subclass."""

    class ChangeObservations(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            change(self.model)

    class ChangesObservations(PPOFixedKL):
        def train(self):
            change(self)
            super().train()

    for cls, callback in ((PPOFixedKL, ChangeObservations()), (ChangesObservations, None)):
        make_env = space_env(observation, "box")
        model = cls(POLICIES[observation], make_env(), n_steps=26, batch_size=13, learning_rate=0.0)
        with th.no_grad():
            model.policy.action_net.weight.mul_(100)
        model.learn(1, callback)
        assert model.logger.name_to_value["train/kl"] == pytest.approx(0, abs=1e-6)


def test_own_forward_keeps_no_distributions():
    class Policy(ActorCriticPolicy):
        def forward(self, obs, deterministic=False):
            result = super().forward(obs, deterministic)
            self.get_distribution(th.zeros_like(obs))
            return result

    model, rows = train(PPOClip, Policy, space_env("box", "box"), learning_rate=1e-2, n_updates=1)
    expected, expected_rows = train(PPOClip, "MlpPolicy", space_env("box", "box"), learning_rate=1e-2, n_updates=1)
    assert equal(model.policy.state_dict(), expected.policy.state_dict())
    assert updates(rows)[0]["train/kl"] == pytest.approx(updates(expected_rows)[0]["train/kl"], rel=1e-5)


def test_kl_of_a_policy_that_does_not_change_is_zero():
    """Also where forward and get_distribution see other features, or give other distributions."""

    class OwnFeatures(ActorCriticPolicy):
        def extract_features(self, obs, features_extractor=None):
            return super().extract_features(obs, features_extractor) / 8

    class OwnDistribution(ActorCriticPolicy):
        def get_distribution(self, obs):
            return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(self.extract_features(obs)) / 2)

    for policy in ("MlpPolicy", OwnFeatures, OwnDistribution):
        model = PPOKLPen(policy, space_env("box", "box")(), n_steps=26, batch_size=13, learning_rate=0.0, seed=0)
        with th.no_grad():
            model.policy.action_net.weight.mul_(100)
        model.learn(52)
        assert model.logger.name_to_value["train/kl"] == pytest.approx(0, abs=1e-9)
        assert model.kl_coef == 0.5


class OwnFeatures(ActorCriticPolicy):
    """SB3's ``get_distribution`` goes past it."""

    def extract_features(self, obs, features_extractor=None):
        return super().extract_features(8 * obs, features_extractor)


class Discretized(ActorCriticPolicy):
    """Five values of each action: the distribution is of another family than ``action_dist``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.action_net = th.nn.Linear(64, 15)
        self.optimizer = self.optimizer_class(self.parameters(), lr=3e-4, **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi):
        return MultiCategoricalDistribution([5, 5, 5]).proba_distribution(self.action_net(latent_pi))

    def forward(self, obs, deterministic=False):
        actions, *others = super().forward(obs, deterministic)
        return actions.float(), *others


class KeepRollout(BaseCallback):
    """Keeps observations, actions and log probabilities of the last rollout."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        arrays = (buffer.observations, buffer.actions)
        self.observations, self.actions = (th.as_tensor(array.reshape(-1, array.shape[-1])) for array in arrays)
        self.old = self.distributions()

    @th.no_grad()
    def distributions(self):
        """By which the policy acts, as distributions of torch."""
        policy = self.model.policy
        policy.evaluate_actions(self.observations, self.actions)
        if isinstance(policy, Discretized):
            logits = policy.get_distribution(self.observations).distribution
            return [th.distributions.Categorical(logits=one.logits) for one in logits]
        gaussian = policy.action_dist.distribution
        return [th.distributions.Normal(gaussian.loc[:, i], gaussian.scale[:, i]) for i in range(3)]


@pytest.mark.parametrize("policy", [OwnFeatures, Discretized])
def test_kl_is_that_of_the_distribution_that_acts(policy):
    keep = KeepRollout()
    model = PPOKLPen(policy, space_env("box", "box")(), n_steps=26, batch_size=13, learning_rate=3e-3, seed=0, compile=False)
    model.learn(52, keep)
    kl = sum(th.distributions.kl_divergence(*pair) for pair in zip(keep.old, keep.distributions(), strict=True))
    assert kl.mean().item() > 0.01
    assert model.logger.name_to_value["train/kl"] == pytest.approx(kl.mean().item(), rel=1e-4)


class IgnoresLogStd(DiagGaussianDistribution):
    def proba_distribution(self, mean_actions, log_std):
        return super().proba_distribution(mean_actions, th.zeros_like(log_std))


class HeadWithASpare(th.nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.spare = th.nn.Linear(64, 1), th.nn.Linear(64, 1)

    def forward(self, latent):
        return self.head(latent)


@pytest.mark.parametrize("part", ["action_dist", "value_net"])
def test_parameters_without_gradients_stay(part):
    model = PPOClip("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, learning_rate=0.01, compile=False)
    policy = model.policy
    setattr(policy, part, IgnoresLogStd(3) if part == "action_dist" else HeadWithASpare())
    policy.optimizer = th.optim.Adam(policy.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    model.learn(52)
    same = {name for name, value in policy.state_dict().items() if th.equal(value, before[name])}
    assert same == ({"log_std"} if part == "action_dist" else {"value_net.spare.weight", "value_net.spare.bias"})


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_hooks_on_gradients_are_called(policy):
    model = PPOClip(policy, space_env("box" if policy == "MlpPolicy" else "image", "box")(), n_steps=26, batch_size=13)
    calls = []
    model.policy.log_std.register_post_accumulate_grad_hook(calls.append)
    model.learn(52)
    assert len(calls) == 10 * 4


def test_own_distribution_without_closed_form():
    """Such a policy trains with PPOClip, without the KL in the log, and says what is missing with a KL penalty."""

    class OwnDistribution(Distribution):
        def __init__(self, gaussian):
            super().__init__()
            self.gaussian = gaussian

        def __getattr__(self, name):
            return getattr(self.gaussian, name)

        proba_distribution_net = proba_distribution = actions_from_params = log_prob_from_params = None
        log_prob = property(lambda self: self.gaussian.log_prob)
        entropy = property(lambda self: self.gaussian.entropy)
        sample = property(lambda self: self.gaussian.sample)
        mode = property(lambda self: self.gaussian.mode)

    class Policy(ActorCriticPolicy):
        def _get_action_dist_from_latent(self, latent_pi):
            return OwnDistribution(super()._get_action_dist_from_latent(latent_pi))

    _, rows = train(PPOClip, Policy, space_env("box", "box"))
    assert "train/kl" not in updates(rows)[-1]
    with pytest.raises(NotImplementedError, match="its distribution has no closed form of the KL"):
        train(PPOFixedKL, Policy, space_env("box", "box"))
    # Without a weight it is not asked for
    model, _ = train(PPOFixedKL, Policy, space_env("box", "box"), kl_coef=0, clip_range=0.2)
    expected, _ = train(PPOClip, Policy, space_env("box", "box"))
    assert equal(model.policy.state_dict(), expected.policy.state_dict())


class Laplace(DiagGaussianDistribution):
    """Of another family than its base class: there is no closed form of its KL here."""

    def proba_distribution(self, mean_actions, log_std):
        self.distribution = th.distributions.Laplace(mean_actions, log_std.exp().expand_as(mean_actions))
        return self


class WithoutTorch(DiagGaussianDistribution):
    """Holds no distribution of torch's at all."""

    def proba_distribution(self, mean_actions, log_std):
        self.gaussian = th.distributions.Normal(mean_actions, log_std.exp().expand_as(mean_actions))
        return self

    def log_prob(self, actions):
        return self.gaussian.log_prob(actions).sum(dim=1)

    def entropy(self):
        return self.gaussian.entropy().sum(dim=1)

    def sample(self):
        return self.gaussian.rsample()


@pytest.mark.parametrize("distribution", [Laplace, WithoutTorch])
def test_distribution_of_another_family_than_its_class(distribution):
    class Policy(ActorCriticPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.action_dist = distribution(3)

    model, rows = train(PPOClip, Policy, space_env("box", "box"), compile=False)
    expected, _ = train(PPO, Policy, space_env("box", "box"))
    assert equal(model.policy.state_dict(), expected.policy.state_dict())
    assert "train/kl" not in updates(rows)[-1]
    with pytest.raises(NotImplementedError, match="its distribution has no closed form of the KL"):
        train(PPOKLPen, Policy, space_env("box", "box"))


class AsOne(DiagGaussianDistribution):
    """The same Gaussian, as one event."""

    def proba_distribution(self, mean_actions, log_std):
        gaussian = th.distributions.Normal(mean_actions, log_std.exp().expand_as(mean_actions))
        self.distribution = th.distributions.Independent(gaussian, 1)
        return self

    def log_prob(self, actions):
        return self.distribution.log_prob(actions)

    def entropy(self):
        return self.distribution.entropy()


def test_distribution_of_torch_in_another_form():
    class Policy(ActorCriticPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.action_dist = AsOne(3)

    kl = [updates(train(PPOKLPen, policy, space_env("box", "box"))[1])[-1]["train/kl"] for policy in (Policy, "MlpPolicy")]
    assert kl[0] == pytest.approx(kl[1], rel=1e-3)


class Joint(MultiCategoricalDistribution):
    """One distribution over all combinations."""

    def proba_distribution_net(self, latent_dim):
        return th.nn.Linear(latent_dim, 24)

    def proba_distribution(self, action_logits):
        self.distribution = th.distributions.Categorical(logits=action_logits)
        return self

    def log_prob(self, actions):
        first, second, third = actions.long().unbind(dim=1)
        return self.distribution.log_prob(first * 12 + second * 4 + third)

    def entropy(self):
        return self.distribution.entropy()

    def sample(self):
        index = self.distribution.sample()
        return th.stack([index // 12, index // 4 % 3, index % 4], dim=1)


def test_joint_distribution_of_several_actions():
    class Policy(ActorCriticPolicy):
        def _build(self, lr_schedule):
            self.action_dist = Joint([2, 3, 4])
            super()._build(lr_schedule)

    model, rows = train(PPOClip, Policy, space_env("box", "multidiscrete"), compile=False)
    expected, _ = train(PPO, Policy, space_env("box", "multidiscrete"))
    assert equal(model.policy.state_dict(), expected.policy.state_dict())
    assert updates(rows)[-1]["train/kl"] > 0
    old, new = (Joint([2, 3, 4]).proba_distribution(logits) for logits in th.randn(2, 7, 24))
    kl = th.distributions.kl_divergence(old.distribution, new.distribution)
    th.testing.assert_close(kl_old_new(old, new), kl)


class Locked(FlattenExtractor):
    """Cannot be copied."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.lock = threading.Lock()


def test_policy_that_cannot_be_copied_with_a_custom_buffer():
    class OwnBuffer(RolloutBuffer):
        pass

    kwargs = {"policy_kwargs": {"features_extractor_class": Locked}, "rollout_buffer_class": OwnBuffer}
    model, rows = train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=False, **kwargs)
    expected, _ = train(PPO, "MlpPolicy", space_env("box", "box"), **kwargs)
    assert equal(model.policy.state_dict(), expected.policy.state_dict())
    assert "train/kl" not in updates(rows)[-1]
    with pytest.raises(NotImplementedError, match="the policy cannot be copied"):
        train(PPOFixedKL, "MlpPolicy", space_env("box", "box"), **kwargs)


def test_kl_of_a_custom_buffer_whose_updates_end_early():
    """It is that over all samples, although the last epoch sees some of them only."""

    class OwnBuffer(RolloutBuffer):
        pass

    kwargs = {"n_steps": 130, "n_epochs": 10, "learning_rate": 1e-3, "target_kl": 0.005, "compile": False}
    (own, own_rows), (_, rows) = (
        train(PPOClip, "MlpPolicy", space_env("box", "box"), rollout_buffer_class=buffer, **kwargs)
        for buffer in (OwnBuffer, None)
    )
    assert own._n_updates < 3 * 10
    kl, expected = ([row["train/kl"] for row in updates(some)] for some in (own_rows, rows))
    assert len(expected) == 3
    np.testing.assert_allclose(kl, expected, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_policy_that_torch_compile_wraps():
    model, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"))
    observations, actions = th.zeros(4, 5), th.zeros(4, 3)
    expected = evaluate_policy(model.policy, observations, actions)
    # Which torch.compile turns off for good
    with unvalidated_distributions():
        actual = evaluate_policy(th.compile(model.policy), observations, actions)
    assert equal(actual[:3], expected[:3])
    assert equal(actual.closed_form().parameters, expected.closed_form().parameters)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_kl_penalty_trains_a_policy_that_torch_compile_wraps():
    def learn(wrap):
        model = PPOFixedKL("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, learning_rate=1e-3, seed=0)
        model.policy = wrap(model.policy)
        model.learn(104)
        return model.logger.name_to_value["train/kl"], model.policy.action_net.weight

    kl, weight = learn(lambda policy: th.compile(policy, backend="eager"))
    expected_kl, expected_weight = learn(lambda policy: policy)
    assert kl == pytest.approx(expected_kl, rel=1e-4)
    assert kl > 0
    assert th.allclose(weight, expected_weight, atol=1e-6)


def test_kl_with_a_rollout_buffer_of_another_class():
    class OwnBuffer(RolloutBuffer):
        pass

    (model, rows), (expected, expected_rows) = (
        train(PPOFixedKL, "MlpPolicy", space_env("box", "box"), learning_rate=1e-3, **kwargs)
        for kwargs in ({"rollout_buffer_class": OwnBuffer}, {})
    )
    assert updates(rows)[-1]["train/kl"] == pytest.approx(updates(expected_rows)[-1]["train/kl"], rel=1e-3)
    assert updates(rows)[-1]["train/kl"] > 1e-4
    for one, other in zip(model.policy.parameters(), expected.policy.parameters(), strict=True):
        assert th.allclose(one, other, atol=1e-5)


def test_kl_with_a_rollout_buffer_of_another_class_and_a_policy_that_overwrites_its_input():
    class OwnBuffer(RolloutBuffer):
        pass

    kwargs = {"rollout_buffer_class": OwnBuffer, "policy_kwargs": {"features_extractor_class": InPlaceExtractor}}
    _, rows = train(PPOClip, ClonesInForward, space_env("box", "box"), learning_rate=0.0, **kwargs)
    assert updates(rows)[-1]["train/kl"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("cls", [PPOFixedKL, PPOKLPen])
def test_surrogate_is_equation_8_and_clipping_in_addition(cls):
    model = cls("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13)
    terms = SimpleNamespace(ratio=th.tensor([1.5, 0.5]), advantages=th.tensor([2.0, -2.0]), kl=th.tensor([0.125, 0.25]))
    # 3 - 4 / 8, -1 - 4 / 4
    assert model.surrogate(terms, {"kl_coef": 4.0}).tolist() == [2.5, -2.0]
    # min(3, 1.25 * 2) - 4 / 8, min(-1, 0.75 * -2) - 4 / 4
    assert model.surrogate(terms, {"kl_coef": 4.0, "clip_range": 0.25}).tolist() == [2.0, -2.5]


def test_target_kl_of_a_fixed_penalty_ends_updates_early():
    model, _ = train(PPOFixedKL, "MlpPolicy", space_env("box", "box"), learning_rate=3e-3, target_kl=1e-3)
    # Of three epochs in each of three updates
    assert 3 <= model._n_updates < 9


def test_kl_coef_may_be_assigned():
    model = PPOFixedKL("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13)
    model.kl_coef = 2.0
    assert model.kl_coef == 2
    # At the start of the training, all of it remains
    model.kl_coef = lambda remaining: 4 * remaining
    assert model.kl_coef == 4
    model.learn(52)
    assert model.logger.name_to_value["train/kl_coef"] == 0


class KeepLocals(BaseCallback):
    """The names and types that callbacks see at each event."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def keep(self, event):
        self.seen[event] = {name: type(value) for name, value in self.locals.items() if name not in ("self", "__class__")}

    def _on_training_start(self):
        self.keep("training start")

    def _on_rollout_start(self):
        self.keep("rollout start")

    def _on_step(self):
        self.keep("step")
        return True

    def _on_rollout_end(self):
        self.keep("rollout end")

    def _on_training_end(self):
        self.keep("training end")


@pytest.mark.parametrize("compile_", [False, True])
@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("action", ["box", "discrete"])
def test_callbacks_see_the_locals_of_sb3(cls, action, compile_, monkeypatch):
    monkeypatch.setattr(inductor, "compile_graph", lambda graph, arguments: lambda arguments: graph(*arguments))

    def seen(cls, **kwargs):
        callback = KeepLocals()
        model = cls("MlpPolicy", space_env("box", action)(), n_steps=26, batch_size=13, n_epochs=1, **kwargs)
        model.learn(104, callback=callback, tb_log_name="run")
        return callback.seen

    expected, actual = seen(PPO), seen(cls, compile=compile_)
    names = {"obs_tensor", "actions", "values", "log_probs", "clipped_actions", "infos", "dones", "terminal_value"}
    assert names <= expected["step"].keys()
    assert actual.keys() == expected.keys()
    for event in expected:
        assert expected[event].items() <= actual[event].items()


class PolicyGradient(PPOFixedKL):
    def surrogate(self, terms, coef):
        return policy_gradient(terms.log_prob, terms.advantages)


class ForgetLogProb(BaseCallback):
    """Makes all ratios exp(100) and more, which a float32 cannot hold."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.locals["rollout_buffer"].log_probs -= 100


def test_ratio_that_overflows_is_an_error_only_where_the_loss_knows_it():
    def learn(cls):
        model = cls("MlpPolicy", "Pendulum-v1", n_steps=64, seed=0, kl_coef=0.0)
        return model.learn(64, ForgetLogProb())

    # As in SB3, approximate KL is but a number in the log
    logged = learn(PolicyGradient).logger.name_to_value
    assert logged["train/approx_kl"] == math.inf
    assert math.isfinite(logged["train/loss"])
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        learn(PPOFixedKL)


def test_callback_ends_the_training():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 10

    model = PPOKLPen("MlpPolicy", "Pendulum-v1", n_steps=64).learn(1000, Stop())
    assert model.num_timesteps == 10
    assert model._n_updates == 0


def test_float_total_timesteps_progress_bar_and_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    model = PPOKLPen("MlpPolicy", "Pendulum-v1", n_steps=64, tensorboard_log=str(tmp_path))
    model.learn(1e2, progress_bar=True)
    assert model.num_timesteps == 128
    assert [path.name for path in tmp_path.iterdir()] == ["PPOKLPen_1"]


def test_measuring_the_kl_leaves_the_policy_in_training_mode():
    model, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"))
    reference, _ = train(PPO, "MlpPolicy", space_env("box", "box"))
    assert model.policy.training
    assert reference.policy.training
    assert math.isfinite(model.logger.name_to_value["train/kl"])
