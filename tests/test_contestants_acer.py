import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.contestants.acer import ACER, SegmentBuffer, Segments, policy_gradient, retrace
from benchmarks.contestants.trust_region import project

SMALL = {"n_steps": 8, "learning_starts": 32, "device": "cpu", "seed": 0}


def column(*values):
    return th.tensor(values, dtype=th.float64)[:, None]


def test_retrace():
    arguments = {
        "rewards": column(1, 2, 3),
        "action_values": column(4, 5, 6),
        "values": column(3, 2, 1),
        # The second is truncated at 1, the first does not matter
        "ratios": column(7, 2, 0.5),
        "last_values": th.tensor([10.0], dtype=th.float64),
        "gamma": 0.5,
    }
    # 3 + 0.5 * 10 = 8; 2 + 0.5 * (0.5 * (8 - 6) + 1) = 3; 1 + 0.5 * (1 * (3 - 5) + 2) = 1
    assert retrace(dones=column(0, 0, 0), **arguments).flatten().tolist() == [1, 3, 8]
    # The episode ends with the second step: 2; 1 + 0.5 * (1 * (2 - 5) + 2) = 0.5
    assert retrace(dones=column(0, 1, 0), **arguments).flatten().tolist() == [0.5, 2, 8]
    # With the last: 3; 2 + 0.5 * (0.5 * (3 - 6) + 1) = 1.75; 1 + 0.5 * (1 * (1.75 - 5) + 2) = 0.375
    assert retrace(dones=column(0, 0, 1), **arguments).flatten().tolist() == [0.375, 1.75, 3]


def test_policy_gradient_truncates_importance_weights_and_corrects_the_bias():
    pi, mu = th.tensor([[0.5, 0.5], [0.5, 0.5]]), th.tensor([[0.125, 0.875], [0.125, 0.875]])
    # The values are 0.5 * 2 + 0.5 * 4 = 3
    q = th.tensor([[2.0, 4.0], [2.0, 4.0]])
    gradient = policy_gradient(pi, mu, th.tensor([0, 1]), q, th.tensor([5.0, 10.0]), truncation=2.0)
    # rho is 4 and 4/7. The first action: min(2, 4) / 0.5 * (5 - 3) = 8. The second: 4/7 / 0.5 * (10 - 3) = 8
    # The correction, of the first action alone, whatever was taken: (1 - 2 / 4) * (2 - 3) = -0.5
    assert gradient.numpy() == pytest.approx(np.array([[8 - 0.5, 0], [-0.5, 8]]))


def test_policy_gradient_is_not_biased_by_truncation():
    """If Q^ret is Q, the mean over the actions of mu is the policy gradient: that of the sum of pi(a) Q(a), less the value."""
    pi, mu = th.tensor([[0.7, 0.2, 0.1]]).expand(3, 3), th.tensor([[0.1, 0.1, 0.8]]).expand(3, 3)
    q = th.tensor([[1.0, -2.0, 3.0]]).expand(3, 3)
    for truncation in (0.5, 2.0, 10.0):
        gradients = policy_gradient(pi, mu, th.arange(3), q, q[0], truncation)
        # 0.7 - 0.4 + 0.3 = 0.6 is the value
        assert (mu[0] @ gradients).numpy() == pytest.approx(np.array([0.4, -2.6, 2.4]), rel=1e-5)


def test_gradients_that_raise_the_kl_too_much_are_projected():
    g = th.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    # k^T g is 10, 1, -10 and 0
    k = th.tensor([[2.0, 1.0], [-1.0, 1.0], [-2.0, -1.0], [0.0, 0.0]])
    z = project(g, k, delta=5.0)
    # (10 - 5) / (2^2 + 1^2) = 1, and (3, 4) - (2, 1) = (1, 3), for which k^T z = 2 + 3 = 5
    assert z.tolist() == [[1, 3], [3, 4], [3, 4], [3, 4]]
    # (1 - 0.5) / 2 = 0.25, and (3, 4) - 0.25 * (-1, 1) = (3.25, 3.75)
    assert project(g, k, delta=0.5)[1].tolist() == [3.25, 3.75]


def test_buffer_keeps_the_last_segments():
    buffer = SegmentBuffer(2, 3, spaces.Box(0, 9, (1,)), spaces.Discrete(2), device="cpu", n_envs=2)
    for number in range(3):
        # Of each environment its number, too
        content = 10.0 * number + th.arange(2.0).expand(3, 2)
        buffer.add(
            Segments(10.0 * number + th.arange(2.0).expand(4, 2)[..., None], content, content, content, th.ones(3, 2, 2))
        )
    assert buffer.size() == 2
    np.random.seed(0)
    samples = buffer.sample(64)
    assert samples.observations.shape == (4, 64, 1)
    assert samples.behaviour.shape == (3, 64, 2)
    assert samples.rewards[0].unique().tolist() == [10, 11, 20, 21]
    assert (samples.rewards == samples.observations[1:, :, 0]).all()


