"""The quick ways of policies with memory: the operator in C++, one call of nn.LSTM, and rollouts in NumPy."""

import itertools
import subprocess

import numpy as np
import pytest
import torch as th
from compiled_support import needs_new_torch
from masked_support import masked_env
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from support import InEachRollout, LinearExtractor, equal, make_model, space_env
from torch import nn
from torch.utils import _pytree as pytree

from sb3_ppo_variants import PPOClip, PPOKLPen, policies
from sb3_ppo_variants.buffers import STATES
from sb3_ppo_variants.compiled import lstm
from sb3_ppo_variants.compiled.numpy_memory import NumpyMemory
from sb3_ppo_variants.compiled.recurrent import OneCall, Scanned
from sb3_ppo_variants.compiled.support import CompilationError
from sb3_ppo_variants.kinds import kind_of
from sb3_ppo_variants.kl import kl_from_parameters
from sb3_ppo_variants.loss import ppo_loss
from sb3_ppo_variants.objectives import clipped_surrogate, kl_penalized_surrogate
from sb3_ppo_variants.policies import has_contribs_memory
from sb3_ppo_variants.recurrent_policies import MlpLstmPolicy
from sb3_ppo_variants.rollout import Rollout

COEF = {"ent_coef": 0.01, "vf_coef": 0.5, "clip_range": 0.2, "clip_range_vf": 0.3, "kl_coef": 1.0}
SMALL = {"lstm_hidden_size": 6, "net_arch": [5]}


