"""Lesson 13's kernels: rows (N, C) in float32, each against a formula in float64 written here.

The tests of f are test_f and test_f_*: they are also exercises. That the operations around the kernels agree
with the lesson's is what test_ops tests.
"""
import math

import numpy as np
import pytest
from numba import types

from kernels.cpu import block as cpu
from tests.close import assert_close

SIZES = [(5, 67), (3, 7), (1, 8), (1, 1)]  # rows longer and shorter than what the CPU does at once

FLOAT64 = ("  does it have a bare 0.5, a whole number as in 1 / x, or an int64 as in x / C? "
           "Then f32(0.5), ONE / x, x / f32(C)")


def floats(*shapes):
    return [np.random.default_rng(i).normal(size=s).astype(np.float32) for i, s in enumerate(shapes)]


def junk(*shapes):
    """Buffers to write into. Not zeros: what was there before must be gone."""
    return [np.full(shape, 7, np.float32) for shape in shapes]


def copies(*arrays):
    return [a.copy() for a in arrays]


def assert_unchanged(before, **arrays):
    for old, (name, array) in zip(before, arrays.items(), strict=True):
        assert_close(array, old, f"{name}, which is only to be read,", rtol=0, atol=0)


def assert_float32(kernel):
    """What Numba has compiled computes nowhere in float64, where the CPU does half as many numbers at once.
    As plain Python there is nothing to look at."""
    __tracebackhide__ = True
    for compiled in getattr(kernel, "overloads", {}).values():
        notes = compiled.type_annotation  # or only its text, if the kernel was compiled earlier
        where = []
        for part in str(notes).split("# --- LINE ")[1:]:
            *found, line = part.rstrip().splitlines()  # the line's number, its types, the line itself
            if any("float64" in note for note in found):
                where.append(f", line {part.split()[0]}: {line.strip()}")
        if where or types.float64 in getattr(notes, "typemap", {}).values():
            raise AssertionError(f"computes in float64{''.join(where[:1])}\n{FLOAT64}")


def gelu(y):
    return 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))


