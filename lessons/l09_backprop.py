"""Lesson 9: backprop. The output is wrong: which of all the weights is to blame, and how much?

    a layer      h = sigma(z),  z = x W + b         sigma: sigmoid, tanh or ReLU, on each number by itself
    chain rule   dz = dh * sigma'(z)                dh is dL/dh: how much the loss L changes with each h
                 dW = x^T dz,   db = dz             (summed over the rows, where x has several)
                 dx = dz W^T                        this is the dh of the layer before

One walk from last to first gives the gradient of every weight (Rumelhart, Hinton & Williams 1986, eq. 4-7).

The example is from "Large language models from theory to practice", the article this course follows: 'I like
to read books' is to become 'I enjoy reading books'. Its equations are those of this file (where W x is x W):

    e = W_e[v]   H = sigma(W e + b)   D = sigma(W' H + b')   p = softmax(W_o D + b_o)   L = -sum y log p

The numbers printed there do not follow from each other. For the sizes and random weights chosen here they are
p of I, enjoy, reading, books, <end>; then L and what the model writes, before and after the first update:

>>> source, target, p = encode(SOURCE), encode(TARGET), init_parameters(seed=9)
>>> softmax_forward(model_forward(source, p, "tanh")[0])[0][range(T), target].round(3)
array([0.102, 0.118, 0.15 , 0.068, 0.155])
>>> [(round(loss, 3), words) for loss, words in train(source, target, p, "tanh", rate=0.05, steps=2)]
[(10.873, 'like books read enjoy reading'), (8.901, 'like books read enjoy')]

W has rows for T = 5 places, and '<end>' fills up what is shorter. A sixth word would find no rows, and a word
that moves by one place finds other rows: lesson 12's attention has one set of weights for all places.
I inputs and K outputs of a layer, T places in a sentence, C channels of an embedding, V words.
`make lesson 9` computes the first update, checks every gradient, and trains until the target is written.
"""
import numpy as np

from lessons.l08_losses import cross_entropy, softmax_forward

SOURCE, TARGET, END = "I like to read books", "I enjoy reading books", "<end>"
WORDS = list(dict.fromkeys(f"{END} {SOURCE} {TARGET}".split()))  # each word once
T, V = len(SOURCE.split()), len(WORDS)


def sigmoid(z):  # (...) -> (...)
    """1 / (1 + exp(-z)), in z's dtype. exp(1000) is inf: so let e = exp(-|z|); if z < 0, e / (1 + e)."""
    e = np.exp(-np.abs(z))
    return np.where(z < 0, e, 1) / (1 + e)


def activation_forward(z, name):  # (...) -> (...)
    """h = sigma(z), cache = (h, name): h tells the slope. Two layers without a sigma would be one:
    (x A) B = x (A B); so "identity" is for the output alone. ValueError for an unknown name."""
    sigma = {"sigmoid": sigmoid, "tanh": np.tanh, "relu": lambda z: np.maximum(z, 0), "identity": lambda z: z}
    if name not in sigma:
        raise ValueError(f"there is no activation {name!r}: choose one of {', '.join(sigma)}")
    h = sigma[name](z)
    return h, (h, name)


def activation_backward(dh, cache):  # (...) -> (...)
    """dz = dh * sigma'(z), in dh's dtype. cache = (h, name); the slope sigma' (of the identity 1), from h:

        sigmoid  h (1 - h)             at most 1/4: a sigmoid lets a quarter of the gradient pass, or less
        tanh     1 - h^2               1 in the middle; 0 at both ends, as sigmoid's
        relu     1 if h > 0, else 0    at z = 0, a corner, any number from 0 to 1 would do: we take 0"""
    h, name = cache
    slope = {"sigmoid": lambda h: h * (1 - h), "tanh": lambda h: 1 - h * h, "relu": lambda h: h > 0}
    return dh if name == "identity" else dh * slope[name](h)


def dense_forward(x, weight, bias, activation):  # (..., I), (I, K), (K,) -> (..., K)
    """h = sigma(x @ weight + bias); cache = (x, weight, the cache of activation_forward)."""
    h, slope = activation_forward(x @ weight + bias, activation)
    return h, (x, weight, slope)


