"""Lesson 5's tokenizers on 10,000 random texts of any Unicode, and 1,000 damaged files.

Case n is made by random.Random(f"{SEED} {n}") alone. A failure names its n: text_of(n) is the text, and
TOKENIZERS[n % len(TOKENIZERS)] met it.
"""
import copy
import json
import random
import unicodedata
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiktoken

from kernels.cpu.words import number_words
from lessons import l05_tokenizer as lesson
from lessons import tokenizer_json
from lessons.errors import InputError

SEED, CASES, DAMAGES = 4, 10_000, 1_000
DATA = Path(__file__).parents[1] / "data"
SPECIAL = ["<|end|>", "<|学 é|>"]
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # as OpenAI wrote it

# Every character that has been one for years, for libraries disagree about newer ones, and the 66 code points
# that never will be one.
NEVER = [*range(0xFDD0, 0xFDF0), *(plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF))]
ANYTHING = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs") or c in NEVER]
ALPHABETS = ["ab ", "aab", "the cat.\n", "'sdmtlvreSL’ ", " \t\n\r", "".join(map(chr, range(32, 127))),
             "".join(map(chr, range(32))) + "\x7f\x80\x85\x9f", "学而时习之，。\u3000", "éßøñ ẞ",
             "e\u0301\u0323\u20dd\u0489 ", "👩👧🏽\u200d\ufe0f🇦🇶", "0 1٣५৩½Ⅷ①〇𝟘𐄇a", "\ue000\uf8ff\U0010fffd",
             [*map(chr, NEVER)], [c for c in ANYTHING if c.isspace()] + [*"\u180e\u200b\u2060\ufeff"],
             "\u202e\u2066אבج\u0640 ", SPECIAL, [*SPECIAL, "<|", "|>"], ANYTHING, ANYTHING]


def text_of(n, most=7):
    rng = random.Random(f"{SEED} {n}")
    return "".join("".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 6)))
                   for _ in range(rng.randint(0, most)))


# Some learned from prose, some from what looks like the cases; one learned nothing.
TOKENIZERS = [lesson.train_bpe((DATA / f"{name}.txt").read_text("utf-8")[:3000], 300, SPECIAL)
              for name in ("shakespeare", "grimm", "lunyu", "tang")]
TOKENIZERS += [lesson.train_bpe(3 * text_of(-n, most=60), 258 + 5 * n, SPECIAL) for n in range(10)]


@contextmanager
def named(n):
    """Whatever goes wrong in case n tells how to make the case again."""
    try:
        yield
    except Exception as error:
        error.add_note(f"case {n} of seed {SEED}: tokenizer {n % len(TOKENIZERS)}, text {text_of(n)!a}")
        raise


def count(n):
    return pytest.mark.parametrize("cases", [n], ids=[f"{n} cases, seed {SEED}"])


@pytest.fixture(scope="module")
def encoded():
    """[(text, its tokenizer, which one that is, ids), ...]"""
    found = []
    for n in range(CASES):
        with named(n):
            text, which = text_of(n), n % len(TOKENIZERS)
            found.append((text, TOKENIZERS[which], which, TOKENIZERS[which].encode(text).tolist()))
    return found


@pytest.fixture(scope="module")
def oracles():
    """tiktoken with the same merges."""
    ranks = [{token: id for id, token in enumerate(t.tokens[:-len(SPECIAL)])} for t in TOKENIZERS]
    return [tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks[which], special_tokens=t.special)
            for which, t in enumerate(TOKENIZERS)]


@count(CASES)
def test_words_are_cut_where_the_pattern_cuts(cases):
    for n in range(cases):
        with named(n):
            text = text_of(n)
            words, order = number_words(text)
            want = lesson.WORDS.findall(text)
            assert [words[number] for number in order] == want
            assert words == [*dict.fromkeys(want)], "each word once, in the order in which they first occur"


