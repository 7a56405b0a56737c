"""Equation (9) against numbers worked out by hand."""

import math

import pytest
import torch as th

from sb3_ppo_variants.kl import ClosedForm, kl_normal
from sb3_ppo_variants.loss import METRICS, Batch, Evaluation, ppo_loss, standardize
from sb3_ppo_variants.objectives import clipped_surrogate, kl_penalized_surrogate


def batch(**kwargs):
    tensors = {
        "observations": th.zeros(2, 1),
        "actions": th.zeros(2, 1),
        "old_values": th.tensor([0.0, 2.75]),
        "old_log_prob": th.zeros(2),
        "advantages": th.tensor([2.0, -2.0]),
        "returns": th.tensor([2.0, 0.0]),
    }
    return Batch(**tensors, old_parameters=kwargs.get("old_parameters", ()))


@pytest.fixture
def evaluation():
    """Ratios of 1.5 and 1."""
    values, log_prob, entropy = th.tensor([1.0, 3.0]), th.tensor([math.log(1.5), 0.0]), th.tensor([0.5, 1.5])
    form = ClosedForm(kl_normal, (th.tensor([[1.0], [0.0]]), th.tensor([[2.0], [1.0]])))
    return Evaluation(*(tensor.requires_grad_() for tensor in (values, log_prob, entropy)), lambda: form)


COEF = {"vf_coef": 0.5, "ent_coef": 0.1, "clip_range": 0.25}


def measured(loss, metrics):
    assert loss.item() == metrics[METRICS.index("loss")]
    assert not metrics.requires_grad
    return dict(zip(METRICS, metrics.tolist(), strict=True))


def test_equation_9(evaluation):
    loss, metrics = ppo_loss(clipped_surrogate, batch(), evaluation, COEF, normalizes_minibatch=False)
    assert measured(loss, metrics) == pytest.approx(
        {
            # L^CLIP = (min(3, 1.25 * 2) + 1 * -2) / 2 = 0.25
            "policy_gradient_loss": -0.25,
            # L^VF = ((1 - 2)^2 + (3 - 0)^2) / 2
            "value_loss": 5.0,
            # S = (0.5 + 1.5) / 2
            "entropy_loss": -1.0,
            # - 0.25 + 0.5 * 5 - 0.1 * 1
            "loss": 2.15,
            # (1.5 - 1 - ln 1.5 + 0) / 2
            "approx_kl": 0.0472674,
            # Of the ratios 1.5 and 1, one is off by more than 0.25
            "clip_fraction": 0.5,
        },
        rel=1e-5,
    )
    loss.backward()
    # c1 * 2 (V - V^targ) / 2 and - c2 / 2; the clipped sample has no gradient, the other - A r / 2
    assert evaluation.values.grad.tolist() == pytest.approx([-0.5, 1.5])
    assert evaluation.entropy.grad.tolist() == pytest.approx([-0.05, -0.05])
    assert evaluation.log_prob.grad.tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("number", [float, th.tensor])
def test_value_clipping(evaluation, number):
    coef = {**COEF, "clip_range_vf": number(0.5)}
    loss, metrics = ppo_loss(clipped_surrogate, batch(), evaluation, coef, normalizes_minibatch=False)
    # 1 is farther than 0.5 from 0, and 3 is not from 2.75: ((0.5 - 2)^2 + (3 - 0)^2) / 2
    assert measured(loss, metrics)["value_loss"] == pytest.approx(5.625)
    # - 0.25 + 0.5 * 5.625 - 0.1
    assert loss.item() == pytest.approx(2.4625)
    loss.backward()
    assert evaluation.values.grad.tolist() == pytest.approx([0.0, 1.5])


@pytest.mark.parametrize("number", [float, th.tensor])
def test_pessimistic_value_clipping(evaluation, number):
    coef = {**COEF, "clip_range_vf": number(0.5), "pessimistic_vf": number(1.0)}
    # The first value, 1, has gone from 0 towards the return 2, and is held back at 0.5; the second, 3, has gone from 2 away
    # from the return 0, and is not taken for 2.5: ((0.5 - 2)^2 + (3 - 0)^2) / 2
    data = batch()._replace(old_values=th.tensor([0.0, 2.0]))
    loss, metrics = ppo_loss(clipped_surrogate, data, evaluation, coef, normalizes_minibatch=False)
    assert measured(loss, metrics)["value_loss"] == pytest.approx(5.625)
    loss.backward()
    assert evaluation.values.grad.tolist() == pytest.approx([0.0, 1.5])
    # SB3's: ((0.5 - 2)^2 + (2.5 - 0)^2) / 2, with no gradient
    del coef["pessimistic_vf"]
    _, metrics = ppo_loss(clipped_surrogate, data, evaluation, coef, normalizes_minibatch=False)
    assert metrics[METRICS.index("value_loss")].item() == pytest.approx(4.25)


def test_entropy_that_is_not_known_is_estimated(evaluation):
    loss, metrics = ppo_loss(clipped_surrogate, batch(), evaluation._replace(entropy=None), COEF, normalizes_minibatch=False)
    # S = E[-log pi] = - ln(1.5) / 2
    assert measured(loss, metrics)["entropy_loss"] == pytest.approx(0.2027326)
    # - 0.25 + 0.5 * 5 + 0.1 * 0.2027326
    assert loss.item() == pytest.approx(2.2702733)


def test_kl_penalty(evaluation):
    coef = {"vf_coef": 0.0, "ent_coef": 0.0, "kl_coef": 4.0}
    old = (th.zeros(2, 1), th.ones(2, 1))
    loss, metrics = ppo_loss(kl_penalized_surrogate, batch(old_parameters=old), evaluation, coef, normalizes_minibatch=False)
    # KL[N(0, 1), N(1, 2^2)] = ln 2 + (1 + 1) / 8 - 1/2 = 0.443147, and 0 of the second sample
    # - ((1.5 * 2 - 4 * 0.443147) + (1 * -2)) / 2
    assert loss.item() == pytest.approx(0.386294, rel=1e-5)
    # Nothing is clipped without a clip_range
    assert measured(loss, metrics)["clip_fraction"] == 0
    with pytest.raises(NotImplementedError, match=r"KL\[pi_old, pi\] is not known"):
        ppo_loss(kl_penalized_surrogate, batch(), evaluation, coef, normalizes_minibatch=False)


def test_standardize():
    # Mean 3, deviation sqrt((4 + 1 + 0 + 9) / 3) = 2.160247
    expected = [-0.925820, -0.462910, 0.0, 1.388730]
    assert standardize(th.tensor([1.0, 2.0, 3.0, 6.0])).tolist() == pytest.approx(expected, rel=1e-5)
    assert standardize(th.tensor([7.0])).tolist() == [7.0]


def test_selecting_samples_makes_new_tensors():
    some = batch(old_parameters=(th.tensor([[1.0], [2.0]]),))._replace(observations={"a": th.tensor([[3.0], [4.0]])})
    one = some.select(th.tensor([1]))
    assert one.observations["a"].tolist() == [[4.0]]
    assert one.old_parameters[0].tolist() == [[2.0]]
    assert one.returns.tolist() == [0.0]
    one.observations["a"].zero_()
    assert some.observations["a"].tolist() == [[3.0], [4.0]]
