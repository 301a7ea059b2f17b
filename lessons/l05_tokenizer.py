r"""Lesson 5: the tokenizer. How does text become a row of whole numbers, and numbers become text again?

A number for each character: 64 of them write Shakespeare. But so a model sees little text at once, and a new
character has no number. Byte-pair encoding (BPE) starts from the 256 bytes, which write any text, and learns:

    repeat: count every pair of neighbours inside words; make the most frequent pair one token
    "hug hug hugs":   h+u -> hu (3 times),   hu+g -> hug (3),   space+hug (2),   and no pair is left twice

Of pairs equally frequent, as h+u and u+g, that with the smaller left id is merged, then the smaller right.
ids are GPT-2's: 0 to 255 are bytes, printable ones first ('!' is 0); then the merges; then special tokens.
Gage 1994 (to compress); Sennrich, Haddow & Birch 2016, algorithm 1; Radford et al. 2019, section 2.2 (bytes).
"""
import html
import time
import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import regex

from kernels.cpu.tokenizer import BYTES, EDGE, apply_merges, learn_merges, merge_table
from kernels.cpu.words import number_words
from lessons.errors import InputError
from lessons.texts import read_text

# GPT-2 cuts a text into words first and merges inside words only; else "dog." and "dog!" became tokens.
WORDS = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
BYTE_OF_ID = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]
ID_OF_BYTE = np.argsort(BYTE_OF_ID).astype(np.int32)
ID_OF_BYTE[0xFF] = EDGE  # UTF-8 never contains the byte FF: it can stand between words


def clean(text):
    r"""One way to write each thing: tags go (blocks end a line), entities become characters, invisible ones
    go, letter and accent are one (NFC), spaces and empty lines single. What looks like a tag is one.
    >>> clean("  Caf\u0065\u0301 &amp; <b>bar</b>:<br />1 &lt;\u00a0 2, x<y>z ")
    'Café & bar:\n1 < 2, xz'
    """
    for pattern, new in ((r"(?i)</?(br|p|div|li|tr|h\d)\b[^<>]*>|\r\n|[\r\v\f\x85\u2028\u2029]", "\n"),
                         (r"<!--(?s:(?!<!--).)*?-->|</?[A-Za-z][^<>]*>", ""),
                         (r"&#?\w+;", lambda it: html.unescape(it[0])),  # after the tags: &lt;b> stays
                         (r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\ufeff\ud800-\udfff]", ""),
                         (r"[^\S\n]+", " "), (r" ?\n ?", "\n"), (r"\n{3,}", "\n\n")):
        text = regex.sub(pattern, new, text)
    return unicodedata.normalize("NFC", text).strip()


def merge(word, pair, new):  # (id, id, ...), (left, right), id -> (id, ...)
    """A tuple: word, with one token, new, for every left that a right follows. It goes from the left, and no
    token is in two pairs: of aaa the first two become one, and the third stays."""
    merged = []
    for id in word:
        if merged and (merged[-1], id) == pair:
            merged[-1] = new
        else:
            merged.append(id)
    return tuple(merged)


def encode_word(word, pairs=()):  # str, m pairs (left, right) -> (id, id, ...)
    """A tuple: the ids of the bytes of word in UTF-8, where b has the id BYTE_OF_ID.index(b); then merge by
    merge, first learned, first merged: pairs[0] becomes token 256 = BYTES, pairs[m] becomes 256 + m."""
    ids = tuple(BYTE_OF_ID.index(byte) for byte in word.encode())
    for new, pair in enumerate(pairs, BYTES):
        ids = merge(ids, pair, new)
    return ids


def learn(text, n):  # -> [(left, right), ...], at most n pairs of ids; pair m becomes token 256 + m
    """BPE as on top: n times, or until no pair occurs twice (in aaa, a+a does). A text repeats the words that
    WORDS finds, so each is kept once, with its count: count(pair) = the sum of these, where pair stands."""
    words, pairs = {encode_word(word): times for word, times in Counter(WORDS.findall(text)).items()}, []
    for new in range(BYTES, BYTES + n):
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)  # the rule for ties
        if counts[best] < 2:  # or there is no pair: counts[None] is 0
            break
        pairs.append(best)
        words = {merge(word, best, new): times for word, times in words.items()}
    return pairs


