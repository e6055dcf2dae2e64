"""Reward models: sequence classifiers of transformers, as reward functions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dfpo.config import ConfigError
from dfpo.config.untrusted import read_pretrained

REWARD_MODEL_BATCH = 16


class RewardModel:
    """A transformers sequence-classification model with one output, as a reward function: its
    logit on prompt and answer together, chat prompts through the model's own template. What is
    longer than the tokenizer's limit is cut at its end, counted and, once, told."""

    def __init__(self, path: Path, device: torch.device) -> None:
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"reward: {path} holds no config.json, must be a sequence-classification model"
            )

        self.tokenizer = read_pretrained(
            AutoTokenizer, "reward", "a tokenizer", path, pretrained_model_name_or_path=path
        )
        self.model, report = read_pretrained(
            AutoModelForSequenceClassification, "reward", "a reward model", path,
            pretrained_model_name_or_path=path,
            use_safetensors=True, output_loading_info=True, dtype=torch.float32,
        )  # fmt: skip

        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise ConfigError(
                f"reward: {path} lacks the weights {missing}, must be a sequence-classification "
                "model"
            )

        if self.model.config.num_labels != 1:
            raise ConfigError(
                f"reward: {path} has {self.model.config.num_labels} outputs, must have one"
            )

        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.eval().to(device)
        self.name, self.limit = path.name, self.tokenizer.model_max_length
        self.told = False

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        ids = [self._encode(p, c) for p, c in zip(prompts, completions, strict=True)]
        cut = sum(len(tokens) > self.limit for tokens in ids)
        if log_metric is not None:
            log_metric(f"{self.name}/cut", cut)
        if cut and not self.told:
            self._tell(cut, len(ids))

        scores: list[float] = []
        for start in range(0, len(ids), REWARD_MODEL_BATCH):
            # On the right, whatever the tokenizer's side: positions then count from the first
            # token, and padding comes after all that is scored.
            batch = self.tokenizer.pad(
                {"input_ids": [self._cut(x) for x in ids[start : start + REWARD_MODEL_BATCH]]},
                padding_side="right", return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            # Token types are not made, and every model has a default for them.
            logits = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            scores += logits[:, 0].float().tolist()

        return scores

    def _encode(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt + completion)["input_ids"]
        text = self.tokenizer.apply_chat_template(prompt + completion, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _cut(self, tokens: list[int]) -> list[int]:
        """At most as many as the model reads; the last one, which may close the text, stays."""
        return tokens if len(tokens) <= self.limit else [*tokens[: self.limit - 1], tokens[-1]]

    def _tell(self, cut: int, count: int) -> None:
        """Once: two answers whose difference is cut off have one score."""
        self.told = True
        tqdm.write(
            f"reward: {self.name} reads at most {self.limit} tokens, {cut} of {count} prompts with "
            "their answers are longer and cut there; the metrics count them as "
            f"reward/log/{self.name}/cut",
            file=sys.stderr,
        )
