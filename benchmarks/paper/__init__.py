"""The experiments of the PPO paper: `python -m benchmarks.paper --help`."""
