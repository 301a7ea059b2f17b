"""Lesson 6: embedding. How does a token's number become a vector that can be learned?

Token 17 is no larger than token 3 in any sense that matters: an id is a name. So each token owns one row
of a table W, and its vector is that row. Position t owns a row of a second table, because otherwise
'dog bites man' and 'man bites dog' would be the same set of vectors:

    x[b, t] = wte[tokens[b, t]] + wpe[start + t]

Looking a row up is a matrix product in disguise: one-hot(v) @ W = W[v], since all but one product is 0.
That also gives the gradient: dW = one-hot.T @ dx adds dx[b, t] to the row that was looked up. A token that
occurs three times collects three gradients, and a token that does not occur gets none.

The position table is learned (GPT: Radford et al. 2018) or written down once as sines and cosines
(Vaswani et al. 2017, section 3.5); there, table 3 row E, the two do equally well.

B batch, T positions, C channels, V vocabulary, P rows of the position table.
`make lesson 6` shows which rows of W a sentence touches, and draws the sinusoidal positions.
"""
import numpy as np


def one_hot(tokens, vocab_size):  # (...) int -> (..., V)
    """A row of zeros for each token, with a 1 where the token is: what a lookup saves us from building.

        one_hot[..., v] = 1 if tokens[...] == v, else 0;    float64

    >>> one_hot(np.array([2, 0]), 3)
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """
    return np.eye(vocab_size)[tokens]


def check_rows(tokens, start, wte, wpe):  # (B, T), int, (V, C), (P, C)
    """Raise ValueError if a token or a position has no row in its table.

    NumPy would let it pass: wte[-1] is the last row, and of 64 positions, wpe[63:70] is one row, which is
    then added to every token.
    """
    low, high = int(tokens.min(initial=0)), int(tokens.max(initial=0))
    if low < 0 or high >= len(wte):
        raise ValueError(f"token {low if low < 0 else high} has no row in a table of {len(wte)}: "
                         "encode the text with the model's own tokenizer")
    if not 0 <= start <= len(wpe) - tokens.shape[-1]:
        raise ValueError(f"{tokens.shape[-1]} positions from {start} on do not fit in a table of {len(wpe)}: "
                         "use a shorter text or a longer table")


def embedding_forward(tokens, wte, wpe, start=0):  # (B, T) int, (V, C), (P, C) -> (B, T, C)
    """x[b, t] = wte[tokens[b, t]] + wpe[start + t].

    start is the position of the first token: 0 for a whole text, the number of tokens already read when
    generation goes on with one more (lesson 19). Returns x, of the tables' dtype, and the cache: tokens and
    start, for backward needs no values. Raises ValueError if a token or a position has no row (check_rows).

    >>> wte, wpe = np.array([[1., 2.], [3., 4.]]), np.array([[0., 0.], [10., 20.]])
    >>> embedding_forward(np.array([[1, 1]]), wte, wpe)[0]
    array([[[ 3.,  4.],
            [13., 24.]]])
    """
    check_rows(tokens, start, wte, wpe)
    return wte[tokens] + wpe[start:start + tokens.shape[1]], (tokens, start)


def embedding_backward(dout, cache, dwte, dwpe):  # (B, T, C), cache, (V, C), (P, C)
    """Add the gradient of the token table to dwte, write that of the positions into dwpe. Returns None.

        dwte[v] += sum of dout[b, t] over all b, t with tokens[b, t] = v
        dwpe[start + t] = sum of dout[b, t] over b;    all other rows of dwpe = 0

    dwte is added to and not written, because GPT uses the table twice: its head, x @ wte.T, comes last in
    the forward, so first in the backward, and has left its share there. Both arrays are the caller's.

    `dwte[tokens] += dout` looks the same as np.add.at and is not: it reads all rows, adds, then writes all
    rows back. Of a token that occurs three times, only the last of its three gradients remains.
    """
    tokens, start = cache
    np.add.at(dwte, tokens, dout)
    dwpe[:] = 0
    dwpe[start:start + tokens.shape[1]] = dout.sum(axis=0)


