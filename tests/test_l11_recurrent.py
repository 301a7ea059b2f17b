"""The tests of f are test_f and test_f_*: they are also lesson 11's exercises.

The oracles are the cells written once more, one step at a time in float64, and finite differences. Where a
function calls others, these are the test's own: an LSTM's steps, and for the stack of layers a toy layer
whose gradient is one line.
"""
import math
from types import SimpleNamespace

import numpy as np
import pytest

from lessons import devices, recurrent_gradients, recurrent_run
from lessons import l11_recurrent as lesson
from lessons.errors import InputError
from lessons.recurrent_parameters import init_parameters, load, parameters, shapes, start_state, views
from lessons.texts import split
from tests.close import assert_close, numeric_grad, raises, unchanged

T, B, I, H, V = 4, 3, 2, 5, 7
TEXT = "the cat sat on the mat.\n" * 200


def normal(*shape_list, seed=11, dtype=float):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=shape) * 0.7).astype(dtype) for shape in shape_list]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def rnn(x, state, w_x, w_h, bias):  # -> hs (T + 1, B, H), the old state first
    hs = [state]
    for row in x:
        hs.append(np.tanh(row @ w_x + hs[-1] @ w_h + bias))
    return np.array(hs)


def step(z, c_before):  # -> i|f|g|o, c, h
    H = c_before.shape[1]
    i, f, o = sigmoid(z[:, :H]), sigmoid(z[:, H:2 * H]), sigmoid(z[:, 3 * H:])
    g = np.tanh(z[:, 2 * H:3 * H])
    c = f * c_before + i * g
    return np.concatenate([i, f, g, o], axis=1), c, o * np.tanh(c)


def step_forward(gates, product, bias, c_before, c, h):
    gates[:], c[:], h[:] = step(gates + product + bias, c_before)


def step_backward(dh, dc, gates, c_before, c):
    i, f, g, o = np.split(gates.copy(), 4, axis=1)
    d = dc + dh * o / np.cosh(c) ** 2
    gates[:] = np.concatenate([d * g * i * (1 - i), d * c_before * f * (1 - f), d * i * (1 - g) * (1 + g),
                               dh * np.tanh(c) * o * (1 - o)], axis=1)
    dc[:] = d * f


OPS = SimpleNamespace(lstm_step_forward=step_forward, lstm_step_backward=step_backward)


def lstm(x, state, w_x, w_h, bias):  # -> hs, cs (T + 1, B, H), gates (T, B, 4H)
    hs, cs, gates = [state[0]], [state[1]], []
    for row in x:
        activated, c, h = step(row @ w_x + hs[-1] @ w_h + bias, cs[-1])
        hs, cs, gates = [*hs, h], [*cs, c], [*gates, activated]
    return np.array(hs), np.array(cs), np.array(gates)


def rnn_arguments(dtype=float):
    return normal((T, B, I), (B, H), (I, H), (H, H), H, dtype=dtype)


def lstm_arguments(dtype=float):
    return normal((T, B, I), (2, B, H), (I, 4 * H), (H, 4 * H), 4 * H, dtype=dtype)


def read_only(*arrays):
    return {f"argument {n}": array for n, array in enumerate(arrays)}


def junk(*like):
    """Where gradients go. Not zeros: what was there before must be gone."""
    return [np.full_like(a, 7) for a in like]


def assert_gradients(loss, arguments, got):
    """got: {place in arguments: gradient}"""
    for n, gradient in got.items():
        name = ("dx", "dstate", "dw_x", "dw_h", "dbias")[n]
        want = numeric_grad(lambda a, n=n: loss(*arguments[:n], a, *arguments[n + 1:]), arguments[n])
        assert_close(gradient, want, name, rtol=1e-5, atol=1e-7)


# RNN


def test_rnn_forward():
    arguments = rnn_arguments()
    with unchanged(**read_only(*arguments)):
        hs, state, _ = lesson.rnn_forward(None, *arguments)
    want = rnn(*arguments)
    assert_close(hs, want[1:], "hs")
    assert_close(state, want[-1], "the new state, which is the last h")


