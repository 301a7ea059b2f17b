"""Lesson 5's tests. The oracles: a textbook trainer of ten lines, tiktoken, and what the tokenizers library
learned (goldens/bpe_merges.json). None of them uses the lesson."""
import json
import os
import time
import tracemalloc
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lessons import l05_tokenizer as lesson
from lessons import tokenizer_json
from lessons.errors import InputError
from tests.close import assert_close, unchanged

GOLDENS, DATA = Path(__file__).parent / "goldens", Path(__file__).parents[1] / "data"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # as OpenAI wrote it
ENGLISH = (DATA / "grimm.txt").read_text("utf-8")[:30_000]
CHINESE = (DATA / "lunyu.txt").read_text("utf-8")[:3_000]
MIXED = ("Café, naïve; 学而时习之，\u3000不亦说乎？\n\n\tdon't we'll I'M  3½ Ⅷ ٣ x\u0301 👩\u200d👧 \x00\x1c "
         "\u2028 <|endoftext|>   ")
few, fewer = (settings(deadline=None, max_examples=n) for n in (50, 20))
# Every Unicode character that has been one for years: libraries disagree about newer ones.
any_text = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60)
little_text = st.text("ab c", max_size=60) | st.text("a", max_size=40) | st.text("aé's 1.\n", max_size=60)


