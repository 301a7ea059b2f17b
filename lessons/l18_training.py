"""Lesson 18: training. How does a text become a model?

    for step in 1 .. steps:
        rows of text  ->  loss and gradient  ->  clip  ->  update of all parameters

Every core runs forward and backward on its share of the rows, in a thread with its own gradients; NumPy and
the kernels let go of Python's lock. Then each thread adds up its slice of the gradients and updates its slice
of the parameters. Between machines this is called data parallelism. Where memory is short, a thread computes
its share in parts: the gradient of a sum is the sum of gradients.

B rows of a batch, T positions, R threads (i is one of them), n parameters. Losses are in nats a token.
`make lesson 18` (the same as `make train`) is the main job: a GPT on Shakespeare in about three minutes.
"""
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons.l05_tokenizer import char_tokenizer
from lessons.l08_losses import IGNORE
from lessons.l10_optimizers import clip_scale, warmup_linear
from lessons.l16_gpt import gpt_backward, gpt_forward
from lessons.parameters import Config, Parameters, aligned_zeros, init_parameters, part_of
from lessons.recipes import BETAS, CLIP, EPS, MOMENTUM, PARTS, RECIPES


class Diverged(Exception):
    """The loss or the gradient is NaN or infinite; the parameters are still those of the step before."""


def rows(tokens, batch, block, seed, step):  # (n,) -> X (B, T), Y (B, T): Y is X one position later
    """Random windows: X[b, t] = tokens[start_b + t], Y[b, t] = tokens[start_b + t + 1]; every start at which
    they fit is equally likely. Drawn by one default_rng((seed, step)).integers: as in a resumed run."""
    starts = np.random.default_rng((seed, step)).integers(0, len(tokens) - block, batch)
    windows = tokens[starts[:, None] + np.arange(block + 1)]
    return windows[:, :-1], windows[:, 1:]


