"""README and the pages of docs: examples run, commands exist, tables and messages are those of the code."""

import ast
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.logger import Logger
from sybil.document import Document
from sybil.parsers.myst import PythonCodeBlockParser

from benchmarks import learning, learning_cleanrl, learning_masks, learning_recurrent, runs
from sb3_ppo_variants import PPOClip, PPOKLPen, ProximalPolicyOptimization, __version__, optimizer, zoo
from sb3_ppo_variants.compiled import backend, step, support, verification
from sb3_ppo_variants.objectives import Terms

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(set(DOCS.rglob("*.md")) - set((DOCS / "_build").rglob("*.md")))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
FENCE = re.compile(r"^ *```([^`\n]*)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
BLOCKS = [(name, *block) for name, text in TEXTS.items() for block in FENCE.findall(text)]
COMMANDS = [line.strip() for _, language, block in BLOCKS if language == "bash" for line in block.splitlines()]
ZOO_PARAMETERS = re.findall(r"^python -m rl_zoo3\.train --algo (\w+) .*-params (.*)$", "\n".join(COMMANDS), flags=re.MULTILINE)


def examples(name):
    return list(Document.parse(str(ROOT / name), PythonCodeBlockParser()))


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Trainings end after one rollout and one epoch, in a folder of their own."""
    learn, setup_learn = ProximalPolicyOptimization.learn, BaseAlgorithm._setup_learn

    def setup_short(self, total_timesteps, *args, **options):
        self.n_epochs = 1
        return setup_learn(self, 1, *args, **options)

    monkeypatch.setattr(BaseAlgorithm, "_setup_learn", setup_short)
    # Too short to be compiled
    monkeypatch.setattr(
        ProximalPolicyOptimization, "learn", lambda self, _, *args, **options: learn(self, 1, *args, **options)
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "```python" in text])
def test_examples_run(name, short):
    found = examples(name)
    assert len(found) == TEXTS[name].count("```python")
    # In the order of the page, in one namespace
    for example in found:
        example.evaluate()
    assert found[-1].namespace["model"].num_timesteps > 0


def test_blocks_are_examples_commands_or_output():
    languages = {language for _, language, _ in BLOCKS if not language.startswith("{")}
    assert languages == {"python", "bash", "text"}


def test_commands_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    modules = [module for line in COMMANDS for module in re.findall(r"python -m (\S+)", line)]
    used = [target for line in COMMANDS for target in re.findall(r"^make (\S+)", line)]
    files = [file for line in COMMANDS for file in re.findall(r"-conf (\S+)", line)]
    assert {"rl_zoo3.train", "benchmarks.speed"} < set(modules)
    assert {"train", "test"} < set(used)
    assert files
    # Of other projects, which the commands install
    assert [name for name in modules if name not in ("pip", "twine") and importlib.util.find_spec(name) is None] == []
    assert set(used) <= targets
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize(("algo", "line"), ZOO_PARAMETERS)
def test_parameters_for_the_zoo_are_python(algo, line):
    """As the Zoo evaluates them."""
    pairs = [argument.split(":", 1) for argument in shlex.split(line)]
    for name, value in pairs:
        assert name in inspect.signature(zoo.ALGOS[algo]).parameters
        assert isinstance(ast.literal_eval(value), float | str)


def test_tables_are_those_of_the_results(capsys):
    """Measured tables stand in the documents as they were written by the benchmarks, or are included."""
    results = ROOT / "benchmarks" / "results"
    document = TEXTS["docs/speed.md"]
    assert (results / "ablations.md").read_text(encoding="utf-8").strip() in document
    for table in (results / "profile.md").read_text(encoding="utf-8").strip().split("\n\n"):
        assert table in document
    for benchmark, page, n_rows in (
        (learning, "speed", len(learning.ENVS)),
        (learning_masks, "guide/policies", len(learning_masks.TASKS)),
        (learning_recurrent, "guide/policies", len(learning_recurrent.TASKS)),
        (learning_cleanrl, "guide/coming_from", len(learning_cleanrl.ALGORITHMS)),
    ):
        benchmark.report()
        assert runs.missing(benchmark.RESULTS, benchmark.PLANNED) == []
        printed = capsys.readouterr().out
        # With a header of two lines
        assert len(printed.splitlines()) == 2 + n_rows
        assert printed in TEXTS[f"docs/{page}.md"]


def test_readme_is_two_screens_and_names_the_commands():
    readme = TEXTS["README.md"]
    assert len(readme.splitlines()) <= 150
    assert {"make train", "make test"} <= {re.split(r" {2,}", line)[0] for line in COMMANDS}
    assert "make train" in readme
    assert "make test" in readme


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files(name):
    """The site's build checks its own; those of README and CONTRIBUTING, and the anchors of none, are checked nowhere else."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", TEXTS[name])
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_version_and_date_of_the_release():
    """Those of version.txt, CITATION.cff and CHANGELOG."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    title = re.search(r"^## Release (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert str(citation["version"]) == __version__ == title[1]
    assert str(citation["date-released"]) == title[2]


# --- Objectives of one's own ---


def own(name):
    """A class that the page of objectives defines."""
    namespace = {}
    for example in examples("docs/guide/objectives.md"):
        exec(re.sub(r"^model = .*$", "", example.parsed, flags=re.MULTILINE), namespace)
    return namespace[name]


# Epsilon is 0.2. For each ratio and advantage the objective, worked out by hand
@pytest.mark.parametrize(
    ("name", "ratio", "advantage", "expected"),
    [
        # 1.5 * 2 - 2 * 0.25 / 0.4
        ("SPO", 1.5, 2.0, 1.75),
        # 0.5 * -2 - 2 * 0.25 / 0.4
        ("SPO", 0.5, -2.0, -2.25),
        # Up to 1.28 unclipped, and down to 0.8
        ("ClipHigher", 1.25, 2.0, 2.5),
        ("ClipHigher", 1.5, 2.0, 2.56),
        ("ClipHigher", 0.5, -2.0, -1.6),
        # As L^CLIP where the advantage is positive, and where a negative one is not below 3 A
        ("DualClip", 1.5, 2.0, 2.4),
        ("DualClip", 2.0, -2.0, -4.0),
        ("DualClip", 5.0, -2.0, -6.0),
        # exp(0.2) = 1.221403, exp(-0.2) = 0.818731
        ("LogClip", 1.5, 2.0, 2.442806),
        ("LogClip", 0.5, -2.0, -1.637462),
        ("LogClip", 1.21, 2.0, 2.42),
        # 1.5 * 2 - 0.5 * 0.1
        ("Annealed", 1.5, 2.0, 2.95),
    ],
)
def test_own_objectives(name, ratio, advantage, expected):
    terms = Terms(th.log(th.tensor([ratio])), th.zeros(1), th.tensor([advantage]), lambda: th.tensor([0.1]))
    objective = own(name).objective(terms, {"clip_range": 0.2, "weight": 0.5})
    np.testing.assert_allclose(objective, [expected], rtol=1e-5)


@pytest.mark.parametrize("name", ["SPO", "ClipHigher", "DualClip", "LogClip", "Annealed"])
def test_own_objectives_learn(name):
    model = own(name)("MlpPolicy", "CartPole-v1", n_steps=256, seed=0).learn(5120)
    # Better than a random policy's 20
    assert np.mean([episode["r"] for episode in model.ep_info_buffer]) > 40


# --- What is said of logs and errors ---


def test_logged_keys(monkeypatch):
    """All that are logged are in the table, and no others."""
    rows = [line.split("|")[1] for line in TEXTS["docs/algorithms/_logged.md"].splitlines() if line.startswith("|")]
    listed = set(re.findall(r"`(\w+/\w+)`", " ".join(rows)))
    logged = set()
    monkeypatch.setattr(Logger, "record", lambda self, key, *_, **__: logged.add(key))
    options = {"n_steps": 256, "n_epochs": 1, "ent_coef": lambda _: 0.01, "vf_coef": lambda _: 0.5, "clip_range_vf": 0.2}
    for cls in (PPOClip, PPOKLPen):
        cls("MlpPolicy", "Pendulum-v1", **options).learn(256)
    assert {key for key in logged if not key.startswith("time/")} == listed


class Broken(gym.Env):
    """An environment whose observations or rewards are not finite, whose action masks are wrong, or all is well."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, observation=0.0, reward=0.0, mask=None):
        self.observation = np.full(1, observation, dtype=np.float32)
        self.reward = reward
        self.info = {} if mask is None else {"action_mask": np.array(mask)}

    def reset(self, *, seed=None, options=None):
        return self.observation, self.info

    def step(self, action):
        return self.observation, self.reward, False, False, self.info


SMALL = {"n_steps": 64, "n_epochs": 1}


def infinite(terms, coef):
    return terms.ratio * float("inf")


class Infinite(PPOClip):
    objective = staticmethod(infinite)


def learn_after_damage():
    model = PPOClip("MlpPolicy", "CartPole-v1", **SMALL)
    with th.no_grad():
        next(model.policy.parameters()).fill_(float("nan"))
    model.learn(64)


FAILURES = [
    lambda: PPOClip("MlpPolicy", Broken(observation=np.nan), **SMALL).learn(64),
    lambda: PPOClip("MlpPolicy", Broken(reward=np.nan), **SMALL).learn(64),
    lambda: Infinite("MlpPolicy", "CartPole-v1", **SMALL).learn(64),
    learn_after_damage,
    lambda: PPOClip("MlpPolicy", "CartPole-v1", compile=True, **SMALL).learn(64),
    lambda: PPOClip("MaskableMlpPolicy", "CartPole-v1", **SMALL).learn(64),
    lambda: PPOClip("MaskableMlpPolicy", Broken(mask=[1, 1, 1]), **SMALL).learn(64),
    lambda: PPOClip("MaskableMlpPolicy", Broken(mask=[0, 0]), **SMALL).learn(64),
    lambda: PPOClip("MlpPolicy", Broken(mask=[1, 1]), **SMALL).learn(64),
    lambda: PPOClip("MlpPolicy", "CartPole-v1", clip_range=0),
    lambda: PPOClip("MlpPolicy", SimpleMultiObsEnv()),
    lambda: zoo._schedule("learning_rate", "1e-3"),
]


def test_messages_are_those_of_the_code(monkeypatch, auto_compiles, capsys):
    """Each message on the page of troubleshooting is made by one of these."""
    monkeypatch.setattr(support.shutil, "which", lambda _: None)
    messages = []
    for fail in FAILURES:
        with pytest.raises(Exception, match=r"\w") as caught:
            fail()
        messages.append(str(caught.value))
    PPOClip("MlpPolicy", "CartPole-v1", verbose=1, **SMALL).learn(64)
    messages.append(capsys.readouterr().out)
    quoted = [block.strip() for language, block in FENCE.findall(TEXTS["docs/troubleshooting.md"]) if language == "text"]
    assert len(quoted) > 10
    assert [text for text in quoted if not any(text in message for message in messages)] == []


def test_reasons_for_not_compiling_are_those_of_the_code():
    source = "".join(map(inspect.getsource, (backend, support, optimizer, step, verification)))
    tables = re.findall(r"^\| Not compiled.*?\n\n", TEXTS["docs/guide/speed.md"], flags=re.MULTILINE | re.DOTALL)
    lines = [line for table in tables for line in table.strip().splitlines()[2:]]
    reasons = [reason for line in lines for reason in line.split("|")[1].split("; ") if "CXX" not in reason]
    # Without what differs from case to case
    parts = [part.strip() for reason in reasons for part in re.split(r"\.\.\.|cuda|2\.12|12,000|\(g\+\+| 4 ", reason)]
    assert len(reasons) > 15
    assert [part for part in parts if part not in source] == []
