"""The supervised start: tokenizer, loss mask, a short run, and the policy that ships."""

import argparse
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dfpo
from dfpo.config import ConfigError
from dfpo.study import starting_policy
from dfpo.tasks import DOMAINS, SPLITS, SUITES, VOCABULARY, Problem, demonstration

SHIPPED = Path(dfpo.__file__).parent / "tasks" / "starting_policies"
SHIPPED = {name: SHIPPED / name for name in SUITES}
SHORT = starting_policy.SFTConfig(steps=5, batch_size=6, eval_prompts=2)
PAIRS = [("math units 1 + units 2 ?", "units 1 + 2 + 0 = 0 3 so 0 3"), ("dialogue ?", "so none")]


@pytest.fixture(scope="module")
def tokenizer():
    return starting_policy.build_tokenizer()


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("policy")
    return output, starting_policy.train_policy(SHORT, output)


def test_tokenizer_round_trip(tokenizer):
    texts = []
    for domain in DOMAINS:
        for split in SPLITS:
            for index in range(500):
                item, shown = demonstration(4, domain, split, index, slip=0.55)
                texts += [item.prompt, item.answer, shown]
    encoded = tokenizer(texts)["input_ids"]
    assert all(tokenizer.unk_token_id not in ids for ids in encoded)
    assert [len(ids) for ids in encoded] == [len(text.split()) for text in texts]
    assert tokenizer.batch_decode(encoded) == texts
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == texts


def test_tokenizer_gives_each_word_and_special_token_its_id(tokenizer):
    assert len(tokenizer) == 3 + len(VOCABULARY)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<pad>", "<eos>", "<unk>", "0"]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<pad>",
        "<eos>",
        "<unk>",
    )
    assert tokenizer.tokenize("#1 m/s 1 2") == ["#1", "m/s", "1", "2"]
    assert tokenizer("poetry 12")["input_ids"] == [2, 2], "unknown words, digits run together"
    assert tokenizer.chat_template is None


def test_tokenizer_pads_on_the_left(tokenizer):
    batch = tokenizer(["math 1 ?", "?"], padding=True)
    assert batch["input_ids"][1][:2] == [0, 0]
    assert batch["attention_mask"][1] == [0, 0, 1]


def test_labels_are_the_answer_and_eos(tokenizer):
    ids, labels = starting_policy.encode(tokenizer, PAIRS)
    assert ids.shape == labels.shape
    for row, (prompt, answer) in enumerate(PAIRS):
        counted = labels[row] != starting_policy.IGNORED
        assert tokenizer.decode(labels[row][counted]) == f"{answer} <eos>"
        assert tokenizer.decode(ids[row][counted]) == f"{answer} <eos>"
        rest = tokenizer.decode(ids[row][~counted]).replace("<pad>", "").split()
        assert rest == prompt.split()
        assert tokenizer.decode(ids[row]).startswith(f"{prompt} {answer} <eos>")


def test_loss_predicts_each_answer_token_from_the_tokens_before_it(tokenizer):
    model = starting_policy.build_model(tokenizer, seed=0)
    ids, labels = starting_policy.encode(tokenizer, PAIRS)
    output = model(input_ids=ids, labels=labels)
    logprobs = output.logits.log_softmax(-1)
    terms = []
    for row, (prompt, answer) in enumerate(PAIRS):
        begin, end = len(prompt.split()), len(prompt.split()) + len(answer.split()) + 1
        terms += [-logprobs[row, at - 1, ids[row, at]] for at in range(begin, end)]
    torch.testing.assert_close(output.loss, torch.stack(terms).mean())


def test_a_wrong_answer_starts_with_the_slip_or_it_does_not():
    item = Problem("dialogue", "", "#1 day set friday #2 day new monday so day monday")
    suite = SUITES["suite"]
    for answer, slipped in (
        ("#1 day set friday #2 day keep friday so day friday", True),
        ("#1 day set monday #2 day keep monday so day monday", False),
        ("#1 day set friday #2 day set monday so day friday", False),
        ("#1 day set friday #2 day", False),
    ):
        assert starting_policy._starts_with_slip(answer, item, suite) == slipped


