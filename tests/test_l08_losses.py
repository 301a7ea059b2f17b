"""The tests of f are test_f and test_f_*: they are also lesson 8's exercises.

The oracles: finite differences in float64, and -log p by np.logaddexp, which neither over- nor underflows.
"""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import l08_losses as lesson
from tests.close import assert_close, numeric_grad, unchanged

rng = np.random.default_rng(8)
logits = rng.normal(size=(2, 3, 5)) * 2
targets = np.array([[4, 0, 2], [-1, 1, -1]])  # four count, two are ignored
q = rng.normal(size=(6, 4))
partner = np.array([3, 4, 5, 0, 1, 2])
HUGE = np.array([[1000.0, -1000.0, 0.0], [-1000.0, -1000.0, -1000.0], [1000.0, 1000.0, 999.0]])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def losses(x, targets):
    """-log p[target] of every row that counts, (count,)"""
    x, targets = x.astype(float).reshape(-1, x.shape[-1]), targets.reshape(-1)
    return np.array([-log_softmax(row)[t] for row, t in zip(x, targets) if t >= 0])


def article(q, partner, temperature):
    """The formula, term by term."""
    s = q @ q.T / temperature
    return np.mean([-np.log(np.exp(s[i, j]) / sum(np.exp(s[i, k]) for k in range(len(q)) if k != i))
                    for i, j in enumerate(partner) if j >= 0])


def test_softmax_forward_of_each_row():
    with unchanged(x=logits):
        p, _ = lesson.softmax_forward(logits)
    assert_close(p, np.exp(log_softmax(logits)), "p")


@dtypes
def test_softmax_forward_survives_logits_of_1000(dtype):
    p, _ = lesson.softmax_forward(HUGE.astype(dtype))
    assert_close(p, np.exp(log_softmax(HUGE)), "p", dtype=dtype)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), st.floats(-1e3, 1e3))
def test_softmax_forward_sums_to_1_and_ignores_a_shift(x, shift):
    p, _ = lesson.softmax_forward(np.array(x))
    assert_close(p.sum(), 1.0, "sum of p")
    assert_close(lesson.softmax_forward(np.array(x) + shift)[0], p, "p of shifted logits", atol=1e-8)


def test_softmax_backward_is_the_slope_of_forward():
    dout = rng.normal(size=logits.shape)
    p, cache = lesson.softmax_forward(logits)
    want = numeric_grad(lambda x: (np.exp(log_softmax(x)) * dout).sum(), logits)
    with unchanged(dout=dout, p=p):
        dx = lesson.softmax_backward(dout, cache)
    assert_close(dx, want, "dx")


def test_softmax_backward_keeps_the_dtype():
    _, cache = lesson.softmax_forward(np.array([[0, 0]], np.float32))
    dx = lesson.softmax_backward(np.array([[1, 0]], np.float32), cache)
    assert_close(dx, [[0.25, -0.25]], "dx of two equal logits", dtype=np.float32)


def test_softmax_backward_of_a_constant_is_0():
    _, cache = lesson.softmax_forward(logits)
    assert_close(lesson.softmax_backward(np.full(logits.shape, 7.0), cache), np.zeros(logits.shape), "dx")


def test_cross_entropy_is_the_mean_over_the_targets_that_count():
    with unchanged(targets=targets):
        loss, _ = lesson.cross_entropy(logits.copy(), targets)
    assert_close(loss, losses(logits, targets).mean(), "loss (mean over the four targets that count)")
    assert type(loss) is float, f"loss is a {type(loss).__name__}: float(...) makes a Python float of it"


def test_cross_entropy_gradient():
    _, dlogits = lesson.cross_entropy(logits.copy(), targets)
    assert_close(dlogits, numeric_grad(lambda x: losses(x, targets).mean(), logits), "dlogits")


