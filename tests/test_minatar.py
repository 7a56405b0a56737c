"""What is run and counted in MinAtar."""

import csv
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from benchmarks import minatar, minatar_pilot, runs


def row(algorithm, env, seed, training, last):
    values = {"training": str(training), "last": str(last)}
    return {"algorithm": algorithm, "env": env, "seed": str(seed), **values}


def test_tables(monkeypatch):
    # Means by the last 100 episodes: asterix 2, 4, 3, freeway 5, 1, 5, seaquest 1, 2, 2.004
    scores = {"asterix": (2, 4, 3), "freeway": (5, 1, 5), "seaquest": (1, 2, 2.004)}
    monkeypatch.setattr(minatar, "GAMES", tuple(scores))
    rows = [
        row(name, game, seed, -score, score + (seed - 0.5))
        for game, of_game in scores.items()
        for name, score in zip(("PPO", "A2C", "ACER"), of_game, strict=True)
        for seed in (0, 1)
    ]
    lines = f"{minatar.scores_table(rows, 'last')}\n{minatar.leads(rows, 'last')}".splitlines()
    # The deviation of -0.5 and 0.5 is the square root of a half
    assert "| asterix | 2.00 ± 0.71 | **4.00** ± 0.71 | 3.00 ± 0.71 |" in lines
    # 2.004 is printed as 2.00
    assert "| games won | 0 | 1 | 0 |" in lines
    assert "Ties: freeway, seaquest" in lines
    # PPO is worse twice, and better once. Of the runs, in asterix none is better, in freeway all, in seaquest one of four is
    # the same: (0 + 1 + 1/8) / 3. Two to one is no lead: p = 1
    (line,) = (line for line in lines if line.startswith("| PPO over A2C"))
    assert line.startswith("| PPO over A2C | 1 to 2 | p = 1.00 | 0.38 (")
    assert line.endswith(") | 0.00 | 1.00 | 0.12 |")
    # By the other criterion, whose scores are the negatives: asterix PPO, freeway A2C, seaquest PPO
    lines = minatar.wins_table(rows).splitlines()
    assert lines[0] == "| games won by | PPO | A2C | ACER | paper: PPO | paper: A2C | paper: ACER |"
    assert lines[2:] == [
        "| mean return of all episodes | 2 | 1 | 0 | 30 | 1 | 18 |",
        "| mean return of the last 100 episodes | 0 | 1 | 0 | 19 | 1 | 28 |",
    ]


