"""Worker: writing and reading with a KV cache as one does it in PyTorch, float32, one text.

    python -m tests.benchmarks.decode_pytorch eager|compiled|prompt M

The cache is allocated once. eager attends to the filled part of it; compiled to all of it with a mask, since
every new shape would be compiled anew. prompt reads a block, eager, and computes the last logits alone.
"""
import sys

import numpy as np
import torch
from torch.nn import functional as F

from tests.benchmarks import configs
from tests.benchmarks.decode_ours import positions
from tests.benchmarks.pytorch import make_model
from tests.benchmarks.race import serve


def forward(model, tokens, start, cache, mask=None):  # (T,), int or (T,) tensor -> (V,) for the last position
    """cache (L, 2, H, block_size, D). With a mask the position is a tensor, and shapes never change."""
    T, (C, H) = len(tokens), (model.wte.weight.shape[1], cache.shape[2])
    places = start if mask is not None else slice(start, start + T)
    x = model.wte.weight[tokens] + model.wpe.weight[places]
    for block, (keys, values) in zip(model.h, cache):
        q, k, v = (a.view(T, H, C // H).transpose(0, 1)
                   for a in block.attn.c_attn(block.ln_1(x)).split(C, dim=1))
        keys[:, places], values[:, places] = k, v
        if mask is None:
            keys, values = keys[:, :start + T], values[:, :start + T]
        y = F.scaled_dot_product_attention(q[None], keys[None], values[None], is_causal=T > 1,
                                           attn_mask=None if mask is None else mask[places])[0]
        x = x + block.attn.c_proj(y.transpose(0, 1).reshape(T, C))
        x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
    return F.linear(model.ln_f(x[-1]), model.wte.weight)


@torch.inference_mode()
def main(kind, key):
    torch.set_num_threads(configs.THREADS)
    config, _ = configs.CONFIGS[key]
    model, text = make_model(config), torch.from_numpy(configs.batches(config, 1, 1)[0, 0, 0])
    T, D = config.block_size, config.n_embd // config.n_head
    cache = torch.zeros(config.n_layer, 2, config.n_head, T, D)
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    run = torch.compile(forward) if kind == "compiled" else forward

    def token_logits(token, position):  # (1,) tensor, int
        if kind == "compiled":
            return run(model, token, torch.tensor([position]), cache, mask)
        return run(model, token, position, cache)

    def generate(i):
        token = text[:1]
        for position in positions(config):
            token = token_logits(token, position).argmax(dim=-1, keepdim=True)

    if kind == "prompt":
        serve(lambda i: run(model, text, 0, cache),
              lambda path: np.save(path, run(model, text, 0, cache)[None].numpy()))
    else:
        token_logits(text[:1], 0)  # where no compiler works, it fails here
        serve(generate, lambda path: np.save(
            path, torch.stack([token_logits(text[t:t + 1], t) for t in range(T)]).numpy()))


if __name__ == "__main__":
    main(*sys.argv[1:])
