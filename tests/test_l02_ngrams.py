"""Lesson 2's tests. The oracle is Kneser-Ney by its definition, in dicts (ngram_oracle.py)."""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import devices
from lessons import l02_ngrams as lesson
from lessons.errors import InputError
from lessons.texts import numbered, read_text, split
from tests import ngram_oracle as oracle
from tests.close import assert_close, raises, unchanged

V = 4  # code 3 is in the alphabet, and in no text here
TEXT = np.random.default_rng(2).choice(3, 60, p=[0.6, 0.3, 0.1])
# Its start, 1 2 1 0, occurs nowhere else: such grams follow no character.
START = np.array([1, 2, 1, 0, 0, 2, 0, 0, 0, 2, 2, 0, 0, 1, 1, 0, 0, 2, 0, 2])
texts = st.lists(st.integers(0, 2), min_size=4, max_size=40).map(np.array)
few = settings(deadline=None, max_examples=20)


def contexts(n):
    return [np.array(context, np.int64) for context in np.ndindex(*[V] * n)]


# -------- number


def test_number_reads_a_gram_as_digits():
    assert_close(lesson.number(np.array([[1, 2, 3], [0, 0, 9]]), 10), [123, 9], "the keys of 123 and 009",
                 dtype=np.int64, mistakes={"the oldest character is the highest digit": np.array([321, 900])})


def test_number_works_in_any_base_and_for_one_gram_alone():
    assert_close(lesson.number(np.array([1, 0, 1, 1]), 2), 0b1011, "the key of 1011 in base 2")
    assert_close(lesson.number(np.array([7, 0, 63]), 64), 7 * 64**2 + 63, "the key of 7 0 63 in base 64")


def test_number_keeps_all_other_axes():
    grams = np.arange(12).reshape(2, 3, 2)
    with unchanged(grams=grams):
        got = lesson.number(grams, 20)
    assert_close(got, [[1, 43, 85], [127, 169, 211]], "the keys of (2, 3) grams")


def test_number_of_no_characters_is_0():
    assert_close(lesson.number(np.zeros((2, 0), np.int64), 5), [0, 0], "the keys of two empty grams")


def test_number_is_exact_where_a_float64_is_not():
    gram = np.array([2999, 2998, 1, 2, 2997])
    assert_close(lesson.number(gram, 3000), oracle.key(gram, 3000), "the key of 5 characters in base 3000")


# -------- lookup


def test_lookup_gives_0_below_between_and_above_the_keys():
    keys, values = np.array([2, 5, 6]), np.array([20, 50, 60])
    with unchanged(keys=keys, values=values):
        got = lesson.lookup(keys, values, np.array([6, 0, 5, 3, 2, 9, 5]))
    assert_close(got, [60, 0, 50, 0, 20, 0, 50], "the values of 6 0 5 3 2 9 5, where 2 5 6 are there",
                 dtype=np.int64)


def test_lookup_keeps_fractions_and_needs_one_key_only():
    assert_close(lesson.lookup(np.array([3]), np.array([0.25]), np.array([4, 3, 2])), [0, 0.25, 0],
                 "the values of 4 3 2 where only 3 is there", dtype=np.float64)


# -------- count_grams


def assert_counted(got, text, order):
    assert type(got) is tuple and len(got) == 3, f"expected three tuples (keys, raw, continued), got {got!r}"
    names = ("keys", "raw", "continued")
    for name, arrays, wanted in zip(names, got, (order, order, order - 1)):
        assert type(arrays) is tuple and len(arrays) == wanted, \
            f"{name}: expected a tuple of {wanted} arrays for order {order}, got {arrays!r}"
    for n in range(1, order + 1):
        raw = oracle.raw(text, n)
        grams = sorted(raw)
        assert_close(got[0][n - 1], [oracle.key(gram, V) for gram in grams], f"keys of the {n}-grams",
                     dtype=np.int64)
        assert_close(got[1][n - 1], [raw[gram] for gram in grams], f"raw counts of the {n}-grams",
                     dtype=np.int64)
        if n < order:
            continued = oracle.continued(text, n)
            after = {gram: sum(other[:-1] == gram for other in oracle.raw(text, n + 1)) for gram in raw}
            assert_close(got[2][n - 1], [continued[gram] for gram in grams], f"continued of the {n}-grams",
                         dtype=np.int64, mistakes={
                             "that is how often they occur": np.array([raw[gram] for gram in grams]),
                             "so many follow them; count what they follow":
                             np.array([after[gram] for gram in grams])})


