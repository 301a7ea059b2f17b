"""Linear layers, gelu, dropout on the GPU, or in the simulator (python -m tests.cudasim).

Each against a formula in float64 written here, the product itself aside, which is matmul's test.
"""
import math

import numpy as np
import pytest

from kernels.cuda import block as cuda
from kernels.cuda.compiled import blocks_for
from kernels.cuda.memory import on_gpu
from tests.close import assert_close, raises, unchanged

pytestmark = pytest.mark.filterwarnings("ignore:overflow")  # of the simulator: modulo 2^32 is what is meant


def floats(*shapes):
    return [np.random.default_rng(i).normal(size=s).astype(np.float32) for i, s in enumerate(shapes)]


def junk(*shapes):
    """Buffers to write into. Not zeros: what was there before must be gone."""
    return [np.full(shape, 7, np.float32) for shape in shapes]


def wide(*arrays):
    return [a.astype(float) for a in arrays]


def gelu(y):
    return 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))


def slope_of_gelu(y):
    return (gelu(y + 1e-6) - gelu(y - 1e-6)) / 2e-6


# linear layers


def matmul_on_the_host(a, b, out, bias=None, residual=None, slope=None):
    """What matmul promises, faster than in the simulator."""
    assert not out.transposed, "matmul writes rows"
    y = a.numpy().astype(float) @ b.numpy() + sum(x.numpy() for x in (bias, residual) if x is not None)
    out.set(y if slope is None else gelu(y))
    if slope is not None:
        slope.set(slope_of_gelu(y))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(cuda, "matmul", matmul_on_the_host)


@pytest.mark.parametrize("shape, with_bias, with_residual", [
    ((1, 1), True, False), ((2, 3, 5), True, True), ((5, 4), False, True), ((2, 1, 3), False, False)])
def test_linear(quick, shape, with_bias, with_residual):
    K = 6
    x, w, dout, b, r = floats(shape, (shape[-1], K), (*shape[:-1], K), K, (*shape[:-1], K))
    dw, db = junk(w.shape, K)
    b, r, db = b if with_bias else None, r if with_residual else None, db if with_bias else None
    kept = {name: a for name, a in {"x": x, "w": w, "dout": dout, "b": b, "r": r}.items() if a is not None}
    with unchanged(**kept):
        out, cache = cuda.linear_forward(x, w, b, r)
        dx = cuda.linear_backward(dout, cache, dw, db)
    x, w, dout = wide(x, w, dout)
    want = x @ w + (b if with_bias else 0) + (r if with_residual else 0)
    assert_close(out, want, "out", rtol=1e-4, atol=1e-5)
    assert_close(dx, dout @ w.T, "dx", rtol=1e-4, atol=1e-5)
    rows = dout.reshape(-1, K)
    assert_close(dw, x.reshape(-1, shape[-1]).T @ rows, "dweight", rtol=1e-4, atol=1e-5)
    if with_bias:
        assert_close(db, rows.sum(0), "dbias", rtol=1e-4, atol=1e-5)


def test_linear_with_a_transposed_weight(quick):
    """The head: logits = h @ wte.T, and the gradient is written through dwte.T."""
    x, table, dout = floats((2, 3, 5), (9, 5), (2, 3, 9))
    gpu_table, (dtable,) = on_gpu(table), map(on_gpu, junk(table.shape))
    out, cache = cuda.linear_forward(on_gpu(x), gpu_table.T)
    dx = cuda.linear_backward(on_gpu(dout), cache, dtable.T)
    assert_close(gpu_table.numpy(), table, "the table, which is only to be read,", rtol=0, atol=0)
    x, table, dout = wide(x, table, dout)
    assert_close(out.numpy(), x @ table.T, "out", rtol=1e-4, atol=1e-5)
    assert_close(dx.numpy(), dout @ table, "dx", rtol=1e-4, atol=1e-5)
    assert_close(dtable.numpy(), dout.reshape(-1, 9).T @ x.reshape(-1, 5), "dtable", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("forward", [cuda.linear_gelu_forward, cuda.linear_gelu_forward_v1])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 5)])
def test_linear_gelu(quick, forward, shape):
    K = 6
    x, w, b, dout = floats(shape, (shape[-1], K), K, (*shape[:-1], K))
    gpu_x, gpu_w, gpu_b, gpu_dout, dw, db = map(on_gpu, (x, w, b, dout, *junk(w.shape, K)))
    out, cache = forward(gpu_x, gpu_w, gpu_b)
    dx = cuda.linear_gelu_backward(gpu_dout, cache, dw, db)
    for name, before, after in ("x", x, gpu_x), ("weight", w, gpu_w), ("bias", b, gpu_b):
        assert_close(after.numpy(), before, f"{name}, which is only to be read,", rtol=0, atol=0)
    x, w, dout = wide(x, w, dout)
    y = x @ w + b
    d = dout * slope_of_gelu(y)
    rows = d.reshape(-1, K)
    assert_close(out.numpy(), gelu(y), "out", rtol=1e-4, atol=1e-5)
    assert_close(dx.numpy(), d @ w.T, "dx", rtol=1e-4, atol=1e-5)
    assert_close(dw.numpy(), x.reshape(-1, shape[-1]).T @ rows, "dweight", rtol=1e-4, atol=1e-5)
    assert_close(db.numpy(), rows.sum(0), "dbias", rtol=1e-4, atol=1e-5)


def test_linear_gelu_with_the_matrix_product():
    x, w, b = floats((2, 3, 5), (5, 6), 6)
    out, (_, _, slope) = cuda.linear_gelu_forward(x, w, b)
    x, w = wide(x, w)
    assert_close(out, gelu(x @ w + b), "out", rtol=1e-4, atol=1e-5)
    assert_close(slope.numpy(), slope_of_gelu(x @ w + b), "slope", rtol=1e-4, atol=1e-5)


