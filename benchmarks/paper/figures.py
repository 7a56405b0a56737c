"""The figures of docs/paper.md: Figures 1 and 2 of the paper, and what the runs show."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from matplotlib.ticker import EngFormatter, NullLocator
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.paper import statistics
from benchmarks.paper.experiments import KINDS, SETTINGS, STAGES, Run, kind_of
from benchmarks.paper.results import Results
from benchmarks.paper.scores import Scores, read_constants, rows_of
from benchmarks.paper.training import LAST_EPISODES, ObservationFilter, make_env, make_model
from sb3_ppo_variants.kl import closed_form, kl_from_parameters
from sb3_ppo_variants.loss import standardize
from sb3_ppo_variants.objectives import Terms, clipped_surrogate, conservative_policy_iteration

mpl.use("Agg")
import matplotlib.pyplot as plt

LINES = ("-", "--", ":", "-.")
COLORS = ("C0", "C1", "C2", "C3")
MARKERS = "osd^vxP"
EPSILON = 0.2
COEFFICIENTS = {"clip_range": EPSILON}
# Updates over which the figure averages KL and beta: from one to the next, beta often goes up and down
WINDOW = 20
# Clipping at 0.2 among settings of another kind
GRAY = {"color": "0.6", "linewidth": 3, "label": "clipping at 0.2"}


def by_kind(settings: Sequence[str]) -> list[list[str]]:
    """
    Settings as they are drawn together.

    :param settings: names
    :return: those of each kind that there is
    """
    together = ([name for name in settings if kind_of(name) == kind] for kind in KINDS)
    return [names for names in together if names]


def style(setting: str) -> dict[str, Any]:
    """
    How the line of a setting is drawn among those of its kind: they can be told apart in black and white, too.

    :param setting: its name
    :return: arguments of matplotlib's plot
    """
    number = [name for name in SETTINGS if name.startswith(kind_of(setting))].index(setting)
    look = {"color": COLORS[number], "marker": MARKERS[number], "linestyle": LINES[number]}
    # At different places
    return {**look, "markersize": 4, "markevery": (0.05 * number, 0.2), "label": SETTINGS[setting].label.split(", ")[-1]}


def draw_interval(axes: Any, x: np.ndarray, low: np.ndarray, high: np.ndarray, setting: str) -> None:
    """
    Shade an interval around the line of a setting, with edges that can be told apart in black and white.

    :param axes: matplotlib's axes
    :param x: positions
    :param low: lower ends
    :param high: upper ends
    :param setting: name of the setting
    """
    look = style(setting)
    axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
    for edge in (low, high):
        axes.plot(x, edge, color=look["color"], linestyle=look["linestyle"], linewidth=0.5)


def add_legend(axes: Any, kind: Sequence[str]) -> None:
    """
    A legend above a panel, so that it hides nothing.

    :param axes: matplotlib's axes
    :param kind: names of the settings of one kind
    """
    look = {"fontsize": 8, "title_fontsize": 9, "handlelength": 3.0, "frameon": False}
    axes.legend(title=KINDS[kind_of(kind[0])], loc="lower center", bbox_to_anchor=(0.5, 1.0), **look)


def of_runs(scores: Scores) -> str:
    """
    What the files of the figures say of the runs that they are drawn from, so that a check can tell if there are others.

    :param scores: the scores of Table 1's runs
    :return: a text with the hash of their rows
    """
    rows = json.dumps([row for _, row in sorted(scores.rows.items())])
    return f"Runs {hashlib.sha256(rows.encode()).hexdigest()}"


def draw(results: Results, directory: Path, constants: Path, runs: Sequence[Run] = STAGES["table1"]) -> None:
    """
    Draw all figures.

    :param results: the results
    :param directory: where the figures go, as SVG and PNG
    :param constants: file of the constants of the normalisation
    :param runs: the runs of Table 1
    :raises MissingRunsError: if a run has not been made
    """
    scores = Scores(rows_of(results, runs), read_constants(constants))
    directory.mkdir(parents=True, exist_ok=True)
    # The same file for the same figure
    mpl.rcParams.update(
        {"svg.hashsalt": "sb3_ppo_variants", "figure.constrained_layout.use": True, "legend.handlelength": 5.0}
    )
    figures: dict[str, Callable[[], Any]] = {
        "figure1": surrogate_of_ratio,
        "figure2": lambda: surrogates_along_the_update(*interpolate()),
        "learning_curves": lambda: learning_curves(results, scores),
        "performance_profile": lambda: performance_profile(scores),
        "kl": lambda: kl_and_beta(results, scores),
    }
    for name, function in figures.items():
        figure = function()
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None, "Description": of_runs(scores)}, dpi=150)
        figure.savefig(directory / f"{name}.png", dpi=120)
        plt.close(figure)


def surrogate_of_ratio() -> Any:
    """Figure 1: a term of L^CLIP as a function of the ratio, for an advantage of either sign."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3))
    ratio = th.linspace(0, 2, 401)
    for axes, advantage in zip(panels, (1.0, -1.0), strict=True):
        terms = Terms(ratio.log(), th.zeros_like(ratio), th.full_like(ratio, advantage), kl=lambda: ratio)
        axes.plot(ratio, clipped_surrogate(terms, COEFFICIENTS), "C0-", label="$L^{CLIP}$, equation (7)")
        axes.plot(ratio, conservative_policy_iteration(terms, COEFFICIENTS), "C1:", label="$L^{CPI}$, equation (6)")
        axes.plot(1, advantage, "ko", label="before the update")
        bound = 1 + EPSILON if advantage > 0 else 1 - EPSILON
        axes.axvline(bound, color="gray", linestyle="--", linewidth=1)
        axes.annotate(rf"$1{'+' if advantage > 0 else '-'}\epsilon$", (bound, axes.get_ylim()[0]), ha="left", va="bottom")
        axes.set_title(f"A {'>' if advantage > 0 else '<'} 0")
        axes.set_xlabel("ratio r")
        axes.set_ylabel("objective / |A|")
        axes.legend(fontsize=8)
    return figure


