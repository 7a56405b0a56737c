"""The figures of docs/paper.md, docs/figure3.md and README.md, Figures 1 to 3 of the paper among them."""

import hashlib
import json
from collections.abc import Mapping
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
from benchmarks.paper.experiments import MORE_SEEDS, SEEDS, SETTINGS, TASKS, Run
from benchmarks.paper.figure3 import PPO
from benchmarks.paper.figure3_report import LABELS, readings
from benchmarks.paper.results import Results
from benchmarks.paper.scores import Scores, paper_scores
from benchmarks.paper.training import LAST_EPISODES, ObservationFilter, make_env, make_model
from sb3_ppo_variants.kl import closed_form, kl_from_parameters
from sb3_ppo_variants.loss import standardize
from sb3_ppo_variants.objectives import Terms, clipped_surrogate, conservative_policy_iteration

mpl.use("Agg")
import matplotlib.pyplot as plt

# The same file for the same figure
mpl.rcParams.update({"svg.hashsalt": "sb3_ppo_variants", "figure.constrained_layout.use": True, "legend.frameon": False})

LINES = ("-", "--", ":", "-.")
MARKERS = "osd^vx"
# Of a learning curve
POINTS = 50
EPSILON = 0.2
COEFFICIENTS = {"clip_range": EPSILON}
# The best setting of each kind in the paper, which have ten seeds, and how they are drawn: in black and white they differ, too
BEST = {"clip_0.2": ("C0", "-"), "adaptive_kl_0.01": ("C1", "--"), "fixed_kl_3": ("C2", "-."), "none": ("C3", ":")}
# Updates that share a quantile of KL and beta
WINDOW = 20


def of_runs(scores: Scores) -> str:
    """
    What the files of the figures say of the runs that they are drawn from, so that a check can tell if there are others.

    :param scores: the scores of these runs
    :return: a text with the hash of their rows
    """
    rows = json.dumps([row for _, row in sorted(scores.rows.items())])
    return f"Runs {hashlib.sha256(rows.encode()).hexdigest()}"


