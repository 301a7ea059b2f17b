"""math in kernels: of float32 it gives float32, and inf or NaN where Python's raises an error."""
import contextlib
import math
import types

import numpy as np

USERS = []  # the globals of kernels, and of functions that they call


class Math(types.ModuleType):
    def __getattr__(self, name):
        of_python, of_numpy = getattr(math, name), getattr(np, name, None)
        if not callable(of_python):
            return of_python

        def function(*numbers):
            try:
                result = of_python(*numbers)
            except (OverflowError, ValueError):
                result = of_numpy(*numbers)
            return np.float32(result) if type(numbers[0]) is np.float32 and type(result) is float else result

        setattr(self, name, function)
        return function


MATH = Math("math")


@contextlib.contextmanager
def of_the_gpu():
    """While kernels run: what runs on the host has Python's math."""
    mine = [names for names in USERS if names.get("math") is math]
    for names in mine:
        names["math"] = MATH
    try:
        with np.errstate(all="ignore"):  # whole numbers wrap, 1 / 0 is inf
            yield
    finally:
        for names in mine:
            names["math"] = math
