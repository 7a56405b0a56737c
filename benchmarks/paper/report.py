"""The report docs/paper.md, made from the results."""

import copy
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.paper import statistics
from benchmarks.paper.experiments import MORE_SEEDS_SETTINGS, REFERENCES, SETTINGS, STAGES, TASKS, VARIANTS, Run
from benchmarks.paper.results import Results

DATA = Path(__file__).parent / "data"
REPORT = Path(__file__).parents[2] / "docs" / "paper.md"
# Score of a random policy and best score of each task, once and for all, so that a score does not drift as runs are added
CONSTANTS = DATA / "normalization.csv"
RANDOM_CHOICES = {"uniform": "uniform actions", "untrained": "the policy before training"}
BEST_CHOICES = {"best_run": "the best run", "best_setting": "the best setting"}
# The interval of every number is drawn by a generator of its own, from this seed
SEED = 0


class MissingRunsError(Exception):
    """Runs that the report needs have not been made."""


class Scores:
    """
    The scores of a part of the results.

    :param results: the results
    :param runs: the runs of the part
    :raises MissingRunsError: if one has not been made
    """

    def __init__(self, results: Results, runs: Sequence[Run]) -> None:
        rows = results.read_table()
        missing = [run.name for run in runs if run not in rows]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise MissingRunsError(f"{len(missing)} of {len(runs)} runs are missing: {', '.join(missing[:5])}{more}")
        self.rows = {run: rows[run] for run in runs}
        self._count()

    def _count(self) -> None:
        self.tasks = [env for env in TASKS if any(run.env == env for run in self.rows)]
        self.by_run = {run: float(row["score"]) for run, row in self.rows.items()}

    def part(self, runs: Sequence[Run]) -> "Scores":
        """
        Some of the scores.

        :param runs: which
        :return: those
        """
        part = copy.copy(self)
        part.rows = {run: self.rows[run] for run in runs}
        part._count()
        return part

    def of(self, setting: str, variant: str = "paper") -> np.ndarray:
        """
        The scores of a setting.

        :param setting: its name
        :param variant: name of the variant
        :return: shape ``(n_tasks, n_seeds)``
        """
        return np.array(
            [
                [score for run, score in self.by_run.items() if (run.variant, run.setting, run.env) == (variant, setting, env)]
                for env in self.tasks
            ]
        )

    def settings(self, variant: str = "paper") -> list[str]:
        """
        The settings that there are.

        :param variant: name of the variant
        :return: names, in the order of Table 1
        """
        present = {run.setting for run in self.by_run if run.variant == variant}
        return [setting for setting in SETTINGS if setting in present]


