"""Where results come from."""

import subprocess
from pathlib import Path


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
