"""
Tables and chart of what benchmarks/speed.py has measured.

    python -m benchmarks.speed_report

Reads benchmarks/results/speed.csv, and writes speed.md, speed.svg, speed_masks.svg and speed_lstm.svg beside it.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
# With whom the others of a case are compared
PEERS = {"SB3 PPO": "SB3's PPO", "MaskablePPO": "contrib's MaskablePPO", "RecurrentPPO": "contrib's RecurrentPPO"}
CHARTS = {"SB3 PPO": "speed.svg", "MaskablePPO": "speed_masks.svg", "RecurrentPPO": "speed_lstm.svg"}


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


def chart(rows: Sequence[Row], path: Path) -> None:
    """
    Draw the bar chart.

    :param rows: the results
    :param path: where it goes
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    # The same file for the same chart
    mpl.rcParams["svg.hashsalt"] = "sb3_ppo_variants"
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    hatches = dict(zip(names, ("", "//", "..", "xx", "\\\\", "++", "oo"), strict=False))
    figure, axes = plt.subplots(layout="none", figsize=(9, 0.28 * len(rows) + 1.5))
    position, ticks = 0, []
    cases = list(dict.fromkeys(row["case"] for row in rows))
    for case in cases:
        own = [row for row in rows if row["case"] == case]
        ticks.append(position + (len(own) - 1) / 2)
        for row in own:
            name, ratio = row["contestant"], float(row["ratio"])
            label = name if name not in axes.get_legend_handles_labels()[1] else None
            color = f"C{names.index(name)}"
            axes.barh(position, ratio, label=label, color=color, hatch=hatches[name], edgecolor="black")
            axes.text(ratio, position, f" {ratio:.1f}", va="center", fontsize=8)
            position += 1
        position += 1
    axes.set_yticks(ticks, cases)
    axes.invert_yaxis()
    axes.set_xlabel(f"times as fast as {peer_of(rows)}")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write(directory: Path) -> None:
    """
    Write tables and chart.

    :param directory: where the results are
    """
    with (directory / "speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    footer = "; ".join(dict.fromkeys(row[key] for key in ("machine", "versions") for row in rows))
    cases = {peer: {row["case"] for row in rows if row["contestant"] == peer} for peer in CHARTS}
    parts = {CHARTS[peer]: [row for row in rows if row["case"] in own] for peer, own in cases.items() if own}
    tables = [overview(part) for part in parts.values()]
    (directory / "speed.md").write_text("\n\n".join([*tables, details(rows), footer]) + "\n", encoding="utf-8")
    for name, part in parts.items():
        chart(part, directory / name)


if __name__ == "__main__":
    write(Path(__file__).parent / "results")
