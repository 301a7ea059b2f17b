"""A GPU in Python: kernels run thread by thread, slowly, and every mistake against the rules is found.

    from tests import cudasim
    cudasim.install()                           before numba.cuda is imported for the first time
    from kernels.cuda import matmul             its kernels run here now

or, from a shell,  python -m tests.cudasim tests/test_cuda_matmul.py  (pytest in such a process).

A thread is a greenlet, which runs undisturbed to its next barrier, so what happens is the same every time.
These are errors, which name the thread, its block and the line: barriers that some threads do not reach,
reads and writes of two threads with no barrier between them, indices outside of an array (negative ones too),
blocks and shared memory that are too large, arguments of a wrong type. A launch with atomic operations is
made twice, with the threads in order and in reverse: its result must not depend on that. To read memory that
nobody has written is no error, as on a GPU: it is NaN, or -1, and so is what comes of it.

What it cannot know is what a compiler makes of a kernel: whole numbers keep the 32 bits that Numba would
widen to 64 in between (write u32(a * b) where they should wrap), and of float64 it sees only what is stored.
tests/ptx.py reads what is compiled.

run.py      a launch, block by block          arrays.py   what kernels index; races
module.py   what stands for numba.cuda        floats.py   float32, and what stands for math
writers.py  which thread wrote an element     trace.py    who read and wrote what: for lesson 26
"""
import sys

ORDERS = ["forward", "reverse"]  # of the threads
STAND_INS = {}  # a kernel's function -> one of NumPy that does the same: for tests of what stands around it


def install():
    """From now on `from numba import cuda` is the simulator. It has no GPU, and needs none."""
    import numba

    from tests.cudasim import writers
    from tests.cudasim.module import Cuda

    if isinstance(sys.modules.get("numba.cuda"), Cuda):
        return
    numba.cuda = sys.modules["numba.cuda"] = Cuda("numba.cuda")
    from kernels.cuda import memory

    lease = memory.Lease.__init__

    def forget(self, size):
        """What the last owner left must not be read: NaN."""
        lease(self, size)
        self.block.memory.host[...] = 255
        writers.forget(self.block.memory.host)

    memory.Lease.__init__ = forget
