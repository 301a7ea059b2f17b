"""A whole encoder-decoder, with padding in source and text, against PyTorch's float64 numbers in
goldens/decoder.npz, in the order of computation: the name in the message is where the first wrong one arises.

goldens/make_decoder_golden.py wrote the file; PyTorch is not needed here.
"""
from types import SimpleNamespace

import numpy as np
import pytest

from lessons import l15_decoder as lesson
from lessons.l14_encoder import encoder_forward
from lessons.parameters import Parameters
from tests.golden import ROOMS, load, of_kind, relative_error, started

CONFIG = lesson.EncoderDecoderConfig(vocab_size=13, block_size=9, n_layer=2, n_head=2, n_embd=6)
GOLDEN = load("decoder")
BATCH = [GOLDEN[name] for name in ("source", "targets", "inputs", "lengths")]
SOURCE, TARGETS, INPUTS, LENGTHS = BATCH
REAL, COUNTED = np.arange(SOURCE.shape[1]) < LENGTHS[:, None], np.count_nonzero(TARGETS >= 0)


def golden(kind):
    return of_kind(GOLDEN, kind)


@pytest.fixture(params=ROOMS)
def room(request):
    return started(request.param, CONFIG, golden("start"))


def loss_and_gradients(room):
    g = Parameters(CONFIG, dtype=room.dtype)
    g.flat[:] = 7  # not zeros: what was there must be gone
    return lesson.encoder_decoder_gradient(room.ops, room.p, BATCH, COUNTED, g), g


def test_the_golden_is_of_this_model():
    assert {name: array.shape for name, array in golden("start").items()} \
        == {name: view.shape for name, view in Parameters(CONFIG).views.items()}


def test_the_golden_has_padding_in_source_and_targets():
    assert SOURCE.shape[1] != INPUTS.shape[1], "which array is the source's is told by its shape"
    assert not REAL.all() and (TARGETS[:, -1] == -1).any() and (TARGETS >= 0).any()


def test_activations_in_the_order_of_computation(room):
    memory, _ = encoder_forward(room.ops, room.p.under("encoder."), SOURCE, LENGTHS)
    outputs = [("encoder_forward", memory)]

    def record(op):
        def recorded(*args, **settings):
            out, cache = op(*args, **settings)
            outputs.append((op.__name__, out.copy()))
            return out, cache
        return recorded

    forward = {name: record(op) for name, op in vars(room.ops).items() if name.endswith("_forward")}
    ops = SimpleNamespace(**vars(room.ops) | forward)
    lesson.decoder_forward(ops, room.p.under("decoder."), INPUTS, memory, LENGTHS)
    assert len(outputs) == len(golden("activation"))
    for (op, got), (name, want) in zip(outputs, golden("activation").items()):
        assert got.dtype == room.dtype, f"{name}, from {op}, is {got.dtype}"
        assert got.shape == want.shape, f"{name}, from {op}, is {got.shape} and not {want.shape}"
        if got.shape[:2] == SOURCE.shape:  # what is computed in the source's padding means nothing
            got, want = got[REAL], want[REAL]
        error = relative_error(got, want)
        assert error <= room.tolerance, f"{name} is the first wrong activation: {op} is off by {error:.1e}"


def test_loss(room):
    loss, _ = loss_and_gradients(room)
    assert loss == pytest.approx(float(GOLDEN["loss"]), rel=room.tolerance)


def test_gradients_from_last_to_first(room):
    _, g = loss_and_gradients(room)
    for name, want in golden("gradient").items():
        if name == "memory":  # where the decoder's gradients end
            continue
        error = relative_error(g[name], want)
        assert error <= room.tolerance, f"{name} has the first wrong gradient: it is off by {error:.1e}"


def test_gradient_of_the_memory(room):
    memory = golden("activation")["memory"].astype(room.dtype)
    p, g = (parameters.under("decoder.") for parameters in (room.p, Parameters(CONFIG, dtype=room.dtype)))
    logits, cache = lesson.decoder_forward(room.ops, p, INPUTS, memory, LENGTHS)
    _, dlogits = room.ops.cross_entropy(logits, TARGETS)
    dmemory = lesson.decoder_backward(room.ops, dlogits, cache, g)
    assert not dmemory[~REAL].any(), "nobody looked at padding, but there is a gradient"
    error = relative_error(dmemory, golden("gradient")["memory"])
    assert error <= room.tolerance, f"dmemory is off by {error:.1e}"
