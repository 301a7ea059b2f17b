"""The tests of f are test_f and test_f_*: they are also lesson 26's exercises in kernels/cuda/optimizers.py.

The oracles: numbers by hand, the formulas in float64, and the SVD for Muon.
"""
import math

import numpy as np
import pytest

from kernels.cuda import matmul
from kernels.cuda import optimizers as gpu
from kernels.cuda.compiled import F1, cuda, kernel, u32
from kernels.cuda.memory import empty, on_gpu
from tests.close import assert_close

THREADS, CHUNK = gpu.THREADS, gpu.CHUNK


def array(*numbers):
    return np.array(numbers, np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# sums over a block


def sums(block_sum, x):  # (blocks * THREADS,) -> what each thread gets
    @kernel(F1, F1)
    def launch(x, out):
        i = u32(cuda.grid(1))
        out[i] = block_sum(x[i])

    out = np.empty_like(x)
    launch[x.size // THREADS, THREADS](x, out)
    return out


def test_block_sum_tree():
    x = np.arange(THREADS, dtype=np.float32)
    assert_close(sums(gpu.block_sum_tree, x), np.full(THREADS, x.sum()), "the sum of all, in each thread")


def test_block_sum_tree_of_two_blocks():
    x = normal(2 * THREADS)
    want = np.repeat(x.astype(float).reshape(2, -1).sum(axis=1), THREADS)
    assert_close(sums(gpu.block_sum_tree, x), want, "the sum of its block, in each thread", atol=1e-4)


def test_block_sum_warps():
    x = np.arange(THREADS, dtype=np.float32)
    assert_close(sums(gpu.block_sum_warps, x), np.full(THREADS, x.sum()), "the sum of all, in each thread")


def test_block_sum_warps_of_two_blocks():
    x = normal(2 * THREADS)
    want = np.repeat(x.astype(float).reshape(2, -1).sum(axis=1), THREADS)
    assert_close(sums(gpu.block_sum_warps, x), want, "the sum of its block, in each thread", atol=1e-4)


# the sum of squares


def versions(*squares):
    return pytest.mark.parametrize("square", squares, ids=lambda square: square.__name__)


def check_square(square, n):
    g = normal(n + 5)
    want = (g[2:n + 2].astype(float) ** 2).sum()
    assert_close(float(square(on_gpu(g)[2:n + 2])), want, "sum of squares", rtol=1e-4)


@versions(gpu.square_atomic, gpu.square_tree, gpu.square_warps)
@pytest.mark.parametrize("n", [0, 1, 33, THREADS + 1])
def test_every_version_of_the_sum_of_squares(square, n):
    check_square(square, n)


@versions(gpu.square_tree, gpu.square_warps)
@pytest.mark.parametrize("n", [CHUNK, CHUNK + THREADS + 1])
def test_the_sum_of_squares_of_one_chunk_and_more(square, n):
    check_square(square, n)


@versions(gpu.square_atomic, gpu.square_tree, gpu.square_warps)
def test_every_version_shows_a_nan(square):
    g = np.ones(300, np.float32)
    g[290] = np.nan
    assert math.isnan(float(square(on_gpu(g))))


def test_a_large_gradient_is_not_infinite_before_its_time():
    g = np.full(5000, 1e15, np.float32)
    assert_close(float(gpu.square_warps(on_gpu(g))) / 1e30, 5000, "sum of squares / 1e30", rtol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2 * THREADS + 1])
@pytest.mark.parametrize("total", [gpu.total_tree, gpu.total_warps], ids=["tree", "warps"])
def test_one_block_adds_the_sums_of_any_number_of_blocks(total, blocks):
    parts, out = np.arange(blocks, dtype=np.float32), np.full(1, 7, np.float32)
    total[1, THREADS](parts, out)
    assert_close(out, [blocks * (blocks - 1) / 2], "sum")


@pytest.mark.parametrize("rows", [1, 3])
def test_gradient_norm_squared(rows):
    grads = normal(rows, 300)
    want = grads.astype(float)
    want[0, 5:290] = want[:, 5:290].sum(axis=0)
    square = gpu.gradient_norm_squared(grads, 5, 290)
    assert_close(grads, want, "grads: row 0 from 5 to 290 is the sum, the rest as it was", atol=1e-5)
    assert_close(square, (want[0, 5:290] ** 2).sum(), "sum of squares")


def test_gradient_norm_squared_of_nothing():
    grads = normal(2, 50)
    want = grads.copy()
    assert_close(gpu.gradient_norm_squared(grads, 7, 7), 0, "sum of squares")
    assert_close(grads, want, "grads")


# clipping


def clipped(square, limit):
    scale = array(7)
    with np.errstate(over="ignore"):
        gpu.clip_scale[1, 1](array(square), limit, scale)
    return scale


def test_clip_scale():
    assert_close(clipped(16, 2), [2 / 4], "scale of a norm of 4, when 2 is the limit")
    assert_close(clipped(9, 4), [1], "scale of a norm of 3, when 4 is the limit")
    assert_close(clipped(0, 1), [1], "scale of a gradient of zeros")


def test_clip_scale_of_a_small_norm():
    assert_close(clipped(1e-12, 1e-6), [0.5], "scale of a norm of 1e-6: 1e-6 / (1e-6 + 1e-6)", rtol=1e-4)


@pytest.mark.parametrize("square", [np.nan, np.inf])
def test_clip_scale_shows_that_a_step_has_diverged(square):
    scale, = clipped(square, 1)
    assert math.isnan(scale), f"scale is {scale} where the sum of squares is {square}, expected NaN"


def test_a_step_is_clipped_without_the_host():
    g = normal(40)
    scale = empty(())
    gpu.clip(gpu.square_warps(on_gpu(g)), 2.0, scale)
    assert_close(float(scale), 2 / np.linalg.norm(g.astype(float)), "scale", rtol=1e-5)


# SGD and AdamW


def test_sgd_by_hand():
    p, g, m = array(1, 4), array(4, 8), array(0, 2)
    gpu.sgd(p, g, m, lr=0.5, momentum=0.5, weight_decay=0.5, scale=0.25)
    assert_close(m, [1, 3], "m = 0.5 * m + 0.25 * g")
    assert_close(p, [0.75 * 1 - 0.5 * 1, 0.75 * 4 - 0.5 * 3], "p = 0.75 * p - 0.5 * m, with the new m")
    assert_close(g, [4, 8], "g, which is only read")


@pytest.mark.parametrize("n", [1, THREADS + 1])
def test_sgd_of_a_slice(n):
    """Called as the trainer does: what stands before and behind the slice must not change."""
    buffers = normal(3, n + 5)
    p, g, m = want = buffers.astype(float)
    on = on_gpu(buffers)
    numbers, scale = on_gpu(gpu.sgd_numbers(0.1, 0.9, 0.01)), on_gpu(0.5)
    here = slice(2, n + 2)
    for _ in range(2):
        gpu.sgd_step(*(on[k][here] for k in range(3)), numbers, scale)
        m[here] = 0.9 * m[here] + 0.5 * g[here]
        p[here] = (1 - 0.1 * 0.01) * p[here] - 0.1 * m[here]
    assert_close(on.numpy(), want, "p, g, m")


def adamw_by_formula(p, g, m, v, rate, b1, a1, b2, a2, inverse, eps, keep, scale):
    m = b1 * m + a1 * scale * g
    v = b2 * v + a2 * (scale * g) ** 2
    return keep * p - rate * m / (np.sqrt(v * inverse) + eps), m, v


def test_adamw_update():
    p, g, m, v = array(1, 1), array(4, -8), array(0, 1), array(0, 1)
    gpu.adamw_update[1, 2](p, g, m, v, array(0.1, 0.5, 0.5, 0.75, 0.25, 4, 0, 0.98), array(0.5))
    assert_close(m, [0.5 * 2, 0.5 * 1 + 0.5 * -4], "m = b1 * m + a1 * g', where g' = 0.5 * g")
    assert_close(v, [0.25 * 4, 0.75 * 1 + 0.25 * 16], "v = b2 * v + a2 * g'^2")
    assert_close(p, [0.98 - 0.1 * 1 / 2, 0.98 + 0.1 * 1.5 / math.sqrt(4.75 * 4)], "p, with the new m and v")
    assert_close(g, [4, -8], "g, which is only read")


def test_adamw_update_uses_each_of_its_numbers_and_ends_with_the_array():
    """33 elements in blocks of 32 threads: the second block has one element and 31 threads too many."""
    p, g, m, v = normal(4, 33)
    v = v * v
    numbers, scale = array(0.3, 0.7, 0.2, 0.6, 0.35, 1.7, 0.4, 0.9), array(1.3)
    want = adamw_by_formula(*(a.astype(float) for a in (p, g, m, v, *numbers, *scale)))
    gpu.adamw_update[2, 32](p, g, m, v, numbers, scale)
    for name, got, expected in zip(("p", "m", "v"), (p, m, v), want):
        assert_close(got, expected, name)


def test_adamw_update_leaves_a_parameter_that_never_had_a_gradient():
    p, g, m, v = array(3), array(0), array(0), array(0)
    gpu.adamw_update[1, 1](p, g, m, v, array(0.1, 0.9, 0.1, 0.99, 0.01, 100, 1e-8, 1), array(1))
    assert_close(p, [3], "p: a step of 0 / (0 + eps)")


def test_adamw_update_changes_nothing_when_the_step_has_diverged():
    p, g, m, v = array(3), array(2), array(1), array(4)
    gpu.adamw_update[1, 1](p, g, m, v, array(0.1, 0.9, 0.1, 0.99, 0.01, 100, 1e-8, 1), array(np.nan))
    assert_close([*p, *m, *v], [3, 1, 4], "p, m, v, where scale is NaN")


@pytest.mark.parametrize("scale", ["number", "array"])
def test_adamw_at_step_3(scale):
    """Loshchilov & Hutter 2019, algorithm 2."""
    p, g, m, v = buffers = normal(4, 33) ** 2
    want = [a.astype(float) for a in buffers]
    mean, square = 0.9 * want[2] + 0.1 * 0.5 * want[1], 0.99 * want[3] + 0.01 * (0.5 * want[1]) ** 2
    step = mean / (1 - 0.9**3) / (np.sqrt(square / (1 - 0.99**3)) + 1e-8)
    want[0] = (1 - 0.1 * 0.01) * want[0] - 0.1 * step
    gpu.adamw(p, g, m, v, 0.1, 0.9, 0.99, 1e-8, 0.01, 3, 0.5 if scale == "number" else on_gpu(0.5))
    assert_close(buffers, [want[0], want[1], mean, square], "p, g, m, v")


def test_several_slices_take_the_same_numbers():
    buffers = normal(4, 50) ** 2
    on, both = on_gpu(buffers), on_gpu(buffers)
    numbers, scale = on_gpu(gpu.adamw_numbers(0.1, 0.9, 0.99, 1e-8, 0.01, 1)), on_gpu(0.5)
    gpu.adamw_step(*(on[k] for k in range(4)), numbers, scale)
    for part in slice(0, 16), slice(16, 50):
        gpu.adamw_step(*(both[k][part] for k in range(4)), numbers, scale)
    assert_close(both.numpy(), on.numpy(), "p, g, m, v of two slices, one after the other")


def test_sgd_and_muon_change_nothing_when_the_step_has_diverged(monkeypatch):
    monkeypatch.setattr(gpu, "matmul", matmul_of_numpy)
    p, g, m = (on_gpu(normal(2, 3, seed=seed)) for seed in range(3))
    before, scale = [p.numpy(), m.numpy()], on_gpu(np.nan)
    flat = (x.reshape(-1) for x in (p, g, m))
    gpu.sgd_step(*flat, on_gpu(gpu.sgd_numbers(0.1, 0.9, 0.1)), scale)
    assert_close([p.numpy(), m.numpy()], before, "p and m after SGD with a scale of NaN")
    gpu.muon_step(p, g, m, on_gpu(gpu.muon_numbers(0.1, 0.9, 0.1)), scale)
    assert_close([p.numpy(), m.numpy()], before, "p and m after Muon with a scale of NaN")


# Muon


def matmul_of_numpy(a, b, out):
    """The room's has tests of its own. Muon takes about 20 of it, and in the simulator that is seconds."""
    matmul.check(a, b, out)
    with np.errstate(invalid="ignore"):
        out.set(a.numpy() @ b.numpy())


def low_rank(n, k):
    """A matrix with a few large singular values over many small ones: what gradients look like."""
    return normal(n, 3, seed=1) @ normal(3, k, seed=2) + np.float32(1e-2) * normal(n, k, seed=3)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (5, 13), (24, 8), (20, 13)])