def symbols():
    """GPT-2's bytes_to_unicode: how a byte is written in a vocabulary file, in the order of the ids."""
    printable = [b for first, last in ("!~", "¡¬", "®ÿ") for b in range(ord(first), ord(last) + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


FIRST = [bytes([b]) for b in symbols()]  # the first 256 tokens


def textbook(text, n):
    """The definition, without any speed: count all pairs, merge the best one everywhere, begin again."""
    ids = {token: id for id, token in enumerate(FIRST)}
    words, merges = [[ids[bytes([b])] for b in word.encode()] for word in regex.findall(PATTERN, text)], []
    for new in range(256, 256 + n):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        for w, word in enumerate(words):
            words[w] = merge(word, best, new)
    return merges


def merge(word, pair, new):
    done = []
    while word:
        width = 2 if tuple(word[:2]) == pair else 1
        done.append(new if width == 2 else word[0])
        word = word[width:]
    return done


def as_tiktoken(tokenizer, special=()):
    ranks = {token: id for id, token in enumerate(tokenizer.tokens[:tokenizer.vocab_size - len(special)])}
    return tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={s: len(ranks) + i for i, s in enumerate(special)})


@pytest.fixture(scope="module")
def english():
    return lesson.train_bpe(ENGLISH, 600, ["<|endoftext|>", "<|end|>"])


@pytest.fixture(scope="module")
def gpt2():
    return tokenizer_json.gpt2_tokenizer()


# -------- the definition


def test_merge_puts_one_token_where_the_pair_stood():
    for word, pair, new, want in (((1, 2, 5, 1, 2), (1, 2), 99, (99, 5, 99)), ((8, 3), (8, 3), 257, (257,)),
                                  ((5, 1, 2, 3), (1, 2), 256, (5, 256, 3)), ((0, 0, 1), (0, 1), 9, (0, 9))):
        got = lesson.merge(word, pair, new)
        assert got == want, f"{pair} in {word}: a tuple in which {new} stands for the two"


def test_merge_goes_from_left_to_right():
    got = lesson.merge((7, 7, 7), (7, 7), 256)
    assert got == (256, 7), "of aaa the first two become one, and the third stays"
    assert lesson.merge((7, 7, 7, 7), (7, 7), 256) == (256, 256), "aaaa is two pairs, not three"


def test_merge_leaves_all_else_alone():
    assert lesson.merge((2, 1), (1, 2), 256) == (2, 1), "2 before 1 is another pair than 1 before 2"
    assert lesson.merge((1, 3, 2), (1, 2), 256) == (1, 3, 2), "1 and 2 are no neighbours"
    assert lesson.merge((1,), (1, 2), 256) == (1,) and lesson.merge((), (1, 2), 256) == ()


def test_encode_word_begins_with_the_bytes():
    got = lesson.encode_word("hé")
    assert got == tuple(FIRST.index(byte) for byte in (b"h", b"\xc3", b"\xa9")), "é is two bytes in UTF-8"
    assert lesson.encode_word("!") == (0,), "the byte of '!' is 33, but its id is 0, as GPT-2 has it"
    assert lesson.encode_word("") == ()


def test_encode_word_merges_in_the_order_of_learning():
    a, b, c = (FIRST.index(letter) for letter in (b"a", b"b", b"c"))
    assert lesson.encode_word("abc", [(b, c), (a, b)]) == (a, 256), "b+c came first, so no a+b is left"
    assert lesson.encode_word("abc", [(a, b), (256, c)]) == (257,), "pairs[0] is token 256, pairs[1] is 257"


@fewer
@given(little_text)
@example("hug hug hugs")
def test_encode_word_makes_of_a_word_what_learning_made_of_it(text):
    merges = textbook(text, 40)
    for word in regex.findall(PATTERN, text):
        ids = [FIRST.index(bytes([byte])) for byte in word.encode()]
        for new, pair in enumerate(merges, 256):
            ids = merge(ids, pair, new)
        assert lesson.encode_word(word, [*merges]) == tuple(ids)


def test_learn_breaks_a_tie_by_the_smaller_ids():
    h, u, g, space = (FIRST.index(c) for c in (b"h", b"u", b"g", b" "))
    got = lesson.learn("hug hug hugs", 9)
    assert got == [(h, u), (256, g), (space, 257)], "h+u is as frequent as u+g, and h has the smaller id"
    x, y = FIRST.index(b"x"), FIRST.index(b"y")
    assert lesson.learn("xzxy xzxy", 1) == [(x, y)], "x+y before x+z: both begin with x"


def test_learn_counts_a_word_as_often_as_it_occurs():
    x, y = FIRST.index(b"x"), FIRST.index(b"y")
    assert lesson.learn("xy xy xy abc abd", 1) == [(x, y)], "a+b stands in two words, but x+y occurs 3 times"


def test_learn_counts_every_place_where_a_pair_begins():
    a = FIRST.index(b"a")
    assert lesson.learn("aaa", 9) == [(a, a)], "in aaa, a+a occurs twice; then 256+a occurs once"


def test_learn_counts_no_pair_of_two_words():
    assert lesson.learn("a.b.a.b", 9) == [], "a letter and a point are two words: no pair is inside a word"


def test_learn_stops_when_no_pair_occurs_twice_or_n_are_learned():
    for text in "", "a b c", "abc":
        assert lesson.learn(text, 9) == [], f"no pair occurs twice in {text!r}"
    assert len(lesson.learn("hug hug hugs", 2)) == 2 and lesson.learn("hug hug hugs", 0) == []


@fewer
@given(little_text, st.integers(0, 40))
@example("aaaa aaaa aaa aa", 40)
@example("abababa bababab", 40)
@example("a \u4e00 \u4e00\u4e00", 40)
def test_learn_learns_what_the_textbook_learns(text, n):
    assert lesson.learn(text, n) == textbook(text, n)


def test_learn_on_prose_learns_what_the_textbook_learns():
    for text in ENGLISH[:1000], CHINESE[:400], MIXED * 2:
        assert lesson.learn(text, 40) == textbook(text, 40)


# -------- training


def test_byte_words_are_the_different_words_in_gpt2s_byte_order():
    words, order = lesson.byte_words("hug! hug! hug")
    assert order.tolist() == [0, 1, 2, 1, 2], "hug is word 0, ! word 1, ' hug' word 2"
    ids = {token: id for id, token in enumerate(FIRST)}
    h, u, g, mark, space = (ids[c] for c in (b"h", b"u", b"g", b"!", b" "))
    assert words.tolist() == [-1, h, u, g, -1, mark, -1, space, h, u, g, -1]
    assert words.dtype == order.dtype == np.int32


def test_byte_words_of_nothing():
    words, order = lesson.byte_words("")
    assert (words.tolist(), order.tolist()) == ([-1], [])


def test_train_bpe_begins_with_the_bytes_in_gpt2s_order():
    assert lesson.train_bpe("", 256).tokens == FIRST


def test_train_bpe_breaks_a_tie_by_the_smaller_ids():
    tokens = lesson.train_bpe("hug hug hugs", 1000).tokens[256:]
    assert tokens == [b"hu", b"hug", b" hug"], "h+u and u+g occur 3 times each: h has the smaller id"
    assert lesson.train_bpe("xyxz xyxz", 257).tokens[256] == b"xy", "x+y before x+z: both begin with x"


@few
@given(little_text, st.integers(0, 40))
@example("aaaa aaaa aaa aa", 40)
@example("abababa bababab", 40)
def test_train_bpe_learns_what_the_textbook_learns(text, n):
    assert lesson.train_bpe(text, 256 + n).parts.tolist() == [list(pair) for pair in textbook(text, n)]


def test_train_bpe_on_runs_of_one_letter():
    for length in range(1, 40):  # in aaa, a+a occurs twice but can be merged once
        text = "a" * length + " " + "a" * (length // 2)
        got = [tuple(pair) for pair in lesson.train_bpe(text, 300).parts.tolist()]
        assert got == textbook(text, 44), f"{text!r}"


@pytest.mark.parametrize("text", [ENGLISH[:4000], CHINESE[:1000], MIXED * 3], ids=["en", "zh", "mixed"])
def test_train_bpe_on_prose_learns_what_the_textbook_learns(text):
    assert [tuple(pair) for pair in lesson.train_bpe(text, 320).parts.tolist()] == textbook(text, 64)


def test_train_bpe_learns_what_the_tokenizers_library_learns():
    golden = json.loads((GOLDENS / "bpe_merges.json").read_text("utf-8"))
    text, symbol = (DATA / golden["text"]).read_text("utf-8"), symbols()
    tokenizer = lesson.train_bpe(text, golden["vocab_size"])
    names = ["".join(symbol[b] for b in token) for token in tokenizer.tokens]
    assert [f"{names[a]} {names[b]}" for a, b in tokenizer.parts.tolist()] == golden["merges"]


@few
@given(st.lists(st.sampled_from([" ab", " abc", " bcab", " cc", " bab"]), max_size=12), st.randoms())
def test_train_bpe_does_not_depend_on_the_order_of_the_words(words, random):
    before = lesson.train_bpe("".join(words), 300).tokens
    random.shuffle(words)
    assert lesson.train_bpe("".join(words), 300).tokens == before


def test_train_bpe_stops_when_no_pair_occurs_twice():
    assert lesson.train_bpe("abc", 400).vocab_size == 256
    assert lesson.train_bpe("abc abd", 400, ["<|end|>"]).vocab_size == 258, "ab, and the special token"
    assert lesson.train_bpe("", 400).vocab_size == 256


def test_train_bpe_counts_bytes_and_special_tokens():
    tokenizer = lesson.train_bpe(ENGLISH, 300, ["<|a|>", "<|b|>"])
    assert (tokenizer.vocab_size, len(tokenizer.parts)) == (300, 42)
    assert tokenizer.special == {"<|a|>": 298, "<|b|>": 299}
    with pytest.raises(ValueError, match="vocabulary of 257 is too small.* 258"):
        lesson.train_bpe(ENGLISH, 257, ["<|a|>", "<|b|>"])


@pytest.mark.parametrize("special", [[""], ["a"], ["<|a|>", "<|a|>"]])
def test_a_special_token_must_be_new(special):
    with pytest.raises(ValueError, match="special token"):
        lesson.train_bpe("a", 300, special)
    with pytest.raises(ValueError, match="special token"):
        lesson.char_tokenizer("a", special)


def test_train_bpe_takes_a_large_vocabulary():
    text = " ".join(f"{n:x}" for n in range(5_000)) * 2
    tokenizer = lesson.train_bpe(text, 50_000)  # a table of 50,000 x 50,000 would need 10 GB
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_train_bpe_takes_no_memory_for_tokens_that_a_text_cannot_give():
    assert lesson.train_bpe("hug hug hugs", 10**15).vocab_size == 259


def test_half_a_surrogate_pair_is_not_learned():
    for make in (lambda: lesson.train_bpe("a\ud800", 300), lambda: lesson.char_tokenizer("a\ud800"),
                 lambda: lesson.train_bpe("a", 300, ["<\ud800>"])):
        with pytest.raises(ValueError, match=r"ud800.* not allowed") as error:
            make()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["lunyu", "tang"])
def test_train_bpe_learns_chinese_words(name):
    """Chinese puts no space between words: what the pattern cuts is all that stands between two commas."""
    text = (DATA / f"{name}.txt").read_text("utf-8")
    tokenizer = lesson.train_bpe(text, 4096)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and len(ids) < len(text)
    assert ids.tolist() == as_tiktoken(tokenizer).encode_ordinary(text)
    assert {"lunyu": "子曰", "tang": "不見"}[name].encode() in tokenizer.tokens


# -------- encoding and decoding


def test_tokenizer_encode_gives_one_row_of_int32():
    tokenizer = lesson.char_tokenizer("abc", ["<|end|>"])
    for text, allowed, want in (("", False, []), ("", True, []), ("cab", False, [2, 0, 1]), ("b", True, [1]),
                                ("<|end|>", True, [3]), ("a<|end|><|end|>bc", True, [0, 3, 3, 1, 2])):
        ids = tokenizer.encode(text, allow_special=allowed)
        assert_close(ids, np.int32(want), f"ids of {text!r}, allow_special={allowed},", dtype=np.int32)
    ids = lesson.char_tokenizer("abc").encode("cab", allow_special=True)
    assert_close(ids, np.int32([2, 0, 1]), "ids from a tokenizer without special tokens", dtype=np.int32)
    assert_close(lesson.train_bpe("", 256).encode(""), np.int32([]), "ids of nothing", dtype=np.int32)


@fewer
@given(any_text | little_text)
@example(MIXED)
@example("the there then the the  thethe\n\n the")
def test_tokenizer_encode_equals_tiktoken_with_our_merges(english, text):
    assert english.encode(text).tolist() == as_tiktoken(english, english.special).encode_ordinary(text)


def test_tokenizer_encode_equals_tiktoken_on_prose():
    for text in ENGLISH, CHINESE:
        tokenizer = lesson.train_bpe(text, 700)
        assert tokenizer.encode(text + MIXED).tolist() == as_tiktoken(tokenizer).encode_ordinary(text + MIXED)


@fewer
@given(st.text("ab", max_size=40), st.text("ab", min_size=20, max_size=60))
def test_tokenizer_encode_merges_in_the_order_of_learning(text, learned_from):
    tokenizer = lesson.train_bpe(learned_from, 290)
    ids = [FIRST.index(bytes([b])) for b in text.encode()]
    for new, pair in enumerate(tokenizer.parts.tolist(), 256):
        ids = merge(ids, tuple(pair), new)
    assert tokenizer.encode(text).tolist() == ids


def test_a_word_of_a_hundred_thousand_letters_is_encoded(english):
    assert b"".join(english.tokens[id] for id in english.encode("a" * 100_000)) == b"a" * 100_000


def test_tokenizer_encode_takes_special_tokens_for_text_unless_it_is_allowed(english):
    text = "king<|endoftext|> <|end|>queen"
    ids = english.encode(text).tolist()
    assert not {598, 599} & {*ids}, "a user wrote <|endoftext|>, and it became the special token"
    assert b"".join(english.tokens[id] for id in ids) == text.encode()
    ids = english.encode(text, allow_special=True).tolist()
    assert 598 in ids and 599 in ids, f"<|endoftext|> is 598 and <|end|> 599, but the ids are {ids}"
    assert ids == as_tiktoken(english, english.special).encode(text, allowed_special="all")


def test_tokenizer_encode_takes_the_longest_special_token_that_fits():
    tokenizer = lesson.char_tokenizer("x", ["[A]", "[A][B]", "."])
    got = tokenizer.encode("[A][B]x.[A]x", allow_special=True).tolist()
    assert got == [2, 0, 3, 1, 0], "[A][B] before [A]; and in a pattern [, ] and . need an escape"


def test_char_tokenizer_numbers_the_characters_in_the_order_of_unicode():
    tokenizer = lesson.char_tokenizer("banana 学", ["<|end|>"])
    assert tokenizer.tokens == [b" ", b"a", b"b", b"n", "学".encode(), b"<|end|>"]
    assert (tokenizer.kind, tokenizer.vocab_size) == ("char", 6)
    assert tokenizer.encode("nab").tolist() == [3, 1, 2]


def test_tokenizer_encode_names_an_unknown_character_and_where_it_is():
    tokenizer = lesson.char_tokenizer("abc", ["<|é|>"])
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9\) at offset 3") as error:
        tokenizer.encode("abcé é")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="'é' .* at offset 7"):
        tokenizer.encode("a<|é|>bé", allow_special=True)


