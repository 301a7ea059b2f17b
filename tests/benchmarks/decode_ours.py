"""Worker: lesson 19's reading and writing, one text.

    python -m tests.benchmarks.decode_ours float32|int8|composed|whole|pieces M

float32 and int8 write greedily with ops.decode, at every eighth position of a block; composed does it with
gpt_forward on the CPU's kernels, operation by operation. whole and pieces read a prompt that fills the block:
at once with a BLAS of two threads, or in two pieces, each with a BLAS of one.
"""
import sys

import numpy as np
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons.decoding import cached_forward
from tests.benchmarks import configs
from tests.benchmarks.race import serve


def positions(config):
    """Where one step writes: as many tokens stand before these, on average, as when a block is written."""
    return range(3, config.block_size, 8)


def main(kind, key):
    config, _ = configs.CONFIGS[key]
    ops, p = devices.ops("cpu"), configs.start_parameters(config)
    text = configs.batches(config, 1, 1)[0, 0, 0]
    kv = np.zeros((config.n_layer, 1, config.block_size, 2 * config.n_embd), np.float32)
    threadpool_limits(configs.THREADS if kind == "whole" else 1, "blas")

    if kind in ("whole", "pieces"):
        def read(i):
            threads = configs.THREADS if kind == "pieces" else 1
            return cached_forward(ops, p, text[None], 0, kv, threads)[0, -1]

        serve(read, lambda path: np.save(path, read(0)[None]))
        return

    weights = None if kind == "composed" else ops.decode_weights(p, int8=kind == "int8")

    def token_logits(token, position):
        if kind == "composed":
            return cached_forward(ops, p, np.array([[token]]), position, kv)[0, 0]
        return ops.decode(weights, token, position, kv[:, 0], configs.THREADS)

    def generate(i):
        token = int(text[0])
        for position in positions(config):
            token = int(token_logits(token, position).argmax())

    serve(generate, lambda path: np.save(path, [token_logits(int(t), i) for i, t in enumerate(text)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
