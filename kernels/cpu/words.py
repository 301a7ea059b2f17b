"""The words of GPT-2, which lesson 5 defines by a pattern (WORDS), without a pattern: the same cuts, fast.

cut     reads the code and the kind of each character; writes where words begin
number  reads both; writes the number of each word, and which word was the first to have it

An apostrophe with s, d, m, t, ll, ve or re is a word. So are letters, or numbers, or other characters, as
many as follow each other, with the one space before them. So is white space, but when something follows, its
last character is left to that. New words get the next number: "a b a" has "a", " b", " a", so 0, 1, 2.
"""
import numpy as np
import regex

from kernels.cpu.compiled import inlined, kernel

i64 = np.int64
OTHER, LETTER, NUMBER, WHITE, END = range(1, 6)
KINDS = np.zeros(0x110000, np.uint8)  # of each character; 0 until it first occurs and is looked up
SPACE, APOSTROPHE = map(ord, " '")
ONE, TWO = tuple(map(ord, "sdmt")), tuple(tuple(map(ord, pair)) for pair in ("ll", "ve", "re"))
EMPTY = -1


def number_words(text):  # str -> [str, ...], (W,) int32
    """The different words of text, and the number of each of its W words."""
    codes = np.frombuffer((text + "\0").encode("utf-32-le"), np.int32).astype(np.int64)  # \0 will be END
    begins = np.zeros(codes.size, np.int32)
    begins = begins[:cut(codes, kinds_of(codes), begins) + 1]
    W = begins.size - 1
    order, shown = np.empty((2, W), np.int32)
    slots = np.full(1 << (2 * W).bit_length(), EMPTY, np.int32)  # a hash table, at least half of it empty
    shown = shown[:number(codes, begins, slots, order, shown)]
    return [text[a:b] for a, b in zip(begins[shown].tolist(), begins[shown + 1].tolist())], order


def kinds_of(codes):  # (N + 1,) int64 -> (N + 1,) uint8
    kinds = KINDS[codes]
    if not kinds.all():
        new = "".join(map(chr, np.unique(codes[kinds == 0])))
        for kind, pattern in enumerate((r"[^\s\p{L}\p{N}]", r"\p{L}", r"\p{N}", r"\s"), OTHER):
            KINDS[[*map(ord, regex.findall(pattern, new))]] = kind
        kinds = KINDS[codes]
    kinds[-1] = END
    return kinds


@kernel
def cut(codes, kinds, begins):  # -> how many words
    W = i = i64(0)
    while kinds[i] != END:
        i = end_of_word(codes, kinds, i)
        W += 1
        begins[W] = i
    return W


@inlined
def end_of_word(codes, kinds, i):  # (N + 1,) int64, (N + 1,) uint8, a place -> the place after the word at i
    """The first of these rules that fits. codes are characters, as numbers; kinds[N] is END, and unlike all.
    1. APOSTROPHE and one of ONE: i + 2. APOSTROPHE and one of TWO, which are pairs of letters: i + 3.
    2. A run of one kind, LETTER, NUMBER or OTHER, beginning at first = i; or at first = i + 1, if a SPACE
       stands at i and one of these three kinds at i + 1. The end is behind the run.
    3. A run of WHITE; but if text follows and the run is longer than 1, its last one is left to that text."""
    if codes[i] == APOSTROPHE:
        if codes[i + 1] in ONE:
            return i + 2
        for a, b in TWO:
            if codes[i + 1] == a and codes[i + 2] == b:
                return i + 3
    first = i + 1 if codes[i] == SPACE and kinds[i + 1] < WHITE else i
    end = first + 1
    while kinds[end] == kinds[first]:
        end += 1
    return end - 1 if kinds[first] == WHITE and kinds[end] != END and end > i + 1 else end


@kernel
def number(codes, begins, slots, order, shown):  # (N + 1,), (W + 1,), (S,), (W,), (W,) -> how many different
    """Word w is codes[a:b] = codes[begins[w]:begins[w + 1]]. Writes its number into order[w], and shown[n] =
    w, the first word that has number n. New words get 0, 1, 2, ... slots is a hash table that comes full of
    EMPTY and holds numbers; S, a power of 2, is more than there are different words. A word begins at slot =
    hash_of(codes, a, b) & (S - 1) and goes on to the next slot, behind the last to the first, until it meets
    its own number (same compares it with the word shown[number]), or EMPTY: then it is new, and that slot is
    its own."""
    n = i64(0)
    for w in range(order.size):
        a, b = begins[w], begins[w + 1]
        slot = hash_of(codes, a, b) & (slots.size - 1)
        while slots[slot] != EMPTY and not same(codes, begins, shown[slots[slot]], a, b):
            slot = (slot + 1) & (slots.size - 1)  # another word is here: the next one
        if slots[slot] == EMPTY:
            slots[slot], shown[n] = n, w
            n += 1
        order[w] = slots[slot]
    return n


@inlined
def hash_of(codes, a, b):  # -> int64, 0 to 2^31 - 1
    """FNV's mix of codes[a:b], kept to 31 bits, so that no product overflows. A table looks at the low bits
    only, so at last the high ones are mixed into them."""
    hash = i64(0)
    for i in range(a, b):
        hash = (hash ^ codes[i]) * i64(0x1000193) & i64(0x7FFFFFFF)
    return hash ^ hash >> i64(15)


@inlined
def same(codes, begins, w, a, b):  # -> bool: is word w codes[a:b]?
    start = begins[w]
    if begins[w + 1] - start != b - a:
        return False
    for i in range(b - a):
        if codes[start + i] != codes[a + i]:
            return False
    return True
