"""``dfpo merge``: a LoRA adapter and its base as one plain model."""

from __future__ import annotations

from pathlib import Path

from dfpo.config import ConfigError
from dfpo.rollout.adapters import is_adapter
from dfpo.rollout.policy import load_policy
from dfpo.run.eval_command import policy_of


def merge(target: Path, output: Path) -> None:
    """Writes the model of a run or of an adapter directory into ``output``, which must be new."""
    if (target / "config.yaml").is_file():
        target = policy_of(target)
    if not is_adapter(target):
        raise ConfigError(f"target: {target} holds no adapter_config.json, must be a LoRA adapter")
    if output.exists():
        raise ConfigError(f"output: {output} exists already, must be a new directory")
    model, tokenizer = load_policy(target)

    try:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    except OSError as error:
        raise ConfigError(f"output: cannot write {output}: {error.strerror}") from None
