"""Lesson 8's cross-entropy, compiled: loss and gradient of a row of logits while it is in the L1 cache.

rows_in_place  reads logits, writes dlogits over them; reads one target a row
"""
import math

import numpy as np

from kernels.cpu.compiled import exp, f32, kernel, largest

IGNORE = -1


def cross_entropy(logits, targets, total=None):  # (..., V) float32, (...) int -> float, (..., V)
    """Loss and dlogits. logits are used up: dlogits are written over them."""
    V, targets = logits.shape[-1], np.asarray(targets)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets {targets.shape} must be {logits.shape[:-1]}: one for each row of logits")
    targets = targets.reshape(-1).astype(np.int64, order="C", casting="same_kind", copy=False)
    low, high = int(targets.min(initial=0)), int(targets.max(initial=0))
    if low < IGNORE or high >= V:  # the kernel checks no index
        raise ValueError(f"target {low if low < IGNORE else high} is none of {V} classes: "
                         f"use 0 to {V - 1}, or {IGNORE} for what does not count")
    counted = np.count_nonzero(targets != IGNORE)
    total = 1 if counted == 0 else counted if total is None else total
    rows = np.ascontiguousarray(logits.reshape(-1, V), f32)
    loss = rows_in_place(rows, targets, f32(1 / total))
    return loss / total, rows.reshape(logits.shape)


@kernel
def rows_in_place(logits, targets, scale):  # (N, V) float32, (N,) int, float32 -> float64
    """The sum of the losses of all rows, and over each row of logits its gradient, times scale:

        loss = -log softmax(row)[target];    row_v = (softmax(row)_v - (1 if v == target else 0)) * scale

    A row whose target is IGNORE has no loss, and becomes 0 whatever was in it. For the others, with `largest`
    and `exp` of compiled.py and top = largest(row): norm = sum exp(row_v - top), softmax = exp(row_v - top) /
    norm, and loss = log(norm) + (top - row[target]), where row[target] must be read before it is overwritten.
    A row is float32; its loss, with math.log(np.float64(norm)), and their sum are float64, or a million small
    losses would not add up.
    """
    N, V = logits.shape
    loss = 0.0
    for n in range(N):
        row, target = logits[n], targets[n]
        if target == IGNORE:
            row[:] = f32(0)
            continue
        top, truth, norm = largest(row), row[target], f32(0)
        for v in range(V):
            e = exp(row[v] - top)
            row[v] = e
            norm += e
        loss += math.log(np.float64(norm)) + (np.float64(top) - np.float64(truth))
        r = scale / norm
        for v in range(V):
            row[v] *= r
        row[target] -= scale
    return loss
