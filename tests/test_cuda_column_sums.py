"""The sums over rows on the GPU, or in the simulator (python -m tests.cudasim)."""
import numpy as np
import pytest

from kernels.cuda import column_sums as cuda
from kernels.cuda.memory import on_gpu
from tests.close import assert_close, unchanged

STRIP, ROWS = cuda.STRIP, cuda.ROWS


def floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def junk(*shape):
    """To write into. Not zeros: what was there before must be gone."""
    return np.full(shape, 7, np.float32)


@pytest.mark.parametrize("N, K", [(1, 1), (3, 7), (5, 130)])
def test_sum_columns_v1(N, K):
    x, sums = on_gpu(floats(N, K)), on_gpu(junk(K))
    cuda.column_sums_v1(x, sums)
    assert_close(sums.numpy(), floats(N, K).sum(0, dtype=float), "sums")


@pytest.mark.parametrize("N, K", [(1, 1), (18, 33), (STRIP + 1, 2)])
def test_sum_columns_v2(N, K):
    x, strips = floats(N, K), -(-N // STRIP)
    sums = junk(strips, K)
    with unchanged(x=x):
        cuda.sum_columns_v2[(strips, cuda.blocks_for(K, 32)), (32, ROWS)](x, sums)
    want = [x[s * STRIP:(s + 1) * STRIP].sum(0, dtype=float) for s in range(strips)]
    assert_close(sums, want, "sums", atol=1e-5)


@pytest.mark.parametrize("N, K", [(1, 1), (7, 40), (2 * STRIP + 1, 1)])
def test_the_strips_are_added_as_well(N, K):
    x, sums = on_gpu(floats(N, K)), on_gpu(junk(K))
    cuda.column_sums(x, sums)
    assert_close(sums.numpy(), x.numpy().sum(0, dtype=float), "sums", atol=1e-5)