def test_count_grams():
    text = TEXT.copy()
    with unchanged(codes=text):
        assert_counted(lesson.count_grams(text, V, 4), TEXT, 4)


def test_count_grams_that_only_begin_the_text_follow_nothing():
    assert_counted(lesson.count_grams(START, V, 4), START, 4)


def test_count_grams_of_order_1_continue_nothing():
    assert_counted(lesson.count_grams(TEXT, V, 1), TEXT, 1)


def test_count_grams_may_be_as_long_as_the_text():
    assert_counted(lesson.count_grams(TEXT[:3], V, 3), TEXT[:3], 3)


# -------- discounts


def counts_of(*n):
    """n[0] ones, n[1] twos, ... in an order that is not sorted."""
    return np.repeat(np.arange(1, len(n) + 1), n)[::-1].copy()


def test_discounts_plain():
    counts = counts_of(6, 2, 3, 1, 2)
    with unchanged(counts=counts):
        got = lesson.discounts(counts, False)
    assert_close(got, [0, 0.6, 0.6, 0.6], "discounts of n1 = 6 and n2 = 2", dtype=np.float64)


def test_discounts_modified():
    Y = 10 / 18
    assert_close(lesson.discounts(counts_of(10, 4, 3, 2, 5, 6), True),
                 [0, 1 - 2 * Y * 4 / 10, 2 - 3 * Y * 3 / 4, 3 - 4 * Y * 2 / 3],
                 "modified discounts of n1 = 10, n2 = 4, n3 = 3, n4 = 2", dtype=np.float64)


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("n", [(4, 3, 2, 1), (5, 0, 2, 1), (0, 5, 2, 1), (0, 0, 0, 0, 2), (5, 2, 0, 1),
                               (5, 2, 2, 0), (0, 0, 3, 1), (1, 9, 9, 9), (9, 1, 9, 1), (9, 9, 1, 9), (5,),
                               (0, 3), (2, 1, 1, 1), (2, 2, 2, 1), (9, 6, 6, 6)])
def test_discounts_of_small_texts_stay_above_0_and_below_the_count(n, modified):
    counts = counts_of(*n)
    kind = "modified " if modified else ""
    assert_close(lesson.discounts(counts, modified), oracle.discounts(counts.tolist(), modified),
                 f"{kind}discounts where n1, n2, ... are {n}", dtype=np.float64)


def test_discounts_count_no_zeros():
    """The continuation count of the text's first gram may be 0."""
    assert_close(lesson.discounts(np.array([0, 0, 1, 2, 1, 1]), False), [0, 0.6, 0.6, 0.6],
                 "discounts of counts 0 0 1 2 1 1")


# -------- probabilities


def of_mistakes(levels, text, order, context):
    """Nearly right answers for a context, so that a learner who has one is told which."""
    raw = [{**oracle.raw(text, n)} for n in range(1, order + 1)]
    p = np.full(V, 1 / V)
    for n, (_, _, D) in enumerate(levels):
        here = np.array([raw[n].get((*context[len(context) - n:].tolist(), c), 0) for c in range(V)])
        if here.sum():
            taken = D[np.minimum(here, 3)]
            p = (here - taken + taken.sum() * p) / here.sum()
    return {"all orders use the raw counts": p}


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("text", [TEXT, START], ids=["text", "start"])
def test_probabilities(text, modified):
    for order in 1, 2, 3:
        levels, want = oracle.levels(text, V, order, modified), oracle.model(text, V, order, modified)
        for context in contexts(order - 1):
            with unchanged(context=context, keys=levels[-1][0], counts=levels[-1][1], D=levels[-1][2]):
                got = lesson.probabilities(levels, V, context)
            assert_close(got, want(context), f"p after {context.tolist()}, order {order}", rtol=1e-12,
                         dtype=np.float64, mistakes=of_mistakes(levels, text, order, context))


def test_probabilities_of_the_last_character_of_the_alphabet_are_found():
    levels = [(np.array([0, 1]), np.array([4, 6]), np.array([0, 0.5, 0.5, 0.5])),
              (np.array([0, 1, 2, 3]), np.array([2, 5, 1, 3]), np.array([0, 0.5, 0.5, 0.5]))]  # V is 2
    assert_close(lesson.probabilities(levels, 2, np.array([0])), [1.5 / 7 + 0.4 / 7, 4.5 / 7 + 0.6 / 7],
                 "p after 0, where 0 0 and 0 1 occur 2 and 5 times, and 0 and 1 continue 4 and 6")