class Double(BaseFeaturesExtractor):
    """Features in the precision of the policy."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 5)
        self.layer = nn.Linear(5, 5)

    def forward(self, observations):
        return self.layer(observations.to(self.layer.weight.dtype))


@pytest.mark.parametrize(
    ("n_rows", "size", "starts"),
    [(40, 64, []), (40, 37, [1, 2, 3, 20]), (9, 5, range(9)), (50, 16, [10, 20, 30, 40]), (1, 3, []), (33, 256, [7])],
)
def test_the_operator_is_an_lstm(n_rows, size, starts):
    """Outputs and all gradients, against nn.LSTM in double precision, one sequence after the other."""
    th.manual_seed(0)
    memory = nn.LSTM(4, size, num_layers=2)
    exact = nn.LSTM(4, size, num_layers=2).double()
    exact.load_state_dict(memory.state_dict())
    inputs, weights = th.randn(n_rows, 4, requires_grad=True), th.randn(n_rows, size)
    states = th.randn(n_rows, 2, size), th.randn(n_rows, 2, size)
    is_start = th.zeros(n_rows, dtype=th.bool)
    is_start[[0, *starts]] = True
    outputs = lstm.remember(memory, inputs, states, is_start)
    (outputs * weights).sum().backward()

    same_inputs, found = inputs.detach().double().requires_grad_(), []
    cuts = [*is_start.nonzero().flatten().tolist(), n_rows]
    for start, stop in itertools.pairwise(cuts):
        present = [state[start].double()[:, None] for state in states]
        found.append(exact(same_inputs[start:stop, None], present)[0][:, 0])
    expected = th.cat(found)
    (expected * weights).sum().backward()
    pairs = [(outputs, expected), (inputs.grad, same_inputs.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(memory.parameters(), exact.parameters(), strict=True)]
    for actual, right in pairs:
        assert (actual - right).abs().max() < 3e-6 * (1 + right.abs().max())


def test_the_operator_hands_on_what_is_not_finite():
    memory = nn.LSTM(2, 3)
    inputs, states = th.zeros(4, 2), (th.zeros(4, 1, 3), th.zeros(4, 1, 3))
    inputs[2] = th.nan
    outputs = lstm.remember(memory, inputs, states, th.tensor([True, False, False, True]))
    assert outputs.isnan().any(dim=1).tolist() == [False, False, True, False]
    # Large numbers saturate
    outputs = lstm.remember(memory, inputs.nan_to_num() + 1e30, states, th.ones(4, dtype=th.bool))
    assert (outputs.isfinite() & (outputs.abs() <= 1)).all()


OPTIONS = {
    "plain": {},
    "layers": {"n_lstm_layers": 2},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "actor only": {"enable_critic_lstm": False},
    "own extractors": {"share_features_extractor": False},
    "no biases": {"lstm_kwargs": {"bias": False}},
    "GRU": {"recurrent_layer_type": "gru"},
}


def change_parameters(policy, size):
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size * th.randn(parameter.shape))


def rollout_of(action="box", policy="MlpLstmPolicy", sequence_length=None, options=None, change=0.05, **kwargs):
    """A model and its rollout, by a policy that is not pi_old any more."""
    env = masked_env("box", action)() if "Maskable" in policy else space_env("box", action, n_envs=3)()
    policy_kwargs = {**SMALL, "features_extractor_class": Double, **(options or {})}
    sizes = {"n_steps": 24, "batch_size": 24, "sequence_length": sequence_length}
    model = make_model(PPOClip, policy, env, policy_kwargs=policy_kwargs, compile=False, **sizes, **kwargs)
    model.learn(24 * env.num_envs)
    old = Rollout(model.rollout_buffer, kind_of(model.policy, sequence_length))
    change_parameters(model.policy, change)
    return model, old


def as_double(tree):
    """Real numbers in double precision."""
    is_real = lambda x: isinstance(x, th.Tensor) and x.dtype == th.float32  # noqa: E731
    return pytree.tree_map(lambda x: x.double() if is_real(x) else x, tree)


def loss_and_gradients(kind, batch):
    kind.policy.zero_grad()
    for objective in (clipped_surrogate, kl_penalized_surrogate):
        loss, metrics = ppo_loss(objective, batch, kind.evaluate(batch), COEF, normalizes_minibatch=True)
        loss.backward()
    return th.cat([metrics, *[p.grad.flatten() for p in kind.policy.parameters() if p.grad is not None]])


def assert_agree(model, old, kinds, cast, tolerance):
    """Loss, metrics and gradients of the minibatches of an epoch, from one rollout and one state."""
    np.random.seed(0)
    minibatches = old.minibatches(16)
    assert sum(map(len, minibatches)) == len(old.data.returns)
    for index in minibatches:
        right = loss_and_gradients(old.kind, cast(old.kind.select(old.data, index, 24)))
        for kind in kinds:
            found = loss_and_gradients(kind, cast(kind.select(old.data, index, 24)))
            assert (found - right).abs().max() <= tolerance * right.abs().max()


@pytest.mark.parametrize("sequence_length", [None, 8])
@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_contrib_in_double_precision(options, sequence_length):
    model, old = rollout_of(options=OPTIONS[options], sequence_length=sequence_length)
    model.policy.double()
    assert_agree(model, old, [OneCall(model.policy, sequence_length)], as_double, 1e-10)


@pytest.mark.parametrize("sequence_length", [None, 8, 3])
def test_kl_of_an_update_is_that_of_its_sequences(sequence_length):
    model, old = rollout_of(sequence_length=sequence_length, change=0)
    quick = Rollout(model.rollout_buffer, OneCall(model.policy, sequence_length))
    change_parameters(model.policy, 0.05)
    batch = old.kind.select(old.data, th.arange(len(old.data.returns)), 24)
    kl = kl_from_parameters(batch.old_parameters, old.kind.evaluate(batch).closed_form())
    expected = kl[batch.valid].mean().item()
    assert expected > 1e-3
    assert old.mean_kl() == pytest.approx(expected, rel=1e-4)
    assert quick.mean_kl() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete", "multibinary"])
@pytest.mark.parametrize("sequence_length", [None, 8])
def test_agrees_with_contrib(action, sequence_length):
    model, old = rollout_of(action, sequence_length=sequence_length)
    kinds = [cls(model.policy, sequence_length) for cls in (OneCall, Scanned)]
    assert_agree(model, old, kinds, lambda batch: batch, 1e-5)


@pytest.mark.parametrize(
    ("action", "policy", "kwargs"),
    [("box", "MlpLstmPolicy", {"use_sde": True})]
    + [(action, "MaskableMlpLstmPolicy", {}) for action in ("discrete", "multidiscrete", "multibinary")],
)
def test_agrees_with_contrib_with_masks_and_with_sde(action, policy, kwargs):
    model, old = rollout_of(action, policy, **kwargs)
    assert_agree(model, old, [OneCall(model.policy), Scanned(model.policy)], lambda batch: batch, 1e-5)


def test_kl_of_the_whole_rollout():
    model, old = rollout_of()
    quick = Rollout(model.rollout_buffer, OneCall(model.policy))
    quick.measured = [batch._replace(old_parameters=old.measured[0].old_parameters) for batch in quick.measured]
    assert quick.mean_kl() == pytest.approx(old.mean_kl(), rel=1e-4)
    assert old.mean_kl() > 1e-3


@pytest.mark.parametrize("options", ["plain", "layers", "GRU"])
def test_a_rollout_is_not_padded_to_its_longest_episode(options):
    model, _ = rollout_of(options=OPTIONS[options])
    # 16 sequences of 3 steps, then one of 24, not 17 of 24. The first and the last go on from before the rollout
    model.rollout_buffer.episode_starts[:] = 0
    model.rollout_buffer.episode_starts[3:48:3] = 1
    for name in STATES:
        states = getattr(model.rollout_buffer, name)
        states[:] = np.random.uniform(-1, 1, states.shape)
    expected = Rollout(model.rollout_buffer, kind_of(model.policy)).measured[0]
    rows = []
    model.policy.lstm_actor.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0].data)))
    found = Rollout(model.rollout_buffer, OneCall(model.policy)).measured[0]
    assert rows == [72]
    th.testing.assert_close(found.old_parameters, expected.old_parameters)


class OwnMemory(nn.LSTM):
    def forward(self, features, states):
        return super().forward(features.relu(), states)


def test_a_memory_of_its_own_is_given_tensors():
    model, _ = rollout_of()
    model.policy.lstm_actor.__class__ = OwnMemory
    model.rollout_buffer.episode_starts[24::3] = 1
    expected = Rollout(model.rollout_buffer, kind_of(model.policy)).measured[0]
    found = Rollout(model.rollout_buffer, OneCall(model.policy)).measured[0]
    th.testing.assert_close(found.old_parameters, expected.old_parameters)


@pytest.mark.parametrize("options", [{}, {"share_features_extractor": False}])
def test_features_of_a_rollout_are_made_in_parts(options, monkeypatch):
    seen = []

    class Counts(LinearExtractor):
        def forward(self, observations):
            seen.append(len(observations))
            return super().forward(observations)

    policy_kwargs = {**SMALL, "features_extractor_class": Counts, **options}
    model = make_model(policy="MlpLstmPolicy", policy_kwargs=policy_kwargs, compile=False).learn(52)
    expected = Rollout(model.rollout_buffer, OneCall(model.policy)).measured[0]
    monkeypatch.setattr(policies, "CHUNK_SIZE", 20)
    seen.clear()
    parts = Rollout(model.rollout_buffer, OneCall(model.policy)).measured[0]
    assert seen == [n for n in (20, 20, 12) for _ in range(1 + len(options))]
    th.testing.assert_close(parts.old_parameters, expected.old_parameters)


@pytest.mark.parametrize("options", [name for name in OPTIONS if name not in ("GRU", "own extractors")])
@pytest.mark.parametrize(
    ("policy", "observation", "action"),
    [
        ("MlpLstmPolicy", "box", "box"),
        ("MlpLstmPolicy", "box", "discrete"),
        ("MlpLstmPolicy", "multidiscrete", "discrete"),
        ("MultiInputLstmPolicy", "parts", "multidiscrete"),
        ("MaskableMlpLstmPolicy", "box", "multidiscrete"),
        ("MaskableMultiInputLstmPolicy", "parts", "discrete"),
    ],
)
def test_rollouts_in_numpy(options, policy, observation, action):
    """Values, log probabilities of the actions, and states, as contrib's policy has them from the same states."""
    has_masks = "Maskable" in policy
    env = (masked_env if has_masks else space_env)(observation, action)()
    model = make_model(PPOClip, policy, env, policy_kwargs={**SMALL, **OPTIONS[options]})
    assert NumpyMemory.supports(model.policy)
    # Two rollouts: the states go on
    model.learn(2 * 52)
    buffer = model.rollout_buffer
    buffer.reset()
    model._last_episode_starts[:] = [True, False]
    _, callback = model._setup_learn(1, None, reset_num_timesteps=False)
    before = model._last_lstm_states
    model.collect_rollouts(model.env, callback, buffer, 26)
    assert equal([th.tensor(getattr(buffer, name)[0]) for name in STATES], [*before.pi, *before.vf])
    for step in range(26):
        h_pi, c_pi, h_vf, c_vf = (th.tensor(getattr(buffer, name)[step]) for name in STATES)
        given = {
            "lstm_states": RNNStates((h_pi, c_pi), (h_vf, c_vf)),
            "episode_starts": th.tensor(buffer.episode_starts[step]),
        }
        if has_masks:
            given["action_masks"] = buffer.action_masks[step]
        observations = pytree.tree_map(lambda array, step=step: th.tensor(array[step]), buffer.observations)
        actions = th.tensor(buffer.actions[step]).float()
        with th.no_grad():
            *_, states = model.policy(observations, **given)
            actions = actions.flatten() if action == "discrete" else actions
            values, log_probs, _ = model.policy.evaluate_actions(observations, actions, **given)
        th.testing.assert_close(values.flatten(), th.tensor(buffer.values[step]), atol=1e-5, rtol=1e-5)
        th.testing.assert_close(log_probs, th.tensor(buffer.log_probs[step]), atol=1e-5, rtol=1e-5)
        following = [getattr(buffer, name)[step + 1] for name in STATES] if step < 25 else None
        if following is None:
            following = [*model._last_lstm_states.pi, *model._last_lstm_states.vf]
        for state, found in zip((*states.pi, *states.vf), following, strict=True):
            th.testing.assert_close(state, th.as_tensor(found), atol=1e-5, rtol=1e-5)


