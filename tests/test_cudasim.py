"""The simulator of a GPU: a right kernel gives right numbers, a wrong one an error that names the mistake.

The kernels here are compiled by a simulator of their own: numba.cuda stays what it is in this process.
"""
import inspect
import math
import re

import numpy as np
import pytest
from numba import float32, int32, uint32, void

from tests import cudasim
from tests.close import assert_close
from tests.cudasim import run
from tests.cudasim.arrays import Fault
from tests.cudasim.module import Cuda

cuda = Cuda("numba.cuda")
f32, u32 = np.float32, np.uint32
F1, F2, F3 = float32[::1], float32[:, ::1], float32[:, :, ::1]
I1, I2, U1 = int32[::1], int32[:, ::1], uint32[::1]
ALL = 0xFFFFFFFF


def kernel(*types):
    return cuda.jit(void(*types))


def floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(f32)


def fault(launch, *arguments, kind=Fault):  # -> what it says, and the line of this file that it names
    said = set()
    for _ in range(2):  # always the same
        with pytest.raises(kind) as error:
            launch(*arguments)
        said.add(str(error.value))
    text, = said
    lines = [entry.lineno + 1 for entry in error.traceback if entry.path.name == "test_cudasim.py"]
    if found := re.search(r", line (\d+), thread", text):
        assert int(found[1]) == lines[-1], "the message and the traceback name the same line"
        text += "  AT " + inspect.findsource(inspect.getmodule(fault))[0][lines[-1] - 1].strip()
    return text


# ---- right kernels --------------------------------------------------------------------------------------

TILE = 4


@kernel(F2, F2, F2)
def tiled(a, b, out):
    """Barriers, two shared arrays in one line, sizes that are no multiple of the tile."""
    left, right = cuda.shared.array((TILE, TILE), f32), cuda.shared.array((TILE, TILE), f32)
    x, y = u32(cuda.threadIdx.x), u32(cuda.threadIdx.y)
    i, j = u32(cuda.blockIdx.y) * u32(TILE) + y, u32(cuda.blockIdx.x) * u32(TILE) + x
    total = f32(0)
    for k in range(0, a.shape[1], TILE):
        left[y, x] = a[i, k + x] if i < a.shape[0] and k + x < a.shape[1] else f32(0)
        right[y, x] = b[k + y, j] if k + y < b.shape[0] and j < b.shape[1] else f32(0)
        cuda.syncthreads()
        for n in range(TILE):
            total += left[y, n] * right[n, x]
        cuda.syncthreads()
    if i < out.shape[0] and j < out.shape[1]:
        out[i, j] = total


def test_a_tiled_matrix_product():
    a, b, out = floats(5, 6), floats(6, 9), np.zeros((5, 9), f32)
    tiled[(3, 2), (TILE, TILE)](a, b, out)
    assert_close(out, a.astype(float) @ b, "out")
    assert run.writer(out, (4, 8)) == "thread (0, 0) of block (2, 1)"
    assert run.writer(out[4:, 1:], (0, 7)) == "thread (0, 0) of block (2, 1)"
    assert run.writer(out.T, (8, 4)) == "thread (0, 0) of block (2, 1)"
    whole = np.zeros((6, 9), f32)
    tiled[(3, 2), (TILE, TILE)](a, b, whole[:5])
    assert run.writer(whole, (4, 8)) == "thread (0, 0) of block (2, 1)"
    assert run.writer(whole, (5, 0)) == "no thread"
    assert run.writer(a, (0, 0)) is None


@kernel(F2, F1)
def row_sums(x, out):
    total = f32(0)
    for c in range(cuda.laneid, x.shape[1], 32):
        total += x[cuda.blockIdx.x, c]
    for step in 16, 8, 4, 2, 1:
        total += cuda.shfl_xor_sync(ALL, total, step)
    if cuda.laneid == 0:
        out[cuda.blockIdx.x] = total


def test_sums_by_shuffles():
    x, out = floats(3, 70), np.zeros(3, f32)
    row_sums[3, 32](x, out)
    assert_close(out, x.sum(axis=1), "out", atol=1e-5)


@kernel(F2, I1)
def warps(out, votes):
    t = cuda.threadIdx.x
    out[0, t] = cuda.shfl_up_sync(ALL, f32(t), 1)
    out[1, t] = cuda.shfl_down_sync(ALL, f32(t), 2)
    out[2, t] = cuda.shfl_sync(ALL, f32(t), 5)
    votes[t] = cuda.ballot_sync(ALL, t % 32 < 3) + cuda.any_sync(ALL, t == 40)
    votes[t] += cuda.syncthreads_count(t > 60)


