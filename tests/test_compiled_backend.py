"""When updates are compiled, why not, and what compiling does not change: signals, threads, files, other learns."""

import copy
import itertools
import re
import shutil
import signal
import threading
import time
import warnings

import cloudpickle
import numpy as np
import pytest
import torch as th
from compiled_support import Update, needs_new_torch, reference_and_compiled, trained
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import FloatSchedule
from support import (
    ACTION_SPACES,
    BOX_ENV,
    HalvedAdvantages,
    InEachRollout,
    LinearExtractor,
    SpaceEnv,
    equal,
    make_model,
    space_env,
    train,
    with_extractor,
)

from sb3_ppo_variants import AdaptiveLearningRate, AnnealLogStd, PPOClip, PPOKLPen
from sb3_ppo_variants.compiled import inductor
from sb3_ppo_variants.compiled.step import MAX_COMPILATIONS
from sb3_ppo_variants.compiled.support import CompilationError, unsupported_reason

pytestmark = [
    needs_new_torch,
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of"),
]


def is_compiled(model, *lengths):
    """Whether the last one of some trainings of these lengths is compiled."""
    for n_timesteps in lengths:
        model._chosen_path(n_timesteps)
    return model._uses_compiled


def test_auto_compiles_long_trainings_only():
    def model():
        return make_model(n_steps=512, batch_size=64, n_epochs=10)

    # 10 epochs of 16 minibatches in a rollout of 1024: 75 rollouts are 12,000 steps. There are only whole rollouts
    assert not is_compiled(model(), 74 * 1024)
    assert is_compiled(model(), 74 * 1024 + 1)
    # Many short trainings are a long one
    assert not is_compiled(model(), *[1] * 74)
    assert is_compiled(model(), *[1] * 75)
    assert is_compiled(model(), np.inf)
    # One rollout of 8 x 4096: 10 epochs of 2048 minibatches
    assert is_compiled(PPOClip("MlpPolicy", make_vec_env("CartPole-v1", 8), n_steps=4096, batch_size=16), 100)


def test_verbose_says_whether_updates_are_compiled(capsys):
    model = make_model(n_steps=512, batch_size=64, n_epochs=10, verbose=1)
    capsys.readouterr()
    # Of 2 x 512 timesteps, as above
    model._chosen_path(1000)
    assert capsys.readouterr().out == "Not compiled: the training amounts to 160 minibatch steps, fewer than 12,000\n"
    model._chosen_path(1e6)
    assert capsys.readouterr().out == "Compiling the updates\n"


def test_auto_compiles_earlier_for_images():
    def model():
        env = SpaceEnv(spaces.Box(0, 255, (4, 84, 84), np.uint8), ACTION_SPACES["box"])
        return PPOClip("CnnPolicy", env, n_steps=64, batch_size=64, n_epochs=4)

    # 6 images count as a step: 4 x 64 / 6 = 42.7 steps in a rollout, 12,000 in 281.25 of them
    assert [is_compiled(model(), 281 * 64 + more) for more in (0, 1)] == [False, True]


def test_same_seed_same_training():
    models = [train(PPOClip, make_env=space_env("box", "discrete"), compile=compile_)[0] for compile_ in (True, True, False)]
    assert models[0]._uses_compiled
    states = [model.policy.state_dict() for model in models]
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def fail(graph, arguments):
    raise OSError("the disk is full")