def update_of(model, compile_, kind=None):
    """The parameters after an update of the model, which is then as before; and whether it was compiled."""
    before = pytree.tree_map(th.clone, model.policy.state_dict())
    model.compile = compile_
    with model._chosen_path(np.inf if compile_ else 1):
        np.random.seed(0)
        model.policy.optimizer.state.clear()
        model.train()
        parameters = nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
        is_compiled = model._uses_compiled
    model.policy.load_state_dict(before)
    return parameters - nn.utils.parameters_to_vector(model.policy.parameters()).detach(), is_compiled


@needs_new_torch
@pytest.mark.parametrize(
    ("cls", "policy", "options", "is_interpreted"),
    [
        # By torch's compiler the one with most in it
        (PPOKLPen, "MaskableMlpLstmPolicy", {"n_lstm_layers": 2}, False),
        (PPOClip, "MlpLstmPolicy", {}, True),
    ],
)
def test_compiled_update(cls, policy, options, is_interpreted, request):
    """Up to rounding contrib's, with a shorter minibatch at the end of epochs."""
    if is_interpreted:
        request.getfixturevalue("interpreted")
    env = (masked_env if "Maskable" in policy else space_env)("box", "discrete")()
    model = make_model(cls, policy, env, batch_size=26, policy_kwargs={**SMALL, **options}, compile=False, learning_rate=1e-3)
    model.learn(52)
    right, _ = update_of(model, False)
    found, is_compiled = update_of(model, True)
    assert is_compiled
    assert (found - right).norm() < 1e-3 * right.norm()


