"""What a run is told: settings, presets, the words of noise and risk, and what its seed draws."""

from dfpo.config.algorithms import ALGORITHMS
from dfpo.config.build import build_config, load_yaml, stored_settings, to_yaml
from dfpo.config.errors import ConfigError
from dfpo.config.settings import Config

__all__ = [
    "ALGORITHMS", "Config", "ConfigError", "build_config", "load_yaml", "stored_settings",
    "to_yaml",
]  # fmt: skip
