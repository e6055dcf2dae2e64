"""What must stand before any test is imported, and which tests begin."""

import os

import torch

# Read by triton when it is first imported, which packages of other trainers do too: without a GPU
# its kernels run on the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The files that take longest begin, or a worker would end with one of them while the others have
# nothing left to do.
LONGEST = (
    "test_processes.py", "test_readme.py", "test_compare.py", "test_cuda_emulation.py",
    "test_checkpoint.py", "test_micro_batches.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
