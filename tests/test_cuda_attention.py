"""Attention on the GPU, or in the simulator (python -m tests.cudasim).

The tests of f are test_f and test_f_*: they are also exercises. The oracle is the formula in float64. TILES
are small here, and heads of more than 8 channels too large for them.
"""
import math

import numpy as np
import pytest

from kernels.cuda import attention as cuda
from kernels.cuda.memory import Array, on_gpu
from tests.close import assert_close, raises, unchanged

f32 = np.float32
near = {"rtol": 1e-4, "atol": 2e-5}  # what float32 can do
SMALL = cuda.forward_tiles(8, 8, 4, 2), *cuda.backward_tiles(8, 8, 4, 2)  # 8 channels, 8 rows by 4 columns
TWO_WARPS = cuda.forward_tiles(32, 32, 8, 8), *cuda.backward_tiles(32, 32, 8, 8)
masks = pytest.mark.parametrize("causal, lengths", [(0, [11, 11]), (1, [11, 3])],
                                ids=["no mask", "both masks"])


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cuda, "TILES", {8: SMALL})
    monkeypatch.setattr(cuda, "THREADS", 4)


def normal(*shapes, seed=12):  # float32
    g = np.random.default_rng(seed)
    return [g.normal(size=shape).astype(f32) for shape in shapes]


def nothing(*shapes):
    """To write into. What lies there before must not count."""
    return [np.full(shape, np.nan, f32) for shape in shapes]


def visible(Tq, Tk, causal, lengths):  # -> (B, 1, Tq, Tk) bool
    return np.array([[[[j < n and (not causal or j <= Tk - Tq + t) for j in range(Tk)] for t in range(Tq)]]
                     for n in lengths])


def softmax(scores, see):  # -> weights, logarithm of the sum; float64
    masked = np.where(see, scores, -np.inf)
    m = masked.max(-1, keepdims=True)
    total = np.exp(masked - m).sum(-1, keepdims=True)
    return np.exp(masked - m) / total, (m + np.log(total))[..., 0]


def heads(x, H, n=1):  # (B, T, n C) -> n of (B, H, T, D), float64
    B, T, width = x.shape
    return x.astype(float).reshape(B, T, n, H, width // (n * H)).transpose(2, 0, 3, 1, 4)


def together(*parts):  # of (B, H, T, D) -> (B, T, n C)
    return np.concatenate([x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1) for x in parts], -1)


class Formula:
    """Attention and its gradients in float64. q (B, Tq, C), kv (B, Tk, 2C), dout like q."""

    def __init__(self, q, kv, H, causal, lengths, dout):
        (q,), (k, v), (dout,) = heads(q, H), heads(kv, H, 2), heads(dout, H)
        see, scale = visible(q.shape[2], k.shape[2], causal, lengths), 1 / math.sqrt(q.shape[3])
        weights, self.lse = softmax(q @ k.swapaxes(2, 3) * scale, see)
        dweights = dout @ v.swapaxes(2, 3)
        self.delta = (weights * dweights).sum(-1)
        dscores = weights * (dweights - self.delta[..., None]) * scale
        self.weights, self.out, self.dq = weights, together(weights @ v), together(dscores @ k)
        self.dkv = together(dscores.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ dout)


def case(B=2, H=2, D=5, Tq=9, Tk=11, causal=0, lengths=None, seed=12):
    """q, kv with something in front, how much, lengths, dout, the formula: what a kernel takes and gives."""
    lengths = np.array([Tk] * B if lengths is None else lengths, np.int32)
    q, kv, dout = normal((B, Tq, H * D), (B, Tk, 2 * H * D), (B, Tq, H * D), seed=seed)
    front = np.full((B, Tk, 2), np.nan, f32)
    return q, np.concatenate([front, kv], -1), 2, lengths, dout, Formula(q, kv, H, causal, lengths, dout)


# softmax


def check_softmax(version, Tq, Tk, causal, lengths, scale):
    scores, = normal((2, 2, Tq, Tk))
    see = visible(Tq, Tk, causal, lengths)
    got = np.where(see, scores, f32(1e30))
    version(got, np.array(lengths, np.int32), causal, scale)
    want, _ = softmax(scores.astype(float) * scale, see)
    assert_close(got, want, "weights", **near, dtype=f32)
    assert (got[np.broadcast_to(~see, got.shape)] == 0).all(), "what is masked must weigh exactly 0"


