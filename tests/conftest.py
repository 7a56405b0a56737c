import warnings
from types import ModuleType

import pytest
import torch as th

from sb3_ppo_variants import zoo


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Sums over several threads are not reproducible bit for bit."""
    th.set_num_threads(1)


@pytest.fixture(scope="module")
def exp_manager() -> ModuleType:
    with warnings.catch_warnings():
        # What the Zoo's imports warn of is not ours
        warnings.simplefilter("ignore")
        zoo.register()
        from rl_zoo3 import exp_manager
    return exp_manager


@pytest.fixture(params=["lanes", "no lanes"])
def fast(request, monkeypatch) -> bool:
    """Whether the fast lanes are on: a test runs with and without them."""
    if request.param == "no lanes":
        monkeypatch.setenv("SB3_PPO_VARIANTS_FAST", "0")
    return request.param == "lanes"
