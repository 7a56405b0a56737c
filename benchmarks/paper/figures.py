"""The figures of docs/paper.md: Figures 1 and 2 of the paper, and what the runs show."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.paper import statistics
from benchmarks.paper.experiments import SETTINGS, Run
from benchmarks.paper.report import MissingRunsError, Scores, read_constants
from benchmarks.paper.results import Results
from benchmarks.paper.training import ObservationFilter, make_env, make_model
from sb3_ppo_variants.kl import kl_old_new
from sb3_ppo_variants.loss import standardize
from sb3_ppo_variants.objectives import clipped_surrogate, conservative_policy_iteration

mpl.use("Agg")
import matplotlib.pyplot as plt

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
LINES = ("-", "--", ":", "-.")
MARKERS = "osd^vxP"
# Families of settings, in colours and markers that can be told apart in black and white
FAMILIES = {
    "none": ("black", "x"),
    "clip": ("C0", "o"),
    "adaptive_kl": ("C1", "s"),
    "fixed_kl": ("C2", "^"),
    "policy_gradient": ("C3", "d"),
}
EPSILON = 0.2
# Updates over which KL and beta are averaged: from one to the next, beta often goes up and down
WINDOW = 20


def style(setting: str) -> dict[str, Any]:
    """
    How the line of a setting is drawn: colour and marker tell the family, the line the number.

    :param setting: its name
    :return: arguments of matplotlib's plot
    """
    family = next(name for name in FAMILIES if setting.startswith(name))
    color, marker = FAMILIES[family]
    line = LINES[[name for name in SETTINGS if name.startswith(family)].index(setting)]
    label = SETTINGS[setting].label
    return {"color": color, "marker": marker, "markersize": 4, "markevery": 0.1, "linestyle": line, "label": label}


def draw(results: Results, runs: Sequence[Run], directory: Path, constants: Path) -> None:
    """
    Draw all figures.

    :param results: the results
    :param runs: the runs of Table 1
    :param directory: where the figures go, as SVG and PNG
    :param constants: file of the normalisation
    :raises MissingRunsError: if a run has not been made
    """
    directory.mkdir(parents=True, exist_ok=True)
    # The same file for the same figure
    mpl.rcParams.update({"svg.hashsalt": "sb3_ppo_variants", "figure.constrained_layout.use": True})
    scores = Scores(results, runs)
    figures: dict[str, Callable[[], Any]] = {
        "figure1": surrogate_of_ratio,
        "figure2": lambda: surrogates_along_the_update(*interpolate()),
        "learning_curves": lambda: learning_curves(results, scores, constants),
        "performance_profile": lambda: performance_profile(scores, constants),
        "kl": lambda: kl_and_beta(results, scores),
    }
    for name, function in figures.items():
        figure = function()
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
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
    names = ("KL[pi_old, pi]", "L^CPI, equation (6)", "E[clip(r, 1 - eps, 1 + eps) A]", "L^CLIP, equation (7)")
    values: dict[str, list[float]] = {name: [] for name in names}
    with th.no_grad():
        for position in positions:
            model.policy.load_state_dict({name: old[name] + position * (new[name] - old[name]) for name in old})
            _, log_prob, _ = model.policy.evaluate_actions(samples.observations, samples.actions)
            ratio = th.exp(log_prob - samples.old_log_prob)
            terms = (
                kl_to(model, old, samples.observations),
                conservative_policy_iteration(ratio, advantages),
                th.clamp(ratio, 1 - EPSILON, 1 + EPSILON) * advantages,
                clipped_surrogate(ratio, advantages, EPSILON),
            )
            for name, term in zip(names, terms, strict=True):
                values[name].append(term.mean().item())
    return positions, {name: np.array(means) for name, means in values.items()}


def kl_to(model: OnPolicyAlgorithm, old: dict[str, th.Tensor], observations: Any) -> th.Tensor:
    """
    KL[pi_old(.|s), pi(.|s)] per state.

    :param model: the model, whose policy is pi
    :param old: parameters of pi_old
    :param observations: the states
    :return: the divergences, in nats
    """
    from sb3_ppo_variants.rollout import frozen_copy

    old_policy = frozen_copy(model.policy)
    old_policy.load_state_dict(old)
    return kl_old_new(old_policy.get_distribution(observations), model.policy.get_distribution(observations))


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


def learning_curves(results: Results, scores: Scores, constants: Path, points: int = 50) -> Any:
    """
    Returns over training: for each task, the mean over seeds of the running score (last 100 episodes), and its 95% bootstrap
    interval.

    :param results: the results
    :param scores: the scores of Table 1's runs
    :param constants: file of the normalisation
    :param points: points of a curve
    :return: the figure
    """
    n_columns = min(4, len(scores.tasks))
    n_rows = -(-len(scores.tasks) // n_columns)
    figure, panels = plt.subplots(n_rows, n_columns, figsize=(4 * n_columns, 3 * n_rows + 1), squeeze=False)
    for axes in panels.flat[len(scores.tasks) :]:
        axes.set_visible(False)
    frozen = read_constants(constants, scores.tasks)
    for axes, env, random, best in zip(panels.flat, scores.tasks, frozen["uniform"], frozen["best_run"], strict=False):
        for setting in scores.settings():
            runs = [run for run in scores.by_run if (run.setting, run.env) == (setting, env)]
            curves = [results.load(run) for run in runs]
            grid = np.linspace(0, min(curve.row["steps"] for curve in curves), points + 1)[1:]
            values = np.array([running_score(curve.curves, grid) for curve in curves])
            axes.plot(grid, values.mean(axis=0), **style(setting))
            means = np.random.default_rng(0).choice(values, (1000, len(values))).mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975], axis=0)
            axes.fill_between(grid, low, high, color=style(setting)["color"], alpha=0.1, linewidth=0)
        axes.set_title(env, fontsize=10)
        axes.set_xlabel("timesteps")
        axes.set_ylabel("return")
        # A collapse would hide all else
        axes.set_ylim(bottom=max(axes.get_ylim()[0], random - 0.3 * (best - random)))
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
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
    first = np.maximum(last - 100, 0)
    with np.errstate(invalid="ignore"):
        return (total[last] - total[first]) / (last - first)


def performance_profile(scores: Scores, constants: Path) -> Any:
    """
    The fraction of runs above each normalised score.

    :param scores: the scores of Table 1's runs
    :param constants: file of the normalisation
    :return: the figure
    """
    frozen = read_constants(constants, scores.tasks)
    thresholds = np.linspace(-0.5, 1.05, 156)
    figure, axes = plt.subplots(figsize=(8, 5))
    for setting in scores.settings():
        normalized = statistics.normalize(scores.of(setting), frozen["uniform"], frozen["best_run"])
        profile = statistics.performance_profile(normalized, thresholds)
        axes.plot(thresholds, profile, **style(setting))
    axes.set_xlabel("normalised score")
    axes.set_ylabel("fraction of runs above it")
    axes.legend(fontsize=8, loc="lower left")
    return figure


def kl_and_beta(results: Results, scores: Scores) -> Any:
    """
    KL of the updates and beta over training, of the settings with adaptive beta: geometric means over the seeds of each task
    and over ``WINDOW`` updates; and the band in which beta stays as it is.

    :param results: the results
    :param scores: the scores of Table 1's runs
    :return: the figure
    """
    settings = [setting for setting in scores.settings() if setting.startswith("adaptive")]
    if not settings:
        raise MissingRunsError("there is no run with an adaptive KL penalty")
    figure, panels = plt.subplots(2, len(settings), figsize=(4 * len(settings), 6), squeeze=False, sharey="row")
    for column, setting in enumerate(settings):
        target = SETTINGS[setting].kwargs["target_kl"]
        for i, env in enumerate(scores.tasks):
            runs = [run for run in scores.by_run if (run.setting, run.env) == (setting, env)]
            curves = [results.load(run).curves for run in runs]
            for axes, name in zip(panels[:, column], ("kl", "kl_coef"), strict=True):
                means = running_geometric_mean([curve[name] for curve in curves], WINDOW)
                look = {"color": f"C{i}", "linestyle": LINES[i % 4], "marker": MARKERS[i], "markevery": 0.15, "markersize": 4}
                axes.plot(np.arange(len(means)) + WINDOW, means, linewidth=1.2, label=env, **look)
        panels[0, column].axhspan(target / 1.5, target * 1.5, color="gray", alpha=0.3)
        panels[0, column].set_title(SETTINGS[setting].label, fontsize=10)
        panels[1, column].set_xlabel("update")
        for axes in panels[:, column]:
            axes.set_yscale("log")
    panels[0, 0].set_ylabel("KL[pi_old, pi] in nats (gray: the band)")
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
