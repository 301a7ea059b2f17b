"""The choice of a token on the GPU, or in the simulator. The tests of f are test_f and test_f_*.

The oracle: cumulated probabilities in float64, and u in the middle of a part or near its ends.
"""
import numpy as np
import pytest

from kernels.cuda import sampling as gpu
from kernels.cuda.compiled import F1, F2, cuda, kernel
from kernels.cuda.memory import empty, on_gpu
from tests.close import assert_close

rng = np.random.default_rng(19)
f32 = np.float32


def ends(logits, temperature):
    """Where each token's part ends."""
    weights = np.exp((logits.astype(float) - logits.max()) / temperature)
    return np.cumsum(weights) / weights.sum()


def points(logits, temperature, tokens):
    """For each token two u in its part, near its ends but not within rounding of them."""
    end = ends(logits, temperature)
    begin = np.append(0, end)[:-1]
    return [(begin[v] + share * (end[v] - begin[v]), v) for v in tokens for share in (0.02, 0.98)]


@kernel(F1, F2)
def scan_of_block(x, out):
    t = cuda.threadIdx.x
    out[t, 0], out[t, 1] = gpu.block_scan(x[t])


@pytest.mark.parametrize("threads", [1, 32, 96])
def test_block_scan_sums_up_to_each_thread(threads):
    x, out = rng.integers(1, 10, threads), empty((threads, 2))
    scan_of_block[1, threads](on_gpu(x), out)
    assert_close(out.numpy()[:, 0], np.cumsum(x), "sums over threads 0 to t")
    assert_close(out.numpy()[:, 1], np.full(threads, x.sum()), "the sum of all, in every thread")


def chosen(logits, temperature, u, threads=32):
    """The token that version 2 writes."""
    token = empty((), np.int32)
    gpu.sample_v2[1, threads](on_gpu(np.asarray(logits)), temperature, u, token)
    return int(token.numpy())


@pytest.mark.parametrize("V, threads, tokens", [(3, 32, [0, 2]), (65, 32, [1, 64]), (70, 64, [33])])
def test_sample_v2_chooses_the_token_in_whose_part_u_falls(V, threads, tokens):
    logits = rng.normal(size=V).astype(f32)
    for u, token in points(logits, 0.7, tokens):
        assert chosen(logits, 0.7, u, threads) == token, f"u = {u:.6f} of {V} tokens"


def test_sample_v2_at_temperature_0_takes_the_first_of_the_largest():
    logits = np.zeros(70, f32)
    logits[[32, 45, 64]] = 2  # 32 and 64 are thread 0's, 45 another one's
    assert chosen(logits, 0, 0.99) == 32


def test_sample_v2_never_chooses_a_token_of_probability_0():
    logits = np.full(70, -np.inf, f32)
    logits[[3, 64]] = 0, 1  # probabilities 0.27 and 0.73
    assert [chosen(logits, 1, u) for u in (0, 0.26, 0.28, 1 - 2**-24)] == [3, 3, 64, 64]


@pytest.mark.parametrize("seed", [6, 9])  # with these, sums that should be equal are not: rounding
def test_sample_v2_takes_the_last_token_and_no_empty_strip_for_the_largest_u(seed):
    logits = np.random.default_rng(seed).normal(size=65).astype(f32)
    assert chosen(logits, 0.7, 1 - 2**-24) == 64


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_sample_v2_gives_a_token_whatever_the_logits_are():
    for bad in np.nan, -np.inf, gpu.LOWEST:
        assert 0 <= chosen(np.full(5, bad, f32), 1, 0.5) < 5
    assert chosen([1.0, np.inf, 1.0], 1, 0.5) == 1


@pytest.mark.parametrize("op", [gpu.sample, gpu.sample_by_one_thread])
@pytest.mark.parametrize("V", [1, 65, 300])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_sampling_from_any_number_of_tokens(op, V, temperature):
    logits = rng.normal(size=V).astype(f32)
    here = on_gpu(logits.copy())
    for u, token in points(logits, temperature, {V // 3}):
        assert int(op(here, temperature, u).numpy()) == token
    assert 0 == int(op(here, temperature, 0.0).numpy())
    assert V - 1 == int(op(here, temperature, 1 - 1e-9).numpy())  # as a float32: 1
    assert logits.argmax() == int(op(here, 0.0, 0.5).numpy())
    assert_close(here.numpy(), logits, "logits, which are only read")


@pytest.mark.parametrize("op", [gpu.sample, gpu.sample_by_one_thread])
def test_a_tiny_temperature_takes_the_largest(op):
    assert int(op(on_gpu(np.array([1.0, 3.0, 2.0])), 1e-30, 0.7).numpy()) == 1


def test_a_sample_is_an_int32_on_the_gpu():
    token = gpu.sample(on_gpu(np.zeros(3)), 1.0, 0.5)
    assert token.shape == () and token.dtype == np.int32 and float(token) == 1
