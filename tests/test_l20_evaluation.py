"""The tests of f are test_f and test_f_*: they are also lesson 20's exercises.

The oracles: numbers worked out by hand, a loop that guesses one token at a time, and the sum over all texts.
"""
import hashlib
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from lessons import devices
from lessons import l20_evaluation as lesson
from lessons.errors import InputError
from lessons.l05_tokenizer import char_tokenizer, train_bpe
from lessons.l16_gpt import count_parameters, gpt_forward
from lessons.l17_weights import save_model, save_state
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


def test_uniform():
    assert_close(lesson.uniform("abca", "bd"), 2 * math.log(4), "nats of two of the four letters there are")


def test_frequencies():
    # counts a 2, b 1, and one more for each of a, b, c: 3/6, 2/6, 1/6
    want = -(math.log(3 / 6) + 2 * math.log(2 / 6) + math.log(1 / 6))
    assert_close(lesson.frequencies("aab", "abbc"), want, "nats")


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.text("abcde", min_size=1, max_size=30), st.text("abcxyz", min_size=1, max_size=30))
def test_frequencies_add_up_to_1(training, validation):
    kinds = sorted(set(training + validation))
    total = sum(math.exp(-lesson.frequencies(training, c + "".join(kinds))
                         + lesson.frequencies(training, "".join(kinds))) for c in kinds)
    assert_close(total, 1.0, "sum over the characters")


def test_compressor_needs_little_for_what_it_has_seen():
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("abcdefgh"), 20_000))
    again, new = lesson.compressor(text, text[:8000]), lesson.compressor(text, text[::-1][:8000])
    assert again < 0.02 * new, f"{again:.0f} nats for a repetition, {new:.0f} for new letters"
    assert lesson.bits_per_character(new, 8000) > 3, "random letters need log2(8)"


TEXT = "the cat sat on the mat. the dog sat on the log. " * 54 + "a dog on a mat? the cat! " * 12
TRAINING, VALIDATION = TEXT[:len(TEXT) * 9 // 10], TEXT[len(TEXT) * 9 // 10:]


def folder(place, name, tokenizer, sha256):
    p = init_parameters(Config(tokenizer.vocab_size, 8, n_layer=1, n_head=2, n_embd=8))
    p.flat[:] += 0.3 * np.random.default_rng(1).normal(size=p.flat.size).astype(np.float32)
    save_model(place / "out" / name, p, tokenizer)
    save_state(place / "out" / name / "training.safetensors", {"parameters": p.flat},
               {"settings": {"sha256": sha256}, "progress": {"step": 1, "seconds": 12.5}})
    return p


def bits_by_hand(p, tokenizer, stride):
    """Every token's loss from the window that the docstring of windows says it has."""
    before, tokens = tokenizer.encode(TRAINING), tokenizer.encode(VALIDATION)
    text, T, nats = np.concatenate([before, tokens]), p.config.block_size, 0.0
    for start in range(0, len(tokens), stride):
        end = len(before) + min(start + stride, len(tokens))
        logits = gpt_forward(NUMPY, p, text[None, end - T - 1:end - 1])[0][0].astype(float)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for place in range(len(before) + start, end):
            nats -= log_p[place - (end - T), text[place]]
    return nats / math.log(2) / len(VALIDATION)


def test_league_scores_every_model_in_bits_a_character(tmp_path):
    tokenizers = {"chars": char_tokenizer(TEXT), "pieces": train_bpe(TRAINING, 270)}
    models = {name: folder(tmp_path, name, tokenizer, "?") for name, tokenizer in tokenizers.items()}
    table = lesson.league(devices.ops("cpu"), TEXT, {tmp_path / "out" / name: 12.5 for name in tokenizers})
    assert [row[-1] for row in table] == sorted((row[-1] for row in table), reverse=True), "the best is last"
    rows = {row[0].split("/")[-1]: row[1:] for row in table}
    for name, baseline in (("all characters equally likely", lesson.uniform),
                           ("frequency of each character", lesson.frequencies),
                           ("xz, a compressor", lesson.compressor)):
        want = baseline(TRAINING, VALIDATION) / math.log(2) / len(VALIDATION)
        assert_close(rows[name][-1], want, f"bits of {name}")
    for name, tokenizer in tokenizers.items():
        parameters, seconds, unsure, apart, overlapping = rows[name]
        assert seconds == 12.5 and parameters == count_parameters(models[name].config)
        assert_close(apart, bits_by_hand(models[name], tokenizer, 8), f"{name}: side by side", rtol=1e-4)
        assert_close(overlapping, bits_by_hand(models[name], tokenizer, 2), f"{name}: overlapping", rtol=1e-4)
        n = len(tokenizer.encode(VALIDATION))
        assert_close(math.log2(unsure) * n / len(VALIDATION), overlapping, f"{name}: bits by perplexity")


def test_league_trains_a_small_gpt_where_there_is_none(monkeypatch):
    def stand_in(training):
        assert training == TRAINING, "it must not see the last tenth"
        tokenizer = char_tokenizer(TEXT)
        return init_parameters(Config(tokenizer.vocab_size, 8, 1, 2, 8)), tokenizer

    monkeypatch.setattr(lesson, "quick_model", stand_in)
    assert "small GPT, trained now" in [row[0] for row in lesson.league(devices.ops("cpu"), TEXT, {})]


def test_league_names_the_model_that_cannot_read_the_text(tmp_path):
    save_model(tmp_path, init_parameters(Config(30, 8, 1, 2, 8)), None)
    with pytest.raises(InputError, match="no tokenizer.json"):
        lesson.league(devices.ops("cpu"), TEXT, {tmp_path: None})
    folder(tmp_path, "abc", char_tokenizer("abc"), "?")
    with pytest.raises(InputError, match="GPT in .*abc.*does not know"):
        lesson.league(devices.ops("cpu"), TEXT, {tmp_path / "out" / "abc": None})


def test_seconds_of_training_are_known_for_runs_on_this_text_alone(tmp_path):
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    for name, sha256 in ("good", digest), ("other_text", "0" * 64):
        folder(tmp_path, name, char_tokenizer(TEXT), sha256)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "training.safetensors").write_bytes(b"nonsense")
    for place, want in {"out/good": 12.5, "out/other_text": None, "broken": None, "nowhere": None}.items():
        assert lesson.seconds_of_training(tmp_path / place, TEXT) == want, place


def test_main_lists_what_was_trained_on_this_text_and_marks_what_else_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lesson, "read_text", lambda name: TEXT)
    for name, sha256 in ("good", hashlib.sha256(TEXT.encode()).hexdigest()), ("other_text", "0" * 64):
        folder(tmp_path, name, char_tokenizer(TEXT), sha256)
    lesson.main()
    out = capsys.readouterr().out
    assert "GPT in out/good " in out and "other_text" not in out and "*" not in out
    lesson.main("out/other_text")
    out = capsys.readouterr().out
    assert "GPT in out/other_text *" in out and "* trained on something else" in out and "good" not in out
    with pytest.raises(InputError, match="--colour"):
        lesson.main("--colour")


def test_main_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lesson, "read_text", lambda name: TEXT)
    tokenizer = char_tokenizer(TEXT)
    small = init_parameters(Config(tokenizer.vocab_size, 8, 1, 2, 8)), tokenizer
    monkeypatch.setattr(lesson, "quick_model", lambda training: small)
    lesson.main()
    out = capsys.readouterr().out
    assert "xz, a compressor" in out and "make train adds a better one" in out
    assert f"{math.log2(len(set(TEXT))):.3f}" in out
