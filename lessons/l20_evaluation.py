"""Lesson 20: evaluation. Which of two language models is better, and by how much?

A model gives every token of a text it has never seen a probability. The more, the better:

    loss                 mean of -ln p(token | what precedes it), in nats a token
    perplexity           exp(loss): it is as unsure as among so many tokens of equal probability
    bits a character     sum of -log2 p(token) / number of characters                     Shannon 1951

Loss and perplexity depend on what a token is: a model of characters guesses among 64, one of 512 pieces among
more, but says a word in fewer guesses. Bits a character do not: the product over all tokens is a probability
of the whole text (of one way to cut it; the other ways could only add to it), and its -log2 is the length to
which the model can compress it. So that is the unit in which all models of this course meet, on the last
tenth of data/shakespeare.txt. Recipes were chosen by it too, so a text that nobody looked at would be fairer.

B windows, T positions.
`make lesson 20` prints the league table: what does not learn, a compressor, and every GPT found in out/.
"""
import contextlib
import hashlib
import lzma
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons.errors import InputError, Parser
from lessons.generation_run import load
from lessons.l08_losses import IGNORE
from lessons.l16_gpt import count_parameters, gpt_forward
from lessons.l18_training import quick_model
from lessons.run_folder import stopped_run
from lessons.texts import read_text, split


def perplexity(nats, tokens):  # sum of -ln p over all tokens, their number -> float
    """exp of the mean: 1 for somebody who always knows, V for somebody who guesses among V tokens.

    >>> round(perplexity(3 * math.log(10), 3), 6)
    10.0
    """
    return math.exp(nats / tokens)


def bits_per_character(nats, characters):  # sum of -ln p over all tokens, characters of their text -> float
    """The mean of -log2 p, with log2 p = ln p / ln 2, over the text's characters, not the model's tokens.

    >>> bits_per_character(100 * math.log(64), 100)
    6.0
    """
    return nats / math.log(2) / characters


def windows(before, tokens, T, stride):  # (>= T,), (n,) -> X (B, T), Y (B, T)
    """Inputs and targets of overlapping windows, in which every token of `tokens` is a target once.

    In blocks side by side the first token of a block is guessed from one token, the second from two: on
    average a model sees half of what it could. Here the first T - stride targets of a window are IGNOREd: the
    window before has counted them, or they belong to `before`, whose end precedes the first token. So what
    counts is guessed from more than T - stride tokens. It costs T / stride times as much. The k-th window's
    last target is token (k + 1) stride - 1, or the very last one: the last window too has T positions, and
    IGNOREs more of them. Y[b, t] is the token that follows X[b, t] in the text, or IGNORE. B = n / stride,
    rounded up.
    ValueError if `before` is shorter than a window, or stride is none of 1 .. T.

    >>> X, Y = windows(np.arange(4), np.arange(4, 9), T=4, stride=2)
    >>> print(X, Y, sep="\\n")
    [[1 2 3 4]
     [3 4 5 6]
     [4 5 6 7]]
    [[-1 -1  4  5]
     [-1 -1  6  7]
     [-1 -1 -1  8]]
    """
    if len(before) < T or not 1 <= stride <= T:
        raise ValueError(f"{len(before)} tokens before and stride {stride}: {T} before, stride 1 to {T}")
    text, starts = np.concatenate([before[-T:], tokens]), np.arange(0, len(tokens), stride)
    ends = np.minimum(starts + stride, len(tokens))
    places = T + ends[:, None] - np.arange(T, 0, -1)  # of the targets
    return text[places - 1], np.where(places >= T + starts[:, None], text[places], IGNORE)


