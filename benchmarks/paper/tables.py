"""The tables of docs/paper.md, in Markdown."""

import csv
import inspect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.paper import statistics
from benchmarks.paper.cells import (
    EARLY,
    format_bootstrapped,
    format_difference,
    format_mean,
    format_p,
    format_return,
    format_returns_by_task,
    format_score,
    format_without_largest,
    interval,
    p_value,
    short,
    table,
)
from benchmarks.paper.experiments import REFERENCES, SEEDS, SETTINGS, STAGES, TASKS, VARIANTS
from benchmarks.paper.scores import BEST_CHOICES, DATA, RANDOM_CHOICES, Scores, Study, paper_scores
from sb3_ppo_variants import PPOKLPen

# The paper's runs of a setting in a task
PAPER_SEEDS = 3
CHEETAH = "HalfCheetah-v4"
# The best setting of each kind in the paper, in pairs; the first of each has the higher score there
PAIRS = (
    ("clip_0.2", "none"),
    ("clip_0.2", "adaptive_kl_0.01"),
    ("clip_0.2", "fixed_kl_3"),
    ("adaptive_kl_0.01", "fixed_kl_3"),
)
# By the beginning of their names
PENALTIES = {"adaptive_kl": "Adaptive KL", "fixed_kl": "Fixed KL"}


def _difference_to_paper(scores: np.ndarray, paper: float, level: float = 0.95) -> tuple[float, float]:
    """The difference, and half the width of its interval if the paper's mean varies as ours would with as many seeds."""
    half_width = statistics.half_width(scores, level=level) * math.sqrt(1 + scores.shape[1] / PAPER_SEEDS)
    return float(statistics.mean(scores)) - paper, half_width


def _paper(setting: str, minus: str | None = None) -> str:
    scores = paper_scores()
    if not {setting, minus or setting} <= scores.keys():
        return "not given"
    return f"{scores[setting]:.2f}" if minus is None else f"{scores[setting] - scores[minus]:+.2f}"


def _label(setting: str, minus: str | None = None) -> str:
    label = REFERENCES[setting] if setting in REFERENCES else SETTINGS[setting].label
    return label if minus is None else f"{label}, minus {_label(minus)}"


def _returns_by_seed(scores: Scores, setting: str, env: str, variant: str = "paper") -> str:
    runs = zip(scores.returns_in(env, setting, variant), scores.ended_early(env, setting, variant), strict=True)
    return ", ".join(f"{format_return(score)}{EARLY if early else ''}" for score, early in runs)


def _equivalence(differences: Sequence[tuple[float, float]]) -> list[str]:
    """Cells: the first difference with its 90% interval, and margins within which two one-sided tests at 5% put each."""
    margins = [math.ceil(100 * (abs(difference) + half_width)) / 100 for difference, half_width in differences]
    return [interval(*differences[0], sign="+"), *(f"{margin:.2f}" for margin in margins)]


def _start(scores: Scores, env: str, variant: str) -> float:
    """The score of the policy before training, with actions that are bounded, or not, as in the variant."""
    if VARIANTS[variant].bounded_actions:
        return float(scores.returns_in(env, "untrained", "bounded_actions").mean())
    return float(scores.constants[env]["untrained"])


def _n_below_start(scores: Scores, setting: str, env: str, variant: str = "paper") -> int:
    """How many runs end with a score below that of the policy before training."""
    return int((scores.returns_in(env, setting, variant) < _start(scores, env, variant)).sum())


def _table_1(study: Study) -> str:
    """Table 1 beside the paper's, with the paper's number of seeds and with more."""
    three, ten, rows = study.table_1, study.ten_seeds, []
    for setting in three.settings():
        if setting == "policy_gradient":
            continue
        runs, paper = three.normalized(setting), paper_scores().get(setting)
        difference = "" if paper is None else interval(*_difference_to_paper(runs, paper), sign="+")
        more = format_mean(ten.normalized(setting)) if setting in ten.settings() else ""
        rows.append([_label(setting), _paper(setting), format_mean(runs), difference, more])
    return table(["setting", "paper", "here, 3 seeds", "here - paper", "here, 10 seeds"], rows)


