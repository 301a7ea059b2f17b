"""The league of lesson 20: every language model of the course on one text, in one unit.

Each predicts the last tenth of data/shakespeare.txt, every character from what precedes it, and has learned
from the rest. n-grams are counted here, as it takes no time; the others are read from out/, where their
lessons left them. A GPT is scored on overlapping windows: n-grams, too, see their whole context everywhere.
"""
import contextlib
import lzma
import math
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from lessons import devices
from lessons.errors import InputError, Parser
from lessons.generation_run import load
from lessons.l16_gpt import count_parameters
from lessons.l20_evaluation import bits_per_character, total_nats
from lessons.league_display import draw, duel, table
from lessons.run_folder import read_log, stopped_run
from lessons.texts import checksum, numbered, read_text, split

PICTURE = Path("out/lessons/league.png")
COUNTED = [("unigram", 1, False), ("bigram", 2, False),  # name, order, modified?
           *((f"Kneser-Ney {n}", n, False) for n in range(3, 7)),
           ("modified Kneser-Ney 6", 6, True), ("modified Kneser-Ney 7", 7, True)]
LINES = ["Kneser-Ney 6", "modified Kneser-Ney 7"]  # whom a GPT has to beat; the first is the picture's line
SAVED = [  # name, subject, file, what makes it
    ("HMM", "hmm", "out/hmm.npz", 'make lesson 3 ARGS="--train"'),
    ("decision trees", "decision_tree", "out/tree.npz", 'make lesson 4 ARGS="--train"'),
    ("RNN", "recurrent", "out/rnn.npz", 'make lesson 11 ARGS="--train rnn"'),
    ("LSTM", "recurrent", "out/lstm.npz", 'make lesson 11 ARGS="--train lstm"')]
GPTS = [("GPT, three minutes", "out/shakespeare", "make train"),
        ("GPT, below ten minutes", "out/ten",
         'make train ARGS="--block 128 --dropout 0.1 --steps 3600 --out out/ten"'),
        ("GPT, below half an hour", "out/thirty",
         'make train ARGS="--heads 6 --embd 192 --block 128 --dropout 0.15 --steps 6600 --out out/thirty"')]


class Row(NamedTuple):
    name: str
    size: int | None  # parameters, or counts that are kept
    seconds: float | None  # of training
    bits: float  # a character
    speed: float | None  # characters scored a second
    log: tuple = ()  # (seconds, bits) on the way there


def uniform(text):  # -> -ln p of a validation character
    """Every character is equally likely: p = 1 / K, with K different characters in the text."""
    return math.log(len(set(text)))


def compressor(text):  # -> -ln p of all validation characters together
    """xz: how many bits longer does the compressed text become by its last tenth? It looks for repetitions in
    all that precedes, and knows nothing about language."""
    short, long = (8 * len(lzma.compress(part.encode(), preset=6)) for part in (split(text)[0], text))
    return (long - short) * math.log(2)


def scored(name, size, seconds, nats, characters, log=()):
    """The row of a model. nats(m): -ln p of the first m of the validation characters together."""
    nats(min(characters, 2000))  # its kernels are loaded now, and its memory is there
    start = time.perf_counter()
    bits = bits_per_character(float(nats(characters)), characters)
    if not math.isfinite(bits):
        raise InputError("it answers NaN or infinity: train anew")
    return Row(name, size, seconds, bits, characters / (time.perf_counter() - start), log)


def by_characters(name, size, seconds, nats, codes):
    """nats(before, codes): -ln p of each. A thousand characters before the first are enough for all."""
    training, validation = split(codes)
    before = training[-1000:]
    return scored(name, size, seconds, lambda m: nats(before, validation[:m]).sum(), len(validation))


def counted(name, order, modified, codes):
    ops, lesson, V = devices.module("cpu", "ngrams"), devices.module("numpy", "ngrams"), int(codes.max()) + 1
    training, _ = split(codes)
    lesson.count(ops, training[:2000], V, order)  # its kernels are loaded now
    start = time.perf_counter()
    counts = lesson.count(ops, training, V, order)
    seconds = time.perf_counter() - start

    def nats(before, codes):
        return lesson.kneser_ney_nats(ops, counts, before, codes, order, modified)
    return by_characters(name, lesson.stored(counts, order), seconds, nats, codes)


def saved(name, subject, path, text):
    lesson, ops = devices.module("numpy", subject), devices.ops_with(subject)
    model, seconds = lesson.load(path, text)

    def nats(before, codes):
        return lesson.nats(ops, model, before, codes)
    return by_characters(name, lesson.parameters(model), seconds, nats, numbered(text)[0])


