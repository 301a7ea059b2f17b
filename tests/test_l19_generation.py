"""The tests of f are test_f and test_f_*: they are also lesson 19's exercises.

The oracles: the full forward of lesson 16 on the window that is kept, probabilities computed by hand, and for
beam search the best of all texts, tried one by one.
"""
import inspect
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import devices, generation_run
from lessons import l19_generation as lesson
from lessons.errors import InputError
from lessons.l05_tokenizer import char_tokenizer, train_bpe
from lessons.l16_gpt import gpt_forward
from lessons.l17_weights import save_model
from lessons.parameters import Config, init_parameters
from tests.close import assert_close

NUMPY = devices.ops("numpy")
rooms = pytest.mark.parametrize("room", ["numpy", "cpu"])


def model(vocab_size=7, block_size=6, seed=0, dtype=np.float32):
    """Random and far from even: the probabilities of a model that has learned something."""
    p = init_parameters(Config(vocab_size, block_size, n_layer=2, n_head=2, n_embd=8), dtype=dtype)
    p.flat[:] += 0.5 * np.random.default_rng(seed).standard_normal(p.flat.size)
    return p


def text(B, T, vocab_size=7):
    return np.random.default_rng(T).integers(0, vocab_size, (B, T))


def window(kept, new, block_size):  # (B, T), (B, T) -> (B, T)
    """What the model sees: all it can, or the last half of that and the new tokens."""
    if kept.shape[1] + new.shape[1] > block_size:
        kept = kept[:, kept.shape[1] - min(block_size // 2, kept.shape[1]):]
    return np.concatenate([kept, new], axis=1)[:, -block_size:]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 15))
def test_largest_sorts_and_takes_the_first_of_equals(scores, k):
    want = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert list(lesson.largest(np.array(scores, float), k)) == want


HALVES = np.log([1 / 8, 1 / 2, 1 / 8, 1 / 4])


@pytest.mark.parametrize("how, want", [
    ({}, [1, 4, 1, 2]),
    ({"temperature": 0.5}, [1, 16, 1, 4]),  # p^(1 / temperature)
    ({"temperature": 2}, [1, 2, 1, math.sqrt(2)]),
    ({"temperature": 0}, [0, 1, 0, 0]),
    ({"temperature": 1e-300}, [0, 1, 0, 0]),
    ({"top_k": 1}, [0, 1, 0, 0]),
    ({"top_k": 2}, [0, 4, 0, 2]),
    ({"top_k": 3}, [1, 4, 0, 2]),  # token 0 and token 2 are equal: the lower id stays
    ({"top_k": 4}, [1, 4, 1, 2]),
    ({"top_k": 99}, [1, 4, 1, 2]),
    ({"top_p": 1e-9}, [0, 1, 0, 0]),  # at least one
    ({"top_p": 0.49}, [0, 1, 0, 0]),
    ({"top_p": 0.51}, [0, 4, 0, 2]),
    ({"top_p": 0.74}, [0, 4, 0, 2]),
    ({"top_p": 0.76}, [1, 4, 0, 2]),
    ({"top_p": 1.0}, [1, 4, 1, 2]),
    ({"top_k": 2, "top_p": 0.66}, [0, 1, 0, 0]),  # of what top-k left, token 1 has 2/3
    ({"top_k": 2, "top_p": 0.67}, [0, 4, 0, 2]),
    ({"temperature": 0.5, "top_p": 0.72}, [0, 1, 0, 0]),  # 16/22 = 0.727: the temperature comes first
    ({"temperature": 0.5, "top_p": 0.73}, [0, 16, 0, 4]),
])
def test_next_token_probabilities_by_hand(how, want):
    assert_close(lesson.next_token_probabilities(HALVES, **how), np.array(want) / sum(want), "probabilities")


def test_next_token_probabilities_of_equal_logits_keep_the_lowest_ids():
    equal = np.zeros(4, np.float32)
    assert list(lesson.next_token_probabilities(equal, temperature=0)) == [1, 0, 0, 0]
    assert list(lesson.next_token_probabilities(equal, top_k=2)) == [0.5, 0.5, 0, 0]
    assert list(lesson.next_token_probabilities(equal, top_p=0.5)) == [0.5, 0.5, 0, 0]  # exactly 0.5