def _policy_gradient(study: Study) -> str:
    """A footnote on the setting whose mean would hide all others."""
    runs = study.table_1.normalized("policy_gradient")
    middle, end = (format_score(float(function(runs))) for function in (statistics.median, statistics.mean))
    return f"Not in the table: L^PG over several epochs, {runs.size} runs with a median of {middle} and a mean of {end}."


def _equivalences(study: Study) -> str:
    """How near settings are to the paper, and the penalties to each other."""
    pair, paper, rows = PAIRS[-1], paper_scores(), []
    for label, scores in (("3", study.table_1), ("10", study.ten_seeds)):
        for setting in (name for name in scores.settings() if name in paper and name != "none"):
            readings = [scores.normalized(setting, best=best) for best in BEST_CHOICES]
            found = [_difference_to_paper(runs, paper[setting], level=0.9) for runs in readings]
            rows.append([f"{_label(setting)}, minus the paper", label, *_equivalence(found)])
    pairs = [[study.ten_seeds.normalized(name, best=best) for name in pair] for best in BEST_CHOICES]
    found = [(float(statistics.difference(*both)), statistics.half_width(*both, level=0.9)) for both in pairs]
    rows.append([_label(*pair), "10", *_equivalence(found)])
    header = ["difference", "seeds", "90% interval", "equivalent within"]
    return table([*header, "with the best setting as 1"], rows)


def _power(study: Study) -> str:
    """What tests of the pairs with three and ten seeds can find."""
    grid, rows = np.arange(1, 101) / 100, []
    for pair in PAIRS[1:]:
        difference = paper_scores()[pair[0]] - paper_scores()[pair[1]]
        both = [[scores.normalized(name) for name in pair] for scores in (study.table_1, study.ten_seeds)]
        found = [next(x for x in grid if statistics.power(x, *samples) >= 0.8) for samples in both]
        powers = [statistics.power(difference, *samples) for samples in both]
        rows.append([_label(*pair), _paper(*pair), *(f"{x:.2f}" for x in (*powers, *found))])
    header = ["", "paper's difference", "power for it, 3 seeds", "power for it, 10 seeds"]
    return table([*header, "found with power 0.80, 3 seeds", "found with power 0.80, 10 seeds"], rows)


class _Comparison(NamedTuple):
    """
    What the paper compares.

    :param label: what is less what
    :param paper: the difference there
    :param scores: of the one and of the other
    :param new: those with new seeds alone, if there are any
    """

    label: str
    paper: str
    scores: Sequence[np.ndarray]
    new: Sequence[np.ndarray] = ()


def _comparisons(study: Study) -> list[list[_Comparison]]:
    """Pairs of settings, kinds of settings, and L^PG: the groups within which p-values are adjusted."""
    three, ten, paper = study.table_1, study.ten_seeds, paper_scores()
    new = ten.only([run for run in ten.rows if run.seed not in SEEDS])

    def of(pair: tuple[str, str], *some: Scores) -> _Comparison:
        return _Comparison(_label(*pair), _paper(*pair), *([one.normalized(name) for name in pair] for one in some))

    def of_kind(kind: str) -> tuple[float, np.ndarray]:
        names = [name for name in paper if name.startswith(kind)]
        return float(np.mean([paper[name] for name in names])), np.mean([three.normalized(name) for name in names], axis=0)

    in_paper, clipping = of_kind("clip")
    kinds = []
    for kind, label in PENALTIES.items():
        other, penalty = of_kind(kind)
        title = f"Clipping, minus {label}: means over the settings"
        kinds.append(_Comparison(title, f"{in_paper - other:+.2f}", [clipping, penalty]))
    return [[of(pair, ten, new) for pair in PAIRS], kinds, [of(("none", "policy_gradient"), three)]]