def gpt(name, folder, text):
    ops, (p, tokenizer), (training, validation) = devices.ops("cpu"), load(folder), split(text)
    T = p.config.block_size
    before = tokenizer.encode(training[-100 * T:])  # no token is so long that these are no T of them

    def nats(m):
        return total_nats(ops, p, before, tokenizer.encode(validation[:m]), max(1, T // 4))
    log = [(row["seconds"], row["bits_per_character"]) for row in judged(folder)]
    return scored(name, count_parameters(p.config), seconds_of_training(folder, text), nats,
                  len(validation), log)


def judged(folder):
    """The rows of a run's log.csv in which the validation text was looked at; none if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return [row for row in read_log(Path(folder)) if {"seconds", "bits_per_character"} <= row.keys()]
    return []


def seconds_of_training(folder, text):
    """How long the model was trained on the first nine tenths of this text; None if that is not known. One
    that was trained on another text may have seen the last tenth of this one."""
    with contextlib.suppress(InputError, KeyError):
        _, settings, progress = stopped_run(Path(folder))
        if settings["sha256"] == checksum(text):
            return progress["seconds"]
    return None


def league(text, folders, tell):  # folders: {name: GPT's folder} -> [Row, ...], the best last; [line, ...]
    """Everybody who is there. tell(line): who is scored now. The lines say what is damaged and left out."""
    codes, _ = numbered(text)
    rows = [Row("all equally likely", None, None, bits_per_character(uniform(text), 1), None),
            Row("xz, a compressor", None, None,
                bits_per_character(compressor(text), len(split(text)[1])), None)]
    entries = [(counted, model, codes) for model in COUNTED]
    entries += [(saved, model[:3], text) for model in SAVED if Path(model[2]).exists()]
    entries += [(gpt, model, text) for model in folders.items()]
    problems = []
    for score, model, data in entries:
        tell(f"scoring {model[0]}")
        try:
            rows.append(score(*model, data))
        except InputError as problem:
            problems.append(f"{model[0]} is left out: {problem}")
    return sorted(rows, key=lambda row: -row.bits), problems


def missing():
    """What is not trained yet -> [(name, command that does it), ...]"""
    there = [(name, path, command) for name, _, path, command in SAVED] + GPTS
    return [(name, command) for name, path, command in there if not Path(path).exists()]


def gpts(text, named):  # -> {name: folder}, [line, ...] of those that are damaged
    """The named folders, * at those that may have seen this text; or all in out/ that have learned from it,
    which are those that have not seen its last tenth."""
    if named:
        for folder in named:
            load(folder)  # a mistyped name is told now
        stars = ["" if seconds_of_training(folder, text) is not None else " *" for folder in named]
        return {f"GPT in {folder}{star}": folder for folder, star in zip(named, stars, strict=True)}, []
    found, problems = {}, []
    for folder in sorted(path.parent for path in Path("out").glob("*/training.safetensors")):
        try:
            stopped_run(folder)
        except InputError as problem:
            problems.append(f"GPT in {folder} is left out: {problem}")
        if seconds_of_training(folder, text) is not None:
            found[f"GPT in {folder}"] = folder
    return found, problems


def run(argv):
    parser = Parser("evaluation", "The league of language models on the last tenth of Shakespeare. "
                    "The word blind in place of folders starts a blind test of the best GPT.")
    parser.add_argument("folders", nargs="*", metavar="DIR", help="folders of GPTs (default: all in out/ "
                        "that have not seen this text), or blind and its options (blind --help)")
    text, console, named = read_text("shakespeare"), Console(highlight=False), parser.parse_args(argv).folders
    for folder in named:
        if not Path(folder).is_dir():
            raise InputError(f"there is no folder {folder}: name a GPT's, or type blind for the blind test")
    folders, damaged = gpts(text, named)
    print(f"{len(split(text)[1]):,} characters of Shakespeare, each guessed from what precedes it\n")
    with console.status("") as status:
        rows, problems = league(text, folders, lambda line: status.update(escape(line)))
    console.print(table(rows))
    print()
    if any(name.endswith("*") for name in folders):
        print("* trained on something else: it may have seen this text")
    counted = [row for row in rows if row.name in LINES]
    for line in [*(duel(row, counted) for row in rows if row.log and counted), *damaged, *problems,
                 *(f"{name}: not trained yet: {command}" for name, command in missing())]:
        print(line)
    draw(rows, LINES[0], PICTURE)
    print(f"picture: {PICTURE}")
