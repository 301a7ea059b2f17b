"""The options of lesson 18's command line, and what they mean for a new run and for one that is resumed."""
import argparse
import pathlib

from lessons import devices
from lessons.errors import InputError, Parser, non_negative_int, number, positive_int
from lessons.recipes import RECIPES

learning_rate = number(float, lambda x: 0 < x < 1e30, "a number above 0")
dropout_rate = number(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")


def recipes(field):
    return ", ".join(f"{name} {getattr(recipe, field)}" for name, recipe in RECIPES.items())


OPTIONS = [  # option, how it is read, what --help says
    ("--data", {}, "a text file, or the name of a text in data/ (default: shakespeare)"),
    ("--tokenizer", {"choices": ["bpe", "char", "gpt2"]}, "learned, characters, or GPT-2's (default: bpe)"),
    ("--vocab-size", {"type": positive_int}, "how many tokens bpe makes (default: 512)"),
    ("--optimizer", {"choices": list(RECIPES)}, "lesson 10's (default: muon)"),
    ("--layers", {"type": positive_int}, "blocks (default: 4)"),
    ("--heads", {"type": positive_int}, "attention heads in a block (default: 4)"),
    ("--embd", {"type": positive_int}, "channels, a multiple of the heads (default: 128)"),
    ("--block", {"type": positive_int}, "tokens of context (default: 64)"),
    ("--batch", {"type": positive_int}, f"rows in a step (default: {recipes('batch')})"),
    ("--steps", {"type": positive_int}, f"(default: {recipes('steps')})"),
    ("--lr", {"type": learning_rate}, f"highest learning rate (default: {recipes('lr')})"),
    ("--dropout", {"type": dropout_rate},
     "share of what a block adds that training leaves out, against learning by heart (default: 0)"),
    ("--accumulate", {"type": positive_int},
     "compute a step's rows in so many parts, in turn: the same result in less memory (default: 1)"),
    ("--seed", {"type": non_negative_int}, "(default: 0)"),
    ("--device", {}, "cpu, cuda: an NVIDIA GPU, or numpy: the lessons' own lines (default: cpu)"),
    ("--threads", {"type": positive_int}, "(default: one for each core)"),
    ("--eval-every", {"type": positive_int}, "steps (default: a tenth of all, at least 100)"),
    ("--save-every", {"type": positive_int}, "steps between checkpoints (default: as --eval-every)"),
]
REORDER = {"device", "threads", "accumulate"}  # other values add up the same numbers in another order
FREE = REORDER | {"eval_every", "save_every"}  # what may be changed when a run is resumed


def parse(argv):  # -> settings, as far as given; folder; resume?
    parser = Parser("training", "Train a GPT on a text.")
    group = parser.add_argument_group("the run", argument_default=argparse.SUPPRESS)
    names = [group.add_argument(option, **how, help=text).dest for option, how, text in OPTIONS]
    group = parser.add_argument_group("its folder")
    group.add_argument("--out", metavar="DIR", help="(default: out/ and the text's name)")
    group.add_argument("--resume", action="store_true", help="go on where the run in DIR stopped")
    args = vars(parser.parse_args(argv))
    given = {name: args[name] for name in names if name in args}
    default = f"out/{pathlib.Path(given.get('data', 'shakespeare')).stem}"
    return given, pathlib.Path(args["out"] or default), args["resume"]


def complete(given):
    """The settings of a new run: the defaults, the optimizer's recipe, and over them what was given."""
    recipe = RECIPES[given.get("optimizer", "muon")]
    settings = {"data": "shakespeare", "tokenizer": "bpe", "vocab_size": 512, "optimizer": "muon",
                "layers": 4, "heads": 4, "embd": 128, "block": 64, "batch": recipe.batch,
                "steps": recipe.steps, "lr": recipe.lr, "dropout": 0.0, "accumulate": 1, "seed": 0,
                "device": "cpu", "threads": devices.cores()} | given
    settings.setdefault("eval_every", max(100, settings["steps"] // 10))
    settings.setdefault("save_every", settings["eval_every"])
    if settings["tokenizer"] != "bpe" and "vocab_size" in given:
        raise InputError(f"--vocab-size is for --tokenizer bpe: {settings['tokenizer']} has its own size")
    if settings["embd"] % settings["heads"]:
        raise InputError(f"--embd {settings['embd']} is not a multiple of --heads {settings['heads']}: every "
                         "head takes an equal part of the channels")
    return settings


def changed(settings, given, out):
    """The settings of a run that is resumed. InputError names those that cannot be changed any more."""
    differ = {name: f"--{name.replace('_', '-')} {value} (there: {settings.get(name)})"
              for name, value in given.items() if settings.get(name) != value}
    if wrong := [text for name, text in differ.items() if name not in FREE]:
        raise InputError(f"--resume: the run in {out} has other settings: {', '.join(wrong)}; leave these "
                         "out, or train anew without --resume")
    if other := [text for name, text in differ.items() if name in REORDER]:
        drawn = " and dropout leaves out other numbers" if settings["dropout"] else ""
        print(f"{', '.join(other)}: sums in another order{drawn}, so the last bits will differ.")
    return settings | given