def test_rnn_forward_keeps_what_backward_needs():
    arguments = rnn_arguments()
    cache = lesson.rnn_forward(None, *arguments)[2]
    x, _, w_x, w_h, _ = arguments
    assert len(cache) == 4, f"the cache has {len(cache)} things, expected x, hs, w_x, w_h"
    for name, got, want in zip(("x", "hs", "w_x", "w_h"), cache, (x, rnn(*arguments), w_x, w_h)):
        assert_close(got, want, f"{name} in the cache")


def test_rnn_forward_goes_on_from_the_state_it_returned():
    x, state, *weights = rnn_arguments()
    first, state, _ = lesson.rnn_forward(None, x[:3], state, *weights)
    second, _, _ = lesson.rnn_forward(None, x[3:], state, *weights)
    assert_close([*first, *second], rnn(*rnn_arguments())[1:], "h of two windows, the state carried")


def test_rnn_forward_stays_in_float32():
    hs, state, _ = lesson.rnn_forward(None, *rnn_arguments(np.float32))
    assert_close(hs, rnn(*rnn_arguments())[1:], "hs", rtol=1e-4, atol=1e-5, dtype=np.float32)
    assert state.dtype == np.float32


def rnn_backward(dtype=float):
    arguments, (dhs,) = rnn_arguments(), normal((T, B, H), seed=3)
    x, _, w_x, w_h, bias = (a.astype(dtype) for a in arguments)
    cache, found = (x, rnn(*arguments).astype(dtype), w_x, w_h), junk(w_x, w_h, bias)
    given = dhs.astype(dtype)
    with unchanged(dhs=given, **read_only(*cache)):
        dx, dstate = lesson.rnn_backward(None, given, cache, *found)
    return arguments, dhs, [dx, dstate, *found]


def test_rnn_backward():
    arguments, dhs, got = rnn_backward()
    assert_gradients(lambda *a: (rnn(*a)[1:] * dhs).sum(), arguments, dict(enumerate(got)))


def test_rnn_backward_stays_in_float32():
    want = rnn_backward()[2]
    for name, got, exact in zip(("dx", "dstate", "dw_x", "dw_h", "dbias"), rnn_backward(np.float32)[2], want):
        assert_close(got, exact, name, rtol=1e-4, atol=1e-4, dtype=np.float32)


# LSTM


def step_arguments(dtype=float):
    return normal((B, 4 * H), (B, 4 * H), 4 * H, (B, H), dtype=dtype)


@pytest.mark.parametrize("dtype", [float, np.float32])
def test_lstm_step_forward(dtype):
    near = {"rtol": 1e-4, "atol": 1e-5, "dtype": dtype}
    gates, product, bias, c_before = step_arguments(dtype)
    want = step((gates + product + bias).astype(float), c_before)
    c, h = junk(c_before, c_before)
    with unchanged(product=product, bias=bias, c_before=c_before):
        lesson.lstm_step_forward(gates, product, bias, c_before, c, h)
    for k, name in enumerate("ifgo"):
        block = slice(k * H, (k + 1) * H)
        assert_close(gates[:, block], want[0][:, block], f"{name}, block {k} of gates", **near)
    assert_close(c, want[1], "c", **near)
    assert_close(h, want[2], "h", **near)


def test_lstm_step_forward_survives_sums_of_1000():
    z = np.array([[1000.0, -1000, 1000, -1000]])
    c, h = junk(np.empty((1, 1)), np.empty((1, 1)))
    with np.errstate(over="raise"):
        lesson.lstm_step_forward(z, np.zeros((1, 4)), np.zeros(4), np.full((1, 1), 3.0), c, h)
    assert_close(z, [[1, 0, 1, 0]], "gates")
    assert_close(c, [[1]], "c")


