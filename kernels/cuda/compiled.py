"""How the kernels of this room are compiled and launched. No other file imports numba's cuda.

    @kernel(F2, F2, U)                          what it takes: two matrices, a whole number
    def double(x, out, n): ...                  runs once in every thread
    double[blocks, threads](x, out, n)          starts blocks * threads threads

House rules, each of them found necessary:
- A bare 0.0 or 0.5 is a float64 to Numba, and a GPU has few units for those: ZERO, ONE, f32(0.5), f32(n).
- Indices are unsigned, u32(cuda.threadIdx.x): a signed one may be negative, and costs a test at every access.
- math.exp, not np.exp. max and min take two numbers of one type.
- Every thread of a block comes to every cuda.syncthreads(): no early return before one.
- The grid follows the data, never the number of processors of one GPU.
"""
import ctypes
import functools
import importlib.util
import sys
import warnings

import numpy as np
from numba import float32, int32, uint32, void

if not hasattr(np, "row_stack"):  # NumPy 2.5 has dropped it, numba-cuda 0.30 asks for it
    np.row_stack = np.vstack
PACKAGE = next((name for name in ("numba_cuda", "numba_cuda_mlir") if importlib.util.find_spec(name)), None)
if PACKAGE == "numba_cuda_mlir" and "numba.cuda" not in sys.modules:
    from numba_cuda_mlir import cuda  # numba-cuda's successor
else:
    from numba import cuda  # numba-cuda, if it is installed; the simulator, where one stands in its place

f32, i32, u32 = np.float32, np.int32, np.uint32
ZERO, ONE, WARP = f32(0), f32(1), u32(32)
F, U = float32, uint32  # a number
F1, F2, F3, F4 = float32[::1], float32[:, ::1], float32[:, :, ::1], float32[:, :, :, ::1]  # arrays in C order
I1, I2 = int32[::1], int32[:, ::1]
KERNELS = []  # all, for the check of what they compile to (tests/ptx.py)
REGISTERS = 128  # of a thread, at most: a processor has 65,536, enough for two blocks of 256 threads

# `inline` decorates what kernels call. The compiler copies it in; Numba itself would take much longer to.
INLINE = {"numba_cuda": {"forceinline": True}, "numba_cuda_mlir": {"inline": "always"}}
inline = cuda.jit(device=True, **INLINE.get(PACKAGE, {}))


class Kernel:
    """kernel[blocks, threads](arguments): blocks and threads are numbers, or tuples of up to three."""

    def __init__(self, function, arguments, fastmath):
        functools.update_wrapper(self, function)
        self.arguments, self.fastmath = arguments, fastmath
        KERNELS.append(self)

    @functools.cached_property
    def compiled(self):
        decorate = cuda.jit(void(*self.arguments), fastmath=self.fastmath, max_registers=REGISTERS)
        return decorate(self.__wrapped__)

    def __getitem__(self, shape):
        blocks, threads = shape
        launcher = self.compiled[blocks, threads, stream()]
        return lambda *values: launcher(*[typed(*each) for each in zip(self.arguments, values, strict=True)])


def typed(wanted, value):
    """Whole numbers of Python would be int64 to Numba, its fractions float64. An Array gives its memory."""
    if wanted is F or wanted is U:
        return (f32 if wanted is F else u32)(value)
    return value if isinstance(value, np.ndarray) else value.data


def kernel(*arguments, fastmath=False):
    """Decorator: arguments are types, of those above. Compiled at the first launch."""
    return lambda function: Kernel(function, arguments, fastmath)


def blocks_for(n, each):  # int, int -> int
    """How many blocks of `each` cover n: the last one may be partly outside. At least one."""
    return max(1, -(-n // each))


@functools.cache
def stream():
    """Where all work is queued, in order."""
    return cuda.stream()


def record(work):  # -> play
    """Call work() once, but let the GPU only note what it launches: a CUDA graph. play() queues all of it,
    with the same arguments, in about the time of one launch. work has run before, so that all is compiled,
    and copies nothing from or to the host. What it reads and writes must stay where it is.

    Where there are no graphs, play is work itself; a driver that refuses one is a warning."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return work

    def asked(function, *arguments):
        error, *values = function(*arguments)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{function.__name__}: {error}")
        return values[0] if values else None

    handle, mode = int(stream().handle), driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    try:
        asked(driver.cuStreamBeginCapture, handle, mode)
        try:
            work()
        finally:
            graph = asked(driver.cuStreamEndCapture, handle)
        ready = asked(driver.cuGraphInstantiate, graph, 0)
    except RuntimeError as error:
        warnings.warn(f"no CUDA graph, so each kernel is launched by itself ({error})", stacklevel=2)
        return work
    return lambda: asked(driver.cuGraphLaunch, ready, handle)


@functools.cache
def problem():  # -> one line, or None
    """Why no kernel can run here; None if they can."""
    if getattr(cuda, "simulated", False):
        return None
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA GPU with its driver here"
    if PACKAGE is None:
        return "the package numba-cuda is missing, which `python3 environment.py cuda` installs"
    try:
        capability = cuda.get_current_device().compute_capability
    except Exception as error:  # noqa: BLE001  (the driver has many ways to say no)
        return f"the GPU cannot be used: {str(error).strip().splitlines()[-1]}"
    if capability < (7, 5):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; 7.5 or newer is needed"
    return None
