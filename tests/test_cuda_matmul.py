"""The matrix product on the GPU, or in the simulator (python -m tests.cudasim).

Each version against a @ b in float64. The tests of f are test_f and test_f_*: they are also exercises.
"""
import math
from types import SimpleNamespace

import numpy as np
import pytest

from kernels.cuda import matmul as cuda
from kernels.cuda.compiled import F2, U, f32, kernel, u32
from kernels.cuda.compiled import cuda as gpu
from kernels.cuda.memory import empty, on_gpu
from kernels.cuda.vectors import wide
from tests.close import assert_close, raises

SHAPES = [(1, 1, 1), (3, 5, 2), (17, 18, 3), (2, 3, 18)]  # M, K, N: below a tile, and beyond it by a little
ON_GPU = hasattr(gpu, "current_context")
TINY = cuda.registers(4, 4)  # 16 threads, tiles of 16 x 16, 4 deep: quick in the simulator


def floats(*shapes):
    return [np.random.default_rng(i).normal(size=s).astype(np.float32) for i, s in enumerate(shapes)]


def product(multiply, a, b):
    """multiply(a, b, out) with Arrays. Returns what is in out then."""
    arrays = on_gpu(a), on_gpu(b)
    out = on_gpu(np.full((len(a), b.shape[1]), 7, np.float32))
    multiply(*arrays, out)
    for name, array, before in zip("ab", arrays, (a, b)):
        assert np.array_equal(array.numpy(), before, equal_nan=True), f"{name} is only to be read"
    return out.numpy()


def assert_product(multiply, a, b):
    assert_close(product(multiply, a, b), a.astype(float) @ b, "out", atol=1e-5)


def assert_nan_stays(multiply, M, K, N):
    """What a thread reads beside its own row and column must not reach its sum, not even times 0."""
    a, b = floats((M, K), (K, N))
    a[1], b[:, 2] = np.nan, np.nan
    want = np.nan_to_num(a.astype(float)) @ np.nan_to_num(b.astype(float))
    got, nan = product(multiply, a, b), np.zeros((M, N), bool)
    nan[1], nan[:, 2] = True, True
    assert (np.isnan(got) == nan).all(), "row 1 of a and column 2 of b are NaN: they alone must be in out"
    assert_close(got[~nan], want[~nan], "out beside them", atol=1e-5)


