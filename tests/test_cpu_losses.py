"""The kernel of lesson 8. The tests of f are test_f and test_f_*: they are also its exercise.

The oracle: -log p by np.logaddexp in float64, which neither over- nor underflows.
"""
import math

import numpy as np
import pytest

from kernels.cpu import losses as cpu
from tests.close import assert_close, unchanged

rng = np.random.default_rng(8)
f32 = np.float32
logits = (rng.normal(size=(5, 4)) * 2).astype(f32)
targets = np.array([3, 0, -1, 2, 0])  # row 2 does not count


def log_softmax(x):
    x = x.astype(float)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def expected(x, targets):
    """The sum of the losses, and its gradient."""
    counts, truth = targets >= 0, targets[..., None] == np.arange(x.shape[-1])
    return -log_softmax(x)[truth].sum(), (np.exp(log_softmax(x)) - truth) * counts[..., None]


def rows_in_place(x, targets, scale=1):
    """The kernel's loss, and what it has written over x."""
    x = x.astype(f32)
    with unchanged(targets=targets):
        loss = cpu.rows_in_place(x, targets, f32(scale))
    return loss, x


def test_rows_in_place_adds_the_losses_of_the_rows_that_count():
    loss, _ = rows_in_place(logits, targets)
    assert_close(loss, expected(logits, targets)[0], "loss", rtol=3e-5)


def test_rows_in_place_writes_the_gradient_over_the_logits():
    _, dlogits = rows_in_place(logits, targets)
    assert_close(dlogits, expected(logits, targets)[1], "dlogits", rtol=3e-5)


def test_rows_in_place_scales_the_gradient_and_not_the_loss():
    loss, dlogits = rows_in_place(logits, targets, 0.25)
    want, dwant = expected(logits, targets)
    assert_close(loss, want, "loss", rtol=3e-5)
    assert_close(dlogits, dwant / 4, "dlogits for a scale of 1/4", rtol=3e-5)


def test_rows_in_place_survives_logits_of_1000():
    x = np.array([[1000, -1000, 0], [-1000, -1000, -1000], [1000, 1000, 999]])
    for target in range(3):
        t = np.full(3, target)
        loss, dlogits = rows_in_place(x, t)
        want, dwant = expected(x, t)
        assert_close(loss, want, f"loss of target {target}")
        assert_close(dlogits, dwant, f"dlogits of target {target}", rtol=3e-5)


def test_rows_in_place_does_not_look_at_a_row_that_does_not_count():
    x = logits.copy()
    x[2] = np.nan
    loss, dlogits = rows_in_place(x, targets)
    assert_close(loss, expected(logits, targets)[0], "loss, with NaN in a row that does not count", rtol=3e-5)
    assert_close(dlogits[2], np.zeros(4), "dlogits of the row that does not count")


def test_rows_in_place_adds_in_float64():
    """100,000 is so large that float32, which has steps of 1/128 there, would lose what the others add."""
    x = np.zeros((40, 2), f32)
    x[1:, 0] = 6
    x[0, 1] = 100_000
    loss, _ = rows_in_place(x, np.zeros(40, int))
    assert_close(loss, 100_000 + 39 * math.log1p(math.exp(-6)), "loss", rtol=0, atol=1e-4)


@pytest.mark.parametrize("V", [1, 2, 65, 1000])
@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("ignored", [0, 0.4, 1])
def test_cross_entropy_of_any_size(V, scale, ignored):
    x = (rng.normal(size=(3, 7, V)) * scale).astype(f32)
    t = np.where(rng.random((3, 7)) < ignored, -1, rng.integers(0, V, (3, 7))).astype(np.int32)
    for total in None, 30:
        n, (want, dwant) = total or max((t >= 0).sum(), 1), expected(x, t)
        loss, dlogits = cpu.cross_entropy(x.copy(), t, total)
        assert isinstance(loss, float)
        assert_close(loss, want / n, "loss", atol=1e-5)
        assert_close(dlogits, dwant / n, "dlogits", rtol=3e-5, dtype=f32)


def test_cross_entropy_writes_dlogits_over_logits():
    x = logits.copy()
    _, dlogits = cpu.cross_entropy(x, targets)
    assert np.shares_memory(x, dlogits)


@pytest.mark.parametrize("bad", [4, 70, -2, -100])
def test_cross_entropy_names_a_target_that_is_no_class(bad):
    with pytest.raises(ValueError, match=f"target {bad} "):
        cpu.cross_entropy(logits.copy(), np.array([3, 0, bad, 2, 0]))


def test_cross_entropy_wants_one_target_for_each_row():
    with pytest.raises(ValueError, match=r"targets \(4,\) must be \(5,\)"):
        cpu.cross_entropy(logits.copy(), targets[:4])


@pytest.mark.parametrize("total", [None, 5])
def test_cross_entropy_of_nothing_but_padding_is_0(total):
    loss, dlogits = cpu.cross_entropy(logits.copy(), np.full(5, -1), total)
    assert_close(loss, 0, "loss")
    assert_close(dlogits, np.zeros((5, 4)), "dlogits")


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
@pytest.mark.parametrize("at", [0, 1, 40])  # the target itself, its neighbour, one far off
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_cross_entropy_shows_a_logit_that_is_not_finite(bad, at):
    x = np.zeros((2, 65), f32)
    x[1, at] = bad
    loss, _ = cpu.cross_entropy(x, np.zeros(2, int))
    assert not np.isfinite(loss), f"a logit of {bad} must not give a loss of {loss}"


def test_cross_entropy_of_a_forbidden_target_is_infinite():
    loss, dlogits = cpu.cross_entropy(np.array([[-np.inf, 1.0, 1.0]], f32), np.array([0]))
    assert_close(loss, np.inf, "loss")
    assert_close(dlogits, [[-1.0, 0.5, 0.5]], "dlogits", rtol=3e-5)
