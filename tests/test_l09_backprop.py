"""The tests of f are test_f and test_f_*: they are also lesson 9's exercises.

The oracles: the formulas once more, in plain NumPy, and finite differences of those in float64.
"""
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import l09_backprop as lesson
from tests.close import assert_close, numeric_grad, unchanged

SIGMA = {"sigmoid": lambda z: 1 / (1 + np.exp(-z)), "tanh": np.tanh, "relu": lambda z: z * (z > 0),
         "identity": lambda z: z}
hidden = pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
every = pytest.mark.parametrize("name", SIGMA)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


z, weight, bias = normal(2, 3, 4), normal(4, 5, seed=1), normal(5, seed=2)
NAMES = ["W_e", "W", "b", "W'", "b'", "W_o", "b_o"]
source, target = np.array([1, 2, 3, 4, 5]), np.array([1, 6, 7, 5, 0])  # the two sentences, in WORDS


@dtypes
def test_sigmoid(dtype):
    given = z.astype(dtype)
    with unchanged(z=given):
        h = lesson.sigmoid(given)
    assert_close(h, SIGMA["sigmoid"](z), "h", dtype=dtype)


@dtypes
def test_sigmoid_survives_1000(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's 'overflow encountered in exp'
        h = lesson.sigmoid(np.array([-1000, 0, 1000], dtype))
    assert_close(h, [0, 0.5, 1], "sigmoid(-1000, 0, 1000)", atol=0)


def test_sigmoid_keeps_its_digits_far_to_the_left():
    assert_close(lesson.sigmoid(np.array([-40.0, -300.0])) / np.exp([-40.0, -300.0]), [1, 1],
                 "sigmoid(z) / exp(z) at -40 and -300")


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(-700, 700), min_size=1, max_size=10))
def test_sigmoid_of_z_and_of_minus_z_sum_to_1(numbers):
    a = np.array(numbers)
    assert_close(lesson.sigmoid(a) + lesson.sigmoid(-a), np.ones(len(a)), "sigmoid(z) + sigmoid(-z)")


@every
@dtypes
def test_activation_forward(name, dtype):
    h, _ = lesson.activation_forward(z.astype(dtype), name)
    assert h.dtype == dtype, f"{name} of {dtype.__name__} gave {h.dtype}"
    assert_close(h, SIGMA[name](z), f"{name}(z)")


def test_activation_forward_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="no activation 'swish': choose one of sigmoid, tanh, relu"):
        lesson.activation_forward(z, "swish")


@every
@dtypes
def test_activation_backward(name, dtype):
    dh = normal(2, 3, 4, seed=3)
    h, given = SIGMA[name](z.astype(dtype)), dh.astype(dtype)
    with unchanged(dh=given, h=h):
        dz = lesson.activation_backward(given, (h, name))
    want = numeric_grad(lambda z: (SIGMA[name](z) * dh).sum(), z)
    assert_close(dz, want, f"dz of {name}", dtype=dtype)


def test_activation_backward_of_relu_takes_0_at_the_corner():
    cache = (np.array([0.0, -0.0, 0.0, 1.0]), "relu")  # h at z = -1, -0, 0, 1
    assert_close(lesson.activation_backward(np.full(4, 3.0), cache), [0, 0, 0, 3], "dz at z = -1, -0, 0, 1")


@pytest.mark.parametrize("name, h", [("sigmoid", [0, 1]), ("tanh", [-1, 1]), ("relu", [0, 1000])])
def test_activation_backward_has_slope_0_where_a_curve_is_flat(name, h):
    """h at z = -1000 and 1000."""
    dz = lesson.activation_backward(np.ones(2), (np.array(h, float), name))
    assert_close(dz, [0, name == "relu"], f"slope of {name} at -1000 and 1000")


@every
@dtypes
def test_dense_forward(name, dtype):
    given = [a.astype(dtype) for a in (z, weight, bias)]
    with unchanged(**dict(zip(("x", "weight", "bias"), given))):
        h, cache = lesson.dense_forward(*given, name)
    want = SIGMA[name](np.einsum("...i,ik->...k", z, weight) + bias)
    assert_close(h, want, f"{name}(x @ weight + bias)", rtol=1e-4, dtype=dtype)
    x, w, (kept, called) = cache
    assert_close(x, given[0], "x in the cache", rtol=0, atol=0)
    assert_close(w, given[1], "weight in the cache", rtol=0, atol=0)
    assert_close(kept, want, "h in the activation's cache", rtol=1e-4)
    assert called == name, f"the activation's cache says {called!r}, and it was {name!r}"


