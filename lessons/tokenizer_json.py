"""Lesson 5's tokenizers in files: the tokenizer.json that the tokenizers library and transformers open, and
the two files in which OpenAI published GPT-2's."""
import json
from pathlib import Path

import numpy as np

from lessons.errors import InputError
from lessons.l05_tokenizer import BYTE_OF_ID, Tokenizer
from lessons.texts import DATA

# In files every byte is a visible character: itself if printable (188 are), else U+0100 on. ' ' is 'Ġ'.
SYMBOL = {byte: chr(byte if id < 188 else 256 + id - 188) for id, byte in enumerate(BYTE_OF_ID)}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


def merges_from(pairs, ids):  # pairs "Ġ t" or ["Ġ", "t"], {"Ġ": 220, ...} -> (m, 2) int32
    pairs = (pair.split() if isinstance(pair, str) else pair for pair in pairs)
    return np.array([(ids[a], ids[b]) for a, b in pairs], np.int32).reshape(-1, 2)


def as_json(tokenizer):
    """A tokenizer of characters is what the tokenizers library calls a WordLevel."""
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


def gpt2_tokenizer():
    """The 50,257 tokens of GPT-2, from OpenAI's two files."""
    ids, pairs = ((DATA / "gpt2_bpe" / name).read_text("utf-8") for name in ("encoder.json", "vocab.bpe"))
    return Tokenizer("bpe", merges_from(pairs.splitlines()[1:], json.loads(ids)), ["<|endoftext|>"])
