"""What lesson 18 trains with: for every optimizer of lesson 10 the numbers that trials found good."""
from typing import NamedTuple


class Recipe(NamedTuple):
    """How one optimizer is used. The rate rises over `warmup` steps to lr and falls in a line to 0."""

    lr: float
    batch: int  # rows
    steps: int
    warmup: int
    weight_decay: float = 0.0


RECIPES = {
    "muon": Recipe(lr=0.02, batch=16, steps=3400, warmup=50, weight_decay=0.1),
    "adamw": Recipe(lr=0.004, batch=12, steps=4800, warmup=200, weight_decay=0.1),
    "sgd": Recipe(lr=0.1, batch=12, steps=4800, warmup=200),
}
PARTS = {  # optimizer -> for each part of the parameters: the operation, its share of lr and of weight_decay
    "muon": {"tables": ("adamw", 0.2, 0), "matrices": ("muon", 1, 1), "vectors": ("adamw", 0.2, 0)},
    "adamw": {"tables": ("adamw", 1, 1), "matrices": ("adamw", 1, 1), "vectors": ("adamw", 1, 0)},
    "sgd": {"tables": ("sgd", 1, 1), "matrices": ("sgd", 1, 1), "vectors": ("sgd", 1, 0)},
}
CLIP = 1.0  # the largest norm of a gradient
BETAS, EPS, MOMENTUM = (0.9, 0.99), 1e-8, {"muon": 0.95, "sgd": 0.9}
