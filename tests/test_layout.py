"""The structure of the package: the paper on top, fast lanes and compiled steps that may be deleted."""

import ast
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import sb3_ppo_variants

PACKAGE = Path(sb3_ppo_variants.__file__).parent
NAME = PACKAGE.name

MAX_LINES_OF_A_FILE = 400
MAX_LINES = 5_500
MAX_FLOORS = 7

# Prints the number of updates and the digits of two trainings
TRAIN = f"""
import hashlib
import {NAME}
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

def train(compile):
    for cls, env in (("PPOClip", VecNormalize(make_vec_env("Pendulum-v1", 2))), ("PPOKLPen", make_vec_env("CartPole-v1", 2))):
        options = dict(n_steps=32, batch_size=32, n_epochs=2, seed=0, compile=compile)
        model = getattr({NAME}, cls)("MlpPolicy", env, **options).learn(128)
        states = [state["exp_avg_sq"] for state in model.policy.optimizer.state.values()]
        parameters = th.cat([tensor.detach().flatten() for tensor in (*model.policy.parameters(), *states)])
        print(model._n_updates, hashlib.sha256(parameters.numpy().tobytes()).hexdigest())

"""
WITHOUT = f"""
import sys
# Nor is the RL Zoo needed
sys.modules["rl_zoo3"] = None
# An editable installation would find what is not in the copy
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", type(finder).__name__)]
{TRAIN}
th.set_num_threads(1)
print({NAME}.__file__)
train(False)
train("auto")
try:
    train(True)
except RuntimeError as error:
    print(error)
"""


def test_fast_lanes_and_compiled_steps_may_be_deleted(tmp_path, capsys):
    exec(f"{TRAIN}train(False)", {})
    expected = capsys.readouterr().out.splitlines()
    # 2 updates of 2 epochs
    assert [line.split()[0] for line in expected] == ["4", "4"]
    folder = tmp_path.resolve()
    shutil.copytree(PACKAGE, folder / NAME, ignore=shutil.ignore_patterns("__pycache__", "fast", "compiled"))
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    file, *lines = done.stdout.splitlines()
    assert Path(file).is_relative_to(folder)
    assert lines == [*expected, *expected, f"compile=True is not possible: {NAME}.compiled is not installed"]


def modules():
    """The files of the package by the name of the module."""
    files = {}
    for file in PACKAGE.rglob("*.py"):
        parts = [NAME, *file.relative_to(PACKAGE).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


MODULES = modules()


def imported(name):
    """What a module imports, but for types alone: names of modules and of what is in them."""
    names = set()
    pending = [ast.parse(MODULES[name].read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            pending.extend(ast.iter_child_nodes(node))
    return names


def own_imports(name):
    """The modules of the package that a module imports; lanes and the backend are found by name when they are needed."""
    found = set()
    for full in imported(name):
        if full.partition(".")[0] == NAME:
            found.add(full if full in MODULES else full.rpartition(".")[0])
    # A module that imports another one of its package does not use what the package's __init__ collects
    return found - {name, NAME}


@cache
def floor(name):
    return 1 + max((floor(other) for other in own_imports(name)), default=0)


@pytest.mark.parametrize("name", ["objectives", "kl", "adaptive", "loss"])
def test_the_paper_imports_torch_and_itself_alone(name):
    allowed = {*sys.stdlib_module_names, "torch", *(f"{NAME}.{other}" for other in ("objectives", "kl", "adaptive", "loss"))}
    names = {full.partition(".")[0] for full in imported(f"{NAME}.{name}")} - {NAME}
    assert names | own_imports(f"{NAME}.{name}") <= allowed


def test_floors():
    floors = {name: floor(name) for name in MODULES if name not in (NAME, f"{NAME}.zoo")}
    assert floors[f"{NAME}.objectives"] == 1
    assert floors[f"{NAME}.variants"] > floors[f"{NAME}.ppo"] > floors[f"{NAME}.rollout"] > floors[f"{NAME}.loss"]
    assert max(floors.values()) <= MAX_FLOORS, floors


def test_nobody_but_the_lanes_and_the_algorithm_needs_what_may_be_deleted():
    """Nor do fast lanes and compiled steps need each other."""
    for name in MODULES:
        for part in (f"{NAME}.fast", f"{NAME}.compiled"):
            if not name.startswith(part):
                assert not any(other.startswith(part) for other in own_imports(name)), name


def test_lengths():
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES_OF_A_FILE} == {}
    assert sum(lengths.values()) <= MAX_LINES
