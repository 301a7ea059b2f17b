"""What a training reads: a text becomes tokens to learn from, and tokens to judge the model by."""
import numpy as np

from lessons.errors import InputError
from lessons.l05_tokenizer import char_tokenizer, train_bpe
from lessons.texts import checksum, read_text, split
from lessons.tokenizer_json import gpt2_tokenizer


def read_tokens(settings, tokenizer, out):  # -> Tokenizer, training (n,), validation (m,), characters
    """characters: of the validation text, less those of its first token, which nothing predicts.

    tokenizer: of the run in `out` that is resumed, else None. The checksums of both go into settings. Raises
    InputError for a text that is too short, and if a resumed run had another text or tokenizer.
    """
    name, block, text = settings["data"], settings["block"], read_text(settings["data"])
    parts = split(text)
    tokenizer = tokenizer or new_tokenizer(settings, *parts)
    if not same(settings, "tokens_sha256", repr(tokenizer.tokens)):
        raise InputError(f"{out / 'tokenizer.json'} is not that of the run in training.safetensors: take "
                         "another copy of both")
    if not same(settings, "sha256", text):
        raise InputError(f"--resume: {name} is no longer the text that the run in {out} reads")
    training, validation = map(tokenizer.encode, parts)
    characters = len(parts[1]) - len(tokenizer.decode(validation[:1]))
    if len(training) <= block or characters < 1 or tokenizer.vocab_size < 2:
        raise InputError(f"{name} is too short: its {len(text)} characters are {len(training)} tokens of "
                         f"{tokenizer.vocab_size} kinds to train on, --block {block} needs more; give a "
                         "longer text, a smaller --block or --vocab-size, or --tokenizer char")
    print(f"text   {name}: {len(text):,} characters, the last tenth for validation\n"
          f"       = {len(training) + len(validation):,} tokens of {tokenizer.vocab_size:,} kinds")
    return tokenizer, training, validation, characters


def same(settings, name, text):
    """Is it the text whose checksum settings have under that name? They get it if they have none yet."""
    digest = checksum(text)
    return settings.setdefault(name, digest) == digest


def new_tokenizer(settings, training, validation):  # texts
    """What bpe learns is part of the model: it must not see the validation text. char has to know every
    character, and learns nothing from it but that it exists."""
    if settings["tokenizer"] == "bpe":
        return train_bpe(training, settings["vocab_size"])
    return char_tokenizer(training + validation) if settings["tokenizer"] == "char" else gpt2_tokenizer()


def spread(tokens, most):  # (n,) -> (at most `most`,)
    """All, or twenty pieces from all over the text: one part of it may be easier than the others."""
    if len(tokens) <= most:
        return tokens
    starts = np.linspace(0, len(tokens) - most // 20, 20).astype(int)
    return np.concatenate([tokens[start:start + most // 20] for start in starts])
