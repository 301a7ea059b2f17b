"""The ladders of lesson 26: every version is right, counted in the simulator, timed where there is a GPU."""
import math

import numpy as np
import pytest

from kernels.cuda import matmul
from kernels.cuda.compiled import cuda
from kernels.cuda.memory import on_gpu
from lessons import gpu_count
from lessons import gpu_ladder as ladder
from lessons import l26_gpu as lesson

simulated = pytest.mark.skipif(not getattr(cuda, "simulated", False), reason="a GPU tells no addresses")
SMALL = {"transposes": (5, 34), "layernorms": (3, 40), "square_sums": (300,), "products": (9, 5, 3),
         "attentions": (1, 2, 3, 4)}


@pytest.mark.parametrize("name", SMALL)
def test_every_version_is_right(name):
    rungs = getattr(ladder, name)(*SMALL[name])
    assert len(rungs.versions) > 1
    for version in rungs.versions:
        ladder.check(rungs, version)


@pytest.mark.parametrize("wrong", [0.001, 2.0, math.nan])
def test_a_wrong_version_is_neither_counted_nor_timed(wrong):
    rungs = ladder.products(4, 4, 4)
    rungs.versions["wrong"] = lambda: on_gpu(rungs.versions["naive"]().numpy() + np.float32(wrong))
    with pytest.raises(SystemExit, match="matrix product 4 x 4 x 4, wrong: the result is off by"):
        ladder.timing(rungs, "wrong", 1, 1)


@simulated
@pytest.mark.parametrize("version, side", [(0, 1), (1, matmul.TILE), (2, matmul.SIZES[-1].side)])
def test_a_product_reads_and_writes_what_the_lesson_says(version, side):
    M, N, K = 20, 36, 4
    rungs = ladder.products(M, N, K)
    c, _ = gpu_count.counted(rungs, list(rungs.versions)[version])
    assert 4 * (c.read + c.written) == lesson.matmul_bytes(M, N, K, side, side)


@simulated
def test_what_is_counted():
    naive, tiles = (gpu_count.counted(ladder.transposes(32, 32), name)[0] for name in ("naive", "tiles"))
    assert naive == gpu_count.Count(1024, 1024, 128, 1024, needed=256 / 1152, turns=0)
    assert tiles == gpu_count.Count(1024, 1024, 128, 128, needed=1.0, turns=64)
    assert naive.sectors == 1152


@simulated
def test_four_numbers_by_one_instruction_are_one_request():
    c, _ = gpu_count.counted(ladder.products(32, 32, 8), "registers, 32")
    assert c.sectors_read == 2 * 32 * 8 * 4 / 32, "each number of a and b, once"


def test_seconds_is_the_time_of_one_run(monkeypatch):
    clock, runs = [0.0], []

    def run():  # half a second, but the first time, when it is compiled, ten
        clock[0] += 0.5 if runs else 10
        runs.append(clock[0])

    monkeypatch.setattr(ladder.time, "perf_counter", lambda: clock[0])
    assert ladder.seconds(run, rounds=3, each=2.0) == 0.5
    assert len(runs) == 1 + 1 + 3 * 4, "to compile, to see how long it takes, three rounds of four"


@pytest.mark.parametrize("flops, moved, want", [
    (1000, 10, ladder.Timing(2.0, 500.0, "FLOP/s", 0.5)), (10, 1000, ladder.Timing(2.0, 500.0, "B/s", 5.0))])
def test_timing_is_a_share_of_the_limit_that_holds(flops, moved, want, monkeypatch):
    monkeypatch.setattr(ladder, "seconds", lambda run: 2.0)
    rungs = ladder.Ladder("", flops, moved, {"one": lambda: None}, lambda result: 0.0)
    assert ladder.timing(rungs, "one", peak=1000.0, bandwidth=100.0) == want


def test_the_limits_are_measured(monkeypatch):
    monkeypatch.setattr(ladder, "seconds", lambda run: run() or 0.5)
    assert ladder.copy_bandwidth(600) == 8 * 600 / 0.5
    assert ladder.arithmetic_peak(1, 2) == 16 * 2 * 256 / 0.5


def make_small(monkeypatch, sizes):
    made = {name: getattr(ladder, name)(*size) for name, size in sizes.items()}
    for name, rungs in made.items():
        monkeypatch.setattr(ladder, name, lambda *large, rungs=rungs: rungs)


def test_what_is_shown_with_a_gpu(monkeypatch, capsys):
    make_small(monkeypatch, SMALL)
    monkeypatch.setattr(ladder, "check", lambda rungs, version: None)
    monkeypatch.setattr(ladder, "seconds", lambda run: 1e-3)
    monkeypatch.setattr(ladder, "copy_bandwidth", lambda: 1e9)
    monkeypatch.setattr(ladder, "arithmetic_peak", lambda: 1e10)
    monkeypatch.setattr(ladder, "gpu_name", lambda: "NVIDIA Test")
    figure = ladder.climb_all()
    out = capsys.readouterr().out
    assert out.startswith("NVIDIA Test. Limits, measured: 1 GB/s (the kernel copy), 0.0 TFLOP/s")
    assert len(out.splitlines()) == 1 + 5 + 2 + 3 + 3 + 5 + 3, "a line for each ladder and each version"
    assert len(figure.axes[0].lines) == 1 + 4


@simulated
def test_what_is_shown_without_a_gpu(monkeypatch, capsys):
    make_small(monkeypatch, SMALL | {"transposes": (32, 32), "layernorms": (2, 32)})
    figure = lesson.count_all(ladder, gpu_count.counted)
    out = capsys.readouterr().out.splitlines()
    assert out[3] == "  naive                  1,024    1,024       1,152      22%          0          4.5"
    assert out[4] == "  tiles                  1,024    1,024         256     100%         64          1.0"
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[:2] == ["transpose, naive: reads x, 4 times 4 sectors",
                          "transpose, naive: writes out, 4 times 32 sectors"]
    assert len(titles) == 8
    assert all(len(panel.lines) for panel in figure.axes)


def test_the_name_of_a_gpu(monkeypatch):
    for name in "NVIDIA Test", b"NVIDIA Test":
        device = type("Device", (), {"name": name})
        monkeypatch.setattr(ladder.cuda, "get_current_device", lambda device=device: device, raising=False)
        assert ladder.gpu_name() == "NVIDIA Test"
