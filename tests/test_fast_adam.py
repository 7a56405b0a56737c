"""The Adam lane by itself: torch's backward, clip_grad_norm_ and Adam.step, bit for bit."""

import pytest
import torch as th
from support import OwnPolicy, equal, make_policy

from sb3_ppo_variants.fast import adam


def loss_of(policy, seed, is_of_values=False):
    generator = th.Generator().manual_seed(seed)
    observations, actions = th.randn(16, 5, generator=generator), th.randn(16, 3, generator=generator)
    values, log_prob, _ = policy.evaluate_actions(observations, actions)
    # Large enough to be clipped
    return 10 * values.square().mean() + (0 if is_of_values else 10 * log_prob.mean())


def torch_step(policy, loss, max_grad_norm):
    policy.optimizer.zero_grad()
    loss.backward()
    norm = th.nn.utils.clip_grad_norm_(policy.parameters(), float("inf") if max_grad_norm is None else max_grad_norm)
    policy.optimizer.step()
    return norm


def assert_same(policy, other):
    assert equal(policy.state_dict(), other.state_dict())
    assert equal(policy.optimizer.state_dict(), other.optimizer.state_dict())
    gradients, other_gradients = ([p.grad for p in some.parameters()] for some in (policy, other))
    assert equal(gradients, other_gradients)


@pytest.mark.parametrize("max_grad_norm", [None, 0.5, 1e9])
@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}])
def test_steps_are_those_of_torch(options, max_grad_norm):
    theirs, ours = (make_policy(optimizer_kwargs=options) for _ in range(2))
    initial = make_policy().state_dict()
    # Two updates: in the second the state comes from the optimizer, and the learning rate has changed
    for learning_rate in (1e-2, 3e-3):
        for policy in (theirs, ours):
            policy.optimizer.param_groups[0]["lr"] = learning_rate
        with adam.lane(ours) as step:
            for seed in range(3):
                norm = torch_step(theirs, loss_of(theirs, seed), max_grad_norm)
                assert th.equal(step(loss_of(ours, seed), max_grad_norm), norm)
                assert norm > 0.5
        assert_same(theirs, ours)
    assert not equal(ours.state_dict(), initial)


def test_state_is_stored_only_after_a_step():
    policy = make_policy()
    with adam.lane(policy):
        pass
    assert policy.optimizer.state == {}


def assert_same_steps(theirs, ours, is_of_values=(False, False, False)):
    with adam.lane(ours) as step:
        for seed, one in enumerate(is_of_values):
            norm = torch_step(theirs, loss_of(theirs, seed, one), 0.5)
            assert th.equal(step(loss_of(ours, seed, one), 0.5), norm)
    assert_same(theirs, ours)


@pytest.mark.parametrize("order", [(True, True, True), (False, True, False), (True, False, True)])
def test_loss_that_some_parameters_are_not_part_of(order):
    """Torch's Adam counts the steps of each parameter."""
    ours = make_policy()
    assert_same_steps(make_policy(), ours, order)
    assert (ours.log_std.grad is None) == order[-1]
    # More steps on some parameters than on others: no lane
    assert adam.lane(ours) is None


def test_frozen_parameters():
    theirs, ours = make_policy(), make_policy()
    for policy in (theirs, ours):
        policy.log_std.requires_grad_(False)
        policy.mlp_extractor.policy_net[0].weight.requires_grad_(False)
    assert_same_steps(theirs, ours)
    assert ours.log_std.tolist() == [0, 0, 0]


def test_lane_is_for_plain_adam_on_policies_of_the_libraries():
    assert adam.lane(make_policy()) is not None
    hooked, in_float64 = make_policy(), make_policy()
    hooked.log_std.register_hook(lambda _: None)
    in_float64.log_std.data = in_float64.log_std.data.double()
    own, rmsprop = make_policy(OwnPolicy), make_policy(optimizer_class=th.optim.RMSprop)
    amsgrad = make_policy(optimizer_kwargs={"amsgrad": True})
    assert [adam.lane(policy) for policy in (hooked, in_float64, own, rmsprop, amsgrad)] == [None] * 5
