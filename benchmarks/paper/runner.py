"""Makes the runs that are missing, side by side."""

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from joblib import Parallel, delayed, effective_n_jobs
from tqdm import tqdm

from benchmarks.paper.experiments import Run
from benchmarks.paper.results import Results
from benchmarks.paper.training import train
from benchmarks.provenance import current_commit

ATTEMPTS = 2
# Seconds between two looks at what has been finished
INTERVAL = 2.0


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
    Make the runs that are not among the results. One that fails is tried once again, or more often where a process has been
    killed meanwhile.

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
        commit = current_commit()
        attempts: Counter[str] = Counter()
        suspects: list[Run] = []

        def make(runs: Sequence[Run], n_jobs: int) -> None:
            # One run at a time for each process, none in advance
            parallel = Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch="n_jobs")
            attempts.update(
                name for name in parallel(delayed(attempt)(run, timesteps, commit, results) for run in runs) if name
            )

        with progress_of(runs, results):
            while True:
                missing = [run for run in missing_runs(runs, results) if attempts[run.name] < ATTEMPTS]
                if not missing:
                    break
                alone = missing if effective_n_jobs(jobs) == 1 else [run for run in missing if run in suspects]
                suspects = []
                for run in alone:
                    try:
                        # joblib makes a process of its own for one run only if there could be two
                        make([run], 2)
                    except Exception:
                        traceback.print_exc()
                        attempts[run.name] += 1
                if alone:
                    continue
                try:
                    make(missing, jobs)
                # A process that is killed takes the pool with it: it is one of those that were at work
                except Exception:
                    traceback.print_exc()
                    suspects = missing_runs(missing, results)[: effective_n_jobs(jobs)]
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


@contextmanager
def progress_of(runs: Sequence[Run], results: Results) -> Iterator[None]:
    """
    Show a progress bar and keep the table of the results up to date.

    :param runs: the runs
    :param results: where finished ones appear
    """
    ended = threading.Event()

    n_done = len(runs) - len(missing_runs(runs, results))

    def watch() -> None:
        # The first runs are those of policies that are not trained, which take seconds
        with tqdm(total=len(runs), initial=n_done, unit="run", smoothing=0.1) as progress:
            over = False
            while not over:
                over = ended.wait(INTERVAL)
                news = len(runs) - len(missing_runs(runs, results)) - progress.n
                if news:
                    progress.update(news)
                    results.write_table()
                if sys.stderr.isatty():
                    progress.refresh()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
