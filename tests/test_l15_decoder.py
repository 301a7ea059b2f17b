"""The tests of f are test_f and test_f_*: they are also lesson 15's exercises.

The oracles: the formulas at the top of the lesson for one row, one query and one head at a time; finite
differences of the model's own loss; and what must hold for every decoder: the future changes nothing, neither
does padding, and what is written step by step is what all positions say at once.
Operations are those of lessons 6, 8, 10, 12 and 13; the encoder is lesson 14's.
"""
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import devices
from lessons import l15_decoder as lesson
from lessons.l14_encoder import encoder_forward
from lessons.parameters import Parameters, init_parameters
from tests.close import assert_close, numeric_grad, unchanged

CONFIG = lesson.EncoderDecoderConfig(vocab_size=11, block_size=7, n_layer=2, n_head=2, n_embd=8)
OTHER = lesson.EncoderDecoderConfig(vocab_size=10, block_size=5, n_layer=3, n_head=4, n_embd=8)
NUMPY, CPU, IGNORE = devices.ops("numpy"), devices.ops("cpu"), -1
rng = np.random.default_rng(15)
source, lengths = rng.integers(0, 10, (3, 6)), np.array([6, 2, 4])  # no token is 10
tokens, ends = rng.integers(0, 10, (3, 5)), np.array([3, 5, 4])
targets = np.where(np.arange(5) < ends[:, None], rng.integers(0, 11, (3, 5)), IGNORE)
real, memory = np.arange(6) < lengths[:, None], rng.normal(size=(3, 6, 8))
BATCH, TOTAL = (source, targets, tokens, lengths), 12
DLOGITS = rng.normal(size=(3, 5, 11))  # for the decoder alone, whose loss is (logits * DLOGITS).sum()


def model(config=CONFIG):
    """float64, and every number random: a bias of 0 would hide a mistake."""
    p = init_parameters(config, dtype=np.float64)
    for i, view in enumerate(p.views.values()):
        view += 0.2 * np.random.default_rng(i).normal(size=view.shape)
    return p


def filled(number, dtype=np.float64):
    """Gradients that are not 0 before: what was there must be gone."""
    g = Parameters(CONFIG, dtype=dtype)
    g.flat[:] = number
    return g


def slopes(loss, value, n=4):
    """n places of an array, and the loss's slope at each, by moving one number a little."""
    value, found = value.reshape(-1), []
    places = np.random.default_rng(1).choice(value.size, n, replace=False)
    for i in places:
        old, losses = value[i], []
        for nudge in 1e-5, -1e-5:
            value[i] = old + nudge
            losses.append(loss())
        value[i] = old
        found.append((losses[0] - losses[1]) / 2e-5)
    return places, found


# shapes


def test_shapes_are_those_of_hugging_face():
    block = {"ln_1": (8,), "attn.c_attn": (8, 24), "attn.c_proj": (8, 8),
             "ln_2": (8,), "mlp.c_fc": (8, 32), "mlp.c_proj": (32, 8)}
    cross = {"ln_cross_attn": (8,), "crossattention.q_attn": (8, 8), "crossattention.c_attn": (8, 16),
             "crossattention.c_proj": (8, 8)}
    want = {}
    for stack, modules in ("encoder", block), ("decoder", block | cross):
        want |= {f"{stack}.wte.weight": (11, 8), f"{stack}.wpe.weight": (7, 8)}
        names = {f"h.{i}.{name}": shape for i in range(2) for name, shape in modules.items()}
        for name, shape in (names | {"ln_f": (8,)}).items():
            want |= {f"{stack}.{name}.weight": shape, f"{stack}.{name}.bias": shape[-1:]}
    got = CONFIG.shapes()
    assert set(got) == set(want), f"missing {set(want) - set(got)}, too many {set(got) - set(want)}"
    for name in want:
        assert tuple(got[name]) == want[name], f"{name} has shape {got[name]}, expected {want[name]}"


