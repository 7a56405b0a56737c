"""The first compiled step of an update is compared with SB3's own: what has changed is followed, or ends compiling."""

import random
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from compiled_support import Update, needs_new_torch, reference_and_compiled, trained
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import MlpExtractor
from support import DropoutExtractor, InEachRollout, LinearExtractor, equal, make_model, train, with_extractor

from sb3_ppo_variants import PPOClip
from sb3_ppo_variants.compiled import inductor, verification
from sb3_ppo_variants.compiled.step import MAX_COMPILATIONS, N_OTHERS
from sb3_ppo_variants.compiled.support import CompilationError
from sb3_ppo_variants.kinds import kind_of
from sb3_ppo_variants.loss import Settings
from sb3_ppo_variants.objectives import clipped_surrogate
from sb3_ppo_variants.optimizer import FlatParameters, trainable
from sb3_ppo_variants.rollout import Rollout

pytestmark = [needs_new_torch, pytest.mark.usefixtures("interpreted")]

THIS = sys.modules[__name__]
FACTOR = 1.0
WEIGHT = 1.0


class Config:
    scale = 1.0


def closure():
    """A function, and one that sets the number which it returns."""
    scale = 1.0

    def change(value):
        nonlocal scale
        scale = value

    return lambda: scale, change


class Configurable(LinearExtractor):
    """Its output depends on whatever an object may hold."""

    factor = 1.0

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.config, self.deep, (self.enclosed, self.change_enclosed) = Config(), {"a": [({"b": [1.0]},)]}, closure()
        # 2.4 MB
        self.large = np.ones(600_000, np.float32)
        self.fn, self.model = th.tanh, None
        self.statistics = RunningMeanStd(shape=(8,))

    def scale(self):
        scale = FACTOR * self.factor * self.config.scale * self.enclosed()
        scale = scale * self.deep["a"][0][0]["b"][0] * float(self.large[123_456])
        return scale if self.model is None else scale * (1 + self.model._current_progress_remaining)

    def forward(self, observations):
        features = self.fn(super().forward(observations))
        return features - th.as_tensor(self.statistics.mean, dtype=features.dtype)


def weighted(terms, coef):
    return WEIGHT * clipped_surrogate(terms, coef)


class Weighted(PPOClip):
    """Its objective reads what is no coefficient."""

    objective = staticmethod(weighted)


def doubled(method):
    return lambda *args, **kwargs: 2 * method(*args, **kwargs)


def with_doubled_values(method):
    def evaluate(*args, **kwargs):
        values, *others = method(*args, **kwargs)
        return 2 * values, *others

    return evaluate


# What is changed of a policy, or, by a monkeypatch, elsewhere
IN_THE_POLICY = {
    "object": lambda policy: setattr(policy.features_extractor.config, "scale", 0.5),
    "closure": lambda policy: policy.features_extractor.change_enclosed(0.5),
    "five containers deep": lambda policy: policy.features_extractor.deep["a"][0][0]["b"].__setitem__(0, 0.5),
    "large array": lambda policy: policy.features_extractor.large.__setitem__(123_456, 0.5),
    "function": lambda policy: setattr(policy.features_extractor, "fn", th.sin),
    "statistics": lambda policy: policy.features_extractor.statistics.update(np.ones((9, 8))),
    "layer": lambda policy: setattr(policy.mlp_extractor.policy_net, "1", th.nn.Sigmoid()),
    "method": lambda policy: setattr(policy, "evaluate_actions", with_doubled_values(policy.evaluate_actions)),
    "method of the distribution": lambda policy: setattr(policy.action_dist, "entropy", doubled(policy.action_dist.entropy)),
}
ELSEWHERE = {
    "method of a module's class": (MlpExtractor, "forward_actor", doubled(MlpExtractor.forward_actor)),
    "module-level variable": (THIS, "FACTOR", 0.5),
    "class attribute": (Configurable, "factor", 0.5),
    "module-level variable of the objective": (THIS, "WEIGHT", 0.5),
    "objective": (Weighted, "objective", staticmethod(doubled(weighted))),
}


