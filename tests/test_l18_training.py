"""The tests of f are test_f and test_f_*: they are also lesson 18's exercises.

The oracles: plain counting, finite differences, a toy model whose gradient is one line, one thread against
several. Exercises run on NumPy; what trains for many steps runs on the CPU's kernels.
"""
import functools
import math
import pathlib
import subprocess
import sys
import threading
from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lessons import devices
from lessons import l10_optimizers as optimizers
from lessons import l18_training as lesson
from lessons.l08_losses import IGNORE
from lessons.l16_gpt import gpt_forward
from lessons.parameters import Config, Parameters, init_parameters
from tests.close import assert_close, numeric_grad

ROOT = pathlib.Path(__file__).parent.parent
NUMPY = devices.ops("numpy")
CONFIG = Config(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=16)
TOKENS = np.random.default_rng(18).integers(0, 13, 200).astype(np.int32)
QUICK = {name: recipe._replace(batch=6, steps=150, warmup=5) for name, recipe in lesson.RECIPES.items()}


def trainer(optimizer="muon", threads=2, seed=0, room="cpu", accumulate=1, dropout=0.0, **changes):
    recipe = QUICK[optimizer]._replace(**changes)
    return lesson.Trainer(devices.ops(room), CONFIG, optimizer, recipe, threads, seed, accumulate=accumulate,
                          dropout=dropout)


def first_losses(trainer, steps):
    return [loss for _, (loss, _) in zip(range(steps), lesson.train(trainer, TOKENS))]


def test_rows_targets_are_the_inputs_one_position_later():
    text = np.arange(100, 150, dtype=np.int32)
    X, Y = lesson.rows(text, batch=7, block=9, seed=3, step=1)
    assert X.shape == Y.shape == (7, 9), (
        f"got {X.shape} and {Y.shape}, expected (7, 9): batch rows of block tokens")
    assert X.dtype == Y.dtype == np.int32, f"tokens of type int32 became {X.dtype} and {Y.dtype}"
    assert_close(X, X[:, :1] + np.arange(9), "X: a row is a piece of the text", 0, 0)
    assert_close(Y, X + 1, "Y: Y[b, t] is the token that follows X[b, t] in the text", 0, 0)


def test_rows_depend_on_seed_and_step_alone():
    def draw(seed, step):
        return lesson.rows(TOKENS, batch=4, block=8, seed=seed, step=step)[0].tolist()

    assert draw(1, 5) == draw(1, 5), (
        "the same seed and step drew other rows: a resumed run would see another text")
    for one, other in combinations([(0, 1), (1, 0), (1, 5), (1, 6), (2, 5), (5, 1)], 2):
        assert draw(*one) != draw(*other), f"(seed, step) = {one} and {other} drew the same rows"


def test_rows_begin_at_every_place_where_they_fit_equally_often():
    first, last, pairs = [], [], Counter()
    for step in range(200):
        X, Y = lesson.rows(np.arange(12), batch=4, block=8, seed=0, step=step)
        first, last = [*first, *X[:, 0]], [*last, *Y[:, -1]]
        pairs[int(X[0, 0]), int(X[1, 0])] += 1
    assert min(first) == 0 and max(last) == 11, (
        f"the windows reach from token {min(first)} to {max(last)} of 0 to 11: is the range one too short?")
    counts = np.bincount(first)
    assert len(counts) == 4 and min(counts) > 150, f"of 800 windows {counts} begin at 0, 1, 2 and 3"
    assert len(pairs) == 16, (
        f"the first two windows of a batch begin at {sorted(pairs)}, expected all 16 pairs of 0 to 3 in 200 "
        "batches: is every start drawn by itself?")


def test_rows_are_those_that_the_generator_draws():
    starts = np.random.default_rng((3, 7)).integers(0, 41, 6)
    X, _ = lesson.rows(np.arange(50), batch=6, block=9, seed=3, step=7)
    assert_close(X[:, 0], starts, "starts drawn by default_rng((seed, step)).integers")


def test_share_gives_the_pieces_of_its_example():
    for i, (start, stop) in enumerate([(0, 2), (2, 4), (4, 7), (7, 9), (9, 12)]):
        got = lesson.share(0, 12, i, 5)
        assert type(got) is slice, f"share(0, 12, {i}, 5) is {got!r}, expected a slice"
        assert got == slice(start, stop), f"share(0, 12, {i}, 5) is {got}, expected {slice(start, stop)}"


