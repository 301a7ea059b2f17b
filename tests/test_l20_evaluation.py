"""The tests of f are test_f and test_f_*: they are also lesson 20's exercises.

The oracles: numbers worked out by hand, a loop that guesses one token at a time, the sum over all texts,
loops that count case by case, the quadratic equation of the interval, and sacrebleu (tests/goldens).
"""
import importlib
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from lessons import devices
from lessons import l20_evaluation as lesson
from lessons.l16_gpt import gpt_forward
from lessons.parameters import Config, init_parameters
from tests.close import assert_close, unchanged

NUMPY = devices.ops("numpy")


def model(vocab_size=7, block_size=5):
    p = init_parameters(Config(vocab_size, block_size, n_layer=1, n_head=2, n_embd=8), dtype=np.float64)
    p.flat[:] += 0.3 * np.random.default_rng(1).normal(size=p.flat.size)  # a model with opinions
    return p


def log_probability(p, context, token):
    logits = gpt_forward(NUMPY, p, np.array([context]))[0][0, -1]
    return logits[token] - np.log(np.exp(logits).sum())


def test_perplexity_of_a_guess_among_n_is_n():
    assert_close(lesson.perplexity(4 * math.log(50), 4), 50.0, "perplexity")
    assert_close(lesson.perplexity(0.0, 4), 1.0, "perplexity of one who knows")


def test_perplexity_is_the_geometric_mean_of_one_over_p():
    p = np.array([0.5, 0.25, 0.125])
    want = 1 / (p.prod() ** (1 / 3))
    assert_close(lesson.perplexity(-np.log(p).sum(), 3), want, "perplexity")


def test_bits_per_character_of_a_coin_is_1():
    assert_close(lesson.bits_per_character(8 * math.log(2), 8), 1.0, "bits per character")


def test_bits_per_character_of_10_nats_and_7_characters():
    assert_close(lesson.bits_per_character(10, 7), 10 * 1.4426950408889634 / 7, "bits, 1.44 a nat")


def test_bits_per_character_do_not_depend_on_the_tokens():
    """'abab' as four tokens of probability 1/2, or as two tokens of 1/4: the text is as probable."""
    letters, pairs = 4 * math.log(2), 2 * math.log(4)
    assert_close(lesson.bits_per_character(letters, 4), lesson.bits_per_character(pairs, 4), "bits")
    assert lesson.perplexity(letters, 4) != lesson.perplexity(pairs, 2), "perplexity does depend on them"


@pytest.mark.parametrize("n, T, stride", [(7, 4, 2), (9, 4, 3), (5, 5, 5), (3, 3, 1), (2, 5, 4)])
def test_windows(n, T, stride):
    """Built one by one: window k ends with the target at which its stride new ones, or the tokens, end."""
    text = np.random.default_rng(n).integers(0, 99, 10 + n).astype(np.int32)
    before, tokens = text[:10].copy(), text[10:].copy()
    want_X, want_Y = [], []
    for start in range(0, n, stride):
        end = min(start + stride, n)  # of the targets, counted in tokens
        places = range(10 + end - T, 10 + end)
        want_X.append([text[place - 1] for place in places])
        want_Y.append([text[place] if place >= 10 + start else -1 for place in places])
    with unchanged(before=before, tokens=tokens):
        X, Y = lesson.windows(before, tokens, T, stride)
    assert_close(X, want_X, "X", 0, 0)
    assert_close(Y, want_Y, "Y", 0, 0)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 5), st.data())
def test_windows_have_every_token_as_a_target_once_with_its_context(T, n, more, data):
    stride = data.draw(st.integers(1, T))
    before, tokens = np.split(np.arange(T + more + n), [T + more])  # a token is its place in the text
    X, Y = lesson.windows(before, tokens, T, stride)
    assert X.shape == Y.shape and (n == 0 or X.shape[1] == T), f"windows of shape {X.shape}, T is {T}"
    counted = Y[Y != -1]
    assert counted.tolist() == tokens.tolist(), "each token counts once, in order"
    assert ((Y == -1) | (Y == X + 1)).all(), "a target is the token after its input"
    places = np.nonzero(Y != -1)[1]
    assert (places >= T - stride).all(), "a target that counts sees more than T - stride tokens"


