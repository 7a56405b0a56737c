"""The protocol of section 6.1: its plan, its settings and its training."""

import numpy as np
import paper_support
import pytest
import torch as th
from paper_support import Inspect, statistics_of_ppo1
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.paper import experiments, training
from benchmarks.paper.experiments import SETTINGS, STAGES, Run
from benchmarks.paper.scores import paper_scores
from sb3_ppo_variants import NonFiniteUpdateError, PPOFixedKL
from sb3_ppo_variants.objectives import Terms, policy_gradient


def test_the_plan_is_the_papers():
    trained = [run for run in STAGES["table1"] if run.setting in SETTINGS]
    # 231 runs, and the twelfth setting
    assert len(trained) == 12 * 7 * 3
    assert list(paper_scores()) == list(SETTINGS)[:11]
    runs = [run for stage in STAGES.values() for run in stage]
    assert len(set(runs)) == len(runs)
    assert all(len(STAGES[f"seeds_{setting}"]) == 7 * 7 for setting in paper_scores())
    assert [len(STAGES[name]) for name in ("log_clip", "details_clipped_values")] == [21, 42]
    # Equation (2)
    assert experiments.PPOPolicyGradient.objective is policy_gradient


def test_clipping_in_log_space():
    # Ratios of e^0.5, e^-0.5 and e^0.1; from e^-0.25 = 0.7788 to e^0.25 = 1.2840, clipping changes the first two
    terms = Terms(th.tensor([0.5, -0.5, 0.1]), th.zeros(3), th.tensor([2.0, -1.0, 3.0]), kl=lambda: th.zeros(3))
    found = experiments.PPOLogClip.objective(terms, {"clip_range": 0.25})
    # The smaller of 3.2974 and 2.5681, of -0.6065 and -0.7788, and 3 * 1.1052
    np.testing.assert_allclose(found, [2.5681, -0.7788, 3.3155], atol=1e-4)
    # Whichever way the ratio goes, only the pessimistic side is clipped: 1.6487 * -2 and 0.6065 * 1
    terms = Terms(th.tensor([0.5, -0.5]), th.zeros(2), th.tensor([-2.0, 1.0]), kl=lambda: th.zeros(2))
    np.testing.assert_allclose(experiments.PPOLogClip.objective(terms, {"clip_range": 0.25}), [-3.2974, 0.6065], atol=1e-4)


def test_values_are_clipped_as_at_the_release_of_ppo1():
    model = make_model("none", "Reacher-v4", variant="clipped_values")
    assert model.coefficients() == {
        "vf_coef": 0.5,
        "ent_coef": 0.0,
        "clip_range_vf": 0.2,
        "kl_coef": 0.0,
        "pessimistic_vf": 1.0,
    }
    inspect = Inspect()
    model.learn(2048, callback=[training.ObservationFilter(model.env), inspect])
    # The old values are those of the old parameters and the new statistics, as log probabilities are
    (rollout,) = inspect.rollouts
    np.testing.assert_allclose(rollout.values, rollout.own_values, rtol=1e-5, atol=1e-6)


def test_hyperparameters_are_those_of_table_3():
    run = Run("paper", "adaptive_kl_0.03", "Hopper-v4", 0)
    assert experiments.hyperparameters(run) == {
        "n_steps": 2048,
        "learning_rate": 3e-4,
        "n_epochs": 10,
        "batch_size": 64,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "ent_coef": 0.0,
        "vf_coef": 1.0,
        "max_grad_norm": None,
        "normalize_advantage": "batch",
        "policy_kwargs": {"log_std_init": 0.0, "optimizer_kwargs": {"eps": 1e-5}},
        "kl_target": 0.03,
        "init_kl_coef": 1.0,
    }
    sb3 = experiments.hyperparameters(Run("sb3", "none", "Hopper-v4", 0))
    assert (sb3["max_grad_norm"], sb3["normalize_advantage"], sb3["kl_coef"]) == (0.5, True, 0.0)


def make_model(*args, **kwargs):
    """Of the ten epochs of the study one is enough here."""
    model = paper_support.make_model(*args, compile=False, **kwargs)
    model.n_epochs = 1
    return model


