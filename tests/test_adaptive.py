"""Numbers that follow the KL: section 4's beta, and Table 4's step size."""

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from support import BOX_ENV, make_model, train, updates

from sb3_ppo_variants import AdaptiveLearningRate, PPOClip, PPOFixedKL, PPOKLPen
from sb3_ppo_variants.adaptive import adapt_kl_coef

# Far above every KL that can occur, and far below
HIGH, LOW = 1e3, 1e-9


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.0199, 1.0),  # below 0.03 / 1.5 = 0.02: half of 2
        (0.03 / 1.5, 2.0),  # at the threshold: as it was
        (0.03 * 1.5, 2.0),  # at the threshold
        (0.0451, 4.0),  # above 0.03 * 1.5 = 0.045: twice
    ],
)
def test_adapt_kl_coef(kl, expected):
    assert adapt_kl_coef(2.0, kl, 0.03, (1e-6, 1e6)) == expected


def test_adapt_kl_coef_stays_within_bounds_and_comes_back():
    def adapted(kl_coef, kl):
        return adapt_kl_coef(kl_coef, kl, 0.01, (0.5, 8.0))

    assert [adapted(0.6, 0.0), adapted(0.5, 1.0), adapted(6.0, 1.0), adapted(8.0, 0.0)] == [0.5, 1.0, 8.0, 4.0]


def test_beta_changes_once_per_update():
    # Of three epochs of two minibatches
    kwargs = {"n_updates": 5, "n_epochs": 3, "batch_size": 26}
    model, rows = train(PPOKLPen, kl_target=HIGH, **kwargs)
    assert model.kl_coef == 1 / 2**5
    # Each update is logged with the beta that it used
    assert [row["train/kl_coef"] for row in updates(rows)] == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]
    assert {row["train/kl_target"] for row in updates(rows)} == {HIGH}
    assert train(PPOKLPen, kl_target=LOW, **kwargs)[0].kl_coef == 2**5
    model, rows = train(PPOKLPen, kl_target=HIGH, kl_coef_bounds=(0.3, 4.0), init_kl_coef=2.0, **kwargs)
    assert [row["train/kl_coef"] for row in updates(rows)] == [2, 1, 0.5, 0.3, 0.3]
    assert model.kl_coef == 0.3


def test_beta_holds_the_kl_near_its_target_and_without_it_the_kl_runs_away():
    """Section 4, on a real task: Pendulum-v1 with a step size at which nothing else keeps the policy in place."""
    kl_target = 0.01

    def kls(cls, **own):
        kwargs = {"learning_rate": 0.01, "n_steps": 256, "batch_size": 64, "n_epochs": 10, "max_grad_norm": None, "seed": 0}
        model, rows = train(cls, make_env=lambda: make_vec_env("Pendulum-v1"), n_updates=16, compile=False, **kwargs, **own)
        return np.array([row["train/kl"] for row in updates(rows)]), model

    controlled, adaptive = kls(PPOKLPen, kl_target=kl_target, init_kl_coef=1e-2)
    free, _ = kls(PPOFixedKL, kl_coef=0)
    # A beta that is much too small grows until the KL is near its target
    assert np.median(controlled[:4]) > 1.5 * kl_target
    assert adaptive.kl_coef > 8 * adaptive.init_kl_coef
    late = np.median(controlled[-8:])
    assert kl_target / 3 < late < 3 * kl_target
    assert np.median(free[-8:]) > 10 * late


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.0049, 0.0015),  # below 0.01 / 2: 1.5 times 0.001
        (0.005, 0.001),  # at the threshold: as it was
        (0.02, 0.001),  # at the threshold
        (0.0201, 0.001 / 1.5),  # above 2 * 0.01
    ],
)
def test_rule_of_the_step_size(kl, expected):
    assert AdaptiveLearningRate(kl_target=0.01).adapt(0.001, kl) == pytest.approx(expected, rel=1e-12)