def test_a_text_that_is_not_utf8_is_refused(english):
    """sys.argv holds a byte that is not UTF-8 as half of a surrogate pair."""
    for tokenizer in english, lesson.char_tokenizer("abc", ["<|end|>"]):
        for allowed in False, True:
            with pytest.raises(InputError, match=r"the text is not UTF-8: '\\udcff' at offset 8") as error:
                tokenizer.encode("a<|end|>\udcffb\udcfe", allow_special=allowed)
            assert "\n" not in str(error.value)


def test_token_bytes_lets_text_be_shown_as_it_comes(english):
    ids = english.encode("学 the").tolist()
    assert b"".join(english.token_bytes(id) for id in ids) == "学 the".encode()
    assert len(english.token_bytes(ids[0])) == 1, "a third of a character"
    for tokenizer in english, lesson.char_tokenizer("abc"):
        for id in -1, tokenizer.vocab_size:
            with pytest.raises(ValueError, match=f"{id} is not a token"):
                tokenizer.token_bytes(id)


def test_tokenizer_decode_joins_bytes_before_it_reads_them_as_text():
    tokenizer = lesson.train_bpe("", 257, ["<|end|>"])
    ids = [FIRST.index(bytes([byte])) for byte in "é学".encode()]
    for given_as in list, tuple, np.int32, np.int64:
        got = tokenizer.decode(given_as([*ids, 256, *ids]))
        assert got == "é学<|end|>é学", "é is two tokens here, 学 three: no token is a character by itself"
    assert tokenizer.decode([]) == tokenizer.decode(np.empty(0, np.int32)) == ""


