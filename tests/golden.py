"""What the golden tests share: PyTorch's numbers from goldens/, and a model that starts from them."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lessons import devices
from lessons.parameters import Parameters

ROOMS = {"numpy": (np.float64, 1e-12), "cpu": (np.float32, 1e-5)}  # and the relative error allowed


def load(name):  # -> {name: array}, in the order of the file: that of computation
    with np.load(Path(__file__).parent / f"goldens/{name}.npz") as file:
        return dict(file)


def of_kind(arrays, kind):
    """Those whose names begin with kind/, without it."""
    prefix = f"{kind}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def relative_error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def started(room, config, start):
    """ops, p (with the numbers of start), dtype and tolerance of a room."""
    dtype, tolerance = ROOMS[room]
    p = Parameters(config, dtype=dtype)
    for name, array in start.items():
        p[name][:] = array
    return SimpleNamespace(ops=devices.ops(room), p=p, dtype=dtype, tolerance=tolerance)
