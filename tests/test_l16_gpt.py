"""The tests of f are test_f and test_f_*: they are also lesson 16's exercises.

The oracles: a GPT written here in NumPy, finite differences of it, and numbers worked out by hand. The
operations are those of lessons 6, 12 and 13.
"""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import devices
from lessons import l16_gpt as lesson
from lessons.l13_block import block_forward
from lessons.parameters import Config, Parameters, init_parameters
from tests.close import assert_close

CONFIG = Config(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
GPT2 = Config(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
rng = np.random.default_rng(16)
tokens = rng.integers(0, 11, (3, 5))  # shorter than the block: the last row of wpe is not used
dlogits = rng.normal(size=(3, 5, 11))
CAUSAL = np.tril(np.ones((5, 5), bool))


def model(dtype=np.float64):
    """Every number random: a bias of 0 would hide a mistake."""
    p, rng = Parameters(CONFIG, dtype=dtype), np.random.default_rng(1)
    for view in p.views.values():
        view[:] = 0.4 * rng.normal(size=view.shape)
    return p


def forward(p, tokens, **settings):
    return lesson.gpt_forward(devices.ops("numpy"), p, tokens, **settings)[0]


def gpt(p, tokens, start=0, sees=CAUSAL, dropout=0.0, seed=0):  # (B, T) -> (B, T, V)
    """The three lines at the top of the lesson once more, in plain NumPy. sees[t, s]: may t look at s?"""
    B, T = tokens.shape
    H, D = CONFIG.n_head, CONFIG.n_embd // CONFIG.n_head

    def norm(x, name):
        weight, bias = p[name]
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias

    def linear(x, name):
        weight, bias = p[name]
        return x @ weight + bias

    def drop(x, half):
        return devices.ops("numpy").dropout_forward(x, dropout, 2 * (seed * CONFIG.n_layer + i) + half)[0]

    x = p["wte.weight"][tokens] + p["wpe.weight"][start:start + T]
    for i in range(CONFIG.n_layer):
        q, k, v = (part.reshape(B, T, H, D).swapaxes(1, 2)
                   for part in np.split(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=-1))
        weights = np.exp(q @ k.swapaxes(2, 3) / math.sqrt(D)) * sees
        y = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(B, T, H * D)
        x = x + drop(linear(y, f"h.{i}.attn.c_proj"), 0)
        y = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + drop(linear(y, f"h.{i}.mlp.c_proj"), 1)
    return norm(x, "ln_f") @ p["wte.weight"].T


# forward


def test_gpt_forward():
    want = gpt(model(), tokens)
    assert_close(forward(model(), tokens), want, "logits")


def test_gpt_forward_starts_at_the_position_it_is_told():
    want = gpt(model(), tokens, start=1)
    assert_close(forward(model(), tokens, start=1), want, "logits with start=1")


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 4), st.integers(1, 10))
def test_gpt_forward_does_not_see_the_future(t, shift):
    p, changed = model(), tokens.copy()
    changed[:, t] = (changed[:, t] + shift) % 11
    before, after = forward(p, tokens), forward(p, changed)
    assert_close(after[:, :t], before[:, :t], f"logits before position {t}, which changed")
    assert (after[:, t] != before[:, t]).any(), "a position must see its own token"


def test_gpt_forward_lets_the_caller_attend():
    """Attention that looks at nothing but itself: out is v."""
    layers = []

    def attention(qkv, layer):
        layers.append(layer)
        return qkv[..., -CONFIG.n_embd:].copy(), None
    want = gpt(model(), tokens, sees=np.eye(5))
    got = forward(model(), tokens, attention=attention)
    assert layers == [0, 1], f"attention was called for the layers {layers}, expected 0 and 1"
    assert_close(got, want, "logits, when all look at themselves alone")


@pytest.mark.parametrize("seed", [0, 3])
def test_gpt_forward_drops_by_the_seed_of_each_layer(seed):
    want = gpt(model(), tokens, dropout=0.3, seed=seed)
    assert_close(forward(model(), tokens, dropout=0.3, seed=seed), want, "logits with dropout")


def arrays_of(cache):
    """All arrays of nested tuples and lists, in order."""
    if isinstance(cache, (tuple, list)):
        return [array for part in cache for array in arrays_of(part)]
    return [] if cache is None else [cache]


def assert_same_cache(got, want, name):
    got, want = arrays_of(got), arrays_of(want)
    assert len(got) == len(want), f"{name} holds {len(got)} arrays, expected {len(want)}"
    for i, (a, b) in enumerate(zip(got, want)):
        assert_close(a, b, f"array {i} in {name}")


