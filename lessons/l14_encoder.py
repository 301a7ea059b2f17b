"""Lesson 14: encoder. What does a model gain that may look both ways, and what can it learn from?

    x = wte[tokens] + wpe[positions]                 embedding: what, and where
    x = block(x)                                     n_layer times (lesson 13), attention sees the whole row
    x = layernorm(x)                                 a vector for each token, in the light of all the others

A GPT guesses the next word, so nothing may look ahead. An encoder reads a text that is already there. To
learn from it without anyone's labels, it hides words from itself and guesses them from both sides: the masked
language model of BERT (Devlin et al. 2019, section 3.1; their second task, next sentence, is left out).

    the  [MASK]  opened  the  door                   some tokens are hidden,
    logits = x[masked] @ wte.T                       and only there is anything scored: was it "king"?

Rows of a batch have different lengths, and an array has one: the shorter rows are filled up (padding). Lesson
12's mask would hide it from attention, yet it would be computed. Here it is taken out before the first block:
the real tokens of all rows lie end to end, and only attention needs to know where each row ends.

B batch, T positions, C channels, V vocabulary, N real tokens, M masked places.
`make lesson 14` trains one on fairy tales and lets it fill in words of tales that it never saw.
"""
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons.l05_tokenizer import pad
from lessons.l08_losses import IGNORE, softmax_forward
from lessons.l10_optimizers import warmup_linear
from lessons.l12_attention import padding_mask
from lessons.l13_block import block_backward, block_forward
from lessons.parameters import Config, Parameters, init_parameters, part_of
from lessons.texts import read_text


def apart(ops, lengths):  # (B,), B whole numbers with sum N
    """Another SimpleNamespace with all of ops (vars(ops)) but two entries replaced; ops itself does not
    change. The two, not causal, take rows end to end and keep them apart: row b, the lengths[b] positions
    from sum(lengths[:b]) on, goes through ops' own as a batch of one. No other operation mixes positions.

        self_attention_forward(qkv (N, 3C), n_head) -> out (N, C), caches
        self_attention_backward(dout (N, C), caches) -> dqkv (N, 3C)"""
    ends = np.cumsum(lengths)
    rows = [slice(end - n, end) for n, end in zip(lengths, ends)]

    def forward(qkv, n_head):  # (N, 3C) -> (N, C)
        each = [ops.self_attention_forward(qkv[None, row], n_head, causal=False) for row in rows]
        return np.concatenate([out[0] for out, _ in each]), [cache for _, cache in each]

    def backward(dout, caches):  # (N, C) -> (N, 3C)
        each = [ops.self_attention_backward(dout[None, row], cache) for row, cache in zip(rows, caches)]
        return np.concatenate([dqkv[0] for dqkv in each])

    return SimpleNamespace(**vars(ops) | {"self_attention_forward": forward,
                                          "self_attention_backward": backward})


def spread(x, real):  # (N, C), (B, T) bool -> (B, T, C)
    """Back to rows of one length: rows[real] = x, and 0 in padding. x's dtype stays. x[real] undoes it."""
    rows = np.zeros((*real.shape, x.shape[-1]), x.dtype)
    rows[real] = x
    return rows


def encoder_forward(ops, p, tokens, lengths=None, dropout=0.0, seed=0):  # (B, T) -> (B, T, C)
    """A vector for each position, from the whole row: x = layernorm(blocks((wte[tokens] + wpe[:T])[real])).
    Row b has lengths[b] real tokens (None: T); real (B, T), True there, is padding_mask(lengths, T)[:, 0, 0],
    which raises ValueError if a length is not in 1..T. What stands behind has no influence and gets vectors
    of 0. dropout is lesson 13's: every step and every thread needs its own seed, and the block of layer l
    gets seed * n_layer + l. cache: real, lengths, embedding's, a list of the blocks', layernorm's."""
    B, T = tokens.shape
    lengths, n_head = np.full(B, T) if lengths is None else lengths, p.config.n_head
    real, ops, blocks = padding_mask(lengths, T)[:, 0, 0], apart(ops, lengths), []
    x, embedding = ops.embedding_forward(tokens, p["wte.weight"], p["wpe.weight"])
    x = x[real]  # (B, T, C) -> (N, C): the rows end to end, without padding
    for layer, block in enumerate(p.blocks):
        x, cache = block_forward(ops, x, block, lambda qkv: ops.self_attention_forward(qkv, n_head), dropout,
                                 seed * p.config.n_layer + layer)
        blocks.append(cache)
    x, norm = ops.layernorm_forward(x, *p["ln_f"])
    return spread(x, real), (real, lengths, embedding, blocks, norm)


