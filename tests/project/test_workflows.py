"""What a public CI and its issue forms say: commands that exist, forms that a server would take."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CHOOSER = ROOT / ".github/ISSUE_TEMPLATE/config.yml"
FORMS = sorted(set(CHOOSER.parent.glob("*.yml")) - {CHOOSER})
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-forms": FORMS,
    "github-issue-config": [CHOOSER],
    "citation-file-format": [ROOT / "CITATION.cff"],
}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


def jobs(path):
    return yaml.safe_load(path.read_text())["jobs"]


def commands(job):
    return [line for step in job["steps"] for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_command_is_a_make_target(path):
    """Whatever a public CI runs, a person runs by the same word."""
    for name, job in jobs(path).items():
        assert commands(job), name
        for line in commands(job):
            assert re.match(r"make ([\w-]+)", line), line
            assert line.split()[1] in TARGETS, line


def test_what_ci_runs_is_in_the_workflow():
    local = re.search(r"exec (make \w+)", (ROOT / ".ci/run").read_text())[1]
    every = [line for path in WORKFLOWS for job in jobs(path).values() for line in commands(job)]
    assert any(line.startswith(local) for line in every)


@pytest.mark.parametrize(
    ("apt", "said"),
    [
        ("ln -sf apt-get chromium", "installed chromium, for the tests of pages\n"),
        ("false", "no browser, and none can be installed: the tests of pages skip\n"),
    ],
)
def test_ci_brings_a_browser_once_and_goes_on_without(tmp_path, apt, said):
    for name in ("bash", "dirname", "ln", "timeout"):
        (tmp_path / name).symlink_to(shutil.which(name))
    for name, line in {"apt-get": f"cd {tmp_path} && {apt}", "make": "echo make $*"}.items():
        (tmp_path / name).write_text(f"#!{shutil.which('sh')}\n{line}\n")
        (tmp_path / name).chmod(0o755)

    command = [shutil.which("bash"), ROOT / ".ci/run"]
    env = {"PATH": str(tmp_path)}
    first, second = (subprocess.run(command, env=env, capture_output=True, text=True).stdout
                     for _ in range(2))  # fmt: skip
    assert first == f"{said}make test\n"
    assert second == ("make test\n" if said.startswith("installed") else first)


def test_every_phony_target_exists():
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert set(phony.replace("\\", "").split()) == TARGETS - {"NATIVE"}


@pytest.mark.parametrize(("schema", "files"), SCHEMAS.items(), ids=SCHEMAS)
def test_their_servers_would_take_them(schema, files):
    """Against the schemas of SchemaStore, which ship with check-jsonschema."""
    assert files
    command = ["check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_forms_tell_people_to_run_works(capsys):
    from dfpo.__main__ import main

    asked = [word for form in FORMS for word in re.findall(r"`(dfpo .*?)`", form.read_text())]
    assert asked
    for command in asked:
        assert main(command.split()[1:]) == 0
        assert "torch" in capsys.readouterr().out
