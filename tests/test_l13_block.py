"""The tests of f are test_f and test_f_*: they are also lesson 13's exercises.

The oracles are formulas in float64 written here and their finite differences, never the lesson itself. The
arguments are read-only: a function that changes one in place stops at that line. Only attention comes from
another lesson, the one before.
"""
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import l12_attention
from lessons import l13_block as lesson
from tests.close import assert_close, numeric_grad

rng = np.random.default_rng(13)
B, T, C, K, H = 2, 3, 4, 5, 2


def normal(*shape):
    """Normal numbers that nobody may write into."""
    a = rng.normal(size=shape)
    a.flags.writeable = False
    return a


x, weight, bias, residual, dout = normal(B, T, C), normal(C, K), normal(K), normal(B, T, K), normal(B, T, K)
scale, shift, dresidual, dx_out = normal(C), normal(C), normal(B, T, C), normal(B, T, C)  # C wide
close_to_slope = partial(assert_close, rtol=1e-5, atol=1e-7)  # finite differences are good to about 1e-9
close_and_float32 = partial(assert_close, rtol=1e-4, atol=1e-5, dtype=np.float32)


def junk(*shapes):
    """Where gradients go. Not zeros: what was there before must be gone."""
    return [np.full(shape, 7.0) for shape in shapes]


def halved(*arrays):
    """As float32: what comes out must be float32 as well, or training would use twice the memory."""
    return [a.astype(np.float32) for a in arrays]


def gelu(y):
    return 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))


