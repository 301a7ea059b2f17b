"""The ladders of lesson 26: versions of one computation, checked, then timed.

A ladder is a list of versions, each a function that launches kernels and returns the result. The lesson shows
them: on a GPU by seconds(), without one by what gpu_count.py counts; tests/benchmarks/gpu.py compares the
last one of each with PyTorch. Sizes are arguments: thousands on a GPU, dozens in the simulator.

least bytes: what must move between memory and processors if everything is read and written once.
"""
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kernels.cuda import attention, first_steps, layernorm, matmul, optimizers
from kernels.cuda.compiled import blocks_for, cuda, f32, stream
from kernels.cuda.memory import empty, on_gpu
from lessons.l26_gpu import roofline

CLOSE = 1e-4  # the largest error, relative to the largest number: a wrong kernel is off by far more


class Ladder(NamedTuple):
    title: str
    flops: int
    moved: int  # the least bytes
    versions: dict  # name -> run() -> Array
    error: Callable  # result -> its largest error, relative to the largest number


def normal(*shape):
    return np.random.default_rng(26).standard_normal(shape, f32)


def off(got, want):
    return float(np.abs(got - want).max() / np.abs(want).max())


def transposes(R, C):
    x, out = on_gpu(normal(R, C)), empty((C, R))

    def run(kernel):
        kernel[first_steps.over_tiles(x)](x, out)
        return out

    return Ladder(f"transpose {R} x {C}", 0, 8 * R * C, {
        "naive": lambda: run(first_steps.transpose_naive),
        "tiles": lambda: run(first_steps.transpose_tiled)}, lambda out: off(out.numpy(), normal(R, C).T))


def layernorms(N, C):
    x, weight, bias = (on_gpu(a) for a in (normal(N, C), normal(C) + 1, normal(C)))

    def error(out):
        rows = normal(N, C).astype(float)
        want = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
        return off(out.numpy(), want * (normal(C) + 1) + normal(C))

    return Ladder(f"layer norm {N} x {C}", 8 * N * C, 4 * (2 * N * C + 2 * C + 2 * N), {
        "thread a row": lambda: layernorm.layernorm_forward_v1(x, weight, bias)[0],
        "warp a row": lambda: layernorm.layernorm_forward_v2(x, weight, bias)[0],
        "in registers": lambda: layernorm.layernorm_forward(x, weight, bias)[0]}, error)


def square_sums(n):
    g = on_gpu(normal(n))
    want = (normal(n).astype(float)**2).sum()
    return Ladder(f"sum of {n:,} squares", 2 * n, 4 * n, {
        "atomic": lambda: optimizers.square_atomic(g),
        "tree": lambda: optimizers.square_tree(g),
        "warps": lambda: optimizers.square_warps(g)}, lambda total: abs(float(total) / want - 1))


