"""What an installation says of itself."""

import platform

import torch

from dfpo.run.info import collect_info, describe_info


def test_versions_are_those_that_run_and_every_op_has_a_line():
    info = collect_info()
    assert info["versions"]["torch"] == torch.__version__
    assert info["versions"]["python"] == platform.python_version()
    assert info["cpu_threads"] == torch.get_num_threads()
    assert "integrate_flow" in info["backends"]
    said = describe_info(info | {"versions": {"torch": "9.9", "triton": None}})
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "torch 9.9" in lines and "triton not installed" in lines
    for op, answers in info["backends"].items():
        assert " ".join([op, *answers.values()]) in lines
