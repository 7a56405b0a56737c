"""What the PPO paper compares with: SB3's A2C, contrib's TRPO, and others, on base classes of SB3 or of this package."""
