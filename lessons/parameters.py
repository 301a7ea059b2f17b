"""All numbers that a model learns: named views of one flat buffer.

One buffer means one call of the optimizer, one sum over threads, one file. Encoder (lesson 14), decoder (15)
and GPT (16) keep theirs here; names and shapes are those of Hugging Face's GPT-2.
"""
import copy
import math
from typing import NamedTuple

import numpy as np


def block_shapes(C):
    """Module of lesson 13's block -> the shape of its weight. A bias has the last axis of the weight."""
    return {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C),
            "ln_2": (C,), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}


class Config(NamedTuple):
    """The sizes of a stack of blocks between a token table and a last layer norm."""

    vocab_size: int = 512
    block_size: int = 64  # GPT-2's word for the longest context, in tokens; not a transformer block
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # C

    def shapes(self, more=None):  # dict or None -> {str: tuple}
        """Parameter name -> shape, in the order of computation.

        wte.weight (vocab_size, C), wpe.weight (block_size, C); for each layer, as h.0.ln_1 and so on, the
        modules of block_shapes in their order, then those of `more` (module -> shape of its weight); ln_f
        (C,). A module has two parameters: name.weight, and name.bias with the last axis of the weight.

        >>> list(Config(n_layer=1).shapes().items())[:3]
        [('wte.weight', (512, 128)), ('wpe.weight', (64, 128)), ('h.0.ln_1.weight', (128,))]
        """
        C, block = self.n_embd, block_shapes(self.n_embd) | (more or {})
        modules = {f"h.{layer}.{name}": block[name] for layer in range(self.n_layer) for name in block}
        found = {"wte.weight": (self.vocab_size, C), "wpe.weight": (self.block_size, C)}
        for name, shape in (modules | {"ln_f": (C,)}).items():
            found |= {f"{name}.weight": shape, f"{name}.bias": shape[-1:]}
        return found


def part_of(name, shape):
    """Optimizers treat these differently: matrices are what weight decay and Muon are for."""
    return "vectors" if len(shape) == 1 else "tables" if name.endswith(("wte.weight", "wpe.weight")) \
        else "matrices"


class Parameters:
    """p["wte.weight"] is an array, p["ln_f"] a module's (weight, bias), p.blocks[2]["attn.c_attn"] block 2's.

    Zero at first. Every view starts on a 64-byte boundary (a cache line: 16 float32); the padding between
    views stays 0. p.parts are slices of p.flat: tables, matrices, vectors. config is a Config, or has at
    least its shapes() and n_layer.
    """

    def __init__(self, config, flat=None, dtype=np.float32):
        self.config, spec, self.parts, starts, end = config, config.shapes(), {}, {}, 0
        for part in "tables", "matrices", "vectors":
            first = end
            for name, shape in spec.items():
                if part_of(name, shape) == part:
                    starts[name] = end
                    end += (math.prod(shape) + 15) // 16 * 16
            self.parts[part] = slice(first, end)
        self.flat = aligned_zeros(end, dtype) if flat is None else flat
        self.lay_out({name: self.flat[start:start + math.prod(spec[name])].reshape(spec[name])
                   for name, start in starts.items()})

    def lay_out(self, views):
        self.views = views
        modules = [name.removesuffix(".bias") for name in views if name.endswith(".bias")]
        self.modules = {name: (views[f"{name}.weight"], views[f"{name}.bias"]) for name in modules}
        self.blocks = [{name.removeprefix(f"h.{layer}."): pair for name, pair in self.modules.items()
                        if name.startswith(f"h.{layer}.")} for layer in range(self.config.n_layer)]

    def under(self, prefix):
        """Those whose names begin with prefix, without it: p.under("decoder.")["ln_f"]. The same numbers; but
        flat and its parts belong to the whole, and are not here."""
        part = copy.copy(self)
        part.flat = part.parts = None
        part.lay_out({name.removeprefix(prefix): view for name, view in self.views.items()
                   if name.startswith(prefix)})
        return part

    def __getitem__(self, name):
        return self.modules[name] if name in self.modules else self.views[name]


def aligned_zeros(n, dtype):
    buffer = np.zeros(n + 16, dtype)
    skip = -buffer.ctypes.data % 64 // buffer.itemsize
    return buffer[skip:skip + n]


def init_parameters(config, seed=0, dtype=np.float32):  # Config, int -> Parameters
    """Parameters of this config and dtype: random tables and matrices, weights of layer norms 1, biases 0.

    Tables are N(0, 0.02^2). Matrices are N(0, 0.25 / C), a spread of 0.5 / sqrt(C), so that a layer of C
    inputs keeps about half of theirs; but those that write into the residual stream, all that are called
    c_proj, get a spread smaller by sqrt(2 n_layer): in a GPT that many add up there.

    Which is which: part_of(name, shape). A layer norm has ln_ in its name. The views are filled in their
    order, from np.random.default_rng(seed) alone: the same seed gives the same model. The numbers are those
    of standard_normal in float64, times the spread; dtype is what they are stored as.
    """
    p, rng = Parameters(config, dtype=dtype), np.random.default_rng(seed)
    for name, view in p.views.items():
        part = part_of(name, view.shape)
        if part != "vectors":
            std = 0.02 if part == "tables" else 0.5 / math.sqrt(config.n_embd)
            if name.endswith("c_proj.weight"):
                std /= math.sqrt(2 * config.n_layer)
            view[:] = std * rng.standard_normal(view.shape)
        elif "ln_" in name and name.endswith("weight"):
            view[:] = 1
    return p


def on_host(p):
    """Parameters in NumPy's arrays: p itself, or a copy of what lies on a GPU."""
    return p if isinstance(p.flat, np.ndarray) else Parameters(p.config, p.flat.numpy())
