"""The Python API: train, load, evaluate, and what a run is in Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dfpo.config import Config, ConfigError, build_config, stored_settings
from dfpo.config.build import flatten
from dfpo.config.rules import predicts
from dfpo.config.types import Estimate, Samples
from dfpo.method.critics import build_critic, estimate_values
from dfpo.rewards.spaces import RewardSpace
from dfpo.rollout.functions import RolloutFunction
from dfpo.rollout.policy import load_policy
from dfpo.rollout.tokens import encode
from dfpo.run import checkpoint
from dfpo.run.eval_command import evaluate_model, policy_of
from dfpo.run.evaluate import Scores, averages, score_table
from dfpo.run.given import Given, read_data, read_model, read_rewards, read_rollout
from dfpo.run.records import is_complete, read_metrics
from dfpo.run.train import train as train_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rewards = str | Path | Callable[..., Sequence[float | None]] | Sequence[Any]


def train(
    model: str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    data: str | Path | Sequence[Mapping[str, Any]] | None = None,
    reward: Rewards | None = None,
    algorithm: str = "dfpo",
    *,
    eval_data: str | Path | Sequence[Mapping[str, Any]] | None = None,
    rollout: RolloutFunction | str | Path | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """Trains a policy and returns the finished run.

    Args:
        model: a transformers directory, a .gguf file, or (model, tokenizer), which is trained in
            place, its weights in float32. Default: the small policy that ships with dfpo.
        data: training prompts: a .jsonl or .parquet file, a list of rows or a
            ``datasets.Dataset``; each row has a "prompt" (text or chat messages), its other
            columns go to the reward. Default: the task of ``task=``, else the shipped suite.
        reward: one or several functions in TRL's signature, ``f(prompts, completions, **columns)
            -> list[float | None]``, or "FILE.py:FUNCTION", or a reward model's directory; several
            are summed. Default: the task's verifier.
        algorithm: a preset: dfpo, ppo, grpo, ... (``dfpo.ALGORITHMS``).
        eval_data: held-out prompts, as ``data``.
        rollout: what plays the answers, of several turns and with tools, ``f(prompts, generate,
            tokenizer, **columns) -> {"completion_ids": ..., "env_mask": ...}``, or
            "FILE.py:FUNCTION" (docs/rollouts.md); or settings, ``rollout={"samples": 8}``.
        settings: any other setting; those of a section as a mapping,
            ``rollout={"samples": 8}``, or by dotted name, ``**{"rollout.samples": 8}``.

    Returns:
        The run: its metrics, policy, critic, and what the critic thinks of an answer.

    Raises:
        ConfigError: what is wrong with the input, in one line, before any work starts.
        RunError: why the run cannot go on; its last checkpoint is there.

    Example:
        >>> def short(completions, **columns):
        ...     return [-len(text.split()) / 40 for text in completions]
        >>> run = dfpo.train(reward=short, steps=2, eval={"prompts": 0}, name="short")
        >>> run.metrics  # doctest: +SKIP
    """
    functions, paths = read_rewards(reward)
    function, played = read_rollout(rollout)
    given = Given(
        rollout=function,
        model=read_model(model),
        rows=read_data("data", data),
        held_out=read_data("eval_data", eval_data),
        rewards=functions,
    )

    named = {"model": model, "data": data, "eval_data": eval_data}
    chosen: dict[str, Any] = {"algorithm": algorithm}
    chosen |= {name: str(value) for name, value in named.items() if value is not None}
    if paths:
        chosen["reward.functions"] = paths
    own = {k: str(v) if isinstance(v, Path) else v for k, v in flatten(settings)} | played

    return Run(train_config(build_config(chosen | own | given.settings()), given=given))


def load(directory: str | Path) -> Run:
    """A run that was trained before, here or from the command line. Raises ConfigError where the
    directory is none."""
    return Run(Path(directory))


def evaluate(
    target: Run | str | Path,
    data: str | Path | Sequence[Mapping[str, Any]] | None = None,
    reward: Rewards | None = None,
    rollout: RolloutFunction | str | Path | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Evaluation:
    """Scores a run's policy, or any model directory, on held-out prompts, without noise.

    Args:
        target: a run, its directory, or a transformers directory.
        data: prompts, as in ``train``; default the run's own held-out ones.
        reward: as in ``train``; default the run's own. A function that was given to ``train``
            must be given again.
        rollout: as in ``train``, likewise.
        settings: such as ``eval={"prompts": 100}``.

    Raises:
        ConfigError: what is wrong with the input, in one line.
    """
    path = target.directory if isinstance(target, Run) else Path(target)
    stored: dict[str, Any] = {}
    if (path / "config.yaml").is_file():
        stored = stored_settings("target", path)
    functions, paths = read_rewards(reward)
    function, played = read_rollout(rollout)
    given = Given(rows=read_data("data", data), rewards=functions, rollout=function)
    if data is not None:
        stored |= {"task": None, "eval_data": None, "data": str(data)}
    if paths:
        stored["reward.functions"] = paths
    own = {"model": str(path)} | dict(flatten(settings)) | played
    config = build_config(stored | own | given.settings())
    model, metric, scores, _ = evaluate_model(path, config, given=given)

    return Evaluation(model, metric, scores)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy or reward of a policy on held-out prompts."""

    policy: str  # directory of the model
    metric: str  # "accuracy" where a verifier gives 0 or 1, else "reward"
    scores: Scores  # domain -> split -> mode -> mean; "<mode>_se" is its standard error

    @property
    def means(self) -> dict[str, float]:
        """Averages over domains: "id", "ood", each also "_greedy" and with "_se"."""
        return averages(self.scores)

    def __str__(self) -> str:
        title = f"{self.policy}: {self.metric}, mean ± standard error"
        return f"{title}\n{score_table({'': self.scores})}"


