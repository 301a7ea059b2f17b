"""The tests of f are test_f and test_f_*: they are also lesson 14's exercises.

The oracles: the formulas at the top of the lesson for one row, one query and one head at a time; finite
differences of the model's own loss; and what must hold for every encoder: padding changes nothing, both sides
do. Operations are those of lessons 6, 8, 10, 12 and 13.
"""
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import devices
from lessons import l14_encoder as lesson
from lessons.parameters import Config, Parameters, init_parameters
from tests.close import assert_close, numeric_grad, unchanged

CONFIG = Config(vocab_size=11, block_size=7, n_layer=2, n_head=2, n_embd=8)
NUMPY, CPU, IGNORE = devices.ops("numpy"), devices.ops("cpu"), -1
rng = np.random.default_rng(14)
tokens, lengths = rng.integers(0, 10, (3, 6)), np.array([6, 2, 5])  # shorter than the block; no token is 10
real = np.arange(6) < lengths[:, None]
masked = np.array([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0]], bool)
targets = np.where(masked, rng.integers(0, 11, (3, 6)), IGNORE)
BATCH = tokens, targets, lengths


def model(config=CONFIG):
    """float64, and every number random: a bias of 0 would hide a mistake."""
    p = init_parameters(config, dtype=np.float64)
    for view in p.views.values():
        view += 0.2 * np.random.default_rng(view.size).normal(size=view.shape)
    return p


def filled(number, config=CONFIG, dtype=np.float64):
    """Gradients that are not 0 before: what was there must be gone."""
    g = Parameters(config, dtype=dtype)
    for view in g.views.values():
        view[:] = number
    return g


def slopes(loss, p, name):
    """Four places of a parameter, and the loss's slope at each, by moving one number a little."""
    value, found = p.views[name].reshape(-1), []
    places = np.random.default_rng(1).choice(value.size, 4, replace=False)
    for i in places:
        old, losses = value[i], []
        for nudge in 1e-5, -1e-5:
            value[i] = old + nudge
            losses.append(loss())
        value[i] = old
        found.append((losses[0] - losses[1]) / 2e-5)
    return places, found


# apart


def attention(qkv):  # (n, 3C) -> (n, C)
    """Of one row, in which every position may look at every other."""
    q, k, v = np.split(qkv, 3, axis=1)
    out = np.empty_like(q)
    for head in np.split(np.arange(q.shape[1]), CONFIG.n_head):
        weights = np.exp(q[:, head] @ k[:, head].T / math.sqrt(len(head)))
        out[:, head] = weights @ v[:, head] / weights.sum(axis=1, keepdims=True)
    return out


ENDS = (0, 3), (3, 4), (4, 6)  # three rows, of 3, 1 and 2 positions
QKV, DOUT = rng.normal(size=(6, 12)), rng.normal(size=(6, 4))


def attend_apart(qkv=QKV, dout=DOUT):
    ops = lesson.apart(devices.ops("numpy"), np.array([3, 1, 2]))
    out, caches = ops.self_attention_forward(qkv, CONFIG.n_head)
    return out, ops.self_attention_backward(dout, caches)


def test_apart_gives_another_namespace_with_two_other_operations():
    ops = devices.ops("numpy")
    before = dict(vars(ops))
    got = lesson.apart(ops, [3, 1, 2])
    changed = [name for name, op in before.items() if getattr(ops, name, None) is not op]
    assert got is not ops and not changed, f"apart changed {changed} in ops itself: return a copy"
    others = {name for name, op in before.items() if getattr(got, name, None) is not op}
    assert others == {"self_attention_forward", "self_attention_backward"}, f"other are {sorted(others)}"


def test_apart_attends_within_each_row():
    want = np.concatenate([attention(QKV[start:end]) for start, end in ENDS])
    out, _ = attend_apart()
    assert_close(out, want, "out, rows of 3, 1 and 2 positions end to end")


def test_apart_sends_the_gradient_back_within_each_row():
    want = numeric_grad(lambda qkv: sum((attention(qkv[start:end]) * DOUT[start:end]).sum()
                                        for start, end in ENDS), QKV)
    _, dqkv = attend_apart()
    assert_close(dqkv, want, "dqkv of rows of 3, 1 and 2 positions", atol=1e-7)


