"""LoRA by peft: one frozen base model, and small adapters of their own for policy and critic.

A ``View`` is the base with one adapter on, or with none, and behaves as the model would: the
policy, the reference (no adapter, or the one that training began from), the critic's trunk. Which
is on changes at the call, so a view's gradients must be asked for before another view is called.

Source: Hu et al. 2021, "LoRA", arXiv 2106.09685.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config, ConfigError
from dfpo.config.untrusted import TimeLimit, time_limit

POLICY, CRITIC, FIRST = "policy", "critic", "first"
TRAINED, ADAPTERS = (POLICY, CRITIC), (POLICY, CRITIC, FIRST)
# Names of layers against what an adapter's own expression says; the layers are made in it too.
MATCHING_SECONDS = 300.0
WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."  # what peft calls them


class View:
    """A model with the named adapter on, with none of them for None."""

    def __init__(
        self, root: PreTrainedModel, adapter: str | None, module: nn.Module | None = None
    ) -> None:
        """``module`` is the part of ``root`` that is looked at, by default all of it."""
        self.root, self.adapter, self.module = root, adapter, module or root

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.activate()
        return self.module(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    @property
    def base_model(self) -> View:
        """The trunk, without the language head."""
        return View(self.root, self.adapter, self.root.base_model)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        self.activate()
        return self.module.generate(*arguments, **options)

    def activate(self) -> None:
        """Turns this view's adapter on, whichever was."""
        if getattr(self.root, "_active_view", "unset") == self.adapter:
            return
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in self.root.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.enable_adapters(self.adapter is not None)
                if self.adapter is not None:
                    layer.set_adapter(self.adapter)

        # peft trains the adapter that is on alone; here each that is trained always is.
        for name in ADAPTERS:
            for parameter in adapter_weights(self.root, name).values():
                parameter.requires_grad_(name in TRAINED)

        self.root._active_view = self.adapter

    def __repr__(self) -> str:
        return f"{type(self.root).__name__} with adapter {self.adapter}"

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained: the adapter alone."""
        return iter(self.state_dict().values())

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.adapter is None else adapter_weights(self.root, self.adapter)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.state_dict().items():
            parameter.data.copy_(state[name])

    def save_pretrained(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """A directory that peft reads."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {f"{PREFIX}{k}": v.contiguous() for k, v in (state_dict or {}).items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        self.root._lora_config.save_pretrained(folder)


def root_of(model: PreTrainedModel | View) -> PreTrainedModel:
    """The model itself behind a view of it."""
    return model.root if isinstance(model, View) else model


def adapter_weights(model: PreTrainedModel, adapter: str) -> dict[str, nn.Parameter]:
    """The weights of one adapter, by a name that is the same for all of them."""
    mark = f".{adapter}."
    return {
        name.replace(mark, "."): parameter
        for name, parameter in model.named_parameters()
        if mark in name and "lora_" in name
    }