def test_shuffles_and_votes_stay_in_their_warp():
    out, votes = np.zeros((3, 64), f32), np.zeros(64, np.int32)
    warps[1, 64](out, votes)
    lane, first = np.arange(64) % 32, np.arange(64) // 32 * 32
    up, down = np.maximum(lane - 1, 0), np.where(lane < 30, lane + 2, lane)
    assert_close(out, [first + up, first + down, first + 5], "out")
    assert_close(votes, 7 + 3 + (first == 32), "votes")


@kernel(I1, F1, I1)
def histogram(keys, sums, counts):
    i = cuda.grid(1)
    if i < keys.size:
        cuda.atomic.add(sums, keys[i], f32(0.1) * i)
        cuda.atomic.add(counts, (keys[i],), 1)


def test_atomic_additions_from_several_blocks():
    keys, sums, counts = (np.arange(50) % 3).astype(np.int32), np.zeros(3, f32), np.zeros(3, np.int32)
    histogram[4, 16](keys, sums, counts)
    assert_close(sums, np.bincount(keys, 0.1 * np.arange(50)), "sums")
    assert_close(counts, [17, 17, 16], "counts")
    assert run.writer(sums, (0,)) == "atomic operations", "many have added to it"


@kernel(F1, F1, U1)
def numbers(x, out, bits):
    with_nan = cuda.local.array(2, f32)
    out[0], out[1], out[2] = math.exp(x[0]), math.log(x[1]), f32(1) / x[1]
    out[3] = math.exp(x[2]) - f32(0.1)
    out[4] = with_nan[1]
    bits[0] = u32(3) - u32(5)
    bits[1] = u32(2654435769) * u32(2654435769)


def test_numbers_are_those_of_a_gpu(recwarn):
    """Whole numbers wrap, math computes in float32 and raises nothing; memory begins as NaN."""
    x, out, bits = np.array([100, 0, 1], f32), np.zeros(5, f32), np.zeros(2, u32)
    numbers[1, 1](x, out, bits)
    assert out[0] == np.inf and out[1] == -np.inf and out[2] == np.inf and np.isnan(out[4])
    assert out[3] == f32(math.e) - f32(0.1)
    assert [*bits] == [2**32 - 2, 2654435769**2 % 2**32]
    assert not recwarn.list and math.exp(1) == math.e, "on the host nothing has changed"


@kernel(F3, F1, F1)
def in_place(x, row, same):
    block = x[cuda.blockIdx.x]
    for i in range(x.shape[1]):
        block[i, cuda.threadIdx.x] += row[cuda.threadIdx.x]
    same[cuda.threadIdx.x] = row[cuda.threadIdx.x] + f32(1)
    same[cuda.threadIdx.x] = row[cuda.threadIdx.x] + f32(1)


def test_rows_of_arrays_and_one_array_under_two_names():
    x, row = floats(1, 3, 4), floats(4)
    want_x, want_row = x + row, row + 2
    in_place[1, 4](x, row, row)
    assert_close(x, want_x, "x")
    assert_close(row, want_row, "row")


# ---- barriers -------------------------------------------------------------------------------------------

@kernel(F1, F1, uint32)
def reverse(x, out, barriers):
    tile = cuda.shared.array(64, f32)
    t = cuda.threadIdx.x
    for i in range(2):
        tile[t] = x[t] + f32(i)
        if barriers & 1:
            cuda.syncthreads()
        out[t] = tile[63 - t]
        if barriers & 2:
            cuda.syncthreads()


def test_a_missing_barrier_between_write_and_read():
    x, out = floats(64), np.zeros(64, f32)
    reverse[1, 64](x, out, 3)
    assert_close(out, x[::-1] + 1, "out")
    text = fault(reverse[1, 64], x, out, 2)
    assert "thread 32 of block 0: a barrier is missing: it writes tile[32], which thread 31 has read" in text
    assert text.startswith("reverse, line ") and "AT tile[t] = x[t] + f32(i)" in text


def test_a_missing_barrier_between_read_and_the_next_write():
    text = fault(reverse[1, 64], floats(64), np.zeros(64, f32), 1)
    assert "it reads tile[31], which thread 31 has written, and nothing says which comes first" in text
    assert "thread 32 of block 0: a barrier is missing" in text and "AT out[t] = tile[63 - t]" in text


