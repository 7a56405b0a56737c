"""The compiled path with torch's compiler itself: that it computes the same, its settings, its failures, and threads."""

import importlib
import os
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from compiled_support import Update, needs_new_torch, reference_and_compiled
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from support import ACTION_SPACES, BatchNormExtractor, SpaceEnv, space_env, train, with_extractor

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen
from sb3_ppo_variants.compiled import backend
from sb3_ppo_variants.compiled.support import CompilationError, unsupported_reason

pytestmark = needs_new_torch


@pytest.fixture(autouse=True)
def _compiler():
    model = PPOClip("MlpPolicy", "CartPole-v1", device="cpu")
    reason = unsupported_reason(model.policy, model.rollout_buffer)
    if reason is not None:
        pytest.skip(reason)


def assert_steps_agree_in_float32(model):
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    reference, compiled = reference_and_compiled(model)
    assert compiled.is_compiled
    changes = [(value - before[name]).flatten() for name, value in reference.parameters.items()]
    differences = [(value - compiled.parameters[name]).flatten() for name, value in reference.parameters.items()]
    # Six steps of up to 3e-4. A step is as large where the gradient is next to nothing but rounding errors, as single
    # elements' may be on one processor and not on another, and as that of a bias before batch norm is
    medians = [difference.abs().median().item() for difference in differences]
    assert np.median(medians) < 1e-7
    assert max(medians) < 2e-5
    assert th.cat(differences).norm() < 1e-2 * th.cat(changes).norm()
    th.testing.assert_close(reference.rows[0], compiled.rows[0], rtol=1e-4, atol=1e-6)


def test_steps_agree_in_float32():
    """Few, as compiling takes its time; those of vectors are in the threads below."""
    kwargs = {"use_sde": True, "batch_size": 26, "compile": False, "policy_kwargs": {"squash_output": True}}
    assert_steps_agree_in_float32(train(PPOFixedKL, "CnnPolicy", space_env("image", "box"), **kwargs)[0])


class Recurrent(BaseFeaturesExtractor):
    """The last hidden state of a small GRU, of whose step torch's compiler makes something else for some shapes."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.gru = th.nn.GRU(1, 8, batch_first=True)

    def forward(self, observations):
        return self.gru(observations)[1][-1]


def test_graph_that_is_compiled_wrongly_is_refused():
    def make_env():
        return make_vec_env(lambda: SpaceEnv(spaces.Box(-1, 1, (3, 1), np.float32), ACTION_SPACES["discrete"]), 2, seed=0)

    kwargs = {"n_updates": 1, "n_steps": 64, "batch_size": 32, "compile": False, **with_extractor(Recurrent)}
    model, _ = train(PPOClip, make_env=make_env, **kwargs)
    reference = Update(model, False)
    assert max((value - reference.parameters[name]).abs().max() for name, value in model.policy.state_dict().items()) > 1e-3
    try:
        compiled = Update(model, True)
    except CompilationError as error:
        assert "the compiled step computes something else than the policy" in str(error)  # noqa: PT017
    else:
        # Another torch, another machine
        assert reference.off(compiled) < 1e-5


def test_two_trainings_that_compile_at_once():
    def learn(cls, action, **kwargs):
        try:
            both.wait()
            make_env = space_env("box", action)
            models.append(train(cls, make_env=make_env, n_updates=2, batch_size=26, compile=True, **kwargs)[0])
        except Exception as error:
            errors.append(error)

    models, errors, both = [], [], threading.Barrier(2)
    threads = [
        threading.Thread(target=learn, args=(PPOClip, "box")),
        threading.Thread(target=learn, args=(PPOKLPen, "multibinary"), kwargs=with_extractor(BatchNormExtractor)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for model in models:
        assert model._backend.step.n_compilations == 1
        assert_steps_agree_in_float32(model)
        assert model._backend.step.n_compilations == 1


def inductors(name):
    """A module of torch's compiler, some of which warn when they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"torch._inductor.{name}")


# Torch asks for its version first
FAILS = """#!/bin/sh
[ "$1" = --version ] && exec g++ --version
yes 'a note' | head -9999 >&2
echo 'error: no such thing' >&2
exit 1
"""


def test_compiler_that_fails_is_told_of_in_a_line(tmp_path, monkeypatch, capfd):
    config = inductors("config")
    compiler = tmp_path / "c++"
    compiler.write_text(FAILS)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    # Nothing that has been compiled before
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(backend, "MIN_STEPS_TO_COMPILE", 1)
    model = PPOClip("MlpPolicy", "CartPole-v1", n_steps=28, batch_size=28, n_epochs=1, verbose=1)
    capfd.readouterr()
    failure = pytest.warns(UserWarning, match=r"^Not compiled: .*error: no such thing$")
    with config.patch({"cpp.cxx": (None, str(compiler)), "force_disable_caches": True}), failure as warned:
        model.learn(28, log_interval=None)
    assert len(str(warned[0].message)) < 400
    assert not model._uses_compiled
    assert model._n_updates == 1
    output = capfd.readouterr()
    assert output.out == "Compiling the updates\n"
    # Torch may say what it leaves on the disk
    assert "a note" not in output.err


def test_settings_of_others_stay(monkeypatch):
    """Those that the user has made are not overridden, and instruction sets that were not tested are not taken for tested."""
    compile_fx, config, cpu_vec_isa = inductors("compile_fx"), inductors("config"), inductors("cpu_vec_isa")
    seen = []

    def interpret(graph, arguments, **kwargs):
        # Torch before 2.13 has no cpp.march
        seen.append((config.cpp.vec_isa_ok, getattr(config.cpp, "march", "")))
        cpu_vec_isa.valid_vec_isa_list()
        return SimpleNamespace(current_callable=lambda arguments: graph(*arguments))

    def compile_():
        train(PPOClip, n_updates=1, compile=True)

    monkeypatch.setattr(compile_fx, "compile_fx_inner", interpret)
    with config.patch({"cpp.vec_isa_ok": False, **({"cpp.march": ""} if hasattr(config.cpp, "march") else {})}):
        compile_()
    assert seen == [(False, "")]
    environment = dict(os.environ)
    with config.patch({"cpp.vec_isa_ok": None}):
        compile_()
        assert config.cpp.vec_isa_ok is None
    assert seen[1][0] is True
    for test in (cpu_vec_isa.valid_vec_isa_list, cpu_vec_isa.VecAVX512.__bool__):
        assert test.cache_info().currsize == 0
    assert dict(os.environ) == environment
