"""Policies with memory: contrib's bit for bit, GRU, and action masks."""

import numpy as np
import pytest
import torch as th
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.utils import obs_as_tensor
from support import ACTION_SPACES, equal, make_policy
from torch import nn
from torch.testing import assert_close

from sb3_ppo_variants.fast.masked import IS_OLD
from sb3_ppo_variants.recurrent_policies import (
    GRU,
    CnnLstmPolicy,
    MaskableCnnLstmPolicy,
    MaskableMlpLstmPolicy,
    MaskableMultiInputLstmPolicy,
    MlpLstmPolicy,
    MultiInputLstmPolicy,
)

CONTRIBS = {
    "box": RecurrentActorCriticPolicy,
    "discrete": RecurrentActorCriticPolicy,
    "image": RecurrentActorCriticCnnPolicy,
    "dict": RecurrentMultiInputActorCriticPolicy,
}
PLAIN = {"box": MlpLstmPolicy, "discrete": MlpLstmPolicy, "image": CnnLstmPolicy, "dict": MultiInputLstmPolicy}
MASKED = {"box": MaskableMlpLstmPolicy, "image": MaskableCnnLstmPolicy, "dict": MaskableMultiInputLstmPolicy}
LAYERS = ["lstm", "gru"]
MASKABLE_ACTIONS = ["discrete", "multidiscrete", "multibinary"]

# Two sequences of four steps; in the first, an episode starts in the middle
STARTS = th.tensor([0.0, 0, 1, 0, 0, 0, 0, 0])


def make(cls, observation="box", action="discrete", **kwargs):
    return make_policy(cls, observation, action, **{"lstm_hidden_size": 6, **kwargs})


def observations_of(policy, n=8):
    space = policy.observation_space
    space.seed(1)
    drawn = [space.sample() for _ in range(n)]
    if isinstance(drawn[0], dict):
        return {key: np.stack([one[key] for one in drawn]) for key in drawn[0]}
    return np.stack(drawn)


def actions_of(policy, n=8):
    policy.action_space.seed(2)
    sampled = np.stack([policy.action_space.sample() for _ in range(n)])
    return th.tensor(sampled.reshape(n, -1) if sampled.ndim > 2 else sampled, dtype=th.float32)


def states_of(policy, n_sequences):
    """Random states of actor and critic. The cell of a GRU is zero."""
    generator = th.Generator().manual_seed(3)
    shape = policy.lstm_actor.num_layers, n_sequences, policy.lstm_actor.hidden_size
    hidden, cell, other_hidden, other_cell = (th.rand(shape, generator=generator) for _ in range(4))
    is_lstm = isinstance(policy.lstm_actor, nn.LSTM)
    return RNNStates((hidden, cell * is_lstm), (other_hidden, other_cell * is_lstm))


def everything(policy):
    """What all methods of a policy return."""
    observations = observations_of(policy)
    inputs = obs_as_tensor(observations, policy.device)
    starts = th.tensor([1.0, 0] * 4)
    states = states_of(policy, 8)
    th.manual_seed(4)
    forward = policy(inputs, states, starts)
    evaluated = policy.evaluate_actions(inputs, actions_of(policy), states_of(policy, 2), STARTS)
    distribution, after = policy.get_distribution(inputs, states.pi, starts)
    values = policy.predict_values(inputs, states.vf, starts)
    state = tuple(part.numpy() for part in states.pi)
    predicted = policy.predict(observations, state, starts.numpy(), deterministic=True)
    return [*forward, *evaluated, distribution.mode(), after, values, *predicted, policy.predict(observations)]


@pytest.mark.parametrize(
    ("observation", "action", "kwargs"),
    [
        *(("box", action, {}) for action in ACTION_SPACES),
        *((observation, "discrete", {}) for observation in ("discrete", "image", "dict")),
        ("dict", "box", {"share_features_extractor": False}),
        ("box", "discrete", {"shared_lstm": True, "enable_critic_lstm": False}),
        ("box", "discrete", {"enable_critic_lstm": False, "n_lstm_layers": 2}),
        ("box", "box", {"use_sde": True, "lstm_kwargs": {"bias": False}}),
    ],
)
def test_lstm_is_contribs(observation, action, kwargs):
    if action == "matrix" and IS_OLD:
        pytest.skip("contrib before 2.8 cannot predict actions of several dimensions")
    expected = make(CONTRIBS[observation], observation, action, **kwargs)
    policy = make(PLAIN[observation], observation, action, **kwargs)
    assert isinstance(policy, CONTRIBS[observation])
    assert equal(expected.state_dict(), policy.state_dict())
    assert equal(expected.optimizer.state_dict(), policy.optimizer.state_dict())
    th.manual_seed(5)
    numbers = everything(expected)
    th.manual_seed(5)
    assert equal(numbers, everything(policy))


