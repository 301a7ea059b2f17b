"""The tests of f are test_f and test_f_*: they are also lesson 10's exercises.

The oracles: two steps by hand with whole or half numbers in float64, and the SVD for Muon, whose tests bring
a Newton-Schulz of their own.
"""
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons import l10_optimizers as lesson
from tests.close import assert_close, unchanged

SHAPES = [(8, 8), (8, 24), (24, 8), (5, 33), (1, 7), (7, 1)]


def array(*numbers):
    return np.array(numbers, float)


def polynomial_of_singular_values(x):
    """U f(S) V^T, where f is Newton-Schulz's polynomial, five times."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def low_rank(n, k, rank=3, noise=1e-2):
    """A matrix with a few large singular values over many small ones: what gradients look like."""
    return normal(n, rank, seed=1) @ normal(rank, k, seed=2) + noise * normal(n, k, seed=3)


def test_gradient_norm_squared():
    grads = np.array([[9.0, 1.0, 2.0, 9.0], [9.0, 2.0, -6.0, 9.0]])
    assert_close(lesson.gradient_norm_squared(grads, 1, 3), 3.0**2 + 4.0**2, "norm squared")
    assert_close(grads[0], [9, 3, -4, 9], "the sum, in row 0 between start and stop")
    assert_close(grads[1], [9, 2, -6, 9], "row 1, which is only read")


def test_gradient_norm_squared_of_one_row():
    grads = array(3, 4)[None]
    norm = lesson.gradient_norm_squared(grads, 0, 2)
    assert_close(norm, 25, "norm squared")
    assert type(norm) is float, f"a plain float, not {type(norm).__name__}: that turns float32 into float64"
    assert_close(grads, [[3, 4]], "grads")


def test_gradient_norm_squared_does_not_overflow_float32():
    assert_close(lesson.gradient_norm_squared(np.full((1, 4), 1e20, np.float32), 0, 4), 4e40, "norm squared")


@pytest.mark.parametrize("row", [0, 1])
def test_gradient_norm_squared_shows_a_nan(row):
    grads = np.ones((2, 9), np.float32)
    grads[row, 7] = np.nan
    assert_close(lesson.gradient_norm_squared(grads, 0, 7), 28, "norm squared before the NaN")
    norm = lesson.gradient_norm_squared(grads, 7, 9)
    assert math.isnan(norm), f"a NaN in row {row} has to reach the norm, which is {norm}"


def test_clip_scale():
    assert_close(lesson.clip_scale(50.0, 2.0), 0.04, "scale of a norm of 50, limit 2")
    assert_close(lesson.clip_scale(0.5, 1.0), 1, "scale of a norm below the limit, which is left alone")
    assert_close(lesson.clip_scale(0.0, 1.0), 1, "scale of a gradient of zeros: no division by its norm")
    assert_close(lesson.clip_scale(1e-6, 1e-6), 0.5, "scale of a norm of 1e-6, at the limit (it is 1 only "
                 "where limit / (norm + 1e-6) exceeds 1)")


def test_clip_scale_shows_a_nan():
    scale = lesson.clip_scale(math.nan, 1.0)
    assert math.isnan(scale), f"the scale of a norm of NaN is {scale}: a spoilt gradient would pass unseen"


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 50), st.floats(1e-3, 1e3), st.floats(0.1, 10))
def test_clip_scale_keeps_the_direction_and_the_limit(n, size, limit):
    g = normal(n, seed=n) * size
    norm = float(np.linalg.norm(g))
    clipped = g * lesson.clip_scale(norm, limit)
    length = np.linalg.norm(clipped)
    assert length <= limit * (1 + 1e-9), f"norm {length} is above the limit {limit}"
    assert_close(clipped / length, g / norm, "direction")
    assert_close(length, min(norm, limit), "norm after clipping", rtol=1e-4)


def test_sgd():
    p, g, m = array(1, 2), array(10, -20), array(0, 0)
    for want in [0, 4], [-1, 6]:
        lesson.sgd(p, g, m, lr=0.1, momentum=0.0, weight_decay=0.0, scale=1.0)
        assert_close(p, want, "p")


def test_sgd_momentum():
    p, g, m = array(1), array(4), array(0)
    lesson.sgd(p, g, m, lr=0.5, momentum=0.5, weight_decay=0.0, scale=1.0)
    assert_close(m, [4], "m after step 1, 0.5 * 0 + 4,")
    assert_close(p, [-1], "p after step 1, 1 - 0.5 * 4,")
    lesson.sgd(p, array(2), m, lr=0.5, momentum=0.5, weight_decay=0.0, scale=1.0)
    assert_close(m, [4], "m after step 2, 0.5 * 4 + 2,")
    assert_close(p, [-3], "p after step 2, -1 - 0.5 * 4,")


def test_sgd_momentum_adds_up_steady_steps():
    p, m = array(0), array(0)
    for _ in range(200):
        lesson.sgd(p, array(1), m, lr=0.1, momentum=0.9, weight_decay=0.0, scale=1.0)
    assert_close(m, [10], "m under a gradient of 1, in the end 1 / (1 - 0.9)")


def test_sgd_scale_and_weight_decay():
    p, g, m = array(4), array(8), array(0)
    lesson.sgd(p, g, m, lr=0.5, momentum=0.5, weight_decay=0.5, scale=0.25)
    assert_close(m, [2], "m, which sees the clipped gradient and no decay")
    assert_close(p, [4 * 0.75 - 0.5 * 2], "p = p * (1 - lr * weight_decay) - lr * m")
    assert_close(g, [8], "g, which is only read")


def test_adam():
    p, m, v = array(1), array(0), array(0)
    lesson.adam(p, array(2), m, v, 0.1, 0.25, 0.75, 0.0, step=1)
    assert_close(m, [1.5], "m after step 1, 0.75 * 2,")
    assert_close(v, [1], "v after step 1, 0.25 * 4,")
    assert_close(p, [1 - 0.1 * (1.5 / 0.75) / math.sqrt(1 / 0.25)], "p after step 1")
    lesson.adam(p, array(-4), m, v, 0.1, 0.25, 0.75, 0.0, step=2)
    assert_close(m, [-2.625], "m after step 2, 0.25 * 1.5 - 0.75 * 4,")
    assert_close(v, [4.75], "v after step 2, 0.75 * 1 + 0.25 * 16,")
    assert_close(p, [0.9 - 0.1 * (-2.625 / 0.9375) / math.sqrt(4.75 / 0.4375)], "p after step 2")


def test_adam_without_bias_correction():
    p, m, v = array(1), array(0), array(0)
    lesson.adam(p, array(2), m, v, 0.1, 0.5, 0.75, 0.0, step=1, bias_correction=False)
    assert_close(p, [1 - 0.1 * 1 / 1], "p after step 1")
    lesson.adam(p, array(-4), m, v, 0.1, 0.5, 0.75, 0.0, step=2, bias_correction=False)
    assert_close(p, [0.9 + 0.1 * 1.5 / math.sqrt(4.75)], "p after step 2")
    assert_close(m, [-1.5], "m after step 2, which is not corrected either way,")
    assert_close(v, [4.75], "v after step 2, which is not corrected either way,")


@pytest.mark.parametrize("corrected, times", [(True, 1), (False, math.sqrt(10))])
def test_adam_first_step_is_the_rate_and_the_articles_is_3_times_that(corrected, times):
    for g in 1e-3, 1.0, -500.0:
        p, m, v = array(0), array(0), array(0)
        lesson.adam(p, array(g), m, v, 0.01, 0.9, 0.999, 1e-12, step=1, bias_correction=corrected)
        assert_close(p, [-math.copysign(0.01 * times, g)], f"first step at g = {g}")


def test_adam_without_bias_correction_steps_too_far_for_a_thousand_steps():
    p, m, v = array(0), array(0), array(0)
    lengths = []
    for step in range(1, 1001):
        before = p.copy()
        lesson.adam(p, array(3), m, v, 1.0, 0.9, 0.999, 1e-8, step, bias_correction=False)
        lengths.append(float(before[0] - p[0]))
    assert_close([lengths[i] for i in (0, 11, 999)], [3.162, 6.569, 1.258], "steps 1, 12, 1000", rtol=1e-3)
    assert int(np.argmax(lengths)) == 11, f"step {np.argmax(lengths) + 1} is the longest, not step 12"


def test_adam_eps_stands_outside_the_root():
    p, m, v = array(0), array(0), array(0)
    lesson.adam(p, array(1), m, v, 1.0, 0.9, 0.999, eps=1.0, step=1)
    assert_close(p, [-0.5], "1 / (sqrt(1) + 1)")
    lesson.adam(p, array(0), array(0), array(0), 1.0, 0.9, 0.999, eps=1e-8, step=1)
    assert_close(p, [-0.5], "p after a gradient of 0 and empty m and v: no step, and no 0 / 0")


def test_adam_only_reads_g():
    g = array(3, -4)
    lesson.adam(np.zeros(2), g, np.zeros(2), np.zeros(2), 0.1, 0.9, 0.999, 1e-8, step=1)
    assert_close(g, [3, -4], "g")


def test_adamw():
    p, g, m, v = array(1), array(4), array(0), array(0)
    lesson.adamw(p, g, m, v, 0.1, 0.5, 0.75, 0.0, weight_decay=0.2, step=1, scale=0.5)
    assert_close(m, [1], "m, which sees the clipped gradient and no decay,")
    assert_close(v, [1], "v, which sees the clipped gradient and no decay,")
    assert_close(p, [1 * (1 - 0.1 * 0.2) - 0.1], "p = p * (1 - lr * weight_decay) - lr")
    lesson.adamw(p, array(-8), m, v, 0.1, 0.5, 0.75, 0.0, weight_decay=0.2, step=2, scale=0.5)
    assert_close(p, [0.88 * 0.98 + 0.1 * 2 / math.sqrt(4.75 / 0.4375)], "p after step 2")
    assert_close(g, [4], "g, which is only read")


@settings(deadline=None, max_examples=15)
@given(st.floats(1e-5, 1), st.floats(0, 1), st.integers(1, 1000))
def test_adamw_shrinks_by_lr_times_decay_where_the_gradient_is_zero(lr, decay, step):
    p, zero = array(1, -2, 300), np.zeros(3)
    lesson.adamw(p, zero, zero.copy(), zero.copy(), lr, 0.9, 0.999, 1e-8, decay, step, 1.0)
    assert_close(p, array(1, -2, 300) * (1 - lr * decay), "p", rtol=1e-12)


def test_adamw_with_decay_on_a_slice_leaves_the_rest_alone():
    p, zero = np.ones(10), np.zeros((3, 10))
    for part, decay in (slice(0, 6), 0.5), (slice(6, 10), 0.0):
        lesson.adamw(p[part], *zero[:, part], 0.1, 0.9, 0.999, 1e-8, decay, 1, 1.0)
    assert_close(p, [0.95] * 6 + [1.0] * 4, "six matrix weights, then four biases")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("matrix", [normal, low_rank])
def test_newton_schulz_brings_singular_values_near_1(shape, matrix):
    x = matrix(*shape)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    out = lesson.newton_schulz(x)
    diagonal = u.T @ out @ vt.T  # U^T (U S V^T) V = S
    assert out.shape == shape, f"x is {shape}, what came out {out.shape}"
    assert_close(diagonal, np.diag(np.diag(diagonal)), "U^T out V, a diagonal: U and V are kept", atol=1e-9)
    values = np.diag(diagonal)[s / np.linalg.norm(x) > 0.003]
    assert (values > 0.6).all() and (values < 1.3).all(), f"singular values {values.round(2)} are not near 1"


def test_newton_schulz_one_value():
    s = 1.0
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    assert_close(lesson.newton_schulz(array(7)[None]), [[s]], "the polynomial, five times, from 7 / 7")


def test_newton_schulz_adds_1e_7_to_the_norm():
    s = 0.5
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    assert_close(lesson.newton_schulz(array(1e-7)[None]), [[s]], "the same from 1e-7 / (1e-7 + 1e-7)")
    assert_close(lesson.newton_schulz(np.zeros((2, 3))), np.zeros((2, 3)), "of zeros: no 0 / 0")


def test_newton_schulz_only_reads_x_and_keeps_its_dtype():
    for shape in (3, 5), (5, 3):
        x = normal(*shape, dtype=np.float32)
        assert lesson.newton_schulz(x).dtype == np.float32, "float32 in, float32 out"
        assert_close(x, normal(*shape, dtype=np.float32), "x after the call")


@pytest.mark.parametrize("shape", [(2, 400), (400, 2)])
def test_newton_schulz_takes_the_smaller_of_the_two_squares(shape):
    x = normal(*shape)
    tracemalloc.start()
    lesson.newton_schulz(x)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 400 * 400 * 8, f"{most:,} bytes: enough for a square of 400 x 400, where 2 x 2 would do"


@pytest.mark.parametrize("shape", SHAPES)
def test_muon(shape, monkeypatch):
    monkeypatch.setattr(lesson, "newton_schulz", polynomial_of_singular_values)  # so yours may still be blank
    p, m, want, mean = normal(*shape), np.zeros(shape), normal(*shape), np.zeros(shape)
    for seed in 1, 2:
        g = normal(*shape, seed=seed)
        with unchanged(g=g):
            lesson.muon(p, g, m, lr=0.1, momentum=0.75, weight_decay=0.2, scale=0.5)
        mean = 0.75 * mean + 0.25 * 0.5 * g
        direction = polynomial_of_singular_values(0.25 * 0.5 * g + 0.75 * mean)
        want = (1 - 0.1 * 0.2) * want - 0.1 * max(1, math.sqrt(shape[1] / shape[0])) * direction
        assert_close(m, mean, f"m after step {seed}")
        assert_close(p, want, f"p after step {seed}")


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_muon_ignores_the_size_of_the_gradient(size, monkeypatch):
    monkeypatch.setattr(lesson, "newton_schulz", polynomial_of_singular_values)
    step = {}
    for factor in 1, size:
        p, m = np.zeros((2, 5, 33))
        lesson.muon(p, factor * normal(5, 33), m, 1.0, 0.95, 0.0, 1.0)
        step[factor] = p
    assert_close(step[size], step[1], f"step at a gradient {size} times as large", rtol=1e-3, atol=1e-3)


def check_ends(schedule):
    def rate(step, **more):
        return schedule(step, 110, 10, 2.0, **more)

    assert_close(rate(1), 0.2, "rate of step 1: a tenth, not 0, or the step would be lost")
    assert_close(rate(5), 1.0, "rate in the middle of the warm-up")
    assert_close(rate(5, final=1.0), 1.0, "rate in the middle of the warm-up, where final plays no part,")
    assert_close(rate(10), 2.0, "rate at the end of the warm-up")
    assert_close(rate(60), 1.0, "rate half-way down")
    assert_close([rate(110), rate(200)], [0, 0], "rate at the last step and after it")
    assert_close([rate(60, final=1.0), rate(110, final=1.0)], [1.5, 1.0], "half-way and at the end, final=1")
    assert_close(schedule(1, 1, 0, 2.0), 0, "rate of a run of one step, which is the last")
    assert_close(schedule(3, 4, 3, 2.0), 2, "rate at the end of the warm-up, one step before the last")
    assert_close(schedule(4, 4, 4, 2.0), 0, "rate at the last step of a run that is all warm-up: no 0 / 0")


def test_warmup_linear():
    rates = [lesson.warmup_linear(t, 12, 4, 8.0) for t in range(1, 13)]
    assert_close(rates, [2, 4, 6, 8, 7, 6, 5, 4, 3, 2, 1, 0], "rates")


def test_warmup_linear_at_its_ends():
    check_ends(lesson.warmup_linear)


def test_warmup_cosine():
    rates = [lesson.warmup_cosine(t, 7, 3, 1.0) for t in range(1, 8)]
    assert_close(rates, [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447, 0], "rates: (1 + cos 45 degrees) / 2, ...")


def test_warmup_cosine_at_its_ends():
    check_ends(lesson.warmup_cosine)
