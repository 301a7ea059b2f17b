"""Lesson 18: the tests of f are test_f and test_f_*. Oracles: plain counting, one thread against several."""
import functools
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import devices
from lessons import l10_optimizers as optimizers
from lessons import l18_training as lesson
from lessons.l08_losses import IGNORE
from lessons.parameters import Config
from tests.close import assert_close

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = Config(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=16)
TOKENS = np.random.default_rng(18).integers(0, 13, 200).astype(np.int32)
QUICK = {name: recipe._replace(batch=6, steps=150, warmup=5) for name, recipe in lesson.RECIPES.items()}


def trainer(optimizer="muon", threads=2, seed=0, room="cpu", accumulate=1, dropout=0.0, **changes):
    recipe = QUICK[optimizer]._replace(**changes)
    return lesson.Trainer(devices.ops(room), CONFIG, optimizer, recipe, threads, seed, accumulate=accumulate,
                          dropout=dropout)


def first_losses(trainer, steps):
    return [loss for _, (loss, _) in zip(range(steps), lesson.train(trainer, TOKENS))]


def test_split_keeps_the_last_tenth_for_validation():
    assert lesson.split("abcdefghijklmnopqrst") == ("abcdefghijklmnopqr", "st")


def test_rows_targets_are_the_inputs_one_position_later():
    X, Y = lesson.rows(np.arange(50), batch=7, block=9, seed=3, step=1)
    assert X.shape == Y.shape == (7, 9), (
        f"got {X.shape} and {Y.shape}, expected (7, 9): batch rows of block tokens")
    assert (Y == X + 1).all(), "Y[b, t] is the token that follows X[b, t] in the text"


def test_rows_reach_the_first_and_the_last_token():
    seen = set()
    for step in range(200):
        X, Y = lesson.rows(np.arange(12), batch=4, block=8, seed=0, step=step)
        seen |= set(X[:, 0]) | set(Y[:, -1])
    assert {0, 11} <= seen, f"windows start or end only at {sorted(seen)}: is the range one too short?"


def test_rows_depend_on_seed_and_step_alone():
    def draw(seed, step):
        return lesson.rows(TOKENS, batch=4, block=8, seed=seed, step=step)[0].tolist()

    assert draw(1, 5) == draw(1, 5), (
        "the same seed and step drew other rows: a resumed run would see another text")
    assert draw(1, 5) != draw(1, 6) and draw(1, 5) != draw(2, 5), "another step or seed must draw other rows"


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 100), st.integers(0, 1000), st.integers(1, 17))
def test_share_cuts_a_range_into_nearly_equal_pieces(start, n, parts):
    pieces = [lesson.share(start, start + n, i, parts) for i in range(parts)]
    covered = [k for piece in pieces for k in range(piece.start, piece.stop)]
    assert covered == list(range(start, start + n)), (
        "the pieces do not cover the range once: is a rest dropped?")
    sizes = [piece.stop - piece.start for piece in pieces]
    assert max(sizes) - min(sizes) <= 1, f"sizes {sizes} differ by more than one"


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_trainer_step_learns_a_small_text_by_heart(optimizer):
    t = trainer(optimizer, lr={"muon": 0.02, "adamw": 0.01, "sgd": 0.3}[optimizer])
    losses = [loss for loss, _ in lesson.train(t, np.arange(40) % 13)]
    assert losses[0] == pytest.approx(math.log(13), rel=0.1), (
        "an untrained model should be as good as guessing: log 13")
    assert losses[-1] < 0.5, f"after {t.steps} steps on 0, 1, 2, ... the loss is still {losses[-1]:.2f}"


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_trainer_step_is_the_same_on_one_and_on_several_threads(optimizer):
    losses = {n: [loss for loss, _ in lesson.train(trainer(optimizer, n, steps=50), TOKENS)]
              for n in (1, 2, 4)}
    for n in 2, 4:  # 6 rows on 4 threads: shares of 1 and 2 rows
        assert_close(losses[n], losses[1], f"losses of {n} threads", rtol=0, atol=1e-4)


