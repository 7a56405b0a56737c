"""The compiled minibatch step agrees with the reference path, which is SB3's PPO."""

import copy
import functools
import random
import shutil
import warnings
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
import torch as th
from conftest import ACTION_SPACES, OBSERVATION_SPACES, SpaceEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from test_parity import (
    POLICIES,
    DropoutExtractor,
    HalvedAdvantages,
    Mean,
    OwnPolicy,
    equal,
    space_env,
    train,
)
from torch.utils._pytree import tree_map

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen, compiled, inductor, paths
from sb3_ppo_variants.inference import StackedPolicy
from sb3_ppo_variants.loss import METRICS
from sb3_ppo_variants.objectives import kl_penalized_surrogate
from sb3_ppo_variants.rollout import Rollout

pytestmark = pytest.mark.skipif(
    tuple(map(int, th.__version__.split("+")[0].split(".")[:2])) < compiled.OLDEST_TORCH, reason="torch is too old to compile"
)


@pytest.fixture
def interpreted(monkeypatch):
    """The same graph, without Inductor: quick, and exact."""
    monkeypatch.setattr(inductor, "compile_graph", lambda graph, arguments: lambda arguments: graph(*arguments))


def updated(model, data, path):
    """Parameters, optimizer state, metrics and number of epochs of an update, from the same state and random numbers."""
    original, model = model, copy.copy(model)
    # Copies do not take along what has been compiled
    model._compiled_update = original._compiled_update
    optimizer = model.policy.optimizer
    state = copy.deepcopy((model.policy.state_dict(), optimizer.state_dict()))
    rollout = Rollout(model.rollout_buffer, model.policy)
    rollout.data = data
    np.random.seed(0)
    th.manual_seed(0)
    model.policy.set_training_mode(True)
    model.compile = model._uses_compiled = path == "compiled"
    metrics = model._optimize(rollout, model.coefficients(), model._max_approx_kl())
    original._compiled_update = model._compiled_update
    n_updates = model._n_updates - original._n_updates
    result = copy.deepcopy((model.policy.state_dict(), optimizer.state_dict(), metrics, n_updates))
    model.policy.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    return result


def assert_steps_agree_in_float64(model, tolerance=1e-10):
    policy = model.policy.double()
    policy.optimizer = policy.optimizer_class(policy.parameters(), lr=1e-3, **policy.optimizer_kwargs)
    with pytest.MonkeyPatch.context() as patch:
        # By which SB3 converts observations
        patch.setattr(th.Tensor, "float", th.Tensor.double)
        data = Rollout(model.rollout_buffer, policy, standardizes=model.normalize_advantage == "batch").data
        data = tree_map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, data)
        reference, other = (updated(model, data, path) for path in ("reference", "compiled"))
    before = policy.state_dict()
    differences = [(reference[0][name] - other[0][name]).abs().max().item() for name in before]
    changes = [(reference[0][name] - before[name]).abs().max().item() for name in before]
    assert np.median(changes) > 1e5 * tolerance, "the parameters have moved far enough to tell"
    assert max(differences) < tolerance
    states = [result[1]["state"] for result in (reference, other)]
    assert states[0].keys() == states[1].keys()
    for parameter in states[0]:
        for name, value in states[0][parameter].items():
            assert (value - states[1][parameter][name]).abs().max().item() < 100 * tolerance, name
    metrics = [th.cat(result[2]) for result in (reference, other)]
    assert metrics[0].shape == metrics[1].shape
    assert (metrics[0] - metrics[1]).abs().max() < 1e5 * tolerance


def trained(cls, policy, make_env, **kwargs):
    """A model with a rollout whose advantages, ratios and KL are not trivial."""
    return train(cls, policy, make_env, n_updates=2, **{"batch_size": 15, "learning_rate": 1e-3, "compile": False, **kwargs})[
        0
    ]


ALGORITHMS = {
    "clip": (PPOClip, {"clip_range": 0.05}),
    "fixed kl": (PPOFixedKL, {"kl_coef": 3.0}),
    "adaptive kl with clipping": (PPOKLPen, {"clip_range": 0.05, "normalize_advantage": "batch"}),
}


@pytest.mark.filterwarnings("ignore:batch_size = .* does not divide")
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_steps_agree_in_float64(algorithm, action, observation):
    cls, kwargs = ALGORITHMS[algorithm]
    if observation in ("image", "dict") and algorithm == "clip":
        pytest.skip("the two others cover it")
    model = trained(cls, POLICIES[observation], space_env(observation, action), ent_coef=0.01, **kwargs)
    assert_steps_agree_in_float64(model)


