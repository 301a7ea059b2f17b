"""The tests of kernels/cpu/words.py. The oracles: GPT-2's pattern, and a dict that numbers words."""
import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.cpu import words as cpu
from tests.close import assert_close

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # as OpenAI wrote it
MIXED = ("Café, naïve; 学而时习之，\u3000不亦说乎？\n\n\tdon't we'll I'M  3½ Ⅷ ٣ x\u0301 👩\u200d👧 \x00\x1c "
         "\u2028 <|endoftext|>   ")
# Every Unicode character that has been one for years: libraries disagree about newer ones.
any_text = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60)
words_text = st.text("ab c", max_size=60) | st.text("aé's 1.\n") | st.text("'sdmtlver ", max_size=40)
few = settings(deadline=None, max_examples=20)


def codes_and_kinds(text):
    """What a kernel reads of text, by the pattern's own classes: a character each, and one more, END."""
    kinds = [next(kind for kind, found in ((cpu.LETTER, r"\p{L}"), (cpu.NUMBER, r"\p{N}"), (cpu.WHITE, r"\s"),
                                           (cpu.OTHER, r"[\s\S]")) if regex.match(found, c)) for c in text]
    return np.array([*map(ord, text), 0]), np.array([*kinds, cpu.END], np.uint8)


def assert_cut(text):
    codes, kinds = codes_and_kinds(text)
    for word in regex.finditer(PATTERN, text):
        end = cpu.end_of_word(codes, kinds, word.start())
        assert end == word.end(), (f"in {text!a} a word begins at {word.start()}: end_of_word gives {end}, "
                                   f"expected {word.end()}, for the word is {word[0]!a}")


# -------- end_of_word


@pytest.mark.parametrize("text", ["a", "abc def", "a1b22c", "!?x", "1.50"])
def test_end_of_word_is_behind_a_run_of_one_kind(text):
    assert_cut(text)


@pytest.mark.parametrize("text", [" a", " 12", " !?", "a b", "a  b", "\u3000a", "\ta", "\na", " \u3000a"])
def test_end_of_word_takes_one_space_and_nothing_else_before_a_run(text):
    assert_cut(text)


@pytest.mark.parametrize("text", [" ", "  ", "\n", "a ", "a  ", "a\n\n", "a   b", "a\n\n\nb", "\n\u3000b"])
def test_end_of_word_leaves_the_last_of_the_white_to_what_follows(text):
    assert_cut(text)


@pytest.mark.parametrize("text", [
    "don't", "he's", "I'm", "I'd", "we'll", "I've", "they're", "'s", "'ll", "'", "x'", "x'l", "x'v", "x'r",
    "x'le", "I'M", "o'clock", "''s", " 's", "'s's", "'tis", "'lve", "'!s", "x'vl", "x'er", "xs", "x's 's"])
def test_end_of_word_knows_seven_words_that_begin_with_an_apostrophe(text):
    assert_cut(text)


@few
@given(any_text | words_text)
@example(MIXED)
def test_end_of_word_is_where_the_pattern_cuts(text):
    assert_cut(text)


# -------- number


def assert_numbered(words, size):
    """number, with a hash table of size slots, on a text of these words."""
    codes = np.array([*map(ord, "".join(words)), 0])
    begins = np.cumsum([0, *map(len, words)]).astype(np.int32)
    slots, (order, shown) = np.full(size, cpu.EMPTY, np.int32), np.full((2, len(words)), -7, np.int32)
    numbers = {}
    want = [numbers.setdefault(word, len(numbers)) for word in words]
    first = [words.index(word) for word in numbers]
    n = cpu.number(codes, begins, slots, order, shown)
    said = f"{words} have {len(numbers)} different ones, and number returned {n}"
    assert n == len(numbers), f"{said}; order is {order.tolist()}"
    assert_close(order, np.array(want, np.int32), f"order of {words}")
    assert_close(shown, np.array(first + [-7] * (len(words) - n), np.int32), f"shown of {words}")
    assert_close(np.sort(slots), np.array([cpu.EMPTY] * (size - n) + [*range(n)]), f"sorted slots of {words}")


def test_number_counts_words_as_they_come():
    assert_numbered(["a", " b", "a", "a", " c", " b"], 16)


def test_number_of_no_words():
    assert_numbered([], 1)


def test_number_of_words_alike_but_for_a_letter():
    assert_numbered(["abc", "abd", "xbc", "axc", "ab", "abcd", "bca", "cba", "abc", "ab"], 32)
    assert_numbered(["a", "aa", "aaa", "aa", "", "a" * 30, "a" * 31, "a" * 30], 16)


def test_number_takes_the_next_slot_when_another_word_is_there():
    """Hardly a slot stays empty, so words meet, and some begin at the last slot and go on at the first."""
    for n in range(12):
        words = [f"{n}", f"x{n}", f"{n}y"]
        assert_numbered([*words, *words[::-1]], 4)
        words = [f"{n}{letter}" for letter in "abcdefg"]
        assert_numbered([*words, *words], 8)


@few
@given(st.lists(st.text("ab学", max_size=3), max_size=12))
def test_number_numbers_as_a_dict_does(words):
    assert_numbered(words, 16)


# -------- number_words: both of them


def assert_words(text):
    numbers = {}
    want_order = [numbers.setdefault(word, len(numbers)) for word in regex.findall(PATTERN, text)]
    words, order = cpu.number_words(text)
    want = [*numbers]
    wrong = [(got, word) for got, word in zip(words, want) if got != word] or (len(words), len(want))
    assert words == want, f"got and want: {ascii(wrong)[:300]}"
    assert order.dtype == np.int32 and order.tolist() == want_order


@pytest.mark.parametrize("text", [
    "", "a", " ", "\n", "'", "a b a", "don't we'll I'M they're I've o'clock 'tis ''s ' s 's's", "'l'v'r'",
    "a  b   c", "a\n\nb", "a \n b", "a\u3000b\u3000\u3000c", " ! ?? .a1b2", "\x00a\x00", MIXED], ids=ascii)
def test_words_of_a_text_are_those_of_the_pattern(text):
    assert_words(text)


def test_words_are_cut_right_at_every_character():
    """Each between a letter and a number, and between a number and a point: it joins one of them, or none.
    Left out are the planes that Unicode has not begun to fill, or has for private use."""
    codes = [*range(0xD800), *range(0xE000, 0x34000), *range(0xE0000, 0xE0200)]
    text = "".join(f"a{chr(c)}1{chr(c)}." for c in codes)
    numbers = np.frombuffer((text + "\0").encode("utf-32-le"), np.int32).astype(np.int64)
    begins = np.zeros(len(text) + 1, np.int32)
    W = cpu.cut(numbers, cpu.kinds_of(numbers), begins)
    want = np.array([0, *(word.end() for word in regex.finditer(PATTERN, text))])
    wrong = want[begins[:len(want)] != want]
    assert W + 1 == len(want) and not wrong.size, f"wrong cut: {[text[at - 5:at + 5] for at in wrong[:3]]!a}"


def test_words_may_be_many_and_all_different():
    assert_words(" ".join(f"{n:x}" for n in range(20_000)) * 2)


@few
@given(any_text | words_text)
def test_words_of_any_text_are_those_of_the_pattern(text):
    assert_words(text)
