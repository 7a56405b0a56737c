"""A compiled minibatch step makes the numbers of the reference path, which is SB3's PPO."""

import numpy as np
import pytest
import torch as th
from compiled_support import Update, assert_steps_agree_in_float64, needs_new_torch, reference_and_compiled, trained
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecTransposeImage, is_vecenv_wrapped
from support import (
    ACTION_SPACES,
    POLICIES,
    BatchNormExtractor,
    DropoutExtractor,
    LinearExtractor,
    OwnPolicy,
    SpaceEnv,
    make_model,
    space_env,
    train,
    with_extractor,
)

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen
from sb3_ppo_variants.compiled.support import CompilationError
from sb3_ppo_variants.kinds import kind_of
from sb3_ppo_variants.loss import APPROX_KL
from sb3_ppo_variants.objectives import policy_gradient
from sb3_ppo_variants.rollout import Rollout

pytestmark = [
    needs_new_torch,
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of"),
    # Updates are made here of policies that have changed since the rollout
    pytest.mark.filterwarnings("ignore:The log probabilities of the actions in the rollout"),
]

ALGORITHMS = {
    "clip": (PPOClip, {"clip_range": 0.05}),
    "fixed kl": (PPOFixedKL, {"kl_coef": 3.0}),
    "adaptive kl with clipping": (PPOKLPen, {"clip_range": 0.05, "normalize_advantage": "batch"}),
}


@pytest.mark.parametrize(
    ("observation", "action", "algorithm"),
    [
        *(("box", "box", algorithm) for algorithm in ALGORITHMS),
        ("discrete", "discrete", "fixed kl"),
        ("image", "multidiscrete", "adaptive kl with clipping"),
        ("dict", "multibinary", "fixed kl"),
        ("parts", "multidiscrete", "clip"),
    ],
)
def test_spaces(algorithm, action, observation):
    cls, kwargs = ALGORITHMS[algorithm]
    model = trained(cls, POLICIES[observation], space_env(observation, action), batch_size=13, ent_coef=0.01, **kwargs)
    assert_steps_agree_in_float64(model)


