"""The tests of f are test_f and test_f_*: they are also lesson 8's exercises.

The oracles: finite differences in float64, and -log p by np.logaddexp, which neither over- nor underflows.
"""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import l08_losses as lesson
from tests.close import assert_close, numeric_grad, raises, unchanged

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


def slope_of_scores(q, partner, temperature):
    """ds, the gradient of the contrastive loss with respect to the scores, row by row."""
    s, ds = q @ q.T / temperature, np.zeros((len(q), len(q)))
    for i, j in enumerate(partner):
        if j >= 0:
            others = np.arange(len(q)) != i
            ds[i, others] = np.exp(s[i, others]) / np.exp(s[i, others]).sum()
            ds[i, j] -= 1
    return ds / (partner >= 0).sum()


def assert_loss(loss, want, name, mistakes=None):
    assert_close(loss, want, name, mistakes=mistakes)
    assert type(loss) is float, f"{name} {loss!r} is no Python float: float(...) makes one, or write 0.0"


def test_softmax_forward_of_each_row():
    want = np.exp(log_softmax(logits))
    with unchanged(x=logits):
        p, cache = lesson.softmax_forward(logits)
    assert_close(p, want, "p")
    assert_close(p.sum(axis=-1), np.ones((2, 3)), "sum of each row of p", rtol=0, atol=1e-14)
    assert_close(cache, want, "the cache, which is p")


def test_softmax_forward_of_scores_that_are_far_lower():
    p, _ = lesson.softmax_forward(np.array([[0.0, -50.0, -300.0], [5.0, -1000.0, -np.inf]]))
    want = [[1, np.exp(-50), np.exp(-300)], [1, 0, 0]]  # a mask relies on it: of -inf nothing is left
    assert_close(p, want, "p", rtol=1e-12, atol=0)


@dtypes
def test_softmax_forward_survives_logits_of_1000(dtype):
    p, _ = lesson.softmax_forward(HUGE.astype(dtype))
    assert_close(p, np.exp(log_softmax(HUGE)), "p", dtype=dtype)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), st.floats(-1e3, 1e3))
def test_softmax_forward_sums_to_1_and_ignores_a_shift(x, shift):
    p, _ = lesson.softmax_forward(np.array(x))
    assert_close(p.sum(), 1.0, "sum of p", rtol=0, atol=1e-13)
    assert_close(lesson.softmax_forward(np.array(x) + shift)[0], p, "p of shifted logits", atol=1e-8)


def test_softmax_backward_is_the_slope_of_forward():
    dout = rng.normal(size=logits.shape)
    p, cache = lesson.softmax_forward(logits)
    want = numeric_grad(lambda x: (np.exp(log_softmax(x)) * dout).sum(), logits)
    with unchanged(dout=dout, p=p):
        dx = lesson.softmax_backward(dout, cache)
    assert_close(dx, want, "dx", mistakes={
        "this is the slope of a sigmoid: an output also depends on the other inputs": dout * p * (1 - p),
        "the sum is not weighted by p": p * (dout - dout.sum(axis=-1, keepdims=True)),
        "a mean where a sum is asked for": p * (dout - (p * dout).mean(axis=-1, keepdims=True)),
        "a + where a - is asked for": p * (dout + (p * dout).sum(axis=-1, keepdims=True)),
        "the first factor, p, is missing": dout - (p * dout).sum(axis=-1, keepdims=True)})


def test_softmax_backward_keeps_the_dtype():
    _, cache = lesson.softmax_forward(np.array([[0, 0]], np.float32))
    dx = lesson.softmax_backward(np.array([[1, 0]], np.float32), cache)
    assert_close(dx, [[0.25, -0.25]], "dx of two equal logits", dtype=np.float32)


def test_softmax_backward_of_a_constant_is_0():
    _, cache = lesson.softmax_forward(logits)
    assert_close(lesson.softmax_backward(np.full(logits.shape, 7.0), cache), np.zeros(logits.shape), "dx")


def test_cross_entropy_is_the_mean_over_the_targets_that_count():
    each = losses(logits, targets)
    with unchanged(targets=targets):
        loss, _ = lesson.cross_entropy(logits.copy(), targets)
    assert_loss(loss, each.mean(), "loss (the mean over the four targets that count)", mistakes={
        "this is the sum, it is not divided by the four": each.sum(),
        "it is divided by all six rows, padding too": each.sum() / 6,
        "padding counts as class -1, the last": losses(logits, targets % 5).mean(),
        "the sign is wrong: -log p": -each.mean()})


def test_cross_entropy_gradient():
    _, dlogits = lesson.cross_entropy(logits.copy(), targets)
    want = numeric_grad(lambda x: losses(x, targets).mean(), logits)
    assert_close(dlogits, want, "dlogits", mistakes={
        "it is not divided by the four targets that count": want * 4,
        "it is divided by all six rows, padding too": want * 4 / 6})


def test_cross_entropy_divides_by_a_total_that_is_given():
    loss, dlogits = lesson.cross_entropy(logits.copy(), targets, total=10)
    each = losses(logits, targets)
    unused = {"it is divided by the four that count, not by total": each.mean()}
    assert_close(loss, each.sum() / 10, "loss for total=10", mistakes=unused)
    want = numeric_grad(lambda x: losses(x, targets).sum() / 10, logits)
    assert_close(dlogits, want, "dlogits for total=10")


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
    assert_loss(loss, 0, "loss")
    assert_close(dlogits, np.zeros(logits.shape), "dlogits")


