"""Worker: the limit. Only the products with weight matrices of a training step.

    python -m tests.benchmarks.matmuls S

For every matrix the forward product and the backward's two; each of two threads has half of the batch and a
BLAS of one thread. Nothing is allocated, nothing else is computed: no training step with this BLAS can be
faster.
"""
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from tests.benchmarks.configs import CONFIGS, THREADS
from tests.benchmarks.race import serve


def make_layers(config, rows, rng):
    """[(x, weight, out, dout, dx, dweight)] for `rows` positions."""
    C = config.n_embd
    block = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)]
    layers = []
    for n_in, n_out in block * config.n_layer + [(C, config.vocab_size)]:
        x, weight, out = (rows, n_in), (n_in, n_out), (rows, n_out)
        layers.append([rng.standard_normal(shape, np.float32) for shape in (x, weight, out, out, x, weight)])
    return layers


def multiply(layers):
    for x, weight, out, _, _, _ in layers:
        np.matmul(x, weight, out=out)
    for x, weight, _, dout, dx, dweight in reversed(layers):
        np.matmul(x.T, dout, out=dweight)
        np.matmul(dout, weight.T, out=dx)


def main(key):
    threadpool_limits(1, "blas")
    config, rows = CONFIGS[key]
    rng = np.random.default_rng(0)
    shares = [make_layers(config, rows * config.block_size // THREADS, rng) for _ in range(THREADS)]
    pool = ThreadPoolExecutor(THREADS)
    serve(lambda i: list(pool.map(multiply, shares)))


if __name__ == "__main__":
    main(*sys.argv[1:])