SETTINGS = {
    "value clipping": {"clip_range_vf": 0.1},
    "neither clipping of the gradient nor normalization": {"max_grad_norm": None, "normalize_advantage": False},
    "squashed sde": {"use_sde": True, "policy_kwargs": {"squash_output": True, "use_expln": True, "full_std": False}},
    "separate extractors": {"policy_kwargs": {"share_features_extractor": False, "activation_fn": th.nn.ReLU}},
    "dropout and batch norm": with_extractor(DropoutExtractor),
    "adam": {"policy_kwargs": {"optimizer_kwargs": {"betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.01}}},
    # And the four samples that are left over in an epoch, which do not
    "batches that fill vectors": {"batch_size": 16},
    "frozen parameters": {"change": lambda model: model.policy.log_std.requires_grad_(False)},
    "evaluate_actions of its own": {"policy": OwnPolicy, "cls": PPOFixedKL},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting):
    kwargs = {"cls": PPOClip, "policy": "MlpPolicy", "batch_size": 13, **SETTINGS[setting]}
    assert_steps_agree_in_float64(trained(kwargs.pop("cls"), kwargs.pop("policy"), **kwargs))


# Channels come last, as in most environments
IMAGE, VECTOR = spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Box(-1, 1, (5,))
IN_PROCESSES = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}


@pytest.mark.parametrize(("policy", "space"), [("CnnPolicy", IMAGE), ("MlpPolicy", VECTOR)])
def test_vectorized_environments(policy, space):
    def make_env():
        env = make_vec_env(lambda: SpaceEnv(space, ACTION_SPACES["discrete"]), 2, **IN_PROCESSES)
        return VecFrameStack(env, 3)

    model, rows = train(PPOKLPen, policy, make_env, n_updates=2, compile=True)
    assert is_vecenv_wrapped(model.env, VecTransposeImage) == (space is IMAGE)
    assert model._uses_compiled
    assert rows[-1]["train/kl"] > 0
    assert_steps_agree_in_float64(model)


def test_gradient_whose_norm_overflows_is_left_alone_without_clipping():
    # Squares of 1e26 do not fit into a float32: Adam stands still where the gradient is so large, and goes on elsewhere
    for compiles in (True, False):
        model = make_model(max_grad_norm=None, vf_coef=1e26, compile=compiles).learn(52)
        before = make_model().policy
        assert th.equal(model.policy.value_net.weight, before.value_net.weight)
        assert not th.equal(model.policy.action_net.weight, before.action_net.weight)


def test_early_stop_leaves_out_the_step_that_exceeds_the_limit():
    model = trained(PPOClip, batch_size=15, target_kl=7e-3)
    reference, compiled = reference_and_compiled(model)
    n_steps = len(reference.rows)
    assert 1 < n_steps < 12
    assert n_steps == len(compiled.rows)
    assert reference.off(compiled) < 1e-5
    assert reference.n_epochs == compiled.n_epochs == 1 + (n_steps - 1) // 4
    assert reference.optimizer["state"][0]["step"] == compiled.optimizer["state"][0]["step"]
    # 1.5 times the target; there is no gradient of the step that is left out
    assert (compiled.rows[:-1, APPROX_KL] <= 1.05e-2).all()
    assert compiled.rows[-1, APPROX_KL] > 1.05e-2
    assert compiled.rows[:, -1].isnan().tolist() == reference.rows[:, -1].isnan().tolist() == [False] * (n_steps - 1) + [True]
    # An update that ends before its first step leaves the optimizer as it was
    model.policy.optimizer.state.clear()
    model.target_kl = 1e-9
    compiled = Update(model, True)
    assert len(compiled.rows) == 1
    assert compiled.optimizer["state"] == {}


@pytest.mark.parametrize("compiles", [True, False])
def test_early_stop_is_said_and_its_minibatch_counts_for_batch_normalization(compiles, capsys):
    model = make_model(target_kl=1e-9, verbose=1, compile=compiles, **with_extractor(BatchNormExtractor)).learn(52)
    assert "Update ended in epoch 0: approximate KL" in capsys.readouterr().out
    norm = model.policy.features_extractor.layers[1]
    # At the first step the approximate KL is 0, if rounded well: that of the second one is not
    assert norm.num_batches_tracked in (1, 2)
    assert norm.running_mean.abs().max() > 0


class PolicyGradient(PPOClip):
    """Does not depend on the ratio."""

    objective = staticmethod(policy_gradient)


def test_approximate_kl_that_is_nan_ends_no_update():
    model = trained(PolicyGradient, target_kl=0.1)
    model.rollout_buffer.log_probs[:] = -np.inf
    reference, compiled = reference_and_compiled(model)
    for update in (reference, compiled):
        assert update.rows[:, APPROX_KL].isnan().all()
        assert (update.parameters["action_net.weight"] - model.policy.action_net.weight).abs().max() > 1e-3
    assert reference.off(compiled) < 1e-5


def test_moments_lie_in_memory_as_torch_leaves_them_and_gradients_are_gone():
    model = make_model().learn(52)
    assert all(parameter.grad is not None for parameter in model.policy.parameters())
    model.compile = True
    model.learn(52)
    assert model._uses_compiled
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    for state in model.policy.optimizer.state.values():
        assert state["exp_avg"].is_contiguous()
        assert state["exp_avg_sq"].is_contiguous()


def test_rollout_that_lies_otherwise_in_memory(interpreted):
    model = trained(PPOClip)
    data = Rollout(model.rollout_buffer, kind_of(model.policy)).data
    observations = data.observations
    for changed in (observations, observations.t().contiguous().t()):
        reference, compiled = reference_and_compiled(model, data=data._replace(observations=changed))
        assert reference.off(compiled) < 1e-5
    # A compiled function reads memory as it was laid out
    assert len(interpreted) == 2


class Spare(LinearExtractor):
    """Has a layer that is used at will."""

    uses_spare = False

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.spare = th.nn.Linear(8, 8)

    def forward(self, observations):
        features = super().forward(observations)
        return features + self.spare(features) if self.uses_spare else features


def test_parameters_that_the_loss_does_not_depend_on():
    def train_spare(compile_, **kwargs):
        return make_model(compile=compile_, **with_extractor(Spare, **kwargs)).learn(104)

    # Neither moments nor decay, as torch's Adam leaves them alone
    model, reference = (train_spare(compile_) for compile_ in (True, False))
    assert model._uses_compiled
    extractors = [m.policy.features_extractor for m in (model, reference)]
    assert th.equal(*(extractor.spare.weight for extractor in extractors))
    assert not th.equal(*(extractor.layer.weight for extractor in extractors))
    states = [m.policy.optimizer.state_dict()["state"] for m in (model, reference)]
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) < len(list(model.policy.parameters()))
    # Used from now on, they would have their steps counted from 1
    extractors[0].uses_spare = True
    with pytest.raises(CompilationError, match=r"on policy\.features_extractor\.spare\.\w+ for the first time, whose steps"):
        model.learn(52)
    # The compiled step would decay them
    with pytest.raises(CompilationError, match=r"does not depend on policy\.features_extractor\.spare\.\w+, which Adam must"):
        train_spare(True, optimizer_kwargs={"weight_decay": 0.1})
