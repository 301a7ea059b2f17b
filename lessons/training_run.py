"""The main job around lesson 18, from a command line to a trained model: its screen, what it saves when."""
import hashlib
import math
import pathlib
import shlex
import signal
import sys
import time
from dataclasses import dataclass

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lessons import devices
from lessons.errors import InputError
from lessons.generation_run import encode_prompt
from lessons.l05_tokenizer import char_tokenizer, train_bpe
from lessons.l16_gpt import count_flops, count_parameters
from lessons.l17_weights import save_model, save_state
from lessons.l18_training import RECIPES, Diverged, Trainer, split, train
from lessons.l19_generation import generate, text_pieces
from lessons.parameters import Config
from lessons.run_folder import COLUMNS, add_to_log, cut_log, draw, held, new_folder, stopped_run
from lessons.texts import read_text
from lessons.tokenizer_json import gpt2_tokenizer, load_tokenizer
from lessons.training_options import changed, complete, parse

INTERIM_TOKENS = 128_000  # of the validation text, looked at on the way; the log's last row has all of it
NOTHING_YET = {"loss_sum": 0.0, "losses": 0, "busy": 0.0}  # since the log's last row; busy are seconds
LINE = ("step {step:5d}   loss {train_loss:.3f}   validation {val_loss:.3f}, "
        "[bold]{bits_per_character:.3f}[/] bits a character")


