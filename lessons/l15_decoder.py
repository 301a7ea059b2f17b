"""Lesson 15: decoder. How does a model write one text while it reads another?

    memory = encoder(source)                                   lesson 14: one vector for each source token
    x = x + attention(q, k, v: layernorm(x)) @ W_o             look at what is written so far (causal)
    x = x + attention(q: layernorm(x); k, v: memory) @ W_o     consult the source (cross-attention)
    x = x + gelu(layernorm(x) @ W_1) @ W_2                     think
    logits = layernorm(x) @ wte.T                              after n_layer such blocks: the next token

Between the two halves of a GPT's block (lesson 13) stands a third part: queries from the text that is being
written, keys and values from the source. So each new token asks where in the source to look (Vaswani et al.
2017, sections 3.1 and 3.2.3; here the norm comes first, as in GPT-2).

In training the decoder reads the right text, all positions at once ("teacher forcing"), one place late: else
it could copy. In use it reads what it wrote itself, token by token, from <bos> until it writes <eos>.

B batch, S positions of the source, T of the text, C channels, H heads, V vocabulary.
`make lesson 15` learns to write random words backwards, always new ones, and draws where it looks.
"""
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons import l13_block as block
from lessons.l05_tokenizer import pad
from lessons.l08_losses import IGNORE
from lessons.l10_optimizers import warmup_linear
from lessons.l14_encoder import encoder_backward, encoder_forward, update
from lessons.parameters import Config, Parameters, init_parameters

SYMBOLS, BOS, EOS = "abcdefghijklmnopqrstuvwxyz<>", 26, 27  # < stands for <bos>, > for <eos>


class EncoderDecoderConfig(Config):
    """Two stacks of these sizes, p.under("encoder.") and p.under("decoder."). Names are Hugging Face's."""

    def shapes(self):
        C = self.n_embd
        consult = {"ln_cross_attn": (C,), "crossattention.q_attn": (C, C),
                   "crossattention.c_attn": (C, 2 * C), "crossattention.c_proj": (C, C)}
        stacks = {"encoder.": super().shapes(), "decoder.": super().shapes(consult)}
        return {stack + name: shapes[name] for stack, shapes in stacks.items() for name in shapes}


def consult_forward(ops, x, p, memory, n_head, lengths=None, dropout=0.0, seed=0):
    """x (B, T, C), memory (B, S, C) -> x + dropout(attention(q, k, v) @ W_o + b_o), by branch_forward;
    q = layernorm(x) @ W_q + b_q, k|v = memory @ W_kv + b_kv. p: module name -> (weight, bias), named as in
    shapes. Of row b of memory the first lengths[b] positions are real (None: all): nobody looks at the rest.
    cache: layernorm's, q_attn's, c_attn's, attention's (alignment reads it), branch_forward's."""
    h, norm = ops.layernorm_forward(x, *p["ln_cross_attn"])
    q, q_attn = ops.linear_forward(h, *p["crossattention.q_attn"])
    kv, c_attn = ops.linear_forward(memory, *p["crossattention.c_attn"])
    h, attended = ops.cross_attention_forward(q, kv, n_head, lengths=lengths)
    x, c_proj = block.branch_forward(ops, x, h, *p["crossattention.c_proj"], dropout, seed)
    return x, (norm, q_attn, c_attn, attended, c_proj)


def consult_backward(ops, dx, cache, g):  # (B, T, C) -> (B, T, C), (B, S, C)
    """Return dx and dmemory (0 in padding): consult_forward's lines from last to first. x goes two ways, so
    dx = dx + layernorm's dx. g: module name -> (dweight, dbias), written. dx is used up."""
    norm, q_attn, c_attn, attended, c_proj = cache
    dh = block.branch_backward(ops, dx, c_proj, *g["crossattention.c_proj"])
    dq, dkv = ops.cross_attention_backward(dh, attended)
    dmemory = ops.linear_backward(dkv, c_attn, *g["crossattention.c_attn"])
    dh = ops.linear_backward(dq, q_attn, *g["crossattention.q_attn"])
    return ops.layernorm_backward(dh, norm, *g["ln_cross_attn"], dresidual=dx), dmemory


