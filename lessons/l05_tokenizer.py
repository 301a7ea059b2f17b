r"""Lesson 5: the tokenizer. How does text become a row of whole numbers, and numbers become text again?

A number for each character: 64 of them write Shakespeare. But so a model sees little text at once, and a new
character has no number. Byte-pair encoding (BPE) starts from the 256 bytes, which write any text, and learns:

    repeat: count every pair of neighbours inside words; make the most frequent pair one token
    "hug hug hugs":   h+u -> hu (3 times),   hu+g -> hug (3),   space+hug (2),   and no pair is left twice

Ties: u+g is as frequent as h+u. Of pairs equally frequent, the one with the smaller left id is merged, then
the one with the smaller right id. Encoding applies the merges to a text in the order of their learning.
ids are GPT-2's: 0 to 255 are bytes, printable ones first ('!' is 0); then the merges; then special tokens.
Gage 1994 (to compress); Sennrich, Haddow & Birch 2016, algorithm 1; Radford et al. 2019, section 2.2 (bytes).
"""
import html
import json
import time
import unicodedata
from pathlib import Path

import numpy as np
import regex

from kernels.cpu.tokenizer import BYTES, EDGE, apply_merges, learn_merges, merge_table
from lessons.errors import InputError
from lessons.texts import DATA, read_text

# GPT-2 cuts a text into words first and merges inside words only; else "dog." and "dog!" became tokens.
WORDS = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
BYTE_OF_ID = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]
ID_OF_BYTE = np.argsort(BYTE_OF_ID).astype(np.int32)
ID_OF_BYTE[0xFF] = EDGE  # UTF-8 never contains the byte FF: it can stand between words
# In files every byte is a visible character: itself if printable (188 are), else U+0100 on. ' ' is 'Ġ'.
SYMBOL = {byte: chr(byte if id < 188 else 256 + id - 188) for id, byte in enumerate(BYTE_OF_ID)}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


def clean(text):
    r"""One way to write each thing: tags go (blocks end a line), entities become characters, invisible ones
    go, letter and accent are one (NFC), spaces and empty lines single. It does not make foreign HTML safe.
    >>> clean("  Caf\u0065\u0301 &amp; <b>bar</b>:<br />1 &lt;\u00a0 2 ")
    'Café & bar:\n1 < 2'
    """
    for pattern, new in ((r"(?i)</?(br|p|div|li|tr|h\d)\b[^<>]*>|\r\n|[\r\v\f\x85\u2028\u2029]", "\n"),
                         (r"<!--(?s:.*?)-->|</?[A-Za-z][^<>]*>", ""),
                         (r"&#?\w+;", lambda it: html.unescape(it[0])),  # after the tags: &lt;b> stays
                         (r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\ufeff\ud800-\udfff]", ""),
                         (r"[^\S\n]+", " "), (r" ?\n ?", "\n"), (r"\n{3,}", "\n\n")):
        text = regex.sub(pattern, new, text)
    return unicodedata.normalize("NFC", text).strip()


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
        """With allow_special, a special token written in text becomes its own id. Without, it is text like
        any other: a user who types <|endoftext|> ends nothing. InputError: a character unknown to "char"."""
        names = sorted(self.special, key=len, reverse=True) if allow_special else []  # the longest first
        parts = regex.split(f"({'|'.join(map(regex.escape, names))})", text) if names else [text]
        ids, offset = [], 0
        for n, part in enumerate(parts):  # every second one is special
            ids.append(np.array([self.special[part]], np.int32) if n % 2 else self.encode_part(part, offset))
            offset += len(part)
        return np.concatenate(ids)

    def encode_part(self, text, offset):
        if self.kind == "bpe":
            return apply_merges(*byte_words(text), *self.table)
        try:
            return np.fromiter(map(self.table.__getitem__, text), np.int32, len(text))
        except KeyError as unknown:
            at = text.index(unknown.args[0])
            raise InputError(f"the tokenizer does not know {text[at]!r} (U+{ord(text[at]):04X}) at offset "
                             f"{offset + at}: leave it out, or train with bpe, which knows all") from None

    def token_bytes(self, id):
        """To show text as it comes, collect bytes until they are whole characters. InputError: no such id."""
        if not 0 <= id < self.vocab_size:
            raise InputError(f"{id} is not a token: the ids of this tokenizer are 0 to {self.vocab_size - 1}")
        return self.tokens[id]

    def decode(self, ids):  # (N,) -> str
        """Special tokens are written out. Bytes that are not UTF-8 (a model can say any) become U+FFFD."""
        return b"".join(map(self.token_bytes, np.asarray(ids).tolist())).decode(errors="replace")


def char_tokenizer(text, special_tokens=()):
    """One token for each character that occurs in text, in the order of Unicode: "banana" has a, b, n."""
    return Tokenizer("char", sorted(set(text)), special_tokens)


