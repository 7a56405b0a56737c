import math
from functools import partial

import pytest
import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from torch.nn import functional as F

from sb3_ppo_variants.kl import closed_form, kl_bernoulli, kl_categorical, kl_normal, kl_old_new

BATCH, DIM = 80_000, 3


def gaussian(parameters, cls=DiagGaussianDistribution):
    mean, log_std = parameters[:DIM], parameters[DIM : 2 * DIM]
    return cls(DIM).proba_distribution(mean.expand(BATCH, DIM), log_std / 4)


def gsde(parameters, squash_output=False):
    distribution = StateDependentNoiseDistribution(DIM, squash_output=squash_output)
    distribution.proba_distribution_net(latent_dim=2, latent_sde_dim=2)
    latent = th.tensor([[0.5, -1.0]]).expand(BATCH, 2)
    return distribution.proba_distribution(
        parameters[:DIM].expand(BATCH, DIM), parameters[DIM : 3 * DIM].reshape(2, DIM) / 4, latent
    )


def categorical(parameters):
    return CategoricalDistribution(5).proba_distribution(parameters[:5].expand(BATCH, 5))


def multi_categorical(parameters):
    return MultiCategoricalDistribution([2, 3]).proba_distribution(parameters[:5].expand(BATCH, 5))


def bernoulli(parameters):
    return BernoulliDistribution(DIM).proba_distribution(parameters[:DIM].expand(BATCH, DIM))


DISTRIBUTIONS = {
    "gaussian": gaussian,
    "squashed gaussian": partial(gaussian, cls=SquashedDiagGaussianDistribution),
    "gsde": gsde,
    "squashed gsde": partial(gsde, squash_output=True),
    "categorical": categorical,
    "multicategorical": multi_categorical,
    "bernoulli": bernoulli,
}
OLD = th.tensor([0.4, -0.8, 0.3, 0.9, -0.5, 0.7, -0.2, 0.6, -0.4])
NEW = th.tensor([0.1, -0.2, 0.8, 0.2, -0.9, 0.1, 0.5, -0.1, 0.3])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_closed_form_agrees_with_monte_carlo(name):
    th.manual_seed(0)
    old, new = DISTRIBUTIONS[name](OLD), DISTRIBUTIONS[name](NEW)
    kl = kl_old_new(old, new)
    assert kl.shape == (BATCH,)
    if "gsde" in name:
        # gSDE's own sample() draws from one noise matrix; the distribution of one action is this Gaussian
        noise = old.distribution.sample()
        actions = th.tanh(noise) if "squashed" in name else noise
    else:
        actions = old.sample()
    samples = old.log_prob(actions) - new.log_prob(actions)
    standard_error = samples.std() / math.sqrt(len(samples))
    assert kl[0] > 20 * standard_error, "too close to zero to tell"
    assert abs(samples.mean() - kl[0]) < 4 * standard_error


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_zero_for_equal_policies_and_a_gradient_of_the_new_one_alone(name):
    make = DISTRIBUTIONS[name]
    assert th.equal(kl_old_new(make(OLD), make(OLD.clone())), th.zeros(BATCH))
    old_parameters, new_parameters = OLD.clone().requires_grad_(), NEW.clone().requires_grad_()
    kl_old_new(make(old_parameters), make(new_parameters)).sum().backward()
    assert new_parameters.grad.abs().max() > 0.01
    assert old_parameters.grad is None


def test_normal_direction_and_sum_over_dimensions():
    old = (th.tensor([[0.0, 1.0]]), th.tensor([[1.0, 2.0]]))
    new = (th.tensor([[1.0, 1.0]]), th.tensor([[2.0, 2.0]]))
    # First dimension: ln(2/1) + (1 + 1) / (2 * 4) - 1/2 = 0.693147 + 0.25 - 0.5; the second is the same in both
    assert kl_normal(*old, *new).tolist() == pytest.approx([0.443147], rel=1e-5)
    # The other way round: ln(1/2) + (4 + 1) / 2 - 1/2 = -0.693147 + 2
    assert kl_normal(*new, *old).tolist() == pytest.approx([1.306853], rel=1e-5)
    # Twice the first dimension is twice the KL
    double = [parameter[:, :1].repeat(1, 2) for parameter in (*old, *new)]
    assert kl_normal(*double).tolist() == pytest.approx([0.886294], rel=1e-5)


