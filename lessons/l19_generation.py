"""Lesson 19: generation. A GPT answers with probabilities; how do they become a text?

    read the text  ->  logits of what comes next  ->  probabilities  ->  choose a token  ->  read it  ->  ...

Always taking the most probable token (greedy) soon goes round in circles. Drawing from all of them sooner or
later draws a bad one, and the model goes on from there. The strategies lie between:

    temperature  softmax(logits / temperature): below 1 sharper, above 1 flatter          (Ackley et al. 1985)
    top-k        only the k most probable tokens                                         (Fan et al. 2018)
    top-p        only the smallest set whose probability reaches p      (Holtzman et al. 2020, section 3.1)
    beam search  the most probable text as a whole, not token by token

The second subject is speed. In a causal model a new token changes nothing in the tokens before it, so their
keys and values are kept (the KV cache), and each step computes one position instead of all.

B texts, T tokens, C channels, V vocabulary.
`make lesson 19` writes the same prompt on with every strategy, and measures what the KV cache saves.
"""
import codecs
import time

import numpy as np
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons.errors import InputError
from lessons.l16_gpt import gpt_forward


class KVCache:
    """The keys and values of B texts of the same length, empty at first.

    layers[l] (B, block_size, 2C) is k | v of layer l, tokens (B, block_size) are the ids they come from;
    of each, the first `length` positions are filled.
    """

    def __init__(self, config, batch=1, dtype=np.float32):
        shape = batch, config.block_size, 2 * config.n_embd
        self.layers = [np.empty(shape, dtype) for _ in range(config.n_layer)]
        self.tokens = np.empty(shape[:2], np.int64)
        self.length = 0

    def select(self, rows):  # (any number,)
        """Text i becomes a copy of text rows[i]: beam search drops some texts and doubles others."""
        self.layers = [layer[rows] for layer in self.layers]
        self.tokens = self.tokens[rows]


