"""The algorithms of the PPO paper (Schulman et al. 2017) for Stable-Baselines3."""

from pathlib import Path

from sb3_ppo_variants.checks import NonFiniteEnvironmentError
from sb3_ppo_variants.loss import SurrogateTerms
from sb3_ppo_variants.ppo_clip import PPOClip
from sb3_ppo_variants.ppo_fixedkl import PPOFixedKL
from sb3_ppo_variants.ppo_klpen import PPOKLPen
from sb3_ppo_variants.proximal import ProximalPolicyOptimization
from sb3_ppo_variants.undo import NonFiniteUpdateError

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

__all__ = [
    "NonFiniteEnvironmentError",
    "NonFiniteUpdateError",
    "PPOClip",
    "PPOFixedKL",
    "PPOKLPen",
    "ProximalPolicyOptimization",
    "SurrogateTerms",
    "__version__",
]
