"""The tests of f are test_f and test_f_*: they are also lesson 12's exercises.

The oracle is the formula in float64, one head and one query at a time, and its finite differences.
"""
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu import attention as cpu
from lessons import l12_attention as lesson
from tests.close import assert_close, numeric_grad

rng = np.random.default_rng(12)
q, k, v, dout = (rng.normal(size=(2, T, 3)) for T in (4, 5, 5, 4))
mask = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
B, H, C = 2, 2, 6
packed_q, packed_kv, packed_qkv = (rng.normal(size=s) for s in [(B, 3, C), (B, 5, 2 * C), (B, 4, 3 * C)])
rooms = pytest.mark.parametrize("room", [lesson, cpu], ids=["numpy", "cpu"])
cases = pytest.mark.parametrize(
    "causal, lengths", [(False, None), (True, None), (False, [5, 2]), (True, [1, 4])])


def formula(q, k, v, mask):
    """softmax(q k^T / sqrt(D)) v, each query by itself over the keys it may see. (T, D) or (B, T, D)"""
    if q.ndim == 3:
        masks = np.broadcast_to(mask, (len(q), *mask.shape[-2:]))  # one for each row of the batch
        return np.array([formula(*one) for one in zip(q, k, v, masks)])
    p = [np.exp(k[see] @ one / math.sqrt(len(one))) for one, see in zip(q, mask)]
    return np.array([p @ v[see] / p.sum() for p, see in zip(p, mask)])


def visible(Tq, Tk, causal, lengths):
    """-> (B, Tq, Tk) bool, from the words of the docstring"""
    return np.array([[[j < n and (not causal or j <= Tk - Tq + t) for j in range(Tk)] for t in range(Tq)]
                     for n in lengths])


def multi_head(q, kv, n_head, causal=False, lengths=None):
    """Head h has the channels from h D up to (h + 1) D. (B, Tq, C), (B, Tk, 2C) -> (B, Tq, C)"""
    D, Tk = q.shape[2] // n_head, kv.shape[1]
    k, v = kv[..., :q.shape[2]], kv[..., q.shape[2]:]
    see = visible(q.shape[1], Tk, causal, lengths or [Tk] * len(q))
    return np.concatenate([formula(*(x[..., i:i + D] for x in (q, k, v)), see)
                           for i in range(0, q.shape[2], D)], axis=-1)


def multi_head_self(qkv, n_head, causal=True, lengths=None):
    C = qkv.shape[-1] // 3
    return multi_head(qkv[..., :C], qkv[..., C:], n_head, causal, lengths)


# one head


def test_attention_forward():
    assert_close(lesson.attention_forward(q, k, v)[0], formula(q, k, v, np.ones((4, 5), bool)), "out")


def test_attention_forward_with_a_mask():
    assert_close(lesson.attention_forward(q, k, v, mask)[0], formula(q, k, v, mask), "out")
    one = np.array([mask, mask[::-1]])  # a mask of its own for each row of the batch
    assert_close(lesson.attention_forward(q, k, v, one)[0], formula(q, k, v, one), "out, a mask for each row")


def test_attention_forward_of_one_visible_key_is_its_value():
    only = np.eye(5, dtype=bool)[[4, 2, 0, 2]]
    assert_close(lesson.attention_forward(q, k, v, only)[0], v[:, [4, 2, 0, 2]], "out")


def test_attention_forward_does_not_see_what_is_masked():
    k2, v2 = k.copy(), v.copy()
    k2[:, 1], v2[:, 1] = 1000, 1e9
    see = np.arange(5) != 1
    (one, _), (two, _) = lesson.attention_forward(q, k, v, see), lesson.attention_forward(q, k2, v2, see)
    assert np.array_equal(one, two)


def test_attention_forward_masks_with_minus_infinity_and_not_with_a_large_number():
    q, k, v = np.array([[1e6]]), np.array([[-1e6], [-1e6]]), np.array([[1.0], [2.0]])  # scores of -1e12
    assert_close(lesson.attention_forward(q, k, v, np.array([True, False]))[0], [[1.0]], "out")


