"""The tests of f are test_f and test_f_*: they are also lesson 10's exercises in the CPU room.

The oracles: numbers by hand, the formulas in float64, and the SVD for Muon.
"""
import math

import numpy as np
import pytest

from kernels.cpu import optimizers as cpu
from tests.close import assert_close


def array(*numbers):
    return np.array(numbers, np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def f32(*numbers):
    return [np.float32(number) for number in numbers]


def test_add_rows():
    grads = np.array([[9, 1, 2, 9], [9, 2, -6, 9], [9, 0, 1, 9]], np.float32)
    assert_close(cpu.add_rows(grads, 1, 3), 3.0**2 + 3.0**2, "sum of squares of the sum (3, -3)")
    assert_close(grads[0], [9, 3, -3, 9], "the sum, in row 0 between start and stop")
    assert_close(grads[1:], [[9, 2, -6, 9], [9, 0, 1, 9]], "rows 1 and 2, which are only read")


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("n", [0, 1, cpu.CHUNK, cpu.CHUNK + 5])
def test_add_rows_of_one_chunk_and_a_little_more(rows, n):
    grads = normal(rows, n + 5)
    want = grads.astype(float)
    want[0, 2:n + 2] = want[:, 2:n + 2].sum(axis=0)
    square = cpu.add_rows(grads, 2, n + 2)
    assert_close(grads, want, "grads: row 0 from 2 to n + 2 is the sum, the rest as it was", atol=1e-5)
    assert_close(square, (want[0, 2:n + 2] ** 2).sum(), "sum of squares")


@pytest.mark.parametrize("row", [0, 1])
def test_add_rows_shows_a_nan(row):
    grads = np.ones((2, cpu.CHUNK + 9), np.float32)
    grads[row, -2] = np.nan
    assert_close(cpu.add_rows(grads, 0, 7), 28, "sum of squares before the NaN")
    total = cpu.add_rows(grads, 7, grads.shape[1])
    assert math.isnan(total), f"a NaN in row {row} has to reach the sum of squares, which is {total}"


def test_sgd_slice():
    p, g, m = array(1, 4), array(4, 8), array(0, 2)
    cpu.sgd_slice(p, g, m, *f32(0.5, 0.5, 0.75, 0.25))
    assert_close(m, [1, 3], "m = 0.5 * m + 0.25 * g")
    assert_close(p, [0.75 * 1 - 0.5 * 1, 0.75 * 4 - 0.5 * 3], "p = 0.75 * p - 0.5 * m, with the new m")
    assert_close(g, [4, 8], "g, which is only read")


@pytest.mark.parametrize("n", [1, 33])
def test_sgd_slice_of_a_buffer(n):
    """Called as the trainer does, through sgd: what stands before and behind the slice must not change."""
    buffers = normal(3, n + 5)
    p, g, m = want = buffers.astype(float)
    here = slice(2, n + 2)
    for _ in range(2):
        cpu.sgd(*buffers[:, here], 0.1, 0.9, 0.01, 0.5)
        m[here] = 0.9 * m[here] + 0.5 * g[here]
        p[here] = (1 - 0.1 * 0.01) * p[here] - 0.1 * m[here]
    assert_close(buffers, want, "p, g, m")


def adamw_numbers(p, g, m, v, rate, b1, a1, b2, a2, inverse, eps, keep, scale):
    m = b1 * m + a1 * scale * g
    v = b2 * v + a2 * (scale * g) ** 2
    return keep * p - rate * m / (np.sqrt(v * inverse) + eps), m, v


def test_adamw_slice():
    p, g, m, v = array(1, 1), array(4, -8), array(0, 1), array(0, 1)
    cpu.adamw_slice(p, g, m, v, *f32(0.1, 0.5, 0.5, 0.75, 0.25, 4, 0, 0.98, 0.5))
    assert_close(m, [0.5 * 2, 0.5 * 1 + 0.5 * -4], "m = b1 * m + a1 * g', where g' = 0.5 * g")
    assert_close(v, [0.25 * 4, 0.75 * 1 + 0.25 * 16], "v = b2 * v + a2 * g'^2")
    assert_close(p, [0.98 - 0.1 * 1 / 2, 0.98 + 0.1 * 1.5 / math.sqrt(4.75 * 4)], "p, with the new m and v")
    assert_close(g, [4, -8], "g, which is only read")


def test_adamw_slice_uses_each_of_its_numbers():
    p, g, m, v = normal(4, 9)
    v = v * v
    numbers = f32(0.3, 0.7, 0.2, 0.6, 0.35, 1.7, 0.4, 0.9, 1.3)
    want = adamw_numbers(*(a.astype(float) for a in (p, g, m, v)), *(float(number) for number in numbers))
    cpu.adamw_slice(p, g, m, v, *numbers)
    for name, got, expected in zip(("p", "m", "v"), (p, m, v), want):
        assert_close(got, expected, name)


def test_adamw_slice_leaves_a_parameter_that_never_had_a_gradient():
    p, g, m, v = array(3), array(0), array(0), array(0)
    cpu.adamw_slice(p, g, m, v, *f32(0.1, 0.9, 0.1, 0.99, 0.01, 100, 1e-8, 1, 1))
    assert_close(p, [3], "p: a step of 0 / (0 + eps)")


@pytest.mark.parametrize("n", [1, 33])
def test_adamw_slice_of_a_buffer(n):
    """Called as the trainer does, through adamw, at step 3: Loshchilov & Hutter 2019, algorithm 2."""
    buffers = normal(4, n + 5) ** 2
    p, g, m, v = want = buffers.astype(float)
    here = slice(2, n + 2)
    cpu.adamw(*buffers[:, here], 0.1, 0.9, 0.99, 1e-8, 0.01, 3, 0.5)
    m[here] = 0.9 * m[here] + 0.1 * 0.5 * g[here]
    v[here] = 0.99 * v[here] + 0.01 * (0.5 * g[here]) ** 2
    mean, square = m[here] / (1 - 0.9**3), v[here] / (1 - 0.99**3)
    p[here] = (1 - 0.1 * 0.01) * p[here] - 0.1 * mean / (np.sqrt(square) + 1e-8)
    assert_close(buffers, want, "p, g, m, v")


def test_nesterov():
    g, m, x = array([8, 0], [4, -4]), array([0, 4], [2, 2]), np.full((2, 2), 7, np.float32)
    square = cpu.nesterov(g, m, x, *f32(0.75, 0.5))
    assert_close(m, [[1, 3], [2, 1]], "m = m + 0.25 * (g' - m), where g' = 0.5 * g")
    assert_close(x, [[1.75, 2.25], [2, 0.25]], "x = g' + 0.75 * (m - g'), with the new m")
    assert_close(square, 1.75**2 + 2.25**2 + 2**2 + 0.25**2, "sum of x^2")
    assert_close(g, [[8, 0], [4, -4]], "g, which is only read")


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3)])
def test_nesterov_of_other_shapes(shape):
    g, m, x = normal(3, *shape)
    mean = 0.9 * m.astype(float) + 0.1 * 0.3 * g
    want = 0.1 * 0.3 * g + 0.9 * mean
    square = cpu.nesterov(g, m, x, *f32(0.9, 0.3))
    assert_close(m, mean, "m")
    assert_close(x, want, "x")
    assert_close(square, (want**2).sum(), "sum of x^2")


