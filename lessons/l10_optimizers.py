"""Lesson 10: optimizers. The gradient says which way is down. How far to step, and exactly where to?

    SGD       p -= lr * g                                                Robbins & Monro 1951
    momentum  m = mu * m + g;  p -= lr * m                               Polyak 1964
    Adam      p -= lr * m / sqrt(v); m, v averages of g, g^2             Kingma & Ba 2015, algorithm 1
    AdamW     Adam, and p shrinks by lr * weight_decay * p               Loshchilov & Hutter 2019, algorithm 2
    Muon      p -= lr * (m with all its singular values near 1)          Jordan et al. 2024, the post "Muon"

p parameters, g gradient, m and v what the optimizer keeps (zeros at first), lr the rate (step size). "The
article" is "Large language models from theory to practice", which this course follows. All parameters of a
model lie in one flat buffer. An optimizer is one call on a slice of it, with weight_decay 0 for biases and
norms. All is changed in place; g is only read. `scale` multiplies g on its way in: that is clipping.
`make lesson 10` walks down one valley with each but Muon, which needs a matrix, and draws the paths.
"""
import math
import pathlib

import numpy as np


def gradient_norm_squared(grads, start, stop):  # (R, n) -> float
    """Add rows 1.. of grads[:, start:stop] into row 0 and return the sum of squares of that sum.

    Each of R threads has a share of the batch and a gradient of its own: the batch's gradient is the sum.
    """
    g = grads[0, start:stop]
    for other in grads[1:, start:stop]:
        g += other
    return float(np.square(g, dtype=np.float64).sum())


def clip_scale(norm, limit):  # float, float -> float
    """What to multiply the gradient by, so that its norm is at most limit (Pascanu et al. 2013, algorithm 1).

    limit / (norm + 1e-6), and 1 only where that exceeds 1. NaN if norm is NaN, for training must see it: mind
    the order of min's arguments. One factor for all numbers keeps the direction. Without clipping one bad
    batch can undo a thousand steps.
    """
    return min(limit / (norm + 1e-6), 1.0)  # min(1.0, nan) would be 1.0


def sgd(p, g, m, lr, momentum, weight_decay, scale):  # (n,), (n,), (n,)
    """One step of stochastic gradient descent, in place; momentum 0 is the plain form.

        m <- momentum * m + scale * g           p <- (1 - lr * weight_decay) * p - lr * m, with the new m

    m is a rolling ball: steps that agree add up, to 1 / (1 - momentum) of one; steps that alternate cancel.
    The decay goes straight to p, as in adamw. Through m it would last on after p has shrunk.
    """
    m *= momentum
    m += g * scale
    p *= 1 - lr * weight_decay
    p -= lr * m


def adam(p, g, m, v, lr, beta1, beta2, eps, step, bias_correction=True):  # (n,), (n,), (n,), (n,)
    """One step of Adam, in place; step counts from 1. Each number gets its own step size: about lr.

        m <- beta1 * m + (1 - beta1) * g        m^ = m / (1 - beta1^step)
        v <- beta2 * v + (1 - beta2) * g^2      v^ = v / (1 - beta2^step)
        p <- p - lr * m^ / (sqrt(v^) + eps)     m and v themselves stay as they are

    m and v start at zero, so after t steps they hold 1 - beta^t of an average. Dividing by that mends it. The
    article does without (bias_correction=False: m^ = m, v^ = v). For beta1 = 0.9 and beta2 = 0.999 its first
    step is 3.16 times too long; if g stays, the twelfth is 6.6 times and the thousandth 1.3 times.
    """
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    mean, square = (m / (1 - beta1**step), v / (1 - beta2**step)) if bias_correction else (m, v)
    p -= lr * mean / (np.sqrt(square) + eps)


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, scale):  # (n,), (n,), (n,), (n,)
    """One step of Adam with decoupled weight decay, in place: p <- (1 - lr * weight_decay) * p, then Adam's
    (bias-corrected) with scale * g in place of g; step counts from 1.
    The decay does not pass through g. There, Adam would divide it by sqrt(v), and the weights with the
    largest gradients would decay least. Here every weight loses the same share, lr * weight_decay.
    """
    p *= 1 - lr * weight_decay
    adam(p, g * scale, m, v, lr, beta1, beta2, eps, step)


def newton_schulz(x):  # (n, k) -> (n, k)
    """x = U S V^T with the singular values in S replaced by numbers near 1 (0.68 to 1.2), without an SVD.

    First X = x / (its Frobenius norm + 1e-7); no s exceeds that norm, so now all are at most 1. Then 5 times

        X <- a X + b X X^T X + c X X^T X X^T X = U (a S + b S^3 + c S^5) V^T,

    which brings every s between 0.002 and 1 there. Jordan chose a, b, c for speed: small s grow 3.4-fold a
    round, and in return nothing settles at exactly 1. It need not. x itself is only read; a tall one is
    transposed first and last, so that X X^T is the smaller square.
    """
    a, b, c = 3.4445, -4.775, 2.0315
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def muon(p, g, m, lr, momentum, weight_decay, scale):  # (n_in, n_out) each
    """One step of Muon on one weight matrix, in place; with AdamW's decay, as Liu et al. 2025 use it.

        g' = scale * g            m <- momentum * m + (1 - momentum) * g'
        x = momentum * m + (1 - momentum) * g', with the new m: Nesterov's look ahead
        p <- (1 - lr * weight_decay) * p - lr * sqrt(max(1, n_out / n_in)) * newton_schulz(x)

    A gradient has a few large singular values and many small ones; SGD hardly moves along the small, Muon
    along all alike. Tables and vectors are left to AdamW.
    """
    g = g * scale
    m += (1 - momentum) * (g - m)
    p *= 1 - lr * weight_decay
    p -= lr * math.sqrt(max(1, p.shape[1] / p.shape[0])) * newton_schulz(g + momentum * (m - g))