def configurable(cls=Weighted, extractor=Configurable):
    return trained(cls, ent_coef=0.1, **with_extractor(extractor, net_arch=[16]))


@pytest.mark.parametrize("change", [*IN_THE_POLICY, *ELSEWHERE])
def test_what_changes_between_two_updates_counts_in_the_next_one(change, monkeypatch, interpreted):
    model = configurable()
    before = Update(model, True)
    if change in IN_THE_POLICY:
        IN_THE_POLICY[change](model.policy)
    else:
        monkeypatch.setattr(*ELSEWHERE[change])
    reference, compiled = reference_and_compiled(model)
    assert (reference.rows[0] - before.rows[0]).abs().max() > 1e-3
    assert compiled.is_compiled
    assert len(interpreted) == 2
    assert (reference.rows[0] - compiled.rows[0]).abs().max() < 1e-4
    assert reference.off(compiled) < 1e-5
    assert Update(model, True).off(compiled) == 0
    assert len(interpreted) == 2


def test_replaced_activation_of_a_policy_of_sb3(interpreted):
    model = trained(PPOClip, ent_coef=0.1)
    assert Update(model, True).is_compiled
    for network in (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net):
        network[1] = th.nn.ReLU()
    reference, compiled = reference_and_compiled(model)
    assert compiled.is_compiled
    assert reference.off(compiled) < 1e-5
    assert len(interpreted) == 2


def test_changes_that_only_just_count(interpreted):
    """Those of some thousandths do, those that could be rounding do not."""
    model = configurable()
    for scale, n_compilations in ((1.0, 1), (1 + 1e-6, 1), (1.004, 2)):
        model.policy.features_extractor.config.scale = scale
        reference, compiled = reference_and_compiled(model)
        assert reference.off(compiled) < 1e-5
        assert len(interpreted) == n_compilations


def in_an_object(model):
    model.policy.features_extractor.config.scale *= 0.9


ANNEAL = {
    "the progress": lambda model: setattr(model.policy.features_extractor, "model", model),
    "the objective": lambda model: setattr(THIS, "WEIGHT", 0.9 * WEIGHT),
}


@pytest.mark.parametrize("anneal", ANNEAL)
def test_annealing_ends_compiling_and_costs_no_wrong_update(anneal, auto_compiles, monkeypatch):
    def learn(compile_):
        monkeypatch.setattr(THIS, "WEIGHT", 1.0)
        models.append(make_model(Weighted, n_epochs=3, compile=compile_, **with_extractor(Configurable)))
        return models[-1].learn(52 * 6, InEachRollout(ANNEAL[anneal]), log_interval=None)

    models = []
    message = "from update to update, something else than the parameters changes what the policy or the objective computes"
    with pytest.warns(UserWarning, match=f"^Not compiled: {message}") as warned:
        auto = learn("auto")
    assert [warning.filename for warning in warned] == [__file__]
    reference = learn(False)
    # Rollouts and compiled updates differ by rounding
    for name, value in reference.policy.state_dict().items():
        assert (value - auto.policy.state_dict()[name]).abs().max() < 1e-4, name
    assert not auto._uses_compiled
    with pytest.raises(CompilationError, match=message):
        learn(True)
    # Two updates of three epochs: the second one has been compiled anew
    assert models[-1]._n_updates == 6


def test_update_that_ends_compiling_is_the_reference_paths_bit_for_bit():
    model = configurable()
    for is_compiled in (True, True, False, False):
        ends = nullcontext() if is_compiled else pytest.warns(UserWarning, match="^Not compiled: from update to update")
        with ends:
            auto = Update(model, True, compile_="auto")
        reference = Update(model, False)
        assert auto.is_compiled == is_compiled
        assert equal(auto.parameters, reference.parameters) != is_compiled
        assert equal(auto.optimizer, reference.optimizer) != is_compiled
        in_an_object(model)
        if not is_compiled:
            # As in the rest of a training
            assert not model._backend.is_on
            model._chosen_path = lambda _: None