def spread(tokens, most):  # (n,) -> (at most `most`,)
    """All, or twenty pieces from all over the text: one part of it may be easier than the others."""
    if len(tokens) <= most:
        return tokens
    starts = np.linspace(0, len(tokens) - most // 20, 20).astype(int)
    return np.concatenate([tokens[start:start + most // 20] for start in starts])


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
        """The checkpoint comes last: where it says step N, all else in the folder is at least that far."""
        step, block = self.trainer.steps, self.trainer.p.config.block_size
        self.evaluate(self.validation[:4 * block + 1])
        save_model(self.out, self.trainer.p, self.tokenizer)
        if step == self.trainer.recipe.steps:
            draw(self.out)
        save_state(self.out / "training.safetensors", self.trainer.arrays(),
                   {"settings": self.settings, "progress": self.progress | {"step": step}})
        self.progress["step"] = step

    def evaluate(self, tokens):
        """Their mean loss in nats. Diverged if it is not finite: such a model is not logged and not saved."""
        nats = self.trainer.evaluate(tokens)
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

    def log(self, norm, whole):
        """Evaluate, add a row to log.csv and return it."""
        trainer, progress, n = self.trainer, self.progress, len(self.validation)
        nats = self.evaluate(self.validation if whole else spread(self.validation, INTERIM_TOKENS))
        bits = nats / math.log(2) * (n - 1) / self.characters
        loss, lr = progress["loss_sum"] / progress["losses"], trainer.recipe.lr * trainer.rate()
        values = [trainer.steps, trainer.steps * self.step_tokens(), loss, nats, bits, lr, norm, self.speed(),
                  progress["seconds"]]
        add_to_log(self.out / "log.csv", values)
        progress |= NOTHING_YET
        return dict(zip(COLUMNS, values, strict=True))

    def train(self):
        """The steps that are left, with a bar. -> the log's last row, or None where Ctrl-C stopped it."""
        trainer, progress, stop, row = self.trainer, self.progress, [], None
        steps, begin = trainer.recipe.steps, time.perf_counter() - progress["seconds"]

        def interrupted(*_):
            screen.console.print("Finishing this step, then saving. Ctrl-C again stops at once.")
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
        return row if trainer.steps == steps else None

    def finish(self):
        """Train, and show what came of it."""
        trainer, out, recipe = self.trainer, self.out, self.trainer.recipe
        ctrl_c = signal.getsignal(signal.SIGINT)
        try:
            row = self.train()
        except Diverged as problem:
            rate = min(recipe.lr, RECIPES[trainer.optimizer].lr) / 3
            raise InputError(f"{problem}; {self.kept()}. Train anew with a smaller rate: "
                             f"--lr {rate:.2g}") from None
        except KeyboardInterrupt:
            row = None
        finally:
            signal.signal(signal.SIGINT, ctrl_c)
        if row is None:
            again = f"--resume --out {shlex.quote(str(out))}"
            print(f'Stopped; {self.kept()}. To go on: make train ARGS="{again}"', file=sys.stderr)
            sys.exit(130)
        print(f"\nOn the whole validation text: {row['val_loss']:.4f} nats a token, "
              f"{row['bits_per_character']:.4f} bits a character, after {row['seconds']:.0f} s. It writes:\n")
        start = encode_prompt(self.tokenizer, "")
        sample = generate(trainer.ops, trainer.p, start, 200, 0.8, 40, seed=self.settings["seed"])
        print("".join(text_pieces(self.tokenizer, sample)))
        print(f"\nIn {out}/: the model, training.safetensors (for --resume), log.csv, loss.png\n"
              f'More of its text: make generate ARGS="--model {shlex.quote(str(out))} --seed 1"')


def prepare(settings, tokenizer, out):  # -> Job
    """Text, tokens, model. InputError if they do not go together; nothing is written yet."""
    text, ops = read_text(settings["data"]), devices.ops(settings["device"])
    parts = split(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if settings.setdefault("sha256", digest) != digest:
        raise InputError(f"--resume: {settings['data']} is no longer the text that the run in {out} reads")
    if tokenizer is None and settings["tokenizer"] == "bpe":  # it must not see the validation text either
        tokenizer = train_bpe(parts[0], settings["vocab_size"])
    elif tokenizer is None:
        tokenizer = char_tokenizer(text) if settings["tokenizer"] == "char" else gpt2_tokenizer()
    training, validation = map(tokenizer.encode, parts)
    characters = len(parts[1]) - len(tokenizer.decode(validation[:1]))
    if len(training) <= settings["block"] or characters < 1 or tokenizer.vocab_size < 2:
        kinds, block = tokenizer.vocab_size, settings["block"]
        raise InputError(f"{settings['data']} is too short: its {len(text)} characters are {len(training)} "
                         f"tokens of {kinds} kinds to train on, --block {block} needs more; give a longer "
                         "text, a smaller --block or --vocab-size, or --tokenizer char")
    config = Config(tokenizer.vocab_size, *(settings[name] for name in ("block", "layers", "heads", "embd")))
    recipe = RECIPES[settings["optimizer"]]
    recipe = recipe._replace(batch=settings["batch"], steps=settings["steps"], lr=settings["lr"],
                             warmup=min(recipe.warmup, settings["steps"] // 5))
    threads = min(settings["threads"], recipe.batch)
    trainer = Trainer(ops, config, settings["optimizer"], recipe, threads, settings["seed"])
    progress = {"step": 0, "seconds": 0.0} | NOTHING_YET
    job = Job(trainer, tokenizer, training, validation, characters, settings, progress, out)
    flops = count_flops(config, recipe.steps * job.step_tokens())
    print(f"text   {settings['data']}: {len(text):,} characters, the last tenth for validation\n"
          f"       = {len(training) + len(validation):,} tokens of {config.vocab_size:,} kinds\n"
          f"model  GPT with {count_parameters(config):,} parameters\n"
          f"steps  {recipe.steps:,} of {recipe.batch} x {config.block_size} tokens: {flops:.1e} operations, "
          f"{threads} threads\n")
    return job


def run(argv):
    """Train as the command line says."""
    given, out, resume = parse(argv)
    try:
        if not resume:
            job = prepare(complete(given), None, out)
            new_folder(out)
            with held(out):
                cut_log(out / "log.csv", 0)
                return job.finish()
        with held(out):
            arrays, settings, progress = stopped_run(out)
            job = prepare(changed(settings, given, out), load_tokenizer(out / "tokenizer.json"), out)
            job.trainer.restore(arrays, progress["step"])
            job.progress = progress
            if progress["step"] == job.trainer.recipe.steps:
                return print(f"The run in {out} is complete: all {progress['step']} steps are done.")
            cut_log(out / "log.csv", progress["step"])
            return job.finish()
    except MemoryError:
        raise InputError("this training does not fit into memory: choose a smaller --batch, --embd, "
                         "--layers, --block or --vocab-size") from None
    except OSError as problem:
        raise InputError(f"{problem.filename or out} could not be written: {problem.strerror}. What was "
                         "saved before stays; make room, then go on with --resume, or start anew") from None
