"""The main job around lesson 18, from a command line to a trained model and a look at it."""
import shlex
import sys

from lessons import devices
from lessons.errors import InputError
from lessons.generation_run import encode_prompt, text_pieces
from lessons.l16_gpt import count_flops, count_parameters
from lessons.l18_training import Diverged, Trainer
from lessons.l19_generation import generate
from lessons.parameters import Config, on_host
from lessons.recipes import RECIPES
from lessons.run_folder import cut_log, held, new_folder, read_log, stopped_run
from lessons.tokenizer_json import load_tokenizer
from lessons.training_job import NOTHING_YET, Job, stop_signals
from lessons.training_options import changed, complete, parse
from lessons.training_text import read_tokens


def prepare(settings, tokenizer, out):  # -> Job
    """Text, tokens, model. InputError if they do not go together; nothing is written yet."""
    ops = devices.ops(settings["device"])
    tokenizer, *text = read_tokens(settings, tokenizer, out)
    config = Config(tokenizer.vocab_size, *(settings[name] for name in ("block", "layers", "heads", "embd")))
    recipe = RECIPES[settings["optimizer"]]
    recipe = recipe._replace(batch=settings["batch"], steps=settings["steps"], lr=settings["lr"],
                             warmup=min(recipe.warmup, settings["steps"] // 5))
    options = {name: settings[name] for name in ("optimizer", "seed", "accumulate", "dropout")}
    if settings["device"] == "cuda":
        from lessons.gpu_trainer import GPUTrainer
        trainer, where = GPUTrainer(ops, config, recipe=recipe, **options), "on the GPU"
    else:
        options["threads"] = min(settings["threads"], recipe.batch)
        trainer, where = Trainer(ops, config, recipe=recipe, **options), f"{options['threads']} threads"
    progress = {"step": 0, "seconds": 0.0} | NOTHING_YET
    job = Job(trainer, tokenizer, *text, settings, progress, out)
    flops = count_flops(config, recipe.steps * job.step_tokens())
    print(f"model  GPT with {count_parameters(config):,} parameters\n"
          f"steps  {recipe.steps:,} of {recipe.batch} x {config.block_size} tokens: {flops:.1e} operations, "
          f"{where}\n")
    return job


def finish(job):
    """Train, and show what came of it."""
    trainer, recipe = job.trainer, job.trainer.recipe
    with stop_signals() as came:
        try:
            done = job.train(came)
        except Diverged as problem:
            rate = min(recipe.lr, RECIPES[trainer.optimizer].lr) / 3
            raise InputError(f"{problem}; {job.kept()}. Train anew with a smaller rate: "
                             f"--lr {rate:.2g}") from None
        except KeyboardInterrupt:
            done = False
    if not done:
        again = f"--resume --out {shlex.quote(str(job.out))}"
        print(f'Stopped; {job.kept()}. To go on: make train ARGS="{again}"', file=sys.stderr)
        sys.exit(128 + came[0])  # as a shell has it: 130 after Ctrl-C, 143 after SIGTERM
    report(job)


def report(job):
    rows = [row for row in read_log(job.out) if "val_loss" in row]
    last, best = rows[-1], min(rows, key=lambda row: row["val_loss"])
    print(f"\nOn the whole validation text: {last['val_loss']:.4f} nats a token, "
          f"{last['bits_per_character']:.4f} bits a character, after {last['seconds']:.0f} s.")
    if best["val_loss"] < 0.98 * last["val_loss"]:
        step, bits = int(best["step"]), best["bits_per_character"]
        print(f"At step {step} it was better: {bits:.4f}. Since then it learns the training text by heart.\n"
              f"Try --steps {step}, or a longer text.")
    start = encode_prompt(job.tokenizer, "")
    ops = devices.ops("cpu") if job.settings["device"] == "cuda" else job.trainer.ops
    sample = generate(ops, on_host(job.trainer.p), start, 200, 0.8, 40, seed=job.settings["seed"])
    text = "".join(text_pieces(job.tokenizer, sample)).rstrip("\ufffd")  # half a character at the end
    print(f"It writes:\n\n{text}\n\n"
          f"In {job.out}/: the model, training.safetensors (for --resume), log.csv, loss.png\n"
          f'More of its text: make generate ARGS="--model {shlex.quote(str(job.out))} --seed 1"')


def run(argv):
    """Train as the command line says."""
    given, out, resume = parse(argv)
    try:
        if not resume:
            job = prepare(complete(given), None, out)
            new_folder(out)
            with held(out):
                cut_log(out / "log.csv", 0)
                return finish(job)
        with held(out):
            arrays, settings, progress = stopped_run(out)
            job = prepare(changed(settings, given, out), load_tokenizer(out / "tokenizer.json"), out)
            job.trainer.restore(arrays, progress["step"])
            job.progress = progress
            if progress["step"] == job.trainer.recipe.steps:
                return print(f"The run in {out} is complete: all {progress['step']} steps are done.")
            cut_log(out / "log.csv", progress["step"])
            return finish(job)
    except MemoryError:
        raise InputError("this training does not fit into memory: choose a larger --accumulate, or a smaller "
                         "--batch, --embd, --layers, --block or --vocab-size") from None
    except BrokenPipeError:  # make train | head: who reads the screen has gone, the disk is well
        raise
    except OSError as problem:
        raise InputError(f"{problem.filename or out} could not be written: {problem.strerror}. What was "
                         "saved before stays; make room, then go on with --resume, or start anew") from None