def test_lstm_step_backward():
    (z, c_before), (dh, dc) = normal((B, 4 * H), (B, H)), normal((B, H), (B, H), seed=5)
    gates, c, _ = step(z, c_before)
    loss = lambda z, c_before: sum((a * d).sum() for a, d in zip(step(z, c_before)[1:], (dc, dh)))
    want_z = numeric_grad(lambda z: loss(z, c_before), z)
    want_c = numeric_grad(lambda c_before: loss(z, c_before), c_before)
    got = dc.copy()
    with unchanged(dh=dh, c_before=c_before, c=c):
        lesson.lstm_step_backward(dh, got, gates, c_before, c)
    for k, name in enumerate("ifgo"):
        block = slice(k * H, (k + 1) * H)
        assert_close(gates[:, block], want_z[:, block], f"gradient of {name}'s sum, block {k} of gates",
                     rtol=1e-5, atol=1e-7)
    assert_close(got, want_c, "dc, what the step before gets", rtol=1e-5, atol=1e-7)


def test_lstm_forward():
    arguments = lstm_arguments()
    with unchanged(**read_only(*arguments)):
        out, state, _ = lesson.lstm_forward(OPS, *arguments)
    hs, cs, _ = lstm(*arguments)
    assert_close(out, hs[1:], "hs")
    assert_close(state, [hs[-1], cs[-1]], "the new state: the last h, then the last c")


def test_lstm_forward_keeps_what_backward_needs():
    arguments = lstm_arguments()
    cache = lesson.lstm_forward(OPS, *arguments)[2]
    x, _, w_x, w_h, _ = arguments
    names, want = ("x", "hs", "cs", "gates", "w_x", "w_h"), (x, *lstm(*arguments), w_x, w_h)
    assert len(cache) == 6, f"the cache has {len(cache)} things, expected {', '.join(names)}"
    for name, got, right in zip(names, cache, want):
        assert_close(got, right, f"{name} in the cache")


def test_lstm_forward_goes_on_from_the_state_it_returned():
    x, state, *weights = lstm_arguments()
    first, state, _ = lesson.lstm_forward(OPS, x[:3], state, *weights)
    second, _, _ = lesson.lstm_forward(OPS, x[3:], state, *weights)
    assert_close([*first, *second], lstm(*lstm_arguments())[0][1:], "h of two windows, the state carried")


def test_lstm_forward_stays_in_float32():
    hs, state, _ = lesson.lstm_forward(OPS, *lstm_arguments(np.float32))
    assert_close(hs, lstm(*lstm_arguments())[0][1:], "hs", rtol=1e-4, atol=1e-5, dtype=np.float32)
    assert state.dtype == np.float32


def lstm_backward(dtype=float):
    arguments, (dhs,) = lstm_arguments(), normal((T, B, H), seed=3)
    x, _, w_x, w_h, bias = (a.astype(dtype) for a in arguments)
    cache, found = (x, *(a.astype(dtype) for a in lstm(*arguments)), w_x, w_h), junk(w_x, w_h, bias)
    given = dhs.astype(dtype)
    with unchanged(dhs=given, x=x, hs=cache[1], cs=cache[2], w_x=w_x, w_h=w_h):
        dx, dstate = lesson.lstm_backward(OPS, given, cache, *found)
    return arguments, dhs, [dx, dstate, *found]


def test_lstm_backward():
    arguments, dhs, got = lstm_backward()
    assert_gradients(lambda *a: (lstm(*a)[0][1:] * dhs).sum(), arguments, dict(enumerate(got)))


def test_lstm_backward_stays_in_float32():
    names, want = ("dx", "dstate", "dw_x", "dw_h", "dbias"), lstm_backward()[2]
    for name, got, exact in zip(names, lstm_backward(np.float32)[2], want):
        assert_close(got, exact, name, rtol=1e-4, atol=1e-4, dtype=np.float32)


# the model of letters, with toy layers: out = x w_x + bias + state, where no step knows of another


def toy_forward(ops, x, state, w_x, w_h, bias):
    return x @ w_x + bias + state, state + 1, (x, w_x)


