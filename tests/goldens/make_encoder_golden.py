"""Write encoder.npz: what PyTorch, in float64, makes of a tiny encoder, for tests/test_encoder_golden.py.

    python tests/goldens/make_encoder_golden.py      (needs torch; the tests do not)

The model is nanoGPT's, but attention sees all real positions. It is written as functions of a dict of
tensors, so that names and shapes are GPT-2's. Nothing of the lessons is used. The file holds, in this order:

    tokens, targets, lengths        (B, T), (B, T), (B,); targets are -1 where nothing is masked
    start/NAME                      parameters
    activation/NAME                 the output of each step of the forward pass, in the order of computation;
                                    the logits (M, V) are those of the M masked places
    loss, gradient/NAME             gradients in the order in which the backward pass finishes them
"""
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

LAYERS, HEADS, CHANNELS, BLOCK, VOCABULARY = 2, 2, 8, 8, 23
LENGTHS = [7, 3, 1]  # fewer positions than the block has: the last row of wpe gets no gradient


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
    torch.manual_seed(14)
    p = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    for name, x in p.items():
        x += "ln_" in name and name.endswith("weight")  # norms around 1
    return {name: x.float().double().requires_grad_() for name, x in p.items()}


def forward(p, tokens, targets, lengths):
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
    padding = (torch.arange(T) >= lengths[:, None])[:, None, None]  # (B, 1, 1, T): the keys'
    x = keep("embedding", p["wte.weight"][tokens] + p["wpe.weight"][:T])
    for i in range(LAYERS):
        h = f"h.{i}"
        qkv = keep(f"{h}.attn.c_attn", linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn"))
        q, k, v = (a.view(B, T, HEADS, -1).transpose(1, 2) for a in qkv.split(CHANNELS, dim=2))
        scores = q @ k.transpose(2, 3) / math.sqrt(CHANNELS // HEADS)
        y = scores.masked_fill(padding, -math.inf).softmax(dim=3) @ v
        y = keep(f"{h}.attn", y.transpose(1, 2).reshape(B, T, CHANNELS))
        x = keep(f"{h}.attn.c_proj + residual", x + linear(y, f"{h}.attn.c_proj"))
        y = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        y = keep(f"{h}.mlp.c_fc + gelu", F.gelu(y, approximate="tanh"))
        x = keep(f"{h}.mlp.c_proj + residual", x + linear(y, f"{h}.mlp.c_proj"))
    x = norm(x, "ln_f")
    logits = keep("logits", x[targets != -1] @ p["wte.weight"].T)
    return F.cross_entropy(logits, targets[targets != -1]), steps


def backward_order(names):
    """The last layer first; the tables last, since the embedding is where the backward pass ends."""
    tables = ["wpe.weight", "wte.weight"]
    return [name for name in reversed(names) if name not in tables] + tables


def main():
    torch.set_default_dtype(torch.float64)
    p = make_parameters()
    lengths = torch.tensor(LENGTHS)
    tokens, targets = torch.randint(VOCABULARY, (2, len(LENGTHS), max(LENGTHS)))
    masked = (torch.rand(tokens.shape) < 0.3) & (torch.arange(max(LENGTHS)) < lengths[:, None])
    masked[:, 0] = True  # at least one in each row, also in the row of one token
    targets[~masked] = -1
    loss, activations = forward(p, tokens, targets, lengths)
    loss.backward()
    golden = {"tokens": tokens, "targets": targets, "lengths": lengths}
    golden |= {f"start/{name}": x for name, x in p.items()}
    golden |= {f"activation/{name}": x for name, x in activations.items()} | {"loss": loss}
    golden |= {f"gradient/{name}": p[name].grad for name in backward_order(list(p))}

    path = Path(__file__).with_name("encoder.npz")
    np.savez_compressed(path, **{name: x.detach().numpy() for name, x in golden.items()})
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, {len(golden)} arrays; "
          f"{masked.sum()} masked places, loss {loss:.4f}")


if __name__ == "__main__":
    main()
