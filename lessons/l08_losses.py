"""Lesson 8: losses. How wrong is a model, in one number, and which way should it be pushed?

    softmax         p_j = exp(x_j) / sum_k exp(x_k)                     scores become probabilities
    cross-entropy   -log p[target]                                      "you gave the truth too little"
    contrastive     -log( exp(q_i.q_j) / sum_{k != i} exp(q_i.q_k) )    "be near your partner j, not the rest"

The third is the second in disguise: the other rows of the batch are the classes, the partner the right one.

Where it comes from. InfoNCE (van den Oord et al. 2018, eq. 4) picks the one true sample among N by a softmax
over scores. NT-Xent (SimCLR: Chen et al. 2020, eq. 1) is the formula above with the dot products divided by a
temperature and the rows of length 1. The sum leaves out k = i and nothing else. With i, a row would compete
with itself, the nearest of all: its loss could not fall below log 2. Without the partner j, the fraction
could exceed 1: it would be no probability, and its loss has no floor.

B batch, T positions, V vocabulary, D channels of an embedding; `...` is any number of axes, often (B, T).
`make lesson 8` shows in numbers what each loss pulls and pushes, and draws pairs finding each other.
"""
import numpy as np

IGNORE = -1  # a target that does not count: padding. PyTorch's cross_entropy uses -100.


def softmax_forward(x):  # (..., V) -> (..., V)
    """Probabilities over the last axis: positive, with sum 1, in the dtype of x. Returns p and the cache: p.

        p_j = exp(x_j - m) / sum_k exp(x_k - m),    m = max_k x_k, for each row its own

    Subtracting the largest changes nothing on paper (it divides above and below by the same number) and
    saves the day on a machine: exp(1000) is inf, and inf / inf is NaN.

    >>> softmax_forward(np.array([1000.0, 1000.0, -1000.0]))[0]
    array([0.5, 0.5, 0. ])
    """
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    return p, p


def softmax_backward(dout, cache):  # (..., V), p -> (..., V)
    """dx_j = p_j * (dout_j - sum_k p_k dout_k), the sum over the last axis.

    All outputs share one sum, so raising one lowers the others: only what differs from the mean (weighted
    by p) gets through. The same dout for all gives 0.
    """
    p = cache
    return p * (dout - (p * dout).sum(axis=-1, keepdims=True))


def check_targets(logits, targets):  # (..., V), (...) int
    """Raise ValueError if there is not one target a row, or if one is neither a class nor IGNORE."""
    V = logits.shape[-1]
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets {targets.shape} must be {logits.shape[:-1]}: one for each row of logits")
    low, high = int(targets.min(initial=0)), int(targets.max(initial=0))
    if low < IGNORE or high >= V:
        raise ValueError(f"target {low if low < IGNORE else high} is none of {V} classes: "
                         f"use 0 to {V - 1}, or {IGNORE} for what does not count")


def cross_entropy(logits, targets, total=None):  # (..., V), (...) int -> float, (..., V)
    """The loss, a Python float (float(...) makes one), and its gradient, in the shape and dtype of logits:

        loss = sum of -log softmax(logits)[target] / total
        dlogits = (softmax(logits) - one_hot(targets)) / total

    In one function, because the backward of a loss starts from 1. Targets that are IGNORE (-1) have no loss
    and gradient 0, whatever their logits, NaN included. total is by default the number of targets that count
    (with none: loss 0.0, gradient 0); who has a share of a batch passes that of all: then the shares add up.

    log and exp cancel: with x = logits - their row's maximum, -log p is log(sum exp(x)) - x[target]. p itself
    may round to 0, and -log(0) is inf where the truth is 2000. The sum over rows is float64. You may write
    dlogits over logits, as the CPU's kernel does: no caller uses them again. ValueError as in check_targets.

    >>> cross_entropy(np.array([[0.0, 0.0], [5.0, 1.0]]), np.array([1, IGNORE]))
    (0.6931471805599453, array([[ 0.5, -0.5],
           [ 0. ,  0. ]]))
    """
    check_targets(logits, targets)
    rows, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    dlogits = np.zeros_like(rows)
    counted = np.flatnonzero(targets != IGNORE)
    if counted.size == 0:
        return 0.0, dlogits.reshape(logits.shape)
    total = counted.size if total is None else total
    each, target = np.arange(counted.size), targets[counted]
    x = rows[counted] - rows[counted].max(axis=-1, keepdims=True)
    norm = np.exp(x).sum(axis=-1, keepdims=True)
    loss = (np.log(norm[:, 0]) - x[each, target]).sum(dtype=np.float64) / total
    p = np.exp(x) / norm
    p[each, target] -= 1
    dlogits[counted] = p / total
    return float(loss), dlogits.reshape(logits.shape)


def check_pairs(partner, temperature):  # (2N,) int, float
    """Raise ValueError for a row that is its own partner, and for a temperature that is not above 0."""
    alone = np.flatnonzero(partner == np.arange(len(partner)))
    if alone.size:
        raise ValueError(f"row {alone[0]} is its own partner: name another row, or {IGNORE} for none")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be above 0: 0.1 to 1 is usual")


