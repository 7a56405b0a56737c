"""An LSTM over sequences of any lengths as an operator of torch that can be traced, written in C++ (lstm.cpp)."""

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch as th
from torch.nn import functional as F

SOURCE = Path(__file__).with_name("lstm.cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")


@cache
def library() -> ctypes.CDLL:
    """The compiled functions: once in a process, as that takes a second."""
    is_usual = (sys.platform, platform.machine()) == ("linux", "x86_64")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lstm.so"
        flags = [*FLAGS, "-march=native"] if is_usual else FLAGS
        command = [os.environ.get("CXX", "g++"), *flags, str(SOURCE), "-o", str(file)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return ctypes.CDLL(str(file))


def _pointers(*tensors: th.Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


# Without derivatives: `_Recurrence` has those
_operators = th.library.Library("sb3_ppo_variants", "DEF")
_operators.define("lstm(Tensor projected, Tensor weight, Tensor h0, Tensor c0, Tensor is_start) -> (Tensor, Tensor, Tensor)")
_operators.define(
    "lstm_backward(Tensor gradient, Tensor weight, Tensor c0, Tensor is_start, Tensor gates, Tensor c) -> Tensor"
)


def _forward(*inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    projected, weight, h0, c0, is_start = (tensor.contiguous() for tensor in inputs)
    gates, h, c = projected.clone(), th.empty_like(h0), th.empty_like(c0)
    library().lstm_forward(*h.shape, *_pointers(is_start, weight, h0, c0, gates, h, c))
    return h, c, gates


def _backward(*inputs: th.Tensor) -> th.Tensor:
    gradient, weight, c0, is_start, gates, c = (tensor.contiguous() for tensor in inputs)
    gradient, dgates = gradient.clone(), th.empty_like(gates)
    library().lstm_backward(*c.shape, *_pointers(is_start, weight, c0, gates, c, gradient, dgates))
    return dgates


_operators.impl("lstm", _forward, "CPU")
_operators.impl("lstm_backward", _backward, "CPU")


@th.library.register_fake("sb3_ppo_variants::lstm")
def _(projected: Any, weight: Any, h0: Any, c0: Any, is_start: Any) -> tuple[Any, Any, Any]:
    return th.empty_like(h0.contiguous()), th.empty_like(c0.contiguous()), th.empty_like(projected.contiguous())


@th.library.register_fake("sb3_ppo_variants::lstm_backward")
def _(gradient: Any, weight: Any, c0: Any, is_start: Any, gates: Any, c: Any) -> Any:
    return th.empty_like(gates.contiguous())


class _Recurrence(th.autograd.Function):
    """The two operators as a function and its derivative, also under the transformations of ``torch.func``."""

    @staticmethod
    def forward(*inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        return th.ops.sb3_ppo_variants.lstm(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[th.Tensor, ...], output: tuple[th.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[1:], *output)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:
        weight, h0, c0, is_start, h, c, gates = ctx.saved_tensors
        dgates = th.ops.sb3_ppo_variants.lstm_backward(gradients[0], weight, c0, is_start, gates, c)
        before = th.where(is_start[:, None], h0, th.cat([h[:1], h[:-1]]))
        return dgates, dgates.t() @ before, None, None, None


def remember(lstm: Any, inputs: th.Tensor, states: tuple[th.Tensor, th.Tensor], is_start: th.Tensor) -> th.Tensor:
    """
    The outputs of an LSTM.

    :param lstm: an ``nn.LSTM`` in one direction
    :param inputs: steps of sequences one after another, of shape ``(n_samples, n_features)``
    :param states: before each step, of shape ``(n_samples, n_layers, size)``; those at the starts of sequences count
    :param is_start: where sequences start, of shape ``(n_samples,)``
    :return: shape ``(n_samples, size)``
    """
    # Here, where all that may go wrong with a compiler is expected
    library()
    for layer in range(lstm.num_layers):
        names = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if lstm.bias else ()))
        weight, recurrent, *biases = (getattr(lstm, f"{name}_l{layer}") for name in names)
        projected = F.linear(inputs, weight, sum(biases) if biases else None)
        inputs = _Recurrence.apply(projected, recurrent, states[0][:, layer], states[1][:, layer], is_start)[0]
        if layer < lstm.num_layers - 1:
            inputs = F.dropout(inputs, lstm.dropout, lstm.training)
    return inputs
