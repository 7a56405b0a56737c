"""What the PPO paper compares with: SB3's A2C and contrib's TRPO, and on base classes of SB3 or this package, others."""