def total_nats(ops, p, before, tokens, stride):  # (>= T,), (n,) -> -ln p(all tokens | before)
    """The sum of -ln p(token | what its window of windows() shows before it) over all n tokens.

    Every core (devices.cores()) takes batches of windows in turn, as many as have 2^22 logits (16 MB) among
    them, but at least one. The matrix products get one thread each: the batches are what runs side by side.
    """
    X, Y = windows(before, tokens, p.config.block_size, stride)
    batch = max(1, 2**22 // (p.config.block_size * p.config.vocab_size))  # 16 MB of logits, or one window

    def nats(start):  # a sum: cross_entropy divides by 1
        rows = slice(start, start + batch)
        return ops.cross_entropy(gpt_forward(ops, p, X[rows])[0], Y[rows], 1)[0]

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(devices.cores()) as pool:
        return sum(pool.map(nats, range(0, len(X), batch)))


def uniform(training, validation):  # texts -> sum of -ln p over the validation text's characters
    """Every character is equally likely: p = 1 / K, with K different characters in the two texts together."""
    return len(validation) * math.log(len(set(training + validation)))


def frequencies(training, validation):  # texts -> sum of -ln p over the validation text's characters
    """A character is as likely as it is frequent: p(c) = (its number in training + 1) / (all + K), with K
    different characters in the two texts together. The 1 is for those that training lacks: none has p = 0."""
    counts, kinds = Counter(training), len(set(training + validation))
    return -sum(math.log((counts[c] + 1) / (len(training) + kinds)) for c in validation)


def compressor(training, validation):
    """xz: how many bits longer does the compressed text become by the validation part?

    It looks for repetitions of up to the whole text before, and knows nothing about language.
    """
    size = [8 * len(lzma.compress(text.encode(), preset=6)) for text in (training, training + validation)]
    return (size[1] - size[0]) * math.log(2)


def league(ops, text, folders):
    """Score what does not learn and the GPTs in folders (or a small one, if there are none) on `text`, and
    say whom, for a large GPT takes its time.

    folders: path -> seconds of training, None where it is not known to be one on the other nine tenths alone.
    -> [[name, parameters, seconds, perplexity of a token, bits a character in blocks side by side, in
    overlapping windows], ...], the best last; None where a model has no such number.
    """
    training, validation = split(text)
    rows = []
    for name, baseline in (("all characters equally likely", uniform),
                           ("frequency of each character", frequencies), ("xz, a compressor", compressor)):
        print(f"  scoring {name}", flush=True)
        nats = baseline(training, validation)
        unsure = None if baseline is compressor else perplexity(nats, len(validation))
        rows.append([name, None, None, unsure, None, bits_per_character(nats, len(validation))])
    models = [(f"GPT in {folder}" + (" *" if seconds is None else ""), load(folder), seconds)
              for folder, seconds in folders.items()]
    for name, (p, tokenizer), seconds in models or [("small GPT, trained now", quick_model(training), None)]:
        print(f"  scoring {name}", flush=True)
        T = p.config.block_size
        try:
            before, tokens = tokenizer.encode(training[-100 * T:]), tokenizer.encode(validation)
        except InputError as problem:
            raise InputError(f"{name}: {problem}") from None
        apart, overlapping = (total_nats(ops, p, before, tokens, stride) for stride in (T, max(1, T // 4)))
        rows.append([name, count_parameters(p.config), seconds, perplexity(overlapping, len(tokens)),
                     *(bits_per_character(nats, len(validation)) for nats in (apart, overlapping))])
    return sorted(rows, key=lambda row: -row[-1])


def seconds_of_training(folder, text):
    """How long the model was trained on the first nine tenths of this text; None if that is not known. One
    that was trained on another text may have seen the last tenth of this one."""
    with contextlib.suppress(InputError, KeyError):
        _, settings, progress = stopped_run(Path(folder))
        if settings["sha256"] == hashlib.sha256(text.encode()).hexdigest():
            return progress["seconds"]
    return None


def main(*argv):
    parser = Parser("evaluation", "The league table of language models on the last tenth of Shakespeare.")
    parser.add_argument("folders", nargs="*", metavar="DIR",
                        help="model folders (default: all in out/ that were trained on the rest of it)")
    ops, text = devices.ops("cpu"), read_text("shakespeare")
    named = parser.parse_args(argv).folders
    places = named or [str(path.parent) for path in sorted(Path("out").glob("*/training.safetensors"))]
    folders = {place: seconds_of_training(place, text) for place in places}
    folders = {place: seconds for place, seconds in folders.items() if named or seconds is not None}
    print(f"{len(split(text)[1]):,} characters of Shakespeare, each guessed from what precedes it")
    rows = league(ops, text, folders)
    print(f"\n{'':53s}perplexity      bits a character, in windows\n"
          f"{'':34s}parameters  seconds  of a token  side by side  overlapping")
    for name, *numbers in rows:
        cells = zip(numbers, (12, 9, 12, 14, 13), (",d", ".0f", ".2f", ".3f", ".3f"))
        print(f"{name:32s}" + "".join(f"{'' if x is None else format(x, how):>{width}s}"
                                      for x, width, how in cells))
    if None in folders.values():
        print("\n* trained on something else: it may have seen this text")
    if not folders:
        print("\nmake train adds a better one: it needs about three minutes.")
