"""What a run finds out before it starts."""

import itertools
import math

import pytest

from dfpo.config import ConfigError, build_config
from dfpo.config.rules import value_range
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.run.setup import micro_tokens, sampled_tokens, set_up, usual_micro_tokens
from dfpo.run.train import train

SCALES = [(1e6, 1e6 + 1), (-1e6, 1e6), (0.0, 1e-3), (5.0, 5.0)]
# Every scale with the value flow, and every other algorithm with one; all of them take long.
QUICK = [("ppo", SCALES[1]), ("dfpo-rank", SCALES[3]), ("grpo", SCALES[0])]


@pytest.mark.parametrize(
    ("algorithm", "values"),
    [
        *(("dfpo", values) for values in SCALES),
        *QUICK,
        *(
            pytest.param(*cell, marks=pytest.mark.long)
            for cell in itertools.product(("ppo", "dfpo-rank", "grpo"), SCALES)
            if cell not in QUICK
        ),
    ],
)
def test_rewards_of_any_scale_give_numbers(tmp_path, algorithm, values):
    from dfpo.run.given import Given
    from dfpo.run.records import read_metrics

    def reward(completions, **_):
        return [values[len(text) % 2] for text in completions]

    given = Given(rewards=(reward,))
    own = {} if algorithm == "grpo" else {"critic.warmup_steps": 1}
    settings = {
        "algorithm": algorithm, "steps": 2, "rollout.prompts": 2, "rollout.samples": 2,
        "rollout.max_new_tokens": 24,
        "eval.prompts": 0, "eval.examples": 0, "plots": False, "device": "cpu",
        "runs_dir": str(tmp_path),
    }  # fmt: skip
    run = train(build_config(settings | own | given.settings()), given=given)
    for row in read_metrics(run):
        missing = [name for name, value in row.items() if value is None or math.isnan(value)]
        assert not missing, missing


def test_how_many_tokens_at_once():
    policy, _ = load_policy(SHIPPED_POLICY)
    assert micro_tokens(build_config({}), policy) == 65536
    assert micro_tokens(build_config({"micro_tokens": 7}), policy) == 7
    assert usual_micro_tokens(10**8, "cpu") == 1024 and usual_micro_tokens(10**8, "cuda") == 32768
    assert sampled_tokens(7, "cpu") == 112 and sampled_tokens(7, "cuda") == 7

    parts = set_up(build_config({"micro_tokens": 500, "device": "cpu", "eval.prompts": 1}), None)
    assert parts.sampler.micro_tokens == parts.first.micro_tokens == 8000


HIDING = "math:scale=100,offset=-50,normal=1;science:none;dialogue:none"


@pytest.mark.parametrize(
    ("settings", "low", "high", "clipped"),
    [
        ({"noise": "flip=.2"}, 0.0, 1.0, True),
        # Told of a third of the answers that the reward is -50 or 50, and of the others 0 or 1.
        ({"noise": HIDING}, -120.0, 80.0, False),
        ({"noise": HIDING, "reward.told_low": -60, "reward.told_high": 60}, -60.0, 60.0, True),
        ({"noise": HIDING, "reward.space": "cdf"}, 0.0, 1.0, True),
        ({"noise": HIDING, "reward.space": "asinh"}, -1.0, 1.0, False),
    ],
)
def test_a_range_that_noise_hides_is_measured_or_not_needed(settings, low, high, clipped):
    raw = {"device": "cpu", "eval.prompts": 1, "reward.space": "raw"}
    config = set_up(build_config(raw | settings), None).config
    found = value_range(config)
    if settings == {"noise": HIDING}:
        # 16 answers tell it: within a half of what all would.
        assert found == (pytest.approx(low, rel=0.5), pytest.approx(high, rel=0.5))
        assert (config.reward.told_low, config.reward.told_high) == found
    else:
        assert found == (low, high)
    assert config.critic.clip_returns is clipped
    # What a flip mirrors in stays the verifier's own range.
    assert (config.reward.low, config.reward.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reward.told_low": 0}, "reward.told_high: is not given, but reward.told_low is"),
        ({"reward.told_low": 1, "reward.told_high": 0}, "must be below reward.told_high = 0"),
        ({"reward.told_low": 0, "reward.told_high": 5}, "which none does not; give reward.low"),
    ],
)
def test_a_told_range_goes_with_a_noise_that_leaves_the_reward_s_own(settings, said):
    with pytest.raises(ConfigError, match=said):
        build_config(settings)