def test_apart_keeps_the_dtype():
    out, dqkv = attend_apart(QKV.astype(np.float32), DOUT.astype(np.float32))
    assert out.dtype == dqkv.dtype == np.float32, f"out is {out.dtype}, dqkv {dqkv.dtype}, expected float32"


# spread


def test_spread():
    x = np.arange(1, 27, dtype=np.float32).reshape(13, 2)
    want, rest = np.zeros((3, 6, 2)), iter(x)
    for b, n in enumerate(lengths):
        for t in range(n):
            want[b, t] = next(rest)
    with unchanged(x=x, real=real):
        got = lesson.spread(x, real)
    assert_close(got, want, "rows", dtype=np.float32)


def test_spread_puts_positions_wherever_real_is_true():
    there = np.array([[False, True, False], [True, False, True]])
    got = lesson.spread(np.array([[1.0], [2.0], [3.0]]), there)
    assert_close(got, [[[0], [1], [0]], [[2], [0], [3]]], "rows")


# encoder_forward


def encode(p, tokens, lengths=None, **settings):
    return lesson.encoder_forward(NUMPY, p, tokens, lengths, **settings)[0]


def by_hand(p, tokens):  # (T,) -> (T, C)
    """The three lines at the top of the lesson for one row without padding."""
    def norm(x, name):
        weight, bias = p[name]
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias

    def linear(x, name):
        weight, bias = p[name]
        return x @ weight + bias

    x = p["wte.weight"][tokens] + p["wpe.weight"][:len(tokens)]
    for i in range(CONFIG.n_layer):
        y = attention(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"))
        x = x + linear(y, f"h.{i}.attn.c_proj")
        y = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f")


def test_encoder_forward():
    p = model()
    want = [by_hand(p, row) for row in tokens]
    with unchanged(tokens=tokens, parameters=p.flat):
        x = encode(p, tokens)
    assert_close(x, want, "x without lengths")


def test_encoder_forward_of_a_padded_row_is_that_of_the_row_alone():
    p = model()
    with unchanged(tokens=tokens, lengths=lengths):
        x = encode(p, tokens, lengths)
    for row, n in enumerate(lengths):
        assert_close(x[row, :n], by_hand(p, tokens[row, :n]), f"x of row {row}, which has {n} real tokens")
    assert_close(x[~real], np.zeros((5, 8)), "the vectors in padding")


def test_encoder_forward_stays_in_float32():
    p = Parameters(CONFIG, model().flat.astype(np.float32))
    want = encode(model(), tokens, lengths)
    assert_close(encode(p, tokens, lengths), want, "x", rtol=1e-3, atol=1e-4, dtype=np.float32)


def test_encoder_forward_keeps_what_backward_needs():
    x, cache = lesson.encoder_forward(NUMPY, model(), tokens, lengths)
    assert type(cache) is tuple and len(cache) == 5, f"the cache is {type(cache)}, expected a tuple of 5"
    where, rows, embedding, blocks, norm = cache
    assert_close(where, real, "real, the first of the cache")
    assert_close(rows, lengths, "lengths, the second of the cache")
    assert_close(embedding[0], tokens, "the tokens that embedding_forward keeps")
    assert len(blocks) == 2, f"{len(blocks)} caches of blocks in {CONFIG.n_layer} layers"
    first = (model()["wte.weight"][tokens] + model()["wpe.weight"][:6])[real]
    first -= first.mean(axis=1, keepdims=True)
    assert_close(blocks[0][0][0][0], first / np.sqrt(first.var(axis=1, keepdims=True) + 1e-5),
                 "what block 0 keeps of its first layernorm")
    weight, bias = model()["ln_f"]
    assert_close(norm[0] * weight + bias, x[real], "what the last layernorm keeps, times weight, plus bias")


@pytest.mark.parametrize("wrong", [[0, 3, 6], [6, 7, 1], [-1, 2, 2]])
def test_encoder_forward_refuses_lengths_that_do_not_fit(wrong):
    with pytest.raises(ValueError, match="lengths"):
        encode(model(), tokens, np.array(wrong))


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.integers(0, 2), st.integers(1, 10), st.integers(0, 1))
def test_encoder_forward_does_not_see_padding(row, shift, longer):
    p, changed = model(), np.pad(tokens, ((0, 0), (0, longer)))
    changed[row, lengths[row]:] = (changed[row, lengths[row]:] + shift) % 11
    before, after = encode(p, tokens, lengths), encode(p, changed, lengths)[:, :6]
    assert_close(after[real], before[real], f"x at real places after row {row}'s padding changed")