def _pairs(study: Study) -> str:
    """Settings, and kinds of settings, that the paper compares."""
    rows = []
    for group in _comparisons(study):
        p_values = [p_value(*one.scores) for one in group]
        for one, p, adjusted in zip(group, p_values, statistics.holm(p_values), strict=True):
            cells = [format_difference(*one.scores), format_without_largest(*one.scores)]
            cells += [format_bootstrapped(statistics.probability_of_improvement, *one.scores)]
            cells += [f"{statistics.tasks_won(*one.scores)} of {len(TASKS)}"]
            cells += [format_p(p_value(*one.new)) if one.new else "", format_p(p), format_p(adjusted)]
            rows.append([one.label, str(one.scores[0].shape[1]), one.paper, *cells])
    header = [
        "",
        "seeds",
        "paper",
        "here",
        "without the task that contributes most",
        "probability of improvement",
        "tasks won",
    ]
    return table([*header, "p, seeds 3 to 9", "p, all seeds", "adjusted p"], rows)


def _against_clipping(scores: Scores) -> str:
    """Clipping at 0.2 against all other settings."""
    clipping, others = scores.normalized("clip_0.2"), [name for name in scores.settings() if name != "clip_0.2"]
    p_values = {name: p_value(clipping, scores.normalized(name)) for name in others}
    of_paper = [name for name in others if name in paper_scores()]
    adjusted = dict(zip(of_paper, statistics.holm([p_values[name] for name in of_paper]), strict=True))
    rows = [
        [
            _label(name),
            _paper("clip_0.2", name),
            format_difference(clipping, scores.normalized(name)),
            format_bootstrapped(statistics.probability_of_improvement, clipping, scores.normalized(name)),
            format_p(p_values[name]),
            format_p(adjusted[name]) if name in adjusted else "",
        ]
        for name in others
    ]
    return table(["against", "paper", "here", "probability of improvement", "p", "adjusted p"], rows)


def _order(scores: Scores) -> str:
    """Whether the settings have the order that they have in the paper."""
    rows = []
    for label, names in (
        ("those with clipping or a penalty", [name for name in paper_scores() if name != "none"]),
        ("all of the paper's", list(paper_scores())),
    ):
        papers = np.array([paper_scores()[name] for name in names])

        def correlation(*samples: np.ndarray, papers: np.ndarray = papers) -> np.ndarray:
            return statistics.rank_correlation(np.stack([statistics.mean(runs) for runs in samples], axis=-1), papers)

        rows.append([label, str(len(names)), format_bootstrapped(correlation, *(scores.normalized(name) for name in names))])
    return table(["settings", "number", "rank correlation with the paper's column"], rows)


def _distribution(study: Study) -> str:
    """The mean, and what single runs have little influence on, with bootstrapped intervals."""
    functions = (statistics.mean, statistics.interquartile_mean, statistics.median)
    rows = [
        [
            _label(name),
            str(scores.normalized(name).shape[1]),
            *(format_bootstrapped(one, scores.normalized(name)) for one in functions),
        ]
        for scores in (study.table_1, study.ten_seeds)
        for name in scores.settings()
    ]
    return table(["setting", "seeds", "mean", "interquartile mean", "median"], rows)


def _normalization(scores: Scores) -> str:
    """What is 0 and 1 in each task."""
    rows: list[list[str]] = []
    settings = [name for name in scores.settings() if name in paper_scores()]
    for env in scores.tasks:
        of_env = scores.constants[env]
        # Rounded in the file of the constants
        n_best = sum((abs(scores.returns_in(env, name) - of_env["best_run"]) < 1e-3).sum() for name in settings)
        holders = {name: _label(of_env[f"{name}_of"]) for name in BEST_CHOICES}
        holders["best_run"] = holders["best_run"] if n_best == 1 else f"{n_best} runs"
        best = [f"{format_return(of_env[name])} ({holder})" for name, holder in holders.items()]
        rows.append([short(env), *(format_return(of_env[name]) for name in RANDOM_CHOICES), *best])
    header = [*(f"0: {label}" for label in RANDOM_CHOICES.values()), *(f"1: {label}" for label in BEST_CHOICES.values())]
    return table(["task", *header], rows)


