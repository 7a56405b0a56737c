"""The report docs/paper.md, made from the results."""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from benchmarks.paper import statistics
from benchmarks.paper.experiments import REFERENCES, SEEDS, SETTINGS, STAGES, VARIANTS, Run, command
from benchmarks.paper.results import Results
from benchmarks.paper.scores import BEST_CHOICES, DATA, RANDOM_CHOICES, Scores, paper_scores, read_constants, rows_of
from benchmarks.paper.training import LAST_EPISODES

REPORT = Path(__file__).parents[2] / "docs" / "paper.md"
# Its text
TEMPLATE = Path(__file__).parent / "report.md.j2"
# Updates over which the figure averages KL and beta: from one to the next, beta often goes up and down
WINDOW = 20
# Every interval and p-value is drawn by a generator of its own, from this seed
SEED = 0
LEVEL = 0.05
# The best setting of each kind in the paper, and pairs of them that it compares
PAIRS = (
    ("clip_0.2", "none"),
    ("clip_0.2", "adaptive_kl_0.01"),
    ("clip_0.2", "fixed_kl_3"),
    ("adaptive_kl_0.01", "fixed_kl_3"),
)
CHEETAH = "HalfCheetah-v4"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    A table in Markdown.

    :param header: names of the columns
    :param rows: the cells
    :return: the table
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def decimals(number: float, sign: str = "") -> str:
    """
    A normalised score in words.

    :param number: the score
    :param sign: "+" to write the sign of positive numbers
    :return: with two decimals
    """
    # No minus before a zero
    return f"{round(number, 2) + 0.0:{sign}.2f}"


