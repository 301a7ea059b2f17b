"""Where the GPU's arrays lie: a pool whose blocks are used again and never given back.

To ask the driver for memory takes longer than most kernels, and waits for all of them. A training step asks
for the same arrays as the step before it: after the first one, all of them are in the pool. An array returns
its block when Python forgets it. Work is queued in order, so the next owner comes after the last user.

Of the free blocks that fit, the one that was made first is taken. So equal steps get equal addresses, and
what a CUDA graph has recorded can be played again.
"""
import bisect
import functools
import math

import numpy as np

from kernels.cuda.compiled import F1, F, U, blocks_for, cuda, f32, kernel, stream, u32

FREE = {}  # bytes -> blocks, in the order in which they were made
ROUND = 256  # bytes: what the GPU's memory is aligned to


class Block:
    """Memory, and the views of it that were made: to make one takes longer than to launch a kernel."""

    made = 0

    def __init__(self, size):
        Block.made += 1
        self.number, self.size, self.views = Block.made, size, {}
        self.memory = cuda.device_array(size, np.uint8, stream=stream())

    def __lt__(self, other):
        return self.number < other.number

    def view(self, start, shape, dtype):
        key = start, shape, dtype
        if key not in self.views:
            stop = start + math.prod(shape) * dtype.itemsize
            self.views[key] = self.memory[start:stop].view(dtype).reshape(shape)
        return self.views[key]


class Lease:
    """A block in use, by one array and the views of it. It ends when the last of them is forgotten."""

    def __init__(self, size):
        free = FREE.get(size)
        self.block = free.pop(0) if free else Block(size)

    def __del__(self):
        if hasattr(self, "block"):  # not if there was no memory for one
            bisect.insort(FREE.setdefault(self.block.size, []), self.block)


class Array:
    """Numbers on the GPU, in C order. x.T is the same memory, read with rows and columns swapped."""

    def __init__(self, lease, start, shape, dtype, transposed=False):
        self.lease, self.start, self.transposed = lease, start, transposed
        self.shape, self.dtype, self.size, self.ndim = shape, dtype, math.prod(shape), len(shape)

    @property
    def data(self):
        """What a kernel takes: a device array of this shape, or if transposed, of the one in memory."""
        shape = self.shape[::-1] if self.transposed else self.shape
        return self.lease.block.view(self.start, shape or (1,), self.dtype)

    @property
    def T(self):
        turned = self.ndim > 1 and not self.transposed
        return Array(self.lease, self.start, self.shape[::-1], self.dtype, turned)

    def __len__(self):
        return self.shape[0]

    def reshape(self, *shape):
        """One size may be -1: what is left. Not of a transposed array."""
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        if -1 in shape:
            rest = -math.prod(shape)
            shape = tuple(self.size // rest if n == -1 else n for n in shape)
        if self.transposed or math.prod(shape) != self.size:
            raise ValueError(f"an array of shape {self.shape} cannot be reshaped to {shape}")
        return Array(self.lease, self.start, shape, self.dtype)

    def __getitem__(self, index):
        """x[3], or x[2:5]: rows, which lie together. No copy."""
        index = (slice(index, index + 1) if index >= 0 else slice(index, index + 1 or None)) \
            if (single := not isinstance(index, slice)) else index
        start, stop, step = index.indices(len(self))
        if self.transposed or step != 1:
            raise IndexError("on the GPU an array gives rows that lie side by side, and no others")
        row = self.size // max(1, len(self)) * self.dtype.itemsize
        shape = self.shape[1:] if single else (max(0, stop - start), *self.shape[1:])
        return Array(self.lease, self.start + start * row, shape, self.dtype)

    def numpy(self):
        """A copy for the host: waits until all that was queued before is done."""
        host = self.data.copy_to_host(stream=stream())
        stream().synchronize()
        return host.T if self.transposed else host.reshape(self.shape)

    def set(self, host):
        """Copy host's numbers here."""
        host = np.asarray(host, self.dtype)
        host = host.T if self.transposed else host
        self.data.copy_to_device(np.ascontiguousarray(host).reshape(self.data.shape), stream=stream())

    def __setitem__(self, index, value):
        """x[:] = a number, or the host's array. Rows as in x[index]."""
        part = self[index]
        if isinstance(value, np.ndarray):
            part.set(value)
        elif part.size:
            fill[blocks_for(part.size, 256), 256](part.reshape(-1), value, part.size)

    def __add__(self, other):
        return plus(empty(self.shape), self, other)

    def __iadd__(self, other):
        return plus(self, self, other)

    def __radd__(self, other):
        """sum() begins with the number 0."""
        return self

    def __float__(self):
        return float(self.numpy())


@kernel(F1, F, U)
def fill(x, value, n):
    i = u32(cuda.grid(1))
    if i < n:
        x[i] = value


@kernel(F1, F1, F1, U)
def add(x, y, out, n):
    i = u32(cuda.grid(1))
    if i < n:
        out[i] = x[i] + y[i]


def plus(out, x, y):
    if x.shape != y.shape or x.transposed or y.transposed:
        raise ValueError(f"arrays of shapes {x.shape} and {y.shape} cannot be added")
    add[blocks_for(out.size, 256), 256](x.reshape(-1), y.reshape(-1), out.reshape(-1), out.size)
    return out


def empty(shape, dtype=f32):  # -> Array of numbers that were there before: NaN, in the simulator
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(map(int, shape)), np.dtype(dtype)
    size = max(1, math.prod(shape)) * dtype.itemsize
    return Array(Lease(-(-size // ROUND) * ROUND), 0, shape, dtype)


def on_gpu(x, dtype=f32):  # NumPy array or Array -> Array
    if isinstance(x, Array):
        return x
    array = empty(np.shape(x), dtype)
    array.set(x)
    return array


def op(function):
    """NumPy arrays among the arguments are copied to the GPU, and after the operation back, as with Numba's
    kernels; whole numbers become int32. If there is no Array among them, results come as NumPy arrays too."""
    @functools.wraps(function)
    def call(*arguments, **options):
        hosts, stays = [], any(isinstance(x, Array) for x in (*arguments, *options.values()))

        def to_gpu(x):
            if not isinstance(x, np.ndarray):
                return x
            hosts.append((x, on_gpu(x, f32 if x.dtype.kind == "f" else np.int32)))
            return hosts[-1][1]

        result = function(*map(to_gpu, arguments), **{name: to_gpu(x) for name, x in options.items()})
        for host, array in hosts:
            if host.dtype.kind == "f":
                host[...] = array.numpy()
        if stays:
            return result
        return tuple(map(to_host, result)) if isinstance(result, tuple) else to_host(result)
    return call


def to_host(x):
    return x if not isinstance(x, Array) else x.numpy() if x.shape else x.numpy().item()
