"""
Numbers that follow the KL of the updates: beta of section 4 of the PPO paper (https://arxiv.org/abs/1707.06347), and the step
size of its Table 4. Rules only: the numbers themselves belong to the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real


def adapt_kl_coef(kl_coef: float, kl: float, kl_target: float, bounds: tuple[float, float]) -> float:
    """
    Section 4's rule, once per policy update: beta is halved if d < d_targ / 1.5, doubled if d > 1.5 d_targ.

    :param kl_coef: beta of the update that has just been made
    :param kl: d, the mean KL[pi_old, pi] after that update, in nats
    :param kl_target: d_targ, in nats
    :param bounds: smallest and largest beta
    :return: beta for the next update
    """
    if kl < kl_target / 1.5:
        kl_coef = kl_coef / 2
    elif kl > kl_target * 1.5:
        kl_coef = kl_coef * 2
    return min(max(kl_coef, bounds[0]), bounds[1])


@dataclass(frozen=True)
class AdaptiveLearningRate:
    """
    A ``learning_rate`` that follows the KL, as in Table 4 ("Adam stepsize: adjusted based on the target value of the KL
    divergence"). It is divided by ``factor`` if the KL of an update is above ``band * kl_target``, and multiplied by it if the
    KL is below ``kl_target / band``. The paper prints no numbers: the defaults are those of rsl_rl, which applies them in each
    minibatch; only ``initial`` is SB3's.

    The current step size belongs to the model, ``model.adapted_learning_rate``, and is saved with it; ``load(path,
    adapted_learning_rate=1e-3)`` sets another.

    :param kl_target: target of the mean KL[pi_old, pi] of an update, in nats
    :param initial: step size of the first update
    :param factor: factor by which the step size is divided or multiplied, greater than 1
    :param band: factor by which the KL may be above or below its target without a change, greater than 1
    :param bounds: smallest and largest step size
    :raises ValueError: if an argument is out of range
    :raises TypeError: if an argument is not a number, or ``bounds`` not a pair of numbers
    """

    kl_target: float = 0.01
    initial: float = 3e-4
    factor: float = 1.5
    band: float = 2.0
    bounds: tuple[float, float] = (1e-5, 1e-2)

    def __post_init__(self) -> None:
        is_pair = isinstance(self.bounds, Sequence) and len(self.bounds) == 2
        if not (is_pair and all(isinstance(bound, Real) for bound in self.bounds)):
            raise TypeError(f"AdaptiveLearningRate: bounds must be a pair of numbers, but is {self.bounds!r}")
        for name, smallest in (("kl_target", 0), ("initial", 0), ("factor", 1), ("band", 1)):
            value = getattr(self, name)
            if not isinstance(value, Real):
                raise TypeError(f"AdaptiveLearningRate: {name} must be a number, but is {value!r}")
            if not smallest < float(value) < float("inf"):
                raise ValueError(f"AdaptiveLearningRate: {name} must be finite and greater than {smallest}, but is {value}")
        if not 0 < self.bounds[0] <= self.initial <= self.bounds[1]:
            what = f"initial must be within bounds {self.bounds} above 0, but is {self.initial}"
            raise ValueError(f"AdaptiveLearningRate: {what}")

    def __call__(self, progress_remaining: float) -> float:
        """Return ``initial``, whatever the progress: SB3 calls this object as a schedule."""
        return self.initial

    def adapt(self, learning_rate: float, kl: float) -> float:
        """
        The rule, once per policy update.

        :param learning_rate: step size of the update that has just been made
        :param kl: mean KL[pi_old, pi] after that update, in nats
        :return: step size of the next update
        """
        if kl > self.band * self.kl_target:
            learning_rate = learning_rate / self.factor
        elif kl < self.kl_target / self.band:
            learning_rate = learning_rate * self.factor
        return self.within_bounds(learning_rate)

    def within_bounds(self, learning_rate: float) -> float:
        """The nearest step size within the bounds."""
        return min(max(learning_rate, self.bounds[0]), self.bounds[1])
