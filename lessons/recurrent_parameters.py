"""The parameters of lesson 11's model of letters: their names, where they start, and the file they are in.

A model is {name: array}: 0.w_x, 0.w_h, 0.bias of the lowest layer, 1.w_x ... of the next, out.weight and
out.bias, which score the letters. All are views of one flat array. So the optimizer is one call on a slice.
"""
import math

import numpy as np

from lessons.errors import InputError
from lessons.model_file import load_model
from lessons.texts import numbered

GATES = {"rnn": 1, "lstm": 4}  # how many times H numbers each step computes


def shapes(kind, V, H, layers):  # V letters, H hidden numbers -> {name: shape}
    wide, found = GATES[kind] * H, {}
    for n in range(layers):
        found |= {f"{n}.w_x": (H if n else V, wide), f"{n}.w_h": (H, wide), f"{n}.bias": (wide,)}
    return found | {"out.weight": (H, V), "out.bias": (V,)}


def parameters(model):
    return sum(array.size for array in model.values())


def views(flat, shapes):  # (n,) -> {name: array}
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
    return {name: part.reshape(shapes[name]) for name, part in zip(shapes, np.split(flat, ends), strict=True)}


def init_parameters(kind, V, H, layers, seed, dtype=np.float32):  # -> (n,), {name: array}
    """Every weight within 1 / sqrt(H), as PyTorch's; within 1 where a letter's single 1 comes in. An RNN's
    w_h is orthogonal: a product with it keeps the length of what goes through. Biases are 0, but for the
    forget gate's: with 1 an LSTM begins by keeping what it has (Jozefowicz, Zaremba & Sutskever 2015)."""
    table, rng = shapes(kind, V, H, layers), np.random.default_rng(seed)
    flat = rng.uniform(-1, 1, sum(map(math.prod, table.values()))) / math.sqrt(H)
    p = views(flat.astype(dtype), table)
    for name, array in p.items():
        if name == "0.w_x":
            array *= math.sqrt(H)
        elif name.endswith("bias"):
            array[:] = 0
            if len(array) == 4 * H:
                array[H:2 * H] = 1
        elif name.endswith("w_h") and kind == "rnn":
            array[:] = np.linalg.qr(rng.normal(size=(H, H)))[0]
    return p["0.w_x"].base, p


def kind_of(p):  # -> kind, V, H, layers
    H, wide = p["0.w_h"].shape
    return "lstm" if wide > H else "rnn", len(p["out.bias"]), H, len(p) // 3


def layer(p, n):
    return p[f"{n}.w_x"], p[f"{n}.w_h"], p[f"{n}.bias"]


def start_state(p, rows):
    """Zeros for every layer: nothing was read yet."""
    kind, _, H, layers = kind_of(p)
    return [np.zeros((2, rows, H) if kind == "lstm" else (rows, H), p["0.w_h"].dtype) for _ in range(layers)]


def load(path, text):  # -> model, seconds
    """What `make lesson 11 ARGS="--train lstm"` has saved. InputError if it is missing, damaged, another
    model's, or of another text."""
    model, seconds = load_model(path, text)
    try:
        kind, _, H, layers = kind_of(model)
        want = shapes(kind, len(numbered(text)[1]), H, layers)
        fits = want == {name: array.shape for name, array in model.items()}
    except (KeyError, ValueError, TypeError):
        fits = False
    if not fits or any(array.dtype != np.float32 for array in model.values()):
        raise InputError(f"{path} is no model of lesson 11: train anew, or name another file")
    return model, seconds
