"""The table of operations: which lesson explains each, and which kernel does it fast.

A model takes `ops` and is written once; devices.ops("numpy") runs it on the lessons' own lines,
devices.ops("cpu") on kernels/cpu, devices.ops("cuda") on kernels/cuda. All rooms have the same names with the
same signatures.
"""
import importlib
import os
from types import SimpleNamespace

from kernels.cpu.memory import keep_freed_memory
from lessons.errors import InputError

LESSONS = {  # subject -> lesson, operations
    "embedding": ("l06_embedding", ["embedding_forward", "embedding_backward"]),
    "losses": ("l08_losses", ["cross_entropy"]),
    "optimizers": ("l10_optimizers", ["gradient_norm_squared", "sgd", "adamw", "muon"]),
    "attention": ("l12_attention", ["self_attention_forward", "self_attention_backward",
                                    "cross_attention_forward", "cross_attention_backward"]),
    "block": ("l13_block", ["linear_forward", "linear_backward", "linear_gelu_forward",
                            "linear_gelu_backward", "layernorm_forward", "layernorm_backward",
                            "dropout_forward", "dropout_backward"]),
    "decoding": ("decoding", ["decode_weights", "decode"]),
}
BEFORE = {  # the models before the transformer, on the CPU only: module("cpu", "hmm") has these operations
    "rules": ("l01_rules", ["most_probable_chart"]),
    "ngrams": ("l02_ngrams", ["count_grams", "interpolated"]),
    "hmm": ("l03_hmm", ["forward", "expected_counts", "viterbi"]),
    "decision_tree": ("l04_decision_tree", ["histograms", "best_question", "partition", "smooth",
                                            "find_leaves"]),
    "word_vectors": ("l07_word_vectors", ["train_skipgram", "train_glove"]),
    "recurrent": ("l11_recurrent", ["lstm_step_forward", "lstm_step_backward"]),
}
ROOMS = {"numpy": "lessons.{lesson}", "cpu": "kernels.cpu.{subject}",  # device -> the module of a subject
         "cuda": "kernels.cuda.{subject}"}


def ops(device):
    """A namespace of all operations on `device`, "numpy", "cpu" or "cuda". InputError for any other, and for
    "cuda" if there is no GPU."""
    if device not in ROOMS:
        raise InputError(f"there is no device {device!r}: choose one of {', '.join(ROOMS)}")
    if device == "cuda":
        from kernels.cuda.compiled import problem
        if why := problem():
            raise InputError(f"device cuda: {why}. Choose cpu, or read the kernels with `make lesson 26`")
    keep_freed_memory()
    table = {}
    for subject, (_, names) in LESSONS.items():
        table |= {name: getattr(module(device, subject), name) for name in names}
    return SimpleNamespace(**table)


def ops_with(subject):
    """Those of the CPU, and those of one of the models before the transformer."""
    kernels = module("cpu", subject)
    return SimpleNamespace(**vars(ops("cpu")),
                           **{name: getattr(kernels, name) for name in BEFORE[subject][1]})


def cores():
    """How many of the machine's this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def module(device, subject):
    """The module of one subject: the lesson itself, or its kernels."""
    lesson, _ = (LESSONS | BEFORE)[subject]
    return importlib.import_module(ROOMS[device].format(subject=subject, lesson=lesson))
