import re
from pathlib import Path

import numpy as np
import pytest

from sb3_ppo_variants import PPOClip, ProximalPolicyOptimization

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    learn = ProximalPolicyOptimization.learn
    monkeypatch.setattr(ProximalPolicyOptimization, "learn", lambda self, _, **kwargs: learn(self, 100, **kwargs))
    namespace = {}
    exec(block, namespace)
    assert namespace["model"]._n_updates > 0


def test_tables_are_those_of_the_results():
    """Measured tables stand in the documents as they were written by the benchmarks."""
    results = README.parent / "benchmarks" / "results"
    overview, *_, footer = (results / "speed.md").read_text(encoding="utf-8").strip().split("\n\n")
    readme = README.read_text(encoding="utf-8")
    assert overview in readme
    assert footer in readme
    document = (README.parent / "docs" / "speed.md").read_text(encoding="utf-8")
    assert (results / "ablations.md").read_text(encoding="utf-8").strip() in document
    for table in (results / "profile.md").read_text(encoding="utf-8").strip().split("\n\n"):
        assert table in document


def test_own_objective_trains():
    """The README's own objective is in use, and learns."""
    (block,) = [block for block in BLOCKS if "class SPO" in block]
    namespace = {}
    exec(block[: block.index("model =")], namespace)
    own = namespace["SPO"]("MlpPolicy", "CartPole-v1", n_steps=512, seed=0).learn(8192)
    clip = PPOClip("MlpPolicy", "CartPole-v1", n_steps=512, seed=0).learn(8192)
    # Not those of the base class, and better than a random policy's 20
    assert own.policy.action_net.weight.sum() != clip.policy.action_net.weight.sum()
    assert np.mean([episode["r"] for episode in own.ep_info_buffer]) > 40
