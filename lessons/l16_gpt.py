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

import numpy as np

from lessons import devices
from lessons.l13_block import block_backward, block_forward
from lessons.parameters import Config, Parameters, init_parameters


def gpt_forward(ops, p, tokens, start=0, attention=None, dropout=0.0, seed=0):  # (B, T) -> (B, T, V)
    """Logits of the next token at each position, and the cache; the first token stands at position `start`.

        x (B, T, C) = ops.embedding_forward(tokens, wte, wpe, start)
        x = block_forward(ops, x, p.blocks[layer], attention, dropout, seed)      for each layer, from 0 on
        logits = ops.linear_forward(ops.layernorm_forward(x, weight and bias of ln_f), wte.T)        no bias

    Each of them returns (out, cache). The cache of the whole is theirs, in this order: (embedding, [block 0,
    block 1, ...], layer norm, head). p is Parameters, and neither p nor tokens (integers) is changed.

    A block wants an attention that takes qkv (B, T, 3C) alone. By default it is causal:
    ops.self_attention_forward(qkv, config.n_head, causal=True); config is p.config. If attention is given,
    that one is called with (qkv, layer) instead and returns (out (B, T, C), cache): generation remembers
    there what it has seen (lesson 19). dropout is lesson 13's. Every step, thread and layer needs masks of
    its own: the block's seed is seed * config.n_layer + layer.
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
    """Write every gradient into g (Parameters), whatever stood there before. Nothing is returned: tokens have
    no gradient.

    The lines of gpt_forward from last to first, each with the cache it left:

        dh = ops.linear_backward(dlogits, ..., d wte.T)               writes
        dx = ops.layernorm_backward(dh, ..., two of ln_f)             writes
        dx = block_backward(ops, dx, ..., g.blocks[layer])            writes; the last layer first
        ops.embedding_backward(dx, ..., d wte, d wpe)                 adds to d wte, writes d wpe

    The token table is used twice, so its gradient has two parts: the head writes its own, and that is why the
    embedding adds. There is no bias in the head, hence no dbias.
    """
    embedding, blocks, norm, head = cache
    dh = ops.linear_backward(dlogits, head, g["wte.weight"].T)
    dx = ops.layernorm_backward(dh, norm, *g["ln_f"])
    for block, gradients in zip(reversed(blocks), reversed(g.blocks)):
        dx = block_backward(ops, dx, block, gradients)
    ops.embedding_backward(dx, embedding, g["wte.weight"], g["wpe.weight"])


def count_parameters(config):  # Config -> int
    """How many numbers a model of this Config learns: the sum over config.shapes() of the product of a shape.

    With V tokens, T positions, L layers: V C + T C, a block 12 C^2 + 13 C, the last norm 2 C. The head is the
    token table, so it counts once. (The padding in Parameters.flat is not learned and does not count.)

    >>> count_parameters(Config(vocab_size=2, block_size=3, n_layer=1, n_head=1, n_embd=4))
    272
    """
    return sum(math.prod(shape) for shape in config.shapes().values())


def count_flops(config, tokens):  # Config, int -> int
    """Multiplications and additions of one training step over `tokens` tokens in full blocks of T.

    A matrix of n numbers costs 2n operations a token forward, 4n backward (Kaplan et al. 2020, section 2.1).
    A block has 12 C^2 numbers in matrices, the head V C; tables are looked up, biases and norms neglected.
    Attention costs 2 C (T + 1) a token and layer forward, and twice that back: half of the square is masked,
    so a query meets (T + 1) / 2 keys on average, and q.k and weights.v cost 2 C operations a key each.
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
