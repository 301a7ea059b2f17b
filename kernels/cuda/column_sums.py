"""The sums over the rows of a matrix, (N, K) -> (K,): the gradient of what was added to every row, a bias.

version 1   a thread a column. Neighbours read neighbours, so every byte that memory delivers is used. But 768
            columns are 24 warps, and an H100 needs some thousands of them to keep its memory busy.
version 2   a block a tile of STRIP rows and 32 columns: its 16 warps take every 16th row each, and put their
            sums into shared memory. What comes out is a matrix again, of a row a strip, and it is summed in
            the same way. N K numbers are read once, and N K / STRIP more are written and read.

Float atomics would spare version 2 its second launch, but they add in the order of arrival: the last digits
would be others in every run. Here all is added in one order. Version 2 is used.
"""
from kernels.cuda.compiled import F1, F2, WARP, ZERO, F, blocks_for, cuda, inline, kernel, u32
from kernels.cuda.memory import empty

THREADS = 128  # of version 1
ROWS, STRIP = 16, 512  # warps of a block, rows that it adds


@kernel(F2, F1)
def sum_columns_v1(x, sums):  # (N, K) -> (K,)
    """Launch: K threads, in blocks of THREADS."""
    k = u32(cuda.grid(1))
    N, K = u32(x.shape[0]), u32(x.shape[1])
    if k < K:
        total = ZERO
        for n in range(N):
            total += x[n, k]
        sums[k] = total


@inline
def sum_over_warps(total):  # float32 -> float32
    """The sum of `total` over a block's ROWS threads of one column, in each of them. The block is (32, ROWS)
    threads, and all of them come here, once."""
    parts = cuda.shared.array((ROWS, 32), F)
    lane, warp = u32(cuda.threadIdx.x), u32(cuda.threadIdx.y)
    parts[warp, lane] = total
    cuda.syncthreads()
    total = ZERO
    for i in range(u32(ROWS)):
        total += parts[i, lane]
    return total


@kernel(F2, F2)
def sum_columns_v2(x, sums):  # (N, K) -> (S, K)
    """Write sums[s, k] = the sum of x[n, k] over the STRIP rows from s * STRIP on, or over those that are
    there. x is only read.

    Launch: a grid of (S, K / 32 rounded up) blocks, each of (32, ROWS) threads. Block (s, j) has strip s and
    the columns from 32 j on. Its thread (lane, warp) adds column 32 j + lane of the rows `warp`, warp + ROWS,
    ... of the strip; then sum_over_warps (above) adds those of all warps, and one of the threads of a column
    writes. All threads must call it, also those of columns that the matrix does not have.
    """
    strip, k = u32(cuda.blockIdx.x), u32(cuda.blockIdx.y * WARP + cuda.threadIdx.x)
    warp = u32(cuda.threadIdx.y)
    N, K = u32(x.shape[0]), u32(x.shape[1])
    first = u32(strip * STRIP)
    total = ZERO
    if k < K:
        for n in range(first + warp, min(first + STRIP, N), ROWS):
            total += x[n, k]
    total = sum_over_warps(total)
    if k < K and warp == 0:
        sums[strip, k] = total


def column_sums(x, sums):  # Arrays (N, K) -> (K,)
    """Write sums. What was there before is gone."""
    add_strips(sum_columns_v2, x, sums)


def column_sums_v1(x, sums):
    sum_columns_v1[blocks_for(x.shape[1], THREADS), THREADS](x, sums)


def add_strips(first, x, sums, *others):  # a kernel, Arrays (N, K) -> (K,)
    """The kernel `first` adds the rows of each strip, and column_sums the sums of the strips."""
    N, K = x.shape
    strips = blocks_for(N, STRIP)
    partial = empty((strips, K)) if strips > 1 else sums.reshape(1, K)
    first[(strips, blocks_for(K, 32)), (32, ROWS)](x, *others, partial)
    if strips > 1:
        column_sums(partial, sums)