def test_next_token_probabilities_survive_logits_of_1000_and_change_none():
    logits = np.array([-1000, 1000, 999, -np.inf], np.float32)
    before = logits.copy()
    got = lesson.next_token_probabilities(logits, temperature=0.5)
    assert_close(got, [0, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)), 0], "probabilities", rtol=1e-12)
    assert (logits == before).all(), "the caller's logits were changed"


quarters = st.integers(-40, 40).map(lambda i: i / 4)  # some will be equal
logits_of_any_kind = st.lists(quarters, min_size=1, max_size=20).map(np.array)


@settings(deadline=None, max_examples=50)
@given(logits_of_any_kind, st.floats(0.05, 5), st.none() | st.integers(1, 25), st.floats(1e-3, 1))
def test_next_token_probabilities_sum_to_one_over_the_smallest_set_allowed(logits, temperature, top_k, top_p):
    got = lesson.next_token_probabilities(logits, temperature, top_k, top_p)
    assert abs(got.sum() - 1) < 1e-12
    full = np.exp((logits - logits.max()) / temperature)
    order = sorted(range(len(full)), key=lambda i: (-logits[i], i))[:top_k]
    full = full[order] / full[order].sum()
    size = np.count_nonzero(got)
    assert set(np.flatnonzero(got)) == set(order[:size]), "not the most probable ones"
    assert full[:size].sum() >= top_p - 1e-9, f"{size} tokens do not reach {top_p}"
    assert full[:size - 1].sum() < top_p + 1e-9, f"{size - 1} tokens already reach {top_p}"
    assert_close(got[order[:size]], full[:size] / full[:size].sum(), "probabilities that are left", rtol=1e-9)


@pytest.mark.parametrize("point, token", [(0, 1), (0.49, 1), (0.5, 2), (0.74, 2), (0.75, 4), (1 - 2**-53, 4)])
def test_draw_finds_where_the_point_falls(point, token):
    """Tokens 0, 3 and 5 have no probability: no point falls on them, not even the first or the last."""
    probabilities = np.array([0, 0.5, 0.25, 0, 0.25, 0])
    assert lesson.draw(probabilities, SimpleNamespace(random=lambda: point)) == token


def test_draw_stays_in_the_vocabulary_where_ten_tenths_are_a_little_less_than_one():
    assert lesson.draw(np.full(10, 0.1), SimpleNamespace(random=lambda: 1 - 2**-53)) == 9


def test_draw_takes_each_token_as_often_as_it_is_probable():
    rng, n, want = np.random.default_rng(0), 4000, np.array([0.2, 0.5, 0, 0.3])
    drawn = np.bincount([lesson.draw(want, rng) for _ in range(n)], minlength=4) / n
    assert drawn[2] == 0, "token 2 has no probability"
    assert (np.abs(drawn - want) <= 4 * np.sqrt(want / n)).all(), f"drawn {drawn}, expected about {want}"


@settings(deadline=None, max_examples=50)
@given(logits_of_any_kind, st.integers(0, 5))
def test_temperature_0_takes_the_most_probable_token_and_one_close_to_it_too(logits, seed):
    greedy, near = (lesson.draw(lesson.next_token_probabilities(logits, temperature),
                                np.random.default_rng(seed)) for temperature in (0, 1e-9))
    assert greedy == logits.argmax()
    assert logits[near] == logits[greedy], "equal logits share at any temperature above 0"


def greedy_by_full_forward(p, prompt, n):
    seen, out = np.array([prompt[-p.config.block_size:]]), []
    for _ in range(n):
        out.append(int(gpt_forward(NUMPY, p, seen)[0][0, -1].argmax()))
        seen = window(seen, np.array([out[-1:]]), p.config.block_size)
    return out


@rooms
@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4], list(range(7)) * 3], ids=["1", "4", "21 tokens"])
def test_generate_at_temperature_0_takes_the_argmax_in_every_room(room, prompt):
    p = model()
    got = list(lesson.generate(devices.ops(room), p, prompt, 20, temperature=0))
    assert got == greedy_by_full_forward(p, prompt, 20)
    assert len(set(got)) > 1, "a text of one token would show nothing"


def test_generate_is_a_function_of_the_seed():
    p = model()
    draw = lambda seed: list(lesson.generate(NUMPY, p, [1], 30, seed=seed))
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_generate_draws_from_what_top_k_and_top_p_leave():
    p = model()
    greedy = list(lesson.generate(NUMPY, p, [1], 12, temperature=0))
    assert list(lesson.generate(NUMPY, p, [1], 12, temperature=5, top_k=1, seed=3)) == greedy
    assert list(lesson.generate(NUMPY, p, [1], 12, temperature=5, top_p=1e-6, seed=3)) == greedy


