"""Worker: lesson 18's Trainer with lesson 14's gradient, on the CPU's kernels, with AdamW.

    python -m tests.benchmarks.mlm_ours
"""
import numpy as np

from lessons import devices
from lessons.l14_encoder import mlm_gradient
from lessons.l18_training import RECIPES, Trainer
from tests.benchmarks import configs
from tests.benchmarks.mlm import CONFIG, ROWS, batches
from tests.benchmarks.race import serve


def main():
    recipe = RECIPES["adamw"]._replace(lr=configs.LR, weight_decay=configs.WEIGHT_DECAY, batch=ROWS,
                                       steps=10**9, warmup=1)  # a constant rate
    trainer = Trainer(devices.ops("cpu"), CONFIG, "adamw", recipe, configs.THREADS, gradient=mlm_gradient)
    trainer.p.flat[:] = configs.start_parameters(CONFIG).flat
    data = batches()

    def step(i):
        return trainer.step(*data[i % len(data)])[0]

    def check(path):
        """The losses of the first steps; the gradient of the first goes to path."""
        losses = [step(0)]
        np.savez(path, **trainer.grads[0].views)
        return losses + [step(i) for i in range(1, configs.CHECKED_STEPS)]

    serve(step, check)


if __name__ == "__main__":
    main()
