"""The mutants of some files, tried on all cores. Each part of a file has a process, which collects its tests;
each function in it has another; and each mutant a child of that, which puts it in place of the function, runs
the function's tests up to the first that fails, and tells what it saw.

What can be done once is done before a fork: Python starts, modules are imported, and those kernels compiled
that do not call the function. The first test is the one that is fast and has killed the most: their order
changes what a mutant costs, not what becomes of it.
"""
import gc
import itertools
import json
import os
import signal
import sys
import textwrap
import time
import traceback
from multiprocessing import Pipe, connection

import hypothesis
import numba
import numpy as np
import numpy.ma  # NumPy loads it when a test fails
import pytest
from _pytest.runner import runtestprotocol
from numba.core.dispatcher import Dispatcher

import tests.conftest  # noqa: F401  (one BLAS thread)
from lessons.devices import cores
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

SURVIVED, KILLED, NOT_APPLICABLE = "survived", "killed", "not applicable"
LONGEST = 60  # seconds of a core, for one test with the right answer
WAITING = 600  # seconds until a mutant that neither ends nor computes has failed: it waits for itself


def main():
    """Reads jobs from stdin, a JSON line each, and prints the results of each as one JSON line."""
    jobs, running = [json.loads(line) for line in sys.stdin], {}
    get_ready()
    while running or jobs:
        if jobs and len(running) < cores():
            child = fork(work, *jobs[0])
            running[child[1]] = child, jobs.pop(0)
            continue
        for pipe in connection.wait(running):
            child, (_, file, *_) = running.pop(pipe)
            results = result(child)
            if results is None:
                return f"The mutants of {file} could not be tried; it says why above."
            print(json.dumps(results), flush=True)
    return 0


def get_ready():
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # no shrinking: to fail is enough
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, derandomize=True,
                                         deadline=None)
    hypothesis.settings.load_profile("mutants")

    @numba.njit(nogil=True, error_model="numpy")  # the first one takes Numba a second longer than the next
    def any_kernel(x):
        y = np.zeros(x.size, np.float32)
        for i in range(x.size):
            y[i] = np.exp(x[i])
        return y[1:].sum()

    any_kernel(np.ones(3, np.float32))


def work(lesson, file, kinds, part, parts, plain):  # -> [{"lesson", "name", "kind", "mutant", "killed"}]
    numba.config.DISABLE_JIT = plain
    if on_gpu(file):
        from tests import cudasim
        cudasim.install()
    elif file.startswith("kernels"):
        Dispatcher.enable_caching = lambda self: None  # on disk lies the right function, and its callers
    worker = Worker(files_of(sheet()[lesson])[file], kinds, slice(part, None, parts))
    code = pytest.main([file_of_tests(file), "-o", "addopts=", "-s", "-p", "no:terminal",
                        "-p", "no:cacheprovider", "-p", "no:faulthandler"], plugins=[worker])
    if worker.results is None:
        raise RuntimeError(f"{file_of_tests(file)} cannot be collected, or not run: {code!r}")
    return worker.results


class Worker:
    """A pytest plugin whose loop goes over mutants."""

    def __init__(self, exercises, kinds, mine):
        self.exercises, self.kinds, self.mine, self.results = exercises, kinds, mine, None

    def pytest_runtestloop(self, session):
        gc.freeze()  # or every child would copy the pages in which objects are counted
        results = []
        for name, exercise in self.exercises.items():
            items = [item for item in session.items if asked_for(item.name, self.exercises) == name]
            results.append(result(fork(self.tried, exercise, items)))
        self.results = None if None in results else [*itertools.chain.from_iterable(results)]
        return True

    def pytest_runtest_makereport(self, item, call):
        """Without pytest's page on every failure, which takes longer than most tests."""
        error = call.excinfo and call.excinfo.value
        skipped = isinstance(error, pytest.skip.Exception)
        said = "".join(traceback.format_exception(error, limit=0)) if error else ""
        return pytest.TestReport(item.nodeid, item.location, {},
                                 "skipped" if skipped else "failed" if error else "passed", said, call.when)

    def tried(self, exercise, items):  # -> results
        def told(kind, mutant, killed):
            return {"lesson": exercise.lesson, "name": exercise.name, "kind": kind, "mutant": mutant,
                    "killed": killed}

        source = (ROOT / exercise.file).read_text(encoding="utf-8")
        makers = {"hand": hand_made, "general": general}
        mutants = [(kind, *made) for kind in self.kinds for made in makers[kind](exercise, source)[self.mine]]
        if not mutants:
            return []
        place, tests = Place(exercise, source), [Test(item) for item in items]
        right = place.outcome(run_all, text_of(source, exercise.name), tests)
        if not tests or right == KILLED:
            why = "the right answer fails its tests" if tests else "it has no tests"
            return [told("right", why, killed=False)]
        for test, test.seconds in zip(tests, right[0]):
            pass
        place.compile_others(right[1])
        results = []
        if "hand" in self.kinds and self.mine.start == 0:
            stub = text_of(blank(source, {exercise.name: exercise}), exercise.name)
            words = f"NotImplementedError: {exercise.name}"
            results.append(told("blank", f"a test of the blank function does not fail by {words}",
                                killed=place.outcome(all_say, stub, tests, words) == KILLED))
        for kind, mutant, text in mutants:
            tests.sort(key=lambda test: test.seconds / (1 + test.kills))
            outcome = place.outcome(run_until_one_fails, text, tests)
            if isinstance(outcome, int):
                tests[outcome].kills += 1
            if outcome != NOT_APPLICABLE:
                results.append(told(kind, mutant, killed=outcome != SURVIVED))
        return results