def toy_backward(ops, dhs, cache, dw_x, dw_h, dbias):
    x, w_x = cache
    dw_x[:], dbias[:], dw_h[:] = np.einsum("tbi,tbh->ih", x, dhs), dhs.sum(axis=(0, 1)), 0
    return dhs @ w_x.T, dhs.sum(axis=0)


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(lesson.KINDS, "rnn", (toy_forward, toy_backward))


def toy_model(dtype=float):
    flat, p = init_parameters("rnn", V, H, 2, 0, dtype)
    flat[:] = normal(flat.size)[0]
    return p, np.random.default_rng(2).integers(0, V, (T, B)), normal((B, H), (B, H), dtype=dtype)


def toy_logits(p, codes, states):
    tops = [p["0.w_x"][codes] + p["0.bias"] + states[0]]
    tops.append(tops[0] @ p["1.w_x"] + p["1.bias"] + states[1])
    return tops, tops[1] @ p["out.weight"] + p["out.bias"]


@pytest.mark.parametrize("dtype", [float, np.float32])
def test_model_forward(toys, dtype):
    p, codes, states = toy_model(dtype)
    with unchanged(codes=codes, **read_only(*states)):
        logits, new, caches = lesson.model_forward(None, p, codes, states)
    tops, want = toy_logits(p, codes, states)
    near = {"rtol": 1e-4, "atol": 1e-5, "dtype": dtype}
    assert_close(logits, want, "logits", **near)
    assert len(new) == 2 and len(caches) == 3, (
        f"{len(new)} states and {len(caches)} caches of 2 layers, expected 2, and 3 with the top h")
    for n, state in enumerate(states):
        assert_close(new[n], state + 1, f"new state of layer {n}", **near)
    assert_close(caches[0][0], np.eye(V)[codes], "what layer 0 reads, in its cache", **near)
    assert_close(caches[1][0], tops[0], "what layer 1 reads, in its cache", **near)
    assert_close(caches[2], tops[1], "top h, last in caches", **near)


def test_model_backward(toys):
    p, codes, states = toy_model()
    dlogits, = normal((T, B, V), seed=4)
    tops, _ = toy_logits(p, codes, states)
    caches = [(np.eye(V)[codes], p["0.w_x"]), (tops[0], p["1.w_x"]), tops[1]]
    buffers = junk(*p.values())  # in a model, views of the array that the optimizer reads
    with unchanged(dlogits=dlogits, **p):
        lesson.model_backward(None, dlogits, caches, p, dict(zip(p, buffers)))
    for name, got in zip(p, buffers):
        loss = lambda a, name=name: (toy_logits(p | {name: a}, codes, states)[1] * dlogits).sum()
        assert_close(got, numeric_grad(loss, p[name]), f"gradient of {name}", rtol=1e-5, atol=1e-7)


def test_stretches():
    codes = np.arange(11)
    got = lesson.stretches(codes, 3)
    assert_close(got, [[0, 3, 6], [1, 4, 7], [2, 5, 8]], "columns of 11 letters, 3 rows a batch")
    assert_close(lesson.stretches(codes, 1), codes[:, None], "one column")


