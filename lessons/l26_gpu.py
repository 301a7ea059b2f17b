"""Lesson 26: the GPU. What does a kernel wait for, and why must neighbours read neighbours?

A kernel is a function that thousands of threads run, each with its own index. It is written once, for one:

    thread   a row of registers and an index         warp     32 threads, one instruction at a time for all
    block    up to 1024 threads on one processor     grid     all blocks of a launch, in no promised order

Threads of a block share 48 KB of fast memory and wait for each other at a barrier. Threads of different
blocks share global memory only: large, and far away. A kernel is as fast as what it waits for, and that can
be counted before it runs: the sectors that a warp touches, the turns at shared memory's banks, the warps that
fit on a processor, the bytes for each operation. This file counts. What is counted lies in kernels/cuda;
begin with first_steps.py, then layernorm.py, matmul.py, attention.py, each a ladder of versions.

M, N, K: out (M, N) = a (M, K) b (K, N). Numbers are float32, 4 bytes. "Guide" is NVIDIA's CUDA C++
Programming Guide. `make lesson 26` draws who reads what, and climbs the ladders: on a GPU with a clock,
without one by counting, thread by thread.
"""
from pathlib import Path

import numpy as np

LANES, WORD = 32, 4  # threads of a warp; bytes of a number
SECTOR, BANKS = 32, 32  # bytes that global memory sends at once; banks of shared memory
# One processor (SM) of an H100: Guide, "Technical Specifications per Compute Capability", 9.0
WARPS, BLOCKS, REGISTERS, SHARED = 64, 32, 65536, 228 * 1024
PEAK, BANDWIDTH = 67e12, 3.35e12  # FLOP/s in float32 and bytes/s of an H100 SXM: its data sheet


