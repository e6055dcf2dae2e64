"""Checkpoints: everything that a run needs to go on as if it had never stopped.

``runs/NAME/checkpoints/step-000012`` holds the state after 12 steps: ``policy/`` (a transformers
directory), ``critic.safetensors``, where rewards are mapped ``told_rewards.safetensors``, and
``state.pt`` (optimisers, random states, what the closing plots need), which loads without
unpickling code, and ``manifest.json``, which knows each of them by its digest. A checkpoint is
written beside and renamed. The last ``checkpoint_keep`` stay; one that is found broken is set
aside, and the one before it used. Prompts, sampling and noise are functions of (seed, step), so the
step is their position.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfpo.config import ConfigError
from dfpo.rewards.spaces import RewardSpace
from dfpo.rollout.adapters import is_adapter, read_adapter
from dfpo.rollout.policy import load_policy
from dfpo.rollout.processes import Processes
from dfpo.rollout.sharding import gather_state, gather_weights, load_optimizer, load_weights
from dfpo.run.manifest import problem_of, write_manifest
from dfpo.run.progress import Progress
from dfpo.run.records import RUN_ID
from dfpo.run.setup import Setup

PARTIAL = ".partial"
TOLD_FILE, TOLD = "told_rewards.safetensors", "told/"  # of maps of rewards; before its names
Models = tuple[dict[str, Tensor], dict[str, Tensor]]  # state of the policy, of the critic


class WriteError(OSError):
    """A checkpoint could not be written; the one before it is still there."""


def save(setup: Setup, progress: Progress) -> None:
    """Writes the state after ``progress.step`` steps, then removes what it replaces. Of several
    processes, which all hold the same or a share of it, the first one writes."""
    state = {
        "policy_optimizer": gather_state(setup.policy_optimizer),
        "critic_optimizer": setup.critic_optimizer and gather_state(setup.critic_optimizer),
        "random": random_state(setup.generator),
        "progress": progress.state(),
    }
    models = gather_models(setup)
    Processes.here().from_lead(lambda: _write(setup, progress, state, models))


def _write(setup: Setup, progress: Progress, state: dict[str, Any], models: Models) -> None:
    folder = setup.run / "checkpoints"
    partial, whole = folder / PARTIAL, folder / f"step-{progress.step:06d}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_models(partial, setup, models)
        torch.save(state, partial / "state.pt")
        write_manifest(partial, run_id(setup.run), progress.step)
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        if whole.exists():  # of a run that went back to an older one
            shutil.rmtree(whole)
        os.replace(partial, whole)
    # torch and safetensors report a full disk as errors of their own.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise WriteError(f"checkpoint {whole}: {' '.join(str(error).split())}") from error

    _sync(folder)
    for old in _by_step(setup.run)[setup.config.checkpoint_keep :]:
        shutil.rmtree(old)


def restore(setup: Setup) -> Progress | None:
    """Brings models, optimisers and random states to the run's last whole checkpoint; None where
    there is none yet. Those that are broken get another name, and a line each."""
    folder = Processes.here().from_lead(lambda: _last_whole(setup.run))
    if folder is None:
        return None
    state = load_state(folder)
    load_weights(setup.policy, read_weights(folder / "policy"))
    load_critic(setup.critic, folder / "critic.safetensors")
    load_told(setup.space, folder, setup.policy.device)
    load_optimizer(setup.policy_optimizer, state["policy_optimizer"])
    if setup.critic_optimizer is not None:
        load_optimizer(setup.critic_optimizer, state["critic_optimizer"])
    set_random_state(state["random"], setup.generator)

    return Progress.from_state(state["progress"])


def gather_models(setup: Setup) -> Models:
    """The weights of policy and critic, whole. All processes take part."""
    return gather_weights(setup.policy), gather_weights(setup.critic)


def write_models(folder: Path, setup: Setup, models: Models) -> None:
    policy, critic = models
    setup.policy.save_pretrained(folder / "policy", state_dict=policy)
    setup.tokenizer.save_pretrained(folder / "policy")
    save_file({k: v.contiguous() for k, v in critic.items()}, folder / "critic.safetensors")
    if not setup.space.is_raw:
        save_file({f"{TOLD}{k}": v for k, v in setup.space.told.items()}, folder / TOLD_FILE)


def newest(run: Path) -> Path | None:
    """The last whole checkpoint of a run, None where there is none yet. Changes nothing."""
    for folder in _by_step(run):
        if problem_of(folder, run_id(run), _step_of(folder)) is None:
            return folder
    return None


def run_id(run: Path) -> str:
    """What tells a run's checkpoints from another's, wherever they are moved: written with it."""
    try:
        return (run / RUN_ID).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _last_whole(run: Path) -> Path | None:
    folders, broken = _by_step(run), []
    for folder in folders:
        problem = problem_of(folder, run_id(run), _step_of(folder))
        if problem is None:
            return folder
        broken.append(f"{folder.name} ({problem})")
        aside = folder.with_name(f"{folder.name}.broken-{time.time_ns():x}")
        os.replace(folder, aside)
        print(
            f"{folder}: the checkpoint is broken, {problem}; set aside as {aside.name}, the one "
            "before it is used",
            file=sys.stderr,
        )

    if broken:
        raise ConfigError(
            f"resume: {run} has no whole checkpoint left, of {', '.join(broken)}; start it anew"
        )

    return None


def _by_step(run: Path) -> list[Path]:
    """A run's checkpoints, the newest first, broken or not."""
    folders = [path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(folders, key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The policy's weights in a checkpoint, or its adapter's."""
    if is_adapter(folder):
        return read_adapter(folder)
    return load_policy(folder)[0].state_dict()


def load_critic(critic: nn.Module, path: Path) -> None:
    """The critic's weights; ConfigError where the file is broken or holds another critic's."""
    try:
        load_weights(critic, load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"resume: cannot read {path}: {reason}") from None


def load_told(space: RewardSpace, folder: Path, device: torch.device) -> None:
    """The told rewards that a space's maps are made from; ConfigError where they cannot be read."""
    if space.is_raw:
        return
    try:
        stored = load_file(folder / TOLD_FILE, device=str(device))
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"resume: cannot read {folder / TOLD_FILE}: {reason}") from None
    space.restore({name.removeprefix(TOLD): told for name, told in stored.items()})


def load_state(checkpoint: Path) -> dict[str, Any]:
    """``state.pt``; ConfigError where it cannot be read."""
    try:
        return torch.load(checkpoint / "state.pt", weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"resume: cannot read {checkpoint / 'state.pt'}: {reason}") from None


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """Our own generator and the global ones, which a reward function may draw from."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "generator": generator.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
    }


def set_random_state(state: dict[str, Any], generator: torch.Generator) -> None:
    generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


@contextmanager
def own_draws(generator: torch.Generator, seed: int) -> Iterator[None]:
    """Global random states start at ``seed`` inside and are as before afterwards: evaluations,
    which a resumed run may do again, are the same each time and leave training as it is."""
    state = random_state(generator)
    set_seed(seed)
    yield
    set_random_state(state, generator)


def _sync(path: Path) -> None:
    """To the disk itself, so that a power cut after the rename finds the content too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
