"""Worker: the same encoder as one writes it in PyTorch.

    python -m tests.benchmarks.mlm_pytorch eager|compiled|end_to_end|float64

eager and compiled take rows with padding, and a boolean mask in attention. end_to_end has no padding: real
tokens alone, one row after another, and attention row by row. Other things are as in pytorch.py.
"""
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks import configs
from tests.benchmarks.mlm import CONFIG, batches
from tests.benchmarks.pytorch import GPT, Block, gradients, make_model
from tests.benchmarks.race import serve


def attention(qkv, n_head, mask=None):  # (B, T, 3C) -> (B, T, C)
    q, k, v = (a.unflatten(2, (n_head, -1)).transpose(1, 2) for a in qkv.chunk(3, dim=2))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class EncoderBlock(Block):
    def forward(self, x, mask, lengths):
        qkv = self.attn.c_attn(self.ln_1(x))
        if lengths is None:
            y = attention(qkv, self.n_head, mask)
        else:
            y = torch.cat([attention(row[None], self.n_head)[0] for row in qkv.split(lengths)])
        x = x + self.attn.c_proj(y)
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))


class Encoder(GPT):
    def __init__(self, config):
        super().__init__(config)
        self.h = nn.ModuleList(EncoderBlock(config.n_embd, config.n_head) for _ in range(config.n_layer))

    def forward(self, tokens, positions, places, targets, mask=None, lengths=None):
        """Scores the M places alone. tokens (B, T) with mask (B, 1, 1, T), or (N,) with a list of lengths."""
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x, mask, lengths)
        x = self.ln_f(x).view(-1, x.shape[-1])[places]
        return F.cross_entropy(F.linear(x, self.wte.weight), targets)


def prepare(kind, tokens, targets, lengths):
    """One batch as forward wants it. Made before the clock starts, as by a data loader of its own."""
    positions = np.arange(CONFIG.block_size)
    real = positions < lengths[:, None]
    if kind == "end_to_end":
        positions, tokens, targets = np.nonzero(real)[1], tokens[real], targets[real]
    places = np.flatnonzero(targets >= 0)
    batch = [torch.from_numpy(a) for a in (tokens, positions, places, targets.reshape(-1)[places])]
    return (*batch, None, lengths.tolist()) if kind == "end_to_end" else \
        (*batch, torch.from_numpy(real[:, None, None]), None)


def main(kind):
    torch.set_num_threads(configs.THREADS)
    model = Encoder(CONFIG)
    model.load_state_dict(make_model(CONFIG).state_dict())
    model.to(torch.float64 if kind == "float64" else torch.float32)
    groups = [{"params": [x for x in model.parameters() if x.ndim == ndim], "weight_decay": decay}
              for ndim, decay in ((2, configs.WEIGHT_DECAY), (1, 0.0))]
    optimizer = torch.optim.AdamW(groups, **configs.ADAMW, fused=True)
    data = [prepare(kind, *batch) for batch in batches()]
    loss_of = torch.compile(model) if kind == "compiled" else model
    for batch in data[:3]:  # where no compiler works, it fails here; M changes, so it compiles twice
        loss_of(*batch).backward()

    def step(i, after_backward=None):
        loss = loss_of(*data[i % len(data)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if after_backward:
            after_backward()
        nn.utils.clip_grad_norm_(model.parameters(), configs.MAX_NORM)
        optimizer.step()
        return loss

    def check(path):
        """As in mlm_ours.py."""
        losses = [step(0, lambda: np.savez(path, **gradients(model)))]
        return [loss.item() for loss in losses + [step(i) for i in range(1, configs.CHECKED_STEPS)]]

    serve(step, check)


if __name__ == "__main__":
    main(*sys.argv[1:])