def dense_cache(x, weight, bias, name):
    """What dense_forward hands on, computed here."""
    return x, weight, (SIGMA[name](x @ weight + bias), name)


def check_dense_backward(name, x):
    dh = normal(*x.shape[:-1], 5, seed=3)
    dweight, dbias = np.full((4, 5), 7.0), np.full(5, 7.0)  # not zeros: what was there must be gone
    cache = dense_cache(x, weight, bias, name)
    with unchanged(dh=dh, x=x, weight=weight, h=cache[2][0]):
        dx = lesson.dense_backward(dh, cache, dweight, dbias)
    out = lambda x, w, b: (SIGMA[name](x @ w + b) * dh).sum()
    assert_close(dx, numeric_grad(lambda x: out(x, weight, bias), x), "dx")
    assert_close(dweight, numeric_grad(lambda w: out(x, w, bias), weight), "dweight")
    assert_close(dbias, numeric_grad(lambda b: out(x, weight, b), bias), "dbias")


@every
def test_dense_backward(name):
    check_dense_backward(name, z[0])


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 4)])
def test_dense_backward_sums_over_all_rows(shape):
    check_dense_backward("tanh", normal(*shape))


@dtypes
def test_dense_backward_keeps_its_dtype(dtype):
    dh, x, w, b = (a.astype(dtype) for a in (normal(3, 5), z[0], weight, bias))
    cache = dense_cache(x, w, b, "sigmoid")
    dx = lesson.dense_backward(dh, cache, np.empty((4, 5), dtype), np.empty(5, dtype))
    assert dx.dtype == dtype, f"dx is {dx.dtype}, of {dtype.__name__}"


def test_dense_backward_of_a_chain_of_layers():
    """Each layer's dx is the dh of the one before: five layers deep, the first weight still gets it right."""
    names, sizes = ["tanh", "sigmoid", "relu", "tanh", "identity"], [4, 6, 5, 7, 3, 2]
    weights = [normal(*size, seed=size[0]) for size in pairwise(sizes)]
    biases = [normal(size, seed=size) for size in sizes[1:]]
    x, dout = normal(3, 4), normal(3, 2)

    def loss(x=x, weights=weights, biases=biases):
        for w, b, name in zip(weights, biases, names):
            x = SIGMA[name](x @ w + b)
        return (x * dout).sum()

    def numeric(layer, which):
        """By finite differences, with one of the weights or one of the biases moved."""
        arrays = {"weights": weights, "biases": biases}[which]
        moved = lambda a: loss(**{which: arrays[:layer] + [a] + arrays[layer + 1:]})
        return numeric_grad(moved, arrays[layer])

    h, caches, d = x, [], dout
    for w, b, name in zip(weights, biases, names):
        caches.append(dense_cache(h, w, b, name))
        h = caches[-1][2][0]
    for layer in reversed(range(5)):  # the first one that is wrong is named
        dweight, dbias = np.empty_like(weights[layer]), np.empty_like(biases[layer])
        d = lesson.dense_backward(d, caches[layer], dweight, dbias)
        assert_close(dweight, numeric(layer, "weights"), f"dweight of layer {layer + 1}")
        assert_close(dbias, numeric(layer, "biases"), f"dbias of layer {layer + 1}")
    assert_close(d, numeric_grad(loss, x), "dx of layer 1")


def test_numeric_gradient():
    x = normal(2, 3)
    want = np.exp(x)
    want[0, 0] += x[1, 2]
    want[1, 2] += x[0, 0]
    got = lesson.numeric_gradient(lambda: np.exp(x).sum() + x[0, 0] * x[1, 2], x)
    assert_close(got, want, "gradient of sum(exp(x)) + x[0, 0] x[1, 2]", rtol=1e-8, atol=1e-9)


def test_numeric_gradient_is_the_middle_of_two_sides():
    """((x + e)^3 - (x - e)^3) / 2e = 3 x^2 + e^2. From one side it would be 3 x^2 + 3 x e + e^2."""
    x = np.array([1.0, -2.0])
    got = lesson.numeric_gradient(lambda: (x**3).sum(), x, eps=0.1)
    assert_close(got, [3.01, 12.01], "gradient of x^3 at 1 and -2, eps 0.1")


def test_numeric_gradient_of_a_view():
    """A part of an array, transposed: its flat copy is another array, which loss() does not look at."""
    whole = normal(3, 5)
    x = whole[:, 1:3].T
    want = 2 * x
    got = lesson.numeric_gradient(lambda: (whole**2).sum(), x)
    assert_close(got, want, "gradient of the sum of squares, for a view")


