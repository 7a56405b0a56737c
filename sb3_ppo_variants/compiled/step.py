"""
The compiled minibatch step: ``make_fx`` traces that of any policy to a graph, Inductor makes C++ of it. The function works on
flat copies of the parameters and of Adam's moments, taken from policy and optimizer before an update and put back after it.
"""

import contextvars
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.func import functional_call, grad_and_value
from torch.utils import _pytree as pytree

from sb3_ppo_variants.compiled import inductor, verification
from sb3_ppo_variants.compiled.recurrent import Scanned
from sb3_ppo_variants.compiled.support import CompilationError, image_work
from sb3_ppo_variants.kinds import kind_of
from sb3_ppo_variants.loss import APPROX_KL, Batch, Settings, ppo_loss
from sb3_ppo_variants.objectives import Terms
from sb3_ppo_variants.optimizer import FlatParameters, by_place
from sb3_ppo_variants.policies import FeedForward, PolicyFunction, kept_generators
from sb3_ppo_variants.rollout import Rollout

# Compilations in a training: what changes more often is quicker without
MAX_COMPILATIONS = 4
# Numbers of a step that come before the coefficients of the loss: Adam's, and limits
N_OTHERS = 9

Function = Callable[[list[Any]], Sequence[th.Tensor]]
# What is compiled into a function besides the policy: other settings are numbers that it is given
Key = tuple[Any, ...]
KEY = ("the objective", "which coefficients there are", "normalize_advantage", "batch_size", "the size of the rollout")

# Torch's compiler is not made for several threads
_compiling = threading.Lock()


