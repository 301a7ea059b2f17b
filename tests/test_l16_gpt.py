"""The tests of f are test_f and test_f_*: they are also lesson 16's exercises.

The oracles: numbers worked out by hand, finite differences of the model's own
loss, and what must hold for every GPT (the future changes nothing, the rows of a batch do not know each
other).
Operations are those of lessons 6, 8, 10, 12 and 13.
"""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import devices
from lessons import l16_gpt as lesson
from lessons.parameters import Config, Parameters, init_parameters
from tests.close import assert_close

CONFIG = Config(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
GPT2 = Config(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
rng = np.random.default_rng(16)
tokens, targets = rng.integers(0, 11, (2, 3, 5))  # shorter than the block: the last row of wpe is not used


def model(config=CONFIG):
    """float64, and every number random: a bias of 0 would hide a mistake."""
    p = init_parameters(config, dtype=np.float64)
    for view in p.views.values():
        view += 0.2 * np.random.default_rng(view.size).normal(size=view.shape)
    return p


def forward(p, tokens, **settings):
    return lesson.gpt_forward(devices.ops("numpy"), p, tokens, **settings)[0]


def loss_of(p, **settings):
    return devices.ops("numpy").cross_entropy(forward(p, tokens, **settings), targets)[0]


def gradients(p, **settings):
    ops, g = devices.ops("numpy"), Parameters(p.config, dtype=np.float64)
    g.flat[:] = 7  # not zeros: what was there must be gone
    logits, cache = lesson.gpt_forward(ops, p, tokens, **settings)
    lesson.gpt_backward(ops, ops.cross_entropy(logits, targets)[1], cache, g)
    return g


def test_init_parameters_gives_a_model_that_knows_nothing_yet():
    """The first loss is near log V, the loss of a guess among V tokens."""
    config = Config(vocab_size=100, block_size=16, n_layer=4, n_head=4, n_embd=64)
    p, (x, y) = init_parameters(config), rng.integers(0, 100, (2, 8, 16))
    loss, _ = devices.ops("numpy").cross_entropy(forward(p, x), y)
    assert_close(loss, math.log(100), "the first loss", rtol=0.02)


# forward


def by_hand(p, tokens):  # (T,) -> (T, V)
    """The three lines at the top of the lesson for one row of the batch, one query and one head at a time."""
    H, D = CONFIG.n_head, CONFIG.n_embd // CONFIG.n_head

    def norm(x, name):
        weight, bias = p[name]
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias

    def linear(x, name):
        weight, bias = p[name]
        return x @ weight + bias

    x = p["wte.weight"][tokens] + p["wpe.weight"][:len(tokens)]
    for i in range(CONFIG.n_layer):
        q, k, v = np.split(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=1)
        y = np.empty_like(q)
        for t in range(len(tokens)):
            for d in (slice(h * D, h * D + D) for h in range(H)):
                weights = np.exp(k[:t + 1, d] @ q[t, d] / math.sqrt(D))
                y[t, d] = weights @ v[:t + 1, d] / weights.sum()
        x = x + linear(y, f"h.{i}.attn.c_proj")
        y = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ p["wte.weight"].T


def test_gpt_forward():
    p = model()
    assert_close(forward(p, tokens), [by_hand(p, row) for row in tokens], "logits")


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 4), st.integers(1, 10))
def test_gpt_forward_does_not_see_the_future(t, shift):
    p, changed = model(), tokens.copy()
    changed[:, t] = (changed[:, t] + shift) % 11
    before, after = forward(p, tokens), forward(p, changed)
    assert_close(after[:, :t], before[:, :t], f"logits before position {t}, which changed")
    assert (after[:, t] != before[:, t]).any(), "a position must see its own token"


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(3)))
def test_gpt_forward_treats_the_rows_of_a_batch_alike(order):
    p = model()
    assert_close(forward(p, tokens[order]), forward(p, tokens)[order], "logits of the permuted batch")


def test_gpt_forward_starts_at_the_position_it_is_told():
    p, shifted = model(), model()
    shifted["wpe.weight"][:-2] = p["wpe.weight"][2:]
    assert_close(forward(p, tokens[:, :4], start=2), forward(shifted, tokens[:, :4]), "logits")


def test_gpt_forward_lets_the_caller_attend():
    """Attention that looks at nothing but itself: the logits of a token no longer depend on the others."""
    p, layers = model(), []

    def attention(qkv, layer):
        layers.append(layer)
        return qkv[..., -CONFIG.n_embd:].copy(), None
    got = forward(p, tokens, attention=attention)
    assert layers == [0, 1]
    alone = forward(p, tokens[:, 2:3], start=2, attention=attention)
    assert_close(got[:, 2:3], alone, "logits of position 2")


def test_gpt_forward_drops_others_in_each_half_of_each_layer_and_for_each_seed():
    ops, masks = devices.ops("numpy"), []
    dropout_forward = ops.dropout_forward

    def recorded(x, rate, seed, residual=None):
        masks.append((dropout_forward(np.ones_like(x), rate, seed)[0] == 0).tobytes())
        return dropout_forward(x, rate, seed, residual)

    ops.dropout_forward = recorded
    for seed in range(4):
        lesson.gpt_forward(ops, model(), tokens, dropout=0.5, seed=seed)
    assert len(masks) == 16, "two halves, two layers, four seeds"
    assert len(set(masks)) == 16, "some masks are the same"


