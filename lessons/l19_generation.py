"""Lesson 19: generation. A GPT answers with probabilities; how do they become a text?

    read the text  ->  logits of what comes next  ->  probabilities  ->  choose a token  ->  read it  ->  ...

Always taking the most probable token (greedy) soon goes round in circles. Drawing from all of them sooner or
later draws a bad one, and the model goes on from there. The strategies lie between:

    temperature  softmax(logits / temperature): below 1 sharper, above 1 flatter          (Ackley et al. 1985)
    top-k        only the k most probable tokens                                         (Fan et al. 2018)
    top-p        only the smallest set whose probability reaches p      (Holtzman et al. 2020, section 3.1)
    beam search  the most probable text as a whole, not token by token

How one more token is read at all, with a KV cache, int8 weights and several cores, stands in decoding.py.
T tokens, V vocabulary. `make lesson 19` tries every strategy and measures what each trick gains and costs.
"""
import itertools
import time

import numpy as np
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons.decoding import KVCache, read, rounded, write
from lessons.errors import InputError
from lessons.l16_gpt import gpt_forward


def largest(scores, k):  # (n,) -> (at most k,) indices
    """Where the k largest are (all, if n < k), the largest first; of equal ones the first counts as larger.

    >>> largest(np.array([1., 3., 2., 3.]), 3)
    array([1, 3, 2])
    """
    k = min(k, scores.size)
    places = np.flatnonzero(scores >= np.partition(scores, -k)[-k])  # more than k if the k-th has equals
    return places[np.argsort(-scores[places], kind="stable")][:k]


