"""The command line of lesson 11: it trains the league's RNN or LSTM on two cores and writes with it."""
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from rich.progress import track
from threadpoolctl import threadpool_limits

from lessons import devices
from lessons.errors import InputError, Parser, non_negative_int, positive_int
from lessons.l10_optimizers import clip_scale, warmup_cosine
from lessons.l11_recurrent import model_forward, nats, stretches, window_gradient
from lessons.l18_training import share
from lessons.model_file import check_place, save_model
from lessons.recurrent_parameters import GATES, init_parameters, load, parameters, shapes, start_state, views
from lessons.texts import numbered, read_text, split

THREADS, WARMUP, CLIP, BETAS, EPS = 2, 20, 1.0, (0.9, 0.99), 1e-8


class Recipe(NamedTuple):
    """Rows of a batch, letters of a window; the rate goes down to a fiftieth along a cosine."""

    hidden: int
    layers: int
    rows: int
    window: int
    steps: int
    lr: float


RECIPES = {"lstm": Recipe(256, 2, 32, 64, 3000, 5e-3), "rnn": Recipe(512, 2, 32, 64, 2600, 1e-3)}
MINUTES = "six minutes"  # on two cores, each of the two


def train(ops, kind, codes, V, recipe, seed=0):
    """Yields the model, the loss in nats a letter and the gradient's norm of each step. The rows of a batch
    read on through the text, each its own stretch, and at its end begin again. Each thread goes forward and
    backward with its share of the rows; then each updates its slice of the parameters, as in lesson 18."""
    threadpool_limits(1, "blas")  # the threads are ours: one matrix product a core
    size, (_, _, rows, T, steps, rate) = (kind, V, recipe.hidden, recipe.layers), recipe
    flat, model = init_parameters(*size, seed)
    m, v, grads = np.zeros_like(flat), np.zeros_like(flat), np.zeros((THREADS, flat.size), flat.dtype)
    gradients = [views(row, shapes(*size)) for row in grads]
    columns, states = stretches(codes, rows), [None] * THREADS

    def gradient(start, i):
        mine = columns[start:start + T + 1, share(0, rows, i, THREADS)]
        before = states[i] if start else start_state(model, mine.shape[1])
        loss, states[i] = window_gradient(ops, model, mine, before, T * rows, gradients[i])
        return loss

    def norm_squared(i):
        part = share(0, flat.size, i, THREADS)
        return ops.gradient_norm_squared(grads, part.start, part.stop)

    def update(step, scale, i):
        part, lr = share(0, flat.size, i, THREADS), warmup_cosine(step, steps, WARMUP, rate, rate / 50)
        ops.adamw(flat[part], grads[0, part], m[part], v[part], lr, *BETAS, EPS, 0.0, step, scale)

    with ThreadPoolExecutor(THREADS) as pool:
        together = lambda function, *args: list(pool.map(lambda i: function(*args, i), range(THREADS)))
        for step in range(1, steps + 1):
            start = (step - 1) % ((len(columns) - 1) // T) * T
            loss = sum(together(gradient, start))
            norm = math.sqrt(sum(together(norm_squared)))
            if not math.isfinite(loss + norm):
                raise InputError(f"step {step}: the loss is {loss}: train with another --seed")
            together(update, step, clip_scale(norm, CLIP))
            yield model, loss, norm


def write(ops, model, alphabet, prompt, length, seed=0, temperature=0.7):  # -> text, without the prompt
    """One letter after the other, drawn by its probability; it is the next input. The state holds all that
    was read: a step costs the same however long the text is."""
    rng, states, found = np.random.default_rng(seed), start_state(model, 1), ""
    codes = np.array([[alphabet.index(letter)] for letter in prompt])
    for _ in range(length):
        logits, states, _ = model_forward(ops, model, codes, states)
        p = np.exp((logits[-1, 0] - logits[-1, 0].max()).astype(np.float64) / temperature)
        codes = rng.choice(len(p), size=(1, 1), p=p / p.sum())
        found += alphabet[codes[0, 0]]
    return found


def demonstrate():
    """An LSTM learns for a few seconds; then what out/lstm.npz writes, if it is there."""
    text, ops = read_text("shakespeare"), devices.ops_with("recurrent")
    codes, alphabet = numbered(text)
    training, validation = split(codes)
    recipe = RECIPES["lstm"]._replace(hidden=64, layers=1, steps=100, lr=2e-2)
    print(f"an LSTM of {recipe.hidden} learns letters: nats a letter, and what it writes")
    for step, (model, loss, _) in enumerate(train(ops, "lstm", training, len(alphabet), recipe), 1):
        if step in (1, 30, recipe.steps):
            print(f"  step {step:3} {loss:6.2f}  {write(ops, model, alphabet, chr(10), 60)!r}")
    try:
        model, seconds = load("out/lstm.npz", text)
    except InputError as problem:
        print(f'{problem}\n  The league\'s takes {MINUTES}: make lesson 11 ARGS="--train lstm"')
        return
    bits = nats(ops, model, training, validation).mean() / math.log(2)
    print(f"out/lstm.npz, {seconds:.0f} s of training, {bits:.3f} bits a character, writes:")
    print(write(ops, model, alphabet, "\n", 200))


def main(argv):
    parser = Parser("recurrent", "Networks with a state. Without an option: gradients, and an LSTM writes.")
    parser.add_argument("--train", choices=GATES, help="train this model for the league of lesson 20")
    parser.add_argument("--steps", type=positive_int, help="(default: the recipe's)")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="(default: 0)")
    parser.add_argument("--out", metavar="FILE", help="(default: out/lstm.npz, or out/rnn.npz)")
    args = parser.parse_args(argv)
    if not args.train:
        parser.error("the other options need --train")
    out = args.out or f"out/{args.train}.npz"
    check_place(out)
    recipe, text, ops = RECIPES[args.train], read_text("shakespeare"), devices.ops_with("recurrent")
    recipe = recipe._replace(steps=args.steps or recipe.steps)
    codes, alphabet = numbered(text)
    training, validation = split(codes)
    print(f"{args.train}: {recipe.layers} layers of {recipe.hidden}, {recipe.steps} steps of {recipe.rows} x "
          f"{recipe.window} letters: about {MINUTES} on two cores, if nothing is changed")
    start = time.perf_counter()
    for model, _, _ in track(train(ops, args.train, training, len(alphabet), recipe, args.seed), "",
                             recipe.steps):
        pass
    seconds = time.perf_counter() - start
    save_model(out, text, seconds, **model)
    bits = nats(ops, model, training, validation).mean() / math.log(2)
    print(f"{seconds:.0f} s, {parameters(model):,} parameters, {bits:.3f} bits a character on the last tenth")
    print(f"written: {out}\nIt writes:\n{write(ops, model, alphabet, chr(10), 300, args.seed)}")
