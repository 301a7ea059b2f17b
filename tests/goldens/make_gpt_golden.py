"""Write gpt.npz: what PyTorch, in float64, makes of a tiny GPT. tests/test_gpt_golden.py reads it.

    python tests/goldens/make_gpt_golden.py          (needs torch; the tests do not)

The model is nanoGPT's, written as functions of a dict of tensors, so that names and shapes are GPT-2's.
Nothing of the lessons is used. The file holds, in this order:

    tokens, targets                 (B, T); one target is -1, which is ignored
    start/NAME                      parameters before training
    activation/NAME                 the output of each step of the forward pass, in the order of computation
    loss, gradient/NAME             gradients in the order in which the backward pass finishes them
    settings, losses, norms         ten steps of AdamW on this one batch (lr, beta1, beta2, eps, decay, clip)
    end/NAME                        parameters after them
"""
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

LAYERS, HEADS, CHANNELS, BLOCK, VOCABULARY = 2, 2, 16, 12, 23
BATCH, POSITIONS = 2, 11  # fewer positions than the block has: the last row of wpe gets no gradient
LR, BETA1, BETA2, EPS, WEIGHT_DECAY, CLIP = 3e-3, 0.9, 0.95, 1e-8, 0.1, 1.0


def make_parameters():
    """Every array random, biases and norms too: a zero would hide a mistake. The numbers are float32's."""
    C = CHANNELS
    modules = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C),
               "ln_2": (C,), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    modules = {f"h.{i}.{name}": shape for i in range(LAYERS) for name, shape in modules.items()}
    modules["ln_f"] = (C,)
    shapes = {"wte.weight": (VOCABULARY, C), "wpe.weight": (BLOCK, C)}
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[-1:]}
    torch.manual_seed(16)
    p = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    for name, x in p.items():
        x += "ln_" in name and name.endswith("weight")  # norms around 1
    return {name: x.float().double().requires_grad_() for name, x in p.items()}


def forward(p, tokens, targets):
    """-> loss, {name: activation}"""
    steps = {}

    def keep(name, x):
        steps[name] = x
        return x

    def norm(x, name):
        return keep(name, F.layer_norm(x, (CHANNELS,), p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-5))

    def linear(x, name):
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    B, T = tokens.shape
    x = keep("embedding", p["wte.weight"][tokens] + p["wpe.weight"][:T])
    for i in range(LAYERS):
        h = f"h.{i}"
        qkv = keep(f"{h}.attn.c_attn", linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn"))
        q, k, v = (a.view(B, T, HEADS, -1).transpose(1, 2) for a in qkv.split(CHANNELS, dim=2))
        scores = q @ k.transpose(2, 3) / math.sqrt(CHANNELS // HEADS)
        future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
        y = scores.masked_fill(future, -math.inf).softmax(dim=3) @ v
        y = keep(f"{h}.attn", y.transpose(1, 2).reshape(B, T, CHANNELS))
        x = keep(f"{h}.attn.c_proj + residual", x + linear(y, f"{h}.attn.c_proj"))
        y = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        y = keep(f"{h}.mlp.c_fc + gelu", F.gelu(y, approximate="tanh"))
        x = keep(f"{h}.mlp.c_proj + residual", x + linear(y, f"{h}.mlp.c_proj"))
    logits = keep("logits", norm(x, "ln_f") @ p["wte.weight"].T)
    return F.cross_entropy(logits.view(B * T, VOCABULARY), targets.view(B * T), ignore_index=-1), steps


def backward_order(names):
    """The last layer first; the tables last, since the embedding is where the backward pass ends."""
    tables = ["wpe.weight", "wte.weight"]
    return [name for name in reversed(names) if name not in tables] + tables


def main():
    torch.set_default_dtype(torch.float64)
    p = make_parameters()
    tokens, targets = torch.randint(VOCABULARY, (2, BATCH, POSITIONS))
    targets[1, 4] = -1
    golden = {"tokens": tokens, "targets": targets}
    golden |= {f"start/{name}": x.clone() for name, x in p.items()}

    groups = [{"params": [x for x in p.values() if x.ndim == 2], "weight_decay": WEIGHT_DECAY},
              {"params": [x for x in p.values() if x.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(BETA1, BETA2), eps=EPS)
    losses, norms = [], []
    for step in range(10):
        loss, activations = forward(p, tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            golden |= {f"activation/{name}": x for name, x in activations.items()} | {"loss": loss}
            golden |= {f"gradient/{name}": p[name].grad.clone() for name in backward_order(list(p))}
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(p.values(), CLIP).item())
        optimizer.step()
    golden |= {"settings": torch.tensor([LR, BETA1, BETA2, EPS, WEIGHT_DECAY, CLIP])}
    golden |= {"losses": torch.tensor(losses), "norms": torch.tensor(norms)}
    golden |= {f"end/{name}": x for name, x in p.items()}

    path = Path(__file__).with_name("gpt.npz")
    np.savez_compressed(path, **{name: x.detach().numpy() for name, x in golden.items()})
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, {len(golden)} arrays")
    print("losses", " ".join(f"{x:.4f}" for x in losses))
    print("gradient norms", " ".join(f"{x:.3f}" for x in norms))


if __name__ == "__main__":
    main()
