"""The texts that come with the course, by name, and any other text file."""
import codecs
import hashlib
import pathlib

import numpy as np

from lessons.errors import InputError

DATA = pathlib.Path(__file__).parent.parent / "data"


def read_text(name):
    """The text called `name` in data/, or of the UTF-8 file `name`. InputError says what is wrong with it.
    A byte-order mark goes, and the line ends of Windows become \\n: they would be tokens of their own."""
    path = DATA / f"{name}.txt" if name in names() else pathlib.Path(name)
    try:
        raw = path.read_bytes()
    except IsADirectoryError:
        raise InputError(f"{name!r} is a folder: name a text file in it") from None
    except FileNotFoundError:
        raise InputError(f"there is no file {name!r}; texts that are here: {', '.join(names())}") from None
    except OSError as problem:
        raise InputError(f"{name} cannot be read: {problem.strerror}; name another file") from None
    mark = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    if len(raw) == mark:
        raise InputError(f"{name} is empty: give a file with text in it")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{name} is UTF-16: save it as UTF-8, or: iconv -f utf-16 -t utf-8 {name} > new.txt")
    if b"\0" in raw:
        raise InputError(f"{name} is not text: the byte at offset {raw.index(0)} is 0; name a UTF-8 file")
    try:
        return raw[mark:].decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        at = mark + error.start
        raise InputError(f"{name} is not UTF-8: the byte at offset {at} is {raw[at]:#04x}; "
                         f"save it as UTF-8, or if it is GBK: iconv -f gb18030 -t utf-8 {name} > new.txt") \
            from None


def names():
    return sorted(path.stem for path in DATA.glob("*.txt"))


def checksum(text):  # -> str: by it a model remembers which text it learned
    return hashlib.sha256(text.encode()).hexdigest()


def split(text):  # str or array (n,) -> training, validation
    """The last tenth of the characters is kept for validation: no model of the league learns from it."""
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def numbered(text):  # -> codes (n,) int64, alphabet: text[i] is alphabet[codes[i]]
    """Characters as numbers, in the order of Unicode; alphabet holds each that occurs, once.

    >>> numbered("abba")
    (array([0, 1, 1, 0]), 'ab')
    """
    points, codes = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    return codes, "".join(map(chr, points.tolist()))