def _readings(scores: Scores) -> str:
    """Table 1 under each reading of what the paper leaves open."""
    choices = [(random, best) for random in RANDOM_CHOICES for best in BEST_CHOICES]
    rows = [
        [
            _label(name),
            _paper(name),
            *(format_mean(scores.normalized(name, random=random, best=best)) for random, best in choices),
        ]
        for name in scores.settings()
    ]
    labels = [f"0: {RANDOM_CHOICES[random]}; 1: {BEST_CHOICES[best]}" for random, best in choices]
    return table(["setting", "paper", *labels], rows)


def _no_clipping(scores: Scores) -> str:
    """What becomes of "no clipping or penalty", task by task."""
    both = [scores.normalized("none", random=random) for random in RANDOM_CHOICES]
    n_below = [_n_below_start(scores, "none", env) for env in scores.tasks]
    rows = [
        [short(env), _returns_by_seed(scores, "none", env), *(format_score(runs[i].mean()) for runs in both), str(n)]
        for i, (env, n) in enumerate(zip(scores.tasks, n_below, strict=True))
    ]
    rows.append(["all", "", *map(format_mean, both), f"{sum(n_below)} of {both[0].size}"])
    lowest = int(both[0].mean(axis=1).argmin())
    rows.append(
        [f"all but {short(scores.tasks[lowest])}", "", *(format_mean(np.delete(runs, lowest, axis=0)) for runs in both), ""]
    )
    header = ["task", "returns by seed", *(f"score if 0 is {label}" for label in RANDOM_CHOICES.values())]
    return table([*header, "runs below the policy before training"], rows)


def _variants(scores: Scores, whole: bool) -> list[tuple[str, str]]:
    """Settings with other details, ppo1's first; those with all tasks only, or also those on HalfCheetah alone."""
    there = {(run.setting, run.variant) for run in scores.rows if not whole or run.env != CHEETAH}
    names = [setting for setting in SETTINGS if len({variant for name, variant in there if name == setting}) > 1]
    return [(setting, variant) for setting in names for variant in VARIANTS if (setting, variant) in there]


def _details(study: Study) -> str:
    """What other conventions make of the scores, and of HalfCheetah."""
    scores, rows = study.details, []
    for setting, variant in _variants(scores, whole=False):
        cells = ["", "", ""]
        if (setting, variant) in _variants(scores, whole=True):
            own, papers = scores.normalized(setting, variant), scores.normalized(setting)
            comparison = ["", ""] if variant == "paper" else [format_difference(own, papers), format_p(p_value(own, papers))]
            cells = [format_mean(own), *comparison]
        start = _start(scores, CHEETAH, variant)
        gain = scores.returns_in(CHEETAH, setting, variant).mean() - start
        part = gain / (scores.constants[CHEETAH]["best_run"] - start) / len(scores.tasks)
        kl = np.concatenate([study.results.load(run).curves["kl"] for run in scores.runs(setting, CHEETAH, variant)])
        cells += [_returns_by_seed(scores, setting, CHEETAH, variant), str(_n_below_start(scores, setting, CHEETAH, variant))]
        cells += [format_score(part, sign="+"), f"{np.median(kl):.3g}"]
        rows.append([f"{_label(setting)}; {VARIANTS[variant].label}", *cells])
    header = ["", "score", "difference", "p", "HalfCheetah: returns by seed", "below the policy before training"]
    return table([*header, "part of the mean, if 0 is the policy before training", "median KL of an update"], rows)


def _by_task(scores: Scores, settings: Sequence[str]) -> str:
    """Mean returns and standard deviations over seeds in each task."""
    rows = [[_label(setting), *format_returns_by_task(scores, setting)] for setting in settings]
    return table(["", *map(short, scores.tasks)], rows)


