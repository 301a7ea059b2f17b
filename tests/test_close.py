"""What assert_close lets pass, what it refuses, and what it guesses: one classic mistake a test."""
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.close import assert_close, numeric_grad, raises, unchanged

rng = np.random.default_rng(2)
a = rng.normal(size=(3, 4, 5))
square = rng.normal(size=(2, 4, 4))
scores = rng.normal(size=(2, 4, 5))
GUESSES = 3  # the lines of a message before the guesses


def softmax(x, axis):
    return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)


def message(got, want, **tolerance):
    with pytest.raises(AssertionError) as error:
        assert_close(got, want, "dx", **tolerance)
    return str(error.value)


def changed(x, place, value):
    x = x.copy()
    x[place] = value
    return x


def attention(see):
    p = np.where(see, np.exp(square), 0)
    return p / p.sum(axis=-1, keepdims=True) @ square


def test_the_message_says_what_how_many_and_where():
    assert message(changed(a / 10, (0, 1, 2), 9), changed(a / 10, (0, 1, 2), 1.5)).split("\n  ") == [
        "dx (3, 4, 5) is wrong in 1 of 60 numbers",
        "first at dx[0, 1, 2]: got 9, expected 1.5",
        "largest error 7.5 (1.6e-05 is allowed there)",
        "only wrong at index 0 of axis 0",
        "only wrong at index 1 of axis 1"]
    assert message(1.5, 2.75).startswith("dx is wrong\n  got 1.5, expected 2.75\n  largest error 1.25 (")
    assert "largest error 2 (3.1e-05 is allowed there)" in message([5.0, 1e9], [3.0, 1e9 + 100])
    assert "got 1.0000001, expected 1.0000002" in message(1.0000001, 1.0000002, rtol=0, atol=1e-8)