def test_numeric_gradient_puts_x_back():
    x = np.array([1e-7, 0.1, 3.0])  # 1e-7 - 1e-5 + 1e-5 is no longer 1e-7
    before = x.copy()
    lesson.numeric_gradient(lambda: (x * x).sum(), x)
    assert np.array_equal(x, before), f"x has changed, to the last bit, by {np.abs(x - before).max():.1e}"


def test_numeric_gradient_at_a_corner_is_between_the_slopes():
    corner = np.array([0.0])
    assert_close(lesson.numeric_gradient(lambda: float(max(corner[0], 0)), corner), [0.5],
                 "numeric slope of ReLU at 0, where backward says 0")


def test_numeric_gradient_has_an_eps_neither_too_large_nor_too_small():
    x = normal(20)
    gradients = (lesson.numeric_gradient(lambda: np.exp(x).sum(), x, *eps) for eps in [(), (1e-2,), (1e-10,)])
    own, large, tiny = (np.linalg.norm(g - np.exp(x)) / np.linalg.norm(np.exp(x)) for g in gradients)
    assert own < 1e-8, f"error {own:.1e} with the default eps"
    assert min(large, tiny) > 1e-6, f"errors {large:.1e} with eps 1e-2 and {tiny:.1e} with 1e-10"


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_numeric_gradient_refuses_other_than_float64(dtype):
    x = np.ones(3, dtype)
    with pytest.raises(ValueError, match=f"{np.dtype(dtype)}.*use float64"):
        lesson.numeric_gradient(lambda: float(x.sum()), x)


@pytest.mark.parametrize("got, want, error", [
    ([1, -2], [1, -2], 0), ([0, 0], [0, 0], 0), ([3, 4], [6, 8], 0.5), ([6, 8], [3, 4], 0.5),
    ([3, 4], [-3, -4], 2), ([0, 0], [3, 4], 1), ([[3], [4]], [[3], [5]], 1 / math.sqrt(34)),
])
def test_relative_error(got, want, error):
    assert_close(lesson.relative_error(np.array(got, float), np.array(want, float)), error,
                 f"relative error of {got} and {want}")


def test_encode():
    assert lesson.WORDS == ["<end>", "I", "like", "to", "read", "books", "enjoy", "reading"]
    assert_close(lesson.encode("I like to read books"), source, "the source's words")
    assert_close(lesson.encode("I enjoy reading books"), target, "the target's words, with <end>")
    assert_close(lesson.encode(""), np.zeros(5, int), "five times <end>")


def test_encode_refuses_words_that_have_no_row():
    with pytest.raises(ValueError, match="'I like cats' .* at most 5 of these words: <end> I like"):
        lesson.encode("I like cats")


def test_encode_refuses_a_sixth_word():
    with pytest.raises(ValueError, match="'I like to read to read' .* at most 5"):
        lesson.encode("I like to read to read")


def test_init_parameters():
    p = lesson.init_parameters(3, C=40, K=100)
    shapes = [(8, 40), (200, 100), (100,), (100, 100), (100,), (100, 40), (40,)]
    assert {name: x.shape for name, x in p.items()} == dict(zip(NAMES, shapes))
    for name, spread in ("W_e", 1), ("W", 200**-0.5), ("W'", 0.1), ("W_o", 0.1):
        assert_close(p[name].std(), spread, f"spread of {name}", rtol=0.1)
    assert not any(p[name].any() for name in ("b", "b'", "b_o")), "biases start at 0"
    again, other = (lesson.init_parameters(seed, C=40, K=100) for seed in (3, 4))
    assert all(np.array_equal(p[name], again[name]) for name in NAMES), "the same seed, other numbers"
    assert not np.array_equal(p["W"], other["W"]), "another seed, the same numbers"


def parameters(C=3, K=6):
    """Random, the biases too: those of zeros would hide a bias that is missing."""
    g = np.random.default_rng(0)
    shapes = [(8, C), (5 * C, K), (K,), (K, K), (K,), (K, 40), (40,)]
    return {name: g.normal(size=shape) / shape[0]**0.5 for name, shape in zip(NAMES, shapes)}


def layers_of(words, p, name):
    """What goes into the three layers, and what comes out of the last."""
    e = np.concatenate([p["W_e"][v] for v in words])
    H = SIGMA[name](e @ p["W"] + p["b"])
    D = SIGMA[name](H @ p["W'"] + p["b'"])
    return e, H, D, D @ p["W_o"] + p["b_o"]