def read(ops, p, tokens, kv_cache):  # (B, T) -> (B, V)
    """Put the tokens after those in the KV cache; return the logits of what follows the last one.

    The query of a new token meets the keys in the KV cache and its own. The full forward computes the same,
    since no token has a say in what stands before it.

    When the block is full, its last half and the new tokens are read again, from position 0 on. To drop the
    oldest token alone would not do: a position is a row of a table, so every token that moves up gets another
    vector, and with it other keys and values, in all layers. Half a block at once makes this rare.
    Raises InputError if a logit is NaN or infinite.
    """
    config, C = p.config, p.config.n_embd
    if kv_cache.length + tokens.shape[1] > config.block_size:
        half = kv_cache.tokens[:, max(kv_cache.length - config.block_size // 2, 0):kv_cache.length]
        tokens, kv_cache.length = np.concatenate([half, tokens], axis=1)[:, -config.block_size:], 0
    start, end = kv_cache.length, kv_cache.length + tokens.shape[1]

    def attention(qkv, layer):  # (B, T, 3C) -> (B, T, C)
        kv = kv_cache.layers[layer]
        kv[:, start:end] = qkv[..., C:]
        return ops.cross_attention_forward(qkv[..., :C], kv[:, :end], config.n_head, causal=True)

    logits = gpt_forward(ops, p, tokens, start, attention)[0][:, -1]
    if not np.isfinite(logits).all():
        raise InputError("the model answers NaN or infinity: take a checkpoint from before its loss exploded")
    kv_cache.tokens[:, start:end], kv_cache.length = tokens, end
    return logits


def largest(scores, k):  # (n,) -> (at most k,) indices
    """Where the k largest are, the largest first. Of equal ones the first counts as larger: no run differs.

    >>> largest(np.array([1., 3., 2., 3.]), 3)
    array([1, 3, 2])
    """
    k = min(k, scores.size)
    places = np.flatnonzero(scores >= np.partition(scores, -k)[-k])  # more than k if the k-th has equals
    return places[np.argsort(-scores[places], kind="stable")][:k]


def next_token_probabilities(logits, temperature=1.0, top_k=None, top_p=1.0):  # (V,) -> (V,) float64
    """softmax(logits / temperature) over the tokens that top-k and then top-p leave; 0 for all others.

    temperature >= 0; at 0 the most probable token gets all. top_k >= 1, or None for all tokens.
    0 < top_p <= 1 is measured on what top-k left; at least one token stays.
    Of tokens with the same logit the one with the lower id is kept first.

    >>> next_token_probabilities(np.log([1., 4., 3., 2.]), top_p=0.6)
    array([0.        , 0.57142857, 0.42857143, 0.        ])
    """
    if temperature == 0:
        temperature, top_k = 1.0, 1
    with np.errstate(over="ignore"):  # a tiny temperature takes all but the largest to -inf, as it should
        logits = (logits.astype(np.float64) - logits.max()) / temperature
    weights = np.exp(logits)
    if top_k is not None or top_p < 1:
        kept = largest(logits, top_k or logits.size)
        share = np.cumsum(weights[kept])
        kept = kept[:np.searchsorted(share, top_p * share[-1]) + 1]
        weights, every = np.zeros_like(weights), weights
        weights[kept] = every[kept]
    return weights / weights.sum()


def choose(logits, temperature, top_k, top_p, rng):  # (V,) -> int
    """Draw a token: the probabilities lie end to end from 0 to 1; where does a random point fall?"""
    ends = np.cumsum(next_token_probabilities(logits, temperature, top_k, top_p))
    return int(np.searchsorted(ends / ends[-1], rng.random(), side="right"))


def generate(ops, p, prompt, n, temperature=1.0, top_k=None, top_p=1.0, seed=0):  # (T,) -> yields n ints
    """The n tokens that follow the prompt, each as soon as it is chosen. The same seed draws the same text.

    Of a prompt longer than the block the last block_size tokens are seen. It must have at least one token.
    """
    kv_cache, rng = KVCache(p.config, dtype=p.flat.dtype), np.random.default_rng(seed)
    tokens = np.asarray(prompt)[None]
    for _ in range(n):
        token = choose(read(ops, p, tokens, kv_cache)[0], temperature, top_k, top_p, rng)
        yield token
        tokens = np.array([[token]])


def log_probabilities(logits):  # (..., V) -> (..., V) float64
    """log softmax, without the overflow of exp."""
    logits = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def beam_search(ops, p, prompt, n, beams):  # (T,) -> (n,) tokens, their log-probability (float, nats)
    """The most probable continuation of n tokens among those whose beginnings stayed among the `beams` best.

    Each step writes every text on with every token, and keeps the best of all. With one beam this is greedy;
    with V^(n-1) beams nothing is lost, and the answer exact. In between it is a search without a guarantee.
    The score, log p summed over the tokens, is not divided by the length: all texts have n tokens here.
    """
    kv_cache, tokens = KVCache(p.config, dtype=p.flat.dtype), np.asarray(prompt)[None]
    texts, scores = np.empty((1, 0), np.int64), np.zeros(1)
    for _ in range(n):
        longer = scores[:, None] + log_probabilities(read(ops, p, tokens, kv_cache))  # (beams, V)
        best = largest(longer.reshape(-1), beams)
        rows, tokens = best // longer.shape[1], best[:, None] % longer.shape[1]
        kv_cache.select(rows)
        texts, scores = np.concatenate([texts[rows], tokens], axis=1), longer.reshape(-1)[best]
    return texts[0], float(scores[0])


def text_pieces(tokenizer, tokens):  # token ids -> yields str
    """The text as it grows. A token can end in the first of the two bytes of "é": it waits for the second."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if piece := decoder.decode(tokenizer.token_bytes(token)):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece


def main(*argv):
    """Without options the demonstration; with options the command line, which stands in generation_run.py."""
    from lessons.generation_run import model_at_hand, run
    threadpool_limits(1, "blas")  # one row at a time: too little work to wait for a second thread
    if argv:
        return run(argv)
    p, tokenizer = model_at_hand()
    ops, prompt = devices.ops("cpu"), tokenizer.encode("ROMEO:\n")
    n = p.config.block_size - len(prompt)  # one block: the text below, without KV cache, cannot slide
    list(generate(ops, p, prompt, 2))  # the first call compiles
    strategies = {f"temperature {t}": {"temperature": t} for t in (0, 0.5, 0.8, 1.2)}
    strategies |= {"top-k 10": {"top_k": 10}, "top-p 0.9": {"top_p": 0.9}, "4 beams": {"beams": 4}}
    for name, how in strategies.items():
        start = time.perf_counter()
        tokens = (beam_search(ops, p, prompt, n, **how)[0] if "beams" in how
                  else list(generate(ops, p, prompt, n, **how)))
        speed, text = n / (time.perf_counter() - start), np.array([*prompt, *tokens])
        log_p = log_probabilities(gpt_forward(ops, p, text[None, :-1])[0][0, -n:])[np.arange(n), text[-n:]]
        print(f"{name:16s} {speed:6,.0f} tokens/s, mean log p of a token {log_p.mean():5.2f}\n    "
              + tokenizer.decode(tokens).replace("\n", " / "))
    start, text = time.perf_counter(), prompt
    for _ in range(n):
        text = np.append(text, gpt_forward(ops, p, text[None])[0][0, -1].argmax())
    speed = n / (time.perf_counter() - start)
    same = list(text[-n:]) == list(generate(ops, p, prompt, n, temperature=0))
    print(f"without KV cache {speed:6,.0f} tokens/s at temperature 0; the same text: {same}")