@pytest.mark.parametrize("n, T, stride", [(3, 4, 1), (4, 4, 0), (4, 4, 5), (4, 4, -1)])
def test_windows_refuses_what_gives_no_window(n, T, stride):
    with pytest.raises(ValueError):
        lesson.windows(np.arange(n), np.arange(9), T, stride)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_total_nats_guesses_one_token_at_a_time(stride):
    p, rng = model(), np.random.default_rng(0)
    before, tokens = rng.integers(0, 7, 8), rng.integers(0, 7, 83)  # more windows than one batch
    text, T = np.concatenate([before, tokens]), 5
    want = 0.0
    for i in range(len(tokens)):
        end = min(i // stride * stride + stride, len(tokens))  # the window's last target, exclusive
        want -= log_probability(p, text[8 + end - T - 1:8 + i], text[8 + i])
    assert_close(lesson.total_nats(NUMPY, p, before, tokens, stride), want, "nats")


def test_total_nats_of_all_texts_are_a_distribution():
    """The probabilities of all texts of 3 tokens add up to 1: nothing is counted twice, nothing left out."""
    p, before = model(vocab_size=3), np.array([0, 1, 2, 0, 1])
    total = sum(math.exp(-lesson.total_nats(NUMPY, p, before, np.array(text), stride=1))
                for text in itertools.product(range(3), repeat=3))
    assert_close(total, 1.0, "sum of the probabilities of all texts")


def test_total_nats_holds_16_megabytes_of_logits_at_a_time(monkeypatch):
    """2^22 float32 are 16 MB. Windows of 4 tokens of 2^18 have 2^20 each: four of them. Of 2^21: one."""
    sizes = []
    monkeypatch.setattr(lesson, "gpt_forward", lambda ops, p, X, *rest, **more: (X, None))
    ops = SimpleNamespace(cross_entropy=lambda X, *rest: (sizes.append(len(X)), (1.0, None))[1])
    for vocab_size, want in (2**18, [1, 4, 4]), (2**21, [1] * 9), (2**10, [9]):
        sizes.clear()
        p = SimpleNamespace(config=SimpleNamespace(block_size=4, vocab_size=vocab_size))
        total = lesson.total_nats(ops, p, np.arange(4), np.arange(9), 1)
        assert sorted(sizes) == want, f"{vocab_size} tokens: batches of {sizes} windows, expected {want}"
        assert_close(total, len(want), "the sum over the batches")


def test_total_nats_gives_every_matrix_product_one_thread():
    found = []

    def cross_entropy(*arguments):
        found.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return NUMPY.cross_entropy(*arguments)

    ops = SimpleNamespace(**vars(NUMPY) | {"cross_entropy": cross_entropy})
    with threadpool_limits(2, "blas"):
        lesson.total_nats(ops, model(), np.arange(5), np.arange(5), 5)
    assert set(found) <= {1}, f"{max(found)} threads for each product, on every core at once"


def cases(K, n, seed):  # classes, guesses (n,), their confusion matrix by a loop
    rng = np.random.default_rng(seed)
    classes, guesses, counts = rng.integers(0, K, n), rng.integers(0, K, n), np.zeros((K, K), int)
    for c, g in zip(classes, guesses, strict=True):
        counts[c, g] += 1
    return classes, guesses, counts


@pytest.mark.parametrize("K, n", [(2, 9), (5, 200), (3, 0)])
def test_confusion_matrix_counts_each_case(K, n):
    classes, guesses, want = cases(K, n, seed=K)
    with unchanged(classes=classes, guesses=guesses):
        got = lesson.confusion_matrix(classes, guesses, K)
    assert_close(got, want, "rows: the class, columns: the guess", dtype=np.int64)


def test_confusion_matrix_has_the_same_shape_when_the_last_class_does_not_occur():
    got = lesson.confusion_matrix(np.array([0, 1]), np.array([1, 1]), 4)
    want = np.zeros((4, 4), int)
    want[0, 1] = want[1, 1] = 1
    assert_close(got, want, "counts")


def test_confusion_matrix_leaves_out_what_has_no_class():
    got = lesson.confusion_matrix(np.array([0, -1, 1, -1]), np.array([0, 1, 0, -1]), 2)
    assert_close(got, [[1, 0], [1, 0]], "counts without the two cases of class -1")


def f1_by_hand(classes, guesses, K):
    """From the three questions, case by case."""
    rows = []
    for k in range(K):
        both = sum(c == k and g == k for c, g in zip(classes, guesses, strict=True))
        precision, recall = both / max(sum(guesses == k), 1), both / max(sum(classes == k), 1)
        rows.append([precision, recall, 2 / (1 / precision + 1 / recall) if both else 0])
    return np.array(rows).T


@pytest.mark.parametrize("K, n", [(2, 30), (4, 100), (6, 8)])
def test_precision_recall_f1_of_each_class(K, n):
    classes, guesses, confusion = cases(K, n, seed=n)
    with unchanged(confusion=confusion):
        got = lesson.precision_recall_f1(confusion)
    assert_close(got, f1_by_hand(classes, guesses, K), "rows precision, recall, F1", dtype=np.float64)


def test_precision_recall_f1_of_many_found_and_few_right():
    got = lesson.precision_recall_f1(np.array([[90, 6], [1, 3]]))  # class 1: 9 guessed, 4 there, 3 right
    assert_close(got[:, 1], [3 / 9, 3 / 4, 6 / 13], "precision, recall, F1 of class 1")


def test_precision_recall_f1_is_0_for_a_class_that_is_never_guessed_or_never_there():
    with np.errstate(all="raise"):
        got = lesson.precision_recall_f1(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 0]]))
    want = [[3 / 5, 0, 0], [3 / 4, 0, 0], [6 / 9, 0, 0]]
    assert_close(got, want, "scores, where class 1 is never there and 2 never guessed")