@pytest.mark.parametrize("room", ["numpy", "cpu"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_trainer_step_is_the_same_in_parts_as_at_once(optimizer, room):
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


def test_trainer_step_repeats_to_the_bit():
    a, b = trainer(), trainer()
    assert list(lesson.train(a, TOKENS)) == list(lesson.train(b, TOKENS))
    assert (a.p.flat == b.p.flat).all(), (
        "two runs with the same seed and threads ended in different parameters")


def test_trainer_step_gives_the_gradient_of_the_mean_over_all_rows():
    """A thread that divides by its own rows, or a rest that is dropped, shows here."""
    X, Y = lesson.rows(TOKENS, 7, 8, 0, 1)
    gradients = []
    for threads in 1, 3:
        t = trainer(threads=threads)
        t.step(X, Y)
        gradients.append(t.grads[0].flat.copy())
    assert_close(gradients[1], gradients[0], "gradient of 7 rows on 3 threads", rtol=1e-3, atol=1e-6)


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


def test_trainer_step_changes_nothing_when_the_loss_is_not_finite():
    t = trainer()
    t.step(*lesson.rows(TOKENS, 6, 8, 0, 1))
    t.p["ln_f"][0][3] = np.inf
    before = t.p.flat.copy(), t.m.copy(), t.v.copy()
    with pytest.raises(lesson.Diverged, match="step 2"):
        t.step(*lesson.rows(TOKENS, 6, 8, 0, 2))
    assert all(np.array_equal(a, b) for a, b in zip(before, (t.p.flat, t.m, t.v))) and t.steps == 1


@pytest.mark.parametrize("n", [2, 8, 9, 10, 73, 150])
def test_evaluate_counts_every_token_once(n):
    """With a model that does not look back, the mean loss is the mean over tokens, whatever the blocks."""
    t, tokens = trainer(), TOKENS[:n]
    for name, view in t.p.views.items():  # all logits become wte @ ln_f.bias, the same at every position
        if name.startswith("ln_f"):
            view[:] = 0 if name.endswith("weight") else np.linspace(-1, 1, 16)
    logits = t.p["wte.weight"].astype(float) @ np.linspace(-1, 1, 16)
    loss = np.log(np.exp(logits).sum()) - logits
    assert_close(lesson.evaluate(t, tokens), loss[tokens[1:]].mean(), "loss", rtol=1e-5)


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


class Stacks(Config):
    """Two stacks of blocks, as an encoder and a decoder have them (lesson 15)."""

    def shapes(self):
        return {f"{stack}.{name}": shape for stack in ("encoder", "decoder")
                for name, shape in Config.shapes(self).items()}


MATRIX = "decoder.h.1.mlp.c_fc.weight"  # (16, 64)


def half_squares(ops, p, batch, total, g, dropout, seed, calls):  # x (B, 16), y (B,), z (B,)
    """A toy: the mean of (z * sum(x @ MATRIX) - y)^2 / 2 over the rows whose target y counts."""
    x, y, z = batch
    calls.append({"rows": len(x), "total": total, "dropout": dropout, "seed": seed})
    error = np.where(y == IGNORE, 0, z * (x @ p[MATRIX]).sum(1) - y)
    g.flat[:] = 0
    g[MATRIX][:] = ((error * z) @ x / total)[:, None]
    return (error**2).sum() / 2 / total


def toy(calls, threads=2, accumulate=1, dropout=0.0, optimizer="sgd"):
    recipe = QUICK[optimizer]._replace(weight_decay=0, warmup=0)
    return lesson.Trainer(devices.ops("cpu"), Stacks(*CONFIG), optimizer, recipe, threads, 0,
                          functools.partial(half_squares, calls=calls), accumulate, dropout)


def toy_batch(rows):
    rng = np.random.default_rng(rows)
    y = rng.integers(0, 5, rows)
    y[1::3] = IGNORE
    return rng.normal(size=(rows, 16)), y, rng.normal(size=rows)


@pytest.mark.parametrize("threads, accumulate", [(1, 1), (2, 1), (3, 1), (1, 4), (2, 3), (9, 1), (5, 2)])
def test_trainer_step_takes_any_gradient_and_adds_up_its_parts(threads, accumulate):
    """8 rows of three arrays, a third of the targets IGNOREd; with 9 threads one of them has no row."""
    calls, (x, y, z) = [], toy_batch(8)
    t = toy(calls, threads, accumulate)
    t.flat_grads[:] = np.nan  # whatever was there before
    counts, w = y != IGNORE, t.p[MATRIX].astype(float)
    error = (z * (x @ w).sum(1) - y) * counts
    loss, norm = t.step(x, y, z)
    assert_close(loss, (error**2).sum() / 2 / counts.sum(), "loss", rtol=1e-6)
    want = np.repeat(((error * z)[:, None] * x).sum(0)[:, None] / counts.sum(), 64, axis=1)
    assert_close(t.grads[0][MATRIX], want, "gradient", rtol=1e-5, atol=1e-6)
    assert_close(norm, np.sqrt((want**2).sum()), "its norm", rtol=1e-5)
    assert {call["total"] for call in calls} == {5}, "total is the number of targets, in all rows, that count"
    most = -(-8 // (threads * accumulate))
    assert max(call["rows"] for call in calls) <= most, f"more than {most} rows at once take more memory"
    assert sum(call["rows"] for call in calls) == 8


def test_trainer_step_gives_every_thread_part_and_step_another_seed_for_dropout():
    def seeds(t, steps):
        for _ in range(steps):
            t.step(*toy_batch(8))
        found = sorted(call["seed"] for call in calls)
        calls.clear()
        return found

    calls = []
    first, same, later = (toy(calls, 2, 3, dropout=0.1) for _ in range(3))
    drawn = seeds(first, 4)
    assert len(drawn) == len(set(drawn)) == 4 * 2 * 3, "two draws of the dropout have the same seed"
    assert seeds(same, 4) == drawn, "another run with the same seed drops other numbers"
    later.steps = 3
    assert set(seeds(later, 1)) < set(drawn), "a resumed run must draw what the whole one draws in that step"
    assert set(seeds(toy(calls, 2, 3), 4)) == {0}, "without dropout nothing is drawn"


def test_trainer_step_with_dropout_trains_another_gpt_and_evaluate_knows_nothing_of_it():
    plain, dropping = trainer("sgd"), trainer("sgd", dropout=0.5)
    assert lesson.evaluate(plain, TOKENS) == lesson.evaluate(dropping, TOKENS)
    batch = lesson.rows(TOKENS, 6, 8, 0, 1)
    assert plain.step(*batch)[0] != dropping.step(*batch)[0], "dropout left nothing out"


def test_block_matrices_are_found_in_all_stacks():
    names = lesson.block_matrices(toy([]).p)
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


def test_block_matrices_leave_out_tables_and_vectors():
    names = lesson.block_matrices(trainer().p)
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
