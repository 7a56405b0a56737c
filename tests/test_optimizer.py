import pytest
import torch as th
from support import make_policy
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_ppo_variants.optimizer import ALIGNMENT, FlatParameters, is_quicker_transposed, not_plain_adam


@pytest.mark.parametrize("transpose", [False, True])
def test_flat_parameters(transpose):
    policy = make_policy()
    policy.value_net.bias.requires_grad_(False)
    flat = FlatParameters(policy, transpose)
    # log_std; 2 networks of 5 x 64 and 64 x 64 with biases; 64 x 3 and its bias; 64 x 1, whose bias is frozen
    assert [p.numel() for p in flat.parameters] == [3, 320, 64, 4096, 64, 320, 64, 4096, 64, 192, 3, 64]
    # 3 is padded to 16, twice
    assert flat.zeros().numel() == 9376
    tensors = [th.randn_like(parameter) for parameter in flat.parameters]
    one = flat.concatenate(tensors)
    views = flat.views(one)
    for view, tensor in zip(views, tensors, strict=True):
        assert th.equal(view, tensor)
        assert (view.data_ptr() - one.data_ptr()) % (4 * ALIGNMENT) == 0
    # Nothing but the parameters
    assert one.square().sum().item() == pytest.approx(sum(tensor.square().sum().item() for tensor in tensors), rel=1e-5)
    # Views: what is written into the flat tensor is seen
    one.zero_()
    assert not any(view.any() for view in views)
    # The first layers, whose 64 rows fill vectors and whose 5 columns do not
    transposed = [view for view in views if not view.is_contiguous()]
    assert [tuple(view.shape) for view in transposed] == ([(64, 5), (64, 5)] if transpose else [])


@pytest.mark.parametrize(
    ("n_rows", "n_columns", "expected"), [(64, 5, True), (64, 64, False), (5, 64, False), (5, 3, False), (16, 17, True)]
)
def test_is_quicker_transposed(n_rows, n_columns, expected):
    assert is_quicker_transposed(n_rows, n_columns) == expected


def two_groups(policy):
    parameters = list(policy.parameters())
    policy.optimizer = th.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:]}])


def scheduled(policy):
    policy.scheduler = th.optim.lr_scheduler.ConstantLR(policy.optimizer)


def step_of_all_and_of_one(policy):
    for parameters in (policy.parameters(), [policy.log_std]):
        policy.optimizer.zero_grad()
        for parameter in parameters:
            parameter.grad = th.ones_like(parameter)
        policy.optimizer.step()


CHANGES = {
    "only torch.optim.Adam is supported": lambda policy: setattr(policy, "optimizer", th.optim.SGD(policy.parameters())),
    "several parameter groups": two_groups,
    "amsgrad=True": lambda policy: setattr(policy, "optimizer", th.optim.Adam(policy.parameters(), amsgrad=True)),
    "step has hooks": lambda policy: policy.optimizer.register_step_pre_hook(lambda *_: None),
    "step has been replaced": scheduled,
    "does not train exactly the policy's parameters": lambda policy: setattr(policy, "more", th.nn.Linear(1, 1)),
    "more steps on some parameters than on others": step_of_all_and_of_one,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_not_plain_adam(reason):
    policy = make_policy()
    assert not_plain_adam(policy) is None
    CHANGES[reason](policy)
    assert reason in not_plain_adam(policy)


def test_hooks_for_all_optimizers():
    handle = register_optimizer_step_post_hook(lambda *_: None)
    try:
        assert "have hooks" in not_plain_adam(make_policy())
    finally:
        handle.remove()