def test_gpt_forward_keeps_what_backward_needs():
    """Step by step with the operations of earlier lessons: each leaves its cache."""
    ops, p, blocks = devices.ops("numpy"), model(), []
    x, embedding = ops.embedding_forward(tokens, p["wte.weight"], p["wpe.weight"])
    for block in p.blocks:
        x, cache = block_forward(ops, x, block, lambda qkv: ops.self_attention_forward(qkv, 2, causal=True))
        blocks.append(cache)
    h, norm = ops.layernorm_forward(x, *p["ln_f"])
    _, head = ops.linear_forward(h, p["wte.weight"].T)
    _, cache = lesson.gpt_forward(ops, model(), tokens)
    assert type(cache) is tuple and len(cache) == 4 and type(cache[1]) is list, \
        "the cache must be a tuple (embedding, [block 0, block 1, ...], layer norm, head)"
    assert len(cache[1]) == 2, f"{len(cache[1])} caches of blocks, and there are 2 blocks"
    assert_same_cache(cache[0], embedding, "the embedding's cache")
    for layer, want in enumerate(blocks):
        assert_same_cache(cache[1][layer], want, f"block {layer}'s cache")
    assert_same_cache(cache[2], norm, "the last layer norm's cache")
    assert_same_cache(cache[3], head, "the head's cache")


def test_gpt_forward_only_reads_parameters_and_tokens():
    p, given_tokens = model(), tokens.copy()
    forward(p, given_tokens)
    assert_close(p.flat, model().flat, "p after the call")
    assert_close(given_tokens, tokens, "tokens after the call")


def test_gpt_forward_in_float32_stays_in_float32():
    logits = forward(model(np.float32), tokens)
    assert logits.dtype == np.float32, f"parameters are float32, logits {logits.dtype}"


def test_first_loss_of_a_model_is_that_of_a_guess():
    """log V, of a guess among V tokens: init_parameters gives a model that knows nothing yet."""
    config = Config(vocab_size=100, block_size=16, n_layer=4, n_head=4, n_embd=64)
    p, (x, y) = init_parameters(config), np.random.default_rng(0).integers(0, 100, (2, 8, 16))
    loss, _ = devices.ops("numpy").cross_entropy(forward(p, x), y)
    assert_close(loss, math.log(100), "the first loss", rtol=0.02)


# backward

BACKWARD = [  # in the order of the backward pass: the first to fail is where to look
    "ln_f.bias", "ln_f.weight",
    "h.1.mlp.c_proj.bias", "h.1.mlp.c_proj.weight", "h.1.mlp.c_fc.bias", "h.1.mlp.c_fc.weight",
    "h.1.ln_2.bias", "h.1.ln_2.weight", "h.0.attn.c_proj.bias", "h.0.attn.c_proj.weight",
    "h.0.attn.c_attn.bias", "h.0.attn.c_attn.weight", "h.0.ln_1.bias", "h.0.ln_1.weight",
    "wpe.weight", "wte.weight"]


def gradients(p, **settings):
    """Of the loss (logits * dlogits).sum()."""
    ops, g = devices.ops("numpy"), Parameters(CONFIG, dtype=np.float64)
    g.flat[:] = 7  # not zeros: what was there must be gone
    _, cache = lesson.gpt_forward(ops, p, tokens, **settings)
    returned = lesson.gpt_backward(ops, dlogits.copy(), cache, g)
    assert returned is None, "tokens have no gradient: nothing is to be returned"
    return g


def slope(p, view, direction, **settings):
    """The same gradient along a direction, from two forward passes of the GPT above."""
    losses = []
    for nudge in 1e-5, -1e-5:
        view += nudge * direction
        losses.append((gpt(p, tokens, **settings) * dlogits).sum())
        view -= nudge * direction
    return (losses[0] - losses[1]) / 2e-5