@pytest.mark.parametrize("t", range(6))
def test_encoder_forward_looks_both_ways(t):
    p, changed = model(), tokens.copy()
    changed[:, t] = (changed[:, t] + 3) % 11
    moved = (encode(p, changed) != encode(p, tokens)).any(axis=-1)
    assert moved.all(), f"token {t} changed and these places did not notice: {np.argwhere(~moved).tolist()}"


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]])
def test_encoder_forward_treats_the_rows_of_a_batch_alike(order):
    p = model()
    want = encode(p, tokens, lengths)[order]
    assert_close(encode(p, tokens[order], lengths[order]), want, "x of the permuted batch")


def test_encoder_forward_drops_others_in_each_half_of_each_layer_and_for_each_seed():
    ops, asked = devices.ops("numpy"), []

    def dropout_forward(x, rate, seed, residual=None):
        asked.append((rate, seed))
        return NUMPY.dropout_forward(x, rate, seed, residual)

    ops.dropout_forward = dropout_forward
    for seed in range(3):
        lesson.encoder_forward(ops, model(), tokens, lengths, dropout=0.5, seed=seed)
    want = [(0.5, n) for n in range(12)]  # three seeds, two layers, and block_forward makes two of each
    assert asked == want, f"each dropout's (rate, seed), for the seeds 0, 1, 2: got {asked}, expected {want}"


# encoder_backward

BACKWARD = [  # in the order of the backward pass: the first to fail is where to look
    "ln_f.bias", "ln_f.weight",
    "h.1.mlp.c_proj.bias", "h.1.mlp.c_proj.weight", "h.1.mlp.c_fc.bias", "h.1.mlp.c_fc.weight",
    "h.1.ln_2.bias", "h.1.ln_2.weight", "h.0.attn.c_proj.bias", "h.0.attn.c_proj.weight",
    "h.0.attn.c_attn.bias", "h.0.attn.c_attn.weight", "h.0.ln_1.bias", "h.0.ln_1.weight",
    "wpe.weight", "wte.weight"]
DX = rng.normal(size=(3, 6, 8)) * real[..., None]  # the loss is (x * DX).sum(): it does not look at padding


def backward(p, tokens=tokens, dx=DX, wte=0.0, **settings):
    """All gradients, where g["wte.weight"] was `wte` before and all the others 7."""
    _, cache = lesson.encoder_forward(NUMPY, p, tokens, lengths, **settings)
    g = filled(7, p.config)
    g["wte.weight"][:] = wte
    lesson.encoder_backward(NUMPY, dx.copy(), cache, g)
    return g


def test_encoder_backward_goes_through_the_layers_from_the_last_to_the_first():
    ops, g, order = devices.ops("numpy"), filled(0), []
    _, cache = lesson.encoder_forward(ops, model(), tokens, lengths)
    original = ops.layernorm_backward

    def layernorm_backward(dout, cache, dweight, *others, **settings):
        order.extend(name for name, view in g.views.items() if np.shares_memory(view, dweight))
        return original(dout, cache, dweight, *others, **settings)

    ops.layernorm_backward = layernorm_backward
    lesson.encoder_backward(ops, DX.copy(), cache, g)
    want = ["ln_f.weight", "h.1.ln_2.weight", "h.1.ln_1.weight", "h.0.ln_2.weight", "h.0.ln_1.weight"]
    assert order == want, (
        f"gradients of layer norms were written in the order {order}, expected {want}: the last layer first?")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_encoder_backward(dropout):
    p, how = model(), {"dropout": dropout, "seed": 3}
    got = backward(p, **how)
    for name in BACKWARD:
        places, want = slopes(lambda: (encode(p, tokens, lengths, **how) * DX).sum(), p, name)
        assert_close(got.views[name].reshape(-1)[places], want, f"d {name} at 4 places", atol=1e-7)


