"""The tests of f are test_f and test_f_*: they are also exercises of lesson 12.

The oracle is the formula in float64 and its finite differences. What a kernel must not read is NaN here, and
STRIPE is 2, so that 5 positions are three stripes. In plain Python: NUMBA_DISABLE_JIT=1 make check 12.
"""
import math

import numpy as np
import pytest

from kernels.cpu import attention as cpu
from tests.close import assert_close, numeric_grad, unchanged

f32 = np.float32
B, H, D = 2, 2, 3
C = H * D
near = {"rtol": 1e-4, "atol": 2e-5}  # what float32 can do
masks = pytest.mark.parametrize(
    "causal, lengths", [(False, None), (True, None), (False, [5, 2]), (True, [1, 4])],
    ids=["no mask", "causal", "padding", "causal and padding"])


def normal(*shapes, seed=12):  # float32
    g = np.random.default_rng(seed)
    return [g.normal(size=shape).astype(f32) for shape in shapes]


def visible(Tq, Tk, causal, lengths):  # -> (B, 1, Tq, Tk) bool
    return np.array([[[[j < n and (not causal or j <= Tk - Tq + t) for j in range(Tk)] for t in range(Tq)]]
                     for n in ([Tk] * B if lengths is None else lengths)])


def softmax(scores, see):  # float64; forbidden scores may be anything
    e = np.exp(np.where(see, scores, -np.inf))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q, k, v, see):  # (B, H, Tq, D), (B, H, Tk, D) twice -> (B, Tq, C), float64
    q, k, v = (x.astype(float) for x in (q, k, v))
    weights = softmax(np.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[3]), see)
    out = np.einsum("bhij,bhjd->bihd", weights, v)
    return out.reshape(*out.shape[:2], -1)


def end(t, stripe, Tk):
    """The keys that the kernels may touch for query t: up to the end of its stripe."""
    return min((t // stripe + 1) * stripe, Tk)


def only_stripes(x, stripe):  # (B, H, Tq, Tk) -> a copy, NaN right of the stripes
    x = x.astype(f32)
    for t in range(x.shape[2]):
        x[:, :, t, end(t, stripe, x.shape[3]):] = np.nan
    return x


def assert_beyond_is_untouched(x, stripe, name):
    for t in range(x.shape[2]):
        n = end(t, stripe, x.shape[3])
        assert np.isnan(x[:, :, t, n:]).all(), (
            f"query {t} is in a stripe that ends before key {n}, but {name}[:, :, {t}, {n}:] was written")


def assert_written(x, name):
    assert not np.isnan(x).any(), (
        f"{name} has {np.isnan(x).sum()} NaN: never written, or made of what was never written "
        "(np.empty gives NaN in this test, and elsewhere whatever lay there before)")


@pytest.fixture
def small_stripes(monkeypatch):
    """Stripes of 2 positions. np.empty gives NaN: by chance it could give the zeros that hide a mistake."""
    monkeypatch.setattr(cpu, "STRIPE", 2)
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, np.nan, dtype))


# heads


def test_heads():
    n, T = 3, 4
    x = np.arange(B * T * n * C).reshape(B, T, n * C)
    with unchanged(x=x):
        got = cpu.heads(x, H, n)
    assert_close([len(got), *got[0].shape], [n, B, H, T, D], "number and shape of the views")
    for i in range(n):
        for h in range(H):
            start = i * C + h * D
            assert_close(got[i][:, h], x[:, :, start:start + D], f"array {i}, head {h}")


def test_heads_are_views_even_of_a_view():
    wide = np.ones((B, 6, 5 * C), f32)
    with unchanged(x=wide):
        one, two = cpu.heads(wide[:, 1:-1, C:3 * C], H, 2)
    assert np.shares_memory(one, wide), "heads made a copy: what is written into it never reaches its caller"
    two[1, 0, 2] = 7  # row 1, head 0, position 2
    want = np.ones_like(wide)
    want[1, 3, 2 * C:2 * C + D] = 7
    assert_close(wide, want, "the array, after a 7 was written into head 0 of its second part")


# softmax


