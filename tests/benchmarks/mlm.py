"""Masked language model: a training step of lesson 14's encoder, tokens a second against PyTorch's best.

Ours takes the padding out before the first block. What PyTorch gains by that is measured too ("end to end").
"""
import statistics
import tempfile
from contextlib import ExitStack

import numpy as np

from lessons.l14_encoder import mask_tokens
from tests.benchmarks.configs import CONFIGS
from tests.benchmarks.race import WorkerFailed, race, ratios, worker
from tests.benchmarks.report import spread, table, write
from tests.benchmarks.training import check

MUST_AIM = "1.2 / 1.4"
CONFIG, ROWS = CONFIGS["L"]
WORKERS = {"ours": ["mlm_ours"], "PyTorch eager": ["mlm_pytorch", "eager"],
           "PyTorch compiled": ["mlm_pytorch", "compiled"],
           "PyTorch, rows end to end": ["mlm_pytorch", "end_to_end"]}


def batches(steps=16):
    """[(inputs (B, T), targets (B, T), lengths (B,)), ...]: random tokens, from half a row to a full one."""
    rng, found = np.random.default_rng(0), []
    for _ in range(steps):
        tokens = rng.integers(0, CONFIG.vocab_size, (ROWS, CONFIG.block_size))
        lengths = rng.integers(CONFIG.block_size // 2, CONFIG.block_size + 1, ROWS)
        found.append((*mask_tokens(rng, tokens, lengths, CONFIG.vocab_size - 1, CONFIG.vocab_size), lengths))
    return found


def run(options):
    print("masked language model, real tokens a second: float32, AdamW, 2 threads")
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        asks, absent = {}, {}
        for name, command in WORKERS.items():
            try:
                asks[name] = stack.enter_context(worker(*command))
            except WorkerFailed as reason:
                absent[name] = str(reason)
        agreement = check(asks, ["mlm_pytorch", "float64"], folder)
        seconds = race(asks, options.rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    best = min((name for name in seconds if name != "ours"), key=median.get)
    against = {name: ratios(seconds[name], seconds["ours"]) for name in seconds if name != "ours"}
    tokens = np.mean([lengths.sum() for _, _, lengths in batches()])
    speed = {name: tokens / time for name, time in median.items()}
    rows = [[name, f"{speed[name]:,.0f}", spread(*against[name]) if name in against else "",
             MUST_AIM if name == best else "", f"{agreement[name]['gradient']:.1e}"] for name in seconds]
    rows += [[f"{name} is absent: {reason[:80]}", "", "", "", ""] for name, reason in absent.items()]
    table([f"L, {ROWS} rows of {CONFIG.block_size // 2} to {CONFIG.block_size}", "tokens a second",
           "ours is faster by", "must / aim", "worst gradient"], rows)
    write("mlm", {"tokens per second": speed, "best of PyTorch": best, "ratios": against, "seconds": seconds,
                  "agreement": agreement, "absent": absent}, options.rounds)
