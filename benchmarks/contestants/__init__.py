"""What the PPO paper compares with: SB3's A2C and contrib's TRPO, and on SB3's base classes, what neither of them has."""
