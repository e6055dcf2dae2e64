"""What dfpo_kernels exports; other trainers call these names."""

import inspect

import dfpo_kernels

EXPORTS = [
    "FlowField",
    "backends",
    "distributional_gae",
    "flow_consistency_loss",
    "flow_velocity",
    "integrate_flow",
    "lambda_mixture_targets",
    "quantile_huber_loss",
    "reference",
    "warmup",
]
OPS = [
    "distributional_gae",
    "flow_consistency_loss",
    "flow_velocity",
    "integrate_flow",
    "lambda_mixture_targets",
    "quantile_huber_loss",
]


def test_export_list():
    assert dfpo_kernels.__all__ == EXPORTS
    assert all(hasattr(dfpo_kernels, name) for name in EXPORTS)


def test_reference_has_every_op_with_the_same_signature():
    assert dfpo_kernels.reference.__all__ == OPS
    for name in OPS:
        public = inspect.signature(getattr(dfpo_kernels, name))
        distribution = inspect.signature(getattr(dfpo_kernels.reference, name))
        assert public == distribution, name


def test_backends_lists_every_op():
    assert sorted(dfpo_kernels.backends()) == OPS


def test_every_export_has_a_docstring():
    for name in EXPORTS:
        assert inspect.getdoc(getattr(dfpo_kernels, name)), name