def norm(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


# linear


def test_linear_forward():
    want = np.einsum("btc,ck->btk", x, weight)
    assert_close(lesson.linear_forward(x, weight)[0], want, "out without a bias")
    assert_close(lesson.linear_forward(x, weight, bias)[0], want + bias, "out")


def test_linear_forward_adds_the_residual():
    assert_close(lesson.linear_forward(x, weight, bias, residual)[0], x @ weight + bias + residual, "out")
    out, _ = lesson.linear_forward(x, weight, residual=residual)
    assert_close(out, x @ weight + residual, "out without a bias")


def test_linear_forward_keeps_x_and_weight_for_backward():
    _, (x_kept, weight_kept) = lesson.linear_forward(x, weight, bias, residual)
    assert_close(x_kept, x, "cache[0]")
    assert_close(weight_kept, weight, "cache[1]")


def test_linear_forward_of_float32_is_float32():
    out, _ = lesson.linear_forward(*halved(x, weight, bias, residual))
    close_and_float32(out, x @ weight + bias + residual, "out")


def linear_gradients(dout):
    _, cache = lesson.linear_forward(x, weight, bias)
    dweight, dbias = junk((C, K), K)
    return lesson.linear_backward(dout, cache, dweight, dbias), dweight, dbias


def test_linear_backward():
    dx, dweight, dbias = linear_gradients(dout)
    close_to_slope(dx, numeric_grad(lambda x: ((x @ weight + bias) * dout).sum(), x), "dx")
    close_to_slope(dweight, numeric_grad(lambda w: ((x @ w + bias) * dout).sum(), weight), "dweight")
    close_to_slope(dbias, numeric_grad(lambda b: ((x @ weight + b) * dout).sum(), bias), "dbias")


def test_linear_backward_without_a_bias():
    _, cache = lesson.linear_forward(x, weight)
    dweight, = junk((C, K))
    assert_close(lesson.linear_backward(dout, cache, dweight), dout @ weight.T, "dx")
    assert_close(dweight, np.einsum("btc,btk->ck", x, dout), "dweight")


def test_linear_backward_of_rows_without_a_batch():
    _, cache = lesson.linear_forward(x[0], weight, bias)
    dweight, dbias = junk((C, K), K)
    assert_close(lesson.linear_backward(dout[0], cache, dweight, dbias), dout[0] @ weight.T, "dx")
    assert_close(dweight, np.einsum("tc,tk->ck", x[0], dout[0]), "dweight")
    assert_close(dbias, np.einsum("tk->k", dout[0]), "dbias")


def test_linear_backward_writes_through_a_transposed_view():
    """The GPT's head is the token table, transposed: its gradient goes into table.T."""
    table, = junk((K, C))
    _, cache = lesson.linear_forward(x, weight)
    lesson.linear_backward(dout, cache, table.T)
    assert_close(table, np.einsum("btk,btc->kc", dout, x), "the table's gradient")


def test_linear_backward_of_float32_is_float32():
    _, cache = lesson.linear_forward(*halved(x, weight, bias))
    dweight, dbias = halved(*junk((C, K), K))
    dx = lesson.linear_backward(*halved(dout), cache, dweight, dbias)
    close_and_float32(dx, dout @ weight.T, "dx")
    close_and_float32(dweight, np.einsum("btc,btk->ck", x, dout), "dweight")
    close_and_float32(dbias, dout.sum((0, 1)), "dbias")


@settings(deadline=None, max_examples=10)
@given(st.floats(-5, 5), st.integers(0, 99))
def test_linear_backward_is_linear_in_dout(factor, seed):
    other = np.random.default_rng(seed).normal(size=dout.shape)
    for got, a, b, name in zip(linear_gradients(dout + factor * other), linear_gradients(dout),
                               linear_gradients(other), ("dx", "dweight", "dbias")):
        assert_close(got, a + factor * b, name, atol=1e-9)


# linear and gelu


def test_linear_gelu_forward():
    assert_close(lesson.linear_gelu_forward(x, weight, bias)[0], gelu(x @ weight + bias), "out")


def test_linear_gelu_forward_keeps_x_weight_and_the_slope_for_backward():
    _, (x_kept, weight_kept, slope) = lesson.linear_gelu_forward(x, weight, bias)
    y, step = x @ weight + bias, 1e-5
    assert_close(x_kept, x, "cache[0]")
    assert_close(weight_kept, weight, "cache[1]")
    close_to_slope(slope, (gelu(y + step) - gelu(y - step)) / (2 * step), "slope")


def test_linear_gelu_forward_is_near_zero_or_near_y_far_out():
    y = np.array([[-100.0, -6.0, 0.0, 6.0, 100.0]])
    with np.errstate(over="raise", divide="raise", invalid="raise"):  # tanh overflows nowhere, exp does
        got, (_, _, slope) = lesson.linear_gelu_forward(y, np.eye(5), np.zeros(5))
    assert_close(got, np.maximum(y, 0), "gelu", atol=1e-5)
    assert_close(slope, [[0, 0, 0.5, 1, 1]], "slope", atol=1e-5)


def test_linear_gelu_forward_is_the_gaussian_cdf_times_y():
    """The tanh form approximates y * P(Z <= y), Z standard normal, to less than 0.001."""
    y = np.linspace(-4, 4, 81)[:, None]
    exact = [[v * 0.5 * (1 + math.erf(v / math.sqrt(2)))] for v in y[:, 0]]
    assert_close(lesson.linear_gelu_forward(y, np.eye(1), np.zeros(1))[0], exact, "gelu", rtol=0, atol=1e-3)


def test_linear_gelu_forward_of_float32_is_float32():
    out, (_, _, slope) = lesson.linear_gelu_forward(*halved(x, weight, bias))
    y, step = x @ weight + bias, 1e-5
    close_and_float32(out, gelu(y), "out")
    close_and_float32(slope, (gelu(y + step) - gelu(y - step)) / (2 * step), "slope")


def gelu_gradients(dout):
    _, cache = lesson.linear_gelu_forward(x, weight, bias)
    dweight, dbias = junk((C, K), K)
    return lesson.linear_gelu_backward(dout.copy(), cache, dweight, dbias), dweight, dbias


def test_linear_gelu_backward():
    dx, dweight, dbias = gelu_gradients(dout)
    close_to_slope(dx, numeric_grad(lambda x: (gelu(x @ weight + bias) * dout).sum(), x), "dx")
    close_to_slope(dweight, numeric_grad(lambda w: (gelu(x @ w + bias) * dout).sum(), weight), "dweight")
    close_to_slope(dbias, numeric_grad(lambda b: (gelu(x @ weight + b) * dout).sum(), bias), "dbias")


# layer norm


def test_layernorm_forward():
    assert_close(lesson.layernorm_forward(x, scale, shift)[0], norm(x, scale, shift), "out")


def test_layernorm_forward_keeps_xhat_rstd_and_weight_for_backward():
    _, (xhat, rstd, weight_kept) = lesson.layernorm_forward(x, scale, shift)
    assert_close(xhat, norm(x, 1, 0), "xhat")
    assert_close(rstd, 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5), "rstd")
    assert_close(weight_kept, scale, "the weight in the cache")