@count(CASES)
def test_decode_gives_the_text_back(cases, encoded):
    for n in range(cases):
        with named(n):
            text, tokenizer, _, ids = encoded[n]
            assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
            assert tokenizer.decode(ids) == text
            letters = lesson.char_tokenizer(text, SPECIAL)
            ids = letters.encode(text)
            assert len(ids) == len(text) and letters.decode(ids) == text


@count(CASES)
def test_encode_equals_tiktoken(cases, encoded, oracles):
    for n in range(cases):
        with named(n):
            text, _, which, ids = encoded[n]
            assert ids == oracles[which].encode_ordinary(text)


@count(CASES)
def test_encode_equals_its_definition_word_by_word(cases, encoded):
    merges = [[*map(tuple, tokenizer.parts.tolist())] for tokenizer in TOKENIZERS]
    for n in range(cases):
        with named(n):
            text, _, which, ids = encoded[n]
            words = [lesson.encode_word(word, merges[which]) for word in lesson.WORDS.findall(text)]
            assert ids == [id for word in words for id in word]


@count(CASES)
def test_encode_finds_special_tokens_where_they_are_allowed(cases, encoded, oracles):
    for n in range(cases):
        with named(n):
            text, tokenizer, which, ids = encoded[n]
            assert not {*ids} & {*tokenizer.special.values()}, "not allowed: they are text like any other"
            ids = tokenizer.encode(text, allow_special=True).tolist()
            assert ids == oracles[which].encode(text, allowed_special="all")
            assert tokenizer.decode(ids) == text


@count(CASES)
def test_decode_makes_text_of_any_ids_and_any_bytes(cases, oracles):
    for n in range(cases):
        with named(n):
            rng, which = random.Random(f"{SEED} {n}"), n % len(TOKENIZERS)
            tokens = TOKENIZERS[which].tokens
            ids = rng.choices(range(len(tokens)), k=rng.randint(0, 20))
            assert TOKENIZERS[which].decode(ids) == oracles[which].decode(ids)
            raw = rng.randbytes(rng.randint(0, 20))
            ids = [tokens.index(bytes([byte])) for byte in raw]
            assert TOKENIZERS[which].decode(ids) == raw.decode(errors="replace")


@count(CASES)
def test_half_a_surrogate_pair_is_refused_in_one_line(cases, encoded):
    for n in range(cases):
        with named(n):
            text, tokenizer, _, _ = encoded[n]
            at, half = n % (len(text) + 1), chr(0xD800 + n % 0x800)
            for t in tokenizer, lesson.char_tokenizer(text):
                with pytest.raises(InputError) as error:
                    t.encode(text[:at] + half + text[at:], allow_special=True)
                want = f"the text is not UTF-8: '\\u{ord(half):x}' at offset {at}; leave it out"
                assert str(error.value) == want