def encoder_backward(ops, dx, cache, g):  # (B, T, C)
    """dx = dloss / d(forward's x): its lines from last to first; dx in padding does not count. Write every
    gradient into g (Parameters), but add to g["wte.weight"], as embedding_backward does: a tied head has left
    its share there. Where no head is tied, the caller sets g["wte.weight"] to 0 before."""
    real, lengths, embedding, blocks, norm = cache
    ops = apart(ops, lengths)
    dx = ops.layernorm_backward(dx[real], norm, *g["ln_f"])
    for block, gradients in zip(reversed(blocks), reversed(g.blocks)):
        dx = block_backward(ops, dx, block, gradients)
    ops.embedding_backward(spread(dx, real), embedding, g["wte.weight"], g["wpe.weight"])


def mask_tokens(rng, tokens, lengths, mask_id, vocab_size, rate=0.15):  # (B, T), (B,) -> (B, T), (B, T)
    """Inputs with some tokens hidden, and targets: those tokens, and IGNORE everywhere else. tokens stay.
    Chosen are max(1, round(rate * lengths[b])) of row b's real tokens, each equally likely: a row without
    would teach nothing. Of the chosen, as in BERT, 80 % become mask_id, 10 % a random one of the vocabulary
    (0 .. vocab_size - 1), 10 % stay. With masks alone it could care for the vectors of [MASK] only, and a
    text in use has none. So some of what it must guess looks like any other word: every vector has to say
    what fits its place. rng is a np.random.Generator."""
    lengths = np.asarray(lengths)[:, None]
    draw = np.where(np.arange(tokens.shape[1]) < lengths, rng.random(tokens.shape), 1)  # padding: the largest
    order = draw.argsort(axis=1)  # in each row 0 .. length - 1 shuffled, then the rest
    chosen = order < np.maximum(1, np.round(rate * lengths))
    fate, random = rng.random(tokens.shape), rng.integers(0, vocab_size, tokens.shape)
    hidden = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, random, tokens))
    return np.where(chosen, hidden, tokens), np.where(chosen, tokens, IGNORE)


def mlm_gradient(ops, p, batch, total, g, dropout=0.0, seed=0):
    """Return these rows' part of the mean loss over `total` targets; write its gradient to g. batch: inputs,
    targets (B, T), lengths (B,). The head is the token table again, as in BERT (its dense layer and bias are
    left out), for the M masked places alone: logits = x[masked] @ wte.T (M, V). Elsewhere no loss, dx = 0."""
    inputs, targets, lengths = batch
    masked = targets != IGNORE
    x, cache = encoder_forward(ops, p, inputs, lengths, dropout, seed)
    logits, head = ops.linear_forward(x[masked], p["wte.weight"].T)  # (M, C) -> (M, V)
    loss, dlogits = ops.cross_entropy(logits, targets[masked], total)
    dx = np.zeros_like(x)
    dx[masked] = ops.linear_backward(dlogits, head, g["wte.weight"].T)
    encoder_backward(ops, dx, cache, g)
    return loss


def update(ops, p, g, m, v, rate, step, share=0.4):
    """One step of lesson 10's, in place: p and its memory m, v change, g does not. All four are Parameters.
    share: a step that suits Muon is too long for AdamW. Arguments after p, g, m (adamw: and v), in order:

        ops.muon     lr = rate, momentum 0.95, weight_decay 0, scale 1     each matrix by itself (see part_of)
        ops.adamw    lr = share * rate, betas 0.9 and 0.99, eps 1e-8,      p.parts "tables" and "vectors"
                     weight_decay 0, step, scale 1"""
    for name, matrix in p.views.items():
        if part_of(name, matrix.shape) == "matrices":
            ops.muon(matrix, g[name], m[name], rate, 0.95, 0.0, 1.0)
    for s in p.parts["tables"], p.parts["vectors"]:
        ops.adamw(p.flat[s], g.flat[s], m.flat[s], v.flat[s], share * rate, 0.9, 0.99, 1e-8, 0.0, step, 1.0)


