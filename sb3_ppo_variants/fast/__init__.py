"""
Fast lanes: SB3's numbers and random draws bit for bit, in less time. Each lane serves certain classes only, without hooks.
Without this folder, or with ``SB3_PPO_VARIANTS_FAST=0``, the package computes the same.
"""
