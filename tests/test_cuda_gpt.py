"""The whole GPT in the GPU's room: its gradients are NumPy's, its training is the CPU's.

In the simulator most steps of training have NumPy's matrix products: the kernel's would be half of the time.
All gradients and Muon, whose products are others, are tried with the kernel's.
"""
import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from kernels.cuda import memory
from kernels.cuda.compiled import cuda, record
from kernels.cuda.memory import Array, on_gpu
from lessons import devices
from lessons.gpu_trainer import REMEMBERED, GPUTrainer
from lessons.l16_gpt import gpt_backward, gpt_forward
from lessons.l18_training import Diverged, Trainer, evaluate, train
from lessons.parameters import Config, Parameters, init_parameters, on_host
from lessons.recipes import RECIPES
from tests import cudasim
from tests.close import assert_close
from tests.cudasim import tiles

CONFIG = Config(vocab_size=5, block_size=3, n_layer=1, n_head=2, n_embd=4)  # each step is a second here
TOKENS = np.random.default_rng(4).integers(0, 5, 60)


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        tiles.small(patch)
        tiles.products_by_numpy(patch)
        yield


def trainer(optimizer="adamw", device="cuda", steps=4, **options):
    recipe = RECIPES[optimizer]._replace(batch=2, steps=steps, warmup=2)
    if device == "cuda":
        return GPUTrainer(devices.ops("cuda"), CONFIG, optimizer, recipe, seed=3, **options)
    return Trainer(devices.ops(device), CONFIG, optimizer, recipe, threads=1, seed=3, **options)


@contextlib.contextmanager
def graphs():
    """The simulator has no driver: a stand-in of the tests notes and plays graphs there."""
    if getattr(cuda, "simulated", False):
        from tests.cudasim import driver
        with driver.graphs() as noted:
            yield noted
    else:
        yield None


@pytest.fixture(scope="module")
def run(small):
    """Four steps of AdamW: a plain one, one that is recorded, two that are played; looked at afterwards."""
    def refuse(array):
        raise AssertionError("a step reads from the GPU")

    with graphs() as noted:
        t = trainer()
        steps = train(t, TOKENS)
        numbers, made = [next(steps)], memory.Block.made
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Array, "numpy", refuse)
            numbers += [next(steps), next(steps)]
        after_three, numbers = t.arrays(), [*numbers, *steps]
        numbers = [(float(loss), float(norm)) for loss, norm in numbers]
        return SimpleNamespace(losses=numbers, arrays=t.arrays(), after_three=after_three,
                               blocks=memory.Block.made - made, noted=noted)


def losses(trainer):
    return [(float(loss), float(norm)) for loss, norm in train(trainer, TOKENS)]


def test_logits_loss_and_all_gradients_are_those_of_numpy_in_float64(monkeypatch):
    monkeypatch.setattr(cudasim, "STAND_INS", {})
    rng, ops = np.random.default_rng(1), {name: devices.ops(name) for name in ("numpy", "cuda")}
    noise = 0.1 * rng.standard_normal(init_parameters(CONFIG).flat.size)
    tokens, targets = rng.integers(0, 5, (2, 2, 3))
    p, g = init_parameters(CONFIG, dtype=float), Parameters(CONFIG, dtype=float)
    p.flat[:] += noise
    gpu_p, gpu_g = (Parameters(CONFIG, on_gpu(x.flat)) for x in (p, g))
    logits, cache = gpt_forward(ops["numpy"], p, tokens)
    gpu_logits, gpu_cache = gpt_forward(ops["cuda"], gpu_p, tokens)
    assert_close(gpu_logits.numpy(), logits, "logits", rtol=1e-4, atol=1e-5)
    loss, dlogits = ops["numpy"].cross_entropy(logits, targets)
    gpu_loss, gpu_dlogits = ops["cuda"].cross_entropy(gpu_logits, targets)
    assert_close(float(gpu_loss), loss, "loss", rtol=1e-5)
    gpt_backward(ops["numpy"], dlogits, cache, g)
    gpt_backward(ops["cuda"], gpu_dlogits, gpu_cache, gpu_g)
    for name in reversed(g.views):
        assert_close(gpu_g[name].numpy(), g[name], f"gradient of {name}", rtol=1e-4, atol=1e-6)


