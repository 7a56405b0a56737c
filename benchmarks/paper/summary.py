"""The numbers of the report's summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.paper import statistics
from benchmarks.paper.claims import (
    CHEETAH,
    KINDS,
    LEVEL,
    VERDICTS,
    adjusted,
    checked_claims,
    cheetah_scores,
    clipping_and_penalties,
    collapse,
    compared_pairs,
    without_a_task,
)
from benchmarks.paper.experiments import SETTINGS, VARIANTS, Run
from benchmarks.paper.scores import RANDOM_CHOICES, Scores, paper_scores
from benchmarks.paper.tables import half_width_to_paper, label_of, n_below_start, returns_by_seed
from benchmarks.paper.words import (
    SEED,
    bootstrap_in_words,
    format_p,
    format_score,
    interval_in_words,
    mean_in_words,
    pairs_in_words,
)

# Variants in which several details differ
SEVERAL_DETAILS = ("sb3", "raw")


def verdicts(everything: Scores) -> dict[str, list[str]]:
    """
    What the paper says, by what is found of it.

    :param everything: the scores
    :return: claims of the paper by verdict, with the number of readings under which it is that one, if not all
    """
    by_verdict: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for claim, n_alike, n_readings in checked_claims(everything):
        limit = f" (under {n_alike} of {n_readings} readings)" if n_alike < n_readings else ""
        by_verdict[claim.verdict].append(claim.paper + limit)
    return {verdict: said for verdict, said in by_verdict.items() if said}


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
    distances = dict(zip(limited, np.abs(distances_to_paper(scores, limited)).tolist(), strict=True))
    n_seeds = samples["none"].shape[1]
    half_widths = [half_width_to_paper(samples[setting]) for setting in limited]
    by_best_setting = [reading for reading in scores.readings() if reading.best == "best_setting"]
    others = [setting for setting in paper if setting != "clip_0.2"]
    is_alike = adjusted(scores, "clip_0.2", others) >= LEVEL
    return {
        "n_limited": len(limited),
        "here": range_of([here[setting] for setting in limited]),
        "paper": range_of([paper[setting] for setting in limited]),
        "mean_distance": format_score(float(np.mean(list(distances.values())))),
        "largest_distance": format_score(max(distances.values())),
        "most_distant": label_of(max(distances, key=distances.__getitem__)),
        "n_distant": n_distant(scores, limited),
        "half_widths": f"±{format_score(min(half_widths))} to ±{format_score(max(half_widths))}",
        "by_best_setting": {
            "distances": range_of([distances_to_paper(reading, limited).mean() for reading in by_best_setting], sign="+"),
            "n_distant": " or ".join(map(str, sorted({n_distant(reading, limited) for reading in by_best_setting}))),
        },
        "correlation": correlation(here, paper, limited),
        **uncertainty_of_order({setting: samples[setting] for setting in limited}, "clip_0.2"),
        "correlation_of_all": correlation(here, paper, list(paper)),
        "correlation_of_seeds": range_of(
            [rank_correlation({name: samples[name][:, seed] for name in limited}) for seed in range(n_seeds)]
        ),
        "correlation_without_a_task": range_of(
            [
                rank_correlation({name: np.delete(samples[name], task, 0) for name in limited})
                for task in range(len(scores.tasks))
            ]
        ),
        "places": places(scores, "clip_0.2", list(paper)),
        "n_same_best": sum(best(here, kind) == best(paper, kind) for kind in KINDS),
        "n_kinds": len(KINDS),
        "n_seeds": n_seeds,
        "alike": [label_of(setting) for setting, alike in zip(others, is_alike, strict=True) if alike],
        "leads": range_of([paper["clip_0.2"] - paper[setting] for setting in limited if setting != "clip_0.2"]),
        "detectable": " and ".join(
            f"{format_score(statistics.detectable_difference([samples[setting] for setting in limited], n))} with {n}"
            for n in (n_seeds, 10)
        ),
        "kinds": ", and ".join(
            f"{name} by {mean_in_words(*pair)}, or {without_a_task(scores.tasks, *pair)}"
            for name, pair in clipping_and_penalties(scores).items()
        ),
        "none": no_clipping(scores),
    }


def range_of(numbers: Sequence[float], sign: str = "") -> str:
    """
    The lowest and the highest of some scores.

    :param numbers: the scores
    :param sign: "+" to write the sign of positive numbers
    :return: the words
    """
    return f"{format_score(min(numbers), sign)} and {format_score(max(numbers), sign)}"


def distances_to_paper(scores: Scores, settings: Sequence[str]) -> np.ndarray:
    """
    By how much the means of some settings are above those of the paper.

    :param scores: the scores
    :param settings: names of the settings
    :return: the differences, one for each setting
    """
    paper = paper_scores()
    return np.array([float(statistics.mean(scores.normalized(setting))) - paper[setting] for setting in settings])


def n_distant(scores: Scores, settings: Sequence[str]) -> int:
    """
    How many settings differ significantly from the paper.

    :param scores: the scores
    :param settings: names of the settings
    :return: that number
    """
    half_widths = [half_width_to_paper(scores.normalized(setting)) for setting in settings]
    return int((np.abs(distances_to_paper(scores, settings)) > half_widths).sum())


def rank_correlation(samples: Mapping[str, np.ndarray]) -> float:
    """
    The rank correlation of the means of some runs and the paper's.

    :param samples: scores by setting
    :return: the correlation
    """
    paper = paper_scores()
    means = np.array([runs.mean() for runs in samples.values()])
    return float(statistics.rank_correlation(means, np.array([paper[setting] for setting in samples])))


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


def uncertainty_of_order(samples: Mapping[str, np.ndarray], setting: str) -> dict[str, str]:
    """
    How much the order of some settings depends on the seeds, by the bootstrap.

    :param samples: scores by setting
    :param setting: one of them
    :return: the interval of the rank correlation with the paper's column, and how often that setting has the highest mean
    """
    papers = np.array([paper_scores()[name] for name in samples])
    resamples = statistics.resample(list(samples.values()), np.random.default_rng(SEED), n_resamples=2000)
    means = np.stack([statistics.mean(runs) for runs in resamples], axis=-1)
    low, high = np.quantile(statistics.rank_correlation(means, papers), [0.025, 0.975])
    highest = means.argmax(axis=-1) == list(samples).index(setting)
    return {
        "interval_of_correlation": f"{format_score(float(low))} to {format_score(float(high))}",
        "chance_of_highest": f"{highest.mean():.0%}",
    }


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
        "bootstrapped": f"{bootstrap_in_words(statistics.mean, own)} if 0 is {RANDOM_CHOICES[scores.random]}",
        "distances": [
            interval_in_words(float(statistics.mean(runs)) - paper_scores()["none"], half_width_to_paper(runs), sign="+")
            for runs in readings.values()
        ],
        "paper": f"{paper_scores()['none']:.2f}",
        "lowest": scores.tasks[lowest].removesuffix("-v4"),
        "lowest_score": format_score(own[lowest].mean()),
        "without_lowest": format_score(np.delete(own, lowest, axis=0).mean()),
        "is_cheetah": lowest == cheetah,
        "cheetah": returns_by_seed(scores, "none", CHEETAH),
        "n_below_start": n_below_start(scores, "none", CHEETAH),
        "n_seeds": own.shape[1],
    }


def more_seeds_summary(everything: Scores, runs: Sequence[Run]) -> dict[str, Any]:
    """
    What more seeds show, in numbers.

    :param everything: the scores
    :param runs: the runs with other seeds
    :return: the numbers by name; empty if there are no such runs
    """
    if not runs:
        return {}
    settings = {run.setting for run in runs}
    means = {setting: everything.normalized(setting) for setting in everything.settings() if setting in settings}
    return {
        "n_seeds": " or ".join(sorted({str(samples.shape[1]) for samples in means.values()})),
        "means": [f"{label_of(setting)} scores {mean_in_words(samples)}" for setting, samples in means.items()],
        "pairs": [
            f"{label_of(one)}, minus {label_of(other)}: {mean_in_words(*samples)}, adjusted p {format_p(p)}."
            for one, other, samples, p in compared_pairs(everything)
            if settings.issuperset((one, other))
        ],
    }


def details_summary(everything: Scores, runs: Sequence[Run]) -> dict[str, Any]:
    """
    What other implementation details make of the scores, in numbers.

    :param everything: the scores
    :param runs: the runs with other details
    :return: the numbers by name; empty if there are no such runs
    """
    if not runs:
        return {}
    seeds = {run.seed for run in runs}
    scores = everything.only([run for run in everything.rows if run.seed in seeds])
    variants = dict.fromkeys(run.variant for run in runs if (run.setting, run.env) == ("none", CHEETAH))
    below = {variant: n_below_start(scores, "none", CHEETAH, variant) for variant in variants}
    of_cheetah = {variant: cheetah_scores(scores, variant) for variant in variants}
    return {
        "several": [
            {
                "details": VARIANTS[variant].label,
                "setting": label_of(setting),
                "score": mean_in_words(scores.normalized(setting, variant)),
                "difference": mean_in_words(scores.normalized(setting, variant), scores.normalized(setting)),
            }
            for variant in SEVERAL_DETAILS
            for setting in SETTINGS
            if any((run.variant, run.setting) == (variant, setting) for run in runs)
        ],
        "n_runs": sum(own.size for own in of_cheetah.values()),
        "n_below_start": sum(below.values()),
        "below": [f"{n} of {of_cheetah[name].size} with {VARIANTS[name].label}" for name, n in below.items() if n],
        "added": [
            {"label": VARIANTS[variant].label, "added": format_score(own.mean() / len(scores.tasks), sign="+")}
            for variant, own in of_cheetah.items()
        ],
        "paper": f"{paper_scores()['none']:.2f}",
        "n_alike": sum(0.5 <= own.mean() / collapse(scores) <= 2 for own in of_cheetah.values()),
    }
