"""The main job around lesson 18: its command line, the folder it writes, the screen.

    DIR/model.safetensors, config.json, tokenizer.json    the model, as other programs open it (lesson 17)
    DIR/training.safetensors                              all that --resume needs, in one file
    DIR/log.csv, loss.png                                 how it went
"""
import argparse
import csv
import hashlib
import math
import os
import pathlib
import signal
import sys
import time
from dataclasses import dataclass

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lessons import devices
from lessons.errors import InputError, Parser, non_negative_int, positive_float, positive_int
from lessons.l05_tokenizer import char_tokenizer, gpt2_tokenizer, train_bpe
from lessons.l16_gpt import Config, count_flops, count_parameters
from lessons.l17_weights import load_state, save_model, save_state, write_atomically
from lessons.l18_training import RECIPES, Diverged, Trainer, split, train
from lessons.l19_generation import generate, text_pieces
from lessons.texts import read_text

FILES = {"model.safetensors", "config.json", "tokenizer.json", "training.safetensors", "log.csv", "loss.png"}
COLUMNS = ["step", "tokens", "train_loss", "val_loss", "bits_per_character", "learning_rate", "grad_norm",
           "tokens_per_second", "seconds"]
INTERIM_BLOCKS = 1000  # so many validation blocks are looked at on the way; the log's last row has all
NOTHING_YET = {"loss_sum": 0.0, "losses": 0, "busy": 0.0}  # since the log's last row; busy are seconds
LINE = ("step {step:5d}   loss {train_loss:.3f}   validation {val_loss:.3f} nats a token, "
        "[bold]{bits_per_character:.3f}[/] bits a character")
RUN = [  # what a run is: option, how it is read, what --help says
    ("--data", {}, "a text file, or the name of a text in data/ (default: shakespeare)"),
    ("--tokenizer", {"choices": ["bpe", "char", "gpt2"]}, "(default: bpe)"),
    ("--vocab-size", {"type": positive_int}, "how many tokens bpe makes (default: 512)"),
    ("--optimizer", {"choices": list(RECIPES)}, "(default: muon)"),
    ("--layers", {"type": positive_int}, "blocks (default: 4)"),
    ("--heads", {"type": positive_int}, "attention heads in a block (default: 4)"),
    ("--embd", {"type": positive_int}, "channels, a multiple of the heads (default: 128)"),
    ("--block", {"type": positive_int}, "tokens of context (default: 64)"),
    ("--batch", {"type": positive_int}, "rows in a step (default: the optimizer's recipe)"),
    ("--steps", {"type": positive_int}, "(default: the optimizer's recipe)"),
    ("--lr", {"type": positive_float}, "highest learning rate (default: the optimizer's recipe)"),
    ("--seed", {"type": non_negative_int}, "(default: 0)"),
    ("--eval-every", {"type": positive_int}, "steps between evaluations (default: a tenth of all steps)"),
    ("--save-every", {"type": positive_int}, "steps between checkpoints (default: as --eval-every)"),
]


