"""A whole encoder with padding against PyTorch's float64 numbers in goldens/encoder.npz, in the order of
computation: the name in the message is where the first wrong number arises.

goldens/make_encoder_golden.py wrote the file; PyTorch is not needed here.
"""
from types import SimpleNamespace

import numpy as np
import pytest

from lessons.l14_encoder import mlm_gradient
from lessons.parameters import Config, Parameters
from tests.golden import ROOMS, load, of_kind, relative_error, started

CONFIG = Config(vocab_size=23, block_size=8, n_layer=2, n_head=2, n_embd=8)
GOLDEN = load("encoder")
BATCH = TOKENS, TARGETS, LENGTHS = GOLDEN["tokens"], GOLDEN["targets"], GOLDEN["lengths"]
REAL, MASKED = np.arange(TOKENS.shape[1]) < LENGTHS[:, None], np.count_nonzero(TARGETS >= 0)


def golden(kind):
    return of_kind(GOLDEN, kind)


@pytest.fixture(params=ROOMS)
def room(request):
    return started(request.param, CONFIG, golden("start"))


def loss_and_gradients(room, ops):
    g = Parameters(CONFIG, dtype=room.dtype)
    g.flat[:] = 7  # not zeros: what was there must be gone
    return mlm_gradient(ops, room.p, BATCH, MASKED, g), g


def test_the_golden_is_of_this_model():
    assert {name: array.shape for name, array in golden("start").items()} \
        == {name: view.shape for name, view in Parameters(CONFIG).views.items()}


def recording(ops, outputs):
    """ops whose forward operations also append what they return to outputs, attention's rows end to end."""
    def record(op):
        def recorded(*args, **settings):
            out, cache = op(*args, **settings)
            if outputs and outputs[-1][0] == op.__name__ == "self_attention_forward":
                outputs[-1] = op.__name__, np.concatenate([outputs[-1][1], out], axis=1)
            else:
                outputs.append((op.__name__, out.copy()))
            return out, cache
        return recorded
    forward = {name: record(op) for name, op in vars(ops).items() if name.endswith("_forward")}
    return SimpleNamespace(**vars(ops) | forward)


def real(x):  # (B, T, K), (1, N, K) or (N, K) -> (N, K)
    return x[REAL] if x.shape[:2] == REAL.shape else x.reshape(-1, x.shape[-1])


def test_activations_in_the_order_of_computation(room):
    outputs = []
    loss_and_gradients(room, recording(room.ops, outputs))
    assert len(outputs) == len(golden("activation"))
    for (op, got), (name, want) in zip(outputs, golden("activation").items()):
        assert got.dtype == room.dtype, f"{name}, from {op}, is {got.dtype}"
        error = relative_error(real(got), real(want))
        assert error <= room.tolerance, f"{name} is the first wrong activation: {op} is off by {error:.1e}"


def test_loss(room):
    loss, _ = loss_and_gradients(room, room.ops)
    assert loss == pytest.approx(float(GOLDEN["loss"]), rel=room.tolerance)


def test_gradients_from_last_to_first(room):
    _, g = loss_and_gradients(room, room.ops)
    for name, want in golden("gradient").items():
        error = relative_error(g[name], want)
        assert error <= room.tolerance, f"{name} has the first wrong gradient: it is off by {error:.1e}"