def test_layernorm_forward_uses_eps_where_a_row_hardly_varies():
    flat = x * 1e-3
    assert_close(lesson.layernorm_forward(flat, scale, shift)[0], norm(flat, scale, shift), "out")
    wide, _ = lesson.layernorm_forward(x, scale, shift, eps=0.5)
    assert_close(wide, norm(x, scale, shift, 0.5), "out for eps=0.5")
    constant, _ = lesson.layernorm_forward(np.ones((1, C)), scale, shift)
    assert_close(constant, shift[None], "out of a constant row")


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(2, 40), st.floats(1e-2, 1e3))
def test_layernorm_forward_ignores_scale_and_shift_of_a_row(n, c, factor):
    a = np.random.default_rng(n * 41 + c).normal(size=(n, c))
    out = lambda a: lesson.layernorm_forward(a, np.ones(c), np.zeros(c), eps=0)[0]
    assert_close(out(a * factor + 7), out(a), "out")


def test_layernorm_forward_of_float32_is_float32():
    out, (xhat, rstd, _) = lesson.layernorm_forward(*halved(x, scale, shift))
    close_and_float32(out, norm(x, scale, shift), "out")
    close_and_float32(xhat, norm(x, 1, 0), "xhat")
    close_and_float32(rstd, 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5), "rstd")


def test_layernorm_forward_keeps_its_digits_where_the_mean_is_large():
    far, = halved(x + 1000)
    out, _ = lesson.layernorm_forward(far, *halved(scale, shift))
    assert_close(out, norm(far.astype(float), scale, shift), "out of rows around 1000 (in float32 "
                 "mean(x^2) - mean^2 has no digits left)", rtol=1e-3, atol=1e-3)


def layernorm_gradients(dout, dresidual=None):
    _, cache = lesson.layernorm_forward(x, scale, shift)
    dweight, dbias = junk(C, C)
    dx = lesson.layernorm_backward(dout, cache, dweight, dbias, dresidual)
    return dx, dweight, dbias


def test_layernorm_backward():
    dx, dweight, dbias = layernorm_gradients(dx_out)
    close_to_slope(dx, numeric_grad(lambda x: (norm(x, scale, shift) * dx_out).sum(), x), "dx")
    close_to_slope(dweight, numeric_grad(lambda w: (norm(x, w, shift) * dx_out).sum(), scale), "dweight")
    close_to_slope(dbias, numeric_grad(lambda b: (norm(x, scale, b) * dx_out).sum(), shift), "dbias")


def test_layernorm_backward_adds_the_residual_gradient():
    dx = numeric_grad(lambda x: (norm(x, scale, shift) * dx_out + x * dresidual).sum(), x)
    close_to_slope(layernorm_gradients(dx_out, dresidual.copy())[0], dx, "dx")


def test_layernorm_backward_of_rows_without_a_batch():
    _, cache = lesson.layernorm_forward(x[0], scale, shift)
    dweight, dbias = junk(C, C)
    dx = lesson.layernorm_backward(dx_out[0], cache, dweight, dbias)
    close_to_slope(dx, numeric_grad(lambda x: (norm(x, scale, shift) * dx_out[0]).sum(), x[0]), "dx")
    assert_close(dweight, np.einsum("tc,tc->c", dx_out[0], norm(x[0], 1, 0)), "dweight")
    assert_close(dbias, np.einsum("tc->c", dx_out[0]), "dbias")


def test_layernorm_backward_of_float32_is_float32():
    _, cache = lesson.layernorm_forward(*halved(x, scale, shift))
    want = numeric_grad(lambda x: (norm(x, scale, shift) * dx_out).sum(), x)
    for more, name in ((), "dx"), (halved(dresidual), "dx, dresidual added,"):
        dweight, dbias = halved(*junk(C, C))
        dx = lesson.layernorm_backward(*halved(dx_out), cache, dweight, dbias, *more)
        close_and_float32(dx, want + sum(more), name)
        close_and_float32(dweight, (dx_out * norm(x, 1, 0)).sum((0, 1)), "dweight")
        close_and_float32(dbias, dx_out.sum((0, 1)), "dbias")


