"""``dfpo memory``: the peak memory of a run, foretold from a model's configuration alone.

What a run holds throughout is counted from the parameters of the models, which are built on the
meta device. What comes and goes is metered there: the very functions of a step run on one
micro-batch (``meter.py``). The peak is the largest of the stages, each beside what stays.
"""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dfpo.config import Config, ConfigError
from dfpo.config.choices import POLICY_LOSSES
from dfpo.config.rules import is_learned_at_once
from dfpo.config.types import Counts, CriticTargets, Samples
from dfpo.method.critics import build_critic
from dfpo.method.policy_losses import PolicyBatch
from dfpo.method.targets import path_targets
from dfpo.rollout import policy as policies
from dfpo.rollout.adapters import View, add_adapters, check_peft, root_of
from dfpo.rollout.engines.hf_generate import CACHE, _CounterSampler
from dfpo.rollout.engines.roomy_cache import roomy_cache
from dfpo.rollout.logprobs import meta_as
from dfpo.rollout.policy import checkpoint_gradients, recomputing, token_logprobs
from dfpo.run.meter import Bytes, most_bytes
from dfpo.run.setup import has_trunk, sampled_tokens, usual_micro_tokens

# What a run takes above its imports before its models count: the shipped policy's, measured.
LIBRARIES = 100_000_000
ADAM = 8  # bytes a trained parameter: two moments in float32
FLOAT = 4


def on_meta() -> torch.device:
    """A context in which torch makes shapes alone. torch remembers its constructors from the first
    such context; one entered while a compiler had put its own in their place is of no use later."""
    torch.utils._device._device_constructors.cache_clear()
    return torch.device("meta")