# the whole


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_window_gradient(kind):
    flat, p = init_parameters(kind, V, 4, 2, 0, float)
    window = np.random.default_rng(3).integers(0, V, (4, 2))
    states = [state + 0.1 for state in start_state(p, 2)]

    def loss_and_gradient(numbers):
        gradient, table = np.full_like(flat, 7), shapes(kind, V, 4, 2)
        p, g = views(numbers, table), views(gradient, table)
        return lesson.window_gradient(lesson, p, window, states, 5, g)[0], gradient

    _, gradient = loss_and_gradient(flat)
    for way in normal(flat.size, flat.size):
        above, below = (loss_and_gradient(flat + eps * way)[0] for eps in (1e-5, -1e-5))
        assert_close(gradient @ way, (above - below) / 2e-5, "slope by the gradient", rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_whole_text_in_rows_has_the_nats_of_one_row_that_reads_far_enough_back(kind):
    _, p = init_parameters(kind, V, 4, 2, 0, float)
    before, codes = np.random.default_rng(4).integers(0, V, 30), np.random.default_rng(5).integers(0, V, 23)
    text = np.concatenate([before, codes])
    for rows, warm, T in (1, 99, 128), (1, 30, 5), (4, 6, 3), (5, 1, 4), (64, 7, 8):
        n, want = math.ceil(len(codes) / rows), []
        for at in range(len(codes)):
            begin = max(0, 30 + at // n * n - warm)
            read = text[begin:30 + at]
            logits = lesson.model_forward(lesson, p, read[:, None], start_state(p, 1))[0][-1, 0]
            want.append(np.log(np.exp(logits).sum()) - logits[codes[at]])
        got = lesson.nats(lesson, p, before, codes, rows, warm, T)
        assert_close(got, want, f"nats with {rows} rows, {warm} letters read before, windows of {T}")


def test_parameters_are_counted():
    _, p = init_parameters("lstm", 65, 256, 2, 0)
    assert parameters(p) == lesson.parameters(p) == 65 * 1024 + 3 * 256 * 1024 + 2 * 1024 + 256 * 65 + 65


# training, files and the command line


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(recurrent_run, "read_text", lambda name: TEXT)
    monkeypatch.setattr(recurrent_gradients, "read_text", lambda name: TEXT * 12)
    monkeypatch.setattr(recurrent_gradients, "H", 8)
    quick = {kind: r._replace(hidden=8, rows=4, window=16, steps=60, lr=0.03)
             for kind, r in recurrent_run.RECIPES.items()}
    monkeypatch.setattr(recurrent_run, "RECIPES", quick)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_training_learns_saves_and_is_read_back(kind, small, capsys):
    recurrent_run.main(["--train", kind, "--out", "model.npz"])
    said = capsys.readouterr().out
    model, seconds = load("model.npz", TEXT)
    training, validation = split(np.unique(list(TEXT), return_inverse=True)[1])
    nats = lesson.nats(lesson, model, training, validation)
    assert seconds > 0 and nats.mean() < 1.5, f"after 60 steps {nats.mean():.2f} nats; at first they are 2.4"
    assert f"{parameters(model):,} parameters, {nats.mean() / math.log(2):.3f} bits" in said
    with raises(InputError, "another text", "a model of another text"):
        load("model.npz", TEXT + "!")


def test_training_begins_a_new_walk_with_a_new_state(small):
    codes = np.unique(list(TEXT), return_inverse=True)[1][:4 * 17]  # a walk is one window
    recipe = recurrent_run.RECIPES["lstm"]._replace(steps=3, lr=0.0)
    steps = recurrent_run.train(devices.ops_with("recurrent"), "lstm", codes, 12, recipe)
    losses = [loss for _, loss, _ in steps]
    assert_close(losses, [losses[0]] * 3, "losses of a model that does not change, of the same window", 1e-6)


def test_main_without_a_model_says_how_to_train_one(small, capsys):
    lesson.main()
    said = capsys.readouterr().out
    assert '--train lstm' in said and "clipped to 0.5" in said and "RNN, W_h x 3" in said


@pytest.mark.parametrize("options, words", [
    (["--train", "gru"], "invalid choice: 'gru'"), (["--steps", "9"], "need --train"),
    (["--train", "rnn", "--steps", "0"], "'0' is not a whole number")])
def test_main_says_in_one_line_what_is_wrong(options, words, small):
    with raises(InputError, words, " ".join(options)):
        lesson.main(*options)


@pytest.mark.parametrize("arrays", [{"A": np.ones(3)}, {"0.w_h": np.ones(3)}, {"0.w_h": np.ones((2, 8))},
                                    {"0.w_h": np.ones((2, 2)), "out.bias": np.ones(1)}])
def test_loading_refuses_what_is_no_recurrent_model(arrays, tmp_path):
    from lessons.model_file import save_model
    save_model(tmp_path / "model.npz", "abc", 1.0, **arrays)
    with raises(InputError, "no model of lesson 11", "a foreign file"):
        load(tmp_path / "model.npz", "abc")