@pytest.mark.usefixtures("auto_compiles")
@pytest.mark.parametrize(
    ("patch", "reason", "n_warnings"),
    [
        # Known before it is tried: a line. Found when it is: a warning
        ((shutil, "which", lambda _: None), "there is no C++ compiler", 0),
        ((inductor, "compile_graph", fail), "OSError: the disk is", 1),
    ],
)
def test_compiler_that_is_not_there_or_fails(patch, reason, n_warnings, monkeypatch, capsys):
    monkeypatch.setattr(*patch)
    kwargs = with_extractor(LinearExtractor)
    with pytest.raises(RuntimeError, match=re.escape(reason)):
        train(PPOClip, compile=True, **kwargs)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        auto, _ = train(PPOClip, verbose=1, **kwargs)
    lines = capsys.readouterr().out.splitlines()
    assert ("Compiling the updates" in lines) == n_warnings
    assert sum(line.startswith(f"Not compiled: {reason}") for line in lines) == 1 - n_warnings
    assert len(warned) == n_warnings
    assert all(str(warning.message).startswith(f"Not compiled: {reason}") for warning in warned)
    # The attempt leaves no trace
    assert equal(auto.policy.state_dict(), train(PPOClip, compile=False, **kwargs)[0].policy.state_dict())


@pytest.mark.usefixtures("interpreted")
def test_compiler_that_has_failed_is_asked_again_if_it_must_compile(monkeypatch):
    model = make_model(PPOClip, compile=True)
    with monkeypatch.context() as patch:
        patch.setattr(inductor, "compile_graph", fail)
        with pytest.raises(RuntimeError, match="the disk is full"):
            model.learn(52)
    model.learn(52)
    assert model._uses_compiled
    assert model._backend.step.n_compilations == 1
    # What it can do after all, it can do later
    assert model._backend._failure is None


class TimeLimitError(Exception):
    """Raised by the handler of a signal."""


@pytest.mark.usefixtures("auto_compiles")
@pytest.mark.parametrize("compile_", ["auto", True])
def test_exception_of_a_signal_handler_goes_through(compile_, monkeypatch):
    def interrupt(*_):
        raise TimeLimitError

    def compile_graph(*arguments):
        # Compiling is in a thread of its own
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        return interpret(*arguments)

    interpret = inductor.compile_graph
    monkeypatch.setattr(inductor, "compile_graph", compile_graph)
    model = make_model(compile=compile_)
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(TimeLimitError):
            model.learn(52)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert model._n_updates == 0
    monkeypatch.setattr(inductor, "compile_graph", interpret)
    model.learn(52)
    assert model._uses_compiled
    assert model._n_updates == 2


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}, "the optimizer is RMSprop"),
        ({"change": lambda model: model.policy.value_net.register_forward_hook(lambda *_: None)}, "hooks"),
        ({"change": lambda model: model.policy.requires_grad_(False)}, "all parameters of the policy are frozen"),
        ({"rollout_buffer_class": HalvedAdvantages}, "HalvedAdvantages, not one of SB3's own"),
    ],
)
def test_reasons_not_to_compile(kwargs, reason):
    model = make_model()
    assert unsupported_reason(model.policy, model.rollout_buffer) is None
    with pytest.raises(RuntimeError, match=f"compile=True is not possible: .*{reason}"):
        train(PPOClip, compile=True, **kwargs)


def test_reason_that_appears_after_the_rollout_and_passes():
    handles, model = [], make_model(compile=True)
    hook = InEachRollout(lambda _: handles.append(model.policy.value_net.register_forward_hook(print)), at_end=True)
    with pytest.raises(CompilationError, match="hooks"):
        model.learn(52, hook)
    handles[0].remove()
    assert model.learn(52)._uses_compiled


def both_paths(callback, n_updates=6, **kwargs):
    """A compiled training, and one on the reference path, which differ by rounding only."""
    models = []
    for compile_ in (True, False):
        models.append(make_model(compile=compile_, **with_extractor(LinearExtractor), **kwargs))
        models[-1].learn(52 * n_updates, callback())
    states = [model.policy.state_dict() for model in models]
    assert models[0]._uses_compiled
    assert max((value - states[1][name]).abs().max() for name, value in states[0].items()) < 1e-5
    return models