def logits_of(words, p, name):
    return layers_of(words, p, name)[3].reshape(5, 8)


def written_by(words, p, name):
    best = logits_of(words, p, name).argmax(axis=-1)
    return " ".join(lesson.WORDS[v] for v in best).split("<end>")[0].strip()


def loss_of(words, answer, p, name):
    x = logits_of(words, p, name)
    log_p = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
    return -(np.eye(8)[answer] * log_p).sum()


def numeric_of(part, words, p, name):
    return numeric_grad(lambda x: loss_of(words, target, p | {part: x}, name), p[part])


REPEATED = np.array([5, 4, 5, 0, 5])


@hidden
@pytest.mark.parametrize("words", [source, REPEATED], ids=["the source", "other words"])
def test_model_forward(name, words):
    p, words = parameters(), words.copy()
    e, H, D, scores = layers_of(words, p, name)
    with unchanged(source=words, **p):
        logits, caches = lesson.model_forward(words, p, name)
    assert_close(logits, scores.reshape(5, 8), "logits")
    assert len(caches) == 3, f"{len(caches)} caches: one of each layer is needed to go back"
    for layer, (x, weight, (h, called)), *want in zip(
            ("encoder", "decoder", "output"), caches, (e, H, D), (p["W"], p["W'"], p["W_o"]), (H, D, scores),
            (name, name, "identity")):
        assert_close(x, want[0], f"x in the cache of the {layer}")
        assert_close(weight, want[1], f"weight in the cache of the {layer}")
        assert_close(h, want[2], f"h in the cache of the {layer}")
        assert called == want[3], f"the {layer}'s cache names the activation {called!r}, expected {want[3]!r}"


@hidden
def test_loss_and_gradients(name):
    p = parameters()
    loss, g = lesson.loss_and_gradients(source, target, p, name)
    assert_close(loss, loss_of(source, target, p, name), "loss (a sum over the five words)")
    assert set(g) == set(NAMES), f"gradients of {sorted(g)}, expected of {sorted(NAMES)}"
    for part in reversed(NAMES):  # from the output back: the first one that is wrong is named
        assert_close(g[part], numeric_of(part, source, p, name), f"gradient of {part}")


def test_loss_and_gradients_are_new_arrays_each_time_and_change_nothing():
    p, words, answer = parameters(), source.copy(), target.copy()
    with unchanged(source=words, target=answer, **p):
        (_, first), (_, again) = (lesson.loss_and_gradients(words, answer, p, "tanh") for _ in range(2))
    for part in NAMES:
        assert_close(again[part], first[part], f"gradient of {part}, asked a second time", rtol=0, atol=0)
        assert not np.shares_memory(again[part], first[part]), \
            f"the second gradient of {part} was written over the first, which the caller may still hold"


def test_loss_and_gradients_of_words_that_repeat_or_do_not_occur():
    p = parameters(C=2, K=4)
    want = numeric_of("W_e", REPEATED, p, "tanh")
    _, g = lesson.loss_and_gradients(REPEATED, target, p, "tanh")
    assert_close(g["W_e"][5], want[5], "gradient of W_e[5], a word that occurs three times")
    assert_close(g["W_e"], want, "gradient of W_e")
    assert not g["W_e"][[1, 2, 3, 6, 7]].any(), "words that do not occur have gradient 0"


def check(g, name, p):
    """What a learner does: the relative error of one gradient, by the lesson's own check."""
    numeric = lesson.numeric_gradient(lambda: loss_of(source, target, p, "tanh"), p[name])
    return lesson.relative_error(g, numeric)


def test_loss_and_gradients_pass_the_numeric_check():
    p = parameters()
    _, g = lesson.loss_and_gradients(source, target, p, "tanh")
    for name in NAMES:
        error = check(g[name], name, p)
        assert error < 1e-7, f"relative error of {name} is {error:.1e}"


def without_slope(p):
    """dW' where the decoder's dD was taken for its dz."""
    H = np.tanh(p["W_e"][source].reshape(-1) @ p["W"] + p["b"])
    x = logits_of(source, p, "tanh")
    probabilities = np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True))
    return np.outer(H, p["W_o"] @ (probabilities - np.eye(8)[target]).reshape(-1))


