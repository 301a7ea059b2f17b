"""The tests of f are test_f and test_f_*: they are also lesson 6's exercises.

The oracles: a product with a one-hot matrix built here, finite differences, the paper's formula in a loop.
"""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import l06_embedding as lesson
from tests.close import assert_close, numeric_grad, raises, unchanged

rng = np.random.default_rng(6)
V, P, C = 7, 6, 3
wte, wpe, dout = (rng.normal(size=s) for s in [(V, C), (P, C), (2, 4, C)])
tokens = np.array([[3, 0, 3, 6], [3, 5, 5, 0]])  # 3 thrice, 0 and 5 twice; 1, 2, 4 never


def hot(tokens, vocab_size):
    return (np.asarray(tokens)[..., None] == np.arange(vocab_size)).astype(float)


def test_one_hot_is_1_where_the_token_is_and_0_elsewhere():
    assert_close(lesson.one_hot(tokens, V), hot(tokens, V), "one-hot", dtype=np.float64)


def test_one_hot_takes_one_sentence_and_one_token():
    assert_close(lesson.one_hot(tokens[0], V), hot(tokens[0], V), "one-hot of a sentence")
    assert_close(lesson.one_hot(np.int64(2), 4), [0, 0, 1, 0], "one-hot of token 2")


def test_embedding_forward_is_a_one_hot_product():
    with unchanged(tokens=tokens, wte=wte, wpe=wpe):
        x, _ = lesson.embedding_forward(tokens, wte, wpe)
    assert_close(x, hot(tokens, V) @ wte + wpe[:4], "x", rtol=0, atol=1e-12, dtype=np.float64)


def test_embedding_forward_starts_where_generation_stands():
    x, _ = lesson.embedding_forward(tokens[:, 2:], wte, wpe, start=2)
    rows = hot(tokens, V)[:, 2:] @ wte
    assert_close(x, rows + wpe[2:4], "x of two tokens from start = 2 on", mistakes={
        "start is not used: these are positions 0 and 1": rows + wpe[:2], "no position is added": rows})


def test_embedding_forward_keeps_tokens_and_start_for_backward():
    _, cache = lesson.embedding_forward(tokens, wte, wpe, start=2)
    assert type(cache) is tuple and len(cache) == 2, f"cache is {cache}, expected the pair (tokens, start)"
    assert_close(cache[0], tokens, "tokens, the cache's first")
    assert_close(cache[1], 2, "start, the cache's second")


def test_embedding_forward_keeps_the_dtype():
    x, _ = lesson.embedding_forward(tokens, wte.astype(np.float32), wpe.astype(np.float32))
    assert_close(x, wte[tokens] + wpe[:4], "x", dtype=np.float32)


@pytest.mark.parametrize("bad", [V, 1000, -1])
def test_embedding_forward_names_a_token_that_is_not_in_the_vocabulary(bad):
    ids = tokens.copy()
    ids[1, 2] = bad
    with raises(ValueError, f"token {bad} ", f"token {bad}, a table of {V}"):
        lesson.embedding_forward(ids, wte, wpe)


@pytest.mark.parametrize("start", [3, 5, 6, -1])  # from 5 on, NumPy alone would add one row to every token
def test_embedding_forward_refuses_positions_outside_the_table(start):
    with raises(ValueError, f"4 positions from {start} on", f"4 positions from {start}, a table of {P}"):
        lesson.embedding_forward(tokens, wte, wpe, start)


def backward(start=0, dwte=None):
    _, cache = lesson.embedding_forward(tokens, wte, wpe, start)
    dwte = np.zeros((V, C)) if dwte is None else dwte
    dwpe = np.full((P, C), 9.0)  # not zeros: what was there must be gone
    with unchanged(dout=dout, tokens=tokens):
        result = lesson.embedding_backward(dout, cache, dwte, dwpe)
    assert result is None, "embedding_backward returns something, expected None: both arrays are the caller's"
    return dwte, dwpe


