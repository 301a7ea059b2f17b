"""`make ptx` finds in kernels what it is there to find. Where its packages are, it compiles those below."""
import os
import re
import subprocess
import sys

import pytest

from tests import ptx
from tests.test_make import ROOT

KERNELS = '''import math
from kernels.cuda.compiled import F1, ONE, ZERO, cuda, f32, float32, kernel, u32

@cuda.jit(device=True)
def squared(x):
    return x * x

@cuda.jit(device=True, forceinline=True)
def halved(x):
    return math.sqrt(x) * 0.3 + 0.1

def made(factor):
    @kernel(F1, F1)
    def scaled(x, out):
        i = u32(cuda.grid(1))
        if i < x.size:
            out[i] = squared(x[i]) * f32(factor)
    return scaled

for factor in 2, 3, 2:
    made(factor)

@kernel(F1)
def newer(x):
    x[u32(cuda.threadIdx.x)] = ONE

newer.least = (8, 0)
'''
BAD = {
    "bare_zero": ('''@kernel(F1, F1)
def bare_zero(x, out):
    total = 0.0
    for i in range(x.size):
        total += x[i]
    out[0] = total
''', "computes in float64 in line 6, 7: write ZERO"),
    "divided_by_size": ('''@kernel(F1, F1)
def divided_by_size(x, out):
    i = cuda.grid(1)
    if i < x.size:
        out[i] = x[i] / x.size
''', "computes in float64 in line 7: write ZERO"),
    "local_array": ('''@kernel(F1, F1)
def local_array(x, out):
    kept = cuda.local.array(64, float32)
    i = cuda.grid(1)
    for k in range(64):
        kept[(k * k + i) & 63] = x[k]
    for k in range(x.size):
        out[i + k] = kept[int(x[k]) & 63]
''', "keeps 256 bytes in local memory"),
    "tile": ('''def made(SIDE):
    @kernel(F1, F1)
    def tile(x, out):
        sums = cuda.local.array((SIDE, SIDE), float32)
        for i in range(SIDE):
            for j in range(SIDE):
                sums[i, j] = ZERO
        for k in range(x.size):
            for i in range(SIDE):
                for j in range(SIDE):
                    sums[i, j] += x[k + i] * x[k + j + 100]
        for i in range(SIDE):
            for j in range(SIDE):
                out[i * SIDE + j] = sums[i, j]
made(12), made(16)
''', "tile[SIDE=16] (cc 7.5, 8.0, 9.0) spills"),
    "shared": ('''@kernel(F1)
def shared(x):
    kept = cuda.shared.array(13_000, float32)
    t = u32(cuda.threadIdx.x)
    kept[t] = x[t]
    cuda.syncthreads()
    x[t] = kept[12_999 - t]
''', "takes 52,000 bytes of shared memory: at most 49,152"),
    "called": ('''from kernels.cuda.good import halved
@kernel(F1)
def called(x):
    x[0] = halved(x[0])
''', "computes in float64 in line 6: write ZERO"),
    "misspelt": ('''import math
@kernel(F1)
def misspelt(x):
    x[0] = math.squareroot(x[0])
''', "does not compile: module 'math' has no attribute 'squareroot'"),
}
needs_compiler = pytest.mark.skipif(bool(ptx.missing()), reason="make ptx has not installed its packages")


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(ptx, "PACKAGES", ("numba", "no-such-package"))
    assert ptx.main([]) == 2
    assert capsys.readouterr() == ("", "To compile kernels, no-such-package must be installed: make ptx\n")


def check(folder, *subjects):  # -> exit code, output, errors
    done = subprocess.run([sys.executable, "-m", "tests.ptx", *subjects], check=False, cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "LESSONS_PATH": str(folder)})
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stands in front of kernels/, as a learner's workbook does."""
    folder = tmp_path_factory.mktemp("mine")
    room = folder / "kernels" / "cuda"
    room.mkdir(parents=True)
    (room / "good.py").write_text(KERNELS)
    for name, (text, _) in BAD.items():
        (room / f"bad_{name}.py").write_text(KERNELS.splitlines()[1] + "\n\n" + text)
    return folder


@needs_compiler
def test_good_kernels_pass_and_those_of_a_factory_are_told_apart(folder):
    code, output, errors = check(folder, "good")
    assert (code, errors) == (0, "")
    _, _, head, *scaled, newer, _, said = output.splitlines()
    assert head.split()[-6:] == ["cc", "7.5", "cc", "8.0", "cc", "9.0"]
    assert [line.split("  ")[0] for line in scaled] == [
        "good.scaled[factor=2] 1", "good.scaled[factor=3]", "good.scaled[factor=2] 2"]
    assert newer.split()[:2] == ["good.newer", "-"] and "-" not in newer.split()[2:]
    assert said.startswith("4 kernels: no float64")


@pytest.fixture(scope="module")
def found(folder):
    code, output, errors = check(folder, *(f"bad_{name}" for name in BAD))
    assert (code, errors) == (1, "")
    return output


@needs_compiler
@pytest.mark.parametrize("name", BAD)
def test_a_bad_kernel_is_found(found, name):
    start, finding = f"bad_{name}.{name}", BAD[name][1]
    assert any(line.startswith(start) and finding in line for line in found.splitlines()), found


@needs_compiler
def test_spilled_registers_are_found(found):
    assert re.search(r"bad_tile.tile\[SIDE=16\] .* spills \d+ bytes, since 128 registers are too few", found)


@needs_compiler
def test_an_unknown_subject_is_one_line(folder):
    code, output, errors = check(folder, "matmull")
    assert (code, output) == (2, "") and errors.startswith("There is no kernels/cuda/matmull.py. There are: ")
