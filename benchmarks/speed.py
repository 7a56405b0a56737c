"""
How fast training is: SB3's PPO, contrib's MaskablePPO and RecurrentPPO, SBX's PPO (if it is installed) and this package's
algorithms.

    python -m benchmarks.speed                # the table: some minutes
    python -m benchmarks.speed --whole-runs   # also learn(20_000) and learn(1_000_000), imports and compilation included
    python -m benchmarks.speed --ablations    # what each technique buys

Each contestant trains in a process of its own, with one torch thread (SBX's PPO, as JAX comes). They take turns, rollout
and update by rollout and update, so that a machine whose speed drifts is fair to all. The ratio to SB3's PPO (to MaskablePPO
with masks, to RecurrentPPO with an LSTM) is taken within each turn; its median is reported with the smallest and the largest.
The first update, which compiles, is shown on its own and does not count, nor does the second. ``environment`` is the floor:
what the environment's own steps take, with random actions.

Writes benchmarks/results/speed.csv, of which `benchmarks.speed_report` makes speed.md and speed.svg.
"""

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks import speed_report
from benchmarks.provenance import current_commit, environment, versions
from benchmarks.speed_cases import ABLATIONS, CASES, CONTESTANTS, PRODUCTS, contestants

RESULTS = Path(__file__).parent / "results"


def whole_run(contestant: str, timesteps: int) -> dict[str, float]:
    """
    Seconds of a whole training script on HalfCheetah-v4, imports and compilation included.

    :param contestant: its name
    :param timesteps: length of the training
    :return: the seconds
    """
    module, name, kwargs = CONTESTANTS[contestant]
    if module == "sb3_ppo_variants":
        kwargs = {}
    script = (
        f"from {module} import {name}\n"
        f"{name}('MlpPolicy', 'HalfCheetah-v4', seed=0, device='cpu', **{kwargs}).learn({timesteps})"
    )
    with uncompiled_environment() as environment:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, stdout=subprocess.DEVNULL, env=environment)
        return {"seconds": time.perf_counter() - start}


@contextmanager
def uncompiled_environment() -> Iterator[dict[str, str]]:
    """The environment variables of a process with one torch thread for which nothing has been compiled beforehand."""
    with tempfile.TemporaryDirectory() as cache:
        yield {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}


class Worker:
    """
    A process of ``benchmarks.speed_worker``.

    :param case: name of the case
    :param contestant: its name
    """

    def __init__(self, case: str, contestant: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed_worker", case, contestant]
        pipe = subprocess.PIPE
        self.name = contestant
        self.stack = ExitStack()
        environment = self.stack.enter_context(uncompiled_environment())
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment)

    def turn(self) -> dict[str, float]:
        """
        Let it make a turn.

        :return: its times
        :raises RuntimeError: if it has ended
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        for line in self.process.stdout:
            # Environments and libraries print, too
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")

    def close(self) -> None:
        """End it."""
        self.process.communicate()
        self.stack.close()


class MemoryWatch(threading.Thread):
    """
    Watches the memory of a process and of those that it starts (the C++ compiler), from here to ``stop``.

    :param pid: the process
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak_mb = 0.0
        self.stopped = threading.Event()
        self.start()

    def run(self) -> None:
        """Look five times a second."""
        while not self.stopped.wait(0.2):
            total = 0
            # Any of them may have ended meanwhile
            with suppress(psutil.Error):
                for process in [self.process, *self.process.children(recursive=True)]:
                    # Pages that several processes share are divided among them
                    total += process.memory_full_info().pss
            self.peak_mb = max(self.peak_mb, total / 2**20)

    def stop(self) -> float:
        """
        Stop watching.

        :return: the peak in MiB
        """
        self.stopped.set()
        self.join()
        return self.peak_mb


def take_turns(case: str, names: list[str], n_turns: int) -> list[dict[str, dict[str, float]]]:
    """
    Measure contestants in turn.

    :param case: name of the case
    :param names: names of the contestants
    :param n_turns: number of turns that count; two of warm-up, of which the first compiles, come before
    :return: for each turn, what was measured of each contestant
    """
    workers = [Worker(case, name) for name in names]
    first = {}
    for worker in workers:
        watch = MemoryWatch(worker.process.pid)
        first[worker.name] = {**worker.turn(), "compiling_mb": watch.stop()}
    turns = [{worker.name: worker.turn() for worker in workers} for _ in range(n_turns + 1)][1:]
    for worker in workers:
        worker.close()
    steps = CASES[case].n_envs * CASES[case].kwargs.get("n_steps", 2048)
    for turn in turns:
        for name, times in turn.items():
            times["first_update_s"] = first[name]["update_us"] * steps / 1e6
            times["compiling_mb"] = first[name]["compiling_mb"]
    return turns


