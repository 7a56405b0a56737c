"""What decides whether the updates of a training are compiled, and makes the compiled ones."""

import math
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_variants.buffers import OWN_BUFFERS
from sb3_ppo_variants.compiled.masked import compiled_kind
from sb3_ppo_variants.compiled.numpy_memory import NumpyMemory
from sb3_ppo_variants.compiled.numpy_policy import NumpyPolicy
from sb3_ppo_variants.compiled.recurrent import OneCall
from sb3_ppo_variants.compiled.step import CompiledStep
from sb3_ppo_variants.compiled.support import CompilationError, image_work, unsupported_policy, unsupported_reason
from sb3_ppo_variants.loss import Settings
from sb3_ppo_variants.policies import FeedForward, has_contribs_memory
from sb3_ppo_variants.rollout import Rollout

# Minibatch steps, summed over calls of `learn`, from which on compile="auto" compiles: compiling takes some seconds, and saves
# most of a millisecond per step. A constant, not a measurement, so that the same seed always takes the same path.
MIN_STEPS_TO_COMPILE = 12_000
# Images of 84x84x4 on which the compiled step saves as much as that
IMAGES_PER_STEP = 6


class Backend:
    """The compiled path of one model, in one process."""

    def __init__(self) -> None:
        #: Whether updates are compiled, until the end of this training
        self.is_on = False
        self.step: CompiledStep | None = None
        self._n_steps_planned = 0.0
        self._failure: str | None = None
        self._must = False
        self._say: Callable[[str], None] = print

    def begin(self, algorithm: Any, n_timesteps: float) -> bool:
        """Whether the coming training compiles its updates; a ``RuntimeError`` if it must and cannot."""
        self._must, self._say = algorithm.compile is True, algorithm._print
        policy, rollout_size = algorithm.policy, algorithm.n_steps * algorithm.n_envs
        n_rollouts = n_timesteps if math.isinf(n_timesteps) else math.ceil(n_timesteps / rollout_size)
        n_minibatches = max(
            math.ceil(rollout_size / algorithm.batch_size), rollout_size * image_work(policy) / IMAGES_PER_STEP
        )
        # A training in many short pieces is a long one
        self._n_steps_planned += n_rollouts * algorithm.n_epochs * n_minibatches
        if self.step is not None:
            self.step.n_compilations = self.step.n_changes = 0
        self.is_on = self._must or self._n_steps_planned >= MIN_STEPS_TO_COMPILE
        too_short = (
            f"the training amounts to {self._n_steps_planned:,.0f} minibatch steps, fewer than {MIN_STEPS_TO_COMPILE:,}"
        )
        # The compiler is asked again by whoever insists
        failure = None if self._must else self._failure
        reason = (failure or unsupported_reason(policy, algorithm.rollout_buffer)) if self.is_on else too_short
        if reason is None:
            self._say("Compiling the updates")
        else:
            self._end(reason)
        return self.is_on

    def acting(self, policy: ActorCriticPolicy, buffer: RolloutBuffer) -> NumpyPolicy | None:
        """The policy of a rollout."""
        if type(buffer) not in OWN_BUFFERS:
            return None
        if NumpyMemory.supports(policy):
            return NumpyMemory(policy, buffer)
        return NumpyPolicy(policy, buffer) if self.is_on and NumpyPolicy.supports(policy) else None

    def kind(self, policy: Any, buffer: RolloutBuffer, sequence_length: int | None) -> FeedForward | None:
        """The policy as an update sees it, if there is a quicker one, also of updates that are not compiled."""
        is_quick = has_contribs_memory(policy) and type(buffer) in OWN_BUFFERS
        return OneCall(policy, sequence_length) if is_quick else None

    def optimize(self, old: Rollout, settings: Settings) -> list[th.Tensor] | None:
        """K epochs of minibatch steps, as ``CompiledStep.run``; ``None`` if they cannot be compiled, and need not be."""
        policy = old.kind.policy
        if th.is_anomaly_enabled() or 0 in map(settings.coef.get, ("clip_range", "clip_range_vf")):
            # Anomaly detection watches autograd, which compiled steps do not use; with a clip range of 0, rounding decides
            # which samples have a gradient, so that no step can be verified
            return None
        # A callback may have added hooks, say, and may take them away
        reason = unsupported_policy(policy, old.buffer)
        if reason is not None:
            self._end(reason)
            return None
        step, kind = self.step, compiled_kind(policy, old.kind.sequence_length)
        if step is None or not step.serves(kind):
            self.step = CompiledStep(kind)
            if step is not None:
                self.step.n_compilations, self.step.change = step.n_compilations, "the policy is another"
        assert self.step is not None
        # Layers without parameters may have been replaced
        self.step.kind = kind
        states = random.getstate(), np.random.get_state(), th.get_rng_state()
        try:
            epochs = self.step.run(old, settings)
        except CompilationError as error:
            # The attempt leaves no trace in the training
            random.setstate(states[0])
            np.random.set_state(states[1])
            th.set_rng_state(states[2])
            if error.__cause__ is not None:
                # What the compiler cannot do, it probably cannot do later, and takes its time to find out
                self._failure = str(error)
            self._end(str(error), error)
            return None
        self.step.store()
        self._failure = None
        return epochs

    def _end(self, reason: str, cause: CompilationError | None = None) -> None:
        """Go on without in this training, or not at all if the updates must be compiled."""
        if self._must:
            raise cause or CompilationError(f"compile=True is not possible: {reason}")
        self.is_on = False
        if cause is None:
            self._say(f"Not compiled: {reason}")
        else:
            warnings.warn(f"Not compiled: {reason}", stacklevel=7)

    @contextmanager
    def threads(self, policy: ActorCriticPolicy) -> Iterator[None]:
        """One torch thread with small networks, where more get in each other's way, unless the user has chosen a number."""
        n_threads = th.get_num_threads()
        # The cores that this process may use
        n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Torch's own choice is the number of cores, which may count twice as many as there are
        is_default = not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys() and n_threads in (n_cores, n_cores // 2)
        one_is_best = is_default and (NumpyMemory.supports(policy) or (self.is_on and NumpyPolicy.supports(policy)))
        try:
            if one_is_best:
                th.set_num_threads(1)
            yield
        finally:
            if one_is_best:
                th.set_num_threads(n_threads)
