"""The folder of a training run, and how nothing in it gets lost.

    model.safetensors, config.json, tokenizer.json    the model, as other programs open it (lesson 17)
    training.safetensors                              all that --resume needs, in one file
    log.csv, loss.png                                 how it went
"""
import contextlib
import csv
import math
import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from lessons.errors import InputError
from lessons.l17_weights import load_state, write_atomically
from lessons.recipes import CLIP

FILES = {"model.safetensors", "config.json", "tokenizer.json", "training.safetensors", "log.csv", "loss.png"}
COLUMNS = ["step", "tokens", "train_loss", "val_loss", "bits_per_character", "learning_rate", "grad_norm",
           "tokens_per_second", "seconds"]  # two are empty where the validation text was not looked at
HEADER = ",".join(COLUMNS)


def new_folder(out):
    """An empty folder. A run in it is set aside, never overwritten; one with other files is refused."""
    try:
        if out.is_dir() and any(out.iterdir()):
            if not {path.name.removesuffix(".tmp") for path in out.iterdir()} <= FILES:
                raise InputError(f"--out {out} holds files of no training run: choose another folder")
            with held(out):
                aside = set_aside(out)
            print(f"The earlier run in {out} is kept as {aside}.")
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out {out}: a file is in the way; choose another folder") from None
    except OSError as problem:
        raise InputError(f"{out} cannot be written: {problem.strerror}; choose another --out") from None


def set_aside(path):  # -> its new name
    """A file or folder gets .1, .2, ... behind its name, whichever is free first: nothing is overwritten."""
    path = path.absolute()
    numbered = (path.with_name(f"{path.name}.{n}") for n in range(1, 10**6))
    aside = next(name for name in numbered if not name.exists())
    path.rename(aside)
    return os.path.relpath(aside)


@contextlib.contextmanager
def held(out):
    """Keep a second training out of a folder: InputError for whoever comes later."""
    if not out.is_dir():
        raise InputError(f"there is no training run in {out}: name its folder with --out, or train anew")
    if fcntl is None:  # there two trainings in one folder go unnoticed
        yield
        return
    folder, ours = os.open(out, os.O_RDONLY), False
    try:
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours until it is closed or the process ends
            ours = os.path.samestat(os.fstat(folder), os.stat(out))  # no: it was set aside a moment ago
        if not ours:
            raise InputError(f"another training is writing to {out}: wait for it, or choose another")
        yield
    finally:
        os.close(folder)


def stopped_run(out):
    """-> arrays, settings, progress: what a run has saved in its folder."""
    path = out / "training.safetensors"
    arrays, saved = load_state(path)
    if set(saved) != {"settings", "progress"}:
        raise InputError(f"{path} holds something else than a training of lesson 18: name another folder")
    return arrays, saved["settings"], saved["progress"]


def cut_log(log, step):
    """Forget what was logged after the checkpoint of that step: it comes again. Step 0: an empty log.
    InputError if it holds something else than rows; only the last may be half a one."""
    try:
        if log.exists() and not log.is_file():
            raise ValueError("it is no file")  # a pipe would keep us waiting
        text = log.read_text("utf-8") if log.exists() else ""
        header, *rows = text.splitlines() or [HEADER]
        if rows and not (text.endswith("\n") or is_row(rows[-1])):
            rows.pop()
        if header != HEADER or not all(map(is_row, rows)):
            raise ValueError("not all lines are rows of its table")
    except (OSError, ValueError) as problem:
        raise InputError(f"{log} is damaged ({problem}): mend it, or move it away") from None
    kept = "\n".join([HEADER, *(row for row in rows if int(row.split(",")[0]) <= step), ""])
    write_atomically(log, lambda file: file.write_text(kept))


def is_row(line):
    """Nine finite numbers, of which two may be missing."""
    cells = line.split(",")
    try:
        finite = all(math.isfinite(float(cell or 0)) for cell in cells)
    except ValueError:
        return False
    return finite and len(cells) == len(COLUMNS) and cells[0].isdecimal() and "" not in cells[:3] + cells[5:]


def add_to_log(log, values):
    """A row, onto the disk at once: the checkpoint that follows must find it there. None: an empty cell."""
    cells = ["" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)
             for value in values]
    try:
        with open(log, "a") as file:
            file.write(",".join(cells) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        problem.filename = str(log)  # a full disk is met where no name is known
        raise


def read_log(out):  # -> [{column: number}, ...]; what is empty is left out
    with open(out / "log.csv") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def draw(out):
    """loss.png from log.csv: loss, learning rate and norm of the gradient, one above the other."""
    from matplotlib.figure import Figure
    log = read_log(out)
    judged, last = [row for row in log if "val_loss" in row], log[-1]
    ratio = last["bits_per_character"] / last["val_loss"]
    figure = Figure(figsize=(7, 6), layout="constrained")
    panels = loss, rate, norm = figure.subplots(3, sharex=True, height_ratios=[5, 1, 1])
    for axes, column, rows, look in [
            (loss, "train_loss", log, "tab:gray"), (loss, "val_loss", judged, "o-"),
            (rate, "learning_rate", log, "tab:green"), (norm, "grad_norm", log, "tab:red")]:
        axes.plot([row["step"] for row in rows], [row[column] for row in rows], look, ms=4)
    loss.legend(["training", f"validation, {last['bits_per_character']:.3f} bits a character at the end"])
    loss.set_ylabel("nats a token")
    bits = loss.secondary_yaxis("right", functions=(lambda nats: nats * ratio, lambda bits: bits / ratio))
    bits.set_ylabel("bits a character")
    norm.axhline(CLIP, color="black", lw=1, ls=":")
    norm.set_xlabel(f"step ({last['tokens'] / last['step']:,.0f} tokens each)")
    titles = f"loss, {last['seconds']:.0f} seconds", "learning rate", f"gradient norm, clipped above {CLIP:g}"
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize="medium")
        axes.grid(alpha=0.3)
        axes.margins(x=0.01)
    for axes in rate, norm:
        axes.set_ylim(0, None)
    figure.savefig(out / "loss.png", dpi=120)