@masks
def test_softmax(causal, lengths):
    scores, = normal((B, H, 4, 6))
    weights, given = scores.copy(), np.array(lengths or [6, 6])
    with unchanged(lengths=given):
        cpu.softmax(weights, given, causal, 6, 0.5)
    see = visible(4, 6, causal, lengths)
    assert_close(weights, softmax(scores.astype(float) * 0.5, see), "weights", **near)
    assert (weights[np.broadcast_to(~see, weights.shape)] == 0).all(), "what is masked must weigh exactly 0"


@pytest.mark.parametrize("T", [4, 5])
def test_softmax_works_in_stripes(T):
    scores, = normal((B, H, T, T))
    weights = only_stripes(scores, 2)
    cpu.softmax(weights, np.array([T, 3]), True, 2, 1.0)
    want = softmax(scores.astype(float), visible(T, T, True, [T, 3]))
    for t in range(T):
        n = end(t, 2, T)
        assert_close(weights[:, :, t, :n], want[:, :, t, :n], f"weights of query {t}", **near)
    assert_beyond_is_untouched(weights, 2, "scores")


def test_softmax_survives_scores_of_1000_and_ignores_larger_ones_that_are_masked():
    scores = np.array([[[[1000, 1000, 1e30], [-1000, -3000, 1e30], [1000, 900, 1e30]]]], f32)
    cpu.softmax(scores, np.array([2]), False, 3, 0.5)
    assert_close(scores, [[[[0.5, 0.5, 0], [1, 0, 0], [1, 0, 0]]]], "weights", **near)


def test_softmax_shows_a_nan_in_its_own_row_only():
    scores, = normal((1, 1, 3, 4))
    scores[0, 0, 1, 2] = np.nan
    with np.errstate(invalid="ignore"):
        cpu.softmax(scores, np.array([4]), False, 4, 1.0)
    assert_close(np.isnan(scores[0, 0]), [[False] * 4, [True] * 4, [False] * 4], "where a weight is NaN")


# forward


@masks
@pytest.mark.parametrize("Tq, Tk", [(4, 6), (5, 5)], ids=["4 queries, 6 keys", "5 by 5"])
def test_forward(causal, lengths, Tq, Tk, small_stripes):
    q, k, v = normal((B, H, Tq, D), (B, H, Tk, D), (B, H, Tk, D))
    with unchanged(q=q, k=k, v=v):
        out, _ = cpu.forward(q, k, v, causal, lengths)
    assert_written(out, "out")
    assert_close(out, attention(q, k, v, visible(Tq, Tk, causal, lengths)), "out", **near, dtype=f32)


def test_forward_of_more_queries_than_keys(small_stripes):
    q, k, v = normal((B, H, 6, D), (B, H, 4, D), (B, H, 4, D))
    out, _ = cpu.forward(q, k, v, False, [4, 1])
    assert_close(out, attention(q, k, v, visible(6, 4, False, [4, 1])), "out", **near)


def test_forward_keeps_what_backward_needs(small_stripes):
    q, k, v = normal(*[(B, H, 5, D)] * 3)
    one = np.broadcast_to(np.eye(5), (B, H, 5, 5))  # with these values the output is the weights
    for causal, stripe in (True, 2), (False, 5):
        _, cache = cpu.forward(q, k, v, causal, None)
        assert_close(len(cache), 5, "numbers of things in the cache")
        for name, got, want in zip(("q", "k", "v"), cache, (q, k, v)):
            assert_close(got, want, f"{name} in the cache")
        assert_close(cache[4], stripe, f"stripe in the cache, causal={causal}")
        want = attention(q, k, one, visible(5, 5, causal, None)).reshape(B, 5, H, 5)
        for t in range(5):
            n = end(t, stripe, 5)
            assert_close(cache[3][:, :, t, :n], want[:, t, :, :n], f"cached weights of query {t}", **near)
        assert_beyond_is_untouched(cache[3], stripe, "weights")


@pytest.mark.parametrize("lengths, causal, Tq", [([0, 3], False, 2), ([3, 4], False, 2), (None, True, 4)])
def test_forward_refuses_what_does_not_fit(lengths, causal, Tq):
    q, k, v = normal((B, H, Tq, D), (B, H, 3, D), (B, H, 3, D))
    with pytest.raises(ValueError):
        cpu.forward(q, k, v, causal, lengths)


