"""The embedding on the GPU, or in the simulator. The tests of f are test_f and test_f_*.

The oracle: products with a one-hot matrix, in float64.
"""
import numpy as np
import pytest

from kernels.cuda import embedding as gpu
from kernels.cuda.memory import empty, on_gpu
from tests.close import assert_close

rng = np.random.default_rng(6)
f32 = np.float32
sizes = pytest.mark.parametrize("B, T, C, V, start, dtype", [
    (1, 1, 1, 1, 0, np.int64), (2, 5, 3, 2, 1, np.int32), (3, 4, 133, 65, 2, np.uint16),
    (2, 0, 4, 5, 0, np.int64)])


def normal(*shape):
    return rng.normal(size=shape).astype(f32)


def hot(tokens, V):
    return (np.asarray(tokens)[..., None] == np.arange(V)).astype(float)


def table_rows(V, C):
    """What a table holds before something is added: another number in each place."""
    return np.arange(V * C, dtype=f32).reshape(V, C) % 7


def added(kernel, tokens, dout, V):
    """What kernel adds to a table of V rows."""
    dwte, before = on_gpu(table_rows(V, dout.shape[1])), table_rows(V, dout.shape[1])
    kernel(on_gpu(np.array(tokens), np.int32), on_gpu(dout), dwte)
    return dwte.numpy() - before


def atomic(tokens, dout, dwte):
    gpu.scatter_atomic[len(tokens), gpu.THREADS](tokens, dout, dwte)


