import pytest
from support import InEachRollout, InEachStep, make_model, space_env

from sb3_ppo_variants import AnnealLogStd


def values(model, total_timesteps, callback, **kwargs):
    """log_std in each rollout and at the end of each."""
    seen = []
    keep = [InEachRollout(lambda model: seen.append(model.policy.log_std.detach().clone()), at_end=end) for end in (0, 1)]
    model.learn(total_timesteps, [callback, *keep], **kwargs)
    return seen


def test_log_std_goes_down_linearly_and_is_not_learned():
    model = make_model()
    seen = values(model, 4 * 52, AnnealLogStd())
    # From -0.7 to -1.6 by a quarter of 0.9 in each of four rollouts, and no change within one, nor in an update
    expected = [-0.7, -0.7, -0.925, -0.925, -1.15, -1.15, -1.375, -1.375]
    assert [log_std.tolist() for log_std in seen] == [pytest.approx([value] * 3) for value in expected]
    # The update has not learned it
    assert model.policy.log_std.tolist() == pytest.approx([-1.375] * 3)
    assert model.logger.name_to_value["train/std"] == pytest.approx(0.2528396)
    assert model.policy.log_std not in model.policy.optimizer.state
    # The other parameters are learned
    assert model.policy.optimizer.state[model.policy.value_net.bias]["step"] == 4 * 4


def test_log_std_goes_on_or_starts_anew_in_the_next_training():
    model = make_model()
    # 3 rollouts of 52: 58 and 6 of 110 timesteps remain, and the last value is not exceeded
    seen = values(model, 110, AnnealLogStd(0.0, -1.1))
    assert [log_std[0].item() for log_std in seen[::2]] == pytest.approx([0.0, -0.52, -1.04])
    # 156 of 312 timesteps remain
    seen = values(model, 156, AnnealLogStd(0.0, -1.0), reset_num_timesteps=False)
    assert seen[0].tolist() == pytest.approx([-0.5] * 3)
    assert values(model, 104, AnnealLogStd(0.0, -1.0))[0].tolist() == [0.0] * 3


@pytest.mark.parametrize("action", ["discrete", "multibinary"])
def test_policies_without_a_standard_deviation(action):
    with pytest.raises(ValueError, match="AnnealLogStd needs a policy with Gaussian actions"):
        make_model(env=space_env("box", action)()).learn(52, AnnealLogStd())


@pytest.mark.parametrize("is_learned", [True, False])
@pytest.mark.parametrize("where", ["rollout", "update"])
def test_interrupted_training_leaves_log_std_as_it_was(where, is_learned, monkeypatch):
    def interrupt(model=None):
        raise KeyboardInterrupt

    model = make_model(compile=False)
    model.policy.log_std.requires_grad_(is_learned)
    callbacks = [AnnealLogStd(), *([InEachStep(interrupt)] if where == "rollout" else [])]
    with monkeypatch.context() as patch:
        patch.setattr(model.policy, "set_training_mode", lambda mode: mode and interrupt())
        with pytest.raises(KeyboardInterrupt):
            model.learn(104, callbacks)
    assert model.policy.log_std.requires_grad == is_learned
    model.learn(52, AnnealLogStd())
    assert model.policy.log_std.requires_grad == is_learned