def test_cross_entropy_divides_by_a_total_that_is_given():
    loss, dlogits = lesson.cross_entropy(logits.copy(), targets, total=10)
    assert_close(loss, losses(logits, targets).sum() / 10, "loss")
    assert_close(dlogits, numeric_grad(lambda x: losses(x, targets).sum() / 10, logits), "dlogits")


def test_cross_entropy_of_two_halves_adds_up_to_that_of_the_whole():
    whole, dwhole = lesson.cross_entropy(logits.copy(), targets)
    parts = [lesson.cross_entropy(logits[i].copy(), targets[i], total=4) for i in range(2)]
    assert_close(parts[0][0] + parts[1][0], whole, "loss")
    assert_close(np.stack([parts[0][1], parts[1][1]]), dwhole, "dlogits")


@dtypes
def test_cross_entropy_survives_logits_of_1000(dtype):
    for target in range(3):
        t = np.full(3, target)
        loss, dlogits = lesson.cross_entropy(HUGE.astype(dtype), t)
        assert_close(loss, losses(HUGE, t).mean(), f"loss of target {target}")
        want = (np.exp(log_softmax(HUGE)) - np.eye(3)[t]) / 3
        assert_close(dlogits, want, f"dlogits of target {target}", dtype=dtype)


def test_cross_entropy_adds_float32_losses_in_float64():
    """A float32 of 100,000 has steps of 1/128: what the other 200 rows add, 0.0025 each, would be lost."""
    x = np.zeros((201, 2), np.float32)
    x[:, 0], x[0] = 6, (0, 100_000)
    loss, _ = lesson.cross_entropy(x, np.zeros(201, int), total=1)
    assert_close(loss, 100_000 + 200 * np.log1p(np.exp(-6)), "loss", rtol=0, atol=1e-3)


def test_cross_entropy_does_not_look_at_ignored_rows():
    x = logits.copy()
    x[targets == -1] = np.nan
    loss, dlogits = lesson.cross_entropy(x, targets)
    assert_close(loss, losses(logits, targets).mean(), "loss, with NaN in the rows that do not count")
    assert_close(dlogits[targets == -1], np.zeros((2, 5)), "dlogits of the rows that do not count")


@pytest.mark.parametrize("total", [None, 5])
def test_cross_entropy_of_nothing_but_padding_is_0(total):
    loss, dlogits = lesson.cross_entropy(logits.copy(), np.full((2, 3), -1), total)
    assert_close(loss, 0, "loss")
    assert_close(dlogits, np.zeros(logits.shape), "dlogits")


@pytest.mark.parametrize("bad", [5, 70, -2, -100])
def test_cross_entropy_names_a_target_that_is_no_class(bad):
    t = targets.copy()
    t[1, 1] = bad
    with pytest.raises((ValueError, IndexError), match=f"target {bad} "):
        lesson.cross_entropy(logits.copy(), t)


def test_cross_entropy_wants_one_target_for_each_row():
    with pytest.raises(ValueError, match=r"targets \(1, 3\) must be \(2, 3\)"):
        lesson.cross_entropy(logits.copy(), targets[:1])


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
@pytest.mark.parametrize("at", [0, 1, 40])  # the target itself, its neighbour, one far off
def test_cross_entropy_shows_a_logit_that_is_not_finite(bad, at):
    x = np.zeros((2, 65))
    x[1, at] = bad
    with np.errstate(invalid="ignore"):
        loss, _ = lesson.cross_entropy(x, np.zeros(2, int))
    assert not np.isfinite(loss), f"a logit of {bad} must not give a loss of {loss}"


def test_cross_entropy_of_a_forbidden_target_is_infinite():
    loss, dlogits = lesson.cross_entropy(np.array([[-np.inf, 1.0, 1.0]]), np.array([0]))
    assert_close(loss, np.inf, "loss")
    assert_close(dlogits, [[-1.0, 0.5, 0.5]], "dlogits")


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_contrastive_forward_is_the_formula(temperature):
    with unchanged(q=q, partner=partner):
        loss, _ = lesson.contrastive_forward(q, partner, temperature)
    assert_close(loss, article(q, partner, temperature), "loss")