def contrastive_forward(q, partner, temperature=1.0):  # (2N, D), (2N,) int -> float
    """The mean over the rows i, with j = partner[i] and t the temperature, of

        -log( exp(s_ij) / sum over k != i of exp(s_ik) ),    s_ik = q_i.q_k / t

    This is cross_entropy of s with the partners as targets, once s_ii is -inf, since exp(-inf) is 0. Begin
    with t = float(temperature): divided by an np.float64, a float32 s would be float64. Returns the loss and
    the cache (q, ds, t), ds from cross_entropy. For N pairs, rows i and N + i: np.roll(np.arange(2 * N), N).
    A row whose partner is IGNORE chooses nothing and is only a choice for others. For NT-Xent divide each
    row by its length first, or longer vectors alone lower the loss. A low temperature looks at the nearest
    rows only. Raises ValueError for partners and temperatures that make no sense (check_pairs).

    With two rows, the partner is the only choice, and there is nothing to learn:

    >>> contrastive_forward(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 0]))[0]
    0.0
    """
    check_pairs(partner, temperature)
    t = float(temperature)
    s = q @ q.T / t
    np.fill_diagonal(s, -np.inf)
    loss, ds = cross_entropy(s, partner)
    return loss, (q, ds, t)


def contrastive_backward(dout, cache):  # float, cache -> (2N, D)
    """dq, in q's dtype, for a loss that counts dout times, a Python float. A row of q has two roles in s:

        dq_i = dout * sum over k of (ds_ik + ds_ki) q_k / t     once as the one who chooses, once as a choice

    ds is cross-entropy's gradient: negative for the partner (descent pulls), positive for the rest (pushes).
    """
    q, ds, t = cache
    return (ds + ds.T) @ q * (dout / t)


def unit(q):  # (..., D) -> (..., D)
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def main():
    words = ["mat", "sofa", "moon", "the"]
    logits, targets = np.array([[2.0, 3.0, 0.0, -1.0]]), np.array([0])
    p, _ = softmax_forward(logits)
    loss, dlogits = cross_entropy(logits.copy(), targets)
    print("cross-entropy: 'the cat sat on the ...', truth: mat")
    print("             ", *(f"{w:>6}" for w in words))
    for name, row in ("logit", logits[0]), ("probability", p[0]), ("gradient", dlogits[0]):
        print(f"  {name:11}", *(f"{x:6.2f}" for x in row))
    print(f"  loss -log {p[0, 0]:.2f} = {loss:.2f}")
    print("  descent raises the truth by what it lacks, lowers each other word by what it has; the sum is 0")
    guess, _ = cross_entropy(np.zeros((1, 65)), targets)
    wrong, _ = cross_entropy(np.array([[-1000.0, 1000.0]]), targets)
    print(f"  a model that knows nothing of 65 characters: {guess:.3f} = log 65; "
          f"sure and wrong, logits +-1000: {wrong:.0f}")

    n, rng = 6, np.random.default_rng(8)
    partner = np.roll(np.arange(2 * n), n)
    start = q = unit(rng.normal(size=(2 * n, 2)))
    print(f"contrastive: {n} pairs on a circle, temperature 0.2; degrees from a row to")
    print("  step   loss   its partner   the nearest other")
    for step in range(201):
        loss, cache = contrastive_forward(q, partner, 0.2)
        if step in (0, 5, 20, 200):
            print("  {:4} {:6.2f} {:13.0f} {:19.0f}".format(step, loss, *angles(q, partner)))
        q = unit(q - 0.5 * contrastive_backward(1.0, cache))
    print("  the same rows, 3 times as long:", f"loss {contrastive_forward(3 * q, partner, 0.2)[0]:.2f};",
          "nothing was learned, so NT-Xent sets every length to 1")
    print("picture:", draw(start, q, partner))


def angles(q, partner):  # (2N, D), (2N,) -> two numbers
    """Mean angle to the partner, mean angle to the nearest row that is not the partner, in degrees."""
    degrees = np.degrees(np.arccos(np.clip(q @ q.T, -1, 1)))
    each = np.arange(len(q))
    near = degrees[each, partner]
    degrees[each, partner] = degrees[each, each] = np.inf
    return near.mean(), degrees.min(axis=1).mean()


def draw(before, after, partner):  # (2N, 2) twice, (2N,) -> path
    """Rows as points on the circle, a line and a colour for each pair."""
    from pathlib import Path

    from matplotlib.figure import Figure
    from matplotlib.patches import Circle
    figure = Figure(figsize=(8, 4), layout="constrained")
    titles = "before", "after 200 steps: pairs meet, others part"
    for panel, q, title in zip(figure.subplots(1, 2), (before, after), titles):
        panel.add_patch(Circle((0, 0), 1, fill=False, color="lightgray"))
        for i in range(len(q) // 2):
            panel.plot(*q[[i, partner[i]]].T, "o-", color=f"C{i}")
        panel.set(title=title, aspect="equal", xticks=[], yticks=[])
    path = Path("out/lessons/losses.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