def test_attention_forward_survives_scores_of_1000():
    one = np.eye(3)[None]
    assert_close(lesson.attention_forward(one * 2000, one, one)[0], one, "out")


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(0, 999))
def test_attention_forward_is_an_average_of_the_values(Tq, Tk, D, seed):
    g = np.random.default_rng(seed)
    q, k, v = (g.normal(size=(T, D)) * 3 for T in (Tq, Tk, Tk))
    out, _ = lesson.attention_forward(q, k, v)
    assert (out <= v.max(axis=0) + 1e-9).all() and (out >= v.min(axis=0) - 1e-9).all()
    assert_close(lesson.attention_forward(q, k, v + 7)[0], out + 7, "out, 7 added to every value")
    order = g.permutation(Tk)  # without a mask keys are a set: their order means nothing
    assert_close(lesson.attention_forward(q, k[order], v[order])[0], out, "out, keys in another order")


@pytest.mark.parametrize("mask", [np.ones((4, 5), bool), mask], ids=["no mask", "mask"])
def test_attention_backward(mask):
    _, cache = lesson.attention_forward(q, k, v, mask)
    dq, dk, dv = lesson.attention_backward(dout, cache)
    loss = lambda q, k, v: (formula(q, k, v, mask) * dout).sum()
    assert_close(dv, numeric_grad(lambda v: loss(q, k, v), v), "dv", rtol=1e-4)
    assert_close(dq, numeric_grad(lambda q: loss(q, k, v), q), "dq", rtol=1e-4)
    assert_close(dk, numeric_grad(lambda k: loss(q, k, v), k), "dk", rtol=1e-4)


def test_attention_backward_is_linear_in_dout():
    _, cache = lesson.attention_forward(q, k, v, mask)
    other = rng.normal(size=dout.shape)
    one, two, both = (lesson.attention_backward(d, cache) for d in (dout, other, 2 * dout - 3 * other))
    for name, a, b, c in zip(("dq", "dk", "dv"), one, two, both):
        assert_close(c, 2 * a - 3 * b, name)


# masks


def test_causal_mask():
    assert_close(lesson.causal_mask(3, 3).astype(int), [[1, 0, 0], [1, 1, 0], [1, 1, 1]], "mask")
    assert lesson.causal_mask(3, 3).dtype == bool


def test_causal_mask_takes_the_queries_as_the_last_positions():
    assert_close(lesson.causal_mask(2, 4).astype(int), [[1, 1, 1, 0], [1, 1, 1, 1]], "mask")
    assert_close(lesson.causal_mask(1, 3).astype(int), [[1, 1, 1]], "mask of the newest position")


def test_causal_mask_refuses_more_queries_than_keys():
    with pytest.raises(ValueError, match="4 queries .* 3 positions"):
        lesson.causal_mask(4, 3)


def test_padding_mask():
    got = lesson.padding_mask(np.array([2, 3, 1]), 3)
    assert_close(got.astype(int), np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]])[:, None, None], "mask")
    assert got.dtype == bool


@pytest.mark.parametrize("lengths", [[0, 2], [2, 4], [-1]])
def test_padding_mask_refuses_lengths_that_do_not_fit(lengths):
    with pytest.raises(ValueError, match="from 1 to 3"):
        lesson.padding_mask(lengths, 3)


# heads


def test_split_heads():
    x = np.arange(24).reshape(1, 3, 8)
    got = lesson.split_heads(x, 2)
    assert_close(got, [[x[0, :, :4], x[0, :, 4:]]], "heads")
    assert np.shares_memory(got, x), "split_heads should be a view: reshape and swapaxes move no number"


def test_split_heads_refuses_heads_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="8 channels .* 3 heads"):
        lesson.split_heads(np.zeros((1, 2, 8)), 3)