SETTINGS = {
    "value clipping": {"clip_range_vf": 0.1},
    "no clipping of the gradient": {"max_grad_norm": None},
    "no normalization": {"normalize_advantage": False},
    "sde": {"use_sde": True},
    "squashed sde": {"use_sde": True, "policy_kwargs": {"squash_output": True, "use_expln": True, "full_std": False}},
    "separate extractors": {"policy_kwargs": {"share_features_extractor": False, "activation_fn": th.nn.ReLU}},
    "dropout and batch norm": {"policy_kwargs": {"features_extractor_class": DropoutExtractor}},
    "adam": {"policy_kwargs": {"optimizer_kwargs": {"betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.01}}},
    "batches that fill vectors": {"batch_size": 16},
    # Exceeded in the fourth step
    "early stop": {"target_kl": 7e-3},
}


@pytest.mark.filterwarnings("ignore:batch_size = .* does not divide")
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_agree_in_float64(setting):
    model = trained(PPOClip, "MlpPolicy", space_env("box", "box"), **SETTINGS[setting])
    assert_steps_agree_in_float64(model)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("compiles", [True, False])
def test_gradient_whose_norm_overflows_is_left_alone_without_clipping(compiles):
    # Squares of 1e26 do not fit into a float32: Adam stands still where the gradient is so large, and goes on elsewhere
    kwargs = {"max_grad_norm": None, "vf_coef": 1e26, "compile": compiles}
    model, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"), n_updates=1, **kwargs)
    before = PPOClip("MlpPolicy", model.get_env(), seed=model.seed).policy
    assert th.equal(model.policy.value_net.weight, before.value_net.weight)
    assert not th.equal(model.policy.action_net.weight, before.action_net.weight)


class TwoDistributions(ActorCriticPolicy):
    """Looks at another distribution, too."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.other_dist = DiagGaussianDistribution(3)

    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        self.other_dist.proba_distribution(values.expand(-1, 3), self.log_std)
        return values, log_prob, entropy


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("policy", [OwnPolicy, TwoDistributions])
def test_custom_policies_agree_in_float64(policy):
    assert_steps_agree_in_float64(trained(PPOFixedKL, policy, space_env("box", "box"), batch_size=13))


def stops(model, path):
    data = Rollout(model.rollout_buffer, model.policy).data
    return updated(model, data, path)


@pytest.mark.filterwarnings("ignore:batch_size = .* does not divide")
@pytest.mark.usefixtures("interpreted")
def test_early_stop_leaves_out_the_step_that_exceeds_the_limit():
    model = trained(PPOClip, "MlpPolicy", space_env("box", "box"), target_kl=7e-3)
    reference, other = (stops(model, path) for path in ("reference", "compiled"))
    n_steps = [sum(map(len, result[2])) for result in (reference, other)]
    assert 1 < n_steps[0] < 12
    assert n_steps[0] == n_steps[1]
    assert reference[3] == other[3] == 1 + (n_steps[0] - 1) // 4
    assert reference[1]["state"][0]["step"] == other[1]["state"][0]["step"]
    approx_kl = th.cat(other[2])[:, METRICS.index("approx_kl")]
    assert (approx_kl[:-1] <= 1.05e-2).all()
    assert approx_kl[-1] > 1.05e-2


@pytest.mark.usefixtures("interpreted")
def test_early_stop_is_said_and_its_minibatch_counts_for_batch_normalisation(capsys):
    for path in (False, True):
        model = PPOClip(
            "MlpPolicy",
            space_env("box", "box")(),
            n_steps=26,
            batch_size=13,
            target_kl=1e-9,
            policy_kwargs={"features_extractor_class": BatchNormExtractor},
            compile=path,
            verbose=1,
        )
        model.learn(52)
        assert "Update ended in epoch 0: approximate KL" in capsys.readouterr().out
        (norm,) = (module for module in model.policy.features_extractor.modules() if isinstance(module, th.nn.BatchNorm1d))
        # At the first step the approximate KL is 0, if rounded well: that of the second one is not
        assert norm.num_batches_tracked in (1, 2)
        assert norm.running_mean.abs().max() > 0


@pytest.mark.usefixtures("interpreted")
def test_update_that_ends_before_its_first_step_leaves_the_optimizer_as_it_was():
    model = trained(PPOClip, "MlpPolicy", space_env("box", "box"), batch_size=26)
    model.policy.optimizer.state.clear()
    model.target_kl = 1e-9
    other = stops(model, "compiled")
    assert other[1]["state"] == {}
    assert not model.policy.optimizer.state


class PolicyGradient(PPOClip):
    """Does not depend on the ratio."""

    def surrogate(self, terms, coef):
        return terms.log_prob * terms.advantages


@pytest.mark.usefixtures("interpreted")
def test_approximate_kl_that_is_nan_ends_no_update():
    model = trained(PolicyGradient, "MlpPolicy", space_env("box", "box"), batch_size=26, target_kl=0.1)
    model.rollout_buffer.log_probs[:] = -np.inf
    reference, other = (stops(model, path) for path in ("reference", "compiled"))
    assert all(th.cat(result[2])[:, METRICS.index("approx_kl")].isnan().all() for result in (reference, other))
    before = model.policy.state_dict()["action_net.weight"]
    after = [result[0]["action_net.weight"] for result in (reference, other)]
    assert (after[0] - before).abs().max() > 1e-3
    assert (after[0] - after[1]).abs().max() < 1e-5


class BatchNormExtractor(DropoutExtractor):
    """Without dropout: Inductor may store a layer's outputs in another order, and dropout draws another mask then."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layers[3].p = 0.0


INDUCTOR = {
    "kl penalty": (PPOKLPen, "box", {}),
    "multibinary": (PPOClip, "multibinary", {}),
    "batch norm": (PPOClip, "box", {"policy_kwargs": {"features_extractor_class": BatchNormExtractor}}),
    "squashed sde": (PPOFixedKL, "box", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "images": (PPOClip, "discrete", {}),
}


@pytest.mark.parametrize("case", INDUCTOR)
def test_compiled_steps_agree_in_float32(case):
    cls, action, kwargs = INDUCTOR[case]
    observation = "image" if case == "images" else "box"
    model = train(cls, POLICIES[observation], space_env(observation, action), batch_size=26, **kwargs)[0]
    reason = compiled.unsupported_reason(model.policy)
    if reason is not None:
        pytest.skip(reason)
    reference, other = (stops(model, path) for path in ("reference", "compiled"))
    differences = [(reference[0][name] - other[0][name]).abs().max().item() for name in reference[0]]
    # Six steps of up to 3e-4; the gradient of a bias before batch norm is rounding errors only
    assert np.median(differences) < 1e-7
    assert max(differences) < 2e-5
    first_steps = [result[2][0][0] for result in (reference, other)]
    assert th.allclose(*first_steps, rtol=1e-4, atol=1e-6)


class KeepRollout(BaseCallback):
    """What the policy was given and gave, as callbacks see it."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def _on_step(self):
        names = ("obs_tensor", "actions", "values", "log_probs")
        self.steps.append([th.as_tensor(self.locals[name]).clone() for name in names])
        return True


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("action", ["box", "discrete"])
def test_rollouts_in_numpy_are_the_policys(action, n_envs, monkeypatch):
    in_use, init = [], StackedPolicy.__init__
    monkeypatch.setattr(StackedPolicy, "__init__", lambda self, *arguments: in_use.append(self) or init(self, *arguments))
    make = functools.partial(SpaceEnv, spaces.Box(-1, 1, (5,), np.float64), ACTION_SPACES[action])
    env = make_vec_env(make, n_envs=n_envs, seed=0)
    model = PPOClip("MlpPolicy", env, n_steps=64, batch_size=64, seed=0, device="cpu", compile=True)
    policy = copy.deepcopy(model.policy)
    callback = KeepRollout()
    model.learn(64 * n_envs, callback)
    assert in_use
    obs, actions, values, log_probs = (th.cat(tensors) for tensors in zip(*callback.steps, strict=True))
    with th.no_grad():
        expected_values, expected_log_probs, _ = policy.evaluate_actions(obs.float(), actions)
    assert th.allclose(values, expected_values, atol=1e-6)
    assert th.allclose(log_probs, expected_log_probs, atol=1e-5)
    buffer = model.rollout_buffer
    for array, tensor in ((buffer.values, values), (buffer.log_probs, log_probs)):
        # Flattened by the update: first all steps of the first environment
        np.testing.assert_array_equal(array.ravel(), tensor.view(64, n_envs).T.reshape(-1).numpy())


@pytest.mark.parametrize("action", ["box", "discrete"])
def test_actions_drawn_in_numpy_have_the_policys_distribution(action):
    n_steps = 4000
    model = PPOClip(
        "MlpPolicy", space_env("box", action, n_envs=1)(), n_steps=n_steps, batch_size=n_steps, seed=0, device="cpu"
    )
    with th.no_grad():
        model.policy.action_net.weight.mul_(100)
        if action == "box":
            model.policy.log_std[:] = th.tensor([-1.0, 0.0, 0.5])
    observation = np.full((1, 5), 0.5, np.float32)
    policy = StackedPolicy(model.policy, model.rollout_buffer)
    actions = np.concatenate([policy(observation).actions for _ in range(n_steps)])
    distribution = model.policy.get_distribution(th.as_tensor(observation)).distribution
    # Four standard errors
    if action == "box":
        noise = (actions - distribution.mean.detach().numpy()) / distribution.stddev.detach().numpy()
        assert np.abs(noise.mean(axis=0)).max() < 4 / np.sqrt(n_steps)
        assert np.abs(noise.std(axis=0) - 1).max() < 4 / np.sqrt(2 * n_steps)
    else:
        probs = distribution.probs.detach().numpy()[0]
        assert np.ptp(probs) > 0.1
        assert np.abs(np.bincount(actions, minlength=3) / n_steps - probs).max() < 4 * np.sqrt(0.25 / n_steps)


@pytest.mark.usefixtures("interpreted")
def test_probability_that_becomes_zero_in_numpy():
    """Also where NumPy has been told to raise errors."""
    model = PPOClip("MlpPolicy", space_env("box", "discrete")(), n_steps=26, batch_size=26, n_epochs=1, compile=True)
    with th.no_grad():
        model.policy.action_net.bias[0] = -100
    with np.errstate(all="raise"):
        model.learn(52)
    assert model.logger.name_to_value["train/n_updates"] == 1


@pytest.mark.usefixtures("interpreted")
def test_changed_parameters_count_in_the_next_rollout():
    class Anneal(KeepRollout):
        def _on_step(self):
            self.model.policy.log_std.data.sub_(0.01)
            return super()._on_step()

    model = PPOClip("MlpPolicy", space_env("box", "box")(), learning_rate=0.0, n_steps=26, batch_size=52, compile=True)
    for _ in range(2):
        policy, callback = copy.deepcopy(model.policy), Anneal()
        model.learn(52, callback, reset_num_timesteps=False)
        obs, actions, _, log_probs = (th.cat(tensors) for tensors in zip(*callback.steps, strict=True))
        with th.no_grad():
            assert th.allclose(log_probs, policy.evaluate_actions(obs, actions)[1], atol=1e-5)


def test_replaced_modules_count_in_the_next_rollout():
    class Replace(KeepRollout):
        def _on_step(self):
            if len(self.steps) == 5:
                self.model.policy.action_net = th.nn.Linear(64, 3)
            return super()._on_step()

    model = PPOClip("MlpPolicy", space_env("box", "box")(), learning_rate=0.0, n_steps=26, batch_size=52, compile=False)
    policies, callback = [copy.deepcopy(model.policy)], Replace()
    model.learn(104, callback)
    policies.append(model.policy)
    for policy, steps in zip(policies, (callback.steps[:26], callback.steps[26:]), strict=True):
        obs, actions, _, log_probs = (th.cat(tensors) for tensors in zip(*steps, strict=True))
        with th.no_grad():
            assert th.allclose(log_probs, policy.evaluate_actions(obs, actions)[1], atol=1e-5)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("compile_", [True, False])
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("observation", ["float32", "float64", "dict"])
def test_observations_that_are_not_finite_are_found_at_once(observation, number, compile_):
    class Broken(SpaceEnv):
        def step(self, action):
            obs, *others = super().step(action)
            if self.steps == 5:
                vector = obs["vector"] if observation == "dict" else obs
                vector[:] = number
            return obs, *others

    space = OBSERVATION_SPACES["dict"] if observation == "dict" else spaces.Box(-1, 1, (5,), observation)
    env = DummyVecEnv([lambda: Broken(space, ACTION_SPACES["box"])] * 2)
    model = PPOClip(POLICIES["dict" if observation == "dict" else "box"], env, n_steps=64, device="cpu", compile=compile_)
    name = "vector" if observation == "dict" else "observation"
    with pytest.raises(ValueError, match=rf"not finite: {name}\[0, 0\] = {number}"):
        model.learn(128)
    assert model.num_timesteps == 10


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("cls", [PPOClip, PPOFixedKL, PPOKLPen])
@pytest.mark.parametrize("action", ["box", "discrete"])
def test_same_seed_same_training(cls, action):
    models = [train(cls, "MlpPolicy", space_env("box", action), compile=True)[0] for _ in range(2)]
    assert models[0]._uses_compiled
    assert equal(models[0].policy.state_dict(), models[1].policy.state_dict())
    reference, _ = train(cls, "MlpPolicy", space_env("box", action), compile=False)
    assert not equal(models[0].policy.state_dict(), reference.policy.state_dict())


@pytest.mark.usefixtures("interpreted")
def test_saved_model_does_not_depend_on_the_path(tmp_path):
    model, _ = train(PPOKLPen, "MlpPolicy", space_env("box", "box"), compile=True)
    model.save(tmp_path / "model")
    for compile_ in (True, False):
        loaded = PPOKLPen.load(tmp_path / "model", env=space_env("box", "box")(), compile=compile_, device="cpu")
        assert equal(loaded.policy.state_dict(), model.policy.state_dict())
        assert equal(loaded.policy.optimizer.state_dict(), model.policy.optimizer.state_dict())
        loaded.learn(52)
        # 3 updates of 3 epochs of 4 minibatches, and another
        assert loaded.policy.optimizer.state_dict()["state"][0]["step"] == 48
    reference, _ = train(PPOKLPen, "MlpPolicy", space_env("box", "box"), compile=False)
    states = [m.policy.optimizer.state_dict() for m in (model, reference)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()


@pytest.mark.usefixtures("interpreted")
def test_changes_between_two_learns_count():
    """Parameters, optimizer, environments and coefficients are read anew: nothing of them is compiled in."""
    model, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=True)
    other, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=True, seed=9)
    model.set_parameters(other.get_parameters())
    model.lr_schedule = lambda _: 0.0
    model.learn(52)
    assert equal(model.policy.state_dict(), other.policy.state_dict())
    model.lr_schedule = lambda _: 1e-3
    model.policy.optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    model.set_env(space_env("box", "box", n_envs=2)())
    model.ent_coef = 0.5
    model.learn(52)
    assert not equal(model.policy.state_dict(), other.policy.state_dict())
    for group in model.policy.optimizer.param_groups:
        group["betas"] = (0.3, 0.7)
    model.vf_coef = 2.0
    reference, compiled_ = (stops(model, path)[0] for path in ("reference", "compiled"))
    assert max((reference[name] - compiled_[name]).abs().max() for name in reference) < 1e-5


@pytest.mark.usefixtures("interpreted")
def test_update_that_blows_up_is_undone():
    model, _ = train(PPOKLPen, "MlpPolicy", space_env("box", "box"), compile=True)
    before = copy.deepcopy((model.policy.state_dict(), model.policy.optimizer.state_dict()["state"], model.kl_coef))
    n_updates = model._n_updates
    model.lr_schedule = lambda _: 1e30
    with pytest.raises(FloatingPointError, match="smaller learning_rate"):
        model.learn(52)
    after = (model.policy.state_dict(), model.policy.optimizer.state_dict()["state"], model.kl_coef)
    assert equal(before, after)
    assert model._n_updates == n_updates
    model.lr_schedule = lambda _: 1e-3
    model.learn(52)


def test_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match="compile=True is not possible: there is no C\\+\\+ compiler"):
        train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=True)
    monkeypatch.setattr(paths, "MIN_STEPS_TO_COMPILE", 1)
    auto, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"), verbose=1)
    assert "Not compiled: there is no C++ compiler" in capsys.readouterr().out
    reference, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=False)
    assert equal(auto.policy.state_dict(), reference.policy.state_dict())


def test_compiler_that_fails(monkeypatch, capsys):
    def fail(graph, arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(inductor, "compile_graph", fail)
    with pytest.raises(compiled.CompilationError, match="OSError: the disk is full"):
        train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=True)
    monkeypatch.setattr(paths, "MIN_STEPS_TO_COMPILE", 1)
    train(PPOClip, "MlpPolicy", space_env("box", "box"), verbose=1)
    assert "Not compiled: OSError: the disk is full" in capsys.readouterr().out


def test_compiler_settings_of_others_stay(monkeypatch):
    """Those that the user has made are not overridden, and instruction sets that were not tested are not taken for tested."""
    with warnings.catch_warnings():
        # torch's own modules warn when they are imported
        warnings.simplefilter("ignore")
        from torch._inductor import compile_fx, config, cpu_vec_isa

    seen = []

    def fake(graph, arguments, **kwargs):
        seen.append((config.cpp.vec_isa_ok, config.cpp.march))
        cpu_vec_isa.valid_vec_isa_list()
        return SimpleNamespace(current_callable=None)

    monkeypatch.setattr(compile_fx, "compile_fx_inner", fake)
    with config.patch({"cpp.vec_isa_ok": False, "cpp.march": ""}):
        inductor.compile_graph(None, [])
    assert seen == [(False, "")]
    with config.patch({"cpp.vec_isa_ok": None}):
        inductor.compile_graph(None, [])
        assert config.cpp.vec_isa_ok is None
    assert seen[1][0] is True
    assert cpu_vec_isa.valid_vec_isa_list.cache_info().currsize == 0


def test_auto_compiles_long_trainings_only():
    model = PPOClip("MlpPolicy", space_env("box", "box")(), n_steps=512, batch_size=64, n_epochs=10)
    # 10 epochs of 16 minibatches in 1024 steps
    model._choose_path(1024 * 74)
    assert not model._uses_compiled
    model._choose_path(1024 * 76)
    assert model._uses_compiled


def test_auto_compiles_earlier_for_images():
    env = SpaceEnv(spaces.Box(0, 255, (4, 84, 84), np.uint8), ACTION_SPACES["box"])
    model = PPOClip("CnnPolicy", env, n_steps=64, batch_size=64, n_epochs=4)
    # 4 epochs of 17,900 samples
    model._choose_path(17_900)
    assert not model._uses_compiled
    model._choose_path(200)
    assert model._uses_compiled


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}, "the optimizer is RMSprop"),
        ({"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}}}, "amsgrad"),
    ],
)
def test_reasons_not_to_compile(kwargs, reason):
    with pytest.raises(RuntimeError, match=reason):
        train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=True, **kwargs)


def test_auto_counts_across_learns():
    model = PPOClip("MlpPolicy", space_env("box", "box")(), n_steps=512, batch_size=64, n_epochs=10)
    for _ in range(2):
        assert not model._uses_compiled
        model._choose_path(1024 * 40)
    assert model._uses_compiled


class Freeze(BaseCallback):
    """Freezes the first layer after the first update."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        if self.model._n_updates > 0:
            self.model.policy.mlp_extractor.policy_net[0].weight.requires_grad_(False)
            self.frozen = self.model.policy.mlp_extractor.policy_net[0].weight.clone()


@pytest.mark.usefixtures("interpreted")
def test_layers_frozen_in_between(monkeypatch, capsys):
    monkeypatch.setattr(paths, "MIN_STEPS_TO_COMPILE", 1)
    callback = Freeze()
    model = PPOClip("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, n_epochs=2, verbose=1)
    model.learn(156, callback)
    assert th.equal(callback.frozen, model.policy.mlp_extractor.policy_net[0].weight)
    assert "Not compiled: some parameters of the policy are frozen" in capsys.readouterr().out
    # That may be over in the next training
    model.policy.requires_grad_(True)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters())
    model.learn(52)
    assert model._uses_compiled


class Weighted(PPOClip):
    weight = 0.5

    def surrogate(self, terms, coef):
        return self.weight * self.unweighted(terms, coef)

    def unweighted(self, terms, coef):
        return super().surrogate(terms, coef)


class WeightedCoefficient(Weighted):
    def coefficients(self):
        return {**super().coefficients(), "weight": self.weight}

    def surrogate(self, terms, coef):
        return coef["weight"] * self.unweighted(terms, coef)


@pytest.mark.usefixtures("interpreted")
def test_objective_that_reads_attributes_is_not_compiled(monkeypatch, capsys):
    monkeypatch.setattr(paths, "MIN_STEPS_TO_COMPILE", 1)

    def learn(cls):
        model = cls("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, verbose=1, seed=0)
        model.learn(52)
        return model

    assert learn(WeightedCoefficient)._uses_compiled
    assert "Not compiled" not in capsys.readouterr().out
    assert not learn(Weighted)._uses_compiled
    assert "Not compiled: surrogate reads self.weight, which compiled code would not see change" in capsys.readouterr().out
    with pytest.raises(compiled.CompilationError, match=r"self\.weight"):
        Weighted("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, compile=True).learn(52)
    models = [train(cls, "MlpPolicy", space_env("box", "box"), compile=False)[0] for cls in (Weighted, WeightedCoefficient)]
    assert equal(models[0].policy.state_dict(), models[1].policy.state_dict())


class ChangeBuffer(BaseCallback):
    """Makes another buffer of the one that has been filled."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.model.rollout_buffer.__class__ = HalvedAdvantages


@pytest.mark.usefixtures("interpreted")
def test_buffer_that_changes_after_the_rollout():
    model = PPOClip("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, compile=True)
    with pytest.raises(compiled.CompilationError, match="HalvedAdvantages, not one of SB3's own"):
        model.learn(52, ChangeBuffer())


class StepSize(PPOClip):
    """Has a coefficient of the name of a number of Adam's."""

    def coefficients(self):
        return {**super().coefficients(), "step_size": 0.5, "max_grad_norm": 0.5}

    def surrogate(self, terms, coef):
        return coef["step_size"] * coef["max_grad_norm"] * super().surrogate(terms, coef)


@pytest.mark.usefixtures("interpreted")
def test_coefficients_have_names_of_their_own():
    model = trained(StepSize, "MlpPolicy", space_env("box", "box"), batch_size=26)
    reference, other = (stops(model, path) for path in ("reference", "compiled"))
    for name, parameter in reference[0].items():
        assert (parameter - other[0][name]).abs().max() < 1e-6


@pytest.mark.parametrize(
    "change", [lambda data: data.float(), lambda data: data.t().contiguous().t()], ids=["data type", "strides"]
)
def test_rollout_that_lies_otherwise_in_memory(change):
    """What has been compiled reads observations in float64, one after the other."""
    model = trained(PPOClip, "MlpPolicy", space_env("box", "box"), batch_size=26)
    reason = compiled.unsupported_reason(model.policy)
    if reason is not None:
        pytest.skip(reason)
    data = Rollout(model.rollout_buffer, model.policy).data
    data = data._replace(observations=data.observations.double())
    updated(model, data, "compiled")
    data = data._replace(observations=change(data.observations))
    reference, other = (updated(model, data, path) for path in ("reference", "compiled"))
    for name, parameter in reference[0].items():
        assert (parameter - other[0][name]).abs().max() < 1e-5


class ScaledExtractor(DropoutExtractor):
    """Its output depends on an attribute."""

    scale, scales = 1.0, (1.0,)

    def __init__(self, observation_space):
        super().__init__(observation_space)
        # Without layers that are not used, which never get a state in the optimizer
        self.layers = self.layers[:1]

    def forward(self, observations):
        return self.scale * self.scales[0] * self.layers[0](observations)


@pytest.mark.usefixtures("interpreted")
def test_moments_lie_in_memory_as_torch_leaves_them():
    model = trained(PPOClip, "MlpPolicy", space_env("box", "box"), batch_size=13, compile=True)
    for state in model.policy.optimizer.state.values():
        assert state["exp_avg"].is_contiguous()
        assert state["exp_avg_sq"].is_contiguous()


@pytest.mark.usefixtures("interpreted")
def test_changed_attributes_of_the_policy_count():
    model = trained(
        PPOClip,
        "MlpPolicy",
        space_env("box", "box"),
        batch_size=26,
        policy_kwargs={"features_extractor_class": ScaledExtractor},
    )
    extractor, net = model.policy.features_extractor, model.policy.mlp_extractor.policy_net
    changes = [(extractor, "scale", scale) for scale in (1.0, 0.5, np.float64(0.25), np.float64(1.0))]
    changes += [(extractor, "scales", (0.5,)), (net, "1", th.nn.Sigmoid())]
    for owner, name, value in changes:
        setattr(owner, name, value)
        reference, other = (stops(model, path) for path in ("reference", "compiled"))
        assert (reference[2][0] - other[2][0]).abs().max() < 1e-4, (name, value)


class Config:
    def __init__(self, fn=None):
        self.scale, self.fn = 1.0, fn


class Configurable(ScaledExtractor):
    """Its output depends on whatever an object may hold."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.listed, self.named, self.array, self.config = [1.0], {"scale": [1.0]}, np.ones(1), Config()
        self.fn, self.extra = th.tanh, None
        self.nested = {"functions": [Config(th.tanh)]}
        self.statistics = RunningMeanStd(shape=(8,))

    def forward(self, observations):
        scale = self.listed[0] * self.named["scale"][0] * float(self.array[0]) * self.config.scale
        features = self.fn(super().forward(observations))
        features = features - th.as_tensor(self.statistics.mean, dtype=features.dtype)
        features = self.nested["functions"][0].fn(features)
        return scale * (features if self.extra is None else self.extra(features))


def doubled(method):
    return lambda *args, **kwargs: 2 * method(*args, **kwargs)


def with_doubled_values(method):
    def evaluate(*args, **kwargs):
        values, *others = method(*args, **kwargs)
        return 2 * values, *others

    return evaluate


class HalfEntropy(DiagGaussianDistribution):
    def entropy(self):
        return 0.5 * super().entropy()


def replace_method(owner, name, decorator):
    setattr(owner, name, decorator(getattr(owner, name)))


CHANGES_BETWEEN_UPDATES = {
    "list": lambda policy, _: policy.features_extractor.listed.__setitem__(0, 0.5),
    "dictionary": lambda policy, _: policy.features_extractor.named["scale"].__setitem__(0, 0.5),
    "array": lambda policy, _: policy.features_extractor.array.__setitem__(0, 0.5),
    "object": lambda policy, _: setattr(policy.features_extractor.config, "scale", 0.5),
    "nested object": lambda policy, _: policy.features_extractor.nested["functions"].__setitem__(0, Config(th.sin)),
    "statistics": lambda policy, _: policy.features_extractor.statistics.update(np.ones((9, 8))),
    "function": lambda policy, _: setattr(policy.features_extractor, "fn", th.sin),
    "None": lambda policy, _: setattr(policy.features_extractor, "extra", th.sin),
    "method of a module": lambda policy, _: replace_method(policy.mlp_extractor, "forward_actor", doubled),
    "method of the policy": lambda policy, _: replace_method(policy, "evaluate_actions", with_doubled_values),
    "method of the distribution": lambda policy, _: replace_method(policy.action_dist, "entropy", doubled),
    "distribution": lambda policy, _: setattr(policy, "action_dist", HalfEntropy(3)),
    "method of the distribution's class": lambda _, patch: patch.setattr(
        DiagGaussianDistribution, "entropy", doubled(DiagGaussianDistribution.entropy)
    ),
    "method of a module's class": lambda _, patch: patch.setattr(
        MlpExtractor, "forward_actor", doubled(MlpExtractor.forward_actor)
    ),
    "method of the policy's class": lambda _, patch: patch.setattr(
        ActorCriticPolicy, "evaluate_actions", with_doubled_values(ActorCriticPolicy.evaluate_actions)
    ),
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("change", CHANGES_BETWEEN_UPDATES)
def test_changes_between_two_updates_count(change, monkeypatch):
    """What has been compiled is not what the policy does any more."""
    kwargs = {"batch_size": 26, "ent_coef": 0.1, "policy_kwargs": {"features_extractor_class": Configurable}}
    model = trained(PPOClip, "MlpPolicy", space_env("box", "box"), **kwargs)
    before = stops(model, "compiled")
    CHANGES_BETWEEN_UPDATES[change](model.policy, monkeypatch)
    reference, other = (stops(model, path) for path in ("reference", "compiled"))
    assert (reference[2][0] - before[2][0]).abs().max() > 1e-3
    assert (reference[2][0] - other[2][0]).abs().max() < 1e-4


@pytest.mark.usefixtures("interpreted")
def test_changed_objective_counts(monkeypatch):
    model = trained(PPOClip, "MlpPolicy", space_env("box", "box"), batch_size=26)
    stops(model, "compiled")
    monkeypatch.setattr(PPOClip, "surrogate", doubled(PPOClip.surrogate))
    reference, other = (stops(model, path) for path in ("reference", "compiled"))
    assert (reference[2][0] - other[2][0]).abs().max() < 1e-4
    model.surrogate = doubled(model.surrogate)
    with pytest.raises(compiled.CompilationError, match="surrogate has been set on the object"):
        stops(model, "compiled")
    # A reason that passes
    assert model._cannot_compile is None
    del model.surrogate
    stops(model, "compiled")


class DrawsNumbers(ScaledExtractor):
    """Drops its features now and then, in training only."""

    draw = random.random

    def forward(self, observations):
        return super().forward(observations) * (float(type(self).draw() < 0.5) if self.training else 1.0)


class DrawsWithoutParameters(FlattenExtractor):
    """As ``DrawsNumbers``, before SB3's own networks."""

    def forward(self, observations):
        return super().forward(observations) * (float(DrawsNumbers.draw() < 0.5) if self.training else 1.0)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("extractor", [DrawsNumbers, DrawsWithoutParameters])
@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_that_compiled_code_would_repeat(draw, extractor, monkeypatch):
    monkeypatch.setattr(DrawsNumbers, "draw", draw)
    kwargs = {"policy_kwargs": {"features_extractor_class": extractor}}
    with pytest.raises(compiled.CompilationError, match="draws random numbers from Python or NumPy"):
        train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=True, **kwargs)
    monkeypatch.setattr(paths, "MIN_STEPS_TO_COMPILE", 1)
    (model, _), (expected, _) = (
        train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=path, **kwargs) for path in ("auto", False)
    )
    # The attempt has left no trace
    assert not model._uses_compiled
    assert equal(model.policy.state_dict(), expected.policy.state_dict())


class CountsCalls:
    """Makes the output of an extractor depend on how often it has been called."""

    n_calls = 0

    def forward(self, observations):
        self.n_calls += self.training
        return super().forward(observations) * (1 + self.n_calls % 5)


class Counts(CountsCalls, ScaledExtractor):
    pass


class CountsWithoutParameters(CountsCalls, FlattenExtractor):
    pass


class DrawsFromItsOwn(ScaledExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.rng = np.random.default_rng(0)

    def forward(self, observations):
        return super().forward(observations) * (self.rng.random() if self.training else 1.0)


class CountsInAnObject(ScaledExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.stat = Mean()

    def forward(self, observations):
        self.stat.update(1.0)
        return super().forward(observations) * (1 + self.stat.n_calls % 5)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("extractor", "what"),
    [
        (Counts, "features_extractor.n_calls"),
        (CountsWithoutParameters, "features_extractor.n_calls"),
        (DrawsFromItsOwn, "a Generator"),
        (CountsInAnObject, "a Mean"),
    ],
)
def test_changes_that_compiled_code_would_not_make(extractor, what, monkeypatch):
    kwargs = {"policy_kwargs": {"features_extractor_class": extractor}}
    with pytest.raises(compiled.CompilationError, match=f"the evaluation of the policy changes {what},"):
        train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=True, **kwargs)
    # The attempt leaves no trace
    monkeypatch.setattr(paths, "MIN_STEPS_TO_COMPILE", 1)
    (model, _), (expected, _) = (
        train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=path, **kwargs) for path in ("auto", False)
    )
    assert not model._uses_compiled
    assert equal(model.policy.state_dict(), expected.policy.state_dict())


class PartialSurrogate(PPOClip):
    def weighted(self, terms, coef, weight):
        return weight * terms.ratio * terms.advantages

    surrogate = functools.partialmethod(weighted, weight=0.5)


@pytest.mark.usefixtures("interpreted")
def test_objective_of_another_kind_is_compiled_once(monkeypatch):
    made = []
    cls = compiled.CompiledUpdate
    monkeypatch.setattr(compiled, "CompiledUpdate", lambda *args: made.append(cls(*args)) or made[-1])
    train(PartialSurrogate, "MlpPolicy", space_env("box", "box"), compile=True)
    assert len(made) == 1


class Spare(ScaledExtractor):
    """Has a layer that is used at will."""

    uses_spare = False

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.spare = th.nn.Linear(8, 8)

    def forward(self, observations):
        features = super().forward(observations)
        return features + self.spare(features) if self.uses_spare else features


@pytest.mark.usefixtures("interpreted")
def test_parameters_that_torchs_adam_leaves_alone():
    def train_spare(compile_, **kwargs):
        policy_kwargs = {"features_extractor_class": Spare, **kwargs}
        return train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=compile_, policy_kwargs=policy_kwargs)[0]

    # Neither moments nor decay
    models = [train_spare(path) for path in (False, True)]
    assert models[1]._uses_compiled
    weights = [model.policy.features_extractor.spare.weight for model in models]
    assert th.equal(*weights)
    message = "the loss does not depend on policy.features_extractor.spare.weight, which Adam must leave as it is"
    with pytest.raises(compiled.CompilationError, match=message):
        train_spare(True, optimizer_kwargs={"weight_decay": 0.1})
    models[1].policy.features_extractor.uses_spare = True
    models[1].learn(52, reset_num_timesteps=False)
    models[1].policy.features_extractor.uses_spare = False
    with pytest.raises(compiled.CompilationError, match=message):
        models[1].learn(52, reset_num_timesteps=False)
    # A reason that passes
    models[1].policy.features_extractor.uses_spare = True
    models[1].learn(52, reset_num_timesteps=False)


class KeepsTheModel(BaseCallback):
    """Lets the policy know of objects that change all the time."""

    def _on_step(self):
        self.model.policy.features_extractor.known = [self, self.model, self.training_env]
        return True


@pytest.mark.usefixtures("interpreted")
def test_objects_that_change_but_do_not_count():
    kwargs = {"policy_kwargs": {"features_extractor_class": ScaledExtractor}, "n_steps": 26, "batch_size": 13, "n_epochs": 1}
    model = PPOClip("MlpPolicy", space_env("box", "box")(), compile=True, **kwargs)
    model.learn(208, KeepsTheModel())
    assert len(model._compiled_update.functions) == 1


class AnnealScale(BaseCallback):
    def _on_step(self):
        self.model.policy.features_extractor.scale *= 0.99
        return True


@pytest.mark.usefixtures("interpreted")
def test_attribute_that_always_changes():
    kwargs = {"policy_kwargs": {"features_extractor_class": ScaledExtractor}, "n_steps": 26, "batch_size": 13, "n_epochs": 1}
    model = PPOClip("MlpPolicy", space_env("box", "box")(), compile=True, **kwargs)
    with pytest.raises(compiled.CompilationError, match="changes again and again"):
        model.learn(520, AnnealScale())
    assert model._n_updates == compiled.MAX_FUNCTIONS


@pytest.mark.usefixtures("interpreted")
def test_replaced_layer():
    model, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=True)
    model.policy.action_net = th.nn.Linear(64, 3)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters())
    before = model.policy.action_net.weight.clone()
    model.learn(52)
    assert not th.equal(model.policy.action_net.weight, before)