def norm(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


@pytest.mark.parametrize("N, K", SIZES)
def test_add_bias(N, K):
    y, b = floats((N, K), K)
    want = y + b
    cpu.add_bias(y, b)
    assert_close(y, want, "out")


@pytest.mark.parametrize("N, K", SIZES)
def test_add_bias_residual(N, K):
    y, b, r = floats((N, K), K, (N, K))
    want = y + b + r
    cpu.add_bias_residual(y, b, r)
    assert_close(y, want, "out")


@pytest.mark.parametrize("N, K", SIZES)
def test_column_sums(N, K):
    (d,), (sums,) = floats((N, K)), junk(K)
    before = copies(d)
    cpu.column_sums(d, sums)
    assert_close(sums, d.sum(0, dtype=float), "sums")
    assert_unchanged(before, dout=d)


def test_column_sums_computes_in_float32():
    cpu.column_sums(*floats((3, 7), 7))
    assert_float32(cpu.column_sums)


@pytest.mark.parametrize("N, K", SIZES)
def test_bias_gelu(N, K):
    (y, b), (out,) = floats((N, K), K), junk((N, K))
    y *= 3
    z, before = (y + b).astype(float), copies(b)
    cpu.bias_gelu(y, b, out)
    assert_close(out, gelu(z), "out")
    assert_close(y, (gelu(z + 1e-6) - gelu(z - 1e-6)) / 2e-6, "slope, in y,", atol=2e-6)
    assert_unchanged(before, bias=b)


def test_bias_gelu_is_zero_or_y_far_out():
    y = np.array([[-1e3, -8, 0, 8, 1e3]], np.float32)
    want, (out,), zero = np.maximum(y, 0), junk(y.shape), np.zeros(5, np.float32)
    cpu.bias_gelu(y, zero, out)
    assert_close(out, want, "out")
    assert_close(y, [[0, 0, 0.5, 1, 1]], "slope, in y,")


def test_bias_gelu_computes_in_float32():
    cpu.bias_gelu(*floats((3, 7), 7, (3, 7)))
    assert_float32(cpu.bias_gelu)


@pytest.mark.parametrize("N, K", SIZES)
def test_scale_and_column_sums(N, K):
    (d, slope), (sums,) = floats((N, K), (N, K)), junk(K)
    want = d * slope
    cpu.scale_and_column_sums(d, slope, sums)
    assert_close(d, want, "dout")
    assert_close(sums, want.sum(0, dtype=float), "sums")


def normalized(x, w, b, eps=1e-5):
    out, mean_rstd = junk(x.shape, (len(x), 2))
    before = copies(x, w, b)
    cpu.normalize_rows(x, w, b, np.float32(eps), out, mean_rstd)
    assert_unchanged(before, x=x, weight=w, bias=b)
    return out, mean_rstd


@pytest.mark.parametrize("N, C", SIZES)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_normalize_rows(N, C, eps):
    x, w, b = floats((N, C), C, C)
    out, mean_rstd = normalized(x, w, b, eps)
    x = x.astype(float)
    assert_close(mean_rstd[:, 0], x.mean(1), "mean")
    assert_close(mean_rstd[:, 1], 1 / np.sqrt(x.var(1) + eps), "rstd", rtol=1e-4)
    assert_close(out, norm(x, w, b, eps), "out", rtol=1e-4, atol=1e-5)


def test_normalize_rows_keeps_its_digits_where_the_mean_is_large():
    x, w, b = floats((3, 67), 67, 67)
    x += 1000
    assert_close(normalized(x, w, b)[0], norm(x.astype(float), w, b), "out", rtol=1e-3, atol=1e-3)


def test_normalize_rows_of_a_constant_row_is_the_bias():
    x, w, b = floats((2, 8), 8, 8)
    x[:] = 3  # eight of them: sum and mean are exact in float32
    assert_close(normalized(x, w, b)[0], [b, b], "out")


def test_normalize_rows_computes_in_float32():
    normalized(*floats((3, 7), 7, 7))
    assert_float32(cpu.normalize_rows)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("N, C", SIZES[:-1])
def test_normalize_rows_backward(N, C, add):
    (d, x, w), (dx, dw, db) = floats((N, C), (N, C), C), junk((N, C), C, C)
    there = dx.astype(float) if add else 0
    x64, d64 = x.astype(float), d.astype(float)
    rstd = 1 / np.sqrt(x64.var(1, keepdims=True) + 1e-5)
    xhat = (x64 - x64.mean(1, keepdims=True)) * rstd
    stats = np.concatenate([x64.mean(1, keepdims=True), rstd], 1).astype(np.float32)
    before = copies(d, x, stats, w)
    cpu.normalize_rows_backward(d, x, stats, w, dx, dw, db, add)
    g = d64 * w
    want = there + rstd * (g - g.mean(1, keepdims=True) - xhat * (g * xhat).mean(1, keepdims=True))
    assert_close(dx, want, "dx", rtol=1e-4, atol=1e-5)
    assert_close(dw, (d64 * xhat).sum(0), "dweight", rtol=1e-4, atol=1e-5)
    assert_close(db, d64.sum(0), "dbias", rtol=1e-4, atol=1e-5)
    assert_unchanged(before, dout=d, x=x, mean_rstd=stats, weight=w)


def test_normalize_rows_backward_computes_in_float32():
    cpu.normalize_rows_backward(*floats((3, 7), (3, 7), (3, 2), 7, (3, 7), 7, 7), False)
    assert_float32(cpu.normalize_rows_backward)


def bits(i, seed):
    """MurmurHash3's last step on i * 0x9E3779B1 + seed, in Python's own whole numbers."""
    h = (i * 0x9E3779B1 + seed) % 2**32
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def dropped(x, threshold, seed):
    out, scale = junk(x.shape, x.shape)
    before = copies(x)
    with np.errstate(over="ignore"):  # as plain Python, NumPy warns of what is meant here: modulo 2^32
        cpu.drop(x, np.uint32(threshold), np.float32(1 / 0.7), np.uint32(seed), out, scale)
    assert_unchanged(before, x=x)
    return out, scale


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 1])
def test_drop(seed):
    x, = floats(101)
    out, scale = dropped(x, 0.3 * 2**32, seed)
    want = [(bits(i, seed) >= int(0.3 * 2**32)) / 0.7 for i in range(101)]
    assert_close(scale, want, "scale")
    assert_close(out, want * x, "out")


def test_drop_keeps_a_number_whose_bits_are_exactly_the_threshold():
    x, = floats(101)
    for place in 0, 57, 100:
        _, at = dropped(x, bits(place, 3), 3)
        assert at[place] > 0, f"bits[{place}] is the threshold: scale must be 1 / 0.7 there, not {at[place]}"
        _, above = dropped(x, bits(place, 3) + 1, 3)
        assert above[place] == 0, f"the threshold is bits[{place}] + 1: scale must be 0 there"


def test_drop_at_threshold_0_drops_nothing():
    x, = floats(101)
    out, scale = dropped(x, 0, 3)
    assert_close(scale, np.full(101, 1 / 0.7), "scale")
    assert_close(out, x / 0.7, "out")