def ablate(repetitions: int) -> None:
    """
    Print what each technique buys, measured by switching it off, and write it to benchmarks/results/ablations.md.

    :param repetitions: number of turns
    """
    lines = ["| | rollout | update | times as fast as SB3 (min to max) |", "|---|---|---|---|"]
    # Networks with few inputs and outputs
    for case, names in (("HalfCheetah-v4, 1 env", list(ABLATIONS)), ("CartPole-v1", ["all techniques", PRODUCTS])):
        turns = take_turns(case, ["SB3 PPO", *names], repetitions)
        for name in turns[0]:
            row = summary(case, name, turns)
            ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
            lines.append(f"| {case}: {name} | {row['rollout_us']:.0f} us | {row['update_us']:.0f} us | {ratio} |")
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    lines += ["", f"Measured with {'; '.join(measured_with().values())}."]
    (RESULTS / "ablations.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(cases: list[str], repetitions: int, whole_runs: bool) -> None:
    """
    Measure, printing and writing each case as it comes.

    :param cases: names of the cases
    :param repetitions: number of turns
    :param whole_runs: whether to measure whole runs too
    """
    rows: list[dict[str, Any]] = []
    for case in cases:
        turns = take_turns(case, contestants(case), repetitions)
        rows += [summary(case, name, turns) for name in turns[0]]
        print_rows(rows, case)
        write(rows)
    if whole_runs:
        for timesteps, n_turns in ((20_000, min(repetitions, 5)), (1_000_000, 1)):
            case = f"learn({timesteps:_})"
            names = [name for name in contestants("") if name != "PPOClip, reference"]
            turns = [{name: whole_run(name, timesteps) for name in names} for _ in range(n_turns)]
            rows += [summary(case, name, turns) for name in names]
            print_rows(rows, case)
            write(rows)


def summary(case: str, name: str, turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """
    A row of the table.

    :param case: name of the case
    :param name: name of the contestant
    :param turns: what was measured in each turn
    :return: medians, and the ratio to the first contestant, SB3's PPO or one of contrib, in each turn
    """

    def total(times: dict[str, float]) -> float:
        return times["seconds"] if "seconds" in times else times["rollout_us"] + times["update_us"]

    peer = next(iter(turns[0]))
    ratios = [total(turn[peer]) / total(turn[name]) for turn in turns]
    medians = {key: statistics.median(turn[name][key] for turn in turns) for key in turns[0][name]}
    return {
        "case": case,
        "contestant": name,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        **medians,
    }


def print_rows(rows: list[dict[str, Any]], case: str) -> None:
    """
    Print the rows of a case.

    :param rows: all rows so far
    :param case: name of the case
    """
    print(speed_report.details([row for row in rows if row["case"] == case]), flush=True)


def measured_with() -> dict[str, str]:
    """Versions, machine and commit."""
    packages = ["sb3_ppo_variants", "stable-baselines3", "torch", "gymnasium", "mujoco", "numpy"]
    packages += ["sbx-rl"] if importlib.util.find_spec("sbx") is not None else []
    machine = f"{environment()['processor']}, {os.cpu_count()} cores, one torch thread"
    return {"versions": versions(packages), "machine": machine, "commit": current_commit()}


def write(rows: list[dict[str, Any]]) -> None:
    """
    Write the results, their tables and the chart. Cases that have not been measured stay as they were.

    :param rows: the rows
    """
    made = measured_with()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "speed.csv"
    by_case: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                by_case.setdefault(row["case"], []).append(row)
    for case in {row["case"] for row in rows}:
        by_case[case] = [{**row, **made} for row in rows if row["case"] == case]
    merged = [row for own in by_case.values() for row in own]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in merged for key in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged)
    speed_report.write(RESULTS)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9, help="number of turns")
    parser.add_argument("--whole-runs", action="store_true", help="also measure whole training scripts")
    parser.add_argument("--ablations", action="store_true", help="measure what each technique buys instead")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="only these")
    args = parser.parse_args()
    if args.ablations:
        ablate(args.repetitions)
    else:
        measure(args.cases, args.repetitions, args.whole_runs)


if __name__ == "__main__":
    main()