@needs_new_torch
def test_gru_is_quick_without_compiling():
    model = make_model(PPOClip, "MlpLstmPolicy", policy_kwargs={**SMALL, "recurrent_layer_type": "gru"}, compile=False)
    model.learn(52)
    right, _ = update_of(model, False)
    found, _ = update_of(model, "auto")
    assert type(model._kind()) is OneCall
    assert 0 < (found - right).norm() < 1e-3 * right.norm()
    model.compile = True
    with pytest.raises(RuntimeError, match="compile=True is not possible: the memory of the policy is not"):
        model.learn(52)


@needs_new_torch
@pytest.mark.usefixtures("interpreted")
def test_a_wrong_operator_is_noticed(monkeypatch):
    """Also where it is wrong in the same way nearby."""
    right = lstm.remember
    monkeypatch.setattr(lstm, "remember", lambda *args: 1.1 * right(*args))
    model = make_model(PPOClip, "MlpLstmPolicy", policy_kwargs=SMALL, compile=True)
    with pytest.raises(CompilationError, match="the compiled step computes something else than the policy"):
        model.learn(52)


class Scaled(LinearExtractor):
    """Depends on a number that is no tensor."""

    factor = 1.0

    def scale(self):
        return self.factor


@needs_new_torch
@pytest.mark.usefixtures("interpreted")
def test_compiled_anew_after_a_change():
    """Of something else than the parameters, before the third update."""

    def change(model):
        model.policy.features_extractor.factor = 1.0 if model.num_timesteps < 156 else 0.5

    policy_kwargs = {**SMALL, "features_extractor_class": Scaled}
    model = make_model(PPOClip, "MlpLstmPolicy", policy_kwargs=policy_kwargs, compile=True)
    model.learn(4 * 52, InEachRollout(change, at_end=True), log_interval=None)
    assert model._backend.step.n_compilations == 2


