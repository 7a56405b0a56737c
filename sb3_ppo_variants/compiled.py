"""
The minibatch step of an update (forward, backward, clipping of the gradient, Adam) as one compiled function.

``make_fx`` traces the step of any SB3 policy to a graph of tensor operations, Inductor makes C++ of it. The function works on
flat copies of the parameters and of Adam's moments: they are taken from the policy and its optimizer before an update and
put back after it, so that those two always hold the truth.

``unsupported_reason`` says beforehand, and ``CompilationError`` afterwards, why that is not possible; training then goes on
without.
"""

import math
import os
import pickle
import random
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.func import functional_call, grad_and_value
from torch.utils import _pytree as pytree

from sb3_ppo_variants import inductor
from sb3_ppo_variants.adam import not_plain_adam
from sb3_ppo_variants.evaluation import same_random_numbers
from sb3_ppo_variants.flat import FlatParameters
from sb3_ppo_variants.inference import Evaluation, evaluate_policy, unvalidated_distributions
from sb3_ppo_variants.loss import APPROX_KL, Surrogate, ppo_loss
from sb3_ppo_variants.module_state import State, fingerprint
from sb3_ppo_variants.rollout import Rollout, RolloutData
from sb3_ppo_variants.stand_in import has_hooks, is_of_library, is_of_sb3

# The oldest torch whose Inductor this module has been tested with
OLDEST_TORCH = (2, 13)
# Compiled functions of one update: more mean that something in the policy changes all the time
MAX_FUNCTIONS = 8
# Numbers of a step that come before the coefficients of the loss: Adam's, and limits
N_OTHERS = 4


class CompilationError(RuntimeError):
    """The update could not be compiled; the message says why."""


class TemporaryCompilationError(CompilationError):
    """The update could not be compiled as the policy is now: the next ``learn`` may try again."""


def unsupported_reason(policy: ActorCriticPolicy) -> str | None:
    """
    Why the update of a policy cannot be compiled here, as far as that can be told without trying.

    :param policy: the policy, with its optimizer
    :return: the reason, or ``None``
    """
    version = tuple(int(number) for number in th.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        return f"torch {th.__version__} is older than {'.'.join(map(str, OLDEST_TORCH))}"
    if policy.device.type != "cpu":
        return f"the device is {policy.device}, and only the CPU is supported so far"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler}; the environment variable CXX names another)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's C headers (Python.h) are not installed"
    return unsupported_policy(policy)


def unsupported_policy(policy: ActorCriticPolicy) -> str | None:
    """
    What of ``unsupported_reason`` concerns the policy and not the machine, and may change in the course of a training.

    :param policy: the policy, with its optimizer
    :return: the reason, or ``None``
    """
    reason = not_plain_adam(policy)
    if reason is not None:
        return reason
    if has_hooks(policy):
        return "modules of the policy have hooks, which compiled code would not call"
    if len({parameter.dtype for parameter in policy.parameters()}) != 1:
        return "the policy's parameters have several data types"
    return None


def image_work(policy: ActorCriticPolicy) -> float:
    """
    What SB3's network for images has to do for each observation.

    :param policy: any policy
    :return: the work in images of 84x84x4; 0 without such a network
    """
    shapes = [module._observation_space.shape for module in policy.modules() if type(module) is NatureCNN]
    return sum(math.prod(shape) for shape in shapes if shape is not None) / (84 * 84 * 4)


class Options(NamedTuple):
    """
    What is compiled into a step besides the policy.

    :param source: the attribute of the class that is its surrogate objective; if it is replaced, this is out of date
    :param coef_names: names of the coefficients of the loss
    :param standardizes: whether advantages are standardised in each minibatch
    :param ends_early: whether a step is to be left out whose approximate KL exceeds the coefficient ``max_approx_kl``
    """

    source: object
    coef_names: tuple[str, ...]
    standardizes: bool
    ends_early: bool


