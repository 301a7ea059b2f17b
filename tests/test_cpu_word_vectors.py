"""The tests of f are test_f and test_f_*: they are also exercises of lesson 7.

The oracle is the formula in float64, walked through in the plainest way. In plain Python:
NUMBA_DISABLE_JIT=1 make check 7.
"""
import math

import numpy as np
import pytest

from kernels.cpu import word_vectors as cpu
from kernels.cpu.compiled import kernel
from tests.close import assert_close, unchanged
from tests.skipgram_oracle import stepped, walk

f32, i32 = np.float32, np.int32
near = {"rtol": 1e-4, "atol": 2e-5}  # what float32 can do
TABLE = np.array([3, 0, 1, 1, 4, 2, 0, 3], i32)


def normal(*shapes, seed=7):  # float32
    g = np.random.default_rng(seed)
    return [g.normal(size=shape).astype(f32) for shape in shapes]


# `inlined` functions are compiled into their caller: here is one for each.


@kernel
def call_dot(a, b):
    return cpu.dot(a, b)


@kernel
def call_step(v, outputs, targets, n, rate, gains, pull):
    cpu.step(v, outputs, targets, n, rate, gains, pull)


# dot


@pytest.mark.parametrize("D", [0, 1, 5, 67])
def test_dot(D):
    a, b = normal(D, D)
    with unchanged(a=a, b=b):
        got = cpu.dot(a, b)
    assert_close(got, sum(float(x) * float(y) for x, y in zip(a, b)), "a . b", **near)


def test_dot_is_a_float32():
    a, b = normal(9, 9)
    got = cpu.dot(a, b)
    assert got == f32(got), f"the sum is {got!r}, which no float32 is: does it begin with f32(0)?"


# step


@pytest.mark.parametrize("targets", [[2], [0, 3], [4, 1, 0], [1, 3, 2, 3, 3]],
                         ids=["nothing drawn", "one", "two", "a word that is drawn three times"])
@pytest.mark.parametrize("D", [1, 9])
def test_step(targets, D):
    v, outputs = normal(D, (5, D))
    want_v, want = stepped(v, outputs, targets, 0.5)
    n = len(targets)
    padded, gains, pull = np.array(targets + [0, 0]), np.full(n + 2, 7, f32), np.full(D, 7, f32)
    call_step(v, outputs, padded, n, f32(0.5), gains, pull)
    assert_close(outputs, want, "outputs", **near)
    assert_close(v, want_v, "v", **near)


def test_step_needs_no_large_number_to_stay_finite():
    v, outputs = np.array([100, 0], f32), np.array([[-10, 1], [10, 1]], f32)
    call_step(v, outputs, np.array([0, 1]), 2, f32(0.5), np.zeros(2, f32), np.zeros(2, f32))
    assert_close(outputs, [[40, 1], [-40, 1]], "outputs", **near)
    assert_close(v, [90, 0], "v", **near)


# skipgram_pass


@pytest.mark.parametrize("window, negatives", [(1, 1), (3, 2), (5, 6)])
def test_skipgram_pass(window, negatives):
    words, (vectors,) = np.array([0, 1, 2, 0, 3, 3, 4, 1, 0], i32), normal((2, 5, 3))
    want, seed = walk(words, vectors, TABLE, window, negatives, (0.5, 0.1), 12345)
    state = np.array([12345])
    with unchanged(words=words, table=TABLE):
        cpu.skipgram_pass(words, vectors, TABLE, window, negatives, 0.5, 0.1, state)
    assert_close(state, [seed], "state, which says how many numbers were drawn")
    assert_close(vectors[1], want[1], "neighbours' rows, u", **near)
    assert_close(vectors[0], want[0], "centres' rows, v", **near)


def test_skipgram_pass_leaves_out_a_drawn_word_that_is_the_true_neighbour():
    words, (vectors,), table = np.array([0, 1], i32), normal((2, 2, 4)), np.array([1], i32)
    want, _ = walk(words, vectors, table, 1, 2, (0.5, 0.5), 1)
    cpu.skipgram_pass(words, vectors, table, 1, 2, 0.5, 0.5, np.array([1]))
    assert_close(vectors, want, "vectors, where only word 1 is ever drawn", **near)