def warmup_linear(step, steps, warmup, rate, final=0.0):  # three whole numbers, two floats -> float
    """The rate of a step (1 .. steps): rises in a line to rate at step warmup, then falls in a line to final.

        step < warmup:   rate * step / warmup
        from then on:    final + (rate - final) * left,   left = (steps - step) / (steps - warmup)

    left is 0 at the last step and after it, never 0 / 0. Warm-up, because the first steps know least: m and v
    have seen little, and the weights are random. Decay, because steps of one size end up rattling around the
    minimum at the distance of one step.

    >>> [warmup_linear(step, steps=10, warmup=2, rate=1.0) for step in (1, 2, 6, 10)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return rate * step / warmup
    left = max(0, steps - step) / max(1, steps - warmup)
    return final + (rate - final) * left


def warmup_cosine(step, steps, warmup, rate, final=0.0):  # three whole numbers, two floats -> float
    """As warmup_linear, but falls along half a cosine: slow, fast, slow (Loshchilov & Hutter 2017, eq. 5):
    final + (rate - final) * (1 + cos(pi * gone)) / 2, where gone = 1 - left goes from 0 to 1."""
    if step < warmup:
        return rate * step / warmup
    return final + (rate - final) * (1 - math.cos(math.pi * warmup_linear(step, steps, warmup, 1.0))) / 2


def valley(points):  # (..., 2) -> (...), (..., 2)
    """Loss and gradient: lowest at (1, 1), 100 times steeper across than along, turned by 20 degrees."""
    floor = math.cos(0.35), math.sin(0.35)
    curvature = 100 * np.eye(2) - 99 * np.outer(floor, floor)
    gradient = (points - 1) @ curvature
    return ((points - 1) * gradient).sum(axis=-1) / 2, gradient


def descend(step, lr):
    """200 times step(p, g, m, v, lr, t) down the valley -> all the points on the way (201, 2)."""
    m, v, path = np.zeros(2), np.zeros(2), [np.array([-4.0, 0.0])]
    for t in range(1, 201):
        path.append(path[-1].copy())
        step(path[-1], valley(path[-1])[1], m, v, lr, t)
    return np.array(path)


def main():
    methods = [  # name, rate, one step
        ("SGD", 0.018, lambda p, g, m, v, lr, t: sgd(p, g, m, lr, 0.0, 0.0, 1.0)),
        ("momentum", 0.005, lambda p, g, m, v, lr, t: sgd(p, g, m, lr, 0.9, 0.0, 1.0)),
        ("article's Adam", 0.4, lambda p, g, m, v, lr, t: adam(p, g, m, v, lr, 0.9, 0.999, 1e-8, t, False)),
        ("Adam", 0.4, lambda p, g, m, v, lr, t: adam(p, g, m, v, lr, 0.9, 0.999, 1e-8, t)),
        ("AdamW", 0.4, lambda p, g, m, v, lr, t: adamw(p, g, m, v, lr, 0.9, 0.999, 1e-8, 0.1, t, 1.0)),
    ]
    paths = {name: descend(step, rate) for name, rate, step in methods}
    print("loss in the valley  rate   start   after 10 steps     50     200   length of step 1   ends at")
    for (name, rate, _), path in zip(methods, paths.values()):
        start, ten, fifty, end = valley(path[[0, 10, 50, 200]])[0]
        print(f"  {name:<14} {rate:7.3f} {start:7.1f} {ten:16.2f} {fifty:6.2f} {end:7.3f} "
              f"{np.linalg.norm(path[1] - path[0]):18.2f}   ({path[-1, 0]:.2f}, {path[-1, 1]:.2f})")
    print("The article's first step is 3.2 times Adam's. AdamW's decay of 0.1 pulls towards (0, 0).")

    inputs, outputs = np.random.default_rng(0).normal(size=(2, 200, 32))
    gradient = inputs[:, :16].T / np.arange(1, 201) @ outputs  # a few examples outweigh the rest
    for name, matrix in ("a 16 x 32 gradient:", gradient), ("Muon's update for it:", newton_schulz(gradient)):
        values = np.linalg.svd(matrix, compute_uv=False)[[0, 1, 2, 4, 8, 15]]
        print(f"singular values 1, 2, 3, 5, 9, 16 of {name:<22}", *(f"{s:5.2f}" for s in values))
    from matplotlib.figure import Figure
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    plan, fall, rates = figure.subplots(1, 3, width_ratios=(2, 1.2, 1))
    x, y = np.meshgrid(np.linspace(-4.6, 2.6, 200), np.linspace(-2.1, 2.7, 200))
    plan.contour(x, y, valley(np.stack([x, y], axis=-1))[0], np.geomspace(0.1, 400, 9), colors="0.85")
    for name, path in paths.items():
        plan.plot(*path.T, "o-", markersize=2.5, linewidth=1.1, label=name)
        fall.semilogy(valley(path)[0])
    plan.set(title="one valley, 200 steps from the left to (1, 1)", aspect="equal")
    plan.legend(loc="lower right")
    fall.set(title="loss (colours as on the left)", xlabel="step", ylim=(1e-4, 200))
    rates.plot([[rate(t, 200, 20, 1.0) for rate in (warmup_linear, warmup_cosine)] for t in range(201)])
    rates.set(title="rate, as a share of the largest: linear, cosine", xlabel="step")
    pathlib.Path("out/lessons").mkdir(parents=True, exist_ok=True)
    figure.savefig("out/lessons/optimizers.png", dpi=110)
    print("picture: out/lessons/optimizers.png")
