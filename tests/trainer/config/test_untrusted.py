"""What strangers wrote: one line each, no code of theirs run, bounded time and memory."""

import json
import os
import pickle
import resource
import struct
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file, save
from tiny_models import make_model, make_tokenizer

import dfpo.rollout.tokens
from dfpo.config import ConfigError
from dfpo.config.untrusted import GIB, TimeLimit, memory_limit, time_limit, try_apart
from dfpo.rollout.policy import load_policy
from dfpo.rollout.tokens import check_tokenizer, encode

CHAT = [{"role": "user", "content": "hi"}]
LOOP = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
DOUBLE = "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}"


@pytest.fixture(autouse=True)
def bounded():
    """Each within half a minute and 3 GiB, of this process and its children."""

    def peak():
        return max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )

    before, began = peak(), time.monotonic()
    yield
    assert time.monotonic() - began < 30
    assert (peak() - before) * 1024 < 3 * GIB


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture
def broken(model, tmp_path):
    """A copy of the model with one file changed, by ``broken(file, content or settings)``."""
    folder = tmp_path / "broken"
    subprocess.run(["cp", "-r", model, folder], check=True)

    def change(file, content):
        path = folder / file
        if isinstance(content, dict):
            content = json.dumps(json.loads(path.read_text()) | content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return change


def refusal(read):
    with pytest.raises(ConfigError) as error:
        read()
    said = str(error.value)
    assert "\n" not in said and len(said) < 800
    return said


def test_limits_of_time_and_memory():
    with pytest.raises(TimeLimit), time_limit(0.2):
        while True:
            pass
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), memory_limit(GIB):
        bytearray(2 * GIB)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert len(bytearray(2**20)) == 2**20


def refuse():
    raise ConfigError("in words")


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda: None, None),
        (lambda: 1 / 0, None),
        (refuse, "in words"),
        (lambda: os._exit(3), ""),
        (lambda: os.kill(os.getpid(), 9), ""),
        (lambda: time.sleep(60), ""),
        # No alarm reaches Python inside it.
        (lambda: torch.ones(()).expand(10**13).sum(), ""),
    ],
)
def test_what_is_tried_apart(work, expected):
    assert try_apart(work, 0.3, GIB) == expected


TOO_LONG = "takes more than 0.5 seconds"
TEMPLATES = {
    "loop": (LOOP, TOO_LONG),
    "range": ("{% for i in range(10**9) %}x{% endfor %}", "range"),
    "gigabytes": ("{{ 'x' * 10**11 }}", "MemoryError"),
    "doubled": (DOUBLE + "{% endfor %}{{ n.s }}", "MemoryError"),
    "padded": ("{{ 'x'|center(10**11) }}", "MemoryError"),
    "long": ("{{ 'x' * 20000000 }}", "20000000 letters, must have at most"),
    "power": ("{{ 9**(9**9) }}", TOO_LONG),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "deep": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "format": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "SecurityError"),
    "globals": ("{{ cycler.__init__.__globals__.os.abort() }}", "SecurityError"),
    "change": ("{% set _ = messages.append(1) %}", "SecurityError"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
    "nothing": ("{{ (messages|attr('__class__')) }}", "no tokens"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_chat_templates(monkeypatch, name):
    template, words = TEMPLATES[name]
    if words == TOO_LONG:
        monkeypatch.setattr(dfpo.rollout.tokens, "PROMPT_SECONDS", 0.5)
    monkeypatch.setattr(dfpo.rollout.tokens, "PROMPT_MEMORY", GIB)
    tokenizer = make_tokenizer(300)
    tokenizer.chat_template = template
    for read in (encode, lambda t, chat: check_tokenizer(t, [chat])):
        assert words in refusal(lambda read=read: read(tokenizer, CHAT))


def rules(model, **changed):
    return json.dumps(json.loads((model / "tokenizer.json").read_text()) | changed)


BACKTRACKS = {
    "type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False,
}  # fmt: skip
THOUSAND = {"type": "Replace", "pattern": {"String": "x"}, "content": "x" * 1000}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pre_tokenizer": BACKTRACKS}, "its tokenizer fails on 'xxx"),
        ({"normalizer": {"type": "Sequence", "normalizers": [THOUSAND] * 5}}, "2 GiB"),
    ],
)
def test_hostile_tokenizers(model, broken, capfd, changed, words):
    """Neither does Rust's own account of its end come out, nor does the process end."""
    tokenizer = load_policy(broken("tokenizer.json", rules(model, **changed)))[1]
    capfd.readouterr()
    assert words in refusal(lambda: check_tokenizer(tokenizer, ["hello", "x" * 40]))
    assert capfd.readouterr().err == ""


