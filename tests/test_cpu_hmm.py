"""The tests of f are test_f and test_f_*: they are also exercises of lesson 3.

The oracle is each formula by NumPy, on the block alone. Around the block lie NaN, which must not be touched.
In plain Python: NUMBA_DISABLE_JIT=1 make check 3.
"""
from itertools import product

import numpy as np
import pytest

from kernels.cpu import hmm as cpu
from tests.close import assert_close, raises, unchanged

rng = np.random.default_rng(3)
S, I0, J0 = 7, 2, 3  # the block: rows 2 .. 2 + m - 1, columns 3 .. 3 + n - 1
blocks = pytest.mark.parametrize("m, n", [(3, 4), (1, 1), (5, 2), (2, 4)])
dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def near(dtype):
    return {"rtol": 1e-5 if dtype == np.float32 else 1e-12, "atol": 0, "dtype": dtype}


def framed(block, dtype=float):  # -> (S, S), NaN but for the block
    whole = np.full((S, S), np.nan, dtype)
    whole[I0:I0 + block.shape[0], J0:J0 + block.shape[1]] = block
    return whole


def positive(*shape):
    return rng.random(shape) + 0.1


def old(n, dtype=float):  # what lies in an array that is to be overwritten
    return np.full(n, np.nan, dtype)


@blocks
@dtypes
def test_advance_gives_the_next_states_and_their_sum(m, n, dtype):
    alpha, block, emission = (positive(*shape).astype(dtype) for shape in ((m,), (m, n), (n,)))
    after, transition = old(n, dtype), framed(block, dtype)
    with unchanged(alpha=alpha, transition=transition, emission=emission):
        total = cpu.advance(alpha, transition, I0, J0, emission, after)
    joint = emission * (alpha.astype(float) @ block)
    assert_close(float(total), joint.sum(), "the sum", rtol=1e-5)
    assert_close(after, joint / joint.sum(), "after", **near(dtype), mistakes={
        "after is not divided by its sum": joint})


@blocks
@dtypes
def test_retreat_goes_back_and_counts_the_moves(m, n, dtype):
    alpha, block, beta, count = (positive(*shape).astype(dtype) for shape in ((m,), (m, n), (n,), (m, n)))
    before, transition, moves = old(m, dtype), framed(block, dtype), framed(count, dtype)
    with unchanged(alpha=alpha, transition=transition, beta=beta):
        cpu.retreat(alpha, transition, I0, J0, beta, moves, before)
    assert_close(before, block.astype(float) @ beta, "before", **near(dtype))
    got = moves[I0:I0 + m, J0:J0 + n]
    assert_close(got, count + alpha[:, None] * block * beta, "the block of moves", **near(dtype), mistakes={
        "moves are overwritten, and must be added to": alpha[:, None] * block * beta})
    assert np.isnan(moves).sum() == S * S - m * n, "moves were written outside of the block"


@blocks
def test_best_step_takes_the_best_way_to_each_state(m, n):
    score, block, emission = (-positive(*shape) for shape in ((m,), (m, n), (n,)))
    after, back, transition = old(n), np.full(n, -9), framed(block)
    with unchanged(score=score, transition=transition, emission=emission):
        cpu.best_step(score, transition, I0, J0, emission, after, back)
    ways = score[:, None] + block
    assert_close(back, I0 + ways.argmax(axis=0), "back", mistakes={
        "i0 is not added: back must hold states, not rows of the block": ways.argmax(axis=0)})
    assert_close(after, ways.max(axis=0) + emission, "after", **near(float))


def test_best_step_takes_the_first_of_ways_equally_good():
    after, back = old(4), np.full(4, -9)
    cpu.best_step(np.zeros(3), framed(np.zeros((3, 4))), I0, J0, np.zeros(4), after, back)
    assert_close(back, np.full(4, I0), "back, where all ways are equal,")


def test_best_step_says_i0_where_no_way_is_possible():
    block, after, back = np.zeros((3, 4)), old(4), np.full(4, -9)
    block[:, 1] = -np.inf
    cpu.best_step(np.zeros(3), framed(block), I0, J0, np.zeros(4), after, back)
    assert back[1] == I0, f"back is {back[1]} where all is impossible, expected i0 = {I0}"
    assert after[1] == -np.inf, f"after is {after[1]} where all is impossible, expected -inf"


# the recursions as a whole, by brute force; no exercise


def example(own):  # states x letters that may be: a model of 4 states, 3 letters
    rng = np.random.default_rng(4)
    share = lambda x, axis: x / x.sum(axis=axis, keepdims=True)
    return share(rng.random(4), 0), share(rng.random((4, 4)), 1), share(rng.random((3, 4)) * own, 0)


FULL, OWN = np.ones((3, 4)), np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
models = pytest.mark.parametrize("own", [FULL, OWN], ids=["every letter", "one letter each"])
CODES = np.array([1, 0, 2, 1, 1])


def paths(codes, initial, transition, emission):
    def p(z):
        p = initial[z[0]] * emission[codes[0], z[0]]
        for t in range(1, len(z)):
            p *= transition[z[t - 1], z[t]] * emission[codes[t], z[t]]
        return p
    return {z: p(z) for z in product(range(4), repeat=len(codes))}


@models
def test_whole_texts_forward(own):
    m = example(own)
    alpha, scale = cpu.forward(CODES, *m)
    for t in range(len(CODES)):
        table = paths(CODES[:t + 1], *m)
        assert_close(scale[:t + 1].prod(), sum(table.values()), f"p of the first {t + 1} letters")
        want = [sum(p for z, p in table.items() if z[t] == i) for i in range(4)]
        assert_close(alpha[t], np.divide(want, sum(want)), f"alpha[{t}]")


@models
def test_whole_texts_are_counted(own):
    m = example(own)
    table, counts = paths(CODES, *m), [np.ones_like(part) for part in m]
    nats = cpu.expected_counts(CODES, *m, *counts)
    want = [np.ones_like(part) for part in m]
    for z, p in table.items():
        p /= sum(table.values())
        want[0][z[0]] += p
        np.add.at(want[1], (z[:-1], z[1:]), p)
        np.add.at(want[2], (CODES, z), p)
    for got, expected, name in zip(counts, want, ("starts", "moves", "letters")):
        assert_close(got, expected, name)
    assert_close(nats, np.log(sum(table.values())), "ln p")


@models
def test_whole_texts_have_a_best_path(own):
    m = example(own)
    table = paths(CODES, *m)
    path, nats = cpu.viterbi(CODES, *m)
    assert_close(path, max(table, key=table.get), "path")
    assert_close(nats, np.log(max(table.values())), "ln p")


@pytest.mark.parametrize("run", ["forward", "viterbi", "expected_counts"])
def test_whole_texts_with_a_code_that_is_no_letter_are_refused(run):
    m = example(FULL)
    for codes in [0, 3], [-1, 2]:
        with raises(ValueError, "there are 3 letters", f"{run} of codes {codes}"):
            getattr(cpu, run)(np.array(codes), *m, *(m if run == "expected_counts" else ()))


def test_whole_texts_of_a_model_that_does_not_fit_are_refused():
    initial, transition, emission = example(FULL)
    with raises(ValueError, "initial has shape (3,)", "an initial of three states"):
        cpu.forward(CODES, initial[:3], transition, emission)
    with raises(ValueError, "moves has shape (3, 4)", "moves of three states"):
        cpu.expected_counts(CODES, initial, transition, emission, initial, transition[:3], emission)