class Tokenizer:
    """kind: "char" or "bpe"; parts: the characters, or the merges (m, 2) int32, the ids that each joins;
    special: {text: id} of special tokens; tokens: the bytes of every id; vocab_size: how many they are."""

    def __init__(self, kind, parts, special_tokens):
        self.kind, self.parts = kind, parts
        if kind == "char":
            tokens, self.table = [c.encode() for c in parts], {c: id for id, c in enumerate(parts)}
        else:
            tokens, self.table = [bytes([b]) for b in BYTE_OF_ID], merge_table(parts)
            for a, b in parts.tolist():
                tokens.append(tokens[a] + tokens[b])
        self.special = {s: id for id, s in enumerate(special_tokens, len(tokens))}
        self.tokens = tokens + [s.encode() for s in special_tokens]
        self.vocab_size = len(self.tokens)
        if len({*self.tokens} - {b""}) < self.vocab_size:
            raise InputError(f"{special_tokens}: a special token is a new text, not empty; take '<|end|>'")

    def encode(self, text, allow_special=False):  # str -> (N,) int32
        """parts = [text], or, with allow_special, text cut at each special token s, the longer if two fit: s
        is the id self.special[s], and any other piece n is encode_part(parts, n). Without, s is mere text: a
        user who types <|endoftext|> ends nothing. InputError: not UTF-8; unknown to "char"."""
        try:
            text.encode()
        except UnicodeEncodeError as bad:  # a broken byte of a command line becomes '\udc80' to '\udcff'
            at, half = bad.start, text[bad.start]
            raise InputError(f"the text is not UTF-8: {half!r} at offset {at}; leave it out") from None
        names = sorted(self.special, key=len, reverse=True) if allow_special else []  # the longest first
        parts = regex.split(f"({'|'.join(map(regex.escape, names))})", text) if names else [text]
        return np.concatenate([np.int32([self.special[part]]) if n % 2 else self.encode_part(parts, n)
                               for n, part in enumerate(parts)])  # every second one is special

    def encode_part(self, parts, n):  # -> the ids of parts[n]
        if self.kind == "bpe":
            return apply_merges(*byte_words(parts[n]), *self.table)
        try:
            return np.fromiter(map(self.table.__getitem__, parts[n]), np.int32, len(parts[n]))
        except KeyError as unknown:
            at = sum(map(len, parts[:n])) + parts[n].index(new := unknown.args[0])
            raise InputError(f"the tokenizer does not know {new!r} (U+{ord(new):04X}) at offset {at}: "
                             "leave it out, or train with bpe, which knows all") from None

    def token_bytes(self, id):
        """To show text as it comes, collect bytes until they are whole characters. InputError: no such id."""
        if not 0 <= id < self.vocab_size:
            raise InputError(f"{id} is not a token: the ids of this tokenizer are 0 to {self.vocab_size - 1}")
        return self.tokens[id]

    def decode(self, ids):  # (N,), list or array -> str
        """The token_bytes of all, joined, then read as UTF-8: a character may need several tokens. Special
        tokens are written out. Bytes that are not UTF-8 (a model can say any) become U+FFFD ("replace")."""
        return b"".join(map(self.token_bytes, np.asarray(ids).tolist())).decode(errors="replace")


def char_tokenizer(text, special_tokens=()):
    """One token for each character that occurs in text, in the order of Unicode: "banana" has a, b, n."""
    return Tokenizer("char", sorted(set(text)), special_tokens)


