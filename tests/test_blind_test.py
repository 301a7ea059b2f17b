"""The blind test of lesson 20, its answers typed by the test: nothing is lost, nothing is given away."""
import io
import re
from pathlib import Path

import pytest

from lessons import blind_test
from lessons.errors import InputError
from lessons.l05_tokenizer import char_tokenizer
from lessons.l17_weights import save_model, save_state
from lessons.parameters import Config, init_parameters
from lessons.run_folder import HEADER
from lessons.texts import checksum, split

LINES = [f"{'the old man and the sea'[:5 + k % 19]} number {k},\n" for k in range(1000)]  # no two are equal
TEXT = "".join(LINES)
HELD_OUT = split(TEXT)[1]


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(blind_test, "read_text", lambda name: TEXT)


@pytest.fixture
def typed(monkeypatch, capsys):
    """typed("a\\nb\\n", "--rounds", "2") -> what is printed. The input ends after these lines."""
    def run(lines, *argv):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        blind_test.run(argv)
        return capsys.readouterr().out
    return run


@pytest.fixture
def parrot(monkeypatch):
    """A model that writes the same words always, and is quick."""
    model = "a parrot", lambda prompt, seed: "Polly! " * 40
    monkeypatch.setattr(blind_test, "kneser_ney", lambda text: model)


def folder(name, bits, sha256=None):
    tokenizer = char_tokenizer(TEXT)
    p = init_parameters(Config(tokenizer.vocab_size, 16, n_layer=1, n_head=2, n_embd=8))
    save_model(Path(name), p, tokenizer)
    save_state(Path(name, "training.safetensors"), {"parameters": p.flat},
               {"settings": {"sha256": sha256 or checksum(TEXT)}, "progress": {"step": 1, "seconds": 1.0}})
    Path(name, "log.csv").write_text(f"{HEADER}\n1,64,3.0,3.0,{bits},0.1,1,10,5\n")


def score():
    return blind_test.SCORE.read_text().splitlines()


def test_every_answer_is_kept_and_the_next_run_goes_on(typed, parrot):
    out = typed("a\nB\nq\n", "--rounds", "5")
    header, *rows = score()
    assert header == "model,place,book,answer"
    assert [row.split(",")[3] for row in rows] == ["a", "b"]
    assert all(row.startswith("a parrot,") for row in rows)
    right = sum(book == answer for *_, book, answer in (row.split(",") for row in rows))
    assert f"{right} of 2 right, {50 * right} %; guessing gives 50 %" in out
    assert out.count("Right.") == right and out.count("No, it is ") == 2 - right
    out = typed("b\n")  # the input ends before ten rounds are over
    assert len(score()) == 4 and score()[:3] == [header, *rows]
    assert len({row.split(",")[1] for row in score()}) == 4, "the same question came again"
    assert re.search(r"[0-3] of 3 right", out)


def test_the_book_s_lines_stand_under_the_letter_that_counts(typed, parrot):
    out = typed("a\n" * 30, "--rounds", "30")
    rows = [row.split(",") for row in score()[1:]]
    shown = re.split(r"\n\d+ of 30\n", out)[1:]
    for (_, place, book, _), text in zip(rows, shown, strict=True):
        prompt, a, b = re.match(r"(.*)\na:\n(.*)\nb:\n(.*)\nWhich", text, re.DOTALL).groups()
        ways = {"a": a, "b": b}
        assert "Polly" in ways["ab".replace(book, "")] and "Polly" not in ways[book]
        plain = lambda text: re.sub(r"^    ", "", text.strip("\n"), flags=re.MULTILINE)
        begin = plain(ways[book]).removesuffix(" ...")
        assert HELD_OUT[int(place):].startswith(begin) and len(begin) > 100
        assert HELD_OUT[:int(place)].endswith(plain(prompt) + "\n"), "the prompt is what stands before it"
    books = [book for _, _, book, _ in rows]
    assert 5 < books.count("a") < 25, "the order is random"


def test_both_ways_are_cut_in_the_same_way():
    text = "word " * 100
    assert blind_test.shortened(text) == ("word " * 32).strip()
    assert blind_test.shortened("x" * 500) == "x" * 161, "no white space: there is nothing to cut at"
    assert blind_test.shortened("two words") == "two"


def test_the_prompt_is_made_of_whole_lines():
    place = len("".join(LINES[:60]))
    prompt = blind_test.prompt_before(TEXT, place)
    assert TEXT[:place].endswith(prompt) and prompt in TEXT
    assert "\n" + prompt in TEXT and 100 < len(prompt) <= 200