@pytest.mark.parametrize("mistake, wrong", [
    ("sign", lambda d, p: -d),
    ("factor", lambda d, p: d / 5),
    ("transposed", lambda d, p: d.T),
    ("no slope", lambda d, p: without_slope(p)),
    ("one number", lambda d, p: d + 0.01 * (np.arange(36).reshape(6, 6) == 8)),
    ("zeros", lambda d, p: 0 * d),
])
def test_numeric_gradient_catches_a_wrong_gradient(mistake, wrong):
    p = parameters()
    error = check(wrong(numeric_of("W'", source, p, "tanh"), p), "W'", p)
    assert error > 1e-3, f"{mistake}: relative error {error:.1e}, which would pass for right"


def test_write():
    p = {name: np.zeros_like(x) for name, x in parameters().items()}
    p["b_o"][:] = np.eye(8)[[1, 6, 7, 5, 0]].reshape(-1)
    assert lesson.write(source, p, "tanh") == "I enjoy reading books"
    p["b_o"][:] = np.eye(8)[[1, 6, 0, 5, 4]].reshape(-1)
    assert lesson.write(source, p, "tanh") == "I enjoy", "what follows the first <end> is not written"
    p["b_o"][:] = np.eye(8)[[0, 1, 1, 1, 1]].reshape(-1)
    assert lesson.write(source, p, "tanh") == "", "<end> comes first: nothing is written"
    p["b_o"][:] = np.eye(8)[[3, 3, 4, 4, 5]].reshape(-1)
    assert lesson.write(source, p, "tanh") == "to to read read books", "five words leave no place for <end>"


def test_train_takes_steps_down_the_gradient_and_notes_what_was_written_before_each():
    p, noted = parameters(C=2, K=4), []
    arrays, want = dict(p), {name: x.copy() for name, x in p.items()}
    for _ in range(3):
        noted.append((loss_of(REPEATED, target, want, "tanh"), written_by(REPEATED, want, "tanh")))
        g = {name: numeric_of(name, REPEATED, want, "tanh") for name in NAMES}
        want = {name: want[name] - 0.3 * g[name] for name in NAMES}
    words, answer = REPEATED.copy(), target.copy()
    with unchanged(source=words, target=answer):
        history = lesson.train(words, answer, p, "tanh", rate=0.3, steps=3)
    assert len(history) == 3, f"{len(history)} entries of 3 steps"
    assert_close([loss for loss, _ in history], [loss for loss, _ in noted], "the losses before each step")
    for step, ((_, text), (_, wanted)) in enumerate(zip(history, noted), 1):
        assert text == wanted, f"before step {step} the model wrote {wanted!r}, and {text!r} is noted"
    for name in NAMES:
        assert_close(p[name], want[name], f"{name} after three steps")
        assert p[name] is arrays[name], f"{name} is a new array: it was to be changed in place"


@hidden
@pytest.mark.parametrize("seed", range(6))
def test_training_until_the_target_is_written(name, seed):
    p = lesson.init_parameters(seed)
    history = lesson.train(source, target, p, name, rate=0.05, steps=60)
    losses, words = zip(*history)
    assert words[0] != "I enjoy reading books", "it writes the target before it was trained"
    assert words[-1] == "I enjoy reading books", f"after 60 steps it writes {words[-1]!r}"
    assert (np.diff(losses) < 0).all(), "the loss falls at every step"
    assert losses[-1] < 0.6, f"loss {losses[-1]:.2f} after 60 steps, from {losses[0]:.2f}"


def test_main_prints_numbers_that_follow_from_each_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lesson.main()
    out = capsys.readouterr().out
    row = lambda start: next(np.array(line[len(start):].split(), float)
                             for line in map(str.strip, out.splitlines()) if line.startswith(start))
    p, y, db, b = (row(start) for start in ("p ", "y ", "db_o = p - y", "b_o - 0.05 db_o"))
    assert_close(p.sum(), 1, "sum of the probabilities", atol=5e-3)
    assert_close(db, p - y, "db_o", atol=2e-3)
    assert_close(b, -0.05 * db, "b_o after the first update", atol=1e-3)
    terms, loss = next(line for line in out.splitlines() if "- log" in line).rsplit(" = ", 1)
    assert_close(-np.log(np.array(terms.split("- log ")[1:], float)).sum(), float(loss), "loss", atol=0.03)
    errors = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("  d") and "e-" in line]
    assert len(errors) == 7 and max(errors) < 1e-7, f"relative errors {errors}"
    assert "I enjoy reading books" in out.split("what it writes")[1]
    assert (tmp_path / "out/lessons/backprop.png").stat().st_size > 10_000
