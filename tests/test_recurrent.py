"""Policies with memory: contrib's RecurrentPPO bit for bit, with masks, and sequences of a given length."""

import numpy as np
import pytest
import torch as th
from masked_support import WAYS, masked_env
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from support import (
    POLICIES,
    BatchNormExtractor,
    HalvedAdvantages,
    InEachStep,
    SpaceEnv,
    assert_same_training,
    equal,
    make_model,
    space_env,
    train,
    with_extractor,
)

from benchmarks.recall import MaskedRecall, Recall
from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen, lanes
from sb3_ppo_variants.buffers import STATES
from sb3_ppo_variants.fast.masked import IS_OLD
from sb3_ppo_variants.kinds import kind_of
from sb3_ppo_variants.rollout import Rollout

CLASSES = [PPOClip, PPOFixedKL, PPOKLPen]
SMALL = {"lstm_hidden_size": 6, "net_arch": [5]}


def recurrent(policy):
    """The name of a policy with memory, of that of one without."""
    return policy.replace("Policy", "LstmPolicy")


def assert_contribs(monkeypatch, policy, make_env, **kwargs):
    """Trains contrib's RecurrentPPO and PPOClip, which must be the same; returns the latter."""
    kwargs = {"n_steps": 14, "batch_size": 14, "n_epochs": 2, "n_updates": 2, **kwargs}
    kwargs["policy_kwargs"] = {**SMALL, **kwargs.get("policy_kwargs", {})}
    expected = train(RecurrentPPO, recurrent(policy), make_env(), **kwargs.copy())
    for switch in ("0", "1"):
        monkeypatch.setenv(lanes.SWITCH, switch)
        actual = train(PPOClip, recurrent(policy), make_env(), compile=False, **kwargs.copy())
        assert_same_training(expected, actual)
        buffers = expected[0].rollout_buffer, actual[0].rollout_buffer
        assert all(equal(*(getattr(buffer, name) for buffer in buffers)) for name in STATES)
        assert equal(expected[0]._last_lstm_states, actual[0]._last_lstm_states)
    return actual


@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete"])
def test_action_spaces(monkeypatch, action):
    assert_contribs(monkeypatch, "MlpPolicy", lambda: space_env("box", action))


def test_multibinary_actions():
    """With which contrib's RecurrentPPO has an error, since 2.8."""
    for compile_ in (False, "auto"):
        model, _ = train(PPOClip, "MlpLstmPolicy", space_env("box", "multibinary"), n_updates=1, compile=compile_)
        assert model._n_updates == 3


@pytest.mark.parametrize("observation", ["discrete", "image", "dict"])
def test_observation_spaces(monkeypatch, observation):
    assert_contribs(monkeypatch, POLICIES[observation], lambda: space_env(observation, "discrete"))


SETTINGS = {
    "truncated minibatches": {"batch_size": 10},
    "one minibatch": {"batch_size": 28},
    "value clipping": {"clip_range_vf": 0.1, "vf_coef": 0.7},
    "early stop": {"target_kl": 1e-4, "learning_rate": 1e-2},
    "schedules": {"learning_rate": LinearSchedule(1e-3, 0, 1), "clip_range": LinearSchedule(0.3, 0.1, 1)},
    "unnormalised advantages": {"normalize_advantage": False, "ent_coef": 0.01},
    "gSDE": {"use_sde": True, "sde_sample_freq": 4},
    "resumed": {"resume": True},
    "batch normalisation": with_extractor(BatchNormExtractor),
    "layers": {"policy_kwargs": {"n_lstm_layers": 2}},
    "shared": {"policy_kwargs": {"shared_lstm": True, "enable_critic_lstm": False}},
    "actor only": {"policy_kwargs": {"enable_critic_lstm": False}},
    "own extractors": {"policy_kwargs": {"share_features_extractor": False}},
    "no biases": {"policy_kwargs": {"lstm_kwargs": {"bias": False}}},
}


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("settings", SETTINGS)
def test_settings(monkeypatch, settings):
    if settings == "early stop" and IS_OLD:
        # Only the number of updates would differ
        pytest.skip("contrib before 2.8 also counts the epochs that are left out")
    assert_contribs(monkeypatch, "MlpPolicy", lambda: space_env("box", "box"), **SETTINGS[settings])


class Terminates(SpaceEnv):
    def __init__(self, *args):
        super().__init__(*args, truncate=False)


def test_episodes_that_end(monkeypatch):
    assert_contribs(monkeypatch, "MlpPolicy", lambda: space_env("box", "discrete", n_envs=3, env_class=Terminates))


def test_vec_normalize(monkeypatch):
    assert_contribs(monkeypatch, "MlpPolicy", lambda: lambda: VecNormalize(space_env("box", "box")()))


