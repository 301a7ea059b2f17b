"""A launch: block after block, in each of them the threads from barrier to barrier."""
import contextlib
import contextvars
import itertools
import operator
import traceback

import numpy as np
from greenlet import getcurrent, greenlet
from numba import types

from tests import cudasim
from tests.cudasim import arrays, floats, trace, writers
from tests.cudasim.arrays import Array, Checked, Fault, Moment, Traced
from tests.cudasim.writers import writer  # noqa: F401  (for those who know run alone)

MOST_THREADS, MOST_SHARED = 1024, 48 * 1024  # of a block; bytes


class Dim3:
    """Three numbers, of which those are shown that the launch has named."""

    def __init__(self, *numbers, named=None):
        self.x, self.y, self.z = map(operator.index, (*numbers, 1, 1)[:3])
        self.named = named or len(numbers)

    def __iter__(self):
        return iter((self.x, self.y, self.z))

    def __str__(self):
        return str(self.x) if self.named == 1 else str((self.x, self.y, self.z)[:self.named])


class Warp:
    def __init__(self):
        self.barriers, self.threads = 0, []


class Block:
    """What the threads of one block share."""

    def __init__(self, function, place, shape, grid, kind):
        self.function, self.place, self.shape, self.grid, self.kind = function, place, shape, grid, kind
        self.barriers, self.shared = 0, {}


class Thread(greenlet):
    """One CUDA thread."""

    def begin(self, block, place, number, warp):
        self.block, self.place, self.number, self.warp = block, place, number, warp
        self.waits, self.answer = None, None
        self.now = Moment(self, block, warp)
        warp.threads.append(self)
        return self

    def __str__(self):
        return f"thread {self.place} of block {self.block.place}"


class Launcher:
    """A compiled kernel: launcher[blocks, threads, stream](arguments)."""

    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments

    def __getitem__(self, shape):
        grid, block = (Dim3(*n) if isinstance(n, tuple) else Dim3(n) for n in shape[:2])
        return lambda *arguments: self.launch(grid, block, arguments)

    def launch(self, grid, shape, arguments):
        name = self.function.__name__
        threads = shape.x * shape.y * shape.z
        if not 1 <= threads <= MOST_THREADS or shape.z > 64:
            raise Fault(f"{name}: a block of {shape} is {threads:,} threads; a GPU takes 1 to "
                        f"{MOST_THREADS:,}, and at most 64 along z")
        if min(grid) < 1 or max(grid.y, grid.z) > 65535:
            raise Fault(f"{name}: a grid of {grid} blocks; a GPU takes at least 1, and 65,535 along y and z")
        if self.function in cudasim.STAND_INS:
            memories = [getattr(value, "host", value) for value in arguments]
            cudasim.STAND_INS[self.function](*memories)
            for memory in memories:
                if isinstance(memory, np.ndarray):
                    writers.forget(memory)
            return
        runs, places = [], every(shape)
        with floats.of_the_gpu():
            context = contextvars.copy_context()
            for order in cudasim.ORDERS:
                if runs and not any(x.changed for _, x in runs[0]):
                    break  # no race was found, so no order gives anything else
                kind = Array if runs else Traced if trace.CURRENT is not None else Checked
                inside, used = wrapped(self.function, self.arguments, arguments, kind)
                for place in every(grid)[::1 if order == "forward" else -1]:
                    block = Block(self.function, place, shape, grid, kind)
                    run_block(block, places, context, inside, order)
                runs.append(used)
        written = [(memory, x) for memory, x in runs[0] if x.wrote or x.changed]
        check_overlaps(name, runs[0], written)
        if len(runs) > 1:
            compare(name, [x for _, x in runs[0]], [x for _, x in runs[1]])
        for memory, x in written:
            memory[...] = x.result()
            writers.note(memory, {place: moment.thread for place, moment in x.wrote.items()}
                         | dict.fromkeys(x.changed, "atomic operations"))


def wrapped(function, kinds, values, kind):  # -> what the kernel gets; of it [(NumPy array, Array)]
    """TypeError if the GPU's compiled kernel would not take it."""
    kernel, names = function.__name__, function.__code__.co_varnames[:function.__code__.co_argcount]
    if not len(names) == len(kinds) == len(values):
        raise TypeError(f"{kernel}: its decorator names {len(kinds)} types for {len(names)} arguments; it "
                        f"was launched with {len(values)}")
    inside, used, seen = [], [], {}
    for name, wanted, value in zip(names, kinds, values):
        value = getattr(value, "host", value)
        if not isinstance(wanted, types.Array):
            if np.ndim(value):
                raise TypeError(f"{kernel}: {name} is an array, wanted is one {wanted}")
            inside.append(np.dtype(str(wanted)).type(value))
            continue
        dtype = np.dtype(str(wanted.dtype))
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != wanted.ndim:
            got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(f"{kernel}: {name} is {got}, wanted is {dtype} with {wanted.ndim} dimensions")
        if not value.flags.c_contiguous:
            raise TypeError(f"{kernel}: {name} is not contiguous")
        same = value.ctypes.data, value.nbytes, dtype
        if same in seen:  # x and out, in place
            inside.append(seen[same].seen_as(name, value.shape))
        else:
            inside.append(kind(value, name, "global"))
            used.append((value, inside[-1]))
            seen[same] = inside[-1]
    return inside, used