def test_shapes_give_two_stacks_in_one_buffer():
    p = init_parameters(lesson.EncoderDecoderConfig(100, 50, n_layer=8, n_head=4, n_embd=64))
    encoder, decoder = p.under("encoder."), p.under("decoder.")
    assert not np.shares_memory(encoder["wte.weight"], decoder["wte.weight"]), "each stack has its own table"
    assert sum(map(len, encoder.blocks)) == 8 * 6 and sum(map(len, decoder.blocks)) == 8 * 10
    weight, bias = decoder.blocks[7]["crossattention.c_proj"]  # into the residual stream: / sqrt(2 * 8)
    assert_close(weight.std(), 0.5 / math.sqrt(64) / 4, "its spread at first", rtol=0.05)
    assert weight is p.views["decoder.h.7.crossattention.c_proj.weight"] and not bias.any()
    assert (decoder.blocks[0]["ln_cross_attn"][0] == 1).all(), "a layer norm is 1 at first"


# the formulas, for one row without padding


def standard(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def norm(x, p, name):
    weight, bias = p[name]
    return standard(x) * weight + bias


def linear(x, p, name):
    weight, bias = p[name]
    return x @ weight + bias


def attend(q, k, v, H, causal):  # (T, C), (S, C) twice -> (T, C), (H, T, S)
    T, S = len(q), len(k)
    D, weights, out = q.shape[1] // H, np.zeros((H, T, S)), np.empty_like(q)
    for h, t in np.ndindex(H, T):
        channels, keys = slice(h * D, h * D + D), slice(t + 1 if causal else S)
        scores = np.exp(k[keys, channels] @ q[t, channels] / math.sqrt(D))
        weights[h, t, keys] = scores / scores.sum()
        out[t, channels] = weights[h, t] @ v[:, channels]
    return out, weights


def what_is_found(x, p, memory, H):  # (T, C), (S, C) -> (T, C), (H, T, S)
    q = linear(norm(x, p, "ln_cross_attn"), p, "crossattention.q_attn")
    return attend(q, *np.split(linear(memory, p, "crossattention.c_attn"), 2, axis=1), H, causal=False)


def consult_by_hand(x, p, memory, H=CONFIG.n_head):  # (T, C), (S, C) -> (T, C)
    return x + linear(what_is_found(x, p, memory, H)[0], p, "crossattention.c_proj")


def decode_by_hand(p, tokens, memory):
    """(T,), (S, C) -> (T, V); where each layer looks (H, T, S); the x that each layer norm gets (T, C)"""
    x, looks, xs, H = p["wte.weight"][tokens] + p["wpe.weight"][:len(tokens)], [], [], p.config.n_head
    for block in p.blocks:
        xs.append(x)
        qkv = linear(norm(x, block, "ln_1"), block, "attn.c_attn")
        x = x + linear(attend(*np.split(qkv, 3, axis=1), H, causal=True)[0], block, "attn.c_proj")
        xs.append(x)
        looks.append(what_is_found(x, block, memory, H)[1])
        x = consult_by_hand(x, block, memory, H)
        xs.append(x)
        y = linear(norm(x, block, "ln_2"), block, "mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, block, "mlp.c_proj")
    return norm(x, p, "ln_f") @ p["wte.weight"].T, looks, [*xs, x]


# consult

X, DX = rng.normal(size=(2, 3, 5, 8))


def consult(x, memory, p, **settings):
    return lesson.consult_forward(NUMPY, x, p, memory, CONFIG.n_head, **settings)


def test_consult_forward():
    p = model().under("decoder.").blocks[1]
    want = [consult_by_hand(x, p, m) for x, m in zip(X, memory)]
    assert_close(consult(X, memory, p)[0], want, "x without lengths")
    want = [consult_by_hand(x, p, m[:n]) for x, m, n in zip(X, memory, lengths)]
    assert_close(consult(X, memory, p, lengths=lengths)[0], want, "x with lengths")


def test_consult_forward_leaves_its_inputs_alone():
    p = model()
    with unchanged(x=X, memory=memory, lengths=lengths, parameters=p.flat):  # all layers read one memory
        consult(X, memory, p.under("decoder.").blocks[0], lengths=lengths)


def test_consult_forward_drops_a_share_of_what_it_adds():
    p = model().under("decoder.").blocks[1]
    added = np.array([consult_by_hand(x, p, m) for x, m in zip(X, memory)]) - X
    scale, _ = NUMPY.dropout_forward(np.ones(X.shape), 0.5, 9)  # 0 or 1 / (1 - 0.5)
    assert_close(consult(X, memory, p, dropout=0.5, seed=9)[0], X + added * scale, "x")


def test_consult_forward_keeps_what_backward_needs():
    p = model().under("decoder.").blocks[1]
    _, cache = consult(X, memory, p, lengths=lengths, dropout=0.5, seed=9)
    assert type(cache) is tuple and len(cache) == 5, f"the cache is {type(cache)}, expected a tuple of 5"
    layernorm, q_attn, c_attn, attended, (c_proj, dropped) = cache
    assert_close(layernorm[0], standard(X), "what layernorm keeps, the first of the cache")
    assert_close(q_attn[0], norm(X, p, "ln_cross_attn"), "what q_attn keeps, the second of the cache")
    assert_close(c_attn[0], memory, "what c_attn keeps, the third of the cache")
    for row, n in enumerate(lengths):
        found, weights = what_is_found(X[row], p, memory[row, :n], CONFIG.n_head)
        assert_close(attended[3][row, ..., :n], weights, "the weights that attention keeps, the fourth")
        assert_close(c_proj[0][row], found, "what c_proj's product keeps, in branch_forward's, the fifth")
    scale, _ = NUMPY.dropout_forward(np.ones(X.shape), 0.5, 9)
    assert_close(NUMPY.dropout_backward(np.ones(X.shape), dropped), scale, "what dropout keeps, in the fifth")


def test_consult_forward_stays_in_float32():
    p = Parameters(CONFIG, model().flat.astype(np.float32)).under("decoder.").blocks[1]
    x, _ = consult(X.astype(np.float32), memory.astype(np.float32), p)
    want, _ = consult(X, memory, model().under("decoder.").blocks[1])
    assert_close(x, want, "x", rtol=1e-3, atol=1e-4, dtype=np.float32)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_consult_backward(dropout):
    p, g = model().under("decoder.").blocks[0], filled(7).under("decoder.").blocks[0]
    how = {"lengths": lengths, "dropout": dropout, "seed": 4}

    def loss(x=X, memory=memory):
        return (consult(x, memory, p, **how)[0] * DX).sum()

    back = lesson.consult_backward(NUMPY, DX.copy(), consult(X, memory, p, **how)[1], g)
    assert type(back) is tuple and len(back) == 2, f"got {type(back)}, expected dx and dmemory"
    for module in "crossattention.c_proj", "crossattention.c_attn", "crossattention.q_attn", "ln_cross_attn":
        for kind, value, got in zip(("weight", "bias"), p[module], g[module]):
            places, want = slopes(loss, value, 6)
            assert_close(got.reshape(-1)[places], want, f"six numbers of d {module}.{kind}", atol=1e-7)
    assert_close(back[0], numeric_grad(lambda x: loss(x=x), X), "dx", atol=1e-7)
    assert_close(back[1], numeric_grad(lambda m: loss(memory=m), memory), "dmemory", atol=1e-7)
    assert not back[1][~real].any(), "nobody looked at padding: its gradient is exactly 0"


# decoder_forward


def decode(p, tokens=tokens, memory=memory, lengths=lengths, **settings):
    return lesson.decoder_forward(NUMPY, p.under("decoder."), tokens, memory, lengths, **settings)[0]


def test_decoder_forward():
    p, rows = model(), list(zip(tokens, memory, lengths))
    with unchanged(tokens=tokens, memory=memory, lengths=lengths, parameters=p.flat):
        every, some = decode(p, lengths=None), decode(p)
    want = [decode_by_hand(p.under("decoder."), row, m)[0] for row, m, _ in rows]
    assert_close(every, want, "logits without lengths")
    want = [decode_by_hand(p.under("decoder."), row, m[:n])[0] for row, m, n in rows]
    assert_close(some, want, "logits with lengths")


def test_decoder_forward_of_other_sizes():
    p = model(OTHER)
    got = decode(p, tokens[:2, :3], memory[:2, :4], None)
    want = [decode_by_hand(p.under("decoder."), row[:3], m[:4])[0] for row, m in zip(tokens[:2], memory)]
    assert_close(got, want, f"logits of {OTHER.n_layer} layers with {OTHER.n_head} heads")


def test_decoder_forward_stays_in_float32():
    p = Parameters(CONFIG, model().flat.astype(np.float32))
    got = decode(p, memory=memory.astype(np.float32))
    assert_close(got, decode(model()), "logits", rtol=1e-3, atol=1e-4, dtype=np.float32)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.integers(0, 4), st.integers(1, 10))
def test_decoder_forward_does_not_see_the_future(t, shift):
    p, changed = model(), tokens.copy()
    changed[:, t] = (changed[:, t] + shift) % 11
    before, after = decode(p), decode(p, changed)
    assert_close(after[:, :t], before[:, :t], f"logits before position {t}, which changed")
    assert (after[:, t] != before[:, t]).any(), "a position must see its own token"


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.integers(0, 2), st.integers(0, 5))
def test_decoder_forward_sees_all_of_its_own_real_memory_and_nothing_else(row, s):
    p, changed = model(), memory.copy()
    changed[row, s] += rng.normal(size=8)
    moved = (decode(p, memory=changed) != decode(p)).any(axis=-1)
    want = np.zeros((3, 5), bool)
    want[row] = s < lengths[row]
    assert (moved == want).all(), (
        f"position {s} of row {row}'s memory changed, where {lengths[row]} are real, and these logits did: "
        f"{np.argwhere(moved).tolist()}. Does each row look at all that is real of its own memory?")