def test_locals_of_callbacks():
    def seen(cls, **kwargs):
        found = []
        callback = InEachStep(lambda model: found.append((callback.locals["lstm_states"], callback.locals["episode_starts"])))
        train(cls, "MlpLstmPolicy", callback=callback, policy_kwargs=SMALL, n_updates=1, **kwargs)
        return found

    assert equal(seen(RecurrentPPO), seen(PPOClip, compile=False))
    # NumPy's rollouts draw other actions
    (states, starts), *_ = seen(PPOClip)
    assert [state.shape for state in (*states.pi, *states.vf)] == [(1, 2, 6)] * 4
    assert th.equal(starts, th.ones(2))


class OwnBuffer(RecurrentRolloutBuffer):
    """contrib's, by another name."""


def test_a_buffer_of_ones_own():
    """Its minibatches are its own, also where those of the package would be quick."""
    options = {"policy": "MlpLstmPolicy", "policy_kwargs": SMALL, "n_updates": 2}
    model, rows = train(PPOClip, compile=False, **options)
    assert_same_training((model, rows), train(PPOClip, rollout_buffer_class=OwnBuffer, compile=False, **options), {"train/kl"})
    model, rows = train(PPOClip, rollout_buffer_class=OwnBuffer, **options)
    assert 0 < rows[-1]["train/kl"] < 0.1
    with pytest.raises(ValueError, match="rollout_buffer_class must keep states, as RecurrentRolloutBuffer"):
        make_model(PPOClip, "MlpLstmPolicy", rollout_buffer_class=HalvedAdvantages)


def test_defaults_are_contribs():
    expected = RecurrentPPO("MlpLstmPolicy", "CartPole-v1")
    model = PPOClip("MlpLstmPolicy", "CartPole-v1")
    assert (model.n_steps, model.batch_size) == (expected.n_steps, expected.batch_size) == (128, 128)
    model = PPOClip("MlpLstmPolicy", "CartPole-v1", n_steps=2048, batch_size=64)
    assert (model.n_steps, model.batch_size) == (2048, 64)
    assert PPOClip("MlpPolicy", "CartPole-v1").n_steps == 2048


def test_special_cases_of_the_kl_variants_are_clipping():
    options = {"policy": "MlpLstmPolicy", "policy_kwargs": SMALL, "compile": False, "n_updates": 2}
    expected = train(PPOClip, **options)
    ignored = {"train/kl_coef"}
    assert_same_training(expected, train(PPOFixedKL, kl_coef=0, clip_range=0.2, **options), ignored)


def test_kl_is_that_of_real_steps_from_the_states_of_the_rollout():
    """Against a loop over steps, by contrib's get_distribution."""
    model = make_model(PPOClip, "MlpLstmPolicy", compile=False, policy_kwargs=SMALL, learning_rate=1e-2)
    model.learn(52)
    pi_old = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.collect_rollouts(model.env, *model._setup_learn(1, None, False)[1:], model.rollout_buffer, 26)
    observations, starts = map(th.tensor, (model.rollout_buffer.observations, model.rollout_buffer.episode_starts))
    states = [th.tensor(getattr(model.rollout_buffer, name)[0]) for name in STATES[:2]]
    model.train()

    def distributions():
        found, present = [], tuple(states)
        with th.no_grad():
            for observation, start in zip(observations, starts, strict=True):
                distribution, present = model.policy.get_distribution(observation, present, start)
                normal = distribution.distribution
                found.append(th.distributions.Normal(normal.mean.clone(), normal.stddev.clone()))
        return found

    new = distributions()
    model.policy.load_state_dict(pi_old)
    kl = [th.distributions.kl_divergence(a, b).sum(dim=-1) for a, b in zip(distributions(), new, strict=True)]
    assert starts.sum() > 2
    assert model.logger.name_to_value["train/kl"] == pytest.approx(th.stack(kl).mean().item(), rel=1e-4)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("compile_", [False, "auto"])
def test_sequences_of_a_given_length(cls, compile_):
    """Each minibatch has whole segments of the rollout, which are cut where episodes start."""
    model = make_model(
        cls, "MlpLstmPolicy", n_steps=24, batch_size=16, sequence_length=8, policy_kwargs=SMALL, compile=compile_
    )
    model.learn(48)
    old = Rollout(model.rollout_buffer, kind_of(model.policy, 8))
    minibatches = old.minibatches(16)
    segments = [segment.tolist() for index in minibatches for segment in index.split(8)]
    assert sorted(segments) == [list(range(start, start + 8)) for start in range(0, 48, 8)]
    assert [len(index) for index in minibatches] == [16, 16, 16]
    starts, place, shape = old.kind.sequences(old.data, th.arange(48), 24)
    # Episodes of 13 steps in two environments of 24
    assert starts.tolist() == [0, 8, 13, 16, 24, 32, 37, 40]
    assert shape == (8, 8)
    assert place[12:16].tolist() == [8 + 4, 16 + 0, 16 + 1, 16 + 2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"policy": "MlpPolicy", "sequence_length": 8}, "sequence_length must be None with ActorCriticPolicy.*is 8"),
        ({"sequence_length": 0}, "sequence_length must be .*is 0"),
        (
            {"sequence_length": 6, "n_steps": 24, "batch_size": 20},
            "batch_size must be a multiple of sequence_length=6, but is 20",
        ),
        (
            {"sequence_length": 6, "n_steps": 20, "batch_size": 24},
            "n_steps must be a multiple of sequence_length=6, but is 20",
        ),
        (
            {"sequence_length": 13, "rollout_buffer_class": OwnBuffer},
            "sequence_length must be None with .*OwnBuffer.*, which cuts its own, but is 13",
        ),
    ],
)
def test_bad_sequence_lengths(options, match):
    with pytest.raises(ValueError, match=match):
        make_model(**{"policy": "MlpLstmPolicy", **options})


