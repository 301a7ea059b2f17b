"""What a training step on a GPU needs beside the operations: its rows of the text, and a log.

windows   reads tokens and starts, writes X and Y: neighbouring threads take neighbouring tokens
note      one thread: writes a row of the log, and decides whether parameters may change

With both, all that the host sends in a step is where its rows begin, and the optimizer's rates, and nothing
comes back. The host reads the log when it has something to show.
"""
import math

import numpy as np

from kernels.cuda.compiled import F1, I1, I2, blocks_for, cuda, f32, kernel, u32

THREADS = 256


@kernel(I1, I1, I2, I2)
def windows(tokens, starts, X, Y):  # (n,), (B,) -> (B, T), (B, T)
    """X[b, t] = tokens[starts[b] + t] and Y[b, t] = tokens[starts[b] + t + 1]: a thread writes one element of
    each, or none, if it is beyond the last. Launched: blocks_for(B * T, THREADS) blocks of THREADS threads.

    Thread i, counted through all blocks, has row b = i // T and column t = i % T. So a warp reads 32 tokens
    that lie side by side (but where a row ends), and the GPU fetches them together.
    """
    i, T = u32(cuda.grid(1)), u32(X.shape[1])
    if i < u32(X.shape[0]) * T:
        b, t = i // T, i % T
        at = u32(starts[b]) + t
        X[b, t] = tokens[at]
        Y[b, t] = tokens[at + u32(1)]


@kernel(F1, F1, I1, F1, F1)
def note(loss, square, step, log, scale):
    """One thread. log (2n,) has n places for a pair; step[0] counts steps. Step s = step[0] writes loss[0]
    and the norm sqrt(square[0]) into place s % n: log[2 (s % n)] and log[2 (s % n) + 1]. step[0] grows by 1.

    A step whose loss or norm is not finite must change no parameter, nor must any after it, until the host
    has seen it: both numbers in the log become NaN, and scale[0], with which the optimizers do nothing. For
    that a step looks at what the one before has logged. x - x is 0 where x is finite and NaN where it is not.
    """
    n = u32(log.shape[0]) // u32(2)
    s = u32(step[0])
    here, before = s % n, (s + n - u32(1)) % n
    norm = math.sqrt(square[0])
    broken = (loss[0] - loss[0]) + (norm - norm) + (log[u32(2) * before] - log[u32(2) * before])
    log[u32(2) * here] = loss[0] + broken
    log[u32(2) * here + u32(1)] = norm + broken
    scale[0] += broken
    step[0] = s + u32(1)


def take_rows(tokens, starts, X, Y):
    """windows of the text, for all of X and Y."""
    windows[blocks_for(X.size, THREADS), THREADS](tokens, starts, X, Y)


def log_numbers(log):  # (2n,) float32 -> (n, 2) float64
    """What the host makes of the log: loss and norm of the last n steps."""
    return np.asarray(log, f32).reshape(-1, 2).astype(float)