def in_order(tokens, dout, dwte):
    """sum_runs, of a list that NumPy has sorted."""
    host = tokens.numpy()
    order = np.argsort(host, kind="stable").astype(np.int32)
    first = np.append(True, np.diff(host[order]) != 0)
    runs = (first * (host[order] == host[order][:, None]).sum(axis=1)).astype(np.int32)
    gpu.sum_runs[(len(host), -(-dwte.shape[1] // 32)), (32, gpu.WARPS)](
        tokens, on_gpu(order, np.int32), on_gpu(runs, np.int32), dout, dwte)


def test_scatter_atomic_adds_the_rows_of_equal_tokens():
    tokens, dout = [3, 0, 3, 3], normal(4, 5)
    assert_close(added(atomic, tokens, dout, 4), hot(tokens, 4).T @ dout, "added to dwte", atol=1e-5)


def test_scatter_atomic_of_more_channels_than_threads():
    tokens, dout = [1, 1], normal(2, gpu.THREADS + 3)
    assert_close(added(atomic, tokens, dout, 2), hot(tokens, 2).T @ dout, "added to dwte", atol=1e-5)


def test_scatter_atomic_leaves_out_tokens_that_have_no_row():
    tokens, dout = [3, -1, 4, 1_000_000], normal(4, 3)
    assert_close(added(atomic, tokens, dout, 4), hot(tokens, 4).T @ dout, "added to dwte", atol=1e-5)


@pytest.mark.parametrize("N, V", [(1, 1), (5, 1), (7, 100), (37, 5), (70, 30)])
def test_sort_positions_of_any_number(N, V):
    tokens, order, runs = rng.integers(-1, V, N), empty(N, np.int32), empty(N, np.int32)
    gpu.sort_positions[-(-N // gpu.WARPS), (32, gpu.WARPS)](on_gpu(tokens, np.int32), order, runs)
    want = np.argsort(tokens, kind="stable")
    assert_close(order.numpy(), want, "order")
    length = dict(zip(*np.unique(tokens, return_counts=True)))
    first = np.append(True, np.diff(tokens[want]) != 0)
    assert_close(runs.numpy(), [length[token] * begins for token, begins in zip(tokens[want], first)], "runs")


def test_sum_runs_adds_the_rows_of_equal_tokens():
    tokens, dout = [3, 0, 3, 3], normal(4, 5)
    assert_close(added(in_order, tokens, dout, 4), hot(tokens, 4).T @ dout, "added to dwte", atol=1e-5)


def test_sum_runs_of_more_rows_than_warps_and_more_channels_than_lanes():
    tokens, dout = [1] * (gpu.WARPS + 3), normal(gpu.WARPS + 3, 35)
    assert_close(added(in_order, tokens, dout, 2), hot(tokens, 2).T @ dout, "added to dwte", atol=1e-5)


def test_sum_runs_leaves_out_tokens_that_have_no_row():
    tokens, dout = [3, -1, 4, 1_000_000], normal(4, 3)
    assert_close(added(in_order, tokens, dout, 4), hot(tokens, 4).T @ dout, "added to dwte", atol=1e-5)


@sizes
def test_embedding_forward_of_any_size(B, T, C, V, start, dtype):
    tokens, wte, wpe = rng.integers(0, V, (B, T)).astype(dtype), normal(V, C), normal(T + 4, C)
    x, _ = gpu.embedding_forward(tokens, wte, wpe, start)
    assert_close(x, hot(tokens, V) @ wte + wpe[start:start + T], "x", dtype=f32)


@sizes
@pytest.mark.parametrize("op", [gpu.embedding_backward, gpu.embedding_backward_atomic])
def test_embedding_backward_of_any_size(op, B, T, C, V, start, dtype):
    tokens = rng.integers(0, V, (B, T)).astype(dtype)
    dout, before, dwpe = normal(B, T, C), normal(V, C), np.full((T + 4, C), 7, f32)
    _, cache = gpu.embedding_forward(tokens, before, dwpe, start)
    dwte, want = before.copy(), np.zeros((T + 4, C))
    op(dout, cache, dwte, dwpe)
    want[start:start + T] = dout.sum(axis=0)
    assert_close(dwte, before + np.einsum("btv,btc->vc", hot(tokens, V), dout), "dwte", atol=1e-5)
    assert_close(dwpe, want, "dwpe", atol=1e-5)


def test_tokens_that_lie_on_the_gpu_are_used_there_and_nan_shows_those_that_have_no_row():
    tokens, wte, wpe, dout = np.array([[3, 4], [-1, 0]]), normal(4, 3), normal(2, 3), normal(2, 2, 3)
    dwte, dwpe = on_gpu(np.zeros((4, 3))), on_gpu(np.ones((2, 3)))
    x, cache = gpu.embedding_forward(on_gpu(tokens, np.int32), on_gpu(wte), on_gpu(wpe))
    gpu.embedding_backward(on_gpu(dout), cache, dwte, dwpe)
    x = x.numpy()
    assert np.isnan(x[[0, 1], [1, 0]]).all()
    assert_close(x[[0, 1], [0, 1]], wte[[3, 0]] + wpe, "x where the tokens have rows")
    assert_close(dwte.numpy(), np.einsum("btv,btc->vc", hot(tokens, 4), dout), "dwte", atol=1e-5)
    assert_close(dwpe.numpy(), dout.sum(axis=0), "dwpe", atol=1e-5)


def test_embedding_forward_takes_lists_and_views_and_refuses_fractions():
    tokens, wte, wpe = np.array([[3, 0], [1, 1]]), normal(4, 3), normal(5, 3)
    wide = np.repeat(tokens, 2, axis=1)
    for same in tokens.tolist(), wide[:, ::2]:
        assert_close(gpu.embedding_forward(same, wte, wpe)[0], wte[tokens] + wpe[:2], "x")
    with pytest.raises(TypeError, match="float64"):
        gpu.embedding_forward(tokens + 0.5, wte, wpe)


@pytest.mark.parametrize("bad", [4, 1000, -1])
def test_embedding_forward_names_a_token_that_is_not_in_the_vocabulary(bad):
    with pytest.raises(ValueError, match=rf"token {bad} "):
        gpu.embedding_forward(np.array([[0, bad]]), normal(4, 3), normal(5, 3))


@pytest.mark.parametrize("put", [np.asarray, lambda tokens: on_gpu(tokens, np.int32)], ids=["host", "gpu"])
@pytest.mark.parametrize("start", [4, 5, -1])
def test_embedding_forward_refuses_positions_outside_the_table(put, start):
    with pytest.raises(ValueError, match=f"2 positions from {start} on"):
        gpu.embedding_forward(put(np.array([[0, 1]])), normal(4, 3), normal(5, 3), start)


def test_embedding_backward_writes_into_no_table_of_another_size():
    wte, wpe, dout = normal(4, 3), normal(5, 3), normal(1, 2, 3)
    _, cache = gpu.embedding_forward(np.array([[0, 3]]), wte, wpe)
    with pytest.raises(ValueError, match=r"dwte has shape \(3, 3\)"):
        gpu.embedding_backward(dout, cache, wte[:3], wpe)
    with pytest.raises(ValueError, match="3 channels, positions 2"):
        gpu.embedding_backward(dout, cache, wte, wpe[:, :2].copy())
    with pytest.raises(ValueError, match="dout has shape"):
        gpu.embedding_backward(dout[:, :1], cache, wte, wpe)