def test_observation_filter_is_that_of_ppo1():
    model, inspect = make_model("clip_0.2", "Reacher-v4"), Inspect()
    model.learn(4096, callback=[training.ObservationFilter(model.env), inspect])
    for end, rollout in zip((2048, 4096), inspect.rollouts, strict=True):
        mean, std = statistics_of_ppo1(inspect.raw[:end])
        expected = np.clip((np.array(inspect.raw[end - 2048 : end]) - mean) / std, -5, 5)
        np.testing.assert_allclose(rollout.observations, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rollout.log_probs, rollout.own_log_probs, rtol=1e-6)
    # Reacher has an observation that is always 0, whose deviation is held at 0.1
    assert model.env.obs_rms.var.min() == 1e-2


# By variant
CHANGES = {
    "paper": {},
    "sb3": {"bounds": True, "advantages": True, "max_grad_norm": 0.5, "vf_coef": 0.5},
    "bounded_actions": {"bounds": True},
    "minibatch_advantages": {"advantages": True},
    "clipped_gradient": {"max_grad_norm": 0.5, "vf_coef": 0.5},
    "normalized_rewards": {"rewards": (10.0, 0.99)},
    "ppo2": {
        "rewards": (10.0, 0.99),
        "advantages": True,
        "max_grad_norm": 0.5,
        "vf_coef": 0.25,
        "clip_range_vf": 0.2,
        "pessimistic_values": True,
    },
    "raw_observations": {"observations": False},
    "raw_advantages": {"advantages": False},
    "raw": {"observations": False, "advantages": False},
    "annealed": {"halfway": 1.5e-4},
    "small_epsilon": {"eps": 1e-8},
    "short_memory": {"betas": (0.9, 0.9)},
    "clipped_values": {"clip_range_vf": 0.2, "vf_coef": 0.5, "pessimistic_values": True},
}


@pytest.mark.parametrize("variant", experiments.VARIANTS)
def test_variants_change_what_they_say(variant):
    model = make_model("none", "HalfCheetah-v4", variant=variant)
    wrappers, env = [], model.env
    while isinstance(env, VecNormalize):
        wrappers.append(env)
        env = env.venv
    found = {
        "observations": any(wrapper.norm_obs for wrapper in wrappers),
        "rewards": next(((w.clip_reward, w.gamma) for w in wrappers if w.norm_reward), None),
        "bounds": bool((env.action_space.high == 1).all()),
        "halfway": model.lr_schedule(0.5),
        "eps": model.policy.optimizer.param_groups[0]["eps"],
        "betas": model.policy.optimizer.param_groups[0]["betas"],
        "advantages": model.normalize_advantage,
        "max_grad_norm": model.max_grad_norm,
        "vf_coef": model.vf_coef,
        "clip_range_vf": model.clip_range_vf and model.clip_range_vf(1),
        "pessimistic_values": "pessimistic_vf" in model.coefficients(),
    }
    # As in ppo1
    paper = {"observations": True, "rewards": None, "bounds": False, "halfway": 3e-4, "eps": 1e-5, "betas": (0.9, 0.999)}
    paper |= {"advantages": "batch", "max_grad_norm": None, "vf_coef": 1.0, "clip_range_vf": None, "pessimistic_values": False}
    assert found == paper | CHANGES[variant]


def test_episodes_end_for_good_at_the_time_limit():
    env = training.make_env(Run("paper", "clip_0.2", "Reacher-v4", 0))
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(50)]
    assert ends == [(False, False)] * 49 + [(True, False)]


def test_initial_policy_is_that_of_ppo1():
    model = make_model("none", "Hopper-v4", seed=3)
    for name, parameter in model.policy.named_parameters():
        if name == "log_std" or name.endswith("bias"):
            assert not parameter.any()
        else:
            norm = 0.01 if name.startswith("action_net") else 1.0
            np.testing.assert_allclose(parameter.detach().norm(dim=1), norm, rtol=1e-5)
    assert model.policy.mlp_extractor.policy_net[0].weight.shape == (64, 11)


def test_a_run_that_diverges_is_a_result(monkeypatch):
    def learn(self, timesteps, callback):
        self.num_timesteps = 300
        callback[1].returns, callback[1].lengths = [1.0, 3.0], [100, 150]
        raise NonFiniteUpdateError("policy")

    monkeypatch.setattr(PPOFixedKL, "learn", learn)
    result = training.train(Run("paper", "none", "Reacher-v4", 0), 2048, "")
    assert (result.row["diverged"], result.row["steps"], result.row["score"]) == (True, 300, 2.0)
