"""The matrix product out = a @ b, a (M, K), b (K, N): where a GPT spends most of its time.

M N sums of K products are 2 M N K FLOP. Each number of a is needed N times and each of b M times: the ladder
is about fetching them less often.

version 1   naive     a thread has one number of the result, and reads 2 for each multiplication. Neighbouring
                      threads have neighbouring columns: they read numbers of b side by side, and the same
                      number of a. Only the caches help: 8 bytes for 2 FLOP.
version 2   tiles     a block of TILE x TILE threads brings squares of a and b into shared memory, where all
                      read them. From global memory comes 1/TILE of version 1's numbers, but for each
                      multiplication 2 numbers are still read from shared memory.
version 3   registers a thread has `each` rows by `each` columns of the result: for 2 each numbers from shared
                      memory, which come four at a time, it does each^2 multiplications. A block does `side`
                      rows and columns, and reads 1/side of version 1's numbers from global memory. In shared
                      memory k runs along the rows, whichever way a and b lie in global memory: so neither of
                      them is ever transposed there.

matmul uses version 3, with the largest tile that still makes enough blocks. In all versions a number of the
result is one thread's, which adds over k in order: equal inputs give equal bits.

What comes next is in cuBLAS and CUTLASS: to fetch a tile while the one before it is in use, and tensor cores.
That registers are where a product's numbers belong: V. Volkov & J. Demmel, Benchmarking GPUs to tune dense
linear algebra (2008).
"""
import math

from kernels.cuda.compiled import F2, ONE, ZERO, U, blocks_for, cuda, f32, inline, kernel, u32
from kernels.cuda.vectors import load4, wide

TILE = 16  # versions 1 and 2: a block has TILE x TILE threads
ENOUGH = 256  # blocks: about two for each processor of a large GPU. With fewer, smaller ones are faster
FOUR, HALF = u32(4), f32(0.5)
GELU_K, GELU_A, GELU_3A = f32(math.sqrt(2 / math.pi)), f32(0.044715), f32(3 * 0.044715)

A_TURNED, B_TURNED, BIAS, RESIDUAL, GELU, A_WIDE, B_WIDE = (u32(1 << i) for i in range(7))


def matmul(a, b, out, bias=None, residual=None, slope=None):
    """out (M, N) = a @ b (+ bias (N,)) (+ residual (M, N)). With slope (M, N) that is y, out = gelu(y), and
    slope = dgelu/dy. All are Arrays; a and b may be transposed. ValueError if a, b and out do not fit."""
    check(a, b, out)
    M, N = out.shape
    fitting = [size for size in SIZES if blocks_for(M, size.side) * blocks_for(N, size.side) >= ENOUGH]
    launch((fitting + SIZES[-1:])[0], a, b, out, bias, residual, slope)


def launch(kernel, a, b, out, bias=None, residual=None, slope=None):
    """What is not there, the kernel must not touch: it gets `out` in its place."""
    M, N = out.shape
    how = (A_TURNED * a.transposed + B_TURNED * b.transposed + BIAS * (bias is not None)
           + RESIDUAL * (residual is not None) + GELU * (slope is not None)
           + A_WIDE * wide(a) + B_WIDE * wide(b))
    kernel[(blocks_for(M, kernel.side), blocks_for(N, kernel.side)), kernel.threads](
        a, b, out, out if bias is None else bias.reshape(1, N), out if residual is None else residual,
        out if slope is None else slope, how)


def matmul_v1(a, b, out):
    check(a, b, out)
    M, N = out.shape
    matmul_naive[(blocks_for(M, TILE), blocks_for(N, TILE)), (TILE, TILE)](a, b, out)


def matmul_v2(a, b, out):
    check(a, b, out)
    M, N = out.shape
    matmul_tiles[(blocks_for(M, TILE), blocks_for(N, TILE)), (TILE, TILE)](a, b, out)


def check(a, b, out):
    if out.transposed:
        raise ValueError("out is transposed: compute out.T = b.T @ a.T")
    if a.shape[1:] != b.shape[:1] or a.shape[:1] + b.shape[1:] != out.shape:
        raise ValueError(f"the product of {a.shape} and {b.shape} does not give {out.shape}")


