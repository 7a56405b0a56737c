"""Makes the runs that are missing, side by side."""

import sys
from collections.abc import Sequence
from functools import partial

from tqdm import tqdm

from benchmarks import runs as in_parallel
from benchmarks.paper.experiments import Run
from benchmarks.paper.results import Results
from benchmarks.paper.training import train
from benchmarks.provenance import current_commit


def make(run: Run, timesteps: int, commit: str, results: Results) -> None:
    """
    Make a run and save it.

    :param run: the run
    :param timesteps: its length
    :param commit: of the repository
    :param results: where it goes
    """
    results.save(run, train(run, timesteps, commit))


def run_all(runs: Sequence[Run], timesteps: int, results: Results, jobs: int) -> list[str]:
    """
    Make the runs that are not among the results, and show the progress. One that fails is reported, and remains missing.

    :param runs: the runs, in the order in which they are to be made
    :param timesteps: the length of each
    :param results: where finished runs go
    :param jobs: number of processes; -1 for all that there are
    :return: names of the runs that have failed
    :raises ValueError: if the results have runs of another length or damaged ones, or if another program adds to them
    """
    with results.lock():
        results.check_timesteps(timesteps)
        # Rows of runs that were finished when the program was killed
        results.write_table()
        missing = missing_runs(runs, results)
        one = partial(make, timesteps=timesteps, commit=current_commit(), results=results)
        # The first runs are those of policies that are not trained, which take seconds
        with tqdm(total=len(runs), initial=len(runs) - len(missing), unit="run", smoothing=0.1) as progress:
            for failure in in_parallel.finished(one, [(run,) for run in missing], jobs):
                if failure:
                    print(failure, file=sys.stderr, flush=True)
                else:
                    progress.update()
                    results.write_table()
        return [run.name for run in missing_runs(runs, results)]


def missing_runs(runs: Sequence[Run], results: Results) -> list[Run]:
    """
    The runs that are not among the results.

    :param runs: the runs
    :param results: the results
    :return: those
    """
    done = results.rows()
    return [run for run in runs if run not in done]