def test_gru_is_that_of_its_formula():
    policy = make(MlpLstmPolicy, n_lstm_layers=2, recurrent_layer_type="gru")
    lstm, observations, states = policy.lstm_actor, observations_of(policy, 2), states_of(policy, 2)
    after = policy(th.tensor(observations), states, th.zeros(2))[-1]
    inputs = observations
    for layer in range(2):
        weights = [
            getattr(lstm, f"{name}_l{layer}").detach().numpy() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        hidden = states.pi[0][layer].numpy()
        # 6 rows each for reset, update and candidate
        of_input = inputs @ weights[0].T + weights[2]
        of_hidden = hidden @ weights[1].T + weights[3]
        reset, update = (1 / (1 + np.exp(-(of_input + of_hidden)[:, rows])) for rows in (slice(6), slice(6, 12)))
        candidate = np.tanh(of_input[:, 12:] + reset * of_hidden[:, 12:])
        inputs = (1 - update) * candidate + update * hidden
        assert_close(after.pi[0][layer], th.tensor(inputs), atol=1e-6, rtol=0)
    assert [state.shape for state in (*after.pi, *after.vf)] == [(2, 2, 6)] * 4
    assert not after.pi[1].any()
    assert not after.vf[1].any()


OPTIONS = {
    "defaults": ({}, 2),
    "shared": ({"shared_lstm": True, "enable_critic_lstm": False}, 1),
    "a critic without memory": ({"enable_critic_lstm": False}, 1),
    "two layers without bias": ({"n_lstm_layers": 2, "lstm_kwargs": {"bias": False}}, 2),
    "separate extractors": ({"share_features_extractor": False}, 2),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("cls", [MlpLstmPolicy, MaskableMlpLstmPolicy])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, cls, layer):
    kwargs, n_recurrent = OPTIONS[name]
    policy = make(cls, recurrent_layer_type=layer, **kwargs)
    recurrent = [module for module in policy.modules() if isinstance(module, nn.RNNBase)]
    assert [type(module) for module in recurrent] == [{"lstm": nn.LSTM, "gru": GRU}[layer]] * n_recurrent
    for module in recurrent:
        assert module.num_layers == kwargs.get("n_lstm_layers", 1)
        assert module.bias == ("lstm_kwargs" not in kwargs)
    (group,) = policy.optimizer.param_groups
    assert list(map(id, group["params"])) == list(map(id, policy.parameters()))
    assert group["lr"] == 1e-2
    assert group["eps"] == 1e-5
    # Acting step by step is evaluating the sequence
    observations, states = th.tensor(observations_of(policy, 4)), states_of(policy, 1)
    actions, values, log_probs, before = [], [], [], states
    for observation in observations:
        action, value, log_prob, states = policy(observation[None], states, th.zeros(1))
        for results, result in ((actions, action), (values, value), (log_probs, log_prob)):
            results.append(result)
    evaluated = policy.evaluate_actions(observations, th.cat(actions), before, th.zeros(4))
    for actual, expected in zip(evaluated[:2], (values, log_probs), strict=True):
        assert_close(actual, th.cat(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("cls", [MlpLstmPolicy, MaskableMlpLstmPolicy])
def test_states_are_zeroed_where_episodes_start(cls, layer):
    policy = make(cls, recurrent_layer_type=layer)
    observations, states, starts = th.tensor(observations_of(policy, 2)), states_of(policy, 2), th.tensor([1.0, 0])
    fresh = RNNStates(*(tuple(part * th.tensor([[[0.0], [1.0]]]) for part in pair) for pair in states))

    def outputs(states, starts):
        actions, values, log_probs, after = policy(observations, states, starts, deterministic=True)
        return actions, values, log_probs, after, policy.predict_values(observations, states.vf, starts)

    assert_close(outputs(states, starts), outputs(fresh, th.zeros(2)))
    assert not th.allclose(outputs(states, starts)[1][0], outputs(states, th.zeros(2))[1][0], atol=1e-3)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("cls", [MlpLstmPolicy, MaskableMlpLstmPolicy])
def test_predictions_hand_states_on(cls, layer):
    policy = make(cls, recurrent_layer_type=layer)
    nn.init.normal_(policy.action_net.weight)
    observations = 5 * observations_of(policy, 8)
    # Two episodes of one environment
    starts = np.array([1, 0, 0, 0, 0, 1, 0, 0], bool)
    zeros = th.zeros(1, 1, 6)
    distribution, after = policy.get_distribution(th.tensor(observations), (zeros, zeros), th.tensor(starts).float())
    expected, state, actions = distribution.mode(), None, []
    for observation, start in zip(observations, starts, strict=True):
        action, state = policy.predict(observation, state, start[None], deterministic=True)
        actions.append(action)
    assert th.equal(th.tensor(np.stack(actions)), expected)
    assert len(set(map(int, actions))) > 1
    assert_close(tuple(map(th.tensor, state)), after, atol=1e-6, rtol=0)


@pytest.mark.parametrize("action", MASKABLE_ACTIONS)
@pytest.mark.parametrize("observation", MASKED)
def test_all_actions_are_possible_as_without_masks(observation, action):
    masked = make(MASKED[observation], observation, action)
    nn.init.normal_(masked.action_net.weight)
    plain = make(PLAIN[observation], observation, action)
    parameters = masked.state_dict()
    if action == "multibinary":
        # Two logits for each bit, of which the difference counts
        for name in ("action_net.weight", "action_net.bias"):
            parameters[name] = parameters[name][1::2] - parameters[name][::2]
    plain.load_state_dict(parameters)
    inputs = obs_as_tensor(observations_of(plain), "cpu"), actions_of(plain), states_of(plain, 2), STARTS
    expected = plain.evaluate_actions(*inputs)
    for action_masks in (None, th.ones(8, masked.action_net.out_features)):
        assert_close(masked.evaluate_actions(*inputs, action_masks), expected, atol=1e-6, rtol=1e-6)


# Weights of the actions, which are the exponentials of the logits, a mask, the probabilities, and the likeliest action
MASKS = {
    "discrete": ([1, 2, 5], [1, 0, 1], [1 / 6, 0, 5 / 6], 2),
    "multidiscrete": (
        [1, 3, 1, 2, 5, 1, 1, 2, 4],
        [1, 1, 0, 1, 0, 1, 0, 1, 0],
        [1 / 4, 3 / 4, 0, 1, 0, 1 / 3, 0, 2 / 3, 0],
        [1, 1, 2],
    ),
    "multibinary": ([1, 3, 1, 3, 2, 1], [1, 0, 1, 1, 1, 1], [1, 0, 1 / 4, 3 / 4, 2 / 3, 1 / 3], [0, 1, 0]),
}


def probabilities(distribution):
    parts = getattr(distribution, "distributions", None) or [distribution.distribution]
    return th.cat([part.probs for part in parts], dim=1)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("action", MASKABLE_ACTIONS)
def test_masks(action, layer):
    weights, mask, expected, mode = MASKS[action]
    policy = make(MaskableMlpLstmPolicy, "box", action, recurrent_layer_type=layer)
    with th.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.copy_(th.tensor(weights).log())
    # In the second environment, all actions are possible
    action_masks = th.tensor([mask, [1] * len(mask)], dtype=th.bool)
    observations, states = observations_of(policy, 2), states_of(policy, 2)
    inputs = th.tensor(observations), states, th.zeros(2)
    distribution, _ = policy.get_distribution(inputs[0], states.pi, inputs[2], action_masks)
    assert_close(probabilities(distribution)[0], th.tensor(expected), atol=1e-6, rtol=0)
    assert th.equal(probabilities(distribution)[0] == 0, ~action_masks[0])
    assert (probabilities(distribution)[1] > 0).all()

    # 5/6, or 3/4 times 2/3, of which the entropies are sums of p log(1/p)
    likelihood = 5 / 6 if action == "discrete" else 1 / 2
    entropy = sum(p * np.log(1 / p) for p in expected if p > 0)
    actions, values, log_probs, _ = policy(*inputs, deterministic=True, action_masks=action_masks)
    assert actions[0].tolist() == mode
    evaluated = policy.evaluate_actions(inputs[0], actions, states, inputs[2], action_masks)
    assert log_probs[0].item() == pytest.approx(np.log(likelihood))
    assert evaluated[1][0].item() == pytest.approx(np.log(likelihood))
    assert evaluated[2][0].item() == pytest.approx(entropy)
    assert th.equal(evaluated[0], values)

    assert policy.predict(observations, deterministic=True, action_masks=action_masks.numpy())[0][0].tolist() == mode
    single, _ = policy.predict(observations[0], deterministic=True, action_masks=np.array(mask))
    assert single.tolist() == mode
    # No mask outlives its call
    for distribution in (policy.get_distribution(inputs[0], states.pi, inputs[2])[0], policy.action_dist):
        assert (probabilities(distribution) > 0).all()
    for _ in range(20):
        drawn = policy(*inputs, action_masks=action_masks)[0]
        # An impossible action would have -1e8
        assert policy.evaluate_actions(inputs[0], drawn, states, inputs[2], action_masks)[1].min() > -10


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("action", MASKABLE_ACTIONS)
def test_gradients_where_one_action_is_left(action, layer):
    policy = make(MaskableMlpLstmPolicy, "box", action, recurrent_layer_type=layer)
    heads = {"discrete": [3], "multidiscrete": [2, 3, 4], "multibinary": [2, 2, 2]}[action]
    action_masks = th.zeros(8, sum(heads))
    action_masks[:, np.cumsum([0, *heads[:-1]])] = 1
    actions = th.zeros_like(actions_of(policy))
    inputs = th.tensor(observations_of(policy)), actions, states_of(policy, 2), STARTS
    values, log_probs, entropies = policy.evaluate_actions(*inputs, action_masks)
    assert not log_probs.any()
    assert not entropies.any()
    (values + log_probs.exp() + entropies).sum().backward()
    assert all(th.isfinite(parameter.grad).all() for parameter in policy.parameters())
    assert policy.value_net.weight.grad.any()
    assert not policy.action_net.weight.grad.any()


@pytest.mark.parametrize("action", MASKABLE_ACTIONS)
def test_initial_layer_of_the_actions_is_contribs(action):
    policy = make(MaskableMlpLstmPolicy, "box", action)
    n_actions = {"discrete": 3, "multidiscrete": 9, "multibinary": 6}[action]
    weight = policy.action_net.weight.detach()
    # Orthogonal with gain 0.01
    assert_close(weight @ weight.T, 1e-4 * th.eye(n_actions), atol=1e-9, rtol=0)
    assert not policy.action_net.bias.any()
    assert not isinstance(policy.action_dist, MultiCategoricalDistribution)


def test_errors():
    with pytest.raises(ValueError, match="recurrent_layer_type must be 'lstm' or 'gru', but is 'rnn'"):
        make(MlpLstmPolicy, recurrent_layer_type="rnn")
    with pytest.raises(ValueError, match=r"Policies with action masks are for actions .*, but those of env are Box"):
        make(MaskableMlpLstmPolicy, "box", "box")


def test_a_policy_that_would_forget_does_not_predict():
    policy = make(MaskableMlpLstmPolicy)
    observations = observations_of(policy, 2)
    with pytest.raises(ValueError, match=r"the policy would forget .*; sb3_ppo_variants.evaluate_policy does"):
        policy.predict(observations, None, np.array([True, False]))
    for episode_start in (None, np.array([True, True])):
        _, state = policy.predict(observations, None, episode_start)
    policy.predict(observations, state, np.array([True, False]))


@pytest.mark.parametrize(
    ("cls", "observation", "action", "kwargs"),
    [
        (MlpLstmPolicy, "box", "box", {"use_sde": True, "squash_output": True, "lstm_kwargs": {"bias": False}}),
        (CnnLstmPolicy, "image", "multibinary", {"enable_critic_lstm": False}),
        (MultiInputLstmPolicy, "dict", "discrete", {"share_features_extractor": False, "net_arch": [7]}),
        (MaskableMlpLstmPolicy, "box", "multibinary", {"activation_fn": nn.ReLU, "ortho_init": False}),
        (MaskableCnnLstmPolicy, "image", "discrete", {"normalize_images": True, "net_arch": {"pi": [5], "vf": []}}),
        (MaskableMultiInputLstmPolicy, "dict", "multidiscrete", {"shared_lstm": True, "enable_critic_lstm": False}),
    ],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_saving(cls, observation, action, kwargs, layer, tmp_path):
    policy = make(cls, observation, action, n_lstm_layers=2, recurrent_layer_type=layer, **kwargs)
    policy.save(tmp_path / "policy")
    loaded = cls.load(tmp_path / "policy", device="cpu")
    assert type(loaded) is cls
    assert str(loaded) == str(policy)
    assert equal(loaded.state_dict(), policy.state_dict())
    assert loaded._get_constructor_parameters() == policy._get_constructor_parameters()
    if "use_sde" in kwargs:
        for one in (policy, loaded):
            th.manual_seed(0)
            one.reset_noise(8)
    th.manual_seed(6)
    expected = everything(policy)
    th.manual_seed(6)
    assert equal(expected, everything(loaded))