def test_encoder_backward_adds_to_the_token_table_and_writes_the_rest():
    p = model()
    alone, added = backward(p), backward(p, wte=3.0)
    assert_close(added["wte.weight"], alone["wte.weight"] + 3, "dwte, where a head has left 3 in each place")
    for name in set(p.views) - {"wte.weight"}:
        assert_close(added.views[name], alone.views[name], f"d {name}")


def test_encoder_backward_gives_padding_nothing():
    p, changed = model(), np.where(real, tokens, 10)  # token 10 stands in padding only
    g, dwpe = backward(p, changed, DX + 5 * ~real[..., None]), backward(p)["wpe.weight"]
    assert not g["wte.weight"][10].any(), "token 10 stands in padding alone, but its row has a gradient"
    assert_close(g.flat, backward(p).flat, "all gradients after tokens and dx changed in padding")
    assert dwpe[:6].any(axis=1).all() and not dwpe[6].any(), "tokens stand at 6 of the 7 positions"


class Prefixed(Config):
    """As lesson 15 has its encoder: one part of the parameters of a larger model."""

    def shapes(self):
        return {f"encoder.{name}": shape for name, shape in Config.shapes(self).items()}


def test_encoder_backward_works_on_a_part_of_the_parameters():
    p, whole = model(), init_parameters(Prefixed(*CONFIG), dtype=np.float64)
    part, g = whole.under("encoder."), Parameters(Prefixed(*CONFIG), dtype=np.float64)
    for name, view in p.views.items():
        part.views[name][:] = view
    _, cache = lesson.encoder_forward(NUMPY, part, tokens, lengths)
    lesson.encoder_backward(NUMPY, DX.copy(), cache, g.under("encoder."))
    for name, want in backward(p).views.items():
        assert_close(g.views[f"encoder.{name}"], want, f"d encoder.{name}")


# mask_tokens


@st.composite
def batches(draw):  # -> tokens (B, T), lengths (B,), rate, seed
    B, T = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    seed, rate = draw(st.integers(0, 2**32)), draw(st.floats(0.0, 1.0))
    random = np.random.default_rng(seed)
    return random.integers(0, 50, (B, T)), random.integers(1, T + 1, B), rate, seed


def test_mask_tokens_returns_inputs_then_targets():
    inputs, targets = lesson.mask_tokens(np.random.default_rng(0), np.full((4, 9), 7), np.full(4, 9), 50, 51)
    assert (inputs != IGNORE).all() and (targets == IGNORE).any(), (
        f"the inputs of a row of 7s are {inputs[0]}, its targets {targets[0]}: are the two swapped?")


@settings(deadline=None, max_examples=20, derandomize=True)
@given(batches())
def test_mask_tokens(batch):
    rows, lengths, rate, seed = batch
    with unchanged(tokens=rows, lengths=lengths):
        inputs, targets = lesson.mask_tokens(np.random.default_rng(seed), rows, lengths, 50, 51, rate)
    assert inputs.shape == targets.shape == rows.shape, f"{inputs.shape}, {targets.shape} of {rows.shape}"
    chosen = targets != IGNORE
    assert (targets[chosen] == rows[chosen]).all(), "a target must be the token that was hidden"
    assert (inputs[~chosen] == rows[~chosen]).all(), "an input changed whose target is IGNORE"
    padding = np.arange(rows.shape[1]) >= lengths[:, None]
    assert not chosen[padding].any(), f"chosen in padding: {np.argwhere(chosen & padding).tolist()}"
    for row, (got, n) in enumerate(zip(chosen.sum(axis=1), lengths)):
        want = max(1, round(rate * int(n)))
        assert got == want, (f"row {row}: {got} chosen, expected {want} = max(1, round(rate * length)), "
                             f"for rate is {rate:.3f} and the length {n}")
    assert ((inputs >= 0) & (inputs <= 50)).all(), "an input is no token of the vocabulary"


