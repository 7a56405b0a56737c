"""
Fast lanes: SB3's numbers and random draws bit for bit, faster. Each serves exactly some of its classes, without hooks. Without
this folder, or with ``SB3_PPO_VARIANTS_FAST=0``, the package computes the same.
"""
