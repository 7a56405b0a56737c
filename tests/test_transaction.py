"""An update is made as a whole, or not at all."""

import copy

import numpy as np
import pytest
import torch as th
from compiled_support import needs_new_torch
from stable_baselines3 import PPO
from support import InEachRollout, LinearExtractor, OwnPolicy, equal, make_model, space_env, with_extractor

from sb3_ppo_variants import AdaptiveLearningRate, NonFiniteUpdateError, PPOClip, PPOFixedKL, PPOKLPen
from sb3_ppo_variants.objectives import kl_penalized_surrogate, policy_gradient


def state_of(model):
    return copy.deepcopy((model.policy.state_dict(), model.policy.optimizer.state_dict()["state"], model._n_updates))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("cls", "action", "learning_rate", "compiles"),
    [
        (PPOClip, "discrete", 1e30, False),
        (PPOFixedKL, "box", 1e30, False),
        (PPOKLPen, "box", 1e30, False),
        pytest.param(PPOKLPen, "box", 1e30, True, marks=needs_new_torch),
    ],
)
def test_update_that_blows_up_is_undone(cls, action, learning_rate, compiles, fast, tmp_path):
    env = space_env("box", action)()
    model = make_model(cls, env=env, learning_rate=1e-4, compile=compiles).learn(52)
    model.lr_schedule = lambda _: learning_rate
    before = state_of(model)
    kl_coef = getattr(model, "kl_coef", None)
    with pytest.raises(FloatingPointError, match="smaller learning_rate") as raised:
        model.learn(52, reset_num_timesteps=False)
    assert isinstance(raised.value, NonFiniteUpdateError)
    # As SB3's distributions raise, and as RL Zoo's search prunes
    assert isinstance(raised.value, ValueError)
    assert equal(state_of(model), before)
    assert model._n_updates == 2
    assert getattr(model, "kl_coef", None) == kl_coef
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env, learning_rate=1e-4)
    assert equal(loaded.policy.state_dict(), before[0])
    loaded.learn(52)


def forget(model):
    """Makes all ratios exp(100) and more, which a float32 cannot hold."""
    model.rollout_buffer.log_probs -= 100


def test_adapted_step_size_is_that_of_the_last_update_that_was_made():
    rule = AdaptiveLearningRate(kl_target=1e3, initial=1e-4, factor=2.0)
    model = make_model(PPOFixedKL, learning_rate=rule, kl_coef=0.0).learn(104)
    assert model.adapted_learning_rate == 4e-4
    with pytest.raises(NonFiniteUpdateError):
        model.learn(52, InEachRollout(forget, at_end=True))
    assert model.adapted_learning_rate == 4e-4


def test_kl_that_is_not_finite_is_an_error():
    """Beta times it would be in the loss of the next step."""
    with pytest.raises(NonFiniteUpdateError):
        make_model(PPOFixedKL, OwnPolicy, batch_size=52, n_epochs=1, learning_rate=1e30, max_grad_norm=None).learn(52)


class PolicyGradient(PPOFixedKL):
    objective = staticmethod(policy_gradient)


def test_ratio_that_overflows_is_an_error_only_where_the_loss_knows_it():
    # As in SB3, approximate KL is but a number in the log
    model = make_model(PolicyGradient, kl_coef=0.0).learn(52, InEachRollout(forget, at_end=True))
    logged = model.logger.name_to_value
    assert logged["train/approx_kl"] == np.inf
    assert np.isfinite(logged["train/loss"])
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        make_model(PPOFixedKL, kl_coef=0.0).learn(52, InEachRollout(forget, at_end=True))


def test_interrupted_update_is_undone(fast):
    calls = []

    class Interrupted(PPOKLPen):
        """The user presses Ctrl-C in the third minibatch."""

        @staticmethod
        def objective(terms, coef):
            calls.append(len(terms.advantages))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return kl_penalized_surrogate(terms, coef)

    model = make_model(Interrupted, compile=False)
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        model.learn(52)
    assert equal(state_of(model), before)
    # The model can be trained on
    assert model.learn(52)._n_updates == 2


class AllKinds(LinearExtractor):
    """
    Has a buffer that is no part of the state that is saved, an integer parameter, and a buffer all of whose elements share
    memory; fails when it is told to.
    """

    fails = False

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.register_buffer("mean", th.zeros(8), persistent=False)
        self.register_buffer("ones", th.ones(1).expand(5))
        self.index = th.nn.Parameter(th.arange(5), requires_grad=False)

    def forward(self, observations):
        if self.fails and self.training:
            raise KeyError("mine")
        features = super().forward(observations[:, self.index] * self.ones)
        self.mean.mul_(0.9).add_(0.1 * features.detach().mean(dim=0))
        return features


def test_parameters_and_buffers_of_all_kinds_are_put_back():
    model, expected = (make_model(cls, **with_extractor(AllKinds)).learn(52) for cls in (PPOClip, PPO))
    assert equal(model.policy.state_dict(), expected.policy.state_dict())
    extractor, before, means = model.policy.features_extractor, state_of(model), []
    # Rollouts change it, too
    keep_mean = InEachRollout(lambda _: means.append(extractor.mean.clone()), at_end=True)
    for extractor.fails, error in ((True, KeyError), (False, FloatingPointError)):
        model.lr_schedule = lambda _: 1e30
        with pytest.raises(error):
            model.learn(52, keep_mean)
        assert equal(state_of(model), before)
        assert th.equal(extractor.mean, means[-1])


class MadeWhenNeeded(LinearExtractor):
    """Has a buffer, infinite by intent, that is there from the first update on."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.register_buffer("mask", None)

    def forward(self, observations):
        if self.training:
            self.mask = th.full((len(observations), 3), -float("inf"))
        return super().forward(observations)


def test_buffers_that_come_in_an_update():
    model = make_model(learning_rate=1e30, **with_extractor(MadeWhenNeeded))
    for _ in range(2):
        with pytest.raises(NonFiniteUpdateError):
            model.learn(52)
        assert not model.policy.optimizer.state
    model = make_model(**with_extractor(MadeWhenNeeded)).learn(104)
    assert model._n_updates == 4
    assert "features_extractor.mask" in model.policy.state_dict()


def test_rollout_that_is_not_full_is_an_error_before_anything_changes():
    model = make_model()
    before = state_of(model)
    model.n_steps = 13
    with pytest.raises(ValueError, match="holds 13 of 26 steps"):
        model.learn(26)
    assert equal(state_of(model), before)