def test_directions_of_the_others_and_sums_over_dimensions():
    old, new = th.tensor([[0.5, 0.5]]).log(), th.tensor([[0.8, 0.2]]).log()
    # 0.5 ln(0.5 / 0.8) + 0.5 ln(0.5 / 0.2) = -0.235002 + 0.458145; 0.8 ln(0.8 / 0.5) + 0.2 ln(0.2 / 0.5) = 0.376003 - 0.183258
    there, back = pytest.approx(0.223144, rel=1e-5), pytest.approx(0.192745, rel=1e-5)
    assert (kl_categorical(old, new).item(), kl_categorical(new, old).item()) == (there, back)
    # Logits of the same probabilities, ln(0.8 / 0.2), and of a second dimension that is the same in both
    old, new = th.tensor([[0.0, 0.0]]), th.tensor([[1.386294, 0.0]])
    assert (kl_bernoulli(old, new).item(), kl_bernoulli(new, old).item()) == (there, back)
    old = MultiCategoricalDistribution([2, 2]).proba_distribution(th.tensor([[0.5, 0.5, 0.8, 0.2]]).log())
    new = MultiCategoricalDistribution([2, 2]).proba_distribution(th.tensor([[0.8, 0.2, 0.5, 0.5]]).log())
    assert kl_old_new(old, new).item() == pytest.approx(0.223144 + 0.192745, rel=1e-5)


def test_independent_distributions_as_one_event_and_other_families():
    kls = []
    for wrap in (lambda normal: normal, lambda normal: th.distributions.Independent(normal, 1)):
        old, new = DiagGaussianDistribution(3), DiagGaussianDistribution(3)
        old.distribution = wrap(th.distributions.Normal(th.zeros(5, 3), th.ones(5, 3)))
        new.distribution = wrap(th.distributions.Normal(th.ones(5, 3), th.ones(5, 3)))
        kls.append(kl_old_new(old, new))
    # 3 * 1^2 / 2
    assert th.equal(*kls)
    assert kls[0].tolist() == [1.5] * 5
    # Also torch's own, which a policy may return
    assert kl_old_new(old.distribution, new.distribution).tolist() == [1.5] * 5
    coins = [th.distributions.Categorical(probs=th.tensor([[p, 1 - p]])) for p in (0.5, 0.8)]
    assert kl_old_new(*coins).item() == pytest.approx(0.223144, rel=1e-5)
    old.distribution = th.distributions.Laplace(th.zeros(5, 3), th.ones(5, 3))
    with pytest.raises(NotImplementedError, match=r"No closed form of .* is known for DiagGaussianDistribution"):
        closed_form(old)


def test_masked_actions():
    masked = -float("inf")
    old, new = th.tensor([[0.0, 0.0, masked]]), th.tensor([[math.log(0.8), math.log(0.2), masked]], requires_grad=True)
    kl = kl_categorical(F.log_softmax(old, dim=1), F.log_softmax(new, dim=1))
    assert kl.item() == pytest.approx(0.223144, rel=1e-5)
    kl.sum().backward()
    # d KL / d logits = softmax(new) - old
    assert new.grad.tolist()[0] == pytest.approx([0.3, -0.3, 0.0], abs=1e-6)


@pytest.mark.parametrize("scale", [200.0, 1e4])
def test_finite_where_probabilities_round_to_zero(scale):
    old, new = th.tensor([[scale, -scale]]), th.tensor([[-scale, scale]], requires_grad=True)
    assert th.softmax(new, dim=1).min() == 0
    # The old policy always takes the first action, to which the new one gives e^(-2 scale)
    assert kl_categorical(F.log_softmax(old, dim=1), F.log_softmax(new, dim=1)).item() == pytest.approx(2 * scale)
    # Each of two dimensions: probability 1 against e^(-scale)
    kl = kl_bernoulli(old, new)
    assert kl.item() == pytest.approx(2 * scale)
    kl.sum().backward()
    assert th.isfinite(new.grad).all()