@dataclass(frozen=True)
class Shape:
    """The tokens of a step, and of what goes through a model at once."""

    answers: int  # of a step
    prompt: int  # tokens of each prompt
    length: int  # tokens of each answer
    rows: int  # answers of a micro-batch
    sampled: int  # answers that are sampled at once
    passes: int  # micro-batches of a minibatch, of one process

    @staticmethod
    def of(config: Config, answers: int, prompt: int, micro_tokens: int, processes: int) -> Shape:
        length = config.rollout.max_new_tokens
        mine = -(-answers // processes)

        def rows_of(tokens: int) -> int:
            return max(1, min(mine, tokens // (prompt + length)))

        rows = rows_of(micro_tokens)
        sampled = rows_of(sampled_tokens(micro_tokens, device_of(config)))
        own = -(-mine // config.policy.minibatches)
        return Shape(answers, prompt, length, rows, sampled, -(-own // min(rows, own)))

    def samples(self, rows: int) -> Samples:
        """Answers that go through a model together, as shapes."""
        whole = (rows, self.prompt + self.length)
        with on_meta():
            samples = Samples(
                input_ids=torch.empty(whole, dtype=torch.int64),
                attention_mask=torch.empty(whole, dtype=torch.int64),
                mask=torch.empty(rows, self.length, dtype=torch.bool),
                truncated=torch.empty(rows, dtype=torch.bool),
            )
        prompts, lengths = [self.prompt] * rows, [self.length] * rows
        vars(samples).update(prompt_lengths=prompts, lengths=lengths, counts=lengths)
        return samples


@dataclass(frozen=True)
class Forecast:
    """Bytes of one process."""

    parameters: int  # of the policy
    trained: dict[str, int]  # parameters that learn, of policy and critic
    held: dict[str, int]  # throughout, by what it is
    stages: dict[str, Bytes]  # beside that, by what a step does
    base: int  # Python and libraries, where they share the memory; 0 on a GPU
    shape: Shape

    @property
    def peak(self) -> int:
        return self.base + sum(self.held.values()) + self.highest.together + self.unreturned

    @property
    def highest(self) -> Bytes:
        """The stage that holds most."""
        return max(self.stages.values(), key=lambda stage: stage.together)

    @property
    def unreturned(self) -> int:
        """What the process keeps of freed small blocks while another stage holds large ones. None
        on a GPU, whose allocator gives freed memory to whoever asks next."""
        if not self.base:
            return 0
        apart = Bytes.most(*self.stages.values())
        return apart.small + apart.large - self.highest.together


@dataclass(frozen=True)
class Models:
    """A run's models on the meta device."""

    policy: PreTrainedModel | View
    critic: nn.Module
    bytes_per_weight: int  # of what the models multiply in

    def known(self) -> list[Tensor]:
        modules = (root_of(self.policy), self.critic)
        return [x for m in modules for x in (*m.parameters(), *m.buffers())]

    def trained(self) -> dict[str, list[nn.Parameter]]:
        return {"policy": list(self.policy.parameters()), "critic": list(self.critic.parameters())}


def foretell(
    config: Config, model: PretrainedConfig, *, answers: int, prompt: int, processes: int, base: int
) -> Forecast:
    """The memory of a run of ``answers`` answers a step, each of ``rollout.max_new_tokens`` tokens
    to a prompt of ``prompt`` tokens."""
    device = device_of(config)
    models = build_models(config, model, device)
    named = root_of(models.policy).named_parameters()
    parameters = count_parameters(weight for name, weight in named if "lora_" not in name)
    micro = config.micro_tokens or usual_micro_tokens(parameters, device)
    shape = Shape.of(config, answers, prompt, micro, processes)
    learning = models.trained()
    trained = {name: count_parameters(own) for name, own in learning.items()}
    share = processes if config.shard else 1
    held = held_bytes(config, models, parameters, trained, share, shape)
    with meta_as(device):
        stages = stage_bytes(config, models, learning, share, shape)
    outside = base + LIBRARIES if device == "cpu" else 0
    return Forecast(parameters, trained, held, stages, outside, shape)


def held_bytes(
    config: Config,
    models: Models,
    parameters: int,
    trained: dict[str, int],
    share: int,
    shape: Shape,
) -> dict[str, int]:
    """What a run holds from its first step to its last, but for gradients: a part's own are gone
    while it computes new ones."""
    everything = sum(trained.values())
    frozen, size = 2 * parameters - trained["policy"], FLOAT
    if config.lora.rank:
        frozen, size = parameters, models.bytes_per_weight
    return {
        "trained weights": FLOAT * everything // share,
        "frozen weights": size * frozen // share,
        "Adam": ADAM * everything // share,
        "rollout": rollout_bytes(config, shape),
    }


def rollout_bytes(config: Config, shape: Shape) -> int:
    """A step's numbers, of all answers in each process: tokens, log-probabilities, advantages, and
    distributions of returns for values and targets."""
    tokens = shape.answers * (shape.length + 1)
    plain = 8 * (shape.prompt + shape.length) * shape.answers * 2 + 10 * FLOAT * tokens
    if not has_trunk(config):
        return plain
    quantiles = config.critic.num_quantiles if config.critic.kind != "scalar" else 1
    field = 0
    if config.critic.kind == "value_flow" and config.coef.path:
        field = 2 * 2 * config.critic.width  # bias and gain, here and where the path leads
    return plain + FLOAT * tokens * (6 * quantiles + field)


def stage_bytes(
    config: Config, models: Models, trained: dict[str, list[nn.Parameter]], share: int, shape: Shape
) -> dict[str, Bytes]:
    """The most that each stage of a step holds beside what stays, gradients included."""
    samples, known = shape.samples(shape.rows), models.known()
    gradients = {
        name: Bytes.of(*(FLOAT * p.numel() // share for p in own)) for name, own in trained.items()
    }
    both = gradients["policy"] + gradients["critic"]
    policy, critic = models.policy, models.critic

    def look(model: nn.Module | View, *works: Callable[[], Any]) -> Bytes:
        """Without gradients of its own, and with all weights of the model there."""
        with torch.no_grad():
            most = Bytes.most(*(most_bytes(work, known) for work in works))
        return both + gathered(models, model, share) + casts(models, model, share) + most

    stages = {
        "sampling": look(policy, *sampling(policy, shape)),
        "log-probabilities": look(policy, lambda: token_logprobs(policy, samples, 1.0)),
    }
    if has_trunk(config):
        noise = noise_of(critic, samples)
        stages["values"] = look(critic, lambda: critic.estimate(samples, noise))
        stages["critic update"] = gradients["policy"] + update_bytes(
            lambda: critic_loss(models, config, samples), models, critic, shape, share
        )
    stages["policy update"] = gradients["critic"] + update_bytes(
        lambda: policy_loss(models, config, samples), models, policy, shape, share
    )
    return stages


def casts(models: Models, model: nn.Module | View, share: int) -> Bytes:
    """A model's weights in half precision beside the float32 ones, by autocast; of a base under
    adapters, which is kept in half precision, the adapters' alone. What is shared out comes in half
    precision where it is gathered."""
    if models.bytes_per_weight == FLOAT or share > 1:
        return Bytes()
    weights = getattr(model, "trunk", model).parameters()
    return Bytes.of(*(models.bytes_per_weight * weight.numel() for weight in weights))


def gathered(models: Models, model: nn.Module | View, share: int) -> Bytes:
    """A sharded model while it is whole, where nothing is trained."""
    if share == 1:
        return Bytes()
    return Bytes.of(*(models.bytes_per_weight * weight.numel() for weight in model.parameters()))


def update_bytes(
    loss: Callable[[], Tensor], models: Models, model: nn.Module | View, shape: Shape, share: int
) -> Bytes:
    """One backward pass, or a second one that adds to the gradients of the first."""
    own = list(model.parameters())

    def backward() -> None:
        with recomputing(root_of(getattr(model, "trunk", model))):
            loss().backward()

    if share > 1:
        # Layer by layer weights come when they are needed, and gradients are shared out.
        for parameter in own:
            parameter.register_post_accumulate_grad_hook(_let_go)
        shared = Bytes.of(*(FLOAT * p.numel() // share for p in own))
        return most_bytes(backward, models.known()) + shared + largest_part(models, model)

    most = Bytes()
    for _ in range(min(2, shape.passes)):
        # Gradients that an earlier pass left are there.
        there = [p.grad for p in own if p.grad is not None]
        before = Bytes.of(*(g.numel() * g.element_size() for g in there))
        most = Bytes.most(most, before + most_bytes(backward, models.known() + there))
    for parameter in own:
        _let_go(parameter)

    # Gradients are float32, though they are metered in half precision.
    missing = FLOAT - models.bytes_per_weight
    return most + casts(models, model, share) + Bytes.of(*(missing * p.numel() for p in own))


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


def largest_part(models: Models, model: nn.Module | View) -> Bytes:
    """What FSDP gathers at once, what is in no block and the largest of these, and its gradient."""
    trunk = root_of(getattr(model, "trunk", model))
    names = getattr(trunk, "_no_split_modules", None) or ()
    blocks = [
        count_parameters(m.parameters()) for m in trunk.modules() if type(m).__name__ in names
    ]
    rest = count_parameters(trunk.parameters()) - sum(blocks)
    return Bytes.of(2 * models.bytes_per_weight * (rest + max(blocks, default=0)))


def policy_loss(models: Models, config: Config, samples: Samples) -> Tensor:
    numbers = torch.empty(samples.mask.shape, device="meta")
    batch = PolicyBatch(
        samples=samples, advantages=numbers, ref_logprobs=numbers,
        old_logprobs=None if is_learned_at_once(config) else numbers,
        counts=Counts.of(samples.lengths),
    )  # fmt: skip
    return POLICY_LOSSES[config.policy.loss].load()(models.policy, models.critic, batch, config)[0]


def critic_loss(models: Models, config: Config, samples: Samples) -> Tensor:
    """Of targets that have the shape of what the critic estimates."""
    critic = models.critic
    with torch.no_grad():
        estimate = critic.estimate(samples, noise_of(critic, samples))
        spread = estimate.quantiles.mean(-1)
        targets = CriticTargets(
            quantiles=torch.empty_like(estimate.quantiles), mean=spread, spread=spread,
            base=estimate.base,
        )  # fmt: skip
        shape = (*samples.mask.shape, estimate.quantiles.shape[-1] + 1)
        path = None
        if estimate.field is not None:
            ids = torch.empty(len(samples.lengths), dtype=torch.int64, device="meta")
            path = path_targets(estimate.field, spread, samples.mask, ids, config, 0)
        draws = torch.empty(shape, device="meta")
        targets = dataclasses.replace(targets, draws=draws, path=path)
    return critic.loss(samples, targets, Counts.of(samples.lengths))[0]


def noise_of(critic: nn.Module, samples: Samples) -> Tensor | None:
    head = getattr(critic, "head", None)
    if getattr(head, "coupling", None) != "shared_noise":
        return None
    return torch.empty(len(samples.lengths), 1, head.num_quantiles, device="meta")


def sampling(policy: PreTrainedModel | View, shape: Shape) -> Iterable[Callable[[], Any]]:
    """Reading the prompts, and drawing the last token of the answers beside all keys and values
    before it."""
    samples = shape.samples(shape.sampled)

    def forward(tokens: int, cache: Any = None, new: int | None = None) -> Any:
        ids = samples.input_ids[:, : new or tokens]
        mask = samples.attention_mask[:, :tokens]
        past = {} if cache is None else {CACHE: cache}
        return policy(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **past)

    def last() -> Any:
        made = forward(shape.prompt + shape.length - 1, roomy_cache(policy))
        del made.logits
        made = forward(shape.prompt + shape.length, getattr(made, CACHE), 1)
        scores = made.logits[:, -1].float().clone()
        uniforms = torch.empty(shape.sampled, 1, device="meta")
        return made, _CounterSampler(uniforms, 1.0, samples.input_ids.shape[1])(
            samples.input_ids, scores
        )

    return (lambda: forward(shape.prompt)), last


def build_models(config: Config, model: PretrainedConfig, device: str) -> Models:
    """Policy and critic as shapes, in the dtype that they multiply in."""
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and device == "cuda")
    dtype = torch.bfloat16 if half else torch.float32
    with on_meta():
        policy = AutoModelForCausalLM.from_config(model, attn_implementation="sdpa").eval()
        if config.lora.rank:
            check_peft()
            policy, _ = add_adapters(policy, config, has_trunk(config))
            policy.activate()
        critic = build_critic(policy, config).eval()
    if config.gradient_checkpointing:
        checkpoint_gradients(root_of(policy))
        if not config.lora.rank and has_trunk(config):
            checkpoint_gradients(critic.trunk)

    # A head that does more than multiply cannot be told from shapes.
    policies._HEAD_IS_LAST[policy] = True
    for part in (root_of(policy), getattr(critic, "trunk", None)):
        if isinstance(part, nn.Module):
            part.to(dtype)
    return Models(policy, critic, torch.empty((), dtype=dtype).element_size())


def device_of(config: Config) -> str:
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device.partition(":")[0]


def count_parameters(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def read_config(path: Path) -> PretrainedConfig:
    """A model's configuration, of its directory or its config.json. Raises ConfigError."""
    if not path.is_file() and not (path / "config.json").is_file():
        raise ConfigError(f"model: {path} must be a directory with a config.json, or that file")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    # transformers raises many kinds of error for what is no configuration.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model: {path} holds no configuration of a causal language model: {reason}"
        ) from None


def forecast_report(
    config: Config, answers: int, prompt: int, processes: int, as_json: bool
) -> str:
    """The report of ``dfpo memory``. Raises ConfigError."""
    base = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1000)
    transformers_logging.set_verbosity_error()
    model = read_config(Path(config.model))
    config = dataclasses.replace(config, model=None)  # no weights are read
    forecast = foretell(
        config, model, answers=answers, prompt=prompt, processes=processes, base=base
    )
    return say_forecast(config, forecast, as_json)


def say_forecast(config: Config, forecast: Forecast, as_json: bool) -> str:
    """What ``dfpo memory`` prints: GB of one process."""
    totals = {name: stage.together for name, stage in forecast.stages.items()}
    largest = max(totals, key=totals.get)
    if as_json:
        more = {"peak": forecast.peak, "stages": totals, "largest_stage": largest}
        return json.dumps(dataclasses.asdict(forecast) | more, indent=2)

    shape = forecast.shape
    lines = [[name, "throughout", gigabytes(size)] for name, size in forecast.held.items()]
    if forecast.base:
        lines.insert(0, ["Python and libraries", "throughout", gigabytes(forecast.base)])
    lines += [[name, "one stage at a time", gigabytes(size)] for name, size in totals.items()]
    if forecast.unreturned:
        lines.append(["freed and not returned", "of other stages", gigabytes(forecast.unreturned)])
    lines.append(["peak", f"the first, and {largest}", gigabytes(forecast.peak)])
    head = (
        f"{config.algorithm}, {forecast.parameters / 1e6:.4g} M parameters of which "
        f"{forecast.trained['policy'] / 1e6:.4g} M learn, {shape.answers} answers of "
        f"{shape.length} tokens a step, {shape.rows} of them at once, on {device_of(config)}"
    )
    return (
        f"{head}\n{tabulate(lines, headers=['', '', 'GB'], disable_numparse=True, stralign='left')}"
    )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"