def test_mask_tokens_80_percent_become_masks_10_are_random_10_stay():
    rows = np.full((400, 300), 7)
    inputs, targets = lesson.mask_tokens(np.random.default_rng(0), rows, np.full(400, 300), 3, 51)
    chosen = inputs[targets != IGNORE]
    assert len(chosen) == 400 * 45, f"{len(chosen)} are chosen, not 15 % of {rows.size}"
    for what, got, want in (("masks, by chance too,", chosen == 3, 0.8 + 0.1 / 51),
                            ("tokens as before, by chance too,", chosen == 7, 0.1 + 0.1 / 51),
                            ("other tokens", (chosen != 3) & (chosen != 7), 0.1 * 49 / 51)):
        assert_close(got.mean(), want, f"the share of {what} among the chosen", atol=0.01)  # 3 deviations
    assert set(chosen) == set(range(51)), f"of 0 .. vocab_size - 1 never came: {set(range(51)) - set(chosen)}"


def test_mask_tokens_decides_for_each_place_by_itself():
    """Two chosen places that follow each other in a row know nothing of each other."""
    rows = np.full((400, 300), 7)
    inputs, targets = lesson.mask_tokens(np.random.default_rng(2), rows, np.full(400, 300), 3, 51)
    chosen = inputs[targets != IGNORE].reshape(400, 45)
    one, next_one = chosen[:, :-1], chosen[:, 1:]
    masks = (one == 3) & (next_one == 3)
    assert_close(masks.mean(), (0.8 + 0.1 / 51)**2, "share of pairs in which both became masks", atol=0.03)
    random = np.ma.masked_where((chosen == 3) | (chosen == 7), chosen)
    pairs = [pair for row in random for pair in pairwise(row.compressed())]
    alike = sum(a == b for a, b in pairs) / len(pairs)
    assert_close(alike, 1 / 49, "share of pairs of random tokens in a row that are the same one", atol=0.03)


def test_mask_tokens_chooses_every_real_place_equally_often():
    rows, lengths = np.zeros((20_000, 10), int), np.full(20_000, 8)
    _, targets = lesson.mask_tokens(np.random.default_rng(1), rows, lengths, 50, 51, 0.25)
    chosen = (targets != IGNORE).astype(float)
    assert_close(chosen.mean(axis=0), [0.25] * 8 + [0] * 2, "how often each place is chosen", atol=0.015)
    together, want = chosen.T @ chosen / 20_000, np.zeros((10, 10))
    want[:8, :8] = 2 / 8 * 1 / 7  # both of two places
    np.fill_diagonal(want[:8, :8], 2 / 8)
    assert_close(together, want, "how often two places are chosen together", atol=0.015)


def test_mask_tokens_depends_on_the_generator_alone():
    def draw(seed):
        return lesson.mask_tokens(np.random.default_rng(seed), rows, np.full(20, 30), 10, 11, 0.5)

    rows = np.arange(600).reshape(20, 30) % 10
    assert all((a == b).all() for a, b in zip(draw(3), draw(3))), (
        "the same generator hid other tokens: draw from rng, not np.random")
    assert any((draw(3)[1] != draw(seed)[1]).any() for seed in (4, 5)), "another generator must hide others"


# mlm_gradient


def loss_of(p, batch=BATCH, **settings):
    """-log softmax(x @ wte.T)[target], the mean over the masked places of a batch."""
    inputs, targets, lengths = batch
    x = encode(p, inputs, lengths, **settings)
    scores = x @ p["wte.weight"].T
    log_p = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    rows, columns = np.nonzero(targets != IGNORE)
    return -log_p[rows, columns, targets[rows, columns]].mean()


def gradient(p, batch=BATCH, total=5, ops=NUMPY, dtype=np.float64, **settings):
    g = filled(7, p.config, dtype)
    return lesson.mlm_gradient(ops, p, batch, total, g, **settings), g