def test_what_is_no_answer_is_asked_again(typed, parrot):
    out = typed("c\n\nyes\na\n", "--rounds", "1")
    assert out.count("Please type a or b") == 3 and len(score()) == 2


def test_no_answer_at_all_ends_politely(typed, parrot):
    out = typed("")
    assert "1 of 10" in out and "2 of 10" not in out and "right" not in out
    assert not blind_test.SCORE.exists()


@pytest.mark.parametrize("right, n, words", [
    (10, 10, "you can tell them apart"), (70, 100, "you can tell them apart"), (7, 10, "that may be chance"),
    (0, 10, "you take the model for the book")])
def test_the_verdict_says_what_the_interval_allows(right, n, words):
    rows = [{"book": "a", "answer": "a"}] * right + [{"book": "a", "answer": "b"}] * (n - right)
    said = blind_test.verdict(rows)
    assert said.startswith(f"{right} of {n} right, {100 * right // n} %; guessing gives 50 %.")
    assert words in said
    if (right, n) == (7, 10):
        assert "40 to 89 %" in said
    if right == 0:
        assert "you get 0 to 28 %" in said


def test_models_have_scores_of_their_own(typed, parrot):
    Path("out").mkdir()
    blind_test.SCORE.write_text("model,place,book,answer\nanother,5,a,a\nanother,9,b,b\n")
    assert "of 1 right" in typed("a\n", "--rounds", "1")
    assert score()[1:3] == ["another,5,a,a", "another,9,b,b"] and len(score()) == 4


@pytest.mark.parametrize("content", [
    b"rubbish\n", b"\xff\xfe", b"model,place,book,answer\na,1,c,a\n", b"model,place,book,answer\na,1,b\n",
    b"model,place,book,answer\na,1,b,a,a\n", b"model,place,book,answer\na,1,b,a"])
def test_a_damaged_score_is_named_and_left_alone(typed, parrot, content):
    Path("out").mkdir()
    blind_test.SCORE.write_bytes(content)
    with pytest.raises(InputError, match=r"blind_test\.csv (is damaged|cannot be read): mend it, or move it"):
        typed("a\n")
    assert blind_test.SCORE.read_bytes() == content


def test_a_score_that_cannot_be_written_is_named(typed, parrot, monkeypatch):
    Path("out").write_text("a file in the way")
    with pytest.raises(InputError, match=r"out/blind_test\.csv cannot be written"):
        typed("a\n")


def test_the_best_gpt_that_has_not_seen_the_lines_takes_part():
    assert blind_test.best_model(TEXT) is None
    folder("out/good", 2.1)
    folder("out/better", 2.0)
    folder("out/foreign", 1.0, sha256="0" * 64)
    folder("out/without_log", 1.5)
    Path("out/without_log/log.csv").unlink()
    assert blind_test.best_model(TEXT) == Path("out/better")


def test_a_gpt_writes_the_other_lines(typed):
    folder("out/mine", 2.0)
    out = typed("a\nb\n", "--rounds", "2")
    name, = {row.split(",")[0] for row in score()[1:]}
    assert re.fullmatch(r"out/mine [0-9a-f]{8}", name) and f"All rounds with {name}" in out
    assert "may have seen" not in out
    folder("elsewhere", 2.0, sha256="0" * 64)
    assert "may have seen, as it learned" in typed("", "--model", "elsewhere")


def test_counting_writes_the_other_lines_where_no_gpt_is():
    name, write = blind_test.kneser_ney(TEXT, order=3)
    assert name == "modified Kneser-Ney 3"
    text = write("number 7,\n", seed=1)
    assert len(text) > 160 and set(text) <= set(TEXT) and text == write("number 7,\n", seed=1)
    assert text != write("number 7,\n", seed=2)


def test_main_refuses_what_is_no_option_or_no_model(typed, parrot):
    for argv, words in ((["--rounds", "0"], "--rounds"), (["--rounds", "x"], "--rounds"), (["10"], "10"),
                        (["--model", "nowhere"], "nowhere")):
        with pytest.raises(InputError, match=words):
            typed("a\n", *argv)


def test_main_needs_a_few_lines(typed, parrot, monkeypatch):
    monkeypatch.setattr(blind_test, "read_text", lambda name: TEXT[:2000])
    with pytest.raises(InputError, match="200 characters: too few"):
        typed("a\n")