def sectors(addresses):  # (n,) int, bytes: what the threads of one warp ask for -> int
    """How many sectors of 32 bytes are sent for it. Global memory comes in no smaller pieces, and threads
    that ask for the same sector share it (Guide, "Coalesced Access to Global Memory" in the Best Practices
    Guide). Of 32 neighbours 4 bytes apart all 128 bytes sent are used; of 32 that are far apart 4 in each 32:

    >>> sectors(4 * np.arange(32)), sectors(4096 * np.arange(32)), sectors(np.full(32, 64))
    (4, 32, 1)
    """
    return len(np.unique(np.asarray(addresses) // SECTOR))


def bank_turns(addresses):  # (n,) int, bytes in shared memory, each a multiple of 4 -> int
    """In how many turns shared memory answers. Its words of 4 bytes lie in 32 banks, word w in bank w % 32,
    and a bank gives one word in a turn. Threads that ask for the same word are answered together; two
    different words of one bank are a conflict: they take two turns (Guide, "Shared Memory": banks). A column
    of a tile 32 wide lies in one bank. With a 33rd column that nobody uses, in all of them:

    >>> bank_turns(4 * 32 * np.arange(32)), bank_turns(4 * 33 * np.arange(32)), bank_turns(np.full(32, 64))
    (32, 1, 1)
    """
    words = np.unique(np.asarray(addresses) // WORD)
    return int(np.bincount(words % BANKS).max())


def occupancy(registers, shared, threads):  # of a thread; bytes of a block; of a block -> int, str
    """How many warps are at one processor at a time, and what keeps more away. While one warp waits for
    memory, hundreds of cycles, another computes: too few, and all wait. The processor takes whole blocks, as
    many as

        threads     WARPS / w                                          w = threads / 32, rounded up
        blocks      BLOCKS
        registers   4 (REGISTERS / 4 / (32 registers, up to a multiple of 256)) / w: it has four parts
        shared      SHARED / (shared + 1024, up to a multiple of 128): each block costs 1 KB more

    allow, each / rounded down. What limits is the first of the smallest, in this order; 0 warps: no block
    fits. The formulas are those of NVIDIA's cuda_occupancy.h. The 8 x 8 numbers of a thread in a
    register-tiled matrix product cost registers:

    >>> occupancy(registers=32, shared=0, threads=256), occupancy(registers=96, shared=8192, threads=256)
    ((64, 'threads'), (16, 'registers'))
    """
    warps, up = -(-threads // LANES), lambda n, unit: -(-n // unit) * unit
    blocks = {"threads": WARPS // warps, "blocks": BLOCKS,
              "registers": 4 * (REGISTERS // 4 // up(LANES * registers, 256)) // warps,
              "shared": SHARED // up(shared + 1024, 128)}
    limit = min(blocks, key=blocks.get)
    return blocks[limit] * warps, limit


def matmul_bytes(M, N, K, rows, columns):  # -> int
    """What a product moves between global memory and processors, if a block computes a tile of `rows` x
    `columns` of out. For each of its numbers a block needs a row of a and a column of b; it reads those of
    the whole tile once, of what lies inside, and writes out. rows = columns = 1 is the naive product. The
    smaller the tile, the more often the same number is read:

        a is read as often as there are tiles side by side, b as often as tiles one below another

    With square tiles and a long K that is side / 4 FLOPs for each byte that is read.

    >>> matmul_bytes(4096, 4096, 4096, 1, 1) // 10**9, matmul_bytes(4096, 4096, 4096, 128, 128) // 10**9
    (549, 4)
    """
    return WORD * (M * K * -(-N // columns) + K * N * -(-M // rows) + M * N)


def roofline(flops, moved, peak, bandwidth):  # FLOPs, bytes, FLOP/s, bytes/s -> FLOP/s, str
    """The most that can be reached, and by what it is bound (Williams et al. 2009):

        min(peak, flops / moved * bandwidth)        "compute" or "memory"; "compute" where both are equal

    flops / moved, FLOPs for each byte, is the kernel's intensity. An H100 needs 20 of them to be busy:

    >>> roofline(2 * 10**9, 10**9, PEAK, BANDWIDTH), roofline(32 * 10**9, 10**9, PEAK, BANDWIDTH)
    ((6700000000000.0, 'memory'), (67000000000000.0, 'compute'))
    """
    reached = flops / moved * bandwidth
    return (peak, "compute") if reached >= peak else (reached, "memory")


def combine(a, b):  # (2, ...), (2, ...) -> (2, ...)
    """Two parts of a softmax's row become one. A part is m = max x, s = sum of exp(x - m) over its numbers x:

        m = max(m_a, m_b)        s = s_a exp(m_a - m) + s_b exp(m_b - m)

    (Milakov & Gimelshein 2018, section 3.1). It does not matter how a row is cut, nor in which order its
    parts are joined: so 32 threads may each take a part, and flash attention a tile after another. Nothing
    at all is m = the lowest finite number, s = 0.

    >>> combine(np.array([3.0, 1.0]), np.array([5.0, 1.0])).round(4)
    array([5.    , 1.1353])
    """
    m = np.maximum(a[0], b[0])
    return np.stack([m, a[1] * np.exp(a[0] - m) + b[1] * np.exp(b[0] - m)])


def butterfly(operation, values):  # (..., n), n a power of 2 -> (..., n)
    """All n threads of a warp reduce their values to one in log2(n) steps, and each of them gets it. In a
    step thread i passes its value to thread i ^ d and joins operation(its own, the other's); d = n / 2, ...,
    2, 1. A loop of one thread would take n - 1. (Guide, "Warp Shuffle Functions": __shfl_xor_sync.)
    operation(a, b) takes and returns arrays like values, whose last axis is the threads: np.add or combine.

    >>> butterfly(np.add, np.array([1, 20, 300, 4000]))
    array([4321, 4321, 4321, 4321])
    """
    threads, distance = np.arange(values.shape[-1]), values.shape[-1] // 2
    while distance:
        values = operation(values, values[..., threads ^ distance])
        distance //= 2
    return values


def draw(requests, arrays, panels, version):
    """A panel for each array (its name, is it written?): thread by thread the addresses that the first warp
    asks for, the first time in black, later ones lighter."""
    for (name, writes), panel in zip(arrays, panels):
        times = [asked for key, asked in requests.items() if key[1:5] == (name, writes, (0, 0, 0), 0)]
        for i, addresses in reversed(list(enumerate(times))):
            panel.plot(addresses, "o", markersize=3, color=str(0.8 * i / len(times)))
        most = max(map(sectors, times))
        does = "writes" if writes else "reads"
        panel.set_title(f"{version}: {does} {name}, {len(times)} times {most} sectors", fontsize=10)
        panel.set(xlabel="thread of the warp", ylabel="address, bytes")


def count_all(ladder, counted):
    """Who asks for what: two tables, and a picture of eight panels."""
    from matplotlib.figure import Figure
    figure, moved = Figure(figsize=(17, 7), layout="constrained"), [("x", False), ("out", True)]
    panels = figure.subplots(2, 4)
    print(f"{'':22} numbers  numbers    sectors      are     shared   times the\n"
          f"{'':22}    read  written     of 32 B   needed      turns  least bytes")
    for i, rungs in enumerate([ladder.transposes(64, 64), ladder.layernorms(32, 64)]):
        print(rungs.title)
        for j, name in enumerate(rungs.versions):
            c, requests = counted(rungs, name)
            print(f"  {name:20}{c.read:8,} {c.written:8,} {c.sectors:11,} {c.needed:8.0%} {c.turns:10,} "
                  f"{SECTOR * c.sectors / rungs.moved:12.1f}")
            if i == 0:
                draw(requests, moved, panels[0, 2 * j:], f"transpose, {name}")
    rungs, operands = ladder.products(32, 32, 16), [("a", False), ("b", False)]
    print(f"{rungs.title}\n{'':22} numbers    sectors     shared   FLOPs for a   an H100 allows\n"
          f"{'':22}    read       read      turns     byte read          TFLOP/s")
    for j, name in enumerate(list(rungs.versions)[:3]):
        c, requests = counted(rungs, name)
        reached, bound = roofline(rungs.flops, SECTOR * c.sectors_read, PEAK, BANDWIDTH)
        print(f"  {name:20}{c.read:8,} {c.sectors_read:10,} {c.turns:10,} "
              f"{rungs.flops / SECTOR / c.sectors_read:13.1f} {reached / 1e12:16.1f} ({bound})")
        if j < 2:
            draw(requests, operands, panels[1, 2 * j:], f"product, {name}")
    print("Tiles of 128 have 32 FLOPs for a byte read: compute. No cache is counted; naive gains most by it.")
    return figure


def main():
    logits = np.random.default_rng(26).normal(size=(32, LANES)) * 5  # each of 32 threads has 32
    parts = np.stack([logits.max(axis=0), np.exp(logits - logits.max(axis=0)).sum(axis=0)])
    largest, total = butterfly(combine, parts)[:, 0]  # thread 0's
    print(f"A warp's softmax: 32 parts become one in 5 steps, largest {largest:.3f}, sum {total:.3f}; "
          f"in one piece {np.exp(logits - logits.max()).sum():.3f}")
    from lessons import gpu_or_simulator
    why = gpu_or_simulator.choose()
    from lessons import gpu_ladder
    if why:
        print(f"Counted in the simulator, since {why}.")
        from lessons.gpu_count import counted
    figure = count_all(gpu_ladder, counted) if why else gpu_ladder.climb_all()
    Path("out/lessons").mkdir(parents=True, exist_ok=True)
    figure.savefig("out/lessons/gpu.png", dpi=80)
    print("picture: out/lessons/gpu.png")
