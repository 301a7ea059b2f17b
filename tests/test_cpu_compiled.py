"""The tests of f are test_f and test_f_*: they are also exercises of lesson 12.

The oracle is NumPy in float64. All runs in plain Python too: NUMBA_DISABLE_JIT=1 make check 12.
"""
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import config

from kernels.cpu import compiled
from tests.close import assert_close, unchanged

f32 = np.float32


def exp_of(x):  # one number at a time: (n,) -> (n,)
    with np.errstate(invalid="ignore"):  # in plain Python NaN warns when it becomes an integer
        return [compiled.exp(one) for one in np.asarray(x, f32)]


def want_exp(x):
    return np.exp(np.asarray(x, f32).astype(float))


def test_exp():
    x = [0, 1, -1, 0.25, -0.25]
    assert_close(exp_of(x), want_exp(x), f"exp of {x}", rtol=3e-7, atol=0)


def test_exp_near_0_is_right_to_float32s_last_bits():
    x = np.linspace(-1, 1, 300)
    assert_close(exp_of(x), want_exp(x), "exp of -1 .. 1", rtol=3e-7, atol=0)


def test_exp_is_right_from_minus_87_to_88():
    x = np.linspace(-87, 88, 400)
    assert_close(exp_of(x), want_exp(x), "exp of -87 .. 88", rtol=1e-5, atol=0)


def test_exp_takes_the_nearest_of_minus_87_and_88_beyond_them():
    for x, nearest in ([-88, -1e30, -np.inf], -87), ([89, 1e30, np.inf], 88):
        assert_close(exp_of(x), want_exp([nearest] * 3), f"exp of {x}", rtol=1e-5, atol=0)


def test_exp_of_nan_is_nan():
    got, = exp_of([np.nan])
    assert np.isnan(got), f"exp of NaN: got {got}, expected NaN: a loss that explodes must be seen"


def test_exp_answers_in_float32():
    for got in exp_of(np.linspace(-3, 3, 20)):  # a compiled one arrives here as Python's float
        assert float(f32(got)) == got, f"got {got!r}, a number that only float64 has: write f32(0.5), not 0.5"


@pytest.mark.skipif(config.DISABLE_JIT, reason="rounded twice in plain Python")
def test_the_compiled_exp_is_right_to_5e_minus_7():
    x = np.linspace(-87, 88, 5000)
    assert_close(exp_of(x), want_exp(x), "exp of -87 .. 88", rtol=5e-7, atol=0)


def largest_of(x):
    x = np.array(x, f32)
    with unchanged(x=x):
        return compiled.largest(x)


def test_largest():
    assert_close(largest_of([1, 3, 2]), 3, "largest of 1, 3, 2")
    assert_close(largest_of([-1, 0.5, -7]), 0.5, "largest of -1, 0.5, -7")


def test_largest_of_negative_numbers():
    assert_close(largest_of([-5, -2, -3]), -2, "largest of -5, -2, -3")
    assert_close(largest_of([-1e30, -2e30]), -1e30, "largest of -1e30, -2e30")


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
def test_largest_is_found_at_every_place(n):
    for place in range(n):
        x = np.full(n, -2.5, f32)
        x[place] = -1.5
        assert_close(largest_of(x), -1.5, f"largest of {n} numbers, it is number {place}")


def test_largest_of_infinities():
    for x, want in ([-np.inf, -np.inf], -np.inf), ([-np.inf, -3e38], -3e38), ([1, np.inf, 3e38], np.inf):
        assert_close(largest_of(x), want, f"largest of {x}")


def test_largest_puts_a_nan_above_or_below_all_by_its_sign_bit():
    above, below = np.array([0x7FC00000, 0xFFC00000], np.uint32).view(f32)
    got = largest_of([1, above, np.inf])
    assert np.isnan(got), f"largest of 1, NaN, inf: got {got}, expected NaN: compare x.view(i32), not x"
    assert_close(largest_of([below, -np.inf, below]), -np.inf, "largest of -NaN, -inf, -NaN")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=12))
@example([0.0, -0.0, -1e-45])
def test_largest_is_max(x):
    assert_close(largest_of(x), max(x), f"largest of {x}", rtol=0, atol=0)