def test_report_leaves_out_an_algorithm_until_all_its_runs_are_there(tmp_path, capsys):
    path = tmp_path / "minatar.csv"
    assert len(runs.missing(path, minatar.PLANNED)) == 150
    minatar.report(path)
    assert not capsys.readouterr().out
    lengths = {"timesteps": "1", "in_episodes": "1"}
    made = [(name, game, seed) for name in ("PPO", "A2C") for game in minatar.GAMES for seed in minatar.SEEDS]
    rows = [{**row(*run, 1, 2), **lengths} for run in [*made, ("ACER", "asterix", 0)]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert len(runs.missing(path, minatar.PLANNED)) == 49
    minatar.report(path)
    assert "| game | PPO | A2C |" in capsys.readouterr().out


def test_the_pilot_takes_the_best_candidate_and_else_the_published():
    low = dict.fromkeys(minatar_pilot.CANDIDATES, 1.0)
    means = {
        "one": {**low, "PPO x 0.25": 10.0, "A2C x 4": 2.0},
        "two": {**low, "PPO x 0.25": 2.0, "PPO x 4": 4.0, "A2C x 0.25": 2.0},
    }
    normalized, chosen = minatar_pilot.choose(means)
    # (10 / 10 + 2 / 4) / 2, (1 / 10 + 4 / 4) / 2, (2 / 10 + 1 / 4) / 2, (1 / 10 + 2 / 4) / 2
    expected = {"PPO x 0.25": 0.75, "PPO x 4": 0.55, "A2C x 4": 0.225, "A2C x 0.25": 0.3}
    assert {name: normalized[name] for name in expected} == pytest.approx(expected)
    assert chosen == {"PPO": "PPO x 0.25", "A2C": "A2C x 0.25", "ACER": "ACER x 1"}


def test_what_is_run_is_what_the_pilot_chose():
    _, chosen = minatar_pilot.choose(minatar_pilot.mean_scores(runs.load(minatar_pilot.RESULTS)))
    factors = {algorithm: minatar_pilot.CANDIDATES[name][1] for algorithm, name in chosen.items()}
    assert factors == minatar.FACTORS
    # Else there might be a better one
    assert max(factors.values()) < max(minatar_pilot.FACTORS)
    for row in runs.load(minatar.RESULTS):
        assert float(row["learning_rate"]) == factors[row["algorithm"]] * minatar.PUBLISHED[row["algorithm"]]
        assert int(row["timesteps"]) >= minatar.TIMESTEPS == 2_000_000


def test_no_environment_has_the_seed_of_another():
    seeds = [*minatar.SEEDS, *minatar_pilot.SEEDS]
    assert len(minatar.SEEDS) == 10
    assert len({seed + i for seed in seeds for i in range(minatar.N_ENVS)}) == len(seeds) * minatar.N_ENVS


def test_runs_that_are_stuck_are_named():
    rows = [
        {**row("PPO", "seaquest", seed, 1, 1), "timesteps": "1000", "in_episodes": in_episodes}
        for seed, in_episodes in ((0, "1000"), (10, "900"), (20, "890"))
    ]
    assert minatar.stuck(rows) == ["PPO seaquest 20 (89%)"]


@pytest.mark.parametrize(("game", "channels", "n_actions"), [("breakout", 4, 3), ("seaquest", 10, 6)])
def test_environment(game, channels, n_actions):
    pytest.importorskip("minatar")
    env = minatar.MinAtar(game)
    check_env(env, skip_render_check=True)
    assert env.observation_space.shape == (channels, 10, 10)
    assert env.action_space.n == n_actions

    def play(seed):
        obs, _ = env.reset(seed=seed)
        assert (obs[2] == env.game.state()[:, :, 2]).all()
        return np.array([env.step(t % n_actions)[0] for t in range(5)])

    assert (play(0) == play(0)).all()
    assert not (play(0) == play(1)).all()


@pytest.mark.parametrize(
    ("algorithm", "learning_rate", "numbers"),
    [
        # Table 5, but for the step size
        ("PPO", 4e-3, {"n_steps": 128, "batch_size": 256, "n_epochs": 3, "gae_lambda": 0.95, "vf_coef": 1.0}),
        ("A2C", 1.12e-2, {"n_steps": 5, "vf_coef": 0.25, "gae_lambda": 1.0, "max_grad_norm": 0.5}),
        ("ACER", 1.12e-2, {"n_steps": 20, "vf_coef": 0.5, "max_grad_norm": 10.0, "buffer_size": 400_000, "delta": 1.0}),
    ],
)
def test_what_is_trained(algorithm, learning_rate, numbers, monkeypatch):
    class Game:
        """Of the shape of breakout: MinAtar need not be installed."""

        def __init__(self, name):
            assert name == "breakout"

        def state_shape(self):
            return 10, 10, 4

        def minimal_action_set(self):
            return [0, 1, 3]

    monkeypatch.setitem(sys.modules, "minatar", SimpleNamespace(Environment=Game))
    model = minatar.make_model(algorithm, "breakout", 0)
    assert {name: getattr(model, name) for name in numbers} == numbers
    assert (model.n_envs, model.gamma, model.ent_coef) == (8, 0.99, 0.01)
    assert [model.lr_schedule(progress) for progress in (1, 0.5, 0)] == pytest.approx([learning_rate, learning_rate / 2, 0])
    if algorithm == "PPO":
        assert [model.clip_range(progress) for progress in (1, 0.5, 0)] == pytest.approx([0.1, 0.05, 0])
        assert (type(model.policy.optimizer), model.compile) == (th.optim.Adam, True)
    else:
        # TensorFlow's, with the numbers of openai/baselines
        (group,) = model.policy.optimizer.param_groups
        assert (type(model.policy.optimizer), group["alpha"], group["eps"]) == (RMSpropTFLike, 0.99, 1e-5)
    # 16 filters of 3x3 on 4 channels, 128 units, then linear in these: 3 actions, and the value or one for each
    shapes = {name: tuple(parameter.shape) for name, parameter in model.policy.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "features_extractor.cnn.0.weight": (16, 4, 3, 3),
        "features_extractor.linear.0.weight": (128, 16 * 8 * 8),
        "action_net.weight": (3, 128),
        "value_net.weight": (3 if algorithm == "ACER" else 1, 128),
    }


@pytest.mark.parametrize("algorithm", ["A2C", "ACER"])
def test_run(algorithm):
    pytest.importorskip("minatar")
    result = minatar.train(algorithm, "breakout", 0, timesteps=1_600, factor=2.0)
    assert result["timesteps"] == 1_600
    # The environments' last ones have not ended
    assert 1_000 < result["in_episodes"] < 1_600
    assert result["learning_rate"] == 1.4e-3
    # An episode of random play has some ten steps
    assert result["episodes"] > 20
    assert 0 < result["last"] < 5
