"""The kernels of a GPU's training step. The tests of f are test_f and test_f_*."""
import numpy as np
import pytest

from kernels.cuda import training as gpu
from tests.close import assert_close

f32 = np.float32


@pytest.mark.parametrize("B, T", [(1, 1), (3, 5), (5, 60)])  # 300 threads of two blocks
def test_windows(B, T):
    rng = np.random.default_rng(T)
    tokens = rng.integers(0, 100, 2 * T + 7).astype(np.int32)
    starts = rng.integers(0, len(tokens) - T, B).astype(np.int32)
    starts[0] = len(tokens) - T - 1  # the last that fits
    X, Y = (np.full((B, T), -7, np.int32) for _ in range(2))
    gpu.windows[gpu.blocks_for(B * T, gpu.THREADS), gpu.THREADS](tokens, starts, X, Y)
    assert_close(X, [tokens[s:s + T] for s in starts], "X")
    assert_close(Y, [tokens[s + 1:s + T + 1] for s in starts], "Y, one token after X")


def noted(steps, places=3):
    """note for steps of (loss, square), one after the other -> log, step and scale after each."""
    log, step, seen = np.zeros(2 * places, f32), np.zeros(1, np.int32), []
    for loss, square in steps:
        scale = np.ones(1, f32)
        gpu.note[1, 1](np.array([loss], f32), np.array([square], f32), step, log, scale)
        seen.append((log.copy(), int(step[0]), scale[0]))
    return seen


def test_note_writes_loss_and_norm_one_after_the_other_and_begins_anew():
    seen = noted([(4, 9), (3, 16), (2, 25), (1, 36)])
    assert_close(seen[0][0], [4, 3, 0, 0, 0, 0], "log after one step")
    assert_close(seen[2][0], [4, 3, 3, 4, 2, 5], "log after three steps")
    assert_close(seen[3][0], [1, 6, 3, 4, 2, 5], "log after four steps, which has three places")
    assert [step for _, step, _ in seen] == [1, 2, 3, 4], "step counts the steps"
    assert [scale for _, _, scale in seen] == [1, 1, 1, 1], "scale stays as it is while all is finite"


@pytest.mark.parametrize("loss, square", [(np.nan, 1), (np.inf, 1), (1, np.nan), (1, np.inf), (-np.inf, 4)])
def test_note_stops_all_steps_from_one_that_is_not_finite(loss, square):
    seen = noted([(4, 9), (loss, square), (2, 25), (1, 36), (1, 49)])
    assert seen[0][2] == 1, "the step before is fine"
    for log, step, scale in seen[1:]:
        place = (step - 1) % 3
        assert np.isnan(scale), f"scale of step {step} is {scale}: it is NaN from the broken step on"
        assert np.isnan(log[2 * place:2 * place + 2]).all(), "both numbers of the log say so"


def test_log_numbers_are_pairs():
    assert_close(gpu.log_numbers(np.arange(6, dtype=f32)), [[0, 1], [2, 3], [4, 5]], "log")