def freeze(results: Results, runs: Sequence[Run], path: Path) -> None:
    """
    Write the constants of the normalisation.

    :param results: the results
    :param runs: the runs of Table 1
    :param path: the file
    :raises FileExistsError: if it exists: scores would change that have been reported
    """
    scores = Scores(results, runs)
    in_table = [scores.of(setting) for setting in scores.settings() if setting in paper_scores()]
    columns = {
        "env": scores.tasks,
        **{name: scores.of(name).mean(axis=1) for name in REFERENCES},
        "best_run": np.max([runs.max(axis=1) for runs in in_table], axis=0),
        "best_setting": np.max([runs.mean(axis=1) for runs in in_table], axis=0),
    }
    with path.open("x", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([env, *(f"{value:.4f}" for value in values)] for env, *values in zip(*columns.values(), strict=True))


def read_constants(path: Path, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """
    The constants of the normalisation.

    :param path: the file that ``freeze`` wrote
    :param tasks: the tasks
    :return: for each column, a number for each task
    """
    with path.open(newline="") as file:
        rows = {row["env"]: row for row in csv.DictReader(file)}
    return {name: np.array([float(rows[env][name]) for env in tasks]) for name in (*RANDOM_CHOICES, *BEST_CHOICES)}


def paper_scores() -> dict[str, float]:
    """Table 1 of the paper: the score of each setting."""
    with (DATA / "table1.csv").open(newline="") as file:
        return {row["setting"]: float(row["score"]) for row in csv.DictReader(file)}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    A table in Markdown.

    :param header: names of the columns
    :param rows: the cells
    :return: the table
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(low: float, high: float) -> str:
    """
    An interval in words.

    :param low: lower end
    :param high: upper end
    :return: the words
    """
    return f"{low:.2f} to {high:.2f}"


def digits(number: float) -> str:
    """
    A return in words.

    :param number: the return
    :return: with one decimal if it is small
    """
    return f"{number:.1f}" if abs(number) < 100 else f"{number:.0f}"


def table_1(scores: Scores, constants: dict[str, np.ndarray], random: str = "uniform", best: str = "best_run") -> str:
    """
    Table 1 beside the paper's.

    :param scores: the scores
    :param constants: of the normalisation
    :param random: which column of the constants is 0
    :param best: which column of the constants is 1
    :return: Markdown
    """
    paper = paper_scores()
    rows = []
    for setting in scores.settings():
        normalized = statistics.normalize(scores.of(setting), constants[random], constants[best])
        low, high = statistics.bootstrap(statistics.mean, [normalized], np.random.default_rng(SEED))
        iqm = statistics.bootstrap(statistics.interquartile_mean, [normalized], np.random.default_rng(SEED))
        rows.append(
            [
                SETTINGS[setting].label,
                f"{paper[setting]:.2f}" if setting in paper else "not given",
                f"**{statistics.mean(normalized):.2f}** ({interval(low, high)})",
                f"{statistics.interquartile_mean(normalized):.2f} ({interval(*iqm)})",
                f"{statistics.optimality_gap(normalized):.2f}",
                str(normalized.size),
            ]
        )
    header = ["setting", "paper", "here: mean (95% interval)", "interquartile mean (95% interval)", "optimality gap", "runs"]
    return table(header, rows)


def comparisons(scores: Scores, constants: dict[str, np.ndarray], to: str) -> str:
    """
    All settings against one.

    :param scores: the scores
    :param constants: of the normalisation
    :param to: the one
    :return: Markdown
    """

    def normalized(setting: str) -> np.ndarray:
        return statistics.normalize(scores.of(setting), constants["uniform"], constants["best_run"])

    paper = paper_scores()
    rows = []
    for setting in scores.settings():
        if setting == to:
            continue
        pair = [normalized(to), normalized(setting)]

        def difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            return statistics.mean(ours) - statistics.mean(theirs)

        low, high = statistics.bootstrap(difference, pair, np.random.default_rng(SEED))
        ends = statistics.bootstrap(statistics.probability_of_improvement, pair, np.random.default_rng(SEED), 2000)
        verdict = "better" if low > 0 else "worse" if high < 0 else "cannot tell"
        rows.append(
            [
                SETTINGS[setting].label,
                f"{paper[to] - paper[setting]:+.2f}" if setting in paper else "not given",
                f"{difference(*pair):+.2f} ({interval(low, high)})",
                f"{statistics.probability_of_improvement(*pair):.2f} ({interval(*ends)})",
                verdict,
            ]
        )
    header = [
        f"{SETTINGS[to].label}, against",
        "paper: difference",
        "here: difference (95% interval)",
        "probability of improvement",
        "verdict",
    ]
    return table(header, rows)


def by_task(scores: Scores, keys: Sequence[tuple[str, str]], labels: Sequence[str]) -> str:
    """
    Scores by task.

    :param scores: the scores
    :param keys: pairs of setting and variant
    :param labels: their names
    :return: Markdown
    """
    rows = []
    for (setting, variant), label in zip(keys, labels, strict=True):
        runs = scores.of(setting, variant)
        deviations = runs.std(axis=1, ddof=1) if runs.shape[1] > 1 else np.full(len(runs), np.nan)
        cells = (f"{digits(mean)} ± {digits(std)}" for mean, std in zip(runs.mean(axis=1), deviations, strict=True))
        rows.append([label, *cells])
    return table(["", *(env.removesuffix("-v4") for env in scores.tasks)], rows)


def sensitivity(scores: Scores, constants: dict[str, np.ndarray]) -> str:
    """
    Table 1 under each reading of what the paper leaves open.

    :param scores: the scores
    :param constants: of the normalisation
    :return: Markdown
    """
    choices = [(random, best) for random in RANDOM_CHOICES for best in BEST_CHOICES]
    rows = [
        [
            SETTINGS[setting].label,
            *(
                f"{statistics.mean(statistics.normalize(scores.of(setting), constants[random], constants[best])):.2f}"
                for random, best in choices
            ),
        ]
        for setting in scores.settings()
    ]
    return table(["setting", *(f"0: {RANDOM_CHOICES[r]}; 1: {BEST_CHOICES[b]}" for r, b in choices)], rows)


def other_libraries(scores: Scores) -> str:
    """
    What others report for clipping at 0.2, beside ours.

    :param scores: the scores
    :return: Markdown
    """
    with (DATA / "other_libraries.csv").open(newline="") as file:
        others = {row.pop("env"): row for row in csv.DictReader(file)}
    ours = scores.of("clip_0.2")
    rows = [
        [env.removesuffix("-v4"), f"**{digits(runs.mean())}**"] + [value or "-" for value in others[env].values()]
        for env, runs in zip(scores.tasks, ours, strict=True)
    ]
    return table(["task", f"here, -v4, {ours.shape[1]} seeds", *next(iter(others.values()))], rows)


def summary(scores: Scores, constants: dict[str, np.ndarray]) -> str:
    """
    Which numbers of the paper lie in the intervals found here.

    :param scores: the scores
    :param constants: of the normalisation
    :return: Markdown
    """
    inside: list[str] = []
    outside: list[str] = []
    for setting, score in paper_scores().items():
        if setting not in scores.settings():
            continue
        normalized = statistics.normalize(scores.of(setting), constants["uniform"], constants["best_run"])
        low, high = statistics.bootstrap(statistics.mean, [normalized], np.random.default_rng(SEED))
        (inside if low <= score <= high else outside).append(SETTINGS[setting].label)
    return "\n".join(
        [
            f"- The paper's number lies in the 95% interval of ours: {'; '.join(inside) or 'none'}.",
            f"- It lies outside: {'; '.join(outside) or 'none'}.",
        ]
    )


PROTOCOL = """\
## Protocol

| choice | source |
|---|---|
| 7 tasks, 1M timesteps, seeds 0, 1, 2; score: mean return of the last 100 training episodes | section 6.1 |
| two hidden layers of 64 tanh units, value function not shared, no entropy bonus | section 6.1 |
| T = 2048, Adam 3e-4, 10 epochs, minibatches of 64, gamma 0.99, lambda 0.95 | Table 3 |
| the step size is constant | nothing else is stated; ppo1's script for MuJoCo lets it fall linearly |
| beta starts at 1 and is halved or doubled after an update whose mean KL leaves [d_targ / 1.5, 1.5 d_targ] | section 4 |
| one actor | not stated; ppo1's default |
| observations by running mean and deviation (at least 0.1), clipped to ±5 | ppo1 |
| their statistics are updated between rollout and optimisation | ppo1 |
| rewards as they are | ppo1 |
| actions not clipped before the environment; the simulation clamps the forces | ppo1 in 2017 |
| advantages standardised once a rollout | ppo1 |
| gradients not clipped, value function not clipped | ppo1 |
| log std a free parameter from 0; weights normal, scaled to norm 1 per unit, 0.01 in the last policy layer; no bias | ppo1 |
| Adam's epsilon 1e-5 | ppo1; 1e-8 at its release |
| the end at a time limit counts as an end | ppo1, which knew no other |

Differences that remain: Gymnasium's -v4 tasks on today's MuJoCo instead of Gym's -v1 on MuJoCo 1.31; PyTorch and its random
numbers. The weight of the value function's loss, which the paper does not state, is 1 as in ppo1. beta stays within 1e-6 and
1e6. The first action of a rollout is chosen by the new policy, not by the one before the update.
"""


def report(results: Results, runs: Sequence[Run], constants_path: Path, command: str) -> str:
    """
    The report.

    :param results: the results
    :param runs: the runs that it is about: those of Table 1, and of other parts of the study
    :param constants_path: file of the constants of the normalisation
    :param command: what made it
    :return: Markdown
    :raises MissingRunsError: if one of the runs has not been made
    """
    everything = Scores(results, runs)
    scores = everything.part([run for run in STAGES["table1"] if run in everything.by_run])
    constants = read_constants(constants_path, scores.tasks)
    settings = scores.settings()
    parts = [
        "# Table 1 of the PPO paper, reproduced",
        f"Made by `{command}` from the rows of [runs.csv](../benchmarks/results/table1/runs.csv); do not edit. "
        "Any row can be made again:\n"
        "`python -m benchmarks.paper run --variants VARIANT --settings SETTING --envs ENV --seeds SEED --results /tmp/again`.",
        "## Table 1",
        "Scores are shifted and scaled in each task so that uniformly random actions have 0 and the best run 1 "
        "([normalization.csv](../benchmarks/paper/data/normalization.csv)), and averaged over all runs, as in section 6.1. "
        "Intervals are 95%, by a bootstrap over the seeds of each task. With three seeds, such intervals are too narrow; the "
        "paper gives none for its own numbers, which are of three seeds, too.",
        table_1(scores, constants),
        summary(scores, constants),
        diverged(everything),
        "![performance profile](figures/performance_profile.svg)",
        "### Which of them differ",
        "The paper's best setting, clipping at 0.2, against each other one: its score minus the other's, and the probability "
        "that a run of it has the better score. One verdict in twenty is wrong by chance.",
        comparisons(scores, constants, to="clip_0.2"),
        "## Scores by task",
        "Mean return of the last 100 episodes, ± the deviation over seeds.",
        by_task(
            scores,
            [(name, "paper") for name in (*settings, *REFERENCES)],
            [SETTINGS[name].label for name in settings] + [setting.label for setting in REFERENCES.values()],
        ),
        "![learning curves](figures/learning_curves.svg)",
        "## What the paper leaves open",
        "What is 0 (a random policy may act uniformly, or be the policy before training) and what is 1 (the best run, or the "
        "best setting's mean):",
        sensitivity(scores, constants),
        "## Clipping at 0.2 elsewhere",
        "As those projects report it, in raw returns after 1M timesteps; protocols differ.",
        other_libraries(scores),
        details(everything, constants),
        more_seeds(everything, constants),
        "## Figures 1 and 2 of the paper, and the adaptive penalty",
        "Figure 1: a term of the clipped surrogate, equation (7), as a function of the ratio.",
        "![figure 1](figures/figure1.svg)",
        "Figure 2: the objectives along the line between the parameters before and after the first update.",
        "![figure 2](figures/figure2.svg)",
        "KL of the updates and beta: geometric means over the seeds of each task and over 20 updates. Gray is the band in "
        "which beta stays as it is.",
        "![KL and beta](figures/kl.svg)",
        PROTOCOL,
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def diverged(scores: Scores) -> str:
    """
    The runs that ended early.

    :param scores: the scores
    :return: Markdown
    """
    names = [f"{run.name} after {row['steps']} timesteps" for run, row in scores.rows.items() if row["diverged"] == "True"]
    if not names:
        return ""
    return f"These runs ended with numbers that are not finite; their episodes until then count: {'; '.join(names)}."


def details(scores: Scores, constants: dict[str, np.ndarray]) -> str:
    """
    Which detail makes "no clipping or penalty" collapse.

    :param scores: the scores
    :param constants: of the normalisation
    :return: Markdown, empty if those runs are not part of the report
    """
    if not any(run.variant != "paper" for run in scores.by_run):
        return ""
    seeds = {run.seed for run in scores.by_run if run.variant != "paper"}
    scores = scores.part([run for run in scores.by_run if run.seed in seeds])
    keys = [("none", variant) for variant in VARIANTS] + [("clip_0.2", variant) for variant in ("paper", "sb3")]
    labels = [f"{SETTINGS[setting].label}; {VARIANTS[variant].label}" for setting, variant in keys]
    rows = []
    for (setting, variant), label in zip(keys, labels, strict=True):
        normalized = statistics.normalize(scores.of(setting, variant), constants["uniform"], constants["best_run"])
        low, high = statistics.bootstrap(statistics.mean, [normalized], np.random.default_rng(SEED))
        rows.append([label, f"**{statistics.mean(normalized):.2f}** ({interval(low, high)})"])
    return "\n\n".join(
        [
            "## Which detail makes the difference",
            "The study above follows the authors' code. Here, conventions of Stable-Baselines3 take its place, three together "
            "and each alone.",
            table(["setting and convention", "normalised score (95% interval)"], rows),
            by_task(scores, keys, labels),
        ]
    )


def more_seeds(scores: Scores, constants: dict[str, np.ndarray]) -> str:
    """
    Table 1 with ten seeds, for the settings that have them.

    :param scores: the scores
    :param constants: of the normalisation
    :return: Markdown, empty if those runs are not part of the report
    """
    settings = {setting for setting in MORE_SEEDS_SETTINGS if set(STAGES[f"seeds_{setting}"]) & scores.by_run.keys()}
    if not settings:
        return ""
    part = scores.part([run for run in scores.by_run if run.setting in settings and run.variant == "paper"])
    text = ["## Ten seeds", table_1(part, constants)]
    if len(settings) > 1:
        text.append(comparisons(part, constants, to="clip_0.2"))
    return "\n\n".join(text)
