"""
The test suites of Stable-Baselines3 and of the RL Zoo with ``PPOClip`` in PPO's place: those of their tests that use PPO.

    python -m benchmarks.peer_suites                              # both, of the installed versions
    python -m benchmarks.peer_suites --suite zoo
    python -m benchmarks.peer_suites --tests-dir ~/stable-baselines3 --suite sb3    # a checkout, where a release has no tests

The tests are those in the source distributions, which ``pip download`` fetches. What fails is run again with their own PPO: a
test that fails there, too (for a package that is not installed), is no difference between the two. Not part of the CI.
"""

import argparse
import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = {"sb3": "stable_baselines3", "zoo": "rl_zoo3"}
# Environment variables by which this process tells pytest, and pytest the scripts that tests start
REFERENCE, FAILED = "PEER_SUITES_REFERENCE", "PEER_SUITES_FAILED"
# What is left out, by a part of its name, and why
LEFT_OUT = {"test_enjoy.py": "looks up and plays trained agents on the Hugging Face Hub"}
PPO = r"\bppo(clip)?\b"
OTHER_ALGORITHMS = r"\b(a2c|ars|ddpg|dqn|her|ppo_lstm|qrdqn|sac|td3|tqc|trpo)\b"
# The Zoo's tests call these scripts, which its repository has in its root, but its source distribution has not
SCRIPT = "from benchmarks.peer_suites import replace_ppo\nreplace_ppo()\nfrom rl_zoo3.{0} import {0}\n{0}()\n"


def replace_ppo() -> None:
    """Put ``PPOClip`` in the place of Stable-Baselines3's PPO, unless its own is asked for."""
    if os.environ.get(REFERENCE):
        return
    import stable_baselines3
    from stable_baselines3.ppo import ppo

    from sb3_ppo_variants import PPOClip, ProximalPolicyOptimization

    # Differences that docs/guide/coming_from.md names. The reference path: seeds are to give the same training
    defaults = ProximalPolicyOptimization.__init__.__kwdefaults__
    assert defaults is not None
    defaults["compile"] = False
    # The default name of a run in TensorBoard is that of the class
    PPOClip.__name__ = "PPO"
    for module in (stable_baselines3, stable_baselines3.ppo, ppo):
        module.PPO = PPOClip  # type: ignore[attr-defined]


def uses_ppo(item: Any) -> bool:
    """Whether a test uses PPO: by the name of an algorithm in its parameters or, if there is none, in its code."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    parameters = " ".join(str(value) for value in values).lower()
    for text in (parameters, inspect.getsource(item.function).lower()):
        if re.search(PPO, text):
            return True
        if re.search(OTHER_ALGORITHMS, text):
            return False
    return False


def pytest_configure() -> None:
    """As a plugin of pytest: before the tests are imported."""
    replace_ppo()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """As a plugin of pytest: files that are left out, and those without PPO, which need not be importable."""
    is_test = collection_path.suffix == ".py"
    without_ppo = is_test and re.search(PPO, collection_path.read_text(encoding="utf-8").lower()) is None
    return True if without_ppo or collection_path.name in LEFT_OUT else None


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """As a plugin of pytest: leave out what does not use PPO, and what is left out."""
    selected = [item for item in items if uses_ppo(item) and not any(part in item.nodeid for part in LEFT_OUT)]
    config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    items[:] = selected


def pytest_runtest_logreport(report: Any) -> None:
    """As a plugin of pytest: note down what fails."""
    if report.failed:
        with open(os.environ[FAILED], "a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


def fetch(package: str, directory: Path) -> Path:
    """
    The source distribution of the installed version of a package.

    :param package: its name
    :param directory: where to put it
    :return: the folder that has its tests
    :raises FileNotFoundError: if it has no tests
    """
    what = f"{package}=={version(package)}"
    options = ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--quiet", "--dest", str(directory)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, what], check=True)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(directory, filter="data")
    source = directory / archive.name.removesuffix(".tar.gz")
    if not (source / "tests").is_dir():
        raise FileNotFoundError(f"the source distribution of {what} has no tests: give a checkout of it by --tests-dir")
    return source


def run(source: Path, suite: str, tests: list[str], reference: bool, arguments: list[str]) -> list[str]:
    """Run tests with pytest; the ids of those that fail."""
    with tempfile.TemporaryDirectory() as folder:
        failed = Path(folder) / "failed"
        failed.touch()
        paths = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        env = os.environ | paths | {FAILED: str(failed), REFERENCE: "1" if reference else "", "OMP_NUM_THREADS": "1"}
        # The installed package, not the folder of the same name beside the tests
        command = ["-P", "-m", "pytest", "-p", "benchmarks.peer_suites", "-p", "no:cacheprovider", "-q", *arguments, *tests]
        code = subprocess.run([sys.executable, *command], cwd=source, env=env).returncode
        if code not in (0, 1):
            raise RuntimeError(f"pytest could not run the tests of {suite}: it returned {code}")
        return list(dict.fromkeys(failed.read_text(encoding="utf-8").splitlines()))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=PACKAGES, nargs="*", default=list(PACKAGES), help="whose tests; both by default")
    parser.add_argument("--tests-dir", type=Path, help="a folder with the folder tests, in place of the source distribution")
    options, arguments = parser.parse_known_args()
    different: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for suite in options.suite:
            (Path(folder) / suite).mkdir()
            source = Path(folder) / suite
            if options.tests_dir is None:
                source = fetch(PACKAGES[suite], source)
            else:
                # A copy, as scripts are put beside the tests
                shutil.copytree(options.tests_dir, source, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
            for name in ("train", "enjoy") if suite == "zoo" else ():
                (source / f"{name}.py").write_text(SCRIPT.format(name), encoding="utf-8")
            failed = run(source, suite, ["tests"], False, arguments)
            of_both = run(source, suite, failed, True, []) if failed else []
            for test in failed:
                print(f"{suite}: {test}: {'fails with its own PPO, too' if test in of_both else 'FAILS ONLY HERE'}")
            different += [test for test in failed if test not in of_both]
    return len(different) > 0


if __name__ == "__main__":
    sys.exit(main())
