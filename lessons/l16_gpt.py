"""Lesson 16: the GPT. How do the pieces of lessons 6, 12 and 13 make a language model?

    x = wte[tokens] + wpe[positions]                 embedding: what, and where
    x = block(x)                                     n_layer times (lesson 13), attention is causal
    logits = layernorm(x) @ wte.T                    the head is the token table again ("tied")

logits[b, t] scores every token of the vocabulary as the one that comes after tokens[b, :t + 1]
(Radford et al. 2019; names and shapes are those of Hugging Face's GPT-2).

All parameters are views of one flat buffer, and so are their gradients: one optimizer call, one sum over
threads, one file. B batch, T positions, C channels, V vocabulary.
`make lesson 16` counts parameters and operations, and checks the gradient of the whole model.
"""
import math
from typing import NamedTuple

import numpy as np

from lessons import devices
from lessons.l13_block import block_backward, block_forward


class Config(NamedTuple):
    vocab_size: int = 512
    block_size: int = 64  # GPT-2's word for the longest context, in tokens; not a transformer block
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # C


def shapes(config):
    """Parameter name -> shape. Matrices first: they are what weight decay and Muon are for.

    >>> list(shapes(Config(n_layer=1)).items())[:3]
    [('wte.weight', (512, 128)), ('wpe.weight', (64, 128)), ('h.0.attn.c_attn.weight', (128, 384))]
    """
    C = config.n_embd
    block = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C),
             "ln_2": (C,), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    modules = {f"h.{layer}.{name}": shape for layer in range(config.n_layer) for name, shape in block.items()}
    modules["ln_f"] = (C,)
    tables = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.block_size, C)}
    matrices = {f"{name}.weight": shape for name, shape in modules.items() if len(shape) == 2}
    vectors = {}
    for name, shape in modules.items():
        if len(shape) == 1:
            vectors[f"{name}.weight"] = shape
        vectors[f"{name}.bias"] = shape[-1:]
    return tables | matrices | vectors


class Parameters:
    """Named views of one flat buffer, each starting on a 64-byte boundary (a cache line: 16 float32).

    p["wte.weight"] is an array, p["ln_f"] a module's (weight, bias), p.blocks[2]["attn.c_attn"] block 2's.
    Zero at first. p.parts are slices of p.flat: tables, the blocks' matrices, vectors. Optimizers treat these
    differently. The padding between views stays 0.
    """

    def __init__(self, config, flat=None, dtype=np.float32):
        self.config, spec, starts, end = config, shapes(config), {}, 0
        for name, shape in spec.items():
            starts[name] = end
            end += (math.prod(shape) + 15) // 16 * 16
        cuts = 0, starts["h.0.attn.c_attn.weight"], starts["h.0.ln_1.weight"], end
        self.parts = dict(zip(("tables", "matrices", "vectors"), map(slice, cuts[:-1], cuts[1:])))
        self.flat = aligned_zeros(end, dtype) if flat is None else flat
        self.views = {name: self.flat[starts[name]:starts[name] + math.prod(shape)].reshape(shape)
                      for name, shape in spec.items()}
        names = [name.removesuffix(".bias") for name in spec if name.endswith(".bias")]
        self.modules = {name: (self.views[f"{name}.weight"], self.views[f"{name}.bias"]) for name in names}
        self.blocks = [{name.removeprefix(f"h.{layer}."): pair for name, pair in self.modules.items()
                        if name.startswith(f"h.{layer}.")} for layer in range(config.n_layer)]

    def __getitem__(self, name):
        return self.modules[name] if name in self.modules else self.views[name]


def aligned_zeros(n, dtype):
    buffer = np.zeros(n + 16, dtype)
    skip = -buffer.ctypes.data % 64 // buffer.itemsize
    return buffer[skip:skip + n]


def init_parameters(config, seed=0, dtype=np.float32):
    """Random matrices, layer norms 1, biases 0.

    Tables N(0, 0.02^2); matrices N(0, 0.25/C), so that a layer keeps about half of its input's spread; those
    that write into the residual stream smaller by sqrt(2 n_layer), since that many of them add up there.
    """
    p, rng = Parameters(config, dtype=dtype), np.random.default_rng(seed)
    for name, view in p.views.items():
        if view.ndim == 2:
            std = 0.02 if name.startswith(("wte", "wpe")) else 0.5 / math.sqrt(config.n_embd)
            if name.endswith("c_proj.weight"):
                std /= math.sqrt(2 * config.n_layer)
            view[:] = std * rng.standard_normal(view.shape)
        elif "ln_" in name and name.endswith("weight"):
            view[:] = 1
    return p


