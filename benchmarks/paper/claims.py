"""What the paper says of Table 1, and whether it is so here."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.paper import statistics
from benchmarks.paper.experiments import SETTINGS
from benchmarks.paper.scores import Scores, paper_scores

# Every interval and p-value is drawn by a generator of its own, from this seed
SEED = 0
LEVEL = 0.05
# The best setting of each kind in the paper, in pairs; the first of each has the higher score there
PAIRS = (
    ("clip_0.2", "none"),
    ("clip_0.2", "adaptive_kl_0.01"),
    ("clip_0.2", "fixed_kl_3"),
    ("adaptive_kl_0.01", "fixed_kl_3"),
)
CHEETAH = "HalfCheetah-v4"
# A normalised score below this is "very negative"
VERY_NEGATIVE = -0.5
# Settings are "similar" if one is better by less than this: what lies between clipping and adaptive KL in Table 1
MARGIN = 0.08

SAME = "as in the paper"
OPPOSITE = "**not** as in the paper"
OPEN = "cannot be told"
MIXED = "in some runs"


class Claim(NamedTuple):
    """
    A claim of the paper.

    :param paper: what it says
    :param here: what is found
    :param verdict: ``SAME``, ``OPPOSITE``, ``OPEN`` or ``MIXED``
    """

    paper: str
    here: str
    verdict: str


def format_score(score: float, sign: str = "") -> str:
    """
    A normalised score in words.

    :param score: the score
    :param sign: "+" to write the sign of positive numbers
    :return: with two decimals, or three digits if it is large
    """
    if abs(score) >= 100:
        return f"{score:{sign}.3g}"
    # No minus before a zero
    return f"{round(score, 2) + 0.0:{sign}.2f}"


def format_p(p: float) -> str:
    """
    A p-value in words.

    :param p: the p-value
    :return: with three decimals
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def interval(statistic: Callable[..., np.ndarray], *samples: np.ndarray, n_resamples: int = 10_000) -> tuple[float, float]:
    """
    A 95% interval.

    :param statistic: as that of ``statistics.bootstrap``
    :param samples: its arguments
    :param n_resamples: of the bootstrap
    :return: lower and upper end
    """
    low, high = statistics.bootstrap(statistic, samples, np.random.default_rng(SEED), n_resamples)
    return float(low), float(high)


def estimate(statistic: Callable[..., np.ndarray], *samples: np.ndarray, sign: str = "", n_resamples: int = 10_000) -> str:
    """
    A statistic and its 95% interval in words.

    :param statistic: as that of ``statistics.bootstrap``
    :param samples: its arguments
    :param sign: "+" to write the sign of positive numbers
    :param n_resamples: of the bootstrap
    :return: the words
    """
    low, high = interval(statistic, *samples, n_resamples=n_resamples)
    return f"{format_score(float(statistic(*samples)), sign)} ({format_score(low)} to {format_score(high)})"


