"""Cells as tasks of a cluster: the same results, whatever dies on the way."""

import dataclasses
import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from dfpo.__main__ import main
from dfpo.config import ConfigError
from dfpo.study import ray_cells
from dfpo.study.cell import write_settings
from dfpo.study.ray_cells import Ended, Order, carry_out, check_ray, is_address, settle, slots
from dfpo.study.recipe import grid, parse_recipe
from dfpo.study.workers import Work

RECIPE = {
    "seeds": [3, 4],
    "arms": ["ppo", "dfpo"],
    "noises": ["flip=0.5"],
    "base": {
        "steps": 6,
        "rollout": {"prompts": 3, "samples": 2, "max_new_tokens": 24},
        "critic": {"warmup_steps": 2, "warmup_epochs": 1, "num_quantiles": 5},
        "eval.prompts": 2,
        "checkpoint_every": 1,
    },
}


def cells(folder, **changes):
    recipe = parse_recipe(RECIPE | {"output": str(folder)} | changes, Path(), {})
    return grid(recipe, {})


@pytest.mark.parametrize(
    ("where", "is_one"),
    [("ray", True), ("ray://head:10001", True), ("10.0.0.1:6379", True), ("head", False),
     ("raay", False), ("", False)],
)  # fmt: skip
def test_what_an_address_is(where, is_one):
    assert is_address(where) == is_one
    if not is_one:
        with pytest.raises(ConfigError, match=f"on: is {where}, must be local, ray, ray://HOST"):
            check_ray(where)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_line_says_what_to_install(tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output": str(tmp_path / "out")}))
    assert main(["compare", str(path), "--on", "ray"]) == 2
    assert "pip install 'dfpo[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Cluster:
    """The resources of one."""

    def __init__(self, **resources):
        self.resources = resources

    def cluster_resources(self):
        return self.resources


def test_a_cell_takes_its_threads_and_a_gpu_where_there_is_one(tmp_path):
    usual = cells(tmp_path)
    assert ray_cells.needs(Cluster(CPU=8.0), usual[0]) == {"num_cpus": 1, "num_gpus": 0}
    assert ray_cells.needs(Cluster(CPU=8.0, GPU=2.0), usual[0]) == {"num_cpus": 1, "num_gpus": 1}
    wide = cells(tmp_path, base=RECIPE["base"] | {"threads": 3, "device": "cpu"})
    assert ray_cells.needs(Cluster(CPU=8.0, GPU=2.0), wide[0]) == {"num_cpus": 3, "num_gpus": 0}
    assert slots(Cluster(CPU=8.0), usual) == 8
    assert slots(Cluster(CPU=8.0, GPU=2.0), usual) == 2
    assert slots(Cluster(CPU=8.0, GPU=2.0), wide) == 2
    assert slots(Cluster(), usual) == 1, "a cluster that is still starting"


def test_a_node_that_does_not_see_the_directory_sends_files_back(tmp_path):
    """What it sends is what the tables and plots read, and none of the models."""
    cell = dataclasses.replace(cells(tmp_path / "far")[0])
    ended = carry_out(Order(cell, Path("/nowhere"), mark=Path("/nowhere/mark")))
    assert ended.status == 0, ended.said
    assert not cell.run.exists(), "nothing is written where the node sees nothing"

    work = Work([cell], 1)
    work.started[cell] = (time.monotonic(), 0)
    settle(work, cell, ended, stopping=False)
    assert work.steps == {"ppo": 6} and not work.failed
    near = cells(tmp_path / "near")[0]
    (tmp_path / "mark").touch()
    write_settings(near)
    assert carry_out(Order(near, Path.cwd(), tmp_path / "mark")) == Ended(0, "", {})
    assert plain(json.loads(cell.result.read_text())) == plain(json.loads(near.result.read_text()))
    kept = {path.name for path in cell.run.iterdir()}
    assert kept == {"config.yaml", "metrics.jsonl", "summary.json"}


def test_a_cell_that_is_called_off_writes_its_checkpoint(tmp_path):
    """An interrupt, which is how Ray calls a task off, though it was ignored before."""
    cell = cells(tmp_path, base=RECIPE["base"] | {"steps": 5000})[0]
    write_settings(cell)

    def call_off():
        wait_for(lambda: ray_cells.steps_done(cell) >= 2)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        threading.Thread(target=call_off, daemon=True).start()
        ended = ray_cells.train(cell)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.status == 128 + signal.SIGTERM, ended.said
    steps = ray_cells.steps_done(cell)
    assert (cell.run / f"checkpoints/step-{steps:06d}").is_dir() and not cell.result.exists()


def test_a_cell_that_failed_is_told(tmp_path):
    cell = cells(tmp_path)[0]
    work = Work([cell], 1)
    work.started[cell] = (time.monotonic(), 0)
    settle(work, cell, Ended(1, "exit status 1", {}), stopping=False)
    assert work.failed == {cell: "exit status 1"}
    work.failed.clear()
    settle(work, cell, Ended(1, "", {}), stopping=True)
    assert not work.failed, "it goes on when the comparison does"


def plain(result):
    """Without what depends on the machine and on the moment."""
    return {key: value for key, value in result.items() if key not in ("cost", "version")}


def lines(folder):
    return [plain(json.loads(line)) for line in (folder / "results.jsonl").read_text().splitlines()]


def wait_for(condition, seconds=400):
    for _ in range(seconds * 10):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


@pytest.mark.long
def test_a_killed_node_changes_no_result(tmp_path):
    """Three nodes of a core each; one is killed once each has a cell at work."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    paths = []
    # Long enough for three to be at work together, however unevenly the nodes begin.
    longer = RECIPE | {"base": RECIPE["base"] | {"steps": 30}}
    for name in ("local", "cluster"):
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(longer | {"output": str(tmp_path / name)}))

    machine = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [machine.add_node(num_cpus=1) for _ in range(2)]
    machine.wait_for_nodes()

    def at_work():
        """Three cells that have begun and not ended are one a node."""
        found = list((tmp_path / "cluster").glob("cells/*/*/*/*/metrics.jsonl"))
        begun = [path.parent for path in found if path.stat().st_size]
        return sum(not Path(f"{cell}.result.json").exists() for cell in begun) == 3

    def kill():
        wait_for(at_work)
        machine.remove_node(nodes[-1], allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        assert main(["compare", str(paths[1]), "--on", machine.address]) == 0
    finally:
        killer.join(10)
        ray.shutdown()
        machine.shutdown()

    assert not killer.is_alive()
    logs = (tmp_path / "cluster").glob("cells/*/*/*/*.log")
    assert any("continues after" in path.read_text() for path in logs), "one was tried again"
    assert main(["compare", str(paths[0])]) == 0
    assert lines(tmp_path / "cluster") == lines(tmp_path / "local")