def test_tokenizer_decode_replaces_bytes_that_are_not_text(english):
    got = english.decode([FIRST.index(b"\xff"), FIRST.index(b"a"), FIRST.index(b"\xe5")])
    assert got == "\ufffda\ufffd", "FF stands in no UTF-8, and E5 begins a character that does not go on"


def test_tokenizer_decode_refuses_an_id_that_no_token_has(english):
    for id in -1, 600:
        with pytest.raises(InputError, match=f"{id} is not a token"):
            english.decode([0, id])


@fewer
@given(st.text(max_size=80))
@example(MIXED)
def test_tokenizer_decode_gives_any_text_back(text):
    for tokenizer in lesson.train_bpe(ENGLISH[:2000], 300), lesson.char_tokenizer(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gpt2_tokenizer_has_gpt2s_ids(gpt2):
    spell = symbols()
    names = ["".join(spell[b] for b in token) for token in gpt2.tokens[:-1]] + ["<|endoftext|>"]
    want = json.loads((DATA / "gpt2_bpe/encoder.json").read_text("utf-8"))
    assert {name: id for id, name in enumerate(names)} == want
    assert gpt2.special == {"<|endoftext|>": 50256}
    assert gpt2.encode("Hello, world!<|endoftext|>", True).tolist() == [15496, 11, 995, 0, 50256]


@pytest.fixture(scope="module")
def tiktoken_gpt2():
    """tiktoken's gpt2, which would be downloaded, from the vocabulary alone: it needs no merges."""
    byte_of = {symbol: byte for byte, symbol in symbols().items()}
    vocabulary = json.loads((DATA / "gpt2_bpe/encoder.json").read_text("utf-8"))
    special = {"<|endoftext|>": vocabulary.pop("<|endoftext|>")}
    ranks = {bytes(byte_of[c] for c in name): id for name, id in vocabulary.items()}
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def test_gpt2_tokenizer_equals_tiktoken_on_prose(gpt2, tiktoken_gpt2):
    for text in ENGLISH, CHINESE, MIXED:
        assert gpt2.encode(text).tolist() == tiktoken_gpt2.encode_ordinary(text)


@few
@given(any_text)
def test_gpt2_tokenizer_equals_tiktoken_on_any_text(gpt2, tiktoken_gpt2, text):
    assert gpt2.encode(text).tolist() == tiktoken_gpt2.encode_ordinary(text)


# -------- files


def kinds(text=ENGLISH[:5000] + CHINESE + MIXED):
    yield lesson.train_bpe(text, 500, ["<|endoftext|>", "<|学|>"])
    yield lesson.train_bpe("", 256)
    yield lesson.char_tokenizer(text, ["<|学|>"])
    yield lesson.char_tokenizer("")


def test_load_tokenizer_reads_what_save_tokenizer_wrote(tmp_path):
    for tokenizer in kinds():
        tokenizer_json.save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
        again = tokenizer_json.load_tokenizer(tmp_path / "tokenizer.json")
        for attribute in "kind", "vocab_size", "tokens", "special":
            assert getattr(again, attribute) == getattr(tokenizer, attribute)
        text = MIXED if tokenizer.vocab_size else ""
        assert again.encode(text, True).tolist() == tokenizer.encode(text, True).tolist()


def test_save_tokenizer_writes_the_format_of_the_tokenizers_library(tmp_path):
    tokenizer = lesson.train_bpe("a hug, a hug", 300, ["<|é|>"])
    tokenizer_json.save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    file = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert file["model"]["type"] == "BPE" and file["model"]["merges"][0] == ["h", "u"]
    assert file["model"]["vocab"]["Ġhug"] == 258 and file["model"]["vocab"]["<|é|>"] == 259
    assert file["pre_tokenizer"]["type"] == file["decoder"]["type"] == "ByteLevel"
    assert file["pre_tokenizer"]["add_prefix_space"] is False
    assert file["added_tokens"] == [{"id": 259, "content": "<|é|>", "special": True, "single_word": False,
                                     "lstrip": False, "rstrip": False, "normalized": False}]
    tokenizer_json.save_tokenizer(lesson.char_tokenizer("学\n"), tmp_path / "tokenizer.json")
    file = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert file["model"]["type"] == "WordLevel" and file["model"]["vocab"] == {"\n": 0, "学": 1}
    assert file["pre_tokenizer"]["type"] == "Split" and file["decoder"] == {"type": "Fuse"}


def test_save_tokenizer_writes_what_the_tokenizers_library_reads(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed; make bench has it")
    for tokenizer in [*kinds()][:3]:
        tokenizer_json.save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert theirs.get_vocab_size() == tokenizer.vocab_size
        for text in ENGLISH[:5000], CHINESE, MIXED, "a<|学|>b\n<|学|>":
            ids = tokenizer.encode(text, allow_special=True).tolist()
            assert theirs.encode(text).ids == ids
            assert theirs.decode(ids, skip_special_tokens=False) == text


def test_load_tokenizer_reads_gpt2s_own_file(tmp_path):
    """The file beside Hugging Face's GPT-2 writes merges as "Ġ t", and says neither BPE nor use_regex."""
    vocabulary = json.loads((DATA / "gpt2_bpe/encoder.json").read_text("utf-8"))
    merges = (DATA / "gpt2_bpe/vocab.bpe").read_text("utf-8").splitlines()[1:]
    special = {"id": 50256, "content": "<|endoftext|>", "special": True, "normalized": True, "lstrip": False}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    file = {"added_tokens": [special], "normalizer": None, "pre_tokenizer": cut, "decoder": cut,
            "model": {"dropout": None, "unk_token": None, "vocab": vocabulary, "merges": merges}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), "utf-8")
    tokenizer = tokenizer_json.load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("Hello, world!<|endoftext|>", True).tolist() == [15496, 11, 995, 0, 50256]


HUG = {"type": "BPE", "vocab": {symbol: id for id, symbol in enumerate([*symbols().values(), "hu", "hug"])},
       "merges": [["h", "u"], ["hu", "g"]]}
LETTERS = {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "?"}, "pre_tokenizer": {
    "type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}}
SPACES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
END = {"content": "<|end|>", "id": 258}


def write_json(path, change, model=HUG):
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    path.write_text(json.dumps({"added_tokens": [], "normalizer": None, "pre_tokenizer": cut, "decoder": cut,
                                "model": model} | change))
    return path


def test_load_tokenizer_reads_a_file_without_a_checksum(tmp_path):
    path = tmp_path / "tokenizer.json"
    for change in {}, {"added_tokens": [END]}, {"model": HUG | {"dropout": None, "end_of_word_suffix": ""}}:
        assert tokenizer_json.load_tokenizer(write_json(path, change)).tokens[256:258] == [b"hu", b"hug"]
    assert tokenizer_json.load_tokenizer(write_json(path, LETTERS)).tokens == [b"a", b"b"]


@pytest.mark.parametrize("change", [
    {"model": HUG | {"vocab": {"h": 0, "u": 1, "hu": 2}}},
    {"model": HUG | {"vocab": {"h": 0}}},
    {"model": HUG | {"vocab": HUG["vocab"] | {"hug": 700}}},
    {"model": HUG | {"vocab": HUG["vocab"] | {"hug": 10**20}}},
    {"model": HUG | {"vocab": HUG["vocab"] | {"hug": 1e999}}},
    {"model": HUG | {"vocab": HUG["vocab"] | {"!": 1, '"': 0}}},
    {"model": HUG | {"vocab": HUG["vocab"] | {"hu": 257, "hug": 256}}},
    {"model": HUG | {"merges": [["h", "u"]]}}, {"model": HUG | {"merges": [["h", "u"], ["h", "ug"]]}},
    {"model": HUG | {"merges": [["hu", "g"], ["h", "u"]]}}, {"model": HUG | {"merges": ["h u", "hu  g x"]}},
    {"model": HUG | {"type": "Unigram"}}, {"model": HUG | {"dropout": 0.1}},
    {"model": HUG | {"ignore_merges": True}}, {"model": HUG | {"end_of_word_suffix": "</w>"}},
    {"model": {"type": "WordLevel", "vocab": {"the": 0}, "unk_token": "the"}},
    LETTERS | {"model": {"type": "WordLevel", "vocab": {"a": 0, "the": 1}, "unk_token": "a"}},
    LETTERS | {"model": {"type": "WordLevel", "vocab": {"a": 0, "\ud800": 1}, "unk_token": "a"}},
    {"model": {"type": "Unigram", "vocab": [["a", -1.0]]}},
    {"model": None}, {"added_tokens": [{}]}, {"added_tokens": [END | {"id": 259}]},
    {"added_tokens": [END, END | {"id": 259}]}, {"added_tokens": [{"a\nb\x1b[2J\u2028" * 1000: 1}]},
    {"added_tokens": [END | {"content": "a\n\x1b[2J" * 1000}, END | {"content": ""}]},
    {"model": HUG | {"merges": [["a\nb\x1b" * 1000, "u"], ["hu", "g"]]}},
    {"added_tokens": [END | {"content": "hug", "id": 257}]},
    {"added_tokens": [END | {"lstrip": True}]}, {"added_tokens": [END | {"single_word": True}]},
    {"pre_tokenizer": None}, {"pre_tokenizer": {"type": "Whitespace"}}, {"pre_tokenizer": SPACES},
    {"post_processor": {"type": "TemplateProcessing"}}, {"truncation": {"max_length": 8}},
    {"normalizer": {"type": "Lowercase"}}], ids=lambda change: ascii(change)[-50:])
def test_load_tokenizer_refuses_a_tokenizer_that_would_give_other_ids(tmp_path, change):
    refuses(write_json(tmp_path / "tokenizer.json", change))


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"7", b"{}", b'"model"', b"\xff\xfe\x00", b'{"model": []}',
    b"\x80" * 100_000, b"[" * 100_000, b'{"model":' * 100_000, b'{"model": ' + b"9" * 100_000 + b"}"],
    ids=lambda raw: repr(raw[:12]))