@pytest.mark.parametrize("start", [0, 1, 2])
def test_embedding_backward_is_the_slope_of_forward(start):
    x = lambda wte, wpe: (wte[tokens] + wpe[start:start + 4]) * dout
    dwte, dwpe = backward(start)
    last = np.zeros((V, C))
    last[tokens] += dout  # NumPy reads all rows, then writes all
    assert_close(dwte, numeric_grad(lambda w: x(w, wpe).sum(), wte), "dwte", mistakes={
        "of a token that occurs several times, only the last gradient is left": last})
    assert_close(dwpe, numeric_grad(lambda w: x(wte, w).sum(), wpe), "dwpe")


def test_embedding_backward_accumulates_repeated_tokens():
    dwte, _ = backward()
    assert_close(dwte[3], dout[0, 0] + dout[0, 2] + dout[1, 0], "dwte[3] (token 3 occurs three times)")


def test_embedding_backward_touches_only_rows_that_were_used():
    dwte, dwpe = backward(start=1)
    assert_close(dwte[[1, 2, 4]], np.zeros((3, C)), "dwte of tokens 1, 2 and 4, which do not occur")
    assert_close(dwpe[[0, 5]], np.zeros((2, C)), "dwpe of positions 0 and 5, which are not used",
                 mistakes={"what was there before is still there": np.full((2, C), 9)})


def test_embedding_backward_adds_to_what_the_tied_head_left():
    before = rng.normal(size=(V, C))
    dwte, _ = backward(dwte=before.copy())
    grad = np.einsum("btv,btc->vc", hot(tokens, V), dout)
    assert_close(dwte, before + grad, "dwte", mistakes={"what was in dwte before is lost": grad})


def test_embedding_backward_of_float64_is_as_exact_as_float64():
    dwte, dwpe = backward()
    assert_close(dwte, np.einsum("btv,btc->vc", hot(tokens, V), dout), "dwte", rtol=0, atol=1e-12)
    assert_close(dwpe[:4], dout[0] + dout[1], "dwpe of positions 0 to 3", rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=P))
def test_embedding_backward_is_the_transpose_of_forward(ids):
    """<W[v], dx> = <W, dW> for every W: what defines the gradient of a linear function."""
    g = np.random.default_rng(len(ids))
    d, dwte, dwpe = g.normal(size=(1, len(ids), C)), np.zeros((V, C)), np.zeros((P, C))
    x, cache = lesson.embedding_forward(np.array([ids]), wte, wpe)
    lesson.embedding_backward(d, cache, dwte, dwpe)
    assert_close((dwte * wte).sum() + (dwpe * wpe).sum(), (x * d).sum(), "inner product")


@pytest.mark.parametrize("channels", [8, 1, 5])
def test_sinusoidal_positions_are_sines_and_cosines(channels):
    want = [[(math.cos if c % 2 else math.sin)(pos / 10000 ** ((c - c % 2) / channels))
             for c in range(channels)] for pos in range(20)]
    assert_close(lesson.sinusoidal_positions(20, channels), want, "table", dtype=np.float32)
    table = lesson.sinusoidal_positions(20, channels, np.float64)
    assert_close(table, want, "table in float64", rtol=0, atol=1e-12, dtype=np.float64)


def test_sinusoidal_positions_are_exact_far_out():
    """In float32, an angle of 4000 is wrong by 0.0001; a table that is only rounded in the end is not."""
    want = [[f(pos / 10000 ** (pair / 64)) for pair in range(0, 64, 2) for f in (math.sin, math.cos)]
            for pos in range(4990, 5000)]
    table = lesson.sinusoidal_positions(5000, 64)
    assert_close(table[4990:], want, "the last ten rows (computed in float64?)", rtol=0, atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(1, 8))
def test_sinusoidal_positions_are_alike_by_distance_alone(a, b, shift, pairs):
    table = lesson.sinusoidal_positions(41, 2 * pairs, np.float64)
    assert_close(table[a + shift] @ table[b + shift], table[a] @ table[b], "product of two positions")