def p_values(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """
    Whether the settings of each pair differ.

    :param pairs: scores of both
    :return: p-values by permutation, of each pair by itself
    """
    return [statistics.permutation_test(*pair, np.random.default_rng(SEED)) for pair in pairs]


def claims(scores: Scores) -> list[Claim]:
    """
    The claims of section 6.1 that the settings at hand allow to check.

    :param scores: the scores
    :return: the claims
    """
    settings = set(scores.settings())
    found = [highest(scores)] if "clip_0.2" in settings else []
    found += pairs(scores, [pair for pair in PAIRS if settings.issuperset(pair)])
    if "none" in settings and CHEETAH in scores.tasks:
        found += [negative(scores), without_cheetah(scores), very_negative(scores)]
    if settings.issuperset(("none", "policy_gradient")):
        found.append(similar_or_worse(scores))
    return found


def highest(scores: Scores) -> Claim:
    """
    Whether clipping at 0.2 is the best setting of Table 1.

    :param scores: the scores
    :return: the claim
    """
    others = [setting for setting in scores.settings() if setting in paper_scores() and setting != "clip_0.2"]
    samples = [scores.pair("clip_0.2", setting) for setting in others]
    differences = np.array([statistics.difference(*pair) for pair in samples])
    differ = statistics.holm(p_values(samples)) < LEVEL
    ahead = [SETTINGS[setting].label for setting, d in zip(others, differences, strict=True) if d < 0]
    near = [SETTINGS[setting].label for setting, is_far in zip(others, differ, strict=True) if not is_far]
    here = f"it is in place {len(ahead) + 1} of {len(others) + 1}"
    here += f", after {', '.join(ahead)}" if ahead else ""
    here += f"; no difference can be told from {', '.join(near)}" if near else ""
    verdict = OPPOSITE if (differ & (differences < 0)).any() else SAME if not near else OPEN
    return Claim("Clipping at 0.2 has the highest score", here, verdict)


def pairs(scores: Scores, names: Sequence[tuple[str, str]]) -> list[Claim]:
    """
    Whether the first setting of each pair has the higher score.

    :param scores: the scores
    :param names: the pairs
    :return: a claim for each
    """
    paper = paper_scores()
    samples = [scores.pair(one, other) for one, other in names]
    found = []
    for (one, other), pair, p in zip(names, samples, statistics.holm(p_values(samples)), strict=True):
        verdict = OPEN if p >= LEVEL else SAME if statistics.difference(*pair) > 0 else OPPOSITE
        said = f"{SETTINGS[one].label} has a higher score than {SETTINGS[other].label}, by {paper[one] - paper[other]:.2f}"
        found.append(Claim(said, f"by {estimate(statistics.difference, *pair, sign='+')}, {format_p(p)}", verdict))
    return found


def sign_of(scores: np.ndarray) -> int:
    """
    The sign of a mean, as far as it can be told.

    :param scores: shape ``(n_tasks, n_runs)``
    :return: -1 or 1, or 0 if the 95% interval has both
    """
    low, high = interval(statistics.mean, scores)
    return (low > 0) - (high < 0)


def negative(scores: Scores) -> Claim:
    """
    Whether "no clipping or penalty" has a negative score.

    :param scores: the scores
    :return: the claim
    """
    own = scores.normalized("none")
    verdict = {-1: SAME, 0: OPEN, 1: OPPOSITE}[sign_of(own)]
    said = f"No clipping or penalty has a negative score, {paper_scores()['none']:.2f}"
    return Claim(said, estimate(statistics.mean, own), verdict)


def without_cheetah(scores: Scores) -> Claim:
    """
    Whether that is because of HalfCheetah.

    :param scores: the scores
    :return: the claim
    """
    own, task = scores.normalized("none"), scores.tasks.index(CHEETAH)
    rest = np.delete(own, task, axis=0)
    of_all, of_rest, of_cheetah = sign_of(own), sign_of(rest), sign_of(own[[task]])
    verdict = SAME if (of_all, of_rest) == (-1, 1) else OPPOSITE if of_all == 1 or of_rest == -1 or of_cheetah == 1 else OPEN
    return Claim("That is because of HalfCheetah", f"without it {estimate(statistics.mean, rest)}", verdict)


def very_negative(scores: Scores) -> Claim:
    """
    Whether "no clipping or penalty" ends far below the policy before training on HalfCheetah.

    :param scores: the scores
    :return: the claim
    """
    own = Scores(scores.rows, scores.constants, "untrained", scores.best).normalized("none")[scores.tasks.index(CHEETAH)]
    n_collapsed = int((own < VERY_NEGATIVE).sum())
    verdict = SAME if n_collapsed == len(own) else OPPOSITE if n_collapsed == 0 else MIXED
    said = "On HalfCheetah it has a very negative score, worse than the policy before training"
    here = (
        f"below {VERY_NEGATIVE} in {n_collapsed} of {len(own)} runs, if that policy is 0: {', '.join(map(format_score, own))}"
    )
    return Claim(said, here, verdict)


def similar_or_worse(scores: Scores) -> Claim:
    """
    Whether L^PG is not better than "no clipping or penalty" by more than ``MARGIN``.

    :param scores: the scores
    :return: the claim
    """
    pair = scores.pair("policy_gradient", "none")
    low, high = interval(statistics.difference, *pair)
    verdict = SAME if high < MARGIN else OPPOSITE if low > MARGIN else OPEN
    said = "L^PG over several epochs is similar or worse"
    return Claim(said, f"by {estimate(statistics.difference, *pair, sign='+')}", verdict)
