import pytest
import torch as th

from sb3_ppo_variants.objectives import (
    clipped_surrogate,
    conservative_policy_iteration,
    kl_penalized_surrogate,
    policy_gradient,
)


def test_policy_gradient():
    log_prob = th.tensor([-0.5, -2.0], requires_grad=True)
    objective = policy_gradient(log_prob, th.tensor([3.0, -1.0]))
    # -0.5 * 3, -2 * -1
    assert objective.tolist() == [-1.5, 2.0]
    objective.sum().backward()
    assert log_prob.grad.tolist() == [3.0, -1.0]


def test_conservative_policy_iteration():
    ratio = th.tensor([0.5, 1.5, 4.0], requires_grad=True)
    objective = conservative_policy_iteration(ratio, th.tensor([2.0, -3.0, 0.0]))
    assert objective.tolist() == [1.0, -4.5, 0.0]
    objective.sum().backward()
    assert ratio.grad.tolist() == [2.0, -3.0, 0.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "gradient"),
    [
        # A > 0 and r > 1 + eps: clipped to (1 + 0.25) * 2; pushing r further gains nothing
        (1.5, 2.0, 2.5, 0.0),
        # A > 0 and r < 1 - eps: not clipped, 0.5 * 2, so that a bad step is undone
        (0.5, 2.0, 1.0, 2.0),
        # A < 0 and r > 1 + eps: not clipped, 1.5 * -2
        (1.5, -2.0, -3.0, -2.0),
        # A < 0 and r < 1 - eps: clipped to (1 - 0.25) * -2
        (0.5, -2.0, -1.5, 0.0),
        # Inside the clip range it is r A, equation (6)
        (1.125, 2.0, 2.25, 2.0),
        (0.875, -2.0, -1.75, -2.0),
    ],
)
def test_clipped_surrogate(ratio, advantage, objective, gradient):
    ratio = th.tensor([ratio], requires_grad=True)
    value = clipped_surrogate(ratio, th.tensor([advantage]), 0.25)
    assert value.item() == objective
    value.sum().backward()
    assert ratio.grad.item() == gradient


def test_clipped_surrogate_is_a_lower_bound_equal_inside_the_range():
    ratio = th.linspace(0.5, 1.5, 101).repeat(2)
    advantages = th.tensor([1.7, -0.6]).repeat_interleave(101)
    clipped, unclipped = clipped_surrogate(ratio, advantages, 0.2), conservative_policy_iteration(ratio, advantages)
    inside = (ratio > 0.8) & (ratio < 1.2)
    assert 0 < inside.sum() < len(ratio)
    assert th.equal(clipped[inside], unclipped[inside])
    assert (clipped <= unclipped).all()
    # Of the 60 steps of 0.01 outside the range on the clipped sides, 30 to the right for A > 0 and 30 to the left for A < 0
    assert (clipped < unclipped).sum() == 60


def test_kl_penalized_surrogate():
    ratio = th.tensor([1.5, 0.5], requires_grad=True)
    kl = th.tensor([0.125, 0.25], requires_grad=True)
    objective = kl_penalized_surrogate(ratio, th.tensor([2.0, -2.0]), kl, 4.0)
    # 1.5 * 2 - 4 * 0.125, 0.5 * -2 - 4 * 0.25
    assert objective.tolist() == [2.5, -2.0]
    objective.sum().backward()
    assert ratio.grad.tolist() == [2.0, -2.0]
    assert kl.grad.tolist() == [-4.0, -4.0]


def test_kl_penalty_in_addition_to_clipping():
    ratio, advantages, kl = th.tensor([1.5, 0.5]), th.tensor([2.0, -2.0]), th.tensor([0.125, 0.25])
    # min(3, 1.25 * 2) - 0.5, min(-1, 0.75 * -2) - 1
    assert kl_penalized_surrogate(ratio, advantages, kl, 4.0, clip_range=0.25).tolist() == [2.0, -2.5]


def test_kl_penalty_of_weight_zero_is_no_penalty():
    ratio, advantages = th.tensor([1.5, 0.5]), th.tensor([2.0, -2.0])
    # Even an infinite KL, as 0 * inf is NaN
    kl = th.tensor([0.125, float("inf")])
    objective = kl_penalized_surrogate(ratio, advantages, kl, 0.0)
    assert th.equal(objective, conservative_policy_iteration(ratio, advantages))


def test_infinite_kl_is_never_nan():
    objective = kl_penalized_surrogate(th.ones(1), th.ones(1), th.tensor([float("inf")]), 2.0)
    assert objective.item() == -float("inf")