def test_training_has_the_losses_and_norms_of_the_cpu(run):
    want = losses(trainer(device="cpu"))
    assert_close(np.array(run.losses), np.array(want), "loss and norm of each step", rtol=1e-4)
    assert run.noted is None or run.noted.played == 2, "two steps are made plainly, two by the graph"


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_training_with_another_optimizer_has_the_losses_of_the_cpu(optimizer, monkeypatch):
    if optimizer == "muon":
        monkeypatch.setattr(cudasim, "STAND_INS", {})
    with graphs():
        got = losses(trainer(optimizer, steps=3))
    want = losses(trainer(optimizer, "cpu", steps=3))
    assert_close(np.array(got), np.array(want), "loss and norm of each step", rtol=1e-4)


@pytest.mark.parametrize("steps, options", [(3, {"accumulate": 2}), (2, {"accumulate": 2, "dropout": 0.2})])
def test_rows_in_parts_and_dropout_are_those_of_the_cpu(steps, options):
    with graphs() as noted:
        got = losses(trainer(steps=steps, **options))
    want = losses(trainer(device="cpu", steps=steps, **options))
    assert_close(np.array(got), np.array(want), "loss and norm of each step", rtol=1e-4)
    assert noted is None or noted.played == (0 if "dropout" in options else 1)


def test_dropout_has_no_graph():
    """Its seeds are arguments of kernels, and a graph keeps arguments as they were."""
    t = trainer(dropout=0.2)
    t.steps, t.work = 1, lambda: None
    t.step(t.X, t.Y)
    assert t.play is None


def test_after_the_first_step_no_memory_is_asked_for_and_nothing_is_waited_for(run):
    assert run.blocks == 0


def test_a_run_that_is_resumed_has_the_same_bits(run):
    second = trainer()
    second.restore(run.after_three, 3)
    assert losses(second) == run.losses[3:]  # plainly; the run's was played by its graph
    for name, array in second.arrays().items():
        np.testing.assert_array_equal(array, run.arrays[name], err_msg=name)


def test_a_step_that_diverges_changes_nothing_and_nor_does_any_after_it():
    t, broken = trainer(), 3
    with graphs():
        steps = train(t, TOKENS)
        for _ in range(broken - 1):
            next(steps)
        before = t.arrays()
        bias = on_host(t.p)["ln_f"][1][3]
        t.p["ln_f"][1][3:4].set(np.array([np.nan]))
        loss, norm = next(steps)
        t.p["ln_f"][1][3:4].set(np.array([bias]))
        next(steps)
        with pytest.raises(Diverged, match=f"step {broken}: "):
            float(loss)
        with pytest.raises(Diverged, match=f"step {broken}: "):
            float(norm)
        for name, array in t.arrays().items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_evaluate_is_the_cpus():
    tokens = np.random.default_rng(5).integers(0, 5, 12)
    assert_close(evaluate(trainer(), tokens), evaluate(trainer(device="cpu"), tokens), "mean loss", rtol=1e-5)


def test_tokens_of_another_tokenizer_are_refused():
    with pytest.raises(ValueError, match="tokens from 0 to 5 .* a table of 5"):
        next(train(trainer(), np.arange(6)))


def test_the_log_holds_more_steps_than_are_pending_at_once():
    assert REMEMBERED > 2 * 100  # lessons/training_job.py looks at least every 100 steps


def test_a_driver_that_refuses_a_graph_is_a_warning_and_steps_go_on():
    with graphs() as noted:
        if noted is None:
            pytest.skip("only the simulator's driver can be made to refuse")
        noted.cuGraphInstantiate = lambda graph, flags: ("CUDA_ERROR_NOT_SUPPORTED", None)
        calls = []
        with pytest.warns(UserWarning, match="no CUDA graph.*NOT_SUPPORTED"):
            play = record(lambda: calls.append("work"))
        play()
        assert calls == ["work", "work"] and noted.played == 0
        assert noted.noted is None, "the recording has ended"


def test_on_host_gives_the_numbers_of_the_gpu():
    p = init_parameters(CONFIG)
    assert on_host(p) is p
    copy = on_host(Parameters(CONFIG, on_gpu(p.flat)))
    np.testing.assert_array_equal(copy.flat, p.flat)