def test_load_tokenizer_refuses_another_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    refuses(tmp_path / "tokenizer.json")
    refuses(tmp_path / "nothing.json")
    refuses(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_load_tokenizer_does_not_wait_for_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "ring").symlink_to("ring")
    for name in "pipe", "zeros", "ring":
        refuses(tmp_path / name)


def test_load_tokenizer_takes_no_memory_for_merges_that_double_a_token(tmp_path):
    """Each merge joins the last token to itself: 2^27 bytes after 27, and 2^50 after 50."""
    names = [f"x{m}" for m in range(27)]
    liar = {"vocab": HUG["vocab"] | {name: 256 + m for m, name in enumerate(names)},
            "merges": [["!", "!"], *([name, name] for name in names[:-1])]}
    path = write_json(tmp_path / "tokenizer.json", {}, liar)
    tracemalloc.start()
    refuses(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6, f"{peak:,} bytes for a file of {path.stat().st_size:,}"


def test_load_tokenizer_sees_that_one_letter_is_another(tmp_path):
    """Without a checksum an alphabet of a and b is as good as one of a and c."""
    path = tmp_path / "tokenizer.json"
    for tokenizer, old, new in ((lesson.char_tokenizer("ab"), '"b": 1', '"c": 1'),
                                (lesson.train_bpe("hug hug", 260, ["<|end|>"]), "<|end|>", "<|enD|>")):
        tokenizer_json.save_tokenizer(tokenizer, path)
        assert old in path.read_text("utf-8")
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
        refuses(path)


def refuses(path):
    with pytest.raises(InputError, match="is not a tokenizer.json") as error:
        tokenizer_json.load_tokenizer(path)
    said = str(error.value)
    assert str(path) in said and said.isprintable() and len(said) < 300 + len(str(path)), said


# -------- padding


def assert_padded(got, rows, real, said):
    ids, mask = got
    assert_close(ids, np.array(rows, np.int32), f"ids, {said}", dtype=np.int32)
    assert_close(mask, np.array(real, bool), f"mask, {said}", dtype=bool)


def test_pad_fills_up_on_either_side():
    rows = [5, 6, 7], [8], []
    assert_padded(lesson.pad(rows, 0, side="right"), [[5, 6, 7], [8, 0, 0], [0, 0, 0]],
                  [[1, 1, 1], [1, 0, 0], [0, 0, 0]], "side='right'")
    assert rows == ([5, 6, 7], [8], []), f"pad only reads the rows: [5, 6, 7], [8], [] became {rows}"
    assert_padded(lesson.pad(rows, 0, side="left"), [[5, 6, 7], [0, 0, 8], [0, 0, 0]],
                  [[1, 1, 1], [0, 0, 1], [0, 0, 0]], "side='left'")
    assert_padded(lesson.pad(rows[1:], 3, length=2), [[8, 3], [3, 3]], [[1, 0], [0, 0]], "length=2, pad_id=3")


def test_pad_cuts_on_either_side():
    for options, want in (({}, [[5, 6], [8, 9]]), ({"truncate": "left"}, [[6, 7], [8, 9]]),
                          ({"side": "left"}, [[5, 6], [9, 8]]),
                          ({"side": "left", "truncate": "left"}, [[6, 7], [9, 8]])):
        rows = [np.array([5, 6, 7]), np.array([8])]
        with unchanged(row_0=rows[0], row_1=rows[1]):
            got = lesson.pad(rows, 9, length=2, **options)
        assert_padded(got, want, np.array(want) != 9, f"length=2, {options},")


def test_pad_makes_rows_of_no_length_and_no_rows():
    for truncate in "left", "right":
        for T in 0, 4:
            ids, mask = lesson.pad([[5, 6, 7]] * 2, 9, length=T, truncate=truncate)
            assert ids.shape == mask.shape == (2, T), f"length={T}, truncate={truncate!r}: {ids.shape}"
            ids, mask = lesson.pad([], 9, length=T, truncate=truncate)
            assert ids.shape == mask.shape == (0, T), f"no rows, length={T}: {ids.shape}"
    assert [a.shape for a in lesson.pad([], 9)] == [(0, 0), (0, 0)], "the longest of no rows is 0"


def test_pad_knows_real_tokens_from_padding_of_the_same_id():
    assert_padded(lesson.pad([[0, 0], [0]], pad_id=0), [[0, 0], [0, 0]], [[1, 1], [1, 0]], "pad_id=0")


@fewer
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5), st.integers(0, 8),
       st.sampled_from(["left", "right"]), st.sampled_from(["left", "right"]))
