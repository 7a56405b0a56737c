"""``backward``, ``clip_grad_norm_`` and ``Adam.step`` with less overhead."""

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_variants.optimizer import FlatParameters, Step, not_plain_adam, trainable
from sb3_ppo_variants.policies import has_hooks, is_of_libraries


def lane(policy: ActorCriticPolicy) -> "ForeachAdam | None":
    """Steps of an update on a policy."""
    if not is_of_libraries(policy) or has_hooks(policy) or policy.device.type != "cpu" or not_plain_adam(policy) is not None:
        return None
    # One that the loss has not depended on yet has no state, unlike the others
    kinds = {(parameter.dtype, parameter in policy.optimizer.state) for parameter in trainable(policy)}
    return None if len(kinds) > 1 else ForeachAdam(policy)


class ForeachAdam(Step):
    """Torch's operations in torch's order, but each for all parameters at once, on the optimizer's state looked up once."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        self.optimizer = policy.optimizer
        self.group = self.optimizer.param_groups[0]
        layout = FlatParameters(policy)
        self.parameters = layout.parameters
        # All of them as one tensor, for sums, products and quotients, which are rounded exactly wherever an element lies
        self.flat_exp_avg_sq, self.flat_denominator = layout.zeros(), layout.zeros()
        self.exp_avg_sq_views, self.denominators = map(layout.views, (self.flat_exp_avg_sq, self.flat_denominator))
        self.states = [self.optimizer.state.get(parameter) or _initial_state(parameter) for parameter in self.parameters]
        self.exp_avg = [state["exp_avg"] for state in self.states]
        self.n_adam_steps = int(self.states[0]["step"])
        th._foreach_copy_(self.exp_avg_sq_views, [state["exp_avg_sq"] for state in self.states])
        # Torch's Adam skips parameters that the loss does not depend on: from the first such loss on, it makes the steps
        self.is_torchs = False

    def __call__(self, loss: th.Tensor, max_grad_norm: float | None) -> th.Tensor:
        """Make a step."""
        gradients = list(th.autograd.grad(loss, self.parameters, allow_unused=True))
        with th.no_grad():
            present = [gradient for gradient in gradients if gradient is not None]
            norm = th.linalg.vector_norm(th.stack(th._foreach_norm(present)))
            if max_grad_norm is not None:
                th._foreach_mul_(present, th.clamp(max_grad_norm / (norm + 1e-6), max=1.0))
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            if len(present) < len(gradients) and not self.is_torchs:
                self.__exit__()
                self.is_torchs = True
            if self.is_torchs:
                self.optimizer.step()
            else:
                self._step(present)
        return norm

    def _step(self, gradients: list[th.Tensor]) -> None:
        beta1, beta2 = self.group["betas"]
        if self.group["weight_decay"] != 0:
            gradients = list(th._foreach_add(gradients, self.parameters, alpha=self.group["weight_decay"]))
        self.n_adam_steps += 1
        th._foreach_lerp_(self.exp_avg, gradients, 1 - beta1)
        self.flat_exp_avg_sq.mul_(beta2)
        th._foreach_addcmul_(self.exp_avg_sq_views, gradients, gradients, 1 - beta2)
        for exp_avg_sq, denominator in zip(self.exp_avg_sq_views, self.denominators, strict=True):
            th.sqrt(exp_avg_sq, out=denominator)
        self.flat_denominator.div_((1 - beta2**self.n_adam_steps) ** 0.5).add_(self.group["eps"])
        step_size = self.group["lr"] / (1 - beta1**self.n_adam_steps)
        th._foreach_addcdiv_(self.parameters, self.exp_avg, self.denominators, -step_size)

    def __exit__(self, *_: object) -> None:
        """Put into the optimizer what the steps have made of its state, if there were any."""
        if self.n_adam_steps == 0 or self.is_torchs:
            return
        for parameter, state, exp_avg_sq in zip(self.parameters, self.states, self.exp_avg_sq_views, strict=True):
            state["exp_avg_sq"].copy_(exp_avg_sq)
            state["step"].fill_(self.n_adam_steps)
            self.optimizer.state[parameter] = state


def _initial_state(parameter: th.Tensor) -> dict[str, th.Tensor]:
    return {"step": th.tensor(0.0), "exp_avg": th.zeros_like(parameter), "exp_avg_sq": th.zeros_like(parameter)}