def test_changes_in_every_second_update_end_compiling_too():
    model = configurable()
    for _ in range(MAX_COMPILATIONS):
        for _ in range(2):
            reference, compiled = reference_and_compiled(model)
            assert reference.off(compiled) < 1e-5
        in_an_object(model)
    with pytest.raises(CompilationError, match="compiled 4 times in this training, and again something else than the"):
        Update(model, True)


def compile_with(mistake, monkeypatch):
    """A compiler whose steps make a mistake."""

    def compile_graph(graph, arguments):
        def step(arguments):
            row, *others = graph(*arguments)
            mistake(arguments, row)
            return row, *others

        return step

    monkeypatch.setattr(inductor, "compile_graph", compile_graph)


MISTAKES = {
    "value_loss is .* instead of": lambda arguments, row: row[2].add_(0.01),
    "grad_norm is .* instead of": lambda arguments, row: row[-1].mul_(1.01),
    # The step size is 1e-3
    "a parameter is off by 0.0001": lambda arguments, row: arguments[0][1].add_(1e-4),
    "exp_avg of policy.* is off by": lambda arguments, row: arguments[1][:320].mul_(1.1),
    "exp_avg_sq of policy.* is off by": lambda arguments, row: arguments[2][:320].mul_(1.1),
    "exp_avg of policy.* is off by nan": lambda arguments, row: arguments[1][1].fill_(np.nan),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_of_a_compiler_are_found_before_they_count(message, monkeypatch):
    compile_with(MISTAKES[message], monkeypatch)
    # Without moments from before, of which some would be small beside those of the first step
    model = make_model(learning_rate=1e-3, n_epochs=3, compile=True)
    fresh = {name: value.clone() for name, value in model.policy.state_dict().items()}
    # Nor is it forgotten what has been compiled wrongly
    for _ in range(2):
        with pytest.raises(CompilationError, match=f"the compiled step computes something else than the policy: {message}"):
            model.learn(52)
    assert equal(model.policy.state_dict(), fresh)
    assert not model.policy.optimizer.state
    assert model._n_updates == 0


class Draws(LinearExtractor):
    """Drops its features now and then, in training only."""

    def scale(self):
        return float(random.random() < 0.5) if self.training else 1.0


class Counts(LinearExtractor):
    """Its output depends on how often it has been called."""

    n_calls = 0

    def scale(self):
        self.n_calls += self.training
        return 1 + self.n_calls % 5


@pytest.mark.parametrize("extractor", [Draws, Counts])
def test_policies_that_are_no_functions_of_their_tensors(extractor, auto_compiles, interpreted):
    with pytest.raises(CompilationError, match="evaluations of the policy on the same minibatch give different numbers"):
        train(PPOClip, compile=True, **with_extractor(extractor))
    with pytest.warns(UserWarning, match="^Not compiled: evaluations of the policy"):
        model, _ = train(PPOClip, **with_extractor(extractor))
    assert not model._uses_compiled
    assert model._n_updates == 9
    assert not interpreted


def test_what_other_threads_change_does_not_count(interpreted):
    """A counter in an object that the extractor refers to, and global random numbers."""

    def change_again_and_again():
        while not is_over.wait(1e-5):
            extractor.metrics.scale += 1
            random.random(), np.random.rand(), th.rand(1)

    model, is_over = make_model(compile=True, n_epochs=1, **with_extractor(LinearExtractor)), threading.Event()
    extractor = model.policy.features_extractor
    extractor.metrics = Config()
    thread = threading.Thread(target=change_again_and_again)
    thread.start()
    try:
        model.learn(52 * 4)
    finally:
        is_over.set()
        thread.join()
    assert extractor.metrics.scale > 1
    assert model._uses_compiled
    assert len(interpreted) == 1


def test_steps_that_draw_from_torch_are_compared_on_the_same_numbers(monkeypatch, interpreted):
    model = configurable(extractor=DropoutExtractor)
    assert Update(model, True).rows[0, -1] > 0
    model.policy.features_extractor.layers[-1].p = 0.0
    reference, compiled = reference_and_compiled(model)
    assert reference.off(compiled) < 1e-5
    assert len(interpreted) == 2
    compile_with(MISTAKES["grad_norm is .* instead of"], monkeypatch)
    with pytest.raises(CompilationError, match="grad_norm is"):
        Update(configurable(extractor=DropoutExtractor), True)


def trace_with(errors, monkeypatch):
    """A tracer that makes mistakes. ``errors`` are factors of the returns and of some of the coefficients of the loss."""

    def erroneous(step):
        def wrong_step(*arguments):
            # A rollout's returns come before pi_old's two parameters
            *others, returns, mean, std, coef_vector, index = arguments
            signs = 1 - 2 * (th.arange(len(returns)) % 3 == 0).to(returns.dtype)
            returns = returns * (1 + errors.get("returns", 0.0) * signs)
            for position, name in enumerate(("ent_coef", "vf_coef", "clip_range"), start=N_OTHERS):
                factor = th.where(th.arange(len(coef_vector)) == position, errors.get(name, 1.0), 1.0)
                coef_vector = coef_vector * factor
            return step(*others, returns, mean, std, coef_vector, index)

        return wrong_step

    trace = inductor.trace
    monkeypatch.setattr(inductor, "trace", lambda step, *args, **kwargs: trace(erroneous(step), *args, **kwargs))


@pytest.mark.parametrize(("errors", "is_wrong"), [({"returns": 1e-7}, False), ({"vf_coef": 1.1}, True)])
def test_what_rounding_leaves_of_large_numbers_is_no_difference(monkeypatch, errors, is_wrong):
    """A critic that fits: values of a thousand, errors of a hundredth, of whose gradient rounding leaves two digits."""
    trace_with(errors, monkeypatch)
    model = trained(PPOClip, vf_coef=1e2)
    buffer = model.rollout_buffer
    with th.no_grad():
        model.policy.value_net.bias += 1000
        values = model.policy.predict_values(th.as_tensor(buffer.observations)).flatten()
    buffer.returns = (values + 1e-2 * th.randn(values.shape, generator=th.Generator().manual_seed(0))).numpy()[:, None]
    if is_wrong:
        with pytest.raises(CompilationError, match="computes something else than the policy"):
            Update(model, True)
    else:
        assert Update(model, True).is_compiled


def test_units_at_a_kink_may_be_on_either_side(monkeypatch):
    """The gradient of a ReLU jumps at 0: a compiled step whose sum is rounded otherwise is right, too."""
    model = trained(PPOClip, policy_kwargs={"activation_fn": th.nn.ReLU})
    policy, buffer, n_units = model.policy, model.rollout_buffer, 6
    layer = policy.mlp_extractor.policy_net[0]
    buffer.observations[..., 0] = 1
    with th.no_grad():
        # The units are 0.7 - 0.7 = 0, where torch's gradient is 0
        layer.weight[:n_units] = 0.7 * th.eye(layer.in_features)[0]
        layer.bias[:n_units] = -0.7
        observations, actions = th.as_tensor(buffer.observations), th.as_tensor(buffer.actions)
        buffer.log_probs = policy.evaluate_actions(observations, actions)[1].numpy()[:, None]
    kind, state = kind_of(policy), th.get_rng_state()
    settings = Settings(clipped_surrogate, model.coefficients(), True, 1, 26, None, np.inf)
    batch = Rollout(buffer, kind).data
    place = [parameter is layer.weight for parameter in trainable(policy)].index(True)
    expected = verification.expected_step(kind, batch, settings, state)
    assert not expected.gradients[place][:n_units].any()
    for unit in range(n_units):

        def is_other(*steps, unit=unit):
            return None if steps[3].gradients[place][unit].any() else "off"

        monkeypatch.setattr(verification, "_difference", is_other)
        assert verification.difference(SimpleNamespace(settings=settings), kind, batch, [], state, expected.row) is None


def test_gradients_of_the_same_norm_may_be_far_from_each_other():
    """As with a clip range of 0 at the end of a schedule, where rounding decides which samples count."""

    def expected_of(a, *b):
        row = th.zeros(len(verification.NAMES))
        row[-1] = th.tensor([a, *b]).norm()
        return verification.ExpectedStep(row, [th.tensor([a]), th.tensor(b)], set())

    def difference(nearby, compiled, clipped):
        """Clipped at a norm of 1, with Adam's betas of 0.9 and 0.999, from moments that are 0, to a step of size 0."""
        policy = th.nn.ParameterDict({"a": th.nn.Parameter(th.zeros(1)), "b": th.nn.Parameter(th.zeros(2))})
        policy.optimizer = th.optim.Adam(policy.parameters(), lr=0.0)
        layout = FlatParameters(policy)
        gradient = layout.concatenate([th.tensor(clipped[:1]), th.tensor(clipped[1:])])
        zeros = th.zeros_like(gradient)
        step = SimpleNamespace(policy=policy, layout=layout, n_adam_steps=0, parameters=zeros)
        step.exp_avg, step.exp_avg_sq = 0.1 * gradient, 0.001 * gradient**2
        step.settings = SimpleNamespace(max_approx_kl=np.inf, max_grad_norm=1.0)
        return verification._difference(step, [zeros, zeros, zeros], expected, nearby, compiled.row)

    # Norm 5; one of norm 5, too, which is off by sqrt(32); and what is to be judged, of norm sqrt(19) = 4.3589
    expected, nearby, compiled = expected_of(3.0, 4.0, 0.0), expected_of(3.0, 0.0, 4.0), expected_of(3.0, 3.0, 1.0)
    right = [3 / 4.3589, 3 / 4.3589, 1 / 4.3589]
    assert difference(expected, compiled, right) == "grad_norm is 4.3589 instead of 5"
    assert difference(nearby, compiled, right) is None
    # 10 times sqrt(32) is allowed
    assert difference(nearby, expected_of(62.0, 0.0, 0.0), right) == "grad_norm is 62 instead of 5"
    # All of the gradient is clipped by its own norm: 3 / 5 would be another's
    assert difference(nearby, compiled, [3 / 5, *right[1:]]) == "exp_avg of policy.a is off by 0.0882 of 0.688"


def test_numbers_that_do_not_show_while_the_ratio_is_one():
    """Epsilon that an objective reads from elsewhere has no effect on the first step of an update."""
    numbers = {"clip_range": 0.5}
    objective = staticmethod(lambda terms, coef: clipped_surrogate(terms, numbers))
    model = trained(type("ReadsNumbers", (PPOClip,), {"objective": objective}), learning_rate=1e-2)
    before = Update(model, True)
    numbers["clip_range"] = 0.01
    reference, compiled = reference_and_compiled(model)
    assert reference.off(before) > 1e-3
    assert compiled.is_compiled
    assert reference.off(compiled) < 1e-4


def test_epsilon_and_beta_count_in_the_comparison_after_compiling(monkeypatch):
    """At the first step of an update they have no effect; a compiler's mistake in them would go unnoticed."""
    trace_with({"clip_range": 0.05}, monkeypatch)
    with pytest.raises(CompilationError, match="computes something else than the policy"):
        Update(configurable(cls=PPOClip), True)
