"""Every operation in every room against the NumPy one in float64: same names, same signatures, same numbers.

A new room joins by its name in ROOMS. Each `run_x` below calls the operations of one subject and returns all
that came out by name, so the message says which array of which operation is wrong, and for which shape. The
GPU's room joins where its kernels run: on a GPU, or in the simulator (python -m tests.cudasim), there alone.
"""
import inspect
import sys

import numpy as np
import pytest

from kernels.cuda.compiled import problem
from lessons import devices
from lessons.l16_gpt import gpt_backward, gpt_forward
from lessons.parameters import Config, init_parameters
from tests.close import assert_close

SIMULATED = getattr(sys.modules.get("numba.cuda"), "simulated", False)
ROOMS = ["cuda"] if SIMULATED else ["numpy", "cpu"] if problem() else ["numpy", "cpu", "cuda"]
NAMES = [(subject, name) for subject, (_, names) in devices.LESSONS.items() for name in names]
pytestmark = pytest.mark.parametrize("room", ROOMS)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    if SIMULATED:
        from tests.cudasim import tiles
        tiles.small(monkeypatch)


def arrays(*shapes, seed=0):
    """Normal numbers that float32 has."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def agree(room, run, *args, rtol=1e-4, atol=1e-5, **settings):
    """run(ops, ...) gives {name: array}: float32 in the room, float64 in NumPy, the same numbers."""
    got = run(devices.ops(room), *copies(args, np.float32), **settings)
    want = run(devices.ops("numpy"), *copies(args, np.float64), **settings)
    for name in want:
        if isinstance(want[name], np.ndarray):
            assert got[name].dtype == np.float32, f"{name} is {got[name].dtype}"
        largest = np.abs(want[name]).max(initial=1)
        assert_close(got[name], want[name], name, rtol=rtol, atol=atol * largest)


def copies(args, dtype):
    """Operations may use up what they are given: a copy for each."""
    return [None if a is None else a.astype(dtype) for a in args]


def junk(*like):
    """Where gradients go. Not zeros: what was there before must be gone."""
    return [None if a is None else np.full_like(a, 7) for a in like]


# names


@pytest.mark.parametrize("subject, name", NAMES)
def test_the_rooms_have_the_same_names_and_signatures(room, subject, name):
    want = inspect.signature(getattr(devices.module("numpy", subject), name))
    op = getattr(devices.module(room, subject), name)
    assert getattr(devices.ops(room), name) is op
    assert inspect.signature(getattr(op, "py_func", op)) == want, f"{room}'s {name} must take {want}"


@pytest.mark.parametrize("subject", devices.BEFORE)
def test_the_models_before_the_transformer_have_their_kernels_under_the_lessons_names(room, subject):
    for name in devices.BEFORE[subject][1] if room == "cpu" else []:
        want = inspect.signature(getattr(devices.module("numpy", subject), name))
        op = getattr(devices.module("cpu", subject), name)
        assert inspect.signature(getattr(op, "py_func", op)) == want, f"cpu's {name} must take {want}"


def test_the_table_has_every_operation_and_nothing_else(room):
    assert sorted(vars(devices.ops(room))) == sorted(name for _, name in NAMES)


def test_an_unknown_device_is_named(room):
    with pytest.raises(ValueError, match=f"'{room}s'.*numpy, cpu, cuda"):
        devices.ops(f"{room}s")


# embedding


def run_embedding(ops, wte, wpe, dout, dwte, *, tokens, start):
    x, cache = ops.embedding_forward(tokens, wte, wpe, start)
    dwpe, = junk(wpe)
    ops.embedding_backward(dout, cache, dwte, dwpe)  # adds to dwte
    return {"x": x, "dwte": dwte, "dwpe": dwpe}


@pytest.mark.parametrize("B, T, C, V, start", [(1, 1, 1, 1, 0), (2, 5, 3, 2, 1), (3, 7, 129, 65, 2),
                                               (1, 64, 16, 4, 0)])
def test_embedding(room, B, T, C, V, start):
    tokens = np.random.default_rng(T).integers(0, V, (B, T))
    agree(room, run_embedding, *arrays((V, C), (T + 3, C), (B, T, C), (V, C)), tokens=tokens, start=start)


# cross-entropy


def run_cross_entropy(ops, logits, *, targets, total):
    loss, dlogits = ops.cross_entropy(logits, targets, total)
    return {"loss": loss, "dlogits": dlogits}


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (2, 3, 7), (2, 5, 513)])
@pytest.mark.parametrize("scale", [1, 300])
@pytest.mark.parametrize("total", [None, 17])
def test_cross_entropy(room, shape, scale, total):
    logits, = arrays(shape)
    targets = np.random.default_rng(1).integers(-1, shape[-1], shape[:-1])
    agree(room, run_cross_entropy, logits * np.float32(scale), targets=targets, total=total)


def test_cross_entropy_of_nothing_is_zero(room):
    logits, = arrays((2, 3, 7))
    loss, dlogits = devices.ops(room).cross_entropy(logits, np.full((2, 3), -1))
    assert loss == 0 and not dlogits.any()


# optimizers, on slices of a flat buffer


def run_gradient_norm(ops, grads, *, start, stop):
    square = ops.gradient_norm_squared(grads, start, stop)
    return {"grads": grads, "sum of squares": square}


@pytest.mark.parametrize("R", [1, 2, 3])
@pytest.mark.parametrize("n, start, stop", [(1, 0, 1), (50, 7, 7), (50, 3, 41), (9001, 5, 9001)])
def test_gradient_norm_squared(room, R, n, start, stop):
    agree(room, run_gradient_norm, *arrays((R, n)), start=start, stop=stop)


def run_sgd(ops, p, g, m, **settings):
    for _ in range(3):
        ops.sgd(p, g, m, lr=0.1, **settings)
    return {"p": p, "m": m, "g": g}


@pytest.mark.parametrize("n", [1, 33, 1000])
@pytest.mark.parametrize("momentum, weight_decay, scale", [(0.0, 0.0, 1.0), (0.9, 0.1, 0.3)])
def test_sgd(room, n, momentum, weight_decay, scale):
    agree(room, run_sgd, *arrays(n, n, n), momentum=momentum, weight_decay=weight_decay, scale=scale)


def run_adamw(ops, p, g, m, v, **settings):
    for step in 1, 2, 3:
        ops.adamw(p, g, m, v, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, step=step, **settings)
    return {"p": p, "m": m, "v": v, "g": g}


@pytest.mark.parametrize("n", [1, 33, 1000])
@pytest.mark.parametrize("weight_decay, scale", [(0.0, 1.0), (0.1, 0.3)])
def test_adamw(room, n, weight_decay, scale):
    p, g, m = arrays(n, n, n)
    g[0] = 0  # a token that never occurs has no gradient: 0 / (0 + eps)
    agree(room, run_adamw, p, g, m * 0, m * 0, weight_decay=weight_decay, scale=scale)


def run_muon(ops, p, g, m):
    for _ in range(3):
        ops.muon(p, g, m, lr=0.02, momentum=0.95, weight_decay=0.1, scale=0.3)
    return {"p": p, "m": m}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 7), (16, 16), (65, 20), (32, 128)])
def test_muon(room, shape):
    p, g, m = arrays(shape, shape, shape)
    agree(room, run_muon, p, g, m * 0, atol=3e-4)  # five rounds of a polynomial that stretches small numbers


# attention: sizes around the CPU kernel's stripes of 32


def run_self_attention(ops, qkv, dout, *, n_head, causal, lengths):
    out, cache = ops.self_attention_forward(qkv, n_head, causal, lengths)
    result = {"out": out.copy(), "dqkv": ops.self_attention_backward(dout, cache)}
    if lengths is not None:  # queries in padding compute what nobody reads
        for b, n in enumerate(lengths):
            result["out"][b, n:] = 0
    return result


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("B, T, C, n_head", [(1, 1, 1, 1), (2, 2, 6, 3), (2, 7, 10, 2), (1, 31, 8, 1),
                                             (1, 32, 8, 2), (1, 33, 12, 4), (2, 64, 8, 2), (1, 65, 8, 2),
                                             (2, 130, 6, 1)])
def test_self_attention(room, B, T, C, n_head, causal, padded):
    qkv, dout = arrays((B, T, 3 * C), (B, T, C))
    lengths = np.random.default_rng(T).integers(1, T + 1, B) if padded else None
    if padded:
        for b, n in enumerate(lengths):
            dout[b, n:] = 0  # nothing comes back to padding
    agree(room, run_self_attention, qkv * 2, dout, n_head=n_head, causal=causal, lengths=lengths)


def run_cross_attention(ops, q, kv, dout, *, n_head, causal, lengths, views):
    if views:  # slices of something wider, as the packed q|k|v of a decoder's memory are
        q, kv = (np.pad(a, ((0, 0), (0, 0), (2, 3)))[..., 2:-3] for a in (q, kv))
    out, cache = ops.cross_attention_forward(q, kv, n_head, causal, lengths)
    dq, dkv = ops.cross_attention_backward(dout, cache)
    return {"out": out, "dq": dq, "dkv": dkv}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("B, Tq, Tk, C, n_head", [(1, 1, 1, 2, 1), (2, 1, 9, 6, 2), (2, 5, 7, 6, 3),
                                                  (1, 33, 70, 4, 2)])
def test_cross_attention(room, B, Tq, Tk, C, n_head, causal, padded, views):
    q, kv, dout = arrays((B, Tq, C), (B, Tk, 2 * C), (B, Tq, C))
    lengths = np.arange(Tk, Tk - B, -1) if padded else None
    if causal and padded:
        lengths = np.maximum(lengths, Tk - Tq + 1)
    agree(room, run_cross_attention, q, kv, dout, n_head=n_head, causal=causal, lengths=lengths, views=views)


def test_cross_attention_forward_does_not_look_at_padding(room):
    q, kv = arrays((2, 3, 4), (2, 9, 8))
    ops, lengths = devices.ops(room), np.array([4, 9])
    before, _ = ops.cross_attention_forward(q, kv, 2, lengths=lengths)
    kv[0, 4:] = 1e4
    after, _ = ops.cross_attention_forward(q, kv, 2, lengths=lengths)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("lengths", [[0, 3], [3, 6], [-1, 5]])
def test_attention_refuses_lengths_that_do_not_fit(room, lengths):
    qkv, = arrays((2, 5, 12))
    with pytest.raises(ValueError, match="lengths"):
        devices.ops(room).self_attention_forward(qkv, 2, lengths=np.array(lengths))


def test_causal_attention_refuses_more_queries_than_keys(room):
    q, kv = arrays((1, 5, 4), (1, 3, 8))
    with pytest.raises(ValueError):
        devices.ops(room).cross_attention_forward(q, kv, 2, causal=True)


# the block's operations

ROWS = [(1, 1), (2, 3), (1, 1, 8), (2, 3, 5), (5, 7, 129)]


def run_linear(ops, x, weight, dout, bias, residual):
    out, cache = ops.linear_forward(x, weight, bias, residual)
    dweight, dbias = junk(weight, bias)
    dx = ops.linear_backward(dout, cache, dweight, dbias)
    return {"out": out, "dx": dx, "dweight": dweight} | ({} if bias is None else {"dbias": dbias})


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_linear(room, shape, with_bias, with_residual):
    wide = (*shape[:-1], 6)
    x, weight, dout, bias, residual = arrays(shape, (shape[-1], 6), wide, 6, wide)
    agree(room, run_linear, x, weight, dout, bias if with_bias else None, residual if with_residual else None)


def test_linear_with_a_transposed_weight(room):
    """The head: logits = h @ wte.T, and the gradient is written through dwte.T."""
    def run(ops, x, table, dout):
        out, cache = ops.linear_forward(x, table.T)
        dtable, = junk(table)
        return {"out": out, "dx": ops.linear_backward(dout, cache, dtable.T), "dtable": dtable}
    agree(room, run, *arrays((2, 3, 5), (9, 5), (2, 3, 9)))


def test_linear_does_not_touch_its_residual(room):
    x, weight, bias, residual = arrays((2, 3), (3, 4), 4, (2, 4))
    before = residual.copy()
    devices.ops(room).linear_forward(x, weight, bias, residual)
    np.testing.assert_array_equal(residual, before)


def run_linear_gelu(ops, x, weight, bias, dout):
    out, cache = ops.linear_gelu_forward(x, weight, bias)
    dweight, dbias = junk(weight, bias)
    dx = ops.linear_gelu_backward(dout, cache, dweight, dbias)
    return {"out": out, "dx": dx, "dweight": dweight, "dbias": dbias}


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("scale", [1, 30])
def test_linear_gelu(room, shape, scale):
    x, weight, bias, dout = arrays(shape, (shape[-1], 6), 6, (*shape[:-1], 6))
    agree(room, run_linear_gelu, x * np.float32(scale), weight, bias, dout)


def run_layernorm(ops, x, weight, bias, dout, dresidual):
    out, cache = ops.layernorm_forward(x, weight, bias)
    dweight, dbias = junk(weight, bias)
    dx = ops.layernorm_backward(dout, cache, dweight, dbias, dresidual)
    return {"out": out, "dx": dx, "dweight": dweight, "dbias": dbias}


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_layernorm(room, shape, with_residual):
    x, weight, bias, dout, dresidual = arrays(shape, shape[-1], shape[-1], shape, shape)
    dresidual = dresidual if with_residual else None
    agree(room, run_layernorm, x + np.float32(3), weight, bias, dout, dresidual, atol=1e-4)


def run_dropout(ops, x, dout, residual, *, rate, seed):
    out, cache = ops.dropout_forward(x, rate, seed, residual)
    return {"out": out, "dx": ops.dropout_backward(dout, cache)}


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("with_residual", [False, True])
def test_dropout(room, shape, rate, with_residual):
    x, dout, residual = arrays(shape, shape, shape)
    agree(room, run_dropout, x, dout, residual if with_residual else None, rate=rate, seed=len(shape))


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5, 2**40 + 1])
def test_dropout_drops_the_same_numbers_in_every_room(room, seed):
    ones = np.ones((3, 5, 1001), np.float32)
    got, want = (devices.ops(name).dropout_forward(ones, 0.3, seed)[0] == 0 for name in (room, "numpy"))
    np.testing.assert_array_equal(got, want)


# what is not a number must be seen


@pytest.mark.parametrize("name", ["wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.0.attn.c_attn.weight",
                                  "h.0.attn.c_proj.bias", "h.1.ln_2.bias", "h.1.mlp.c_fc.bias",
                                  "h.1.mlp.c_proj.weight", "ln_f.weight"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_number_that_is_not_finite_reaches_the_loss(room, name, bad):
    config = Config(vocab_size=7, block_size=40, n_layer=2, n_head=2, n_embd=8)
    p, ops = init_parameters(config), devices.ops(room)
    p.views[name].flat[5] = bad
    tokens = np.arange(80).reshape(2, 40) % 7
    logits, _ = gpt_forward(ops, p, tokens)
    assert not np.isfinite(ops.cross_entropy(logits, tokens)[0])


def test_a_nan_reaches_the_norm_of_the_gradient(room):
    grads, = arrays((2, 5000))
    grads[1, 4321] = np.nan
    assert np.isnan(devices.ops(room).gradient_norm_squared(grads, 0, 5000))


def test_the_norm_of_a_large_gradient_is_not_infinite_before_its_time(room):
    grads = np.full((1, 5000), 1e15, np.float32)
    assert devices.ops(room).gradient_norm_squared(grads, 0, 5000) == pytest.approx(5000e30, rel=1e-6)


# all of them together


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_gpt_has_the_same_gradients_in_every_room(room, dropout):
    config = Config(vocab_size=29, block_size=37, n_layer=2, n_head=3, n_embd=12)
    tokens, targets = np.random.default_rng(1).integers(0, 29, (2, 3, 37))

    def run(ops, noise):
        p, g = (init_parameters(config, dtype=noise.dtype) for _ in range(2))
        p.flat[:] += noise
        logits, cache = gpt_forward(ops, p, tokens, dropout=dropout, seed=5)
        loss, dlogits = ops.cross_entropy(logits, targets)
        gpt_backward(ops, dlogits, cache, g)
        return {"loss": loss} | g.views
    noise, = arrays(init_parameters(config).flat.size)
    agree(room, run, noise * np.float32(0.1), rtol=1e-3, atol=1e-5)


# what the kernels cannot check by themselves


def test_what_does_not_count_has_the_same_number_in_every_room(room):
    assert devices.module(room, "losses").IGNORE == -1


def test_arrays_that_are_not_contiguous_give_the_same(room):
    """A slice of a wider array, as an encoder's positions may be: a kernel must not write into a copy."""
    x, w, wide, res = arrays((2, 3, 4), (4, 3), (2, 3, 7), (2, 3, 9))
    bias, scale = arrays(3, 4, seed=1)

    def run(ops, x, w, bias, scale, wide, res):
        dw, db, dscale, dshift = junk(w, bias, scale, scale)
        out, cache = ops.linear_gelu_forward(x, w, bias)
        dx = ops.linear_gelu_backward(wide[:, :, 2:5].copy(), cache, dw, db)
        normed, cache = ops.layernorm_forward(res[:, :, 1:5], scale, scale)
        dnorm = ops.layernorm_backward(wide[:, :, :4], cache, dscale, dshift, dresidual=res[:, :, 4:8])
        dropped, _ = ops.dropout_forward(res[:, :, 3:6], 0.5, 3)
        return {"out": out, "dx": dx, "dw": dw, "db": db, "normed": normed, "dnorm": dnorm, "dscale": dscale,
                "dshift": dshift, "dropped": dropped}

    agree(room, run, x, w, bias, scale, wide, res)


