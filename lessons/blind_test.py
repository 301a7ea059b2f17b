"""The blind test of lesson 20: can you tell a model's lines from Shakespeare's?

Each round shows lines from the last tenth of the text and two ways to go on: the book's, and a model's, in
random order. Bits a character say how well a model predicts; this asks a reader what its text is worth.
Whoever cannot tell them apart is right in half of the rounds, give or take what chance does: lesson 20's
interval says how much. The idea is Turing's imitation game (1950, section 1), by lines instead of talk.
"""
import csv
import hashlib
import io
import os
import re
import textwrap
from pathlib import Path

import numpy as np

from lessons import devices
from lessons.errors import InputError, Parser, positive_int
from lessons.generation_run import encode_prompt, load, text_pieces
from lessons.l19_generation import generate
from lessons.l20_evaluation import interval
from lessons.league import judged, seconds_of_training
from lessons.texts import numbered, read_text, split

SCORE = Path("out/blind_test.csv")
COLUMNS = ["model", "place", "book", "answer"]  # place: where the lines go on; the other two: a or b
PROMPT, CONTINUATION = 200, 160  # characters at most


def best_model(text):  # -> a folder, or None
    """Of the GPTs in out/ that have not seen the last tenth of the text, the one whose log ends lowest."""
    logs = {folder.parent: judged(folder.parent) for folder in sorted(Path("out").glob("*/model.safetensors"))
            if seconds_of_training(folder.parent, text) is not None}
    return min((folder for folder, log in logs.items() if log), default=None,
               key=lambda folder: logs[folder][-1]["bits_per_character"])


def gpt(folder):  # -> its name, (prompt, seed) -> text
    """The name has a checksum behind it: the score of one model is not the next one's in the same folder."""
    p, tokenizer = load(folder)
    digest = hashlib.sha256(Path(folder, "model.safetensors").read_bytes()).hexdigest()

    def write(prompt, seed):
        tokens = generate(devices.ops("cpu"), p, encode_prompt(tokenizer, prompt), CONTINUATION + 1, 0.8, 40,
                          seed=seed, threads=devices.cores())
        text = ""
        for piece in text_pieces(tokenizer, tokens):
            text += piece
            if len(text) > CONTINUATION:
                break
        return text
    return f"{folder} {digest[:8]}", write


def kneser_ney(text, order=6):  # -> its name, (prompt, seed) -> text
    ops, lesson = devices.module("cpu", "ngrams"), devices.module("numpy", "ngrams")
    codes, alphabet = numbered(text)
    levels = lesson.levels_of(lesson.count(ops, split(codes)[0], len(alphabet), order), order, True)

    def write(prompt, seed):
        before = np.array([alphabet.index(c) for c in prompt])
        new = lesson.sample(levels, len(alphabet), before, CONTINUATION + 1, np.random.default_rng(seed))
        return "".join(alphabet[code] for code in new)
    return f"modified Kneser-Ney {order}", write


def prompt_before(text, place):
    """Whole lines, at most PROMPT characters, that end at this place."""
    prompt = text[place - PROMPT:place]
    return prompt.split("\n", 1)[1] or prompt


def shortened(text):
    """At most CONTINUATION characters, up to a whole word: both ways to go on are cut in the same way."""
    text = text[:CONTINUATION + 1]
    return re.sub(r"\s+\S*$", "", text) or text


def answers():  # -> [{column: text}, ...], all that were ever given
    if not SCORE.exists():
        return []
    try:
        text = SCORE.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{SCORE} cannot be read: mend it, or move it away") from None
    rows = list(csv.DictReader(io.StringIO(text), COLUMNS))
    header = list(rows[0].values()) if rows else []
    good = [list(row) == COLUMNS and {row["book"], row["answer"]} <= {"a", "b"} for row in rows[1:]]
    if header != COLUMNS or not all(good) or not text.endswith("\n"):
        raise InputError(f"{SCORE} is damaged: mend it, or move it away")
    return rows[1:]


def keep(*row):
    """A row, onto the disk at once."""
    try:
        SCORE.parent.mkdir(exist_ok=True)
        with open(SCORE, "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([row] if file.tell() else [COLUMNS, row])
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise InputError(f"{SCORE} cannot be written: {problem.strerror}; move it away, or make room") \
            from None


def ask(question):  # -> a, b or q
    while True:
        try:
            answer = input(question).strip().lower()
        except (EOFError, UnicodeDecodeError):  # the input has ended, or was no text
            print()
            return "q"
        if answer in ("a", "b", "q"):
            return answer
        print("Please type a or b, or q to stop.")


def verdict(rows):  # of one model -> two sentences
    right, n = sum(row["book"] == row["answer"] for row in rows), len(rows)
    low, high = (100 * max(end, 0) for end in interval(right, n))
    told = ("you can tell them apart" if low > 50 else "you take the model for the book" if high < 50 else
            "that may be chance")
    return (f"{right} of {n} right, {100 * right / n:.0f} %; guessing gives 50 %.\n"
            f"Of all such pairs you get {low:.0f} to {high:.0f} % right (95 % confidence): {told}.")


def rounds(count, name, write, held_out, given):
    """Ask so many questions, or until the reader stops. The answers are added to `given` and to the file."""
    lines = [match.end() for match in re.finditer("\n", held_out)
             if PROMPT <= match.end() < len(held_out) - CONTINUATION]
    if not lines:
        raise InputError(f"the last tenth of the text has {len(held_out)} characters: too few for this test")
    for number in range(1, count + 1):
        seed = len(given)  # it goes on where it was stopped, with new questions
        rng = np.random.default_rng(seed)
        place, book, other = int(rng.choice(lines)), *rng.permutation(["a", "b"]).tolist()
        prompt = prompt_before(held_out, place)
        ways = {book: held_out[place:], other: write(prompt, seed)}
        print(f"\n{number} of {count}\n\n{textwrap.indent(prompt, '    ')}")
        for letter in "ab":
            print(f"{letter}:\n{textwrap.indent(shortened(ways[letter]), '    ')} ...\n")
        answer = ask("Which is the book's, a or b (q stops)? ")
        if answer == "q":
            break
        keep(name, place, book, answer)
        given.append({"model": name, "book": book, "answer": answer})
        print("Right." if answer == book else f"No, it is {book}.")


def run(argv):
    parser = Parser("evaluation blind", "Which lines are Shakespeare's, and which are a model's?")
    parser.add_argument("--rounds", metavar="N", type=positive_int, default=10, help="(default: 10)")
    parser.add_argument("--model", metavar="DIR",
                        help="a GPT's folder (default: the best in out/ that has not seen these lines; "
                             "if there is none, lesson 2's counting)")
    args, text, given = parser.parse_args(argv), read_text("shakespeare"), answers()
    folder = args.model or best_model(text)
    name, write = gpt(folder) if folder else kneser_ney(text)
    unsure = folder and seconds_of_training(folder, text) is None
    seen = "may have seen, as it learned from something else," if unsure else "has not learned from"
    print(f"Lines that {name} {seen} go on in two ways: its own, and the book's.")
    rounds(args.rounds, name, write, split(text)[1], given)
    if mine := [row for row in given if row["model"] == name]:
        print(f"\nAll rounds with {name} so far, in {SCORE}: {verdict(mine)}")
