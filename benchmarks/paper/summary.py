"""The numbers of the report's summary."""

from typing import Any

import numpy as np

from benchmarks.paper import statistics
from benchmarks.paper.claims import CHEETAH, LEVEL, adjusted
from benchmarks.paper.scores import RANDOM_CHOICES, Scores, paper_scores
from benchmarks.paper.tables import half_width_to_paper, label_of, n_below_start, returns_by_seed
from benchmarks.paper.words import SEED, format_p, format_score, mean_in_words, pairs_in_words

# Kinds of settings, by the beginning of their names
KINDS = {"clip_": "clipping", "adaptive_kl_": "adaptive KL", "fixed_kl_": "fixed KL"}


def summary(scores: Scores) -> dict[str, Any]:
    """
    What Table 1 shows, in numbers.

    :param scores: the scores of Table 1's runs
    :return: the numbers by name; empty if a setting of Table 1 has no runs
    """
    paper = paper_scores()
    if not paper.keys() <= set(scores.settings()):
        return {}
    samples = {setting: scores.normalized(setting) for setting in paper}
    here = {setting: float(statistics.mean(runs)) for setting, runs in samples.items()}
    # All but "no clipping or penalty", which varies by far more
    limited = [setting for setting in paper if setting != "none"]
    distances = {setting: abs(here[setting] - paper[setting]) for setting in limited}
    n_seeds = samples["none"].shape[1]
    half_widths = {setting: half_width_to_paper(samples[setting]) for setting in limited}
    others = [setting for setting in paper if setting != "clip_0.2"]
    is_alike = adjusted(scores, "clip_0.2", others) >= LEVEL
    return {
        "n_limited": len(limited),
        "here": range_of([here[setting] for setting in limited]),
        "paper": range_of([paper[setting] for setting in limited]),
        "mean_distance": format_score(float(np.mean(list(distances.values())))),
        "largest_distance": format_score(max(distances.values())),
        "most_distant": label_of(max(distances, key=distances.__getitem__)),
        "n_distant": sum(distances[setting] > half_widths[setting] for setting in limited),
        "half_widths": f"±{format_score(min(half_widths.values()))} to ±{format_score(max(half_widths.values()))}",
        "correlation": correlation(here, paper, limited),
        "correlation_of_all": correlation(here, paper, list(paper)),
        "places": places(scores, "clip_0.2", list(paper)),
        "n_same_best": sum(best(here, kind) == best(paper, kind) for kind in KINDS),
        "n_kinds": len(KINDS),
        "alike": [label_of(setting) for setting, alike in zip(others, is_alike, strict=True) if alike],
        "leads": range_of([paper["clip_0.2"] - paper[setting] for setting in limited if setting != "clip_0.2"]),
        "detectable": " and ".join(
            f"{format_score(statistics.detectable_difference([samples[setting] for setting in limited], n))} with {n}"
            for n in (n_seeds, 10)
        ),
        "kinds": {
            name: mean_in_words(mean_of_kind(samples, "clip_"), mean_of_kind(samples, kind))
            for kind, name in KINDS.items()
            if kind != "clip_"
        },
        "none": no_clipping(scores),
    }


def range_of(numbers: list[float]) -> str:
    """
    The lowest and the highest of some scores.

    :param numbers: the scores
    :return: the words
    """
    return f"{format_score(min(numbers))} and {format_score(max(numbers))}"


def correlation(ours: dict[str, float], papers: dict[str, float], settings: list[str]) -> str:
    """
    The rank correlation of two columns.

    :param ours: scores by setting
    :param papers: those of the paper
    :param settings: which of them
    :return: the correlation and its p-value
    """
    x, y = (np.array([column[setting] for setting in settings]) for column in (ours, papers))
    p = format_p(statistics.chance_of_correlation(x, y, np.random.default_rng(SEED)))
    return f"{statistics.rank_correlation(x, y):.2f} (p {p if p.startswith('<') else f'= {p}'})"


def places(scores: Scores, setting: str, settings: list[str]) -> str:
    """
    The place of a setting in Table 1 under each reading of the normalisation.

    :param scores: the scores
    :param setting: its name
    :param settings: names of all
    :return: the places, lowest first
    """
    found = set()
    for reading in scores.readings():
        means = [float(statistics.mean(reading.normalized(name))) for name in settings]
        found.add(1 + sum(mean > means[settings.index(setting)] for mean in means))
    return " or ".join(map(str, sorted(found)))


def best(column: dict[str, float], kind: str) -> str:
    """
    The best setting of a kind.

    :param column: scores by setting
    :param kind: beginning of the names of that kind
    :return: its name
    """
    return max((setting for setting in column if setting.startswith(kind)), key=column.__getitem__)


def mean_of_kind(samples: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """
    The mean over the settings of a kind.

    :param samples: scores by setting, each of shape ``(n_tasks, n_seeds)``
    :param kind: beginning of the names of that kind
    :return: shape ``(n_tasks, n_seeds)``
    """
    return np.mean([runs for setting, runs in samples.items() if setting.startswith(kind)], axis=0)


def no_clipping(scores: Scores) -> dict[str, Any]:
    """
    What becomes of "no clipping or penalty", in numbers.

    :param scores: the scores of Table 1's runs
    :return: the numbers by name
    """
    readings = {reading.random: reading.normalized("none") for reading in scores.readings_of_random()}
    own, cheetah = scores.normalized("none"), scores.tasks.index(CHEETAH)
    lowest = int(own.mean(axis=1).argmin())
    return {
        "pairs": pairs_in_words(scores.normalized("clip_0.2"), own),
        "means": [f"{mean_in_words(runs)} if 0 is {RANDOM_CHOICES[random]}" for random, runs in readings.items()],
        "paper": f"{paper_scores()['none']:.2f}",
        "lowest": scores.tasks[lowest].removesuffix("-v4"),
        "lowest_score": format_score(own[lowest].mean()),
        "without_lowest": format_score(np.delete(own, lowest, axis=0).mean()),
        "is_cheetah": lowest == cheetah,
        "cheetah": returns_by_seed(scores, "none", CHEETAH),
        "n_below_start": n_below_start(scores, "none", CHEETAH),
        "n_seeds": own.shape[1],
    }
