"""Worker: lesson 11's LSTM on the CPU's kernels, a thread for each half of the rows.

    python -m tests.benchmarks.recurrent_ours
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from kernels.cpu.memory import keep_freed_memory
from lessons import devices
from lessons.l11_recurrent import lstm_backward, lstm_forward
from tests.benchmarks.race import serve
from tests.benchmarks.recurrent import HIDDEN, LAYERS, ROWS, THREADS, arrays


def main():
    threadpool_limits(1, "blas")
    keep_freed_memory()
    ops, given = devices.module("cpu", "recurrent"), arrays()
    names = [[f"{n}.{part}" for part in ("w_x", "w_h", "bias")] for n in range(LAYERS)]
    halves = [[np.ascontiguousarray(np.split(given[name], THREADS, axis=1)[i]) for name in ("x", "dhs")]
              for i in range(THREADS)]
    weights = [name for layer in names for name in layer]
    found = [{name: np.empty_like(given[name]) for name in weights} for _ in range(THREADS)]
    start = np.zeros((2, ROWS // THREADS, HIDDEN), np.float32)

    def half(i):
        (h, dx), caches = halves[i], []
        for layer in names:
            h, _, cache = lstm_forward(ops, h, start, *(given[name] for name in layer))
            caches.append(cache)
        for layer, cache in zip(names[::-1], caches[::-1]):
            dx, _ = lstm_backward(ops, dx, cache, *(found[i][name] for name in layer))
        return dx

    pool = ThreadPoolExecutor(THREADS)

    def step(i):
        """The gradients of the threads' rows are added up, as one does before an update."""
        dx = list(pool.map(half, range(THREADS)))
        for others in found[1:]:
            for name, gradient in found[0].items():
                gradient += others[name]
        return dx

    def check(path):
        dx = step(0)
        np.savez(path, x=np.concatenate(dx, axis=1), **found[0])

    serve(step, check)


if __name__ == "__main__":
    main()
