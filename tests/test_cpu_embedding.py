"""The kernels of lesson 6. The tests of f are test_f and test_f_*: they are also its exercises.

The oracle: products with a one-hot matrix, in float64.
"""
import numpy as np
import pytest

from kernels.cpu import embedding as cpu
from tests.close import assert_close, unchanged

rng = np.random.default_rng(6)
f32 = np.float32
V, P, C = 7, 6, 3
wte, wpe, dout = (rng.normal(size=s).astype(f32) for s in [(V, C), (P, C), (2, 4, C)])
tokens = np.array([[3, 0, 3, 6], [3, 5, 5, 0]])  # 3 thrice, 0 and 5 twice; 1, 2, 4 never
sizes = pytest.mark.parametrize("B, T, C, V, start, dtype", [
    (1, 1, 1, 1, 0, np.int64), (2, 5, 3, 1, 1, np.int32), (3, 7, 33, 65, 2, np.uint16),
    (2, 0, 4, 5, 0, np.int64)])


def hot(tokens, vocab_size):
    return (np.asarray(tokens)[..., None] == np.arange(vocab_size)).astype(float)


def test_add_rows_writes_the_sum_of_two_rows():
    x = np.full((2, 4, C), 7, f32)  # not zeros: what was there must be gone
    with unchanged(tokens=tokens, wte=wte, wpe=wpe):
        cpu.add_rows(tokens, wte, wpe, x)
    assert_close(x, hot(tokens, V) @ wte + wpe[:4], "x")


def test_scatter_rows_adds_to_the_tokens_rows_and_writes_the_positions():
    dwte, dwpe = np.full((V, C), 2, f32), np.full((P, C), 7, f32)  # 2 stays, 7 goes
    with unchanged(tokens=tokens, dout=dout):
        cpu.scatter_rows(tokens, 1, dout, dwte, dwpe)
    assert_close(dwte - 2, np.einsum("btv,btc->vc", hot(tokens, V), dout), "added to dwte", atol=1e-5)
    assert_close(dwpe[1:5], dout[0] + dout[1], "dwpe of positions 1 to 4")
    assert_close(dwpe[[0, 5]], np.zeros((2, C)), "dwpe of positions 0 and 5, which are not used")


@sizes
def test_embedding_forward_of_any_size(B, T, C, V, start, dtype):
    tokens = rng.integers(0, V, (B, T)).astype(dtype)
    wte, wpe = rng.normal(size=(V, C)).astype(f32), rng.normal(size=(T + 4, C)).astype(f32)
    x, _ = cpu.embedding_forward(tokens, wte, wpe, start)
    assert_close(x, hot(tokens, V) @ wte + wpe[start:start + T], "x", dtype=f32)


@sizes
def test_embedding_backward_of_any_size(B, T, C, V, start, dtype):
    tokens = rng.integers(0, V, (B, T)).astype(dtype)
    dout, before, dwpe = (rng.normal(size=s).astype(f32) for s in [(B, T, C), (V, C), (T + 4, C)])
    _, cache = cpu.embedding_forward(tokens, before, dwpe, start)
    dwte, want = before.copy(), np.zeros((T + 4, C))
    cpu.embedding_backward(dout, cache, dwte, dwpe)
    want[start:start + T] = dout.sum(axis=0)
    assert_close(dwte, before + np.einsum("btv,btc->vc", hot(tokens, V), dout), "dwte", atol=1e-5)
    assert_close(dwpe, want, "dwpe", atol=1e-5)


@pytest.mark.parametrize("bad", [V, 1000, -1])
def test_embedding_forward_names_a_token_that_is_not_in_the_vocabulary(bad):
    ids = tokens.copy()
    ids[1, 2] = bad
    with pytest.raises(ValueError, match=rf"token {bad} "):
        cpu.embedding_forward(ids, wte, wpe)


@pytest.mark.parametrize("start", [3, 5, 6, -1])
def test_embedding_forward_refuses_positions_outside_the_table(start):
    with pytest.raises(ValueError, match=f"4 positions from {start} on"):
        cpu.embedding_forward(tokens, wte, wpe, start)


def test_embedding_forward_takes_views_and_refuses_fractions():
    wide = np.repeat(tokens, 2, axis=1)
    assert_close(cpu.embedding_forward(wide[:, ::2], wte, wpe)[0], wte[tokens] + wpe[:4], "x")
    with pytest.raises(TypeError, match="float64"):
        cpu.embedding_forward(tokens + 0.5, wte, wpe)


def test_embedding_backward_writes_into_no_table_of_another_size():
    _, cache = cpu.embedding_forward(tokens, wte, wpe)
    with pytest.raises(ValueError, match="token 6 has no row in a table of 5"):
        cpu.embedding_backward(dout, cache, wte[:5], wpe)
    with pytest.raises(ValueError, match="3 channels, positions 2"):
        cpu.embedding_backward(dout, cache, wte, wpe[:, :2])
    with pytest.raises(ValueError, match="the shape of x"):
        cpu.embedding_backward(dout[:, :, :2], cache, wte, wpe)
