"""Generation: tokens a second of one text, float32 and int8, and a prompt, against PyTorch and the memory."""
import statistics
import tempfile
from contextlib import ExitStack

import numpy as np

from lessons import devices
from lessons.decoding import rounded
from lessons.l16_gpt import gpt_forward
from lessons.parameters import Parameters
from tests.benchmarks import configs
from tests.benchmarks.bandwidth import BYTES
from tests.benchmarks.decode_ours import positions
from tests.benchmarks.race import WorkerFailed, race, ratios, worker
from tests.benchmarks.report import spread, table, write

KEY = "M"
WRITE = {"float32": ["decode_ours", "float32"], "int8": ["decode_ours", "int8"],
         "gpt_forward, token by token": ["decode_ours", "composed"],
         "PyTorch eager": ["decode_pytorch", "eager"], "PyTorch compiled": ["decode_pytorch", "compiled"]}
READ = {"whole, BLAS of 2 threads": ["decode_ours", "whole"],
        "two pieces, BLAS of 1 thread each": ["decode_ours", "pieces"],
        "PyTorch": ["decode_pytorch", "prompt"]}
MUST_AIM = {"float32": "2 / 3.5", "int8": "1.5 / 2.2", "limit": "aim 85 %", "prompt": "1 / 1.3"}
LOGITS = 1e-4  # largest error of a logit, in standard deviations of all


def run(options):
    config, _ = configs.CONFIGS[KEY]
    tokens = {name: len(positions(config)) if name in WRITE else config.block_size for name in WRITE | READ}
    print(f"generation: {KEY}, one text, float32 if not said otherwise, 2 threads")
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        asks, absent = {}, {}
        for name, command in (WRITE | READ).items():
            try:
                asks[name] = stack.enter_context(worker(*command, KEY))
            except WorkerFailed as reason:
                absent[name] = str(reason)
        agreement = {name: check(name, ask, folder, config) for name, ask in asks.items()}
        asks["memory"] = stack.enter_context(worker("bandwidth"))
        seconds = race(asks, options.rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    best = min((name for name in WRITE if "PyTorch" in name and name in seconds), key=median.get)
    limit = [bytes_read(config) / BYTES * time for time in seconds["memory"]]
    share = ratios(limit, seconds["float32"])
    results = {"tokens per second": {name: tokens[name] / median[name] for name in asks if name != "memory"},
               "gigabytes per second": BYTES / median["memory"] / 1e9, "share of the limit": share,
               "best of PyTorch": best, "agreement": agreement, "absent": absent, "seconds": seconds}
    rows = []
    for name in WRITE | READ:
        if name in absent:
            rows.append([f"{name} is absent: {absent[name][:60]}", "", "", "", ""])
            continue
        base = best if name in WRITE else "PyTorch"
        faster = "" if "PyTorch" in name else f"{spread(*ratios(seconds[base], seconds[name]))} {base}"
        must = "" if "PyTorch" in name else MUST_AIM["prompt"] if name in READ else \
            MUST_AIM["float32"] if name == "float32" else ""
        rows.append([name, f"{tokens[name] / median[name]:,.0f}", faster, must, f"{agreement[name]:.1e}"])
    rows.append(["int8", "", f"{spread(*ratios(seconds['float32'], seconds['int8']))} float32",
                 MUST_AIM["int8"], ""])
    table(["", "tokens a second", "faster by", "must / aim", "worst logit"], rows)
    middle, low, high = share
    n = tokens["float32"]
    print(f"  float32 reads {bytes_read(config) / n / 1e6:.1f} MB a token; memory gives "
          f"{results['gigabytes per second']:.0f} GB/s, so the limit is {n / statistics.median(limit):,.0f} "
          f"tokens a second; share {middle:.0%} [{low:.0%} .. {high:.0%}] ({MUST_AIM['limit']})")
    write("generation", results, options.rounds)


def check(name, ask, folder, config):
    """The largest error of a logit against float64, in standard deviations; SystemExit above LOGITS."""
    p = configs.start_parameters(config)
    p = rounded(p) if name == "int8" else p
    p = Parameters(config, p.flat.astype(np.float64))
    ask("check", f"{folder}/got.npy")
    got, text = np.load(f"{folder}/got.npy"), configs.batches(config, 1, 1)[0, 0]
    want = gpt_forward(devices.ops("numpy"), p, text)[0][0, -len(got):]
    error = float(np.abs(got - want).max() / want.std())
    if not error <= LOGITS:
        raise SystemExit(f"{name} is not timed, for it is wrong: a logit is off by {error:.1e} deviations")
    return error


def bytes_read(config):
    """In one step of float32: for each token the weights, and the keys and values up to its own."""
    weights = sum(view.size for name, view in Parameters(config).views.items() if name != "wpe.weight")
    return 4 * sum(weights + config.n_layer * 2 * config.n_embd * (t + 1) for t in positions(config))
