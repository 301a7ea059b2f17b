"""Lesson 7's training loops, compiled: what takes minutes in the lesson's Python takes seconds here.

skipgram_pass  reads words and table; writes both halves of vectors, and state
glove_pass     reads the entries of the co-occurrence matrix; writes both halves of vectors and of squares

A row is float32. Several threads may run a pass on the same vectors, each on its own words: they may lose a
change now and then, as two who write the same row at once do, and it does not matter (Hogwild, Niu et al.
2011). With one thread, the same state gives the same bits.
"""
import math

import numpy as np

from kernels.cpu.compiled import check_shapes, exp, f32, inlined, kernel

i64 = np.int64


def train_skipgram(words, vectors, table, window, negatives, rates, state):
    """ValueError for words and places of the table that have no row: the kernel checks no index."""
    words, table = as_rows(words, vectors), as_rows(table, vectors)
    skipgram_pass(words, vectors, table, window, negatives, *map(float, rates), state)


def train_glove(first, second, X, vectors, squares, rate, x_max):  # -> float
    first, second, X = as_rows(first, vectors), as_rows(second, vectors), np.asarray(X, float)
    check_shapes(first.shape, second=second, X=X)
    check_shapes(vectors.shape, squares=squares)
    weights = np.minimum(X / x_max, 1) ** 0.75
    logs = np.log(X)
    return glove_pass(first, second, logs.astype(f32), weights.astype(f32), *vectors, *squares, f32(rate))


def as_rows(words, vectors):  # (n,) int, (2, V, D) -> (n,) int32
    words = np.ascontiguousarray(words, np.int32)
    low, high = int(words.min(initial=0)), int(words.max(initial=0))
    if low < 0 or high >= vectors.shape[1]:
        raise ValueError(f"word {low if low < 0 else high} has no row: the vectors have {vectors.shape[1]}")
    return words


@inlined
def draw(state, n):  # (1,) int64, int -> int
    """The lesson's: state = 48271 state mod 2^31 - 1, in place; then floor(n state / 2^31), 0 to n - 1."""
    state[0] = state[0] * i64(48271) % i64(0x7FFFFFFF)
    return state[0] * i64(n) >> i64(31)


@inlined
def dot(a, b):  # (D,), (D,) -> float32
    """The sum of a_d b_d, in float32: the sum begins with f32(0). One loop; the compiler may reorder it."""
    total = f32(0)
    for d in range(a.size):
        total += a[d] * b[d]
    return total


@inlined
def step(v, outputs, targets, n, rate, gains, pull):  # (D,) float32, (V, D) float32, (n or more,) int
    """One step of descent on skipgram_loss, in place. v is the centre's row, u_k = outputs[targets[k]] that
    of target k, for n targets, of which target 0 is the true one. rate is a float32.

        g_k = rate (t_k - sigmoid(v . u_k))                    t_0 = 1, all other t_k = 0
        u_k += g_k v        v += sum of g_k u_k                on the right: all as they were before the step

    sigmoid(s) = 1 / (1 + exp(-s)) with `exp` of compiled.py; constants are f32(1), or all becomes float64. A
    word may be target twice: then its row moves twice. So first come all g_k, kept in gains (n or more,),
    then the sum, in pull (D,), then the u_k move, at last v. gains and pull hold anything before and after.
    """
    for k in range(n):
        gains[k] = rate * (f32(k == 0) - f32(1) / (f32(1) + exp(-dot(v, outputs[targets[k]]))))
    pull[:] = f32(0)
    for k in range(n):
        u, g = outputs[targets[k]], gains[k]
        for d in range(v.size):
            pull[d] += g * u[d]
    for k in range(n):
        u, g = outputs[targets[k]], gains[k]
        for d in range(v.size):
            u[d] += g * v[d]
    for d in range(v.size):
        v[d] += pull[d]


@kernel
def skipgram_pass(words, vectors, table, window, negatives, start, end, state):
    """One walk over words (n,) that moves vectors (2, V, D) in place, draw by draw as the lesson does. For
    each place i: reach = 1 + draw(state, window) and rate = start + (end - start) i / n, as a float32. For
    each j from i - reach to i + reach, inside the text and not i: draw `negatives` times a word
    table[draw(state, table.size)], leaving out those equal to words[j]. Then step() with v = vectors[0,
    words[i]], outputs = vectors[1] and the targets words[j], then the drawn ones that were left.
    """
    n, inputs, outputs = words.size, vectors[0], vectors[1]
    targets, gains = np.empty(negatives + 1, np.int64), np.empty(negatives + 1, f32)
    pull = np.empty(inputs.shape[1], f32)
    for i in range(n):
        reach, rate = 1 + draw(state, window), f32(start + (end - start) * i / n)
        for j in range(max(i - reach, 0), min(i + reach + 1, n)):
            if j == i:
                continue
            targets[0], many = words[j], 1
            for _ in range(negatives):
                drawn = table[draw(state, table.size)]
                if drawn != words[j]:
                    targets[many] = drawn
                    many += 1
            step(inputs[words[i]], outputs, targets, many, rate, gains, pull)


@inlined
def adagrad(x, square, gradient, rate):  # three float32 -> x, square
    """One number of a row, x, goes downhill (Duchi et al. 2011, as GloVe's program has it). Return

        x - rate gradient / sqrt(square)        and, after it,        square + gradient^2
    """
    return x - rate * gradient / math.sqrt(square), square + gradient * gradient


@kernel
def glove_pass(first, second, logs, weights, inputs, outputs, input_squares, output_squares, rate):
    """For each entry n of the matrix, with row = inputs[first[n]] and other = outputs[second[n]], whose last
    numbers are biases, and D = their size - 1:

        gap = sum over d < D of row_d other_d + row_D + other_D - logs[n]        loss = weights[n] gap^2
        gradient of row_d: 2 weights[n] gap other_d, of other_d: 2 weights[n] gap row_d, of both biases:
        2 weights[n] gap

    Each number of both rows moves by adagrad() with its square; row_d and other_d both need the other's value
    before the move. Returns the sum of all losses, a float64: begin with 0.0. Constants are f32(2), or all
    becomes float64.
    """
    loss, D = 0.0, inputs.shape[1] - 1
    for n in range(first.size):
        row, other = inputs[first[n]], outputs[second[n]]
        row_square, other_square = input_squares[first[n]], output_squares[second[n]]
        gap = dot(row[:D], other[:D]) + row[D] + other[D] - logs[n]
        pull = f32(2) * weights[n] * gap
        loss += weights[n] * gap * gap
        for d in range(D):
            a, b = row[d], other[d]
            row[d], row_square[d] = adagrad(a, row_square[d], pull * b, rate)
            other[d], other_square[d] = adagrad(b, other_square[d], pull * a, rate)
        row[D], row_square[D] = adagrad(row[D], row_square[D], pull, rate)
        other[D], other_square[D] = adagrad(other[D], other_square[D], pull, rate)
    return loss