def test_numbers_that_change_between_updates_are_not_compiled_in(interpreted):
    def vary():
        lists = {
            "betas": [(0.9, 0.999), (0.5, 0.9)],
            "eps": [1e-5, 1e-3, 1e-1],
            "weight_decay": [0.0, 0.0, 0.1],
            "target_kl": [None, 10.0, 1e-6, 1.0],
            "max_grad_norm": [0.5, None, 1e-2],
            **{name: [0.1, 0.2] for name in ("clip_range_vf", "ent_coef", "vf_coef")},
        }
        values = {name: itertools.cycle(some) for name, some in lists.items()}

        def change(model):
            (group,) = model.policy.optimizer.param_groups
            for name, some in values.items():
                group.update({name: next(some)}) if name in group else setattr(model, name, next(some))

        return InEachRollout(change)

    # One of the updates ends before its last epoch
    compiled, reference = both_paths(vary, learning_rate=1e-3, clip_range_vf=0.3)
    assert compiled._n_updates == reference._n_updates == 11
    assert len(interpreted) == 1


def test_adaptive_learning_rate_annealed_deviation_and_value_clipping_on_and_off(interpreted):
    def vary(model):
        model.clip_range_vf = None if model._n_updates % 4 else 0.1

    # Each update changes the policy by more than that: 1e-3 / 1.5 ** 6 in the end
    learning_rate = AdaptiveLearningRate(kl_target=1e-6, initial=1e-3)
    compiled, reference = both_paths(lambda: [AnnealLogStd(), InEachRollout(vary)], learning_rate=learning_rate)
    assert compiled.adapted_learning_rate == reference.adapted_learning_rate == pytest.approx(8.779e-5, rel=1e-3)
    # -0.7 - 0.9 * 5 / 6 in the last one of six rollouts
    assert compiled.policy.log_std.tolist() == reference.policy.log_std.tolist() == pytest.approx([-1.45] * 3)
    # With value clipping, and without
    assert len(interpreted) == 2


@pytest.mark.usefixtures("auto_compiles")
def test_what_must_be_compiled_again_and_again_ends_compiling(interpreted):
    def learn(model, name, values):
        callback = InEachRollout(lambda model: setattr(model, name, values[model._n_updates]))
        model.learn(52 * 8, callback, log_interval=None)

    message = f"compiled {MAX_COMPILATIONS} times in this training, and again "
    auto, must = make_model(n_epochs=1), make_model(n_epochs=1, compile=True)
    with pytest.warns(UserWarning, match=f"^Not compiled: {message}this changes: batch_size"):
        learn(auto, "batch_size", [50, 2, 52, 26, 13, 4, 40, 30])
    assert not auto._uses_compiled
    assert auto._n_updates == 8
    assert len(interpreted) == MAX_COMPILATIONS == 4
    with pytest.raises(CompilationError, match=f"{message}the policy is another"):
        learn(must, "policy", [make_model(seed=1).policy, must.policy] * 4)
    assert must._n_updates == 4


@pytest.mark.usefixtures("auto_compiles")
def test_compiling_waits_while_anomalies_are_looked_for(interpreted):
    model = make_model()
    with pytest.warns(UserWarning, match="Anomaly Detection"), th.autograd.detect_anomaly():
        model.learn(52)
    assert not interpreted
    assert model._n_updates == 2
    model.learn(52)
    assert len(interpreted) == 1
    assert model._n_updates == 4


@pytest.mark.parametrize("name", ["clip_range", "clip_range_vf"])
def test_updates_with_a_clip_range_of_0_are_the_reference_paths(name, interpreted):
    """Of equal ratios or values, those count which rounding lets lie on the right side."""
    model = trained(PPOClip)
    setattr(model, name, FloatSchedule(0.0))
    reference, update = reference_and_compiled(model)
    assert not interpreted
    assert equal(update.parameters, reference.parameters)
    assert equal(update.optimizer, reference.optimizer)
    setattr(model, name, FloatSchedule(0.1))
    assert Update(model, True).is_compiled
    assert len(interpreted) == 1


