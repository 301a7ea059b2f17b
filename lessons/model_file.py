"""A trained model of lessons 3, 4 and 11 as one file: its arrays, how long it took, its text.

The league of lesson 20 reads these files. The GPT has a folder of its own (run_folder.py).
"""
import math
import tempfile
import tokenize
import zipfile
from pathlib import Path

import numpy as np

from lessons.errors import InputError
from lessons.l17_weights import write_atomically
from lessons.run_folder import set_aside
from lessons.texts import checksum

# What NumPy and zipfile raise for files of another kind, and for damaged ones.
NO_MODEL = (ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile,
            tokenize.TokenError)


def check_place(path):
    """InputError, before minutes of training and not after them, if save_model could not write there."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass  # there is room for a file, and it may be made
        if path.exists():
            with np.load(path) as file:
                if "sha256" not in file:
                    raise ValueError("another program's arrays")
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror}; name another file") from None
    except NO_MODEL:
        raise InputError(f"{path} is there, and no model of lessons 3, 4 or 11: name another file") from None


def save_model(path, text, seconds, **arrays):
    """The arrays (numbers too) are what load_model gives back. `text` is the whole one, with its last tenth.
    An earlier file of that name is kept: its name gets .1, .2, ... behind."""
    path = Path(path)
    check_place(path)
    if path.exists():
        print(f"The earlier model is kept as {set_aside(path)}.")

    def write(temporary):
        with open(temporary, "wb") as file:  # savez would put .npz behind a name
            np.savez(file, seconds=seconds, sha256=checksum(text), **arrays)
    write_atomically(path, write)


def load_model(path, text):  # -> {name: array}, seconds of training
    """InputError if the file is missing or damaged, or if the model did not learn from this very text."""
    try:
        with np.load(path) as file:  # refuses pickled objects, which could run code
            arrays = dict(file)
        seconds, digest = float(arrays.pop("seconds")), str(arrays.pop("sha256"))
        if not 0 <= seconds < math.inf:
            raise ValueError("no time")
    except FileNotFoundError:
        raise InputError(f"there is no model {path}: train one, or name another file") from None
    except (OSError, *NO_MODEL):
        raise InputError(f"{path} is damaged or no model of lessons 3, 4 or 11: train anew") from None
    if digest != checksum(text):
        raise InputError(f"{path} learned from another text: train anew, or move it away")
    return arrays, seconds
