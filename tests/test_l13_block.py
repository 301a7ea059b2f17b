"""The tests of f are test_f and test_f_*: they are also lesson 13's exercises.

The oracles are formulas in float64 written here and their finite differences, never the lesson itself. Only
the tests of the whole block need another lesson: attention, from lesson 12.
"""
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu import block as cpu
from lessons import devices
from lessons import l13_block as lesson
from tests.close import assert_close, numeric_grad

rng = np.random.default_rng(13)
B, T, C, K, H = 2, 3, 4, 5, 2
x, weight, bias, residual, dout = (rng.normal(size=s) for s in [(B, T, C), (C, K), K, (B, T, K), (B, T, K)])
scale, shift, dresidual, dx_out = (rng.normal(size=s) for s in [C, C, (B, T, C), (B, T, C)])  # C wide
close_to_slope = partial(assert_close, rtol=1e-5, atol=1e-7)  # finite differences are good to about 1e-9


def junk(*shapes):
    """Where gradients go. Not zeros: what was there before must be gone."""
    return [np.full(shape, 7.0) for shape in shapes]


def gelu(y):
    return 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))


def norm(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


# linear


def test_linear_forward():
    want = np.einsum("btc,ck->btk", x, weight)
    assert_close(lesson.linear_forward(x, weight)[0], want, "out without a bias")
    assert_close(lesson.linear_forward(x, weight, bias)[0], want + bias, "out")


def test_linear_forward_adds_the_residual_and_leaves_it_alone():
    r = residual.copy()
    assert_close(lesson.linear_forward(x, weight, bias, r)[0], x @ weight + bias + residual, "out")
    assert_close(lesson.linear_forward(x, weight, residual=r)[0], x @ weight + residual, "out without a bias")
    assert_close(r, residual, "residual afterwards")


def linear_gradients(dout):
    _, cache = lesson.linear_forward(x, weight, bias)
    dweight, dbias = junk((C, K), K)
    return lesson.linear_backward(dout.copy(), cache, dweight, dbias), dweight, dbias


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


def test_linear_backward_writes_through_a_transposed_view():
    """The GPT's head is the token table, transposed: its gradient goes into table.T."""
    table, = junk((K, C))
    _, cache = lesson.linear_forward(x, weight)
    lesson.linear_backward(dout, cache, table.T)
    assert_close(table, np.einsum("btk,btc->kc", dout, x), "the table's gradient")


@settings(deadline=None, max_examples=20)
@given(st.floats(-5, 5), st.integers(0, 99))
def test_linear_backward_is_linear_in_dout(factor, seed):
    other = np.random.default_rng(seed).normal(size=dout.shape)
    for got, a, b, name in zip(linear_gradients(dout + factor * other), linear_gradients(dout),
                               linear_gradients(other), ("dx", "dweight", "dbias")):
        assert_close(got, a + factor * b, name, atol=1e-9)


# linear and gelu


def test_linear_gelu_forward():
    assert_close(lesson.linear_gelu_forward(x, weight, bias)[0], gelu(x @ weight + bias), "out")


def test_linear_gelu_forward_is_near_zero_or_near_y_far_out():
    y = np.array([[-30.0, -5.0, 0.0, 5.0, 30.0]])
    got, _ = lesson.linear_gelu_forward(y, np.eye(5), np.zeros(5))
    assert_close(got, np.maximum(y, 0), "gelu", atol=1e-5)


def test_linear_gelu_forward_is_the_gaussian_cdf_times_y():
    """The tanh form approximates y * P(Z <= y), Z standard normal, to less than 0.001."""
    y = np.linspace(-4, 4, 81)[:, None]
    exact = [[v * 0.5 * (1 + math.erf(v / math.sqrt(2)))] for v in y[:, 0]]
    assert_close(lesson.linear_gelu_forward(y, np.eye(1), np.zeros(1))[0], exact, "gelu", rtol=0, atol=1e-3)


def gelu_gradients(dout):
    _, cache = lesson.linear_gelu_forward(x, weight, bias)
    dweight, dbias = junk((C, K), K)
    return lesson.linear_gelu_backward(dout.copy(), cache, dweight, dbias), dweight, dbias


def test_linear_gelu_backward():
    dx, dweight, dbias = gelu_gradients(dout)
    close_to_slope(dx, numeric_grad(lambda x: (gelu(x @ weight + bias) * dout).sum(), x), "dx")
    close_to_slope(dweight, numeric_grad(lambda w: (gelu(x @ w + bias) * dout).sum(), weight), "dweight")
    close_to_slope(dbias, numeric_grad(lambda b: (gelu(x @ weight + b) * dout).sum(), bias), "dbias")


def test_linear_gelu_backward_is_linear_in_dout():
    for got, a, name in zip(gelu_gradients(-3 * dout), gelu_gradients(dout), ("dx", "dweight", "dbias")):
        assert_close(got, -3 * a, name)


# layer norm


def test_layernorm_forward():
    assert_close(lesson.layernorm_forward(x, scale, shift)[0], norm(x, scale, shift), "out")


def test_layernorm_forward_uses_eps_where_a_row_hardly_varies():
    flat = x * 1e-3
    assert_close(lesson.layernorm_forward(flat, scale, shift)[0], norm(flat, scale, shift), "out")
    wide, _ = lesson.layernorm_forward(x, scale, shift, eps=0.5)
    assert_close(wide, norm(x, scale, shift, 0.5), "out for eps=0.5")
    constant, _ = lesson.layernorm_forward(np.ones((1, C)), scale, shift)
    assert_close(constant, shift[None], "out of a constant row")


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(2, 40), st.floats(1e-2, 1e3))
def test_layernorm_forward_ignores_scale_and_shift_of_a_row(n, c, factor):
    a = np.random.default_rng(n * 41 + c).normal(size=(n, c))
    out = lambda a: lesson.layernorm_forward(a, np.ones(c), np.zeros(c), eps=0)[0]
    assert_close(out(a * factor + 7), out(a), "out")


