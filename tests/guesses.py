"""What may have gone wrong, from wrong numbers alone: the guesses of assert_close.

A guess is silent where a random mistake would look the same: too few numbers, or too near to each other.
"""
from itertools import combinations, islice
from math import isclose

import numpy as np

VIEWS = "(a[:] = ... writes into an array, a = ... only names another one)"


def shape_guess(got, want):
    """Why the shape is another one."""
    shape, extra = want.shape, got.ndim - want.ndim
    if got.shape == shape[::-1]:
        return ": transposed?"
    for i, j in combinations(range(got.ndim), 2):
        if np.swapaxes(got, i, j).shape == shape:
            return f": axes {i} and {j} swapped?"
    if extra == -1 and got.shape == shape[:-1]:
        return ": summed over the last axis, or keepdims=True missing?"
    if extra == -1 and got.shape == shape[1:]:
        return ": is one array returned where (out, cache) is expected, or a [0] too many?"
    if extra == 1 and got.shape == (*shape, 1):
        return ": one axis too many, by keepdims=True?"
    if extra > 0 and got.shape[extra:] == shape:
        return f": not yet summed over the first {extra} axes?"
    return ""


def guesses(got, want, bad, allowed):
    """At most two, the likeliest first. want is float64 or complex; bad tells where got is wrong."""
    kind, got = got.dtype.kind, got.astype(complex if got.dtype.kind == "c" else float)
    why = ()
    if not np.isfinite(got[bad]).all():
        why = not_finite(np.isnan(got), bad & ~np.isfinite(got))
    elif not got.any():
        return ["yours is all zeros: never written, or multiplied by 0?"] if got.ndim else []
    elif np.isfinite(want).all() and abs(got - want).max() > 20 * allowed:
        why = of_numbers(got, want, bad, allowed, kind)
    why = [*islice(why, 1)]
    return [*why, *places(bad, bool(why))][:2]


def of_numbers(got, want, bad, allowed, kind):
    same = lambda a, b: bool((abs(a - b) <= allowed).all())
    clear = 30 * allowed or 0.5  # what differs by this much is no rounding
    values = len(np.unique(np.round(want / clear)))
    fractions = bool((want != np.round(want)).any())
    sure = values > 2 or fractions and abs(want).max() > clear  # 4 for 2 may be anything
    if fractions and kind == "b":
        yield "yours is a mask of booleans"
    yield from stuck(got, want, bad, values, kind in "fc")
    rounded = got.size > 2 and (got == np.round(got)).all() and 0.1 < abs(got - want).max() < 1
    if rounded or fractions and kind in "iu":
        yield "yours are whole numbers: // for /, or an array of integers?"
    yield from elsewhere(got, want, same, values, sure)
    yield from over_axes(got, want) if fractions else ()
    yield from formulas(got, want, same, values > 2, sure, fractions)
    yield from per_axis(got, want, same, bad, clear)


def not_finite(nan, broken):
    rows = nan.all(axis=-1) if nan.ndim > 1 else np.array(False)
    if rows.any() and not rows.all() and (nan.any(axis=-1) == rows).all():
        which = f"{rows.sum()} whole rows" if rows.sum() > 1 else "1 whole row"
        yield (f"NaN in {which}: 0 / 0 (does each row subtract its own maximum?), or all of it is masked, "
               "-inf minus -inf?")
    else:
        which = f"{broken.sum()} of them are" if nan.ndim else "it is"
        yield f"{which} NaN or infinite: an overflow, a log of 0 or a division by 0?"


def stuck(got, want, bad, values, buffer):
    """One number wherever it is wrong. A whole one may be what the test had filled the array with."""
    wrong, one = got[bad], got[bad].flat[0]
    whole = one == np.round(one)
    if got.size > 2 and values > 1 and (got == one).all():
        why = f"was it written? {VIEWS}" if whole else "summed over too many axes?"
        yield f"yours is {one:.6g} everywhere: {why}"
    elif wrong.size > 2 and (wrong == one).all() and whole and buffer and abs(one) > 1 and (
            not want[bad].any() or len(np.unique(want[bad])) > 1):
        yield f"yours is {one:.6g} in all of these: is it what was there before, and was never written?"


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
        why = "places: a reshape where axes must be swapped?" if got.ndim > 1 else "order"
        yield f"the right numbers in {'other ' if got.ndim > 1 else 'another '}{why}"


