"""The curve of the humanoid: means of parts of a training, its table and its figure."""

import pytest

from benchmarks import humanoid, runs


def test_means_of_parts():
    # Parts of 5 timesteps; the episode that ends at 11 is of the last one
    means = humanoid.window_means([1, 5, 6, 11], [2.0, 4.0, 7.0, 9.0], timesteps=10, n_windows=2)
    assert means == [3, 8]
    means = humanoid.window_means([5], [2.0], timesteps=10, n_windows=2)
    assert means == pytest.approx([2, float("nan")], nan_ok=True)


def test_table_and_figure(monkeypatch, capsys, tmp_path):
    rows = [{"curve": " ".join(str(slope * i) for i in range(1, 21))} for slope in (10, 20)]
    monkeypatch.setattr(runs, "load", lambda path: rows)
    monkeypatch.setattr(humanoid, "FIGURE", tmp_path / "humanoid.svg")
    humanoid.report_and_draw()
    lines = capsys.readouterr().out.splitlines()
    # After 4 of 20 parts: 10 * 4 and 20 * 4
    assert lines[2] == "| 1 million | 60 (40, 80) |"
    assert lines[6] == "| 5 million | 300 (200, 400) |"
    assert "<svg" in humanoid.FIGURE.read_text(encoding="utf-8")
