"""Where lesson 26 runs kernels: on a GPU, or in the simulator that the tests use."""
import sys


def choose():  # -> why kernels run in the simulator, None on a GPU
    """To be called before anything else of kernels/cuda is imported. The one place where a lesson needs the
    tests: without a GPU, their simulator is the only one there is."""
    from kernels.cuda import compiled
    why = "numba.cuda is the simulator" if getattr(compiled.cuda, "simulated", False) else compiled.problem()
    if compiled.problem():
        from tests import cudasim
        del sys.modules["kernels.cuda.compiled"]  # it holds the real numba.cuda: to be imported once more
        cudasim.install()
    return why


def tracing():
    """`with tracing() as accesses:` notes what kernels launched inside read and write. Simulator only."""
    from tests.cudasim import run
    return run.tracing()
