"""Lesson 11's first demonstration: how much of a gradient is left after t steps, and what clipping does."""
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons import l11_recurrent as lesson
from lessons.l10_optimizers import clip_scale
from lessons.recurrent_parameters import init_parameters, shapes, start_state, views
from lessons.texts import numbered, read_text

NETWORKS = [  # kind, the size of its W_h, the bias of the forget gate
    ("rnn", 0.5, 0), ("rnn", 1, 0), ("rnn", 3, 0), ("lstm", 0.5, 0), ("lstm", 0.5, 3)]
T, B, H = 100, 4, 64


def norms_by_distance(ops, kind, size, forget):  # -> (T,): the input t steps ago has [t]; the last has 1
    """The loss looks at h of the last step alone; what of its gradient reaches the inputs before?"""
    rng, wide = np.random.default_rng(11), H * (4 if kind == "lstm" else 1)
    x, dhs = rng.normal(size=(T, B, H)), np.zeros((T, B, H))
    weights = *(rng.normal(size=(H, wide)) * s / H**0.5 for s in (0.3, size)), np.zeros(wide)
    if kind == "lstm":
        weights[2][H:2 * H] = forget
    dhs[-1] = rng.normal(size=(B, H))
    forward, backward = lesson.KINDS[kind]
    _, _, cache = forward(ops, x, np.zeros((2, B, H) if kind == "lstm" else (B, H)), *weights)
    dx, _ = backward(ops, dhs, cache, *map(np.empty_like, weights))
    norms = np.linalg.norm(dx, axis=-1).mean(axis=1)[::-1]
    return norms / norms[0]


def sgd_on_letters(codes, V, limit, steps=60, lr=2.0, window=25):  # -> losses and norms of the steps
    """An RNN with a W_h twice as large as it should be; limit: of the gradient's norm."""
    size = "rnn", V, H, 1
    flat, p = init_parameters(*size, seed=11)
    p["0.w_h"] *= 2
    gradient = np.zeros_like(flat)
    columns, states, found = lesson.stretches(codes, 16), start_state(p, 16), []
    for start in range(0, steps * window, window):
        loss, states = lesson.window_gradient(None, p, columns[start:start + window + 1], states, None,
                                              views(gradient, shapes(*size)))
        norm = float(np.linalg.norm(gradient))
        flat -= lr * clip_scale(norm, limit) * gradient
        found.append((loss, norm))
    return np.array(found)


def main():
    threadpool_limits(1, "blas")  # products this small are slower on several threads
    ops, far = devices.module("numpy", "recurrent"), [1, 5, 10, 20, 50, 99]
    names = [f"RNN, W_h x {size}" if kind == "rnn" else f"LSTM, forget bias {bias}"
             for kind, size, bias in NETWORKS]
    curves = [norms_by_distance(ops, *network) for network in NETWORKS]
    print("how much of the gradient arrives so many steps back")
    print(f"  {'':20}", *(f"{t:8}" for t in far))
    for name, curve in zip(names, curves, strict=True):
        print(f"  {name:20}", *(f"{curve[t]:8.0e}" for t in far))
    codes, alphabet = numbered(read_text("shakespeare"))
    runs = {name: sgd_on_letters(codes[:50_000], len(alphabet), limit)
            for name, limit in (("not clipped", np.inf), ("clipped to 0.5", 0.5))}
    print("an RNN with W_h x 2 learns letters, 60 steps of SGD: nats a letter, largest gradient norm")
    for name, run in runs.items():
        print(f"  {name:20} {run[0, 0]:8.2f} -> {run[-10:, 0].mean():5.2f} {run[:, 1].max():12.1f}")

    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    far, losses = figure.subplots(1, 2)
    for name, curve in zip(names, curves, strict=True):
        far.semilogy(curve, "--" if name[0] == "L" else "-", label=name)
    far.set(title="norm of the gradient that arrives t steps back", xlabel="t", ylim=(1e-12, 1e12))
    far.legend(loc="upper left", fontsize="small")
    for (name, run), color in zip(runs.items(), ("C3", "C0"), strict=True):
        losses.plot(run[:, 0], color=color, label=f"loss, {name}")
        losses.plot(run[:, 1], ":", color=color, label=f"gradient's norm, {name}")
    losses.set(title="the same RNN, with and without clipping", xlabel="step", yscale="log")
    losses.legend(fontsize="small")
    Path("out/lessons").mkdir(parents=True, exist_ok=True)
    figure.savefig("out/lessons/recurrent.png", dpi=100)
    print("picture: out/lessons/recurrent.png")
