"""Every gradient of ten small GPTs against PyTorch in float64: relative L2 error of the worst tensor."""
import numpy as np
import torch

from lessons import devices
from lessons.l16_gpt import gpt_backward, gpt_forward
from lessons.parameters import Config, Parameters
from tests.benchmarks.configs import batches, start_parameters
from tests.benchmarks.pytorch import gradients as torch_gradients
from tests.benchmarks.pytorch import make_model
from tests.benchmarks.report import table, worst_gradient, write

SMALL = [Config(vocab_size=40 + n, block_size=16 + 3 * n, n_layer=2 + n % 3, n_head=4, n_embd=32 + 8 * n)
         for n in range(10)]
MUST_AIM = {"numpy, float64": "1e-9 / 1e-12", "cpu, float32": "1e-5 / 2e-6", "PyTorch, float32": ""}


def run(options):
    print("gradients of small GPTs against PyTorch in float64, relative L2 error of the worst tensor")
    results = {name: [] for name in MUST_AIM}
    for config in SMALL:
        X, Y = (a[0] for a in batches(config, 3, 1))
        want = of_torch(config, X, Y, torch.float64)
        for name, got in (("numpy, float64", ours("numpy", config, X, Y, np.float64)),
                          ("cpu, float32", ours("cpu", config, X, Y, np.float32)),
                          ("PyTorch, float32", of_torch(config, X, Y, torch.float32))):
            results[name].append(worst_gradient(got, want))
    rows = []
    for name, found in results.items():
        (error, tensor), middle = max(found), sorted(found)[len(found) // 2][0]
        rows.append([name, f"{error:.1e}", tensor, f"{middle:.1e}", MUST_AIM[name]])
    table(["", f"worst of {len(SMALL)} models", "in", "median model", "must / aim"], rows)
    write("gradients", results, 1)


def ours(device, config, X, Y, dtype):
    ops, p, g = devices.ops(device), start_parameters(config, dtype), Parameters(config, dtype=dtype)
    logits, cache = gpt_forward(ops, p, X)
    gpt_backward(ops, ops.cross_entropy(logits, Y)[1], cache, g)
    return g.views


def of_torch(config, X, Y, dtype):
    model = make_model(config, dtype)
    model(torch.from_numpy(X), torch.from_numpy(Y)).backward()
    return torch_gradients(model)
