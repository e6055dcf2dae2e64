"""Peak memory and seconds of training steps on random models, each in a process of its own.

    python bench/memory.py answers    more answers a step, the same --micro-tokens
    python bench/memory.py lora       all weights against adapters, 135 M parameters
    python bench/memory.py trl        beside TRL's GRPOTrainer: model, answers and tokens alike
    python bench/memory.py foretold   beside what `dfpo memory` foretells, 20 to 40 M parameters

Writes a table to stdout, and with --json FILE the rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from dfpo.rollout.policy import SHIPPED_POLICY

PROMPTS = [{"prompt": f"1 plus {i}"} for i in range(64)]
MODELS = {
    # 40 M parameters, nearly all of them the embedding of a vocabulary of 152 k.
    "40M-152k": Qwen2Config(
        vocab_size=151_936, hidden_size=248, intermediate_size=992, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "40M-32k": Qwen2Config(
        vocab_size=32_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
    ),
    "small-152k": Qwen2Config(
        vocab_size=151_936, hidden_size=128, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "20M-8k": LlamaConfig(
        vocab_size=8_192, hidden_size=384, intermediate_size=1536, num_hidden_layers=8,
        num_attention_heads=6, num_key_value_heads=6, tie_word_embeddings=False,
    ),
    # SmolLM2-135M's dimensions.
    "135M": LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    ),
}  # fmt: skip


def make_model(name: str, folder: Path) -> Path:
    """A random model whose answers run to their limit, with the shipped policy's tokenizer."""
    torch.manual_seed(0)
    config = MODELS[name]
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_POLICY)
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder)
    return folder


def reward(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text) % 2) for text in completions]


