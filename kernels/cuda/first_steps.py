"""The first kernels to write: how threads share work, memory and results. Lesson 26 begins here.

copy                one thread takes many elements    runs at the memory's own speed, the limit of all others
neighbour_average   shared memory and a barrier       what three threads need is read once
transpose_naive     a grid of two dimensions          neighbours read neighbours, and write a column apart
transpose_tiled     through shared memory             both sides in whole sectors
block_sums          a tree in shared memory           log2(THREADS) steps; total() repeats it to the end
multiply_add        registers alone                   no memory: the arithmetic's own speed

copy, average and transpose read n numbers and write n, 8 n bytes; block_sums reads n. The other files of this
room build on them. None is an operation of devices.LESSONS.
"""
from kernels.cuda.compiled import F1, F2, ONE, ZERO, F, U, blocks_for, cuda, f32, kernel, u32
from kernels.cuda.memory import empty

THREADS = 128  # of a block
NEAR = THREADS + 2  # elements that they average
TILE, ROWS = 32, 8  # a block transposes 32 x 32 numbers with 32 x 8 threads: each has four
WIDE = TILE + 1  # a row of the tile: the last column is not used


@kernel(F1, F1)
def copy(x, out):  # (n,) -> (n,)
    """out = x, with any number of blocks and threads. Of s threads in the grid the i-th takes the elements i,
    i + s, i + 2 s, ... (a grid-stride loop): so neighbours always touch neighbours, and few blocks do for a
    long array. cuda.grid(1) is i, cuda.gridsize(1) is s."""
    first, stride = u32(cuda.grid(1)), u32(cuda.gridsize(1))
    for i in range(first, u32(x.size), stride):
        out[i] = x[i]


@kernel(F1, F1)
def neighbour_average(x, out):  # (n,) -> (n,)
    """out[i] = (x[i - 1] + x[i] + x[i + 1]) / 3; outside of x there are zeros. Launch: blocks_for(n, THREADS)
    blocks of THREADS threads; thread t of a block is for element first + t.

    The block copies what it needs into shared memory, near[j] = x[first + j - 1] for j = 0 .. NEAR - 1. It
    needs two more than it has threads: thread t copies j = t, t + THREADS, ... below NEAR. So a number of x
    is read by one thread of the block, not by three. Nobody may read `near` before all have written:
    cuda.syncthreads(). Unsigned numbers have no -1: compare before you subtract."""
    near = cuda.shared.array(NEAR, F)
    t, first, n = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x) * u32(THREADS), u32(x.size)
    for j in range(t, u32(NEAR), u32(THREADS)):
        near[j] = x[first + j - u32(1)] if u32(0) < first + j <= n else ZERO
    cuda.syncthreads()
    if first + t < n:
        out[first + t] = (near[t] + near[t + u32(1)] + near[t + u32(2)]) / f32(3)


@kernel(F2, F2)
def transpose_naive(x, out):  # (R, C) -> (C, R)
    """out[c, r] = x[r, c]. Launch: over_tiles(x), a block for each TILE x TILE numbers of x, which begin at
    row `top` and column `left`. Thread (tx, ty) takes column left + tx of the rows top + ty, top + ty + ROWS,
    ... below top + TILE, as far as they are inside of x. A warp is 32 neighbours in tx: it reads 128 bytes in
    a row, and writes a column, 32 sectors."""
    tx, ty, R, C = u32(cuda.threadIdx.x), u32(cuda.threadIdx.y), u32(x.shape[0]), u32(x.shape[1])
    top, left = u32(cuda.blockIdx.y) * u32(TILE), u32(cuda.blockIdx.x) * u32(TILE)
    for i in range(ty, u32(TILE), u32(ROWS)):
        if top + i < R and left + tx < C:
            out[left + tx, top + i] = x[top + i, left + tx]


@kernel(F2, F2)
def transpose_tiled(x, out):  # (R, C) -> (C, R)
    """out[c, r] = x[r, c]. Launch and threads as in transpose_naive, but what is read goes into shared
    memory: tile[i, tx] = x[top + i, left + tx], i = ty, ty + ROWS, ... After a barrier the same thread writes
    for each i out[left + i, top + tx] = tile[tx, i]: a row of out, so that neighbours in tx write neighbours.
    The column is now in the tile, where there are no sectors but 32 banks, and a row of WIDE = 33 spreads a
    column over all of them. At the edge of x, `left + i` is compared with C, and `top + tx` with R."""
    tile = cuda.shared.array((TILE, WIDE), F)
    tx, ty, R, C = u32(cuda.threadIdx.x), u32(cuda.threadIdx.y), u32(x.shape[0]), u32(x.shape[1])
    top, left = u32(cuda.blockIdx.y) * u32(TILE), u32(cuda.blockIdx.x) * u32(TILE)
    for i in range(ty, u32(TILE), u32(ROWS)):
        if top + i < R and left + tx < C:
            tile[i, tx] = x[top + i, left + tx]
    cuda.syncthreads()
    for i in range(ty, u32(TILE), u32(ROWS)):
        if left + i < C and top + tx < R:
            out[left + i, top + tx] = tile[tx, i]


@kernel(F1, F1)
def block_sums(x, out):  # (n,) -> (blocks,)
    """out[b] = the sum of THREADS elements of x, from b THREADS on; the last block has what is left. Launch:
    blocks_for(n, THREADS) blocks of THREADS threads.

    Each thread puts its element i into shared memory, or ZERO if there is none. Then a tree: with step =
    THREADS / 2, then half of that, down to 1, the threads t < step add part[t + step] to part[t]. Before each
    step a barrier, for it reads what another thread has written; all threads come to it, also those with
    nothing to add. At the end thread 0 writes part[0]. The order is always the same: so are the digits."""
    part = cuda.shared.array(THREADS, F)
    t, i, n = u32(cuda.threadIdx.x), u32(cuda.grid(1)), u32(x.size)
    part[t] = x[i] if i < n else ZERO
    step = u32(THREADS // 2)
    while step > u32(0):
        cuda.syncthreads()
        if t < step:
            part[t] += part[t + step]
        step >>= u32(1)
    if t == u32(0):
        out[cuda.blockIdx.x] = part[0]


@kernel(F1, U)
def multiply_add(out, rounds):  # (threads,)
    """Eight multiply-adds in each round of each thread, and none waits for another: 16 FLOPs, no memory."""
    numbers = cuda.local.array(8, F)
    for j in range(8):
        numbers[j] = f32(cuda.threadIdx.x) + f32(j)
    for _ in range(rounds):
        for j in range(8):
            numbers[j] = numbers[j] * f32(0.5) + ONE
    total = ZERO
    for j in range(8):
        total += numbers[j]
    out[cuda.grid(1)] = total


def over_tiles(x):  # (R, C) -> blocks, threads. R is at most 65,535 TILE
    R, C = x.shape
    return (blocks_for(C, TILE), blocks_for(R, TILE)), (TILE, ROWS)


def total(x):  # Array (n,) -> Array (1,)
    """The sum, by block_sums until one number is left. float(total(x)) waits for it."""
    while x.size > 1:
        sums = empty(blocks_for(x.size, THREADS))
        block_sums[sums.size, THREADS](x, sums)
        x = sums
    return x