MIXED = np.array([5, -1, 0, 0, -1, 2])  # not mutual; rows 1 and 4 only serve as choices


def test_contrastive_forward_takes_any_partners():
    assert_close(lesson.contrastive_forward(q, MIXED, 0.5)[0], article(q, MIXED, 0.5), "loss")


def test_contrastive_backward_takes_any_partners():
    _, cache = lesson.contrastive_forward(q, MIXED, 0.5)
    want = numeric_grad(lambda q: article(q, MIXED, 0.5), q)
    assert_close(lesson.contrastive_backward(1.0, cache), want, "dq", rtol=1e-4)


@pytest.mark.parametrize("dout", [1.0, -2.5])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_contrastive_backward_is_the_slope_of_forward(dout, temperature):
    _, cache = lesson.contrastive_forward(q, partner, temperature)
    want = numeric_grad(lambda q: dout * article(q, partner, temperature), q)
    with unchanged(q=q):
        dq = lesson.contrastive_backward(dout, cache)
    assert_close(dq, want, "dq", rtol=1e-4)


CROSS = np.array([[30, 10], [-30, -10], [-10, 30], [10, -30]])  # products of 1000, 0 and -1000


@dtypes
def test_contrastive_forward_survives_scores_of_1000(dtype):
    loss, _ = lesson.contrastive_forward(CROSS.astype(dtype), np.array([1, 0, 3, 2]))
    assert_close(loss, 1000 + np.log(2), "loss (the partner has -1000, two others 0)")


@dtypes
def test_contrastive_backward_survives_scores_of_1000(dtype):
    _, cache = lesson.contrastive_forward(CROSS.astype(dtype), np.array([1, 0, 3, 2]), np.float64(1))
    dq = lesson.contrastive_backward(np.float64(1), cache)  # which must not make float64 of float32
    # a row is pulled to its partner and pushed from each of the two others, half as strongly, in both roles
    want = (-2 * CROSS[[1, 0, 3, 2]] + CROSS[[2, 2, 0, 0]] + CROSS[[3, 3, 1, 1]]) / 4
    assert_close(dq, want, "dq", rtol=1e-4, atol=1e-4, dtype=dtype)


def test_contrastive_forward_reaches_0_when_partners_meet_and_others_are_far():
    a = np.array([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])  # were k = i in the sum, log 2 would be the least
    loss, _ = lesson.contrastive_forward(a, np.array([2, 3, 0, 1]), temperature=0.1)
    assert_close(loss, np.log1p(2 * np.exp(-20)), "loss", rtol=1e-3, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)))
def test_contrastive_forward_does_not_mind_the_order_of_rows(order):
    """Row order[i] moves to place i; its partner is found where it has moved to."""
    moved = np.argsort(order)[partner[order]]
    assert_close(lesson.contrastive_forward(q[order], moved)[0], article(q, partner, 1), "loss")


def test_contrastive_forward_turns_nothing_into_float64():
    """A NumPy float64 would: float(temperature) does not. dq must be float32 in the end."""
    _, cache = lesson.contrastive_forward(q.astype(np.float32), partner, np.float64(0.5))
    wider = [part for part in cache if getattr(part, "dtype", None) == np.float64]
    assert not wider, f"q is float32, and the cache holds float64: {wider}"


def test_contrastive_forward_refuses_a_row_that_is_its_own_partner():
    with pytest.raises(ValueError, match="row 1 is its own partner"):
        lesson.contrastive_forward(q, np.array([3, 1, 5, 0, 1, 2]))


@pytest.mark.parametrize("bad", [0, -1.0, float("nan")])
def test_contrastive_forward_refuses_a_temperature_not_above_0(bad):
    with pytest.raises(ValueError, match=f"temperature {bad}"):
        lesson.contrastive_forward(q, partner, bad)
