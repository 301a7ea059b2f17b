"""What a version of lesson 26 asks memory for: counted in the simulator, which sees every access."""
from typing import NamedTuple

from kernels.cuda import vectors
from lessons import gpu_or_simulator
from lessons.gpu_ladder import check
from lessons.l26_gpu import LANES, SECTOR, WORD, bank_turns, sectors

FIRST = vectors.load4.__code__.co_firstlineno
VECTOR_LINES = range(FIRST, FIRST + 3)  # in the simulator load4 reads one number after another


class Count(NamedTuple):
    read: int  # numbers that threads ask global memory for
    written: int
    sectors_read: int  # that are sent for it
    sectors_written: int
    needed: float  # of the bytes sent, those that were asked for
    turns: int  # of shared memory

    @property
    def sectors(self):
        return self.sectors_read + self.sectors_written


def requests(trace):  # -> {(memory, array, writes, block, warp, line, visit): addresses of up to 32 threads}
    """A warp asks for what its threads want at once. Four numbers by load4 are one request."""
    found = {}
    for a in trace:
        visit = a.visit // vectors.WIDTH if a.line in VECTOR_LINES else a.visit
        key = a.memory, a.name, a.writes, a.block, a.thread // LANES, a.line, visit
        found.setdefault(key, []).append(a.address)
    return found


def count(requests):  # -> Count
    numbers, touched, asked, turns = [0, 0], [0, 0], 0, 0
    for (memory, _, writes, *_), addresses in requests.items():
        if memory == "shared":
            turns += bank_turns(addresses)
        else:
            numbers[writes] += len(addresses)
            touched[writes] += sectors(addresses)
            asked += WORD * len(set(addresses))
    return Count(*numbers, *touched, asked / (SECTOR * sum(touched)), turns)


def counted(ladder, name):  # -> Count, requests
    """Of one version, which is checked first."""
    with gpu_or_simulator.tracing() as trace:
        check(ladder, name)
    found = requests(trace)
    return count(found), found
