"""Lesson 12: attention. How does a position find what it needs among all the others?

An LSTM carries the past along in one vector. Attention keeps all of it and looks things up. Each position
asks a question q and offers a key k and a value v. Where question and key agree, the value comes through:

    attention(q, k, v) = softmax(q k^T / sqrt(D)) v                 Vaswani et al. 2017, eq. 1

B batch, H heads, D channels a head, C = H D channels, Tq queries, Tk keys; `...` any leading axes. A mask is
boolean, True where a query may look; the other scores become -inf. Without 1 / sqrt(D) their spread would be
sqrt(D): softmax would nearly pick one key from the start, and no gradient reach the others (section 3.2.1).
`make lesson 12` trains one layer to look things up and draws who looks at whom.
"""
import math
from pathlib import Path

import numpy as np

from lessons.l08_losses import IGNORE, cross_entropy, softmax_backward, softmax_forward


def attention_forward(q, k, v, mask=None):  # (..., Tq, D), (..., Tk, D), (..., Tk, D) -> (..., Tq, D)
    """For each query an average of the values, weighted by how well query and key agree:

        scores = q k^T / sqrt(D)        weights = softmax(scores), over the keys        out = weights v

    mask is broadcast to (..., Tq, Tk). A forbidden score becomes -inf before the softmax, so its weight is
    exactly 0. Each query must see at least one key. v may have a D of its own. cache is (q, k, v, weights).
    Here the question agrees with the first of two keys; then it may see the second alone:

    >>> q, k, v = np.array([[9.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[10.0], [20.0]])
    >>> attention_forward(q, k, v)[0].round(2), attention_forward(q, k, v, np.array([False, True]))[0]
    (array([[10.02]]), array([[20.]]))
    """
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    weights, _ = softmax_forward(scores)
    return weights @ v, (q, k, v, weights)


def attention_backward(dout, cache):  # (..., Tq, D) -> (..., Tq, D), (..., Tk, D), (..., Tk, D)
    """Return dq, dk, dv, shaped like q, k, v. Forward in reverse, where a product y = a b gives back

        da = dy b^T        db = a^T dy                      ^T swaps the last two axes

    and softmax_backward(dweights, weights) of lesson 8 stands between the two products. It multiplies by the
    weights. A masked one is 0, and so is its score's gradient: backward needs no mask."""
    q, k, v, weights = cache
    dv = weights.swapaxes(-1, -2) @ dout
    dscores = softmax_backward(dout @ v.swapaxes(-1, -2), weights) / math.sqrt(q.shape[-1])
    return dscores @ k, dscores.swapaxes(-1, -2) @ q, dv


def causal_mask(Tq, Tk):  # -> (Tq, Tk) bool
    """Nobody looks into the future: query t sees the keys 0 .. Tk - Tq + t. The queries are the last of Tk
    positions: a text being written asks for its newest one alone. ValueError if Tq > Tk.

    >>> causal_mask(2, 4).astype(int)
    array([[1, 1, 1, 0],
           [1, 1, 1, 1]])
    """
    if Tq > Tk:
        raise ValueError(f"{Tq} queries cannot be the last of {Tk} positions: pass at least {Tq} keys")
    return np.tri(Tq, Tk, Tk - Tq, dtype=bool)


def padding_mask(lengths, Tk):  # (B,) -> (B, 1, 1, Tk) bool
    """Nobody looks at padding: row b has lengths[b] real keys. The axes of size 1 are for heads and queries.
    ValueError if a length is not in 1..Tk: with no key at all softmax would divide 0 by 0.

    >>> padding_mask([1, 3], 3)[:, 0, 0].astype(int)
    array([[1, 0, 0],
           [1, 1, 1]])
    """
    lengths = np.asarray(lengths)
    if lengths.min() < 1 or lengths.max() > Tk:
        raise ValueError(f"lengths {lengths.tolist()} do not fit {Tk} keys: each must be from 1 to {Tk}")
    return (np.arange(Tk) < lengths[:, None])[:, None, None]


