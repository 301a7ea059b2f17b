"""What may have gone wrong, from wrong numbers alone: the guesses of assert_close.

A guess is silent where a random mistake would look the same: too few numbers, or too near to each other.
"""
from itertools import chain, combinations, islice
from math import isclose

import numpy as np

VIEWS = "(a[:] = ... writes into an array, a = ... only names another one)"


def guesses(got, want, bad, allowed):
    """At most two, the likeliest first. want is float64 or complex; bad tells where got is wrong."""
    integers, got = got.dtype.kind in "biu", got.astype(complex if got.dtype.kind == "c" else float)
    why = ()
    if not np.isfinite(got[bad]).all():
        why = not_finite(np.isnan(got), bad & ~np.isfinite(got))
    elif not got.any():
        return [f"yours is all zeros: was the result ever written? {VIEWS}"]
    elif np.isfinite(want).all() and abs(got - want).max() > 20 * allowed:
        why = islice(of_numbers(got, want, bad, allowed, integers), 1)
    return [*islice(chain(why, places(bad)), 2)]


def of_numbers(got, want, bad, allowed, integers):
    same = lambda a, b: bool((abs(a - b) <= allowed).all())
    clear = 30 * allowed or 0.5  # what differs by this much is no rounding
    values = len(np.unique(np.round(want / clear)))
    fractions = bool((want != np.round(want)).any())
    sure = values > 2 or fractions and abs(want).max() > clear  # 4 for 2 may be anything
    yield from stuck(got, want, values, fractions and integers)
    yield from elsewhere(got, want, same, values, sure)
    yield from over_axes(got, want) if fractions else ()
    yield from formulas(got, want, same, values > 2, sure, fractions)
    yield from per_axis(got, want, same, bad, clear)


def not_finite(nan, broken):
    rows = nan.all(axis=-1) if nan.ndim > 1 else np.array(False)
    if rows.any() and not rows.all() and (nan.any(axis=-1) == rows).all():
        yield f"NaN in {rows.sum()} whole rows: a row of which all is masked, -inf minus -inf?"
    else:
        yield f"{broken.sum()} of them are NaN or infinite: an overflow, a log of 0 or a division by 0?"


def stuck(got, want, values, cut):
    if got.size > 2 and values > 1 and (got == got.flat[0]).all():
        yield f"yours is {got.flat[0]:.6g} everywhere: was it written? {VIEWS}"
    if cut or got.size > 2 and (got == np.round(got)).all() and 0.1 < abs(got - want).max() < 1:
        yield "yours are whole numbers: // for /, or an array of integers?"


def elsewhere(got, want, same, values, sure):
    """The right numbers with another sign or in other places."""
    if (sure or got.size > 2) and same(-got, want):
        yield "exactly the right numbers with the sign flipped"
    for i, j in reversed([*combinations(range(got.ndim), 2)]):
        if got.shape[i] == got.shape[j] and same(np.swapaxes(got, i, j), want):
            yield f"the right numbers, {'transposed' if i == got.ndim - 2 else f'axes {i} and {j} swapped'}"
    for axis in range(got.ndim if values > 2 else 0):
        g, w = np.moveaxis(got, axis, 0), np.moveaxis(want, axis, 0)
        if same(g[::-1], w):
            yield f"the right numbers, backwards along axis {axis}"
        for place, x, y in ("late", g[1:], w[:-1]), ("early", g[:-1], w[1:]):
            if len(g) > 2 and same(x, y):
                yield f"the right numbers, one place too {place} along axis {axis}"
    if values > 2 and same(np.sort(got, axis=None), np.sort(want, axis=None)):
        yield "the right numbers in other places: a reshape where axes must be swapped?"


def over_axes(got, want):
    yours, asked = ([k for k in range(a.ndim) if a.shape[k] > 1 and abs(a.sum(axis=k) - 1).max() < 1e-4]
                    for a in (got, want))
    if yours and asked and not {*yours} & {*asked}:
        yield f"sums to 1 along axis {yours[0]}, expected along {asked[-1]}: a softmax over the wrong axis?"
    if asked and got.ndim > 1 and abs(got.sum() - 1) < 1e-4:
        yield f"all together sum to 1, expected along axis {asked[-1]}: a softmax without axis=?"


