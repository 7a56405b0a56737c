"""What the paper says of Table 1, and whether it is so here."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.paper import statistics
from benchmarks.paper.experiments import SETTINGS
from benchmarks.paper.scores import Scores, paper_scores
from benchmarks.paper.words import SEED, format_p, format_score, mean_in_words, pairs_in_words

LEVEL = 0.05
# The best setting of each kind in the paper, in pairs; the first of each has the higher score there
PAIRS = (
    ("clip_0.2", "none"),
    ("clip_0.2", "adaptive_kl_0.01"),
    ("clip_0.2", "fixed_kl_3"),
    ("adaptive_kl_0.01", "fixed_kl_3"),
)
# Kinds of settings, by the beginning of their names
KINDS = {"clip_": "clipping", "adaptive_kl_": "adaptive KL", "fixed_kl_": "fixed KL"}
CHEETAH = "HalfCheetah-v4"
# Settings are "similar" if one is better by less than this: what lies between clipping and adaptive KL in Table 1
MARGIN = 0.08

SAME = "as in the paper"
OPEN = "inconclusive"
MIXED = "in some runs"
UNSEEN = "not seen here"
OPPOSITE = "**not** as in the paper"
VERDICTS = (SAME, OPEN, MIXED, UNSEEN, OPPOSITE)


class Claim(NamedTuple):
    """
    A claim of the paper.

    :param paper: what it says
    :param here: what is found
    :param verdict: one of ``VERDICTS``
    """

    paper: str
    here: str
    verdict: str


def p_values(pairs: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """
    Whether the settings of each pair differ.

    :param pairs: scores of both
    :return: p-values by permutation, of each pair by itself
    """
    return [statistics.permutation_test(one, other, np.random.default_rng(SEED)) for one, other in pairs]


def claims(scores: Scores) -> list[Claim]:
    """
    The claims of sections 2.1, 4 and 6.1 that the settings at hand allow to check.

    :param scores: the scores
    :return: the claims
    """
    settings = set(scores.settings())
    found = [highest(scores)] if "clip_0.2" in settings else []
    if all(any(setting.startswith(kind) for setting in settings) for kind in KINDS):
        found.append(penalties_are_worse(scores))
    found += pairs(scores)
    if "none" in settings and CHEETAH in scores.tasks:
        found += [negative(scores), because_of_cheetah(scores), very_negative(scores)]
    if settings.issuperset(("none", "policy_gradient")):
        found.append(similar_or_worse(scores))
    return found


def checked_claims(scores: Scores) -> list[tuple[Claim, int, int]]:
    """
    The claims, and whether what is 0 and 1 matters to what is found of them.

    :param scores: the scores
    :return: each claim, the number of readings with the same verdict, and that of all readings
    """
    readings = [claims(reading) for reading in scores.readings()]
    return [
        (same[0], sum(claim.verdict == same[0].verdict for claim in same), len(readings))
        for same in zip(*readings, strict=True)
    ]


def adjusted(scores: Scores, one: str, others: Sequence[str]) -> np.ndarray:
    """
    Whether a setting differs from each of some others.

    :param scores: the scores
    :param one: name of the setting
    :param others: names of the others
    :return: p-values after Holm's adjustment for their number
    """
    return statistics.holm(p_values([scores.of_common_seeds(one, other) for other in others]))


def highest(scores: Scores) -> Claim:
    """
    Whether clipping at 0.2 is the best setting of Table 1.

    :param scores: the scores
    :return: the claim
    """
    others = [setting for setting in scores.settings() if setting in paper_scores() and setting != "clip_0.2"]
    # Ranks are of the same seeds
    scores = scores.with_common_seeds(["clip_0.2", *others])
    differences = np.array([statistics.difference(*scores.of_common_seeds("clip_0.2", setting)) for setting in others])
    differ = adjusted(scores, "clip_0.2", others) < LEVEL
    n_seeds = scores.normalized("clip_0.2").shape[1]
    here = f"rank {1 + (differences < 0).sum()} of {len(others) + 1} with {n_seeds} seeds."
    for words, those in {
        "Behind": differences < 0,
        "Better than": differ & (differences > 0),
        "Worse than": differ & (differences < 0),
        "No significant difference from": ~differ,
    }.items():
        if those.any():
            here += f" {words}: {'; '.join(SETTINGS[others[i]].label for i in np.flatnonzero(those))}."
    verdict = OPPOSITE if (differ & (differences < 0)).any() else SAME if differ.all() else OPEN
    return Claim("Clipping at 0.2 has the highest score", here, verdict)


def clipping_and_penalties(scores: Scores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Clipping and each kind of penalty, on average over the settings of a kind.

    :param scores: the scores
    :return: by the name of the penalty, the scores of both, each of shape ``(n_tasks, n_seeds)``
    """
    settings = [setting for setting in scores.settings() if setting.startswith(tuple(KINDS))]
    samples = dict(zip(settings, scores.of_common_seeds(*settings), strict=True))
    clipping, *penalties = (
        np.mean([runs for setting, runs in samples.items() if setting.startswith(kind)], axis=0) for kind in KINDS
    )
    return {name: (clipping, runs) for name, runs in zip(list(KINDS.values())[1:], penalties, strict=True)}