def test_pad_keeps_what_the_mask_says(rows, length, side, truncate):
    want = [row[:length] if truncate == "right" else row[::-1][:length][::-1] for row in rows]
    ids, mask = lesson.pad(rows, 10, length, side, truncate)
    assert ids.shape == mask.shape == (len(want), length)
    assert (ids[~mask] == 10).all()
    assert [kept[real].tolist() for kept, real in zip(ids, mask)] == want


def test_pad_refuses_a_third_side():
    with pytest.raises(InputError, match="'middle'"):
        lesson.pad([[1]], 0, side="middle")
    with pytest.raises(InputError, match="'Right'"):
        lesson.pad([[1]], 0, truncate="Right")


# -------- cleaning


@pytest.mark.parametrize("raw, want", [
    ("cafe\u0301", "caf\u00e9"),  # a letter and its accent: one character
    ("½ ﬁ Ａ", "½ ﬁ Ａ"),  # NFC, not NFKC, which would write 1⁄2 fi A
    ("<p>One</p><p>two<br/>three</p>", "One\n\ntwo\nthree"),
    ("un<b>believ</b>able <a href='x'>film</a>!<!-- <b> -->", "unbelievable film!"),
    ("AT&amp;T &lt;b&gt; &eacute;&#233;&#xe9; &hearts;", "AT&T <b> ééé ♥"),
    ("R&D at 3 < 4 > 2, I <3 NLP", "R&D at 3 < 4 > 2, I <3 NLP"),  # neither tags nor entities
    ("a\x00b\x07c\ufeff\u200bd\u00ad", "abcd"),
    ("one\r\ntwo\rthree\x0bfour\x0cfive\u2028six", "one\ntwo\nthree\nfour\nfive\nsix"),
    ("  a\t\tb \u00a0\u3000 c  \n  d  ", "a b c\nd"),
    ("a\n\n\n \n\nb", "a\n\nb"),
    ("\ud800x", "x"),  # half of a surrogate pair cannot be written as UTF-8
    ("a<!-- b <c> \n -->d<!---->e <!-- f", "ade <!-- f"),  # a comment that never ends is text
    ("x<y>z", "xz"),  # a limit: y is taken for a tag
    ("<|endoftext|>", "<|endoftext|>"), ("学而时习之", "学而时习之"), ("", "")])
def test_clean(raw, want):
    assert lesson.clean(raw) == want


def test_clean_takes_no_longer_for_comments_that_never_end():
    start = time.perf_counter()
    assert lesson.clean("<!-- " * 60_000) == ("<!-- " * 60_000).strip()
    assert time.perf_counter() - start < 5, "from each on, the whole rest was searched for its end"


@few
@given(st.text(st.characters(exclude_characters="<&"), max_size=60))
@example("e\u200b\u0301 \u00a0\n \u0301\u2000\u2001\n\n\n")
def test_clean_leaves_clean_text_alone(text):
    once = lesson.clean(text)
    assert lesson.clean(once) == once
    assert unicodedata.is_normalized("NFC", once) and "  " not in once and "\n\n\n" not in once
    assert not any(unicodedata.category(c) == "Cc" and c != "\n" for c in once)
    once.encode()