def test_bias_gelu_is_zero_or_y_far_out():
    y, (out,), zero = np.array([[-1e3, -8, 0, 8, 1e3]], np.float32), junk((1, 5)), np.zeros(5, np.float32)
    want = np.maximum(y, 0)
    cuda.bias_gelu[1, cuda.THREADS](y, zero, out)
    assert_close(out, want, "out")
    assert_close(y, [[0, 0, 0.5, 1, 1]], "slope, in y,")


@pytest.mark.parametrize("N, K", [(1, 1), (18, 33), (cuda.STRIP + 1, 1)])
def test_scaled_column_sums(N, K):
    (dout, slope), strips = floats((N, K), (N, K)), blocks_for(N, cuda.STRIP)
    want, (sums,) = dout * slope, junk((strips, K))
    with unchanged(slope=slope):
        cuda.scaled_column_sums[(strips, blocks_for(K, 32)), (32, cuda.ROWS)](dout, slope, sums)
    assert_close(dout, want, "dout")
    want = [want[s * cuda.STRIP:(s + 1) * cuda.STRIP].sum(0, dtype=float) for s in range(strips)]
    assert_close(sums, want, "sums", atol=1e-5)


# dropout


def bits(i, seed):
    """MurmurHash3's last step on i * 0x9E3779B1 + seed, in Python's own whole numbers."""
    h = (i * 0x9E3779B1 + seed) % 2**32
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def drop(x, threshold, seed, residual=None):
    """In small blocks. Without a residual there is NaN in its place, which must not be read."""
    (out,), add = junk(x.shape), residual is not None
    residual = residual if add else np.full_like(x, np.nan)
    with unchanged(x=x, residual=residual):
        cuda.drop[blocks_for(x.size, 32), 32](x, threshold, 1 / 0.7, seed, residual, add, out)
    return out


@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1])
def test_drop(seed):
    x, = floats(41)
    want = np.array([(bits(i, seed) >= int(0.3 * 2**32)) / 0.7 for i in range(41)])
    assert_close(drop(x, int(0.3 * 2**32), seed), want * x, "out")


def test_drop_adds_the_residual():
    x, residual = floats(41, 40 + 1)
    residual += 1
    want = np.array([(bits(i, 3) >= int(0.3 * 2**32)) / 0.7 for i in range(41)])
    assert_close(drop(x, int(0.3 * 2**32), 3, residual), want * x + residual, "out")


def test_drop_keeps_a_number_whose_bits_are_exactly_the_threshold():
    x = np.ones(33, np.float32)
    for place in 0, 32:
        assert drop(x, bits(place, 3), 3)[place] > 0, f"bits[{place}] is the threshold: it must stay"
        assert drop(x, bits(place, 3) + 1, 3)[place] == 0, f"the threshold is bits[{place}] + 1: it must fall"


@pytest.mark.parametrize("seed", [0, 5, 2**31 + 5, 2**40 + 1])
@pytest.mark.parametrize("shape, with_residual", [((1, 1), False), ((2, 3, 67), True)])
def test_dropout(shape, with_residual, seed):
    x, dout, residual = floats(shape, shape, shape)
    residual = residual if with_residual else None
    with unchanged(x=x, dout=dout, residual=x if residual is None else residual):
        out, cache = cuda.dropout_forward(x, 0.3, seed, residual)
        dx = cuda.dropout_backward(dout, cache)
    kept = [bits(i, seed * 0x85EBCA6B % 2**32) >= int(0.3 * 2**32) for i in range(x.size)]
    scale = np.reshape(kept, shape) / 0.7
    assert_close(out, scale * x + (residual if with_residual else 0), "out")
    assert_close(dx, scale * dout, "dx")


def test_wrong_shapes_are_named(quick):
    x, w, dout, bias, short = floats((2, 3), (3, 4), (2, 4), 4, 3)
    db, dw = junk(4, (3, 4))
    _, cache = cuda.linear_forward(x, w)
    _, gelu_cache = cuda.linear_gelu_forward(x, w, bias)
    _, dropped = cuda.dropout_forward(x, 0.5, 1)
    for name, call in {
            "weight": lambda: cuda.linear_forward(x, w[:2].copy()),
            "bias": lambda: cuda.linear_forward(x, w, short),
            "residual": lambda: cuda.linear_forward(x, w, None, x),
            "dout": lambda: cuda.linear_backward(dout[:1], cache, dw),
            "dweight": lambda: cuda.linear_backward(dout, cache, dw[:, :3].copy()),
            "dbias": lambda: cuda.linear_backward(dout, cache, dw, short)}.items():
        with raises(ValueError, f"{name} has shape", f"linear with a wrong {name}"):
            call()
    for name, call in {
            "bias": lambda: cuda.linear_gelu_forward(x, w, short),
            "dout": lambda: cuda.linear_gelu_backward(x, gelu_cache, dw, db),
            "dweight": lambda: cuda.linear_gelu_backward(dout, gelu_cache, dw.T.copy(), db),
            "dbias": lambda: cuda.linear_gelu_backward(dout, gelu_cache, dw, short)}.items():
        with raises(ValueError, f"{name} has shape", f"linear_gelu with a wrong {name}"):
            call()
    with raises(ValueError, "residual has shape", "dropout with a wrong residual"):
        cuda.dropout_forward(x, 0.5, 1, dout)
    with raises(ValueError, "dout has shape", "dropout with a wrong dout"):
        cuda.dropout_backward(dout, dropped)