def decoder_forward(ops, p, tokens, memory, lengths=None, dropout=0.0, seed=0):
    """tokens (B, T), memory (B, S, C) -> logits (B, T, V) of the token after each position, as at the top.
    lengths (B,): how many positions of each row of memory are real. Padding in tokens needs none: it stands
    at the end, where the causal mask hides it. ValueError unless memory has a row for each row of tokens.
    Look, consult and think each drop others: the seeds of layer l are 3 (seed * n_layer + l) + 0, 1, 2.
    cache: embedding's, a list of each layer's (look's, consult's, think's), layernorm's, the head's."""
    if len(memory) != len(tokens):
        raise ValueError(f"{len(tokens)} rows of tokens, {len(memory)} of memory: give each its own source")
    n_head, blocks = p.config.n_head, []
    x, embedding = ops.embedding_forward(tokens, p["wte.weight"], p["wpe.weight"])
    for layer, modules in enumerate(p.blocks):
        first = 3 * (seed * p.config.n_layer + layer)
        x, looked = block.look_forward(ops, x, modules, lambda qkv: ops.self_attention_forward(qkv, n_head),
                                       dropout, first)
        x, consulted = consult_forward(ops, x, modules, memory, n_head, lengths, dropout, first + 1)
        x, thought = block.think_forward(ops, x, modules, dropout, first + 2)
        blocks.append((looked, consulted, thought))
    h, norm = ops.layernorm_forward(x, *p["ln_f"])
    logits, head = ops.linear_forward(h, p["wte.weight"].T)
    return logits, (embedding, blocks, norm, head)


def decoder_backward(ops, dlogits, cache, g):  # (B, T, V) -> (B, S, C)
    """Write every gradient into g (Parameters); return dmemory = the sum of what each layer asks of it."""
    embedding, blocks, norm, head = cache
    dh = ops.linear_backward(dlogits, head, g["wte.weight"].T)
    dx, dmemory = ops.layernorm_backward(dh, norm, *g["ln_f"]), 0
    for (looked, consulted, thought), gradients in zip(reversed(blocks), reversed(g.blocks)):
        dx = block.think_backward(ops, dx, thought, gradients)
        dx, asked = consult_backward(ops, dx, consulted, gradients)
        dx, dmemory = block.look_backward(ops, dx, looked, gradients), dmemory + asked
    ops.embedding_backward(dx, embedding, g["wte.weight"], g["wpe.weight"])
    return dmemory


def alignment(cache):  # decoder_forward's -> (n_layer, B, H, T, S)
    """Where in the source each position looks: the softmax weights of every consultation."""
    return np.stack([attended[3] for _, (_, _, _, attended, _), _ in cache[1]])


def encoder_decoder_forward(ops, p, source, tokens, lengths=None, dropout=0.0, seed=0):
    """source (B, S), tokens (B, T) -> logits (B, T, V). lengths (B,) are those of the source."""
    # L layers: seeds 6 L seed + 0 .. 3L - 1 are the decoder's, 6 L seed + 4L .. 6L - 1 the encoder's.
    memory, encoder = encoder_forward(ops, p.under("encoder."), source, lengths, dropout, 3 * seed + 2)
    logits, decoder = decoder_forward(ops, p.under("decoder."), tokens, memory, lengths, dropout, 2 * seed)
    return logits, (encoder, decoder)


def encoder_decoder_backward(ops, dlogits, cache, g):  # (B, T, V)
    """Write every gradient into g. The encoder's are of dmemory (B, S, C) alone; its dwte starts from 0."""
    encoder, decoder = cache
    dmemory = decoder_backward(ops, dlogits, decoder, g.under("decoder."))
    g["encoder.wte.weight"][:] = 0  # the encoder adds to it, and no tied head has written it
    encoder_backward(ops, dmemory, encoder, g.under("encoder."))


def encoder_decoder_gradient(ops, p, batch, total, g, dropout=0.0, seed=0):
    """These rows' part of the mean loss over `total` targets; writes its gradient into g. batch: source
    (B, S), targets (B, T) with IGNORE in padding, inputs (B, T): targets one place late, lengths (B,)."""
    source, targets, inputs, lengths = batch
    logits, cache = encoder_decoder_forward(ops, p, source, inputs, lengths, dropout, seed)
    loss, dlogits = ops.cross_entropy(logits, targets, total)
    encoder_decoder_backward(ops, dlogits, cache, g)
    return loss


