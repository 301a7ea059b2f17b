"""What `make bench` times on a GPU, at sizes that the simulator can do: the right work, the right numbers."""
import os
import subprocess
import sys

import numpy as np
import pytest

from lessons import devices
from lessons.l13_block import linear_gelu_forward
from lessons.parameters import Config
from tests.benchmarks import configs, gpu, gpu_ours
from tests.close import assert_close

SMALL = {"matmul": (5, 3, 4), "attention": (1, 1, 3, 4), "layer norm": (3, 8), "layer norm backward": (3, 8),
         "gelu": (3, 5), "cross-entropy": (4, 7), "AdamW": (20,), "copy": (40,)}


def want(name, *sizes):  # -> results, by the lessons in float64
    ops = devices.ops("numpy")
    arrays = [x.astype(float) if x.dtype.kind == "f" else x for x in gpu.inputs(name, *sizes)]
    if name == "matmul":
        return [arrays[0] @ arrays[1]]
    if name == "attention":
        out, cache = ops.self_attention_forward(arrays[0], sizes[1])
        return [out, ops.self_attention_backward(arrays[1], cache)]
    if name == "layer norm":
        return [ops.layernorm_forward(*arrays[:3])[0]]
    if name == "layer norm backward":
        dweight, dbias = np.empty((2, sizes[1]))
        _, cache = ops.layernorm_forward(*arrays[:3])
        return [ops.layernorm_backward(arrays[3], cache, dweight, dbias), dweight, dbias]
    if name == "gelu":
        gelu = lambda y: linear_gelu_forward(y, np.eye(sizes[1]), arrays[1])[0]
        return [gelu(arrays[0]), (gelu(arrays[0] + 1e-6) - gelu(arrays[0] - 1e-6)) / 2e-6]
    if name == "cross-entropy":
        return list(ops.cross_entropy(*arrays, sizes[0]))
    if name == "AdamW":
        (p, g), m, v = arrays, np.zeros(sizes), np.zeros(sizes)
        ops.adamw(p, g, m, v, configs.LR, *configs.BETAS, configs.EPS, configs.WEIGHT_DECAY, 1, 1.0)
        return [p, m, v]
    return arrays


@pytest.mark.parametrize("name", [*SMALL, "attention, materialised"])
def test_an_operation_is_the_one_that_it_is_called(name):
    subject = name.partition(", ")[0]
    results = gpu_ours.operation(name, *SMALL[subject])()
    for i, (got, right) in enumerate(zip(results, want(subject, *SMALL[subject]), strict=True)):
        assert_close(got.numpy(), np.asarray(right), f"{name}, result {i}", rtol=1e-4, atol=1e-5)


def test_every_operation_has_its_bytes_and_its_sizes():
    assert SMALL.keys() == gpu.SIZES.keys()
    assert gpu.MOVES.keys() == gpu.SIZES.keys() - {"matmul", "attention"}
    assert gpu.MOVES["AdamW"](10) == 280
    assert gpu.MOVES["layer norm"](3, 8) == 192


def test_a_sample_shows_all_of_a_small_result_and_some_of_a_large_one():
    found = gpu.sample([np.arange(5), np.arange(100_000).reshape(1000, 100)])
    assert found["0"].tolist() == [0, 1, 2, 3, 4]
    assert found["1"].tolist() == list(range(0, 100_000, 10))


def test_the_largest_error_is_relative_to_the_largest_number(tmp_path):
    np.savez(tmp_path / "want.npz", a=np.array([1.0, -10.0]), b=np.array([1.0]))
    np.savez(tmp_path / "got.npz", a=np.array([1.5, -10.0]), b=np.array([1.01]))
    assert gpu.largest_error(tmp_path / "got.npz", tmp_path / "want.npz") == pytest.approx(0.05)


def test_lines_of_the_table():
    M, N, K = gpu.SIZES["matmul"]
    second = 2 * M * N * K / 1e13
    line = gpu.line("matmul", {"ours": [2 * second] * 2, "PyTorch": [second] * 2}, 1e-6)
    assert line[:3] == ["matmul", "5.0 TFLOP/s", "10.0 TFLOP/s"]
    assert line[3:] == ["50.00 % [50.00 .. 50.00]", "50 % / 80 %", "1e-06"]
    line = gpu.line("attention", {"ours": [0.001], "PyTorch": [0.002], "materialised": [0.003]}, 1e-6)
    assert line[1:5] == ["1.00 ms", "2.00 ms", "3.00 x [3.00 .. 3.00]", "1 x / 3 x"]
    seconds = {"ours": [gpu.MOVES["AdamW"](*gpu.SIZES["AdamW"]) / 8e11], "PyTorch": [1.0],
               "copy": [gpu.MOVES["copy"](*gpu.SIZES["copy"]) / 1e12]}
    line = gpu.line("AdamW", seconds, 1e-6)
    assert (line[1], line[3], line[4]) == ("800 GB/s", "80.00 % [80.00 .. 80.00]", "70 % / 90 %")


def test_both_devices_lose_the_same():
    """One step: all that follow are one CUDA graph (test_cuda_gpt.py)."""
    on_gpu, on_cpu = gpu_ours.both_losses(Config(5, 2, 1, 1, 4), 1, 1)
    assert_close(on_gpu, on_cpu, "losses", rtol=1e-4)


def test_without_a_gpu_one_line_says_why_it_is_left_out():
    code = "import types; from tests.benchmarks import gpu; gpu.run(types.SimpleNamespace(rounds=1))"
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, CUDA_VISIBLE_DEVICES="-1"),
                          capture_output=True, text=True, check=True)
    assert done.stdout.startswith("GPU: left out, since ")
    assert len(done.stdout.splitlines()) == 2
