"""Cross-entropy on the GPU, or in the simulator. The tests of f are test_f and test_f_*.

The oracle: -log p by np.logaddexp in float64, which neither over- nor underflows.
"""
import numpy as np
import pytest

from kernels.cuda import losses as gpu
from kernels.cuda.compiled import F2, cuda, kernel
from kernels.cuda.memory import empty, on_gpu
from tests.close import assert_close

rng = np.random.default_rng(8)
f32 = np.float32
versions = pytest.mark.parametrize("op", [gpu.cross_entropy, gpu.cross_entropy_v1])


def log_softmax(x):
    x = x.astype(float)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def expected(x, targets):
    """Each row's loss, and its gradient; 0 where the target does not count."""
    counts, truth = targets >= 0, targets[..., None] == np.arange(x.shape[-1])
    losses = -np.where(truth, log_softmax(x), 0).sum(axis=-1)
    return losses, (np.exp(log_softmax(x)) - truth) * counts[..., None]


@kernel(F2, F2)
def softmax_of_block(parts, out):
    t = cuda.threadIdx.x
    out[t, 0], out[t, 1] = gpu.block_softmax(parts[t, 0], parts[t, 1])


@pytest.mark.parametrize("threads", [32, 96])
def test_block_softmax_merges_the_parts_of_all_threads(threads):
    top, norm = rng.normal(size=threads) * 5, rng.uniform(1, 2, threads)
    out = empty((threads, 2))
    softmax_of_block[1, threads](on_gpu(np.stack([top, norm], axis=1)), out)
    assert_close(out.numpy()[:, 0], np.full(threads, top.max().astype(f32)), "top, in every thread")
    assert_close(out.numpy()[:, 1], np.full(threads, (norm * np.exp(top - top.max())).sum()),
                 "norm, in every thread", rtol=3e-5)


def test_block_softmax_of_threads_that_have_no_number():
    parts = np.full((64, 2), [gpu.LOWEST, 0], f32)
    parts[40] = -1000, 3
    out = empty((64, 2))
    softmax_of_block[1, 64](on_gpu(parts), out)
    assert_close(out.numpy(), np.full((64, 2), [-1000, 3]), "top and norm")


def rows(x, targets, total=1, threads=32):
    """What version 2 writes: losses, and over x."""
    x, losses, total = on_gpu(x.astype(f32)), empty(len(targets)), on_gpu(np.array([total]))
    gpu.cross_entropy_rows_v2[len(targets), threads](x, on_gpu(targets, np.int32), total, losses)
    return losses.numpy(), x.numpy()


