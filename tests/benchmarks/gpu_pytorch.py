"""Worker: the same in PyTorch.    python -m tests.benchmarks.gpu_pytorch float32|float64 matmul

float32 is timed, without TF32. float64 is what is right.
"""
import sys

import numpy as np
import torch
from torch.nn import functional as F

from tests.benchmarks import configs, gpu
from tests.benchmarks.pytorch import make_model, make_step, turned
from tests.benchmarks.race import serve


def operation(name, dtype, *sizes):  # -> run() -> [tensor], in the order of gpu_ours.operation
    arrays = [torch.as_tensor(x, dtype=dtype if x.dtype.kind == "f" else torch.long)
              for x in gpu.inputs(name, *sizes)]
    if name == "matmul":
        return lambda: [arrays[0] @ arrays[1]]
    if name == "attention":
        (qkv, dout), (B, H, T, D) = arrays, sizes
        qkv.requires_grad_()

        def both():
            qkv.grad = None
            q, k, v = (x.view(B, T, H, D).transpose(1, 2) for x in qkv.split(H * D, dim=2))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, H * D)
            out.backward(dout)
            return [out.detach(), qkv.grad]
        return both
    if name.startswith("layer norm"):
        x, weight, bias, dout = arrays
        leaves = [a.requires_grad_() for a in (x, weight, bias)]
        out = F.layer_norm(x, weight.shape, weight, bias)
        if name == "layer norm backward":
            return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)
        return torch.no_grad()(lambda: [F.layer_norm(x, weight.shape, weight, bias)])
    if name == "gelu":
        y, bias = arrays

        def gelu_and_slope():
            z = (y + bias).requires_grad_()
            out = F.gelu(z, approximate="tanh")
            return [out.detach(), *torch.autograd.grad(out.sum(), z)]
        return gelu_and_slope
    if name == "cross-entropy":
        logits, targets = arrays
        logits.requires_grad_()

        def loss_and_gradient():
            loss = F.cross_entropy(logits, targets)
            return [loss.detach(), *torch.autograd.grad(loss, logits)]
        return loss_and_gradient
    if name == "AdamW":
        p, g = torch.nn.Parameter(arrays[0]), arrays[1]
        p.grad = g
        optimizer = torch.optim.AdamW([p], weight_decay=configs.WEIGHT_DECAY, fused=True, **configs.ADAMW)

        def update():
            optimizer.step()
            return [p.detach(), *(optimizer.state[p][name] for name in ("exp_avg", "exp_avg_sq"))]
        return update
    return lambda: [arrays[0].clone()]


def serve_operation(dtype, name):
    run = operation(name, dtype, *gpu.SIZES[name])

    def step(i):
        for _ in range(gpu.REPEAT.get(name, 10)):
            run()
        torch.cuda.synchronize()

    serve(step, lambda path: np.savez(path, **gpu.sample([x.cpu().numpy() for x in run()])))


def serve_training(dtype, key):
    config, _ = gpu.CONFIGS[key]
    model = make_model(config, dtype)
    X, Y = (torch.as_tensor(a) for a in gpu.batches(key)[:2])
    one = make_step(model, model, X, Y)

    def step(i):
        for k in range(gpu.REPEAT[key]):
            loss = one(gpu.REPEAT[key] * i + k)
        loss.item()

    def check(path):
        """As in pytorch.py."""
        def save():
            gradients = {name: x.grad.cpu().numpy() for name, x in model.named_parameters()}
            np.savez(path, **{name: turned(name, gradient) for name, gradient in gradients.items()})
        return [one(0, save).item(), *(one(i).item() for i in range(1, configs.CHECKED_STEPS))]

    serve(step, check)


def main(kind, name):
    torch.set_default_device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype = torch.float64 if kind == "float64" else torch.float32
    (serve_training if name in gpu.CONFIGS else serve_operation)(dtype, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