def test_probabilities_look_at_the_end_of_a_longer_context():
    levels, want = oracle.levels(TEXT, V, 3), oracle.model(TEXT, V, 3)
    assert_close(lesson.probabilities(levels, V, np.array([2, 2, 0, 1])), want((0, 1)), "p after .. 0 1")


def test_probabilities_of_what_never_occurred_are_above_0():
    p = lesson.probabilities(oracle.levels(TEXT, V, 3), V, np.array([0, 0]))
    assert p[3] > 0, f"3 is in the alphabet and was never counted: p is {p[3]}, expected more than 0"


@few
@given(texts, st.integers(1, 4), st.booleans())
def test_probabilities_sum_to_1(text, order, modified):
    levels = oracle.levels(text, V, order, modified)
    for context in contexts(order - 1)[::5]:
        p = lesson.probabilities(levels, V, context)
        where = f"p after {context.tolist()}, counted in {text.tolist()}"
        assert_close(p.sum(), 1, f"the sum of {where}", rtol=1e-12)
        assert (p > 0).all(), f"{where}: {p}, expected all above 0"


# -------- interpolated


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("counted", [TEXT, START], ids=["text", "start"])
def test_interpolated(counted, modified):
    text = np.random.default_rng(5).choice(V, 150, p=[0.4, 0.3, 0.2, 0.1])
    for order in 1, 2, 4:
        levels = oracle.levels(counted, V, order, modified)
        model = oracle.model(counted, V, order, modified)
        with unchanged(text=text, keys=levels[-1][0], counts=levels[-1][1], discounts=levels[-1][2]):
            got = lesson.interpolated(levels, V, text)
        want = [model(text[t - order + 1:t])[text[t]] for t in range(order - 1, len(text))]
        assert_close(got, want, f"p of a text, order {order}", rtol=1e-12, dtype=np.float64)


def test_interpolated_a_text_of_one_gram_has_one_p():
    model = oracle.model(TEXT, V, 3)
    assert_close(lesson.interpolated(oracle.levels(TEXT, V, 3), V, np.array([0, 1, 0])), [model((0, 1))[0]],
                 "p of 0 after 0 1")


# -------- add_k_nats


def counts_of_text(text, order):
    grams = [sorted(oracle.raw(text, n).items()) for n in range(1, order + 1)]
    keys = tuple(np.array([oracle.key(gram, V) for gram, _ in level]) for level in grams)
    raw = tuple(np.array([count for _, count in level]) for level in grams)
    return lesson.Counts(V, keys, raw, tuple(np.full(len(k), -99) for k in keys[:-1]))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_add_k_nats(order):
    k, before, codes = 0.3, np.array([2, 0, 1]), np.array([0, 0, 3, 1, 2, 2, 2, 2, 0, 1, 1])
    text, counts, grams = [*before, *codes], counts_of_text(TEXT, 3), oracle.raw(TEXT, order)
    want = []
    for t in range(3, len(text)):
        h = tuple(text[t - order + 1:t])
        total = sum(grams.get((*h, c), 0) for c in range(V))
        want.append(-math.log((grams.get((*h, text[t]), 0) + k) / (total + k * V)))
    with unchanged(before=before, codes=codes, keys=counts.keys[order - 1], raw=counts.raw[order - 1]):
        got = lesson.add_k_nats(counts, before, codes, order, k)
    assert_close(got, want, f"-ln p of codes, order {order}", rtol=1e-12, dtype=np.float64,
                 mistakes={"that is p itself": np.exp(-np.array(want)), "that is ln p": -np.array(want),
                           "that is in bits": np.array(want) / math.log(2)})


# -------- sample


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sample_draws_from_the_probabilities(seed):
    levels, model, rng = oracle.levels(TEXT, V, 3), oracle.model(TEXT, V, 3), np.random.default_rng(seed)
    before, want = np.array([1, 0, 2]), [0, 2]
    for _ in range(20):
        p = np.array(model(want[-2:]))
        want.append(rng.choice(V, p=p / p.sum()))
    with unchanged(before=before):
        got = lesson.sample(levels, V, before, 20, np.random.default_rng(seed))
    assert_close(got, want[2:], f"20 characters drawn with default_rng({seed})", dtype=np.int64)


def test_sample_of_order_1_needs_nothing_before():
    p, rng = oracle.model(TEXT, V, 1)(()), np.random.default_rng(4)
    want = [rng.choice(V, p=np.array(p) / sum(p)) for _ in range(20)]
    nothing, rng = np.zeros(0, np.int64), np.random.default_rng(4)
    assert_close(lesson.sample(oracle.levels(TEXT, V, 1), V, nothing, 20, rng), want,
                 "20 characters drawn with default_rng(4)")