def test_skipgram_pass_of_no_words_does_nothing():
    vectors, = normal((2, 5, 3))
    with unchanged(vectors=vectors):
        cpu.skipgram_pass(np.zeros(0, i32), vectors, TABLE, 2, 2, 0.5, 0.1, np.array([1]))


# adagrad


@pytest.mark.parametrize("square", [1.0, 4.0])
def test_adagrad(square):
    x, square_after = cpu.adagrad(f32(3), f32(square), f32(-0.5), f32(0.1))
    assert_close(x, 3 + 0.1 * 0.5 / math.sqrt(square), "x")
    assert_close(square_after, square + 0.25, "square")


# glove_pass


def fitted(first, second, logs, weights, vectors, squares, rate):  # the same in float64
    vectors, squares, total = vectors.astype(float), squares.astype(float), 0.0
    for i, j, log, f in zip(first, second, logs, weights):
        v, u = vectors[0, i].copy(), vectors[1, j].copy()
        gap = v[:-1] @ u[:-1] + v[-1] + u[-1] - log
        total += f * gap**2
        for half, word, gradient in (0, i, [*u[:-1], 1]), (1, j, [*v[:-1], 1]):
            gradient = 2 * f * gap * np.array(gradient)
            vectors[half, word] -= rate * gradient / np.sqrt(squares[half, word])
            squares[half, word] += gradient**2
    return vectors, squares, total


@pytest.mark.parametrize("D", [1, 9])
def test_glove_pass(D):
    vectors, squares = normal((2, 4, D + 1), (2, 4, D + 1))
    squares = 1 + squares**2
    first, second = np.array([0, 3, 0, 2], i32), np.array([1, 1, 0, 2], i32)
    logs, weights = np.array([0.7, -0.5, 2, 0], f32), np.array([0.5, 0.25, 1, 0.125], f32)
    want, want_squares, total = fitted(first, second, logs, weights, vectors, squares, 0.1)
    with unchanged(first=first, second=second, logs=logs, weights=weights):
        loss = cpu.glove_pass(first, second, logs, weights, *vectors, *squares, f32(0.1))
    assert_close(loss, total, "loss", **near)
    assert_close(squares, want_squares, "squares", **near)
    assert_close(vectors[..., -1], want[..., -1], "biases", **near)
    assert_close(vectors, want, "vectors", **near)


def test_glove_pass_of_nothing_has_no_loss():
    (vectors,), none = normal((2, 4, 3)), np.zeros(0, i32)
    assert_close(cpu.glove_pass(none, none, *np.zeros((2, 0), f32), *vectors, *vectors, f32(1)), 0.0, "loss")


# what lesson and models call


def test_training_takes_any_whole_numbers_and_refuses_words_without_a_row():
    vectors, = normal((2, 5, 3))
    same = vectors.copy()
    for words, kind in (np.array([0, 1, 4]), vectors), (np.array([9, 0, 9, 1, 9, 4], i32)[1::2], same):
        cpu.train_skipgram(words, kind, TABLE, 2, 2, (0.5, 0), np.array([1]))
    assert np.array_equal(vectors, same)
    for words, table in ([0, 5], TABLE), ([0, -1], TABLE), ([0, 1], [5]):
        with pytest.raises(ValueError, match="has no row: the vectors have 5"):
            cpu.train_skipgram(words, vectors, table, 2, 2, (0.5, 0), np.array([1]))


def test_training_glove_weighs_and_takes_logarithms():
    vectors, X = normal((2, 4, 3))[0], np.array([1.0, 5, 50])
    squares, first, second = np.ones_like(vectors), np.array([0, 1, 2]), np.array([3, 1, 0])
    weights = [min(1, (x / 10) ** 0.75) for x in X]
    want, want_squares, total = fitted(first, second, np.log(X), weights, vectors, squares, 0.1)
    assert_close(cpu.train_glove(first, second, X, vectors, squares, 0.1, 10), total, "loss", **near)
    assert_close(vectors, want, "vectors", **near)
    assert_close(squares, want_squares, "squares", **near)
    with pytest.raises(ValueError, match="word 4 has no row"):
        cpu.train_glove([4], [0], [1.0], vectors, squares, 0.1, 10)
    with pytest.raises(ValueError, match="second has shape"):
        cpu.train_glove([1], [0, 1], [1.0], vectors, squares, 0.1, 10)