def train_bpe(text, vocab_size, special_tokens=()):
    """learn's merges, found by a kernel that updates its counts and need not count anew. vocab_size counts
    bytes and special tokens too (InputError: no room for them); a text that repeats little gives fewer.
    >>> tokenizer = train_bpe("hug hug hugs", 1000)
    >>> [tokenizer.token_bytes(id) for id in tokenizer.encode("a hug")], tokenizer.vocab_size
    ([b'a', b' hug'], 259)
    """
    if vocab_size < (least := BYTES + len(special_tokens)):
        raise InputError(f"a vocabulary of {vocab_size} is too small: bytes and special tokens take {least}")
    return Tokenizer("bpe", learn_merges(*byte_words(text), vocab_size - least)[0], special_tokens)


def byte_words(text):  # str -> (N,) int32, (W,) int32
    """The different words of text, cut as WORDS does, as ids of bytes with EDGE around each; their order."""
    words, order = number_words(text)
    return ID_OF_BYTE[np.frombuffer(b"\xff".join([b"", *map(str.encode, words), b""]), np.uint8)], order


def pad(sequences, pad_id, length=None, side="right", truncate="right"):  # -> (B, T) int32, (B, T) bool
    """B rows of one length T = length (None: the longest), filled with pad_id, and a mask, True where a token
    is real. side: where the padding stands; truncate: which end of too long a row is lost ("left": the last T
    stay). To let a model write on, "left" for both. InputError: neither "left" nor "right"."""
    if {side, truncate} - {"left", "right"}:
        raise InputError(f"side is {side!r} and truncate is {truncate!r}: each is 'left' or 'right'")
    T = max(map(len, sequences), default=0) if length is None else length
    ids, mask = np.full((len(sequences), T), pad_id, np.int32), np.zeros((len(sequences), T), bool)
    for row, tokens in enumerate(sequences):
        kept = tokens[:T] if truncate == "right" else tokens[max(len(tokens) - T, 0):]
        place = slice(len(kept)) if side == "right" else slice(T - len(kept), T)
        ids[row, place], mask[row, place] = kept, True
    return ids, mask


def main():
    from lessons.tokenizer_json import gpt2_tokenizer  # here, because that file imports this one
    page, tiny = "<p>Caf&eacute;&nbsp; &amp; <b>bar</b></p>", "hug hug hugs"
    print(f"clean: {page!r} becomes {clean(page)!r}\nlearn, step by step, and the pairs it counts:")
    pairs, spell = learn(tiny, 9), train_bpe(tiny, 265).decode  # it compiles the kernel, before we time it
    for m in range(len(pairs) + 1):
        words = [encode_word(word, pairs[:m]) for word in WORDS.findall(tiny)]
        counts = Counter(pair for word in words for pair in pairwise(word))
        print(f"  {'|'.join(spell([id]) for word in words for id in word):25}",
              ", ".join(f"{spell(pair)!r} {times}" for pair, times in counts.most_common()))
    text, start = read_text("shakespeare"), time.perf_counter()
    merges, found = learn_merges(*byte_words(text), 4096 - BYTES)
    print(f"{len(text):,} characters, {len(merges):,} merges learned in {time.perf_counter() - start:.2f} s:")
    bpe = Tokenizer("bpe", merges, ())
    for m in 0, 1, 2, 3, 10, 100, 1000, 3000:
        print(f"{m + 1:6}. {bpe.decode(merges[m, :1])!r} + {bpe.decode(merges[m, 1:])!r}, {found[m]:,} times")
    print("tokens in 10,000 characters of Shakespeare, and in a sentence (char was told of 子曰, too):")
    sentence, analects = "O Romeo, wherefore art thou Romeo? 子曰!", train_bpe(read_text("lunyu"), 4096)
    for name, t in (("Shakespeare", char_tokenizer(text + "子曰")), ("Shakespeare", train_bpe(text, 512)),
                    ("Shakespeare", bpe), ("the Analects", analects), ("web pages", gpt2_tokenizer())):
        print(f"  {t.kind:4} of {t.vocab_size:5} from {name:12} {len(t.encode(text[:10_000])):6} ",
              b"|".join(map(t.token_bytes, t.encode(sentence))).decode(errors="backslashreplace"))