def share(start, stop, i, parts):
    """The i-th of `parts` pieces of range(start, stop), as a slice. Nothing is left over, and sizes differ by
    one at most: the pieces before the i-th hold (stop - start) i / parts numbers, rounded down.

    >>> [share(0, 12, i, 5) for i in range(5)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None), slice(7, 9, None), slice(9, 12, None)]
    """
    n = stop - start
    return slice(start + n * i // parts, start + n * (i + 1) // parts)


def gpt_gradient(ops, p, batch, total, g, dropout, seed):  # X, Y (rows, T) -> their part of the mean loss
    """Sum of -ln p(target) / total, the number of targets that count in the whole batch. Writes its gradient
    into g. The model drops out with this rate and seed."""
    X, Y = batch
    logits, cache = gpt_forward(ops, p, X, dropout=dropout, seed=seed)
    loss, dlogits = ops.cross_entropy(logits, Y, total)
    gpt_backward(ops, dlogits, cache, g)
    return loss


class Trainer:
    """A model, its optimizer's memory, and the threads that train it. gradient: gpt_gradient, or the same for
    another model and loss. accumulate: in how many parts a thread computes its rows, one after the other: the
    fewer at once, the less memory. dropout: its rate."""

    def __init__(self, ops, config, optimizer="muon", recipe=None, threads=2, seed=0, gradient=gpt_gradient,
                 accumulate=1, dropout=0.0):
        threadpool_limits(1, "blas")  # the threads are ours: one matrix product a core
        self.ops, self.optimizer, self.threads, self.seed = ops, optimizer, threads, seed
        self.gradient, self.accumulate, self.dropout = gradient, accumulate, dropout
        self.recipe, self.p, self.steps = recipe or RECIPES[optimizer], init_parameters(config, seed), 0
        n = self.p.flat.size
        self.flat_grads = aligned_zeros(threads * n, np.float32).reshape(threads, n)
        self.grads = [Parameters(config, flat) for flat in self.flat_grads]
        self.spare = [Parameters(config) for _ in range(threads)] if accumulate > 1 else []
        self.m, self.v = aligned_zeros(n, np.float32), aligned_zeros(n, np.float32)
        self.momentum = Parameters(config, self.m)  # for Muon; its matrices by work: size times small side
        matrices = [name for name, view in self.p.views.items() if part_of(name, view.shape) == "matrices"]
        self.matrices = sorted(matrices, key=lambda name: self.p[name].size * min(self.p[name].shape))
        self.pool = ThreadPoolExecutor(threads)

    def rows(self, tokens, seed):  # -> X, Y of the next step
        return rows(tokens, self.recipe.batch, self.p.config.block_size, seed, self.steps + 1)

    def together(self, function):
        """[function(0), ..., function(R - 1)], at the same time."""
        return list(self.pool.map(function, range(self.threads)))

    def step(self, *batch):  # arrays with B rows -> loss in nats a target, norm of its gradient, not clipped
        """One update of all parameters. The second array has the targets: X (B, T), Y (B, T) for a GPT.

        All threads together: loss_and_gradient, total being the number of targets that are not IGNORE; then
        add_gradients; then update, scaled by clip_scale (lesson 10) to CLIP. The threads' losses add up, and
        their squared norms. self.steps counts the step before its update. If loss or norm is not finite:
        Diverged, its message with f"step {self.steps + 1}"; parameters, memory and steps are as before."""
        total = np.count_nonzero(batch[1] != IGNORE)
        loss = sum(self.together(lambda i: self.loss_and_gradient(batch, total, i)))
        norm = math.sqrt(sum(self.together(self.add_gradients)))
        if not math.isfinite(loss + norm):
            raise Diverged(f"step {self.steps + 1}: the loss is {loss}, the norm of its gradient {norm}")
        self.steps += 1
        self.together(lambda i: self.update(i, clip_scale(norm, CLIP)))
        return loss, norm

    def loss_and_gradient(self, batch, total, i):
        """The i-th share of the rows, part by part: its part of the mean loss; its gradient in self.grads[i].

        self.gradient(self.ops, self.p, [each array's rows], total, g, self.dropout, seed) returns a part's
        loss and overwrites g: self.grads[i] for part 0, later self.spare[i], which is then added. Parts are
        shares of the share: self.accumulate, fewer if rows are fewer. Without rows loss and gradient are 0.
        seed: 0, or with dropout, as an int, .generate_state(1)[0] of np.random.SeedSequence((self.seed,
        self.steps, i, part))."""
        mine, loss, seed = share(0, len(batch[0]), i, self.threads), 0.0, 0
        parts = min(self.accumulate, mine.stop - mine.start)
        if parts == 0:  # more threads than rows
            self.grads[i].flat[:] = 0
        for k in range(parts):
            part, g = share(mine.start, mine.stop, k, parts), self.spare[i] if k else self.grads[i]
            if self.dropout:
                seed = int(np.random.SeedSequence((self.seed, self.steps, i, k)).generate_state(1)[0])
            loss += self.gradient(self.ops, self.p, [x[part] for x in batch], total, g, self.dropout, seed)
            if k:
                self.grads[i].flat += g.flat
        return loss

    def add_gradients(self, i):
        """Of self.flat_grads (R, n) the i-th share of n, added up in row 0; the sum's squared norm."""
        mine = share(0, self.p.flat.size, i, self.threads)
        return self.ops.gradient_norm_squared(self.flat_grads, mine.start, mine.stop)

    def rate(self, step):
        """The factor, 0 to 1, of a step's rates. The step after the last one would have 0."""
        return warmup_linear(step, self.recipe.steps + 1, self.recipe.warmup, 1.0)

    def update(self, i, scale):
        """The i-th thread's share of every part of the parameters, changed by the optimizer."""
        ops, p, g = self.ops, self.p.flat, self.grads[0].flat
        for part, (op, rate, decay) in PARTS[self.optimizer].items():
            lr, decay = self.recipe.lr * self.rate(self.steps) * rate, self.recipe.weight_decay * decay
            s = share(self.p.parts[part].start, self.p.parts[part].stop, i, self.threads)
            if op == "sgd":
                ops.sgd(p[s], g[s], self.m[s], lr, MOMENTUM[op], decay, scale)
            elif op == "adamw":
                ops.adamw(p[s], g[s], self.m[s], self.v[s], lr, *BETAS, EPS, decay, self.steps, scale)
            else:  # whole matrices, not slices
                for name in self.matrices[i::self.threads]:
                    matrix, gradient, m = (x[name] for x in (self.p, self.grads[0], self.momentum))
                    ops.muon(matrix, gradient, m, lr, MOMENTUM[op], decay, scale)

    def arrays(self):
        """All that a later process needs to go on, with the number of steps."""
        return {"parameters": self.p.flat, "momentum": self.m, "variance": self.v}

    def restore(self, arrays, steps):
        for name, array in self.arrays().items():
            array[:] = arrays[name]
        self.steps = steps


def train(trainer, tokens, seed=0):
    """Yields loss and norm of each step, from where the trainer stands to the end of its recipe."""
    while trainer.steps < trainer.recipe.steps:
        yield trainer.step(*trainer.rows(tokens, seed))


def evaluate(trainer, tokens):  # (n,) -> the GPT's mean loss of tokens[1:] in nats
    """In blocks side by side, the last one shorter, 8 at a time: the sum of -ln p(token | those before it in
    its block) / (n - 1). So every token but the first counts once."""
    T, inputs, targets = trainer.p.config.block_size, tokens[:-1], tokens[1:]
    whole = len(inputs) // T * T
    X, Y = inputs[:whole].reshape(-1, T), targets[:whole].reshape(-1, T)
    batches = [(X[i:i + 8], Y[i:i + 8]) for i in range(0, len(X), 8)]
    if whole < len(inputs):
        batches.append((inputs[None, whole:], targets[None, whole:]))

    def nats(batch):  # a sum: cross_entropy divides by 1
        return trainer.ops.cross_entropy(gpt_forward(trainer.ops, trainer.p, batch[0])[0], batch[1], 1)[0]

    return sum(map(float, trainer.pool.map(nats, batches))) / len(targets)


def quick_model(text, steps=100):  # -> (Parameters, tokenizer)
    """A small model of characters, trained in a second: for demonstrations where no better one is at hand."""
    tokenizer = char_tokenizer(text)
    recipe = RECIPES["muon"]._replace(batch=8, steps=steps, warmup=steps // 10)
    trainer = Trainer(devices.ops("cpu"), Config(tokenizer.vocab_size, 64, 2, 4, 64), recipe=recipe)
    list(train(trainer, tokenizer.encode(text)))
    return trainer.p, tokenizer


def main(*argv):
    from lessons.training_run import run
    run(argv)