def test_decoder_forward_does_not_see_how_much_padding_there_is():
    p = model()
    wider = np.pad(memory, ((0, 0), (0, 3), (0, 0)), constant_values=1000.0)
    assert_close(decode(p, memory=wider), decode(p), "logits with three more places of padding")


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]])
def test_decoder_forward_treats_the_rows_of_a_batch_alike(order):
    p = model()
    got = decode(p, tokens[order], memory[order], lengths[order])
    assert_close(got, decode(p)[order], "logits of the permuted batch")


def test_decoder_forward_refuses_a_memory_of_other_rows():
    with pytest.raises(ValueError):  # NumPy would let three rows of tokens share one row of memory
        decode(model(), memory=memory[:1], lengths=lengths[:1])


@pytest.mark.parametrize("rows", [1, 2])
def test_a_memory_of_other_rows_is_refused_in_one_line(rows):
    with pytest.raises(ValueError, match=f"^3 rows of tokens, {rows} of memory: [^\n]+$"):
        decode(model(), memory=memory[:rows], lengths=lengths[:rows])


@pytest.mark.parametrize("ops", [NUMPY, CPU])
@pytest.mark.parametrize("wrong", [0, 7])
def test_both_rooms_refuse_lengths_that_do_not_fit(ops, wrong):
    p = Parameters(CONFIG, model().flat.astype(np.float32)).under("decoder.")
    with pytest.raises(ValueError, match=rf"^lengths .*{wrong}.* do not fit 6 keys: [^\n]+$"):
        lesson.decoder_forward(ops, p, tokens, memory.astype(np.float32), np.array([6, wrong, 4]))


