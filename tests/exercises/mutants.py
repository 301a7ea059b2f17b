"""Do the tests notice mistakes? Each mutant of each exercise must fail a test of its own function.

    python -m tests mutants          all: at most ten minutes on two cores
    python -m tests mutants 12 13    those of lessons 12 and 13

Hand-made mutants of kernels are compiled as a learner's answer would be; general ones run as plain Python, as
compiling them would take most of the time. Those of the GPU's kernels run in the simulator.
"""
import json
import subprocess
import sys
import tempfile
import time

from lessons.devices import cores
from lessons.errors import InputError
from tests.exercises.mutate import survivors
from tests.exercises.sheet import ROOT, files_of, on_gpu, sheet

PARTS = 2  # of a file's mutants: so all cores have work to the end


def main(*numbers):
    """Print what is killed and what survives. Returns the exit code: 0 if nothing unexpected survives."""
    start = time.monotonic()
    for number in numbers:
        if not number.isdecimal() or f"{int(number):02d}" not in sheet():
            raise InputError(f"there are no exercises for lesson {number!r}; make progress lists them")
    lessons = [f"{int(number):02d}" for number in numbers] or list(sheet())
    files = [(lesson, file) for lesson in lessons for file in files_of(sheet()[lesson])]
    results = []
    for done, found in enumerate(tried(files), 1):
        results += found
        if sys.stdout.isatty():
            print(f"  {done} parts of {len(files)} files, {len(results)} mutants", end="\r", flush=True)
    code = summary(results)
    print(f"{len(files)} files on {cores()} cores in {time.monotonic() - start:.0f} s")
    return code


def tried(files):  # yields [{"lesson", "name", "kind", "mutant", "killed"}], for each part of a file
    orders = "".join(json.dumps(job) + "\n" for job in jobs(files))
    with tempfile.TemporaryFile("w+") as stdin:
        stdin.write(orders)
        stdin.seek(0)
        with subprocess.Popen([sys.executable, "-m", "tests.exercises.mutant_worker"], cwd=ROOT, text=True,
                              stdin=stdin, stdout=subprocess.PIPE) as worker:
            yield from map(json.loads, worker.stdout)
    if worker.returncode:
        raise SystemExit(worker.returncode)


def jobs(files):  # -> [(lesson, file, kinds, part, parts, plain)]
    """A file's tests run compiled or plain, so those of a CPU's kernels are two jobs. The simulator takes the
    longest and comes first, so that all cores end together."""
    made = []
    for lesson, file in files:
        if file.startswith("kernels/cpu"):
            made += [(lesson, file, ["hand"], 0, 1, False), (lesson, file, ["general"], 0, 1, True)]
        else:
            made += [(lesson, file, ["hand", "general"], part, PARTS, False) for part in range(PARTS)]
    return sorted(made, key=lambda job: not on_gpu(job[1]))


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
        for result in all_of_kind:
            if result["killed"] and excused(result):
                print(f"  listed as no mistake, yet killed: {result['lesson']}.{result['name']}\n"
                      f"    {result['mutant']}")
        for result in alive:
            mutant = json.dumps(result["mutant"], ensure_ascii=False)
            print(f"  survives: {result['lesson']}.{result['name']}\n    mutant = {mutant}")
        bad += alive
    return int(bool(bad))


def excused(result):
    return result["kind"] == "general" and result["mutant"] in survivors(result["lesson"], result["name"])