@settings(deadline=None, max_examples=20)
@example(3, 12, 5)
@example(0, 2, 3)
@given(st.integers(0, 100), st.integers(0, 1000), st.integers(1, 17))
def test_share_cuts_a_range_into_nearly_equal_pieces(start, n, parts):
    borders = [start + math.floor(Fraction(n * i, parts)) for i in range(parts + 1)]
    got = [lesson.share(start, start + n, i, parts) for i in range(parts)]
    want = [slice(*border) for border in pairwise(borders)]
    assert got == want, f"range({start}, {start + n}) in {parts} pieces: got {got}, expected {want}"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gpt_gradient(dropout):
    config, rng = Config(7, 5, n_layer=1, n_head=2, n_embd=8), np.random.default_rng(0)
    p, g = init_parameters(config, dtype=np.float64), Parameters(config, dtype=np.float64)
    p.flat[:] += 0.3 * rng.normal(size=p.flat.size)
    X, Y = rng.integers(0, 7, (2, 3, 5))
    Y[0, :2] = IGNORE

    def loss(name, values):
        before, p[name][:] = p[name].copy(), values
        logits = gpt_forward(NUMPY, p, X, dropout=dropout, seed=11)[0]
        p[name][:] = before
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -sum(log_p[b, t, Y[b, t]] for b in range(3) for t in range(5) if Y[b, t] != IGNORE) / 20

    g.flat[:] = 1  # what was there must be gone
    got = lesson.gpt_gradient(NUMPY, p, (X, Y), 20, g, dropout, 11)
    assert_close(got, loss("ln_f.bias", p["ln_f.bias"]), "loss, 13 targets of 20")
    for name in "wte.weight", "h.0.attn.c_proj.bias", "h.0.mlp.c_fc.bias", "ln_f.bias":
        want = numeric_grad(lambda values, name=name: loss(name, values), p[name])
        assert_close(g[name], want, f"gradient of {name}", rtol=1e-4, atol=1e-7)


class Stacks(Config):
    """Two stacks of blocks, as an encoder and a decoder have them (lesson 15)."""

    def shapes(self):
        return {f"{stack}.{name}": shape for stack in ("encoder", "decoder")
                for name, shape in Config.shapes(self).items()}


MATRIX = "decoder.h.1.mlp.c_fc.weight"  # (16, 64)


def half_squares(ops, p, batch, total, g, dropout, seed, calls):  # x (B, 16), y (B,), z (B,)
    """A toy: the sum of (z * sum(x @ MATRIX) - y)^2 / 2 over the rows whose target y counts, over total."""
    x, y, z = batch
    calls.append({"rows": len(x), "total": total, "dropout": dropout, "seed": seed, "g": g})
    error = np.where(y == IGNORE, 0, z * (x @ p[MATRIX]).sum(1) - y)
    g.flat[:] = 0
    g[MATRIX][:] = ((error * z) @ x / total)[:, None]
    return (error**2).sum() / 2 / total


def toy(calls, threads=2, accumulate=1, dropout=0.0, optimizer="sgd", seed=0):
    recipe = QUICK[optimizer]._replace(weight_decay=0, warmup=0)
    return lesson.Trainer(NUMPY, Stacks(*CONFIG), optimizer, recipe, threads, seed,
                          functools.partial(half_squares, calls=calls), accumulate, dropout)


def toy_batch(rows):
    rng = np.random.default_rng(rows)
    y = rng.integers(0, 5, rows)
    y[1::3] = IGNORE
    return rng.normal(size=(rows, 16)), y, rng.normal(size=rows)


LAYOUTS = pytest.mark.parametrize("threads, accumulate", [(1, 1), (3, 1), (1, 4), (2, 3), (9, 1), (5, 2)])