@kernel(F1, uint32)
def tree(x, how):
    part = cuda.shared.array(32, f32)
    t = cuda.threadIdx.x
    part[t] = x[t]
    for step in 16, 8, 4, 2, 1:
        if how == 1:
            cuda.syncwarp()
        if how == 2:
            cuda.shfl_sync(ALL, t, 0)
        if t < step:
            part[t] += part[t + step]
    x[t] = part[t]


def test_a_warp_needs_syncwarp_and_a_shuffle_is_none():
    x = floats(32)
    want = x.sum()
    tree[1, 32](x, 1)
    assert_close(x[0], want, "sum", atol=1e-5)
    for how in 0, 2:
        assert "a barrier is missing" in fault(tree[1, 32], floats(32), how)


@kernel(F1)
def across_warps(x):
    t = cuda.threadIdx.x
    x[t] = f32(t)
    cuda.syncwarp()
    x[t ^ 1] += f32(1)
    cuda.syncwarp()
    x[(t + 1) % 64] += f32(1)


def test_syncwarp_orders_no_other_warp():
    assert "reads x[32], which thread 33 has written" in fault(across_warps[1, 64], np.zeros(64, f32))


@kernel(F1, F1)
def totals(x, out):
    out[0] += x[cuda.grid(1)]


@kernel(F1, F1)
def neighbours(x, out):
    i = cuda.grid(1)
    x[i] = f32(i)
    cuda.syncthreads()
    out[i] = x[(i + 1) % x.size]


def test_races():
    text = fault(totals[1, 8], floats(8), np.zeros(1, f32))
    assert "totals, line" in text and "reads out[0], which thread 0 has written" in text
    text = fault(totals[2, 1], floats(2), np.zeros(1, f32))
    assert "blocks do not wait for each other: it reads out[0], which thread 0 of block 0 has" in text
    text = fault(neighbours[2, 4], np.zeros(8, f32), np.zeros(8, f32))
    assert "thread 0 of block 1: blocks do not" in text
    assert "it writes x[4], which thread 3 of block 0 has read" in text


@kernel(F1)
def read_by_many(x):
    t = cuda.threadIdx.x
    value = x[0] + x[0]
    cuda.syncwarp()
    if t == 0:
        x[0] = value


def test_a_write_races_with_every_reader_not_only_the_first():
    assert "writes x[0], which thread" in fault(read_by_many[1, 33], np.zeros(1, f32))