@needs_new_torch
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "CnnPolicy"])
@pytest.mark.parametrize("part", ["actor", "critic"])
def test_replaced_modules_of_libraries_are_seen_from_the_rollout(policy, part):
    env = space_env("image" if policy == "CnnPolicy" else "box", "discrete")()
    policy_kwargs = {"net_arch": {"pi": [8], "vf": [8]}, "activation_fn": nn.Tanh}
    policy_kwargs |= SMALL if policy == "MlpLstmPolicy" else {}
    model = make_model(PPOClip, policy, env=env, policy_kwargs=policy_kwargs, compile=True).learn(104)
    step = model._backend.step
    assert step.n_compilations == 1
    getattr(model.policy.mlp_extractor, "policy_net" if part == "actor" else "value_net")[1] = nn.ReLU()
    model.learn(104, reset_num_timesteps=False)
    # Counted anew in each training
    assert (model._backend.step is step, step.n_compilations) == (True, 1)


@needs_new_torch
def test_quick_without_a_compiler(monkeypatch):
    """One call of nn.LSTM, and a warning that says why not more."""

    def fail(*args, **kwargs):
        raise subprocess.CalledProcessError(1, "g++")

    model = make_model(PPOClip, "MlpLstmPolicy", policy_kwargs=SMALL, verbose=1, compile=False)
    model.learn(52, log_interval=None)
    right, _ = update_of(model, False)
    monkeypatch.setattr(subprocess, "run", fail)
    lstm.library.cache_clear()
    with pytest.warns(UserWarning, match="^Not compiled: CalledProcessError"):
        found, is_compiled = update_of(model, "auto")
    assert not is_compiled
    assert isinstance(model._kind(), OneCall)
    assert (found - right).norm() < 1e-3 * right.norm()


class OwnForward(MlpLstmPolicy):
    def evaluate_actions(self, *args, **kwargs):
        values, log_prob, entropy = super().evaluate_actions(*args, **kwargs)
        return 2 * values, log_prob, entropy


def test_a_policy_of_its_own_is_as_it_is(capsys):
    model = make_model(PPOClip, OwnForward, policy_kwargs=SMALL, verbose=1)
    assert not has_contribs_memory(model.policy)
    model.learn(52, log_interval=None)
    assert not isinstance(model._kind(), OneCall)
    model.compile = True
    with pytest.raises(RuntimeError, match="compile=True is not possible: the policy has methods of its own"):
        model.learn(52)