@LAYOUTS
def test_trainer_loss_and_gradient(threads, accumulate):
    """8 rows of three arrays, a third of the targets IGNOREd; with 9 threads one of them has no row."""
    calls, (x, y, z) = [], toy_batch(8)
    before = x.copy(), y.copy(), z.copy()
    t = toy(calls, threads, accumulate)
    for i in range(threads):
        t.flat_grads[:] = np.nan  # whatever was there before
        calls.clear()
        mine = slice(8 * i // threads, 8 * (i + 1) // threads)
        error = (z * (x @ t.p[MATRIX].astype(float)).sum(1) - y)[mine] * (y != IGNORE)[mine]
        want = np.repeat(((error * z[mine])[:, None] * x[mine]).sum(0)[:, None] / 7, 64, axis=1)
        loss = t.loss_and_gradient((x, y, z), 7, i)
        for part, call in enumerate(calls):
            where = f"self.spare[{i}]" if part else f"self.grads[{i}]"
            assert call["g"] is (t.spare[i] if part else t.grads[i]), (
                f"thread {i}, part {part}: g is to be {where}, which no other thread writes into")
        assert calls or not t.grads[i].flat.any(), (
            f"thread {i} has no rows: its gradient must become 0, what stood there before is left")
        assert_close(loss, (error**2).sum() / 2 / 7, f"loss of thread {i}")
        assert_close(t.grads[i][MATRIX], want, f"gradient of thread {i}", rtol=1e-5, atol=1e-6)
        assert np.isnan(np.delete(t.flat_grads, i, axis=0)).all(), f"thread {i} wrote into another's buffer"
        n = mine.stop - mine.start
        parts = [call["rows"] for call in calls]
        assert sum(parts) == n and len(parts) == min(n, accumulate), (
            f"{n} rows came in parts of {parts}, expected {min(n, accumulate)} parts")
        assert not parts or max(parts) - min(parts) <= 1, f"parts of {parts} rows"
        assert {call["total"] for call in calls} <= {7}, "total is the whole batch's, for every part"
    assert all((a == b).all() for a, b in zip(before, (x, y, z))), "the batch was changed"


def test_trainer_loss_and_gradient_has_another_seed_for_every_thread_part_and_step():
    def seeds(t, steps):
        calls.clear()
        for t.steps in steps:
            for i in range(2):
                t.loss_and_gradient(toy_batch(8), 8, i)
        assert all(type(call["seed"]) is int for call in calls), "a seed is an int: a uint32 overflows"
        assert {call["dropout"] for call in calls} == {t.dropout}
        return [call["seed"] for call in calls]

    calls = []
    drawn = seeds(toy(calls, 2, 3, dropout=0.1), range(4))
    want = [int(np.random.SeedSequence((0, step, i, part)).generate_state(1)[0])
            for step in range(4) for i in range(2) for part in range(3)]
    assert len(drawn) == len(set(drawn)) == 4 * 2 * 3, "two draws of the dropout have the same seed"
    assert seeds(toy(calls, 2, 3, dropout=0.1), [3]) == drawn[-6:], "a resumed run drops other numbers"
    assert not set(seeds(toy(calls, 2, 3, dropout=0.1, seed=1), range(4))) & set(drawn), "another run's seed"
    assert set(seeds(toy(calls, 2, 3), range(4))) == {0}, "without dropout the seed is 0"
    assert_close(drawn, want, "seeds drawn by SeedSequence((self.seed, self.steps, i, part))")


def test_trainer_add_gradients():
    t = toy([], threads=3)
    t.flat_grads[:] = np.random.default_rng(0).normal(size=t.flat_grads.shape)
    before, n = t.flat_grads.copy(), t.p.flat.size
    squares = 0.0
    for i in range(3):
        squares += t.add_gradients(i)
        want, done = before.copy(), n * (i + 1) // 3
        want[0, :done] = before[:, :done].sum(0)
        assert_close(t.flat_grads, want, f"flat_grads after the shares up to {i}", rtol=1e-5, atol=1e-6)
    assert_close(squares, np.square(before.sum(0), dtype=float).sum(), "sum of the squared norms", rtol=1e-6)


@LAYOUTS
def test_trainer_step(threads, accumulate):
    """The gradient of the mean over all rows, clipped; SGD's first step is p -= lr g; lr falls in a line."""
    calls, (x, y, z) = [], toy_batch(8)
    t = toy(calls, threads, accumulate)
    counts, w, start = y != IGNORE, t.p[MATRIX].astype(float), t.p.flat.copy()
    error = (z * (x @ w).sum(1) - y) * counts
    got = t.step(x, y, z)
    want = np.repeat(((error * z)[:, None] * x).sum(0)[:, None] / 5, 64, axis=1)
    norm = np.sqrt((want**2).sum())
    assert norm > 1, "this test wants a gradient that is clipped"
    assert {call["total"] for call in calls} == {5}, "total is the number of targets, in all rows, that count"
    assert_close(got[0], (error**2).sum() / 2 / 5, "loss", rtol=1e-6)
    assert_close(t.grads[0][MATRIX], want, "gradient", rtol=1e-5, atol=1e-6)
    assert_close(got[1], norm, "norm of the gradient, before it is clipped", rtol=1e-5)
    assert_close(t.p[MATRIX] - w, -0.1 * 150 / 151 * want / norm, "what the step added", rtol=1e-3, atol=1e-7)
    assert t.steps == 1 and (np.flatnonzero(t.p.flat != start).size == np.count_nonzero(t.p[MATRIX] != w))


def test_trainer_step_leaves_a_short_gradient_as_it_is():
    t, (x, y, z) = toy([]), toy_batch(8)
    x, before = x / 1000, t.p[MATRIX].copy()
    _, norm = t.step(x, y, z)
    assert norm < 0.1, "this test wants a gradient that is not clipped"
    assert_close(t.p[MATRIX] - before, -0.1 * 150 / 151 * t.grads[0][MATRIX], "what it added", 1e-3, 1e-8)


def test_trainer_step_counts_before_it_updates():
    """Adam's first step is lr long, whatever the gradient: if its step counts from 1."""
    t = toy([], optimizer="adamw")
    before = t.p[MATRIX].copy()
    t.step(*toy_batch(8))
    assert_close(t.p[MATRIX] - before, -0.004 * 150 / 151 * np.sign(t.grads[0][MATRIX]), "step 1", rtol=1e-3)


@pytest.mark.parametrize("loss, slope", [(np.nan, 1), (np.inf, 1), (1.0, np.nan), (1.0, np.inf)])
def test_trainer_step_changes_nothing_when_loss_or_gradient_is_not_finite(loss, slope):
    def gradient(ops, p, batch, total, g, dropout, seed):
        g.flat[:] = slope if diverges else 1
        return loss if diverges else 1.0

    t, diverges = toy([]), False
    t.gradient = gradient
    t.step(*toy_batch(8))
    t.step(*toy_batch(8))
    before, diverges = (t.p.flat.copy(), t.m.copy(), t.v.copy()), True
    with pytest.raises(lesson.Diverged) as raised:
        t.step(*toy_batch(8))
    assert t.steps == 2, f"steps is {t.steps} after two steps and one that failed, expected 2"
    for name, was, array in zip(("parameters", "momentum", "variance"), before, (t.p.flat, t.m, t.v)):
        assert_close(array, was, name, 0, 0)
    assert "step 3" in str(raised.value), f"the message, {raised.value}, does not say that it was step 3"


def test_trainer_step_runs_the_threads_at_the_same_time():
    meeting, t = threading.Barrier(3), toy([], threads=3)

    def gradient(ops, p, batch, total, g, dropout, seed):
        meeting.wait(3)  # until all three are here
        g.flat[:] = 0
        return 0.0

    t.gradient = gradient
    try:
        t.step(*toy_batch(9))
    except threading.BrokenBarrierError:
        pytest.fail("a thread waited 3 seconds for the others: does one begin when another has ended?")


@pytest.mark.parametrize("n", [2, 8, 9, 10, 73, 150])
def test_evaluate_counts_every_token_once(n):
    """With a model that does not look back, the mean loss is the mean over tokens, whatever the blocks."""
    t, tokens = trainer(room="numpy"), TOKENS[:n]
    for name, view in t.p.views.items():  # all logits become wte @ ln_f.bias, the same at every position
        if name.startswith("ln_f"):
            view[:] = 0 if name.endswith("weight") else np.linspace(-1, 1, 16)
    logits = t.p["wte.weight"].astype(float) @ np.linspace(-1, 1, 16)
    loss = np.log(np.exp(logits).sum()) - logits
    assert_close(lesson.evaluate(t, tokens), loss[tokens[1:]].mean(), "loss", rtol=1e-5)


@pytest.mark.parametrize("n", [9, 100])
def test_evaluate_lets_a_token_see_what_precedes_it_in_its_block(n):
    """By hand, token after token, with a model that does look back. 8 blocks at a time fit into memory."""
    t, sizes, want = trainer(room="numpy"), [], 0.0
    t.p.flat[:] += 0.3 * np.random.default_rng(1).normal(size=t.p.flat.size).astype(np.float32)

    def cross_entropy(logits, *arguments):
        sizes.append(len(logits))
        return NUMPY.cross_entropy(logits, *arguments)

    t.ops = SimpleNamespace(**vars(NUMPY) | {"cross_entropy": cross_entropy})
    for i in range(n - 1):
        logits = gpt_forward(NUMPY, t.p, TOKENS[None, i // 8 * 8:i + 1])[0][0, -1].astype(float)
        want += (np.log(np.exp(logits).sum()) - logits[TOKENS[i + 1]]) / (n - 1)
    assert_close(lesson.evaluate(t, TOKENS[:n]), want, "loss", rtol=1e-5)
    assert max(sizes) <= 8, f"{max(sizes)} blocks at once"


# ---- whole trainings

@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_training_learns_a_small_text_by_heart(optimizer):
    t = trainer(optimizer, lr={"muon": 0.02, "adamw": 0.01, "sgd": 0.3}[optimizer])
    losses = [loss for loss, _ in lesson.train(t, np.arange(40) % 13)]
    assert losses[0] == pytest.approx(math.log(13), rel=0.1), (
        "an untrained model should be as good as guessing: log 13")
    assert losses[-1] < 0.5, f"after {t.steps} steps on 0, 1, 2, ... the loss is still {losses[-1]:.2f}"


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_training_is_the_same_on_one_and_on_several_threads(optimizer):
    losses = {n: [loss for loss, _ in lesson.train(trainer(optimizer, n, steps=50), TOKENS)]
              for n in (1, 2, 4)}
    for n in 2, 4:  # 6 rows on 4 threads: shares of 1 and 2 rows
        assert_close(losses[n], losses[1], f"losses of {n} threads", rtol=0, atol=1e-4)


@pytest.mark.parametrize("room", ["numpy", "cpu"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_training_is_the_same_in_parts_as_at_once(optimizer, room):
    """7 rows: shares of 2, 3 and 4, parts of 1 and 2. Only the biases of the keys differ. They add the same
    to all scores of a query, so their gradient is 0 but for rounding, and Adam makes that a full step."""
    whole = trainer(optimizer, 1, room=room, batch=7)
    losses = first_losses(whole, 8)
    for threads, accumulate in (1, 2), (1, 7), (2, 3), (3, 2), (2, 100):
        how = f"{threads} threads, {accumulate} parts"
        t = trainer(optimizer, threads, room=room, accumulate=accumulate, batch=7)
        assert_close(first_losses(t, 8), losses, f"losses of {how}", rtol=0, atol=1e-6)
        for name, view in t.p.views.items():
            got, want = view.copy(), whole.p[name].copy()
            if name.endswith("attn.c_attn.bias"):
                got[16:32] = want[16:32] = 0
            assert_close(got, want, f"{name} after 8 steps of {how}", rtol=0, atol=1e-6)


def test_training_repeats_to_the_bit():
    a, b = trainer(), trainer()
    assert list(lesson.train(a, TOKENS)) == list(lesson.train(b, TOKENS))
    assert (a.p.flat == b.p.flat).all(), (
        "two runs with the same seed and threads ended in different parameters")


def expected_step(optimizer, name, p, g, m, v, step):
    """One parameter, changed in place by lesson 10's functions; the recipe is written out here."""
    lr, decay = {"muon": (0.02, 0.1), "adamw": (0.004, 0.1), "sgd": (0.1, 0.3)}[optimizer]
    lr *= step / 5  # still warming up
    vector, table = p.ndim == 1, name in ("wte.weight", "wpe.weight")
    if optimizer == "muon" and not vector and not table:
        optimizers.muon(p, g, m, lr, 0.95, decay, 1.0)
    elif optimizer == "muon":
        optimizers.adamw(p, g, m, v, 0.2 * lr, 0.9, 0.99, 1e-8, 0.0, step, 1.0)
    elif optimizer == "adamw":
        optimizers.adamw(p, g, m, v, lr, 0.9, 0.99, 1e-8, 0.0 if vector else decay, step, 1.0)
    else:
        optimizers.sgd(p, g, m, lr, 0.9, 0.0 if vector else decay, 1.0)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_trainer_update_changes_every_parameter_as_its_recipe_says(optimizer, threads):
    t = trainer(optimizer, threads, weight_decay={"muon": 0.1, "adamw": 0.1, "sgd": 0.3}[optimizer])
    t.p.flat *= 4  # so that the gradient is large enough to be clipped
    want = {name: view.astype(float) for name, view in t.p.views.items()}
    memory = {name: (np.zeros(view.shape), np.zeros(view.shape)) for name, view in want.items()}
    for step in 1, 2, 3:
        _, norm = t.step(*lesson.rows(TOKENS, 6, 8, 0, step))
        assert norm > 1, "this test wants a gradient that is clipped"
        for name, g in t.grads[0].views.items():
            expected_step(optimizer, name, want[name], g.astype(float) / (norm + 1e-6), *memory[name], step)
        for name, view in t.p.views.items():
            assert_close(view, want[name], f"{name} after step {step} of {optimizer}", rtol=1e-3, atol=1e-4)


def test_trainer_holds_blas_to_one_thread_and_keeps_freed_memory():
    """In a process of its own, as both settings are a process's. Fresh memory costs many page faults."""
    program = """if True:
        import resource
        import numpy as np
        from threadpoolctl import threadpool_info
        from lessons import devices, l18_training
        from lessons.parameters import Config
        t = l18_training.Trainer(devices.ops("cpu"), Config(65, 64, 2, 4, 128), threads=2)
        tokens = np.arange(5000) % 65
        faults = []
        for step in range(1, 14):
            t.step(*l18_training.rows(tokens, 16, 64, 0, step))
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        print(max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"),
              (faults[-1] - faults[2]) // 10)"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    blas_threads, faults = map(int, done.stdout.split())
    assert blas_threads == 1
    if sys.platform.startswith("linux"):
        assert faults < 500, f"{faults} page faults a step: is freed memory given back to the system?"


@pytest.mark.parametrize("how", [{}, {"dropout": 0.3}, {"dropout": 0.3, "accumulate": 2}])
def test_trainer_restore_goes_on_to_the_same_bits(how):
    whole, first, second = trainer(**how), trainer(**how), trainer(**how)
    for _ in lesson.train(whole, TOKENS):
        pass
    first_losses(first, 25)
    second.p.flat[:] = 0
    second.restore({name: array.copy() for name, array in first.arrays().items()}, first.steps)
    for _ in lesson.train(second, TOKENS):
        pass
    assert (second.p.flat == whole.p.flat).all(), "is some of the optimizer's memory not in arrays()?"


def test_training_with_dropout_is_another_and_evaluate_knows_nothing_of_it():
    plain, dropping = trainer("sgd"), trainer("sgd", dropout=0.5)
    assert lesson.evaluate(plain, TOKENS) == lesson.evaluate(dropping, TOKENS)
    batch = lesson.rows(TOKENS, 6, 8, 0, 1)
    assert plain.step(*batch)[0] != dropping.step(*batch)[0], "dropout left nothing out"


def test_muons_matrices_are_found_in_all_stacks():
    names = toy([]).matrices
    assert len(names) == 2 * 2 * 4 and MATRIX in names, names
    assert not [name for name in names if "wte" in name or "wpe" in name], "tables are not Muon's"


def test_trainer_update_turns_muon_on_a_matrix_of_any_stack():
    t, before = toy([], optimizer="muon"), {}
    before = {name: view.copy() for name, view in t.p.views.items()}
    _, norm = t.step(*toy_batch(8))
    want, m = before[MATRIX].astype(float), np.zeros((16, 64))
    optimizers.muon(want, t.grads[0][MATRIX].astype(float), m, 0.02, 0.95, 0.0, min(1, 1 / norm))
    assert_close(t.p[MATRIX], want, MATRIX, rtol=1e-3, atol=1e-5)
    assert all((view == before[name]).all() for name, view in t.p.views.items() if name != MATRIX)


def test_muons_matrices_are_no_tables_and_no_vectors():
    names = trainer().matrices
    assert len(names) == 8 and all(name.startswith("h.") and name.endswith(".weight") and ".ln_" not in name
                                   for name in names)


def test_quick_model_is_better_than_counting_characters():
    text = "the quick brown fox jumps over the lazy dog. " * 60
    p, tokenizer = lesson.quick_model(text)
    t = lesson.Trainer(devices.ops("cpu"), p.config)
    t.p.flat[:] = p.flat
    counts = np.bincount(tokenizer.encode(text)) / len(text)
    entropy = -(counts[counts > 0] * np.log(counts[counts > 0])).sum()
    loss = lesson.evaluate(t, tokenizer.encode(text))
    assert loss < entropy / 2, f"{loss:.2f} nats a character; the frequencies alone give {entropy:.2f}"
