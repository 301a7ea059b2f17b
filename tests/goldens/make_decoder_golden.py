"""Write decoder.npz: PyTorch's float64 numbers for a tiny encoder-decoder, for tests/test_decoder_golden.py.

    python tests/goldens/make_decoder_golden.py      (needs torch; the tests do not)

The blocks are nanoGPT's. The encoder's attention sees all real positions; each block of the decoder has a
cross-attention to the encoder's output, between its own attention and the MLP, as GPT-2 of Hugging Face has,
with the names it has there. Nothing of the lessons is used. The file holds, in this order:

    source, lengths                 (B, S), (B,); what stands behind a row's length is padding
    inputs, targets                 (B, T) twice; targets are -1 in padding and in one place besides
    start/NAME                      parameters: encoder.wte.weight, ..., decoder.ln_f.bias
    activation/NAME                 memory, which is the encoder's output (encoder.npz has what is computed on
                                    the way there); then the output of each step of the decoder, in order
    loss, gradient/NAME             gradients in the order in which the backward pass finishes them; that of
                                    memory is where the decoder's end
"""
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

LAYERS, HEADS, CHANNELS, BLOCK, VOCABULARY = 2, 2, 6, 9, 13
LENGTHS, TARGETS = [6, 2, 4], [5, 8, 1]  # the source's and the text's; no row has the 9 positions of a block


def make_parameters():
    """Every array random, biases and norms too: a zero would hide a mistake. The numbers are float32's."""
    C = CHANNELS
    look = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C)}
    consult = {"ln_cross_attn": (C,), "crossattention.q_attn": (C, C), "crossattention.c_attn": (C, 2 * C),
               "crossattention.c_proj": (C, C)}
    think = {"ln_2": (C,), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    shapes = {}
    for stack, block in ("encoder", look | think), ("decoder", look | consult | think):
        modules = {f"h.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()}
        shapes |= {f"{stack}.wte.weight": (VOCABULARY, C), f"{stack}.wpe.weight": (BLOCK, C)}
        for name, shape in (modules | {"ln_f": (C,)}).items():
            shapes |= {f"{stack}.{name}.weight": shape, f"{stack}.{name}.bias": shape[-1:]}
    torch.manual_seed(15)
    p = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    for name, x in p.items():
        x += "ln_" in name and name.endswith("weight")  # norms around 1
    return {name: x.float().double().requires_grad_() for name, x in p.items()}


def forward(p, source, lengths, inputs, targets):
    """-> loss, {name: activation}: also those of the encoder"""
    steps = {}

    def keep(name, x):
        steps[name] = x
        return x

    def norm(x, name):
        return keep(name, F.layer_norm(x, (CHANNELS,), p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-5))

    def linear(x, name):
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def attend(q, k, v, hidden, name):  # hidden: (..., Tq, Tk), True where a query may not look
        q, k, v = (a.view(*a.shape[:2], HEADS, -1).transpose(1, 2) for a in (q, k, v))
        scores = (q @ k.transpose(2, 3) / math.sqrt(CHANNELS // HEADS)).masked_fill(hidden, -math.inf)
        return keep(name, (scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2))

    def embed(tokens, stack):
        positions = p[f"{stack}.wpe.weight"][:tokens.shape[1]]
        return keep(f"{stack}.embedding", p[f"{stack}.wte.weight"][tokens] + positions)

    def look(x, h, hidden):
        qkv = keep(f"{h}.attn.c_attn", linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn"))
        y = attend(*qkv.split(CHANNELS, dim=2), hidden, f"{h}.attn")
        return keep(f"{h}.attn.c_proj + residual", x + linear(y, f"{h}.attn.c_proj"))

    def consult(x, h, memory, hidden):
        name = f"{h}.crossattention"
        q = keep(f"{name}.q_attn", linear(norm(x, f"{h}.ln_cross_attn"), f"{name}.q_attn"))
        kv = keep(f"{name}.c_attn", linear(memory, f"{name}.c_attn"))
        y = attend(q, *kv.split(CHANNELS, dim=2), hidden, name)
        return keep(f"{name}.c_proj + residual", x + linear(y, f"{name}.c_proj"))

    def think(x, h):
        y = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        y = keep(f"{h}.mlp.c_fc + gelu", F.gelu(y, approximate="tanh"))
        return keep(f"{h}.mlp.c_proj + residual", x + linear(y, f"{h}.mlp.c_proj"))

    S, T = source.shape[1], inputs.shape[1]
    padding = (torch.arange(S) >= lengths[:, None])[:, None, None]  # (B, 1, 1, S): of the keys
    future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
    x = embed(source, "encoder")
    for i in range(LAYERS):
        x = think(look(x, f"encoder.h.{i}", padding), f"encoder.h.{i}")
    memory = keep("memory", norm(x, "encoder.ln_f"))
    x = embed(inputs, "decoder")
    for i in range(LAYERS):
        h = f"decoder.h.{i}"
        x = think(consult(look(x, h, future), h, memory, padding), h)
    logits = keep("logits", norm(x, "decoder.ln_f") @ p["decoder.wte.weight"].T)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1), steps


def backward_order(names):
    """The last layer first; a stack's tables last, since the embedding is where its backward pass ends."""
    order = []
    for stack in "decoder", "encoder":
        tables = [f"{stack}.wpe.weight", f"{stack}.wte.weight"]
        order += [name for name in reversed(names) if name.startswith(stack) and name not in tables]
        order += [*tables, "memory"] if stack == "decoder" else tables
    return order


def main():
    torch.set_default_dtype(torch.float64)
    p = make_parameters()
    lengths, ends = torch.tensor(LENGTHS), torch.tensor(TARGETS)
    source = torch.randint(VOCABULARY, (len(LENGTHS), max(LENGTHS)))
    inputs, targets = torch.randint(VOCABULARY, (2, len(TARGETS), max(TARGETS)))
    targets[torch.arange(max(TARGETS)) >= ends[:, None]] = -1
    targets[1, 3] = -1
    loss, activations = forward(p, source, lengths, inputs, targets)
    activations["memory"].retain_grad()
    loss.backward()
    gradients = {name: x.grad for name, x in (p | activations).items() if name in p or name == "memory"}
    activations = {name: x for name, x in activations.items() if not name.startswith("encoder.")}

    golden = {"source": source, "lengths": lengths, "inputs": inputs, "targets": targets}
    golden |= {f"start/{name}": x.float() for name, x in p.items()}  # they are float32's: nothing is lost
    golden |= {f"activation/{name}": x for name, x in activations.items()} | {"loss": loss}
    golden |= {f"gradient/{name}": gradients[name] for name in backward_order(list(p))}
    path = Path(__file__).with_name("decoder.npz")
    np.savez_compressed(path, **{name: x.detach().numpy() for name, x in golden.items()})
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, {len(golden)} arrays; loss {loss:.4f} of "
          f"{(targets != -1).sum()} targets")


if __name__ == "__main__":
    main()