def test_own_numbers_of_the_rule():
    rule = AdaptiveLearningRate(kl_target=0.1, initial=0.02, factor=4.0, band=3.0, bounds=(0.005, 0.05))
    # Above 0.3: 0.02 / 4; below 0.0333: 4 * 0.01; the bounds: not 0.08 and not 0.0025
    adapted = [rule.adapt(0.02, 0.31), rule.adapt(0.01, 0.03), rule.adapt(0.02, 0.03), rule.adapt(0.01, 0.31)]
    assert adapted == [0.005, 0.04, 0.05, 0.005]
    assert rule(1.0) == rule(0.0) == 0.02


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"kl_target": "a"}, TypeError, "kl_target must be a number, but is 'a'"),
        ({"kl_target": 0.0}, ValueError, "kl_target must be finite and greater than 0, but is 0.0"),
        ({"factor": 1.0}, ValueError, "factor must be finite and greater than 1, but is 1.0"),
        ({"band": 0.5}, ValueError, r"band .* is 0\.5"),
        ({"bounds": 0.1}, TypeError, "bounds must be a pair of numbers, but is 0.1"),
        ({"bounds": (1e-3, 1e-4)}, ValueError, ".*bounds"),
        ({"initial": 1.0}, ValueError, r"initial must be within bounds \(1e-05, 0.01\) above 0, but is 1.0"),
    ],
)
def test_bad_numbers_of_the_rule(kwargs, error, message):
    with pytest.raises(error, match=f"AdaptiveLearningRate: {message}"):
        AdaptiveLearningRate(**kwargs)


DOUBLES = AdaptiveLearningRate(kl_target=HIGH, initial=1e-4, factor=2.0)


def test_step_size_changes_once_per_update():
    model, rows = train(PPOKLPen, n_updates=4, learning_rate=DOUBLES)
    assert [row["train/learning_rate"] for row in updates(rows)] == [1e-4, 2e-4, 4e-4, 8e-4]
    assert model.adapted_learning_rate == 16e-4
    assert model.learning_rate is DOUBLES
    _, rows = train(PPOClip, learning_rate=AdaptiveLearningRate(kl_target=LOW, factor=2.0))
    assert [row["train/learning_rate"] for row in updates(rows)] == [3e-4, 1.5e-4, 0.75e-4]


def test_step_size_that_is_assigned_begins_with_its_first_value():
    model = make_model()
    model.learning_rate = DOUBLES
    model.learn(104)
    assert model.policy.optimizer.param_groups[0]["lr"] == 2e-4
    assert model.adapted_learning_rate == 4e-4


def test_step_size_survives(tmp_path):
    def assert_goes_on(model):
        assert model.adapted_learning_rate == 4e-4
        model.learn(52, reset_num_timesteps=False)
        assert model.policy.optimizer.param_groups[0]["lr"] == 4e-4
        assert model.adapted_learning_rate == 8e-4

    model, other = (make_model(learning_rate=DOUBLES) for _ in range(2))
    model.learn(104).save(tmp_path / "model")
    # Models do not share it
    assert other.adapted_learning_rate == 1e-4
    # RL Zoo's -i passes the hyperparameters of the YAML to load
    for own in ({}, {"learning_rate": DOUBLES}, {"learning_rate": AdaptiveLearningRate(kl_target=HIGH, factor=2.0)}):
        assert_goes_on(PPOClip.load(tmp_path / "model", env=BOX_ENV(), **own))
    assert_goes_on(model)
    # Another kind of step size takes its place
    loaded = PPOClip.load(tmp_path / "model", env=BOX_ENV(), learning_rate=5e-5).learn(52)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 5e-5
    # Within new bounds, unless it is set
    rule = AdaptiveLearningRate(initial=1e-4, bounds=(1e-5, 2e-4))
    assert PPOClip.load(tmp_path / "model", learning_rate=rule).adapted_learning_rate == 2e-4
    assert PPOClip.load(tmp_path / "model", learning_rate=rule, adapted_learning_rate=1e-4).adapted_learning_rate == 1e-4