def test_hooks_are_a_reason_not_to_compile():
    model = PPOClip("MlpPolicy", space_env("box", "box")())
    assert compiled.unsupported_reason(model.policy) is None or "compiler" in compiled.unsupported_reason(model.policy)
    model.policy.value_net.register_forward_hook(lambda *_: None)
    assert "hooks" in compiled.unsupported_reason(model.policy)


@pytest.mark.usefixtures("interpreted")
def test_model_trained_on_the_compiled_path_can_be_pickled_and_loaded_without_a_compiler(tmp_path, monkeypatch):
    model, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=True)
    assert model._compiled_update is not None
    assert model.__getstate__()["_compiled_update"] is None
    model.save(tmp_path / "model")
    model.env = model._logger = None
    pickled = cloudpickle.loads(cloudpickle.dumps(model))
    assert equal(pickled.policy.state_dict(), model.policy.state_dict())
    monkeypatch.setattr(shutil, "which", lambda _: None)
    loaded = PPOClip.load(tmp_path / "model", env=space_env("box", "box")())
    assert loaded.compile == "auto"
    loaded.learn(52)
    assert not loaded._uses_compiled
    assert PPOClip.load(tmp_path / "model", compile=True).compile is True


def test_kl_penalty_of_weight_zero_in_a_tensor():
    """As the compiled step sees it."""
    kl = th.tensor([0.125, float("inf")])
    assert kl_penalized_surrogate(th.ones(2), th.ones(2), kl, th.tensor(0.0)).tolist() == [1.0, 1.0]
    assert kl_penalized_surrogate(th.ones(2), th.ones(2), kl, th.tensor(2.0)).tolist() == [0.75, -float("inf")]


@pytest.mark.usefixtures("interpreted")
def test_one_thread_inside_of_learn(monkeypatch):
    n_threads = []

    def learn(n_before):
        th.set_num_threads(n_before)
        model = PPOClip("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=26, n_epochs=1, compile=True)
        model.learn(52, callback=lambda *_: n_threads.append(th.get_num_threads()) is None)
        assert th.get_num_threads() == n_before
        return n_threads[-1]

    # As where a process may use two of the cores
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 7}, raising=False)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    try:
        assert learn(2) == 1
        # Numbers that the user has set
        assert learn(3) == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert learn(2) == 2
    finally:
        th.set_num_threads(1)