def test_files(tmp_path):
    """RecurrentPPO's files load and go on; so do those of this package, which go on as if nothing had happened."""
    env = space_env("box", "discrete")
    expected, _ = train(RecurrentPPO, "MlpLstmPolicy", env, policy_kwargs=SMALL, n_updates=1)
    expected.save(tmp_path / "contrib")
    observations = env().reset()
    for cls in CLASSES:
        model = cls.load(tmp_path / "contrib", env())
        assert equal(model.predict(observations, deterministic=True), expected.predict(observations, deterministic=True))
        model.learn(52, reset_num_timesteps=False)
        model.save(tmp_path / "own")
        again = PPOClip.load(tmp_path / "own", env())
        assert again.num_timesteps == model.num_timesteps
        assert equal(again.policy.state_dict(), model.policy.state_dict())


def test_predict_remembers():
    env = space_env("box", "discrete")
    expected, _ = train(RecurrentPPO, "MlpLstmPolicy", env, policy_kwargs=SMALL, n_updates=1)
    model, _ = train(PPOClip, "MlpLstmPolicy", env, policy_kwargs=SMALL, compile=False, n_updates=1)
    states = expected_states = None
    vec_env = env()
    observations, starts = vec_env.reset(), np.ones(2, dtype=bool)
    for _ in range(20):
        actions, states = model.predict(observations, states, starts, deterministic=True)
        expected_actions, expected_states = expected.predict(observations, expected_states, starts, deterministic=True)
        assert equal((actions, states), (expected_actions, expected_states))
        observations, _, starts, _ = vec_env.step(actions)


@pytest.mark.parametrize("cls", CLASSES)
def test_masks_and_memory(cls):
    """The same training from each source of masks, and no invalid action: the environment asserts it on the quick way, too."""
    models = []
    for way in WAYS:
        model, rows = train(
            cls,
            "MaskableMlpLstmPolicy",
            masked_env("box", "multidiscrete", way),
            policy_kwargs=SMALL,
            n_updates=2,
            n_epochs=1,
            compile=False,
        )
        models.append((model, rows))
        assert_same_training(models[0], models[-1])
        buffer = model.rollout_buffer
        assert equal(buffer.action_masks, models[0][0].rollout_buffer.action_masks)
        assert buffer.action_masks.dtype == bool
        masks = np.split(buffer.action_masks, np.cumsum([2, 3])[:2], axis=-1)
        for part, mask in enumerate(masks):
            taken = buffer.actions[..., part].astype(int)
            assert np.take_along_axis(mask, taken[..., None], axis=-1).all()
    train(cls, "MaskableMlpLstmPolicy", masked_env("box", "multidiscrete"), policy_kwargs=SMALL, n_updates=2, n_epochs=1)


def test_a_policy_with_memory_is_told_of_masks():
    with pytest.warns(UserWarning, match="'MaskableMlpLstmPolicy' would use them"):
        make_model(PPOClip, "MlpLstmPolicy", make_vec_env(MaskedRecall), policy_kwargs=SMALL).learn(1)


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpPolicy"])
def test_a_task_that_needs_memory(policy):
    memory = {"lstm_hidden_size": 16} if "Lstm" in policy else {}
    env = make_vec_env(Recall, n_envs=8, seed=0)
    kwargs = {"n_steps": 64, "batch_size": 128, "learning_rate": 3e-3, "n_epochs": 10, "ent_coef": 0.01}
    model = PPOClip(policy, env, policy_kwargs={"net_arch": [16], **memory}, seed=0, device="cpu", **kwargs).learn(20_000)
    score, _ = evaluate_policy(model, env, n_eval_episodes=100)
    assert score > 0.9 if memory else 0.15 < score < 0.52


def test_a_dict_needs_its_policy():
    env = space_env("dict", "discrete")()
    with pytest.raises(ValueError, match=r"must be MultiInputLstmPolicy .* but is MlpLstmPolicy"):
        make_model(PPOClip, "MlpLstmPolicy", env)