# softmax_backward


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_softmax_backward(scale):
    scores, dscores = normal((B, H, 3, 4), (B, H, 3, 4))
    see = visible(3, 4, True, [4, 2])
    weights, dweights = softmax(scores.astype(float) * scale, see).astype(f32), dscores.astype(float)
    want = numeric_grad(lambda s: (softmax(s * scale, see) * dweights).sum(), scores)
    with unchanged(weights=weights):
        cpu.softmax_backward(weights, dscores, 4, scale)
    assert_close(dscores, want, "dscores", **near)


def test_softmax_backward_works_in_stripes():
    T = 5
    scores, dweights = normal((B, H, T, T), (B, H, T, T))
    see = visible(T, T, True, None)
    want = numeric_grad(lambda s: (softmax(s, see) * dweights).sum(), scores)
    weights, dscores = only_stripes(softmax(scores.astype(float), see), 2), only_stripes(dweights, 2)
    cpu.softmax_backward(weights, dscores, 2, 1.0)
    for t in range(T):
        n = end(t, 2, T)
        assert_close(dscores[:, :, t, :n], want[:, :, t, :n], f"dscores of query {t}", **near)
    assert_beyond_is_untouched(dscores, 2, "dweights")


# backward


def numeric_grads(q, k, v, see, dout):
    loss = lambda q, k, v: (attention(q, k, v, see) * dout).sum()
    return (numeric_grad(lambda q: loss(q, k, v), q), numeric_grad(lambda k: loss(q, k, v), k),
            numeric_grad(lambda v: loss(q, k, v), v))


@pytest.mark.parametrize("causal, lengths, Tq, stripe", [
    (False, None, 4, 5), (True, [1, 4], 4, 5), (True, None, 5, 2), (True, [5, 2], 5, 2)],
    ids=["no mask", "one stripe", "three stripes", "three stripes and padding"])
def test_backward(causal, lengths, Tq, stripe, small_stripes):
    q, k, v, dout = normal((B, H, Tq, D), (B, H, 5, D), (B, H, 5, D), (B, Tq, C))
    see = visible(Tq, 5, causal, lengths)
    scores = np.einsum("bhid,bhjd->bhij", q, k).astype(float) / math.sqrt(D)
    weights = only_stripes(softmax(scores, see), stripe)
    packed = np.ones((3, B, 5, C), f32)  # not zeros: what was there must be gone
    dq, dk, dv = (x.reshape(B, 5, H, D).swapaxes(1, 2) for x in packed)
    dq = dq[:, :, :Tq]
    with unchanged(dout=dout, q=q, k=k, v=v, weights=weights):
        cpu.backward(dout, (q, k, v, weights, stripe), dq, dk, dv)
    want_dq, want_dk, want_dv = numeric_grads(q, k, v, see, dout)
    for name, got, want in ("dv", dv, want_dv), ("dq", dq, want_dq), ("dk", dk, want_dk):
        assert_written(got, name)
        assert_close(got, want, name, **near)


# the four operations: what model and lessons call