def dropouts(run):
    """The (rate, seed) of every dropout of run(ops, seed) for the seeds 0, 1, 2."""
    ops, asked = devices.ops("numpy"), []

    def dropout_forward(x, rate, seed, residual=None):
        asked.append((rate, seed))
        return NUMPY.dropout_forward(x, rate, seed, residual)

    ops.dropout_forward = dropout_forward
    for seed in range(3):
        run(ops, seed)
    return asked


@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["2 layers", "3 layers"])
def test_decoder_forward_drops_others_in_each_part_of_each_layer_and_for_each_seed(config):
    p = model(config).under("decoder.")
    asked = dropouts(lambda ops, seed: lesson.decoder_forward(ops, p, tokens, memory, lengths, 0.5, seed))
    want = [(0.5, n) for n in range(3 * config.n_layer * 3)]  # three seeds, three parts
    assert asked == want, f"each dropout's (rate, seed), for the seeds 0, 1, 2: got {asked}, expected {want}"


def test_decoder_forward_keeps_what_backward_needs():
    p = model().under("decoder.")
    logits, cache = lesson.decoder_forward(NUMPY, p, tokens, memory, lengths)
    assert type(cache) is tuple and len(cache) == 4, f"the cache is {type(cache)}, expected a tuple of 4"
    embedding, blocks, layernorm, head = cache
    assert_close(embedding[0], tokens, "the tokens that embedding keeps, the first of the cache")
    assert_close(lesson.alignment(cache), looks_by_hand(p), "where each layer looks, as alignment finds it")
    kept = [part[0] for layer in blocks for part in layer] + [layernorm]
    names = [f"{part} of layer {layer}" for layer in range(2) for part in ("look", "consult", "think")]
    for row, n in enumerate(lengths):
        xs = decode_by_hand(p, tokens[row], memory[row, :n])[2]
        for name, got, x in zip([*names, "the whole, the third of the cache,"], kept, xs):
            assert_close(got[0][row], standard(x), f"what the layernorm of {name} keeps")
    assert_close(head[0] @ p["wte.weight"].T, logits, "what the head keeps, the fourth, times wte.T")


