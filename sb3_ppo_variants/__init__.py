"""The algorithms of the PPO paper (Schulman et al. 2017) for Stable-Baselines3."""

from pathlib import Path

from sb3_ppo_variants.adaptive import AdaptiveLearningRate
from sb3_ppo_variants.callbacks import AnnealLogStd
from sb3_ppo_variants.checks import NonFiniteEnvironmentError, NonFinitePolicyError, NonFiniteUpdateError
from sb3_ppo_variants.evaluation import evaluate_policy
from sb3_ppo_variants.objectives import Terms
from sb3_ppo_variants.ppo import ProximalPolicyOptimization
from sb3_ppo_variants.variants import PPOClip, PPOFixedKL, PPOKLPen

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

__all__ = [
    "AdaptiveLearningRate",
    "AnnealLogStd",
    "NonFiniteEnvironmentError",
    "NonFinitePolicyError",
    "NonFiniteUpdateError",
    "PPOClip",
    "PPOFixedKL",
    "PPOKLPen",
    "ProximalPolicyOptimization",
    "Terms",
    "__version__",
    "evaluate_policy",
]
