import ast
import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learning, learning_masks
from sb3_ppo_variants import ProximalPolicyOptimization, zoo

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
ZOO_PARAMETERS = re.findall(
    r"^python -m rl_zoo3\.train --algo (\w+) .*-params (.*)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE
)


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    learn = ProximalPolicyOptimization.learn
    monkeypatch.setattr(ProximalPolicyOptimization, "learn", lambda self, _, **kwargs: learn(self, 100, **kwargs))
    namespace = {}
    exec(block, namespace)
    assert namespace["model"]._n_updates > 0


@pytest.mark.parametrize(("algo", "line"), ZOO_PARAMETERS)
def test_parameters_for_the_zoo_are_python(algo, line):
    """As the Zoo evaluates them."""
    pairs = [argument.split(":", 1) for argument in shlex.split(line)]
    for name, value in pairs:
        assert name in inspect.signature(zoo.ALGOS[algo]).parameters
        assert isinstance(ast.literal_eval(value), float | str)


def test_tables_are_those_of_the_results(capsys):
    """Measured tables stand in the documents as they were written by the benchmarks."""
    results = README.parent / "benchmarks" / "results"
    *overviews, _, footer = (results / "speed.md").read_text(encoding="utf-8").strip().split("\n\n")
    readme = README.read_text(encoding="utf-8")
    for text in (*overviews, footer):
        assert text in readme
    document = (README.parent / "docs" / "speed.md").read_text(encoding="utf-8")
    assert (results / "ablations.md").read_text(encoding="utf-8").strip() in document
    for table in (results / "profile.md").read_text(encoding="utf-8").strip().split("\n\n"):
        assert table in document
    assert learning.report() == 0
    for line in capsys.readouterr().out.splitlines():
        assert line in readme
        assert line in document
    assert learning_masks.report() == 0
    for line in capsys.readouterr().out.splitlines():
        assert line in readme


def test_own_objective_trains():
    """The README's own objective learns."""
    (block,) = [block for block in BLOCKS if "class SPO" in block]
    namespace = {}
    exec(block[: block.index("model =")], namespace)
    # Better than a random policy's 20
    own = namespace["SPO"]("MlpPolicy", "CartPole-v1", n_steps=256, seed=0).learn(5120)
    assert np.mean([episode["r"] for episode in own.ep_info_buffer]) > 40
