"""Worker: torch.nn.LSTM.    python -m tests.benchmarks.recurrent_pytorch float32|float64

float32 is timed, with oneDNN, which PyTorch takes by itself. float64 is what is right.
"""
import sys

import numpy as np
import torch

from tests.benchmarks.race import serve
from tests.benchmarks.recurrent import HIDDEN, LAYERS, THREADS, arrays

NAMES = {"w_x": "weight_ih_l", "w_h": "weight_hh_l", "bias": "bias_ih_l"}  # they keep weights as (out, in)


def main(dtype):
    torch.set_num_threads(THREADS)
    given = {name: torch.from_numpy(a).to(getattr(torch, dtype)) for name, a in arrays().items()}
    model = torch.nn.LSTM(HIDDEN, HIDDEN, LAYERS).to(given["x"].dtype)
    weights = {f"{n}.{ours}": getattr(model, f"{theirs}{n}") for n in range(LAYERS)
               for ours, theirs in NAMES.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(given[name].T)
        for n in range(LAYERS):
            getattr(model, f"bias_hh_l{n}").zero_()
    x = given["x"].requires_grad_()

    def step(i):
        model.zero_grad(set_to_none=True)
        x.grad = None
        model(x)[0].backward(given["dhs"])

    def check(path):
        step(0)
        np.savez(path, x=x.grad.numpy(), **{name: weight.grad.T.numpy() for name, weight in weights.items()})

    serve(step, check)


if __name__ == "__main__":
    main(*sys.argv[1:])
