"""Tracing and compiling: the one place that uses private interfaces of torch's compiler, and may raise what these do."""

import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.func import functionalize
from torch.overrides import TorchFunctionMode

from sb3_ppo_variants.optimizer import is_quicker_transposed

INDUCTOR_OPTIONS = {
    # The indices are permutations
    "assert_indirect_indexing": False,
    # The pattern matcher would put together again what `_addmm` has taken apart
    "pattern_matcher": False,
    # Dropout draws from torch's generator, as without compilation
    "fallback_random": True,
    # Precompiled headers take more time and memory than the one compilation that they are for, and 150 MB of disk
    "cpp_cache_precompile_headers": False,
}


def trace(
    step: Callable[..., Any], arguments: list[Any], decompose: bool, exact_tanh: bool, has_functions: bool = False
) -> th.fx.GraphModule:
    """Trace a function to a graph; ``has_functions`` says whether an ``autograd.Function`` is called in it."""
    # torch's own modules warn when they are imported
    with _WithoutChecks(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._inductor import config
        from torch._inductor.decomposition import select_decomp_table
        from torch.fx.experimental.proxy_tensor import make_fx

        decompositions: dict[Any, Any] = {}
        if decompose:
            aten = th.ops.aten
            with config.patch(INDUCTOR_OPTIONS):
                decompositions = {**select_decomp_table(), aten.addmm.default: _addmm, aten.mm.default: _mm}
            if not exact_tanh:
                decompositions[aten.tanh.default] = _tanh
        if has_functions:
            # `functionalize` does not know an autograd.Function, but knows the operations into which this trace turns it
            step = make_fx(step, tracing_mode="fake")(*arguments)
        # Inductor takes it for granted that there are no other mutations, and computes wrong numbers if there are
        functional = functionalize(step, remove="mutations")
        return make_fx(functional, decomposition_table=decompositions, tracing_mode="fake")(*arguments)


def _addmm(bias: th.Tensor, x: th.Tensor, y: th.Tensor, *, beta: float = 1, alpha: float = 1) -> th.Tensor:
    # Apart, the sum can be fused with the activation that follows
    product = th.mm(x, y)
    return (product if alpha == 1 else alpha * product) + (bias if beta == 1 else beta * bias)


def _mm(x: th.Tensor, y: th.Tensor) -> th.Tensor:
    if x.shape[1] == 1:
        # Not a call of BLAS, but fused with what follows
        return x * y
    if is_quicker_transposed(x.shape[0], y.shape[1]):
        return th.mm(y.t(), x.t()).t()
    return NotImplemented


def _tanh(x: th.Tensor) -> th.Tensor:
    # The vectorised exp is several times as fast as the vectorised tanh, and the error is that of rounding
    return 2 / (1 + th.exp(-2 * x)) - 1


class _WithoutChecks(TorchFunctionMode):
    """Checks of values, which a trace cannot follow: those of ``one_hot`` and of distributions are left out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is th._is_all_true:
            return True
        return (_one_hot if func is nn.functional.one_hot else func)(*args, **(kwargs or {}))


def _one_hot(tensor: th.Tensor, num_classes: int) -> th.Tensor:
    return (tensor.unsqueeze(-1) == th.arange(num_classes, device=tensor.device)).long()


def compile_graph(graph: th.fx.GraphModule, arguments: list[Any]) -> Callable[[list[Any]], Sequence[th.Tensor]]:
    """Compile a graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._inductor import config, cpu_vec_isa
        from torch._inductor.compile_fx import compile_fx_inner

        options: dict[str, Any] = dict(INDUCTOR_OPTIONS)
        if config.cpp.vec_isa_ok is None:
            # Without a test compilation for each set of instructions: if this one fails, there is the reference path
            options["cpp.vec_isa_ok"] = True
        if getattr(config.cpp, "march", "") is None and (sys.platform, platform.machine()) == ("linux", "x86_64"):
            # The one place for flags, from torch 2.13 on. GCC is to collect its garbage earlier: that takes 90 MB less
            options["cpp.march"] = "native --param ggc-min-expand=7"
        try:
            with config.patch(options):
                compiled = compile_fx_inner(graph, arguments, cpp_wrapper=True, is_inference=True)
        finally:
            # What has not been tested is not to be remembered as tested: sets of instructions, of which newer torch knows more
            for known in vars(cpu_vec_isa).values():
                test = getattr(known, "__bool__", known)
                if hasattr(test, "cache_clear"):
                    test.cache_clear()
    # Without the profiler's hooks round it
    return compiled.current_callable  # type: ignore[attr-defined]