@kernel(I2, F1)
def program(steps, x):
    """steps[i, warp]: all threads of a warp do the same, to places that depend on the thread."""
    t = cuda.threadIdx.x
    for i in range(steps.shape[0]):
        step = steps[i, t // 32]
        at = t if step % 3 == 0 else t ^ 1 if step % 3 == 1 else t // 32
        if step // 3 == 0:
            cuda.syncthreads()
        elif step // 3 == 1:
            cuda.syncwarp()
        elif step // 3 == 2 and t % 32 < 2:
            x[at] = f32(1)
        elif step // 3 == 3 and t % 32 < 2:
            x[at]


def races(steps):
    """Of every two accesses: is one a write to the same place, with no barrier in between?"""
    seen = []  # thread, barriers, warp barriers, place, writes
    for t in 0, 1, 32, 33:
        barriers = warp_barriers = 0
        for step in map(int, steps[:, t // 32]):
            at = (t, t ^ 1, t // 32)[step % 3]
            barriers, warp_barriers = barriers + (step // 3 == 0), warp_barriers + (step // 3 == 1)
            if step // 3 >= 2:
                seen.append((t, barriers, warp_barriers, at, step // 3 == 2))
    return any(a[3] == b[3] and (a[4] or b[4]) and a[0] != b[0] and a[1] == b[1]
               and (a[0] // 32 != b[0] // 32 or a[2] == b[2]) for a in seen for b in seen)


def test_races_are_found_where_there_are_some_and_nowhere_else():
    rng, outcomes = np.random.default_rng(3), []
    for _ in range(60):
        steps = rng.integers(3, 12, (rng.integers(2, 9), 2)).astype(np.int32)
        steps[rng.random(len(steps)) < 0.4] = 0  # all come to syncthreads
        outcomes.append(races(steps))
        try:
            program[1, 64](steps, np.zeros(64, f32))
            found = False
        except Fault as error:
            found = True
            assert "a barrier is missing" in str(error)
        assert found == outcomes[-1], steps
    assert 15 < sum(outcomes) < 45


@kernel(F1)
def mixed(x):
    if cuda.threadIdx.x == 0:
        x[0] = f32(1)
    cuda.atomic.add(x, 0, f32(1))


@kernel(I1, F1)
def tickets(counter, x):
    x[cuda.atomic.add(counter, 0, 1)] = cuda.grid(1)


def test_what_atomic_operations_do_not_settle():
    assert "changes x[0], which thread 0 has written" in fault(mixed[1, 2], np.zeros(1, f32))
    text = fault(tickets[2, 2], np.zeros(1, np.int32), np.zeros(4, f32))
    assert "x[0] is 0.0 when the threads run in order, and 3.0 when they run in reverse" in text


@kernel(F1, uint32)
def divergent(x, how):
    t = cuda.threadIdx.x
    if how == 0 and t >= x.size:
        return
    if how == 1 and t < 2:
        cuda.syncthreads()
    if how == 2:
        if t < 2:
            cuda.syncthreads()
        else:
            cuda.syncthreads()
    if how == 3 and t == 40:
        cuda.syncwarp()
    cuda.syncthreads()


def test_barriers_that_not_all_threads_reach():
    text = fault(divergent[1, 64], floats(60), 0)
    assert "60 of 64 threads of the block have come to this barrier; thread 60 has ended" in text
    assert "divergent, line " in text and "AT cuda.syncthreads()" in text
    assert "the threads of a block wait at different places, lines" in fault(divergent[1, 4], floats(4), 1)
    assert "the threads of a block wait at different places, lines" in fault(divergent[1, 4], floats(4), 2)
    assert "thread 40 waits for its warp in line" in fault(divergent[1, 64], floats(4), 3)


@kernel(F1, uint32)
def shuffles(x, how):
    t = cuda.threadIdx.x
    if how == 0 and t >= x.size:
        return
    if how == 1 and t % 2:
        x[t] = cuda.shfl_down_sync(ALL, f32(t), 1)
    x[0 if how == 3 else t] = cuda.shfl_xor_sync(ALL if how != 2 else 0xF, f32(t), 1)


def test_shuffles_that_not_all_threads_of_a_warp_reach():
    assert "thread 30 of block 0 has ended, and its warp waits here" in fault(shuffles[1, 32], floats(30), 0)
    assert "wait at different places, lines" in fault(shuffles[1, 32], floats(32), 1)
    assert "only whole warps" in fault(shuffles[1, 32], floats(32), 2)
    shuffles[1, 64](floats(64), 9)
    shuffles[1, 64](floats(32), 0)  # of the second warp no thread is left
    assert "asks lane 9, which is not there: the block's size" in fault(shuffles[1, 41], floats(41), 9)


# ---- indices, types, sizes ------------------------------------------------------------------------------

@kernel(F2, uint32, int32)
def place(x, i, j):
    x[i, j] = x[0, 0] + f32(1)


@kernel(F1, uint32)
def local(x, i):
    mine = cuda.local.array(3, f32)
    mine[i] = f32(1)
    x[0] = mine[u32(0) - u32(1)] if i == 0 else mine[i]


def test_indices_outside_of_an_array():
    x = np.zeros((3, 4), f32)
    text = fault(place[1, 1], x, 3, 0, kind=IndexError)
    assert re.match(r"place, line \d+, thread 0 of block 0: x\[3, 0\] is outside: its shape is", text)
    assert "x[0, 4] is outside" in fault(place[1, 1], x, 0, 4, kind=IndexError), "not the next row"
    assert "x[0, -1] is outside" in fault(place[1, 1], x, 0, -1, kind=IndexError)
    assert "mine[4294967295] is outside" in fault(local[1, 1], x[0], 0, kind=IndexError)
    assert "mine[3] is outside" in fault(local[1, 1], x[0], 3, kind=IndexError)
    local[1, 1](x[0], 1)
    assert x[0, 0] == 1


@kernel(F2, I1, uint32)
def values(x, n, how):
    if how == 0:
        x[0, 0] = f32(2) * u32(3)
    if how == 1:
        x[0] = f32(2)
    if how == 2:
        x[0, 0] = x[0]
    if how == 3:
        x[0, f32(1)] = f32(2)
    if how == 4:
        cuda.atomic.add(x, 0, f32(2))
    if how == 5:
        x[0, 0] = math.sqrt(f32(2)) * f32(n[0])


@pytest.mark.parametrize("how, said", [
    (0, "x[0, 0] = a float64: f32 and u32 together give one. Write f32(n)"),
    (1, "2 whole numbers are its index"),
    (2, "x[0, 0] = a Checked: a thread writes numbers"),
    (3, "2 whole numbers are its index"),
    (4, "x[0] is no element: 2 whole numbers are its index"), (5, None)])
def test_what_is_no_float32_or_no_element(how, said):
    launch, arguments = values[1, 1], (np.zeros((2, 2), f32), np.ones(1, np.int32), how)
    assert said in fault(launch, *arguments) if said else launch(*arguments) is None


@kernel(F1, F1)
def large(x, out):
    one = cuda.shared.array(8192, f32)
    other = cuda.shared.array(4097, f32)
    out[0] = one[0] + other[0]


def test_blocks_grids_and_shared_memory_that_no_gpu_has():
    x = floats(4)
    assert "large, line" in (text := fault(large[1, 1], x, x.copy())), text
    assert "49,156 bytes of shared memory: a block may have 49,152" in text
    for shape, said in [((1, 1025), "1,025 threads"), ((1, (64, 32)), "a block of (64, 32) is 2,048 threads"),
                        ((1, (1, 1, 65)), "64 along z"), ((0, 1), "a grid of 0 blocks"),
                        (((1, 65536), 1), "a grid of (1, 65536) blocks"), ((1, 0), "0 threads")]:
        assert said in fault(totals[shape], x, x)
    with pytest.raises(TypeError, match="integer"):
        totals[4 / 2, 1]


@pytest.mark.parametrize("x, said", [
    (np.zeros(4), "totals: x is float64 (4,), wanted is float32 with 1 dimensions"),
    (np.zeros((4, 1), f32), "x is float32 (4, 1)"), (np.zeros(8, f32)[::2], "x is not contiguous"),
    (3.0, "x is float, wanted"), (np.zeros(4, np.int32), "x is int32 (4,)")])
def test_arguments_of_a_wrong_type(x, said):
    assert said in fault(totals[1, 1], x, floats(1), kind=TypeError)


def test_other_wrong_arguments():
    assert "i is an array" in fault(place[1, 1], floats(2, 2), floats(2), 1, kind=TypeError)
    assert "for 2 arguments; it was launched with 1" in fault(totals[1, 1], floats(2), kind=TypeError)
    whole = floats(8)
    assert "share a part of their memory" in fault(neighbours[1, 4], whole[:4], whole[3:7])


@kernel(F1)
def unwritten(x):
    tile, order = cuda.shared.array(4, f32), cuda.shared.array(4, np.int32)
    x[0] = tile[1]
    x[1] = tile[order[0]]


def test_what_nobody_has_written_is_nan_and_no_index():
    x = np.zeros(2, f32)
    assert "tile[-1] is outside" in fault(unwritten[1, 1], x, kind=IndexError)


@kernel(F1)
def blank(x):
    raise NotImplementedError("blank")


@kernel(F1)
def broken(x):
    {}["key"]


def test_errors_keep_their_type_and_a_blank_its_words():
    assert fault(blank[1, 1], floats(1), kind=NotImplementedError) == "blank"
    assert "broken, line" in fault(broken[1, 1], floats(1), kind=KeyError)


def test_a_failed_launch_changes_nothing():
    x = np.zeros(4, f32)
    fault(neighbours[2, 2], x, np.zeros(4, f32))
    assert not x.any()


# ---- what others ask the simulator ----------------------------------------------------------------------

def test_tracing_notes_accesses_of_one_run():
    a, b, out = floats(4, 4), floats(4, 4), np.zeros((4, 4), f32)
    with run.tracing() as accesses:
        tiled[1, (TILE, TILE)](a, b, out)
    assert cudasim.ORDERS == ["forward", "reverse"]
    counted = {(one.memory, one.name, one.writes) for one in accesses}
    assert counted == {("global", "a", False), ("global", "b", False), ("global", "out", True),
                       ("shared", "left", False), ("shared", "left", True),
                       ("shared", "right", False), ("shared", "right", True)}
    first = [one.address for one in accesses if one.name == "b" and one.thread < 4]
    assert first == [0, 4, 8, 12] and len(accesses) == 16 * (2 + 2 + 8 + 1)


def test_writers_are_known_until_the_host_writes():
    x = cuda.to_device(np.zeros(4, f32))
    neighbours[1, 4](x, cuda.device_array(4))
    copy = x.copy_to_host()
    assert run.writer(copy, (2,)) == run.writer(copy.reshape(2, 2), (1, 0)) == "thread 2 of block 0"
    x.copy_to_device(np.zeros(4, f32))
    assert run.writer(x.copy_to_host(), (2,)) is None
    assert run.writer(copy, (2,)) == "thread 2 of block 0"