def save(figures: Mapping[str, Any], scores: Scores, directory: Path) -> None:
    """
    Save figures as SVG and PDF.

    :param figures: by name
    :param scores: those that they are drawn from
    :param directory: where they go
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None, "Description": of_runs(scores)})
        figure.savefig(directory / f"{name}.pdf", metadata={"CreationDate": None, "Subject": of_runs(scores)})
        plt.close(figure)


def draw(results: Results, scores: Scores, directory: Path) -> None:
    """
    Draw the figures of docs/paper.md and README.md.

    :param results: the results
    :param scores: the scores of Table 1, with as many seeds as each setting has
    :param directory: where the figures go
    """
    figures = {
        "table1": table_1(scores),
        "learning_curves": learning_curves(results, scores),
        "performance_profile": performance_profile(scores),
        "kl": kl_and_beta(results, scores),
        "figure1": surrogate_of_ratio(),
        "figure2": surrogates_along_the_update(*interpolate()),
    }
    save(figures, scores, directory)


def table_1(scores: Scores) -> Any:
    """
    Table 1: means with 95% intervals, and the paper's numbers. The lowest has an axis of its own.

    :param scores: with as many seeds as each setting has
    :return: the figure
    """
    settings = [name for name in scores.settings() if name in paper_scores()]
    places = -np.arange(len(settings))
    three = scores.only([run for run in scores.rows if run.seed in SEEDS])
    with_more = {run.setting for run in scores.rows if run.seed in MORE_SEEDS}
    more = scores.only([run for run in scores.rows if run.setting in with_more])
    figure, panels = plt.subplots(1, 2, figsize=(8, 4.2), sharey=True, width_ratios=[1, 2.6])
    for axes in panels:
        papers = [paper_scores()[name] for name in settings]
        axes.plot(papers, places + 0.26, "D", color="black", markersize=7, fillstyle="none", label="the paper, 3 seeds")
        for some, lower, look in (
            (more, 0.0, {"fmt": "s", "color": "C0", "label": "here, 10 seeds"}),
            (three, 0.26, {"fmt": "o", "color": "C1", "label": "here, the 3 seeds of the protocol"}),
        ):
            there = [
                (place, some.normalized(name)) for place, name in zip(places, settings, strict=True) if name in some.settings()
            ]
            means, widths = ([one(runs) for _, runs in there] for one in (statistics.mean, statistics.half_width))
            axes.errorbar(means, [place - lower for place, _ in there], xerr=widths, markersize=5, capsize=2, **look)
        axes.grid(axis="x", color="0.9")
        for place in places[1:] + 0.5:
            axes.axhline(place, color="0.93", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set_yticks(places, [SETTINGS[name].label for name in settings])
    panels[0].set_ylim(places[-1] - 0.6, 0.6)
    panels[0].set_xlim(-1.75, 0.4)
    panels[1].set_xlim(0.52, 0.93)
    panels[1].set_xticks([0.6, 0.7, 0.8, 0.9])
    figure.supxlabel("mean normalised score (0: uniform actions, 1: the best run)", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def surrogate_of_ratio() -> Any:
    """Figure 1: a term of L^CLIP as a function of the ratio, for an advantage of either sign."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.3))
    ratio = th.linspace(0, 2, 401)
    for axes, advantage in zip(panels, (1.0, -1.0), strict=True):
        terms = Terms(ratio.log(), th.zeros_like(ratio), th.full_like(ratio, advantage), kl=lambda: ratio)
        axes.plot(ratio, clipped_surrogate(terms, COEFFICIENTS), "C0-", label="$L^{CLIP}$, equation (7)")
        axes.plot(ratio, conservative_policy_iteration(terms, COEFFICIENTS), "C1:", label="$L^{CPI}$, equation (6)")
        axes.plot(1, advantage, "ko", label="before the update")
        bound = 1 + EPSILON if advantage > 0 else 1 - EPSILON
        axes.axvline(bound, color="gray", linestyle="--", linewidth=1)
        axes.set_xticks([0, bound, 2], ["0", rf"$1{'+' if advantage > 0 else '-'}\epsilon$", "2"])
        axes.set_title(f"A {'>' if advantage > 0 else '<'} 0")
        axes.set_xlabel("ratio r")
        axes.set_ylabel("objective / |A|")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def interpolate(points: int = 61) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """
    Objectives along the line from theta_old to theta after the first update of PPO, and a bit beyond, on the rollout that the
    update learned from: Figure 2.

    :param points: number of points
    :return: positions on the line, 0 for theta_old and 1 for theta; the mean of each objective at each
    """
    run = Run("paper", "clip_0.2", "Hopper-v4", 0)
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
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    for i, ((name, means), line) in enumerate(zip(values.items(), LINES, strict=True)):
        axes.plot(positions, means, color=f"C{i}", linestyle=line, label=name)
    for place in (0, 1):
        axes.axvline(place, color="gray", linewidth=1, zorder=0)
    axes.set_xticks([0, 1], [r"$\theta_{old}$", r"$\theta$"])
    axes.set_xlabel("linear interpolation of the parameters")
    axes.set_ylabel("mean over the rollout")
    figure.legend(loc="outside right center", handlelength=3)
    return figure