def test_layernorm_backward_of_a_shift_is_zero():
    """Adding a number to a whole row changes nothing, so the gradient of a row sums to zero."""
    dx, *_ = layernorm_gradients(dx_out)
    assert_close(dx.sum(axis=-1), np.zeros((B, T)), "sum of dx over channels", atol=1e-12)


def test_layernorm_backward_is_linear_in_dout():
    for got, a, b, name in zip(layernorm_gradients(2 * dx_out - dresidual), layernorm_gradients(dx_out),
                               layernorm_gradients(dresidual), ("dx", "dweight", "dbias")):
        assert_close(got, 2 * a - b, name, atol=1e-12)


# dropout

many = normal(40, 1000) + 2  # enough for a mean good to 1 %


def bits(place, seed):
    """MurmurHash3's last step on a place and a seed, in Python's own whole numbers."""
    h = (place * 0x9E3779B1 + seed * 0x85EBCA6B) % 2**32
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def keep(shape, rate, seed):
    """What dropout multiplies by."""
    stays = [bits(place, seed) >= int(rate * 2**32) for place in range(math.prod(shape))]
    return np.reshape(stays, shape) / (1 - rate)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_forward(rate):
    out, mask = lesson.dropout_forward(x, rate, seed=3)
    assert_close(out, x * keep(x.shape, rate, 3), "out")
    assert_close(mask, keep(x.shape, rate, 3), "scale")


def test_dropout_forward_adds_the_residual_after_dropping():
    out, mask = lesson.dropout_forward(x, 0.5, seed=3, residual=dresidual)
    assert_close(out, dresidual + x * keep(x.shape, 0.5, 3), "out")
    assert_close(mask, keep(x.shape, 0.5, 3), "scale")


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_forward_drops_a_share_of_rate_and_keeps_the_mean(rate):
    out, _ = lesson.dropout_forward(many, rate, seed=3)
    assert_close((out == 0).mean(), rate, "the share that fell", rtol=0, atol=0.01)
    assert_close(out.mean(), many.mean(), "the mean", rtol=0.08)


def test_dropout_forward_drops_what_is_below_the_rate_and_nothing_at_it():
    lowest = min(bits(place, 3) for place in range(x.size))
    for rate in lowest / 2**32, (lowest + 0.5) / 2**32:
        out, _ = lesson.dropout_forward(x, rate, seed=3)
        assert (out != 0).all(), (f"all bits are >= {lowest}: rate * 2**32 = {rate * 2**32} must drop none: "
                                  "use <, not <=, and int(rate * 2**32)")


def test_dropout_forward_depends_on_the_seed_alone():
    fell = lambda a, seed: lesson.dropout_forward(a, 0.5, seed)[0] == 0
    assert (fell(many, 3) == fell(many, 3)).all(), "the same seed must drop the same places"
    assert (fell(many, 3) == fell(many + 9, 3)).all(), "the values must not decide which places fall"
    for seed in 4, 5, 1000, 2**31, 2**40:
        same = (fell(many, 3) == fell(many, seed)).mean()
        assert 0.48 < same < 0.52, f"seeds 3 and {seed} agree in {same:.1%} of all places, not in half"


def test_dropout_forward_has_no_pattern():
    """Neighbours, and rows under each other, fall independently: at rate 0.5 a quarter fall together."""
    fell = lesson.dropout_forward(many, 0.5, seed=1)[0] == 0
    for name, both in ("neighbours", fell[:, 1:] & fell[:, :-1]), ("rows", fell[1:] & fell[:-1]):
        assert_close(both.mean(), 0.25, f"{name} that fall together", rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_forward_keeps_the_dtype(dtype):
    out, mask = lesson.dropout_forward(x.astype(dtype), 0.3, seed=3)
    assert_close(out, x * keep(x.shape, 0.3, 3), "out", dtype=dtype)
    assert_close(mask, keep(x.shape, 0.3, 3), "scale", dtype=dtype)


def test_dropout_backward_uses_the_mask_of_forward():
    for r in None, dresidual:
        _, cache = lesson.dropout_forward(x, 0.5, seed=3, residual=r)
        assert_close(lesson.dropout_backward(dx_out.copy(), cache), dx_out * keep(x.shape, 0.5, 3), "dx")


# the block

SHAPES = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C),
          "ln_2": (C,), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
