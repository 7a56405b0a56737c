"""What can be compiled: reasons why not."""

import math
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_ppo_variants.buffers import OWN_BUFFERS
from sb3_ppo_variants.optimizer import not_plain_adam, trainable
from sb3_ppo_variants.policies import has_contribs_memory, has_hooks

# In torch 2.10 and 2.11, the second model that a process compiles crashes it
OLDEST_TORCH = (2, 12)


class CompilationError(RuntimeError):
    """The update could not be compiled; the message says why."""


def unsupported_reason(policy: ActorCriticPolicy, buffer: RolloutBuffer) -> str | None:
    """Why the update of a policy cannot be compiled here, as far as that can be told without trying."""
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
    return unsupported_policy(policy, buffer)


def unsupported_policy(policy: ActorCriticPolicy, buffer: RolloutBuffer) -> str | None:
    """Why the update of a policy cannot be compiled on any machine; may change in the course of a training."""
    if type(buffer) not in OWN_BUFFERS:
        return f"the rollout buffer is a {type(buffer).__name__}, not one of SB3's own"
    has_memory = isinstance(policy, RecurrentActorCriticPolicy)
    reasons = {
        "the policy has methods of its own, and only those of contrib's policies with a memory are known": has_memory
        and not has_contribs_memory(policy),
        "the memory of the policy is not an nn.LSTM in single precision": has_memory and not is_scannable(policy),
        "modules of the policy have hooks, which compiled code would not call": has_hooks(policy),
        "all parameters of the policy are frozen": not trainable(policy),
        "the policy's parameters have several data types": len({parameter.dtype for parameter in policy.parameters()}) > 1,
    }
    return not_plain_adam(policy) or next((reason for reason, holds in reasons.items() if holds), None)


def is_scannable(policy: Any) -> bool:
    """Whether the memory of a policy can be compiled: what is ``nn.LSTM`` in single precision."""
    lstms = [lstm for lstm in (policy.lstm_actor, policy.lstm_critic) if lstm is not None]
    return all(type(lstm) is nn.LSTM and lstm.weight_ih_l0.dtype == th.float32 for lstm in lstms)


def image_work(policy: ActorCriticPolicy) -> float:
    """What SB3's network for images has to do for each observation."""
    shapes = [module._observation_space.shape for module in policy.modules() if type(module) is NatureCNN]
    return sum(math.prod(shape) for shape in shapes if shape is not None) / (84 * 84 * 4)
