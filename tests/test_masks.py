"""Policies with action masks: contrib's MaskablePPO bit for bit, masks from three sources, and no invalid action."""

import functools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from masked_support import WAYS, GivesMasks, masked_env
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable import evaluation
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from support import (
    ACTION_SPACES,
    POLICIES,
    InEachStep,
    RunningMeanExtractor,
    SpaceEnv,
    assert_same_training,
    equal,
    space_env,
    train,
    with_extractor,
)

from benchmarks.masked_env import random_masks
from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen, lanes, masks
from sb3_ppo_variants.fast.masked import IS_OLD
from sb3_ppo_variants.kinds import Masked
from sb3_ppo_variants.kl import kl_from_parameters
from sb3_ppo_variants.loss import Batch

ACTIONS = ["discrete", "multidiscrete", "multibinary"]


def assert_contribs(monkeypatch, policy, make_env, **kwargs):
    """Trains contrib's MaskablePPO, and PPOClip with masks from each source, which must be the same; returns the last."""
    expected = train(MaskablePPO, policy, make_env("method"), **kwargs)
    for way, switch in (("method", "0"), ("info", "1"), ("observation", "1")):
        monkeypatch.setenv(lanes.SWITCH, switch)
        actual = train(PPOClip, f"Maskable{policy}", make_env(way), compile=False, **kwargs)
        assert_same_training(expected, actual)
        assert equal(expected[0].rollout_buffer.action_masks, actual[0].rollout_buffer.action_masks)
        assert actual[0].rollout_buffer.action_masks.dtype == bool
    return actual


@pytest.mark.parametrize(
    ("observation", "action"),
    [*(("box", action) for action in ACTIONS), ("image", "discrete"), ("dict", "multibinary")],
)
def test_policies_and_spaces(observation, action, monkeypatch):
    make_env = functools.partial(masked_env, observation, action)
    model, rows = assert_contribs(monkeypatch, POLICIES[observation], make_env, n_updates=2, n_epochs=2)
    assert rows[-1]["train/kl"] > 0
    # Some masks leave no choice
    assert 0 < model.rollout_buffer.action_masks.mean() < 1


