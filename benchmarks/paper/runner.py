"""Makes the runs that are missing, side by side."""

import sys
import traceback
from collections import Counter
from collections.abc import Sequence

from joblib import Parallel, delayed, effective_n_jobs
from tqdm import tqdm

from benchmarks.paper.experiments import Run
from benchmarks.paper.results import Results
from benchmarks.paper.training import train
from benchmarks.provenance import current_commit

ATTEMPTS = 2


def attempt(run: Run, timesteps: int, commit: str, results: Results) -> str | None:
    """
    Make a run and save it, in a process of its own.

    :param run: the run
    :param timesteps: its length
    :param commit: of the repository
    :param results: where it goes
    :return: its name if it failed
    """
    try:
        results.save(run, train(run, timesteps, commit))
    # Whatever it is: the others go on
    except Exception:
        print(f"{run.name} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return run.name
    return None


def run_all(runs: Sequence[Run], timesteps: int, results: Results, jobs: int) -> list[str]:
    """
    Make the runs that are not among the results, and show the progress. One that fails is tried once again, or more often
    where a process has been killed meanwhile.

    :param runs: the runs, in the order in which they are to be made
    :param timesteps: the length of each
    :param results: where finished runs go
    :param jobs: number of processes; -1 for all that there are
    :return: names of the runs that have failed twice
    :raises ValueError: if the results have runs of another length or damaged ones, or if another program adds to them
    """
    with results.lock():
        results.check_timesteps(timesteps)
        # Rows of runs that were finished when the program was killed
        results.write_table()
        commit, n_jobs = current_commit(), effective_n_jobs(jobs)
        # joblib makes processes of their own only if there could be two; one run at a time for each, none in advance
        parallel = Parallel(max(n_jobs, 2), batch_size=1, pre_dispatch="n_jobs", return_as="generator_unordered")
        attempts: Counter[str] = Counter()
        suspects: list[Run] = []
        n_done = len(runs) - len(missing_runs(runs, results))
        # The first runs are those of policies that are not trained, which take seconds
        with tqdm(total=len(runs), initial=n_done, unit="run", smoothing=0.1) as progress:
            while missing := [run for run in missing_runs(runs, results) if attempts[run.name] < ATTEMPTS]:
                suspects = [run for run in missing if run in suspects]
                batch = suspects[:1] or (missing if n_jobs > 1 else missing[:1])
                try:
                    for name in parallel(delayed(attempt)(run, timesteps, commit, results) for run in batch):
                        if name:
                            attempts[name] += 1
                        else:
                            progress.update()
                            results.write_table()
                # A process that is killed takes the pool with it: it is one of those that were at work, each of which is
                # tried alone
                except Exception:
                    traceback.print_exc()
                    if len(batch) == 1:
                        attempts[batch[0].name] += 1
                    else:
                        suspects = missing_runs(batch, results)[:n_jobs]
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
