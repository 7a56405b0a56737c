"""
Sections 6.1 and 6.2 of the PPO paper, reproduced: Table 1 and Figure 3, and what belongs to them.

    python -m benchmarks.paper run        # makes the runs that are missing; may be interrupted at any time
    python -m benchmarks.paper status     # what is missing
    python -m benchmarks.paper commands   # for each run that is there, the command that makes it again
    python -m benchmarks.paper verify 3   # makes three of them again, drawn at random, and says whether they are exact
    python -m benchmarks.paper freeze     # once all runs of Table 1 are there: writes the constants of the normalisation
    python -m benchmarks.paper tables     # puts the tables in the documents; with names, prints those
    python -m benchmarks.paper figures    # draws the figures of docs/paper.md and README.md
    python -m benchmarks.paper figure3    # draws Figure 3 of section 6.2, for docs/figure3.md
"""

import argparse
import sys
from pathlib import Path

from benchmarks.paper import experiments, figure3, figure3_report, figures, scores
from benchmarks.paper.documents import DOCUMENTS, FIGURES, TABLES, with_tables
from benchmarks.paper.experiments import MORE_SEEDS, PILOTS, REFERENCES, SEEDS, SETTINGS, STAGES, TASKS, Run
from benchmarks.paper.results import DEFAULT, Results
from benchmarks.paper.runner import missing_runs, run_all
from benchmarks.paper.scores import Study
from benchmarks.paper.verification import draw, verify


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    main = argparse.ArgumentParser("python -m benchmarks.paper", description=__doc__)
    main.formatter_class = argparse.RawTextHelpFormatter
    commands = main.add_subparsers(dest="command", required=True)
    helps = {
        "run": "make the runs that are missing",
        "status": "tell which are missing",
        "commands": "print for each run that is there the command that makes it again",
        "verify": "make some runs again, drawn at random, each by the code of its own commit, and tell which are exact",
        "freeze": "write the constants of the normalisation, once and for all",
        "tables": "put the tables in README.md, docs/paper.md, figure3.md and minatar.md, or print those that are named",
        "figures": "draw the figures of docs/paper.md and README.md",
        "figure3": "draw Figure 3, of docs/figure3.md",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--results", type=Path, default=DEFAULT, help="directory of the results")
        if name in ("run", "status", "commands", "verify"):
            command.add_argument("--stages", nargs="+", choices=(*STAGES, *PILOTS), help="parts of the study")
            command.add_argument("--variants", nargs="+", choices=experiments.VARIANTS)
            command.add_argument("--settings", nargs="+", choices=(*SETTINGS, *REFERENCES, *figure3.ALL))
            command.add_argument("--envs", nargs="+", choices=(*TASKS, *figure3.PILOT_TASKS))
            seeds = (*SEEDS, *MORE_SEEDS, *figure3.PILOT_SEEDS)
            command.add_argument("--seeds", nargs="+", type=int, choices=seeds)
        else:
            command.add_argument("--constants", type=Path, default=scores.CONSTANTS, help="file of the normalisation")
        if name == "run":
            command.add_argument("--timesteps", type=int, default=experiments.TIMESTEPS, help="length of a run")
        if name == "verify":
            command.add_argument("number", type=int, metavar="N", help="number of runs")
            command.add_argument("--seed", type=int, help="of the draw; if none is given, each draw is another one")
        if name in ("run", "verify"):
            command.add_argument("--jobs", type=int, default=-1, help="processes; -1: one for each core, -2: one less")
        if name == "tables":
            command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}")
        if name in ("figures", "figure3"):
            command.add_argument("--output", type=Path, default=FIGURES, help="directory of the figures")
    return main


def selected(args: argparse.Namespace) -> list[Run]:
    """
    The runs that the command line asks for.

    :param args: the command line
    :return: the runs, in the order in which they are to be made
    """
    runs = [run for stage in args.stages or STAGES for run in {**STAGES, **PILOTS}[stage]]
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
    try:
        if args.command == "run":
            return run(args, results)
        if args.command == "status":
            return status(results, selected(args))
        if args.command == "commands":
            rows = results.rows()
            for one in selected(args):
                if one in rows:
                    print(experiments.command(one, rows[one]))
            return 0
        if args.command == "verify":
            rows = results.rows()
            there = [one for one in selected(args) if one in rows]
            return 0 if verify(results, draw(there, args.number, args.seed), args.jobs) else 1
        if args.command == "freeze":
            scores.freeze(results, args.constants, STAGES["table1"])
        elif args.command == "figures":
            figures.draw(results, Study(results, args.constants).all_seeds, args.output)
        elif args.command == "figure3":
            of_figure_3 = figure3_report.scores_of(Study(results, args.constants))
            figures.save({"figure3": figures.figure_3(results, of_figure_3)}, of_figure_3, args.output)
        else:
            make_tables(args, results)
    except (scores.MissingRunsError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def run(args: argparse.Namespace, results: Results) -> int:
    """
    Make the runs that are missing.

    :param args: the command line
    :param results: the results
    :return: 0 if none has failed
    :raises ValueError: if the study has no such run
    """
    runs = selected(args)
    if not runs:
        raise ValueError("The study has no such run")
    failed = run_all(runs, args.timesteps, results, args.jobs)
    for name in failed:
        print(f"FAILED: {name}", file=sys.stderr)
    return 1 if failed else 0


def status(results: Results, runs: list[Run]) -> int:
    """
    Print how many runs of each setting have been made.

    :param results: the results
    :param runs: the runs of the study
    :return: 0 if none is missing
    """
    missing = missing_runs(runs, results)
    for variant, setting in dict.fromkeys((run.variant, run.setting) for run in runs):
        n_runs = sum((run.variant, run.setting) == (variant, setting) for run in runs)
        own = [run for run in missing if (run.variant, run.setting) == (variant, setting)]
        print(f"{variant:22} {setting:20} {n_runs - len(own):3} of {n_runs:3}", end="")
        print(f"   missing: {', '.join(f'{run.env} seed {run.seed}' for run in own[:3])}" if own else "", end="")
        print(", ..." if len(own) > 3 else "")
    print(f"{len(missing)} of {len(runs)} runs are missing")
    return 1 if missing else 0


def make_tables(args: argparse.Namespace, results: Results) -> None:
    """
    Print tables, or put all of them in the documents.

    :param args: the command line
    :param results: the results
    :raises ValueError: if there is no such table
    """
    study = Study(results, args.constants)
    for name in args.names:
        if name not in TABLES:
            raise ValueError(f"There is no table {name}, but only {', '.join(TABLES)}")
        print(TABLES[name](study), end="\n\n")
    if not args.names:
        # All of them before the first is written
        texts = {path: with_tables(path.read_text(encoding="utf-8"), study) for path in DOCUMENTS}
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