def sectors(multiply, M, K, N):  # -> {"a": 2, "b": 2, "out": 4}
    """How many sectors of 32 bytes a warp's one access touches, at most, of each array in global memory."""
    from tests.cudasim.run import tracing
    with tracing() as accesses:
        product(multiply, *floats((M, K), (K, N)))
    return most(accesses, "global", lambda address: address // 32)


def most(accesses, memory, part, together=1):
    """{array: how many different parts (of its address) a warp's one access touches, at most}"""
    found = {}
    for x in accesses:
        if x.memory == memory:
            key = x.name, x.writes, x.block, x.thread // 32, x.line, x.visit // together
            found.setdefault(key, set()).add(part(x.address))
    return {name: max(len(parts) for key, parts in found.items() if key[0] == name) for name, *_ in found}


only_simulated = pytest.mark.skipif(ON_GPU, reason="no GPU tells of each access")


@pytest.mark.parametrize("shape", SHAPES)
def test_matmul_naive(shape):
    M, K, N = shape
    assert_product(cuda.matmul_v1, *floats((M, K), (K, N)))


def test_matmul_naive_keeps_nan_in_its_row_and_column():
    assert_nan_stays(cuda.matmul_v1, 3, 4, 5)


@only_simulated
def test_matmul_naive_lets_neighbours_read_neighbours():
    """A warp is two rows of 16 threads: two numbers of a, 16 of b side by side, and 2 x 16 of out."""
    assert sectors(cuda.matmul_v1, 16, 8, 16) == {"a": 2, "b": 2, "out": 4}, \
        "threads that are neighbours in x must have neighbouring columns, not rows"


@pytest.mark.parametrize("shape", SHAPES)
def test_matmul_tiles(shape):
    M, K, N = shape
    assert_product(cuda.matmul_v2, *floats((M, K), (K, N)))


def test_matmul_tiles_keeps_nan_in_its_row_and_column():
    assert_nan_stays(cuda.matmul_v2, 3, 4, 5)


@only_simulated
def test_matmul_tiles_lets_neighbours_read_neighbours():
    assert sectors(cuda.matmul_v2, 16, 16, 16) == {"a": 4, "b": 4, "out": 4}, \
        "a warp is two rows of 16 threads: they must read two rows of 16 numbers side by side"


@kernel(F2, U, U, U, U, U, F2)
def filled(x, top, left, length, turn, by_four, out):
    """A block's tile of 4 x 16 or more, as fill_tile leaves it."""
    tile = gpu.shared.array((16, 132), f32)
    t, threads = u32(gpu.threadIdx.x), u32(gpu.blockDim.x)
    cuda.fill_tile(x, top, left, length, threads, turn, by_four, tile)
    gpu.syncthreads()
    for e in range(t, u32(out.size), threads):
        i, j = e // u32(out.shape[1]), e % u32(out.shape[1])
        out[i, j] = tile[i, j]


def box(x, top, left, lines, length):
    """What lies outside is 0."""
    out = np.zeros((lines, length))
    inside = x[top:top + lines, left:left + length]
    out[:inside.shape[0], :inside.shape[1]] = inside
    return out


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("by_four", [False, True])
@pytest.mark.parametrize("rows, columns, top, left", [(20, 40, 2, 8), (20, 20, 12, 16), (20, 20, 20, 4)])
def test_fill_tile(rows, columns, top, left, by_four, turn):
    columns += not by_four  # then it need not be a multiple of 4
    (x,), length = floats((rows, columns)), 4 if turn else 16
    out = np.full((4, 16), 7, np.float32)
    filled[1, 16](x, top, left, length, turn, by_four, out)
    want = box(x, top, left, 64 // length, length)
    assert_close(out, want.T if turn else want, "tile")


@only_simulated
@pytest.mark.parametrize("by_four", [False, True])
@pytest.mark.parametrize("turn", [False, True])
def test_fill_tile_lets_neighbours_read_neighbours(turn, by_four):
    """A warp uses all 32 bytes of every sector that it touches. And no two of its threads write to one bank
    of shared memory, where one would have to wait for the other."""
    from tests.cudasim.run import tracing
    (x,), out = floats((128, 8) if turn else (8, 128)), np.empty((8, 128), np.float32)
    with tracing() as accesses:
        filled[1, 256](x, 0, 0, 8 if turn else 128, turn, by_four, out)
    reads = [access for access in accesses if access.name == "x"]
    used = 4 if by_four else 1
    assert most(reads, "global", lambda address: address // 32, used) == {"x": 4 * used}
    if turn or not by_four:
        writes = [access for access in accesses if access.writes]
        assert most(writes, "shared", lambda address: address // 4 % 32) == {"tile": 32}


@kernel(F2, F2, U, F2)
def outer_products(a, b, across, out):
    """One block with squares of 8 x 8: out (8 across, 8 across) += a[k].T b[k], k = 0, 1, 2."""
    a_tile, t = gpu.shared.array((3, 16), f32), u32(gpu.threadIdx.x)
    b_tile = gpu.shared.array((3, 16), f32)
    a_line = gpu.local.array(8, f32)
    b_line = gpu.local.array(8, f32)
    sums = gpu.local.array((8, 8), f32)
    for e in range(t, u32(48), across * across):
        a_tile[e // u32(16), e % u32(16)] = a[e // u32(16), e % u32(16)]
        b_tile[e // u32(16), e % u32(16)] = b[e // u32(16), e % u32(16)]
    gpu.syncthreads()
    row, column = t // across * u32(4), t % across * u32(4)
    for i in range(u32(8)):
        for j in range(u32(8)):
            sums[i, j] = out[cuda.place(row, i, across), cuda.place(column, j, across)]
    for k in range(u32(3)):
        cuda.add_outer_product(a_tile, b_tile, k, row, column, across, a_line, b_line, sums)
    for i in range(u32(8)):
        for j in range(u32(8)):
            out[cuda.place(row, i, across), cuda.place(column, j, across)] = sums[i, j]


def test_add_outer_product():
    a, b, before = floats((3, 16), (3, 16), (16, 16))
    out, want = before.copy(), a.astype(float).T @ b
    outer_products[1, 4](a, b, 2, out)
    assert_close(out, before + want, "sums", atol=1e-5, mistakes={
        "what was in sums before is gone": want, "rows and columns are exchanged": before + want.T})


def tiny(a, b, out, **ends):
    cuda.check(a, b, out)
    cuda.launch(TINY, a, b, out, **ends)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (17, 6, 18)])
def test_matmul_by_registers(shape):
    M, K, N = shape
    assert_product(tiny, *floats((M, K), (K, N)))


def test_matmul_by_registers_keeps_nan_in_its_row_and_column():
    assert_nan_stays(tiny, 3, 5, 6)


@pytest.mark.parametrize("M, K, N", [(17, 5, 18), (20, 8, 24)])  # the second one's are read four at a time
@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
def test_matmul_by_registers_of_transposed_arrays(a_turned, b_turned, M, K, N):
    a, b = floats((M, K), (K, N))
    a_there, b_there = (on_gpu(x.T.copy()).T if turned else on_gpu(x)
                        for x, turned in ((a, a_turned), (b, b_turned)))
    assert wide(a_there) == wide(b_there) == (K == 8)
    out = empty((M, N))
    tiny(a_there, b_there, out)
    assert_close(out.numpy(), a.astype(float) @ b, "out", atol=1e-5)


@pytest.mark.parametrize("ends", ["bias", "residual", "bias residual", "slope", "bias slope"])
def test_matmul_by_registers_and_what_comes_after(ends):
    a, b, bias, residual, slope = floats((17, 3), (3, 18), 18, (17, 18), (17, 18))
    y = a.astype(float) @ b + bias * ("bias" in ends) + residual * ("residual" in ends)
    given = {"bias": bias, "residual": residual, "slope": slope}
    given, out = {name: on_gpu(given[name]) for name in ends.split()}, empty((17, 18))
    tiny(on_gpu(a), on_gpu(b), out, **given)
    if "slope" in ends:
        assert_close(given["slope"].numpy(), (gelu(y + 1e-6) - gelu(y - 1e-6)) / 2e-6, "slope", atol=1e-5)
    assert_close(out.numpy(), gelu(y) if "slope" in ends else y, "out", atol=1e-5)


def gelu(y):
    return 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))


@only_simulated
def test_matmul_by_registers_lets_neighbours_read_and_write_neighbours():
    """Four sectors for 32 numbers; 16 for 32 threads that read four numbers each."""
    from tests.cudasim.run import tracing
    with tracing() as accesses:
        product(lambda a, b, out: cuda.launch(cuda.SIZES[-1], a, b, out), *floats((32, 8), (8, 32)))
    assert most(accesses, "global", lambda address: address // 32, 4)["a"] == 16
    assert most(accesses, "global", lambda address: address // 32, 4)["b"] == 16
    assert most(accesses, "global", lambda address: address // 32)["out"] == 4


@pytest.mark.parametrize("kernel", [cuda.registers(8, 8), *(cuda.SIZES if ON_GPU else [])])
def test_matmul_by_registers_in_other_sizes(kernel):
    """Squares of 8 x 8; and all sizes that matmul uses, which take long in the simulator."""
    assert_product(lambda a, b, out: cuda.launch(kernel, a, b, out), *floats((66, 6), (6, 37)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 9, 33)])
def test_matmul(shape):
    M, K, N = shape
    assert_product(cuda.matmul, *floats((M, K), (K, N)))


@pytest.mark.parametrize("M, N, size", [(4096, 4096, 0), (2048, 2048, 0), (2048, 1920, 1), (1, 50257, 0),
                                          (1024, 1000, 1), (1024, 960, 2), (1, 1, 2)])
def test_matmul_makes_enough_blocks(M, N, size, monkeypatch):
    chosen = []
    monkeypatch.setattr(cuda, "launch", lambda kernel, *arguments: chosen.append(kernel))
    cuda.matmul(*(SimpleNamespace(transposed=False, shape=shape) for shape in ((M, 3), (3, N), (M, N))))
    assert chosen == [cuda.SIZES[size]]


@pytest.mark.parametrize("shapes", [((2, 3), (4, 5), (2, 5)),
                                    ((2, 3), (3, 5), (5, 2)), ((2, 3), (3, 5), (2, 4))])
@pytest.mark.parametrize("multiply", [cuda.matmul, cuda.matmul_v1, cuda.matmul_v2])
def test_matmul_refuses_shapes_that_do_not_fit(multiply, shapes):
    with raises(ValueError, f"does not give {shapes[2]}", f"an out of {shapes[2]}"):
        multiply(*map(empty, shapes))


def test_wide_arrays_begin_and_go_on_at_multiples_of_16_bytes():
    buffer = empty(1 + 8 * 8)
    assert wide(buffer[:64].reshape(8, 8)) and wide(buffer[4:12].reshape(2, 4))
    assert not wide(buffer[1:].reshape(8, 8))
    assert not wide(buffer[:24].reshape(4, 6))
    assert wide(buffer[:24].reshape(6, 4).T), "what counts is how it lies in memory"