def test_generate_yields_each_token_before_it_reads_it():
    reads = []
    counting = SimpleNamespace(**vars(NUMPY) | {"decode": lambda weights, token, position, *rest: (
        reads.append((token, position)), NUMPY.decode(weights, token, position, *rest))[1]})
    tokens = lesson.generate(counting, model(), [1, 2, 3], 3)
    first = next(tokens)
    assert reads == []
    second, _ = tokens
    assert reads == [(first, 3), (second, 4)], "each token is read once, in its place, and the last one never"


@rooms
def test_generate_with_int8_is_generate_with_rounded_weights(room):
    p, ops = model(block_size=16), devices.ops(room)
    got = list(lesson.generate(ops, p, [1, 2], 40, seed=3, int8=True))
    assert got == list(lesson.generate(ops, lesson.rounded(p), [1, 2], 40, seed=3))


@rooms
def test_generate_writes_the_same_text_on_several_threads(room):
    p, ops = model(block_size=16), devices.ops(room)
    for int8 in False, True:
        texts = [list(lesson.generate(ops, p, [1, 2], 40, seed=1, int8=int8, threads=n)) for n in (1, 2, 3)]
        assert texts[0] == texts[1] == texts[2], "the threads do not change what is computed"


@rooms
@pytest.mark.parametrize("drafts", [1, 3, 9])
@pytest.mark.parametrize("n", [1, 2, 20])  # 20: past the block
def test_speculate_at_temperature_0_writes_what_generate_writes(room, n, drafts):
    p, ops = model(), devices.ops(room)
    got = list(lesson.speculate(ops, p, [3, 1], n, drafts, temperature=0))
    assert got == greedy_by_full_forward(p, [3, 1], n)


@pytest.mark.parametrize("drafts, how", [(1, {}), (3, {}), (2, {"temperature": 0.5, "top_k": 2})])
def test_speculate_draws_texts_as_often_as_they_are_probable_however_bad_the_drafts(drafts, how):
    """The model that drafts is replaced by one that is sure of token 0."""
    p, n, texts = model(vocab_size=3), 1200, list(itertools.product(range(3), repeat=3))
    bad = SimpleNamespace(**vars(NUMPY) | {"decode": lambda *rest: np.array([3.0, 0.0, 0.0])})

    def probability(text):  # as generate would draw it
        seen, product = [2, 1], 1.0
        for token in text:
            logits = gpt_forward(NUMPY, p, np.array([seen]))[0][0, -1]
            product *= lesson.next_token_probabilities(logits, **how)[token]
            seen.append(token)
        return product

    want = np.array([probability(text) for text in texts])
    drawn = [tuple(lesson.speculate(bad, p, [2, 1], 3, drafts, **how, seed=seed)) for seed in range(n)]
    got = np.array([drawn.count(text) for text in texts]) / n
    assert not got[want == 0].any(), "a text was drawn that top-k leaves no way to"
    surprise = np.abs(got - want) / np.sqrt(np.maximum(want * (1 - want), 1e-9) / n)
    worst = surprise.argmax()
    assert surprise[worst] < 4.5, f"{texts[worst]}: drawn {got[worst]:.3f}, expected {want[worst]:.3f}"


def test_speculate_of_no_tokens_is_none():
    for write in lesson.speculate, lesson.generate:
        assert list(write(NUMPY, model(), [1], 0)) == []


def test_speculate_asks_the_model_once_for_several_tokens():
    p, passes = model(block_size=64), []
    counting = SimpleNamespace(**vars(NUMPY) | {"embedding_forward": lambda tokens, *rest: (
        passes.append(tokens.size), NUMPY.embedding_forward(tokens, *rest))[1]})
    text = list(lesson.speculate(counting, p, [1], 40, drafts=4, seed=0))
    assert len(text) == 40 and len(passes) < 20, f"{len(passes)} passes: most drafts should be kept"


def test_log_probabilities():
    logits = np.array([[0, math.log(3)], [1000, 1000]])
    assert_close(lesson.log_probabilities(logits), np.log([[0.25, 0.75], [0.5, 0.5]]), "log p")


