"""The two paths of an update: operation by operation, as SB3's, or with a compiled minibatch step."""

import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_variants import compiled
from sb3_ppo_variants.collect import FastRolloutAlgorithm
from sb3_ppo_variants.inference import StackedPolicy
from sb3_ppo_variants.rollout import Rollout
from sb3_ppo_variants.stand_in import is_standard_buffer

# Minibatch steps in a `learn` from which on compile="auto" compiles: it saves most of a millisecond in each, and compiling
# takes some seconds. Not measured, so that the same seed always takes the same path.
MIN_STEPS_TO_COMPILE = 12_000
# Images of 84x84x4 on which the compiled step saves as much as that
IMAGES_PER_STEP = 6


class TwoPathAlgorithm(FastRolloutAlgorithm):
    """What decides whether updates are compiled, and makes the compiled ones."""

    # Arguments of the algorithm
    compile: bool | Literal["auto"]
    batch_size: int
    n_epochs: int
    normalize_advantage: bool | Literal["batch"]
    # These belong to the process that trains, and are not saved with the model
    _uses_compiled: bool = False
    _compiled_update: compiled.CompiledUpdate | None = None
    _cannot_compile: str | None = None
    _n_steps_planned: float = 0.0

    def _excluded_save_params(self) -> list[str]:
        own = ["_uses_compiled", "_compiled_update", "_cannot_compile", "_n_steps_planned"]
        return [*super()._excluded_save_params(), *own]

    def __getstate__(self) -> dict[str, Any]:
        # Compiled functions cannot be pickled
        return {**self.__dict__, "_compiled_update": None}

    def _choose_path(self, total_timesteps: float) -> None:
        """
        Decide whether the coming ``learn`` compiles its updates.

        :param total_timesteps: its length
        :raises RuntimeError: if ``compile=True`` and they cannot be compiled; says why
        """
        rollout_size = self.n_steps * self.n_envs
        n_steps = total_timesteps / rollout_size * self.n_epochs * math.ceil(rollout_size / self.batch_size)
        n_images = total_timesteps * self.n_epochs * compiled.image_work(self.policy)
        n_steps = max(n_steps, n_images / IMAGES_PER_STEP)
        # A training in many short pieces is a long one
        self._n_steps_planned += n_steps
        self._uses_compiled = False
        if self.compile is False or (self.compile == "auto" and self._n_steps_planned < MIN_STEPS_TO_COMPILE):
            return
        reason = _unsupported_buffer(self.rollout_buffer) or self._cannot_compile or compiled.unsupported_reason(self.policy)
        if reason is None:
            self._uses_compiled = True
        elif self.compile is True:
            raise RuntimeError(f"compile=True is not possible: {reason}")
        else:
            self._print(f"Not compiled: {reason}")

    def _optimize_compiled(
        self,
        rollout: Rollout,
        coef: Mapping[str, float],
        max_approx_kl: float | None,
    ) -> list[th.Tensor] | None:
        """
        K epochs of compiled minibatch steps on the rollout.

        :param rollout: the rollout
        :param coef: the coefficients of the loss
        :param max_approx_kl: the approximate KL of a minibatch above which the update ends, in nats; ``None`` for never
        :return: the values of ``METRICS`` at each step of each epoch, of shape ``(n_steps, n_metrics)``; ``None`` if it turns
            out that they cannot be compiled, and may be made otherwise
        :raises CompilationError: if they cannot be compiled, and must be
        """
        # A callback may have frozen layers, say, and may undo that
        reason = _unsupported_buffer(rollout.buffer) or compiled.unsupported_policy(self.policy)
        if "surrogate" in vars(self):
            # It may read anything
            reason = "surrogate has been set on the object: override it in a subclass"
        if reason is not None:
            self._without_compiling(reason)
            return None
        source = inspect.getattr_static(type(self), "surrogate")
        options = compiled.Options(source, tuple(coef), self.normalize_advantage is True, max_approx_kl is not None)
        update = self._compiled_update
        try:
            if update is None or not update.serves(self.policy, options):
                update = compiled.CompiledUpdate(self.policy, _surrogate_of(type(self)), options)
                self._compiled_update = update
            metrics = update.run(rollout, self.n_epochs, self.batch_size, coef, self.max_grad_norm, max_approx_kl)
        except compiled.CompilationError as error:
            self._without_compiling(str(error))
            if not isinstance(error, compiled.TemporaryCompilationError):
                # Another attempt would fail, too, and take its time
                self._cannot_compile = str(error)
            return None
        update.store()
        self._n_updates += len(metrics)
        return metrics

    def _without_compiling(self, reason: str) -> None:
        """Go on without in this training, or not at all if the updates must be compiled."""
        if self.compile is True:
            raise compiled.CompilationError(reason)
        self._uses_compiled = False
        self._print(f"Not compiled: {reason}")

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """One torch thread where more only get in each other's way, with small networks. What the user has set stays."""
        n_threads = th.get_num_threads()
        # Those that this process may use
        n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Torch's own choice is the number of cores, which may count twice as many as there are
        is_default = not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys() and n_threads in (n_cores, n_cores // 2)
        one_is_best = is_default and self._uses_compiled and StackedPolicy.supports(self.policy)
        try:
            if one_is_best:
                th.set_num_threads(1)
            yield
        finally:
            if one_is_best:
                th.set_num_threads(n_threads)

    def _print(self, message: str) -> None:
        if self.verbose >= 1:
            print(message)


def _unsupported_buffer(buffer: RolloutBuffer) -> str | None:
    """Why updates from a rollout buffer cannot be compiled, or ``None``."""
    return None if is_standard_buffer(buffer) else f"the rollout buffer is a {type(buffer).__name__}, not one of SB3's own"


def _surrogate_of(cls: Any) -> Callable[..., th.Tensor]:
    """The surrogate objective of a class, of an object that has methods only: a trace would take attributes for constants."""

    class Methods(cls):
        def __getattribute__(self, attribute: str) -> Any:
            if attribute.startswith("__") or inspect.isroutine(getattr(cls, attribute, None)):
                return super().__getattribute__(attribute)
            raise compiled.CompilationError(
                f"surrogate reads self.{attribute}, which compiled code would not see change: let coefficients() return it"
            )

    surrogate: Callable[..., th.Tensor] = object.__new__(Methods).surrogate
    return surrogate