def test_polynomial():
    gram = array([1, 2], [2, 5])
    square = gram @ gram  # (5, 12), (12, 29)
    cpu.polynomial(gram, square)
    want = [[3.4445 - 4.775 + 2.0315 * 5, -4.775 * 2 + 2.0315 * 12],
            [-4.775 * 2 + 2.0315 * 12, 3.4445 - 4.775 * 5 + 2.0315 * 29]]
    assert_close(square, want, "A * I + B * gram + C * gram @ gram")
    assert_close(gram, [[1, 2], [2, 5]], "gram, which is only read")


@pytest.mark.parametrize("n", [1, 5])
def test_polynomial_of_other_sizes(n):
    gram, square = normal(2, n, n)
    want = 3.4445 * np.eye(n) - 4.775 * gram.astype(float) + 2.0315 * square
    cpu.polynomial(gram, square)
    assert_close(square, want, "square")


def low_rank(n, k):
    """A matrix with a few large singular values over many small ones: what gradients look like."""
    return normal(n, 3, seed=1) @ normal(3, k, seed=2) + np.float32(1e-2) * normal(n, k, seed=3)


@pytest.mark.parametrize("shape", [(8, 8), (5, 33), (24, 8), (64, 40), (40, 80), (41, 20), (1, 7), (7, 1)])
@pytest.mark.parametrize("matrix", [normal, low_rank])
def test_muon(shape, matrix):
    """By the SVD: the direction is U f(S) V^T, where f is the polynomial, five times."""
    p, m, g = normal(*shape, seed=4), np.float32(0.1) * normal(*shape, seed=5), matrix(*shape)
    mean = 0.95 * m.astype(float) + 0.05 * 0.5 * g
    u, s, vt = np.linalg.svd(0.05 * 0.5 * g + 0.95 * mean, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    want = (1 - 0.02 * 0.3) * p.astype(float) - 0.02 * max(1, math.sqrt(shape[1] / shape[0])) * (u * s) @ vt
    cpu.muon(p, g, m, 0.02, 0.95, 0.3, 0.5)
    assert_close(m, mean, "m")
    assert_close(g, matrix(*shape), "g, which is only read")
    assert_close(p, want, "p, float32 against float64", rtol=1e-5, atol=1e-5)


def test_muon_of_a_gradient_of_any_size_and_of_zeros():
    step = {}
    for size in 0, 1, 1e-3, 1e3:
        p, m = np.zeros((2, 5, 33), np.float32)
        cpu.muon(p, normal(5, 33) * np.float32(size), m, 1.0, 0.95, 0.0, 1.0)
        step[size] = p
    assert_close(step[0], np.zeros((5, 33)), "step at a gradient of zeros")
    for size in 1e-3, 1e3:
        assert_close(step[size], step[1], f"step at a gradient {size} times as large", rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("op, buffers, more", [("sgd", 3, 4), ("muon", 3, 4), ("adamw", 4, 7)])
def test_arrays_of_two_shapes_are_refused(op, buffers, more):
    arrays = [np.zeros((2, 3), np.float32) for _ in range(buffers - 1)]
    with pytest.raises(ValueError, match=r"\(2, 2\), but it must be \(2, 3\)"):
        getattr(cpu, op)(*arrays, np.zeros((2, 2), np.float32), *[1.0] * more)
