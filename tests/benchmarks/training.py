"""Training: tokens a second against PyTorch's better of eager and compiled."""
import statistics
import tempfile
from contextlib import ExitStack

import numpy as np

from tests.benchmarks.configs import CONFIGS, tokens_per_step
from tests.benchmarks.race import WorkerFailed, race, ratios, worker
from tests.benchmarks.report import spread, table, worst_gradient, write

MUST_AIM = {"S": (1.3, 1.5), "M": (1.15, 1.3), "L": (1.3, 1.5)}
WORKERS = {"ours": ["ours"],
           "PyTorch eager": ["pytorch", "eager"], "PyTorch compiled": ["pytorch", "compiled"]}
LOSS, GRADIENT = 1e-4, 1e-4  # relative: a wrong formula is off by far more, float32 by far less


def run(options):
    print("training, tokens a second: float32, AdamW, 2 threads")
    results, rows = {}, []
    for key in options.configs:
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            asks, absent = {}, {}
            for name, command in WORKERS.items():
                try:
                    asks[name] = stack.enter_context(worker(*command, key))
                except WorkerFailed as reason:
                    absent[name] = str(reason)
            agreement = check(asks, ["pytorch", "float64", key], folder)
            seconds = race(asks, options.rounds)
        results[key] = compare(key, seconds) | {"agreement": agreement, "absent": absent}
        rows += lines(key, results[key])
    table(["", "tokens a second", "ours is faster by", "must / aim", "worst gradient"], rows)
    write("training", results, options.rounds)


def check(asks, right, folder):
    """Compare every worker's first losses and gradients with those of the worker `right`, in float64.
    -> {name: relative errors}"""
    errors = {}
    with worker(*right) as judge:
        want_losses = np.array(judge("check", f"{folder}/want.npz"))
    with np.load(f"{folder}/want.npz") as file:
        want = dict(file)
    for name, ask in asks.items():
        loss = np.abs(np.array(ask("check", f"{folder}/got.npz")) / want_losses - 1).max()
        with np.load(f"{folder}/got.npz") as got:
            gradient, tensor = worst_gradient(got, want)
        if not (loss <= LOSS and gradient <= GRADIENT):
            raise SystemExit(f"{name} is not timed, for it is wrong: losses off by {loss:.1e}, "
                             f"gradient of {tensor} by {gradient:.1e}")
        errors[name] = {"losses": float(loss), "gradient": gradient, "tensor": tensor}
    return errors


def compare(key, seconds):
    median = {name: statistics.median(times) for name, times in seconds.items()}
    best = min((name for name in seconds if name != "ours"), key=median.get)
    return {"tokens per second": {name: tokens_per_step(key) / time for name, time in median.items()},
            "best of PyTorch": best,
            "ratios": {name: ratios(seconds[name], seconds["ours"]) for name in seconds if name != "ours"},
            "seconds": seconds}


def lines(key, result):
    config, batch = CONFIGS[key]
    model = f"{key}: {config.n_layer} layers of {config.n_embd}, {batch} rows of {config.block_size}"
    yield [model, "", "", "", ""]
    for name, speed in result["tokens per second"].items():
        worst = f"{result['agreement'][name]['gradient']:.1e}"
        if name == "ours":
            yield [f"  {name}", f"{speed:,.0f}", "", "", worst]
        else:
            must = "{} / {}".format(*MUST_AIM[key]) if name == result["best of PyTorch"] else ""
            yield [f"  {name}", f"{speed:,.0f}", spread(*result["ratios"][name]), must, worst]
    for name, reason in result["absent"].items():
        yield [f"  {name} is absent: {reason[:80]}", "", "", "", ""]
