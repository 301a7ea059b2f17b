"""The tests of f are test_f and test_f_*: they are also lesson 8's exercises.

The oracles: finite differences in float64, and -log p by np.logaddexp, which neither over- nor underflows.
"""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu import losses as cpu
from lessons import l08_losses as lesson
from tests.close import assert_close, numeric_grad

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


def test_softmax_forward():
    assert_close(lesson.softmax_forward(logits)[0], np.exp(log_softmax(logits)), "p")


@dtypes
def test_softmax_forward_survives_logits_of_1000(dtype):
    p, _ = lesson.softmax_forward(HUGE.astype(dtype))
    assert p.dtype == dtype
    assert_close(p, np.exp(log_softmax(HUGE)), "p")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), st.floats(-1e3, 1e3))
def test_softmax_forward_sums_to_1_and_ignores_a_shift(x, shift):
    p, _ = lesson.softmax_forward(np.array(x))
    assert_close(p.sum(), 1.0, "sum of p")
    assert_close(lesson.softmax_forward(np.array(x) + shift)[0], p, "p of shifted logits", atol=1e-8)


def test_softmax_backward():
    dout = rng.normal(size=logits.shape)
    _, cache = lesson.softmax_forward(logits)
    want = numeric_grad(lambda x: (np.exp(log_softmax(x)) * dout).sum(), logits)
    assert_close(lesson.softmax_backward(dout, cache), want, "dx")


def test_softmax_backward_of_a_constant_is_0():
    _, cache = lesson.softmax_forward(logits)
    assert_close(lesson.softmax_backward(np.full(logits.shape, 7.0), cache), np.zeros(logits.shape), "dx")


def test_cross_entropy():
    loss, _ = lesson.cross_entropy(logits.copy(), targets)
    assert isinstance(loss, float)
    assert_close(loss, losses(logits, targets).mean(), "loss (mean over the four targets that count)")


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
        assert dlogits.dtype == dtype
        assert_close(loss, losses(HUGE, t).mean(), f"loss of target {target}")
        assert_close(dlogits, (np.exp(log_softmax(HUGE)) - np.eye(3)[t]) / 3, f"dlogits of target {target}")


rooms = pytest.mark.parametrize("room", [lesson, cpu], ids=["numpy", "cpu"])


@rooms
def test_cross_entropy_does_not_look_at_ignored_rows(room):
    x = logits.astype(np.float32)
    want, dwant = room.cross_entropy(x.copy(), targets)
    x[targets == -1] = np.nan
    loss, dlogits = room.cross_entropy(x, targets)
    assert loss == want and np.array_equal(dlogits, dwant), "a row that does not count has changed the result"
    assert not dlogits[targets == -1].any(), "the gradient of an ignored row is 0"


@rooms
@pytest.mark.parametrize("total", [None, 5])
def test_cross_entropy_of_nothing_but_padding_is_0(room, total):
    loss, dlogits = room.cross_entropy(logits.astype(np.float32), np.full((2, 3), -1), total)
    assert loss == 0 and dlogits.shape == logits.shape and not dlogits.any()


@rooms
@pytest.mark.parametrize("bad", [5, 70, -2, -100])
def test_cross_entropy_names_a_target_that_is_no_class(room, bad):
    t = targets.copy()
    t[1, 1] = bad
    with pytest.raises((ValueError, IndexError), match=f"target {bad} "):
        room.cross_entropy(logits.astype(np.float32), t)


@rooms
def test_cross_entropy_wants_one_target_for_each_row(room):
    with pytest.raises(ValueError, match=r"targets \(1, 3\) must be \(2, 3\)"):
        room.cross_entropy(logits.astype(np.float32), targets[:1])


@rooms
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
@pytest.mark.parametrize("at", [0, 1, 40])  # the target itself, its neighbour, one far off
def test_cross_entropy_shows_a_logit_that_is_not_finite(room, bad, at):
    x = np.zeros((2, 65), np.float32)
    x[1, at] = bad
    with np.errstate(invalid="ignore"):
        loss, _ = room.cross_entropy(x, np.zeros(2, int))
    assert not np.isfinite(loss), f"a logit of {bad} must not give a loss of {loss}"


