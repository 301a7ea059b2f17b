"""Do the tests notice mistakes? Each mutant of each exercise must fail a test of its own function.

    python -m tests mutants            all                      (10 minutes on two cores, or less)
    python -m tests mutants 12 13      of these lessons
    python -m tests mutants sample     one in ten, as make test does

A worker collects a file's tests once and forks for every mutant: the child takes the mutant in place of the
function, runs its tests up to the first that fails, and says so by its exit code. Hand-made mutants of kernels
are compiled as a learner's would be; general ones run as plain Python, where compiling would take the time.
"""
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lessons.devices import cores
from tests.exercises.mutate import general, hand_made, survivors
from tests.exercises.sheet import ROOT, asked_for, files_of, module_name, sheet, test_file, text_of

SURVIVED, KILLED, NOT_APPLICABLE, RIGHT_FAILS = 0, 1, 3, 4
PARTS = 4  # of a file's general mutants: more than a file's worth, so that all cores end together


def main(*argv):
    """Print what is killed and what survives. Returns the exit code: 0 if nothing unexpected survives."""
    every = 10 if "sample" in argv else 1
    wanted = [f"{int(number):02d}" for number in argv if number.isdecimal()] or list(sheet())
    jobs = [(lesson, file, kind, part, PARTS if kind == "general" else 1)
            for lesson in wanted for file in files_of(sheet()[lesson])
            for kind in ("general", "hand") for part in range(PARTS if kind == "general" else 1)]
    with ThreadPoolExecutor(cores()) as pool:
        results = [result for found in pool.map(lambda job: run(*job, every), jobs) for result in found]
    return summary(results)