@pytest.mark.parametrize("V, threads", [(1, 32), (5, 32), (70, 32), (70, 64)])
def test_cross_entropy_rows_v2_writes_losses_and_gradients(V, threads):
    x, targets = rng.normal(size=(3, V)) * 2, np.array([V - 1, 0, V // 2])
    losses, dlogits = rows(x, targets, threads=threads)
    want, dwant = expected(x.astype(f32), targets)
    assert_close(losses, want, "losses", rtol=3e-5)
    assert_close(dlogits, dwant, "dlogits", rtol=3e-5)


def test_cross_entropy_rows_v2_divides_the_gradient_and_not_the_losses():
    x, targets = rng.normal(size=(2, 3)), np.array([0, 2])
    losses, dlogits = rows(x, targets, 4)
    want, dwant = expected(x.astype(f32), targets)
    assert_close(losses, want, "losses", rtol=3e-5)
    assert_close(dlogits, dwant / 4, "dlogits for a total of 4", rtol=3e-5)


def test_cross_entropy_rows_v2_survives_logits_of_1000():
    x = np.array([[1000, -1000, 0], [-1000, -1000, -1000], [1000, 1000, 999]])
    targets = np.array([1, 0, 2])
    losses, dlogits = rows(x, targets)
    want, dwant = expected(x, targets)
    assert_close(losses, want, "losses")
    assert_close(dlogits, dwant, "dlogits", rtol=3e-5)


def test_cross_entropy_rows_v2_does_not_look_at_a_row_that_does_not_count():
    x, targets = rng.normal(size=(2, 40)), np.array([-1, 3])
    x[0] = np.nan
    losses, dlogits = rows(x, targets)
    assert_close(losses[0], 0, "loss of a row that does not count")
    assert_close(dlogits[0], np.zeros(40), "dlogits of a row that does not count")


def test_cross_entropy_rows_v2_shows_a_target_that_is_no_class():
    losses, _ = rows(rng.normal(size=(3, 4)), np.array([4, 1, -2]))
    assert np.isnan(losses[[0, 2]]).all(), f"losses of targets 4 and -2, of 4 classes, are {losses[[0, 2]]}"
    assert np.isfinite(losses[1])


@versions
@pytest.mark.parametrize("V", [1, 65, 300])
@pytest.mark.parametrize("scale, ignored, total", [(1, 0, None), (1000, 0.4, 30), (1, 1, None)])
def test_cross_entropy_of_any_size(op, V, scale, ignored, total):
    x = (rng.normal(size=(2, 3, V)) * scale).astype(f32)
    t = np.where(rng.random((2, 3)) < ignored, -1, rng.integers(0, V, (2, 3))).astype(np.int16)
    n, (want, dwant) = total or max((t >= 0).sum(), 1), expected(x, t)
    loss, dlogits = op(x.copy(), t, total)
    assert isinstance(loss, float)
    assert_close(loss, want.sum() / n, "loss", rtol=3e-5, atol=1e-5)
    assert_close(dlogits, dwant / n, "dlogits", rtol=3e-5, dtype=f32)


def test_count_targets_of_more_than_threads():
    targets, total = rng.integers(-1, 3, gpu.THREADS + 50), empty(1)
    gpu.count_targets[1, gpu.THREADS](on_gpu(targets, np.int32), total)
    assert_close(total.numpy()[0], (targets >= 0).sum(), "total")


@pytest.mark.parametrize("total", [None, 30])
def test_targets_that_lie_on_the_gpu_are_counted_there(total):
    x, t = rng.normal(size=(2, 3, 3)).astype(f32), np.array([[0, -1, 2], [-1, -1, 1]])
    loss, dlogits = gpu.cross_entropy(logits := on_gpu(x.copy()), on_gpu(t, np.int32), total)
    n, (want, dwant) = total or (t >= 0).sum(), expected(x, t)
    assert_close(float(loss), want.sum() / n, "loss", rtol=3e-5)
    assert_close(dlogits.numpy(), dwant / n, "dlogits", rtol=3e-5)
    assert_close(logits.numpy(), dlogits.numpy(), "what is written over the logits")


@versions
def test_nothing_but_padding_on_the_gpu_has_no_loss(op):
    loss, dlogits = op(on_gpu(rng.normal(size=(3, 4))), on_gpu(np.full(3, -1), np.int32))
    assert_close(float(loss), 0, "loss")
    assert_close(dlogits.numpy(), np.zeros((3, 4)), "dlogits")


def test_no_rows_have_no_loss():
    loss, dlogits = gpu.cross_entropy(np.empty((0, 4), f32), np.empty(0, int))
    assert loss == 0 and dlogits.shape == (0, 4)


@pytest.mark.parametrize("bad", [4, 70, -2, -100])
def test_cross_entropy_names_a_target_that_is_no_class(bad):
    with pytest.raises(ValueError, match=f"target {bad} "):
        gpu.cross_entropy(np.zeros((3, 4), f32), np.array([3, bad, 0]))


def test_cross_entropy_wants_one_target_for_each_row_and_no_fractions():
    for put in np.asarray, lambda x: on_gpu(x, np.int32):
        with pytest.raises(ValueError, match=r"targets \(2,\) must be \(3,\)"):
            gpu.cross_entropy(np.zeros((3, 4), f32), put(np.array([3, 0])))
    with pytest.raises(TypeError, match="float64"):
        gpu.cross_entropy(np.zeros((3, 4), f32), np.zeros(3))


@versions
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
@pytest.mark.parametrize("at", [0, 1, 40])  # the target itself, its neighbour, one far off
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_cross_entropy_shows_a_logit_that_is_not_finite(op, bad, at):
    x = np.zeros((2, 65), f32)
    x[1, at] = bad
    loss, _ = op(x, np.zeros(2, int))
    assert not np.isfinite(loss), f"a logit of {bad} must not give a loss of {loss}"


@versions
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_cross_entropy_of_a_forbidden_target_is_infinite(op):
    loss, dlogits = op(np.array([[-np.inf, 1.0, 1.0]], f32), np.array([0]))
    assert_close(loss, np.inf, "loss")
    assert_close(dlogits, [[-1.0, 0.5, 0.5]], "dlogits", rtol=3e-5)