@rooms
def test_cross_entropy_of_a_forbidden_target_is_infinite(room):
    loss, dlogits = room.cross_entropy(np.array([[-np.inf, 1.0, 1.0]], np.float32), np.array([0]))
    assert loss == np.inf
    assert_close(dlogits, [[-1.0, 0.5, 0.5]], "dlogits")


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_contrastive_forward(temperature):
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
def test_contrastive_backward(dout, temperature):
    _, cache = lesson.contrastive_forward(q, partner, temperature)
    want = numeric_grad(lambda q: dout * article(q, partner, temperature), q)
    assert_close(lesson.contrastive_backward(dout, cache), want, "dq", rtol=1e-4)


CROSS = np.array([[30, 10], [-30, -10], [-10, 30], [10, -30]])  # products of 1000, 0 and -1000


@dtypes
def test_contrastive_forward_survives_scores_of_1000(dtype):
    loss, _ = lesson.contrastive_forward(CROSS.astype(dtype), np.array([1, 0, 3, 2]))
    assert_close(loss, 1000 + np.log(2), "loss (the partner has -1000, two others 0)")


@dtypes
def test_contrastive_backward_survives_scores_of_1000(dtype):
    _, cache = lesson.contrastive_forward(CROSS.astype(dtype), np.array([1, 0, 3, 2]), np.float64(1))
    dq = lesson.contrastive_backward(1.0, cache)
    assert dq.dtype == dtype
    # a row is pulled to its partner and pushed from each of the two others, half as strongly, in both roles
    want = (-2 * CROSS[[1, 0, 3, 2]] + CROSS[[2, 2, 0, 0]] + CROSS[[3, 3, 1, 1]]) / 4
    assert_close(dq, want, "dq", rtol=1e-4, atol=1e-4)


def test_contrastive_forward_reaches_0_when_partners_meet_and_others_are_far():
    a = np.array([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])  # were k = i in the sum, log 2 would be the least
    assert lesson.contrastive_forward(a, np.array([2, 3, 0, 1]), temperature=0.1)[0] < 1e-6


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(6)))
def test_contrastive_forward_does_not_mind_the_order_of_rows(order):
    """Row order[i] moves to place i; its partner is found where it has moved to."""
    moved = np.argsort(order)[partner[order]]
    assert_close(lesson.contrastive_forward(q[order], moved)[0], article(q, partner, 1), "loss")


def test_contrastive_forward_refuses_a_row_that_is_its_own_partner():
    with pytest.raises(ValueError, match="row 1 is its own partner"):
        lesson.contrastive_forward(q, np.array([3, 1, 5, 0, 1, 2]))


@pytest.mark.parametrize("bad", [0, -1.0, float("nan")])
def test_contrastive_forward_refuses_a_temperature_not_above_0(bad):
    with pytest.raises(ValueError, match=f"temperature {bad}"):
        lesson.contrastive_forward(q, partner, bad)


@pytest.mark.parametrize("V", [1, 2, 65, 1000])
@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("ignored", [0, 0.4, 1])
def test_rows_in_place_in_the_cpu_room(V, scale, ignored):
    g = np.random.default_rng(V)
    x = (g.normal(size=(3, 7, V)) * scale).astype(np.float32)
    t = np.where(g.random((3, 7)) < ignored, -1, g.integers(0, V, (3, 7))).astype(np.int32)
    for total in None, 30:
        n = total or max((t >= 0).sum(), 1)
        p, truth = np.exp(log_softmax(x.astype(float))), t[..., None] == np.arange(V)
        want = (p - truth) * (t >= 0)[..., None] / n
        loss, dlogits = cpu.cross_entropy(x.copy(), t, total)
        assert isinstance(loss, float) and dlogits.dtype == np.float32
        assert_close(loss, losses(x, t).sum() / n, "loss")
        assert_close(dlogits, want, "dlogits", rtol=1e-5, atol=1e-7)


def test_the_cpu_room_writes_dlogits_over_logits():
    x = logits.astype(np.float32)
    _, dlogits = cpu.cross_entropy(x, targets)
    assert np.shares_memory(x, dlogits)


def test_the_cpu_room_counts_a_million_small_losses():
    """A float32 sum would stop growing: the loss is accumulated in float64."""
    x = np.zeros((1_000_000, 2), np.float32)
    x[:, 0] = 5
    loss, _ = cpu.cross_entropy(x, np.zeros(1_000_000, int))
    assert_close(loss, np.log1p(np.exp(-5)), "loss", rtol=1e-6)