def add_adapters(model: PreTrainedModel, config: Config, has_critic: bool) -> tuple[View, View]:
    """The policy, and the policy before training. ``model`` was read without its adapter where
    ``config.model`` is the directory of one, which then is where both begin."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = config.lora
    began = config.model is not None and is_adapter(Path(config.model))
    if began:
        read_settings(Path(config.model))
        lora = LoraConfig.from_pretrained(config.model)
        lora.inference_mode = False
    else:
        targets = list(settings.targets)
        lora = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha or 2 * settings.rank,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            task_type="CAUSAL_LM",
        )

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for name in (POLICY, *([FIRST] if began else []), *([CRITIC] if has_critic else [])):
            try:
                with time_limit(MATCHING_SECONDS):
                    inject_adapter_in_model(lora, model, adapter_name=name)
            except (ValueError, TypeError, re.error, TimeLimit) as error:
                reason = " ".join(str(error).split()) or f"takes more than {MATCHING_SECONDS:g} s"
                raise ConfigError(f"lora.targets: {reason}") from None

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    # New layers are in training mode, in which an adapter with dropout draws at every call.
    model.eval()

    model._lora_config = lora
    views = View(model, POLICY), View(model, FIRST if began else None)
    if began:
        state = read_adapter(Path(config.model))
        for view in views:
            check_fit(view.state_dict(), state, Path(config.model))
            view.load_state_dict(state)

    return views


def keep_frozen_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Casts the weights that nobody trains, which are the base's, to ``dtype``. What multiplies in
    bfloat16 then takes half the memory, and is not cast anew at each call."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapters = {id(weight) for name in ADAPTERS for weight in adapter_weights(model, name).values()}
    for parameter in model.parameters():
        if id(parameter) not in adapters:
            parameter.data = parameter.data.to(dtype)

    for layer in model.base_model.modules():
        if isinstance(layer, BaseTunerLayer):
            # Autocast makes of inputs what is multiplied in; peft would first make them float32.
            layer.cast_input_dtype_enabled = False


def name_base(policy: View, model: Path) -> None:
    """Writes into the adapter which model it is for: the base of ``model`` where that is one."""
    base = base_of(model) if is_adapter(model) else str(model.absolute())
    policy.root._lora_config.base_model_name_or_path = base


# What plain LoRA reads of adapter_config.json, and what has no part in it. All else must be empty:
# peft acts on much more, and imports a module that one setting names.
LORA_KEYS = (
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "target_modules", "task_type", "use_rslora",
)  # fmt: skip
PLAIN = {"peft_type": ("LORA",), "bias": ("none", None)}
PLAIN["init_lora_weights"] = (True, False, None, "gaussian")  # others change the base too


def read_settings(path: Path) -> dict[str, Any]:
    """What adapter_config.json of a directory says, checked: it must be plain LoRA of the rank that
    its weights have. Raises ConfigError."""
    file = path / "adapter_config.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError("holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"model: cannot read {file}: {error}") from None

    for key, value in said.items():
        plain = key in LORA_KEYS or value in (None, False, {}, [])
        if not plain or (key in PLAIN and value not in PLAIN[key]):
            raise ConfigError(
                f"model: {path} is an adapter of another kind, must be plain LoRA; {key} is "
                f"{value!r:.60}"
            )

    ranks = [said.get("r"), *(said.get("rank_pattern") or {}).values()]
    most = max((x.shape[0] for k, x in read_adapter(path).items() if "lora_A" in k), default=0)
    if not all(type(rank) is int and 1 <= rank <= most for rank in ranks):
        raise ConfigError(f"model: {file} says r = {ranks[0]!r}, its weights are of rank {most}")
    alpha = said.get("lora_alpha")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise ConfigError(f"model: {file} says lora_alpha = {alpha!r}, must be a finite number")

    return said


def is_adapter(path: Path) -> bool:
    return (path / "adapter_config.json").is_file()


def check_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("lora.rank: needs peft, which is not installed: pip install 'dfpo[lora]'")


def base_of(path: Path) -> str:
    """The model that an adapter directory is for."""
    check_peft()
    base = read_settings(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base or not Path(base).exists():
        raise ConfigError(f"model: {path} is an adapter of {base!r}, which is not on this disk")
    if is_adapter(Path(base)):
        raise ConfigError(f"model: {path} is an adapter of an adapter, {base}: merge that first")
    return base


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """An adapter's weights by the names that ``adapter_weights`` gives them."""
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"model: cannot read {folder / WEIGHTS}: {error}") from None
    return {name.removeprefix(PREFIX): weight for name, weight in weights.items()}


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """``model`` with an adapter worked into its weights, and no trace of peft."""
    from peft import PeftModel

    try:
        with time_limit(MATCHING_SECONDS):
            whole = PeftModel.from_pretrained(model, str(adapter))
    except TimeLimit:
        raise ConfigError(
            f"model: {adapter} takes more than {MATCHING_SECONDS:g} seconds to match its "
            "target_modules"
        ) from None
    # peft raises many kinds of error for an adapter that is of another model.
    except Exception as error:  # noqa: BLE001
        raise ConfigError(f"model: {adapter} does not fit its base: {error!s:.300}") from None

    own = {name.removeprefix(PREFIX): w for name, w in adapter_weights(whole, "default").items()}
    check_fit(own, read_adapter(adapter), adapter)
    return whole.merge_and_unload()


def check_fit(own: dict[str, Tensor], there: dict[str, Tensor], path: Path) -> None:
    """What an adapter lacks would stay as it was drawn, without a word. Raises ConfigError."""
    for name in sorted(own.keys() ^ there.keys()):
        what = "lacks" if name in own else "holds, and its base has no place for,"
        raise ConfigError(f"model: {path} {what} {name}")
    for name, weight in own.items():
        if weight.shape != there[name].shape:
            raise ConfigError(
                f"model: {path} holds {name} as {list(there[name].shape)}, must be "
                f"{list(weight.shape)}"
            )