def over_axes(got, want):
    yours, asked = ([k for k in range(a.ndim) if a.shape[k] > 1 and abs(a.sum(axis=k) - 1).max() < 1e-4]
                    for a in (got, want))
    if yours and asked and not {*yours} & {*asked}:
        yield (f"sums to 1 along axis {yours[0]}, expected along {asked[-1]}: a softmax over the wrong axis, "
               "or a sum?")
    if asked and got.ndim > 1 and abs(got.sum() - 1) < 1e-4:
        yield f"all together sum to 1, expected along axis {asked[-1]}: a softmax without axis=?"


def formulas(got, want, same, many, sure, fractions):
    for text, a in [("1 minus what", 1 - got), ("1 divided by what", 1 / got),
                    ("the square of what", np.sqrt(got)), ("the root of what", got * got),
                    ("the logarithm of what", np.exp(got)), ("the exponential of what", np.log(got))]:
        if (sure or got.size > 8) and same(a, want):
            yield f"yours is {text} is expected"
    scale = np.vdot(got, want) / np.vdot(got, got)
    known = known_factor(scale, got.ndim == 0) if scale else ""
    if scale and (many or sure and known) and same(got * scale, want):
        yield f"right but for a factor: multiply by {scale:.6g}{known}"
    constant = (got - want).mean()
    if many and same(got - constant, want):
        buffer = fractions and isclose(constant.real, np.round(constant.real))  # full of ones, or sevens
        why = ": was that in the array before, and is += there for =, or = for +=?" if buffer else ""
        yield f"right but for a constant {constant:.6g}{why}"


def known_factor(scale, single):
    """What n, 1/n, sqrt(n) or 1/sqrt(n), with a small whole n, stands for; '' for another factor."""
    size, sign = max(abs(scale), 1 / abs(scale)), "-" if scale.real < 0 else ""
    n, square = round(size), round(size**2)
    over = f"{sign}1/" if abs(scale) < 1 else sign
    if 1 < n <= 200 and isclose(size, n, rel_tol=5e-6):
        why = "added twice, or a factor forgotten? " if n == 2 else ""
        why += "a mean for a sum, or the other way round?" + (f" sqrt({n * n})?" if 3 < n < 9 else "")
        return f" = {over}{n} ({why})" if abs(scale) < 1 else f" ({why})"
    if 1 < square <= 200 and isclose(size**2, square, rel_tol=5e-6) and not single:
        return f" = {over}sqrt({square}) (is 1/sqrt(d) missing, or there twice?)"
    return ""


def per_axis(got, want, same, bad, clear):
    for axis in reversed(range(got.ndim if got.ndim > 1 else 0)):
        tells = bad.any(axis=axis) & (abs(want.max(axis=axis) - want.min(axis=axis)) > clear)
        if tells.sum() * (got.shape[axis] - 1) < 3:
            continue
        last = axis == got.ndim - 1
        if same(got - (got - want).mean(axis=axis, keepdims=True), want):
            yield ("right but for a constant per row: is a mean over the last axis missing?" if last else
                   f"the error is the same for every index of axis {axis}: what is added to all of them "
                   "(a bias, positions, their start?) is wrong")
        factor = (got * want).sum(axis=axis, keepdims=True) / (got * got).sum(axis=axis, keepdims=True)
        if same(got * factor, want):
            yield "right but for a factor " + (
                "per row: is a division by the row's sum or length missing?" if last else
                f"that is the same all along axis {axis}: is a weight missing, or applied once too often?")


def places(bad, explained):
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
        elif (not explained and diagonal and axis == bad.ndim - 2 and n == bad.shape[-1]
              and share[-1] == 0 and share[:-1].min() > 0.8):
            yield f"right only at the last index of axis {axis}: is the causal mask missing or off by one?"