def test_muon(shape, monkeypatch):
    """By the SVD: the direction is U f(S) V^T, where f is the polynomial, five times."""
    monkeypatch.setattr(gpu, "matmul", matmul_of_numpy)
    g = low_rank(*shape)
    p, m = normal(*g.shape, seed=4), np.float32(0.1) * normal(*g.shape, seed=5)
    before, mean = g.copy(), 0.95 * m.astype(float) + 0.05 * 0.5 * g
    u, s, vt = np.linalg.svd(0.05 * 0.5 * g + 0.95 * mean, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    wider = max(1, math.sqrt(g.shape[1] / g.shape[0]))
    want = (1 - 0.02 * 0.3) * p.astype(float) - 0.02 * wider * (u * s) @ vt
    gpu.muon(p, g, m, 0.02, 0.95, 0.3, 0.5)
    assert_close(m, mean, "m")
    assert_close(g, before, "g, which is only read")
    assert_close(p, want, "p, float32 against float64", rtol=1e-5, atol=1e-5)


def muon_direction(g, monkeypatch):
    monkeypatch.setattr(gpu, "matmul", matmul_of_numpy)
    p, m = np.zeros((2, *g.shape), np.float32)
    gpu.muon(p, g, m, 1.0, 0.95, 0.0, 1.0)
    return p


def test_muon_of_a_gradient_of_zeros(monkeypatch):
    zeros = np.zeros((5, 9), np.float32)
    assert_close(muon_direction(zeros, monkeypatch), zeros, "step")


def test_muon_of_a_gradient_of_any_size(monkeypatch):
    small, large = (muon_direction(normal(5, 9) * np.float32(size), monkeypatch) for size in (1e-3, 1e3))
    assert_close(small, large, "step at a gradient a millionth as large", rtol=1e-3, atol=1e-3)


def test_nesterov_of_more_than_one_block():
    n = CHUNK + 5
    g, m, x, parts = normal(n), normal(n, seed=1), np.empty(n, np.float32), np.empty(2, np.float32)
    mean = 0.9 * m.astype(float) + 0.1 * 0.3 * g
    want = 0.1 * 0.3 * g + 0.9 * mean
    gpu.nesterov[2, THREADS](g, m, x, array(7, 0.9, 7), array(0.3), parts)
    assert_close(m, mean, "m")
    assert_close(x, want, "x")
    assert_close(parts, [(want[:CHUNK] ** 2).sum(), (want[CHUNK:] ** 2).sum()], "sums of x^2", rtol=1e-4)


@pytest.mark.parametrize("op, buffers, more", [("sgd", 3, 4), ("muon", 3, 4), ("adamw", 4, 7)])
def test_arrays_of_two_shapes_are_refused(op, buffers, more):
    arrays = [np.zeros((2, 3), np.float32) for _ in range(buffers - 1)]
    with pytest.raises(ValueError, match=r"\(2, 2\), but it must be \(2, 3\)"):
        getattr(gpu, op)(*arrays, np.zeros((2, 2), np.float32), *[0.5] * more)