def split_heads(x, n_head):  # (B, T, C) -> (B, H, T, D)
    """A head owns D = C / H channels: a position asks H questions at once (section 3.2.2).
    out[b, h, t, d] = x[b, t, h D + d]: a view, no copy. ValueError if n_head does not divide C."""
    B, T, C = x.shape
    if C % n_head:
        raise ValueError(f"{C} channels cannot be shared equally by {n_head} heads: choose a divisor of {C}")
    return x.reshape(B, T, n_head, C // n_head).swapaxes(1, 2)


def merge_heads(x):  # (B, H, T, D) -> (B, T, C)
    """The way back: out[b, t, h D + d] = x[b, h, t, d]. A view of what split_heads made, no copy."""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * D)


def cross_attention_forward(q, kv, n_head, causal=False, lengths=None):  # (B, Tq, C), (B, Tk, 2C) -> like q
    """Queries from one sequence, keys and values, packed k|v, from another; heads are split before attention
    and merged after. The cache is attention_forward's. causal: causal_mask holds. lengths (B,): padding_mask
    holds. With both, a key must pass both."""
    q, k, v = (split_heads(x, n_head) for x in (q, *np.split(kv, 2, axis=-1)))
    mask = causal_mask(q.shape[2], k.shape[2]) if causal else True
    if lengths is not None:
        mask = mask & padding_mask(lengths, k.shape[2])
    out, cache = attention_forward(q, k, v, mask)
    return merge_heads(out), cache


def cross_attention_backward(dout, cache):  # (B, Tq, C) -> (B, Tq, C), (B, Tk, 2C)
    """Return dq and dkv, the latter packed as kv was."""
    n_head = cache[0].shape[1]
    dq, dk, dv = (merge_heads(d) for d in attention_backward(split_heads(dout, n_head), cache))
    return dq, np.concatenate([dk, dv], axis=-1)


