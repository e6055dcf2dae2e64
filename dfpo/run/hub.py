"""A run's policy on a model hub, by huggingface_hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import HfApi, get_token

from dfpo.config import Config, ConfigError
from dfpo.run.stop import RunError

REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_hub(config: Config) -> None:
    """Before any work: a name that can be one, and a token to push with. Raises ConfigError."""
    name = config.push_to_hub
    if name is None:
        return
    if not REPOSITORY.fullmatch(name):
        raise ConfigError(f"push_to_hub: is {name!r}, must be NAME or OWNER/NAME")
    if get_token() is None:
        raise ConfigError(
            "push_to_hub: there is no token to push with; `hf auth login`, or set HF_TOKEN"
        )


def push(run: Path, repository: str) -> str:
    """Uploads the run's policy with its card, into a repository that is made where there is none:
    private, since a private one can be published and not the other way round. Returns where it is.

    Raises RunError: by then the run itself is complete.
    """
    # Asked for now: huggingface_hub reads it when it is imported.
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        made = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=made.repo_id, folder_path=run / "policy", commit_message=f"dfpo: {run.name}"
        )
    # The hub, the network and huggingface_hub's own checks fail in many ways.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(
            f"push_to_hub: {reason}; the run is complete, push it by: "
            f"hf upload {repository} {run / 'policy'}"
        ) from error
    return str(made)
