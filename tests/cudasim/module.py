"""What stands for numba.cuda: the part of it that our kernels and kernels/cuda use."""
import functools
import linecache
import sys
import types

import numpy as np
from greenlet import getcurrent

from tests.cudasim import floats, writers
from tests.cudasim.arrays import Array, Fault
from tests.cudasim.run import MOST_SHARED, Launcher

WHOLE_WARP = 0xFFFFFFFF


def unwritten(shape, dtype):
    """NaN, or -1: all bits are set."""
    array = np.empty(shape, dtype if isinstance(dtype, type) else str(dtype))
    array.reshape(-1).view(np.uint8)[:] = 255
    return array


class Shared:
    @staticmethod
    def array(shape, dtype):
        """One for all threads of the block that come to this place in the code."""
        block, frame = getcurrent().block, sys._getframe(1)
        here = frame.f_code, frame.f_lasti
        if here not in block.shared:
            block.shared[here] = block.kind(unwritten(shape, dtype), name_of(*here), "shared")
            if (size := sum(x.nbytes for x in block.shared.values())) > MOST_SHARED:
                raise Fault(f"{size:,} bytes of shared memory: a block may have {MOST_SHARED:,}")
        return block.shared[here]


class Local:
    @staticmethod
    def array(shape, dtype):
        frame = sys._getframe(1)
        return Array(unwritten(shape, dtype), name_of(frame.f_code, frame.f_lasti), "local")


@functools.cache
def name_of(code, instruction):
    """tile, of `tile = cuda.shared.array(...)`. There may be two in one line: `a, b = ...`"""
    line, _, column, _ = list(code.co_positions())[instruction // 2]
    text = linecache.getline(code.co_filename, line)
    names, count = text.split(" = ")[0].split(","), text[:column].count(".array(")
    return names[count].strip() if " = " in text and count < len(names) else "an array"


class Atomic:
    """Each returns what was there before."""

    def add(self, array, index, value):
        return array.change(index, lambda old: old + value)

    def max(self, array, index, value):
        return array.change(index, lambda old: max(old, value))

    def min(self, array, index, value):
        return array.change(index, lambda old: min(old, value))

    def exch(self, array, index, value):
        return array.change(index, lambda old: value)

    def cas(self, array, index, expected, value):
        return array.change(index, lambda old: value if old == expected else old)


class DeviceArray:
    """Memory of the "GPU": the host reaches it by copies only."""

    def __init__(self, host):
        self.host = host
        self.shape, self.size, self.ndim, self.dtype = host.shape, host.size, host.ndim, host.dtype

    def __len__(self):
        return len(self.host)

    def __getitem__(self, index):
        return DeviceArray(self.host[index])

    def reshape(self, *shape):
        return DeviceArray(self.host.reshape(*shape))

    def view(self, dtype):
        return DeviceArray(self.host.view(dtype))

    def copy_to_host(self, out=None, stream=0):
        if out is None:
            out = np.empty(self.shape, self.dtype)
        out[...] = self.host
        writers.copied(self.host, out)
        return out

    def copy_to_device(self, host, stream=0):
        self.host[...] = getattr(host, "host", host)
        writers.forget(self.host)


class Stream:
    """What is queued here is done at once."""

    handle = 0

    def synchronize(self):
        pass


class Cuda(types.ModuleType):
    shared, local, atomic, warpsize = Shared(), Local(), Atomic(), 32
    threadIdx = property(lambda self: getcurrent().place)
    blockIdx = property(lambda self: getcurrent().block.place)
    blockDim = property(lambda self: getcurrent().block.shape)
    gridDim = property(lambda self: getcurrent().block.grid)
    laneid = property(lambda self: getcurrent().number % 32)

    simulated = True  # kernels.cuda.compiled.problem asks

    # the host's side

    def jit(self, signature=None, device=False, **options):
        """`inline`, `fastmath` and the like change speed alone."""
        def compiled(function):
            floats.USERS.append(function.__globals__)
            return function if device else Launcher(function, signature.args)
        return compiled

    def device_array(self, shape, dtype=np.float32, stream=0):
        return DeviceArray(unwritten(shape, dtype))

    def to_device(self, host, stream=0):
        return DeviceArray(np.array(host, order="C"))

    def stream(self):
        return Stream()

    # the kernel's side

    def grid(self, ndim):
        t, b, n = self.threadIdx, self.blockIdx, self.blockDim
        at = b.x * n.x + t.x, b.y * n.y + t.y, b.z * n.z + t.z
        return at[0] if ndim == 1 else at[:ndim]

    def gridsize(self, ndim):
        b, n = self.gridDim, self.blockDim
        size = b.x * n.x, b.y * n.y, b.z * n.z
        return size[0] if ndim == 1 else size[:ndim]

    def syncthreads(self):
        wait("block", None)

    def syncthreads_or(self, value):
        return int(any(wait("block", value)))

    def syncthreads_and(self, value):
        return int(all(wait("block", value)))

    def syncthreads_count(self, value):
        return sum(map(bool, wait("block", value)))

    def syncwarp(self, mask=WHOLE_WARP):
        wait("warp", None, mask, orders_memory=True)

    def shfl_sync(self, mask, value, lane):
        return of_lane(int(lane) % 32, wait("warp", value, mask))

    def shfl_up_sync(self, mask, value, delta):
        me, delta = self.laneid, int(delta)
        return of_lane(me - delta if me >= delta else me, wait("warp", value, mask))

    def shfl_down_sync(self, mask, value, delta):
        me, delta = self.laneid, int(delta)
        return of_lane(me + delta if me + delta < 32 else me, wait("warp", value, mask))

    def shfl_xor_sync(self, mask, value, bits):
        return of_lane(self.laneid ^ int(bits), wait("warp", value, mask))

    def all_sync(self, mask, value):
        return all(wait("warp", value, mask))

    def any_sync(self, mask, value):
        return any(wait("warp", value, mask))

    def ballot_sync(self, mask, value):
        return sum(bool(v) << lane for lane, v in enumerate(wait("warp", value, mask)))

    def fma(self, a, b, c):
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))

    def threadfence(self):
        pass


def wait(whom, value, mask=WHOLE_WARP, orders_memory=False):  # -> the values of all, in the threads' order
    """Until all threads of the block or of the warp have come here: to one instruction, by the same calls."""
    if mask != WHOLE_WARP:
        raise Fault(f"the mask {mask:#x}: only whole warps can be simulated, {WHOLE_WARP:#x}")
    thread, frame, site = getcurrent(), sys._getframe(2), []
    while frame:
        site.append(frame.f_lasti)
        frame = frame.f_back
    thread.waits, thread.value, thread.site, thread.orders_memory = whom, value, site, orders_memory
    return thread.parent.switch()


def of_lane(lane, values):
    if lane >= len(values):
        raise Fault(f"its shuffle asks lane {lane}, which is not there: the block's size must be a multiple "
                    "of 32")
    return values[lane]