class CompiledUpdate:
    """
    Minibatch steps on a policy, each one call of a compiled function.

    :param policy: the policy, with its optimizer
    :param surrogate: the surrogate objective
    :param options: how the loss is made
    """

    def __init__(self, policy: ActorCriticPolicy, surrogate: Surrogate, options: Options) -> None:
        self.policy = policy
        self.module = _Loss(policy)
        self.surrogate = surrogate
        self.options = options
        # Other networks may take a layout for granted
        self.has_nature_cnn = image_work(policy) > 0
        self.layout = FlatParameters(policy, transpose=True)
        self.parameters, self.exp_avg, self.exp_avg_sq = (self.layout.zeros() for _ in range(3))
        self.buffers: dict[str, th.Tensor] = {}
        self.n_steps = 0
        self.functions: dict[Any, Callable[[list[Any]], Sequence[th.Tensor]]] = {}

    def serves(self, policy: ActorCriticPolicy, options: Options) -> bool:
        """
        Whether this can make the steps of an update, or another must be made.

        :param policy: the policy to update
        :param options: how the loss is made
        :return: whether it can
        """
        parameters = list(policy.parameters())
        return (
            policy is self.policy
            and options == self.options
            and len(parameters) == len(self.layout.parameters)
            and all(new is old for new, old in zip(parameters, self.layout.parameters, strict=True))
        )

    def _step(
        self,
        parameters: th.Tensor,
        exp_avg: th.Tensor,
        exp_avg_sq: th.Tensor,
        buffers: dict[str, th.Tensor],
        coef_vector: th.Tensor,
        rollout: RolloutData,
        index: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        The minibatch step: updates parameters, moments and buffers in place and returns the values of ``METRICS`` and by how
        much the gradient is clipped.
        """
        step_size, inverse_bias_correction2_sqrt, max_grad_norm, max_approx_kl = coef_vector[:N_OTHERS].unbind()
        coef = self._coef(coef_vector)
        batch = rollout.select(index)
        if self.has_nature_cnn:
            batch = batch._replace(observations=pytree.tree_map(_channels_last, batch.observations))
        loss = partial(self._loss, batch, coef)
        # The gradient of a list of views: that of the flat tensor would be a sum of zero-padded ones
        gradients, (_, (metrics, new_buffers)) = grad_and_value(loss, has_aux=True)(self.layout.views(parameters), buffers)
        gradient = self.layout.concatenate(gradients)
        # As torch.nn.utils.clip_grad_norm_, or not at all if the limit is infinite: also where the norm overflows
        scale = th.clamp(max_grad_norm / (th.linalg.vector_norm(gradient) + 1e-6), max=1.0)
        scale = th.where(th.isinf(max_grad_norm), th.ones_like(scale), scale)
        gradient = gradient * scale

        # As torch.optim.Adam
        group = self.policy.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        if group["weight_decay"] != 0:
            gradient = gradient + group["weight_decay"] * parameters
        new_exp_avg = exp_avg + (1 - beta1) * (gradient - exp_avg)
        new_exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient * gradient
        denominator = new_exp_avg_sq.sqrt() * inverse_bias_correction2_sqrt + group["eps"]
        new_parameters = parameters - step_size * (new_exp_avg / denominator)

        updates = [(parameters, new_parameters), (exp_avg, new_exp_avg), (exp_avg_sq, new_exp_avg_sq)]
        if self.options.ends_early:
            # SB3 ends the update before the step that exceeds the limit; NaN does not
            goes_on = ~(metrics[APPROX_KL] > max_approx_kl)
            updates = [(old, th.where(goes_on, new, old)) for old, new in updates]
        # Batch normalisation has seen that minibatch
        updates += [(buffer, new_buffers[name]) for name, buffer in buffers.items()]
        for old, new in updates:
            old.copy_(new)
        # The scale is returned so that Inductor computes it once, and not again in the loop over each vector of parameters
        return metrics, scale

    def _coef(self, coef_vector: th.Tensor) -> dict[str, Any]:
        """The coefficients of the loss in one of ``_coef_vectors``."""
        return dict(zip(self.options.coef_names, coef_vector[N_OTHERS:].unbind(), strict=True))

    def _loss(
        self, batch: RolloutData, coef: dict[str, Any], parameters: list[th.Tensor], buffers: dict[str, th.Tensor]
    ) -> tuple[th.Tensor, tuple[th.Tensor, dict[str, th.Tensor]]]:
        """The loss of a minibatch, the values of ``METRICS`` and what becomes of the buffers."""
        # Batch normalisation writes to its buffers
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        state = {**self.layout.by_place(parameters), **buffers}

        def loss_of(evaluation: Evaluation) -> tuple[th.Tensor, th.Tensor]:
            return ppo_loss(self.surrogate, batch, evaluation, coef, self.options.standardizes)

        arguments = (batch.observations, batch.actions, loss_of)
        loss, metrics = functional_call(self.module, state, arguments, tie_weights=False)
        return loss, (metrics, buffers)

    def run(
        self,
        rollout: Rollout,
        n_epochs: int,
        batch_size: int,
        coef: Mapping[str, float],
        max_grad_norm: float | None,
        max_approx_kl: float | None,
    ) -> list[th.Tensor]:
        """
        Make the steps of an update, on copies of the parameters: ``store`` puts the result into the policy.

        :param rollout: the rollout, of one of SB3's own buffers
        :param n_epochs: number of passes over it
        :param batch_size: size of a minibatch; the last one of an epoch may be smaller
        :param coef: the coefficients of the loss by name
        :param max_grad_norm: largest norm of the gradient
        :param max_approx_kl: end the update before a step whose approximate KL exceeds this
        :return: the values of ``METRICS`` at each step of each epoch, of shape ``(n_steps, n_metrics)``
        :raises CompilationError: if the step cannot be compiled; nothing has changed then
        """
        self._load()
        limits = [math.inf if limit is None else limit for limit in (max_grad_norm, max_approx_kl)]
        assert rollout.data is not None
        sizes = [len(index) for index in th.arange(len(rollout.data.returns)).split(batch_size)]
        coef_vectors = self._coef_vectors(n_epochs * len(sizes), limits, coef)
        # The arguments but for the vector of coefficients and the index, which come last
        leaves, structure = pytree.tree_flatten([self.parameters, self.exp_avg, self.exp_avg_sq, self.buffers, rollout.data])
        group = self.policy.optimizer.param_groups[0]
        constants = (tuple(group["betas"]), group["eps"], group["weight_decay"], fingerprint(self.policy))
        key = (*((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves), *constants)
        metrics: list[th.Tensor] = []
        with th.no_grad():
            # The shorter minibatch at the end of an epoch is not worth a compilation of its own
            functions = {}
            for size in set(sizes):
                arguments = [*leaves, coef_vectors[0], th.arange(size)]
                functions[size] = self._function((size, *key), arguments, structure, compiled=size == sizes[0])
            steps = iter(coef_vectors)
            for _ in range(n_epochs):
                rows = []
                for index in rollout.permutation().split(batch_size):
                    rows.append(functions[len(index)]([*leaves, next(steps), index])[0])
                    self.n_steps += 1
                    if max_approx_kl is not None and rows[-1][APPROX_KL].item() > max_approx_kl:
                        self.n_steps -= 1
                        return [*metrics, th.stack(rows)]
                metrics.append(th.stack(rows))
        return metrics

    def _load(self) -> None:
        """Take parameters, buffers and Adam's state from the policy and its optimizer."""
        params = self.layout.parameters
        states = [self.policy.optimizer.state.get(parameter, {}) for parameter in params]
        self.n_steps = max((int(state["step"]) for state in states if "step" in state), default=0)
        self.buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        with th.no_grad():
            th._foreach_copy_(self.layout.views(self.parameters), params)
            for flat, name in ((self.exp_avg, "exp_avg"), (self.exp_avg_sq, "exp_avg_sq")):
                moments = [state[name] if name in state else th.zeros_like(p) for state, p in zip(states, params, strict=True)]
                th._foreach_copy_(self.layout.views(flat), moments)

    def store(self) -> None:
        """Put parameters, buffers and Adam's state into the policy and its optimizer."""
        state = self.policy.optimizer.state
        params = self.layout.parameters
        with th.no_grad():
            th._foreach_copy_(params, self.layout.views(self.parameters))
            for name, buffer in self.module.named_buffers():
                buffer.copy_(self.buffers[name])
            moments = zip(params, self.layout.views(self.exp_avg), self.layout.views(self.exp_avg_sq), strict=True)
            for param, exp_avg, exp_avg_sq in moments:
                if self.n_steps > 0:
                    state[param]["step"] = th.tensor(float(self.n_steps))
                    state[param]["exp_avg"] = exp_avg.clone(memory_format=th.contiguous_format)
                    state[param]["exp_avg_sq"] = exp_avg_sq.clone(memory_format=th.contiguous_format)

    def _coef_vectors(self, n_steps: int, limits: Sequence[float], coef: Mapping[str, float]) -> Sequence[th.Tensor]:
        """
        The vectors of all numbers that change between the coming steps, in the order in which a step takes them. What depends
        on Adam's step count is computed here in float64, as torch.optim.Adam does.
        """
        group = self.policy.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        step = self.n_steps + 1 + np.arange(n_steps, dtype=np.float64)
        columns = [group["lr"] / (1 - beta1**step), 1 / np.sqrt(1 - beta2**step), *limits]
        columns += [coef[name] for name in self.options.coef_names]
        matrix = np.stack([np.broadcast_to(column, n_steps) for column in columns], axis=1)
        return th.as_tensor(matrix, dtype=self.parameters.dtype, device=self.parameters.device).unbind()

    def _function(
        self, key: tuple[Any, ...], arguments: list[Any], structure: Any, compiled: bool
    ) -> Callable[[list[Any]], Sequence[th.Tensor]]:
        """The step for these arguments; if it is compiled, it empties the list that it is called with."""
        if key not in self.functions:
            if len(self.functions) == MAX_FUNCTIONS:
                raise CompilationError("the policy, or the size of the rollout, changes again and again")
            try:
                # The same random numbers whether the function is in the compiler's cache or not
                with same_random_numbers(self.policy.device), _unchanged(self.policy), unvalidated_distributions():
                    self._check(arguments, structure)
                    graph = self._trace(arguments, structure, decompose=compiled)
                    if compiled:
                        self.functions[key] = inductor.compile_graph(graph, arguments)
                    else:
                        self.functions[key] = lambda arguments: graph(*arguments)
            except CompilationError:
                raise
            # Whatever a tracer and a compiler may raise
            except Exception as error:
                raise CompilationError(f"{type(error).__name__}: {error}") from error
        return self.functions[key]

    def _check(self, arguments: list[Any], structure: Any) -> None:
        """
        Check what compiled code takes for granted of a custom policy: that its evaluation changes nothing but buffers, and
        that the loss depends on all parameters. Torch's Adam leaves the others alone, while compiled code goes on with their
        moments and the decay of weights.
        """
        if is_of_sb3(self.policy) and all(map(is_of_library, self.policy.modules())):
            return
        *leaves, coef_vector, index = arguments
        flat, exp_avg, _, buffers, rollout = pytree.tree_unflatten(leaves, structure)
        batch = rollout.select(index)
        coef = self._coef(coef_vector)
        parameters = [view.clone().requires_grad_() for view in self.layout.views(flat)]
        generators, state = _random_states(), State(self.policy)
        with th.enable_grad():
            loss, _ = self._loss(batch, coef, parameters, buffers)
            gradients = th.autograd.grad(loss, parameters, allow_unused=True)
        if _random_states() != generators:
            raise TemporaryCompilationError("the policy draws random numbers from Python or NumPy, not from torch")
        changed = state.put_back()
        if changed is not None:
            raise TemporaryCompilationError(f"the evaluation of the policy changes {changed}, which compiled code would not")
        decays = self.policy.optimizer.param_groups[0]["weight_decay"] != 0
        names = [name for name, _ in self.policy.named_parameters()]
        for name, gradient, moment in zip(names, gradients, self.layout.views(exp_avg), strict=True):
            if gradient is None and (decays or moment.any()):
                raise TemporaryCompilationError(f"the loss does not depend on policy.{name}, which Adam must leave as it is")

    def _trace(self, arguments: list[Any], structure: Any, decompose: bool) -> th.fx.GraphModule:
        def step(*arguments: Any) -> tuple[th.Tensor, th.Tensor]:
            *leaves, coef_vector, index = arguments
            parameters, exp_avg, exp_avg_sq, buffers, rollout = pytree.tree_unflatten(leaves, structure)
            return self._step(parameters, exp_avg, exp_avg_sq, buffers, coef_vector, rollout, index)

        # Squashed actions need every digit of tanh next to 1
        return inductor.trace(step, arguments, decompose, exact_tanh=self.policy.squash_output)


class _Loss(nn.Module):
    """The loss of a policy as the forward of a module, which is what ``functional_call`` calls."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, observations: PyTorchObs, actions: th.Tensor, loss_of: Callable[[Evaluation], tuple[th.Tensor, th.Tensor]]
    ) -> tuple[th.Tensor, th.Tensor]:
        # Within the forward, as the KL of a custom policy may take a second pass through it
        return loss_of(evaluate_policy(self.policy, observations, actions))


@contextmanager
def _unchanged(policy: ActorCriticPolicy) -> Iterator[None]:
    """Leave nothing of a trace in the policy."""
    state, distribution = State(policy), vars(policy.action_dist).copy()
    try:
        yield
    finally:
        # A policy keeps the last distribution
        vars(policy.action_dist).clear()
        vars(policy.action_dist).update(distribution)
        state.put_back()


def _random_states() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state()))


def _channels_last(observations: th.Tensor) -> th.Tensor:
    """Images in the layout in which convolutions are faster; others as they are."""
    return observations.contiguous(memory_format=th.channels_last) if observations.dim() == 4 else observations
