"""Two layers of an RNN and of an LSTM against PyTorch's float64 numbers in goldens/recurrent.npz, in the
order of computation: the name in the message is where the first wrong number arises.

goldens/make_recurrent_golden.py wrote the file; PyTorch is not needed here.
"""
import numpy as np
import pytest

from lessons import devices
from lessons import l11_recurrent as lesson
from tests.golden import ROOMS, load, of_kind, relative_error

GOLDEN = load("recurrent")
PARTS = "w_x", "w_h", "bias"


@pytest.fixture(params=ROOMS)
def room(request):
    return devices.module(request.param, "recurrent"), *ROOMS[request.param]


def assert_right(got, want, name, dtype, tolerance):
    assert got.dtype == dtype, f"{name} is {got.dtype}"
    error = relative_error(got, want)
    assert error <= tolerance, f"{name} is the first that is wrong: it is off by {error:.1e}"


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_two_layers(kind, room):
    ops, dtype, tolerance = room
    start, activation, gradient = (of_kind(GOLDEN, part) for part in ("start", "activation", "gradient"))
    forward, backward = lesson.KINDS[kind]
    x, caches = GOLDEN["x"].astype(dtype), []
    for n in range(2):
        state, *weights = (start[f"{kind}.{n}.{name}"].astype(dtype) for name in ("state", *PARTS))
        x, state, cache = forward(ops, x, state, *weights)
        caches.append(cache)
        for name, got in ("hs", x), ("state", state):
            assert_right(got, activation[f"{kind}.{n}.{name}"], f"{name} of layer {n}", dtype, tolerance)
    dx = GOLDEN["dhs"].astype(dtype)
    for n in 1, 0:
        found = [np.full_like(start[f"{kind}.{n}.{name}"], 7, dtype) for name in PARTS]  # not zeros
        dx, dstate = backward(ops, dx, caches[n], *found)
        for name, got in zip((*PARTS, "state"), (*found, dstate), strict=True):
            assert_right(got, gradient[f"{kind}.{n}.{name}"], f"d{name} of layer {n}", dtype, tolerance)
    assert_right(dx, gradient[f"{kind}.x"], "dx", dtype, tolerance)