def write(ops, p, source, lengths, bos, eos, n):  # (B, S), (B,) -> (B, at most n)
    """Greedy: after bos the most probable token, until every row has written eos, or n tokens. A row that has
    ended is filled up with eos. The source is read once, the text for each token (lesson 19 does not)."""
    memory, _ = encoder_forward(ops, p.under("encoder."), source, lengths)
    tokens, ended = np.full((len(source), 1), bos), np.zeros(len(source), bool)
    while tokens.shape[1] <= n and not ended.all():
        logits, _ = decoder_forward(ops, p.under("decoder."), tokens, memory, lengths)
        new = np.where(ended, eos, logits[:, -1].argmax(axis=-1))
        tokens, ended = np.append(tokens, new[:, None], axis=1), new == eos
    return tokens[:, 1:]


def reversal(words):  # B strings -> source (B, T), targets (B, T), inputs (B, T), lengths (B,)
    """A batch for encoder_decoder_gradient, T = longest word + 1. source: word + EOS. targets: reversed word
    + EOS. inputs: BOS + targets without the last. Padding is EOS, in targets IGNORE. lengths: letters + 1."""
    source, real = pad([[*map(SYMBOLS.index, word + ">")] for word in words], EOS)
    targets, _ = pad([[*map(SYMBOLS.index, word[::-1] + ">")] for word in words], EOS)
    inputs = np.insert(targets[:, :-1], 0, BOS, axis=1)
    return source, np.where(real, targets, IGNORE), inputs, real.sum(axis=1)


def reverse(ops, p, words):  # B strings -> B strings: what the model writes
    source, _, _, lengths = reversal(words)
    rows = write(ops, p, source, lengths, BOS, EOS, source.shape[1])
    return ["".join(SYMBOLS[token] for token in row).split(">")[0] for row in rows]


def random_words(rng, n):  # -> n strings of 5 to 12 letters
    return ["".join(SYMBOLS[i] for i in rng.integers(0, 26, length)) for length in rng.integers(5, 13, n)]


def train(ops, p, words, steps):  # yields the loss of each step; words(): the strings of the next batch
    g, m, v = (Parameters(p.config) for _ in range(3))
    for step in range(1, steps + 1):
        batch, rate = reversal(words()), warmup_linear(step, steps + 1, steps // 20, 0.015)
        loss = encoder_decoder_gradient(ops, p, batch, np.count_nonzero(batch[1] != IGNORE), g)
        update(ops, p, g, m, v, rate, step, share=1.0)
        yield loss


def main():
    threadpool_limits(1, "blas")  # these matrices are too small to share
    ops, rng, fresh = devices.ops("cpu"), np.random.default_rng(15), np.random.default_rng(16)
    p = init_parameters(EncoderDecoderConfig(len(SYMBOLS), 13, n_layer=1, n_head=4, n_embd=64))
    for step, loss in enumerate(train(ops, p, lambda: random_words(rng, 32), 500), 1):
        if step == 1 or step % 100 == 0:
            words = random_words(fresh, 1000 if step == 500 else 200)
            right = np.mean([word == text[::-1] for word, text in zip(words, reverse(ops, p, words))])
            print(f"  step {step:3}: loss {loss:.4f}, {right:6.1%} of {len(words):4} words exactly right; "
                  f"transformer -> {reverse(ops, p, ['transformer'])[0]}", flush=True)
    draw(ops, p, ["transformer", "stressed"])


def draw(ops, p, words):
    from matplotlib.figure import Figure
    source, _, inputs, lengths = reversal(words)
    _, (_, cache) = encoder_decoder_forward(ops, p, source, inputs, lengths)
    figure, S = Figure(figsize=(12, 5), layout="constrained"), source.shape[1]
    for panel, heads, word, n in zip(figure.subplots(1, 2), alignment(cache)[-1], words, lengths):
        panel.imshow(heads.mean(axis=0)[:n], cmap="Blues", vmin=0, vmax=1)
        panel.set(xlabel="looks at (mean of the heads)", ylabel="writes", xticks=range(S), yticks=range(n),
                  xticklabels=[*word, "<eos>"] + ["pad"] * (S - n), yticklabels=[*word[::-1], "<eos>"])
    Path("out/lessons").mkdir(parents=True, exist_ok=True)
    figure.savefig("out/lessons/decoder.png", dpi=100)
    print("picture: out/lessons/decoder.png")