def formulas(got, want, same, many, sure, fractions):
    for text, a in [("1 minus what", 1 - got), ("1 divided by what", 1 / got),
                    ("the square of what", np.sqrt(got)), ("the root of what", got * got),
                    ("the logarithm of what", np.exp(got)), ("the exponential of what", np.log(got))]:
        if (sure or got.size > 8) and same(a, want):
            yield f"yours is {text} is expected"
    scale = np.vdot(got, want) / np.vdot(got, got)
    known = known_factor(scale) if scale else ""
    if scale and (many or sure and known) and same(got * scale, want):
        yield f"right but for a factor: multiply by {scale:.6g}{known}"
    constant = (got - want).mean()
    if many and same(got - constant, want):
        buffer = fractions and isclose(constant.real, np.round(constant.real))  # full of ones, or sevens
        why = ": += for =, or the other way round?" if buffer else ""
        yield f"right but for a constant {constant:.6g}{why}"


def known_factor(scale):
    """What n, 1/n, sqrt(n) or 1/sqrt(n), with a small whole n, stands for; '' for another factor."""
    size = max(abs(scale), 1 / abs(scale))
    for n, text, why in [(size, "{}", "a mean for a sum, or the other way round?"),
                         (size**2, "sqrt({})", "is 1/sqrt(d) missing, or there twice?")]:
        if 1 < round(n) <= 200 and isclose(n, round(n), rel_tol=5e-6):
            name = ("-" if scale.real < 0 else "") + ("1/" if abs(scale) < 1 else "") + text.format(round(n))
            root = f" sqrt({round(n) ** 2})?" if text == "{}" and n < 9 else ""
            return f" = {name} ({why}{root})"
    return ""


def per_axis(got, want, same, bad, clear):
    for axis in reversed(range(got.ndim if got.ndim > 1 else 0)):
        tells = bad.any(axis=axis) & (abs(want.max(axis=axis) - want.min(axis=axis)) > clear)
        if tells.sum() * (got.shape[axis] - 1) < 3:
            continue
        last = axis == got.ndim - 1
        where = "per row" if last else f"that is the same all along axis {axis}"
        if same(got - (got - want).mean(axis=axis, keepdims=True), want):
            why = "is a mean over the last axis missing?" if last else "is a mean over it or a bias missing?"
            yield f"right but for a constant {where}: {why}"
        factor = (got * want).sum(axis=axis, keepdims=True) / (got * got).sum(axis=axis, keepdims=True)
        if same(got * factor, want):
            why = "is a division by the row's sum or length missing?" if last else "is a weight missing?"
            yield f"right but for a factor {where}: {why}"


def places(bad):
    """Where it is wrong, if that has a shape."""
    diagonal = bad.ndim > 1 and min(bad.shape[-2:]) > 2
    if diagonal:
        pattern = bad.any(axis=tuple(range(bad.ndim - 2)))
        rows, columns = np.indices(pattern.shape)
        ahead = columns - rows - (pattern.shape[1] - pattern.shape[0])  # how far in the future
        for where, region in [("on the diagonal", ahead == 0), ("just above the diagonal", ahead == 1),
                              ("above the diagonal", ahead > 0), ("on and above the diagonal", ahead >= 0)]:
            if region.any() and (pattern == region).all():
                yield f"only wrong {where} of the last two axes: is the causal mask missing or off by one?"
    for axis in range(bad.ndim):
        n, others = bad.shape[axis], tuple(a for a in range(bad.ndim) if a != axis)
        share = bad.mean(axis=others)  # of each index
        wrong = np.flatnonzero(share)
        if 0 < len(wrong) <= n // 2:
            yield f"only wrong at index {', '.join(map(str, wrong[:8]))} of axis {axis}"
        elif diagonal and axis == bad.ndim - 2 and share[-1] == 0 and share[:-1].min() > 0.8:
            yield f"right only at the last index of axis {axis}: is the causal mask missing or off by one?"