LOOK = ["ln_1", "attn.c_attn", "attn.c_proj"]
p = {name: (normal(*shape), normal(shape[-1])) for name, shape in SHAPES.items()}


def attention(qkv):
    """Causal self-attention, (B, T, 3C) -> (B, T, C), one head and one query at a time."""
    out, (B, T, C) = np.zeros((*qkv.shape[:2], qkv.shape[2] // 3)), (*qkv.shape[:2], qkv.shape[2] // 3)
    for b, h, t in np.ndindex(B, H, T):
        q, k, v = (qkv[b, :, i * C + h * C // H:i * C + (h + 1) * C // H] for i in range(3))
        e = np.exp(k[:t + 1] @ q[t] / math.sqrt(C // H))
        out[b, t, h * C // H:(h + 1) * C // H] = e / e.sum() @ v[:t + 1]
    return out


def linear(x, p, name):
    return x @ p[name][0] + p[name][1]


def look(x, p, keep=1):
    """The first line at the top of the lesson. keep: what dropout multiplies it by."""
    return x + keep * linear(attention(linear(norm(x, *p["ln_1"]), p, "attn.c_attn")), p, "attn.c_proj")


def block(x, p, keep=(1, 1)):
    x = look(x, p, keep[0])
    return x + keep[1] * linear(gelu(linear(norm(x, *p["ln_2"]), p, "mlp.c_fc")), p, "mlp.c_proj")


def operations(called=None):
    """What a model calls `ops`: lesson 12 and 13. The names of what is called go into `called`."""
    def noted(name, *args, **named):
        if called is not None:
            called.append(name)
        return getattr(l12_attention if "attention" in name else lesson, name)(*args, **named)

    return SimpleNamespace(**{f"{name}_{way}": partial(noted, f"{name}_{way}")
                              for name in ("linear", "linear_gelu", "layernorm", "dropout", "self_attention")
                              for way in ("forward", "backward")})


def check_called(called, *names):
    """What lesson.f(ops, ...) called of ops, against what it should have, in this order."""
    for name in names:
        assert called.count(name) == names.count(name), (
            f"{name} must be called as ops.{name}, {called.count(name)} of {names.count(name)} calls are")
    assert called == [*names], f"called of ops: {called}, expected {[*names]}"


def causal(qkv):
    return l12_attention.self_attention_forward(qkv, H)


def check_gradients(dx, g, function):
    """dx, and g's of each module, against the slopes of (function(x, p) * dx_out).sum()."""
    close_to_slope(dx, numeric_grad(lambda x: (function(x, p) * dx_out).sum(), x), "dx")
    for name in reversed(g):  # the order of the backward pass: the first to fail is where to look
        loss = lambda weight, bias, name=name: (function(x, p | {name: (weight, bias)}) * dx_out).sum()
        weight, bias = p[name]
        close_to_slope(g[name][0], numeric_grad(partial(loss, bias=bias), weight), f"dweight of {name}")
        close_to_slope(g[name][1], numeric_grad(partial(loss, weight), bias), f"dbias of {name}")


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_branch_forward_and_branch_backward(dropout):
    ops, mask = operations(), keep(residual.shape, dropout, 9)
    out, cache = lesson.branch_forward(ops, residual, x, weight, bias, dropout, 9)
    assert_close(out, residual + mask * (x @ weight + bias), "out")
    dweight, dbias = junk((C, K), K)
    dh = lesson.branch_backward(ops, dout.copy(), cache, dweight, dbias)
    assert_close(dh, (mask * dout) @ weight.T, "dh")
    assert_close(dbias, (mask * dout).sum((0, 1)), "dbias")


def test_look_forward():
    assert_close(lesson.look_forward(operations(), x, p, causal)[0], look(x, p), "out")


def test_look_forward_drops_before_it_adds_x():
    out, _ = lesson.look_forward(operations(), x, p, causal, dropout=0.4, seed=6)
    assert_close(out, look(x, p, keep(x.shape, 0.4, 6)), "out")


def test_look_forward_calls_the_operations_of_ops():
    called = []
    lesson.look_forward(operations(called), x, p, causal)
    check_called(called, "layernorm_forward", "linear_forward", "linear_forward")


def test_look_forward_keeps_the_caches_of_layer_norm_linear_attention_and_branch():
    _, cache = lesson.look_forward(operations(), x, p, causal)
    assert isinstance(cache, tuple) and len(cache) == 4, f"four caches are expected, got {cache!r}"
    (xhat, *_), (h, _), _, ((attended, _), dropout) = cache
    assert_close(xhat, norm(x, 1, 0), "xhat, in the cache of layer norm")
    assert_close(h, norm(x, *p["ln_1"]), "x, in the cache of attn.c_attn")
    assert_close(attended, attention(linear(h, p, "attn.c_attn")), "x, in the cache of attn.c_proj")
    assert dropout is None, "without dropout its cache is None"


def look_gradients(dout, dropout=0.0, seed=0, called=None):
    ops = operations(called)
    _, cache = lesson.look_forward(operations(), x, p, causal, dropout, seed)
    g = {name: junk(SHAPES[name], SHAPES[name][-1]) for name in LOOK}
    return lesson.look_backward(ops, dout.copy(), cache, g), g


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_look_backward(dropout):
    dx, g = look_gradients(dx_out, dropout, seed=6)
    check_gradients(dx, g, partial(look, keep=keep(x.shape, dropout, 6)))


def test_look_backward_calls_the_operations_of_ops():
    called = []
    look_gradients(dx_out, called=called)
    check_called(called, "linear_backward", "self_attention_backward", "linear_backward",
                 "layernorm_backward")


def block_gradients(dout, dropout=0.0, seed=0):
    ops = operations()
    _, cache = lesson.block_forward(ops, x, p, causal, dropout, seed)
    g = {name: junk(shape, shape[-1]) for name, shape in SHAPES.items()}
    return lesson.block_backward(ops, dout.copy(), cache, g), g


def masks(dropout, seed):
    """What the two dropouts of a block multiply by: seeds 2 * seed and 2 * seed + 1."""
    return [keep(x.shape, dropout, 2 * seed + i) for i in (0, 1)]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_block_forward_drops_at_the_end_of_each_half(dropout):
    out, _ = lesson.block_forward(operations(), x, p, causal, dropout, seed=6)
    assert_close(out, block(x, p, masks(dropout, 6)), "out")


def test_block_forward_does_not_see_the_future():
    before, _ = lesson.block_forward(operations(), x, p, causal)
    changed = x.copy()
    changed[:, -1] += 1
    after, _ = lesson.block_forward(operations(), changed, p, causal)
    assert_close(after[:, :-1], before[:, :-1], "outputs before the position that changed")


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_block_backward(dropout):
    dx, g = block_gradients(dx_out, dropout, seed=6)
    check_gradients(dx, g, partial(block, keep=masks(dropout, 6)))


def test_block_backward_is_linear_in_dout():
    (dx, g), (dx_1, g_1), (dx_2, g_2) = map(block_gradients, (dx_out - 3 * dresidual, dx_out, dresidual))
    assert_close(dx, dx_1 - 3 * dx_2, "dx", atol=1e-9)
    for name in SHAPES:
        for i in 0, 1:
            assert_close(g[name][i], g_1[name][i] - 3 * g_2[name][i], f"gradient {i} of {name}", atol=1e-9)


def test_main_shows_numbers_and_a_gradient_that_survive_48_blocks(capsys):
    lesson.main()
    lines = capsys.readouterr().out.splitlines()
    plain, both = ([float(word) for word in line.split()[-5:]]
                   for line in lines if line.startswith(("plain", "both")))
    assert 0.01 < both[2] < 100 and 0.01 < both[4] < 100, f"with norm and residual: {both}"
    assert plain[2] < 1e-4 and plain[4] < 1e-4, f"without, all should fade: {plain}"
