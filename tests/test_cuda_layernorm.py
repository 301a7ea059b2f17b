"""Layer norm on the GPU, or in the simulator (python -m tests.cudasim).

The tests of f are test_f and test_f_*: they are also exercises. Each compares with a formula in float64.
"""
import numpy as np
import pytest

from kernels.cuda import layernorm as cuda
from kernels.cuda.compiled import F1, F2, U, blocks_for, kernel, u32
from kernels.cuda.compiled import cuda as gpu
from kernels.cuda.memory import Array, on_gpu
from tests.close import assert_close, raises, unchanged

SIZES = [(1, 1), (5, 35), (2, 70)]  # the last block has too many warps, a row's end too many lanes


def floats(*shapes):
    return [np.random.default_rng(i).normal(size=s).astype(np.float32) for i, s in enumerate(shapes)]


def junk(*shapes):
    """Buffers to write into. Not zeros: what was there before must be gone."""
    return [np.full(shape, 7, np.float32) for shape in shapes]


def norm(x, weight, bias, eps=1e-5):
    x = x.astype(float)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def statistics(x, eps=1e-5):  # -> (N, 2)
    return np.stack([x.mean(1, dtype=float), 1 / np.sqrt(x.var(1, dtype=float) + eps)], 1)


@kernel(F1, F1)
def sums_of_warps(x, sums):
    """Each thread writes what warp_sum gives it."""
    i = u32(gpu.grid(1))
    sums[i] = cuda.warp_sum(x[i])


@pytest.mark.parametrize("blocks, threads", [(1, 32), (2, 64)])
def test_warp_sum(blocks, threads):
    (x,), (sums,) = floats(blocks * threads), junk(blocks * threads)
    with unchanged(x=x):
        sums_of_warps[blocks, threads](x, sums)
    want = np.repeat(x.reshape(-1, 32).sum(1, dtype=float), 32)
    assert_close(sums, want, "warp_sum, thread by thread,")


def test_warp_sum_adds_every_thread_once():
    x, sums = 2 ** (np.arange(32) % 16).astype(np.float32), np.empty(32, np.float32)
    sums_of_warps[1, 32](x, sums)
    assert_close(sums, np.full(32, 2 * (2**16 - 1)), "warp_sum of 1, 2, 4, ... 2^15, twice,", rtol=0, atol=0)


def normalized(version, x, weight, bias, eps=1e-5):
    """Checks all that the kernel writes."""
    out, mean_rstd = junk(x.shape, (len(x), 2))
    rows, threads = (cuda.THREADS, cuda.THREADS) if version == 1 else (cuda.WARPS, (32, cuda.WARPS))
    run = getattr(cuda, f"normalize_rows_v{version}")
    with unchanged(x=x, weight=weight, bias=bias):
        run[blocks_for(len(x), rows), threads](x, weight, bias, eps, out, mean_rstd)
    assert_close(mean_rstd, statistics(x, eps), "mean_rstd", rtol=1e-4)
    assert_close(out, norm(x, weight, bias, eps), "out", rtol=1e-4, atol=1e-4)


def large_mean(C):
    """float32 has few digits left here for sum(x^2) / C - mean^2."""
    x, w, b = floats((1, C), C, C)
    return x + np.float32(100), w, b


@pytest.mark.parametrize("N, C", [(1, 1), (2, 70), (cuda.THREADS + 1, 2)])
def test_normalize_rows_v1(N, C):
    normalized(1, *floats((N, C), C, C))


def test_normalize_rows_v1_adds_eps_under_the_root():
    normalized(1, *floats((3, 5), 5, 5), eps=0.5)


def test_normalize_rows_v1_keeps_its_digits_where_the_mean_is_large():
    normalized(1, *large_mean(40))


@pytest.mark.parametrize("N, C", SIZES)
def test_normalize_rows_v2(N, C):
    normalized(2, *floats((N, C), C, C))


def test_normalize_rows_v2_adds_eps_under_the_root():
    normalized(2, *floats((3, 5), 5, 5), eps=0.5)


def test_normalize_rows_v2_keeps_its_digits_where_the_mean_is_large():
    normalized(2, *large_mean(40))


@pytest.mark.parametrize("N, C", SIZES)
def test_normalize_rows_v3(N, C):
    normalized(3, *floats((N, C), C, C))


def test_normalize_rows_v3_keeps_a_whole_row():
    normalized(3, *large_mean(32 * cuda.KEPT))


@kernel(F2, F2, F2, F1, F2, U)
def rows_of_dx(dout, x, mean_rstd, weight, dx, add):
    """A warp a row, the last row first."""
    lane, n = u32(gpu.threadIdx.x), u32(x.shape[0] - 1 - gpu.blockIdx.x)
    cuda.backward_row(n, lane, dout, x, mean_rstd, weight, dx, add)


def gradients(dout, x, weight):  # -> dx, dweight, dbias
    (mean, rstd), dout = statistics(x).T[:, :, None], dout.astype(float)
    xhat, d = (x - mean) * rstd, dout * weight
    dx = rstd * (d - d.mean(1, keepdims=True) - xhat * (d * xhat).mean(1, keepdims=True))
    return dx, (dout * xhat).sum(0), dout.sum(0)