def interpolate(env: str = "Hopper-v4", points: int = 61) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """
    Objectives along the line from theta_old to theta after the first update of PPO, and a bit beyond, on the rollout that the
    update learned from: Figure 2.

    :param env: id of the task
    :param points: number of points
    :return: positions on the line, 0 for theta_old and 1 for theta; the mean of each objective at each
    """
    run = Run("paper", "clip_0.2", env, 0)
    model = make_model(run, make_vec_env(lambda: make_env(run), seed=run.seed), compile=False)
    assert isinstance(model, OnPolicyAlgorithm)
    assert isinstance(model.env, VecNormalize)
    old = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(model.n_steps, callback=ObservationFilter(model.env))
    new = {name: value.clone() for name, value in model.policy.state_dict().items()}
    samples = next(model.rollout_buffer.get(None))
    advantages = standardize(samples.advantages)
    positions = np.linspace(-0.25, 1.75, points)
    names = (
        r"KL[$\pi_{old}$, $\pi$]",
        "$L^{CPI}$, equation (6)",
        r"E[clip(r, 1 - $\epsilon$, 1 + $\epsilon$) A]",
        "$L^{CLIP}$, equation (7)",
    )
    values: dict[str, list[float]] = {name: [] for name in names}
    with th.no_grad():
        model.policy.load_state_dict(old)
        old_parameters = closed_form(model.policy.get_distribution(samples.observations)).parameters
        for position in positions:
            model.policy.load_state_dict({name: old[name] + position * (new[name] - old[name]) for name in old})
            _, log_prob, _ = model.policy.evaluate_actions(samples.observations, samples.actions)
            distribution = model.policy.get_distribution(samples.observations)
            kl = partial(kl_from_parameters, old_parameters, closed_form(distribution))
            terms = Terms(log_prob, samples.old_log_prob, advantages, kl)
            lines = (
                terms.kl,
                conservative_policy_iteration(terms, COEFFICIENTS),
                th.clamp(terms.ratio, 1 - EPSILON, 1 + EPSILON) * advantages,
                clipped_surrogate(terms, COEFFICIENTS),
            )
            for name, line in zip(names, lines, strict=True):
                values[name].append(line.mean().item())
    return positions, {name: np.array(means) for name, means in values.items()}