def train(ops, p, rows, lengths, mask_id, steps, batch=48):  # yields the loss of each step
    """Other sentences each time, with other words hidden: 30 %, for a step to have more to learn from."""
    rng, (g, m, v) = np.random.default_rng(0), (Parameters(p.config) for _ in range(3))
    for step in range(1, steps + 1):
        some = rng.integers(0, len(rows), batch)
        inputs, targets = mask_tokens(rng, rows[some], lengths[some], mask_id, p.config.vocab_size, rate=0.3)
        loss = mlm_gradient(ops, p, (inputs, targets, lengths[some]), np.count_nonzero(targets != IGNORE), g)
        update(ops, p, g, m, v, warmup_linear(step, steps + 1, 20, 0.02), step)
        yield loss


def sentences(text, longest):  # -> [[word, ...], ...]
    """Words in lower case, and punctuation. A sentence is cut after `longest`; one below 4 is dropped."""
    rows = [re.findall(r"[a-z]+(?:’[a-z]+)*|[.,;:!?]", part) for part in re.findall("[^.!?]+.", text.lower())]
    return [words[i:i + longest] for words in rows for i in range(0, len(words) - 3, longest)]


def main():
    threadpool_limits(1, "blas")  # these matrices are too small to share
    text, rng, ops, V, T = read_text("grimm"), np.random.default_rng(14), devices.ops("cpu"), 1500, 32
    cut, p, unk, mask_id = len(text) * 9 // 10, init_parameters(Config(V, T, 1, 4, 64)), V - 2, V - 1
    seen, unseen = sentences(text[:cut], T), sentences(text[cut:], T)
    frequent = [word for word, _ in Counter(word for words in seen for word in words).most_common(V - 2)]
    vocabulary, ids = np.array([*frequent, "<unk>", "[MASK]"]), {word: i for i, word in enumerate(frequent)}

    def encode(part):  # -> (B, T), (B,)
        tokens, real = pad([[ids.get(word, unk) for word in words] for words in part], mask_id, T)
        return tokens, real.sum(axis=1)

    (rows, lengths), (held, held_lengths) = encode(seen), encode(unseen * 3)
    hidden = mask_tokens(rng, held, held_lengths, mask_id, V, rate=0)[1] != IGNORE  # one place in each row
    truth = held[hidden]

    def fill_in(masked):  # (B, T) bool -> (B, V - 2): no guess is <unk> or [MASK]
        x, _ = encoder_forward(ops, p, np.where(masked, mask_id, held), held_lengths)
        return softmax_forward(x[hidden] @ p["wte.weight"][:unk].T)[0]

    def right(guesses):
        return f"{(guesses == truth)[truth != unk].mean():.1%}"

    follows = np.zeros((V, V), int)
    np.add.at(follows, (np.roll(rows, 1, axis=1), rows), 1)  # before a first word stands padding
    by_count = follows[np.roll(held, 1, axis=1)[hidden], :unk].argmax(axis=1)
    print(f"{len(seen):,} sentences of fairy tales to learn from; in {len(unseen)} of other tales a word is "
          f"hidden, three times each\nguess {frequent[0]!r}, the most frequent, each time: {right(0)} right\n"
          f"guess what most often followed the word before: {right(by_count)} right")
    for step, loss in enumerate(train(ops, p, rows, lengths, mask_id, steps=1250), 1):
        if step == 1 or step % 250 == 0:
            print(f"  step {step:4}: loss {loss:.2f}, {right(fill_in(hidden).argmax(1))} right", flush=True)
    for side, masked in ("follows", np.logical_or.accumulate(hidden, axis=1)), (
            "precedes", np.logical_or.accumulate(hidden[:, ::-1], axis=1)[:, ::-1]):
        print(f"if all that {side} is hidden too: {right(fill_in(masked).argmax(axis=1))} right")
    probabilities = fill_in(hidden)
    short = (held != unk).all(axis=1) & (held_lengths > 9) & (held_lengths < 19)
    for n in rng.choice(np.flatnonzero(short[:len(unseen)]), 6, replace=False):
        words, best = np.where(hidden[n], "____", vocabulary[held[n]]), probabilities[n].argsort()[:-4:-1]
        print(" ".join(words[:held_lengths[n]]), f"  (it was: {vocabulary[truth[n]]})\n   ",
              ", ".join(f"{vocabulary[i]} {probabilities[n, i]:.0%}" for i in best))
