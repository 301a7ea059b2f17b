"""Worker: how fast two threads read memory. One step sums a buffer that no cache holds.

    python -m tests.benchmarks.bandwidth
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kernels.cpu.compiled import f32, kernel
from tests.benchmarks.configs import THREADS
from tests.benchmarks.race import serve

BYTES = 1 << 28


@kernel
def total(x):
    """Four stretches side by side: more reads are under way at a time than with one."""
    n, result = x.size // 4, f32(0)
    a, b, c, d = x[:n], x[n:2 * n], x[2 * n:3 * n], x[3 * n:4 * n]
    for i in range(n):
        result += (a[i] + b[i]) + (c[i] + d[i])
    return result


def main():
    shares, pool = np.split(np.ones(BYTES // 4, f32), THREADS), ThreadPoolExecutor(THREADS)
    serve(lambda i: list(pool.map(total, shares)))


if __name__ == "__main__":
    main()
