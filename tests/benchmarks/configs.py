"""The three models that are measured, and where training starts: the same for every worker."""
import numpy as np

from lessons.l18_training import BETAS, CLIP, EPS
from lessons.parameters import Config, Parameters, init_parameters

CONFIGS = {  # and rows in a batch
    "S": (Config(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128), 12),
    "M": (Config(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384), 8),
    "L": (Config(vocab_size=4096, block_size=128, n_layer=6, n_head=6, n_embd=192), 16),
}
LR, WEIGHT_DECAY = 1e-3, 0.1
ADAMW = {"lr": LR, "betas": BETAS, "eps": EPS}  # PyTorch's names for what the lesson uses
MAX_NORM = CLIP
THREADS = 2
CHECKED_STEPS = 4


def start_parameters(config, dtype=np.float32):
    """A fresh model with noise on every parameter: no bias is 0, no norm is 1. The numbers are float32's."""
    p, rng = init_parameters(config), np.random.default_rng(1)
    for view in p.views.values():
        view += rng.normal(0, 0.02, view.shape)
    return p if dtype == np.float32 else Parameters(config, p.flat.astype(dtype))


def batches(config, rows, steps=16):
    """X, Y (steps, rows, T), random tokens: the speed does not depend on what they say."""
    return np.random.default_rng(0).integers(0, config.vocab_size, (2, steps, rows, config.block_size))


def tokens_per_step(key):
    config, rows = CONFIGS[key]
    return rows * config.block_size
