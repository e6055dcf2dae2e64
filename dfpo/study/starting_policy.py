"""Supervised start: a small policy that imitates a sloppy demonstrator of a suite.

The demonstrator makes each domain's slips more often than not, so the policy can do the work but
picks the wrong rule; what is left to reinforcement learning is to pick the right one.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from dfpo.config import ConfigError
from dfpo.config.build import must_be
from dfpo.config.options import option
from dfpo.run.bars import bar
from dfpo.study.starting_card import starting_card
from dfpo.tasks import SPLITS, SUITES, Problem, Suite, slip_position

MAX_POSITIONS = 256
MAX_NEW_TOKENS = 64  # the longest answer has 56 tokens
IGNORED = -100  # the label that transformers' loss leaves out
EVAL_BATCH = 512  # answers sampled at a time
EVAL_SEED = 1  # of the measured prompts, the same whatever the training seed
COLUMNS = {
    "sampled": "accuracy at temperature 1",
    "greedy": "accuracy of the likeliest answer",
    "slip_free": "probability of the canonical working once the slips are ruled out",
    "slips": "share of the wrong sampled answers that first go wrong by the domain's slip",
    "ended": f"share of the sampled answers that end within {MAX_NEW_TOKENS} tokens",
    "tokens": "mean length of the sampled answers in tokens, `<eos>` included",
}


@dataclass(frozen=True)
class SFTConfig:
    """Settings of the supervised start; each field is a flag of `dfpo sft`.

    Raises ConfigError for a value out of its bounds.
    """

    task: str = option("suite", "built-in suite to learn", choices=tuple(SUITES))
    steps: int = option(2400, "optimizer updates", low=1)
    seed: int = option(0, "seed of the initial weights and of the demonstrations")
    batch_size: int = option(32, "demonstrations per update", low=1)
    learning_rate: float = option(
        4e-3, "AdamW step size at its peak, after warm-up and before cosine decay", low=0.0
    )
    slip: float = option(
        0.55,
        "probability that the demonstrator slips where it can (in hard: where the context invites "
        "it; in shared: that it forgets a carry); above 0.5 even the likeliest answer is wrong, "
        "which leaves reinforcement learning something to correct",
        low=0.0,
        high=1.0,
    )
    threads: int = option(1, "CPU threads; weights repeat bit for bit at equal threads", low=1)
    eval_prompts: int = option(500, "held-out prompts measured per domain and split", low=1)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            low, high, choices = map(item.metadata.get, ("low", "high", "choices"))
            # Negated, so that nan is refused too.
            if (
                (choices and value not in choices)
                or not (low is None or value >= low)
                or not (high is None or value <= high)
            ):
                expected = must_be(item, type(item.default))
                raise ConfigError(f"{item.name}: is {value!r}, must be {expected}")


def build_tokenizer(suite: Suite = SUITES["suite"]) -> PreTrainedTokenizerFast:
    """One token a word of the suite; decoding gives the same space-separated text back."""
    words = ("<pad>", "<eos>", "<unk>", *suite.vocabulary)
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A causal language model of about 0.15 M parameters with freshly drawn weights."""
    special = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=168,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        # At the library's 0.02, made for wide models, copying and products are learned later.
        initializer_range=0.07,
        **special,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)

    # Plain sampling from the model's own distribution; the library's default would cut its tail.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=MAX_NEW_TOKENS, **special
    )
    return model


