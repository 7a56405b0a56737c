import pytest
import torch as th

from sb3_ppo_variants import PPOClip, ProximalPolicyOptimization, Terms
from sb3_ppo_variants.objectives import (
    clipped_surrogate,
    conservative_policy_iteration,
    kl_penalized_surrogate,
    policy_gradient,
)


def terms(ratio, advantages, kl=()):
    """Those of pi(a|s) / pi_old(a|s) = ratio, in float64, where log pi_old(a|s) = -1."""
    log_prob = (th.tensor(ratio, dtype=th.float64).log() - 1).requires_grad_()
    old_log_prob = th.full_like(log_prob, -1)
    return Terms(log_prob, old_log_prob, th.tensor(advantages, dtype=th.float64), lambda: th.tensor(kl))


def test_terms_compute_the_kl_when_first_asked_and_once():
    calls = []
    some = Terms(th.zeros(1), th.ones(1), th.ones(1), lambda: calls.append(True) or th.ones(1))
    assert not calls
    assert some.kl.item() == some.kl.item() == 1
    assert len(calls) == 1


def test_policy_gradient():
    log_prob = th.tensor([-0.5, -2.0], requires_grad=True)
    objective = policy_gradient(Terms(log_prob, th.zeros(2), th.tensor([3.0, -1.0]), th.Tensor), {})
    # -0.5 * 3, -2 * -1
    assert objective.tolist() == [-1.5, 2.0]
    objective.sum().backward()
    assert log_prob.grad.tolist() == [3.0, -1.0]


def test_conservative_policy_iteration():
    some = terms([0.5, 1.5, 4.0], [2.0, -3.0, 0.0])
    objective = conservative_policy_iteration(some, {})
    assert objective.tolist() == pytest.approx([1.0, -4.5, 0.0])
    objective.sum().backward()
    # d r / d log pi = r
    assert some.log_prob.grad.tolist() == pytest.approx([0.5 * 2, 1.5 * -3, 0.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "gradient"),
    [
        # A > 0 and r > 1 + eps: clipped to (1 + 0.25) * 2; pushing r further gains nothing
        (1.5, 2.0, 2.5, 0.0),
        # A > 0 and r < 1 - eps: not clipped, 0.5 * 2, so that a bad step is undone; d r / d log pi = r
        (0.5, 2.0, 1.0, 1.0),
        # A < 0 and r > 1 + eps: not clipped, 1.5 * -2
        (1.5, -2.0, -3.0, -3.0),
        # A < 0 and r < 1 - eps: clipped to (1 - 0.25) * -2
        (0.5, -2.0, -1.5, 0.0),
        # Inside the clip range: r A, equation (6)
        (1.125, 2.0, 2.25, 2.25),
        (0.875, -2.0, -1.75, -1.75),
    ],
)
def test_clipped_surrogate(ratio, advantage, objective, gradient):
    some = terms([ratio], [advantage])
    value = clipped_surrogate(some, {"clip_range": 0.25})
    assert value.item() == pytest.approx(objective)
    value.sum().backward()
    assert some.log_prob.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize("number", [float, th.tensor])
def test_kl_penalized_surrogate(number):
    some = terms([1.5, 0.5], [2.0, -2.0], kl=[0.125, 0.25])
    some.kl.requires_grad_()
    objective = kl_penalized_surrogate(some, {"kl_coef": number(4.0)})
    # 1.5 * 2 - 4 * 0.125, 0.5 * -2 - 4 * 0.25
    assert objective.tolist() == pytest.approx([2.5, -2.0])
    objective.sum().backward()
    assert some.log_prob.grad.tolist() == pytest.approx([3.0, -1.0])
    assert some.kl.grad.tolist() == [-4.0, -4.0]
    # In addition to clipping: min(3, 1.25 * 2) - 0.5, min(-1, 0.75 * -2) - 1
    objective = kl_penalized_surrogate(some, {"kl_coef": number(4.0), "clip_range": 0.25})
    assert objective.tolist() == pytest.approx([2.0, -2.5])


def test_infinite_kl_is_no_penalty_at_weight_zero_and_never_nan():
    # 0 * inf is NaN
    some = terms([1.5, 0.5], [2.0, -2.0], kl=[0.125, float("inf")])
    for zero, beta in ((0.0, 2.0), (th.tensor(0.0), th.tensor(2.0))):
        assert th.equal(kl_penalized_surrogate(some, {"kl_coef": zero}), conservative_policy_iteration(some, {}))
        # 1.5 * 2 - 2 * 0.125
        assert kl_penalized_surrogate(some, {"kl_coef": beta}).tolist() == pytest.approx([2.75, -float("inf")])


def test_kl_is_not_asked_for_at_weight_zero():
    def kl():
        raise NotImplementedError

    some = Terms(th.zeros(1), th.zeros(1), th.ones(1), kl)
    assert kl_penalized_surrogate(some, {"kl_coef": 0.0}).item() == 1
    with pytest.raises(NotImplementedError):
        kl_penalized_surrogate(some, {"kl_coef": 1.0})


def test_objectives_that_are_not_static_or_not_per_sample():
    cls = type("Bound", (PPOClip,), {"objective": clipped_surrogate})
    with pytest.raises(TypeError, match=r"objective of Bound must be a static method: objective = staticmethod\(...\)"):
        cls("MlpPolicy", "CartPole-v1")
    with pytest.raises(TypeError, match="objective of ProximalPolicyOptimization must be a static method"):
        ProximalPolicyOptimization("MlpPolicy", "CartPole-v1")
    cls = type("Column", (PPOClip,), {"objective": staticmethod(lambda terms, coef: terms.ratio[:, None])})
    with pytest.raises(ValueError, match=r"objective must return a tensor of shape \(64,\), .* but its shape is \(64, 1\)"):
        cls("MlpPolicy", "CartPole-v1", n_steps=64).learn(64)