def sinusoidal_positions(positions, channels, dtype=np.float32):  # -> (positions, channels)
    """A position table without training: a clock with a fast hand, a slower one, and so on.

        table[pos, 2i] = sin(pos / 10000^(2i / channels));    table[pos, 2i + 1] = cos(the same)

    all in float64, and only then rounded to dtype: of an angle of 5000, float32 keeps three decimals. An odd
    number of channels ends with a sine that has no cosine.

    Vaswani et al. 2017, section 3.5. Each pair (2i, 2i + 1) is a hand of the clock; its angle grows by the
    same step at every position. So a shift by k positions is a rotation, the same wherever one starts, and
    the product of two rows depends on their distance alone.

    >>> sinusoidal_positions(3, 4).round(2)
    array([[ 0.  ,  1.  ,  0.  ,  1.  ],
           [ 0.84,  0.54,  0.01,  1.  ],
           [ 0.91, -0.42,  0.02,  1.  ]], dtype=float32)
    """
    speed = 10000.0 ** -(np.arange(0, channels, 2) / channels)
    angle = np.arange(positions)[:, None] * speed
    table = np.empty((positions, channels), dtype)
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, :channels // 2])
    return table


def main():
    rng = np.random.default_rng(6)
    alphabet, text = " abcdefghijklmnopqrstuvwxyz", "to be or not to be"
    tokens = np.array([[alphabet.index(letter) for letter in text]])
    V, T, C = len(alphabet), len(text), 8
    wte, wpe = rng.normal(size=(V, C)), sinusoidal_positions(T, C)

    same = np.array_equal(one_hot(tokens, V) @ wte, wte[tokens])
    print(f"'{text}' is tokens {tokens[0, :5]} ...; one-hot @ W equals W[tokens]: {same}")
    print(f"  at GPT-2's size, 1024 tokens of 50257: one-hot is {1024 * 50257 * 4 / 1e6:.0f} MB and "
          f"{1024 * 50257 * 768 / 1e9:.0f} billion multiplications; "
          f"the lookup copies {1024 * 768 * 4 / 1e6:.0f} MB")

    _, cache = embedding_forward(tokens, wte, wpe)
    dwte, dwpe, wrong = np.zeros_like(wte), np.zeros_like(wpe), np.zeros_like(wte)
    dout = np.ones((1, T, C))  # every position asks for 1 more
    embedding_backward(dout, cache, dwte, dwpe)
    wrong[tokens] += dout
    used = np.flatnonzero(dwte.any(axis=1))
    print(f"rows of W with a gradient: {len(used)} of {V}; each letter collects as often as it occurs")
    print("  letter             ", *(f"{alphabet[v]!r:>4}" for v in used))
    print("  np.add.at          ", *(f"{dwte[v, 0]:4.0f}" for v in used))
    print("  dwte[tokens] += dx ", *(f"{wrong[v, 0]:4.0f}" for v in used), " <- repeats are lost")

    table = sinusoidal_positions(128, 64, np.float64)
    near = table @ table.T  # near[a, b]: how alike positions a and b are
    steps = [0, 1, 2, 4, 8, 16, 32]
    print(f"sinusoidal positions, 64 channels: product of two rows that lie {steps} apart")
    print("  from position 10:", *(f"{near[10, 10 + k]:5.1f}" for k in steps))
    print("  from position 90:", *(f"{near[90, 90 + k]:5.1f}" for k in steps), " the distance alone decides")
    print("picture:", draw(table, near))


def draw(table, near):  # (P, C), (P, P) -> path
    """The table as an image, and how alike each position is to two of them."""
    from pathlib import Path

    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    image = left.imshow(table, aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
    left.set(title="sinusoidal positions: fast hands left, slow ones right",
             xlabel="channel", ylabel="position")
    figure.colorbar(image, ax=left)
    for position in 10, 90:
        right.plot(near[position], label=f"position {position}")
    right.set(title="product of two rows: the same curve, moved", xlabel="position")
    right.legend()
    path = Path("out/lessons/embedding.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
