"""The tests of f are test_f and test_f_*: they are also lesson 12's exercises.

The oracle is the formula in float64, one head and one query at a time, and its finite differences. What the
tests share is read-only.
"""
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import l12_attention as lesson
from tests.close import assert_close, numeric_grad, unchanged

rng = np.random.default_rng(12)
q, k, v, dout = (rng.normal(size=(2, T, D)) for T, D in ((4, 3), (5, 3), (5, 2), (4, 2)))
mask = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
everything = np.ones((4, 5), bool)
B, H, C = 2, 2, 6
packed_q, packed_kv, packed_qkv = (rng.normal(size=s) for s in [(B, 4, C), (B, 5, 2 * C), (B, 4, 3 * C)])
for shared in q, k, v, dout, mask, packed_q, packed_kv, packed_qkv:
    shared.setflags(write=False)
EXACT = {"rtol": 1e-9, "atol": 1e-9, "dtype": float}
cases = pytest.mark.parametrize(
    "causal, lengths", [(False, None), (True, None), (False, [5, 2]), (True, [1, 4])],
    ids=["no mask", "causal", "padding", "causal and padding"])


def formula(q, k, v, mask):  # (..., Tq, D), (..., Tk, D), (..., Tk, D) -> (..., Tq, D)
    """softmax(q k^T / sqrt(D)) v, each query by itself over the keys it may see."""
    if q.ndim > 2:
        masks = np.broadcast_to(mask, (*q.shape[:-1], k.shape[-2]))
        return np.array([formula(*one) for one in zip(q, k, v, masks)])
    p = [np.exp(k[see] @ one / math.sqrt(len(one))) for one, see in zip(q, mask)]
    return np.array([p @ v[see] / p.sum() for p, see in zip(p, mask)])


def weights_of(q, k, mask):  # -> (..., Tq, Tk): with these values the output is the weights
    return formula(q, k, np.broadcast_to(np.eye(k.shape[-2]), (*k.shape[:-1], k.shape[-2])), mask)


def visible(Tq, Tk, causal, lengths):
    """-> (B, Tq, Tk) bool, from the words of the docstring"""
    return np.array([[[j < n and (not causal or j <= Tk - Tq + t) for j in range(Tk)] for t in range(Tq)]
                     for n in lengths or [Tk] * B])


def heads(x, n_head):  # (B, T, C) -> (B, H, T, D): head h has the channels from h D up to (h + 1) D
    return np.stack(np.split(x, n_head, axis=-1), axis=1)


def multi_head(q, kv, n_head, causal=False, lengths=None):  # (B, Tq, C), (B, Tk, 2C) -> (B, Tq, C)
    see = visible(q.shape[1], kv.shape[1], causal, lengths)[:, None]
    k, v = kv[..., :q.shape[2]], kv[..., q.shape[2]:]
    out = formula(*(heads(x, n_head) for x in (q, k, v)), see)
    return np.concatenate([out[:, h] for h in range(n_head)], axis=-1)


def multi_head_self(qkv, n_head, causal=True, lengths=None):
    C = qkv.shape[-1] // 3
    return multi_head(qkv[..., :C], qkv[..., C:], n_head, causal, lengths)


def of_mistakes(q, k, v, mask):  # -> {what was done: the out that it gives}
    """Nearly right answers, so that a learner who has one is told which."""
    scores, D = q @ k.swapaxes(-1, -2), q.shape[-1]
    scaled = scores / math.sqrt(D)

    def share(scores, mask=True, axis=-1, hidden=-np.inf):
        e = np.exp(np.where(mask, scores, hidden))
        return e / e.sum(axis=axis, keepdims=True)

    with np.errstate(all="ignore"):
        return {"this is it without 1 / sqrt(D)": share(scores, mask) @ v,
                "the scores are divided by D, not by sqrt(D)": share(scores / D, mask) @ v,
                "the scores are multiplied by sqrt(D), not divided": share(scores * math.sqrt(D), mask) @ v,
                "the softmax runs over the queries, not over the keys": share(scaled, mask, axis=-2) @ v,
                "the weights are not divided by their sum": np.where(mask, np.exp(scaled), 0) @ v,
                "the mask is not used": share(scaled) @ v,
                "the mask is turned round: True is where one may look": share(scaled, ~mask) @ v,
                "a forbidden score is 0, and must be -inf": share(scaled, mask, hidden=0) @ v,
                "the mask comes after the softmax: the rest does not sum to 1": share(scaled) * mask @ v}