def layernorm_gradients(dout, dresidual=None):
    _, cache = lesson.layernorm_forward(x, scale, shift)
    dweight, dbias = junk(C, C)
    dx = lesson.layernorm_backward(dout.copy(), cache, dweight, dbias, dresidual)
    return dx, dweight, dbias


def test_layernorm_backward():
    dx, dweight, dbias = layernorm_gradients(dx_out)
    close_to_slope(dx, numeric_grad(lambda x: (norm(x, scale, shift) * dx_out).sum(), x), "dx")
    close_to_slope(dweight, numeric_grad(lambda w: (norm(x, w, shift) * dx_out).sum(), scale), "dweight")
    close_to_slope(dbias, numeric_grad(lambda b: (norm(x, scale, b) * dx_out).sum(), shift), "dbias")


def test_layernorm_backward_adds_the_residual_gradient():
    without, *_ = layernorm_gradients(dx_out)
    assert_close(layernorm_gradients(dx_out, dresidual.copy())[0], without + dresidual, "dx")


def test_layernorm_backward_of_a_shift_is_zero():
    """Adding a number to a whole row changes nothing, so the gradient of a row sums to zero."""
    dx, *_ = layernorm_gradients(dx_out)
    assert_close(dx.sum(axis=-1), np.zeros((B, T)), "sum of dx over channels", atol=1e-12)


def test_layernorm_backward_is_linear_in_dout():
    for got, a, b, name in zip(layernorm_gradients(2 * dx_out - dresidual), layernorm_gradients(dx_out),
                               layernorm_gradients(dresidual), ("dx", "dweight", "dbias")):
        assert_close(got, 2 * a - b, name, atol=1e-12)


# dropout

many = np.random.default_rng(0).normal(2, 1, size=(40, 1000))  # enough for a mean good to 1 %


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_forward_drops_a_share_of_rate_and_keeps_the_mean(rate):
    out, _ = lesson.dropout_forward(many, rate, seed=3)
    assert_close((out == 0).mean(), rate, "the share that fell", rtol=0, atol=0.01)
    kept = out != 0
    assert_close(out[kept], many[kept] / (1 - rate), "what was kept")
    assert_close(out.mean(), many.mean(), "the mean", rtol=0.08)


def test_dropout_forward_with_rate_0_changes_nothing():
    assert_close(lesson.dropout_forward(x, 0.0, seed=3)[0], x, "out")


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


def test_dropout_forward_adds_the_residual_after_dropping():
    r = np.random.default_rng(1).normal(size=many.shape)
    out, _ = lesson.dropout_forward(many, 0.5, seed=3, residual=r.copy())
    assert_close(out - r, lesson.dropout_forward(many, 0.5, seed=3)[0], "out - residual", atol=1e-12)


def test_dropout_backward_uses_the_mask_of_forward():
    d = np.random.default_rng(2).normal(size=many.shape)
    for r in None, np.ones_like(many):
        _, cache = lesson.dropout_forward(many, 0.5, seed=3, residual=r)
        fell = lesson.dropout_forward(many, 0.5, seed=3)[0] == 0
        assert_close(lesson.dropout_backward(d.copy(), cache), np.where(fell, 0, d / (1 - 0.5)), "dx")


