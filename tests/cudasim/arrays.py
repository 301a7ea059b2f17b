"""Arrays as a kernel sees them: every index is checked, and every access that races with another is found.

Two threads race if both touch one element, one of them writes, and no barrier stands between: the GPU may run
them in any order. A barrier between threads is syncthreads for a block, and syncwarp for a warp; a shuffle
hands over numbers, and says nothing of memory. Atomic operations do not race with each other. Every access is
compared with all that could race with it. So where no race is found in one order of the threads, no other
order gives another result, but for atomic operations.
"""
import math
import operator
import sys
from collections import defaultdict

import numpy as np

from tests.cudasim import trace

whole = operator.index
now = None  # the Moment of the thread that runs: run.py sets it


class Fault(Exception):
    """A rule of the GPU that a kernel has broken."""


class Moment:
    """Who runs, and how many barriers of its block and its warp have been."""

    __slots__ = "barriers", "block", "thread", "warp", "warp_barriers"

    def __init__(self, thread, block, warp):
        self.thread, self.block, self.warp = thread, block, warp
        self.barriers, self.warp_barriers = block.barriers, warp.barriers

    def before(self, other):
        """Must this one, which was earlier here, be earlier on a GPU?"""
        return self.thread is other.thread or self.block is other.block and (
            self.barriers != other.barriers
            or self.warp is other.warp and self.warp_barriers != other.warp_barriers)


def of_vector(shape, offset):
    size, = shape

    def place(index):
        try:
            i = whole(index[0] if type(index) is tuple else index)
        except TypeError:
            return None
        return offset + i if 0 <= i < size else None
    return place


def of_matrix(shape, offset):
    rows, columns = shape

    def place(index):
        try:
            i, j = index
            i, j = whole(i), whole(j)
        except (TypeError, ValueError):
            return None
        return offset + i * columns + j if 0 <= i < rows and 0 <= j < columns else None
    return place


def of_more(shape, offset):
    def place(index):
        at = 0
        try:
            for i, n in zip(map(whole, index), shape, strict=True):
                if not 0 <= i < n:
                    return None
                at = at * n + i
        except (TypeError, ValueError):
            return None
        return offset + at
    return place


# By dimensions. Each makes a function: index -> which element, counted along the rows; None if it is none.
PLACES = [None, of_vector, of_matrix, of_more]


class Array:
    """Every index is checked. `name` is for messages; memory: "global", "shared" or "local"."""

    def __init__(self, array, name, memory):
        self.name, self.memory, self.origin, self.offset = name, memory, self, 0
        self.shape, self.size, self.ndim = array.shape, array.size, array.ndim
        self.dtype, self.type, self.nbytes = array.dtype, array.dtype.type, array.nbytes
        self.place = PLACES[min(self.ndim, 3)](self.shape, 0)
        self.items = list(array.reshape(-1))  # NumPy's numbers: an array would make one at every access

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        place = self.place(index)
        return self.row(index) if place is None else self.items[place]

    def __setitem__(self, index, value):
        place = self.place(index)
        if place is None:
            raise self.misplaced(index)
        self.items[place] = value if type(value) is self.type else self.number(value, index)

    def change(self, index, function):
        """An atomic operation. Returns what was there before."""
        place = self.place(index)
        if place is None:
            raise self.misplaced(index)
        old = self.items[place]
        self.items[place] = self.number(function(old), index)
        return old

    def result(self):
        return np.array(self.items, self.dtype).reshape(self.shape)

    def row(self, index):
        """x[n] of a matrix."""
        indices = index if type(index) is tuple else (index,)
        error, place = self.misplaced(index), 0
        if isinstance(error, IndexError) or not all(hasattr(i, "__index__") for i in indices):
            raise error
        for i, n in zip(indices, self.shape):
            place = place * n + whole(i)
        view = self.seen_as(f"{self.name}{shown(index)}", self.shape[len(indices):])
        view.origin, view.offset = self.origin, self.offset + place * view.size
        view.place = PLACES[min(view.ndim, 3)](view.shape, view.offset)
        return view

    def misplaced(self, index):
        """IndexError outside of the array, where the GPU would read or write what lies there."""
        indices = index if type(index) is tuple else (index,)
        whole_numbers = all(hasattr(i, "__index__") for i in indices) and len(indices) <= self.ndim
        if whole_numbers and not all(0 <= i < n for i, n in zip(indices, self.shape)):
            return IndexError(f"{self.name}{shown(index)} is outside: its shape is {self.shape}")
        n = f"{self.ndim} whole numbers are its index" if self.ndim > 1 else "a whole number is its index"
        return Fault(f"{self.name}{shown(index)} is no element: {n}")

    def seen_as(self, name, shape):
        """The same memory under another name, in another shape."""
        view = object.__new__(type(self))
        vars(view).update(vars(self), name=name, shape=shape, ndim=len(shape), size=math.prod(shape))
        view.origin = view
        view.place = PLACES[min(view.ndim, 3)](view.shape, view.offset)
        return view

    def number(self, value, index):
        """As this array keeps it."""
        if not isinstance(value, (int, float, np.number, np.bool_)):
            raise Fault(f"{self.name}{shown(index)} = a {type(value).__name__}: a thread writes numbers, one "
                        "at a time")
        if type(value) is np.float64 and self.type is np.float32:
            raise Fault(f"{self.name}{shown(index)} = a float64: f32 and u32 together give one. Write f32(n) "
                        "for a whole number n")
        return self.type(value)


