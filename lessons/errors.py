"""What the person at the keyboard can mend, and how a command line says it."""
import argparse
import math


class InputError(ValueError):
    """One line: what is wrong, where, and what to do. `python -m lessons` prints it and exits with 2."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors, one line each. It completes no half-written option (`--tok`)."""

    def __init__(self, lesson, description):
        super().__init__(f"python -m lessons {lesson}", description=description, allow_abbrev=False)

    def error(self, message):
        if message.endswith(": expected one argument"):
            option = message.split()[1].rstrip(":")
            message += f" (a value that begins with - needs =: {option}=-x)"
        raise InputError(f"{message} (--help lists the options)")


def number(convert, allowed, wanted):
    """A `type` for an option: text -> number. NaN is in no range, so no range lets it pass.

    >>> number(int, lambda n: n >= 1, "a whole number, 1 or more")("7")
    7
    """
    def read(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value
    return read


positive_int = number(int, lambda n: n >= 1, "a whole number, 1 or more")
non_negative_int = number(int, lambda n: n >= 0, "a whole number, 0 or more")
non_negative_float = number(float, lambda x: 0 <= x < math.inf, "a number, 0 or more")
fraction = number(float, lambda x: 0 < x <= 1, "a number above 0 and at most 1")