# backward

BACKWARD = [  # in the order of the backward pass: the first to fail is where to look
    "ln_f.bias", "ln_f.weight",
    "h.1.mlp.c_proj.bias", "h.1.mlp.c_proj.weight", "h.1.mlp.c_fc.bias", "h.1.mlp.c_fc.weight",
    "h.1.ln_2.bias", "h.1.ln_2.weight", "h.0.attn.c_proj.bias", "h.0.attn.c_proj.weight",
    "h.0.attn.c_attn.bias", "h.0.attn.c_attn.weight", "h.0.ln_1.bias", "h.0.ln_1.weight",
    "wpe.weight", "wte.weight"]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", BACKWARD)
def test_gpt_backward(name, dropout):
    p = model()
    got, value = gradients(p, dropout=dropout).views[name].reshape(-1), p.views[name].reshape(-1)
    places = np.random.default_rng(1).choice(value.size, 6, replace=False)
    want = []
    for i in places:
        old, losses = value[i], []
        for nudge in 1e-5, -1e-5:
            value[i] = old + nudge
            losses.append(loss_of(p, dropout=dropout))
        value[i] = old
        want.append((losses[0] - losses[1]) / 2e-5)
    assert_close(got[places], want, f"six numbers of d {name}", rtol=1e-5, atol=1e-8)


def test_gpt_backward_adds_the_head_and_the_embedding_of_the_tied_table():
    """A token that is in no input still has a gradient, from the head; one that is, has both."""
    p = model()
    dwte = gradients(p)["wte.weight"]
    assert dwte.any(axis=1).all(), "every token competes in the head: no row of dwte is zero"
    direction = rng.normal(size=dwte.shape)
    losses = []
    for nudge in 1e-5, -1e-5:
        q = model()
        q["wte.weight"][:] += nudge * direction
        losses.append(loss_of(q))
    assert_close((dwte * direction).sum(), (losses[0] - losses[1]) / 2e-5, "slope in a random direction")


def test_gpt_backward_gives_positions_that_were_not_used_no_gradient():
    dwpe = gradients(model())["wpe.weight"]
    assert dwpe[:5].any(axis=1).all() and not dwpe[5].any(), "tokens stand at 5 of the 6 positions"


def test_gpt_backward_is_linear_in_dlogits():
    ops, p = devices.ops("numpy"), model()
    a, b = rng.normal(size=(2, 3, 5, 11))

    def backward(dlogits):
        g = Parameters(CONFIG, dtype=np.float64)
        lesson.gpt_backward(ops, dlogits, lesson.gpt_forward(ops, p, tokens)[1], g)
        return g.flat.copy()
    assert_close(backward(2 * a - 3 * b), 2 * backward(a) - 3 * backward(b), "all gradients", atol=1e-9)


def test_gpt_backward_can_teach_one_batch_by_heart():
    ops, p = devices.ops("numpy"), init_parameters(CONFIG)
    g, m, v = Parameters(CONFIG), np.zeros_like(p.flat), np.zeros_like(p.flat)
    for step in range(1, 101):
        logits, cache = lesson.gpt_forward(ops, p, tokens)
        loss, dlogits = ops.cross_entropy(logits, targets)
        lesson.gpt_backward(ops, dlogits, cache, g)
        ops.adamw(p.flat, g.flat, m, v, 0.03, 0.9, 0.99, 1e-8, 0.0, step, 1.0)
        if step == 1:
            assert_close(loss, math.log(11), "the first loss", rtol=0.05)
    assert loss < 0.1, f"after 100 steps on the same 15 tokens the loss is {loss:.3f}"


# counting


def test_count_parameters():
    assert lesson.count_parameters(GPT2) == 124_439_808  # GPT-2 small
    assert lesson.count_parameters(Config(50257, 1024, 48, 25, 1600)) == 1_557_611_200  # GPT-2 XL
    # by hand: 2 + 3 rows of 4; 2 norms of 8; 4x12+12, 4x4+4, 4x16+16, 16x4+4; the last norm
    assert lesson.count_parameters(Config(2, 3, 1, 1, 4)) == 20 + 16 + 60 + 20 + 80 + 68 + 8


@pytest.mark.parametrize("config", [CONFIG, GPT2, Config(65, 64, 4, 4, 128)])
def test_count_flops(config):
    """Matrix by matrix, query by query: two operations a multiply-add, and backward costs twice forward."""
    C, T = config.n_embd, config.block_size
    block = sum(2 * T * n_in * n_out for n_in, n_out in [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)])
    attention = sum(2 * 2 * C * keys for keys in range(1, T + 1))  # q.k and weights.v
    head = 2 * T * C * config.vocab_size
    want = 3 * (config.n_layer * (block + attention) + head)
    assert lesson.count_flops(config, T) == pytest.approx(want, rel=1e-12)
    assert lesson.count_flops(config, 10 * T) == pytest.approx(10 * want, rel=1e-12)
