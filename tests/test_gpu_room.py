"""The tests of kernels/cuda: in the simulator, each file in a process of its own, where numba.cuda is the
simulator; and all of them on the GPU, where there is one.
"""
import subprocess
import sys

import pytest

from kernels.cuda.compiled import problem
from tests.exercises.sheet import ROOT

FILES = sorted(path.name for path in (ROOT / "tests").glob("test_cuda_*.py"))


def passes(*command):
    """Shows what it printed if it fails."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False, text=True,
                          encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES)
def test_in_the_simulator(file):
    passes("tests.cudasim", f"tests/{file}")


def test_the_room_has_the_names_and_signatures_of_the_others_and_refuses_what_they_refuse():
    """All of tests/test_ops.py takes the simulator four minutes; tests/test_cuda_*.py have other oracles."""
    some = "signatures or table or unknown or refuse or same_number"
    passes("tests.cudasim", "tests/test_ops.py", "-k", some)


def test_on_the_gpu():
    if why := problem():
        pytest.skip(why)
    passes("pytest", *(f"tests/{file}" for file in FILES))