class Checked(Array):
    """Finds races."""

    def __init__(self, array, name, memory):
        super().__init__(array, name, memory)
        self.wrote = {}  # place -> the moment
        self.read, self.changed = defaultdict(set), defaultdict(set)  # place -> all moments since then

    def __getitem__(self, index):
        place = self.place(index)
        if place is None:
            return self.row(index)
        if (when := self.wrote.get(place)) is not None and when is not now:
            self.check(place, "reads", when, "written")
        if self.changed:
            self.check_all(place, "reads", self.changed, "changed")
        self.read[place].add(now)
        return self.items[place]

    def __setitem__(self, index, value):
        place = self.place(index)
        if place is None:
            raise self.misplaced(index)
        self.items[place] = value if type(value) is self.type else self.number(value, index)
        if (when := self.wrote.get(place)) is not None and when is not now:
            self.check(place, "writes", when, "written")
        if place in self.read:
            self.check_all(place, "writes", self.read, "read")
            del self.read[place]
        if place in self.changed:
            self.check_all(place, "writes", self.changed, "changed")
            del self.changed[place]
        self.wrote[place] = now

    def change(self, index, function):
        place = self.place(index)
        old = super().change(index, function)
        if (when := self.wrote.get(place)) is not None:
            self.check(place, "changes", when, "written")
        self.check_all(place, "changes", self.read, "read")
        self.changed[place].add(now)
        return old

    def check_all(self, place, does, moments, did):
        for when in moments.get(place, ()):
            if when is not now:
                self.check(place, does, when, did)

    def check(self, place, does, when, did):
        if when.before(now):
            return
        index = np.unravel_index(place, self.origin.shape)
        element = self.origin.name + shown(tuple(map(int, index)))
        why, who = ("a barrier is missing", f"thread {when.thread.place}") if when.block is now.block else \
            ("blocks do not wait for each other", when.thread)
        raise Fault(f"{why}: it {does} {element}, which {who} has {did}, and nothing says which comes first")

    def barrier(self):
        """Of the whole block, which alone has this memory: nothing from before can race any more."""
        self.wrote.clear()
        self.read.clear()
        self.changed.clear()


class Traced(Checked):
    """Notes every access."""

    def __getitem__(self, index):
        value = super().__getitem__(index)
        if not isinstance(value, Array):
            trace.CURRENT.note(self, self.place(index), False, sys._getframe(1).f_lineno)
        return value

    def __setitem__(self, index, value):
        super().__setitem__(index, value)
        trace.CURRENT.note(self, self.place(index), True, sys._getframe(1).f_lineno)

    def change(self, index, function):
        trace.CURRENT.note(self, self.place(index), True, sys._getframe(2).f_lineno)
        return super().change(index, function)


def shown(index):
    return f"[{', '.join(map(str, index))}]" if isinstance(index, tuple) else f"[{index}]"