def p_value(p: float) -> str:
    """
    A p-value in words.

    :param p: the p-value
    :return: with three decimals
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def digits(number: float) -> str:
    """
    A return in words.

    :param number: the return
    :return: with one decimal if it is small
    """
    return f"{number:.1f}" if abs(number) < 100 else f"{number:.0f}"


def estimate(statistic: Callable[..., np.ndarray], *samples: np.ndarray, sign: str = "", n_resamples: int = 10_000) -> str:
    """
    A statistic and its 95% interval in words.

    :param statistic: as that of ``statistics.bootstrap``
    :param samples: its arguments
    :param sign: "+" to write the sign of positive numbers
    :param n_resamples: of the bootstrap
    :return: the words
    """
    low, high = statistics.bootstrap(statistic, samples, np.random.default_rng(SEED), n_resamples)
    return f"{decimals(float(statistic(*samples)), sign)} ({decimals(float(low))} to {decimals(float(high))})"


def p_values(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """
    Whether the settings of each pair differ.

    :param pairs: scores of both
    :return: p-values by permutation, adjusted for the number of pairs
    """
    return statistics.holm([statistics.permutation_test(*pair, np.random.default_rng(SEED)) for pair in pairs])


def words(run: Run) -> str:
    """
    A run in words.

    :param run: the run
    :return: the words
    """
    return f"{SETTINGS[run.setting].label} on {run.env}, seed {run.seed}"


def report(results: Results, constants: Path, stages: Mapping[str, Sequence[Run]] = STAGES) -> str:
    """
    The report: on Table 1, whose runs must all be there, and on each further part of the study that is complete.

    :param results: the results
    :param constants: file of the constants of the normalisation
    :param stages: the parts of the study
    :return: Markdown
    :raises MissingRunsError: if a run of Table 1 has not been made
    """
    there = results.rows()
    n_done = {stage: sum(run in there for run in runs) for stage, runs in stages.items()}
    unfinished = {stage: f"{n_done[stage]} of {len(runs)}" for stage, runs in stages.items() if n_done[stage] < len(runs)}
    complete = [stage for stage in stages if stage not in unfinished]
    rows = rows_of(results, stages["table1"])
    for stage in complete:
        rows |= rows_of(results, stages[stage])
    everything = Scores(rows, read_constants(constants))
    scores = everything.only(stages["table1"])
    trained = {run: row for run, row in everything.rows.items() if run.setting in SETTINGS}
    example = next(iter(trained))
    environment = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        tasks=scores.tasks,
        seeds=SEEDS,
        last_episodes=LAST_EPISODES,
        level=LEVEL,
        window=WINDOW,
        table_1=table_1(scores),
        constants=constants_table(scores),
        diverged=[f"{words(run)}, after {row['steps']} timesteps" for run, row in everything.rows.items() if row["diverged"]],
        claims=claims(scores),
        rank_correlation=rank_correlation(scores),
        comparisons=comparisons(scores, [("clip_0.2", other) for other in scores.settings() if other != "clip_0.2"]),
        collapse=collapse(scores),
        by_task=by_task(scores),
        adaptation=adaptation(results, scores),
        sensitivity=sensitivity(scores),
        other_libraries=other_libraries(scores),
        **details(everything, [run for stage in complete if stage.startswith("details") for run in stages[stage]]),
        more_seeds=more_seeds(everything, [run for stage in complete if stage.startswith("seeds") for run in stages[stage]]),
        n_trained=len(trained),
        seconds=round(sum(row["seconds"] for row in trained.values()) / len(trained)),
        unfinished=unfinished,
        command=command(example, trained[example]["commit"]),
        commits=counts("commit", everything),
        versions=counts("versions", everything),
    )


def counts(column: str, scores: Scores) -> str:
    """
    How often each value of a column of the rows occurs.

    :param column: its name
    :param scores: the scores
    :return: Markdown
    """
    values = Counter(row[column] for row in scores.rows.values())
    return table([column, "runs"], [[value, str(count)] for value, count in values.most_common()])


def table_1(scores: Scores) -> str:
    """
    Table 1 beside the paper's.

    :param scores: the scores
    :return: Markdown
    """
    paper = paper_scores()
    rows = []
    for setting in scores.settings():
        normalized = scores.normalized(setting)
        rows.append(
            [
                SETTINGS[setting].label,
                f"{paper[setting]:.2f}" if setting in paper else "not given",
                estimate(statistics.mean, normalized),
                estimate(statistics.interquartile_mean, normalized),
                estimate(statistics.optimality_gap, normalized),
                str(normalized.size),
            ]
        )
    return table(["setting", "paper", "here: mean", "interquartile mean", "optimality gap", "runs"], rows)


def constants_table(scores: Scores) -> str:
    """
    The constants of the normalisation.

    :param scores: the scores
    :return: Markdown
    """
    rows = []
    for env in scores.tasks:
        constants = scores.constants[env]
        best = [f"{digits(constants[name])} ({SETTINGS[constants[f'{name}_of']].label})" for name in BEST_CHOICES]
        rows.append([env, *(digits(constants[name]) for name in RANDOM_CHOICES), *best])
    header = [
        "task",
        *(f"0: {label}" for label in RANDOM_CHOICES.values()),
        *(f"1: {label}" for label in BEST_CHOICES.values()),
    ]
    return table(header, rows)


def claims(scores: Scores) -> str:
    """
    What the paper says of Table 1, and what is found here.

    :param scores: the scores
    :return: Markdown
    """
    paper, settings = paper_scores(), scores.settings()
    in_table = [setting for setting in settings if setting in paper]
    rows = [highest(scores, in_table)] if "clip_0.2" in settings else []
    pairs = [pair for pair in PAIRS if set(pair) <= set(settings)]
    samples = [(scores.normalized(one), scores.normalized(other)) for one, other in pairs]
    for (one, other), pair, p in zip(pairs, samples, p_values(samples), strict=True):
        verdict = "cannot be told apart"
        if p < LEVEL:
            verdict = "reproduced" if statistics.difference(*pair) > 0 else "**the opposite**"
        found = f"{estimate(statistics.difference, *pair, sign='+')}; p: {p_value(p)}"
        label = f"{SETTINGS[one].label} is better than {SETTINGS[other].label}, by {paper[one] - paper[other]:.2f}"
        rows.append([label, found, verdict])
    if "none" in settings:
        rows += [negative(scores), worse_than_random(scores)]
    if {"none", "policy_gradient"} <= set(settings):
        ours = scores.normalized("policy_gradient"), scores.normalized("none")
        p = p_values([ours])[0]
        better = p < LEVEL and statistics.difference(*ours) > 0
        found = f"{estimate(statistics.difference, *ours, sign='+')}; p: {p_value(p)}"
        rows.append(
            ["L^PG is similar or worse than no clipping or penalty", found, "**the opposite**" if better else "reproduced"]
        )
    return table(["the paper", "here", "verdict"], rows)


def rank_correlation(scores: Scores) -> str:
    """
    The rank correlation of the paper's Table 1 and this one.

    :param scores: the scores
    :return: the correlation with its interval, empty if there are too few settings
    """
    printed = paper_scores()
    settings = [setting for setting in scores.settings() if setting in printed]
    if len(settings) < 3:
        return ""

    def with_the_paper(*samples: np.ndarray) -> np.ndarray:
        means = np.stack([statistics.mean(sample) for sample in samples], axis=-1)
        return statistics.rank_correlation(means, np.array([printed[setting] for setting in settings]))

    return estimate(with_the_paper, *map(scores.normalized, settings), n_resamples=2000)


def highest(scores: Scores, settings: Sequence[str]) -> list[str]:
    """
    Whether clipping at 0.2 is the best setting.

    :param scores: the scores
    :param settings: those of Table 1
    :return: a row of the table of claims
    """
    means = {setting: statistics.mean(scores.normalized(setting)) for setting in settings}
    ranking = sorted(means, key=lambda setting: -means[setting])
    place = ranking.index("clip_0.2") + 1
    better = [setting for setting in ranking if means[setting] > means["clip_0.2"]]
    significant = p_values([(scores.normalized(setting), scores.normalized("clip_0.2")) for setting in better]) < LEVEL
    verdict = "reproduced" if not better else "**the opposite**" if significant.any() else "cannot be told"
    found = f"it is in place {place} of {len(settings)}" + (f", the best is: {SETTINGS[ranking[0]].label}" if better else "")
    return ["Clipping at 0.2 has the highest score", found, verdict]


def negative(scores: Scores) -> list[str]:
    """
    Whether "no clipping or penalty" has a negative score.

    :param scores: the scores
    :return: a row of the table of claims
    """
    found, verdicts = [], set()
    for random, label in RANDOM_CHOICES.items():
        normalized = scores.normalized("none", random=random)
        low, high = statistics.bootstrap(statistics.mean, [normalized], np.random.default_rng(SEED))
        verdicts.add("reproduced" if high < 0 else "**the opposite**" if low > 0 else "cannot be told")
        found.append(f"{estimate(statistics.mean, normalized)} if 0 is {label}")
    verdict = verdicts.pop() if len(verdicts) == 1 else "depends on what is 0"
    return [f"No clipping or penalty has a negative score, {paper_scores()['none']:.2f}", "; ".join(found), verdict]


def worse_than_random(scores: Scores) -> list[str]:
    """
    Whether HalfCheetah makes that score negative.

    :param scores: the scores
    :return: a row of the table of claims
    """
    claim = "On HalfCheetah it leads to a very negative score, worse than the policy before training"
    if CHEETAH not in scores.tasks:
        return [claim, "not run", "cannot be told"]
    n_collapsed, n_runs = collapsed(scores, "none", CHEETAH)
    verdict = "reproduced" if n_collapsed == n_runs else "not reproduced" if n_collapsed == 0 else "in some runs"
    return [claim, f"in {n_collapsed} of {n_runs} runs ({returns_by_seed(scores, 'none', CHEETAH)})", verdict]


def collapsed(scores: Scores, setting: str, env: str, variant: str = "paper") -> tuple[int, int]:
    """
    How many runs end with a score below that of the policy before training.

    :param scores: the scores
    :param setting: name of the setting
    :param env: the task
    :param variant: name of the variant
    :return: that number, and the number of runs
    """
    task = scores.tasks.index(env)
    returns = scores.returns(setting, variant)[task]
    return int((returns < scores.constant("untrained")[task]).sum()), len(returns)


def returns_by_seed(scores: Scores, setting: str, env: str, variant: str = "paper") -> str:
    """
    The scores of the runs of a setting in a task, in words.

    :param scores: the scores
    :param setting: name of the setting
    :param env: the task
    :param variant: name of the variant
    :return: the words
    """
    return ", ".join(digits(score) for score in scores.returns(setting, variant)[scores.tasks.index(env)])


def comparisons(scores: Scores, pairs: Sequence[tuple[str, str]]) -> str:
    """
    Pairs of settings.

    :param scores: the scores
    :param pairs: names of both
    :return: Markdown
    """
    paper = paper_scores()
    samples = [(scores.normalized(one), scores.normalized(other)) for one, other in pairs]
    rows = []
    for (one, other), pair, p in zip(pairs, samples, p_values(samples), strict=True):
        verdict = "cannot tell" if p >= LEVEL else "yes" if statistics.difference(*pair) > 0 else "no, it is worse"
        known = one in paper and other in paper
        rows.append(
            [
                f"{SETTINGS[one].label} against: {SETTINGS[other].label}",
                f"{paper[one] - paper[other]:+.2f}" if known else "not given",
                estimate(statistics.difference, *pair, sign="+"),
                estimate(statistics.probability_of_improvement, *pair, n_resamples=2000),
                p_value(p),
                verdict,
                f"{statistics.power(paper[one] - paper[other], *pair):.2f}" if known else "",
            ]
        )
    header = ["", "paper: difference", "here: difference", "probability of improvement", "p", "better?", "power"]
    return table(header, rows)


def collapse(scores: Scores) -> str:
    """
    In which tasks "no clipping or penalty" fails.

    :param scores: the scores
    :return: Markdown
    """
    if "none" not in scores.settings():
        return ""
    rows = []
    for task, env in enumerate(scores.tasks):
        means = [scores.normalized("none", random=random)[task].mean() for random in RANDOM_CHOICES]
        returns = returns_by_seed(scores, "none", env)
        rows.append([env, returns, *(decimals(mean) for mean in means), f"{collapsed(scores, 'none', env)[0]}"])
    header = ["task", "returns by seed", *(f"score if 0 is {label}" for label in RANDOM_CHOICES.values())]
    return table([*header, "runs below the policy before training"], rows)


def details(everything: Scores, runs: Sequence[Run]) -> dict[str, str]:
    """
    Which detail makes "no clipping or penalty" collapse.

    :param everything: the scores
    :param runs: the runs with other details
    :return: Markdown of two tables, empty if there are no such runs
    """
    if not runs:
        return {"details": "", "details_by_task": ""}
    seeds = {run.seed for run in runs}
    scores = everything.only([run for run in everything.rows if run.seed in seeds])
    others = sorted(
        {(run.setting, run.variant) for run in runs}, key=lambda key: (key[0] != "none", list(VARIANTS).index(key[1]))
    )
    samples = [(scores.normalized(setting, variant), scores.normalized(setting)) for setting, variant in others]
    adjusted = dict(zip(others, p_values(samples), strict=True))
    rows, by_task = [], []
    for setting in dict.fromkeys(setting for setting, _ in others):
        for variant in ("paper", *(variant for name, variant in others if name == setting)):
            own, papers = scores.normalized(setting, variant), scores.normalized(setting)
            cells = ["", ""]
            if variant != "paper":
                cells = [estimate(statistics.difference, own, papers, sign="+"), p_value(adjusted[setting, variant])]
            label = f"{SETTINGS[setting].label}; {VARIANTS[variant].label}"
            rows.append([label, estimate(statistics.mean, own), *cells, *cheetah_cells(scores, setting, variant)])
            by_task.append([label, *means_by_task(scores, setting, variant)])
    header = ["", "score", "difference", "p", "HalfCheetah: returns by seed", "of them below the policy before training"]
    return {
        "details": table(header, rows),
        "details_by_task": table(["", *short(scores.tasks)], by_task),
    }


def cheetah_cells(scores: Scores, setting: str, variant: str) -> list[str]:
    """
    What became of HalfCheetah.

    :param scores: the scores
    :param setting: name of the setting
    :param variant: name of the variant
    :return: cells of a table
    """
    if CHEETAH not in scores.tasks:
        return ["", ""]
    n_collapsed, n_runs = collapsed(scores, setting, CHEETAH, variant)
    return [returns_by_seed(scores, setting, CHEETAH, variant), f"{n_collapsed} of {n_runs}"]


def means_by_task(scores: Scores, setting: str, variant: str = "paper") -> list[str]:
    """
    The mean return and the deviation over seeds in each task.

    :param scores: the scores
    :param setting: name of the setting
    :param variant: name of the variant
    :return: cells of a table
    """
    return [f"{digits(runs.mean())} ± {digits(runs.std(ddof=1))}" for runs in scores.returns(setting, variant)]


def by_task(scores: Scores) -> str:
    """
    Scores by task.

    :param scores: the scores
    :return: Markdown
    """
    rows = [[SETTINGS[setting].label, *means_by_task(scores, setting)] for setting in scores.settings()]
    rows += [[reference.label, *means_by_task(scores, name)] for name, reference in REFERENCES.items()]
    return table(["", *short(scores.tasks)], rows)


def short(tasks: Sequence[str]) -> list[str]:
    """
    Ids of tasks without the version, which is that of all.

    :param tasks: the ids
    :return: the names
    """
    return [env.removesuffix("-v4") for env in tasks]


def adaptation(results: Results, scores: Scores) -> str:
    """
    How well the adaptive penalty meets its target.

    :param results: the results, with the KL of each update
    :param scores: the scores
    :return: Markdown, empty if there are no such settings
    """
    rows = []
    for setting in scores.settings():
        if not setting.startswith("adaptive"):
            continue
        target = SETTINGS[setting].kwargs["target_kl"]
        cells = []
        for env in scores.tasks:
            runs = [run for run in scores.rows if (run.variant, run.setting, run.env) == ("paper", setting, env)]
            kl = np.concatenate([results.load(run).curves["kl"] for run in runs]) / target
            below, above = np.mean(kl < 1 / 1.5), np.mean(kl > 1.5)
            cells.append(f"{below:.0%} / {1 - below - above:.0%} / {above:.0%}; {kl.max():.1f}")
        rows.append([SETTINGS[setting].label, *cells])
    return table(["", *short(scores.tasks)], rows) if rows else ""


def sensitivity(scores: Scores) -> str:
    """
    Table 1 under each reading of what the paper leaves open.

    :param scores: the scores
    :return: Markdown
    """
    choices = [(random, best) for random in RANDOM_CHOICES for best in BEST_CHOICES]
    paper = paper_scores()
    rows = [
        [
            SETTINGS[setting].label,
            f"{paper[setting]:.2f}" if setting in paper else "not given",
            *(estimate(statistics.mean, scores.normalized(setting, random=random, best=best)) for random, best in choices),
        ]
        for setting in scores.settings()
    ]
    header = ["setting", "paper", *(f"0: {RANDOM_CHOICES[random]}; 1: {BEST_CHOICES[best]}" for random, best in choices)]
    return table(header, rows)


def other_libraries(scores: Scores) -> str:
    """
    What others report for clipping at 0.2, beside ours.

    :param scores: the scores
    :return: Markdown, empty if the setting has not been run
    """
    if "clip_0.2" not in scores.settings():
        return ""
    with (DATA / "other_libraries.csv").open(newline="") as file:
        others = list(csv.DictReader(file))
    returns = scores.returns("clip_0.2")
    rows = [[f"**here** (-v4, {returns.shape[1]} seeds)", *(digits(mean) for mean in returns.mean(axis=1))]]
    for other in others:
        numbers = [digits(float(other[env])) if other[env] else "" for env in scores.tasks]
        rows.append([f"[{other['library']}]({other['source']}) ({other['details']})", *numbers])
    return table(["", *short(scores.tasks)], rows)


def more_seeds(everything: Scores, runs: Sequence[Run]) -> dict[str, Any]:
    """
    Table 1 with more seeds, for the settings that have them.

    :param everything: the scores
    :param runs: the runs with other seeds
    :return: the seeds, and Markdown of two tables; empty if there are no such runs
    """
    if not runs:
        return {}
    settings = {run.setting for run in runs}
    scores = everything.only([run for run in everything.rows if run.variant == "paper" and run.setting in settings])
    pairs = [pair for pair in PAIRS if set(pair) <= settings]
    return {
        "seeds": sorted({run.seed for run in scores.rows}),
        "table_1": table_1(scores),
        "comparisons": comparisons(scores, pairs) if pairs else "",
    }
