"""``dfpo merge``: what it refuses. What it writes is compared with peft in test_adapters.py."""

import pytest

from dfpo.config import ConfigError
from dfpo.rollout.policy import SHIPPED_POLICY
from dfpo.run.merge import merge


def test_only_an_adapter_is_merged_into_a_new_directory(tmp_path):
    with pytest.raises(ConfigError, match="target: .* holds no adapter_config.json, must be a"):
        merge(SHIPPED_POLICY, tmp_path / "new")
    assert not (tmp_path / "new").exists()

    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="output: .* exists already, must be a new directory"):
        merge(tmp_path / "adapter", tmp_path)