def products(M, N, K):
    A, B = normal(M, K), normal(K, N)
    a, b, out = on_gpu(A), on_gpu(B), empty((M, N))

    def run(function, *first):
        function(*first, a, b, out)
        return out

    some = slice(0, M, max(1, M // 64))  # rows to check: all of 4096 would take the host longer than the GPU
    return Ladder(f"matrix product {M} x {K} x {N}", 2 * M * N * K, 4 * (M * K + K * N + M * N), {
        "naive": lambda: run(matmul.matmul_v1),
        f"tiles of {matmul.TILE}": lambda: run(matmul.matmul_v2),
        **{f"registers, {size.side}": lambda size=size: run(matmul.launch, size)
           for size in matmul.SIZES[::-1]}},
        lambda out: off(out.numpy()[some], A[some].astype(float) @ B.astype(float)))


def attentions(B, H, T, D):
    """Causal, forward. What is above the diagonal is not counted as an operation."""
    C, x = H * D, normal(B, T, 3 * H * D)
    qkv, keys = on_gpu(x), attention.everything(B)

    def error(out):
        q, k, v = (x[0, :, i * C:i * C + D].astype(float) for i in range(3))  # the first row's first head
        weights = np.exp(q @ k.T / math.sqrt(D)) * np.tri(T)
        return off(out.numpy()[0, :, :D], weights / weights.sum(-1, keepdims=True) @ v)

    def run(forward):
        return forward(qkv, qkv, C, H, True, keys)[0]

    title = f"causal attention, {B} x {H} heads, {T} positions of {D}"
    return Ladder(title, 2 * B * H * T * (T + 1) * D, 16 * B * T * C, {
        "materialised": lambda: run(attention.materialised_forward),
        "flash, a thread a row": lambda: run(attention.flash_row_forward),
        "flash, tiles": lambda: run(attention.flash_forward)}, error)


def check(ladder, name):
    """Run one version. SystemExit if its result is wrong: what is wrong is neither counted nor timed."""
    error = ladder.error(ladder.versions[name]())
    if not error <= CLOSE:
        raise SystemExit(f"{ladder.title}, {name}: the result is off by {error:.0e} of its largest number")


# on a GPU


def seconds(run, rounds=5, each=0.02):
    """Of one run: the median of rounds, each of as many as take `each` seconds, with one wait at the end."""
    run()
    stream().synchronize()

    def timed(n):
        start = time.perf_counter()
        for _ in range(n):
            run()
        stream().synchronize()
        return (time.perf_counter() - start) / n

    n = max(1, round(each / timed(1)))
    return statistics.median(timed(n) for _ in range(rounds))


def copy_bandwidth(n=2**26):
    """Bytes a second of the kernel `copy`, 256 MB there and 256 MB back: more than any cache holds. It stands
    for the memory's peak, of which the data sheet promises somewhat more."""
    x, out = on_gpu(np.zeros(n)), empty(n)
    return 8 * n / seconds(lambda: first_steps.copy[blocks_for(n, 1024), 256](x, out))


def arithmetic_peak(blocks=2**14, rounds=512):
    """FLOP a second of the kernel `multiply_add`, which only computes, in registers."""
    out = empty(256 * blocks)
    return 16 * rounds * out.size / seconds(lambda: first_steps.multiply_add[blocks, 256](out, rounds))


def gpu_name():
    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else name


class Timing(NamedTuple):
    seconds: float
    rate: float  # FLOP/s if arithmetic bounds it, bytes/s if memory does: of the least that must be done
    unit: str
    share: float  # of the peak of that


def timing(ladder, name, peak, bandwidth):
    """Check one version, then time it."""
    check(ladder, name)
    took, bound = seconds(ladder.versions[name]), roofline(ladder.flops, ladder.moved, peak, bandwidth)[1]
    amount, limit, unit = (ladder.flops, peak, "FLOP/s") if bound == "compute" else \
        (ladder.moved, bandwidth, "B/s")
    return Timing(took, amount / took, unit, amount / took / limit)


def climb(ladders, peak, bandwidth):  # -> [[Timing of each version] of each ladder]
    """Print how each version does, as a share of the limit that holds for it."""
    timings = []
    for ladder in ladders:
        print(ladder.title)
        timings.append([timing(ladder, name, peak, bandwidth) for name in ladder.versions])
        for name, t in zip(ladder.versions, timings[-1]):
            print(f"  {name:22}{1e3 * t.seconds:10.3f} ms {t.rate / 1e9:10,.0f} G{t.unit:7}{t.share:5.0%}")
    return timings


def climb_all():  # -> figure: what the limits allow, what was reached
    from matplotlib.figure import Figure
    peak, bandwidth = arithmetic_peak(), copy_bandwidth()
    print(f"{gpu_name()}. Limits, measured: {bandwidth / 1e9:,.0f} GB/s (the kernel copy), "
          f"{peak / 1e12:.1f} TFLOP/s (multiply_add, in registers)")
    ladders = [transposes(8192, 8192), layernorms(32768, 768), square_sums(2**26), products(4096, 4096, 4096),
               attentions(8, 12, 1024, 64)]
    timings = climb(ladders, peak, bandwidth)
    figure = Figure(figsize=(9, 6), layout="constrained")
    panel, intensity = figure.subplots(), np.geomspace(0.1, 1000)
    panel.loglog(intensity, [roofline(x, 1, peak, bandwidth)[0] for x in intensity], color="black")
    for ladder, rungs in zip(ladders[1:], timings[1:]):  # the transpose has no FLOPs
        reached = [ladder.flops / t.seconds for t in rungs]
        panel.plot([ladder.flops / ladder.moved] * len(rungs), reached, "o-", label=ladder.title)
    panel.set(xlabel="FLOPs for each byte that must move", ylabel="FLOP/s")
    panel.legend()
    return figure
