import re
import warnings

import pytest
import torch as th

from sb3_ppo_variants import zoo
from sb3_ppo_variants.compiled import backend, inductor


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Sums over several threads are not reproducible bit for bit."""
    th.set_num_threads(1)


@pytest.fixture(scope="module")
def exp_manager():
    with warnings.catch_warnings():
        # What the Zoo's imports warn of is not ours
        warnings.simplefilter("ignore")
        zoo.register()
        from rl_zoo3 import exp_manager
    return exp_manager


@pytest.fixture(params=["lanes", "no lanes"])
def fast(request, monkeypatch):
    """Whether the fast lanes are on: a test runs with and without them."""
    if request.param == "no lanes":
        monkeypatch.setenv("SB3_PPO_VARIANTS_FAST", "0")
    return request.param == "lanes"


@pytest.fixture
def interpreted(monkeypatch):
    """Compiled steps as their graphs, without Inductor: quick, and exact. Returns the list of those that have been made."""
    graphs = []

    def compile_graph(graph, arguments):
        graphs.append(graph)
        return lambda arguments: graph(*arguments)

    monkeypatch.setattr(inductor, "compile_graph", compile_graph)
    return graphs


@pytest.fixture
def auto_compiles(monkeypatch):
    """Also short trainings."""
    monkeypatch.setattr(backend, "MIN_STEPS_TO_COMPILE", 1)


# Tests that share a fixture which takes long: of each file, those run in one process, where there are several (`-n`)
SHARED = r"(test_packaging|test_paper_runs)\.py|test_zoo\.py(?=::test_(train_saves|conf_|continued_|enjoy|hyperparameter_))"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            shared = re.search(SHARED, nodeid)
            return shared[0] if shared else nodeid

    return Scheduling(config, log)
