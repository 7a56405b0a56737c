"""What the tests of the compiled path share: one update on either path from the same state and random numbers."""

import copy

import numpy as np
import pytest
import torch as th
from support import train
from torch.utils._pytree import tree_map

from sb3_ppo_variants.compiled import support
from sb3_ppo_variants.kinds import kind_of
from sb3_ppo_variants.rollout import Rollout

needs_new_torch = pytest.mark.skipif(
    tuple(map(int, th.__version__.split("+")[0].split(".")[:2])) < support.OLDEST_TORCH, reason="torch is too old to compile"
)


class Update:
    """What one update makes of a model, which is left as it was."""

    def __init__(self, model, compiles, data=None, compile_=True):
        policy, optimizer = model.policy, model.policy.optimizer
        before = copy.deepcopy((policy.state_dict(), optimizer.state_dict(), model._n_updates, np.random.get_state()))
        if compiles and (model._backend is None or not model._backend.is_on):
            # As at the beginning of a long `learn`
            model.compile = compile_
            model._chosen_path(np.inf)
        old = Rollout(model.rollout_buffer, kind_of(policy), model.normalize_advantage == "batch")
        old.data = old.data if data is None else data
        policy.set_training_mode(True)
        np.random.seed(0)
        th.manual_seed(0)
        model._uses_compiled = compiles
        try:
            self.epochs = model._optimize(old, model.coefficients())
            self.is_compiled = model._uses_compiled
            self.parameters = copy.deepcopy(policy.state_dict())
            self.optimizer = copy.deepcopy(optimizer.state_dict())
            self.n_epochs = model._n_updates - before[2]
        finally:
            policy.load_state_dict(before[0])
            optimizer.load_state_dict(before[1])
            model._n_updates = before[2]
            np.random.set_state(before[3])

    @property
    def rows(self):
        return th.cat(self.epochs)

    def off(self, other):
        """By how much the parameter that differs most differs."""
        return max((value - other.parameters[name]).abs().max().item() for name, value in self.parameters.items())


def reference_and_compiled(model, **kwargs):
    return Update(model, False, **kwargs), Update(model, True, **kwargs)


def trained(cls, *args, **kwargs):
    """A model with a rollout whose advantages, ratios and KL are not trivial."""
    kwargs = {"batch_size": 26, "learning_rate": 1e-3, "compile": False, **kwargs}
    return train(cls, *args, n_updates=2, **kwargs)[0]


def assert_steps_agree_in_float64(model, tolerance=1e-10):
    policy = model.policy.double()
    # Made for float32
    model._backend = None
    policy.optimizer = policy.optimizer_class(policy.parameters(), lr=1e-3, **policy.optimizer_kwargs)
    with pytest.MonkeyPatch.context() as patch:
        # By which SB3 converts observations
        patch.setattr(th.Tensor, "float", th.Tensor.double)
        data = Rollout(model.rollout_buffer, kind_of(policy), model.normalize_advantage == "batch").data
        data = tree_map(lambda x: x.double() if isinstance(x, th.Tensor) and x.is_floating_point() else x, data)
        reference, compiled = reference_and_compiled(model, data=data)
    assert compiled.is_compiled
    before = policy.state_dict()
    changes = [(value - before[name]).abs().max().item() for name, value in reference.parameters.items()]
    assert np.median(changes) > 1e5 * tolerance, "the parameters have moved far enough to tell"
    assert reference.off(compiled) < tolerance
    states = reference.optimizer["state"], compiled.optimizer["state"]
    assert states[0].keys() == states[1].keys()
    for parameter, state in states[0].items():
        for name, value in state.items():
            assert (value - states[1][parameter][name]).abs().max().item() < 100 * tolerance, name
    assert reference.n_epochs == compiled.n_epochs
    assert list(map(len, reference.epochs)) == list(map(len, compiled.epochs))
    th.testing.assert_close(reference.rows, compiled.rows, rtol=0, atol=1e5 * tolerance, equal_nan=True)
    return compiled
