"""One token on the GPU against the whole text at once, by the formulas in float64."""
import numpy as np
import pytest

from kernels.cuda import block, decoding, matmul
from kernels.cuda.memory import Array, on_gpu
from lessons.parameters import Config, init_parameters
from tests.close import assert_close


def model(vocab_size=5, block_size=3, n_layer=2, n_head=2, n_embd=4):
    """Random and far from even: the probabilities of a model that has learned something."""
    p = init_parameters(Config(vocab_size, block_size, n_layer, n_head, n_embd))
    for view in p.views.values():
        view += 0.5 * np.random.default_rng(view.size).standard_normal(view.shape)
    return p


def norm(x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(q, k, v):  # (T, D) each
    scores = np.where(np.tri(len(q)), q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ v


def gpt(p, tokens):  # {name: float64}, (T,) -> (T, V), (L, T, 2C)
    views = {name: view.astype(float) for name, view in p.views.items()}
    x, kv = views["wte.weight"][tokens] + views["wpe.weight"][:len(tokens)], []
    for layer in range(p.config.n_layer):
        def module(name, layer=layer):
            return views[f"h.{layer}.{name}.weight"], views[f"h.{layer}.{name}.bias"]

        weight, bias = module("attn.c_attn")
        q, k, v = np.split(norm(x, *module("ln_1")) @ weight + bias, 3, axis=1)
        kv.append(np.concatenate([k, v], axis=1))
        heads = zip(*(np.split(a, p.config.n_head, axis=1) for a in (q, k, v)))
        weight, bias = module("attn.c_proj")
        x = x + np.concatenate([attention(*head) for head in heads], axis=1) @ weight + bias
        weight, bias = module("mlp.c_fc")
        h = gelu(norm(x, *module("ln_2")) @ weight + bias)
        weight, bias = module("mlp.c_proj")
        x = x + h @ weight + bias
    return norm(x, views["ln_f.weight"], views["ln_f.bias"]) @ views["wte.weight"].T, np.array(kv)


def nothing(p):  # what was not written must not be read
    return np.full((p.config.n_layer, p.config.block_size, 2 * p.config.n_embd), np.nan, np.float32)


def matmul_of_numpy(a, b, out, bias=None, residual=None, slope=None):
    """The room's has tests of its own, and in the simulator a token would take a second."""
    matmul.check(a, b, out)
    y = a.numpy() @ b.numpy()
    y = y if bias is None else y + bias.numpy()
    y = y if residual is None else y + residual.numpy()
    out.set(y if slope is None else gelu(y))


@pytest.mark.parametrize("H, D, position", [(2, 35, 17), (1, 1, decoding.THREADS + 1), (3, 2, 0)])
def test_attend(H, D, position):
    """More keys than warps, or than threads; a head of more than 32 channels."""
    C, rng = H * D, np.random.default_rng(0)
    qkv = rng.normal(size=3 * C).astype(np.float32)
    kv = np.full((2, position + 2, 2 * C), np.nan, np.float32)  # what was not written must not be read
    kv[1, :position] = rng.normal(size=(position, 2 * C))
    want = kv.astype(float)
    want[1, position] = qkv[C:]
    q, k, v = (np.split(a, H, axis=-1) for a in (qkv[:C].astype(float), *np.split(want[1, :-1], 2, axis=1)))
    out, scores = np.empty(C, np.float32), np.empty((H, position + 2), np.float32)
    decoding.attend[H, decoding.THREADS](qkv, kv, 1, position, scores, out)
    weights = [np.exp(k[h] @ q[h] / np.sqrt(D)) for h in range(H)]
    heads = [weights[h] @ v[h] / weights[h].sum() for h in range(H)]
    assert_close(out, np.concatenate(heads), "out", atol=1e-5)
    np.testing.assert_array_equal(kv, want.astype(np.float32))


@pytest.mark.parametrize("size", [1000, -1000])
def test_attend_survives_scores_of_1000(size):
    """exp(1000) is infinite, and exp(-1000) is 0 for every position: the largest is taken away first."""
    qkv, out = np.array([1, 0, size, 0, 1, 2], np.float32), np.empty(2, np.float32)
    kv = np.array([[[size, 0, 3, 5], [size, 0, 7, 7]]], np.float32)
    decoding.attend[1, decoding.THREADS](qkv, kv, 0, 1, np.empty((1, 2), np.float32), out)
    assert_close(out, [2, 3.5], "out: the mean of two values of equal scores", rtol=1e-4)


@pytest.mark.parametrize("where, sizes", [("gpu", (5, 2, 2, 2, 4)), ("gpu", (7, 4, 1, 1, 5)),
                                          ("gpu", (3, 1, 1, 3, 33)), ("numpy", (5, 3, 1, 2, 4))])
def test_decode_is_the_whole_text_at_every_position(where, sizes, monkeypatch):
    monkeypatch.setattr(block, "matmul", matmul_of_numpy)
    p = model(*sizes)
    tokens = np.random.default_rng(0).integers(0, sizes[0], sizes[1])
    want, want_kv = gpt(p, tokens)
    weights, kv = decoding.decode_weights(p), nothing(p)
    kv = on_gpu(kv) if where == "gpu" else kv
    for t, token in enumerate(tokens):
        got = decoding.decode(weights, token, t, kv)
        assert type(got) is (Array if where == "gpu" else np.ndarray), "logits lie where kv lies"
        assert_close(got.numpy() if where == "gpu" else got, want[t], f"logits at {t}", rtol=1e-4, atol=1e-4)
    assert_close(kv.numpy() if where == "gpu" else kv, want_kv, "kv", rtol=1e-4, atol=1e-4)


def test_decode_writes_the_row_of_its_position_alone(monkeypatch):
    monkeypatch.setattr(block, "matmul", matmul_of_numpy)
    p = model()
    kv = np.random.default_rng(0).normal(size=nothing(p).shape).astype(np.float32)
    before = kv.copy()
    decoding.decode(decoding.decode_weights(p), 3, 1, kv)
    assert_close(kv[:, [0, 2]], before[:, [0, 2]], "kv at other positions")
    assert (kv[:, 1] != before[:, 1]).all(), "kv at its position"


def test_decode_weights_are_the_parameters():
    p = model()
    weights = decoding.decode_weights(p)
    for name, view in p.views.items():
        assert_close(weights.views[name].numpy(), view, name, rtol=0, atol=0)
    assert weights.config is p.config and isinstance(p.views["wte.weight"], np.ndarray), "p stays as it is"


def test_decode_weights_of_int8_are_rounded_by_output():
    """To multiples of a 127th of the largest, in matrices; the table's outputs are its rows."""
    p = model()
    p["h.0.mlp.c_fc.weight"][:, 1] = 0  # no scale could be found for it
    weights = decoding.decode_weights(p, int8=True)
    for name, view in p.views.items():
        got = weights.views[name].numpy()
        if view.ndim == 1 or name == "wpe.weight":
            assert_close(got, view, name, rtol=0, atol=0)
            continue
        axis = 1 if name == "wte.weight" else 0
        step = np.abs(view.astype(float)).max(axis=axis, keepdims=True) / 127
        want = np.round(view / np.where(step, step, 1)) * step
        assert_close(got, want, name, rtol=1e-5)
        assert (got != view).any(), f"{name} is not rounded"


@pytest.mark.parametrize("token, position", [(-1, 0), (5, 0), (0, -1), (0, 3)])
def test_decode_refuses_a_token_or_a_position_without_a_row(token, position):
    p = model()
    with pytest.raises(ValueError, match=f"{position if token == 0 else token}"):
        decoding.decode(decoding.decode_weights(p), token, position, nothing(p))


@pytest.mark.parametrize("kv", [np.zeros((2, 3, 7), np.float32), np.zeros((2, 3, 8)),
                                np.zeros((2, 8, 3), np.float32).swapaxes(1, 2)],
                         ids=["shape", "dtype", "order"])
def test_decode_refuses_a_cache_of_another_kind(kv):
    weights = decoding.decode_weights(model())
    with pytest.raises(ValueError, match="kv is"):
        decoding.decode(weights, 0, 0, kv)


def test_decode_refuses_a_cache_on_the_gpu_of_another_shape_and_no_threads():
    weights = decoding.decode_weights(model())
    with pytest.raises(ValueError, match="kv is"):
        decoding.decode(weights, 0, 0, on_gpu(np.zeros((2, 3, 7), np.float32)))
    with pytest.raises(ValueError, match="threads is 0"):
        decoding.decode(weights, 0, 0, np.zeros((2, 3, 8), np.float32), threads=0)
