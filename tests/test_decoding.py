"""One token more: the KV cache against the full forward, int8 against its own definition, in every room."""
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import decoding, devices
from lessons.errors import InputError
from lessons.l16_gpt import gpt_forward
from lessons.parameters import Config, init_parameters
from tests.close import assert_close, unchanged

NUMPY = devices.ops("numpy")
rooms = pytest.mark.parametrize("room", ["numpy", "cpu"])


def model(vocab_size=7, block_size=6, seed=0, dtype=np.float32, n_layer=2, n_head=2, n_embd=8):
    """Random and far from even: the probabilities of a model that has learned something."""
    p = init_parameters(Config(vocab_size, block_size, n_layer, n_head, n_embd), dtype=dtype)
    for view in p.views.values():
        view += 0.5 * np.random.default_rng(seed).standard_normal(view.shape)
    return p


def text(B, T, vocab_size=7):
    return np.random.default_rng(T).integers(0, vocab_size, (B, T))


def window(kept, new, block_size):  # (B, T), (B, T) -> (B, T)
    """What the model sees: all it can, or the last half of that and the new tokens."""
    if kept.shape[1] + new.shape[1] > block_size:
        kept = kept[:, kept.shape[1] - min(block_size // 2, kept.shape[1]):]
    return np.concatenate([kept, new], axis=1)[:, -block_size:]


def check_read(ops, p, chunks):
    kv_cache = decoding.KVCache(p.config, len(chunks[0]), p.flat.dtype)
    seen = chunks[0][:, :0]
    for i, chunk in enumerate(chunks):
        seen = window(seen, chunk, p.config.block_size)
        want = gpt_forward(NUMPY, p, seen)[0][:, -chunk.shape[1]:]
        with unchanged(tokens=chunk, parameters=p.flat):
            got = decoding.read(ops, p, chunk, kv_cache)
        assert_close(got, want, f"logits after each token of chunk {i}", rtol=1e-5, atol=1e-5)
        assert kv_cache.length == seen.shape[1], \
            f"{kv_cache.length} tokens in the cache after chunk {i}, expected {seen.shape[1]}"
        assert_close(kv_cache.tokens[:, :kv_cache.length], seen, f"tokens in the cache after chunk {i}")


@rooms
@pytest.mark.parametrize("B", [1, 3])
def test_read_gives_the_logits_of_the_full_forward_at_every_position_and_past_the_block(room, B):
    check_read(devices.ops(room), model(), np.split(text(B, 20), 20, axis=1))


def test_read_is_exact_to_rounding_in_float64():
    p = model(dtype=np.float64)
    kv_cache, tokens = decoding.KVCache(p.config, 2, np.float64), text(2, 6)
    want = gpt_forward(NUMPY, p, tokens)[0]
    for t in range(6):
        got = decoding.read(NUMPY, p, tokens[:, t:t + 1], kv_cache)
        assert_close(got[:, 0], want[:, t], f"logits at {t}", rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [[4, 2, 1, 3], [1, 6], [2, 5], [3, 9], [9, 1, 5]])
def test_read_keeps_the_last_half_of_the_block_where_it_is_full(sizes):
    """Blocks of 6: 4 + 2 just fit, 1 more does not; with 5 new ones there is room for one old token alone."""
    check_read(NUMPY, model(), np.split(text(2, sum(sizes)), np.cumsum(sizes)[:-1], axis=1))


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_read_takes_any_block_size_and_any_number_of_tokens_at_once(block_size, sizes):
    chunks = np.split(text(2, sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
    check_read(NUMPY, model(block_size=block_size), chunks)


def test_read_stops_at_a_model_that_exploded():
    p = model()
    p["ln_f"][1][:] = np.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        decoding.read(NUMPY, p, text(1, 2), decoding.KVCache(p.config))


@rooms
def test_select_doubles_texts_and_drops_others(room):
    p, ops, tokens, rows = model(), devices.ops(room), text(3, 5), np.array([2, 0, 2, 2])
    kv_cache, fresh = decoding.KVCache(p.config, 3), decoding.KVCache(p.config, 4)
    decoding.read(ops, p, tokens, kv_cache)
    decoding.read(ops, p, tokens[rows], fresh)
    kv_cache.select(rows)
    for new in np.split(text(4, 4), 4, axis=1):  # the texts part from here on, and slide
        got, want = (decoding.read(ops, p, new, cache) for cache in (kv_cache, fresh))
        assert_close(got, want, "logits", atol=1e-5)


def test_read_gives_the_logits_after_every_token():
    p, tokens = model(dtype=np.float64), text(2, 6)
    kv_cache, want = decoding.KVCache(p.config, 2, np.float64), gpt_forward(NUMPY, p, tokens)[0]
    for part in slice(0, 2), slice(2, 6):
        got = decoding.read(NUMPY, p, tokens[:, part], kv_cache)
        assert_close(got, want[:, part], f"logits at {part.start} to {part.stop - 1}", rtol=1e-12, atol=1e-12)


@rooms
@pytest.mark.parametrize("threads, T, start", [(2, 2, 0), (2, 9, 3), (3, 11, 1), (5, 5, 7)])
def test_cached_forward_by_several_threads_is_that_of_one(room, threads, T, start):
    ops, p, tokens = devices.ops(room), model(block_size=12), text(2, start + T)
    kv = np.full((2, 2, 12, 16), np.nan, np.float32)
    decoding.cached_forward(ops, p, tokens[:, :start], 0, kv) if start else None
    got = decoding.cached_forward(ops, p, tokens[:, start:], start, kv, threads)
    want = gpt_forward(NUMPY, p, tokens)[0][:, start:]
    assert_close(got, want, "logits", rtol=1e-5, atol=1e-5)


def test_cached_forward_ends_when_one_of_its_threads_fails():
    def fail_where_the_text_begins(tokens, wte, wpe, start):
        if start == 0:
            raise MemoryError("of the first piece")
        return NUMPY.embedding_forward(tokens, wte, wpe, start)

    ops = SimpleNamespace(**vars(NUMPY) | {"embedding_forward": fail_where_the_text_begins})
    with pytest.raises(MemoryError, match="first piece"):
        decoding.cached_forward(ops, model(), text(1, 6), 0, decoding.KVCache(model().config).kv, threads=3)


@rooms
def test_read_uses_threads_for_long_prompts(room, monkeypatch):
    ops, p, tokens = devices.ops(room), model(block_size=80), text(1, 70)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "PIECE", 30)
        pieces = []
        ops = SimpleNamespace(**vars(ops) | {"embedding_forward": lambda part, *rest, ops=ops: (
            pieces.append(part.shape[1]), ops.embedding_forward(part, *rest))[1]})
        got = decoding.read(ops, p, tokens, decoding.KVCache(p.config), threads=9)
    assert pieces == [35, 35], f"two pieces of 70 tokens are worth a thread each, and pieces are {pieces}"
    assert_close(got, gpt_forward(NUMPY, p, tokens)[0], "logits", rtol=1e-4, atol=1e-4)


def test_to_int8():
    weight = np.array([[1.0, -0.5, 0], [-4, 0.26, 0], [2.55, 0.125, 0]], np.float32)
    with unchanged(weight=weight):
        numbers, scale = decoding.to_int8(weight)
    assert_close(scale, [4 / 127, 0.5 / 127, 1], "scale", dtype=np.float32)  # a column of zeros has scale 1
    assert_close(numbers, [[32, -127, 0], [-127, 66, 0], [81, 32, 0]], "numbers")  # 31.75, 66.04, 80.96
    assert numbers.dtype == np.int8, f"numbers are {numbers.dtype}, expected int8"


def test_to_int8_of_float64_has_scales_of_float64():
    numbers, scale = decoding.to_int8(np.array([[0.1, 3.0], [-0.3, 1.0]]))
    assert_close(scale, [0.3 / 127, 3 / 127], "scale", rtol=1e-14, atol=0, dtype=float)
    assert_close(numbers, [[42, 127], [-127, 42]], "numbers")  # 42.33


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.floats(1e-20, 1e20))
def test_to_int8_is_off_by_at_most_half_a_step(C, K, seed, size):
    weight = np.float32(size) * np.random.default_rng(seed).normal(size=(C, K)).astype(np.float32)
    numbers, scale = decoding.to_int8(weight)
    assert numbers.dtype == np.int8 and scale.shape == (K,), "whole numbers, and one scale for each output"
    assert (np.abs(numbers).max(axis=0) == 127).all(), "the largest of each column is 127 or -127"
    error = np.abs(numbers * scale.astype(float) - weight)
    assert (error <= scale * 0.50001).all(), f"off by {(error / scale).max():.3f} of a step"


@pytest.mark.parametrize("tiny", [0, 1.8e-43, 1e-40])
def test_to_int8_of_what_is_nearly_zero_is_zeros(tiny):
    numbers, scale = decoding.to_int8(np.array([[tiny, 1], [-tiny, -2]], np.float32))
    assert not numbers[:, 0].any() and np.isfinite(scale).all(), f"numbers {numbers[:, 0]}, scale {scale[0]}"
    assert_close(numbers * scale, [[0, 1], [0, -2]], "weight", atol=0.01)


def test_to_int8_of_numbers_as_small_as_1e_30_keeps_two_digits():
    """In the second column the scale is the smallest normal number itself: it is kept."""
    tiny = np.finfo(np.float32).tiny
    numbers, _ = decoding.to_int8(np.array([[1e-30, 127 * tiny], [-6e-31, 50 * tiny]], np.float32))
    assert_close(numbers, [[127, 127], [-76, 50]], "numbers")


def test_rounded_changes_matrices_by_output_and_leaves_the_rest():
    p = model()
    q = decoding.rounded(p)
    for name, view in p.views.items():
        if view.ndim == 1 or name == "wpe.weight":
            assert (q[name] == view).all(), f"{name} must stay"
            continue
        axis = 1 if name == "wte.weight" else 0  # the head's outputs are the rows of the table
        step = np.abs(view).max(axis=axis, keepdims=True) / 127
        steps = q[name] / step
        assert_close(steps, np.round(steps), f"{name} in steps of its output", atol=1e-3)
        assert_close(q[name], view, name, atol=0.501 * step.max())
        assert (q[name] != view).any(), f"{name} is not rounded"


SIZES = [  # vocabulary, block, layers, heads, channels, threads
    (7, 6, 2, 2, 8, 1), (7, 6, 2, 2, 8, 2), (65, 40, 3, 6, 48, 2), (13, 9, 1, 1, 5, 2), (3, 4, 2, 3, 33, 3),
    (300, 20, 2, 4, 64, 2), (5, 7, 1, 2, 6, 7)]


@rooms
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("vocab_size, block_size, n_layer, n_head, n_embd, threads", SIZES)
def test_decode_is_the_full_forward_at_every_position(room, vocab_size, block_size, n_layer, n_head, n_embd,
                                                      threads, int8):
    ops, p = devices.ops(room), model(vocab_size, block_size, 0, np.float32, n_layer, n_head, n_embd)
    exact = decoding.rounded(p) if int8 else p
    tokens = text(1, block_size, vocab_size)
    q = init_parameters(p.config, dtype=np.float64)
    q.flat[:] = exact.flat
    want = gpt_forward(NUMPY, q, tokens)[0][0]
    weights, kv_cache = ops.decode_weights(p, int8), decoding.KVCache(p.config)
    kv_cache.kv[:] = np.nan  # what was not written must not be read
    for t, token in enumerate(tokens[0]):
        got = ops.decode(weights, token, t, kv_cache.kv[:, 0], threads)
        assert got.dtype == np.float32
        assert_close(got, want[t], f"logits at {t}", rtol=1e-4, atol=1e-4 * np.abs(want).max())


@rooms
@pytest.mark.parametrize("int8", [False, True])
def test_decode_goes_on_where_read_stopped(room, int8):
    """The prompt is read with all of its tokens at once: both must mean the same by k and v."""
    ops, p, tokens = devices.ops(room), model(block_size=9), text(1, 9)
    p = decoding.rounded(p) if int8 else p
    weights, kv_cache = ops.decode_weights(p, int8), decoding.KVCache(p.config)
    want = gpt_forward(NUMPY, p, tokens)[0][0]
    decoding.read(ops, p, tokens[:, :5], kv_cache)
    for t in range(5, 9):
        got = decoding.write(ops, p, weights, int(tokens[0, t]), kv_cache)
        assert_close(got, want[t], f"logits at {t}", rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert kv_cache.length == 9 and kv_cache.tokens[0].tolist() == tokens[0].tolist()


@rooms
def test_write_reads_half_a_block_again_when_it_is_full(room):
    ops, p, tokens = devices.ops(room), model(), text(1, 20)[0]
    weights, kv_cache, seen = ops.decode_weights(p), decoding.KVCache(p.config), tokens[None, :0]
    for t, token in enumerate(tokens):
        seen = window(seen, tokens[None, t:t + 1], 6)
        got = decoding.write(ops, p, weights, int(token), kv_cache)
        assert_close(got, gpt_forward(NUMPY, p, seen)[0][0, -1], f"logits at {t}", rtol=1e-4, atol=1e-4)


@rooms
@pytest.mark.parametrize("name", ["wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_proj.bias",
                                  "h.0.ln_2.weight", "ln_f.bias"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_nan_among_the_parameters_reaches_the_logits(room, name):
    ops, p = devices.ops(room), model()
    p[name].flat[5] = np.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        decoding.write(ops, p, ops.decode_weights(p), 0, decoding.KVCache(p.config), threads=2)


@pytest.mark.parametrize("token, position", [(-1, 0), (7, 0), (0, -1), (0, 6)])
def test_decode_refuses_a_token_or_a_position_without_a_row(token, position):
    """A kernel checks no index: it would read whatever lies beside the table."""
    ops, p = devices.ops("cpu"), model()
    with pytest.raises(ValueError, match=f"{position if token == 0 else token}"):
        ops.decode(ops.decode_weights(p), token, position, decoding.KVCache(p.config).kv[:, 0])


def test_decode_refuses_a_cache_of_another_shape():
    ops, p = devices.ops("cpu"), model()
    with pytest.raises(ValueError, match="kv"):
        ops.decode(ops.decode_weights(p), 0, 0, np.zeros((2, 6, 15), np.float32))


# what only threads can do wrong


def texts_logits(p, weights, tokens, threads):
    kv = decoding.KVCache(p.config).kv[:, 0]
    ops = devices.ops("cpu")
    return np.stack([ops.decode(weights, int(token), t, kv, threads) for t, token in enumerate(tokens)])


def test_decode_of_several_texts_at_the_same_time():
    p, tokens = model(block_size=20), text(1, 20)[0]
    weights, found = devices.ops("cpu").decode_weights(p), []
    want = gpt_forward(NUMPY, p, tokens[None])[0][0]
    callers = [threading.Thread(target=lambda n=n: [found.append(texts_logits(p, weights, tokens, n))
                                                    for _ in range(10)]) for n in (1, 2, 3, 2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len(found) == 40, "a caller is stuck or failed"
    for got in found:
        assert_close(got, want, "logits", rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_decode_after_a_fork():
    p, tokens = model(), text(1, 6)[0]
    weights = devices.ops("cpu").decode_weights(p)
    want = texts_logits(p, weights, tokens, 3)
    child = os.fork()
    if child == 0:  # has none of the parent's threads
        same = (texts_logits(p, weights, tokens, 3) == want).all()
        os._exit(0 if same else 1)
    for _ in range(100):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        threading.Event().wait(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits for threads that it does not have")
    assert status == 0


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_decode_raises_what_a_thread_raised_and_works_again(broken, monkeypatch):
    p, tokens = model(), text(1, 6)[0]
    weights, kernels = devices.ops("cpu").decode_weights(p), devices.module("cpu", "decoding")
    want, whole = texts_logits(p, weights, tokens, 3), kernels.decode_share

    def breaks(i, *job):
        if i == broken:
            raise MemoryError(f"of thread {i}")
        return whole(i, *job)

    failed = []

    def call():
        try:
            texts_logits(p, weights, tokens, 3)
        except MemoryError as failure:
            failed.append(str(failure))

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "decode_share", breaks)
        caller = threading.Thread(target=call, daemon=True)
        caller.start()
        caller.join(20)
    assert failed == [f"of thread {broken}"], "the others wait for a thread that has failed"
    assert (texts_logits(p, weights, tokens, 3) == want).all()