def test_merge_heads():
    x = rng.normal(size=(2, 3, 4, 5))  # (B, H, T, D)
    assert_close(lesson.merge_heads(x), np.concatenate([x[:, h] for h in range(3)], axis=-1), "out")
    heads = packed_q.reshape(B, 3, H, C // H).swapaxes(1, 2)
    merged = lesson.merge_heads(heads)
    assert np.shares_memory(merged, packed_q), "merge_heads should undo split_heads by a view"


# the operations, in both rooms; the float32 room is held to what float32 can do


def run(room, *arrays):
    """The arrays as the room wants them, and what it may be wrong by."""
    if room is cpu:
        return [a.astype(np.float32) for a in arrays], {"rtol": 1e-4, "atol": 2e-5}
    return arrays, {"rtol": 1e-5, "atol": 1e-7}


@rooms
@cases
def test_cross_attention_forward(room, causal, lengths):
    (q, kv), tolerance = run(room, packed_q, packed_kv)
    out, _ = room.cross_attention_forward(q, kv, H, causal, lengths)
    assert_close(out, multi_head(packed_q, packed_kv, H, causal, lengths), "out", **tolerance)
    assert out.dtype == q.dtype


@rooms
@cases
def test_cross_attention_backward(room, causal, lengths):
    dout = rng.normal(size=packed_q.shape)
    (q, kv, d), tolerance = run(room, packed_q, packed_kv, dout)
    _, cache = room.cross_attention_forward(q, kv, H, causal, lengths)
    dq, dkv = room.cross_attention_backward(d, cache)
    loss = lambda q, kv: (multi_head(q, kv, H, causal, lengths) * dout).sum()
    assert_close(dq, numeric_grad(lambda q: loss(q, packed_kv), packed_q), "dq", **tolerance)
    assert_close(dkv, numeric_grad(lambda kv: loss(packed_q, kv), packed_kv), "dkv", **tolerance)


@rooms
@pytest.mark.parametrize("causal, lengths", [(True, None), (False, None), (True, [4, 2]), (False, [1, 3])])
def test_self_attention_forward(room, causal, lengths):
    (qkv,), tolerance = run(room, packed_qkv)
    out, _ = room.self_attention_forward(qkv, H, causal, lengths)
    assert_close(out, multi_head_self(packed_qkv, H, causal, lengths), "out", **tolerance)


@rooms
@pytest.mark.parametrize("causal, lengths", [(True, None), (False, None), (True, [4, 2]), (False, [1, 3])])
def test_self_attention_backward(room, causal, lengths):
    dout = rng.normal(size=(B, 4, C))
    (qkv, d), tolerance = run(room, packed_qkv, dout)
    _, cache = room.self_attention_forward(qkv, H, causal, lengths)
    want = numeric_grad(lambda qkv: (multi_head_self(qkv, H, causal, lengths) * dout).sum(), packed_qkv)
    assert_close(room.self_attention_backward(d, cache), want, "dqkv", **tolerance)


@rooms
def test_self_attention_forward_is_causal_by_default_and_cross_attention_forward_is_not(room):
    (qkv, q, kv), tolerance = run(room, packed_qkv, packed_q, packed_kv)
    out, _ = room.self_attention_forward(qkv, H)
    assert_close(out, multi_head_self(packed_qkv, H, True), "self", **tolerance)
    out, _ = room.cross_attention_forward(q, kv, H)
    assert_close(out, multi_head(packed_q, packed_kv, H), "cross", **tolerance)


@rooms
@pytest.mark.parametrize("T", [5, 70])  # 70: the cpu room works in stripes
def test_self_attention_forward_of_the_past_does_not_know_the_future(room, T):
    (qkv,), _ = run(room, rng.normal(size=(2, T, 3 * C)))
    out, _ = room.self_attention_forward(qkv, H)
    for t in (1, T // 2, T - 1):
        changed = qkv.copy()
        changed[:, t:] = -9
        got, _ = room.self_attention_forward(changed, H)
        assert np.array_equal(got[:, :t], out[:, :t]), (
            f"what stands at {t} and later changed an earlier output")
        assert not np.allclose(got[:, t:], out[:, t:])


@rooms
@pytest.mark.parametrize("T", [5, 70])
def test_self_attention_backward_of_the_past_gives_the_future_nothing(room, T):
    (qkv, dout), _ = run(room, rng.normal(size=(2, T, 3 * C)), rng.normal(size=(2, T, C)))
    dout[:, T // 2:] = 0  # no output from the middle on counts
    _, cache = room.self_attention_forward(qkv, H)
    assert not room.self_attention_backward(dout, cache)[:, T // 2:].any()


@rooms
@pytest.mark.parametrize("causal", [False, True])
def test_cross_attention_does_not_know_what_stands_in_padding(room, causal):
    (q, kv, dout), _ = run(room, *(rng.normal(size=s) for s in [(2, 4, C), (2, 7, 2 * C), (2, 4, C)]))
    lengths, padded = np.array([3, 6]), kv.copy()
    padded[0, 3:], padded[1, 6:] = 1e4, -1e4
    one, two = (room.cross_attention_forward(q, x, H, causal, lengths) for x in (kv, padded))
    assert np.array_equal(one[0], two[0])
    (dq, dkv), (dq2, dkv2) = (room.cross_attention_backward(dout.copy(), cache) for _, cache in (one, two))
    assert np.array_equal(dq, dq2) and np.array_equal(dkv[0, :3], dkv2[0, :3])
    assert not dkv2[0, 3:].any() and not dkv2[1, 6:].any(), "padding has no gradient"


@rooms
def test_self_attention_treats_each_row_of_the_batch_by_itself(room):
    (qkv, dout), tolerance = run(room, rng.normal(size=(4, 6, 3 * C)), rng.normal(size=(4, 6, C)))
    lengths, order = np.array([6, 2, 5, 1]), [2, 0, 3, 1]
    out, cache = room.self_attention_forward(qkv, H, True, lengths)
    out2, cache2 = room.self_attention_forward(qkv[order], H, True, lengths[order])
    assert_close(out2, out[order], "out, batch in another order", **tolerance)
    dqkv = room.self_attention_backward(dout.copy(), cache)
    dqkv2 = room.self_attention_backward(dout[order], cache2)
    assert_close(dqkv2, dqkv[order], "dqkv, batch in another order", **tolerance)


@rooms
@pytest.mark.parametrize("last", [1, 3])
def test_cross_attention_forward_of_the_last_queries_is_the_end_of_self_attention_forward(room, last):
    (qkv,), tolerance = run(room, rng.normal(size=(2, 40, 3 * C)))
    want, _ = room.self_attention_forward(qkv, H)
    got, _ = room.cross_attention_forward(qkv[:, -last:, :C], qkv[..., C:], H, causal=True)  # like a KV cache
    assert_close(got, want[:, -last:], "out", **tolerance)


@rooms
def test_self_attention_backward_is_linear_in_dout(room):
    qkv, one, two = (rng.normal(size=s) for s in [(2, 40, 3 * C), (2, 40, C), (2, 40, C)])
    (qkv, one, two), tolerance = run(room, qkv, one, two)
    _, cache = room.self_attention_forward(qkv, H)
    a, b, c = (room.self_attention_backward(d, cache) for d in (one, two, 2 * one - 3 * two))
    assert_close(c, 2 * a - 3 * b, "dqkv", **tolerance)


@rooms
def test_attention_stays_in_float32(room):
    q, kv, qkv = (a.astype(np.float32) for a in (packed_q, packed_kv, packed_qkv))
    for (out, cache), back in [
            (room.cross_attention_forward(q, kv, H, True, [4, 5]), room.cross_attention_backward),
            (room.self_attention_forward(qkv, H), room.self_attention_backward)]:
        assert all(a.dtype == np.float32 for a in (out, *back(out, cache)))


# the two rooms against each other, where the kernels' stripes and loops could go wrong


@pytest.mark.parametrize("T", [1, 3, 32, 33, 64, 128, 130, 256])
@pytest.mark.parametrize("causal", [True, False])
def test_the_cpu_room_equals_numpy_for_odd_lengths_and_views(T, causal):
    g, H, C = np.random.default_rng(T), 3, 24
    wide = g.normal(size=(2, T + 2, 5 * C)).astype(np.float32)
    qkv = wide[:, 1:-1, C:4 * C]  # all three are views, not copies
    q, kv = wide[:, -(T + 1) // 2:, :C], wide[:, :T, 2 * C:4 * C]
    for lengths in (None, np.array([(T + 1) // 2, T], np.int32)):
        for name, arrays in ("self", [qkv]), ("cross", [q, kv]):
            outs, caches = zip(*(getattr(room, f"{name}_attention_forward")(*arrays, H, causal, lengths)
                                 for room in (lesson, cpu)))
            assert_close(outs[1], outs[0], f"{name} out", rtol=1e-4, atol=1e-5)
            dout = g.normal(size=(*outs[0].shape[:2], 2 * C)).astype(np.float32)[..., C:]
            want, got = (getattr(room, f"{name}_attention_backward")(d, cache)
                         for room, d, cache in zip((lesson, cpu), (dout.copy(), dout), caches))
            for w, x in zip(want, got) if name == "cross" else [(want, got)]:
                assert_close(x, w, f"{name} gradient", rtol=1e-4, atol=1e-4)


def test_softmax_of_the_cpu_room_gives_masked_keys_a_weight_of_exactly_0():
    scores = np.random.default_rng(0).normal(size=(2, 2, 5, 70)).astype(np.float32) * 30
    scores[..., 69] = 1e30  # the largest by far, and seen by nobody
    cpu.softmax(scores, np.array([69, 40]), True, 70, 0.5)
    see = visible(5, 70, True, [69, 40])[:, None]
    assert (scores[np.broadcast_to(~see, scores.shape)] == 0).all()
    assert_close(scores.sum(axis=-1), np.ones((2, 2, 5)), "sums of the weights")


def test_softmax_and_softmax_backward_of_the_cpu_room_never_touch_what_lies_right_of_a_stripe():
    w, d = np.full((2, 1, 1, 96, 96), np.nan, np.float32)
    for i in (0, 32, 64):
        w[0, 0, i:i + 32, :i + 32] = d[0, 0, i:i + 32, :i + 32] = 1
    beyond = np.isnan(w)
    cpu.softmax(w, np.array([96]), True, 32, 1.0)
    cpu.softmax_backward(w, d, 32, 1.0)
    assert np.array_equal(np.isnan(w), beyond) and np.array_equal(np.isnan(d), beyond)


def test_the_cpu_room_shows_a_nan():
    qkv = np.random.default_rng(0).normal(size=(1, 4, 3 * C)).astype(np.float32)
    qkv[0, 2, 0] = np.nan
    out, _ = cpu.self_attention_forward(qkv, H)
    assert np.isnan(out[0, 2, :C // H]).all() and np.isfinite(out[0, :2]).all()


# flash


@pytest.mark.parametrize("tile", [1, 2, 3, 4, 5, 64])
@pytest.mark.parametrize("see", [None, mask, np.array([0, 1, 0, 0, 1], bool)],
                         ids=["none", "mask", "padding"])
def test_flash_attention(tile, see):
    full = np.broadcast_to(True if see is None else see, (4, 5))
    assert_close(lesson.flash_attention(q, k, v, see, tile=tile), formula(q, k, v, full), "out")


def test_flash_attention_survives_tiles_in_which_all_is_masked():
    q, k, v = rng.normal(size=(3, 1, 6, 2))
    with np.errstate(invalid="raise", divide="raise"):
        for see in (np.tri(6, dtype=bool), np.tri(6, dtype=bool)[::-1, ::-1]):  # first or last tiles masked
            assert_close(lesson.flash_attention(q, k, v, see, tile=2), formula(q, k, v, see), "out")


def test_flash_attention_survives_scores_of_1000():
    one = np.eye(3)[None]
    assert_close(lesson.flash_attention(one * 2000, one, one, tile=1), one, "out")
    low = -2000 * np.ones((1, 2, 1))
    assert_close(lesson.flash_attention(low, -low / 2, low, tile=1), low, "out, all scores -2,000,000")


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 12), st.integers(0, 999))
def test_flash_attention_is_the_same_for_every_tile(Tq, older, tile, seed):
    g, Tk = np.random.default_rng(seed), Tq + older
    q, k, v = (g.normal(size=(2, T, 3)) * 3 for T in (Tq, Tk, Tk))
    see = visible(Tq, Tk, True, [Tk])[0]
    assert_close(lesson.flash_attention(q, k, v, see, tile=tile), formula(q, k, v, see), "out")


def test_flash_attention_never_holds_all_scores():
    q, k, v = rng.normal(size=(3, 1024, 4))
    tracemalloc.start()
    try:
        lesson.flash_attention(q, k, v, tile=64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024 * 8 / 10, (
        f"{peak / 1e6:.1f} MB at once; all scores are 8.4 MB, a tile is 0.03 MB")


def test_flash_attention_stays_in_float32():
    out = lesson.flash_attention(*(x.astype(np.float32) for x in (q, k, v)), mask, tile=2)
    assert out.dtype == np.float32
