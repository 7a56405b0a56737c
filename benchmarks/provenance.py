"""Where results come from."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

# Other values of these give other numbers and other speed
VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "ATEN_CPU_CAPABILITY", "CXX")


def current_commit() -> str:
    """The commit that is checked out, with a plus if code has been changed since, or "unknown"."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parents[1]
        return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions(packages: Sequence[str]) -> str:
    """
    What a run was made with.

    :param packages: names of the packages that count
    :return: the versions of Python and of these
    """
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return "; ".join([python, *(f"{package} {version(package)}" for package in packages)])


def origin(packages: Sequence[str]) -> dict[str, str]:
    """
    Where a row of results comes from.

    :param packages: names of the packages that count
    :return: versions and ``environment``, to which the program that makes runs adds the commit
    """
    return {"versions": versions(packages), **environment()}


def environment() -> dict[str, str]:
    """
    What the last digits of a run depend on beside commit and versions: sums round by the kernels that the processor, and
    variables, choose.

    :return: the processor, the kernel of NumPy's BLAS, torch's instruction set, and those of ``VARIABLES`` that are set
    """
    import numpy as np  # noqa: F401
    import torch as th
    from threadpoolctl import threadpool_info

    kernels = (
        f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    )
    return {
        "processor": _processor(),
        "blas": "; ".join(sorted(set(map(str.strip, kernels)))),
        "cpu_capability": th.backends.cpu.get_cpu_capability(),
        "variables": "; ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ),
    }


def _processor() -> str:
    """Its name and, where Linux says them, family and model: names are hidden in virtual machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = values.get("model name", platform.processor())
    return f"{name}, family {values['cpu family']}, model {values['model']}" if "cpu family" in values else name
