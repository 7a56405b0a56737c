"""What is built, and what an installation leaves in site-packages, in environments of their own."""

import email
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
SOURCES += ("_sb3_ppo_variants_hook.py", "sb3_ppo_variants.pth", "hyperparams", "sb3_ppo_variants")
PAPER_FILES = sorted((ROOT / "hyperparams" / "paper").glob("*.yml"))
VERSION = (ROOT / "sb3_ppo_variants" / "version.txt").read_text().strip()
ALGOS = ("ppo_clip", "ppo_fixedkl", "ppo_klpen")
# Prints whether the hook has run, and what of the heavy packages Python's start has imported
STARTED = """
import sys
heavy = {"torch", "numpy", "stable_baselines3", "gymnasium", "rl_zoo3", "sb3_ppo_variants"}
print("_sb3_ppo_variants_hook" in sys.modules, *heavy.intersection(sys.modules))
"""
# Prints what the Zoo takes for the hyperparameters of ppo_klpen
CONFIG = "from sb3_ppo_variants import zoo; print(zoo.hyperparams_path('ppo_klpen'))"


def run(*arguments, cwd):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SB3_", "PIP_"))}
    result = subprocess.run(list(map(str, arguments)), cwd=cwd, env=environ, text=True, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the package is built from, so that the working tree stays clean."""
    source = tmp_path_factory.mktemp("source")
    for path in (ROOT / name for name in SOURCES):
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, source)
    return source


@pytest.fixture(scope="module")
def dist(source):
    """The sdist, and the wheel built from it."""
    pytest.importorskip("build", reason="building needs the package `build`")
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory):
    """All that is installed where the tests run, without this package and without ``.pth`` files."""
    directory = tmp_path_factory.mktemp("dependencies")
    paths = sysconfig.get_paths()
    for site_packages in {paths["purelib"], paths["platlib"]}:
        for path in Path(site_packages).iterdir():
            if path.suffix != ".pth" and "sb3_ppo_variants" not in path.name and not (directory / path.name).exists():
                (directory / path.name).symlink_to(path)
    return directory


class Environment:
    """A virtual environment that sees packages in a directory besides its own."""

    def __init__(self, path, dependencies):
        venv.create(path, symlinks=True)
        self.python = path / "bin" / "python"
        purelib = run(self.python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=path).stdout.strip()
        self.site_packages = Path(purelib)
        (self.site_packages / "dependencies.pth").write_text(f"{dependencies}\n")

    def run(self, *arguments, cwd):
        return run(self.python, *arguments, cwd=cwd)

    def pip(self, *arguments, cwd):
        self.run("-m", "pip", "--disable-pip-version-check", "--quiet", *arguments, cwd=cwd)

    def install(self, *what, cwd):
        self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", *what, cwd=cwd)

    def uninstall(self, cwd):
        self.pip("uninstall", "--yes", "sb3_ppo_variants", cwd=cwd)

    def installed(self):
        """All files in site-packages, and the scripts."""
        roots = (self.site_packages, self.python.parent)
        return {str(path) for root in roots for path in root.rglob("*") if "__pycache__" not in path.parts}


def test_wheel(dist):
    """Which is built from the sdist, so that this has all of it, too."""
    assert len(PAPER_FILES) == 3
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        names = set(archive.namelist())
        for algo in ALGOS:
            shipped = archive.read(f"sb3_ppo_variants/hyperparams/{algo}.yml")
            assert shipped == (ROOT / "hyperparams" / f"{algo}.yml").read_bytes()
        for path in PAPER_FILES:
            assert archive.read(f"sb3_ppo_variants/hyperparams/paper/{path.name}") == path.read_bytes()
        package = ROOT / "sb3_ppo_variants"
        modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
        assert {f"sb3_ppo_variants/{name}" for name in modules | {"py.typed", "version.txt", "compiled/lstm.cpp"}} <= names
        assert {f"sb3_ppo_variants-{VERSION}.data/purelib/sb3_ppo_variants.pth", "_sb3_ppo_variants_hook.py"} <= names
        assert f"sb3_ppo_variants-{VERSION}.dist-info/licenses/LICENSE" in names
        top_level = {name.split("/")[0] for name in names}
        metadata = email.message_from_bytes(archive.read(f"sb3_ppo_variants-{VERSION}.dist-info/METADATA"))
    # No tests, no benchmarks
    info = {f"sb3_ppo_variants-{VERSION}.{kind}" for kind in ("data", "dist-info")}
    assert top_level == {"sb3_ppo_variants", "_sb3_ppo_variants_hook.py"} | info
    assert [metadata[name] for name in ("Version", "License-Expression", "Requires-Python")] == [VERSION, "MIT", ">=3.10"]
    assert 'pybullet_envs_gymnasium; extra == "bullet"' in metadata.get_all("Requires-Dist", [])
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_version_has_one_source():
    import sb3_ppo_variants

    assert sb3_ppo_variants.__version__ == VERSION
    assert importlib.metadata.version("sb3_ppo_variants") == VERSION


ARGUMENTS = ["--algo", "ppo_klpen", "--env", "CartPole-v1", "-n", "256", "--eval-freq", "-1", "--num-threads", "1"]


def test_installations_of_the_wheel_and_of_the_source(dependencies, dist, source, tmp_path):
    environment = Environment(tmp_path / "environment", dependencies)
    before = environment.installed()
    environment.install(next(dist.glob("*.whl")), cwd=tmp_path)
    # At start-up the hook alone
    assert environment.run("-c", STARTED, cwd=tmp_path).stdout.split() == ["True"]
    output = environment.run("-m", "rl_zoo3.train", *ARGUMENTS, cwd=tmp_path).stdout
    assert (tmp_path / "logs" / "ppo_klpen" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()
    yaml = environment.site_packages / "sb3_ppo_variants" / "hyperparams" / "ppo_klpen.yml"
    assert f"Loading hyperparameters from: {yaml}\n" in output
    # In the repository the source tree comes first
    config = environment.run("-c", CONFIG, cwd=source).stdout.splitlines()[-1]
    assert config == str(source / "hyperparams" / "ppo_klpen.yml")

    # Start-up survives missing parts
    shutil.rmtree(environment.site_packages / "sb3_ppo_variants")
    shutil.copytree(ROOT / "sb3_ppo_variants", tmp_path / "broken" / "sb3_ppo_variants")
    (tmp_path / "broken" / "sb3_ppo_variants" / "__init__.py").write_text("raise RuntimeError('broken')\n")
    result = environment.run("-c", "import rl_zoo3; print(sorted(rl_zoo3.ALGOS))", cwd=tmp_path / "broken")
    assert "RuntimeError: broken" in result.stderr
    assert "'ppo'" in result.stdout
    hook = environment.site_packages / "_sb3_ppo_variants_hook.py"
    for damage in (lambda: hook.write_text("not python\n"), hook.unlink):
        damage()
        result = environment.run("-c", "print('started')", cwd=tmp_path)
        assert (result.stdout, result.stderr) == ("started\n", "")

    environment.uninstall(cwd=tmp_path)
    assert environment.installed() == before
    assert environment.run("-c", STARTED, cwd=tmp_path).stdout.split() == ["False"]

    # An editable installation takes the place of that
    environment.install("-e", source, cwd=tmp_path)
    assert environment.run("-c", STARTED, cwd=tmp_path).stdout.split() == ["True"]
    config = environment.run("-c", CONFIG, cwd=tmp_path).stdout.splitlines()[-1]
    assert config == str(source / "hyperparams" / "ppo_klpen.yml")
    environment.uninstall(cwd=tmp_path)
    assert environment.installed() == before
