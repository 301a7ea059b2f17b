"""Who read and wrote what: the accesses of a launch, for the drawings and tables of lesson 26."""
from typing import NamedTuple

from greenlet import getcurrent

CURRENT = None  # a Trace, while one is being made


class Access(NamedTuple):
    memory: str  # "global" or "shared"
    name: str  # of the array
    block: tuple
    thread: int  # in the block; its warp is thread // 32
    line: int  # of the kernel
    visit: int  # how often the thread has come to this line and array before
    address: int  # bytes from the array's beginning
    writes: bool


class Trace(list):
    """Accesses, thread by thread."""

    def __init__(self):
        super().__init__()
        self.visits = {}

    def note(self, array, place, writes, line):
        thread, origin = getcurrent(), array.origin
        key = thread, line, origin.name, writes
        visit = self.visits[key] = self.visits.get(key, -1) + 1
        self.append(Access(origin.memory, origin.name, tuple(thread.block.place), thread.number, line, visit,
                           place * origin.dtype.itemsize, writes))
