"""LoRA by peft: one frozen base model, and small adapters of their own for policy and critic.

A ``View`` is the base with one adapter on, or with none, and behaves as the model would: the
policy, the reference (no adapter, or the one that training began from), the critic's trunk. Which
is on changes at the call, so a view's gradients must be asked for before another view is called.

Source: Hu et al. 2021, "LoRA", arXiv 2106.09685.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config, ConfigError

POLICY, CRITIC, FIRST = "policy", "critic", "first"
TRAINED = (POLICY, CRITIC)
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
        for name in (POLICY, CRITIC, FIRST):
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
        lora = LoraConfig.from_pretrained(config.model)
        check_kind(lora, config.model)
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
                inject_adapter_in_model(lora, model, adapter_name=name)
            except ValueError as error:
                reason = " ".join(str(error).split())
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
            view.load_state_dict(state)

    return views


def name_base(policy: View, model: Path) -> None:
    """Writes into the adapter which model it is for: the base of ``model`` where that is one."""
    base = base_of(model) if is_adapter(model) else str(model.absolute())
    policy.root._lora_config.base_model_name_or_path = base


def check_kind(lora: Any, path: str) -> None:
    if str(lora.peft_type.value) != "LORA" or lora.use_dora or lora.modules_to_save:
        raise ConfigError(f"model: {path} is an adapter of another kind, must be plain LoRA")


def is_adapter(path: Path) -> bool:
    return (path / "adapter_config.json").is_file()


def check_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("lora.rank: needs peft, which is not installed: pip install 'dfpo[lora]'")


def base_of(path: Path) -> str:
    """The model that an adapter directory is for."""
    check_peft()
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(str(path)).base_model_name_or_path
    if not base or not Path(base).exists():
        raise ConfigError(f"model: {path} is an adapter of {base!r}, which is not on this disk")
    return base


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """An adapter's weights by the names that ``adapter_weights`` gives them."""
    return {k.removeprefix(PREFIX): v for k, v in load_file(folder / WEIGHTS).items()}


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """``model`` with an adapter worked into its weights, and no trace of peft."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
