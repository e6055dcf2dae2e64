"""Input that nobody thought of: one line or an answer, never a traceback, a hang or a file.

`make fuzz` draws ten times as much as `make test`.
"""

import contextlib
import io
import json
import os
import string
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dfpo_kernels
from dfpo.__main__ import main
from dfpo.config import ConfigError, build_config, load_yaml
from dfpo.config.build import options
from dfpo.run import manifest
from dfpo.study.recipe import load_recipe
from dfpo.tasks.files import read_rows
from dfpo.tasks.verifiers import letter, plain, words

CASES = int(os.environ.get("FUZZ", "1000"))
NOWHERE = {"train": ["--model", "nowhere"], "eval": ["nowhere"]}
NAMES = [name for name, _, _ in options()]


def drawn(share):
    """``share`` of the cases, each within ten seconds."""
    return settings(
        max_examples=max(10, int(share * CASES)),
        deadline=10_000,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


words_of_people = st.one_of(
    st.sampled_from(["", "0", "-1", "1e400", "nan", "true", "None", "[1]", "{a: 1}", "*a", "!x"]),
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
)
names = st.one_of(st.sampled_from(NAMES), st.text(string.ascii_letters + "._-", max_size=15))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@drawn(0.3)
@given(st.lists(st.tuples(names, words_of_people), min_size=1, max_size=4))
def test_settings(pairs):
    try:
        build_config(dict(pairs))
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, str(error)


@drawn(0.1)
@given(st.lists(st.tuples(names, words_of_people), max_size=3), st.sampled_from(["train", "eval"]))
def test_command_lines(folder, pairs, command):
    """Each with a model that is not there, so that none starts to work."""
    flags = [word for name, value in pairs for word in (f"--{name}", value)]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main([command, *flags, *NOWHERE[command]])
        except SystemExit as stop:
            status = stop.code
    assert status in (0, 2), said.getvalue()
    assert "Traceback" not in said.getvalue()
    assert not list(folder.iterdir())


@drawn(0.15)
@given(st.one_of(values.map(yaml.safe_dump), st.text(max_size=60), st.binary(max_size=60)))
def test_yaml_files_and_recipes(folder, content):
    path = folder / "a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="replace"))
    for read in (lambda: build_config(load_yaml(path)), lambda: load_recipe(path, {})):
        try:
            read()
        except ConfigError as error:
            assert "\n" not in str(error), str(error)


@drawn(0.15)
@given(
    st.lists(st.one_of(values, st.dictionaries(st.just("prompt"), values)), max_size=3),
    st.binary(max_size=20),
)
def test_prompts_from_files(folder, rows, tail):
    path = folder / "a.jsonl"
    path.write_bytes("\n".join(json.dumps(row) for row in rows).encode() + tail)
    (folder / "a.parquet").write_bytes(b"PAR1" + tail)
    (folder / "a.arrow").write_bytes(tail)
    for name in ("a.jsonl", "a.parquet", "a.arrow"):
        try:
            read_rows("data", folder / name)
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, str(error)


@drawn(0.1)
@given(st.text(max_size=200))
def test_what_a_policy_may_say(text):
    for read in (letter, words, plain):
        read(text)
        read(f"\\boxed{{{text}")


@drawn(0.1)
@given(st.data())
def test_a_manifest_with_any_change_is_not_whole(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "weights").write_bytes(b"some weights")
    manifest.write_manifest(folder, "run", 3)
    assert manifest.problem_of(folder, "run", 3) is None
    path: Path = data.draw(st.sampled_from([folder / "weights", folder / manifest.NAME]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    changed = data.draw(st.integers(0, 255).filter(lambda x: x != content[place]))
    content[place] = changed
    path.write_bytes(content)
    assert manifest.problem_of(folder, "run", 3) is not None


dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
shapes = st.lists(st.integers(0, 4), max_size=4)
tensors = st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), shapes, dtypes)


@drawn(0.1)
@given(tensors, tensors, tensors, st.one_of(st.floats(), st.integers(), st.text(max_size=3)))
def test_arguments_of_kernels(a, b, c, number):
    calls = (
        lambda: dfpo_kernels.distributional_gae(a, b, c, gamma=number),
        lambda: dfpo_kernels.quantile_huber_loss(a, b, kappa=number),
        lambda: dfpo_kernels.lambda_mixture_targets(a, b, c, lam=number),
        lambda: dfpo_kernels.integrate_flow(dfpo_kernels.FlowField(a, b, c, a, b), c, steps=number),
    )
    for call in calls:
        try:
            call()
        except (TypeError, ValueError) as error:
            assert ": " in str(error), "names the argument"
