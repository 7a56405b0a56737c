"""Algorithms that the PPO paper compares with and that no maintained library has, on Stable-Baselines3's base classes."""
