"""Lesson 6's embedding, compiled: one row at a time, no temporary of the size of x.

add_rows      reads a row of wte and a row of wpe for each token, writes x once
scatter_rows  reads dout once; adds to the rows of dwte that were used, writes all of dwpe
"""
import numpy as np

from kernels.cpu.compiled import f32, kernel


def embedding_forward(tokens, wte, wpe, start=0):  # (B, T) int, (V, C), (P, C) -> (B, T, C)
    tokens = np.asarray(tokens).astype(np.int64, order="C", casting="same_kind", copy=False)
    check_rows(tokens, start, wte, wpe)
    x = np.empty((*tokens.shape, wte.shape[1]), f32)
    add_rows(tokens, wte, wpe[start:], x)
    return x, (tokens, start)


def embedding_backward(dout, cache, dwte, dwpe):  # (B, T, C)
    """Adds to dwte (V, C), writes dwpe (P, C)."""
    tokens, start = cache
    check_rows(tokens, start, dwte, dwpe)
    if dout.shape != (*tokens.shape, dwte.shape[1]):
        raise ValueError(f"dout {dout.shape} must be {(*tokens.shape, dwte.shape[1])}, the shape of x")
    scatter_rows(tokens, start, dout, dwte, dwpe)


def check_rows(tokens, start, wte, wpe):
    """Raise ValueError for what the kernels, which check no index, would read or write out of bounds."""
    low, high = int(tokens.min(initial=0)), int(tokens.max(initial=0))
    if low < 0 or high >= len(wte):
        raise ValueError(f"token {low if low < 0 else high} has no row in a table of {len(wte)}: "
                         "encode the text with the model's own tokenizer")
    if not 0 <= start <= len(wpe) - tokens.shape[-1]:
        raise ValueError(f"{tokens.shape[-1]} positions from {start} on do not fit in a table of {len(wpe)}: "
                         "use a shorter text or a longer table")
    if wte.shape[1] != wpe.shape[1]:
        raise ValueError(f"tokens have {wte.shape[1]} channels, positions {wpe.shape[1]}: make them the same")


@kernel
def add_rows(tokens, wte, wpe, x):  # (B, T) int, (V, C), (T or more, C), (B, T, C)
    """Write x[b, t, c] = wte[tokens[b, t], c] + wpe[t, c], float32. wpe begins with the first token's row.

    Three loops, and no array made on the way: wte[tokens[b, t]], wpe[t] and x[b, t] are views of rows.
    """
    B, T, C = x.shape
    for b in range(B):
        for t in range(T):
            token, position, out = wte[tokens[b, t]], wpe[t], x[b, t]
            for c in range(C):
                out[c] = token[c] + position[c]


@kernel
def scatter_rows(tokens, start, dout, dwte, dwpe):  # (B, T) int, int, (B, T, C), (V, C), (P, C)
    """The way back: each dout[b, t] is added to the two rows that x[b, t] was made of.

        dwte[v, c] += sum of dout[b, t, c] over all b, t with tokens[b, t] = v
        dwpe[start + t, c] = sum of dout[b, t, c] over b;    all other rows of dwpe = 0

    dwte goes on from what it holds, dwpe begins at 0. float32; one token after the other, so that repeated
    tokens add up by themselves.
    """
    B, T, C = dout.shape
    dwpe[:] = f32(0)
    for b in range(B):
        for t in range(T):
            token, position, d = dwte[tokens[b, t]], dwpe[start + t], dout[b, t]
            for c in range(C):
                token[c] += d[c]
                position[c] += d[c]
