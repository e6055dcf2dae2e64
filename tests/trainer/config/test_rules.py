"""Which settings go together."""

import pytest

from dfpo.config import ConfigError, build_config
from dfpo.config.rules import only_read


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "ppo", "critic.coupling": "shared_noise"},
         ["critic.coupling", "shared_noise", "scalar does not read it", "only value_flow",
          "critic.heads"]),
        ({"algorithm": "grpo", "critic.width": 32}, ["critic.width", "none does not read it"]),
        ({"algorithm": "grpo", "target.winsorise": 0.5}, ["group does not read it", "gae, rank"]),
        ({"policy.beta": 3.0}, ["policy.beta", "clip does not read it", "trajectory_balance"]),
        ({"algorithm": "flowrl", "policy.kl_coef": 0.1}, ["trajectory_balance does not read it"]),
        ({"algorithm": "ppo", "coef.quantile": 0.5}, ["coef.quantile", "value_flow, quantile"]),
    ],
)  # fmt: skip
def test_settings_that_the_chosen_parts_do_not_read_are_refused(settings, words):
    with pytest.raises(ConfigError) as error:
        build_config(settings)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_shared_settings_hold_for_those_who_read_them():
    shared = {"critic.num_quantiles": 16, "policy.clip": 0.1, "steps": 3}
    assert only_read(shared, {"algorithm": "dfpo"}) == shared
    assert only_read(shared, {"algorithm": "grpo"}) == {"policy.clip": 0.1, "steps": 3}
    assert only_read(shared, {"algorithm": "dvpo", "critic.kind": "scalar"}) == {
        "policy.clip": 0.1, "steps": 3,
    }  # fmt: skip