def dense_backward(dh, cache, dweight, dbias):  # (..., K) -> (..., I)
    """The chain rule through dense_forward: dz = dh * sigma'(z); return dx = dz W^T. Over what was in them
    write dweight (I, K) = x^T dz and dbias (K,) = dz, both summed over the rows: all axes but the last."""
    x, weight, slope = cache
    dz = activation_backward(dh, slope)
    rows = dz.reshape(-1, dz.shape[-1])
    dweight[:] = x.reshape(-1, x.shape[-1]).T @ rows
    dbias[:] = rows.sum(axis=0)
    return dz @ weight.T


def numeric_gradient(loss, x, eps=1e-5):  # -> the shape of x
    """dL/dx by trying: (L(x + eps) - L(x - eps)) / (2 eps), for one number of x after the other.

    loss() takes nothing and looks at x, changed in place (a view too) and put back to the last bit. Why both
    sides: one is off by eps L'' / 2, the middle by eps^2 L''' / 6. Why not a tiny eps: L is rounded to 1e-16
    of itself, so the quotient to 1e-16 L / eps. The two meet near 1e-5: expect errors of 1e-10 to 1e-8; above
    1e-6 is a mistake, or a ReLU's corner within eps. ValueError if not float64: 1e-7 / eps leaves two digits.
    """
    if x.dtype != np.float64:
        raise ValueError(f"x is {x.dtype}, whose rounding would hide a mistake: use float64")
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        middle = x[i]
        x[i] = middle + eps
        above = loss()
        x[i] = middle - eps
        gradient[i] = (above - loss()) / (2 * eps)
        x[i] = middle
    return gradient


def relative_error(got, want):
    """|got - want| / the larger of |got|, |want|. 0 if the same; a factor of 2 gives 0.5, a wrong sign 2."""
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(got), np.linalg.norm(want), 1e-300))


def encode(sentence):  # text -> (T,) int
    """The words' places in WORDS, then '<end>' up to T. ValueError for another word, or more than T."""
    words = sentence.split()
    if len(words) > T or not set(words) <= set(WORDS):
        raise ValueError(f"{sentence!r} is not made of at most {T} of these words: {' '.join(WORDS)}")
    return np.array([WORDS.index(word) for word in words + [END] * (T - len(words))])


def init_parameters(seed, C=4, K=12):
    """Biases 0, weights random, over the root of the inputs: z is then of the size of x, for any layer."""
    rng = np.random.default_rng(seed)
    matrix = lambda rows, columns: rng.normal(size=(rows, columns)) / rows**0.5
    return {"W_e": rng.normal(size=(V, C)), "W": matrix(T * C, K), "b": np.zeros(K), "W'": matrix(K, K),
            "b'": np.zeros(K), "W_o": matrix(K, T * V), "b_o": np.zeros(T * V)}


def model_forward(source, p, activation):  # (T,) int -> logits (T, V)
    """Look up rows of W_e; encode with W, b; decode with W', b'; score with W_o, b_o, no sigma. The encoder
    sees all T embeddings as one row of T * C numbers. Returns logits and the caches of the three layers."""
    e = p["W_e"][source].reshape(-1)
    h, encoder = dense_forward(e, p["W"], p["b"], activation)
    d, decoder = dense_forward(h, p["W'"], p["b'"], activation)
    logits, output = dense_forward(d, p["W_o"], p["b_o"], "identity")
    return logits.reshape(T, V), (encoder, decoder, output)


def loss_and_gradients(source, target, p, activation):  # (T,) int, (T,) int -> float, {name: gradient}
    """L = -sum of log p[target] (a sum, so total=1), and dL/dp by the lines above, reversed: new arrays with
    the names and shapes of p's. Row t of the encoder's dx, as (T, C), is added to row source[t] of dW_e."""
    logits, (encoder, decoder, output) = model_forward(source, p, activation)
    loss, dlogits = cross_entropy(logits, target, total=1)
    g = {name: np.zeros_like(x) for name, x in p.items()}
    dd = dense_backward(dlogits.reshape(-1), output, g["W_o"], g["b_o"])
    dh = dense_backward(dd, decoder, g["W'"], g["b'"])
    de = dense_backward(dh, encoder, g["W"], g["b"])
    np.add.at(g["W_e"], source, de.reshape(T, -1))  # lesson 6: a word that occurs twice collects both
    return loss, g