def log_p(p, prompt, tokens):
    """Of the tokens after the prompt, by the full forward."""
    seen, total = np.array([prompt]), 0.0
    for token in tokens:
        logits = gpt_forward(NUMPY, p, seen)[0][0, -1]
        total += logits[token] - np.log(np.exp(logits).sum())
        seen = window(seen, np.array([[token]]), p.config.block_size)
    return total


@rooms
@pytest.mark.parametrize("block_size", [6, 3])  # 3: the window slides
@pytest.mark.parametrize("seed", range(3))
def test_beam_search_wide_enough_finds_the_best_of_all_texts(room, block_size, seed):
    p = model(vocab_size=4, block_size=block_size, seed=seed)
    best = max(itertools.product(range(4), repeat=3), key=lambda tokens: log_p(p, [2, 1], tokens))
    tokens, score = lesson.beam_search(devices.ops(room), p, [2, 1], 3, beams=16)
    assert tuple(tokens) == best
    assert_close(score, log_p(p, [2, 1], best), "log-probability", rtol=1e-4)


def test_beam_search_with_one_beam_is_greedy():
    p = model()
    tokens, score = lesson.beam_search(NUMPY, p, [3], 15, beams=1)
    assert list(tokens) == greedy_by_full_forward(p, [3], 15)
    assert_close(score, log_p(p, [3], tokens), "log-probability", rtol=1e-4)


def test_beam_search_remembers_for_each_beam_its_own_text():
    """The score comes from the KV cache: if that were not re-ordered with the beams, it would be another."""
    scores = []
    for seed in range(8):
        p = model(seed=seed)
        tokens, score = lesson.beam_search(NUMPY, p, [3, 1], 12, beams=3)
        assert_close(score, log_p(p, [3, 1], tokens), f"log-probability, model {seed}", rtol=1e-4)
        scores.append(score - log_p(p, [3, 1], greedy_by_full_forward(p, [3, 1], 12)))
    assert np.mean(scores) > 0.1, "three beams should find better texts than greedy does, on the average"


class Bytes:
    """A tokenizer whose tokens are single bytes: every character beyond ASCII is split."""

    def token_bytes(self, token):
        return bytes([token])


def test_text_pieces_hold_incomplete_characters_back():
    got = list(generation_run.text_pieces(Bytes(), "aé€b".encode()))
    assert got == ["a", "é", "€", "b"]


def test_text_pieces_replace_what_never_becomes_a_character():
    assert list(generation_run.text_pieces(Bytes(), b"a\xffb")) == ["a", "\ufffd", "b"]
    assert list(generation_run.text_pieces(Bytes(), b"a\xe2\x82")) == ["a", "\ufffd"]  # "€" has 3 bytes


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_pieces_give_back_any_text_character_by_character(string):
    assert list(generation_run.text_pieces(Bytes(), string.encode())) == list(string)


LETTERS = "\n :EMOR"


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", model(len(LETTERS), block_size=16), char_tokenizer(LETTERS))
    return str(tmp_path / "model")


def test_main_writes_the_prompt_and_as_many_tokens_as_asked_for(folder, capsys):
    outputs = []
    for how in [], [], ["--seed", "1"], ["--prompt", "ROME" * 9], ["--beams", "3"], ["--top-p", "0.5"]:
        lesson.main("--model", folder, "--prompt", "ROMEO:", "--tokens", "30", *how)
        outputs.append(capsys.readouterr().out)
    for output in outputs[:3] + outputs[4:]:
        assert output.startswith("ROMEO:") and len(output) == 6 + 30 + 1
    assert outputs[3].startswith("ROME" * 9) and len(outputs[3]) == 36 + 30 + 1
    assert outputs[0] == outputs[1], "the same seed, the same text"
    assert len(set(outputs)) == 5, "everything else changes it"


@pytest.mark.parametrize("argv, want", [
    ([], {"temperature": 0.8, "top_k": 40, "top_p": 1.0, "seed": 0, "int8": False,
          "threads": devices.cores()}),
    (["--temperature", "1.7", "--top-k", "3", "--top-p", "0.4", "--seed", "9", "--int8", "--threads", "5"],
     {"temperature": 1.7, "top_k": 3, "top_p": 0.4, "seed": 9, "int8": True, "threads": 5}),
])
def test_main_hands_every_option_on(folder, argv, want, monkeypatch):
    names = list(inspect.signature(lesson.generate).parameters)
    asked = {}

    def generate(*args):
        asked.update(zip(names, args, strict=True))
        yield from [0] * asked["n"]

    monkeypatch.setattr(generation_run, "generate", generate)
    lesson.main("--model", folder, "--prompt", "ROME", "--tokens", "7", *argv)
    assert {name: asked[name] for name in want} == want and asked["n"] == 7
    assert list(asked["prompt"]) == list(char_tokenizer(LETTERS).encode("ROME"))