@pytest.mark.parametrize("add", [0, 1])
@pytest.mark.parametrize("N, C", SIZES[1:])
def test_backward_row(N, C, add):
    (dout, x, weight), (dx,) = floats((N, C), (N, C), C), junk((N, C))
    if not add:
        dx[:] = np.nan  # must not be read
    x += 1
    stats = statistics(x).astype(np.float32)
    want = gradients(dout, x, weight)[0] + (7 if add else 0)
    with unchanged(dout=dout, x=x, mean_rstd=stats, weight=weight):
        rows_of_dx[N, 32](dout, x, stats, weight, dx, add)
    assert_close(dx, want, "dx", rtol=1e-4, atol=1e-5)


def operations(forward, backward, shape, with_residual):
    C = shape[-1]
    x, w, b, dout, dres = floats(shape, C, C, shape, shape)
    gpu_x, gpu_w, gpu_b, gpu_dout, dresidual, dw, db = map(on_gpu, (x, w, b, dout, dres, *junk(C, C)))
    out, cache = forward(gpu_x, gpu_w, gpu_b)
    assert_close(out.numpy(), norm(x, w, b), "out", rtol=1e-4, atol=1e-4)
    dx = backward(gpu_dout, cache, dw, db, dresidual if with_residual else None)
    arrays = ("x", x, gpu_x), ("weight", w, gpu_w), ("bias", b, gpu_b), ("dout", dout, gpu_dout)
    for name, before, after in arrays:
        assert_close(after.numpy(), before, f"{name}, which is only to be read,", rtol=0, atol=0)
    want, want_dw, want_db = gradients(dout.reshape(-1, C), x.reshape(-1, C), w)
    want = want.reshape(shape) + (dres if with_residual else 0)
    assert_close(dx.numpy(), want, "dx", rtol=1e-4, atol=1e-4)
    assert_close(dw.numpy(), want_dw, "dweight", rtol=1e-4, atol=1e-4)
    assert_close(db.numpy(), want_db, "dbias", rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape, with_residual", [((1, 1), False), ((2, cuda.STRIP // 2 + 1, 5), True)])
def test_the_operations(shape, with_residual):
    operations(cuda.layernorm_forward, cuda.layernorm_backward, shape, with_residual)


@pytest.mark.parametrize("with_residual", [False, True])
def test_the_operations_of_version_1(with_residual):
    operations(cuda.layernorm_forward_v1, cuda.layernorm_backward_v1, (cuda.STRIP + 1, 5), with_residual)


def test_the_operations_of_version_2():
    operations(cuda.layernorm_forward_v2, cuda.layernorm_backward, (2, 35), False)


def test_a_block_adds_more_channels_than_it_has_threads():
    N, C = 2, 32 * cuda.STRIP_WARPS + 1
    (dout, x, weight), (dx, dw, db) = floats((N, C), (N, C), C), junk((N, C), (1, C), (1, C))
    stats = statistics(x).astype(np.float32)
    cuda.backward_strips[1, (32, cuda.STRIP_WARPS)](dout, x, stats, weight, dx, 0, dw, db)
    want, dweight, dbias = gradients(dout, x, weight)
    assert_close(dx, want, "dx", rtol=1e-4, atol=1e-5)
    assert_close(dw, [dweight], "dweights", rtol=1e-4, atol=1e-5)
    assert_close(db, [dbias], "dbiases", rtol=1e-4, atol=1e-5)


def test_rows_too_long_for_the_registers_are_read_again():
    C = 32 * cuda.KEPT + 1
    x, w, b = floats((1, C), C, C)
    assert_close(cuda.layernorm_forward(x, w, b)[0], norm(x, w, b), "out", rtol=1e-4, atol=1e-5)


def test_numpy_in_and_out():
    x, w, b, dout = floats((2, 3), 3, 3, (2, 3))
    dw, db = junk(3, 3)
    out, cache = cuda.layernorm_forward(x, w, b)
    dx = cuda.layernorm_backward(dout, cache, dw, db)
    assert isinstance(out, np.ndarray) and isinstance(dx, np.ndarray) and isinstance(cache[1], Array)
    want, want_dw, want_db = gradients(dout, x, w)
    for name, got, wanted in ("dx", dx, want), ("dweight", dw, want_dw), ("dbias", db, want_db):
        assert_close(got, wanted, name, rtol=1e-4, atol=1e-5)


def test_wrong_shapes_are_named():
    x, w, short = floats((2, 3), 3, 2)
    dw, db = junk(3, 3)
    _, cache = cuda.layernorm_forward(x, w, w)
    for name, call in {"weight": lambda: cuda.layernorm_forward(x, short, w),
                       "bias": lambda: cuda.layernorm_forward(x, w, short),
                       "dout": lambda: cuda.layernorm_backward(x[:1], cache, dw, db),
                       "dresidual": lambda: cuda.layernorm_backward(x, cache, dw, db, x[:1]),
                       "dweight": lambda: cuda.layernorm_backward(x, cache, short, db),
                       "dbias": lambda: cuda.layernorm_backward(x, cache, dw, short)}.items():
        with raises(ValueError, f"{name} has shape", f"a wrong {name}"):
            call()