def penalties_are_worse(scores: Scores) -> Claim:
    """
    Whether both kinds of penalty are worse than clipping.

    :param scores: the scores
    :return: the claim
    """
    samples = clipping_and_penalties(scores)
    p = statistics.holm(p_values(list(samples.values())))
    differences = np.array([statistics.difference(*pair) for pair in samples.values()])
    found = [
        f"{name} by {mean_in_words(*pair)}, adjusted p {format_p(of_pair)}, and {without_a_task(scores.tasks, *pair)}"
        for (name, pair), of_pair in zip(samples.items(), p, strict=True)
    ]
    is_worse, is_better = (p < LEVEL) & (differences > 0), (p < LEVEL) & (differences < 0)
    verdict = OPPOSITE if is_better.any() else SAME if is_worse.all() else OPEN
    here = f"on average over the settings of a kind, clipping leads {'; '.join(found)}"
    return Claim("The KL penalty performs worse than clipping (section 4)", here, verdict)


def without_a_task(tasks: Sequence[str], one: np.ndarray, other: np.ndarray) -> str:
    """
    By how much one setting is ahead of another without the task that contributes most to its lead.

    :param tasks: ids of the tasks
    :param one: scores of shape ``(n_tasks, n_seeds)``
    :param other: those of the other
    :return: the words
    """
    largest = int((one.mean(axis=1) - other.mean(axis=1)).argmax())
    words = mean_in_words(*(np.delete(runs, largest, axis=0) for runs in (one, other)))
    return f"{words} without {tasks[largest].removesuffix('-v4')}"


def compared_pairs(scores: Scores) -> list[tuple[str, str, list[np.ndarray], float]]:
    """
    The pairs of settings in ``PAIRS`` that there are.

    :param scores: the scores
    :return: for each, the names, the scores of the seeds that both have, and the p-value after Holm's adjustment for the
        number of pairs
    """
    names = [pair for pair in PAIRS if set(scores.settings()).issuperset(pair)]
    samples = [scores.of_common_seeds(*pair) for pair in names]
    p = statistics.holm(p_values(samples)).tolist()
    return [(one, other, *compared) for (one, other), *compared in zip(names, samples, p, strict=True)]


def pairs(scores: Scores) -> list[Claim]:
    """
    Whether the first setting of each pair has the higher score.

    :param scores: the scores
    :return: a claim for each
    """
    paper = paper_scores()
    found = []
    for one, other, pair, p in compared_pairs(scores):
        verdict = OPEN if p >= LEVEL else SAME if statistics.difference(*pair) > 0 else OPPOSITE
        said = f"{SETTINGS[one].label} has a higher score than {SETTINGS[other].label}, by {paper[one] - paper[other]:.2f}"
        here = f"by {mean_in_words(*pair)} with {pair[0].shape[1]} seeds, and {without_a_task(scores.tasks, *pair)}; "
        here += f"ahead in {pairs_in_words(*pair)} pairs of runs; "
        found.append(Claim(said, f"{here}adjusted p {format_p(p)}", verdict))
    return found