@dataclass(frozen=True)
class Values:
    """What a critic predicts along an answer: the distribution of returns before each token."""

    tokens: list[str]  # T
    quantiles: Tensor  # [T, Q], in units of return; Q = 1 for a scalar critic
    final: Tensor  # [Q], after the last token

    @property
    def mean(self) -> Tensor:  # [T]
        return self.quantiles.mean(-1)

    def plot(self) -> Figure:
        """The distribution token by token: mean, middle half and 5 to 95 %."""
        from dfpo.run.examples import Fan
        from dfpo.run.plots import plot_answer

        return plot_answer(Fan("", "", self.tokens, None, self.quantiles.numpy()))

    def __repr__(self) -> str:
        first, last = float(self.mean[0]), float(self.final.mean())
        shape = tuple(self.quantiles.shape)
        return f"Values of {shape[0]} tokens x {shape[1]} quantiles, mean {first:.3f} to {last:.3f}"


class Run:
    """A run's directory in Python; models are loaded when they are asked for."""

    def __init__(self, directory: Path) -> None:
        stored_settings("run", directory)  # ConfigError where it is no run
        self.directory = directory

    @cached_property
    def config(self) -> Config:
        """Its settings, complete."""
        return build_config(stored_settings("run", self.directory))

    @property
    def metrics(self) -> Any:
        """A row a step: a ``pandas.DataFrame`` where pandas is installed, else a list of
        mappings."""
        rows = read_metrics(self.directory)
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows)

    @property
    def summary(self) -> dict[str, Any]:
        """Scores before and after, time and memory; empty while the run is not finished."""
        path = self.directory / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @cached_property
    def _model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_policy(policy_of(self.directory))

    @property
    def policy(self) -> PreTrainedModel:
        """The trained policy; of an unfinished run that of its last checkpoint."""
        return self._model[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._model[1]

    @cached_property
    def critic(self) -> nn.Module:
        """The trained critic. Raises ConfigError where the algorithm has none."""
        if not predicts(self.config):
            raise ConfigError(f"critic: {self.config.algorithm} has none that predicts returns")
        critic = build_critic(self.policy, self.config)
        checkpoint.load_critic(critic, policy_of(self.directory).parent / "critic.safetensors")
        return critic.eval()

    def evaluate(self, **settings: Any) -> Evaluation:
        """``dfpo.evaluate`` of this run."""
        return evaluate(self, **settings)

    @cached_property
    def space(self) -> RewardSpace:
        """The map of rewards in whose space the critic learned."""
        space = RewardSpace.of(self.config)
        folder = policy_of(self.directory).parent
        checkpoint.load_told(space, folder, self.policy.device)
        return space

    def values(self, prompt: str | list[dict[str, str]], answer: str, **columns: Any) -> Values:
        """What the critic predicts along an answer to a prompt, as [T, Q] quantiles of the return
        before each token. ``columns`` are the prompt's others, of which ``reward.space_by`` may
        name one. Raises ConfigError for an answer of no tokens, or without a critic."""
        ids = encode(self.tokenizer, prompt)
        tokens = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise ConfigError(f"answer: {answer!r} is no tokens, must be at least one")
        device = self.policy.device
        everything = torch.tensor([ids + tokens], device=device)
        samples = Samples(
            input_ids=everything,
            attention_mask=torch.ones_like(everything),
            mask=torch.ones(1, len(tokens), dtype=torch.bool, device=device),
            truncated=torch.zeros(1, dtype=torch.bool, device=device),
        )

        draws = torch.Generator(device).manual_seed(self.config.seed)
        estimate: Estimate = estimate_values(self.critic, samples, draws)
        estimate = self.space.readout(estimate, [{"prompt": prompt, **columns}])
        return Values(
            tokens=[self.tokenizer.decode([token]).strip() for token in tokens],
            quantiles=estimate.quantiles[0].float().cpu(),
            final=estimate.final[0].float().cpu(),
        )

    def plot(self) -> Figure:
        """Reward, accuracy, KL and the critic's fit over steps."""
        from dfpo.run.plots import plot_training, styled

        with styled():
            return plot_training(read_metrics(self.directory), self.config)

    def resume(
        self,
        *,
        reward: Rewards | None = None,
        rollout: RolloutFunction | None = None,
        **settings: Any,
    ) -> Run:
        """Goes on where the run stopped, bit for bit; ``steps`` may be more than before. A reward
        or a rollout that was a Python function must be given again."""
        functions, paths = read_rewards(reward)
        if paths:
            raise ConfigError("reward: must be the functions that the run was given")
        config = build_config(stored_settings("run", self.directory) | dict(flatten(settings)))
        if not is_complete(self.directory, config):
            train_config(config, self.directory, given=Given(rewards=functions, rollout=rollout))
        return Run(self.directory)

    def __repr__(self) -> str:
        done = self.summary.get("training", {}).get("steps")
        state = f"{len(read_metrics(self.directory))} steps" if done is None else f"{done} steps"
        after = self.summary.get("after") or {}
        scores = ", ".join(f"{name} {after[name]:.3f}" for name in ("id", "ood") if name in after)
        text = f"Run {self.directory}: {self.config.algorithm}, {state}"
        return f"{text}, {self.summary['metric']} {scores}" if scores else text