def check_softmax_extremes(version):
    scores = np.array([[[[1000, 1000, 1e30], [np.nan, 1, 1e30], [-1000, -3000, 1e30]]]], f32)
    version(scores, np.array([2], np.int32), 0, 0.5)
    got = scores[0, 0]
    assert_close(got[::2], [[0.5, 0.5, 0], [1, 0, 0]], "weights", **near)
    assert np.isnan(got[1, :2]).all(), "a NaN among the scores is not seen in the weights"


@pytest.mark.parametrize("Tq, Tk, causal, lengths", [(3, 5, 1, [5, 2]), (2, 3, 0, [1, 3])])
def test_softmax_by_thread(Tq, Tk, causal, lengths):
    check_softmax(cuda.by_thread, Tq, Tk, causal, lengths, 0.5)


def test_softmax_by_thread_survives_1000_and_shows_a_nan():
    check_softmax_extremes(cuda.by_thread)


@pytest.mark.parametrize("Tq, Tk, causal, lengths", [(3, 35, 1, [35, 2]), (1, 40, 0, [36, 40])])
def test_softmax_by_warp(Tq, Tk, causal, lengths):
    check_softmax(cuda.by_warp, Tq, Tk, causal, lengths, 0.5)


def test_softmax_by_warp_survives_1000_and_shows_a_nan():
    check_softmax_extremes(cuda.by_warp)


# the other versions forward, and flash's two kernels of backward