def of_mistakes_with_tiles(q, k, v, mask, tile):
    scores = np.where(mask, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -1e9)
    tops = [scores[..., :j // tile * tile + tile].max(axis=-1) for j in range(scores.shape[-1])]
    then, last = np.exp(scores - np.moveaxis(tops, 0, -1)), np.exp(scores - scores.max(axis=-1)[..., None])
    rest = "not corrected when a larger score turns up"
    return {f"total and part are {rest}": then @ v / then.sum(axis=-1)[..., None],
            f"total is {rest}": last @ v / then.sum(axis=-1)[..., None],
            f"part is {rest}": then @ v / last.sum(axis=-1)[..., None],
            "part is not divided by total": last @ v, **of_mistakes(q, k, v, mask)}


def of_mistakes_with_heads(q, kv, n_head, causal, lengths):
    C = q.shape[2]
    return {"k and v have changed places": multi_head(q, np.roll(kv, C, axis=2), n_head, causal, lengths),
            "there are D heads of n_head channels": multi_head(q, kv, C // n_head, causal, lengths),
            "it is one head": multi_head(q, kv, 1, causal, lengths),
            "the causal mask is not used": multi_head(q, kv, n_head, False, lengths),
            "it is causal, and was not asked to be": multi_head(q, kv, n_head, True, lengths),
            "the lengths are not used": multi_head(q, kv, n_head, causal, None)}


def float32(*arrays):
    return [a.astype(np.float32) for a in arrays]


# one head


def test_attention_forward():
    one, two, three = q.copy(), k.copy(), v.copy()
    with unchanged(q=one, k=two, v=three):
        out, _ = lesson.attention_forward(one, two, three)
    assert_close(out, formula(q, k, v, everything), "out", **EXACT, mistakes=of_mistakes(q, k, v, everything))


def test_attention_forward_with_a_mask():
    out, _ = lesson.attention_forward(q, k, v, mask)
    assert_close(out, formula(q, k, v, mask), "out", **EXACT, mistakes=of_mistakes(q, k, v, mask))
    one = np.array([mask, mask[::-1]])  # a mask of its own for each row of the batch
    assert_close(lesson.attention_forward(q, k, v, one)[0], formula(q, k, v, one), "out, a mask for each row")


def test_attention_forward_keeps_what_backward_needs():
    _, cache = lesson.attention_forward(q, k, v, mask)
    assert_close(len(cache), 4, "number of things in the cache")
    for name, got, want in zip(("q", "k", "v", "weights"), cache, (q, k, v, weights_of(q, k, mask))):
        assert_close(got, want, f"{name} in the cache")
    assert (cache[3][:, ~mask] == 0).all(), "what is masked must weigh exactly 0"


def test_attention_forward_of_one_visible_key_is_its_value():
    only = np.eye(5, dtype=bool)[[4, 2, 0, 2]]
    assert_close(lesson.attention_forward(q, k, v, only)[0], v[:, [4, 2, 0, 2]], "out")


def test_attention_forward_masks_with_minus_infinity_and_not_with_a_large_number():
    q, k, v = np.array([[1e6]]), np.array([[-1e6], [-1e6]]), np.array([[1.0], [2.0]])  # scores of -1e12
    assert_close(lesson.attention_forward(q, k, v, np.array([True, False]))[0], [[1.0]], "out")


def test_attention_forward_survives_scores_of_1000():
    one = np.eye(3)[None]
    assert_close(lesson.attention_forward(one * 2000, one, one)[0], one, "out")


def test_attention_forward_takes_any_leading_axes():
    q, k, v = (rng.normal(size=(2, 3, T, 2)) for T in (4, 5, 5))
    see = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)[:, None, None]  # as padding_mask makes them
    assert_close(lesson.attention_forward(q, k, v, see)[0], formula(q, k, v, see), "out of 4 axes")
    assert_close(lesson.attention_forward(q[0, 0], k[0, 0], v[0, 0])[0],
                 formula(q[0, 0], k[0, 0], v[0, 0], everything), "out of 2 axes")


def test_attention_forward_stays_in_float32():
    out, cache = lesson.attention_forward(*float32(q, k, v), mask)
    assert_close(out, formula(q, k, v, mask), "out", rtol=1e-4, atol=1e-5, dtype=np.float32)
    assert cache[3].dtype == np.float32, f"weights are {cache[3].dtype}, expected float32"


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(0, 999))
def test_attention_forward_is_an_average_of_the_values(Tq, Tk, D, seed):
    g = np.random.default_rng(seed)
    q, k, v = (g.normal(size=(T, D)) * 3 for T in (Tq, Tk, Tk))
    out, _ = lesson.attention_forward(q, k, v)
    assert (out <= v.max(axis=0) + 1e-9).all() and (out >= v.min(axis=0) - 1e-9).all()
    assert_close(lesson.attention_forward(q, k, v + 7)[0], out + 7, "out, 7 added to every value")
    order = g.permutation(Tk)  # without a mask keys are a set: their order means nothing
    assert_close(lesson.attention_forward(q, k[order], v[order])[0], out, "out, keys in another order")


@pytest.mark.parametrize("mask", [everything, mask], ids=["no mask", "mask"])
def test_attention_backward(mask):
    one, two, three, weights, d = q.copy(), k.copy(), v.copy(), weights_of(q, k, mask), dout.copy()
    with unchanged(q=one, k=two, v=three, weights=weights, dout=d):
        dq, dk, dv = lesson.attention_backward(d, (one, two, three, weights))
    loss = lambda q, k, v: (formula(q, k, v, mask) * dout).sum()
    assert_close(dv, numeric_grad(lambda v: loss(q, k, v), v), "dv", rtol=1e-4, dtype=float)
    assert_close(dq, numeric_grad(lambda q: loss(q, k, v), q), "dq", rtol=1e-4, dtype=float)
    assert_close(dk, numeric_grad(lambda k: loss(q, k, v), k), "dk", rtol=1e-4, dtype=float)


def test_attention_backward_takes_any_leading_axes():
    cache = q, k, v, weights_of(q, k, mask)
    want = lesson.attention_backward(dout, cache)
    four = lesson.attention_backward(dout[:, None], tuple(x[:, None] for x in cache))
    two = lesson.attention_backward(dout[1], tuple(x[1] for x in cache))
    for name, got4, got2, x in zip(("dq", "dk", "dv"), four, two, want):
        assert_close(got4, x[:, None], f"{name} of 4 axes")
        assert_close(got2, x[1], f"{name} of 2 axes")


def test_attention_backward_stays_in_float32():
    for name, got in zip(("dq", "dk", "dv"), lesson.attention_backward(
            *float32(dout), float32(q, k, v, weights_of(q, k, mask)))):
        assert got.dtype == np.float32, f"{name} is {got.dtype}, expected float32: np.sqrt makes a float64"


# masks


def test_causal_mask():
    want = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    assert_close(lesson.causal_mask(3, 3), want, "causal_mask(3, 3)", dtype=bool)


def test_causal_mask_takes_the_queries_as_the_last_positions():
    assert_close(lesson.causal_mask(2, 4), np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool), "causal_mask(2, 4)")
    assert_close(lesson.causal_mask(1, 3), np.array([[1, 1, 1]], bool), "causal_mask(1, 3)")


