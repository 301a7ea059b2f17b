"""A training under way (lesson 18): what it shows, logs and saves when, and how it is stopped."""
import contextlib
import math
import os
import pathlib
import signal
import time
from dataclasses import dataclass

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lessons.l17_weights import save_model, save_state
from lessons.l18_training import Diverged, Trainer, evaluate, train
from lessons.parameters import on_host
from lessons.run_folder import COLUMNS, add_to_log, draw
from lessons.training_text import spread

INTERIM_TOKENS = 128_000  # of the validation text, looked at on the way; the log's last row has all of it
NOTHING_YET = {"loss_sum": 0.0, "norm_sum": 0.0, "losses": 0, "busy": 0.0}  # since the last row
LINE = ("step {step:5d}   loss {train_loss:.3f}   validation {val_loss:.3f}, "
        "[bold]{bits_per_character:.3f}[/] bits a character")


def tell(say, text):
    """say(text); when the terminal was closed, to nobody: then both outputs lead nowhere from now on."""
    try:
        say(text)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in 1, 2:
            os.dup2(nowhere, descriptor)


def print_now(text):
    try:
        print(text, flush=True)
    except RuntimeError:  # the signal came in the middle of a print, which cannot be called twice
        os.write(1, f"{text}\n".encode())


@contextlib.contextmanager
def stop_signals():
    """Yields a list, in which the first Ctrl-C, SIGTERM (from a job scheduler) or SIGHUP (the terminal was
    closed) is noted, no more. A second Ctrl-C or SIGTERM does what it did before, so it stops at once.
    What was ignored stays so, as SIGHUP under nohup. Windows has no SIGHUP."""
    numbers = signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    came = []

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number, frame):
        came.append(number)
        restore()
        if number not in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the shell sends another one
        tell(print_now, "Finishing this step, then saving. A second Ctrl-C or SIGTERM stops at once.")

    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        restore()


@dataclass
class Job:
    """A run under way."""

    trainer: Trainer
    tokenizer: object
    training: np.ndarray  # tokens
    validation: np.ndarray
    characters: int  # of the validation text, less its first token: nothing predicts that one
    settings: dict
    progress: dict  # what the checkpoint keeps: its step, the seconds so far; NOTHING_YET's four
    out: pathlib.Path

    def due(self, every):
        """Is this step one of every so many, or the last?"""
        return self.trainer.steps % every == 0 or self.trainer.steps == self.trainer.recipe.steps

    def save(self):
        """The checkpoint comes last: where it says step N, all else in the folder is at least that far."""
        step, block = self.trainer.steps, self.trainer.p.config.block_size
        self.loss(self.validation[:4 * block + 1])
        save_model(self.out, on_host(self.trainer.p), self.tokenizer)
        if step == self.trainer.recipe.steps:
            draw(self.out)
        save_state(self.out / "training.safetensors", self.trainer.arrays(),
                   {"settings": self.settings, "progress": self.progress | {"step": step}})
        self.progress["step"] = step

    def loss(self, tokens):
        """Their mean loss in nats. Diverged if it is not finite: such a model is not logged and not saved."""
        nats = evaluate(self.trainer, tokens)
        if not math.isfinite(nats):
            raise Diverged(f"after step {self.trainer.steps} the loss on the validation text is {nats}")
        return nats

    def kept(self):
        step = self.progress["step"]
        return f"the checkpoint of step {step} is in {self.out}" if step else "no checkpoint was made yet"

    def step_tokens(self):
        return self.trainer.recipe.batch * self.trainer.p.config.block_size

    def speed(self):  # tokens a second since the log's last row
        return self.step_tokens() * self.progress["losses"] / self.progress["busy"]

    def log(self, nats=None):
        """Add a row to log.csv: means since the last one, and the loss on validation text if it was taken."""
        trainer, progress = self.trainer, self.progress
        loss, norm = (progress[name] / progress["losses"] for name in ("loss_sum", "norm_sum"))
        bits = nats and nats / math.log(2) * (len(self.validation) - 1) / self.characters
        values = [trainer.steps, trainer.steps * self.step_tokens(), loss, nats, bits,
                  trainer.recipe.lr * trainer.rate(trainer.steps), norm, self.speed(), progress["seconds"]]
        add_to_log(self.out / "log.csv", values)
        progress |= NOTHING_YET
        return dict(zip(COLUMNS, values, strict=True))

    def train(self, stop):
        """The steps that are left, with a bar, until `stop` has something in it. -> is the run complete?"""
        trainer, progress = self.trainer, self.progress
        every, save_every = self.settings["eval_every"], self.settings["save_every"]
        often = max(10, every // 10)  # about ten rows more: the picture needs them
        steps, begin, pending = trainer.recipe.steps, time.perf_counter() - progress["seconds"], []
        with Progress(BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
                      TextColumn("{task.fields[speed]:,.0f} tokens/s"), TimeRemainingColumn()) as screen:
            bar = screen.add_task("", total=steps, completed=trainer.steps, loss=math.nan, speed=math.nan)
            mark = time.perf_counter()
            for numbers in train(trainer, self.training, self.settings["seed"]):
                pending.append(numbers)
                due = any(map(self.due, (every, often, save_every)))
                if not (due or stop or len(pending) == 100 or time.perf_counter() - mark > 0.1):
                    continue
                for loss, norm in pending:  # on a GPU float() waits until they are there: not at every step
                    progress["loss_sum"] += float(loss)
                    progress["norm_sum"] += float(norm)
                progress["losses"] += len(pending)
                pending.clear()
                now = time.perf_counter()
                progress["busy"] += now - mark
                progress["seconds"] = now - begin
                screen.update(bar, completed=trainer.steps, speed=self.speed(),
                              loss=progress["loss_sum"] / progress["losses"])
                if self.due(every):
                    most = math.inf if trainer.steps == steps else INTERIM_TOKENS
                    row = self.log(self.loss(spread(self.validation, most)))
                    tell(screen.console.print, LINE.format(**row))
                elif self.due(often):
                    self.log()
                if stop or self.due(save_every):
                    self.save()
                if stop:
                    break
                mark = time.perf_counter()
        return trainer.steps == steps