def check_forward(run, causal, lengths, **sizes):
    q, kv, start, lengths, _, want = case(causal=causal, lengths=lengths, **sizes)
    out, lse = nothing(q.shape, want.lse.shape)
    with unchanged(q=q, kv=kv, lengths=lengths):
        run(q, kv, start, lengths, causal, 1 / math.sqrt(want.out.shape[2] // want.lse.shape[1]), out, lse)
    assert_close(out, want.out, "out", **near, dtype=f32)
    assert_close(lse, want.lse, "lse", **near, dtype=f32)


def check_extremes(run):
    """Scores of 1000 in the middle, in front, -2000 only; behind the length lies NaN."""
    keys, values = [[-1e5, 1, 2, 3, 1e5, 5, np.nan], [1] * 7], [[1, 2, 3, 4, 5, 6, np.nan]] * 2
    q = np.array([[[1, 0], [-1, 0], [0, -2e5], [np.nan, 0]]], f32)
    kv = np.stack(keys + values, 1).astype(f32)[None]
    out, lse = nothing((1, 4, 2), (1, 1, 4))
    run(q, kv, 0, np.array([6], np.int32), 0, 0.01, out, lse)
    assert_close(out[0, :3, 0], [5, 1, 3.5], "out", **near)
    assert_close(lse[0, 0, :3], [1000, 1000, -2000 + math.log(6)], "lse", **near)
    assert np.isnan(out[0, 3]).all(), "a NaN among the scores is not seen in out"


def run_rows(q, kv, start, lengths, causal, scale, out, lse):
    B, H, _ = lse.shape
    cuda.flash_row[(2, H, B), 5](q, kv, start, lengths, causal, scale, out, lse)


def run_tiles(q, kv, *arguments):
    B, H, Tq = arguments[-1].shape
    SMALL[0](Tq, H, B, q, kv, *arguments)


@masks
def test_flash_row(causal, lengths):
    check_forward(run_rows, causal, lengths)


def test_flash_row_survives_1000_and_shows_a_nan():
    check_extremes(run_rows)


@masks
def test_flash_queries(causal, lengths):
    check_forward(run_tiles, causal, lengths)


def test_flash_queries_survives_1000_and_shows_a_nan():
    check_extremes(run_tiles)


def test_flash_queries_of_two_warps():
    def run(q, kv, *arguments):
        TWO_WARPS[0](1, 1, 1, q, kv, *arguments)
    check_forward(run, 0, [9], B=1, H=1, D=2, Tq=1, Tk=9)


def check_backward(tiles, causal, lengths, **sizes):
    q, kv, start, lengths, dout, want = case(causal=causal, lengths=lengths, **sizes)
    (B, H, Tq), lse, delta = want.lse.shape, want.lse.astype(f32), want.delta.astype(f32)
    dq, = nothing(q.shape)
    scale = 1 / math.sqrt(q.shape[2] // H)
    with unchanged(q=q, kv=kv, dout=dout, lse=lse, delta=delta):
        tiles(Tq, H, B, q, kv, start, lengths, causal, scale, dout, lse, delta, dq)
    assert_close(dq, want.dq, "dq", **near, dtype=f32)


@masks
def test_flash_dq(causal, lengths):
    check_backward(SMALL[2], causal, lengths)


def test_flash_dq_of_two_warps():
    check_backward(TWO_WARPS[2], 0, [9], B=1, H=1, D=2, Tq=1, Tk=9)


def check_dkv(tiles, causal, lengths, **sizes):
    q, kv, start, lengths, dout, want = case(causal=causal, lengths=lengths, **sizes)
    (B, H, _), dkv = want.lse.shape, np.full(kv.shape, 7, f32)
    scale = 1 / math.sqrt(q.shape[2] // H)
    tiles(kv.shape[1], H, B, q, kv, start, lengths, causal, scale, dout, want.lse.astype(f32),
          want.delta.astype(f32), dkv)
    assert_close(dkv[..., start:], want.dkv, "dkv", **near)
    assert_close(dkv[..., :start], np.full(dkv[..., :start].shape, 7), "what lies before dkv")


@masks
def test_flash_dkv(causal, lengths):
    check_dkv(SMALL[1], causal, lengths)


def test_flash_dkv_of_two_warps():
    check_dkv(TWO_WARPS[1], 0, [2], B=1, H=1, D=2, Tq=9, Tk=2)


# whole versions


versions = pytest.mark.parametrize("forward, backward", [
    (cuda.materialised_forward, cuda.materialised_backward),
    (lambda *x: cuda.materialised_forward(*x, cuda.by_thread), cuda.materialised_backward),
    (cuda.flash_row_forward, cuda.flash_backward),
    (cuda.flash_forward, cuda.flash_backward)], ids=["materialised", "softmax by thread", "a row", "flash"])


@versions
def test_versions_forward_and_backward(forward, backward, small):
    q, kv, start, lengths, dout, want = case(Tq=5, Tk=6, causal=1, lengths=[6, 3])
    dq, dkv = (on_gpu(x) for x in nothing(q.shape, kv.shape))
    out, cache = forward(on_gpu(q), on_gpu(kv), start, 2, True, on_gpu(lengths, np.int32))
    backward(on_gpu(dout), cache, dq, dkv)
    assert_close(out.numpy(), want.out, "out", **near)
    assert_close(dq.numpy(), want.dq, "dq", **near)
    assert_close(dkv.numpy()[..., start:], want.dkv, "dkv", **near)


def test_flash_forward_with_tiles_as_large_as_on_a_gpu():
    q, kv, start, lengths, _, want = case(B=1, H=1, D=9, Tq=1, Tk=2)
    out, _ = cuda.flash_forward(on_gpu(q), on_gpu(kv), start, 1, True, on_gpu(lengths, np.int32))
    assert_close(out.numpy(), want.out, "out", **near)


@pytest.mark.parametrize("W", cuda.TILES)
def test_tiles_are_shared_out_evenly(W):
    """Else some number would not be loaded, or a warp's neighbours would not be the lanes of one group."""
    for kernel, rows, columns, lanes in cuda.TILES[W]:
        assert rows % cuda.ROWS == columns % (rows // cuda.ROWS) == columns % lanes == W % (4 * lanes) == 0
        assert rows // cuda.ROWS * lanes % 32 == 32 % lanes == columns % 4 == 0


def sizes_asked_for(monkeypatch):
    asked, empty = [], cuda.empty
    monkeypatch.setattr(cuda, "empty", lambda shape: (asked.append(math.prod(shape)), empty(shape))[1])
    return asked


def test_flash_never_stores_all_scores(small, monkeypatch):
    asked, (qkv, dout) = sizes_asked_for(monkeypatch), normal((1, 9, 6), (1, 9, 2))
    _, cache = cuda.self_attention_forward(qkv, 2)
    cuda.self_attention_backward(dout, cache)
    assert asked and max(asked) < 81, f"arrays of {asked} numbers for 9 by 9 scores"


def test_heads_too_large_for_tiles_are_materialised(small, monkeypatch):
    asked, (qkv, dout) = sizes_asked_for(monkeypatch), normal((1, 3, 27), (1, 3, 9))
    out, cache = cuda.self_attention_forward(qkv, 1)
    want = Formula(qkv[..., :9], qkv[..., 9:], 1, True, [3], dout)
    assert_close(out, want.out, "out", **near)
    got = cuda.self_attention_backward(dout, cache)
    assert_close(got, np.concatenate([want.dq, want.dkv], -1), "dqkv", **near)
    assert 9 in asked


# the operations


@pytest.mark.parametrize("T, D, causal, lengths", [
    (1, 1, True, None), (2, 8, False, [2, 1]), (5, 3, True, [5, 4]), (9, 1, True, None),
    (10, 2, False, [3, 10])])
def test_self_attention(T, D, causal, lengths, small):
    qkv, dout = normal((2, T, 6 * D), (2, T, 2 * D), seed=T)
    C, lengths = 2 * D, lengths if lengths is None else np.array(lengths)
    want = Formula(qkv[..., :C], qkv[..., C:], 2, causal, [T, T] if lengths is None else lengths, dout)
    with unchanged(qkv=qkv, dout=dout):
        out, cache = cuda.self_attention_forward(qkv, 2, causal, lengths)
        dqkv = cuda.self_attention_backward(dout, cache)
    assert_close(out, want.out, "out", **near, dtype=f32)
    assert_close(dqkv, np.concatenate([want.dq, want.dkv], -1), "dqkv", **near, dtype=f32)


@pytest.mark.parametrize("Tq, Tk, causal, lengths", [
    (1, 9, True, None), (9, 2, False, [2, 1]), (3, 5, True, [5, 2])])
def test_cross_attention(Tq, Tk, causal, lengths, small):
    q, kv, dout = normal((2, Tq, 6), (2, Tk, 12), (2, Tq, 6))
    want = Formula(q, kv, 2, causal, lengths or [Tk, Tk], dout)
    out, cache = cuda.cross_attention_forward(q, kv, 2, causal, lengths)
    dq, dkv = cuda.cross_attention_backward(dout, cache)
    for name, got, wanted in ("out", out, want.out), ("dq", dq, want.dq), ("dkv", dkv, want.dkv):
        assert_close(got, wanted, name, **near, dtype=f32)


def test_self_attention_is_causal_if_nothing_is_said_and_cross_attention_is_not(small):
    qkv, = normal((1, 3, 6))
    want = Formula(qkv[..., :2], qkv[..., 2:], 1, True, [3], qkv[..., :2]).out
    assert_close(cuda.self_attention_forward(qkv, 1)[0], want, "out of self-attention", **near)
    want = Formula(qkv[..., :2], qkv[..., 2:], 1, False, [3], qkv[..., :2]).out
    out, _ = cuda.cross_attention_forward(qkv[..., :2], qkv[..., 2:], 1)
    assert_close(out, want, "out of cross-attention", **near)


def test_arrays_stay_on_the_gpu_whatever_lengths_are(small):
    qkv, = map(on_gpu, normal((1, 2, 6)))
    for lengths in None, [2], np.array([1]), on_gpu(np.array([1]), np.int32):
        out, cache = cuda.self_attention_forward(qkv, 1, True, lengths)
        assert isinstance(out, Array) and isinstance(cuda.self_attention_backward(out, cache), Array)


def test_padding_is_not_known_and_gets_no_gradient(small):
    q, kv, dout = normal((1, 2, 2), (1, 6, 4), (1, 2, 2))
    out, _ = cuda.cross_attention_forward(q, kv, 1, lengths=[3])
    kv[:, 3:] = np.nan
    again, cache = cuda.cross_attention_forward(q, kv, 1, lengths=[3])
    _, dkv = cuda.cross_attention_backward(dout, cache)
    assert np.array_equal(out, again) and not dkv[:, 3:].any() and np.isfinite(dkv).all()


@pytest.mark.parametrize("lengths, causal, Tq, width, n_head, words", [
    ([0, 3], False, 2, 4, 1, "lengths [0, 3] do not fit"),
    ([3, 4], False, 2, 4, 1, "lengths [3, 4] do not fit"),
    ([3], False, 2, 4, 1, "lengths [3] do not fit"),
    (None, True, 4, 4, 1, "4 queries cannot be the last of 3"),
    (None, False, 2, 6, 1, "need keys"), (None, False, 2, 4, 3, "are not 2 times")])
def test_what_does_not_fit_is_refused(lengths, causal, Tq, width, n_head, words):
    q, kv = normal((2, Tq, 2), (2, 3, width))
    with raises(ValueError, words, "arguments that do not fit"):
        cuda.cross_attention_forward(q, kv, n_head, causal, lengths)
