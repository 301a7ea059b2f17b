"""The tests of f are test_f and test_f_*: they are also lesson 19's exercises in kernels/cpu/decoding.py.

The oracles: the formulas in float64. decode as a whole is held by tests/test_decoding.py.
"""
import numpy as np
import pytest

from kernels.cpu import decoding as kernels
from tests.close import assert_close, unchanged

matrices = pytest.mark.parametrize("dtype", [np.float32, np.int8])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def matrix(dtype, *shape):
    """As it may lie in Weights: float32, or int8 whose products with one another would not fit into int8."""
    return normal(*shape, seed=1) if dtype == np.float32 else \
        np.random.default_rng(1).integers(-127, 128, shape).astype(np.int8)


def full(n):  # what stood in the output before must be gone
    return np.full(n, 7, np.float32)


def norm(x, weight, bias):
    x = x.astype(float)
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias


@pytest.mark.parametrize("C", [1, 2, 5, 33])
def test_normalize(C):
    x, weight, bias, out = normal(C), normal(C, seed=1), normal(C, seed=2), full(C)
    with unchanged(x=x, weight=weight, bias=bias):
        kernels.normalize(x, weight, bias, out)
    assert_close(out, norm(x, weight, bias), "out", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("far", [1000, 3000, 5000])
def test_normalize_of_a_row_far_from_zero(far):
    """mean(x^2) - mean(x)^2 would lose all digits: 3000^2 has seven before the point."""
    x, out = np.float32(far) + normal(16), full(16)
    kernels.normalize(x, np.ones(16, np.float32), np.zeros(16, np.float32), out)
    assert_close(out, norm(x, 1, 0), "out", rtol=3e-3, atol=3e-3)


def test_normalize_of_equal_numbers_is_the_bias():
    """The spread is 0, and what is divided by is sqrt(EPS)."""
    bias, out = normal(6), full(6)
    kernels.normalize(np.full(6, 3, np.float32), np.ones(6, np.float32), bias, out)
    assert_close(out, bias, "out")


@pytest.mark.parametrize("spread", [1e-2, 1e-3])
def test_normalize_adds_eps_to_the_variance(spread):
    x, out = np.float32(spread) * normal(8), full(8)
    kernels.normalize(x, np.ones(8, np.float32), np.zeros(8, np.float32), out)
    assert_close(out, norm(x, 1, 0), "out of an x whose variance is near EPS", rtol=1e-4, atol=1e-5)


@matrices
@pytest.mark.parametrize("K, N", [(1, 1), (5, 3), (3, 5), (16, 2), (13, 4)])
def test_dots(dtype, K, N):
    x, rows, out = normal(K), matrix(dtype, N, K), full(N)
    scale, bias = normal(N, seed=2), normal(N, seed=3)
    with unchanged(x=x, rows=rows, scale=scale, bias=bias):
        kernels.dots(x, rows.reshape(-1), scale, bias, out)
    want = (rows.astype(float) @ x) * scale + bias
    assert_close(out, want, "out", rtol=1e-4, atol=1e-5 * np.abs(rows).max())


@matrices
@pytest.mark.parametrize("K", [0, 1, 3, 4, 5, 6, 7, 8, 13])
@pytest.mark.parametrize("N", [1, 3])
def test_sum_rows(dtype, K, N):
    """Four rows at a time: every remainder must be there, and none of the rows twice."""
    x, rows, scale, out = normal(K), matrix(dtype, K, N), normal(N, seed=2), full(N)
    with unchanged(x=x, rows=rows, scale=scale):
        kernels.sum_rows(x, rows.reshape(-1), scale, out)
    want = (x @ rows.astype(float)) * scale
    assert_close(out, want, f"out, a sum of {K} rows", rtol=1e-4, atol=1e-5 * np.abs(rows).max(initial=1))


def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


@pytest.mark.parametrize("n", [1, 2, 5, 6])
@pytest.mark.parametrize("D, first", [(4, 0), (4, 4), (3, 6), (1, 2)])
def test_attend(n, D, first):
    """A block of 6 positions and two or more heads: C = 9 channels. What the head may not see is NaN."""
    C, q, out = 9, normal(D, seed=3), full(D)
    keys, values = 2 * normal(6, D, seed=1), normal(6, D, seed=2)
    kv = np.full((6, 2 * C), np.nan, np.float32)
    kv[:n, first:first + D], kv[:n, C + first:C + first + D] = keys[:n], values[:n]
    scratch = np.full(6, np.nan, np.float32)  # it may hold anything
    with unchanged(q=q, kv=kv):
        kernels.attend(q, kv, n, first, scratch, out)
    a = softmax(keys[:n].astype(float) @ q / np.sqrt(D))
    assert_close(out, a @ values[:n], f"out of {n} positions", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1000, -1000])
def test_attend_survives_scores_of_1000(size):
    """exp(1000) is infinite, and exp(-1000) is 0 for every position: the largest is taken away first."""
    q, out = np.array([1, 0], np.float32), full(2)
    kv = np.array([[size, 0, 1, 2], [size, 0, 3, 5], [size - 500, 0, 70, 90]], np.float32)
    kernels.attend(q, kv, 3, 0, full(3), out)
    assert_close(out, [2, 3.5], "out: the mean of the first two values, of equal scores", rtol=1e-4)
