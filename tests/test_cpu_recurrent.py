"""The tests of f are test_f and test_f_*: they are also exercises of lesson 11.

The oracle is the LSTM's step in float64, written here, and its finite differences. Whole networks on these
kernels are tested in test_recurrent_golden.py. In plain Python: NUMBA_DISABLE_JIT=1 make check 11.
"""
import numpy as np
import pytest

from kernels.cpu import recurrent as cpu
from tests.close import assert_close, numeric_grad, unchanged

f32 = np.float32
SIZES = [(1, 1), (2, 3), (3, 17)]  # rows shorter and longer than what the CPU does at once
near = {"rtol": 1e-4, "atol": 2e-6, "dtype": f32}


def normal(*shapes, seed=11):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(f32) for shape in shapes]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def formula(z, c_before):  # float64 -> i, f, g, o, c, h
    i, f, g, o = np.split(z, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c_before + i * g
    return i, f, g, o, c, o * np.tanh(c)


def assert_gates(got, want):
    for k, name in enumerate("ifgo"):
        H = got.shape[1] // 4
        assert_close(got[:, k * H:(k + 1) * H], want[k], f"{name}, block {k} of gates", **near)


@pytest.mark.parametrize("B, H", SIZES)
def test_step(B, H):
    gates, product, bias, c_before = normal((B, 4 * H), (B, 4 * H), 4 * H, (B, H))
    *want, want_c, want_h = formula(gates.astype(float) + product + bias, c_before.astype(float))
    c, h = np.full((2, B, H), 7, f32)  # not zeros: what was there must be gone
    with unchanged(product=product, bias=bias, c_before=c_before):
        cpu.step(gates, product, bias, c_before, c, h)
    assert_gates(gates, want)
    assert_close(c, want_c, "c", **near)
    assert_close(h, want_h, "h", **near)


def test_step_survives_sums_of_1000():
    gates = np.array([[1000, -1000, 1000, -1000]], f32)
    c, h = np.full((2, 1, 1), 7, f32)
    cpu.step(gates, np.zeros((1, 4), f32), np.zeros(4, f32), np.full((1, 1), 3, f32), c, h)
    assert_close(gates, [[1, 0, 1, 0]], "gates")
    assert_close(c, [[1]], "c")
    assert_close(h, [[0]], "h")


def test_step_shows_a_nan_in_its_own_row_only():
    gates, product, bias, c_before = normal((3, 8), (3, 8), 8, (3, 2))
    gates[1, 4] = np.nan  # g of row 1
    c, h = np.zeros((2, 3, 2), f32)
    cpu.step(gates, product, bias, c_before, c, h)
    assert_close(np.isnan(h), [[False, False], [True, False], [False, False]], "where h is NaN")


@pytest.mark.parametrize("B, H", SIZES)
def test_step_backward(B, H):
    z, c_before, dh, dc = normal((B, 4 * H), (B, H), (B, H), (B, H))
    *gates, c, _ = (a.astype(f32) for a in formula(z.astype(float), c_before.astype(float)))
    gates = np.concatenate(gates, axis=1)

    def loss(z, c_before):
        *_, c, h = formula(z, c_before)
        return (c * dc.astype(float) + h * dh.astype(float)).sum()

    want_z = numeric_grad(lambda z: loss(z, c_before), z)
    want_c = numeric_grad(lambda c_before: loss(z, c_before), c_before)
    got = dc.copy()
    with unchanged(dh=dh, c_before=c_before, c=c):
        cpu.step_backward(dh, got, gates, c_before, c)
    assert_gates(gates, np.split(want_z, 4, axis=1))
    assert_close(got, want_c, "dc, what the step before gets", **near)


# the operations that a model calls


def test_the_operations_call_the_kernels_and_refuse_arrays_that_do_not_fit():
    gates, product, bias, c_before = normal((2, 12), (2, 12), 12, (2, 3))
    *_, want_c, want_h = formula(gates.astype(float) + product + bias, c_before.astype(float))
    c, h = np.zeros((2, 2, 3), f32)
    cpu.lstm_step_forward(gates, product, bias, c_before, c, h)
    assert_close(c, want_c, "c", **near)
    assert_close(h, want_h, "h", **near)
    forward = gates, product, bias, c_before, c, h
    for n in (0, 1, 2, 3, 5):
        with pytest.raises(ValueError, match="has shape"):
            cpu.lstm_step_forward(*forward[:n], forward[n][:-1], *forward[n + 1:])
    backward = h, c.copy(), gates, c_before, c
    for n in (0, 1, 2, 3):
        with pytest.raises(ValueError, match="has shape"):
            cpu.lstm_step_backward(*backward[:n], backward[n][:-1], *backward[n + 1:])
    cpu.lstm_step_backward(*backward)
    assert not np.array_equal(backward[1], c), "dc has not been written"
