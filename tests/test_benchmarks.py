"""What the benchmarks measure with: tasks, contestants, intervals."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from compiled_support import needs_new_torch
from filelock import FileLock
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.recall  # noqa: F401
from benchmarks import (
    learning_cleanrl,
    learning_masks,
    learning_recurrent,
    mask_draws,
    runs,
    speed,
    speed_cases,
    speed_report,
    speed_worker,
)


def play(env, seed, choose):
    """Observations, masks and return of an episode with actions that are chosen from the first observation and the mask."""
    obs, info = env.reset(seed=seed)
    first, observations, masks, total, ended = obs, [obs], [info.get("action_mask")], 0.0, False
    while not ended:
        obs, reward, ended, truncated, info = env.step(choose(first, masks[-1]))
        assert not truncated
        # Only the last action is paid
        assert ended or reward == 0
        observations.append(obs)
        masks.append(info.get("action_mask"))
        total += reward
    return np.array(observations[:-1]), masks, total


def the_cue(first, _):
    return int(first.argmax())


def mean_return(env, choose, n=600):
    return np.mean([play(env, seed, choose)[2] for seed in range(n)])


@pytest.mark.parametrize("env_id", ["Recall-v0", "MaskedRecall-v0"])
def test_recall_is_an_environment(env_id):
    check_env(gym.make(env_id).unwrapped, skip_render_check=True)


def test_recall_shows_the_cue_first_and_asks_for_it_last():
    lengths, cues = set(), set()
    for seed in range(60):
        observations, _, total = play(gym.make("Recall-v0"), seed, the_cue)
        assert total == 1
        assert observations[0, :3].sum() == 1
        assert observations[0, 3] == 0
        assert not observations[1:-1].any()
        assert observations[-1].tolist() == [0, 0, 0, 1]
        lengths.add(len(observations))
        cues.add(int(observations[0].argmax()))
    # The cue, three to five blank ones, "now"
    assert lengths == {5, 6, 7}
    assert cues == {0, 1, 2}


def test_recall_without_memory_is_chance():
    # 1/3 with a standard deviation of 0.02
    assert mean_return(gym.make("Recall-v0"), lambda *_: 1) == pytest.approx(1 / 3, abs=0.06)


def test_masked_recall_needs_memory_and_masks():
    env = gym.make("MaskedRecall-v0")
    _, masks, _ = play(env, 3, lambda *_: 0)
    assert (env.unwrapped.action_masks() == masks[0]).all()
    # One of the two actions of each cue, and through the episode the same
    assert masks[0].reshape(3, 2).sum(axis=1).tolist() == [1, 1, 1]
    assert all((mask == masks[0]).all() for mask in masks)
    # The valid one of the cue; the first one of the cue; the first valid one
    assert mean_return(env, lambda first, mask: 2 * the_cue(first, mask) + int(mask[2 * the_cue(first, mask) + 1])) == 1
    assert mean_return(env, lambda first, mask: 2 * the_cue(first, mask)) == pytest.approx(1 / 2, abs=0.06)
    assert mean_return(env, lambda _, mask: int(mask.argmax())) == pytest.approx(1 / 3, abs=0.06)


def test_who_takes_part_in_the_learning_of_recurrent_policies():
    ours, whole = ["RecurrentPPO", "PPOClip", "PPOKLPen"], learning_recurrent.TASKS
    assert whole["CartPoleNoVel-v1"].algorithms() == ours
    assert whole["Recall-v0"].algorithms() == [*ours, "PPOClip without memory"]
    # contrib has no masks with an LSTM
    assert whole["MaskedRecall-v0"].algorithms() == [*ours[1:], "PPOClip without memory", "PPOClip without masks"]


@pytest.mark.parametrize("name", ["RecurrentPPO", pytest.param("PPOClip without memory", marks=needs_new_torch)])
def test_run_of_the_learning_of_recurrent_policies(name, monkeypatch, tmp_path):
    config = tmp_path / "recall.yml"
    config.write_text(learning_recurrent.CONFIG.read_text().replace("n_timesteps: 16384", "n_timesteps: 1"))
    monkeypatch.setattr(learning_recurrent, "CONFIG", config)
    row = learning_recurrent.train(name, "Recall-v0", 0)
    # One rollout
    assert (row["algorithm"], row["env"], row["seed"], row["timesteps"]) == (name, "Recall-v0", 0, 8 * 128)
    assert 0 <= row["score"] <= 1


def test_contestants_of_the_speed():
    ours = ["PPOClip, reference", "PPOClip", "PPOKLPen"]
    assert speed_cases.contestants("masks, Discrete(12), 8 envs") == ["MaskablePPO", *ours]
    assert speed_cases.contestants("LSTM, Hopper-v4, 8 envs") == ["RecurrentPPO", *ours]
    sequences = ["PPOClip, sequences of 16", "PPOClip, sequences of 32"]
    assert speed_cases.contestants("LSTM, HalfCheetah-v4, 8 envs") == ["RecurrentPPO", *ours, *sequences]
    with_floor = {case for case in speed_cases.CASES if speed_cases.FLOOR in speed_cases.contestants(case)}
    assert with_floor == {"masks, Discrete(1400), 8 envs", "images 84x84x4, 8 envs"}
    assert speed_cases.contestants("masks, Discrete(1400), 8 envs")[0] == "MaskablePPO"
    # Also learn(...), which is no case. SBX may be missing
    for case in ("CartPole-v1", ""):
        assert [name for name in speed_cases.contestants(case) if name != "SBX PPO"] == ["SB3 PPO", *ours[:2]]


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


# The counter of an older torch does not take `out`
@needs_new_torch
def test_floor_of_many_actions_is_the_products_of_both_networks():
    step_of_rollout, step_of_update = speed_worker.matrix_products(speed_cases.CASES["masks, Discrete(1400), 8 envs"])
    # Layers of 32 * 64, 64 * 64 and 64 * 1400, and of 32 * 64, 64 * 64 and 64 * 1: 101,952 products a sample
    assert flops(step_of_rollout) == 2 * 8 * 101_952
    # The gradients of all weights are as many, and those of all inputs but the observations 2 * 32 * 64 fewer
    assert flops(step_of_update) == 2 * 64 * (3 * 101_952 - 4_096)


@pytest.mark.parametrize("case", ["masks, Discrete(1400), 8 envs", "images 84x84x4, 8 envs"])
def test_turn_of_the_floor(case):
    kwargs = {"n_steps": 4, "batch_size": 32, "n_epochs": 1}
    turn = next(speed_worker.network_alone(replace(speed_cases.CASES[case], kwargs=kwargs)))
    assert min(turn["rollout_us"], turn["update_us"]) > 0


def test_speed_report_has_a_table_for_each_peer_and_one_chart(tmp_path):
    columns = "case,contestant,ratio,ratio_min,ratio_max,seconds,machine,versions\n"
    ratios = {"PPOClip": 2, "PPOKLPen": 1.5}
    rows = [
        f"{peer[0]},{name},{ratio},{ratio},2.5,1,m,v\n"
        for peer in speed_report.PEERS
        for name, ratio in {peer: 1, **ratios}.items()
    ]
    (tmp_path / "speed.csv").write_text(columns + "".join(rows))
    speed_report.write(tmp_path)
    *tables, _, _ = (tmp_path / "speed.md").read_text().split("\n\n")
    assert [table.splitlines()[0] for table in tables] == [
        "| times as fast as SB3's PPO | PPOClip | PPOKLPen |",
        "| times as fast as contrib's MaskablePPO | PPOClip | PPOKLPen |",
        "| times as fast as contrib's RecurrentPPO | PPOClip | PPOKLPen |",
    ]
    assert tables[2].splitlines()[2:] == ["| R | **2.00** (2.00 to 2.50) | **1.50** (1.50 to 2.50) |"]
    # matplotlib draws letters as paths, and says in comments which
    comments = re.findall(r"<!-- (.*) -->", (tmp_path / "speed.svg").read_text())
    assert [text for text in comments if text.startswith("times")] == [
        table.splitlines()[0].split(" | ")[0][2:] for table in tables
    ]
    assert comments.count("2.0") == 3
    assert comments.count("PPOKLPen") == 1


def test_runs_beside_cleanrl(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CLEANRL", str(tmp_path))
    with pytest.raises(ValueError, match="CLEANRL must name a checkout"):
        learning_cleanrl.train("CleanRL", learning_cleanrl.ENV, 0)
    rows = [f"{name},{score}" for name in ("CleanRL", "PPOClip") for score in (1, 2, 3 + 3 * (name == "CleanRL"))]
    rows = [f"{row},HalfCheetah-v4,{seed}" for seed, row in enumerate(rows)]
    (tmp_path / "runs.csv").write_text("\n".join(["algorithm,score,env,seed", *rows]))
    # The mean of CleanRL is 3
    learning_cleanrl.report(tmp_path / "runs.csv")
    assert "| CleanRL | 3 ± 3 (3 seeds) | +1 (" in capsys.readouterr().out


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def train(algorithm, env, seed):
        if seed == 1:
            raise RuntimeError("no luck")
        return {"algorithm": algorithm, "env": env, "seed": seed}

    path, planned = tmp_path / "runs.csv", [("PPO", "a", seed) for seed in range(3)]
    monkeypatch.setattr(runs, "current_commit", lambda: "at the start")
    runs.run_missing(path, train, planned, jobs=2)
    rows = runs.load(path)
    assert {(row["seed"], row["commit"]) for row in rows} == {("0", "at the start"), ("2", "at the start")}
    assert "PPO, a, 1 failed" in capsys.readouterr().err
    # It remains missing, and is made once it can be
    assert runs.missing(path, planned) == [("PPO", "a", 1)]
    runs.run_missing(path, lambda *run: dict(zip(runs.KEY, run, strict=True)), planned, jobs=1)
    assert sorted(row["seed"] for row in runs.load(path)) == ["0", "1", "2"]
    assert runs.missing(path, planned) == []


@pytest.mark.parametrize("line", ["PPO,a,0,9", "PPO,a", "PPO,a,1,2,3"])
def test_runs_that_are_there_twice_or_in_part_are_named(line, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(f"algorithm,env,seed,score\nPPO,a,0,1\n{line}\n")
    with pytest.raises(ValueError, match=r"runs\.csv, line 3, is not whole, or its run is there twice"):
        runs.load(path)


def test_commit_has_a_plus_where_code_has_been_changed(tmp_path):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    def found():
        code = "from benchmarks.provenance import current_commit; print(current_commit())"
        return subprocess.run(
            [sys.executable, "-B", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    for path in ("benchmarks/results", "docs"):
        (tmp_path / path).mkdir(parents=True)
    package = Path(runs.__file__).parent
    for name in ("__init__.py", "provenance.py"):
        (tmp_path / "benchmarks" / name).write_bytes((package / name).read_bytes())
    git("init")
    git("add", "--all")
    git("commit", "--message=1")
    commit = git("rev-parse", "--short=12", "HEAD")
    for path in ("docs/page.md", "benchmarks/results/runs.csv"):
        (tmp_path / path).touch()
        assert found() == f"{commit}\n"
    (tmp_path / "setup.py").touch()
    assert found() == f"{commit}+\n"


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        (3, "+3.0 (+1.3 to +4.7) | yes: 5.0"),
        (4, "+4.0 (+2.3 to +5.7) | not shown: 5.0"),
        (-4, "-4.0 (-5.7 to -2.3) | not shown: 5.0"),
    ],
)
def test_equivalence_is_shown_where_the_interval_is_within_the_margin(more, verdict, tmp_path, capsys):
    # Variances of 1: a standard error of sqrt(2 / 3) = 0.816, by t = 2.132 of 4 degrees of freedom 1.74. The range is 100
    scores = {"MaskablePPO": 50, "PPOClip": 50 + more, "PPOClip without masks": 0}
    rows = [f"{name},InvalidActionEnvDiscrete,{seed},{score + seed}" for name, score in scores.items() for seed in range(3)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["algorithm,env,seed,score", *rows]) + "\n")
    learning_masks.report(path)
    assert f"| {verdict} |" in capsys.readouterr().out


def test_speed_is_the_median_of_the_ratios_of_the_turns():
    turns = [
        {
            "SB3 PPO": {"rollout_us": 0.75 * peer, "update_us": 0.25 * peer},
            "PPOClip": {"rollout_us": own / 2, "update_us": own / 2},
        }
        for peer, own in ((100, 50), (150, 25), (80, 40))
    ]
    # 2, 6 and 2; the ratio of the medians would be 2.5
    row = speed.summary("case", "PPOClip", turns)
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (2, 2, 6)
    assert (row["rollout_us"], row["update_us"]) == (20, 20)
    assert speed.summary("case", "SB3 PPO", turns)["ratio"] == 1


@pytest.mark.parametrize(("action", "is_valid"), [(0, False), (1, True), (2, False), (-1, False)])
def test_invalid_draws_are_counted(action, is_valid, monkeypatch):
    class Actor:
        def act(self, observations, given):
            return SimpleNamespace(actions=np.full(len(observations), action))

    monkeypatch.setattr(mask_draws, "acting", lambda *_: Actor())
    monkeypatch.setattr(mask_draws, "random_masks", lambda heads, n, *_: np.tile([False, True], (n, 1)))
    draws, invalid = mask_draws.count_invalid("numpy", spaces.Discrete(2), 64, np.random.default_rng(0))
    assert (draws, invalid) == (64, 0 if is_valid else 64)


def test_results_are_added_to_by_one_program_and_have_one_kind_of_row(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "current_commit", lambda: "c")

    def row(algorithm, env, seed):
        return {"algorithm": algorithm, "env": env, "seed": seed, "score": seed}

    path = tmp_path / "runs.csv"
    with FileLock(path.with_suffix(".lock")), pytest.raises(ValueError, match="Another program adds to"):
        runs.run_missing(path, row, [("PPO", "a", 0)], jobs=1)
    runs.run_missing(path, row, [("PPO", "a", 0)], jobs=1)
    # Another order is put right
    runs.run_missing(path, lambda *run: dict(reversed(row(*run).items())), [("PPO", "a", 1)], jobs=1)
    assert path.read_text() == "algorithm,env,seed,score,commit\nPPO,a,0,0,c\nPPO,a,1,1,c\n"
    with pytest.raises(ValueError, match=r"has the columns .*, score, commit, but new rows have .*, seconds"):
        runs.run_missing(path, lambda *run: row(*run) | {"seconds": 1}, [("PPO", "a", 2)], jobs=1)


def test_command_says_what_is_missing(tmp_path, monkeypatch, capsys):
    path = tmp_path / "runs.csv"
    path.write_text("algorithm,env,seed\nPPO,a,0\n")
    monkeypatch.setattr(sys, "argv", ["", "--report"])
    with pytest.raises(SystemExit, match="1"):
        runs.command(None, path, None, [("PPO", "a", seed) for seed in range(3)], lambda path: print(path.name))
    assert capsys.readouterr().out.startswith("runs.csv\n\n2 of 3 runs are missing")
    monkeypatch.setattr(sys, "argv", ["", "--report", "--results", str(path)])
    runs.command(None, tmp_path / "others.csv", None, [("PPO", "a", 0)], lambda path: print(path.name))
    assert capsys.readouterr().out == "runs.csv\n"