def test_main_searches_with_the_beams_and_weights_asked_for(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(generation_run, "beam_search", lambda *args: (asked.append(args), ([0] * 5, -1.0))[1])
    for int8 in [], ["--int8"]:
        lesson.main("--model", folder, "--tokens", "5", "--beams", "4", *int8)
    (_, p, _, n, beams), (_, q, *_) = asked
    assert (n, beams) == (5, 4)
    assert (q.flat == lesson.rounded(p).flat).all() and (q.flat != p.flat).any(), "--int8 is lost"


def test_load_leaves_out_rows_of_the_table_that_stand_for_no_token(tmp_path):
    p = model(len(LETTERS) + 9)
    save_model(tmp_path, p, char_tokenizer(LETTERS))
    q, tokenizer = generation_run.load(tmp_path)
    assert q.config.vocab_size == tokenizer.vocab_size == len(LETTERS)
    tokens = np.array([[1, 2, 3]])
    want = gpt_forward(NUMPY, p, tokens)[0][..., :len(LETTERS)]
    assert_close(gpt_forward(NUMPY, q, tokens)[0], want, "logits of the tokens there are")


def test_loss_on_validation_text(monkeypatch):
    p, text = model(len(LETTERS), 16), "ROMEO: OREM\n" * 90 + "MORE\n" * 24  # the last tenth is another text
    monkeypatch.setattr("lessons.texts.read_text", lambda name: text)
    tokens = char_tokenizer(LETTERS).encode(text[len(text) * 9 // 10:])[:16 * 7 + 1]
    logits = gpt_forward(NUMPY, p, tokens[:-1].reshape(-1, 16))[0].reshape(-1, len(LETTERS)).astype(float)
    want = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(112), tokens[1:]]).mean()
    got = generation_run.loss_on_validation_text(NUMPY, p, char_tokenizer(LETTERS))
    assert_close(got, want, "loss", rtol=1e-5)


def test_main_in_both_rooms_writes_the_same_text(folder, capsys):
    for device in "numpy", "cpu":
        lesson.main("--model", folder, "--temperature", "0", "--device", device)
    lines = capsys.readouterr().out
    assert len(lines) == 402 and lines[:201] == lines[201:]


@pytest.mark.parametrize("argv, message", [
    (["--model", "no/such/folder"], "no/such/folder"),
    (["--prompt", "ROMEO and Juliet"], "'a'.*offset 6"),
    (["--prompt", "ROMEO:\udcff"], "--prompt: .* offset 6 is not UTF-8"),
    (["--prompt", "-x"], r"--prompt: expected one argument \(a value that begins with - .*: --prompt=-x\)"),
    (["--temperature", "-0.1"], "--temperature: '-0.1' is not a number, 0 or more"),
    (["--temperature", "nan"], "--temperature: 'nan'"),
    (["--temperature", "inf"], "--temperature: 'inf'"),
    (["--temperature", "hot"], "--temperature: 'hot'"),
    (["--top-k", "0"], "--top-k: '0' is not a whole number, 1 or more"),
    (["--top-k", "-3"], "--top-k: '-3'"),
    (["--top-k", "1.5"], "--top-k: '1.5'"),
    (["--top-p", "0"], "--top-p: '0' is not a number above 0 and at most 1"),
    (["--top-p", "1.01"], "--top-p: '1.01'"),
    (["--top-p", "nan"], "--top-p: 'nan'"),
    (["--tokens", "0"], "--tokens: '0'"),
    (["--tokens", "-5"], "--tokens: '-5'"),
    (["--tokens", "ten"], "--tokens: 'ten'"),
    (["--tokens", "1000001"], "--tokens: '1000001' is not a whole number, 1 to 1,000,000"),
    (["--tokens"], "--tokens: expected one argument"),
    (["--beams", "0"], "--beams: '0'"),
    (["--threads", "5000"], "--threads: '5000' is not a whole number, 1 to 256"),
    (["--beams", "100000"], "--beams: '100000' is not a whole number, 1 to 100"),
    (["--seed", "-1"], "--seed: '-1'"),
    (["--device", "gpu"], "no device 'gpu': choose one of numpy, cpu"),
    (["--device", "cuda"], "no device 'cuda' .*lesson 26"),
    (["--colour", "blue"], "--colour"),
    (["--tok", "5"], "--tok"),
    (["ROMEO"], "ROMEO"),
])
def test_main_says_in_one_line_what_is_wrong_with(folder, argv, message, capsys):
    with pytest.raises(InputError, match=message) as error:
        lesson.main("--model", folder, *argv)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_main_takes_the_largest_number_of_tokens_and_a_prompt_that_begins_with_a_dash():
    args = generation_run.parse(["--tokens", "1000000", "--prompt=-x"])
    assert args.tokens == 1_000_000 and args.prompt == "-x"


def test_main_needs_a_tokenizer(tmp_path):
    save_model(tmp_path, model(), None)
    with pytest.raises(InputError, match="has no tokenizer.json"):
        lesson.main("--model", str(tmp_path))


def test_encode_prompt_begins_an_empty_prompt_somewhere():
    assert list(generation_run.encode_prompt(char_tokenizer("ab\n"), "")) == [0]  # "\n" comes before "a"
    assert list(generation_run.encode_prompt(char_tokenizer("\tab\n"), "")) == [1]
    assert list(generation_run.encode_prompt(char_tokenizer("ab"), "")) == [0]  # no newline: token 0
    assert list(generation_run.encode_prompt(char_tokenizer("ab"), "ba")) == [1, 0]


def test_encode_prompt_says_so_when_the_command_line_was_not_utf_8():
    for tokenizer in char_tokenizer("ab"), train_bpe("ab ab", 257):
        with pytest.raises(InputError, match="--prompt: what stands at offset 2 is not UTF-8"):
            generation_run.encode_prompt(tokenizer, b"ab\xff".decode(errors="surrogateescape"))


def test_text_pieces_of_a_real_tokenizer_are_what_it_decodes():
    tokenizer = train_bpe("né né né " * 3, 258)
    tokens = tokenizer.encode("né 中文")
    assert "".join(generation_run.text_pieces(tokenizer, tokens)) == "né 中文"


def test_main_without_options_shows_every_strategy(folder, capsys, monkeypatch):
    monkeypatch.setattr(generation_run, "FOLDER", folder)
    monkeypatch.setattr("lessons.texts.read_text", lambda name: "ROMEO: OREM\n" * 100)
    lesson.main()
    output = capsys.readouterr().out
    for name in "temperature 0 ", "temperature 1.2", "top-k", "top-p", "4 beams", "int8, 1 core", "the loss":
        assert name in output
    for way in "without KV cache", "speculation", "float32, 1 core":
        line, = (line for line in output.splitlines() if line.strip().startswith(way))
        assert line.endswith("the same"), line


def test_main_shows_how_probable_a_text_is(folder, capsys, monkeypatch):
    monkeypatch.setattr(generation_run, "FOLDER", folder)
    monkeypatch.setattr("lessons.texts.read_text", lambda name: "ROMEO: OREM\n" * 100)
    lesson.main()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("temperature 0 "))
    p, tokenizer = generation_run.load(folder)
    prompt = list(tokenizer.encode("ROMEO:\n"))
    text = greedy_by_full_forward(p, prompt, 16 - len(prompt))
    assert float(line.split()[-1]) == pytest.approx(log_p(p, prompt, text) / len(text), abs=0.006), line


@pytest.mark.parametrize("trouble, message", [("block", "reads 4 tokens"), ("tokenizer", "no tokenizer.js")])
def test_main_without_options_says_what_the_model_lacks(trouble, message, tmp_path, monkeypatch):
    tokenizer = None if trouble == "tokenizer" else char_tokenizer(LETTERS)
    save_model(tmp_path, model(len(LETTERS), block_size=4), tokenizer)
    monkeypatch.setattr(generation_run, "FOLDER", str(tmp_path))
    with pytest.raises(InputError, match=message):
        lesson.main()


def test_main_without_a_trained_model_says_so_and_trains_a_small_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generation_run, "FOLDER", str(tmp_path))
    monkeypatch.setattr("lessons.texts.read_text", lambda name: "ROMEO: OREM\n" * 100)
    monkeypatch.setattr("lessons.l18_training.quick_model",
                        lambda text: (model(len(LETTERS), 16), char_tokenizer(LETTERS)))
    lesson.main()
    assert capsys.readouterr().out.startswith("No trained model yet (make train ")