class Test:
    """One of a function: what it takes of a core with the right answer, how many mutants it has killed."""

    def __init__(self, item):
        self.item, self.seconds, self.kills = item, None, 0

    def run(self, after=None):  # -> its reports
        """The system ends a mutant that computes without end, whatever else the cores have to do."""
        signal.setitimer(signal.ITIMER_PROF, LONGEST if self.seconds is None else 1 + 10 * self.seconds)
        return runtestprotocol(self.item, log=False, nextitem=after)


def run_all(tests):
    """What each takes, with its own fixtures; and what was compiled."""
    seconds = []
    for test in tests:
        start = time.process_time()
        if any(report.failed for report in test.run()):
            return KILLED
        seconds.append(time.process_time() - start)
    return seconds, {(module, name): list(value.overloads) for module, name, value in kernels()}


def all_say(tests, words):
    said = [str(report.longrepr) for test in tests for report in test.run() if report.when == "call"]
    return KILLED if all(words in text for text in said) else SURVIVED


def run_until_one_fails(tests):  # -> SURVIVED, NOT_APPLICABLE, or which test failed
    for i, (test, after) in enumerate(zip(tests, [*tests[1:], None])):
        for report in test.run(after and after.item):
            if report.failed:
                return NOT_APPLICABLE if "NotApplicable" in report.longrepr else i
    return NOT_APPLICABLE if differs and not any(differs) else SURVIVED


def kernels():  # yields (module, name, kernel), of those that are compiled when they are called
    for module in [module for module in sys.modules if module.startswith("kernels.")]:
        for name, value in vars(sys.modules[module]).items():
            if isinstance(value, Dispatcher):
                yield module, name, value


class Place:
    """Where a function stands: in its module, or in its class."""

    def __init__(self, exercise, source):
        self.module, self.path = sys.modules[module_name(exercise.file)], str(ROOT / exercise.file)
        self.name, self.above = exercise.name, "\n" * (first_line(functions(source)[exercise.name]) - 1)

    def outcome(self, run, text, *arguments):
        """What run tells, in a process of its own, when this text has taken the function's place."""
        told = result(fork(self.run, run, text, *arguments), WAITING)
        return KILLED if told is None else told  # it hung, or crashed the process

    def run(self, run, text, *arguments):
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        self.take(text)
        return run(*arguments)

    def take(self, text):
        """Define the mutant there. Messages name the lines of the file."""
        code, names = compile(self.above + textwrap.dedent(text), self.path, "exec"), vars(self.module)
        names.update({f"answer_{answer}": answer_by(change) for answer, change in WRONG.items()})
        owner, _, method = self.name.rpartition(".")
        made = {} if owner else names
        exec(code, names, made)  # noqa: S102
        if owner:
            setattr(getattr(self.module, owner), method, made[method])

    def compile_others(self, signatures):
        """All that the tests have compiled, but for what calls the function: into that a mutant goes too."""
        for module, name, kernel in kernels():
            if not reaches(kernel, self.name):
                for signature in signatures[module, name]:
                    kernel.compile(signature)


def reaches(kernel, function):
    """Is it the function of this name, or one that calls it? Another one of that name does no harm."""
    names, known = kernel.py_func.__code__.co_names, kernel.py_func.__globals__
    called = [known[name] for name in names if isinstance(known.get(name), Dispatcher)]
    return function in (kernel.__name__, *names) or any(
        reaches(other, function) for other in called if other is not kernel)


# ---- processes --------------------------------------------------------------------------------------------

def fork(function, *arguments):  # -> (process, pipe), for result
    ours, its = Pipe(duplex=False)
    if child := os.fork():
        its.close()
        return child, ours
    try:
        ours.close()
        its.send(function(*arguments))
    except BaseException:  # noqa: BLE001  (whatever it is: this process must not go on as its parent)
        traceback.print_exc()
    finally:
        os._exit(0)


def result(child, seconds=None):  # -> what the function returned; None if it did not
    process, pipe = child
    try:
        return pipe.recv() if pipe.poll(seconds) else None
    except EOFError:
        return None
    finally:
        pipe.close()
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


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