def apart(x, n):  # (B, T, n C) -> n of (B, H, T, D)
    return [np.stack(np.split(part, x.shape[2] // n // D, axis=2), axis=1) for part in np.split(x, n, axis=2)]


def slope(loss, x, direction, eps=1e-5):
    """How fast the loss grows when x moves that way: the sum of direction times gradient."""
    x = x.astype(float)
    return (loss(x + eps * direction) - loss(x - eps * direction)) / (2 * eps)


odd = pytest.mark.parametrize("T, causal, padded", [
    (T, causal, T % 2 != i) for T in (1, 3, 32, 33, 64, 70) for i, causal in enumerate([False, True])])


@odd
def test_self_attention_of_odd_lengths_and_of_views(T, causal, padded):
    lengths = np.array([(T + 1) // 2, T], np.int32) if padded else None
    see = visible(T, T, causal, lengths)
    qkv, dout, way = normal((B, T + 2, 5 * C), (B, T, 2 * C), (B, T, 3 * C), seed=T)
    qkv, dout = qkv[:, 1:-1, C:4 * C], dout[..., C:]  # views, not copies
    out, cache = cpu.self_attention_forward(qkv, H, causal, lengths)
    assert_close(out, attention(*apart(qkv, 3), see), "out", **near, dtype=f32)
    dqkv = cpu.self_attention_backward(dout, cache)
    want = slope(lambda x: (attention(*apart(x, 3), see) * dout).sum(), qkv, way)
    assert_close((dqkv * way).sum(), want, "slope by dqkv", rtol=1e-4, atol=1e-3)
    assert dqkv.dtype == f32


@odd
def test_cross_attention_of_odd_lengths_and_of_views(T, causal, padded):
    lengths = np.array([(T + 1) // 2, T], np.int32) if padded else None
    Tq = (T + 1) // 2
    see = visible(Tq, T, causal, lengths)
    wide, dout, way_q, way_kv = normal((B, T, 4 * C), (B, Tq, 2 * C), (B, Tq, C), (B, T, 2 * C), seed=T)
    q, kv, dout = wide[:, -Tq:, :C], wide[..., 2 * C:], dout[..., C:]  # views, not copies
    out, cache = cpu.cross_attention_forward(q, kv, H, causal, lengths)
    assert_close(out, attention(*apart(q, 1), *apart(kv, 2), see), "out", **near, dtype=f32)
    dq, dkv = cpu.cross_attention_backward(dout, cache)
    loss = lambda q, kv: (attention(*apart(q, 1), *apart(kv, 2), see) * dout).sum()
    want = slope(lambda q: loss(q, kv), q, way_q), slope(lambda kv: loss(q, kv), kv, way_kv)
    assert_close((dq * way_q).sum(), want[0], "slope by dq", rtol=1e-4, atol=1e-3)
    assert_close((dkv * way_kv).sum(), want[1], "slope by dkv", rtol=1e-4, atol=1e-3)
    assert dq.dtype == dkv.dtype == f32


def test_self_attention_is_causal_if_nothing_is_said_and_cross_attention_is_not():
    qkv, q, kv = normal((B, 4, 3 * C), (B, 3, C), (B, 5, 2 * C))
    want = attention(*apart(qkv, 3), visible(4, 4, True, None))
    assert_close(cpu.self_attention_forward(qkv, H)[0], want, "out of self-attention", **near)
    want = attention(*apart(q, 1), *apart(kv, 2), visible(3, 5, False, None))
    assert_close(cpu.cross_attention_forward(q, kv, H)[0], want, "out of cross-attention", **near)


def test_the_past_does_not_know_the_future_and_gives_it_no_gradient():
    T = 70
    qkv, dout = normal((B, T, 3 * C), (B, T, C))
    out, _ = cpu.self_attention_forward(qkv, H)
    for t in (1, T // 2, T - 1):
        changed = qkv.copy()
        changed[:, t:] = -9
        got, _ = cpu.self_attention_forward(changed, H)
        assert np.array_equal(got[:, :t], out[:, :t]), f"what stands at {t} changed an earlier output"
    dout[:, T // 2:] = 0  # no output from the middle on counts
    _, cache = cpu.self_attention_forward(qkv, H)
    assert not cpu.self_attention_backward(dout, cache)[:, T // 2:].any()


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_not_known_and_gets_no_gradient(causal):
    q, kv, dout = normal((B, 4, C), (B, 7, 2 * C), (B, 4, C))
    lengths, padded = np.array([3, 6]), kv.copy()
    padded[0, 3:], padded[1, 6:] = 1e4, -1e4
    one, two = (cpu.cross_attention_forward(q, x, H, causal, lengths) for x in (kv, padded))
    assert np.array_equal(one[0], two[0])
    (dq, dkv), (dq2, dkv2) = (cpu.cross_attention_backward(dout, cache) for _, cache in (one, two))
    assert np.array_equal(dq, dq2) and np.array_equal(dkv[0, :3], dkv2[0, :3])
    assert not dkv2[0, 3:].any() and not dkv2[1, 6:].any(), "padding has no gradient"