# the block


def attention(qkv):
    """Causal self-attention, (B, T, 3C) -> (B, T, C), one head and one query at a time."""
    out, (B, T, C) = np.zeros((*qkv.shape[:2], qkv.shape[2] // 3)), (*qkv.shape[:2], qkv.shape[2] // 3)
    for b, h, t in np.ndindex(B, H, T):
        q, k, v = (qkv[b, :, i * C + h * C // H:i * C + (h + 1) * C // H] for i in range(3))
        e = np.exp(k[:t + 1] @ q[t] / math.sqrt(C // H))
        out[b, t, h * C // H:(h + 1) * C // H] = e / e.sum() @ v[:t + 1]
    return out


SHAPES = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C),
          "ln_2": (C,), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
p = {name: (rng.normal(size=shape), rng.normal(size=shape[-1:])) for name, shape in SHAPES.items()}


def block(x, p, keep=(1, 1)):
    """The two lines at the top of the lesson. keep: what dropout multiplies each half by."""
    linear = lambda x, name: x @ p[name][0] + p[name][1]
    x = x + keep[0] * linear(attention(linear(norm(x, *p["ln_1"]), "attn.c_attn")), "attn.c_proj")
    return x + keep[1] * linear(gelu(linear(norm(x, *p["ln_2"]), "mlp.c_fc")), "mlp.c_proj")


def run_block(dropout=0.0, seed=0):
    ops = devices.ops("numpy")
    attention = lambda qkv: ops.self_attention_forward(qkv, H)
    return ops, *lesson.block_forward(ops, x, p, attention, dropout, seed)


def masks(dropout, seed):
    """What the two dropouts of a block multiply by: seeds 2 * seed and 2 * seed + 1."""
    ones = np.ones_like(x)
    return [lesson.dropout_forward(ones, dropout, 2 * seed + i)[0] for i in (0, 1)]


def block_gradients(dout, dropout=0.0, seed=0):
    ops, _, cache = run_block(dropout, seed)
    g = {name: junk(shape, shape[-1:]) for name, shape in SHAPES.items()}
    return lesson.block_backward(ops, dout.copy(), cache, g), g


def test_block_forward():
    assert_close(run_block()[1], block(x, p), "out")


def test_block_forward_with_dropout_drops_at_the_end_of_each_half():
    assert_close(run_block(dropout=0.4, seed=6)[1], block(x, p, masks(0.4, 6)), "out")


def test_block_forward_does_not_see_the_future():
    ops, before, _ = run_block()
    changed = x.copy()
    changed[:, -1] += 1
    after, _ = lesson.block_forward(ops, changed, p, lambda qkv: ops.self_attention_forward(qkv, H))
    assert_close(after[:, :-1], before[:, :-1], "outputs before the position that changed")


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_block_backward(dropout):
    keep = masks(dropout, 6) if dropout else (1, 1)
    dx, g = block_gradients(dx_out, dropout, seed=6)
    close_to_slope(dx, numeric_grad(lambda x: (block(x, p, keep) * dx_out).sum(), x), "dx")
    for name in reversed(SHAPES):  # the order of the backward pass: the first to fail is where to look
        loss = lambda weight, bias, name=name: (block(x, p | {name: (weight, bias)}, keep) * dx_out).sum()
        weight, bias = p[name]
        close_to_slope(g[name][0], numeric_grad(partial(loss, bias=bias), weight), f"dweight of {name}")
        close_to_slope(g[name][1], numeric_grad(partial(loss, weight), bias), f"dbias of {name}")


def test_block_backward_is_linear_in_dout():
    (dx, g), (dx_1, g_1), (dx_2, g_2) = map(block_gradients, (dx_out - 3 * dresidual, dx_out, dresidual))
    assert_close(dx, dx_1 - 3 * dx_2, "dx", atol=1e-9)
    for name in SHAPES:
        for i in 0, 1:
            assert_close(g[name][i], g_1[name][i] - 3 * g_2[name][i], f"gradient {i} of {name}", atol=1e-9)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_branch_forward_and_branch_backward(dropout):
    ops, r = devices.ops("numpy"), residual
    keep = lesson.dropout_forward(np.ones_like(r), dropout, 9)[0]
    out, cache = lesson.branch_forward(ops, r, x, weight, bias, dropout, 9)
    assert_close(out, r + keep * (x @ weight + bias), "out")
    dweight, dbias = junk((C, K), K)
    dh = lesson.branch_backward(ops, dout.copy(), cache, dweight, dbias)
    assert_close(dh, (keep * dout) @ weight.T, "dh")
    assert_close(dbias, (keep * dout).sum((0, 1)), "dbias")


def test_main_shows_numbers_and_a_gradient_that_survive_48_blocks(capsys):
    lesson.main()
    lines = capsys.readouterr().out.splitlines()
    plain, both = ([float(word) for word in line.split()[-5:]]
                   for line in lines if line.startswith(("plain", "both")))
    assert 0.01 < both[2] < 100 and 0.01 < both[4] < 100, f"with norm and residual: {both}"
    assert plain[2] < 1e-4 and plain[4] < 1e-4, f"without, all should fade: {plain}"


# the kernels (rows (N, C), float32), each against one line of NumPy

SIZES = [(1, 1), (1, 8), (3, 7), (5, 129)]


def floats(*shapes):
    return [np.random.default_rng(i).normal(size=s).astype(np.float32) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("N, K", SIZES)
def test_add_bias(N, K):
    y, b = floats((N, K), K)
    want = y + b
    cpu.add_bias(y, b)
    assert_close(y, want, "out")


@pytest.mark.parametrize("N, K", SIZES)
def test_add_bias_residual(N, K):
    y, b, r = floats((N, K), K, (N, K))
    want = y + b + r
    cpu.add_bias_residual(y, b, r)
    assert_close(y, want, "out")


@pytest.mark.parametrize("N, K", SIZES)
def test_column_sums(N, K):
    d, sums = floats((N, K), K)  # sums are not zero before
    cpu.column_sums(d, sums)
    assert_close(sums, d.sum(0, dtype=float), "sums")


@pytest.mark.parametrize("N, K", SIZES)
def test_bias_gelu(N, K):
    y, b, out = floats((N, K), K, (N, K))
    y *= 3
    z = (y + b).astype(float)
    cpu.bias_gelu(y, b, out)
    assert_close(out, gelu(z), "out")
    assert_close(y, (gelu(z + 1e-6) - gelu(z - 1e-6)) / 2e-6, "slope", atol=2e-6)


@pytest.mark.parametrize("N, K", SIZES)
def test_scale_and_column_sums(N, K):
    d, slope, sums = floats((N, K), (N, K), K)
    want = d * slope
    cpu.scale_and_column_sums(d, slope, sums)
    assert_close(d, want, "dout")
    assert_close(sums, want.sum(0, dtype=float), "sums")


@pytest.mark.parametrize("N, C", SIZES)
def test_normalize_rows(N, C):
    x, w, b, out, mean_rstd = floats((N, C), C, C, (N, C), (N, 2))
    x += 10
    cpu.normalize_rows(x, w, b, np.float32(1e-5), out, mean_rstd)
    x = x.astype(float)
    assert_close(mean_rstd[:, 0], x.mean(1), "mean")
    assert_close(mean_rstd[:, 1], 1 / np.sqrt(x.var(1) + 1e-5), "rstd", rtol=1e-4)
    assert_close(out, norm(x, w, b), "out", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("N, C", SIZES[1:])
def test_normalize_rows_backward(N, C, add):
    d, x, w, dx, dw, db = floats((N, C), (N, C), C, (N, C), C, C)
    before = dx.astype(float) if add else 0
    x64, d64 = x.astype(float), d.astype(float)
    rstd = 1 / np.sqrt(x64.var(1, keepdims=True) + 1e-5)
    xhat = (x64 - x64.mean(1, keepdims=True)) * rstd
    stats = np.concatenate([x64.mean(1, keepdims=True), rstd], 1).astype(np.float32)
    cpu.normalize_rows_backward(d, x, stats, w, dx, dw, db, add)
    g = d64 * w
    want = before + rstd * (g - g.mean(1, keepdims=True) - xhat * (g * xhat).mean(1, keepdims=True))
    assert_close(dx, want, "dx", rtol=1e-4, atol=1e-5)
    assert_close(dw, (d64 * xhat).sum(0), "dweight", rtol=1e-4, atol=1e-5)
    assert_close(db, d64.sum(0), "dbias", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 1])
def test_drop(seed):
    """MurmurHash3's finaliser of place * 0x9E3779B1 + seed, in Python's own whole numbers."""
    def bits(i):
        h = (i * 0x9E3779B1 + seed) % 2**32
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        return h ^ h >> 16
    a, out, keep = floats(1001, 1001, 1001)
    cpu.drop(a, np.uint32(0.3 * 2**32), np.float32(1 / 0.7), np.uint32(seed), out, keep)
    want = [(bits(i) >= int(0.3 * 2**32)) / 0.7 for i in range(1001)]
    assert_close(keep, want, "scale")
    assert_close(out, want * a, "out")
