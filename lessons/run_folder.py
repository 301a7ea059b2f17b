"""The folder of a training run, and how nothing in it gets lost.

    model.safetensors, config.json, tokenizer.json    the model, as other programs open it (lesson 17)
    training.safetensors                              all that --resume needs, in one file
    log.csv, loss.png                                 how it went
"""
import contextlib
import csv
import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from lessons.errors import InputError
from lessons.l17_weights import load_state, write_atomically

FILES = {"model.safetensors", "config.json", "tokenizer.json", "training.safetensors", "log.csv", "loss.png"}
COLUMNS = ["step", "tokens", "train_loss", "val_loss", "bits_per_character", "learning_rate", "grad_norm",
           "tokens_per_second", "seconds"]


def new_folder(out):
    """An empty folder. A run in it is set aside, never overwritten; one with other files is refused."""
    try:
        if out.is_dir() and any(out.iterdir()):
            if not {path.name.removesuffix(".tmp") for path in out.iterdir()} <= FILES:
                raise InputError(f"--out {out} holds files of no training run: choose another folder")
            with held(out):
                path = out.absolute()
                numbered = (path.with_name(f"{path.name}.{n}") for n in range(1, 10**6))
                aside = next(name for name in numbered if not name.exists())
                path.rename(aside)
            print(f"The earlier run in {out} is kept as {aside}.")
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out {out}: a file is in the way; choose another folder") from None
    except OSError as problem:
        raise InputError(f"{out} cannot be written: {problem.strerror}; choose another one") from None


@contextlib.contextmanager
def held(out):
    """Keep a second training out of a folder: InputError for whoever comes later."""
    if not out.is_dir():
        raise InputError(f"there is no training run in {out}: name its folder with --out, or train anew")
    if fcntl is None:  # there two trainings in one folder go unnoticed
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when the process ends
        yield
    except BlockingIOError:
        raise InputError(f"another training is writing to {out}: wait for it, or choose another") from None
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
    """Forget what was logged after the checkpoint of that step: it comes again. Step 0: an empty log."""
    lines = log.read_text().splitlines()[1:] if log.exists() else []
    whole = [line for line in lines if line.count(",") == len(COLUMNS) - 1]  # the last may be half a line
    kept = [line for line in whole if int(line.split(",")[0]) <= step]
    text = "\n".join([",".join(COLUMNS), *kept]) + "\n"
    write_atomically(log, lambda file: file.write_text(text))


def add_to_log(log, values):
    """A row, onto the disk at once: the checkpoint that follows must find it there."""
    row = ",".join(f"{value:.7g}" if isinstance(value, float) else str(value) for value in values)
    try:
        with open(log, "a") as file:
            file.write(row + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        problem.filename = str(log)  # a full disk is met where no name is known
        raise


def draw(out):
    """loss.png from log.csv."""
    from matplotlib.figure import Figure
    with open(out / "log.csv") as file:
        log = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    steps, last = [row["step"] for row in log], log[-1]
    ratio = last["bits_per_character"] / last["val_loss"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, [row["train_loss"] for row in log], "o-", ms=3, color="tab:gray", label="training")
    axes.plot(steps, [row["val_loss"] for row in log], "o-", ms=3, color="tab:blue",
              label=f"validation, {last['bits_per_character']:.3f} bits a character at the end")
    axes.set(xlabel=f"step ({last['tokens'] / last['step']:,.0f} tokens each)", ylabel="loss, nats a token",
             title=f"{out.name}, {last['seconds']:.0f} seconds")
    right = axes.secondary_yaxis("right", functions=(lambda nats: nats * ratio, lambda bits: bits / ratio))
    right.set_ylabel("bits a character")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / "loss.png", dpi=120)