def test_short_run_writes_a_loadable_model_directory(short_run):
    output, results = short_run
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert model.dtype == torch.float32
    assert 0.14e6 < model.num_parameters() < 0.16e6
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(results) == len(DOMAINS) * len(SPLITS)
    assert all(set(row) == set(starting_policy.COLUMNS) for row in results.values())


def test_short_run_changes_the_weights(short_run, tokenizer):
    trained = AutoModelForCausalLM.from_pretrained(short_run[0]).state_dict()
    fresh = starting_policy.build_model(tokenizer, SHORT.seed).state_dict()
    assert all(not torch.equal(trained[name], fresh[name]) for name in trained)


def test_short_run_repeats_bit_for_bit(short_run, tmp_path):
    torch.rand(3)  # the state of the global generator must not matter
    assert starting_policy.train_policy(SHORT, tmp_path) == short_run[1]
    first, second = (path / "model.safetensors" for path in (short_run[0], tmp_path))
    assert first.read_bytes() == second.read_bytes()


def test_model_card_holds_the_command(short_run):
    card = (short_run[0] / "README.md").read_text()
    command = next(line for line in card.splitlines() if line.startswith("dfpo sft "))
    parser = argparse.ArgumentParser()
    starting_policy.add_arguments(parser)
    args = parser.parse_args(command.split()[2:])
    assert (args.steps, args.batch_size, args.output) == (5, 6, short_run[0])
    assert "| math/ood |" in card


def test_flags_default_to_the_config():
    parser = argparse.ArgumentParser()
    starting_policy.add_arguments(parser)
    flags = vars(parser.parse_args([]))
    flags.pop("output")
    assert starting_policy.SFTConfig(**flags) == starting_policy.SFTConfig()
    help_text = " ".join(parser.format_help().split())
    assert "optimizer updates; an integer >= 1 (default: 2400)" in help_text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps: is 0, must be an integer >= 1"),
        ({"task": "easy"}, "task: is 'easy', must be one of suite, hard, shared"),
        ({"slip": 1.5}, r"slip: is 1.5, must be a number in \[0, 1\]"),
        ({"threads": -1}, "threads: is -1, must be an integer >= 1"),
        ({"learning_rate": float("nan")}, "learning_rate: is nan, must be a number >= 0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        starting_policy.SFTConfig(**wrong)


def test_an_output_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output: cannot make"):
        starting_policy.train_policy(SHORT, tmp_path / "file" / "policy")


@pytest.mark.parametrize("task", SUITES)
def test_shipped_policies_are_small_and_read_as_built(task):
    assert sum(path.stat().st_size for path in SHIPPED[task].iterdir()) < 1e6
    tokenizer = starting_policy.build_tokenizer(SUITES[task])
    shipped = AutoTokenizer.from_pretrained(SHIPPED[task])
    assert shipped.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    for name in ("special_tokens_map", "padding_side", "model_max_length", "chat_template"):
        assert getattr(shipped, name) == getattr(tokenizer, name)
    config = AutoModelForCausalLM.from_pretrained(SHIPPED[task]).config.to_dict()
    built = starting_policy.build_model(tokenizer, seed=0).config.to_dict()
    differing = {name for name in built if built[name] != config[name]}
    assert differing <= {"_name_or_path", "architectures", "dtype", "transformers_version"}
    assert f"--task {task} " in (SHIPPED[task] / "README.md").read_text() or task == "suite"


@pytest.mark.parametrize(
    ("task", "lowest", "highest"),
    [
        ("suite", 0.3, 0.7),
        pytest.param("hard", 0.12, 0.42, marks=pytest.mark.long),
        pytest.param("shared", 0.25, 0.55, marks=pytest.mark.long),
    ],
)
def test_shipped_policies_mostly_slip_where_they_are_wrong(task, lowest, highest):
    model = AutoModelForCausalLM.from_pretrained(SHIPPED[task])
    suite = SUITES[task]
    found = starting_policy.measure(
        model, starting_policy.build_tokenizer(suite), prompts=64, suite=suite
    )
    rows = [found[f"{domain}/id"] for domain in suite.domains]
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in starting_policy.COLUMNS}
    # Four standard errors of 192 answers are 0.14.
    assert lowest < mean["sampled"] < highest
    assert mean["slip_free"] > 0.85
    assert mean["slips"] > 0.8
    assert mean["ended"] > 0.98
    assert 15 < mean["tokens"] < 50
