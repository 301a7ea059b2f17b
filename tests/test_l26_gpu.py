"""The tests of f are test_f and test_f_*: they are also lesson 26's exercises.

The oracles: counting one by one in plain Python, NVIDIA's cuda_occupancy.h (what it answers for compute
capability 9.0 stands here), a softmax in float64. tests/test_cuda_ladder.py counts kernels.
"""
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lessons import l26_gpu as lesson
from tests.close import assert_close, unchanged

ROOT = Path(__file__).parents[1]
rng = np.random.default_rng(26)


# global memory


@pytest.mark.parametrize("addresses, want, why", [
    ([4 * i for i in range(32)], 4, "32 neighbours read 128 bytes that begin at a sector: 4 of 32"),
    ([4 * i + 4 for i in range(32)], 5, "the same 128 bytes, but not from a sector's beginning, lie in 5"),
    ([4 * (31 - i) for i in range(32)], 4, "backward is the same bytes"),
    ([8 * i for i in range(32)], 8, "every second number: half of what is sent is used"),
    ([64 * i for i in range(32)], 32, "16 numbers apart: a sector for each thread"),
    ([64] * 32, 1, "all threads want the same number"),
    ([31, 32], 2, "two bytes on both sides of a border"),
    ([96, 0, 100, 28, 4], 2, "five threads, in no order, in sectors 0 and 3"),
    ([2**33, 2**33 + 4], 1, "large addresses"),
], ids=str)
def test_sectors(addresses, want, why):
    assert type(lesson.sectors(addresses)) is int
    assert lesson.sectors(addresses) == want, why
    array = np.array(addresses)
    with unchanged(addresses=array):
        assert lesson.sectors(array) == want, why


def test_sectors_of_any_addresses():
    for n in 1, 7, 32:
        addresses = 4 * rng.integers(0, 200, n)
        touched = sum(any(32 * k <= a < 32 * k + 32 for a in addresses) for k in range(25))
        assert lesson.sectors(addresses) == touched


# shared memory


