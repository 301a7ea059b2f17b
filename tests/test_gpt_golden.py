"""The whole GPT against PyTorch's float64 numbers in goldens/gpt.npz, in the order of computation.

Every step is compared with its golden before the next one is looked at, so the name in the message is where
the first wrong number arises. goldens/make_gpt_golden.py wrote the file; PyTorch is not needed here.
"""
from types import SimpleNamespace

import numpy as np
import pytest

from lessons.l10_optimizers import clip_scale
from lessons.l16_gpt import gpt_backward, gpt_forward
from lessons.parameters import Config, Parameters
from tests.golden import ROOMS, load, of_kind, relative_error, started

CONFIG = Config(vocab_size=23, block_size=12, n_layer=2, n_head=2, n_embd=16)
GOLDEN = load("gpt")
TOKENS, TARGETS = GOLDEN["tokens"], GOLDEN["targets"]


def golden(kind):
    return of_kind(GOLDEN, kind)


@pytest.fixture(params=ROOMS)
def room(request):
    return started(request.param, CONFIG, golden("start"))


def recording(ops, outputs):
    """ops whose forward operations also append a copy of what they return to outputs."""
    def record(op):
        def recorded(*args, **settings):
            out, cache = op(*args, **settings)
            outputs.append((op.__name__, out.copy()))
            return out, cache
        return recorded
    forward = {name: record(op) for name, op in vars(ops).items() if name.endswith("_forward")}
    return SimpleNamespace(**vars(ops) | forward)


def loss_and_gradients(room):
    g = Parameters(CONFIG, dtype=room.dtype)
    g.flat[:] = 7  # not zeros: what was there must be gone
    logits, cache = gpt_forward(room.ops, room.p, TOKENS)
    loss, dlogits = room.ops.cross_entropy(logits, TARGETS)
    gpt_backward(room.ops, dlogits, cache, g)
    return loss, g


def test_the_golden_is_of_this_model():
    assert {name: array.shape for name, array in golden("start").items()} \
        == {name: view.shape for name, view in Parameters(CONFIG).views.items()}


def test_activations_in_the_order_of_computation(room):
    outputs = []
    gpt_forward(recording(room.ops, outputs), room.p, TOKENS)
    assert len(outputs) == len(golden("activation"))
    for (op, got), (name, want) in zip(outputs, golden("activation").items()):
        assert got.dtype == room.dtype, f"{name}, from {op}, is {got.dtype}"
        error = relative_error(got, want)
        assert error <= room.tolerance, f"{name} is the first wrong activation: {op} is off by {error:.1e}"


def test_loss(room):
    loss, _ = loss_and_gradients(room)
    assert loss == pytest.approx(float(GOLDEN["loss"]), rel=room.tolerance)


def test_gradients_from_last_to_first(room):
    _, g = loss_and_gradients(room)
    for name, want in golden("gradient").items():
        error = relative_error(g[name], want)
        assert error <= room.tolerance, f"{name} has the first wrong gradient: it is off by {error:.1e}"


def test_ten_steps_of_adamw_on_one_batch(room):
    lr, beta1, beta2, eps, weight_decay, clip = (float(x) for x in GOLDEN["settings"])
    p, n, C = room.p, room.p.flat.size, CONFIG.n_embd
    m, v = np.zeros(n, room.dtype), np.zeros(n, room.dtype)
    for step in range(1, 11):
        loss, g = loss_and_gradients(room)
        norm = room.ops.gradient_norm_squared(g.flat[None], 0, n) ** 0.5
        for got, kind in (loss, "losses"), (norm, "norms"):
            want = pytest.approx(GOLDEN[kind][step - 1], rel=room.tolerance)
            assert got == want, f"{kind}: step {step} is wrong"
        for part, decay in (slice(0, p.parts["vectors"].start), weight_decay), (p.parts["vectors"], 0.0):
            room.ops.adamw(p.flat[part], g.flat[part], m[part], v[part], lr, beta1, beta2, eps, decay, step,
                           clip_scale(norm, clip))
    for name, want in golden("end").items():
        got = p[name]
        if name.endswith("attn.c_attn.bias"):
            # The keys' bias moves all scores of a query alike: its gradient is rounding, which Adam follows.
            got, want = (np.delete(a, slice(C, 2 * C)) for a in (got, want))
        error = relative_error(got, want)
        assert error <= 10 * room.tolerance, f"{name} after ten steps is off by {error:.1e}"