def gpt_forward(ops, p, tokens, start=0, attention=None, dropout=0.0, seed=0):  # (B, T) -> (B, T, V)
    """Logits of the next token at each position; the first token stands at position `start`.

    attention(qkv, layer) -> (out, cache) takes the place of causal self-attention: generation remembers there
    what it has seen (lesson 19). dropout is lesson 13's: every step and every thread needs its own seed.
    """
    config = p.config
    if attention is None:
        def attention(qkv, layer):
            return ops.self_attention_forward(qkv, config.n_head, causal=True)
    x, embedding = ops.embedding_forward(tokens, p["wte.weight"], p["wpe.weight"], start)
    blocks = []
    for layer, block in enumerate(p.blocks):
        x, cache = block_forward(ops, x, block, lambda qkv, layer=layer: attention(qkv, layer), dropout,
                                 seed * config.n_layer + layer)
        blocks.append(cache)
    h, norm = ops.layernorm_forward(x, *p["ln_f"])
    logits, head = ops.linear_forward(h, p["wte.weight"].T)
    return logits, (embedding, blocks, norm, head)


def gpt_backward(ops, dlogits, cache, g):  # (B, T, V)
    """Write every gradient into g (Parameters). The token table's has two parts: the head writes its own, the
    embedding adds its own."""
    embedding, blocks, norm, head = cache
    dh = ops.linear_backward(dlogits, head, g["wte.weight"].T)
    dx = ops.layernorm_backward(dh, norm, *g["ln_f"])
    for block, gradients in zip(reversed(blocks), reversed(g.blocks)):
        dx = block_backward(ops, dx, block, gradients)
    ops.embedding_backward(dx, embedding, g["wte.weight"], g["wpe.weight"])


def count_parameters(config):
    return sum(math.prod(shape) for shape in shapes(config).values())


def count_flops(config, tokens):
    """Multiplications and additions of one training step over `tokens` tokens in full blocks.

    A matrix of n numbers costs 2n operations a token forward, 4n backward (Kaplan et al. 2020, section 2.1);
    attention 2 C (T + 1) a token and layer forward (half of the square is masked), and twice that back.
    """
    C, T = config.n_embd, config.block_size
    multiplied = config.n_layer * 12 * C * C + config.vocab_size * C
    return tokens * (6 * multiplied + config.n_layer * 6 * C * (T + 1))


def main():
    for name, config in [("the main job's", Config()), ("GPT-2 small", Config(50257, 1024, 12, 12, 768)),
                         ("GPT-3", Config(50257, 2048, 96, 96, 12288))]:
        n, flops = count_parameters(config), count_flops(config, 1)
        size = f"{4 * n / 1e6:.1f} MB" if n < 1e8 else f"{4 * n / 1e9:.1f} GB"
        print(f"{name:15s}{n:16,} parameters = {size:>8s} in float32; "
              f"{flops / 1e9:8,.3f} billion operations to train on one token")
    config = Config(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
    ops, rng = devices.ops("numpy"), np.random.default_rng(1)
    p, g = init_parameters(config, dtype=np.float64), Parameters(config, dtype=np.float64)
    p.flat[:] += 0.1 * rng.standard_normal(p.flat.size)
    tokens, targets = rng.integers(0, 11, (2, 3, 6))

    def loss():
        return ops.cross_entropy(gpt_forward(ops, p, tokens)[0], targets)[0]

    logits, cache = gpt_forward(ops, p, tokens)
    gpt_backward(ops, ops.cross_entropy(logits, targets)[1], cache, g)
    print("\nthe gradient of the whole model: by hand, and by moving one parameter a little")
    for name in "wte.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.bias", "ln_f.weight":
        value, i = p.views[name].reshape(-1), 5
        value[i] += 1e-5
        above = loss()
        value[i] -= 2e-5
        slope = (above - loss()) / 2e-5
        value[i] += 1e-5
        print(f"  {name:24s} number {i}: {g.views[name].reshape(-1)[i]:+.9f}  {slope:+.9f}")