@pytest.mark.parametrize("bad", [5, 70, -2, -100])
def test_cross_entropy_names_a_target_that_is_no_class(bad):
    t = targets.copy()
    t[1, 1] = bad
    with raises(ValueError, f"target {bad} ", f"target {bad} of 5 classes"):
        lesson.cross_entropy(logits.copy(), t)


def test_cross_entropy_wants_one_target_for_each_row():
    with raises(ValueError, "targets (1, 3) must be (2, 3)", "3 targets for 6 rows"):
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
    s, rows = q @ q.T / temperature, np.arange(6)
    assert_loss(loss, article(q, partner, temperature), "loss", mistakes={
        "k = i is in the sum: a row competes with itself": -log_softmax(s)[rows, partner].mean(),
        "s_ii is 0, and must be -inf": -log_softmax(s * (1 - np.eye(6)))[rows, partner].mean(),
        "the scores are not divided by the temperature": article(q, partner, 1),
        "the scores are multiplied by the temperature": article(q, partner, 1 / temperature)})


@pytest.mark.parametrize("size", [30, 1e6, 1e150])
def test_contrastive_forward_leaves_nothing_of_a_row_s_product_with_itself(size):
    """The partner, far below any number that might stand for -inf, is the only choice, so it has p = 1."""
    loss, _ = lesson.contrastive_forward(np.array([[size, 0], [-size, 0]]), np.array([1, 0]))
    assert_close(loss, 0, f"loss of two rows whose product is {-size**2:g} (is s_ii -inf?)", rtol=0, atol=0)


MIXED = np.array([5, -1, 0, 0, -1, 2])  # not mutual; rows 1 and 4 only serve as choices


def test_contrastive_forward_takes_any_partners():
    assert_close(lesson.contrastive_forward(q, MIXED, 0.5)[0], article(q, MIXED, 0.5), "loss")


@pytest.mark.parametrize("dout", [1.0, -2.5])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_contrastive_backward_is_the_slope_of_forward(dout, temperature):
    cache = q, slope_of_scores(q, partner, temperature), temperature
    want = numeric_grad(lambda q: dout * article(q, partner, temperature), q)
    with unchanged(q=q):
        dq = lesson.contrastive_backward(dout, cache)
    ds = slope_of_scores(q, partner, temperature)
    assert_close(dq, want, "dq", rtol=1e-4, mistakes={
        "a row has only its role as the one who chooses: ds": ds @ q * dout / temperature,
        "a row has only its role as a choice: ds.T": ds.T @ q * dout / temperature,
        "it is not divided by the temperature": want * temperature,
        "it is multiplied by the temperature, not divided": want * temperature**2,
        "dout is not used": want / dout})


def test_contrastive_backward_takes_any_partners():
    _, cache = lesson.contrastive_forward(q, MIXED, 0.5)
    want = numeric_grad(lambda q: article(q, MIXED, 0.5), q)
    assert_close(lesson.contrastive_backward(1.0, cache), want, "dq", rtol=1e-4)


CROSS = np.array([[30, 10], [-30, -10], [-10, 30], [10, -30]])  # products of 1000, 0 and -1000


@dtypes
def test_contrastive_forward_survives_scores_of_1000(dtype):
    loss, _ = lesson.contrastive_forward(CROSS.astype(dtype), np.array([1, 0, 3, 2]))
    assert_close(loss, 1000 + np.log(2), "loss (the partner has -1000, two others 0)")


@dtypes
def test_contrastive_backward_survives_scores_of_1000(dtype):
    _, cache = lesson.contrastive_forward(CROSS.astype(dtype), np.array([1, 0, 3, 2]), np.float64(1))
    dq = lesson.contrastive_backward(1.0, cache)
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


def test_contrastive_forward_keeps_what_backward_needs():
    _, cache = lesson.contrastive_forward(q.astype(np.float32), MIXED, np.float64(0.5))
    assert type(cache) is tuple and len(cache) == 3, f"cache is a {type(cache).__name__}, expected (q, ds, t)"
    assert_close(cache[0], q, "q, the cache's first", dtype=np.float32)
    assert_close(cache[1], slope_of_scores(q, MIXED, 0.5), "ds, the cache's second (is t a Python float?)",
                 rtol=1e-4, atol=1e-5, dtype=np.float32)
    assert_close(cache[2], 0.5, "t, the cache's third")
    assert type(cache[2]) is float, f"t is a {type(cache[2]).__name__}, expected a Python float"


def test_contrastive_forward_refuses_a_row_that_is_its_own_partner():
    with raises(ValueError, "row 1 is its own partner", "partner[1] = 1"):
        lesson.contrastive_forward(q, np.array([3, 1, 5, 0, 1, 2]))


@pytest.mark.parametrize("bad", [0, -1.0, float("nan")])
def test_contrastive_forward_refuses_a_temperature_not_above_0(bad):
    with raises(ValueError, f"temperature {bad}", f"a temperature of {bad}"):
        lesson.contrastive_forward(q, partner, bad)
