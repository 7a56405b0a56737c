"""The notebooks run from top to bottom, and hold what a whole run has shown; the HalfCheetah can be drawn."""

import ctypes.util
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from benchmarks import animation

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
# What must hold after 4,096 timesteps a training, after which the kernel forgets all names
CHECKS = {
    "first_training": "assert len(frames) == 30 and model.num_timesteps == 4096\n%reset -f",
    # Two updates of three algorithms; only PPOClip has no beta
    "penalty_or_clipping": "assert len(rows) == 6 and sum('train/kl_coef' in row for row in rows) == 4",
}
HAS_EGL = ctypes.util.find_library("EGL") is not None


def test_notebooks_run(tmp_path):
    """One after the other in one kernel, as its imports take most of the time."""
    run = nbformat.v4.new_notebook()
    for name in CHECKS if HAS_EGL else ["penalty_or_clipping"]:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        (training,) = [cell for cell in notebook.cells if "TIMESTEPS = " in cell.source]
        training.source = re.sub("TIMESTEPS = .*", "TIMESTEPS = 4096", training.source)
        run.cells += [*notebook.cells, nbformat.v4.new_code_cell(CHECKS[name])]
    NotebookClient(run, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()


def test_all_notebooks_are_tested_and_hold_a_whole_run():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(CHECKS)
    for name in CHECKS:
        path = FOLDER / f"{name}.ipynb"
        assert path.stat().st_size < 300_000
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell.outputs]
        assert any("image/png" in output.get("data", {}) for output in outputs)
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)


@pytest.mark.skipif(not HAS_EGL, reason="MuJoCo cannot draw")
def test_animation(tmp_path, monkeypatch):
    path = tmp_path / "cheetah.webp"
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(sys, "argv", ["animation", "--timesteps", "512", "--frames", "3", "--output", str(path)])
    animation.main()
    with Image.open(path) as picture:
        assert (picture.n_frames, picture.size) == (3, (640, 210))
