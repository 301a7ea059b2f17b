"""Which thread has written an element: for the messages of failing tests.

It is known for memory that a launch has written, and for copies of it, until the host writes there.
"""
import weakref

import numpy as np

OWNERS = {}  # id of an array that owns its memory -> (weak reference to it, {byte in it: thread})


def owner_of(array):  # -> the array whose memory it is, at which byte of it this one begins
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return owner, array.ctypes.data - owner.ctypes.data


def known(owner):  # -> {byte: thread}
    key = id(owner)
    if key not in OWNERS:
        OWNERS[key] = weakref.ref(owner, lambda _: OWNERS.pop(key, None)), {}
    return OWNERS[key][1]


def note(array, threads):
    """After a launch; threads is {place: thread} of an array in C order."""
    owner, start = owner_of(array)
    known(owner).update({start + place * array.itemsize: thread for place, thread in threads.items()})


def within(array):  # -> {byte in the array: thread}
    owner, start = owner_of(array)
    if id(owner) not in OWNERS:
        return {}
    return {at - start: thread for at, thread in known(owner).items() if 0 <= at - start < array.nbytes}


def forget(array):
    """The host has written there."""
    owner, start = owner_of(array)
    for at in within(array):
        del known(owner)[start + at]


def copied(array, copy):
    known(copy).update(within(array))


def writer(array, index):  # NumPy array, tuple -> "thread 3 of block (0, 1)", or None if it is not known
    """Who wrote this element; "no thread", if kernels have written others of the array and not this one."""
    threads = within(array)
    return str(threads.get(int(np.dot(index, array.strides)), "no thread")) if threads else None
