"""The figures of docs/paper.md: Figures 1 and 2 of the paper, and what the runs show."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from matplotlib.ticker import NullLocator
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.paper import statistics
from benchmarks.paper.experiments import SETTINGS, STAGES, Run
from benchmarks.paper.report import WINDOW
from benchmarks.paper.results import Results
from benchmarks.paper.scores import Scores, read_constants, rows_of
from benchmarks.paper.training import LAST_EPISODES, ObservationFilter, make_env, make_model
from sb3_ppo_variants.kl import distribution_parameters, kl_from_parameters
from sb3_ppo_variants.loss import standardize
from sb3_ppo_variants.objectives import clipped_surrogate, conservative_policy_iteration
from sb3_ppo_variants.rollout import frozen_copy

mpl.use("Agg")
import matplotlib.pyplot as plt

LINES = ("-", "--", ":", "-.")
COLORS = ("C0", "C1", "C2", "C3")
MARKERS = "osd^vxP"
# Kinds of settings
FAMILIES = ("clip", "adaptive_kl", "fixed_kl", "none", "policy_gradient")
EPSILON = 0.2


def family(setting: str) -> str:
    """
    The kind of a setting.

    :param setting: its name
    :return: name in ``FAMILIES``
    """
    return next(name for name in FAMILIES if setting.startswith(name))


def rows_of_kinds(settings: Sequence[str]) -> list[list[str]]:
    """
    Settings in the rows in which they are drawn.

    :param settings: names
    :return: the same, without empty rows
    """
    return [row for row in ([name for name in settings if family(name) == kind] for kind in FAMILIES) if row]


def style(setting: str) -> dict[str, Any]:
    """
    How the line of a setting is drawn among those of its kind: they can be told apart in black and white, too.

    :param setting: its name
    :return: arguments of matplotlib's plot
    """
    number = [name for name in SETTINGS if name.startswith(family(setting))].index(setting)
    look = {"color": COLORS[number], "marker": MARKERS[number], "linestyle": LINES[number]}
    # At different places
    return {**look, "markersize": 4, "markevery": (0.05 * number, 0.2), "label": SETTINGS[setting].label}


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
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None}, dpi=150)
        figure.savefig(directory / f"{name}.png", dpi=120)
        plt.close(figure)


def surrogate_of_ratio() -> Any:
    """Figure 1: a term of L^CLIP as a function of the ratio, for an advantage of either sign."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3))
    ratio = th.linspace(0, 2, 401)
    for axes, advantage in zip(panels, (1.0, -1.0), strict=True):
        advantages = th.full_like(ratio, advantage)
        axes.plot(ratio, clipped_surrogate(ratio, advantages, EPSILON), "C0-", label="$L^{CLIP}$, equation (7)")
        axes.plot(ratio, conservative_policy_iteration(ratio, advantages), "C1:", label="$L^{CPI}$, equation (6)")
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
    old_policy = frozen_copy(model.policy)
    old_policy.load_state_dict(old)
    with th.no_grad():
        old_parameters = distribution_parameters(old_policy.get_distribution(samples.observations))
        for position in positions:
            model.policy.load_state_dict({name: old[name] + position * (new[name] - old[name]) for name in old})
            _, log_prob, _ = model.policy.evaluate_actions(samples.observations, samples.actions)
            ratio = th.exp(log_prob - samples.old_log_prob)
            distribution = model.policy.get_distribution(samples.observations)
            terms = (
                kl_from_parameters(distribution, old_parameters, distribution_parameters(distribution)),
                conservative_policy_iteration(ratio, advantages),
                th.clamp(ratio, 1 - EPSILON, 1 + EPSILON) * advantages,
                clipped_surrogate(ratio, advantages, EPSILON),
            )
            for name, term in zip(names, terms, strict=True):
                values[name].append(term.mean().item())
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
    Returns over training: a row for each kind of setting, a column for each task; the mean over seeds of the running score
    (last 100 episodes), and the range of the seeds. Clipping at 0.2 is gray in the other rows.

    :param results: the results
    :param scores: the scores of Table 1's runs
    :param points: points of a curve
    :return: the figure
    """
    settings = scores.settings()
    rows = rows_of_kinds(settings)
    size = (2.4 * len(scores.tasks) + 2.5, 2.2 * len(rows) + 0.8)
    figure, panels = plt.subplots(len(rows), len(scores.tasks), figsize=size, squeeze=False, sharex=True)
    for column, env in enumerate(scores.tasks):
        random, best = scores.constants[env]["uniform"], scores.constants[env]["best_run"]
        curves = {
            setting: [results.load(run) for run in scores.rows if (run.setting, run.env) == (setting, env)]
            for setting in settings
        }
        # A run that has ended early keeps its last score
        grid = np.linspace(0, max(curve.row["steps"] for some in curves.values() for curve in some), points + 1)[1:]
        values = {name: np.array([running_score(curve.curves, grid) for curve in some]) for name, some in curves.items()}
        for axes, row in zip(panels[:, column], rows, strict=True):
            if row is not rows[0] and family(row[0]) not in ("none", "policy_gradient"):
                axes.sharey(panels[0, column])
            if "clip_0.2" in values and "clip_0.2" not in row:
                axes.plot(grid, values["clip_0.2"].mean(axis=0), color="0.6", linewidth=3, label=SETTINGS["clip_0.2"].label)
            for setting in row:
                axes.plot(grid, values[setting].mean(axis=0), **style(setting))
                low, high = values[setting].min(axis=0), values[setting].max(axis=0)
                axes.fill_between(grid, low, high, color=style(setting)["color"], alpha=0.15, linewidth=0)
            lowest = min(values[setting].min() for setting in row)
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
        panels[0, column].set_title(env.removesuffix("-v4"), fontsize=10)
        panels[-1, column].set_xlabel("timesteps")
    for axes in panels[:, 0]:
        axes.set_ylabel("return")
    for axes in panels[:, -1]:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
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

    rows = rows_of_kinds(scores.settings())
    figure, panels = plt.subplots(1, len(rows), figsize=(4 * len(rows), 4.6), squeeze=False, sharey=True)
    for axes, row in zip(panels[0], rows, strict=True):
        if "clip_0.2" in scores.settings() and "clip_0.2" not in row:
            gray = {"color": "0.6", "linewidth": 3, "label": SETTINGS["clip_0.2"].label}
            axes.plot(thresholds, profile(scores.normalized("clip_0.2")), **gray)
        for setting in row:
            normalized = scores.normalized(setting)
            axes.plot(thresholds, profile(normalized), **style(setting))
            low, high = statistics.bootstrap(profile, [normalized], np.random.default_rng(0), 1000)
            axes.fill_between(thresholds, low, high, color=style(setting)["color"], alpha=0.15, linewidth=0)
        if all(scores.normalized(setting).min() > 0 for setting in row):
            axes.set_xlim(left=0)
        axes.set_xlabel("normalised score")
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    panels[0, 0].set_ylabel("fraction of runs above it")
    return figure


def kl_and_beta(results: Results, scores: Scores) -> Any:
    """
    KL of the updates and beta over training, of the settings with adaptive beta: geometric means over the seeds of each task
    and over ``WINDOW`` updates, single updates as dots, and the band in which beta stays as it is.

    :param results: the results
    :param scores: the scores of Table 1's runs
    :return: the figure
    """
    settings = [setting for setting in scores.settings() if family(setting) == "adaptive_kl"]
    figure, panels = plt.subplots(2, len(settings), figsize=(4 * len(settings), 6), squeeze=False, sharey="row")
    for column, setting in enumerate(settings):
        target = SETTINGS[setting].kwargs["target_kl"]
        for i, env in enumerate(scores.tasks):
            runs = [run for run in scores.rows if (run.setting, run.env) == (setting, env)]
            curves = [results.load(run).curves for run in runs]
            for axes, name in zip(panels[:, column], ("kl", "kl_coef"), strict=True):
                for curve in curves:
                    dots = np.arange(len(curve[name])) + 1
                    axes.plot(dots, curve[name], ".", color="0.8", markersize=1, rasterized=True, zorder=0)
                means = running_geometric_mean([curve[name] for curve in curves], WINDOW)
                look = {"color": f"C{i}", "linestyle": LINES[i % 4], "marker": MARKERS[i], "markevery": 0.15, "markersize": 4}
                axes.plot(np.arange(len(means)) + WINDOW, means, linewidth=1.2, label=env, **look)
        panels[0, column].axhspan(target / 1.5, target * 1.5, color="gray", alpha=0.3)
        panels[0, column].set_title(SETTINGS[setting].label, fontsize=10)
        panels[1, column].set_xlabel("update")
        for axes in panels[:, column]:
            axes.set_yscale("log")
    panels[0, 0].set_ylabel("KL in nats (gray: the band)")
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
