"""Recurrent: an LSTM forward and backward, letters a second against torch.nn.LSTM."""
import statistics
import tempfile
from contextlib import ExitStack

import numpy as np

from tests.benchmarks.race import race, ratios, worker
from tests.benchmarks.report import spread, table, worst_gradient, write

MUST_AIM = "0.8 / 1.2"
LAYERS, HIDDEN, ROWS, LENGTH, THREADS = 2, 128, 64, 100, 2
WORKERS = {"ours": ["recurrent_ours"], "PyTorch": ["recurrent_pytorch", "float32"]}
GRADIENT = 1e-4  # relative: a wrong formula is off by far more, float32 by far less


def arrays():
    """x and dhs (T, B, H), and a layer's w_x, w_h (H, 4H) and bias (4H,) for each layer: {name: float32}."""
    rng, H = np.random.default_rng(0), HIDDEN
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    found = {"x": normal(LENGTH, ROWS, H), "dhs": normal(LENGTH, ROWS, H)}
    for n in range(LAYERS):
        found |= {f"{n}.w_x": normal(H, 4 * H) / H**0.5, f"{n}.w_h": normal(H, 4 * H) / H**0.5,
                  f"{n}.bias": normal(4 * H) / H**0.5}
    return {name: array.astype(np.float32) for name, array in found.items()}


def run(options):
    print(f"recurrent: an LSTM forward and backward, {LAYERS} layers of {HIDDEN}, {ROWS} rows of {LENGTH}, "
          f"float32, {THREADS} threads")
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        asks = {name: stack.enter_context(worker(*command)) for name, command in WORKERS.items()}
        agreement = check(asks, folder)
        seconds = race(asks, options.rounds)
    speed = {name: ROWS * LENGTH / statistics.median(times) for name, times in seconds.items()}
    against = ratios(seconds["PyTorch"], seconds["ours"])
    rows = [[name, f"{speed[name]:,.0f}", spread(*against) if name != "ours" else "",
             MUST_AIM if name != "ours" else "", f"{agreement[name]['gradient']:.1e}"] for name in seconds]
    table(["", "letters a second", "ours is faster by", "must / aim", "worst gradient"], rows)
    write("recurrent", {"letters per second": speed, "ratio": against, "seconds": seconds,
                        "agreement": agreement}, options.rounds)


def check(asks, folder):
    """Every worker's gradients against PyTorch's in float64. -> {name: the largest error, and its tensor}"""
    errors = {}
    with worker("recurrent_pytorch", "float64") as judge:
        judge("check", f"{folder}/want.npz")
    with np.load(f"{folder}/want.npz") as file:
        want = dict(file)
    for name, ask in asks.items():
        ask("check", f"{folder}/got.npz")
        with np.load(f"{folder}/got.npz") as got:
            gradient, tensor = worst_gradient(got, want)
        if not gradient <= GRADIENT:
            raise SystemExit(f"{name} is not timed, for it is wrong: gradient of {tensor} by {gradient:.1e}")
        errors[name] = {"gradient": gradient, "tensor": tensor}
    return errors