# decoder_backward

DECODER = [  # in the order of the backward pass: the first to fail is where to look
    "ln_f.bias", "ln_f.weight",
    "h.1.mlp.c_proj.bias", "h.1.mlp.c_proj.weight", "h.1.mlp.c_fc.bias", "h.1.mlp.c_fc.weight",
    "h.1.ln_2.bias", "h.1.ln_2.weight",
    "h.1.crossattention.c_proj.bias", "h.1.crossattention.c_proj.weight", "h.1.crossattention.c_attn.bias",
    "h.1.crossattention.c_attn.weight", "h.0.crossattention.q_attn.bias", "h.0.crossattention.q_attn.weight",
    "h.0.ln_cross_attn.bias", "h.0.ln_cross_attn.weight",
    "h.0.attn.c_proj.bias", "h.0.attn.c_proj.weight", "h.0.attn.c_attn.bias", "h.0.attn.c_attn.weight",
    "h.0.ln_1.bias", "h.0.ln_1.weight", "wpe.weight", "wte.weight"]
ENCODER = [f"encoder.{name}" for name in DECODER if "cross" not in name]


def decoder_backward(p, **settings):
    _, cache = lesson.decoder_forward(NUMPY, p.under("decoder."), tokens, memory, lengths, **settings)
    g = filled(7)
    return lesson.decoder_backward(NUMPY, DLOGITS.copy(), cache, g.under("decoder.")), g


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_decoder_backward(dropout):
    p, how = model(), {"dropout": dropout, "seed": 3}
    _, g = decoder_backward(p, **how)
    for name in DECODER:
        places, want = slopes(lambda: (decode(p, **how) * DLOGITS).sum(), p[f"decoder.{name}"])
        got = g[f"decoder.{name}"].reshape(-1)[places]
        assert_close(got, want, f"four numbers of d {name}", atol=1e-7)


def test_decoder_backward_returns_the_gradient_of_the_memory():
    p, moved = model(), memory.copy()
    dmemory, _ = decoder_backward(p)
    assert getattr(dmemory, "shape", None) == memory.shape, f"dmemory is {dmemory}, expected {memory.shape}"
    places, want = slopes(lambda: (decode(p, memory=moved) * DLOGITS).sum(), moved, 30)
    assert_close(dmemory.reshape(-1)[places], want, "thirty numbers of dmemory", atol=1e-7)
    assert not dmemory[~real].any(), "nobody looked at padding: its gradient is exactly 0"


def looks_by_hand(p):  # -> (n_layer, B, H, T, S)
    want = np.zeros((2, 3, 2, 5, 6))
    for row, n in enumerate(lengths):
        want[:, row, ..., :n] = decode_by_hand(p, tokens[row], memory[row, :n])[1]
    return want


def test_alignment_of_the_cpu_room():
    single = Parameters(CONFIG, model().flat.astype(np.float32)).under("decoder.")
    _, cache = lesson.decoder_forward(CPU, single, tokens, memory.astype(np.float32), lengths)
    want = looks_by_hand(model().under("decoder."))
    assert_close(lesson.alignment(cache), want, "where each layer looks, by the CPU's kernels", atol=1e-5)


# encoder and decoder


def translate(p, source=source, tokens=tokens, lengths=lengths, **settings):
    return lesson.encoder_decoder_forward(NUMPY, p, source, tokens, lengths, **settings)[0]


def test_encoder_decoder_forward_is_the_decoder_with_the_encoders_output_as_memory():
    p = model()
    for n in lengths, None:
        encoded, _ = encoder_forward(NUMPY, p.under("encoder."), source, n)
        assert_close(translate(p, lengths=n), decode(p, memory=encoded, lengths=n), "logits")