def test_layers_frozen_or_replaced_in_between():
    def change(model):
        seen.append(model.policy.action_net.weight.detach().clone())
        model.policy.action_net.weight.requires_grad_(model._n_updates != 2)
        if model._n_updates == 4:
            model.policy.action_net = th.nn.Linear(64, 3)
            model.policy.optimizer = th.optim.Adam(model.policy.parameters())
            seen.append(model.policy.action_net.weight.detach().clone())

    seen, model = [], make_model(compile=True)
    model.learn(52 * 3, InEachRollout(change))
    assert model._uses_compiled
    assert model._backend.step.n_compilations == 3
    # Learned, frozen, replaced and learned again
    learned = [not th.equal(*pair) for pair in itertools.pairwise([*seen, model.policy.action_net.weight])]
    assert learned == [True, False, True, True]


def test_saved_model_does_not_depend_on_the_path(tmp_path):
    model, _ = train(PPOKLPen, compile=True)
    model.save(tmp_path / "model")
    for compile_ in (True, False):
        loaded = PPOKLPen.load(tmp_path / "model", env=BOX_ENV(), compile=compile_, device="cpu")
        assert loaded.compile is compile_
        assert equal(loaded.policy.state_dict(), model.policy.state_dict())
        assert equal(loaded.policy.optimizer.state_dict(), model.policy.optimizer.state_dict())
        loaded.learn(52)
        # 3 updates of 3 epochs of 4 minibatches, and another
        assert loaded.policy.optimizer.state_dict()["state"][0]["step"] == 48


@pytest.mark.usefixtures("auto_compiles")
def test_copies_pickles_and_files_of_a_model_that_has_compiled(tmp_path, monkeypatch, interpreted):
    model = make_model(compile=True).learn(52)
    assert model._backend.step.functions
    model.save(tmp_path / "model")
    copied = copy.deepcopy(model)
    model.env = model._logger = None
    pickled = cloudpickle.loads(cloudpickle.dumps(model))
    pickled.set_env(BOX_ENV())
    for other in (copied, pickled):
        assert equal(other.policy.state_dict(), model.policy.state_dict())
        assert not other._uses_compiled
        # Asked for a compiled training, they compile again
        other.learn(52)
        assert other._uses_compiled
    assert len(interpreted) == 3
    monkeypatch.setattr(shutil, "which", lambda _: None)
    loaded = PPOClip.load(tmp_path / "model", env=BOX_ENV())
    assert loaded.compile == "auto"
    assert not loaded.learn(52)._uses_compiled


def test_one_model_is_compiled_at_a_time(monkeypatch):
    """Torch's compiler is not made for several threads, which share what it patches."""

    def watched(*args, **kwargs):
        events.append("begin")
        time.sleep(0.2)
        traced = trace(*args, **kwargs)
        events.append("end")
        return traced

    trace, events = inductor.trace, []
    monkeypatch.setattr(inductor, "trace", watched)
    threads = [threading.Thread(target=make_model(compile=True).learn, args=(52,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events == ["begin", "end"] * 2


def test_one_thread_inside_of_learn(monkeypatch):
    n_threads = []

    def learn(n_before, policy="MlpPolicy", env=None):
        th.set_num_threads(n_before)
        # Ends at once
        make_model(PPOClip, policy, env, compile=True).learn(
            52, callback=lambda *_: n_threads.append(th.get_num_threads()) is not None
        )
        assert th.get_num_threads() == n_before
        return n_threads[-1]

    # As where a process may use two of the cores
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 7}, raising=False)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    try:
        assert learn(2) == 1
        # Large networks are quicker with all of them
        assert learn(2, "CnnPolicy", space_env("image", "box")()) == 2
        # Numbers that the user has set
        assert learn(3) == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert learn(2) == 2
    finally:
        th.set_num_threads(1)
