"""RMSprop as in TensorFlow, and so in openai/baselines' A2C and ACER: the optimizer of a policy, in ``policy_kwargs``."""

from typing import Any

from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

RMSPROP: dict[str, Any] = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5}}
