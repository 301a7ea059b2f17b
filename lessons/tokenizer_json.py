"""Lesson 5's tokenizers in files: the tokenizer.json that the tokenizers library and transformers open, and
the two files in which OpenAI published GPT-2's."""
import json
import zlib
from pathlib import Path

import numpy as np

from lessons.errors import InputError
from lessons.l05_tokenizer import BYTE_OF_ID, BYTES, Tokenizer
from lessons.texts import DATA

# In files every byte is a visible character: itself if printable (188 are), else U+0100 on. ' ' is 'Ġ'.
SYMBOL = {byte: chr(byte if id < 188 else 256 + id - 188) for id, byte in enumerate(BYTE_OF_ID)}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


def as_json(tokenizer):
    """A tokenizer of characters is what the tokenizers library calls a WordLevel."""
    bpe, n = tokenizer.kind == "bpe", tokenizer.vocab_size - len(tokenizer.special)
    names = ["".join(map(SYMBOL.get, t)) if bpe else t.decode() for t in tokenizer.tokens[:n]]
    model = {"type": "WordLevel", "unk_token": "<unk>"} if not bpe else {
        "type": "BPE", "merges": [[names[a], names[b]] for a, b in tokenizer.parts.tolist()]}
    model["vocab"] = dict(zip(names, range(n))) | tokenizer.special
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    added = [{"id": id, "content": text} | flags for text, id in tokenizer.special.items()]
    file = {"version": "1.0", "added_tokens": added, "normalizer": None, "model": model,
            "pre_tokenizer": BYTE_LEVEL if bpe else SPLIT, "decoder": BYTE_LEVEL if bpe else {"type": "Fuse"}}
    model["crc32"] = checksum(file)  # in there, other libraries overlook it
    return file


def checksum(file):
    return zlib.crc32(json.dumps(file).encode())


def save_tokenizer(tokenizer, path):
    Path(path).write_text(json.dumps(as_json(tokenizer), ensure_ascii=False), "utf-8")


def load_tokenizer(path):
    """Read what save_tokenizer wrote, or GPT-2's own tokenizer.json. InputError: damage, or another file."""
    try:
        if not Path(path).is_file():  # a pipe would keep us waiting
            raise ValueError("there is no such file")
        return from_json(json.loads(Path(path).read_text("utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"[:150]
        raise InputError(f"{path} is not a tokenizer.json of this course or of GPT-2 ({why}): "
                         "take another copy, or train again") from None


def from_json(file):  # -> Tokenizer
    """ValueError if the tokenizers library would give other ids. No token is built before its name is found
    in the file: of 50 merges, each of which doubles a token, the last would ask for 2^50 bytes."""
    model, added = file["model"], file["added_tokens"]
    if model.pop("crc32", None) not in (None, checksum(file)):
        raise ValueError("its checksum does not fit")
    ids = {token["content"]: token["id"] for token in added}
    vocab, special, bpe = model["vocab"] | ids, sorted(ids, key=ids.get), "merges" in model
    names = sorted(vocab, key=vocab.get)
    parts = names[:len(names) - len(special)]
    if names != parts + special or [*map(vocab.get, names)] != [*range(len(names))]:
        raise ValueError("its ids are not 0, 1, 2, ..., those of special tokens the last")
    if bpe:
        pairs = [pair.split() if isinstance(pair, str) else pair for pair in model["merges"]]
        if parts[:BYTES] != [*SYMBOL.values()] or parts[BYTES:] != [a + b for a, b in pairs]:
            raise ValueError("its tokens are not the bytes and what its merges join")
        parts = merges_from(pairs, vocab)
    elif any(len(name) != 1 for name in parts):
        raise ValueError("its tokens are not single characters")
    kind, cut = ("BPE", BYTE_LEVEL) if bpe else ("WordLevel", SPLIT)
    flags = [token.get(flag) for token in added for flag in ("single_word", "lstrip", "rstrip")]
    options = [model[key] for key in model.keys() - {"type", "vocab", "merges", "unk_token"}]
    if (any([file["normalizer"], file.get("truncation"), file.get("padding"), *flags, *options])
            or model.get("type", kind) != kind or cut != cut | file["pre_tokenizer"]
            or (file.get("post_processor") or BYTE_LEVEL)["type"] != "ByteLevel"):
        raise ValueError("it cuts text in another way")
    return Tokenizer("bpe" if bpe else "char", parts, special)


def merges_from(pairs, ids):  # [["Ġ", "t"], ...], {"Ġ": 220, ...} -> (m, 2) int32
    return np.array([(ids[a], ids[b]) for a, b in pairs], np.int32).reshape(-1, 2)


def gpt2_tokenizer():
    """The 50,257 tokens of GPT-2, from OpenAI's two files."""
    ids, pairs = ((DATA / "gpt2_bpe" / name).read_text("utf-8") for name in ("encoder.json", "vocab.bpe"))
    merges = merges_from(map(str.split, pairs.splitlines()[1:]), json.loads(ids))
    return Tokenizer("bpe", merges, ["<|endoftext|>"])