def train_bpe(text, vocab_size, special_tokens=()):
    """vocab_size counts the 256 bytes and the special tokens too (InputError if it has no room for them).
    When no pair occurs twice there is nothing more to learn, and the vocabulary stays smaller.
    >>> tokenizer = train_bpe("hug hug hugs", 1000)
    >>> [tokenizer.token_bytes(id) for id in tokenizer.encode("a hug")], tokenizer.vocab_size
    ([b'a', b' hug'], 259)
    """
    least = BYTES + len(special_tokens)
    if vocab_size < least:
        raise InputError(f"a vocabulary of {vocab_size} is too small: bytes and special tokens take {least}")
    return Tokenizer("bpe", learn_merges(*byte_words(text), vocab_size - least)[0], special_tokens)


def byte_words(text):  # str -> (N,) int32, (W,) int32
    """The different words of text as ids of bytes, EDGE around each; and the order in which text has them."""
    seen = {}
    order = np.array([seen.setdefault(word, len(seen)) for word in WORDS.findall(text)], np.int32)
    return ID_OF_BYTE[np.frombuffer(b"\xff".join([b"", *map(str.encode, seen), b""]), np.uint8)], order


def gpt2_tokenizer():
    """The 50,257 tokens of GPT-2, from OpenAI's two files."""
    ids, pairs = ((DATA / "gpt2_bpe" / name).read_text("utf-8") for name in ("encoder.json", "vocab.bpe"))
    return Tokenizer("bpe", merges_from(pairs.splitlines()[1:], json.loads(ids)), ["<|endoftext|>"])


def merges_from(pairs, ids):  # pairs "Ġ t" or ["Ġ", "t"], {"Ġ": 220, ...} -> (m, 2) int32
    pairs = (pair.split() if isinstance(pair, str) else pair for pair in pairs)
    return np.array([(ids[a], ids[b]) for a, b in pairs], np.int32).reshape(-1, 2)


def as_json(tokenizer):
    """The format of the tokenizers library, which transformers opens too; characters are its WordLevel."""
    bpe, n = tokenizer.kind == "bpe", tokenizer.vocab_size - len(tokenizer.special)
    names = ["".join(map(SYMBOL.get, t)) if bpe else t.decode() for t in tokenizer.tokens[:n]]
    model = {"type": "WordLevel", "unk_token": "<unk>"} if not bpe else {
        "type": "BPE", "merges": [[names[a], names[b]] for a, b in tokenizer.parts.tolist()]}
    model["vocab"] = dict(zip(names, range(n))) | tokenizer.special
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    added = [{"id": id, "content": text} | flags for text, id in tokenizer.special.items()]
    return {"version": "1.0", "added_tokens": added, "normalizer": None, "model": model,
            "pre_tokenizer": BYTE_LEVEL if bpe else SPLIT, "decoder": BYTE_LEVEL if bpe else {"type": "Fuse"}}


def save_tokenizer(tokenizer, path):
    Path(path).write_text(json.dumps(as_json(tokenizer), ensure_ascii=False), "utf-8")


def load_tokenizer(path):
    """Read what save_tokenizer wrote, or GPT-2's own tokenizer.json. InputError: anything else."""
    try:
        file = json.loads(Path(path).read_text("utf-8"))
        model, special = file["model"], {t["content"]: t["id"] for t in file["added_tokens"]}
        bpe, vocab = "merges" in model, model["vocab"]
        parts = merges_from(model["merges"], vocab) if bpe else [c for c in vocab if c not in special]
        tokenizer = Tokenizer("bpe" if bpe else "char", parts, list(special))
        ours, cut = as_json(tokenizer)["model"]["vocab"], BYTE_LEVEL if bpe else SPLIT
        if ours != vocab | special or cut != cut | file["pre_tokenizer"] or file["normalizer"]:
            raise ValueError("its ids are in another order, or it cuts words in another way")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a tokenizer.json of this course or of GPT-2: {error!r}") from None
    return tokenizer


def pad(sequences, pad_id, length=None, side="right", truncate="right"):  # -> (B, T) int32, (B, T) bool
    """B rows of one length T (default: the longest), and a mask, True where a token is real. side: where the
    padding stands; truncate: which end of too long a row is lost. To let a model write on, "left" for both.
    >>> pad([[5, 6, 7], [8]], pad_id=0, length=2, truncate="left")[0].tolist()
    [[6, 7], [8, 0]]
    """
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
    text, sentence = read_text("shakespeare"), "O Romeo, wherefore art thou Romeo? 羅!"
    train_bpe("hug hug", 257)  # so that compiling is not in the time
    start = time.perf_counter()
    merges, found = learn_merges(*byte_words(text), 4096 - BYTES)
    print(f"{len(text):,} characters, {len(merges):,} merges learned in {time.perf_counter() - start:.2f} s:")
    bpe = Tokenizer("bpe", merges, ())
    for m in 0, 1, 2, 3, 10, 100, 1000, 3000:
        print(f"{m + 1:6}. {bpe.decode(merges[m, :1])!r} + {bpe.decode(merges[m, 1:])!r}, {found[m]:,} times")
    for t in char_tokenizer(text + sentence), train_bpe(text, 512), bpe, gpt2_tokenizer():
        pieces = b"|".join(map(t.token_bytes, t.encode(sentence))).decode(errors="backslashreplace")
        print(f"{t.kind:4} of {t.vocab_size:5}: {len(t.encode(text[:10_000])):6} per 10,000 chars  {pieces}")
