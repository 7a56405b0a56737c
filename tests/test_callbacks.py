import pytest
import torch as th
from support import InEachRollout, InEachStep, space_env

from sb3_ppo_variants import AnnealLogStd, PPOClip

KWARGS = {"n_steps": 26, "batch_size": 13, "n_epochs": 2, "seed": 0, "compile": False}


def values(model, total_timesteps, callback, **kwargs):
    """log_std in each rollout and at the end of each."""
    seen = []
    keep = [InEachRollout(lambda model: seen.append(model.policy.log_std.detach().clone()), at_end=end) for end in (0, 1)]
    model.learn(total_timesteps, [callback, *keep], **kwargs)
    return seen


def test_log_std_goes_down_linearly_and_is_not_learned():
    model = PPOClip("MlpPolicy", space_env("box", "box")(), **KWARGS)
    seen = values(model, 4 * 52, AnnealLogStd())
    # From -0.7 to -1.6 by a quarter of 0.9 in each of four rollouts, and no change within one, nor in an update
    expected = [-0.7, -0.7, -0.925, -0.925, -1.15, -1.15, -1.375, -1.375]
    assert [log_std.tolist() for log_std in seen] == [pytest.approx([value] * 3) for value in expected]
    # The update has not learned it
    assert model.policy.log_std.tolist() == pytest.approx([-1.375] * 3)
    assert model.logger.name_to_value["train/std"] == pytest.approx(0.2528396)
    assert model.policy.log_std not in model.policy.optimizer.state
    # The other parameters are learned, and so is log_std again by a training without the callback
    assert model.policy.optimizer.state[model.policy.value_net.bias]["step"] == 4 * 8
    assert model.policy.log_std.requires_grad


def test_log_std_goes_on_in_the_next_training():
    model = PPOClip("MlpPolicy", space_env("box", "box")(), **KWARGS)
    values(model, 52, AnnealLogStd(0.0, -1.0))
    seen = values(model, 52, AnnealLogStd(0.0, -1.0), reset_num_timesteps=False)
    # Half of 104 timesteps remain
    assert seen[0].tolist() == pytest.approx([-0.5] * 3)


def test_log_std_starts_anew_with_the_next_training():
    model = PPOClip("MlpPolicy", space_env("box", "box")(), **KWARGS)
    values(model, 52, AnnealLogStd(0.0, -1.0))
    assert values(model, 104, AnnealLogStd(0.0, -1.0))[0].tolist() == [0.0] * 3


def test_training_beyond_the_end_stays_at_the_last_value():
    model = PPOClip("MlpPolicy", space_env("box", "box")(), **KWARGS)
    # 3 rollouts of 52
    seen = values(model, 110, AnnealLogStd(0.0, -1.1))
    # 58 and 6 of 110 timesteps remain
    assert [log_std[0].item() for log_std in seen[::2]] == pytest.approx([0.0, -0.52, -1.04])


@pytest.mark.parametrize("action", ["discrete", "multibinary"])
def test_policies_without_a_standard_deviation(action):
    model = PPOClip("MlpPolicy", space_env("box", action)(), **KWARGS)
    with pytest.raises(ValueError, match="AnnealLogStd needs a policy with Gaussian actions"):
        model.learn(52, AnnealLogStd())


def test_gsde():
    model = PPOClip("MlpPolicy", space_env("box", "box")(), use_sde=True, **KWARGS)
    seen = values(model, 104, AnnealLogStd())
    # A matrix of latent features by actions
    assert seen[0].shape == (64, 3)
    assert th.unique(seen[2]).tolist() == pytest.approx([-1.15])


@pytest.mark.parametrize("is_learned", [True, False])
def test_interrupted_training_leaves_log_std_as_it_was(is_learned):
    def interrupt(model):
        if model.num_timesteps > 52:
            raise KeyboardInterrupt

    model = PPOClip("MlpPolicy", space_env("box", "box")(), **KWARGS)
    model.policy.log_std.requires_grad_(is_learned)
    with pytest.raises(KeyboardInterrupt):
        model.learn(104, [AnnealLogStd(), InEachStep(interrupt)])
    assert model.policy.log_std.requires_grad == is_learned
    model.learn(52, AnnealLogStd())
    assert model.policy.log_std.requires_grad == is_learned