@pytest.mark.parametrize("got, want, guess", [
    (-a, a, "the sign flipped"),
    (square.swapaxes(1, 2), square, "the right numbers, transposed"),
    (rng.normal(size=(3, 3, 2)), None, "the right numbers, axes 0 and 1 swapped"),
    (a[:, ::-1], a, "backwards along axis 1"),
    (np.roll(a, 1, axis=1), a, "one place too late along axis 1"),
    (a - a[:, :1] * 0 + 0, np.roll(a, 1, axis=2), "one place too early along axis 2"),
    (a.reshape(5, 12).T.reshape(3, 4, 5), a, "in other places: a reshape where axes must be swapped?"),
    (softmax(scores, -2), softmax(scores, -1), "sums to 1 along axis 1, expected along 2: a softmax over"),
    (softmax(scores, (0, 1, 2)), softmax(scores, -1), "all together sum to 1, expected along axis 2"),
    (a * 6, a, "multiply by 0.166667 = 1/6 (a mean for a sum, or the other way round? sqrt(36)?)"),
    (a / 20, a, "multiply by 20 (a mean for a sum, or the other way round?)"),
    (a * 2, a, "multiply by 0.5 = 1/2 (added twice, or a factor forgotten? a mean for a sum, or"),
    (a * np.sqrt(8), a, "multiply by 0.353553 = 1/sqrt(8) (is 1/sqrt(d) missing, or there twice?)"),
    (a * -0.5, a, "multiply by -2 (added twice, or a factor forgotten? a mean"),
    (a * 1.234, a, "right but for a factor: multiply by 0.810373"),
    (2.5, 10.0 / 12, "= 1/3 (a mean"),
    (a + 0.3, a, "right but for a constant 0.3"),
    (a + 1, a, "right but for a constant 1: was that in the array before, and is += there for =, or"),
    (np.array([5, 8, 1, 3, 2]), np.array([4, 7, 0, 2, 1]), "right but for a constant 1"),
    (a + a.mean(-1, keepdims=True), a, "constant per row: is a mean over the last axis missing?"),
    (a[0] + a[0, 0], a[0], "the error is the same for every index of axis 0: what is added to all of them"),
    (np.exp(scores), softmax(scores, -1), "factor per row: is a division by the row's sum or length missing"),
    (a[0] * a[1, 0], a[0], "factor that is the same all along axis 0: is a weight missing, or applied"),
    (a**2, abs(a), "the square of what is expected"),
    (abs(a), a**2, "the root of what is expected"),
    (1 / a, a, "1 divided by what is expected"),
    (np.log(abs(a)), abs(a), "the logarithm of what is expected"),
    (np.exp(a), a, "the exponential of what is expected"),
    (~(a > 0), a > 0, "1 minus what is expected"),
    (np.floor(a), a, "whole numbers: // for /"),
    (np.zeros((3, 4, 5), int), a, "all zeros: never written, or multiplied by 0?"),
    (a > 0, a, "yours is a mask of booleans"),
    (a.astype(int), a, "whole numbers: // for /, or an array of integers?"),
    (np.ones_like(a), a, "yours is 1 everywhere: was it written? (a[:] = ..."),
    (np.full_like(a, a.sum()), a, "everywhere: summed over too many axes?"),
    (changed(a, (slice(None), 2), 7), a, "yours is 7 in all of these: is it what was there before"),
    (np.full((2, 3), 9.0), np.zeros((2, 3)), "yours is 9 in all of these"),
    (a[0, 0, [2, 0, 1, 4, 3]], a[0, 0], "the right numbers in another order"),
    (changed(a, (slice(None), 2), 7), a, "only wrong at index 2 of axis 1"),
    (changed(a, (0, 0, 0), np.nan), a, "1 of them are NaN or infinite"),
    (np.nan, 1.5, "it is NaN or infinite: an overflow"),
    (changed(a, (slice(None), 0), np.nan), a, "NaN in 3 whole rows: 0 / 0 (does each row subtract"),
    (changed(square, (0, 1), np.nan), square, "NaN in 1 whole row: 0 / 0"),
    (changed(a, (slice(None), 0), np.nan), a, "only wrong at index 0 of axis 1"),
    (np.tri(5, k=1), np.tri(5), "just above the diagonal of the last two axes: is the causal mask missing"),
    (np.tri(5, k=-1), np.tri(5), "only wrong on the diagonal"),
    (np.ones((5, 5)) + np.tri(5), 2 * np.tri(5), "only wrong above the diagonal"),
    (attention(np.tri(4, k=1)), attention(np.tri(4)), "right only at the last index of axis 1: is the"),
    (attention(np.ones((4, 4))), attention(np.tri(4)), "right only at the last index of axis 1: is the"),
], ids=lambda x: x.replace(" ", "-")[:40] if isinstance(x, str) else "")
def test_it_guesses(got, want, guess):
    if want is None:
        want = got.swapaxes(0, 1)
    lines = message(got, want).split("\n  ")[GUESSES:]
    assert guess in "\n".join(lines) and len(lines) <= 2


def test_a_wrong_element_names_the_thread_that_wrote_it_where_that_is_known(monkeypatch):
    def writer(array, index):
        return "thread 3 of block 0" if array is got and index == (0, 1, 2) else None

    monkeypatch.setitem(sys.modules, "tests.cudasim.run", types.SimpleNamespace(writer=writer))
    got = changed(a, (0, 1, 2), 9)
    assert message(got, a).split("\n  ")[2] == "dx[0, 1, 2] was written by thread 3 of block 0"
    assert "written by" not in message(got.copy(), a)


def test_a_guess_is_left_out_where_it_would_be_nonsense():
    for got, want in [(2.5, 2.5 * np.sqrt(8)), (2.5, 4.5), (0.0, 1.5)]:  # of single numbers only n and 1/n
        assert message(got, want).count("\n") == GUESSES - 1
    but_last = np.r_[rng.normal(size=3), 0][:, None]
    assert "causal mask" in message(square[0] + but_last * square[1], square[0])
    assert "causal mask" not in message(a[0] + but_last * a[1], a[0]), "it is not square"
    assert "causal mask" not in message(square[0] + but_last, square[0]), "another guess fits"