# -------- the whole


@few
@given(texts, st.integers(1, 4), st.booleans(), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_kneser_ney_of_a_text_agrees_with_that_of_one_context(text, order, modified, codes):
    counts = lesson.count(lesson, text, V, 4)
    before = np.concatenate([text, text])
    nats = lesson.kneser_ney_nats(lesson, counts, before, codes, order, modified)
    levels, full, m = lesson.levels_of(counts, order, modified), np.append(before, codes), len(before)
    want = [-math.log(lesson.probabilities(levels, V, full[:t])[full[t]]) for t in range(m, len(full))]
    assert_close(nats, want, "-ln p of codes", rtol=1e-12)


def test_one_count_serves_all_lower_orders():
    before, codes = TEXT[:10], np.array([0, 3, 1, 2])
    counts = lesson.count(lesson, TEXT, V, 5)
    for order in range(1, 6):
        own = lesson.count(lesson, TEXT, V, order)
        assert lesson.stored(own, order) == lesson.stored(counts, order)
        assert_close(lesson.kneser_ney_nats(lesson, counts, before, codes, order),
                     lesson.kneser_ney_nats(lesson, own, before, codes, order), f"-ln p of order {order}")
    assert lesson.stored(counts, 2) == len(oracle.raw(TEXT, 1)) + len(oracle.raw(TEXT, 2))


def test_what_does_not_fit_is_refused_in_one_line():
    with raises(InputError, "take an order from 1 to 5", "order 8 of an alphabet of 5,000"):
        lesson.count(lesson, TEXT, 5000, 8)
    with raises(InputError, "take an order from 1 to 3", "order 4 of a text of three"):
        lesson.count(lesson, TEXT[:3], V, 4)
    with raises(InputError, "take an order from 1", "order 0"):
        lesson.count(lesson, TEXT, V, 0)
    counts = lesson.count(lesson, TEXT, V, 3)
    for order in 0, 4:
        with raises(ValueError, f"1 to 3 were counted, not {order}", f"order {order}"):
            lesson.kneser_ney_nats(lesson, counts, TEXT, TEXT, order)
    with raises(ValueError, "2 of them before", "order 3 with one character before"):
        lesson.kneser_ney_nats(lesson, counts, TEXT[:1], TEXT, 3)
    for code in -1, V:
        with raises(ValueError, "codes 0 to 3", f"a code of {code}"):
            lesson.kneser_ney_nats(lesson, counts, TEXT, np.array([0, code]), 3)


def test_keys_may_fill_63_bits():
    """Base 64, order 10: 60 bits. Base 2, order 62."""
    for base, order in (64, 10), (2, 62), (1, 62):
        text = np.full(100, base - 1)
        counts = lesson.count(lesson, text, base, order)
        assert counts.keys[-1].tolist() == [base**order - 1]
        nats = lesson.kneser_ney_nats(lesson, counts, text, text[:3], order)
        assert (nats >= 0).all() and (nats < 1).all(), f"-ln p of what always occurred: {nats}"


def test_main_numbers_of_shakespeare_are_the_known_ones():
    codes, alphabet = numbered(read_text("shakespeare"))
    training, validation = split(codes)
    ops = devices.module("cpu", "ngrams")
    counts = lesson.count(ops, training, len(alphabet), 6)
    bits = lambda *a: lesson.kneser_ney_nats(ops, counts, training, validation, *a).mean() / math.log(2)
    assert_close(bits(3), 2.950, "bits a character, order 3", rtol=0, atol=0.002)
    assert_close(bits(5), 2.282, "bits a character, order 5", rtol=0, atol=0.002)
    assert_close(bits(6), 2.251, "bits a character, order 6", rtol=0, atol=0.002)
    assert bits(6, True) < 2.2, f"modified, order 6: {bits(6, True):.3f} bits a character"


def test_main_prints_the_table_and_writes_text(monkeypatch, tmp_path, capsys):
    text = read_text("shakespeare")[:20_000]
    monkeypatch.setattr(lesson, "read_text", lambda name: text)
    monkeypatch.chdir(tmp_path)
    lesson.main()
    said = capsys.readouterr().out
    assert "18,000 characters counted" in said and "order 6 goes on from ROMEO:\n" in said, said
    assert (tmp_path / "out/lessons/ngrams.png").stat().st_size > 10_000