def surrogates_along_the_update(positions: np.ndarray, values: dict[str, np.ndarray]) -> Any:
    """
    Figure 2.

    :param positions: from ``interpolate``
    :param values: from ``interpolate``
    :return: the figure
    """
    figure, axes = plt.subplots(figsize=(6, 4))
    for i, ((name, means), line) in enumerate(zip(values.items(), LINES, strict=True)):
        axes.plot(positions, means, color=f"C{i}", linestyle=line, label=name)
    axes.axvline(0, color="gray", linewidth=1)
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_xticks([0, 1], [r"$\theta_{old}$", r"$\theta$"])
    axes.set_xlabel("linear interpolation of the parameters")
    axes.set_ylabel("mean over the rollout")
    axes.set_title("The first update on Hopper-v4", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def learning_curves(results: Results, scores: Scores, points: int = 50) -> Any:
    """
    Returns over training: a row for each task, a column for each kind of setting; the mean over seeds of the running score
    (last 100 episodes), and the range of the seeds. Clipping at 0.2 is gray in the other columns.

    :param results: the results
    :param scores: the scores of Table 1's runs
    :param points: points of a curve
    :return: the figure
    """
    settings = scores.settings()
    kinds = by_kind(settings)
    size = (2.1 * len(kinds), 1.7 * len(scores.tasks) + 1.2)
    figure, panels = plt.subplots(len(scores.tasks), len(kinds), figsize=size, squeeze=False, sharex=True)
    for row, env in zip(panels, scores.tasks, strict=True):
        random, best = scores.constants[env]["uniform"], scores.constants[env]["best_run"]
        curves = {
            setting: [results.load(run) for run in scores.rows if (run.setting, run.env) == (setting, env)]
            for setting in settings
        }
        # A run that has ended early keeps its last score
        grid = np.linspace(0, max(curve.row["steps"] for some in curves.values() for curve in some), points + 1)[1:]
        values = {name: np.array([running_score(curve.curves, grid) for curve in some]) for name, some in curves.items()}
        for axes, kind in zip(row, kinds, strict=True):
            if kind is not kinds[0] and kind_of(kind[0]) not in ("none", "policy_gradient"):
                axes.sharey(row[0])
                axes.tick_params(labelleft=False)
            if "clip_0.2" in values and "clip_0.2" not in kind:
                axes.plot(grid, values["clip_0.2"].mean(axis=0), **GRAY)
            for setting in kind:
                axes.plot(grid, values[setting].mean(axis=0), **style(setting))
                draw_interval(axes, grid, values[setting].min(axis=0), values[setting].max(axis=0), setting)
            lowest = min(values[setting].min() for setting in kind)
            if lowest < random - 2 * (best - random):
                # A collapse would hide all else
                axes.set_yscale("symlog", linthresh=best - random, linscale=2)
                first, last = (math.ceil(math.log10(number)) for number in (best - random, -lowest))
                decades = range(first, last + 1, max((last - first) // 2, 1))
                # The best of Reacher is too near to 0
                ticks = {round(best): f"{best:.0f}"} | ({} if abs(best) < 0.2 * (best - random) else {0: "0"})
                ticks |= {-(10**decade): f"$-10^{decade}$" for decade in decades}
                axes.set_yticks(list(ticks), list(ticks.values()))
                axes.yaxis.set_minor_locator(NullLocator())
        row[0].set_ylabel(env.removesuffix("-v4"), fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("timesteps")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes, kind in zip(panels[0], kinds, strict=True):
        add_legend(axes, kind)
    return figure


def running_score(curves: dict[str, np.ndarray], grid: np.ndarray) -> np.ndarray:
    """
    The mean return of the last 100 episodes at points of a training.

    :param curves: the curves of a run
    :param grid: timesteps
    :return: the scores, NaN before the first episode has ended
    """
    ends = np.cumsum(curves["lengths"], dtype=np.int64)
    total = np.concatenate([[0.0], np.cumsum(curves["returns"], dtype=np.float64)])
    last = np.searchsorted(ends, grid, side="right")
    first = np.maximum(last - LAST_EPISODES, 0)
    with np.errstate(invalid="ignore"):
        return (total[last] - total[first]) / (last - first)


def performance_profile(scores: Scores) -> Any:
    """
    The fraction of runs above each normalised score, with 95% bootstrap intervals: a panel for each kind of setting. Clipping
    at 0.2 is gray in the others.

    :param scores: the scores of Table 1's runs
    :return: the figure
    """
    thresholds = np.linspace(-0.5, 1.05, 156)

    def profile(normalized: np.ndarray) -> np.ndarray:
        return statistics.performance_profile(normalized, thresholds)

    kinds = by_kind(scores.settings())
    n_rows = math.ceil(len(kinds) / 3)
    figure, panels = plt.subplots(n_rows, 3, figsize=(10, 3.4 * n_rows), squeeze=False, sharey=True)
    for axes, kind in zip(panels.flat, kinds, strict=False):
        if "clip_0.2" in scores.settings() and "clip_0.2" not in kind:
            axes.plot(thresholds, profile(scores.normalized("clip_0.2")), **GRAY)
        for setting in kind:
            normalized = scores.normalized(setting)
            axes.plot(thresholds, profile(normalized), **style(setting))
            draw_interval(
                axes, thresholds, *statistics.bootstrap(profile, [normalized], np.random.default_rng(0), 1000), setting
            )
        if all(scores.normalized(setting).min() > 0 for setting in kind):
            axes.set_xlim(left=0)
        axes.set_xlabel("normalised score")
        axes.set_ylabel("fraction of runs with more")
        add_legend(axes, kind)
    for axes in panels.flat[len(kinds) :]:
        axes.remove()
    return figure


def kl_and_beta(results: Results, scores: Scores) -> Any:
    """
    KL of the updates as a multiple of d_targ, and beta, over training, of the settings with adaptive beta: geometric means
    over the seeds of each task and over ``WINDOW`` updates, single updates as dots, and the band in which beta stays as it is.

    :param results: the results
    :param scores: the scores of Table 1's runs
    :return: the figure
    """
    settings = [setting for setting in scores.settings() if kind_of(setting) == "adaptive_kl"]
    # Few updates are beyond; the table of docs/paper.md has the largest
    limits = np.array([1 / 32, 32])
    figure, panels = plt.subplots(2, len(settings), figsize=(10, 7), squeeze=False, sharey="row", sharex=True)
    for column, setting in enumerate(settings):
        target = SETTINGS[setting].kwargs["kl_target"]
        for i, env in enumerate(scores.tasks):
            runs = [run for run in scores.rows if (run.setting, run.env) == (setting, env)]
            curves = [results.load(run).curves for run in runs]
            for axes, name, unit in zip(panels[:, column], ("kl", "kl_coef"), (target, 1), strict=True):
                for curve in curves:
                    updates, dots = np.arange(len(curve[name])) + 1, curve[name] / unit
                    dots = dots.clip(*limits) if name == "kl" else dots
                    axes.plot(updates, dots, ".", color="0.75", markersize=1, rasterized=True, zorder=0)
                means = running_geometric_mean([curve[name] / unit for curve in curves], WINDOW)
                look = {"color": f"C{i}", "linestyle": LINES[i % 4], "marker": MARKERS[i], "markersize": 4}
                place = {"markevery": (0.02 * i, 0.15), "label": env.removesuffix("-v4")}
                axes.plot(np.arange(len(means)) + WINDOW, means, linewidth=1.2, **look, **place)
        for bound in (1 / 1.5, 1.5):
            panels[0, column].axhline(bound, color="black", linestyle=(0, (6, 4)), linewidth=1)
        panels[0, column].set_title(SETTINGS[setting].label, fontsize=10)
        panels[1, column].set_xlabel("update (2,048 timesteps)")
        for axes in panels[:, column]:
            axes.set_yscale("log")
    panels[0, 0].set_ylim(limits * (0.9, 1.1))
    ticks = ("1/32", "1/8", "1/2", "1", "2", "8", "32")
    panels[0, 0].set_yticks([1 / 32, 1 / 8, 1 / 2, 1, 2, 8, 32], ticks)
    panels[0, 0].yaxis.set_minor_locator(NullLocator())
    panels[0, 0].set_ylabel("KL / d_targ")
    panels[1, 0].set_ylabel("beta")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def running_geometric_mean(curves: Sequence[np.ndarray], window: int) -> np.ndarray:
    """
    The geometric mean over several curves and over the last values of each.

    :param curves: positive numbers, of different lengths where a run has ended early
    :param window: number of values
    :return: the means, of which there are ``window - 1`` fewer than in the longest curve, but at least one
    """
    logs = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(logs, curves, strict=True):
        row[: len(curve)] = np.log(curve)
    window = min(window, logs.shape[1])
    return np.exp(np.convolve(np.nanmean(logs, axis=0), np.full(window, 1 / window), mode="valid"))
