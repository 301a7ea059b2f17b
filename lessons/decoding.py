"""One token more: the step that generation (lesson 19) repeats, and what makes it fast.

A new token changes nothing in the tokens before it. So their keys and values are kept, in the KV cache, and a
step computes one position in place of all. Each weight is then used once. Where the weights are too many for
the caches, most of the time goes into fetching them from memory: int8 is a quarter of the bytes, and two
cores draw more from memory than one. A small model, which stays in the cache, gains less.

B texts, T tokens, C channels, V vocabulary, L layers.
"""
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lessons import devices
from lessons.errors import InputError
from lessons.l16_gpt import gpt_forward
from lessons.parameters import Parameters

PIECE = 32  # tokens that are worth a thread


class KVCache:
    """The keys and values of B texts of the same length, empty at first.

    kv (L, B, block_size, 2C) is k | v of every layer, tokens (B, block_size) are the ids they come from; the
    first `length` positions are filled.
    """

    def __init__(self, config, batch=1, dtype=np.float32):
        self.kv = np.empty((config.n_layer, batch, config.block_size, 2 * config.n_embd), dtype)
        self.tokens, self.length = np.empty((batch, config.block_size), np.int64), 0

    def select(self, rows):  # (any number,)
        """Text i becomes a copy of text rows[i]: beam search drops some texts and doubles others."""
        self.kv, self.tokens = self.kv[:, rows], self.tokens[rows]


def cached_forward(ops, p, tokens, start, kv, threads=1):  # (B, T), int, (L, B, block_size, 2C) -> (B, T, V)
    """gpt_forward for tokens that stand behind `start` others, whose keys and values are in kv. A query meets
    those and its own: the full forward computes the same, as no token has a say in what stands before it.

    With threads, each takes a piece of the tokens, and in each layer waits for the keys of earlier pieces.
    The caller has limited BLAS to one thread.
    """
    C, ends = p.config.n_embd, [tokens.shape[1] * i // threads for i in range(threads + 1)]
    ready = [[threading.Event() for _ in p.blocks] for _ in range(threads)]

    def forward(i):
        begin, end = start + ends[i], start + ends[i + 1]

        def attention(qkv, layer):  # (B, T, 3C) -> (B, T, C)
            kv[layer, :, begin:end] = qkv[..., C:]
            ready[i][layer].set()
            for earlier in ready[:i]:
                earlier[layer].wait()
            return ops.cross_attention_forward(qkv[..., :C], kv[layer, :, :end], p.config.n_head, causal=True)

        try:
            return gpt_forward(ops, p, tokens[:, ends[i]:ends[i + 1]], begin, attention)[0]
        finally:
            for event in ready[i]:
                event.set()  # after an error too: nobody shall wait forever

    if threads == 1:
        return forward(0)
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(forward, range(threads))), axis=1)


def read(ops, p, tokens, kv_cache, threads=1):  # (B, T) -> (B, T, V), of too long a prompt for its end
    """Put the tokens after those in the KV cache; return the logits of what follows each of them.

    cached_forward fills in keys and values, `remember` the tokens. Where old and new ones are more than the
    block, the last block_size // 2 of the old ones (all, if they are fewer) and the new ones, of these
    together the last block_size, are read again, from position 0 on. To drop the oldest token alone would
    not do: a position is a row of a table, so every token that moves up gets another vector, and with it
    other keys and values, in all layers. Half a block at once makes this rare.

    Logits are returned of the new tokens only. Of `threads` as many take part as have PIECE tokens each, at
    least one. Raises InputError if a logit is NaN or infinite.
    """
    block, T = p.config.block_size, tokens.shape[1]
    if kv_cache.length + tokens.shape[1] > block:
        half = kv_cache.tokens[:, max(kv_cache.length - block // 2, 0):kv_cache.length]
        tokens, kv_cache.length = np.concatenate([half, tokens], axis=1)[:, -block:], 0
    threads = max(1, min(threads, tokens.shape[1] // PIECE))
    logits = cached_forward(ops, p, tokens, kv_cache.length, kv_cache.kv, threads)
    return remember(tokens, logits, kv_cache)[:, -T:]


def remember(tokens, logits, kv_cache):  # (B, T), (B, T, V)
    """The tokens are those that stand behind kv_cache.length others now. Returns the logits, if finite."""
    if not np.isfinite(logits).all():
        raise InputError("the model answers NaN or infinity: take a checkpoint from before its loss exploded")
    end = kv_cache.length + tokens.shape[1]
    kv_cache.tokens[:, kv_cache.length:end], kv_cache.length = tokens, end
    return logits


def to_int8(weight):  # (C, K) -> (C, K) int8, (K,)
    """Whole numbers from -127 to 127, and one scale for each output: weight is about numbers * scale.

        scale = max(|column|) / 127, in weight's dtype        numbers = weight / scale, to the nearest

    So the largest of a column becomes 127 or -127. An error of half a step is 1/254 of it; the sum over C
    inputs averages the errors out. A column whose scale would be below float32's smallest normal number,
    np.finfo(np.float32).tiny, is as good as 0: its scale is 1. weight is only read.
    Dettmers et al. 2022, section 2.1 ("absmax"), by output.
    """
    scale = np.abs(weight).max(axis=0) / 127
    scale[scale < np.finfo(np.float32).tiny] = 1  # a column of zeros, or of what is nearly 0
    return np.round(weight / scale).astype(np.int8), scale


def rounded(p):
    """Parameters whose matrices are what int8 leaves of them. Positions, biases and norms stay: they are few.
    The token table's outputs are its rows, as the head is x @ wte.T."""
    q = Parameters(p.config, p.flat.copy())
    for name, view in q.views.items():
        if view.ndim == 2 and name != "wpe.weight":
            view = view.T if name == "wte.weight" else view
            numbers, scale = to_int8(view)
            view[:] = numbers * scale
    return q


def decode_weights(p, int8=False):
    """What decode reads. Here the parameters themselves; the cpu room keeps matrices as int8 and scales."""
    return rounded(p) if int8 else p


def decode(weights, token, position, kv, threads=1):  # int, int, (L, block_size, 2C) -> (V,)
    """The step that generation repeats: one text, one token, at a position whose predecessors are in kv; its
    own k and v are added. threads: in the cpu room each takes a share of every matrix. Here it is the plain
    composition."""
    return cached_forward(devices.ops("numpy"), weights, np.array([[token]]), position, kv[:, None])[0, 0]


def write(ops, p, weights, token, kv_cache, threads=1):  # int -> (V,)
    """read, for one token of one text: by decode, unless the block is full."""
    tokens = np.array([[token]])
    if kv_cache.length == p.config.block_size:
        return read(ops, p, tokens, kv_cache, threads)[0, -1]
    return remember(tokens, ops.decode(weights, token, kv_cache.length, kv_cache.kv[:, 0], threads), kv_cache)