class Clock(gym.Env):
    """Shows the time, pays it, and ends at 5."""

    observation_space = spaces.Box(0, 5, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(1, self.time, np.float32), self.time, self.time == 5, False, {}


@pytest.mark.parametrize(
    ("n_steps", "observations", "dones"),
    [(5, [0, 1, 2, 3, 4, 0], [0, 0, 0, 0, 1]), (7, [0, 1, 2, 3, 4, 0, 1, 2], [0, 0, 0, 0, 1, 0, 0])],
)
def test_rollouts_say_where_episodes_end(n_steps, observations, dones):
    model = ACER("MlpPolicy", make_vec_env(Clock, 2), learning_rate=0.0, **{**SMALL, "n_steps": n_steps}).learn(2 * n_steps)
    rollout = model._rollout()
    for env in (0, 1):
        assert rollout.observations[:, env, 0].tolist() == observations
        assert rollout.dones[:, env].tolist() == dones
        assert rollout.rewards[:, env].tolist() == [1, 2, 3, 4, 5, 1, 2][:n_steps]
    # The policy has not changed since it acted
    taken = rollout.behaviour.gather(2, rollout.actions[..., None])[..., 0]
    assert taken.log().numpy() == pytest.approx(model.rollout_buffer.log_probs, abs=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "reward", "step", "action_values"),
    [
        # V = (2 - 6) / 4 = -1. Action 0: the gradient is (1 + 1) / (1 / 4), and a logit moves by pi (z - sum pi z)
        ({"delta": None}, 1.0, [1.5, -1.5], [1.5, -2]),
        # Of the entropy, -(1 + log pi) = (0.386294, -0.712318); the advantage is 0
        ({"delta": None, "ent_coef": 1.0}, -1.0, [0.205990, -0.205990], [0.5, -2]),
        # g = (-8, 0); of KL[average, pi] k = -(1 / 2) / pi = (-2, -2 / 3); z = g - (16 - 1) / (40 / 9) k = (-1.25, 2.25)
        ({"delta": 1.0}, -3.0, [-0.65625, 0.65625], [-0.5, -2]),
    ],
)
def test_update_by_hand(kwargs, reward, step, action_values):
    sgd = {"net_arch": [], "optimizer_class": th.optim.SGD, "optimizer_kwargs": {}}
    options = {"n_steps": 1, "learning_rate": 1.0, "vf_coef": 0.5, "alpha": 0.75, "max_grad_norm": 1e9, "ent_coef": 0.0}
    model = ACER("MlpPolicy", make_vec_env(Clock, 1), policy_kwargs=sgd, device="cpu", **options | kwargs).learn(0)
    logits = np.log([0.25, 0.75])
    with th.no_grad():
        for parameter in (*model.policy.parameters(), *model.average_policy.parameters()):
            parameter.zero_()
        model.policy.action_net.bias.copy_(th.tensor(logits))
        model.policy.value_net.bias.copy_(th.tensor([2.0, -2.0]))
    behaviour = th.tensor([[[0.25, 0.75]]])
    model._update(
        Segments(th.zeros(2, 1, 1), th.zeros(1, 1, dtype=th.int64), th.full((1, 1), reward), th.ones(1, 1), behaviour)
    )
    assert model.policy.action_net.bias.tolist() == pytest.approx(logits + step, rel=1e-5)
    # Half the squared error, weighted by a half: half of the way to the reward
    assert model.policy.value_net.bias.tolist() == pytest.approx(action_values, rel=1e-5)
    assert model.average_policy.action_net.bias.tolist() == pytest.approx(0.25 * (logits + step), rel=1e-5)


def test_trust_region_and_replay():
    def train(**kwargs):
        env = make_vec_env("CartPole-v1", 2, seed=0)
        model = ACER("MlpPolicy", env, learning_rate=1e-2, **SMALL, **kwargs).learn(160)
        return model._n_updates, th.cat([parameter.flatten() for parameter in model.policy.parameters()]).detach()

    updates, free = train(replay_ratio=0, delta=None)
    assert updates == 10
    assert train(replay_ratio=0, delta=1e9)[1].equal(free)
    assert not train(replay_ratio=0, delta=1e-9)[1].allclose(free, atol=1e-3)
    # Poisson draws with a mean of 4 after each rollout but the first
    assert 10 + 20 < train()[0] < 10 + 60


def test_learns_cart_pole():
    env = make_vec_env("CartPole-v1", 8, seed=0)
    model = ACER("MlpPolicy", env, learning_starts=1_000, device="cpu", seed=0).learn(10_000)
    # Without a policy that balances, an episode has 22 steps
    assert np.mean([episode["r"] for episode in list(model.ep_info_buffer)[-20:]]) > 100


def test_save_load_predict_and_callbacks(tmp_path):
    env = make_vec_env("CartPole-v1", 2, seed=0)
    model = ACER("MlpPolicy", env, **SMALL)
    model.learn(1_000, callback=lambda *_: model.num_timesteps < 40)
    assert model.num_timesteps == 40
    model.save(tmp_path / "acer")
    loaded = ACER.load(tmp_path / "acer", env=env, device="cpu")
    for name in ("policy", "average_policy"):
        for key, tensor in getattr(model, name).state_dict().items():
            assert getattr(loaded, name).state_dict()[key].equal(tensor), (name, key)
    assert not model.policy.value_net.weight.equal(model.average_policy.value_net.weight)
    obs = env.reset()
    assert (loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]).all()
    values, log_probs, _ = loaded.policy.evaluate_actions(th.as_tensor(obs), th.tensor([0, 1]))
    assert values.shape == (2, 1)
    assert log_probs.exp()[0].item() == pytest.approx(loaded.policy.heads(th.as_tensor(obs))[0][0, 0].item(), rel=1e-5)
    assert loaded.learn(64, reset_num_timesteps=False).num_timesteps >= 104


def test_continuous_actions_are_refused():
    with pytest.raises(AssertionError, match="Discrete"):
        ACER("MlpPolicy", gym.make("Pendulum-v1"))
