"""The benchmark of speed."""

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speed


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_floor_of_many_actions_is_the_products_of_both_networks():
    step_of_rollout, step_of_update = speed.matrix_products(speed.CASES["masks, Discrete(1400), 8 envs"])
    # Layers of 32 * 64, 64 * 64 and 64 * 1400, and of 32 * 64, 64 * 64 and 64 * 1: 101,952 products a sample
    assert flops(step_of_rollout) == 2 * 8 * 101_952
    # The gradients of all weights are as many, and those of all inputs but the observations 2 * 32 * 64 fewer
    assert flops(step_of_update) == 2 * 64 * (3 * 101_952 - 4_096)


@pytest.mark.parametrize("case", ["masks, Discrete(1400), 8 envs", "images 84x84x4, 8 envs"])
def test_turn_of_the_floor(case):
    kwargs = {"n_steps": 4, "batch_size": 32, "n_epochs": 1}
    turn = next(speed.network_alone(replace(speed.CASES[case], kwargs=kwargs)))
    assert min(turn["rollout_us"], turn["update_us"]) > 0


def test_floor_takes_part_where_the_network_takes_the_time():
    with_floor = {case for case in speed.CASES if speed.FLOOR in speed.contestants(case)}
    assert with_floor == {"masks, Discrete(1400), 8 envs", "images 84x84x4, 8 envs"}
    assert speed.contestants("masks, Discrete(1400), 8 envs")[0] == "MaskablePPO"