def test_mlm_gradient_returns_the_mean_loss_of_the_masked_places():
    p = model()
    want = loss_of(p)
    with unchanged(inputs=tokens, targets=targets, lengths=lengths, parameters=p.flat):
        loss, _ = gradient(p)
    assert_close(loss, want, "the loss")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_mlm_gradient(dropout):
    p = model()
    _, g = gradient(p, dropout=dropout, seed=5)
    for name in BACKWARD:
        places, want = slopes(lambda: loss_of(p, dropout=dropout, seed=5), p, name)
        assert_close(g.views[name].reshape(-1)[places], want, f"d {name} at 4 places", atol=1e-8)


def test_mlm_gradient_adds_the_head_and_the_embedding_of_the_tied_table():
    """A token that is in no input still competes at the masked places: the head gives its row a gradient."""
    _, g = gradient(model())
    assert g["wte.weight"].any(axis=1).all(), "no row of dwte is zero"


def test_mlm_gradient_of_shares_adds_up_to_that_of_the_batch():
    p = model()
    loss, g = gradient(p)
    parts = [gradient(p, [a[rows] for a in BATCH], total=5) for rows in (slice(0, 1), slice(1, 3))]
    assert_close(sum(part for part, _ in parts), loss, "the loss of two shares, 1 and 2 rows")
    assert_close(sum(part.flat for _, part in parts), g.flat, "their gradients")


def gradient_of_nothing(ops, dtype):
    return gradient(Parameters(CONFIG, model().flat.astype(dtype)),
                    (tokens, np.full_like(targets, IGNORE), lengths), 5, ops, dtype)


def test_mlm_gradient_of_rows_without_a_masked_place_is_zero():
    loss, g = gradient_of_nothing(NUMPY, np.float64)
    assert_close(loss, 0, "the loss, where nothing was asked")
    assert_close(g.flat, np.zeros(g.flat.size), "all gradients, where nothing was asked")


def test_mlm_gradient_does_not_see_padding():
    p = model()
    loss, g = gradient(p)
    other, h = gradient(p, (np.where(real, tokens, (tokens + 3) % 11), targets, lengths))
    assert_close(other, loss, "the loss after padding changed")
    assert_close(h.flat, g.flat, "all gradients after padding changed")
    wider = [np.insert(array, 6, fill, axis=1) for array, fill in ((tokens, 4), (targets, IGNORE))]
    other, h = gradient(p, (*wider, lengths))
    assert_close(other, loss, "the loss with one more place of padding")
    assert_close(h.flat, g.flat, "all gradients with one more place of padding")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_both_rooms_give_the_same_gradient(dropout):
    p = model()
    loss, g = gradient(p, dropout=dropout, seed=2)
    single = Parameters(CONFIG, p.flat.astype(np.float32))
    got, h = gradient(single, ops=CPU, dtype=np.float32, dropout=dropout, seed=2)
    assert_close(got, loss, "the loss", rtol=1e-5)
    for name, want in g.views.items():
        assert_close(h.views[name], want, f"d {name}", rtol=1e-4, atol=1e-5)


def test_both_rooms_give_rows_without_a_masked_place_no_gradient():
    loss, g = gradient_of_nothing(CPU, np.float32)
    assert loss == 0 and not g.flat.any(), f"nothing was asked, but the loss is {loss}, the gradient not 0"


# update, train


def muon(p, g, m, rate):
    """One step, without changing p: the averaged gradient with its singular values brought near 1."""
    m += 0.05 * (g - m)
    x = 0.05 * g + 0.95 * m
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.775 * square @ x + 2.0315 * square @ square @ x
    return p - rate * math.sqrt(max(1, p.shape[1] / p.shape[0])) * x


def adamw(p, g, m, v, rate, step):
    m += 0.1 * (g - m)
    v += 0.01 * (g**2 - v)
    return p - rate * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)


