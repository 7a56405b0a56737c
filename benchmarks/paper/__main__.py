"""
Section 6.1 of the PPO paper, reproduced: eleven settings (and a twelfth), seven tasks, three seeds.

    python -m benchmarks.paper run        # makes the runs that are missing; may be interrupted at any time
    python -m benchmarks.paper status     # what is missing
    python -m benchmarks.paper table1     # prints Table 1 and writes docs/paper.md
    python -m benchmarks.paper figures    # draws the figures of docs/paper.md
"""

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.paper import experiments, report
from benchmarks.paper.experiments import REFERENCES, SETTINGS, STAGES, TASKS, Run
from benchmarks.paper.results import DEFAULT, Results


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    main = argparse.ArgumentParser("python -m benchmarks.paper", description=__doc__)
    main.formatter_class = argparse.RawTextHelpFormatter
    commands = main.add_subparsers(dest="command", required=True)
    for name in ("run", "status", "table1", "figures", "freeze"):
        command = commands.add_parser(name)
        command.add_argument("--results", type=Path, default=DEFAULT, help="directory of the results")
        command.add_argument("--stages", nargs="+", choices=STAGES, help="parts of the study")
        command.add_argument("--variants", nargs="+", choices=experiments.VARIANTS)
        command.add_argument("--settings", nargs="+", choices=(*SETTINGS, *REFERENCES))
        command.add_argument("--envs", nargs="+", choices=TASKS)
        command.add_argument("--seeds", nargs="+", type=int)
        if name == "run":
            command.add_argument("--timesteps", type=int, default=1_000_000, help="length of a run")
            command.add_argument("--jobs", type=int, default=-1, help="number of processes; -1: one for each core")
            command.add_argument("--backend", choices=("loky", "ray"), default="loky", help="ray: on a cluster")
        if name in ("table1", "figures", "freeze"):
            command.add_argument("--constants", type=Path, default=report.CONSTANTS, help="file of the normalisation")
        if name == "table1":
            command.add_argument("--output", type=Path, default=report.REPORT, help="the report")
        if name == "figures":
            command.add_argument("--output", type=Path, help="directory of the figures")
    return main


def planned(args: argparse.Namespace, stages: list[str]) -> list[Run]:
    """
    The runs that the command line asks for.

    :param args: the command line
    :param stages: parts of the study, if it names none
    :return: the runs
    """
    runs = [run for stage in args.stages or stages for run in STAGES[stage]]
    for name in ("variant", "setting", "env", "seed"):
        choices = getattr(args, f"{name}s")
        runs = [run for run in runs if choices is None or getattr(run, name) in choices]
    return runs


def main() -> int:
    """
    Run a command.

    :return: exit code
    """
    args = parser().parse_args()
    results = Results(args.results)
    if args.command in ("run", "status"):
        runs = planned(args, list(STAGES))
        if not runs:
            print("No run of the study is like that", file=sys.stderr)
            return 2
        if args.command == "status":
            return status(results, runs)
        from benchmarks.paper.runner import run_all

        try:
            failed = run_all(runs, args.timesteps, results, args.jobs, args.backend)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        for name in failed:
            print(f"FAILED twice: {name}", file=sys.stderr)
        return 1 if failed else 0
    runs = planned(args, list(STAGES) if args.command == "table1" else ["table1"])
    try:
        if args.command == "freeze":
            report.freeze(results, runs, args.constants)
        elif args.command == "figures":
            from benchmarks.paper import figures

            figures.draw(results, runs, args.output or figures.FIGURES, args.constants)
        else:
            text = report.report(results, runs, args.constants, f"python -m benchmarks.paper {shlex.join(sys.argv[1:])}")
            args.output.write_text(text, encoding="utf-8")
            print(text.split("## Scores by task")[0])
    except (report.MissingRunsError, FileNotFoundError, FileExistsError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def status(results: Results, runs: list[Run]) -> int:
    """
    Print how many runs of each setting have been made.

    :param results: the results
    :param runs: the runs of the study
    :return: 0 if none is missing
    """
    done = results.done()
    for variant, setting in dict.fromkeys((run.variant, run.setting) for run in runs):
        own = [run for run in runs if (run.variant, run.setting) == (variant, setting)]
        missing = [run for run in own if run.name not in done]
        print(f"{variant:22} {setting:20} {len(own) - len(missing):3} of {len(own):3}", end="")
        print(f"   missing: {', '.join(f'{run.env} seed {run.seed}' for run in missing[:3])}" if missing else "", end="")
        print(", ..." if len(missing) > 3 else "")
    missing_runs = sum(run.name not in done for run in runs)
    print(f"{missing_runs} of {len(runs)} runs are missing")
    return 1 if missing_runs else 0


if __name__ == "__main__":
    sys.exit(main())