def test_precision_recall_f1_of_a_class_with_one_case():
    got = lesson.precision_recall_f1(np.array([[4, 0], [0, 1]]))
    assert_close(got, np.ones((3, 2)), "scores of one who is always right")


def test_precision_recall_f1_macro_is_the_mean_over_the_classes():
    classes, guesses, confusion = cases(5, 60, seed=3)
    want = f1_by_hand(classes, guesses, 5).mean(axis=1)  # F1: the mean of F1s, not the F1 of two means
    assert_close(lesson.precision_recall_f1(confusion, "macro"), want, "macro precision, recall, F1")


def test_precision_recall_f1_micro_is_the_accuracy():
    classes, guesses, confusion = cases(5, 60, seed=4)
    want = [(classes == guesses).mean()] * 3
    assert_close(lesson.precision_recall_f1(confusion, "micro"), want, "micro precision, recall, F1")


def golden():
    found = json.loads((Path(__file__).parent / "goldens/bleu.json").read_text("utf-8"))
    return [pytest.param([hypothesis.split() for hypothesis in case["hypotheses"]],
                         [[choice.split() for choice in choices if choice is not None]
                          for choices in case["references"]], case["bleu"], id=case["name"])
            for case in found["cases"]]


@pytest.mark.parametrize("hypotheses, references, want", golden())
def test_bleu_is_that_of_sacrebleu(hypotheses, references, want):
    assert_close(lesson.bleu(hypotheses, references), want, "BLEU", rtol=1e-9, atol=1e-9)


def test_bleu_by_hand():
    """Papineni's example: of seven "the" two are right, clipped at the reference's two."""
    got = lesson.bleu([["the"] * 7], [[["the", "cat", "is", "on", "the", "mat"]]])
    want = 100 * (2 / 7 * 1 / (2 * 6) * 1 / (4 * 5) * 1 / (8 * 4)) ** (1 / 4)
    assert_close(got, want, "BLEU: the second, third and fourth precision are smoothed")


def test_bleu_wants_references_for_every_hypothesis():
    with pytest.raises(ValueError):
        lesson.bleu([["a"], ["b"]], [[["a"]]])


@pytest.mark.parametrize("right, n, z", [(7, 10, 1.96), (0, 10, 1.96), (10, 10, 1.96), (1, 1, 1.0),
                                         (600, 1000, 2.5)])
def test_interval_ends_where_the_quadratic_equation_is_solved(right, n, z):
    """(right / n - p)^2 = z^2 p (1 - p) / n."""
    r = right / n
    want = np.sort(np.roots([1 + z * z / n, -2 * r - z * z / n, r * r]).real)
    assert_close(lesson.interval(right, n, z), want, "low, high")


def test_interval_known_to_the_books():
    assert_close(lesson.interval(0, 10), [0, 0.277533], "none of 10", atol=1e-5)
    assert_close(lesson.interval(50, 100), [0.403832, 0.596168], "half of 100", atol=1e-5)


def test_interval_of_no_trial_is_everything():
    assert_close(lesson.interval(0, 0), [0.0, 1.0], "low, high")


def test_interval_holds_the_truth_95_times_of_100():
    """Exactly, by adding up the binomial probabilities of all results whose interval has p in it."""
    n = 50
    for p in 0.2, 0.5, 0.7:
        covered = sum(math.comb(n, k) * p**k * (1 - p)**(n - k) for k in range(n + 1)
                      if lesson.interval(k, n)[0] <= p <= lesson.interval(k, n)[1])
        assert 0.92 < covered < 0.98, f"p = {p} lies in {covered:.0%} of the intervals"


def test_main_starts_the_league_and_the_blind_test(monkeypatch, capsys):
    called = []
    for name in "league", "blind_test":
        module = importlib.import_module(f"lessons.{name}")
        monkeypatch.setattr(module, "run", lambda argv, name=name: called.append((name, argv)))
    lesson.main()
    out = capsys.readouterr().out
    for words in "accuracy 0.95, macro F1 0.49", "BLEU 53.7", "40% to 89%, 70 of 100 60% to 78%":
        assert words in out
    lesson.main("out/a", "out/b")
    lesson.main("blind", "--rounds", "3")
    assert called == [("league", ()), ("league", ("out/a", "out/b")), ("blind_test", ("--rounds", "3"))]