def learning_curves(results: Results, scores: Scores) -> Any:
    """
    Normalised scores over training, a panel for each task: for the best setting of each kind, the median over seeds of the
    running score (last 100 episodes), and the middle half of the seeds.

    :param results: the results
    :param scores: with as many seeds as each setting has
    :return: the figure
    """
    figure, panels = plt.subplots(2, 4, figsize=(10, 4.8), sharex=True, sharey=True)
    grid = np.linspace(0, max(row["steps"] for row in scores.rows.values()), POINTS + 1)[1:]
    for axes, env in zip(panels.flat, scores.tasks, strict=False):
        random, best = scores.constants[env]["uniform"], scores.constants[env]["best_run"]
        for setting, (color, line) in BEST.items():
            curves = running_scores(results, scores, setting, env, grid)
            if len(curves):
                low, middle, high = np.quantile((curves - random) / (best - random), [0.25, 0.5, 0.75], axis=0)
                axes.plot(grid, middle, color=color, linestyle=line, label=SETTINGS[setting].label)
                axes.fill_between(grid, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_title(env.removesuffix("-v4"), fontsize=10)
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.axhline(1, color="0.8", linewidth=0.8, zorder=0)
    panels[0, 0].set_ylim(-0.5, 1.1)
    panels[0, 0].xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in panels.flat[len(scores.tasks) :]:
        axes.axis("off")
    # Below it, there is none
    panels[0, -1].tick_params(labelbottom=True)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, handlelength=3)
    figure.supxlabel("timesteps", fontsize=10)
    figure.supylabel("normalised score", fontsize=10)
    return figure


def running_scores(results: Results, scores: Scores, setting: str, env: str, grid: np.ndarray) -> np.ndarray:
    """
    The mean return of the last 100 episodes at points of each training.

    :param results: the results
    :param scores: those of the runs that count
    :param setting: name of the setting
    :param env: id of the task
    :param grid: timesteps
    :return: the scores, shape ``(n_seeds, len(grid))``, NaN before the first episode has ended
    """
    rows = []
    for run in scores.runs(setting, env):
        curves = results.load(run).curves
        ends = np.cumsum(curves["lengths"], dtype=np.int64)
        total = np.concatenate([[0.0], np.cumsum(curves["returns"], dtype=np.float64)])
        last = np.searchsorted(ends, grid, side="right")
        first = np.maximum(last - LAST_EPISODES, 0)
        with np.errstate(invalid="ignore"):
            rows.append((total[last] - total[first]) / (last - first))
    return np.array(rows)


