"""The league of lesson 20: every row's numbers by hand, what is missing or damaged, the picture's labels.

Models of lessons 3, 4 and 11 are stand-ins here: what they answer is tested where they are.
"""
import itertools
import lzma
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lessons import devices, league, league_display
from lessons.errors import InputError
from lessons.l05_tokenizer import char_tokenizer, train_bpe
from lessons.l16_gpt import count_parameters, gpt_forward
from lessons.l17_weights import save_model, save_state
from lessons.parameters import Config, init_parameters
from lessons.run_folder import HEADER
from lessons.texts import checksum
from tests.close import assert_close

NUMPY = devices.ops("numpy")
TEXT = "the cat sat on the mat. the dog sat on the log. " * 54 + "a dog on a mat? the cat! " * 12
TRAINING, VALIDATION = TEXT[:len(TEXT) * 9 // 10], TEXT[len(TEXT) * 9 // 10:]
LOG = f"""{HEADER}
1,64,3.0,3.0,4.5,0.1,1,10,5
2,128,2.9,,,0.1,1,10,6
3,192,2.1,2.1,2.9,0.1,1,10,9
4,256,1.2,1.2,1.8,0.1,1,10,12.5
"""
THIS = checksum(TEXT)


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(league, "read_text", lambda name: TEXT)


def folder(place, tokenizer, sha256=THIS):
    p = init_parameters(Config(tokenizer.vocab_size, 8, n_layer=1, n_head=2, n_embd=8))
    p.flat[:] += 0.3 * np.random.default_rng(1).normal(size=p.flat.size).astype(np.float32)
    save_model(Path(place), p, tokenizer)
    save_state(Path(place, "training.safetensors"), {"parameters": p.flat},
               {"settings": {"sha256": sha256}, "progress": {"step": 4, "seconds": 12.5}})
    Path(place, "log.csv").write_text(LOG)
    return p


def stand_in(monkeypatch, bits=3.0):
    """The lessons of all models that are read from a file: `bits` for every character, 77 parameters."""
    def load(path, text):
        words = Path(path).read_text()
        if words != "a model":
            raise InputError(f"{path} is damaged")
        return "the model", 33.0

    def nats(ops, model, before, codes):
        assert model == "the model" and ops.step == "its kernel" and ops.linear_forward and len(before) >= 500
        return np.full(len(codes), bits * math.log(2))

    real = devices.module
    lesson = SimpleNamespace(load=load, nats=nats, parameters=lambda model: 77)
    for _, subject, *_ in league.SAVED:
        monkeypatch.setitem(devices.BEFORE, subject, ("a_lesson", ["step"]))
    fakes = {"numpy": lesson, "cpu": SimpleNamespace(step="its kernel")}
    monkeypatch.setattr(devices, "module", lambda device, subject: fakes[device]
                        if devices.BEFORE.get(subject) == ("a_lesson", ["step"]) else real(device, subject))


def run(capsys, *argv):
    league.run(argv)
    return capsys.readouterr().out


def test_all_equally_likely():
    assert_close(league.uniform("abcaddd"), math.log(4), "nats of one of four letters")


def test_the_compressor_needs_little_for_what_it_has_seen():
    letters = "".join(np.random.default_rng(0).choice(list("abcdefgh"), 18_000))
    again, new = (league.compressor(letters + end) for end in (letters[:2000], letters[:2000:-1][:2000]))
    assert again < 0.1 * new, f"{again:.0f} nats for a repetition, {new:.0f} for new letters"
    assert new / math.log(2) / 2000 > 2.9, "random letters need log2(8)"
    size = len(lzma.compress(TEXT.encode())) - len(lzma.compress(TRAINING.encode()))
    assert_close(league.compressor(TEXT), 8 * size * math.log(2), "nats of Shakespeare's last tenth")


def unigram_bits():
    """Kneser-Ney of order 1: discounted counts, and what was taken in equal shares."""
    counts = {c: TRAINING.count(c) for c in set(TEXT)}
    n1, n2 = (sum(n == k for n in counts.values()) for k in (1, 2))
    D = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
    left = D * sum(n > 0 for n in counts.values()) / len(counts)
    p = {c: (max(n - D, 0) + left) / len(TRAINING) for c, n in counts.items()}
    return -sum(math.log2(p[c]) for c in VALIDATION) / len(VALIDATION)


def test_the_league_without_any_trained_model():
    told = []
    rows, problems = league.league(TEXT, {}, told.append)
    assert problems == []
    assert [row.bits for row in rows] == sorted((row.bits for row in rows), reverse=True), "the best is last"
    names = ["unigram", "bigram", "Kneser-Ney 3", "Kneser-Ney 4", "Kneser-Ney 5", "Kneser-Ney 6",
             "modified Kneser-Ney 6", "modified Kneser-Ney 7"]
    assert told == [f"scoring {name}" for name in names]
    found = {row.name: row for row in rows}
    assert set(found) == {*names, "all equally likely", "xz, a compressor"}
    assert_close(found["all equally likely"].bits, math.log2(len(set(TEXT))), "bits")
    want = 8 * (len(lzma.compress(TEXT.encode())) - len(lzma.compress(TRAINING.encode()))) / len(VALIDATION)
    assert_close(found["xz, a compressor"].bits, want, "bits of xz")
    assert_close(found["unigram"].bits, unigram_bits(), "bits of the unigram", rtol=1e-3)
    grams = {n: len({TRAINING[i:i + n] for i in range(len(TRAINING) - n + 1)}) for n in range(1, 7)}
    for n, name in enumerate(names[:6], 1):
        assert found[name].size == sum(grams[k] for k in range(1, n + 1)), f"counts of {name}"
        assert found[name].seconds > 0 and found[name].speed > 0
    assert found["Kneser-Ney 6"].bits < found["unigram"].bits, "this text says the same again and again"


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


@pytest.mark.parametrize("kind", ["characters", "pieces"])
def test_a_gpt_is_scored_on_overlapping_windows(kind):
    tokenizer = char_tokenizer(TEXT) if kind == "characters" else train_bpe(TRAINING, 270)
    p = folder("out/mine", tokenizer)
    row = league.gpt("GPT in out/mine", "out/mine", TEXT)
    assert_close(row.bits, bits_by_hand(p, tokenizer, stride=2), "bits, windows of 8, stride 2", rtol=1e-4)
    assert row._replace(bits=0, speed=0) == league.Row(
        "GPT in out/mine", count_parameters(p.config), 12.5, 0, 0, [(5, 4.5), (9, 2.9), (12.5, 1.8)])


def test_models_are_read_from_their_files(monkeypatch):
    stand_in(monkeypatch)
    Path("out").mkdir()
    Path("out/hmm.npz").write_text("a model")
    Path("out/rnn.npz").write_text("rubbish")
    rows, problems = league.league(TEXT, {}, lambda line: None)
    row, = (row for row in rows if row.name == "HMM")
    assert_close(row.bits, 3.0, "bits of the stand-in")
    assert (row.size, row.seconds) == (77, 33.0)
    assert problems == ["RNN is left out: out/rnn.npz is damaged"]
    assert [name for name, _ in league.missing()][:2] == ["decision trees", "LSTM"]


def test_a_model_that_answers_nan_is_left_out(monkeypatch):
    stand_in(monkeypatch, bits=math.nan)
    Path("out").mkdir()
    Path("out/tree.npz").write_text("a model")
    rows, problems = league.league(TEXT, {}, lambda line: None)
    assert problems == ["decision trees is left out: it answers NaN or infinity: train anew"]
    assert "decision trees" not in [row.name for row in rows]


def test_a_gpt_that_cannot_read_the_text_is_left_out():
    folder("out/abc", char_tokenizer("abc"))
    save_model(Path("out/none"), init_parameters(Config(30, 8, 1, 2, 8)), None)
    _, problems = league.league(TEXT, {"GPT in out/abc": "out/abc", "GPT in out/none": "out/none"}, print)
    assert "GPT in out/abc is left out: " in problems[0] and "does not know" in problems[0]
    assert "GPT in out/none is left out: " in problems[1] and "no tokenizer.json" in problems[1]


def test_seconds_of_training_are_known_for_runs_on_this_text_alone():
    folder("out/good", char_tokenizer(TEXT))
    folder("out/other", char_tokenizer(TEXT), sha256="0" * 64)
    Path("broken").mkdir()
    Path("broken/training.safetensors").write_bytes(b"nonsense")
    for place, want in {"out/good": 12.5, "out/other": None, "broken": None, "nowhere": None}.items():
        assert league.seconds_of_training(place, TEXT) == want, place


def test_a_log_that_cannot_be_read_is_an_empty_one():
    folder("out/mine", char_tokenizer(TEXT))
    Path("out/mine/log.csv").write_text(f"{HEADER}\nnot,a,number\n")
    assert league.judged("out/mine") == league.judged("out/nowhere") == []


def test_a_duel_tells_when_the_log_falls_below_each():
    row = league.Row("GPT", 1, 12.5, 1.7, 1.0, [(5, 4.5), (9, 2.9), (12.5, 1.8)])
    others = [league.Row(name, 1, 1, bits, 1) for name, bits in (("A", 2.9), ("B", 3.0), ("C", 1.75))]
    said = league_display.duel(row, others)
    assert said.startswith("GPT passes A (2.900) after 12 s, B (3.000) after 9 s, C (1.750) never (its log")


@pytest.mark.parametrize("points", [[(1, 2.0), (1.5, 2.01), (2, 2.0), (1, 2.3)],
                                    [(10.0**k, 2.0) for k in range(4)]])
def test_labels_lie_beside_their_points_and_not_on_each_other(points):
    labels = league_display.places(points)
    for (x, y), (left, height) in zip(points, labels, strict=True):
        assert x < left < 2 * x and y <= height < y + 0.07 * len(points)
    for (a, b), (c, d) in itertools.combinations(labels, 2):
        assert max(a / c, c / a) >= 20 or abs(b - d) >= 0.07 - 1e-9, "two labels lie on each other"


def test_main_prints_table_duel_what_is_missing_and_the_picture(capsys):
    folder("out/shakespeare", char_tokenizer(TEXT))
    folder("out/[b]", char_tokenizer(TEXT))  # brackets mean something to rich
    folder("out/other", char_tokenizer(TEXT), sha256="0" * 64)
    Path("out/old").mkdir()
    Path("out/old/training.safetensors").write_bytes(b"nonsense")
    out = run(capsys)
    assert f"{len(VALIDATION):,} characters of Shakespeare" in out
    for words in ("xz, a compressor", "modified Kneser-Ney 6", "GPT in out/shakespeare ", "GPT in out/[b] ",
                  "GPT in out/shakespeare passes Kneser-Ney 6", "GPT in out/old is left out: ",
                  'HMM: not trained yet: make lesson 3 ARGS="--train"', "picture: out/lessons/league.png"):
        assert words in out, words
    assert "out/other" not in out and "*" not in out, "it may have seen the last tenth"
    assert "GPT, three minutes" not in out and Path("out/lessons/league.png").stat().st_size > 10_000
    assert max(map(len, out.split("\n\n")[1].splitlines())) <= 80, "a terminal has 80 columns"


def test_main_marks_a_named_folder_that_may_have_seen_the_text(monkeypatch, capsys):
    monkeypatch.setattr(league, "draw", lambda rows, line, path: None)
    folder("out/shakespeare", char_tokenizer(TEXT))
    folder("out/other", char_tokenizer(TEXT), sha256="0" * 64)
    out = run(capsys, "out/other")
    assert "GPT in out/other *" in out and "* trained on something else" in out
    assert "out/shakespeare" not in out


@pytest.mark.parametrize("argv, words", [(["out/mistyped"], "out/mistyped"), (["--colour"], "--colour"),
                                         (["--blind"], "--blind")])
def test_main_refuses_before_anything_is_scored(argv, words, capsys):
    with pytest.raises(InputError, match=words):
        league.run(argv)
    assert capsys.readouterr().out == ""


def test_main_scores_what_a_lesson_of_this_house_has_saved():
    """Each command that is offered names the lesson that has what the league asks for."""
    for name, subject, _, command in league.SAVED:
        number = int(command.split()[2])
        lesson, _ = devices.BEFORE[subject]
        assert lesson.startswith(f"l{number:02d}_"), name
        module = devices.module("numpy", subject)
        assert all(hasattr(module, part) for part in ("load", "nats", "parameters")), name
