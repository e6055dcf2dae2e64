"""The card of a run's policy, and pushing both to a hub: a stand-in that speaks its protocol."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants

from dfpo.__main__ import main

SMALL = [
    "train", "--steps", "2", "--algorithm", "grpo", "--noise", "flip=0.2", "--eval.prompts", "2",
    "--plots", "false", "--rollout.prompts", "2", "--rollout.samples", "2", "--name", "mine",
    "--rollout.max-new-tokens", "12",
]  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """Repositories, what mode a file is uploaded in, large files, commits."""

    def log_message(self, *words):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(data).hexdigest()] = data
        self.answer({})

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.tokens.add(self.headers.get("Authorization"))
        if server.refuses:
            self.answer({"error": "no space left"}, 403)
        elif self.path == "/api/repos/create":
            server.made.append(json.loads(body))
            self.answer({"url": f"{server.url}/me/toy", "id": "me/toy"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith("safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{server.url}/large/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif self.path == "/api/models/me/toy/commit/main":
            server.commits.append([json.loads(line) for line in body.splitlines()])
            url = f"{server.url}/me/toy/commit/0"
            self.answer({"commitUrl": url, "commitOid": "0", "success": True})


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.large, server.tokens, server.made, server.commits = {}, set(), [], []
    server.refuses = False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    thread.join()


def test_a_run_is_pushed_with_its_card(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "--push-to-hub", "me/toy"]) == 0
    assert f"policy and card in {hub.url}/me/toy" in capsys.readouterr().out

    (commit,), made = hub.commits, hub.made[0]
    assert made["name"] == "toy" and made["organization"] == "me"
    assert made.get("private") is True or made.get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_secret"}
    policy = tmp_path / "runs/mine/policy"
    files = {line["value"]["path"]: line["value"] for line in commit if line["key"] != "header"}
    assert set(files) == {str(p.relative_to(policy)) for p in policy.rglob("*") if p.is_file()}
    weights = (policy / "model.safetensors").read_bytes()
    assert hub.large[files["model.safetensors"]["oid"]] == weights
    assert base64.b64decode(files["README.md"]["content"]) == (policy / "README.md").read_bytes()


def test_a_push_that_fails_leaves_a_complete_run(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hub.refuses = True
    assert main([*SMALL, "--push-to-hub", "me/toy"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "push_to_hub: HfHubHTTPError" in error and "hf upload me/toy runs/mine/policy" in error
    assert (tmp_path / "runs/mine/summary.json").is_file()


def test_without_a_token_nothing_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dfpo.run.hub.get_token", lambda: None)
    assert main([*SMALL, "--push-to-hub", "me/toy"]) == 2
    assert "push_to_hub: there is no token" in capsys.readouterr().err
    monkeypatch.setattr("dfpo.run.hub.get_token", lambda: "hf_secret")
    assert main([*SMALL, "--push-to-hub", "a/b/c"]) == 2
    assert "push_to_hub: is 'a/b/c', must be NAME or OWNER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_card_says_what_was_done(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "--quiet", "true"]) == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err == "", "a quiet run says nothing"

    text = (tmp_path / "runs/mine/policy/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["dfpo", "grpo", "reinforcement-learning"]
    assert "| noise on the training reward | flip=0.2 |" in body
    assert "| reward | the task's verifier, range [0, 1] |" in body
    summary = json.loads((tmp_path / "runs/mine/summary.json").read_text())
    for when in ("before", "after"):
        mean, error = summary[when]["id_greedy"], summary[when]["id_greedy_se"]
        assert f"{mean:.3f} ± {error:.3f}" in body
    assert f"torch {torch.__version__}, transformers {transformers.__version__}" in body

    # The command on the card is the run: the same weights, bit for bit.
    command = next(line for line in body.splitlines() if line.startswith("dfpo train"))
    assert main([*command.split()[1:], "--name", "again", "--quiet", "true"]) == 0
    first, again = (tmp_path / f"runs/{n}/policy/model.safetensors" for n in ("mine", "again"))
    assert first.read_bytes() == again.read_bytes()