def next_token_probabilities(logits, temperature=1.0, top_k=None, top_p=1.0):  # (V,) -> (V,) float64
    """softmax(logits / temperature) over the tokens that top-k and then top-p leave; 0 for all others.

    temperature >= 0; at 0 the most probable token gets all. top_k >= 1, or None for all tokens. top_p keeps
    the most probable, up to the first with which they have at least top_p (0 < top_p <= 1) of what top-k
    left. Of tokens with the same logit the one with the lower id is kept first. logits are only read.

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


def draw(probabilities, rng):  # (V,) -> int
    """They lie end to end from 0 to 1. Where does one point, rng.random(), fall? A token has its beginning,
    not its end: one of probability 0 is never drawn. If they do not sum to 1, each is a share of the sum."""
    ends = np.cumsum(probabilities)
    return int(np.searchsorted(ends / ends[-1], rng.random(), side="right"))


def generate(ops, p, prompt, n, temperature=1.0, top_k=None, top_p=1.0, seed=0, int8=False, threads=1):
    """(T,) -> yields the n tokens (int) that follow the prompt, each as soon as it is chosen: read the
    prompt; draw from next_token_probabilities, yield the token, write it (not the last) for the next logits.
    read, (1, T) -> (1, T, V), and write, int -> (V,), share one KVCache for one text, of p.flat's dtype, and
    take the threads; write's weights are ops.decode_weights(p, int8). One default_rng(seed) draws all: the
    same seed, the same text. int8: with rounded(p), a copy, for the prompt too. The prompt has at least one
    token; of one longer than the block the end is seen."""
    p, rng = rounded(p) if int8 else p, np.random.default_rng(seed)
    weights, kv_cache = ops.decode_weights(p, int8), KVCache(p.config, 1, p.flat.dtype)
    logits = read(ops, p, np.asarray(prompt)[None], kv_cache, threads)[0, -1]
    for left in range(n - 1, -1, -1):
        token = draw(next_token_probabilities(logits, temperature, top_k, top_p), rng)
        yield token
        if left:
            logits = write(ops, p, weights, token, kv_cache, threads)


def speculate(ops, p, prompt, n, drafts=4, temperature=1.0, top_k=None, top_p=1.0, seed=0, threads=1):
    """(T,) -> yields n ints, distributed as generate's are, though most come from the int8 model.
    p gives the first. Then that model, ops.decode_weights(p, int8=True), drafts by write: at most `drafts`
    tokens, no more than are wanted but one, no more than fit into the block behind the last token. p reads
    that token and the drafts in one pass (kv_cache.length drops the drafts' places before it, and those of
    drafts not kept after it; a round's last token is read in the next). A draft drawn with probability q is
    kept with min(1, p / q); the first that is not is drawn again, in proportion to max(p - q, 0), and ends
    the round; if all are kept, p's last row gives one more. So whatever q is, a token comes with probability
    p (Leviathan, Kalman & Matias 2023, algorithm 1, appendix A.1). It pays where fetching the weights takes
    the time; a model that stays in the cache only loses."""
    def odds(logits):
        return next_token_probabilities(logits, temperature, top_k, top_p)

    weights, rng = ops.decode_weights(p, int8=True), np.random.default_rng(seed)
    kv_cache = KVCache(p.config, 1, p.flat.dtype)
    token = draw(odds(read(ops, p, np.asarray(prompt)[None], kv_cache, threads)[0, -1]), rng)
    left = n - 1
    if n:
        yield token
    while left > 0:
        text, q = [token], []  # the last token is not read yet
        for _ in range(min(drafts, left - 1, p.config.block_size - kv_cache.length - 1)):
            q.append(odds(write(ops, p, weights, text[-1], kv_cache, threads)))
            text.append(draw(q[-1], rng))
        kv_cache.length -= len(q)  # p's own keys and values take the place of the drafts'
        wanted, kept_drafts = [odds(row) for row in read(ops, p, np.array([text]), kv_cache)[0]], 0
        for guess, guessed, right in zip(text[1:], q, wanted):
            if rng.random() * guessed[guess] >= right[guess]:
                token = draw(np.maximum(right - guessed, 0), rng)
                break
            yield guess
            kept_drafts += 1
        else:
            token = draw(wanted[-1], rng)  # all drafts were kept: one token more from the same pass
        yield token
        kv_cache.length -= len(q) - kept_drafts
        left -= kept_drafts + 1


def log_probabilities(logits):  # (..., V) -> (..., V) float64
    """log softmax(x) = x - log(sum(exp(x))) over the last axis, x = logits - max(logits): no overflow."""
    logits = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def beam_search(ops, p, prompt, n, beams):  # (T,) -> (n,) tokens, their log-probability (float, nats)
    """The most probable continuation of n tokens among those whose beginnings stayed among the `beams` best.

    Each step writes every text on with every token and keeps those `largest` in the sum of log p (float64);
    the KV cache, of p.flat's dtype, follows (select). One beam is greedy; with V^(n-1) beams the answer is
    exact; in between nothing is guaranteed. Not divided by the length: all texts have n tokens here."""
    kv_cache, tokens = KVCache(p.config, dtype=p.flat.dtype), np.asarray(prompt)[None]
    texts, scores = np.empty((1, 0), np.int64), np.zeros(1)
    for _ in range(n):
        longer = scores[:, None] + log_probabilities(read(ops, p, tokens, kv_cache)[:, -1])  # (beams, V)
        best = largest(longer.reshape(-1), beams)
        rows, tokens = best // longer.shape[1], best[:, None] % longer.shape[1]
        kv_cache.select(rows)
        texts, scores = np.concatenate([texts[rows], tokens], axis=1), longer.reshape(-1)[best]
    return texts[0], float(scores[0])


def main(*argv):
    """Without options the demonstration; with options the command line, which stands in generation_run.py."""
    from lessons.generation_run import loss_on_validation_text, model_at_hand, run
    threadpool_limits(1, "blas")  # the threads are ours
    if argv:
        return run(argv)
    p, tokenizer = model_at_hand()
    ops, prompt, n_cores = devices.ops("cpu"), tokenizer.encode("ROMEO:\n"), devices.cores()
    n = p.config.block_size - len(prompt)  # one block: the text below, without KV cache, cannot slide
    if n < len(prompt):
        raise InputError(f"this model reads {p.config.block_size} tokens at a time, too few to show anything "
                         "with: train one with a larger --block")

    def timed(write, set_up=1):  # -> the tokens, tokens a second; the clock starts after `set_up` tokens
        start, tokens = time.perf_counter(), iter(write())
        first = list(itertools.islice(tokens, set_up))
        start = time.perf_counter() if set_up else start
        rest = list(tokens)
        return first + rest, len(rest) / (time.perf_counter() - start)

    for int8 in False, True:
        list(generate(ops, p, prompt, 2, int8=int8))  # the first call compiles
    strategies = {f"temperature {t}": {"temperature": t} for t in (0, 0.5, 0.8, 1.2)}
    strategies |= {"top-k 10": {"top_k": 10}, "top-p 0.9": {"top_p": 0.9}, "4 beams": {"beams": 4}}
    for name, how in strategies.items():
        tokens, speed = timed(lambda how=how: beam_search(ops, p, prompt, n, **how)[0] if "beams" in how
                              else generate(ops, p, prompt, n, **how), set_up="beams" not in how)
        text = np.array([*prompt, *tokens])
        log_p = log_probabilities(gpt_forward(ops, p, text[None, :-1])[0][0, -n:])[np.arange(n), text[-n:]]
        print(f"{name:16s} {speed:6,.0f} tokens/s, mean log p of a token {log_p.mean():5.2f}\n    "
              + tokenizer.decode(tokens).replace("\n", " / "))

    def without_cache():
        text = prompt
        for _ in range(n):
            text = np.append(text, gpt_forward(ops, p, text[None])[0][0, -1].argmax())
        return text[-n:]

    print("\nthe text of temperature 0 in other ways")
    ways = {"without KV cache": without_cache,
            "speculation": lambda: speculate(ops, p, prompt, n, temperature=0, threads=n_cores)}
    ways |= {f"{'int8' if int8 else 'float32'}, {threads} core{'s' * (threads > 1)}":
             lambda int8=int8, threads=threads: generate(ops, p, prompt, n, 0, int8=int8, threads=threads)
             for int8 in (False, True) for threads in sorted({1, n_cores})}
    greedy = list(generate(ops, p, prompt, n, temperature=0))
    for name, way in ways.items():
        slow = way is without_cache
        runs = [timed(way, set_up=not slow) for _ in range(1 if slow else 3)]
        same = "the same" if runs[0][0] == greedy else "another text"
        print(f"  {name:16s} {max(speed for _, speed in runs):6,.0f} tokens/s, {same}")
    full, small = (loss_on_validation_text(ops, q, tokenizer) for q in (p, rounded(p)))
    print(f"int8 changes the loss on validation text from {full:.4f} to {small:.4f} nats a token")