def _details_by_task(scores: Scores) -> str:
    """The same of the settings with other details."""
    rows = [
        [f"{_label(setting)}; {VARIANTS[variant].label}", *format_returns_by_task(scores, setting, variant)]
        for setting, variant in _variants(scores, whole=True)
    ]
    return table(["", *map(short, scores.tasks)], rows)


def _adaptation(study: Study) -> str:
    """How well the adaptive penalty meets its target, over all tasks and updates."""
    low, high = inspect.signature(PPOKLPen).parameters["kl_coef_bounds"].default
    rows = []
    for setting in (name for name in SETTINGS if name.startswith("adaptive_kl")):
        curves = [study.results.load(run).curves for run in study.table_1.runs(setting)]
        kl = np.concatenate([curve["kl"] for curve in curves]) / SETTINGS[setting].kwargs["kl_target"]
        beta = np.concatenate([curve["kl_coef"] for curve in curves])
        is_below, is_above, is_far = kl < 1 / 1.5, kl > 1.5, (kl < 1 / 4) | (kl > 4)
        rows.append(
            [
                _label(setting),
                *(f"{np.mean(some):.0%}" for some in (is_below, ~is_below & ~is_above, is_above, is_far)),
                *(f"{number:.3g}" for number in (np.median(kl), kl.mean(), np.quantile(kl, 0.95), kl.max())),
                f"{beta.min():.2g} to {beta.max():.2g}",
                f"{((beta <= low) | (beta >= high)).sum()} of {len(beta)}",
            ]
        )
    header = ["", "below the band", "in it", "above it", "off by a factor of 4", "KL / d_targ: median", "mean", "95% quantile"]
    return table([*header, "largest", "beta", "updates with beta at a bound"], rows)


def _other_libraries(scores: Scores) -> str:
    """What the paper's Figure 3 and others report for clipping at 0.2, beside ours."""
    returns = scores.returns("clip_0.2")
    rows = [[f"**here** (-v4, {returns.shape[1]} seeds)", *map(format_return, returns.mean(axis=1))]]
    with (DATA / "other_libraries.csv").open(newline="") as file:
        for other in csv.DictReader(file):
            numbers = [format_return(float(other[env])) if other[env] else "" for env in scores.tasks]
            rows.append([f"[{other['library']}]({other['source']}) ({other['details']})", *numbers])
    return table(["", *map(short, scores.tasks)], rows)


def _parts(study: Study) -> str:
    """The parts of the study, and how many of their runs there are."""
    rows = [[stage, str(len(runs)), str(sum(run in study.rows for run in runs))] for stage, runs in STAGES.items()]
    return table(["part", "planned", "made"], rows)


def _ended_early(scores: Scores) -> str:
    """The runs that did not reach their end."""
    rows = [
        [_label(run.setting), VARIANTS[run.variant].label, short(run.env), str(run.seed), f"{row['steps']:,}"]
        for run, row in scores.rows.items()
        if row["diverged"]
    ]
    return table(["setting", "details", "task", "seed", "timesteps"], rows)


TABLES: dict[str, Callable[[Study], str]] = {
    "table_1": _table_1,
    "policy_gradient": _policy_gradient,
    "equivalence": _equivalences,
    "power": _power,
    "pairs": _pairs,
    "against_clipping": lambda study: _against_clipping(study.table_1),
    "order": lambda study: _order(study.table_1),
    "no_clipping": lambda study: _no_clipping(study.ten_seeds),
    "normalization": lambda study: _normalization(study.table_1),
    "readings": lambda study: _readings(study.table_1),
    "distribution": _distribution,
    "by_task": lambda study: _by_task(study.table_1, [*study.table_1.settings(), *REFERENCES]),
    "ten_seeds_by_task": lambda study: _by_task(study.ten_seeds, study.ten_seeds.settings()),
    "details": _details,
    "details_by_task": lambda study: _details_by_task(study.details),
    "adaptation": _adaptation,
    "other_libraries": lambda study: _other_libraries(study.ten_seeds),
    "parts": _parts,
    "ended_early": lambda study: _ended_early(study.everything),
}
