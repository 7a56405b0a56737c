"""
Tables and a chart of what benchmarks/speed.py has measured.

    python -m benchmarks.speed_report

Reads benchmarks/results/speed.csv, and writes speed.md and speed.svg beside it.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
# With whom the others of a case are compared
PEERS = {"SB3 PPO": "SB3's PPO", "MaskablePPO": "contrib's MaskablePPO", "RecurrentPPO": "contrib's RecurrentPPO"}
OURS = "PPOClip"
# Readable on white and on black
BLUE, GRAY = "#3182ce", "#7b828c"
# How the others are drawn
MARKS: dict[str, dict[str, Any]] = {
    "PPOKLPen": {"marker": "D", "color": "#ed8936", "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.6},
    "PPOFixedKL": {"marker": "^", "color": "#38a169", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6},
    "PPOClip, reference": {"marker": "o", "color": "white", "markersize": 5, "markeredgecolor": BLUE, "zorder": 2.5},
    "SBX PPO": {"marker": "X", "color": "#b83280", "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.6},
    "floor: the network alone": {"marker": "|", "color": GRAY, "markersize": 11, "markeredgewidth": 2.5},
}


def spread(row: Row) -> str:
    """
    How many times as fast as SB3.

    :param row: a row of the results
    :return: the median ratio, and the smallest and the largest
    """
    ratio, low, high = (float(row[key]) for key in ("ratio", "ratio_min", "ratio_max"))
    if low == high and row["contestant"] not in PEERS:
        return f"**{ratio:.2f}** (one turn)"
    return f"**{ratio:.2f}** ({low:.2f} to {high:.2f})"


def peer_of(rows: Sequence[Row]) -> str:
    """
    With whom the others are compared.

    :param rows: the results
    :return: in words
    """
    return next(words for name, words in PEERS.items() if any(row["contestant"] == name for row in rows))


def overview(rows: Sequence[Row]) -> str:
    """
    One line per case, one column per contestant.

    :param rows: the results
    :return: Markdown
    """
    names = [name for name in dict.fromkeys(row["contestant"] for row in rows) if name not in PEERS]
    lines = [f"| times as fast as {peer_of(rows)} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = {row["contestant"]: spread(row) for row in rows if row["case"] == case}
        lines.append(f"| {case} | {' | '.join(cells.get(name, '') for name in names)} |")
    return "\n".join(lines)


def details(rows: Sequence[Row]) -> str:
    """
    One line per case and contestant.

    :param rows: the results
    :return: Markdown
    """
    lines = [
        "| case | | times as fast as its peer (min to max) | rollout | update | environment | first update | peak memory | in "
        "the first update, with the compiler |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.get("seconds"):
            columns = [f"{float(row['seconds']):.0f} s in all", *[""] * 5]
        else:
            columns = [f"{float(row[key]):.0f} us" for key in ("rollout_us", "update_us", "environment_us")]
            columns += [f"{float(row['first_update_s']):.1f} s"]
            columns += [f"{float(row[key]):.0f} MB" if row.get(key) else "" for key in ("memory_mb", "compiling_mb")]
        lines.append(f"| {row['case']} | {row['contestant']} | {spread(row)} | {' | '.join(columns)} |")
    return "\n".join(lines)


def chart(parts: Mapping[str, Sequence[Row]], path: Path) -> None:
    """
    Draw one chart of all cases, on a logarithmic axis, for light and dark pages: a bar for PPOClip, with its range, and marks
    for the others. Contestants without a mark are in the tables alone.

    :param parts: the results by peer
    :param path: where it goes
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colors = dict.fromkeys(("text.color", "xtick.color", "ytick.color"), GRAY)
    # The hash makes the same file for the same chart
    style: dict[Any, Any] = {"svg.hashsalt": "sb3_ppo_variants", "font.size": 9, **colors}
    with mpl.rc_context(style):
        cases = [list(dict.fromkeys(row["case"] for row in rows)) for rows in parts.values()]
        size = (8.4, 0.27 * sum(map(len, cases)) + 0.4 * len(cases) + 0.9)
        figure, panels = plt.subplots(
            len(cases), 1, figsize=size, sharex=True, squeeze=False, layout="constrained", height_ratios=list(map(len, cases))
        )
        for axes, (peer, rows), names in zip(panels[:, 0], parts.items(), cases, strict=True):
            for row in rows:
                position, name = names.index(row["case"]), row["contestant"]
                ratio, low, high = (float(row[key]) for key in ("ratio", "ratio_min", "ratio_max"))
                if name == OURS:
                    axes.barh(position, ratio - 1, left=1, height=0.68, color=BLUE, label=f"{name}, median and range")
                    axes.plot([low, high], [position, position], color="#90b9e8", linewidth=2)
                    place = {"textcoords": "offset points", "xytext": (8, 0), "va": "center"}
                    axes.annotate(f"{ratio:.1f}", (high, position), color=BLUE, weight="bold", **place)
                elif name in MARKS:
                    axes.plot(ratio, position, linestyle="", label=name, **MARKS[name])
            axes.axvline(1, color=GRAY, linewidth=1.5, zorder=1.5)
            axes.set_xscale("log")
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.tick_params(length=0)
            axes.grid(axis="x", color=GRAY, alpha=0.25)
            axes.spines[:].set_visible(False)
            axes.set_title(f"times as fast as {PEERS[peer]}", fontsize=10, weight="bold", loc="left")
        ticks = (0.5, 1, 2, 5, 10, 20, 50, 100)
        panels[-1, 0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panels[-1, 0].minorticks_off()
        handles = {
            label: handle for axes in panels[:, 0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        # The bars come last
        handles = dict(reversed(handles.items()))
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(path, metadata={"Date": None}, transparent=True)
    plt.close(figure)


def write(directory: Path) -> None:
    """
    Write tables and chart.

    :param directory: where the results are
    """
    with (directory / "speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    footer = "; ".join(dict.fromkeys(row[key] for key in ("machine", "versions") for row in rows))
    cases = {peer: {row["case"] for row in rows if row["contestant"] == peer} for peer in PEERS}
    parts = {peer: [row for row in rows if row["case"] in own] for peer, own in cases.items() if own}
    tables = [overview(part) for part in parts.values()]
    (directory / "speed.md").write_text("\n\n".join([*tables, details(rows), footer]) + "\n", encoding="utf-8")
    chart(parts, directory / "speed.svg")


if __name__ == "__main__":
    write(Path(__file__).parent / "results")