@pytest.mark.parametrize("wrong", ["bias", "residual", "dbias", "dweight", "norm", "dnorm", "sgd", "adamw",
                                   "muon"])
def test_a_wrong_shape_is_refused(room, wrong):
    """NumPy raises. A kernel, which checks no index, would write into whatever lies behind the array."""
    ops, (x, w, short, g) = devices.ops(room), arrays((5, 4), (4, 8), 3, (6, 9))
    out, cache = ops.linear_forward(x, w)
    _, normed = ops.layernorm_forward(x, np.ones(4, np.float32), np.zeros(4, np.float32))
    m = [np.zeros(4, np.float32) for _ in range(2)]
    calls = {
        "bias": lambda: ops.linear_forward(x, w, short),
        "residual": lambda: ops.linear_forward(x, w, None, x),
        "dbias": lambda: ops.linear_backward(out, cache, w.copy(), short),
        "dweight": lambda: ops.linear_backward(out, cache, w[:, :7].copy()),
        "norm": lambda: ops.layernorm_forward(x, short, short),
        "dnorm": lambda: ops.layernorm_backward(x, normed, short, short),
        "sgd": lambda: ops.sgd(g.ravel(), g.ravel(), m[0], 0.1, 0.9, 0.0, 1.0),
        "adamw": lambda: ops.adamw(g.ravel(), g.ravel(), m[0], m[1], 0.1, 0.9, 0.99, 1e-8, 0.0, 1, 1.0),
        "muon": lambda: ops.muon(g, g, g[:5].copy(), 0.1, 0.9, 0.0, 1.0),
    }
    with pytest.raises(ValueError):
        calls[wrong]()