class CompiledStep:
    """Minibatch steps on a policy, each one call of a compiled function."""

    # Of the present update; T, of its rollout
    settings: Settings
    n_steps: int
    # Parameters, Adam's moments and its count of steps; buffers and frozen parameters
    parameters: th.Tensor
    exp_avg: th.Tensor
    exp_avg_sq: th.Tensor
    n_adam_steps: int
    constants: dict[str, th.Tensor]

    def __init__(self, kind: FeedForward) -> None:
        policy = kind.policy
        self.kind, self.policy = kind, policy
        self.module = PolicyFunction(policy, self._evaluated_loss)
        # Other networks may take a layout for granted
        self.has_nature_cnn = image_work(policy) > 0
        self.layout = FlatParameters(policy, transpose=True)
        self.named_parameters = _named_parameters(policy)
        # Compiled and verified functions, each with what the objective made of some numbers at that time
        self.functions: dict[Key, tuple[Function, th.Tensor]] = {}
        # For the shorter minibatches at the end of epochs, which are not worth a compilation
        self.graphs: dict[Key, Function] = {}
        # Compilations in this training, including those of steps that this one has replaced; and the reason for the next one
        self.n_compilations = 0
        self.change = ""
        # Updates in a row before which the policy had changed by something else than its parameters
        self.n_changes = 0
        # Positions of parameters on which the loss does not depend
        self.unused: set[int] = set()

    def serves(self, kind: FeedForward) -> bool:
        """Whether this can make the steps of an update, or another must be made."""
        is_same = self.policy is kind.policy and self.kind.sequence_length == kind.sequence_length
        return is_same and self.named_parameters == _named_parameters(kind.policy)

    def _step(
        self,
        flats: list[th.Tensor],
        constants: dict[str, th.Tensor],
        data: tuple[Any, ...],
        coef_vector: th.Tensor,
        index: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        """Update parameters, moments and buffers in place; the values of ``METRICS``, the gradient's norm, and its scale."""
        parameters, exp_avg, exp_avg_sq = flats
        step_size, inverse_bias_correction2_sqrt, max_grad_norm, max_approx_kl, *adam = coef_vector[:N_OTHERS].unbind()
        one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay = adam
        coef = dict(zip(self.settings.coef, coef_vector[N_OTHERS:].unbind(), strict=True))
        batch = self.kind.select(Batch(*data), index, self.n_steps)
        if self.has_nature_cnn:
            batch = batch._replace(observations=pytree.tree_map(_channels_last, batch.observations))
        loss = partial(self._loss, batch, coef)
        # The gradient of a list of views: that of the flat tensor would be a sum of zero-padded ones
        gradients, (_, (metrics, new_constants)) = grad_and_value(loss, has_aux=True)(self.layout.views(parameters), constants)
        gradient = self.layout.concatenate(gradients)
        # As torch.nn.utils.clip_grad_norm_, or not at all if the limit is infinite: also where the norm overflows
        norm = th.linalg.vector_norm(gradient)
        scale = th.clamp(max_grad_norm / (norm + 1e-6), max=1.0)
        scale = th.where(th.isinf(max_grad_norm), th.ones_like(scale), scale)
        gradient = gradient * scale

        # As torch.optim.Adam
        gradient = gradient + weight_decay * parameters
        new_exp_avg = exp_avg + one_minus_beta1 * (gradient - exp_avg)
        new_exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * gradient * gradient
        denominator = new_exp_avg_sq.sqrt() * inverse_bias_correction2_sqrt + eps
        new_parameters = parameters - step_size * (new_exp_avg / denominator)

        # SB3 ends the update before the step that exceeds the limit; NaN does not
        goes_on = ~(metrics[APPROX_KL] > max_approx_kl)
        news = (new_parameters, new_exp_avg, new_exp_avg_sq)
        updates = [(old, th.where(goes_on, new, old)) for old, new in zip(flats, news, strict=True)]
        # Batch normalisation has seen that minibatch
        updates += [(constant, new_constants[name]) for name, constant in constants.items()]
        for old, new in updates:
            old.copy_(new)
        # The scale is returned so that Inductor computes it once, and not again in the loop over each vector of parameters
        return th.cat([metrics, norm[None]]), scale

    def _loss(
        self, batch: Batch, coef: dict[str, Any], parameters: list[th.Tensor], constants: dict[str, th.Tensor]
    ) -> tuple[th.Tensor, tuple[th.Tensor, dict[str, th.Tensor]]]:
        """The loss of a minibatch, the values of ``METRICS`` and what becomes of the buffers."""
        # Batch normalisation writes to its buffers
        constants = {name: constant.clone() for name, constant in constants.items()}
        trained = {f"policy.{name}": tensor for name, tensor in self.layout.at_places(parameters).items()}
        loss, metrics = functional_call(self.module, {**trained, **constants}, (batch, coef), tie_weights=False)
        return loss, (metrics, constants)

    def _evaluated_loss(self, batch: Batch, coef: dict[str, Any]) -> tuple[th.Tensor, th.Tensor]:
        # In one function, as the KL of a custom policy may take a second pass through it
        evaluation = self.kind.evaluate(batch)
        return ppo_loss(self.settings.objective, batch, evaluation, coef, self.settings.normalizes_minibatch)

    def run(self, old: Rollout, settings: Settings) -> list[th.Tensor]:
        """
        Make the steps of an update, on copies that ``store`` puts into the policy: ``METRICS`` and the norm of the gradient at
        each step of each epoch, NaN for a step left out. After a ``CompilationError``, nothing has changed.
        """
        assert old.data is not None
        self.settings, self.n_steps = settings, old.buffer.buffer_size
        self._load()
        n_minibatches = math.ceil(len(old.data.returns) / settings.batch_size)
        coef_vectors = iter(self._coef_vectors(settings.n_epochs * n_minibatches))
        leaves: list[Any] = []
        epochs: list[th.Tensor] = []
        functions: dict[int, Function] = {}
        with th.no_grad():
            for _ in range(settings.n_epochs):
                rows: list[th.Tensor] = []
                for index in old.minibatches(settings.batch_size):
                    coef_vector, size = next(coef_vectors), len(index)
                    if not functions:
                        functions[size], row = self._first_step(old.kind, old.data, coef_vector, index)
                        # A step changes these tensors in place
                        leaves = self._leaves(old.data)
                    else:
                        if size not in functions:
                            functions[size] = self._graph(old.data, coef_vector, index)
                        row = functions[size]([*leaves, coef_vector, index])[0]
                    rows.append(row)
                    if settings.max_approx_kl < math.inf and row[APPROX_KL].item() > settings.max_approx_kl:
                        row[-1] = math.nan
                        return [*epochs, th.stack(rows)]
                    self.n_adam_steps += 1
                epochs.append(th.stack(rows))
        return epochs

    def _leaves(self, data: Batch) -> list[Any]:
        """The arguments of a function but for the vector of coefficients and the index, which come last."""
        return pytree.tree_leaves(self._tree(data))

    def _tree(self, data: Batch) -> list[Any]:
        # All samples of a rollout are valid
        return [self.flats, self.constants, tuple(data[:-1])]

    def _load(self) -> None:
        """Take parameters, buffers and Adam's state from the policy and its optimizer."""
        params = self.layout.parameters
        states = [self.policy.optimizer.state.get(parameter, {}) for parameter in params]
        self.n_adam_steps = max((int(state["step"]) for state in states if "step" in state), default=0)
        others = [(name, tensor) for name, tensor in by_place(self.module).items() if not tensor.requires_grad]
        self.constants = {name: tensor.detach().clone() for name, tensor in others}
        with th.no_grad():
            self.parameters = self.layout.concatenate(params)
            self.exp_avg, self.exp_avg_sq = (
                self.layout.concatenate([state.get(name, th.zeros_like(p)) for state, p in zip(states, params, strict=True)])
                for name in ("exp_avg", "exp_avg_sq")
            )
        self.flats = [self.parameters, self.exp_avg, self.exp_avg_sq]

    def store(self) -> None:
        """Put parameters, buffers and Adam's state into the policy and its optimizer."""
        state = self.policy.optimizer.state
        params = self.layout.parameters
        with th.no_grad():
            th._foreach_copy_(params, self.layout.views(self.parameters))
            for name, buffer in self.module.named_buffers():
                if not th.equal(buffer, self.constants[name]):
                    buffer.copy_(self.constants[name])
            moments = zip(params, self.layout.views(self.exp_avg), self.layout.views(self.exp_avg_sq), strict=True)
            for i, (param, exp_avg, exp_avg_sq) in enumerate(moments):
                # The gradients of compiled steps are not known
                param.grad = None
                if self.n_adam_steps > 0 and i not in self.unused:
                    state[param]["step"] = th.tensor(float(self.n_adam_steps))
                    state[param]["exp_avg"] = exp_avg.clone(memory_format=th.contiguous_format)
                    state[param]["exp_avg_sq"] = exp_avg_sq.clone(memory_format=th.contiguous_format)

    def _coef_vectors(self, n_minibatches: int) -> Sequence[th.Tensor]:
        """The numbers of each of the coming steps, those that depend on Adam's count in float64 as torch.optim.Adam's."""
        settings, group = self.settings, self.policy.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        step = self.n_adam_steps + 1 + np.arange(n_minibatches, dtype=np.float64)
        columns = [group["lr"] / (1 - beta1**step), 1 / np.sqrt(1 - beta2**step)]
        columns += [math.inf if settings.max_grad_norm is None else settings.max_grad_norm, settings.max_approx_kl]
        columns += [1 - beta1, beta2, 1 - beta2, group["eps"], group["weight_decay"]]
        columns += settings.coef.values()
        matrix = np.stack([np.broadcast_to(column, n_minibatches) for column in columns], axis=1)
        return th.as_tensor(matrix, dtype=self.parameters.dtype, device=self.parameters.device).unbind()

    def _first_step(
        self, kind: FeedForward, data: Batch, coef_vector: th.Tensor, index: th.Tensor
    ) -> tuple[Function, th.Tensor]:
        """Make the first step of an update by a function that there is, if it is still right, or by a new one."""
        key, generator_state = self._key(data, index), th.get_rng_state()
        if key in self.functions:
            function, probe = self.functions[key]
            # By contrib's own methods, a policy with many parts of an action takes much of an update
            quick = kind if isinstance(self.kind, Scanned) else self.kind
            row, difference = self._compared(function, quick, data, coef_vector, index, is_trusted=not kind.is_custom)
            if difference is None and not th.equal(self._probe(), probe):
                difference = "the objective makes something else of the same numbers"
            if difference is None:
                self.n_changes = 0
                return function, row
            self.n_changes += 1
            what = "something else than the parameters changes what the policy or the objective computes"
            self.change = f"{what} ({difference})"
            if self.n_changes > 1:
                raise CompilationError(f"from update to update, {self.change}")
            self.functions.clear()
            self.graphs.clear()
            self._load()
            th.set_rng_state(generator_state)
        return self._first_step_anew(kind, data, coef_vector, index)

    def _first_step_anew(
        self, kind: FeedForward, data: Batch, coef_vector: th.Tensor, index: th.Tensor
    ) -> tuple[Function, th.Tensor]:
        """Compile a function, and make the first step of an update by it, which must be that by SB3's methods."""
        key, generator_state = self._key(data, index), th.get_rng_state()
        if self.n_compilations == MAX_COMPILATIONS:
            last_key = next(reversed(self.functions), ())
            others = [name for name, new, last in zip(KEY, key, last_key, strict=False) if new != last]
            change = self.change or f"this changes: {', '.join(others)}"
            raise CompilationError(f"compiled {MAX_COMPILATIONS} times in this training, and again {change}")
        self.n_compilations, self.change = self.n_compilations + 1, ""
        if kind.is_custom:
            verification.check_purity(self.kind, self.kind.select(data, index, self.n_steps), self.settings)
        function = self._function(data, coef_vector, index, is_compiled=True)
        sb3s = kind_of(self.policy, kind.sequence_length)
        # First as if pi_old were another policy: at pi_old itself, the ratio is 1 and the KL 0, so that neither counts
        for rollout in (verification.with_another_pi_old(data), data):
            self._load()
            th.set_rng_state(generator_state)
            row, difference = self._compared(function, sb3s, rollout, coef_vector, index, is_trusted=False)
            if difference is not None:
                raise CompilationError(f"the compiled step computes something else than the policy: {difference}")
        self.functions[key] = function, self._probe()
        return function, row

    def _compared(
        self, function: Function, kind: FeedForward, data: Batch, coef_vector: th.Tensor, index: th.Tensor, is_trusted: bool
    ) -> tuple[th.Tensor, str | None]:
        """Make a step; what it has computed otherwise than SB3's methods, if anything. If trusted, metrics are enough."""
        before, generator_state = [flat.clone() for flat in self.flats], th.get_rng_state()
        row = function([*self._leaves(data), coef_vector, index])[0]
        # With networks for images and LSTMs another pass takes much of an update: what the rollout says is enough
        is_costly = self.has_nature_cnn or isinstance(self.kind, Scanned)
        if is_trusted and is_costly and verification.is_that_of_the_rollout(self.settings, data, index, row):
            return row, None
        # After a trace, so that what a policy keeps of its last pass is real again
        batch = kind.select(data, index, self.n_steps)
        if is_trusted and verification.is_that_of(kind, batch, self.settings, generator_state, row):
            return row, None
        return row, verification.difference(self, kind, batch, before, generator_state, row)

    def _probe(self) -> th.Tensor:
        """What the objective makes of some numbers: the same as long as nothing but its arguments counts."""
        numbers = th.linspace(-1, 1, 8)
        terms = Terms(numbers, 0 * numbers, numbers, lambda: numbers**2)
        return self.settings.objective(terms, dict.fromkeys(self.settings.coef, 0.5)).nan_to_num()

    def _key(self, data: Batch, index: th.Tensor) -> Key:
        """The values of ``KEY``."""
        settings = self.settings
        shapes = tuple((leaf.shape, leaf.stride(), leaf.dtype) for leaf in self._leaves(data))
        return (settings.objective, tuple(settings.coef), settings.normalizes_minibatch, len(index), (self.n_steps, shapes))

    def _graph(self, data: Batch, coef_vector: th.Tensor, index: th.Tensor) -> Function:
        key = self._key(data, index)
        if key not in self.graphs:
            self.graphs[key] = self._function(data, coef_vector, index, is_compiled=False)
        return self.graphs[key]

    def _function(self, data: Batch, coef_vector: th.Tensor, index: th.Tensor, is_compiled: bool) -> Function:
        """The step for minibatches of a size, compiled or as a graph; it empties the list that it is called with."""
        # In a thread, so that what the handler of a signal raises meanwhile is not taken for an error of the compiler
        with _compiling, ThreadPoolExecutor(1) as thread:
            # With the settings of torch's compiler that hold here
            context = contextvars.copy_context()
            return thread.submit(context.run, self._made, data, coef_vector, index, is_compiled).result()

    def _made(self, data: Batch, coef_vector: th.Tensor, index: th.Tensor, is_compiled: bool) -> Function:
        arguments = [*self._leaves(data), coef_vector, index]
        structure = pytree.tree_structure(self._tree(data))

        def step(*arguments: Any) -> tuple[th.Tensor, th.Tensor]:
            *leaves, coef_vector, index = arguments
            return self._step(*pytree.tree_unflatten(leaves, structure), coef_vector, index)  # type: ignore[call-arg]

        try:
            # The same random numbers whether the function is in the compiler's cache or not
            with th.no_grad(), kept_generators(self.policy.device):
                # Squashed actions need every digit of tanh next to 1
                options = {"exact_tanh": self.policy.squash_output, "has_functions": isinstance(self.kind, Scanned)}
                graph = inductor.trace(step, arguments, decompose=is_compiled, **options)
                return inductor.compile_graph(graph, arguments) if is_compiled else lambda arguments: graph(*arguments)
        # Whatever a tracer and a compiler may raise
        except Exception as error:
            # A compiler's output may be long, and says last what is wrong
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise CompilationError(f"{type(error).__name__}: {lines[-1][-300:] if lines else ''}") from error


def _named_parameters(policy: ActorCriticPolicy) -> list[tuple[str, int, bool]]:
    return [(name, id(p), p.requires_grad) for name, p in policy.named_parameters(remove_duplicate=False)]


def _channels_last(observations: th.Tensor) -> th.Tensor:
    """Images in the layout in which convolutions are faster; others as they are."""
    return observations.contiguous(memory_format=th.channels_last) if observations.dim() == 4 else observations