@count(CASES // 10)
def test_learning_equals_its_definition(cases):
    for n in range(cases):
        with named(n):
            text, size = 2 * text_of(n), n % 40
            merges = lesson.train_bpe(text, 256 + size).parts.tolist()
            assert [*map(tuple, merges)] == lesson.learn(text, size)


# -------- files


@count(CASES // 10)
def test_a_saved_tokenizer_gives_the_same_ids(cases, encoded, tmp_path):
    again = [saved_and_loaded(tokenizer, tmp_path) for tokenizer in TOKENIZERS]
    for n in range(cases):
        with named(n):
            text, _, which, ids = encoded[n]
            assert again[which].encode(text).tolist() == ids
            letters = lesson.char_tokenizer(text, SPECIAL)
            same(saved_and_loaded(letters, tmp_path), letters)


def saved_and_loaded(tokenizer, folder):
    tokenizer_json.save_tokenizer(tokenizer, folder / "tokenizer.json")
    return tokenizer_json.load_tokenizer(folder / "tokenizer.json")


def same(got, want):
    for attribute in "kind", "vocab_size", "tokens", "special":
        assert getattr(got, attribute) == getattr(want, attribute), attribute
    assert [*map(tuple, got.parts)] == [*map(tuple, want.parts)]


NASTY = [None, True, -1, 0, 1, 10**20, 1.5, 1e999, float("nan"), "", "a", "<|end|>", "\ud800", "a" * 9999,
         [], [[]], {}, {"a": "b"}, ["a", "b"], [["a", "b"]]]


def damaged(raw, rng):  # bytes -> bytes
    raw, at = bytearray(raw), rng.randrange(len(raw))
    other, width = rng.randrange(len(raw)), rng.choice([1, 1, 2, 9, 100])
    match rng.randrange(6):
        case 0 | 1:
            for _ in range(rng.choice([1, 1, 2, 8])):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        case 2:
            del raw[at:]
        case 3:
            del raw[at:at + width]
        case 4:
            raw[at:at] = raw[other:other + width]
        case 5:
            raw[at:at + width] = rng.randbytes(width)
    return bytes(raw)


def meddled(file, rng):  # -> the same JSON, with something in it gone, nasty, or what stands elsewhere
    places, todo = [], [copy.deepcopy(file)]
    file = todo[0]
    while todo:
        node = todo.pop()
        keys = [*node] if isinstance(node, dict) else [*range(len(node))]
        places += [(node, key) for key in rng.sample(keys, min(len(keys), 8))]
        todo += [node[key] for key in keys if isinstance(node[key], dict | list)]
    (node, key), (other, name) = rng.choices(places, k=2)
    match rng.randrange(3):
        case 0:
            del node[key]
        case 1:
            node[key] = rng.choice(NASTY)
        case 2:
            node[key] = copy.deepcopy(other[name])
    return file


def as_written(tokenizer, file):
    """It has the ids and the merges that are in the file."""
    model, special = file["model"], {token["content"]: token["id"] for token in file["added_tokens"]}
    names = {id: name for name, id in (model["vocab"] | special).items()}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte = {chr(b): b for b in printable} | {
        chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in printable)}
    for id, token in enumerate(tokenizer.tokens):
        bpe = tokenizer.kind == "bpe" and names[id] not in special
        assert token == (bytes(map(byte.get, names[id])) if bpe else names[id].encode()), f"token {id}"
    assert len(names) == tokenizer.vocab_size and tokenizer.special == special
    pairs = [pair.split() if isinstance(pair, str) else pair for pair in model.get("merges", [])]
    assert [[names[a], names[b]] for a, b in (tokenizer.parts.tolist() if pairs else [])] == pairs


@count(DAMAGES)
def test_a_damaged_file_is_refused_or_loads_to_the_same_tokenizer(cases, tmp_path):
    """Half of the files have no checksum. These may load to other ids, but only to those that they name."""
    path, refused = tmp_path / "tokenizer.json", 0
    sound = [TOKENIZERS[1], lesson.char_tokenizer("the cat 学\n", SPECIAL), lesson.train_bpe("hug hug", 300)]
    for n in range(cases):
        with named(n):
            rng, tokenizer = random.Random(f"{SEED} {n}"), sound[n % len(sound)]
            file, checked = tokenizer_json.as_json(tokenizer), rng.random() < 0.5
            if not checked:
                del file["model"]["crc32"]
            if rng.random() < 0.5:
                path.write_bytes(damaged(json.dumps(file, ensure_ascii=False).encode(), rng))
            else:
                path.write_text(json.dumps(meddled(file, rng)))
            try:
                got = tokenizer_json.load_tokenizer(path)
            except InputError as error:
                said = str(error)
                assert str(path) in said and said.isprintable() and len(said) < 300 + len(str(path))
                refused += 1
            else:
                same(got, tokenizer) if checked else as_written(got, json.loads(path.read_bytes()))
    assert cases // 2 < refused < cases, "some damage does no harm: nobody reads the version"