def parse(argv):  # -> what was given of RUN, and the whole command line: two dicts
    parser = Parser("training", "Train a GPT on a text.")
    group = parser.add_argument_group("what the run is", argument_default=argparse.SUPPRESS)
    names = [group.add_argument(option, **how, help=text).dest for option, how, text in RUN]
    group = parser.add_argument_group("how and where")
    group.add_argument("--device", default="cpu", help="cpu (default), or numpy: the lessons' own lines")
    group.add_argument("--threads", type=positive_int, default=cores(), help="(default: one for each core)")
    group.add_argument("--out", metavar="DIR", help="(default: out/ and the text's name)")
    group.add_argument("--resume", action="store_true", help="go on where the run in DIR stopped")
    args = vars(parser.parse_args(argv))
    return {name: args[name] for name in names if name in args}, args


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def complete(given):
    """The settings of a new run: the defaults, the optimizer's recipe, and over them what was given."""
    recipe = RECIPES[given.get("optimizer", "muon")]
    settings = {"data": "shakespeare", "tokenizer": "bpe", "vocab_size": 512, "optimizer": "muon",
                "layers": 4, "heads": 4, "embd": 128, "block": 64, "batch": recipe.batch,
                "steps": recipe.steps, "lr": recipe.lr, "seed": 0} | given
    settings.setdefault("eval_every", max(1, settings["steps"] // 10))
    settings.setdefault("save_every", settings["eval_every"])
    if settings["tokenizer"] != "bpe" and "vocab_size" in given:
        raise InputError(f"--vocab-size is for --tokenizer bpe: {settings['tokenizer']} has its own size")
    if settings["embd"] % settings["heads"]:
        raise InputError(f"--embd {settings['embd']} is not a multiple of --heads {settings['heads']}: every "
                         "head takes an equal part of the channels")
    return settings


def new_folder(out):
    """An empty folder. A run in it is set aside, never overwritten; one with other files is refused."""
    try:
        if out.is_dir() and any(out.iterdir()):
            if not {path.name.removesuffix(".tmp") for path in out.iterdir()} <= FILES:
                raise InputError(f"--out {out} holds files of no training run: choose another folder")
            numbered = (out.with_name(f"{out.name}.{n}") for n in range(1, 10**6))
            aside = next(path for path in numbered if not path.exists())
            out.rename(aside)
            print(f"The earlier run in {out} is kept as {aside}.")
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.csv").write_text(",".join(COLUMNS) + "\n")
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out {out}: a file is in the way; choose another folder") from None
    except PermissionError:
        raise InputError(f"--out {out} may not be written to: choose another folder") from None


def stopped_run(out, given):
    """-> arrays, settings and progress of the run in a folder. InputError names settings that differ now."""
    arrays, saved = load_state(out / "training.safetensors")
    settings = saved["settings"]
    for name in {"eval_every", "save_every"} & set(given):  # these change nothing in the model
        settings[name] = given[name]
    differ = [f"--{name.replace('_', '-')} {value} (there: {settings.get(name)})"
              for name, value in given.items() if settings.get(name) != value]
    if differ:
        raise InputError(f"--resume: the run in {out} has other settings: {', '.join(differ)}; leave these "
                         "out, or train anew without --resume")
    return arrays, settings, saved["progress"]


def cut_log(log, step):
    """Forget what was logged after the checkpoint: it comes again."""
    lines = log.read_text().splitlines()[1:] if log.exists() else []
    whole = [line for line in lines if line.count(",") == len(COLUMNS) - 1]  # the last may be half a line
    kept = [line for line in whole if int(line.split(",")[0]) <= step]
    text = "\n".join([",".join(COLUMNS), *kept]) + "\n"
    write_atomically(log, lambda file: file.write_text(text))


@dataclass
class Job:
    """A run under way."""

    trainer: Trainer
    tokenizer: object
    training: np.ndarray  # tokens
    validation: np.ndarray
    characters: int  # of the validation text, less its first token: nothing predicts that one
    settings: dict
    progress: dict  # what the checkpoint keeps: its step, the seconds so far, NOTHING_YET's three
    out: pathlib.Path

    def save(self):
        """The checkpoint, then the model. If the disk is full, the files that were there stay."""
        progress = self.progress | {"step": self.trainer.steps}
        save_state(self.out / "training.safetensors", self.trainer.arrays(),
                   {"settings": self.settings, "progress": progress})
        self.progress["step"] = self.trainer.steps
        save_model(self.out, self.trainer.p, self.tokenizer)

    def kept(self):
        step = self.progress["step"]
        return f"the checkpoint of step {step} stays in {self.out}" if step else "no checkpoint was made yet"

    def step_tokens(self):
        return self.trainer.recipe.batch * self.trainer.p.config.block_size

    def speed(self):  # tokens a second since the log's last row
        return self.step_tokens() * self.progress["losses"] / self.progress["busy"]

    def log(self, norm, whole):
        """Evaluate, add a row to log.csv and return it."""
        trainer, progress, n = self.trainer, self.progress, len(self.validation)
        shown = n if whole else INTERIM_BLOCKS * trainer.p.config.block_size + 1
        nats = trainer.evaluate(self.validation[:shown])
        bits = nats / math.log(2) * (n - 1) / self.characters
        loss, lr = progress["loss_sum"] / progress["losses"], trainer.recipe.lr * trainer.rate()
        values = [trainer.steps, trainer.steps * self.step_tokens(), loss, nats, bits, lr, norm, self.speed(),
                  progress["seconds"]]
        with open(self.out / "log.csv", "a") as file:
            file.write(",".join(f"{x:.7g}" if isinstance(x, float) else str(x) for x in values) + "\n")
        progress |= NOTHING_YET
        return dict(zip(COLUMNS, values, strict=True))

    def train(self):
        """The steps that are left, with a bar. -> the log's last row, or None where Ctrl-C stopped it."""
        trainer, progress, stop, row = self.trainer, self.progress, [], None
        steps, begin = trainer.recipe.steps, time.perf_counter() - progress["seconds"]

        def interrupted(*_):  # the step is finished first; a second Ctrl-C ends at once
            stop.append(True)
            signal.signal(signal.SIGINT, default)

        default = signal.signal(signal.SIGINT, interrupted)
        with Progress(BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
                      TextColumn("{task.fields[speed]:,.0f} tokens/s"), TimeRemainingColumn()) as screen:
            bar = screen.add_task("", total=steps, completed=trainer.steps, loss=math.nan, speed=math.nan)
            mark = time.perf_counter()
            for loss, norm in train(trainer, self.training, self.settings["seed"]):
                now, last = time.perf_counter(), trainer.steps == steps
                progress["loss_sum"] += loss
                progress["losses"] += 1
                progress["busy"] += now - mark
                progress["seconds"] = now - begin
                screen.update(bar, completed=trainer.steps, speed=self.speed(),
                              loss=progress["loss_sum"] / progress["losses"])
                if last or trainer.steps % self.settings["eval_every"] == 0:
                    row = self.log(norm, whole=last)
                    screen.console.print(LINE.format(**row))
                if last or stop or trainer.steps % self.settings["save_every"] == 0:
                    self.save()
                if stop:
                    break
                mark = time.perf_counter()
        signal.signal(signal.SIGINT, default)
        return row if trainer.steps == steps else None


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
    axes.plot(steps, [row["val_loss"] for row in log], "o-", ms=3, color="tab:blue", label="validation")
    axes.annotate(f"{last['bits_per_character']:.3f} bits a character", (steps[-1], last["val_loss"]),
                  (-4, 24), textcoords="offset points", ha="right", color="tab:blue")
    axes.set(xlabel=f"step ({last['tokens'] / last['step']:,.0f} tokens each)", ylabel="loss, nats a token",
             title=f"{out.name}, {last['seconds']:.0f} seconds")
    right = axes.secondary_yaxis("right", functions=(lambda nats: nats * ratio, lambda bits: bits / ratio))
    right.set_ylabel("bits a character")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / "loss.png", dpi=120)


def prepare(argv):  # -> Job
    """All that can be wrong is found here, before anything is written. InputError says what it is."""
    given, args = parse(argv)
    out = pathlib.Path(args["out"] or f"out/{pathlib.Path(given.get('data', 'shakespeare')).stem}")
    ops = devices.ops(args["device"])
    if args["resume"]:
        arrays, settings, progress = stopped_run(out, given)
    else:
        settings, progress = complete(given), {"step": 0, "seconds": 0.0} | NOTHING_YET
    text = read_text(settings["data"])
    digest = hashlib.sha256(text.encode()).hexdigest()
    if settings.setdefault("sha256", digest) != digest:
        raise InputError(f"--resume: {settings['data']} is no longer the text that the run in {out} reads")
    if settings["tokenizer"] == "bpe":  # it must not see the validation text either
        tokenizer = train_bpe(split(text)[0], settings["vocab_size"])
    else:
        tokenizer = char_tokenizer(text) if settings["tokenizer"] == "char" else gpt2_tokenizer()
    training, validation = (tokenizer.encode(part) for part in split(text))
    if len(training) <= settings["block"] or len(validation) < 2:
        raise InputError(f"{settings['data']} is too short: it has {len(training)} tokens to train on, and "
                         f"--block {settings['block']} needs more; give a longer text or a smaller block")
    config = Config(tokenizer.vocab_size, *(settings[name] for name in ("block", "layers", "heads", "embd")))
    recipe = RECIPES[settings["optimizer"]]
    recipe = recipe._replace(batch=settings["batch"], steps=settings["steps"], lr=settings["lr"],
                             adam_lr=recipe.adam_lr * settings["lr"] / recipe.lr,
                             warmup=min(recipe.warmup, settings["steps"] // 5))
    threads = min(args["threads"], recipe.batch)
    trainer = Trainer(ops, config, settings["optimizer"], recipe, threads, settings["seed"])
    if args["resume"]:
        trainer.restore(arrays, progress["step"])
        cut_log(out / "log.csv", trainer.steps)
    else:
        new_folder(out)
    characters = len(split(text)[1]) - len(tokenizer.decode(validation[:1]))
    job = Job(trainer, tokenizer, training, validation, characters, settings, progress, out)
    flops = count_flops(config, recipe.steps * job.step_tokens())
    print(f"{settings['data']}: {len(text):,} characters, {len(training) + len(validation):,} tokens of "
          f"{config.vocab_size} kinds; the last tenth is for validation\n"
          f"GPT: {count_parameters(config):,} parameters; {recipe.steps} steps of {recipe.batch} x "
          f"{config.block_size} tokens, {flops:.1e} operations; {threads} threads")
    return job


def run(argv):
    """Train as the command line says, and show what came of it."""
    job = prepare(argv)
    trainer, out, settings = job.trainer, job.out, job.settings
    if trainer.steps == trainer.recipe.steps:
        print(f"The run in {out} is complete: all {trainer.steps} steps are done.")
        return
    try:
        row = job.train()
        if row is not None:
            draw(out)
    except Diverged as problem:
        raise InputError(f"{problem}; {job.kept()}. Train anew with a smaller rate: "
                         f"--lr {settings['lr'] / 3:.2g}") from None
    except OSError as problem:
        raise InputError(f"{problem.filename} could not be written: {problem.strerror}; {job.kept()}. "
                         "Make room, then go on with --resume, or anew") from None
    if row is None:
        print(f"Stopped and saved at step {trainer.steps} of {trainer.recipe.steps}. "
              f'To go on: make train ARGS="--resume --out {out}"', file=sys.stderr)
        sys.exit(130)
    sample = generate(trainer.ops, trainer.p, job.tokenizer.encode("\n"), 200, 0.8, 40, seed=settings["seed"])
    print(f"\nOn the whole validation text: {row['val_loss']:.4f} nats a token, "
          f"{row['bits_per_character']:.4f} bits a character, after {row['seconds']:.0f} s. It writes:\n")
    print("".join(text_pieces(job.tokenizer, sample)))
    print(f"\nIn {out}/: the model, training.safetensors for --resume, log.csv, loss.png\n"
          f"""More of its text: make generate ARGS="--model {out} --prompt 'ROMEO:'\"""")
