"""One part of a file's mutants. It collects the file's tests once and forks for every mutant: the child puts
it in place of the function, runs the function's tests up to the first that fails, and exits with a code.
"""
import gc
import json
import os
import signal
import sys
import textwrap
import time
import traceback

import hypothesis
import numpy as np
import pytest
from _pytest.runner import runtestprotocol

from tests.exercises.mutate import ANSWERS, general, hand_made
from tests.exercises.sheet import (
    ROOT,
    asked_for,
    file_of_tests,
    files_of,
    first_line,
    functions,
    module_name,
    on_gpu,
    sheet,
    text_of,
)
from tests.exercises.stub import blank

SURVIVED, KILLED, NOT_APPLICABLE = 0, 1, 3


def main(lesson, file, kind, part, parts):
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # no shrinking: to fail is enough
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    if on_gpu(file):
        from tests import cudasim
        cudasim.install()
    elif file.startswith("kernels"):
        from numba.core.dispatcher import Dispatcher
        Dispatcher.enable_caching = lambda self: None  # on disk lies the right function, and its callers
    worker = Worker(files_of(sheet()[lesson])[file], kind, int(part), int(parts))
    code = pytest.main([file_of_tests(file), "-o", "addopts=", "-s", "-p", "no:terminal",
                        "-p", "no:cacheprovider"], plugins=[worker])
    return 0 if worker.ran else f"{file_of_tests(file)} cannot be collected: {code!r}"


class Worker:
    """A pytest plugin whose loop goes over mutants."""

    def __init__(self, exercises, kind, part, parts):
        self.exercises, self.kind, self.part, self.parts, self.ran = exercises, kind, part, parts, False

    def pytest_runtestloop(self, session):
        gc.freeze()  # or every child would copy the pages in which objects are counted
        for name, exercise in self.exercises.items():
            source = (ROOT / exercise.file).read_text(encoding="utf-8")
            made = general(exercise, source) if self.kind == "general" else hand_made(exercise, source)
            items = [item for item in session.items if asked_for(item.name, self.exercises) == name]
            if mine := made[self.part::self.parts]:
                self.try_all(exercise, source, items, mine)
        self.ran = True
        return True

    def pytest_runtest_makereport(self, item, call):
        """Without pytest's page on every failure, which takes longer than most tests."""
        error = call.excinfo and call.excinfo.value
        skipped = isinstance(error, pytest.skip.Exception)
        said = "".join(traceback.format_exception(error)) if error else ""
        return pytest.TestReport(item.nodeid, item.location, {},
                                 "skipped" if skipped else "failed" if error else "passed", said, call.when)

    def try_all(self, exercise, source, items, mutants):
        start = time.monotonic()
        code = outcome(exercise, text_of(source, exercise.name), items, 60)
        limit = 2 + 10 * (time.monotonic() - start)
        if not items or code != SURVIVED:
            why = "the right answer fails its tests" if items else "it has no tests"
            return say(exercise, "right", why, killed=False)
        if self.kind == "hand":
            stub = text_of(blank(source, {exercise.name: exercise}), exercise.name)
            words = f"NotImplementedError: {exercise.name}"
            say(exercise, "blank", f"a test of the blank function does not fail by {words}",
                killed=outcome(exercise, stub, items, limit, every_test_says=words) == KILLED)
        for mutant, text in mutants:
            code = outcome(exercise, text, items, limit)
            if code != NOT_APPLICABLE:
                say(exercise, self.kind, mutant, killed=code == KILLED)


def say(exercise, kind, mutant, killed):
    print(json.dumps({"lesson": exercise.lesson, "name": exercise.name, "kind": kind, "mutant": mutant,
                      "killed": killed}), flush=True)


def outcome(exercise, text, items, seconds, every_test_says=None):
    """SURVIVED, KILLED or NOT_APPLICABLE. A mutant that hangs or crashes the process is killed."""
    child = os.fork()
    if child == 0:
        code = KILLED
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            code = try_mutant(exercise, text, items, every_test_says)
        finally:
            os._exit(code)
    end, pause = time.monotonic() + seconds, 0.001
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code in (SURVIVED, NOT_APPLICABLE) else KILLED
        pause = min(2 * pause, 0.05)
        time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return KILLED


def try_mutant(exercise, text, items, every_test_says):
    take_place(exercise, text)
    reports = (report for item in items for report in runtestprotocol(item, log=False, nextitem=None))
    if every_test_says:
        said = [str(report.longrepr) for report in reports if report.when == "call"]
        return KILLED if all(every_test_says in text for text in said) else SURVIVED
    failure = next((report for report in reports if report.failed), None)
    if failure:
        return NOT_APPLICABLE if "NotApplicable" in str(failure.longrepr) else KILLED
    return NOT_APPLICABLE if differs and not any(differs) else SURVIVED


def take_place(exercise, text):
    """Define the mutant where the function was: in its module, or in its class."""
    module = sys.modules[module_name(exercise.file)]
    source = (ROOT / exercise.file).read_text(encoding="utf-8")
    above = "\n" * (first_line(functions(source)[exercise.name]) - 1)  # messages name the lines of the file
    code = compile(above + textwrap.dedent(text), str(ROOT / exercise.file), "exec")
    vars(module).update({f"answer_{answer}": answer_by(change) for answer, change in WRONG.items()})
    owner, _, method = exercise.name.rpartition(".")
    made = {} if owner else vars(module)
    exec(code, vars(module), made)  # noqa: S102
    if owner:
        setattr(getattr(module, owner), method, made[method])


# ---- answers of the right type that are wrong -----------------------------------------------------------

class NotApplicable(Exception):
    """There is no such wrong answer of this type."""


differs = []  # for each wrong answer that was given, if it differs from the right one: 2 * 0 does not
WRONG = {"none": None, "zeros": lambda x: 0 * x, "negative": lambda x: -x, "double": lambda x: 2 * x,
         "nan": lambda x: x * np.float32("nan") if np.asarray(x).dtype.kind == "f" else x}
assert tuple(WRONG) == ANSWERS


def answer_by(change):
    def answer(value):
        if change is None:
            differs.append(value is not None)
            return None
        if isinstance(value, tuple) and value:
            return (answer(value[0]), *value[1:])
        if not isinstance(value, (np.ndarray, np.number, int, float)) or np.asarray(value).dtype.kind == "b":
            raise NotApplicable
        with np.errstate(all="ignore"):
            wrong = change(value)
        differs.append(not np.array_equal(wrong, value, equal_nan=True))
        return wrong

    return answer


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