def performance_profile(scores: Scores) -> Any:
    """
    The fraction of runs above each normalised score, with 95% bootstrap intervals, of the best setting of each kind.

    :param scores: with as many seeds as each setting has
    :return: the figure
    """
    thresholds = np.linspace(-0.5, 1.1, 161)
    profile = partial(statistics.performance_profile, thresholds=thresholds)
    figure, axes = plt.subplots(figsize=(7, 3.8))
    for setting, (color, line) in BEST.items():
        if setting in scores.settings():
            normalized = scores.normalized(setting)
            low, high = statistics.bootstrap(profile, [normalized], np.random.default_rng(0), 1000)
            axes.plot(thresholds, profile(normalized), color=color, linestyle=line, label=SETTINGS[setting].label)
            axes.fill_between(thresholds, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("normalised score")
    axes.set_ylabel("fraction of runs with more")
    axes.grid(color="0.93")
    figure.legend(loc="outside upper center", ncols=2, handlelength=3)
    return figure


def kl_and_beta(results: Results, scores: Scores) -> Any:
    """
    KL of the updates as a multiple of d_targ, and beta, over training, of the settings with adaptive beta: quantiles over all
    runs and over ``WINDOW`` updates, and the band in which beta stays as it is.

    :param results: the results
    :param scores: with as many seeds as each setting has
    :return: the figure
    """
    settings = [setting for setting in scores.settings() if setting.startswith("adaptive_kl")]
    figure, panels = plt.subplots(2, len(settings), figsize=(10, 5), squeeze=False, sharey="row", sharex=True)
    for column, setting in zip(panels.T, settings, strict=True):
        curves = [results.load(run).curves for run in scores.runs(setting)]
        for axes, name, unit in zip(column, ("kl", "kl_coef"), (SETTINGS[setting].kwargs["kl_target"], 1), strict=True):
            starts = range(0, max(len(curve[name]) for curve in curves), WINDOW)
            windows = [np.concatenate([curve[name][start : start + WINDOW] for curve in curves]) / unit for start in starts]
            quantiles = np.array([np.quantile(window, [0.05, 0.25, 0.5, 0.75, 0.95]) for window in windows]).T
            # To the end of the last window
            edges = np.append(starts, starts[-1] + WINDOW)
            quantiles = np.concatenate([quantiles, quantiles[:, -1:]], axis=1)
            for low, high, alpha, label in ((0, 4, 0.2, "5% to 95%"), (1, 3, 0.35, "25% to 75%")):
                ends = quantiles[low], quantiles[high]
                axes.fill_between(edges, *ends, color="C0", alpha=alpha, linewidth=0, step="post", label=label)
            axes.step(edges, quantiles[2], color="C0", where="post", label="median")
            axes.set_yscale("log")
        column[0].axhline(1 / 1.5, color="black", linestyle="--", linewidth=1, label="beta stays as it is")
        column[0].axhline(1.5, color="black", linestyle="--", linewidth=1)
        column[0].set_title(SETTINGS[setting].label, fontsize=10)
    ticks = {1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2", 1: "1", 2: "2", 4: "4", 8: "8"}
    panels[0, 0].set_yticks(list(ticks), list(ticks.values()))
    panels[0, 0].yaxis.set_minor_locator(NullLocator())
    panels[0, 0].set_ylabel("KL / d_targ")
    panels[1, 0].set_ylabel("beta")
    figure.supxlabel("update (2,048 timesteps)", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def figure_3(results: Results, scores: Scores) -> Any:
    """
    Figure 3: returns over training, a panel for each task: the mean over seeds of the running score (last 100 episodes), the
    range between the quartiles, and the readings of the paper's plot as markers at the right edge. An axis goes at most as far
    below uniform actions as these are below the best run; markers that are lower stand at its end.

    :param results: the results
    :param scores: the scores of Figure 3's runs
    :return: the figure
    """
    figure, panels = plt.subplots(2, 4, figsize=(11, 5.2))
    timesteps = max(row["timesteps"] for row in scores.rows.values())
    grid = np.linspace(0, timesteps, POINTS + 1)[1:]
    papers = readings()
    colors = {name: "black" if name == PPO else f"C{i - 1}" for i, name in enumerate(LABELS)}
    lines = dict(zip(LABELS, (*LINES, (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1))), strict=True))
    markers = {name: {"marker": MARKERS[i], "markersize": 6, "markeredgecolor": "white"} for i, name in enumerate(papers)}
    for task, (axes, env) in enumerate(zip(panels.flat, TASKS, strict=False)):
        for name, label in LABELS.items():
            curves = running_scores(results, scores, name, env, grid)
            look = {"color": colors[name], "linestyle": lines[name], "linewidth": 2.0 if name == PPO else 1.3}
            # From where each seed has ended an episode; the marker is for the legend
            axes.plot(grid, curves.mean(axis=0), label=label, **look, **markers.get(name, {}), markevery=[])
            quartiles = np.quantile(curves, [0.25, 0.75], axis=0)
            axes.fill_between(grid, *quartiles, color=colors[name], alpha=0.12, linewidth=0)
        uniform, best_run = scores.constants[env]["uniform"], scores.constants[env]["best_run"]
        low, high = axes.get_ylim()
        # Lower, a collapse would hide all else
        axes.set_ylim(max(low, uniform - (best_run - uniform)), max(high, *(paper[task] for paper in papers.values())))
        for i, (name, paper) in enumerate(papers.items()):
            place = (1.03 + 0.035 * i) * timesteps, np.clip(paper[task], *axes.get_ylim())
            axes.plot(*place, color=colors[name], linestyle="", clip_on=False, zorder=3, **markers[name])
        axes.set_title(env.removesuffix("-v4"), fontsize=10)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    panels[1, 3].axis("off")
    labels = [label.replace(", ", ",\n") for label in labels]
    panels[1, 3].legend(handles, labels, loc="center", fontsize=9, handlelength=4, title="markers: the paper's plot")
    for axes in panels[1, :3]:
        axes.set_xlabel("timesteps")
    for axes in panels[:, 0]:
        axes.set_ylabel("return")
    return figure