def test_causal_mask_of_any_size_is_an_array_of_its_own():
    sizes = [(1, 1), (4, 4), (2, 5), (3, 7), (1, 6), (6, 7), (2, 2)]
    masks = [lesson.causal_mask(*size) for size in sizes]  # all made before the first is looked at
    for size, got in zip(sizes, masks):
        assert_close(got, visible(*size, True, None)[0], f"causal_mask{size}, when others were made after it")


def test_causal_mask_refuses_more_queries_than_keys():
    with pytest.raises(ValueError):
        lesson.causal_mask(4, 3)


def test_padding_mask():
    want = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)[:, None, None]
    lengths, listed = np.array([2, 3, 1]), [2, 3, 1]
    with unchanged(lengths=lengths):
        got = lesson.padding_mask(lengths, 3)
    assert_close(got, want, "padding_mask of 2, 3, 1", dtype=bool)
    assert_close(lesson.padding_mask(listed, 3), want, "padding_mask of a list")
    assert listed == [2, 3, 1], f"the lengths were 2, 3, 1, and are {listed} now: they are only to be read"


def test_padding_mask_has_as_many_columns_as_there_are_keys():
    want = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool)[:, None, None]
    assert_close(lesson.padding_mask([2, 1], 5), want, "padding_mask of 2, 1 for 5 keys")


