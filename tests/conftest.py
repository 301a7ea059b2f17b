"""One BLAS thread, as in training: several threads would wait for each other in a test's small products.

The tests of kernels/cuda need a GPU, or a process with the simulator: tests/test_gpu_room.py sees to both.
"""
import fnmatch
import sys

import numpy  # noqa: F401  (its BLAS must be loaded before it can be limited)
import pytest
from threadpoolctl import threadpool_limits

threadpool_limits(1, "blas")

GPU_TESTS = "test_cuda_*.py"
simulated = getattr(sys.modules.get("numba.cuda"), "simulated", False)
collect_ignore_glob = [] if simulated else [GPU_TESTS]  # but for those that the command names


def pytest_collection_modifyitems(items):
    for item in items:
        if fnmatch.fnmatch(item.path.name, GPU_TESTS) and not simulated:
            from kernels.cuda.compiled import problem
            if why := problem():
                raise pytest.UsageError(f"{why}. In the simulator: python -m tests.cudasim {item.path}")