SETTINGS = {
    "truncated minibatches": {"batch_size": 20},
    "entropy, and no normalisation": {"ent_coef": 0.02, "vf_coef": 0.8, "normalize_advantage": False},
    "value clipping": {"clip_range_vf": 0.1},
    "early stop": {"target_kl": 1e-3, "learning_rate": 3e-3},
    # Four updates; the environments go on from the second to the third
    "schedules": {
        "resume": True,
        **{name: LinearSchedule(0.3, 0.0, 1.0) for name in ("learning_rate", "clip_range", "clip_range_vf")},
    },
    "separate extractors": {"policy_kwargs": {"share_features_extractor": False, "net_arch": [16]}, "gamma": 0.9},
    "contrib's own buffer": {"rollout_buffer_class": MaskableRolloutBuffer},
    "a custom buffer": {"rollout_buffer_class": type("Custom", (MaskableRolloutBuffer,), {})},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_settings(setting, monkeypatch):
    if setting == "early stop" and IS_OLD:
        pytest.skip("contrib 2.7 counts the epochs that it leaves out")
    # Two updates of 3 epochs
    kwargs = {"n_updates": 2, **SETTINGS[setting]}
    make_env = masked_env("box", "multidiscrete", n_envs=3)
    expected = train(MaskablePPO, "MlpPolicy", make_env, **kwargs)
    actual = train(PPOClip, "MaskableMlpPolicy", make_env, compile=False, **kwargs)
    assert_same_training(expected, actual)
    assert (actual[0]._n_updates < 6) == (setting == "early stop")


def test_normalised_observations_and_rewards(monkeypatch):
    def make_env(way):
        def make():
            return VecNormalize(masked_env("dict", "discrete", way)(), norm_obs_keys=["vector"])

        return make

    assert_contribs(monkeypatch, "MultiInputPolicy", make_env, n_updates=2)


class Derived(MaskableActorCriticPolicy):
    """A policy of a user's, with an evaluation of its own, and a method whose parameters have no names."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)

    def evaluate_actions(self, obs, actions, action_masks=None):
        values, log_prob, entropy = super().evaluate_actions(obs, actions, action_masks)
        return 1.5 * values, log_prob, entropy


def test_derived_policies():
    kwargs = {"n_updates": 2, **with_extractor(RunningMeanExtractor)}
    expected = train(MaskablePPO, Derived, masked_env("box", "multibinary"), **kwargs)
    for way in ("info", "observation"):
        actual = train(PPOClip, Derived, masked_env("box", "multibinary", way), compile=False, **kwargs)
        assert_same_training(expected, actual)
        assert actual[1][-1]["train/kl"] > 0


class Foreign(VecEnvWrapper):
    """A vectorized environment of another library, which has no ``reset_infos`` and cannot be asked for attributes."""

    unwrapped = None

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()

    def has_attr(self, attr_name):
        raise AttributeError(attr_name)


def test_vectorized_environments_of_other_libraries():
    plain = space_env("box", "discrete")
    expected = train(PPO, "MlpPolicy", plain)
    assert_same_training(expected, train(PPOClip, "MlpPolicy", lambda: Foreign(plain()), compile=False))
    masked = masked_env("box", "discrete", "observation")
    expected = train(PPOClip, "MaskableMlpPolicy", masked, compile=False)
    assert_same_training(expected, train(PPOClip, "MaskableMlpPolicy", lambda: Foreign(masked()), compile=False))
    with pytest.raises(ValueError, match="The policy takes action masks, but the environment gives none"):
        train(PPOClip, "MaskableMlpPolicy", lambda: Foreign(plain()))


def test_variants_are_each_other_in_places():
    def trained(cls, **own):
        own |= {"n_updates": 2, "learning_rate": 3e-3, "compile": False}
        return train(cls, "MaskableMlpPolicy", masked_env("box", "multidiscrete"), **own)

    assert_same_training(trained(PPOClip), trained(PPOFixedKL, clip_range=0.2, kl_coef=0))
    free, held, adaptive = trained(PPOFixedKL, kl_coef=0), trained(PPOFixedKL, kl_coef=2.0), trained(PPOKLPen, kl_target=1e3)
    assert 0 < held[1][-1]["train/kl"] < free[1][-1]["train/kl"]
    # Halved twice
    assert adaptive[0].kl_coef == 0.25


def policy_with(bias, action_space):
    """A policy whose logits are the biases of its last layer, whatever it sees."""
    policy = MaskableActorCriticPolicy(spaces.Box(-1, 1, (5,)), action_space, lambda _: 1e-3)
    with th.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.copy_(th.tensor(bias).log())
    return Masked(policy)


def evaluated(kind, actions, given):
    zeros = th.zeros(len(actions))
    observations = th.zeros(len(actions), 5)
    return kind.evaluate(Batch(observations, th.tensor(actions), zeros, zeros, zeros, zeros, (), given))


def test_kl_entropy_and_log_probability_of_valid_actions():
    new, old = policy_with([1.0, 2, 3, 4], spaces.Discrete(4)), policy_with([1.0, 1, 1, 1], spaces.Discrete(4))
    # Probabilities (1/3, 2/3, -, -), and a mask that leaves one action
    given = {"action_masks": th.tensor([[True, True, False, False], [False, False, True, False]])}
    evaluation = evaluated(new, [1, 2], given)
    # ln(2/3)
    th.testing.assert_close(evaluation.log_prob, th.tensor([-0.405465, 0.0]))
    # -1/3 ln(1/3) - 2/3 ln(2/3)
    th.testing.assert_close(evaluation.entropy, th.tensor([0.636514, 0.0]))
    before = old.distributions(th.zeros(2, 5), given).parameters
    kl = kl_from_parameters(before, evaluation.closed_form())
    # 1/2 ln((1/2) / (1/3)) + 1/2 ln((1/2) / (2/3)) = 1/2 ln(9/8)
    th.testing.assert_close(kl, th.tensor([0.058892, 0.0]))
    (kl.sum() + evaluation.log_prob.sum() + evaluation.entropy.sum()).backward()
    gradient = new.policy.action_net.bias.grad
    assert gradient.isfinite().all()
    assert gradient[:2].abs().min() > 0
    assert gradient[2:].tolist() == pytest.approx([0, 0], abs=1e-7)


def test_kl_of_several_parts_is_their_sum():
    # Two parts of 2 and 3 actions; of the second, the mask leaves (1/3, 2/3)
    space = spaces.MultiDiscrete([2, 3])
    new, old = policy_with([1.0, 3, 1, 2, 5], space), policy_with([1.0, 1, 1, 1, 1], space)
    given = {"action_masks": th.tensor([[True, True, True, True, False]])}
    evaluation = evaluated(new, [[1, 0]], given)
    # ln(3/4) + ln(1/3)
    th.testing.assert_close(evaluation.log_prob, th.tensor([-1.386294]))
    # 1/2 ln(4/3) + 1/2 ln(9/8), the first of 1/2 ln((1/2) / (1/4)) + 1/2 ln((1/2) / (3/4))
    form = evaluation.closed_form()
    kl = kl_from_parameters(old.distributions(th.zeros(1, 5), given).parameters, form)
    th.testing.assert_close(kl, th.tensor([0.202733]))


@pytest.mark.parametrize("action", ACTIONS)
def test_no_invalid_action(action):
    space = {"discrete": spaces.Discrete(50)}.get(action, ACTION_SPACES[action])
    heads, rng, n = masks.heads_of(space), np.random.default_rng(0), 100_000
    # Logits far apart: some probabilities are tiny
    kind = policy_with(np.exp(rng.normal(0, 8, sum(heads))).tolist(), space)
    allowed = random_masks(heads, n, rng, 0.3)
    actions = kind.act(np.zeros((n, 5), np.float32), {"action_masks": allowed}).actions.reshape(n, -1).astype(int)
    assert np.take_along_axis(allowed, np.cumsum([0, *heads[:-1]]) + actions, axis=1).all()


class Ends(InEachStep):
    """Ends the training in the midst of a rollout."""

    def _on_step(self):
        return self.n_calls < 20


def test_tuples_of_the_masks_of_parts():
    """As Gymnasium's ``MultiDiscrete.sample`` takes them."""

    class InParts(SpaceEnv):
        def reset(self, **kwargs):
            return super().reset(**kwargs)[0], {masks.KEY: (np.array([0, 1], np.int8), np.array([1, 0, 1], np.int8))}

        def step(self, action):
            assert action[0] == 1
            assert action[1] in (0, 2)
            return *super().step(action)[:4], self.reset()[1]

    env = InParts(spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([2, 3]))
    model, _ = train(PPOClip, "MaskableMlpPolicy", lambda: DummyVecEnv([lambda: env]), n_updates=1)
    assert (model.rollout_buffer.action_masks.reshape(-1, 5) == [False, True, True, False, True]).all()


@pytest.mark.parametrize("way", WAYS)
def test_masks_after_a_training_that_ends_in_the_midst_of_a_rollout(way):
    # Episodes of 13 steps: it ends within the second
    model = PPOClip("MaskableMlpPolicy", masked_env("box", "multibinary", way)(), n_steps=26, batch_size=13, n_epochs=1)
    model.learn(52, callback=Ends(None))
    assert model._n_updates == 0
    model.learn(104, reset_num_timesteps=False)
    assert model._n_updates == 2


def test_methods_are_looked_up_once(monkeypatch):
    monkeypatch.setattr(DummyVecEnv, "env_method", None)

    def make():
        env = SpaceEnv(spaces.Box(-1, 1, (5,)), spaces.Discrete(3))
        return ActionMasker(env, lambda env: [env.steps % 2 == 0, True, env.steps % 2 == 1])

    model = PPOClip("MaskableMlpPolicy", DummyVecEnv([make] * 2), n_steps=26, batch_size=13, n_epochs=1).learn(52)
    # An episode has 13 steps; both environments step together
    first = [[True, True, False], [False, True, True]] * 6 + [[True, True, False]]
    buffer = model.rollout_buffer.action_masks.reshape(2, 26, 3)
    assert buffer.tolist() == [first * 2] * 2


@pytest.mark.parametrize("way", WAYS)
def test_in_processes(way):
    expected = train(PPOClip, "MaskableMlpPolicy", masked_env("box", "discrete", way), compile=False, n_updates=2)
    make_env = masked_env("box", "discrete", way, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    assert_same_training(expected, train(PPOClip, "MaskableMlpPolicy", make_env, compile=False, n_updates=2))


@pytest.mark.parametrize("way", WAYS)
def test_source_is_printed(way, capsys):
    model = PPOClip("MaskableMlpPolicy", masked_env("box", "discrete", way)(), n_steps=16, batch_size=16, verbose=1)
    model.learn(0)
    names = {
        "observation": "key 'action_mask' of the obs",
        "info": "info['action_mask'] of",
        "method": "method action_masks()",
    }
    assert names[way] in capsys.readouterr().out


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_predictions_from_observations_with_masks(observation, tmp_path):
    make_env = masked_env(observation, "multidiscrete", "observation")
    policy = f"Maskable{POLICIES[observation]}"
    model = PPOKLPen(policy, make_env(), n_steps=26, batch_size=13, n_epochs=1, seed=0)
    # The environments accept no invalid action
    model.learn(104, callback=EvalCallback(make_env(), n_eval_episodes=2, eval_freq=20, verbose=0))
    model.save(tmp_path / "model")
    loaded = PPOKLPen.load(tmp_path / "model")
    evaluate_policy(loaded, make_env(), 4, deterministic=False)
    observations = make_env().reset()
    actions = loaded.predict(observations, deterministic=True)[0]
    assert actions.shape == (2, 3)
    assert (actions == model.predict(observations, deterministic=True)[0]).all()
    # One observation
    single = {key: part[0] for key, part in observations.items()}
    assert (model.predict(single, deterministic=True)[0] == actions[0]).all()


def test_predictions_with_masks_of_the_caller():
    model = PPOClip("MaskableMlpPolicy", masked_env("box", "multidiscrete")(), n_steps=26, batch_size=13, n_epochs=1)
    callback = MaskableEvalCallback(masked_env("box", "multidiscrete")(), n_eval_episodes=2, eval_freq=20, verbose=0)
    model.learn(104, callback=callback)
    evaluation.evaluate_policy(model, masked_env("box", "multidiscrete")(), 4, deterministic=False)
    observation = np.zeros((2, 5), np.float32)
    allowed = np.array([[0, 1, 0, 0, 1, 0, 1, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0, 1]])
    assert model.predict(observation, action_masks=allowed)[0].tolist() == [[1, 2, 1], [0, 0, 3]]
    assert model.predict(observation[0], action_masks=allowed[0])[0].tolist() == [1, 2, 1]
    # In parts, as Gymnasium has them
    assert model.predict(observation[0], action_masks=tuple(np.split(allowed[0], [2, 6])))[0].tolist() == [1, 2, 1]
    with pytest.warns(UserWarning, match=r"predict gets no action masks, but .*, as the method action_masks\(\): give it"):
        model.predict(observation)
    with pytest.raises(ValueError, match="of observation 1 leaves no action for part 2 of the action"):
        model.predict(observation, action_masks=allowed * ([1] * 8 + [0]))
    with pytest.raises(ValueError, match="of observation 0 has 8 entries, but there are 9 actions"):
        model.predict(observation[0], action_masks=allowed[0][:-1])
    with pytest.raises(ValueError, match="action_masks must be one for each observation, but there are 2 for 1"):
        model.predict(observation[0], action_masks=allowed)
    plain = PPOClip("MlpPolicy", space_env("box", "multidiscrete")(), n_steps=26, batch_size=13)
    with pytest.raises(ValueError, match="action_masks must be None with ActorCriticPolicy"):
        plain.predict(observation, action_masks=allowed)


@pytest.mark.parametrize("way", WAYS)
def test_predictions_from_observations_to_which_masks_are_attached(way):
    model = PPOClip("MaskableMlpPolicy", masked_env("box", "multidiscrete", way)(), n_steps=26, batch_size=13, n_epochs=1)
    env = masked_env("box", "multidiscrete", way)()
    masks.attach_masks(env)
    evaluate_policy(model, env, 4, deterministic=False)


def test_saved_models_of_contrib(tmp_path):
    make_env = masked_env("box", "discrete")
    saved = MaskablePPO("MlpPolicy", make_env(), n_steps=26, batch_size=13, n_epochs=1, seed=0).learn(52)
    saved.save(tmp_path / "model")
    loaded = PPOKLPen.load(tmp_path / "model", env=make_env())
    assert equal(loaded.policy.state_dict(), saved.policy.state_dict())
    assert loaded.learn(52).rollout_buffer.action_masks.dtype == bool
    with pytest.raises(ValueError, match=r"use_sde must be False"):
        PPOKLPen.load(tmp_path / "model", use_sde=True)


def test_saved_models_of_contrib_that_see_the_mask(tmp_path):
    class Both(GivesMasks):
        def action_masks(self):
            return self.mask

    def make_env():
        return make_vec_env(lambda: Both(SpaceEnv(spaces.Box(-1, 1, (5,)), spaces.Discrete(3)), "observation"), 2, seed=0)

    saved = MaskablePPO("MultiInputPolicy", make_env(), n_steps=26, batch_size=13, n_epochs=1, seed=0).learn(52)
    saved.save(tmp_path / "model")
    for _ in range(2):
        loaded = PPOClip.load(tmp_path / "model", env=make_env()).learn(52)
        # 5 numbers and 3 of the mask
        assert loaded.policy.features_dim == 8
        loaded.save(tmp_path / "model")


def fixed_masks(mask, after=None):
    """An environment with one mask, and from the fifth step of an episode another."""

    def make():
        env = SpaceEnv(spaces.Box(-1, 1, (5,)), spaces.MultiDiscrete([2, 3]))
        return ActionMasker(env, lambda env: mask if after is None or env.steps < 5 else after)

    return DummyVecEnv([lambda: ActionMasker(make(), lambda _: [True] * 5), make])


ALL = [True] * 5


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            lambda: fixed_masks(ALL, [True, True, False, False, False]),
            r"environment 1 at timestep 10 leaves no action for part 1",
        ),
        (
            lambda: fixed_masks([True] * 4),
            r"environment 1 at timestep 0 has 4 entries, but there are 5 actions \(in 2 parts\)",
        ),
        (
            lambda: fixed_masks([1, 1, 2, 0, 0]),
            r"environment 1 at timestep 0 must be of bool or of 0 and 1, but entry 2 is 2",
        ),
        (lambda: fixed_masks(["yes"] * 5), r"environment 1 at timestep 0 must be of bool or of 0 and 1, but is .'yes"),
        (lambda: fixed_masks(None), r"environment 1 at timestep 0 must be of bool or of 0 and 1, but is None"),
        (lambda: VecNormalize(masked_env("box", "discrete", "observation")()), "see its norm_obs_keys"),
        (
            lambda: VecFrameStack(masked_env("box", "discrete", "observation")(), 3),
            r"there are 3 actions; .* by VecFrameStack",
        ),
        (lambda: space_env("box", "discrete")(), r"the environment gives none.*key 'action_mask'.*info\[.*action_masks\(\)"),
    ],
)
def test_bad_masks(env, message):
    policy = "MaskableMlpPolicy"
    model = PPOClip(policy, env(), n_steps=26, batch_size=13, n_epochs=1)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match=message):
        model.learn(52)
    assert equal(before, list(model.policy.parameters()))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"use_sde": True}, "gSDE. can only be used with continuous actions"),
        ({"env": "Pendulum-v1"}, "those of env are Box"),
        ({"env": lambda: space_env("dict", "discrete")()}, "policy must be MaskableMultiInputPolicy"),
        ({"policy": "MaskableMultiInputPolicy"}, "policy is for dictionaries of observations"),
        ({"rollout_buffer_class": type("Mine", (RolloutBuffer,), {})}, "rollout_buffer_class must keep action masks"),
    ],
)
def test_bad_arguments(kwargs, message):
    kwargs = {"policy": "MaskableMlpPolicy", "env": "CartPole-v1", **kwargs}
    if callable(kwargs["env"]):
        kwargs["env"] = kwargs["env"]()
    with pytest.raises((ValueError, RuntimeError), match=message):
        PPOClip(**kwargs).learn(10)


@pytest.mark.parametrize("way", WAYS)
def test_plain_policies_where_there_are_masks(way):
    class AcceptsAll(GivesMasks):
        def step(self, action):
            self.mask[:] = True
            return super().step(action)

    def make_env():
        return make_vec_env(lambda: AcceptsAll(SpaceEnv(spaces.Box(-1, 1, (5,)), spaces.Discrete(3)), way), 2, seed=0)

    name = "MultiInputPolicy" if way == "observation" else "MlpPolicy"
    with pytest.warns(UserWarning, match=f"the policy 'Maskable{name}' would use them") as warned:
        actual = train(PPOClip, name, make_env, compile=False, resume=True)
    assert len(warned) == 1
    assert warned[0].filename.endswith("support.py")
    assert_same_training(train(PPO, name, make_env, resume=True), actual)