def self_attention_forward(qkv, n_head, causal=True, lengths=None):  # (B, T, 3C) -> (B, T, C)
    """A sequence that looks at itself: queries, keys and values of the same positions, packed q|k|v as GPT-2
    does. Queries that stand in padding (t >= lengths[b]) get finite numbers that mean nothing."""
    return cross_attention_forward(*np.split(qkv, [qkv.shape[-1] // 3], axis=-1), n_head, causal, lengths)


def self_attention_backward(dout, cache):  # (B, T, C) -> (B, T, 3C)
    return np.concatenate(cross_attention_backward(dout, cache), axis=-1)


def flash_attention(q, k, v, mask=None, tile=64):  # (..., Tq, D), (..., Tk, D), (..., Tk, D) -> (..., Tq, D)
    """attention_forward's out without its (Tq, Tk) array: tile x tile scores at a time, which fit a cache.

    A softmax needs the largest score and the sum of all before its first weight is known. The online softmax
    (Milakov & Gimelshein 2018, algorithm 3) works with the largest so far. A tile of keys may raise it from m
    to m'; what was summed with m is then corrected, as if m' had been known from the start:

        total' = total * exp(m - m') + sum of exp(scores - m')      m' = max(m, scores)
        part' = part * exp(m - m') + exp(scores - m') v             at the end: out = part / total

    Dao et al. 2022, algorithm 1, but the loop over queries is the outer one. m begins at the lowest finite
    number: -inf would meet a tile of which all is masked, and -inf - -inf is not a number. Forward only."""
    Tq, Tk, kT = q.shape[-2], k.shape[-2], k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    mask = np.broadcast_to(True if mask is None else mask, (*q.shape[:-1], Tk))  # a view, whatever its shape
    out = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    for i in range(0, Tq, tile):
        queries = slice(i, i + tile)  # the last tile may be shorter
        part = np.zeros_like(out[..., queries, :])
        total = np.zeros_like(part[..., :1])
        largest = np.full_like(total, np.finfo(q.dtype).min)  # not -inf: -inf minus -inf is not a number
        for j in range(0, Tk, tile):
            keys = slice(j, j + tile)
            scores = np.where(mask[..., queries, keys], q[..., queries, :] @ kT[..., keys], -np.inf)
            old, largest = largest, np.maximum(largest, scores.max(axis=-1, keepdims=True))
            weights, shrink = np.exp(scores - largest), np.exp(old - largest)
            total = total * shrink + weights.sum(axis=-1, keepdims=True)
            part = part * shrink + weights @ v[..., keys, :]
        out[..., queries, :] = part / total
    return out


def deal(rng, B, n):  # -> (B, 2n) str, (B, 2n, 37) float, (B, 2n) int
    """n cards, a letter and a digit each, then their letters in alphabetical order with a question mark.
    A word is 37 numbers, 26 letters + 10 digits + "?": its letter and its sign are 1, the rest 0. The answer
    to "C?" is the digit that stands beside C. A card asks nothing: IGNORE."""
    letters = rng.permuted(np.tile(np.arange(26), (B, 1)), axis=1)[:, :n]
    digits = rng.integers(0, 10, (B, n))
    asked = np.take_along_axis(digits, np.argsort(letters, axis=1), axis=1)
    answers = np.concatenate([np.full((B, n), IGNORE), asked], axis=1)
    letters = np.concatenate([letters, np.sort(letters, axis=1)], axis=1)
    signs = np.concatenate([digits, np.full((B, n), 10)], axis=1)  # 10 is the place of "?"
    words = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))[letters] + np.array(list("0123456789?"))[signs]
    return words, np.concatenate([np.eye(26)[letters], np.eye(11)[signs]], axis=-1), answers


def main():
    rng, rate = np.random.default_rng(12), 10
    W_q, W_k = rng.normal(size=(2, 37, 16)) * 0.3
    W_v = rng.normal(size=(37, 10)) * 0.3  # a word's value: a logit for each digit
    attend = lambda x: attention_forward(x @ W_q, x @ W_k, x @ W_v, causal_mask(x.shape[1], x.shape[1]))
    right = lambda x, answers: (attend(x)[0].argmax(-1) == answers)[answers != IGNORE].mean()
    words, example, _ = deal(np.random.default_rng(3), 1, 8)
    before = attend(example)[1][-1]
    print("A letter asks: which digit was beside me? A guess: 10 % right. Looking back: 100 %.\n ", *words[0])
    for step in range(81):
        _, x, answers = deal(rng, 64, 8)
        if step % 20 == 0:
            print(f"  after {step:2} steps: {right(x, answers):.1%} right")
        logits, cache = attend(x)
        _, dlogits = cross_entropy(logits, answers)
        for weight, d in zip((W_q, W_k, W_v), attention_backward(dlogits, cache)):
            weight -= rate * np.tensordot(x, d, axes=((0, 1), (0, 1)))  # summed over rows and positions
    print(f"  20 cards, more than it has seen: {right(*deal(rng, 64, 20)[1:]):.1%} right")

    q, k, v = rng.normal(size=(3, 2048, 64)).astype(np.float32)
    gap = np.abs(flash_attention(q, k, v) - attention_forward(q, k, v)[0]).max()
    print(f"flash, 2048 positions: {64**2:,} scores at a time, not {2048**2:,}; largest difference {gap:.0e}")
    from matplotlib.figure import Figure
    figure, n, after = Figure(figsize=(11, 3.6), layout="constrained"), 8, attend(example)[1][-1]
    for panel, weights, title in zip(figure.subplots(1, 2), (before, after), ("before training", "after")):
        panel.imshow(weights[0, n:], cmap="Blues", vmin=0, vmax=1)
        panel.set(title=title, xlabel="looks at", ylabel="who", yticks=range(n), yticklabels=words[0, n:],
                  xticks=range(2 * n), xticklabels=words[0])
    Path("out/lessons").mkdir(parents=True, exist_ok=True)
    figure.savefig("out/lessons/attention.png", dpi=100)
    print("picture: out/lessons/attention.png")
