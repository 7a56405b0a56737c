"""SB3's optimizer step with less overhead, for the optimizer that nearly everybody has."""

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sb3_ppo_variants.flat import FlatParameters
from sb3_ppo_variants.stand_in import is_plain


def not_plain_adam(policy: ActorCriticPolicy) -> str | None:
    """
    Why a policy's optimizer is not ``torch.optim.Adam`` on all of its parameters with its usual formula.

    :param policy: the policy, with its optimizer
    :return: the reason, or ``None`` if it is
    """
    optimizer = policy.optimizer
    if type(optimizer) is not th.optim.Adam:
        return f"the optimizer is {type(optimizer).__name__}, and only torch.optim.Adam is supported"
    if len(optimizer.param_groups) != 1:
        return "the optimizer has several parameter groups"
    (group,) = optimizer.param_groups
    for option in ("amsgrad", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
        if group.get(option):
            return f"the optimizer has {option}=True"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer's step has hooks"
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return "the steps of all optimizers have hooks"
    if not is_plain(optimizer, th.optim.Adam):
        return "a method of the optimizer has been replaced, as a learning rate scheduler does"
    parameters = list(policy.parameters())
    if [id(parameter) for parameter in parameters] != [id(parameter) for parameter in group["params"]]:
        return "the optimizer does not train exactly the policy's parameters"
    if not all(parameter.requires_grad for parameter in parameters):
        return "some parameters of the policy are frozen"
    if len({int(optimizer.state.get(p, {}).get("step", 0)) for p in parameters}) > 1:
        return "the optimizer has made more steps on some parameters than on others"
    return None


class ForeachAdam:
    """
    ``clip_grad_norm_`` and ``Adam.step`` of an update, bit for bit: the same operations on each parameter in the same order,
    but each for all parameters at once, and without looking up the optimizer's state again in each step. ``store`` puts the
    state back.

    :param policy: a policy whose optimizer is a plain Adam, and all of whose parameters get gradients
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.optimizer = policy.optimizer
        self.group = self.optimizer.param_groups[0]
        self.parameters: list[th.Tensor] = list(policy.parameters())
        states = [self.optimizer.state.get(parameter) or _initial_state(parameter) for parameter in self.parameters]
        self.states = states
        self.steps = [state["step"] for state in states]
        self.exp_avg = [state["exp_avg"] for state in states]
        self.exp_avg_sq = [state["exp_avg_sq"] for state in states]
        self.n_steps = int(self.steps[0])
        # All of them as one tensor, for sums, products and quotients, which are rounded exactly wherever an element lies
        layout = FlatParameters(policy)
        self.flat_exp_avg_sq, self.flat_denominator = layout.zeros(), layout.zeros()
        self.exp_avg_sq_views, self.denominators = map(layout.views, (self.flat_exp_avg_sq, self.flat_denominator))
        th._foreach_copy_(self.exp_avg_sq_views, self.exp_avg_sq)

    def step(self, loss: th.Tensor, max_grad_norm: float | None) -> None:
        """
        Make a step.

        :param loss: what to minimise
        :param max_grad_norm: largest norm of the gradient; ``None`` for no clipping
        """
        gradients = list(th.autograd.grad(loss, self.parameters))
        with th.no_grad():
            if max_grad_norm is not None:
                norm = th.linalg.vector_norm(th.stack(th._foreach_norm(gradients)))
                th._foreach_mul_(gradients, th.clamp(max_grad_norm / (norm + 1e-6), max=1.0))
            beta1, beta2 = self.group["betas"]
            decayed = gradients
            if self.group["weight_decay"] != 0:
                decayed = list(th._foreach_add(gradients, self.parameters, alpha=self.group["weight_decay"]))
            self.n_steps += 1
            th._foreach_lerp_(self.exp_avg, decayed, 1 - beta1)
            self.flat_exp_avg_sq.mul_(beta2)
            th._foreach_addcmul_(self.exp_avg_sq_views, decayed, decayed, 1 - beta2)
            for exp_avg_sq, denominator in zip(self.exp_avg_sq_views, self.denominators, strict=True):
                th.sqrt(exp_avg_sq, out=denominator)
            self.flat_denominator.div_((1 - beta2**self.n_steps) ** 0.5).add_(self.group["eps"])
            step_size = self.group["lr"] / (1 - beta1**self.n_steps)
            th._foreach_addcdiv_(self.parameters, self.exp_avg, self.denominators, -step_size)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def store(self) -> None:
        """Put into the optimizer what the steps have made of its state, if there were any."""
        if self.n_steps == 0:
            return
        self.optimizer.state.update(zip(self.parameters, self.states, strict=True))
        th._foreach_copy_(self.exp_avg_sq, self.exp_avg_sq_views)
        for step in self.steps:
            step.fill_(self.n_steps)


def _initial_state(parameter: th.Tensor) -> dict[str, th.Tensor]:
    return {"step": th.tensor(0.0), "exp_avg": th.zeros_like(parameter), "exp_avg_sq": th.zeros_like(parameter)}
