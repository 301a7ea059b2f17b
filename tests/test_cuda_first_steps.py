"""The tests of f are test_f and test_f_*: they are also exercises of lesson 26.

The oracles are NumPy's x.T, and its sums of whole numbers, which float32 holds exactly. In the simulator
addresses are watched too: which sectors a warp touches, which banks.
"""
import numpy as np
import pytest

from kernels.cuda import first_steps as steps
from kernels.cuda.compiled import cuda
from kernels.cuda.memory import on_gpu
from tests.close import assert_close, unchanged

f32 = np.float32
EXACT = {"rtol": 0, "atol": 0, "dtype": f32}
watched = pytest.mark.skipif(not getattr(cuda, "simulated", False), reason="a GPU tells no addresses")


def numbers(*shape):
    """-100 .. 100, so that sums of a few hundred have no rounding."""
    return np.random.default_rng(26).integers(-100, 101, shape).astype(f32)


def nothing(*shape):
    return np.full(shape, np.nan, f32)


def accesses(launch, arrays, out):  # -> {(name, writes): [addresses of a warp that asks once]}
    """What each warp of the first block asks for, as bytes from the array's beginning."""
    from tests.cudasim.run import tracing
    asked = {}
    with tracing() as trace:
        launch(*arrays, out)
    for a in trace:
        if a.block == (0, 0, 0):
            key = a.name, a.writes, a.thread // 32, a.line, a.visit
            asked.setdefault(key, []).append(a.address)
    found = {}
    for (name, writes, *_), addresses in asked.items():
        found.setdefault((name, writes), []).append(addresses)
    return found


def most_sectors(asked):
    return max(len({address // 32 for address in addresses}) for addresses in asked)


def turns(addresses):
    words = {address // 4 for address in addresses}
    return max(sum(word % 32 == bank for word in words) for bank in range(32))


@pytest.mark.parametrize("n, blocks, threads", [(100, 2, 32), (100, 1, 32), (5, 2, 32), (64, 2, 32)])
def test_copy(n, blocks, threads):
    x, out = numbers(n), nothing(n)
    with unchanged(x=x):
        steps.copy[blocks, threads](x, out)
    assert_close(out, x, "out", **EXACT)


@watched
def test_copy_reads_and_writes_in_rows():
    asked = accesses(steps.copy[2, 32], [numbers(256)], nothing(256))
    assert asked.keys() == {("x", False), ("out", True)}
    for (name, writes), each in asked.items():
        does = f"a warp {'writes' if writes else 'reads'} {name} in {most_sectors(each)} sectors"
        assert most_sectors(each) == 4, f"{does}, where 4 are enough: do neighbours take neighbours?"
        assert len(each) == 4, "256 elements on 64 threads are 4 for each"


@pytest.mark.parametrize("n", [1, 3, steps.THREADS, steps.THREADS + 1, 2 * steps.THREADS - 1])
def test_neighbour_average(n):
    x, out = numbers(n), nothing(n)
    with unchanged(x=x):
        steps.neighbour_average[-(-n // steps.THREADS), steps.THREADS](x, out)
    around = np.concatenate([[0], x, [0]])
    want = (around[:-2] + around[1:-1] + around[2:]) / 3
    assert_close(out, want, "out", rtol=1e-6, atol=1e-6, dtype=f32)


@watched
def test_neighbour_average_reads_each_number_once():
    x, out = numbers(2 * steps.THREADS), nothing(2 * steps.THREADS)
    asked = accesses(steps.neighbour_average[2, steps.THREADS], [x], out)
    assert sum(map(len, asked["x", False])) == steps.THREADS + 1, \
        "the first block reads its own numbers and one of the next block, each once"


over_edges = pytest.mark.parametrize("R, C", [(1, 1), (2, 33), (34, 3)])


@over_edges
def test_transpose_naive(R, C):
    transposes(steps.transpose_naive, R, C)


@over_edges
def test_transpose_tiled(R, C):
    transposes(steps.transpose_tiled, R, C)


def transposes(kernel, R, C):
    x, out = numbers(R, C), nothing(C, R)
    with unchanged(x=x):
        kernel[steps.over_tiles(x)](x, out)
    assert_close(out, x.T, "out", **EXACT)


@watched
def test_transpose_naive_reads_rows():
    x, out = numbers(32, 32), nothing(32, 32)
    asked = accesses(steps.transpose_naive[steps.over_tiles(x)], [x], out)
    assert most_sectors(asked["x", False]) == 4, "neighbours in tx must read neighbours"
    assert most_sectors(asked["out", True]) == 32, "and so they write a column"


@watched
def test_transpose_tiled_reads_and_writes_rows():
    x, out = numbers(32, 32), nothing(32, 32)
    asked = accesses(steps.transpose_tiled[steps.over_tiles(x)], [x], out)
    assert most_sectors(asked["x", False]) == 4, "neighbours in tx must read neighbours"
    assert most_sectors(asked["out", True]) == 4, "neighbours in tx must write neighbours"
    for (name, writes), each in asked.items():
        if name not in ("x", "out"):
            conflict = max(map(turns, each))
            does = f"a warp {'writes' if writes else 'reads'} {name} in {conflict} turns"
            assert conflict == 1, f"{does}: two threads want different words of one bank"


@pytest.mark.parametrize("n", [1, 2, steps.THREADS, steps.THREADS + 3, 3 * steps.THREADS - 1])
def test_block_sums(n):
    x, blocks = numbers(n), -(-n // steps.THREADS)
    out = nothing(blocks)
    with unchanged(x=x):
        steps.block_sums[blocks, steps.THREADS](x, out)
    want = [x[first:first + steps.THREADS].sum() for first in range(0, n, steps.THREADS)]
    assert_close(out, want, "out", **EXACT)


@watched
def test_block_sums_is_a_tree():
    x, out = numbers(steps.THREADS), nothing(1)
    asked = accesses(steps.block_sums[1, steps.THREADS], [x], out)
    written = sum(len(each) for (_, writes), lists in asked.items() if writes for each in lists)
    assert written == 2 * steps.THREADS, "THREADS numbers into shared memory, THREADS - 1 sums, one result"


@pytest.mark.parametrize("n", [1, steps.THREADS, 2 * steps.THREADS + 1])
def test_total(n):
    x = numbers(n)
    assert float(steps.total(on_gpu(x)).numpy()[0]) == x.sum()


def test_multiply_add():
    out = nothing(64)
    steps.multiply_add[2, 32](out, 3)
    starts = np.arange(32)[:, None] + np.arange(8)
    after = starts / 8 + 1 + 1 / 2 + 1 / 4
    assert_close(out, np.tile(after.sum(axis=1), 2), "out", rtol=1e-6, dtype=f32)