def encode(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> tuple[Tensor, Tensor]:
    """Token ids and labels [B, T] of (prompt, answer) pairs, padded on the right.

    Labels are the ids of the answer and of <eos>, and `IGNORED` elsewhere.
    """
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answers = tokenizer([answer for _, answer in pairs])["input_ids"]
    lengths = [len(p) + len(a) + 1 for p, a in zip(prompts, answers, strict=True)]
    ids, labels = [], []

    for prompt, answer, length in zip(prompts, answers, lengths, strict=True):
        target = [*answer, tokenizer.eos_token_id]
        padding = max(lengths) - length
        ids.append([*prompt, *target, *[tokenizer.pad_token_id] * padding])
        labels.append([*[IGNORED] * len(prompt), *target, *[IGNORED] * padding])

    return torch.tensor(ids), torch.tensor(labels)


def train_policy(config: SFTConfig, output: Path) -> dict[str, dict[str, float]]:
    """Train a policy, write it to `output` as a transformers model directory, and measure it.

    Returns what `measure` does. Sets torch's number of threads. Raises ConfigError if `output`
    cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output: cannot make {output}: {error.strerror}") from None

    torch.set_num_threads(config.threads)
    suite = SUITES[config.task]
    tokenizer = build_tokenizer(suite)
    model = build_model(tokenizer, config.seed)
    start = time.process_time()
    _fit(model, tokenizer, config)
    seconds = time.process_time() - start
    results = measure(model, tokenizer, config.eval_prompts, suite)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "README.md").write_text(
        card(config, output, model, results, seconds), encoding="utf-8"
    )

    return results


def card(
    config: SFTConfig,
    output: Path,
    model: LlamaForCausalLM,
    results: dict[str, dict[str, float]],
    seconds: float,
) -> str:
    """The model card, with the command that makes the model again."""
    flags = " ".join(f"{_flag(name)} {value}" for name, value in asdict(config).items())
    return starting_card(
        model,
        task=config.task,
        slip=config.slip,
        command=f"dfpo sft {flags} --output {output.as_posix()}",
        seconds=seconds,
        prompts=config.eval_prompts,
        table=accuracy_table(results),
        columns="\n".join(f"- `{name}`: {meaning}" for name, meaning in COLUMNS.items()),
    )


def _fit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, config: SFTConfig) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98))
    warmup = min(100, config.steps // 10)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, config.steps)
    model.train()
    progress = bar(range(config.steps), desc="sft", unit="update")

    for step in progress:
        first = step * config.batch_size
        pairs = [_pair(config, index) for index in range(first, first + config.batch_size)]
        ids, labels = encode(tokenizer, pairs)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)

    model.eval()


def _pair(config: SFTConfig, index: int) -> tuple[str, str]:
    # Domains and splits take turns, so that a batch holds nearly equal shares of each.
    suite = SUITES[config.task]
    turn, domain = divmod(index, len(suite.domains))
    index, split = divmod(turn, len(SPLITS))
    shown, answer = suite.demonstration(
        config.seed, tuple(suite.domains)[domain], SPLITS[split], index, config.slip
    )
    return shown.prompt, answer


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: int,
    suite: Suite = SUITES["suite"],
) -> dict[str, dict[str, float]]:
    """Measure the policy on `prompts` held-out problems per domain and split of the suite.

    Returns a value for each of `COLUMNS` by "domain/split".
    """
    rows = [
        (f"{domain}/{split}", suite.problem(EVAL_SEED, "eval", domain, split, index))
        for domain in suite.domains
        for split in SPLITS
        for index in range(prompts)
    ]

    rewards: dict[str, dict[str, list[float]]] = {
        name: {column: [] for column in COLUMNS} for name, _ in rows
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(EVAL_SEED)
        for start in range(0, len(rows), EVAL_BATCH):
            names, problems = zip(*rows[start : start + EVAL_BATCH], strict=True)
            scores = _scores(model, tokenizer, list(problems), suite)
            for name, score in zip(names, scores, strict=True):
                for column, value in score.items():
                    rewards[name][column].append(value)

    return {
        name: {column: sum(values) / max(1, len(values)) for column, values in columns.items()}
        for name, columns in rewards.items()
    }


def _scores(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    suite: Suite,
) -> Iterator[dict[str, float]]:
    """What each problem adds to the means of `COLUMNS`; `slips` only if it was answered wrong."""
    sampled = _answers(model, tokenizer, problems, sample=True)
    greedy = _answers(model, tokenizer, problems, sample=False)
    slip_free = _slip_free(model, tokenizer, problems, suite)
    for item, ids, likeliest, probability in zip(problems, sampled, greedy, slip_free, strict=True):
        verify = suite.domains[item.domain].verify
        text = tokenizer.decode(ids, skip_special_tokens=True)
        right = verify(text, item.answer)
        yield {
            "sampled": right,
            "greedy": verify(tokenizer.decode(likeliest, skip_special_tokens=True), item.answer),
            "slip_free": probability,
            "ended": tokenizer.eos_token_id in ids,
            "tokens": int((ids != tokenizer.pad_token_id).sum()),
        } | ({} if right else {"slips": _starts_with_slip(text, item, suite)})


@torch.no_grad()
def _answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    sample: bool,
) -> Tensor:
    batch = tokenizer([item.prompt for item in problems], padding=True, return_tensors="pt")
    sequences = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=sample,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    return sequences[:, batch["input_ids"].shape[1] :]


def _starts_with_slip(completion: str, item: Problem, suite: Suite) -> bool:
    tokens, answer = completion.split(), item.answer.split()
    position = slip_position(tokens, answer)
    if position is None or position >= len(tokens):
        return False
    return suite.domains[item.domain].slips(answer).get(position) == tokens[position]


@torch.no_grad()
def _slip_free(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    suite: Suite,
) -> list[float]:
    ids, labels = encode(tokenizer, [(item.prompt, item.answer) for item in problems])
    logits = model(input_ids=ids).logits
    for row, item in enumerate(problems):
        begin = int((labels[row] != IGNORED).nonzero()[0])
        for position, token in suite.domains[item.domain].slips(item.answer.split()).items():
            slipped = tokenizer.convert_tokens_to_ids(token)
            logits[row, begin + position - 1, slipped] = -torch.inf

    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return logprobs.where(labels[:, 1:] != IGNORED, 0.0).sum(1).exp().tolist()


def accuracy_table(results: dict[str, dict[str, float]]) -> str:
    """The measurements as a Markdown table, with the mean of each split."""
    rows = dict(results)
    for split in SPLITS:
        members = [row for name, row in results.items() if name.endswith(f"/{split}")]
        rows[f"mean/{split}"] = {
            column: sum(row[column] for row in members) / len(members) for column in COLUMNS
        }

    lines = [f"| domain/split | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = (f"{row[c]:.1f}" if c == "tokens" else f"{row[c]:.3f}" for c in COLUMNS)
        lines.append(f"| {name} | {' | '.join(cells)} |")

    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--output` and one flag per field of `SFTConfig`."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/policy"),
        metavar="DIR",
        help="model directory to write, files in it are replaced (default: runs/policy)",
    )

    for item in fields(SFTConfig):
        kind = type(item.default)
        parser.add_argument(
            _flag(item.name),
            type=kind,
            default=item.default,
            metavar=kind.__name__.upper(),
            help=f"{item.metadata['doc']}; {must_be(item, kind)} (default: {item.default})",
        )


def main(args: argparse.Namespace) -> None:
    """Run `dfpo sft`: train, write and report. Raises ConfigError for a wrong setting."""
    config = SFTConfig(**{item.name: getattr(args, item.name) for item in fields(SFTConfig)})
    print(accuracy_table(train_policy(config, args.output)))
    print(f"wrote {args.output}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
