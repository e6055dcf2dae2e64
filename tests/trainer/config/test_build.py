"""Settings: precedence, checks, and the round trip through YAML."""

import pytest
import yaml

from dfpo.__main__ import main
from dfpo.config import ALGORITHMS, ConfigError, build_config, load_yaml, to_yaml
from dfpo.config.build import RENAMED, flatten, options


def test_defaults_are_dfpo():
    config = build_config({})
    assert config.algorithm == "dfpo"
    assert config.critic.kind == "value_flow"
    assert config.target.kind == "lambda_mixture"


def test_preset_yields_to_settings():
    assert build_config({"algorithm": "dfpo-paper"}).critic.readout == "one_step"
    changed = build_config({"algorithm": "dfpo-paper", "critic.readout": "flow"})
    assert changed.critic.readout == "flow"
    assert changed.critic.channels == 1


def test_text_from_flags_becomes_numbers():
    config = build_config(
        {"seed": "3", "target.lam": "0.5", "target.bootstrap_on_truncation": "True"}
    )
    assert (config.seed, config.target.lam, config.target.bootstrap_on_truncation) == (3, 0.5, True)


def test_yaml_round_trip(tmp_path):
    config = build_config({"algorithm": "ppo", "noise": "flip=0.3", "critic.width": 17})
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert build_config(load_yaml(path)) == config


def test_yaml_nested_and_dotted(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("critic: {width: 8}\ncoef.risk: 0\n")
    config = build_config(load_yaml(path))
    assert (config.critic.width, config.coef.risk) == (8, 0.0)


def test_every_option_is_documented():
    for dotted, item, _ in options():
        assert item.metadata.get("doc"), dotted


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "dfpo-papr"}, ["algorithm", "'dfpo-papr'", "did you mean dfpo-paper?"]),
        ({"critic.widht": 3}, ["critic.widht", "did you mean critic.width?"]),
        ({"steps": -1}, ["steps", "-1", ">= 0"]),
        ({"steps": "many"}, ["steps", "'many'", "an integer"]),
        ({"seed": 1.5}, ["seed", "1.5", "an integer"]),
        ({"target.gamma": 1.5}, ["target.gamma", "1.5", "[0, 1]"]),
        ({"target.gamma": float("nan")}, ["target.gamma", "nan"]),
        ({"critic.readout": "flw"}, ["critic.readout", "did you mean flow?"]),
        ({"noise": "flip=2"}, ["noise", "flip=2", "[0, 1]"]),
        ({"noise": "flop=0.1"}, ["noise", "flop=0.1", "flip"]),
        ({"coef.anchor": 0.0}, ["coef.consistency", "anchor is 0"]),
        ({"coef.mean": 0.0}, ["coef.mean", "critic.linear_mean"]),
        ({"algorithm": ["ppo"]}, ["algorithm", "['ppo']", "one of"]),
        (
            {"algorithm": "dfpo-rank", "target.advantage_clip": 0.5},
            ["target.advantage_clip", "0.5", "rank"],
        ),
        ({"reward.low": 2.0, "reward.high": 1.0}, ["reward.low", "below"]),
        ({"reward.low": 2.0}, ["reward.high", "not given"]),
        ({"risk": "cvar"}, ["risk", "'cvar'", "cvar-lower"]),
        ({"risk": "cvar-lower=1.5"}, ["risk", "1.5", "(0, 1]"]),
        ({"risk": "wang", "algorithm": "ppo"}, ["risk", "scalar"]),
        ({"data": "a.jsonl"}, ["reward", "not given"]),
        ({"data": "a.jsonl", "task": "suite", "reward": "a.py:f"}, ["task", "suite"]),
        ({"eval_data": "a.jsonl"}, ["eval_data", "a.jsonl"]),
        ({"reward": "a.py:f,b.py:f", "reward.weights": "1"}, ["reward.weights", "2 rewards"]),
        ({"reward": "a.py:f", "reward.weights": "one"}, ["reward.weights", "'one'", "number"]),
        ({"trackers": "tensorbord"}, ["trackers", "did you mean tensorboard?"]),
        ({"policy.minibatches": 65}, ["policy.minibatches", "64"]),
        ({"rollout.prompts": True}, ["rollout.prompts", "True"]),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ConfigError) as error:
        build_config(settings)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1\n", "just text"])
def test_wrong_files_are_named(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_yaml(path)
    path.write_bytes(b"steps: 3 # \xff")
    with pytest.raises(ConfigError, match=r"c\.yaml is not UTF-8"):
        load_yaml(path)
    with pytest.raises(ConfigError, match="absent"):
        load_yaml(tmp_path / "absent.yaml")


def test_yaml_holds_every_setting():
    tree = yaml.safe_load(to_yaml(build_config({})))
    for dotted, _, _ in options():
        section, _, name = dotted.rpartition(".")
        assert name in (tree[section] if section else tree)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_a_run_stores_is_what_it_reads(algorithm):
    """The config.yaml of any algorithm, with every setting in it, builds the same run again."""
    config = build_config({"algorithm": algorithm})
    stored = dict(flatten(yaml.safe_load(to_yaml(config))))
    assert build_config(stored) == config


def test_settings_of_before_are_answered_by_their_new_names(tmp_path, capsys):
    path = tmp_path / "old.yaml"
    path.write_text("critic: {return_low: 0, return_high: 2}\npolicy.dtype: float32\n")
    assert main(["train", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    for old, new in (
        ("critic.return_low", "reward.low"), ("critic.return_high", "reward.high"),
        ("policy.dtype", "dtype"),
    ):  # fmt: skip
        assert f"{old}: is called {new} now" in said
    assert said.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--critic.return-high", "2"])
    assert "--critic.return-high: is called --reward.high now" in capsys.readouterr().err


def test_every_new_name_is_a_setting():
    known = {dotted for dotted, _, _ in options()}
    assert set(RENAMED.values()) <= known and not set(RENAMED) & known


@pytest.mark.parametrize(
    "text",
    [
        "reward: &a\n  low: *a\n",  # holds itself
        "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
        "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
        "e: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
        "steps: " + "[" * 5000 + "]" * 5000,
    ],
)
def test_yaml_that_refers_to_itself_or_explodes_is_one_line(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="^config: ") as error:
        load_yaml(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_yaml_may_share_its_parts(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("critic: &c {width: 8}\nnoise: none\n")
    assert load_yaml(path) == {"critic.width": 8, "noise": "none"}
