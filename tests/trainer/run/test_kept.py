"""Answers that a run keeps: which, how many, and what is said of them."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
from small_runs import ANSWER, answer, make_run

from dfpo.__main__ import main
from dfpo.config import ConfigError
from dfpo.config.types import Answers, Estimate, LeftOut, Rollout, Samples, Scored, Targets
from dfpo.run import kept
from dfpo.run.kept import (
    MOST_STEPS,
    choose_answers,
    few_quantiles,
    is_due,
    keep,
    kept_steps,
    read_kept,
    spacing,
    write,
)

SMALL = ["--critic.warmup-steps", "1", "--eval.prompts", "0", "--plots", "false"]
SMALL += ["--rollout.prompts", "3", "--rollout.samples", "2", "--noise", "flip=0.5"]


class Words:
    def decode(self, ids):
        return f"w{ids[0]}"


def rollout_of(groups, domains, lengths=None):
    """Answers to prompts, of which nothing else matters."""
    count = len(groups)
    lengths = lengths or [2] * count
    mask = torch.arange(max(lengths, default=0)) < torch.tensor(lengths)[:, None]
    return Rollout(
        scored=Scored(torch.zeros(count), {}, 0, 0, None),
        answers=Answers(
            rows=[{"prompt": f"p{g}", "domain": d} for g, d in zip(groups, domains, strict=True)],
            texts=[f"a{i}" for i in range(count)],
            token_ids=[list(range(n)) for n in lengths],
            sample_ids=torch.arange(count) + 100,
        ),
        samples=Samples(
            input_ids=torch.zeros_like(mask, dtype=torch.int64), attention_mask=mask.long(),
            mask=mask, truncated=torch.zeros(count, dtype=torch.bool),
        ),
        groups=torch.tensor(groups, dtype=torch.int64),
        clean_rewards=torch.zeros(count),
        rewards=torch.arange(count).float(),
        old_logprobs=torch.zeros(mask.shape),
        ref_logprobs=torch.zeros(mask.shape),
        entropy=torch.zeros(mask.shape),
    )  # fmt: skip


def test_two_answers_to_the_first_prompts_of_every_domain():
    # Prompts 0, 1 and 2 are of x, prompt 3 of y; three answers each.
    rollout = rollout_of([0] * 3 + [1] * 3 + [2] * 3 + [3] * 3, ["x"] * 9 + ["y"] * 3)
    assert choose_answers(rollout, 4) == [0, 1, 9, 10]
    assert choose_answers(rollout, 6) == [0, 1, 3, 4, 9, 10]
    assert choose_answers(rollout, 100) == list(range(12))
    assert choose_answers(rollout, 1) == [0]


def left_out(ids, groups, clean):
    """Answers to prompts of the domain x that training has no reward for."""
    return LeftOut(
        answers=Answers(
            rows=[{"prompt": f"p{g}", "domain": "x"} for g in groups],
            texts=[f"b{i}" for i in ids],
            token_ids=[[7, 8]] * len(ids),
            sample_ids=torch.tensor(ids),
        ),
        truncated=torch.tensor([True] * len(ids)),
        groups=torch.tensor(groups),
        clean_rewards=torch.tensor(clean),
    )


def test_answers_without_a_reward_are_chosen_like_others():
    # 100 and 101 answer prompt 0, 102 and 103 prompt 1; 99 was drawn before and 104 after them.
    rollout = rollout_of([0, 0, 1, 1], ["x"] * 4)
    both = dataclasses.replace(rollout, left_out=left_out([99, 104], [0, 1], [torch.nan, 1.0]))
    # Of the left out, -2 is the first and -1 the last.
    assert choose_answers(both, 100) == [-2, 0, 1, 2, 3, -1]
    assert choose_answers(both, 4) == [-2, 0, 2, 3]
    assert choose_answers(both, 2) == [-2, 0]


def test_answers_without_a_reward_are_marked(tmp_path):
    config = dataclasses.make_dataclass("C", ["answers_every", "answers_kept"])(1, 8)
    gone = left_out([100, 101], [0, 0], [torch.nan, 1.0])
    none = dataclasses.replace(rollout_of([], []), left_out=gone)
    keep(tmp_path, Words(), none, estimate=None, targets=None, config=config, step=2)
    unscored, taken = read_kept(tmp_path, 2)
    assert (unscored.sample, unscored.answer, unscored.tokens) == (100, "b100", ["w7", "w8"])
    assert (unscored.told, unscored.clean, unscored.noisy) == (None, None, False)
    assert unscored.truncated and unscored.values == unscored.advantages == unscored.changes == []
    assert unscored.verdict(0.5) == unscored.words(0.5) == "no reward"
    # Noise took what the verifier had said.
    assert (taken.told, taken.clean, taken.noisy) == (None, 1.0, True)
    assert taken.words(0.5) == "right, told none, clean 1"


def test_few_quantiles_are_those_of_numpy_at_the_middles_of_their_shares():
    values = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    taus = (np.arange(16) + 0.5) / 16
    # Hazen's definition is that of taus = (i + 1/2) / Q.
    expected = np.quantile(values, taus, axis=-1, method="hazen").T
    assert few_quantiles(values) == pytest.approx(expected, abs=1e-6)
    assert few_quantiles(np.array([[3.0, 1.0]])).tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize("every", [1, 5, 7])
def test_the_number_of_steps_is_bounded_and_the_first_and_last_are_among_them(every):
    last = 5000 * every - 1
    files = set()
    for step in range(last + 1):
        now = spacing(step, every)
        if is_due(step, now):
            files = {old for old in files | {step} if is_due(old, now)}
            assert len(files) <= MOST_STEPS
    assert 0 in files and max(files) > last - 64 * every
    gaps = np.diff(sorted(files))[1:]
    assert len(files) > MOST_STEPS / 4 and len(set(gaps.tolist())) == 1


def test_what_is_due():
    assert [step for step in range(11) if is_due(step, 5)] == [0, 4, 9]
    assert not any(is_due(step, 0) for step in range(11))


def test_a_row_says_what_the_step_knew(tmp_path):
    config = dataclasses.make_dataclass("C", ["answers_every", "answers_kept"])(1, 8)
    quantiles = torch.tensor([[[3.0, 1.0], [5.0, 5.0]], [[0.0, 2.0], [9.0, 9.0]]])
    keep(
        tmp_path, Words(), rollout_of([0, 1], ["x", "y"], [2, 1]),
        estimate=Estimate(quantiles=quantiles, final=torch.tensor([[6.0, 4.0], [1.0, 1.0]])),
        targets=Targets(
            advantages=torch.tensor([[0.5, -0.5], [2.0, 0.0]]),
            raw_advantages=torch.zeros(2, 2), clean_advantages=torch.zeros(2, 2),
        ),
        config=config, step=3,
    )  # fmt: skip
    first, second = read_kept(tmp_path, 3)
    assert (first.sample, first.prompt, first.answer, first.domain) == (100, "p0", "a0", "x")
    assert (first.tokens, first.token_ids) == (["w0", "w1"], [0, 1])
    assert first.advantages == [0.5, -0.5]
    # Means of 1 and 3, of 5 and 5; half their distances; after the end 4 and 6.
    assert (first.values, first.spreads) == ([2.0, 5.0], [1.0, 0.0])
    assert first.quantiles == [[1.0, 3.0], [5.0, 5.0]] and first.final == [4.0, 6.0]
    assert first.changes == [3.0, 0.0]
    assert not first.noisy and second.noisy and (second.told, second.clean) == (1.0, 0.0)
    # One token: what pads it to the longest answer is left out.
    assert second.values == [1.0] and second.advantages == [2.0]


def test_without_a_critic_there_are_no_values(tmp_path):
    config = dataclasses.make_dataclass("C", ["answers_every", "answers_kept"])(1, 8)
    zeros = torch.zeros(1, 2)
    keep(
        tmp_path, Words(), rollout_of([0], ["x"]), estimate=None,
        targets=Targets(advantages=zeros, raw_advantages=zeros, clean_advantages=zeros),
        config=config, step=0,
    )  # fmt: skip
    (row,) = read_kept(tmp_path, 0)
    assert row.values == row.quantiles == row.final == row.changes == []


def test_any_text_and_chat_is_kept():
    assert kept._text("a\ud800b") == "a?b"
    assert len(kept._text("x" * 10**6)) == kept.MOST_LETTERS
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert kept.shown_prompt(chat) == "system: be brief\nuser: hi"


def test_a_broken_file_is_one_line(tmp_path):
    write(tmp_path, 0, [ANSWER])
    path = tmp_path / "answers" / "step-000000.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ConfigError, match="cannot read .*step-000000"):
        read_kept(tmp_path, 0)


def test_the_folder_reads_as_one_table(tmp_path):
    run = make_run(tmp_path / "run", kept={0: [answer()], 4: [answer(step=4), answer(step=4)]})
    (run / "answers" / ".partial").write_text("what a kill leaves")
    table = pyarrow.parquet.read_table(run / "answers")
    assert table.column("step").to_pylist() == [0, 4, 4]
    assert table.column("quantiles").to_pylist()[0] == ANSWER.quantiles


def train(folder, name, *flags):
    assert main(["train", *SMALL, "--runs-dir", str(folder), "--name", name, *flags]) == 0
    return folder / name


def test_a_resumed_run_keeps_each_answer_once_and_computes_the_same(tmp_path):
    whole = train(tmp_path, "whole", "--steps", "4", "--answers-every", "1")
    none = train(tmp_path, "none", "--steps", "4", "--answers-every", "0")
    parts = train(tmp_path, "parts", "--steps", "2", "--answers-every", "1")
    # As if killed after these were written and before their checkpoint was.
    for step in (2, 5):
        write(parts, step, [answer(step=step)])
    assert main(["train", "--resume", str(parts), "--steps", "4"]) == 0

    assert not (none / "answers").exists()
    assert kept_steps(parts) == kept_steps(whole) == [0, 1, 2, 3]
    rows = [[read_kept(run, step) for step in range(4)] for run in (whole, parts)]
    assert rows[0] == rows[1] and all(len(step) == 6 for step in rows[0])
    metrics = [
        [
            {k: v for k, v in json.loads(line).items() if not k.startswith("perf/")}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (whole, none, parts)
    ]
    assert metrics[0] == metrics[1] == metrics[2]


def some(completions, **columns):
    """Nothing is said of every other answer."""
    return [None if i % 2 else 1.0 for i in range(len(completions))]


def test_a_run_keeps_what_no_reward_scored(tmp_path, capsys):
    run = train(
        tmp_path, "run", "--steps", "1", "--noise", "none", "--reward.low", "0",
        "--reward.high", "1", "--reward", f"{__file__}:some",
    )  # fmt: skip
    rows = read_kept(run, 0)
    assert [row.clean for row in rows] == [row.told for row in rows] == [1.0, None] * 3
    assert [row.sample for row in rows] == list(range(6))
    assert all(row.values for row in rows[::2]) and not any(row.values for row in rows[1::2])
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    assert capsys.readouterr().out.count("no reward\n  prompt") == 3
    assert main(["show", str(run), "--wrong"]) == 0
    assert capsys.readouterr().out == "none of the 6 kept answers is what was asked for\n"
