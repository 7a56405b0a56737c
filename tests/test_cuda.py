"""On a GPU. These tests are skipped where there is none."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from support import ACTION_SPACES, OBSERVATION_SPACES, POLICIES, SpaceEnv

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def _deterministic():
    """Sums in the order of the threads are not reproducible bit for bit."""
    th.backends.cudnn.deterministic = True
    yield
    th.backends.cudnn.deterministic = False


def train(cls, observation, action, **kwargs):
    env = DummyVecEnv([lambda: SpaceEnv(OBSERVATION_SPACES[observation], ACTION_SPACES[action])] * 2)
    return cls(POLICIES[observation], env, n_steps=26, batch_size=13, n_epochs=2, seed=3, device="cuda", **kwargs).learn(104)


@pytest.mark.parametrize(
    ("observation", "action"), [*(("box", action) for action in ACTION_SPACES), ("image", "box"), ("dict", "discrete")]
)
def test_parity_with_sb3(observation, action):
    expected = train(PPO, observation, action).policy.state_dict()
    actual = train(PPOClip, observation, action).policy.state_dict()
    for name, tensor in expected.items():
        assert tensor.device.type == "cuda"
        th.testing.assert_close(actual[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(("cls", "use_sde"), [(PPOClip, False), (PPOFixedKL, False), (PPOKLPen, True)])
def test_trains_saves_and_loads(cls, use_sde, tmp_path):
    model = train(cls, "box", "box", use_sde=use_sde)
    assert np.isfinite(model.logger.name_to_value["train/kl"])
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", device="cpu")
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], tensor.cpu())
    again = cls.load(tmp_path / "model", env=model.get_env(), device="cuda").learn(104)
    assert again.policy.device.type == "cuda"


def test_compiling_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match="compile=True is not possible: the device is cuda"):
        train(PPOClip, "box", "box", compile=True)


def test_auto_says_why_it_does_not_compile(capsys):
    model = train(PPOClip, "box", "box", verbose=1)
    model.learn(1e6, callback=lambda locals_, globals_: False)
    assert "Not compiled: the device is cuda" in capsys.readouterr().out
