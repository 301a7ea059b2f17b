"""The league of lesson 20: every language model of the course on one text, in one unit, table and picture.

Each predicts the last tenth of data/shakespeare.txt, every character from what precedes it, and has learned
from the rest. n-grams are counted here, as it takes no time; the others are read from out/, where their
lessons left them. A GPT is scored on overlapping windows: n-grams, too, see their whole context everywhere.
"""
import contextlib
import lzma
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lessons import devices
from lessons.errors import InputError, Parser
from lessons.generation_run import load
from lessons.l16_gpt import count_parameters
from lessons.l20_evaluation import bits_per_character, perplexity, total_nats
from lessons.model_file import checksum
from lessons.run_folder import read_log, stopped_run
from lessons.texts import numbered, read_text, split

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
NANOGPT = 1.47 / math.log(2)  # its README's, on an A100: the same plays, in the edition of tiny Shakespeare


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
    lesson, kernels = devices.module("numpy", subject), devices.module("cpu", subject)
    ops = SimpleNamespace(**vars(devices.ops("cpu")),
                          **{op: getattr(kernels, op) for op in devices.BEFORE[subject][1]})
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


def table(rows):
    """One line each, as rich prints it."""
    lines = Table(box=None, pad_edge=False, collapse_padding=True)
    lines.add_column("", overflow="fold")
    for title in ("counts or\nparameters", "seconds of\ntraining", "bits a\ncharacter", "perplexity",
                  "characters\na second"):
        lines.add_column(title, justify="right")
    for row in rows:
        speed = row.speed and float(f"{row.speed:.2g}")  # no clock knows more
        numbers = row.size, row.seconds, row.bits, perplexity(row.bits * math.log(2), 1), speed
        formats = ",d", ".2g" if (row.seconds or 0) < 10 else ",.0f", ".3f", ".2f", ",.0f"
        lines.add_row(escape(row.name), *("" if x is None else format(x, how)
                                  for x, how in zip(numbers, formats, strict=True)))
    return lines


def duel(row, counted):  # a GPT's Row, [Row, ...] of those it is to beat -> a sentence
    """How long did it have to learn until its log has fewer bits than each of these?"""
    said = []
    for other in counted:
        after = next((f"after {seconds:,.0f} s" for seconds, bits in row.log if bits < other.bits), "never")
        said.append(f"{other.name} ({other.bits:.3f}) {after}")
    return f"{row.name} passes {', '.join(said)} (its log, in blocks side by side)"


def draw(rows, path):
    """Bits against seconds of training, and how each GPT came there."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes, points = figure.subplots(), [row for row in rows if row.seconds]
    for row in points:
        point, = axes.plot(row.seconds, row.bits, "o", zorder=3)
        if row.log:
            axes.plot(*zip(*row.log, strict=True), color=point.get_color(), lw=1)
    for row, (x, y) in zip(points, places([(row.seconds, row.bits) for row in points]), strict=True):
        axes.annotate(f"{row.name}, {row.bits:.3f}", (row.seconds, row.bits), (x, y), fontsize="small",
                      va="center", arrowprops={"arrowstyle": "-", "lw": 0.5, "shrinkA": 0},
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8})
    for row in rows:
        if row.name == LINES[0]:
            axes.axhline(row.bits, color="black", ls="--", lw=1, label=f"{row.name}: {row.bits:.3f}")
    axes.axhline(NANOGPT, color="black", ls=":", lw=1, label=f"nanoGPT, minutes on a GPU,\n"
                 f"another edition: {NANOGPT:.2f}")
    axes.plot([], [], color="gray", lw=1, label="a GPT as it learns, scored in blocks side by side\n"
              "(its point at the end: in overlapping windows)")
    axes.set(xscale="log", xlabel="seconds of training", ylabel="bits a character")
    axes.set_xlim(right=axes.get_xlim()[1] * 6)  # the labels need room
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def places(points):  # [(seconds, bits), ...] -> where their labels go, so that none lies on another
    """To the right of its point, and higher until no label is in the way: about a factor of 20 in seconds
    wide and 0.07 bits high. The best model chooses first."""
    taken = {}
    for x, y in sorted(points, key=lambda point: point[1]):
        left, height = x * 1.2, y
        near = [b for a, b in taken.values() if abs(math.log(left / a)) < math.log(20)]
        while any(abs(height - b) < 0.07 for b in near):
            height += 0.01
        taken[x, y] = left, height
    return [taken[point] for point in points]


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
    draw(rows, PICTURE)
    print(f"picture: {PICTURE}")