@pytest.mark.parametrize("share, more", [(0.4, ()), (1.0, (1.0,))])
def test_update_is_muon_for_matrices_and_adamw_for_the_rest(share, more):
    """Three steps with other gradients. Some are as small as the eps, and so can tell it from 0."""
    p, g, m, v = model(), filled(0), filled(0), filled(0)
    want = {name: (view.copy(), np.zeros(view.shape), np.zeros(view.shape)) for name, view in p.views.items()}
    for step in 1, 2, 3:
        for name, view in g.views.items():
            size = 1e-8 if name in ("h.0.ln_1.bias", "h.1.attn.c_proj.weight") else 1
            view[:] = size * np.random.default_rng(step * view.size).normal(size=view.shape)
        with unchanged(g=g.flat):
            lesson.update(NUMPY, p, g, m, v, 0.01 * step, step, *more)
        for name, (value, m_want, v_want) in want.items():
            rate, matrix = 0.01 * step, value.ndim == 2 and name not in ("wte.weight", "wpe.weight")
            value[:] = muon(value, g[name], m_want, rate) if matrix \
                else adamw(value, g.views[name], m_want, v_want, share * rate, step)
            which = f"{'muon' if matrix else 'adamw'}, step {step}"
            assert_close(p.views[name], value, f"{name} after {which}", atol=1e-9)
            assert_close(m.views[name], m_want, f"m of {name} after {which}", atol=1e-12)


def test_train_learns_to_fill_in():
    """Rows count upwards from somewhere, 0 to 9 and on: both neighbours tell what is hidden."""
    rows, lengths = (np.arange(10)[:, None] + np.arange(7)) % 10, np.full(10, 7)
    lengths[::2] = 4
    p = init_parameters(Config(vocab_size=12, block_size=7, n_layer=1, n_head=2, n_embd=32))
    losses = list(lesson.train(CPU, p, rows, lengths, 11, steps=150, batch=16))
    assert losses[0] == pytest.approx(math.log(12), rel=0.1), "untrained, it is as good as a guess: log 12"
    last = np.mean(losses[-20:])
    assert last < 0.5, f"after 150 steps the loss is {last:.2f}: the encoder does not use the neighbours"
    inputs, each, places = rows.copy(), np.arange(10), np.arange(10) % 4
    inputs[each, places] = 11
    x, _ = lesson.encoder_forward(CPU, p, inputs, lengths)
    guesses = (x[each, places] @ p["wte.weight"].T).argmax(axis=1)
    assert_close(guesses, rows[each, places], "what is filled in")


def test_train_updates_with_the_gradient_of_the_whole_batch(monkeypatch):
    batches, seen, p, original = [], [], model(), lesson.mask_tokens

    def mask_tokens(rng, rows, lengths, mask_id, vocab_size, rate):
        assert (mask_id, vocab_size) == (10, 11), f"mask {mask_id} of a vocabulary of {vocab_size}"
        batches.append((*original(rng, rows, lengths, mask_id, vocab_size, rate), lengths))
        return batches[-1][:2]

    monkeypatch.setattr(lesson, "mask_tokens", mask_tokens)
    monkeypatch.setattr(lesson, "update", lambda ops, p, g, *rest: seen.append(g.flat.copy()))
    single = Parameters(CONFIG, p.flat.astype(np.float32))
    losses = list(lesson.train(CPU, single, tokens, lengths, 10, steps=3, batch=5))
    assert len(batches) == len(seen) == 3
    assert (batches[0][0] != batches[1][0]).any(), "the second step saw what the first one did"
    for got, loss, batch in zip(seen, losses, batches):
        assert_close(loss, loss_of(p, batch), "the loss of a step", rtol=1e-5)
        _, g = gradient(p, batch, np.count_nonzero(batch[1] != IGNORE))
        for name, view in g.views.items():
            assert_close(Parameters(CONFIG, got)[name], view, f"d {name} of a step", rtol=1e-4, atol=1e-5)


def test_sentences_cuts_what_is_too_long_and_drops_what_is_too_short():
    text = "‘Oh!’ said the king, and THE king’s men went home. Who? One two three four five six"
    got = lesson.sentences(text, 8)
    assert got == [["said", "the", "king", ",", "and", "the", "king’s", "men"],
                   ["one", "two", "three", "four", "five", "six"]]