def check_overlaps(kernel, used, written):
    for memory, x in written:
        for other, y in used:
            if x is not y and np.may_share_memory(memory, other):
                raise Fault(f"{kernel}: {x.name} and {y.name} share a part of their memory; the simulator "
                            "knows arrays that share all of it, or nothing")


def every(shape):
    ranges = map(range, (shape.z, shape.y, shape.x))
    return [Dim3(x, y, z, named=shape.named) for z, y, x in itertools.product(*ranges)]


def run_block(block, places, context, arguments, order):
    hub, warps, threads = getcurrent(), [], []
    for number, place in enumerate(places):
        if number % 32 == 0:
            warps.append(Warp())
        threads.append(Thread(block.function, hub).begin(block, place, number, warps[-1]))
        threads[-1].gr_context = context
    running = threads if order == "forward" else threads[::-1]
    let_run(running, arguments)
    while running := [thread for thread in running if not thread.dead]:
        if not sum(map(release_warp, warps)):
            release_block(block, threads)
        let_run(running)
    block.shared.clear()


def let_run(threads, arguments=None):
    """Those that wait for nothing, one after the other: they begin, or go on with what they waited for."""
    for thread in threads:
        if thread.waits is None:
            arrays.now = thread.now
            try:
                if arguments is None:
                    thread.switch(thread.answer)
                else:
                    thread.switch(*arguments)
            except Exception as error:  # noqa: BLE001  (it is raised again)
                raise told(thread, error)


def told(thread, error):  # -> the error
    """It says where it comes from, and keeps its type and the kernel's traceback."""
    if not isinstance(error, NotImplementedError):  # an exercise that is not written yet
        function = thread.block.function
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == function.__code__.co_filename]
        line = f", line {lines[-1]}" if lines else ""
        error.args = (f"{function.__name__}{line}, {thread}: {error}",)
    return error


def fail(thread, text):
    arrays.now = thread.now
    try:
        thread.throw(Fault(text))
    except Fault as error:
        raise told(thread, error)


def release_warp(warp):  # -> has it been released?
    """All of its threads must have come to the same shuffle."""
    waiting = [thread for thread in warp.threads if thread.waits == "warp"]
    if not waiting:
        return False
    for thread in warp.threads:
        if thread.dead:
            fail(waiting[0], f"{thread} has ended, and its warp waits here for all of its threads")
    check_sites(waiting, "warp")
    if len(waiting) < len(warp.threads):  # the others wait for the block
        return False
    if waiting[0].orders_memory:
        warp.barriers += 1
    release(waiting)
    return True


def release_block(block, threads):
    """All threads of the block must have come to the same syncthreads."""
    waiting = [thread for thread in threads if thread.waits == "block"]
    if len(waiting) < len(threads):
        away = next(thread for thread in threads if thread.waits != "block")
        state = "has ended" if away.dead else f"waits for its warp in line {line_of(away)}"
        fail(waiting[0], f"{len(waiting)} of {len(threads)} threads of the block have come to this barrier; "
             f"thread {away.place} {state}. All must come to it")
    check_sites(waiting, "block")
    block.barriers += 1
    if block.kind is not Array:
        for array in block.shared.values():
            array.barrier()
    release(waiting)


def check_sites(waiting, whole):
    site = waiting[0].site
    if any(thread.site != site for thread in waiting):
        lines = sorted(set(map(line_of, waiting)))
        fail(waiting[0], f"the threads of a {whole} wait at different places, lines "
             f"{', '.join(map(str, lines))}: all must come to the same one")


def line_of(thread):
    """The line of the kernel in which it waits."""
    frame = thread.gr_frame
    while frame.f_code is not thread.block.function.__code__:
        frame = frame.f_back
    return frame.f_lineno


def release(waiting):
    values = [thread.value for thread in waiting]
    for thread in waiting:
        thread.waits, thread.answer = None, values
        if thread.orders_memory or thread.block.barriers != thread.now.barriers:
            thread.now = Moment(thread, thread.block, thread.warp)


def compare(kernel, ones, others):
    """Sums by atomic operations may differ in the last digits: those are compared as float32 sums can be."""
    for x, y in zip(ones, others):
        one, other = x.result(), y.result()
        same = one == other if x.dtype.kind != "f" else np.isclose(one, other, 1e-4, 1e-6, equal_nan=True)
        if not same.all():
            at = tuple(map(int, np.argwhere(~same)[0]))
            raise Fault(f"{kernel}: {x.name}{list(at)} is {one[at]} when the threads run in order, and "
                        f"{other[at]} when they run in reverse: it matters which of them comes first")


@contextlib.contextmanager
def tracing():
    """`with tracing() as accesses:` notes each read and write of the launches inside."""
    orders, cudasim.ORDERS = cudasim.ORDERS, ["forward"]
    trace.CURRENT = trace.Trace()
    try:
        yield trace.CURRENT
    finally:
        trace.CURRENT, cudasim.ORDERS = None, orders
