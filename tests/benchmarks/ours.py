"""Worker: lesson 18's Trainer on the CPU's kernels, with AdamW.    python -m tests.benchmarks.ours S"""
import sys

import numpy as np

from lessons import devices
from lessons.l18_training import RECIPES, Trainer
from tests.benchmarks import configs
from tests.benchmarks.race import serve


def main(key):
    config, rows = configs.CONFIGS[key]
    recipe = RECIPES["adamw"]._replace(lr=configs.LR, weight_decay=configs.WEIGHT_DECAY, batch=rows,
                                       steps=10**9, warmup=1)  # a constant rate
    trainer = Trainer(devices.ops("cpu"), config, "adamw", recipe, configs.THREADS)
    trainer.p.flat[:] = configs.start_parameters(config).flat
    X, Y = configs.batches(config, rows)

    def step(i):
        return trainer.step(X[i % len(X)], Y[i % len(Y)])[0]

    def check(path):
        """The losses of the first steps; the gradient of the first goes to path."""
        losses = [step(0)]
        np.savez(path, **trainer.grads[0].views)
        return losses + [step(i) for i in range(1, configs.CHECKED_STEPS)]

    serve(step, check)


if __name__ == "__main__":
    main(*sys.argv[1:])