def test_a_tokenizer_is_tried_before_a_run(model, broken, tmp_path, capfd):
    from dfpo.__main__ import main

    folder = broken("tokenizer.json", rules(model, pre_tokenizer=BACKTRACKS))
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "x" * 40}) + "\n")
    (tmp_path / "r.py").write_text("def r(completions, **_): return [0.0] * len(completions)")
    words = ["train", "--model", folder, "--data", tmp_path / "x.jsonl"]
    words += ["--reward", f"{tmp_path / 'r.py'}:r", "--runs-dir", tmp_path / "runs"]
    assert main([str(word) for word in words]) == 2
    said = capfd.readouterr().err
    assert "its tokenizer fails" in said and "panicked" not in said


def header(content, body=b"\0" * 64):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(content)) + content + body


def tensor(start, end, shape=(8,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.safetensors", header({"a": tensor(0, 32), "b": tensor(16, 48)}), "invalid offset"),
        ("model.safetensors", struct.pack("<Q", 2**62) + b"{}", "header too large"),
        ("model.safetensors", header({"a": tensor(0, 32, (2**40, 2**40))}), "overflow"),
        ("model.safetensors", header(b"[" * 10**6), "invalid JSON"),
        ("model.safetensors", b"", "holds not a causal language model"),
        ("tokenizer.json", "[" * 10**6, "holds not a tokenizer"),
        ("config.json", "[" * 50000 + "]" * 50000, "holds not a causal language model"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ("config.json", {"vocab_size": 10**10}, "holds not a causal language model"),
        ("config.json", {"hidden_size": 10**8}, "holds not a causal language model"),
        ("config.json", {"hidden_size": "many"}, "hidden_size"),
        ("config.json", {"hidden_act": "__import__('os').abort()"}, "abort"),
    ],
)
def test_hostile_model_directories(broken, file, content, words):
    folder = broken(file, content)
    assert words in refusal(lambda: load_policy(folder))


def test_a_panic_while_reading_is_one_line(model, broken, capfd):
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    folder = broken("tokenizer.json", rules(model, normalizer=charsmap))
    assert "charsmap" in refusal(lambda: load_policy(folder))
    assert "panicked" not in capfd.readouterr().err


def test_weights_that_are_not_finite_are_named(model, broken):
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    folder = broken("model.safetensors", save(weights, {"format": "pt"}))
    assert "NaN or infinity in model.norm.weight" in refusal(lambda: load_policy(folder))


TRAP = "import os\nos.mkdir({0!r})\nclass C: pass\n"


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "trap.C", "AutoModelForCausalLM": "trap.C"},
                         "model_type": "trap"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["trap.C", None]},
                                   "tokenizer_class": "C"}),
    ],
)  # fmt: skip
def test_remote_code_is_refused_without_a_question(broken, tmp_path, monkeypatch, file, settings):
    """transformers asks whether to run it, and takes "y" from a pipe for an answer."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    folder, sprung = broken(file, settings), tmp_path / "sprung"
    (folder / "trap.py").write_text(TRAP.format(str(sprung)))
    assert "it wants code of its own to be run" in refusal(lambda: load_policy(folder))
    assert not sprung.exists()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_does_not_run(broken, tmp_path):
    sprung = tmp_path / "sprung"
    folder = broken("pytorch_model.bin", pickle.dumps(Trap(sprung), protocol=2))
    (folder / "model.safetensors").unlink()
    said = refusal(lambda: load_policy(folder))
    assert "pickled weights ask for code to be run" in said
    assert "weights_only" not in said, "torch advises to run it"
    assert not sprung.exists()


def test_gguf_files_cut_short(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 8):
        path.write_bytes(whole[:length])
        assert "a.gguf holds not" in refusal(lambda: load_policy(path))
    # A count of settings that no file could hold.
    path.write_bytes(whole[:16] + struct.pack("<Q", 2**60) + whole[24:])
    assert "a.gguf holds not" in refusal(lambda: load_policy(path))