def turns(addresses):
    """Turn by turn: each bank gives one word, to all who want it."""
    wanted, done = {int(a) // 4 for a in addresses}, 0
    while wanted:
        banks = {word % 32 for word in wanted}
        wanted -= {next(word for word in wanted if word % 32 == bank) for bank in banks}
        done += 1
    return done


@pytest.mark.parametrize("addresses, want, why", [
    ([4 * i for i in range(32)], 1, "32 neighbours lie in 32 banks"),
    ([8 * i for i in range(32)], 2, "every second word: two threads for each of 16 banks"),
    ([128 * i for i in range(32)], 32, "a column of a tile 32 wide: all in bank 0"),
    ([132 * i for i in range(32)], 1, "a column of a tile 33 wide: all banks"),
    ([256] * 32, 1, "one word for all: it is sent to all of them in one turn"),
    ([0, 128] * 16, 2, "two words of one bank, each wanted by 16"),
    ([12, 140, 268, 16], 3, "three words of bank 3, one of bank 4"),
], ids=str)
def test_bank_turns(addresses, want, why):
    assert type(lesson.bank_turns(addresses)) is int
    assert lesson.bank_turns(addresses) == want, why
    assert lesson.bank_turns(np.array(addresses)) == want, why


def test_bank_turns_of_any_addresses():
    for n, words in itertools.product((1, 9, 32), (40, 300)):
        addresses = 4 * rng.integers(0, words, n)
        assert lesson.bank_turns(addresses) == turns(addresses)


# a processor's room


@pytest.mark.parametrize("registers, shared, threads, blocks", [  # blocks: what cuda_occupancy.h says
    (32, 0, 256, 8), (96, 8192, 256, 2), (97, 8192, 256, 2), (32, 0, 32, 32), (32, 48000, 128, 4),
    (64, 1, 1024, 1), (40, 100, 100, 12), (255, 0, 256, 1), (128, 0, 512, 1), (65, 0, 1024, 0),
    (168, 0, 96, 4), (32, 0, 1024, 2), (33, 20000, 64, 11), (128, 0, 1, 16), (32, 8000, 64, 25),
    (16, 6300, 33, 31), (16, 6272, 33, 32), (48, 49152, 288, 4), (96, 0, 32, 20), (100, 0, 32, 16),
    (16, 32329, 64, 6), (16, 0, 96, 21),
])
def test_occupancy_is_what_nvidia_computes(registers, shared, threads, blocks):
    warps, _ = lesson.occupancy(registers, shared, threads)
    assert type(warps) is int
    assert warps == blocks * math.ceil(threads / 32)


@pytest.mark.parametrize("registers, shared, threads, limit", [
    (32, 0, 256, "threads"), (32, 0, 32, "blocks"), (96, 8192, 256, "registers"), (32, 48000, 128, "shared"),
    (32, 0, 64, "threads"), (32, 49152, 512, "threads"), (65, 0, 1024, "registers"),
])
def test_occupancy_names_what_limits(registers, shared, threads, limit):
    assert lesson.occupancy(registers, shared, threads)[1] == limit


# bytes and operations


def moved(M, N, K, rows, columns):
    """Tile by tile: the numbers of a and b that it needs, and those of out."""
    count = 0
    for top, left in itertools.product(range(0, M, rows), range(0, N, columns)):
        out = {(m, n) for m in range(top, min(top + rows, M)) for n in range(left, min(left + columns, N))}
        a = {(m, k) for m, _ in out for k in range(K)}
        b = {(k, n) for _, n in out for k in range(K)}
        count += len(a) + len(b) + len(out)
    return 4 * count


@pytest.mark.parametrize("sizes", [
    (1, 1, 1, 1, 1), (4, 6, 3, 1, 1), (4, 6, 3, 2, 2), (8, 8, 5, 4, 2), (5, 7, 3, 2, 4), (3, 2, 9, 16, 16),
    (6, 4, 2, 4, 4), (2, 9, 4, 1, 4), (9, 2, 4, 4, 1)])
def test_matmul_bytes(sizes):
    got = lesson.matmul_bytes(*sizes)
    assert type(got) is int
    assert got == moved(*sizes)


def test_matmul_bytes_of_sizes_that_no_float_could_count():
    n = 2**20
    assert lesson.matmul_bytes(n + 1, n, n, n + 1, n) == 4 * ((n + 1) * n + n * n + (n + 1) * n)


@pytest.mark.parametrize("flops, moved, want", [
    (2.0, 1.0, (200.0, "memory")), (9.0, 1.0, (900.0, "memory")), (11.0, 1.0, (1000.0, "compute")),
    (5.0, 10.0, (50.0, "memory")), (10.0, 1.0, (1000.0, "compute"))])
def test_roofline(flops, moved, want):
    reached, bound = lesson.roofline(flops, moved, 1000.0, 100.0)
    assert (reached, bound) == want, "a machine of 1000 FLOP/s and 100 bytes/s"


def test_roofline_has_its_corner_where_both_take_the_same_time():
    for intensity in 0.1, 19.9, 20.1, 1000:
        reached, bound = lesson.roofline(intensity * 1e9, 1e9, 67e12, 3.35e12)
        seconds = max(intensity * 1e9 / 67e12, 1e9 / 3.35e12)  # the slower of the two
        assert math.isclose(reached, intensity * 1e9 / seconds)
        assert bound == ("compute" if intensity >= 20 else "memory")


# joining parts


def part(x):  # (n, ...) -> (2, ...)
    m = x.max(axis=0)
    return np.stack([m, np.exp(x - m).sum(axis=0)])


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_combine(cut):
    x = rng.normal(size=(6, 4)) * 10
    a, b, m = part(x[:cut]), part(x[cut:]), x.max(axis=0)
    with unchanged(a=a, b=b):
        got = lesson.combine(a, b)
    assert_close(got, part(x), "m and s of both parts", rtol=1e-12, mistakes={
        "s_a and s_b are added as they are: each belongs to its own m": np.stack([m, a[1] + b[1]]),
        "only one of the two sums is corrected": np.stack([m, a[1] + b[1] * np.exp(b[0] - m)])})
    assert_close(lesson.combine(b, a), part(x), "the other way round", rtol=1e-12)


def test_combine_may_be_bracketed_in_any_way():
    a, b, c = (part(x) for x in np.split(rng.normal(size=(9, 5)) * 30, 3))
    one, other = lesson.combine(lesson.combine(a, b), c), lesson.combine(a, lesson.combine(b, c))
    assert_close(one, other, "(a b) c and a (b c)", rtol=1e-12)


def test_combine_with_large_numbers_masked_ones_and_nothing():
    with np.errstate(over="raise", invalid="raise", under="ignore"):
        large, small, masked = np.array([1000.0, 1.0]), np.array([-1000.0, 3.0]), np.array([-np.inf, 1.0])
        nothing = np.array([np.finfo(float).min, 0.0])
        assert_close(lesson.combine(large, small), large, "1000 and -1000")
        assert_close(lesson.combine(small, nothing), small, "a part and nothing")
        assert_close(lesson.combine(nothing, nothing), nothing, "nothing and nothing")
        assert_close(lesson.combine(nothing, masked), nothing, "nothing and a masked score")
    one = lesson.combine(np.array([1, 2], np.float32), np.array([2, 1], np.float32))
    assert_close(one, [2, 2 * math.exp(-1) + 1], "float32", dtype=np.float32)


@pytest.mark.parametrize("n", [1, 2, 8, 32])
def test_butterfly(n):
    values, calls = rng.integers(-99, 99, n), []

    def add(a, b):
        calls.append(n)
        return a + b

    with unchanged(values=values):
        got = lesson.butterfly(add, values)
    assert_close(got, np.full(n, values.sum()), "the sum, in every thread")
    assert len(calls) == math.log2(n), f"{n} threads need {math.log2(n):.0f} steps: was {len(calls)}"


def test_butterfly_asks_the_one_whose_number_differs_in_one_bit():
    def both(a, b):  # the order of two differs, and the order of steps
        return (a * a + 3 * b) % 1009

    values = [1, 20, 300, 4000, 7, 50, 600, 9000]
    want = values
    for d in 4, 2, 1:
        want = [both(want[i], want[i ^ d]) for i in range(8)]
    assert_close(lesson.butterfly(both, np.array(values)), want, "where order counts")


def test_butterfly_with_combine_is_the_softmax_of_a_warp():
    x = rng.normal(size=(5, 32)) * 20  # five numbers for each thread
    m, s = lesson.butterfly(lesson.combine, part(x))
    assert_close(m, np.full(32, x.max()), "m")
    assert_close(s, np.full(32, np.exp(x - x.max()).sum()), "s", rtol=1e-12)


# what is shown


def test_the_demonstration_without_a_gpu(tmp_path):
    """In a process of its own, where the simulator takes numba.cuda's place. One small kernel instead of all:
    the tables are tested in test_cuda_ladder.py."""
    code = """if True:
        from lessons import l26_gpu as lesson
        from matplotlib.figure import Figure
        lesson.count_all = lambda ladder, counted: (
            print(counted(ladder.products(8, 8, 8), "naive")[0]) or Figure())
        lesson.main()"""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="-1")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True,
                          env=environment, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third, last = done.stdout.splitlines()
    assert "32 parts become one in 5 steps" in first
    assert second.startswith("Counted in the simulator, since ")
    assert third.startswith("Count(read=1024, written=64,")
    assert last == "picture: out/lessons/gpu.png"
    assert (tmp_path / "out/lessons/gpu.png").read_bytes().startswith(b"\x89PNG")
