"""Worker: the same GPT as one writes it in PyTorch, after nanoGPT.

    python -m tests.benchmarks.pytorch eager|compiled|float64 S

eager and compiled are timed: float32, scaled_dot_product_attention, fused AdamW. float64 is what is right.
"""
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks import configs
from tests.benchmarks.race import serve


class Block(nn.Module):
    def __init__(self, C, n_head):
        super().__init__()
        self.n_head = n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C), "c_proj": nn.Linear(C, C)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.attn.c_attn(self.ln_1(x)).split(C, dim=2)
        q, k, v = (a.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for a in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config.n_embd, config.n_head) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def turned(name, array):
    """nn.Linear keeps its weight as (out, in), GPT-2's files and the lessons as (in, out)."""
    return array.T if array.ndim == 2 and name not in ("wte.weight", "wpe.weight") else array


def make_model(config, dtype=torch.float32):
    """A GPT with configs.start_parameters."""
    model, p = GPT(config), configs.start_parameters(config)
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.copy_(turned(name, torch.from_numpy(p[name])))
    return model.to(dtype)


def gradients(model):
    """{name: array}, in the lessons' shapes."""
    return {name: turned(name, x.grad.numpy()) for name, x in model.named_parameters()}


def make_step(model, loss_of, X, Y):  # -> step(i, after_backward) -> loss
    """loss_of: model, or what was compiled of it."""
    groups = [{"params": [x for x in model.parameters() if x.ndim == ndim], "weight_decay": decay}
              for ndim, decay in ((2, configs.WEIGHT_DECAY), (1, 0.0))]
    optimizer = torch.optim.AdamW(groups, **configs.ADAMW, fused=True)

    def step(i, after_backward=None):
        loss = loss_of(X[i % len(X)], Y[i % len(Y)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if after_backward:
            after_backward()
        nn.utils.clip_grad_norm_(model.parameters(), configs.MAX_NORM)
        optimizer.step()
        return loss

    return step


def main(kind, key):
    torch.set_num_threads(configs.THREADS)
    config, rows = configs.CONFIGS[key]
    model = make_model(config, torch.float64 if kind == "float64" else torch.float32)
    X, Y = (torch.from_numpy(a) for a in configs.batches(config, rows))
    loss_of = torch.compile(model) if kind == "compiled" else model
    loss_of(X[0], Y[0]).backward()  # where no compiler works, it fails here
    step = make_step(model, loss_of, X, Y)

    def check(path):
        """As in ours.py."""
        losses = [step(0, lambda: np.savez(path, **gradients(model)))]
        return [loss.item() for loss in losses + [step(i) for i in range(1, configs.CHECKED_STEPS)]]

    serve(step, check)


if __name__ == "__main__":
    main(*sys.argv[1:])
