"""
Fast lanes: parts of a training done sooner, with the numbers and random draws of SB3 bit for bit. Each serves
exactly some of its classes, without hooks, and steps aside for all others. ``lanes.lane`` asks for them by name; without
this folder, or with ``SB3_PPO_VARIANTS_FAST=0``, the package computes the same.
"""