def test_encoder_decoder_forward_drops_others_everywhere_and_for_each_seed():
    p = model()
    asked = dropouts(lambda ops, seed:
                     lesson.encoder_decoder_forward(ops, p, source, tokens, lengths, 0.5, seed))
    assert len(asked) == 30, f"two layers of 2 and of 3 parts, three seeds are 30 dropouts, not {len(asked)}"
    assert len(set(asked)) == 30, f"some seeds are the same, of the encoder's and the decoder's: {asked}"


def encoder_decoder_backward(p, before=7, **settings):
    g = filled(before)
    _, cache = lesson.encoder_decoder_forward(NUMPY, p, source, tokens, lengths, **settings)
    lesson.encoder_decoder_backward(NUMPY, DLOGITS.copy(), cache, g)
    return g


def test_encoder_decoder_backward():
    p, how = model(), {"dropout": 0.3, "seed": 5}
    g = encoder_decoder_backward(p, **how)
    for name in ["decoder.ln_f.weight", "decoder.wte.weight", *ENCODER[1::2]]:
        places, want = slopes(lambda: (translate(p, **how) * DLOGITS).sum(), p[name])
        assert_close(g[name].reshape(-1)[places], want, f"four numbers of d {name}", atol=1e-7)


def test_encoder_decoder_backward_writes_every_gradient():
    """Nothing of what was in g before is left."""
    p = model()
    one, two = encoder_decoder_backward(p, 7), encoder_decoder_backward(p, -3)
    for name in p.views:
        assert_close(one[name], two[name], f"d {name} on top of 7 and of -3")


def loss_of(p, batch=BATCH, **settings):
    """-log softmax(logits)[target], the mean over the targets that count."""
    source, targets, inputs, lengths = batch
    logits = translate(p, source, inputs, lengths, **settings)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    rows, columns = np.nonzero(targets != IGNORE)
    return -log_p[rows, columns, targets[rows, columns]].mean()


def gradient(p, batch=BATCH, total=TOTAL, ops=NUMPY, dtype=np.float64, **settings):
    g = filled(7, dtype)
    return lesson.encoder_decoder_gradient(ops, p, batch, total, g, **settings), g


def test_encoder_decoder_gradient_returns_the_mean_loss():
    assert_close(gradient(model())[0], loss_of(model()), "the loss")


def test_encoder_decoder_gradient():
    p, how = model(), {"dropout": 0.3, "seed": 5}
    _, g = gradient(p, **how)
    for name in [f"decoder.{name}" for name in DECODER[::5]] + ENCODER[::5]:
        places, want = slopes(lambda: loss_of(p, **how), p[name])
        assert_close(g[name].reshape(-1)[places], want, f"four numbers of d {name}", atol=1e-8)


def test_encoder_decoder_gradient_of_shares_adds_up_to_that_of_the_batch():
    p = model()
    loss, g = gradient(p)
    parts = [gradient(p, [a[rows] for a in BATCH]) for rows in (slice(0, 1), slice(1, 3))]
    assert_close(sum(part for part, _ in parts), loss, "the loss of two shares, 1 and 2 rows")
    for name in p.views:
        assert_close(sum(part[name] for _, part in parts), g[name], f"their d {name}")


def test_encoder_decoder_gradient_does_not_see_padding():
    p = model()
    loss, g = gradient(p)
    fills = (source, 10), (targets, IGNORE), (tokens, 10)
    for what, batch in [("the source", (np.where(real, source, 10), targets, tokens, lengths)),
                        ("the text", (source, targets, np.where(targets == IGNORE, 10, tokens), lengths)),
                        ("both", (*(np.insert(a, a.shape[1], x, axis=1) for a, x in fills), lengths))]:
        got, h = gradient(p, batch)
        assert_close(got, loss, f"the loss after the padding of {what} changed")
        for name in p.views:
            assert_close(h[name], g[name], f"d {name} after the padding of {what} changed")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_both_rooms_give_the_same_gradient(dropout):
    p = model()
    loss, g = gradient(p, dropout=dropout, seed=2)
    single = Parameters(CONFIG, p.flat.astype(np.float32))
    got, h = gradient(single, ops=CPU, dtype=np.float32, dropout=dropout, seed=2)
    assert_close(got, loss, "the loss", rtol=1e-5)
    for name, want in g.views.items():
        assert_close(h[name], want, f"d {name}", rtol=1e-4, atol=1e-5)