@kernel(F2, F2, F2)
def matmul_naive(a, b, out):  # (M, K), (K, N) -> (M, N)
    """out = a @ b, by a thread for each number: it reads a row of a and a column of b.

    Launch: a grid of (blocks_for(M, TILE), blocks_for(N, TILE)) blocks of (TILE, TILE) threads. Threads that
    are neighbours in x have neighbouring columns n, so that they read and write numbers side by side. Blocks
    are counted the other way, rows along x: of a grid's directions only x may be longer than 65,535. In the
    last blocks some threads have no m or no n: they must not read or write.
    """
    m = u32(cuda.blockIdx.x) * u32(TILE) + u32(cuda.threadIdx.y)
    n = u32(cuda.blockIdx.y) * u32(TILE) + u32(cuda.threadIdx.x)
    M, N, K = u32(out.shape[0]), u32(out.shape[1]), u32(b.shape[0])
    if m < M and n < N:
        total = ZERO
        for k in range(K):
            total += a[m, k] * b[k, n]
        out[m, n] = total


@kernel(F2, F2, F2)
def matmul_tiles(a, b, out):  # (M, K), (K, N) -> (M, N)
    """out = a @ b, tile by tile. Launch and m, n: as matmul_naive.

    For k0 = 0, TILE, 2 TILE, ... below K the block copies two squares of TILE x TILE, each thread a number of
    both: a_tile[y, x] = a[m, k0 + x], b_tile[y, x] = b[k0 + y, n], or ZERO where that is outside. Then each
    thread adds a row of a_tile times a column of b_tile to its total. Nobody may read before all have
    written, and nobody may write the next tile before all have read: two cuda.syncthreads(), and every thread
    comes to both, also one that has no number of out.
    """
    y, x = u32(cuda.threadIdx.y), u32(cuda.threadIdx.x)
    m, n = u32(cuda.blockIdx.x) * u32(TILE) + y, u32(cuda.blockIdx.y) * u32(TILE) + x
    M, N, K = u32(out.shape[0]), u32(out.shape[1]), u32(b.shape[0])
    a_tile = cuda.shared.array((TILE, TILE), f32)
    b_tile = cuda.shared.array((TILE, TILE), f32)
    total = ZERO
    for k0 in range(u32(0), K, u32(TILE)):
        a_tile[y, x] = a[m, k0 + x] if m < M and k0 + x < K else ZERO
        b_tile[y, x] = b[k0 + y, n] if k0 + y < K and n < N else ZERO
        cuda.syncthreads()
        for k in range(u32(TILE)):
            total += a_tile[y, k] * b_tile[k, x]
        cuda.syncthreads()
    if m < M and n < N:
        out[m, n] = total


@inline
def fill_tile(x, top, left, length, threads, turn, by_four, tile):
    """Copy a box of x, which begins at x[top, left] and has lines of `length` numbers, into shared memory:
    tile[i, j] = x[top + i, left + j], or with `turn` tile[j, i]. What is outside of x counts as ZERO.

    All `threads` threads of the block take part, number t = cuda.threadIdx.x, and each copies four numbers:

    by_four   the four from number 4 t of the box on, side by side, by load4 (vectors.py). Either all four are
              inside of x or none.
    else      the numbers t, t + threads, t + 2 threads, t + 3 threads: neighbours read neighbours.

    Number e of the box stands in its line e // length, at place e % length. `length` divides `threads`.
    """
    t, rows, columns = u32(cuda.threadIdx.x), u32(x.shape[0]), u32(x.shape[1])
    if by_four:
        four = cuda.local.array(4, f32)
        i, j = t * FOUR // length, t * FOUR % length
        four[0], four[1], four[2], four[3] = ZERO, ZERO, ZERO, ZERO
        if top + i < rows and left + j < columns:
            four[0], four[1], four[2], four[3] = load4(x, top + i, left + j)
        for n in range(u32(4)):
            if turn:
                tile[j + n, i] = four[n]
            else:
                tile[i, j + n] = four[n]
    else:
        i, j = t // length, t % length
        for _ in range(4):
            number = x[top + i, left + j] if top + i < rows and left + j < columns else ZERO
            if turn:
                tile[j, i] = number
            else:
                tile[i, j] = number
            i += threads // length


@inline
def place(first, i, across):
    """Of the rows of a tile, or its columns, a thread has the four from `first` on, the four that stand
    4 across further, and so on: this is the i-th. So `across` threads that are neighbours read 16 bytes each,
    side by side, and no two of them from one bank."""
    return first + i // FOUR * FOUR * across + i % FOUR