def run(lesson, file, kind, part, parts, every):  # -> [{lesson, name, kind, mutant, killed}]
    plain = kind == "general" and file.startswith("kernels")
    done = subprocess.run([sys.executable, "-m", "tests.exercises.mutants", lesson, file, kind, str(part), str(parts),
                           str(every)], cwd=ROOT, env=dict(os.environ, NUMBA_DISABLE_JIT="1" if plain else "0"),
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the mutants of {file} did not run: see above")
    return [json.loads(line) for line in done.stdout.splitlines()]


def summary(results):
    wrong = [r for r in results if r["kind"] == "right" and not r["killed"]]
    for r in wrong:
        print(f"{r['lesson']}.{r['name']}: {r['mutant']}")
    code = int(bool(wrong))
    for kind in "hand", "general":
        of_kind = [r for r in results if r["kind"] == kind]
        alive = [r for r in of_kind if not r["killed"]]
        excused = [r for r in alive if r["mutant"] in survivors().get(r["lesson"], {}).get(r["name"], {})]
        counted = len(of_kind) - len(excused)
        if counted:
            print(f"{kind}: {counted - len(alive) + len(excused)} of {counted} killed "
                  f"({1 - (len(alive) - len(excused)) / counted:.1%}), {len(excused)} more are no mistakes")
        for r in alive:
            if kind == "hand" or r not in excused:
                print(f"  survives: {r['lesson']}.{r['name']}\n    mutant = {json.dumps(r['mutant'], ensure_ascii=False)}")
                code = 1
    return code


# ---- a worker ---------------------------------------------------------------------------------------------

def work(lesson, file, kind, part, parts, every):
    import hypothesis
    import pytest
    # A failing example need not be made small here: failing is enough.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    if file.startswith("kernels"):
        from numba.core.dispatcher import Dispatcher
        Dispatcher.enable_caching = lambda self: None  # or a mutant's caller would be found, compiled, on disk
    plugin = Worker(files_of(sheet()[lesson])[file], kind, int(part), int(parts), int(every))
    code = pytest.main([test_file(file), "-o", "addopts=", "-p", "no:terminal", "-p", "no:cacheprovider", "-s"],
                       plugins=[plugin])
    return 0 if plugin.ran else f"{test_file(file)} cannot be collected: {code!r}"


class Worker:
    """A pytest plugin whose loop runs over mutants."""

    def __init__(self, exercises, kind, part, parts, every):
        self.exercises, self.kind, self.ran = exercises, kind, False
        self.part, self.parts, self.every = part, parts, every

    def pytest_runtestloop(self, session):
        out, sys.stdout = sys.stdout, sys.stderr
        for name, exercise in self.exercises.items():
            source = (ROOT / exercise.file).read_text(encoding="utf-8")
            mutants = general(exercise, source) if self.kind == "general" else hand_made(exercise, source)
            mutants = mutants[self.part::self.parts][::self.every]
            items = [item for item in session.items if asked_for(item.name, self.exercises) == name]
            if not mutants:
                continue
            start = time.monotonic()
            code = outcome(exercise, text_of(source, name), items, 60)
            limit = 5 + 10 * (time.monotonic() - start)
            if not items or code != SURVIVED:
                said = "its own tests fail without a mutant" if items else "it has no tests"
                say(out, exercise, "right", said, killed=False)
                continue
            for mutant, text in mutants:
                code = outcome(exercise, text, items, limit)
                if code != NOT_APPLICABLE:
                    say(out, exercise, self.kind, mutant, killed=code == KILLED)
        self.ran = True
        return True


def say(out, exercise, kind, mutant, killed):
    print(json.dumps({"lesson": exercise.lesson, "name": exercise.name, "kind": kind, "mutant": mutant,
                      "killed": killed}), file=out, flush=True)


def outcome(exercise, text, items, limit):
    """SURVIVED, KILLED or NOT_APPLICABLE. A mutant that hangs or crashes the process is killed."""
    child = os.fork()
    if child == 0:
        code = KILLED
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1), os.dup2(silence, 2)
            code = try_mutant(exercise, text, items)
        finally:
            os._exit(code)
    end, pause = time.monotonic() + limit, 0.001
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code in (SURVIVED, NOT_APPLICABLE) else KILLED
        time.sleep(pause := min(2 * pause, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return KILLED


def try_mutant(exercise, text, items):
    from _pytest.runner import runtestprotocol

    take_place(exercise, text)
    for item in items:
        for report in runtestprotocol(item, log=False, nextitem=None):
            if report.failed:
                return NOT_APPLICABLE if "NotApplicable" in str(report.longrepr) else KILLED
    return NOT_APPLICABLE if answers_given and not any(answers_given) else SURVIVED


def take_place(exercise, text):
    import textwrap

    module = sys.modules[module_name(exercise.file)]
    module.__dict__.update({f.__name__: f for f in
                            (answer_none, answer_zeros, answer_negative, answer_double, answer_nan)})
    code = compile(textwrap.dedent(text), str(ROOT / exercise.file), "exec")
    if "." in exercise.name:
        owner, method = exercise.name.split(".")
        made = {}
        exec(code, module.__dict__, made)
        setattr(getattr(module, owner), method, made[method])
    else:
        exec(code, module.__dict__)


# ---- wrong answers of the right type ------------------------------------------------------------------------

class NotApplicable(Exception):
    """There is no such wrong answer of this type."""


answers_given = []  # was it another one? (0 doubled is 0: no mistake)


def answer_none(value):
    answers_given.append(value is not None)


def answer_zeros(value):
    return wrong_answer(value, lambda x: 0 * x)


def answer_negative(value):
    return wrong_answer(value, lambda x: -x)


def answer_double(value):
    return wrong_answer(value, lambda x: 2 * x)


def answer_nan(value):
    return wrong_answer(value, lambda x: x * np.float32("nan") if np.asarray(x).dtype.kind == "f" else x)


def wrong_answer(value, change):
    if isinstance(value, tuple) and value:
        return (wrong_answer(value[0], change), *value[1:])
    if not isinstance(value, (np.ndarray, np.number, int, float)) or np.asarray(value).dtype.kind == "b":
        raise NotApplicable
    with np.errstate(all="ignore"):
        wrong = change(value)
    answers_given.append(not np.array_equal(wrong, value, equal_nan=True))
    return wrong


if __name__ == "__main__":
    sys.exit(work(*sys.argv[1:]))
