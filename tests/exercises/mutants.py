"""Do the tests notice mistakes? Each mutant of each exercise must fail a test of its own function.

    python -m tests mutants          all: at most ten minutes on two cores
    python -m tests mutants 12 13    those of lessons 12 and 13

Hand-made mutants of kernels are compiled as a learner's answer would be; general ones run as plain Python, as
compiling them would take most of the time. Those of the GPU's kernels run in the simulator.
"""
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from lessons.devices import cores
from lessons.errors import InputError
from tests.exercises.mutate import survivors
from tests.exercises.sheet import ROOT, files_of, sheet

PARTS = 2  # of a file's general mutants: smaller jobs, so that all cores end together


def main(*numbers):
    """Print what is killed and what survives. Returns the exit code: 0 if nothing unexpected survives."""
    start = time.monotonic()
    for number in numbers:
        if not number.isdecimal() or f"{int(number):02d}" not in sheet():
            raise InputError(f"there are no exercises for lesson {number!r}; make progress lists them")
    lessons = [f"{int(number):02d}" for number in numbers] or list(sheet())
    jobs = [(lesson, file, *job) for lesson in lessons for file in files_of(sheet()[lesson])
            for job in [("hand", 0), *(("general", part) for part in range(PARTS))]]
    jobs.sort(key=lambda job: job[2])  # the long ones first
    results = []
    with ThreadPoolExecutor(cores()) as pool:
        for done, found in enumerate(pool.map(run, jobs), 1):
            results += found
            if sys.stdout.isatty():
                print(f"  {done} of {len(jobs)} parts, {len(results)} mutants", end="\r", flush=True)
    code = summary(results)
    print(f"{len(jobs)} parts on {cores()} cores in {time.monotonic() - start:.0f} s")
    return code


def run(job):  # -> [{"lesson", "name", "kind", "mutant", "killed"}]
    lesson, file, kind, part = job
    plain = "1" if kind == "general" and file.startswith("kernels/cpu") else "0"
    orders = [lesson, file, kind, str(part), str(PARTS if kind == "general" else 1)]
    done = subprocess.run([sys.executable, "-m", "tests.exercises.mutant_worker", *orders],
                          env=dict(os.environ, NUMBA_DISABLE_JIT=plain), cwd=ROOT,
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The mutants of {file} could not be tried; it says why above.")
    return [json.loads(line) for line in done.stdout.splitlines()]


def summary(results):
    """Three kinds of results: the right answer and the blank one, mutants by hand, general mutants."""
    bad = [result for result in results if result["kind"] in ("right", "blank") and not result["killed"]]
    for result in bad:
        print(f"{result['lesson']}.{result['name']}: {result['mutant']}")
    for kind in "hand", "general":
        all_of_kind = [result for result in results if result["kind"] == kind]
        counted = [result for result in all_of_kind if result["killed"] or not excused(result)]
        alive = [result for result in counted if not result["killed"]]
        if counted:
            killed = len(counted) - len(alive)
            print(f"{kind}: {killed} of {len(counted)} killed, {killed / len(counted):.1%}; "
                  f"{len(all_of_kind) - len(counted)} more are no mistakes")
        for result in alive:
            mutant = json.dumps(result["mutant"], ensure_ascii=False)
            print(f"  survives: {result['lesson']}.{result['name']}\n    mutant = {mutant}")
        bad += alive
    return int(bool(bad))


def excused(result):
    return result["kind"] == "general" and result["mutant"] in survivors(result["lesson"], result["name"])