def train_dfpo(model: Path, settings: dict[str, Any], folder: Path) -> dict[str, float]:
    from dfpo.config import build_config
    from dfpo.run.given import Given
    from dfpo.run.records import read_metrics
    from dfpo.run.train import train

    given = Given(rows=PROMPTS, rewards=(reward,))
    run = train(
        build_config(
            {
                "model": str(model), "steps": 3, "eval.prompts": 0, "eval.examples": 0,
                "plots": False, "device": "cpu", "runs_dir": str(folder), "checkpoint_every": 100,
                "max_unscored_steps": 9,
            }
            | ({} if settings["algorithm"] == "grpo" else {"critic.warmup_steps": 1})
            | settings | given.settings()
        ),
        given=given,
    )  # fmt: skip
    rows = read_metrics(run)
    return {
        "seconds": min(row["perf/seconds"] for row in rows[1:]),
        "rollout": min(row["perf/rollout_seconds"] for row in rows[1:]),
        "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def train_trl(model: Path, settings: dict[str, Any], folder: Path) -> dict[str, float]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    count, length = settings["answers"], settings["length"]
    # All answers at once, as TRL does by itself; where their logits alone fill a machine, in parts.
    at_once = min(count, settings.get("trl_batch") or count)
    if count % at_once:
        raise SystemExit(f"--trl-batch: is {at_once}, must divide the {count} answers of a step")
    config = GRPOConfig(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=at_once, report_to=[],
        gradient_accumulation_steps=count // at_once, num_generations=4,
        max_completion_length=length, use_cpu=True, bf16=False, beta=0.001,
        gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, logging_steps=1,
        temperature=1.0, loss_type="grpo",
    )  # fmt: skip
    trainer = GRPOTrainer(
        str(model), reward, config, train_dataset=Dataset.from_list(PROMPTS * 8),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )  # fmt: skip
    marks: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            marks.append(time.perf_counter())

    trainer.add_callback(Watch())
    trainer.train()
    spans = [end - start for start, end in itertools.pairwise(marks)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": min(spans), "GB": peak}


def cell(what: dict[str, Any]) -> dict[str, Any]:
    """One measurement in a process of its own, whose peak nothing else has set."""
    command = [sys.executable, __file__, "--cell", json.dumps(what)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return what | json.loads(done.stdout.splitlines()[-1])


def run_cell(what: dict[str, Any]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(what["model"], Path(folder) / "model")
        if what["arm"] == "trl":
            return train_trl(model, what, Path(folder) / "runs")
        own = {"algorithm": what["arm"], "rollout.samples": 4}
        own |= {"rollout.prompts": what["answers"] // 4, "rollout.max_new_tokens": what["length"]}
        return train_dfpo(model, own | what.get("settings", {}), Path(folder) / "runs")


def answers(length: int) -> list[dict[str, Any]]:
    settings = {"micro_tokens": 512}
    return [
        {"arm": "grpo", "model": "40M-152k", "answers": n, "length": length, "settings": settings}
        for n in (32, 128, 512)
    ]


def lora(length: int) -> list[dict[str, Any]]:
    shared = {"arm": "dfpo", "model": "135M", "answers": 8, "length": length}
    return [shared | {"settings": {"micro_tokens": 256} | own} for own in ({}, {"lora.rank": 16})]


def trl(length: int) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "model": model, "answers": count, "length": length}
        for model in ("40M-32k", "small-152k")
        for count in (32, 128)
        for arm in ("trl", "grpo", "ppo", "dfpo")
    ]


def foretold(length: int) -> list[dict[str, Any]]:
    """Every kind of peak: weights, activations, logits, adapters, several micro-batches."""
    cells = [
        ("grpo", "40M-32k", 32, {}),
        ("ppo", "40M-152k", 16, {"micro_tokens": 256}),
        ("dfpo", "20M-8k", 64, {"micro_tokens": 8192}),
        ("dfpo", "20M-8k", 64, {"micro_tokens": 8192, "gradient_checkpointing": True}),
        ("dfpo", "20M-8k", 64, {"micro_tokens": 512, "dtype": "float32"}),
        ("dfpo", "40M-32k", 16, {"lora.rank": 8}),
    ]
    return [
        {"arm": arm, "model": model, "answers": count, "length": length, "settings": settings}
        for arm, model, count, settings in cells
    ]


def foretell_cell(what: dict[str, Any]) -> float:
    """GB that `dfpo memory` says, in a process of its own too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        MODELS[what["model"]].to_json_file(path)
        words = ["--algorithm", what["arm"], "--model", str(path), "--device", "cpu", "--json"]
        words += ["--answers", str(what["answers"]), "--length", str(what["length"])]
        words += ["--prompt-length", "4"]
        for name, value in what["settings"].items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        command = [sys.executable, "-m", "dfpo", "memory", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)["peak"] / 1e9


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("answers", "lora", "trl", "foretold"))
    parser.add_argument("--length", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--only", help="models whose name holds this")
    parser.add_argument("--answers", type=int, nargs="+", help="cells of so many answers alone")
    parser.add_argument("--arms", nargs="+", help="cells of these alone: trl, grpo, ppo, dfpo")
    parser.add_argument("--trl-batch", type=int, help="answers that TRL trains at once; all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(run_cell(options.cell)))
        raise SystemExit
    kinds = {"answers": answers, "lora": lora, "trl": trl, "foretold": foretold}
    rows = []
    for chosen in kinds[options.what](options.length):
        if (options.only or "") not in chosen["model"]:
            continue
        if options.answers and chosen["answers"] not in options.answers:
            continue
        if options.arms and chosen["arm"] not in options.arms:
            continue
        if chosen["arm"] == "trl":
            chosen |= {"trl_batch": options.trl_batch}
        rows.append(cell(chosen))
        if options.what == "foretold":
            said = foretell_cell(chosen)
            rows[-1] |= {"foretold": said, "off": f"{said / rows[-1]['GB'] - 1:+.1%}"}
        print(rows[-1], file=sys.stderr, flush=True)  # each as it comes: they take minutes
    print(tabulate([{k: str(v) for k, v in row.items()} for row in rows], headers="keys"))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