def test_gpt_backward_goes_through_the_layers_from_the_last_to_the_first():
    ops, g, order = devices.ops("numpy"), Parameters(CONFIG, dtype=np.float64), []
    _, cache = lesson.gpt_forward(ops, model(), tokens)
    original = ops.layernorm_backward

    def layernorm_backward(dout, cache, dweight, *others, **settings):
        order.extend(name for name, view in g.views.items() if np.shares_memory(view, dweight))
        return original(dout, cache, dweight, *others, **settings)

    ops.layernorm_backward = layernorm_backward
    lesson.gpt_backward(ops, dlogits.copy(), cache, g)
    want = ["ln_f.weight", "h.1.ln_2.weight", "h.1.ln_1.weight", "h.0.ln_2.weight", "h.0.ln_1.weight"]
    assert order == want, \
        f"gradients of layer norms were written in the order {order}, expected {want}: the last layer first?"


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3, "seed": 2}], ids=["plain", "dropout"])
def test_gpt_backward(options):
    p = model()
    g = gradients(p, **options)
    for name in BACKWARD:
        view, places = p.views[name], np.random.default_rng(1).choice(p.views[name].size, 3, replace=False)
        want = [slope(p, view, (np.arange(view.size) == i).reshape(view.shape), **options) for i in places]
        assert_close(g.views[name].reshape(-1)[places], want, f"d {name} at 3 places", atol=1e-7)


@pytest.mark.parametrize("name", BACKWARD)
def test_gpt_backward_in_a_random_direction(name):
    """All numbers of a gradient at once."""
    p = model()
    direction = np.random.default_rng(2).normal(size=p.views[name].shape)
    got = (gradients(p).views[name] * direction).sum()
    assert_close(got, slope(p, p.views[name], direction), f"d {name} in a random direction", atol=1e-7)


def test_gpt_backward_adds_the_head_and_the_embedding_of_the_tied_table():
    """A token that is in no input still has a gradient, from the head; one that is, has both."""
    p = model()
    ones = np.ones(CONFIG.n_embd)
    for token in int(tokens[0, 0]), next(token for token in range(11) if token not in tokens):
        got = gradients(p)["wte.weight"][token].sum()
        want = slope(p, p["wte.weight"][token], ones)
        where = "which is in the input" if token in tokens else "which only the head sees"
        assert_close(got, want, f"sum of row {token} of d wte.weight, {where}", atol=1e-7)


def test_gpt_backward_gives_positions_that_were_not_used_no_gradient():
    dwpe = gradients(model(), start=1)["wpe.weight"]
    used = (dwpe != 0).any(axis=1)
    assert list(used) == [False] + 5 * [True], f"tokens stand at 1 to 5, and dwpe at {np.flatnonzero(used)}"


def test_gpt_backward_only_reads_the_parameters():
    p = model()
    gradients(p)
    assert_close(p.flat, model().flat, "p after the call")


def test_training_one_batch_by_heart():
    ops, p = devices.ops("numpy"), init_parameters(CONFIG)
    g, m, v = Parameters(CONFIG), np.zeros_like(p.flat), np.zeros_like(p.flat)
    targets = np.random.default_rng(0).integers(0, 11, tokens.shape)
    for step in range(1, 101):
        logits, cache = lesson.gpt_forward(ops, p, tokens)
        loss, dlogits = ops.cross_entropy(logits, targets)
        lesson.gpt_backward(ops, dlogits, cache, g)
        ops.adamw(p.flat, g.flat, m, v, 0.03, 0.9, 0.99, 1e-8, 0.0, step, 1.0)
        if step == 1:
            assert_close(loss, math.log(11), "the first loss", rtol=0.05)
    assert loss < 0.1, f"after 100 steps on the same 15 tokens the loss is {loss:.3f}"


# counting


@pytest.mark.parametrize("config, want", [
    (Config(2, 3, 1, 1, 4), 20 + 16 + 60 + 20 + 80 + 68 + 8),  # by hand: 2 + 3 rows of 4; 2 norms of 8; ...
    (GPT2, 124_439_808),  # GPT-2 small
    (Config(50257, 1024, 48, 25, 1600), 1_557_611_200)])  # GPT-2 XL
def test_count_parameters(config, want):
    got = lesson.count_parameters(config)
    assert got == want, f"{config} has {want} parameters, not {got}"


@pytest.mark.parametrize("config", [CONFIG, GPT2, Config(65, 64, 4, 4, 128)])
def test_count_flops(config):
    """Matrix by matrix, query by query: two operations a multiply-add, and backward costs twice forward."""
    C, T = config.n_embd, config.block_size
    block = sum(2 * T * n_in * n_out for n_in, n_out in [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)])
    attention = sum(2 * 2 * C * keys for keys in range(1, T + 1))  # q.k and weights.v
    head = 2 * T * C * config.vocab_size
    want = 3 * (config.n_layer * (block + attention) + head)
    for blocks in 1, 10:
        assert_close(lesson.count_flops(config, blocks * T), blocks * want, f"operations for {blocks} blocks",
                     rtol=1e-12)