def write(source, p, activation):  # (T,) int -> text
    """The most probable word at each place, up to the first '<end>'."""
    words = [WORDS[v] for v in model_forward(source, p, activation)[0].argmax(axis=-1)]
    return " ".join(words).split(END)[0].strip()


def train(source, target, p, activation, rate, steps):
    """SGD: W <- W - rate * dW for all of p, in place. Returns [(loss, what it writes)] before each step."""
    history = []
    for _ in range(steps):
        loss, g = loss_and_gradients(source, target, p, activation)
        history.append((loss, write(source, p, activation)))
        for name in p:
            p[name] -= rate * g[name]
    return history


def main():
    for name in "sigmoid", "tanh", "relu":
        slope = activation_backward(np.ones(5), activation_forward(np.array([-4.0, -1, 0, 1, 4]), name)[1])
        print(f"slope of {name:7} at -4, -1, 0, 1, 4 ", *(f"{x:6.3f}" for x in slope))
    source, target, p = encode(SOURCE), encode(TARGET), init_parameters(seed=9)
    loss, g = loss_and_gradients(source, target, p, "tanh")
    probabilities = softmax_forward(model_forward(source, p, "tanh")[0])[0]
    print(f"\n'{SOURCE}' -> '{TARGET} {END}'\nsecond word       ", *(f"{w:>7}" for w in WORDS))
    for name, table in {"p": probabilities, "y": np.eye(V)[target], "db_o = p - y": g["b_o"],
                        "b_o - 0.05 db_o": p["b_o"] - 0.05 * g["b_o"]}.items():
        print(f"  {name:16}", *(f"{x:7.3f}" for x in table.reshape(T, V)[1]))
    print("  loss =", *(f"- log {x:.3f}" for x in probabilities[range(T), target]), f"= {loss:.3f}")
    print("\ngradient  shape      its largest number    numerically   relative error")
    for name, x in p.items():
        numeric = numeric_gradient(lambda: loss_and_gradients(source, target, p, "tanh")[0], x)
        i, error = np.abs(g[name]).argmax(), relative_error(g[name], numeric)
        print(f"  d{name:6} {x.shape!s:10} {g[name].flat[i]:18.9f} {numeric.flat[i]:14.9f} {error:16.1e}")
    history = train(source, target, p, "tanh", rate=0.05, steps=101)
    print("\nstep    loss   what it writes")
    for step in *range([words for _, words in history].index(TARGET) + 1), 100:
        print(f"{step:4} {history[step][0]:7.3f}   {history[step][1]}")
    print(f"'to like' becomes '{write(encode('to like'), p, 'tanh')}' too: one pair teaches one answer")
    from pathlib import Path

    from matplotlib.figure import Figure
    panel = Figure(figsize=(7, 4.5), layout="constrained").subplots()
    z, eps = np.linspace(-3, 3, 200), 10.0 ** np.arange(-12, 0.1, 0.25)[:, None]
    slope = activation_backward(1.0, activation_forward(z, "sigmoid")[1])
    for name, dtype, both in ("one side", "f8", 0), ("both sides", "f8", 1), ("both, float32", "f4", 1):
        x, step = z.astype(dtype), eps.astype(dtype)
        numeric = (sigmoid(x + step) - sigmoid(x - both * step)) / (step + both * step)
        panel.loglog(eps, [relative_error(row, slope) for row in numeric], label=name)
    panel.set(title="error of a sigmoid's numeric slope: left rounding, right the curve's bend", xlabel="eps")
    panel.legend()
    Path("out/lessons").mkdir(parents=True, exist_ok=True)
    panel.figure.savefig("out/lessons/backprop.png", dpi=100)
    print("picture: out/lessons/backprop.png")