@inline
def add_outer_product(a_tile, b_tile, k, row, column, across, a, b, sums):
    """sums[i, j] += a_tile[k, place(row, i, across)] * b_tile[k, place(column, j, across)] for all i and j.

    sums (each, each), a and b (each,) are local arrays of this thread: registers. First a and b get its
    numbers of the tiles' lines k: so each is read from shared memory once. Then each of a meets each of b.
    """
    each = u32(len(a))
    for i in range(each):
        a[i] = a_tile[k, place(row, i, across)]
        b[i] = b_tile[k, place(column, i, across)]
    for i in range(each):
        for j in range(each):
            sums[i, j] += a[i] * b[j]


@inline
def gelu(x):  # -> gelu(x), its slope: lesson 13's
    tanh = math.tanh(GELU_K * x * (ONE + GELU_A * x * x))
    return (HALF * x * (ONE + tanh),
            HALF * (ONE + tanh) + HALF * x * (ONE - tanh * tanh) * GELU_K * (ONE + GELU_3A * x * x))


def registers(across, each):  # -> kernel
    """Version 3 for blocks of across * across threads that have each * each numbers of the result: together
    `side` rows and columns. The tiles are so `deep` that every thread copies four numbers of a and of b.

    A line of a tile has four more than `side`. Else all lines would begin in the same bank, and threads that
    write along k would have to wait for each other.
    """
    side, deep, threads = across * each, 4 * across // each, across * across
    line, width = side + 4, u32(across)

    @kernel(F2, F2, F2, F2, F2, F2, U)
    def matmul_registers(a, b, out, bias, residual, slope, how):
        a_tile = cuda.shared.array((deep, line), f32)
        b_tile = cuda.shared.array((deep, line), f32)
        rows = cuda.shared.array((across, side), f32)
        a_line = cuda.local.array(each, f32)
        b_line = cuda.local.array(each, f32)
        sums = cuda.local.array((each, each), f32)
        t, m0, n0 = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x) * u32(side), u32(cuda.blockIdx.y) * u32(side)
        M, N, K = u32(out.shape[0]), u32(out.shape[1]), u32(b.shape[1] if how & B_TURNED else b.shape[0])
        row, column = t // width * FOUR, t % width * FOUR  # the first of the thread's, in the tile
        for i in range(each):
            for j in range(each):
                sums[i, j] = ZERO
        for k0 in range(u32(0), K, u32(deep)):
            if how & A_TURNED:
                fill_tile(a, k0, m0, u32(side), u32(threads), False, how & A_WIDE, a_tile)
            else:
                fill_tile(a, m0, k0, u32(deep), u32(threads), True, how & A_WIDE, a_tile)
            if how & B_TURNED:
                fill_tile(b, n0, k0, u32(deep), u32(threads), True, how & B_WIDE, b_tile)
            else:
                fill_tile(b, k0, n0, u32(side), u32(threads), False, how & B_WIDE, b_tile)
            cuda.syncthreads()
            for k in range(u32(0), u32(deep), FOUR):  # four at a time: fewer counts, tests and jumps
                add_outer_product(a_tile, b_tile, k, row, column, width, a_line, b_line, sums)
                add_outer_product(a_tile, b_tile, k + u32(1), row, column, width, a_line, b_line, sums)
                add_outer_product(a_tile, b_tile, k + u32(2), row, column, width, a_line, b_line, sums)
                add_outer_product(a_tile, b_tile, k + u32(3), row, column, width, a_line, b_line, sums)
            cuda.syncthreads()
        for r in range(u32(each)):  # all threads' r-th rows, through `rows`: neighbours write neighbours
            for j in range(u32(each)):
                rows[t // width, place(column, j, width)] = sums[0, j]
            for i in range(each - 1):  # the next moves up: registers have no index, so no sums[r, j]
                for j in range(each):
                    sums[i, j] = sums[i + 1, j]
            cuda.syncthreads()
            for e in range(t, u32(across * side), u32(threads)):
                m, n = m0 + place(e // u32(side) * FOUR, r, width), n0 + e % u32(side)
                if m < M and n < N:
                    value = rows[e // u32(side), e % u32(side)]
                    if how & BIAS:
                        value += bias[u32(0), n]
                    if how & RESIDUAL:
                        value += residual[m, n]
                    if how & GELU:
                        value, slope[m, n] = gelu(value)
                    out[m, n] = value
            cuda.syncthreads()

    matmul_registers.side, matmul_registers.threads = side, threads
    return matmul_registers


SIZES = [registers(16, 8), registers(16, 4), registers(8, 4)]  # tiles of 128, 64, 32 rows and columns