@pytest.mark.parametrize("lengths", [[0, 2], [2, 4], [-1]])
def test_padding_mask_refuses_lengths_that_do_not_fit(lengths):
    with pytest.raises(ValueError):
        lesson.padding_mask(lengths, 3)


# heads


def test_split_heads():
    x = np.arange(120, dtype=np.float32).reshape(2, 5, 12)
    with unchanged(x=x):
        got = lesson.split_heads(x, 3)
    assert_close(got, heads(x, 3), "heads", dtype=np.float32)
    part = np.arange(48).reshape(1, 3, 16)[..., 4:12]  # like q in q|k|v
    want = heads(part, 2)
    got = lesson.split_heads(part, 2)
    assert_close(got, want, "heads of a view")
    assert np.shares_memory(got, part), "split_heads should be a view: reshape and swapaxes move no number"


def test_split_heads_refuses_heads_that_do_not_divide_the_channels():
    with pytest.raises(ValueError):
        lesson.split_heads(np.zeros((1, 2, 8)), 3)


def test_merge_heads():
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)  # (B, H, T, D)
    with unchanged(x=x):
        got = lesson.merge_heads(x)
    assert_close(got, np.concatenate([x[:, h] for h in range(3)], axis=-1), "out", dtype=np.float32)
    split = packed_q.reshape(B, 4, H, C // H).swapaxes(1, 2)
    merged = lesson.merge_heads(split)
    assert np.shares_memory(merged, packed_q), "merge_heads should undo split_heads by a view"


def test_the_errors_name_the_numbers_that_do_not_fit():
    for call, message in [(lambda: lesson.causal_mask(4, 3), "4 queries .* 3 positions"),
                          (lambda: lesson.padding_mask([2, 4], 3), r"\[2, 4\] .* from 1 to 3"),
                          (lambda: lesson.split_heads(np.zeros((1, 2, 8)), 3), "8 channels .* 3 heads")]:
        with pytest.raises(ValueError, match=message):
            call()


# many heads


@cases
def test_cross_attention_forward(causal, lengths):
    asked = packed_q, packed_kv, H, causal, lengths
    want, mistakes = multi_head(*asked), of_mistakes_with_heads(*asked)
    given = np.array(lengths or [])
    with unchanged(lengths=given):
        out, _ = lesson.cross_attention_forward(*asked[:4], given if lengths else None)
    assert_close(out, want, "out", **EXACT, mistakes=mistakes)


@pytest.mark.parametrize("Tq", [1, 2, 3])
def test_cross_attention_forward_takes_the_queries_as_the_last_positions(Tq):
    q, kv = (rng.normal(size=s) for s in [(3, Tq, 8), (3, 6, 16)])
    see = [[[j <= 6 - Tq + t for j in range(6)] for t in range(Tq)]] * 3
    want = np.concatenate([formula(q[..., h], kv[..., h], kv[..., 8:][..., h], see)
                           for h in (slice(0, 4), slice(4, 8))], axis=-1)
    out, _ = lesson.cross_attention_forward(q, kv, 2, causal=True)
    assert_close(out, want, f"out of {Tq} queries, the last of 6 positions")


def test_cross_attention_forward_is_not_causal_if_nothing_is_said():
    out, _ = lesson.cross_attention_forward(packed_q, packed_kv, 3)
    assert_close(out, multi_head(packed_q, packed_kv, 3), "out of 3 heads")


def test_cross_attention_forward_keeps_what_attention_does():
    _, cache = lesson.cross_attention_forward(packed_q, packed_kv, H, True, [1, 4])
    q, k, v = (heads(x, H) for x in (packed_q, packed_kv[..., :C], packed_kv[..., C:]))
    weights = weights_of(q, k, visible(4, 5, True, [1, 4])[:, None])
    for name, got, want in zip(("q", "k", "v", "weights"), cache, (q, k, v, weights)):
        assert_close(got, want, f"{name} in the cache, each (B, H, ...)")


@pytest.mark.parametrize("causal, lengths", [(False, None), (True, [1, 4])])
def test_cross_attention_backward(causal, lengths):
    dout = rng.normal(size=packed_q.shape)
    _, cache = lesson.cross_attention_forward(packed_q, packed_kv, H, causal, lengths)
    dq, dkv = lesson.cross_attention_backward(dout, cache)
    loss = lambda q, kv: (multi_head(q, kv, H, causal, lengths) * dout).sum()
    assert_close(dq, numeric_grad(lambda q: loss(q, packed_kv), packed_q), "dq", rtol=1e-4)
    assert_close(dkv, numeric_grad(lambda kv: loss(packed_q, kv), packed_kv), "dkv", rtol=1e-4)


@pytest.mark.parametrize("causal, lengths", [(True, None), (False, None), (True, [4, 2]), (False, [1, 3])])
def test_self_attention_forward(causal, lengths):
    out, _ = lesson.self_attention_forward(packed_qkv, H, causal, lengths)
    assert_close(out, multi_head_self(packed_qkv, H, causal, lengths), "out")


def test_self_attention_forward_is_causal_if_nothing_is_said():
    assert_close(lesson.self_attention_forward(packed_qkv, H)[0], multi_head_self(packed_qkv, H, True), "out")


@pytest.mark.parametrize("causal, lengths", [(True, None), (False, [1, 3])])
def test_self_attention_backward(causal, lengths):
    dout = rng.normal(size=(B, 4, C))
    _, cache = lesson.self_attention_forward(packed_qkv, H, causal, lengths)
    want = numeric_grad(lambda qkv: (multi_head_self(qkv, H, causal, lengths) * dout).sum(), packed_qkv)
    assert_close(lesson.self_attention_backward(dout, cache), want, "dqkv", rtol=1e-4)


def test_self_attention_of_the_past_does_not_know_the_future_and_gives_it_no_gradient():
    qkv, dout = rng.normal(size=(2, 5, 3 * C)), rng.normal(size=(2, 5, C))
    out, cache = lesson.self_attention_forward(qkv, H)
    for t in (1, 2, 4):
        changed = qkv.copy()
        changed[:, t:] = -9
        got, _ = lesson.self_attention_forward(changed, H)
        assert np.array_equal(got[:, :t], out[:, :t]), f"what stands at {t} changed an earlier output"
    dout[:, 2:] = 0  # no output from here on counts
    assert not lesson.self_attention_backward(dout, cache)[:, 2:].any()


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_not_known_and_gets_no_gradient(causal):
    q, kv, dout = (rng.normal(size=s) for s in [(2, 4, C), (2, 7, 2 * C), (2, 4, C)])
    lengths, padded = np.array([3, 6]), kv.copy()
    padded[0, 3:], padded[1, 6:] = 1e4, -1e4
    one, two = (lesson.cross_attention_forward(q, x, H, causal, lengths) for x in (kv, padded))
    assert np.array_equal(one[0], two[0])
    (dq, dkv), (dq2, dkv2) = (lesson.cross_attention_backward(dout, cache) for _, cache in (one, two))
    assert np.array_equal(dq, dq2) and np.array_equal(dkv[0, :3], dkv2[0, :3])
    assert not dkv2[0, 3:].any() and not dkv2[1, 6:].any(), "padding has no gradient"


@pytest.mark.parametrize("last", [1, 3])
def test_the_last_queries_get_what_self_attention_gives_them(last):
    qkv = rng.normal(size=(2, 9, 3 * C))
    want, _ = lesson.self_attention_forward(qkv, H)
    q, kv = qkv[:, -last:, :C], qkv[..., C:]  # as generation asks: the newest query, all keys
    assert_close(lesson.cross_attention_forward(q, kv, H, causal=True)[0], want[:, -last:], "out")


def test_many_heads_stay_in_float32():
    q, kv, qkv = float32(packed_q, packed_kv, packed_qkv)
    for (out, cache), back in [
            (lesson.cross_attention_forward(q, kv, H, True, [4, 5]), lesson.cross_attention_backward),
            (lesson.self_attention_forward(qkv, H), lesson.self_attention_backward)]:
        assert all(a.dtype == np.float32 for a in (out, *back(out, cache)))


# flash


@pytest.mark.parametrize("tile", [2, 1, 3, 4, 5, 64], ids="tile {}".format)
@pytest.mark.parametrize("see", [None, mask, np.array([0, 1, 0, 0, 1], bool)],
                         ids=["no mask", "mask", "padding"])
def test_flash_attention(tile, see):
    one, two, three = q.copy(), k.copy(), v.copy()
    with unchanged(q=one, k=two, v=three):
        out = lesson.flash_attention(one, two, three, see, tile=tile)
    full = np.broadcast_to(True if see is None else see, (4, 5))
    mistakes = of_mistakes_with_tiles(q, k, v, full, tile)
    assert_close(out, formula(q, k, v, full), "out", **EXACT, mistakes=mistakes)


def test_flash_attention_takes_any_leading_axes():
    q, k, v = (rng.normal(size=(2, 3, T, 2)) for T in (4, 5, 5))
    see = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)[:, None, None]  # as padding_mask makes them
    assert_close(lesson.flash_attention(q, k, v, see, tile=2), formula(q, k, v, see), "out of 4 axes")
    assert_close(lesson.flash_attention(q[0, 0], k[0, 0], v[0, 0], tile=2),
                 formula(q[0, 0], k[0, 0], v[0, 0], everything), "out of 2 axes")


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


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 12), st.integers(0, 999))
def test_flash_attention_is_the_same_for_every_tile(Tq, older, tile, seed):
    g, Tk = np.random.default_rng(seed), Tq + older
    q, k, v = (g.normal(size=(2, T, 3)) * 3 for T in (Tq, Tk, Tk))
    see = visible(Tq, Tk, True, [Tk])[0]
    want = formula(q, k, v, see)
    assert_close(lesson.flash_attention(q, k, v, see, tile=tile), want, "out", rtol=1e-9, atol=1e-9)


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
    out = lesson.flash_attention(*float32(q, k, v), mask, tile=2)
    assert_close(out, formula(q, k, v, mask), "out", rtol=1e-4, atol=1e-5, dtype=np.float32)