# writing


def talkative():
    """A model whose rows write different tokens. Their first 6 is the 4th, the 1st and the 5th; and after it
    they would not write 6 alone."""
    p, random = model(), np.random.default_rng(174)
    p["decoder.wpe.weight"][:] = 2 * random.normal(size=(7, 8))
    for layer in range(2):
        p[f"decoder.h.{layer}.crossattention.c_proj.weight"][:] = 2 * random.normal(size=(8, 8))
    return p


def step_by_step(p, row, n, bos=3):  # -> (n,): what one row writes after bos, computed without the others
    encoded, _ = encoder_forward(NUMPY, p.under("encoder."), source[row:row + 1, :lengths[row]])
    written = [bos]
    for _ in range(n):
        logits, *_ = decode_by_hand(p.under("decoder."), np.array(written), encoded[0])
        written.append(int(logits[-1].argmax()))
    return written[1:]


def test_write_takes_the_most_probable_token_each_time():
    p = talkative()
    want = [step_by_step(p, row, 7) for row in range(3)]
    with unchanged(source=source, lengths=lengths, parameters=p.flat):
        got = lesson.write(NUMPY, p, source, lengths, 3, 1, 7)
    assert_close(got, want, "7 tokens, where eos never comes")
    assert_close(lesson.write(NUMPY, p, source, lengths, 3, 1, 2), np.array(want)[:, :2], "2 tokens")


@pytest.mark.parametrize("bos", [3, 6])
def test_write_begins_with_bos(bos):
    p = talkative()
    p["decoder.wte.weight"][:] *= 5  # what is written depends more on what was written
    want = [step_by_step(p, row, 3, bos) for row in range(2)]
    got = lesson.write(NUMPY, p, source[:2], lengths[:2], bos, 1, 3)
    assert_close(got, want, f"3 tokens after bos = {bos}, of two rows")


def test_write_reads_the_source_once():
    p, ops, read = talkative(), devices.ops("numpy"), []

    def embedding_forward(tokens, wte, wpe, *start):
        read.append(np.shares_memory(wte, p["encoder.wte.weight"]))
        return NUMPY.embedding_forward(tokens, wte, wpe, *start)

    ops.embedding_forward = embedding_forward
    lesson.write(ops, p, source, lengths, 3, 1, 4)
    encoder = sum(read)
    assert (encoder, len(read) - encoder) == (1, 4), \
        f"for 4 tokens the encoder ran {encoder} times, the decoder {len(read) - encoder}; expected 1 and 4"


def test_write_fills_a_row_that_has_ended_with_eos_and_stops_with_the_last():
    p = talkative()
    rows = [step_by_step(p, row, 5) for row in range(3)]
    assert [row.index(6) for row in rows] == [3, 0, 4], "this test needs a model whose rows end one by one"
    want = [row[:row.index(6)] + [6] * (5 - row.index(6)) for row in rows]
    assert want != rows, "this test needs a row that would go on with another token"
    assert_close(lesson.write(NUMPY, p, source, lengths, 3, 6, 7), want, "what is written until 6")


@pytest.mark.parametrize("ops, dtype", [(NUMPY, np.float64), (CPU, np.float32)])
def test_both_rooms_write_what_all_positions_at_once_say(ops, dtype):
    """Teacher forcing with what was written: position t's most probable token is the one that was written."""
    p = Parameters(CONFIG, talkative().flat.astype(dtype))
    written = lesson.write(ops, p, source, lengths, 3, 6, 7)
    inputs = np.insert(written[:, :-1], 0, 3, axis=1)
    logits, _ = lesson.encoder_decoder_forward(ops, p, source, inputs, lengths)
    for row, n in enumerate([4, 1, 5]):  # up to the first 6
        assert_close(logits[row, :n].argmax(axis=-1), written[row, :n], f"row {row}'s most probable tokens")


# the demonstration's task