def negative(scores: Scores) -> Claim:
    """
    Whether "no clipping or penalty" has a negative score.

    :param scores: the scores
    :return: the claim
    """
    own = scores.normalized("none")
    mean, half_width = statistics.mean(own), statistics.half_width(own)
    verdict = SAME if mean + half_width < 0 else OPPOSITE if mean - half_width > 0 else OPEN
    here = f"{mean_in_words(own)} with {own.shape[1]} seeds"
    return Claim(f"No clipping or penalty has a negative score, {paper_scores()['none']:.2f}", here, verdict)


def of_all(n: int, count: int) -> str:
    """
    The verdict on what the paper says of runs.

    :param n: of how many it is so here
    :param count: how many there are
    :return: the verdict
    """
    return SAME if n == count else UNSEEN if n == 0 else MIXED


def if_none(n: int, count: int) -> str:
    """
    What it means if none of some runs shows what the paper says.

    :param n: how many do
    :param count: how many there are
    :return: the words; empty if some do
    """
    return "" if n else f". That leaves it a probability of up to {statistics.largest_probability(count):.0%}"


def because_of_cheetah(scores: Scores) -> Claim:
    """
    Whether the score of "no clipping or penalty" is that low because of HalfCheetah.

    :param scores: the scores
    :return: the claim
    """
    own, cheetah = scores.normalized("none"), scores.tasks.index(CHEETAH)
    n_lowest, n_seeds = int((own.argmin(axis=0) == cheetah).sum()), own.shape[1]
    means = own.mean(axis=1)
    lowest = int(means.argmin())
    here = f"the lowest task is HalfCheetah with {n_lowest} of {n_seeds} seeds; on average it is {scores.tasks[lowest]}, with "
    here += f"{format_score(means[lowest])}. HalfCheetah has {format_score(means[cheetah])}, and all tasks but the lowest "
    here += f"have {format_score(np.delete(means, lowest).mean())} on average{if_none(n_lowest, n_seeds)}"
    return Claim("No clipping or penalty is negative because of HalfCheetah", here, of_all(n_lowest, n_seeds))


def collapse(scores: Scores) -> float:
    """
    The score on HalfCheetah that gives the paper's mean of "no clipping or penalty" if the other tasks have 0.

    :param scores: the scores
    :return: that score
    """
    return paper_scores()["none"] * len(scores.tasks)


def cheetah_scores(scores: Scores, variant: str = "paper") -> np.ndarray:
    """
    Scores of "no clipping or penalty" on HalfCheetah, where 0 is the policy before training.

    :param scores: the scores
    :param variant: name of the variant
    :return: shape ``(n_seeds,)``
    """
    random, best = (np.array([scores.constants[CHEETAH][name]]) for name in ("untrained", scores.best))
    return statistics.normalize(scores.returns_in(CHEETAH, "none", variant)[None], random, best)[0]


def very_negative(scores: Scores) -> Claim:
    """
    Whether "no clipping or penalty" ends far below the policy before training on HalfCheetah.

    :param scores: the scores
    :return: the claim
    """
    own = cheetah_scores(scores)
    limit = collapse(scores)
    n_collapsed = int((own < limit).sum())
    here = (
        f"scores if that policy is 0: {', '.join(map(format_score, own))}; below 0 in {(own < 0).sum()} of {len(own)} runs, "
    )
    here += f"below {format_score(limit)}, which the paper's mean takes if the other tasks have 0, in {n_collapsed}"
    here += if_none(n_collapsed, len(own))
    said = "No clipping or penalty has a very negative score on HalfCheetah, worse than the policy before training"
    return Claim(said, here, of_all(n_collapsed, len(own)))


def similar_or_worse(scores: Scores) -> Claim:
    """
    Whether L^PG is not better than "no clipping or penalty" by more than ``MARGIN``.

    :param scores: the scores
    :return: the claim
    """
    pair = scores.of_common_seeds("policy_gradient", "none")
    difference, half_width = statistics.difference(*pair), statistics.half_width(*pair)
    is_worse = difference < 0 and p_values([pair])[0] < LEVEL
    verdict = SAME if is_worse or difference + half_width < MARGIN else OPPOSITE if difference - half_width > MARGIN else OPEN
    said = "L^PG over several epochs is similar or worse"
    return Claim(said, f"by {mean_in_words(*pair)}; ahead in {pairs_in_words(*pair)} pairs of runs", verdict)
