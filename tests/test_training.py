"""The variants in training: the KL, the log, the limits, custom objectives and distributions, threads, memory."""

import copy
import gc
import threading
import tracemalloc

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import DiagGaussianDistribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from support import (
    OBSERVATION_SPACES,
    POLICIES,
    InEachRollout,
    SpaceEnv,
    assert_same_training,
    equal,
    make_model,
    space_env,
    train,
    updates,
)

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen
from sb3_ppo_variants.objectives import clipped_surrogate


@pytest.mark.parametrize(
    ("cls", "observation", "action", "kwargs"),
    [
        (PPOFixedKL, "box", "discrete", {}),
        (PPOFixedKL, "dict", "multibinary", {}),
        (PPOKLPen, "box", "box", {}),
        (PPOKLPen, "box", "box", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
        (PPOKLPen, "image", "discrete", {}),
        (PPOKLPen, "discrete", "multidiscrete", {}),
    ],
)
def test_kl_penalty_trains_on_every_space_with_lanes_and_without(cls, observation, action, kwargs, monkeypatch):
    results = []
    for switch in ("0", "1"):
        monkeypatch.setenv("SB3_PPO_VARIANTS_FAST", switch)
        make_env = space_env(observation, action)
        results.append(train(cls, POLICIES[observation], make_env, n_updates=2, learning_rate=1e-3, compile=False, **kwargs))
    assert_same_training(*results)
    assert 0 < updates(results[0][1])[-1]["train/kl"] < 1


def test_logged_kl_is_exact():
    old_state = {}
    callback = InEachRollout(lambda model: old_state.update(copy.deepcopy(model.policy.state_dict())), at_end=True)
    env = SpaceEnv(OBSERVATION_SPACES["box"], spaces.Box(-2, 2, (3,)))
    model = PPOClip("MlpPolicy", env, learning_rate=0.02, n_steps=64, n_epochs=4, seed=0)
    model.learn(64, callback)
    observations = th.as_tensor(model.rollout_buffer.observations.reshape(-1, 5))
    new = model.policy.get_distribution(observations).distribution
    mean, std = new.mean.detach(), new.stddev.detach()
    model.policy.load_state_dict(old_state)
    old = model.policy.get_distribution(observations).distribution
    # Gaussian KL with variances written out, in float64
    s0, s1, m0, m1 = (x.double() for x in (old.stddev, std, old.mean, mean))
    expected = (th.log(s1 / s0) + (s0**2 + (m0 - m1) ** 2) / (2 * s1**2) - 0.5).sum(dim=1).mean().item()
    assert expected > 1e-4
    assert model.logger.name_to_value["train/kl"] == pytest.approx(expected, rel=1e-4)


def test_schedules_where_the_last_rollout_overshoots():
    def linear(progress):
        return 0.3 * progress

    # Two rollouts of 52 timesteps: 1 - 104 / 60 = -0.73 remains, where SB3 goes on with its own schedules
    own = dict.fromkeys(("learning_rate", "clip_range"), linear)
    models = [make_model(PPO, **own).learn(60), make_model(PPOClip, compile=False, **own).learn(60)]
    assert equal(*(model.policy.state_dict() for model in models))
    names = ("kl_coef", "ent_coef", "vf_coef")
    model = make_model(PPOFixedKL, **dict.fromkeys(names, linear)).learn(60)
    assert [model.logger.name_to_value[f"train/{name}"] for name in names] == [0, 0, 0]


def test_schedules_of_coefficients():
    # The third of three updates sees the progress 1/3 (after the second rollout), 0 at the end
    starts = {"ent_coef": 0.3, "vf_coef": 0.6, "kl_coef": 9.0, "clip_range": 0.3}
    model, rows = train(PPOFixedKL, **{name: LinearSchedule(start, 0.0, 1.0) for name, start in starts.items()})
    for name, start in starts.items():
        assert [row[f"train/{name}"] for row in updates(rows)] == pytest.approx([start * 2 / 3, start / 3, 0]), name
    assert model.kl_coef == 0
    _, rows = train(PPOKLPen, kl_target=LinearSchedule(0.03, 0.0, 1.0))
    assert [row["train/kl_target"] for row in updates(rows)] == pytest.approx([0.02, 0.01, 0])


@pytest.mark.parametrize("normalize_advantage", ["batch", True, False])
def test_advantages_normalized_once_a_batch_in_each_minibatch_or_not_at_all(normalize_advantage):
    class SeenAdvantages(PPOClip):
        @staticmethod
        def objective(terms, coef):
            seen.append(terms.advantages)
            return clipped_surrogate(terms, coef)

    seen = []
    callback = InEachRollout(lambda model: model.rollout_buffer.advantages.put(range(52), range(52)), at_end=True)
    train(SeenAdvantages, n_epochs=1, n_updates=1, normalize_advantage=normalize_advantage, callback=callback)
    everything = th.cat(seen).sort().values
    if normalize_advantage == "batch":
        # Mean 25.5, and deviation sqrt((52^2 - 1) / 12) = 15.00833 of the population
        assert everything[:2].tolist() == pytest.approx([-1.699056, -1.632426], rel=1e-5)
    elif normalize_advantage:
        assert [minibatch.mean().item() for minibatch in seen] == pytest.approx([0] * 4, abs=1e-6)
        assert [minibatch.std().item() for minibatch in seen] == pytest.approx([1] * 4, abs=1e-6)
    else:
        assert everything.tolist() == list(range(52))


@pytest.mark.parametrize("max_grad_norm", [None, 1e-3])
def test_logged_norm_is_that_of_the_gradient_before_clipping(max_grad_norm, fast):
    """One minibatch: SB3's loss written out, and torch's norm of its gradient."""
    kwargs = {"n_updates": 1, "n_epochs": 1, "batch_size": 52, "normalize_advantage": False, "ent_coef": 0.1}
    model, rows = train(PPOClip, max_grad_norm=max_grad_norm, **kwargs)
    before, _ = train(PPOClip, **{**kwargs, "learning_rate": 0.0})
    (samples,) = before.rollout_buffer.get()
    values, log_prob, entropy = before.policy.evaluate_actions(samples.observations, samples.actions)
    # At a ratio of 1
    surrogate = (log_prob - samples.old_log_prob).exp() * samples.advantages
    loss = -surrogate.mean() - 0.1 * entropy.mean() + 0.5 * (values.flatten() - samples.returns).square().mean()
    before.policy.optimizer.zero_grad()
    loss.backward()
    norm = th.cat([parameter.grad.flatten() for parameter in before.policy.parameters()]).norm().item()
    assert norm > 1e-2
    assert updates(rows)[0]["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    unclipped, _ = train(PPOClip, max_grad_norm=1e9, **kwargs)
    assert equal(unclipped.policy.state_dict(), model.policy.state_dict()) == (max_grad_norm is None)


@pytest.mark.parametrize("cls", [PPOFixedKL, PPOKLPen])
def test_target_kl_ends_updates_early(cls, capsys):
    model, rows = train(cls, learning_rate=3e-3, verbose=1, target_kl=1e-3)
    # Of three epochs in each of three updates
    assert 3 <= model._n_updates < 9
    assert rows[-1]["train/n_updates"] == model._n_updates
    assert "Update ended in epoch " in capsys.readouterr().out
    assert train(cls, learning_rate=3e-3, target_kl=1e3)[0]._n_updates == 9


class Discretized(ActorCriticPolicy):
    """Five values of each action: the distribution is of another family than ``action_dist``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.action_net = th.nn.Linear(64, 15)
        self.optimizer = self.optimizer_class(self.parameters(), lr=3e-4, **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi):
        return MultiCategoricalDistribution([5, 5, 5]).proba_distribution(self.action_net(latent_pi))

    def forward(self, obs, deterministic=False):
        actions, *others = super().forward(obs, deterministic)
        return actions.float(), *others

    def log_probs(self, observations):
        return th.cat([part.logits for part in self.get_distribution(observations).distribution], dim=1).detach()


def test_kl_is_that_of_the_distribution_that_acts():
    def keep(model):
        observations = th.as_tensor(model.rollout_buffer.observations.reshape(-1, 5))
        kept[:] = observations, model.policy.log_probs(observations)

    kept = []
    model, rows = train(PPOKLPen, Discretized, learning_rate=3e-3, callback=InEachRollout(keep, at_end=True))
    # Normalized logits
    kl = (kept[1].exp() * (kept[1] - model.policy.log_probs(kept[0]))).sum(dim=1).mean().item()
    assert kl > 0.01
    assert rows[-1]["train/kl"] == pytest.approx(kl, rel=1e-4)


class Laplace(DiagGaussianDistribution):
    """Of another family than its base class, and without a closed form of its entropy."""

    def proba_distribution(self, mean_actions, log_std):
        self.distribution = th.distributions.Laplace(mean_actions, log_std.exp().expand_as(mean_actions))
        return self

    def entropy(self):
        return None


class LaplacePolicy(ActorCriticPolicy):
    """With a distribution of the user's class in place of SB3's."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.action_dist = Laplace(3)


def test_distributions_without_closed_form():
    """Such a policy trains with PPOClip, without the KL in the log, and says what is missing with a KL penalty."""
    model, rows = train(PPOClip, LaplacePolicy, ent_coef=0.01)
    expected, _ = train(PPO, LaplacePolicy, ent_coef=0.01)
    assert equal(model.policy.state_dict(), expected.policy.state_dict())
    assert "train/kl" not in updates(rows)[-1]
    with pytest.raises(NotImplementedError, match=r"No closed form of KL|KL.* is not known"):
        train(PPOKLPen, LaplacePolicy)
    # Without a weight nobody asks for it
    unclipped, _ = train(PPOFixedKL, LaplacePolicy, kl_coef=0, clip_range=0.2, ent_coef=0.01)
    assert equal(unclipped.policy.state_dict(), expected.policy.state_dict())


def test_hooks_on_gradients_are_called_and_nobodys_objects_are_copied():
    model, calls = make_model(PPOKLPen), []
    model.policy.log_std.register_post_accumulate_grad_hook(calls.append)
    # Cannot be copied
    model.policy.features_extractor.lock = threading.Lock()
    model.learn(52)
    # 2 epochs of 2 minibatches
    assert len(calls) == 4


@pytest.fixture
def validated(monkeypatch):
    """Torch's validation of distributions is on, which torch.compile turns off for good."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_kl_penalty_trains_a_policy_that_torch_compile_wraps(validated):
    expected = make_model(PPOFixedKL, learning_rate=1e-3).learn(104)
    model = make_model(PPOFixedKL, learning_rate=1e-3)
    model.policy = th.compile(model.policy, backend="eager")
    kl, expected_kl = (one.logger.name_to_value["train/kl"] for one in (model.learn(104), expected))
    assert kl == pytest.approx(expected_kl, rel=1e-4)
    assert kl > 0
    assert th.allclose(model.policy.action_net.weight, expected.policy.action_net.weight, atol=1e-6)


def test_float_total_timesteps_progress_bar_and_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    model = PPOKLPen("MlpPolicy", "Pendulum-v1", n_steps=64, tensorboard_log=str(tmp_path))
    model.learn(1e2, progress_bar=True)
    assert model.num_timesteps == 128
    assert [path.name for path in tmp_path.iterdir()] == ["PPOKLPen_1"]


def test_trainings_that_overlap_leave_nothing_behind(validated):
    """Nor does one that ends with an error: torch's validation of distributions stays on throughout."""
    seen = []
    barrier = threading.Barrier(2, timeout=60)

    def meet(model):
        # The second training begins within the first one, and ends after it
        if model.num_timesteps in meetings[type(model)]:
            seen.append(th.distributions.Distribution._validate_args)
            barrier.wait()

    meetings = {PPOClip: (16, 32), PPOKLPen: (0, 16)}
    models = [make_model(cls, n_steps=8, batch_size=8) for cls in meetings]
    threads = [threading.Thread(target=model.learn, args=(64, InEachRollout(meet))) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert seen == [True] * 4
    with pytest.raises(FloatingPointError):
        make_model(learning_rate=1e30).learn(64)
    assert th.distributions.Distribution._validate_args
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        th.distributions.Normal(0.0, -1.0)


def test_memory_of_many_updates():
    def objects_and_bytes():
        gc.collect()
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

    kwargs = {"n_steps": 2, "batch_size": 4, "n_epochs": 1, "policy_kwargs": {"net_arch": [4]}}
    model = make_model(PPOKLPen, compile=False, stats_window_size=1, **kwargs)
    tracemalloc.start()
    try:
        model.learn(4 * 150, log_interval=None)
        objects, n_bytes = objects_and_bytes()
        model.learn(4 * 250, log_interval=None)
        more_objects, more_bytes = objects_and_bytes()
    finally:
        tracemalloc.stop()
    assert model._n_updates == 400
    # Less than an object in two updates, and 160 bytes in each, of which Monitor keeps most
    assert more_objects - objects < 100
    assert more_bytes - n_bytes < 40_000