def test_reversal():
    words, bos, eos = ["abc", "zebra"], 26, 27
    source, targets, inputs, lengths = lesson.reversal(words)
    assert words == ["abc", "zebra"], f"the list of words was changed: {words}"
    assert_close(source, [[0, 1, 2, eos, eos, eos], [25, 4, 1, 17, 0, eos]], "source")
    assert_close(targets, [[2, 1, 0, eos, -1, -1], [0, 17, 1, 4, 25, eos]], "targets")
    assert_close(inputs, [[bos, 2, 1, 0, eos, eos], [bos, 0, 17, 1, 4, 25]], "inputs: targets one place late")
    assert_close(lengths, [4, 6], "lengths: the letters and <eos>")
    for name, got in zip(("source", "targets", "inputs", "lengths"), (source, targets, inputs, lengths)):
        assert got.dtype.kind == "i", f"{name} are {got.dtype}, expected whole numbers: they are indices"


def test_reversal_feeds_the_decoder_no_ignore():
    _, _, inputs, _ = lesson.reversal(["abcdef", "z", "yx"])
    assert inputs.shape == (3, 7), f"inputs are {inputs.shape}, expected (3, 7): 7 is the longest + 1"
    assert inputs.min() >= 0 and inputs.max() < 28, f"an input in padding is no token:\n{inputs}"


def test_reversal_of_one_letter():
    for name, got, want in zip(("source", "targets", "inputs", "lengths"), lesson.reversal(["c"]),
                               ([[2, 27]], [[2, 27]], [[26, 2]], [2])):
        assert_close(got, want, name)


def test_reverse_returns_what_is_written_before_eos(monkeypatch):
    written = np.array([[2, 1, 0, 27, 27, 27], [0, 26, 1, 4, 25, 25]])  # b < e z z: it may write anything
    monkeypatch.setattr(lesson, "write", lambda ops, p, source, lengths, bos, eos, n: written[:, :n])
    assert lesson.reverse(NUMPY, None, ["abc", "zebra"]) == ["cba", "a<bezz"]


def test_random_words():
    words = lesson.random_words(np.random.default_rng(0), 2000)
    assert len(words) == 2000 and {len(word) for word in words} == set(range(5, 13)), "5 to 12 letters"
    assert set("".join(words)) == set("abcdefghijklmnopqrstuvwxyz"), "every letter occurs, and nothing else"
    assert lesson.random_words(np.random.default_rng(0), 2000) == words, "the same generator, the same words"


def test_train_learns_to_write_backwards():
    """The 84 words of 1 to 3 letters a to d. It never sees 16 of them, so by heart is not enough."""
    words = ["".join(letters) for n in (1, 2, 3) for letters in product("abcd", repeat=n)]
    order = np.random.default_rng(1)
    unseen = list(order.choice(words[20:], 16, replace=False))
    seen = [word for word in words if word not in unseen]
    p = init_parameters(lesson.EncoderDecoderConfig(28, 4, n_layer=1, n_head=2, n_embd=32))
    losses = list(lesson.train(CPU, p, lambda: list(order.choice(seen, 32)), 200))
    assert losses[0] == pytest.approx(math.log(28), rel=0.1), "untrained, it is as good as a guess: log 28"
    for what, some, allowed in ("seen", seen, 0), ("never seen", unseen, 1):
        wrong = {word: got for word, got in zip(some, lesson.reverse(CPU, p, some)) if got != word[::-1]}
        assert len(wrong) <= allowed, f"loss {losses[-1]:.3f}; of {len(some)} words {what} it writes {wrong}"


def test_main_counts_the_words_that_are_exactly_right_and_draws_where_it_looks(monkeypatch, capsys, tmp_path):
    """Without training, which takes longer: every fourth word comes out wrong by one letter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lesson, "train", lambda ops, p, words, steps: iter([0.5] * steps))
    monkeypatch.setattr(lesson, "reverse", lambda ops, p, words: [
        word[::-1] if i % 4 else "?" + word[-2::-1] for i, word in enumerate(words)])
    lesson.main()
    lines = capsys.readouterr().out.splitlines()
    assert "500: loss 0.5000,  75.0% of 1000 words" in lines[-2], f"3 of 4 words are right: {lines[-2]}"
    assert lines[-1].startswith("picture: ") and (tmp_path / lines[-1].removeprefix("picture: ")).is_file()
