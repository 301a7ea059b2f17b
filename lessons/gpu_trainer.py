"""Lesson 18's Trainer on a GPU (lesson 26): the same step, but the host only says what is to be done.

Parameters, gradients and moments lie on the GPU, and so does the text. The host queues kernels and does not
wait for them. A step of a small model is some hundred launches, each of which takes the host longer than the
kernel takes the GPU. So the launches of a step are recorded once, as a CUDA graph, and played for all others:
what differs from step to step (rows, rates, the scale of clipping) lies at a fixed place in the GPU's memory.
"""
import math

import numpy as np

from kernels.cuda import optimizers
from kernels.cuda.compiled import record
from kernels.cuda.memory import empty, on_gpu
from kernels.cuda.training import log_numbers, note, take_rows
from lessons.l18_training import Diverged, Trainer, rows
from lessons.parameters import Parameters
from lessons.recipes import BETAS, CLIP, EPS, MOMENTUM, PARTS

REMEMBERED = 512  # steps in the log: so many at most before the host looks


class Later:
    """A number that the GPU has logged, or will have: float() waits for it."""

    def __init__(self, trainer, step, column):
        self.trainer, self.step, self.column = trainer, step, column

    def __float__(self):
        return self.trainer.logged(self.step)[self.column]


class GPUTrainer(Trainer):
    """A model on the GPU, its optimizer's memory, and the graph that trains it."""

    def __init__(self, ops, config, optimizer="muon", recipe=None, seed=0, accumulate=1, dropout=0.0):
        super().__init__(ops, config, optimizer, recipe, 1, seed, accumulate=accumulate, dropout=dropout)
        self.p = Parameters(config, on_gpu(self.p.flat))
        self.flat_grads = on_gpu(self.flat_grads)
        self.grads = [Parameters(config, self.flat_grads[0])]
        self.spare = [Parameters(config, on_gpu(spare.flat)) for spare in self.spare]
        self.m, self.v = on_gpu(self.m), on_gpu(self.v)
        self.momentum = Parameters(config, self.m)
        shape = self.recipe.batch, config.block_size
        self.X, self.Y, self.starts = (empty(shape, np.int32) for shape in (shape, shape, shape[:1]))
        self.numbers = {part: on_gpu(numbers) for part, numbers in self.rates().items()}
        self.scale, self.count = empty(()), on_gpu(np.zeros(1), np.int32)
        self.log, self.read, self.read_at = on_gpu(np.zeros(2 * REMEMBERED)), None, -1
        self.text, self.play = None, None

    def rows(self, tokens, seed):  # -> X, Y (B, T) on the GPU
        """As rows(), of a text that is copied to the GPU once."""
        if self.text is not tokens:
            V = self.p.config.vocab_size
            if tokens.min() < 0 or tokens.max() >= V:
                raise ValueError(f"tokens from {tokens.min()} to {tokens.max()} do not all have a row in a "
                                 f"table of {V}: encode the text with the model's own tokenizer")
            self.text, self.tokens, self.places = tokens, on_gpu(tokens, np.int32), np.arange(len(tokens))
        X, _ = rows(self.places, self.recipe.batch, self.p.config.block_size, seed, self.steps + 1)
        self.starts.set(X[:, 0])  # rows of the places themselves begin with where they begin
        take_rows(self.tokens, self.starts, self.X, self.Y)
        return self.X, self.Y

    def step(self, X, Y):  # (B, T) each, those that rows() returns
        """As Trainer.step, but nothing is waited for. float() of loss and norm waits, and says Diverged if
        one of them is not finite; the steps since then have changed nothing."""
        for part, numbers in self.rates().items():
            self.numbers[part].set(numbers)
        if self.play is not None:
            self.play()
        else:
            self.work()
            if self.steps and not self.dropout:  # the first has compiled all; dropout's seeds are arguments
                self.play = record(self.work)
        self.steps += 1
        return Later(self, self.steps - 1, 0), Later(self, self.steps - 1, 1)

    def work(self):
        """The step itself: launches and nothing else."""
        loss = self.loss_and_gradient((self.X, self.Y), self.X.size, 0)
        square = self.add_gradients(0)
        optimizers.clip(square, CLIP, self.scale)
        note[1, 1](loss, square, self.count, self.log, self.scale)
        self.update()

    def rates(self):  # -> {part: the numbers of this step}
        numbers, lr, decay = {}, self.recipe.lr * self.rate(self.steps + 1), self.recipe.weight_decay
        for part, (op, rate, decays) in PARTS[self.optimizer].items():
            if op == "adamw":
                numbers[part] = optimizers.adamw_numbers(lr * rate, *BETAS, EPS, decay * decays,
                                                         self.steps + 1)
            else:
                choose = optimizers.sgd_numbers if op == "sgd" else optimizers.muon_numbers
                numbers[part] = choose(lr * rate, MOMENTUM[op], decay * decays)
        return {part: np.array(values, np.float32) for part, values in numbers.items()}

    def update(self):
        p, g = self.p.flat, self.grads[0].flat
        for part, (op, _, _) in PARTS[self.optimizer].items():
            s, numbers = self.p.parts[part], self.numbers[part]
            if op == "sgd":
                optimizers.sgd_step(p[s], g[s], self.m[s], numbers, self.scale)
            elif op == "adamw":
                optimizers.adamw_step(p[s], g[s], self.m[s], self.v[s], numbers, self.scale)
            else:
                for name in self.matrices:
                    matrix, gradient, m = (x[name] for x in (self.p, self.grads[0], self.momentum))
                    optimizers.muon_step(matrix, gradient, m, numbers, self.scale)

    def logged(self, step):  # -> loss, norm
        if step > self.read_at:
            self.read, self.read_at = log_numbers(self.log.numpy()), self.steps - 1
        loss, norm = self.read[step % REMEMBERED].tolist()
        if not math.isfinite(loss + norm):
            raise Diverged(f"step {step + 1}: the loss or the norm of its gradient is NaN or infinite")
        return loss, norm

    def arrays(self):
        return {name: array.numpy() for name, array in super().arrays().items()}

    def restore(self, arrays, steps):
        for name, array in super().arrays().items():
            array.set(arrays[name])
        self.steps, self.read_at = steps, steps - 1
        self.count.set(np.array([steps]))