def test_a_known_mistake_is_named_and_nothing_else_is_guessed():
    mistakes = {"the scores are not scaled": a * 3, "the sum runs over all": a.sum(axis=0),
                "0 / 0": changed(a, (0, 0), np.nan)}
    assert message(a * 3, a, mistakes=mistakes).split("\n  ")[2:] == ["the scores are not scaled"]
    assert message(a.sum(axis=0), a, mistakes=mistakes).endswith("expected (3, 4, 5): the sum runs over all")
    assert message(changed(a, (0, 0), np.nan), a, mistakes=mistakes).endswith("\n  0 / 0")
    assert "the sign flipped" in message(-a, a, mistakes=mistakes)
    assert_close(a, a, "dx", mistakes={"nothing": a})


@pytest.mark.parametrize("got, want, guess", [
    (a, a.T, ": transposed?"),
    (a, a.swapaxes(0, 1), ": axes 0 and 1 swapped?"),
    (a.sum(axis=-1), a, ": summed over the last axis, or keepdims=True missing?"),
    (a[0], a, ": is one array returned where (out, cache) is expected, or a [0] too many?"),
    (a[:, :, :1], a[:, :, 0], ": one axis too many, by keepdims=True?"),
    (a, a.sum(axis=(0, 1)), ": not yet summed over the first 2 axes?"),
    (a, 3.0, ": not yet summed over the first 3 axes?"),
    (a[:2], a, "(2, 4, 5), expected (3, 4, 5)"),
])
def test_it_guesses_from_the_shape(got, want, guess):
    assert message(got, want).endswith(guess)


shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(shapes, st.integers(0, 2**32), st.sampled_from(["all", "near", "few", "whole"]))
def test_it_guesses_nothing_from_random_errors(shape, seed, kind):
    g = np.random.default_rng(seed)
    want, noise = g.normal(size=(2, *shape))
    if kind == "whole":
        want, noise = g.integers(-50, 50, (2, *shape))
    got = {"near": want + 1e-3 * noise, "few": np.where(g.random(shape) < 0.2, noise, want)}.get(kind, noise)
    if (got == want).all():
        return assert_close(got, want, "dx")
    lines = message(got, want).split("\n  ")[GUESSES:]
    assert all("only wrong at index" in line for line in lines), lines  # that is no guess: it is where


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
def test_what_is_near_enough_passes_and_a_little_more_fails(shape, seed, dtype):
    g = np.random.default_rng(seed)
    want = g.normal(size=shape)
    allowed = (1e-4 + 1e-3 * abs(want)) * g.choice([-1, 1], shape)
    assert_close((want + 0.999 * allowed).astype(dtype), want, "dx", rtol=1e-3, atol=1e-4)
    at = tuple(g.integers(0, shape, len(shape)))
    bad = want.astype(dtype)
    bad[at] = (want + 1.002 * allowed)[at]
    message(bad, want, rtol=1e-3, atol=1e-4)


def test_whole_numbers_must_be_equal():
    assert_close(np.array([100_000, 7]), [100_000, 7], "ids")
    assert "expected 100000\n  largest error 1 (0 is allowed there)" in message([100_001, 7], [100_000, 7])
    assert_close(np.array([True, False]), [1, 0], "mask")


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.uint64, np.float16, np.complex128])
@pytest.mark.parametrize("other", [bool, np.uint8, np.int64, np.float32, np.complex64])
@pytest.mark.parametrize("shape", [(), (1,), (3, 3), (2, 3, 3)])
def test_every_kind_of_number_can_be_compared(dtype, other, shape):
    assert_close(np.ones(shape, dtype), np.ones(shape, other), "dx")
    want = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape)
    message((1 - want).astype(dtype), want.astype(other))
    message((want * 0).astype(dtype), np.ones(shape, other))


def test_empty_arrays_and_infinities():
    assert_close(np.zeros((0, 3)), np.zeros((0, 3)), "dx")
    assert_close([1.0, -np.inf], [1.0, -np.inf], "dx")
    for got, want in ([1.0, np.inf], [np.inf, 1.0], [-np.inf, np.inf], [np.nan, np.inf]):
        message(got, want)


def test_what_is_expected_must_be_a_number_too():
    assert "the test is wrong" in message(np.nan, np.nan)
    assert "what is expected of dx is a NoneType" in message(1.0, None)


class Pretender(np.ndarray):
    def __eq__(self, other):
        return np.ones(self.shape, bool)


class Number(float):
    def __sub__(self, other):
        return 0.0


class Arrayed:
    def __array__(self, *_, **__):
        return a


@pytest.mark.parametrize("got, kind", [
    (None, "is None: did you forget `return`?"),
    (np.zeros_like(a).view(Pretender), "is a Pretender, expected numbers"),
    (np.ma.masked_array(a, mask=True), "is a MaskedArray"),
    (Arrayed(), "is a Arrayed"),
    (Number(3), "is a Number"),
    ([Number(3)], r"dx[0] is a Number"),
    (np.array([Arrayed()], dtype=object), "is a ndarray of object"),
    ("3", "is a str"),
    ([1.0, None], "dx[1] is a NoneType"),
    ([[1.0], [1.0, 2.0]], "dx has parts of shapes [(1,), (2,)]"),
    ((a, {"x": a}), "is a tuple of 2 values, expected one array (3, 4, 5)"),
    ((a, a), "is a tuple of 2 values"),
])
def test_nothing_but_plain_numbers_is_believed(got, kind):
    assert kind in message(got, a)


def test_a_dtype_is_asked_for():
    assert_close(a.astype(np.float32), a, "dx", dtype=np.float32)
    assert "dx is float64, expected float32: the numbers are right" in message(a, a, dtype=np.float32)
    assert "wrong" in message(a + 1, a, dtype=np.float32)


def test_whole_numbers_where_others_are_asked_for():
    said = message(np.eye(3, dtype=int), np.eye(3), dtype=float)
    assert said.endswith("the numbers are right; is a dtype of whole numbers asked for?")


def fails(error):
    raise error


@pytest.mark.parametrize("error, said", [
    (None, "that: expected ValueError with the words 'token 7 (of 7)', got none: is the check made?"),
    (ValueError("token 8"), "expected ValueError with the words 'token 7 (of 7)', got the words 'token 8'"),
    (IndexError("7 is out of bounds"), "got IndexError 7 is out of bounds: does the check come first?"),
], ids=["none", "other words", "another error"])
def test_raises_says_what_was_expected_and_what_came(error, said):
    with pytest.raises(AssertionError) as failure, raises(ValueError, "token 7 (of 7)", "that"):
        error and fails(error)
    assert said in str(failure.value)


def test_raises_lets_the_right_error_pass_and_that_of_a_blank_through():
    with raises(ValueError, "token 7 (of", "token 7"):
        fails(UnicodeError("no token 7 (of 7)"))  # a kind of ValueError
    with pytest.raises(NotImplementedError), raises(ValueError, "token 7", "token 7"):
        fails(NotImplementedError("check_rows"))


def test_unchanged_names_the_array_that_was_written_into():
    x, y = a.copy(), a.copy()
    with unchanged(x=x, y=y):
        x * y
    with pytest.raises(AssertionError, match="^y was changed in place"), unchanged(x=x, y=y):
        y *= 1.5


def test_numeric_grad():
    assert_close(numeric_grad(lambda x: (x**3).sum(), a), 3 * a**2, "gradient")
