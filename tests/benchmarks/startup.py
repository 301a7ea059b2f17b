"""How long `python -m lessons N` takes: the first time, when Numba compiles, and every later time.

Cold has an empty folder for Numba's cache and one for Matplotlib's (its list of fonts): what somebody meets
who starts with this lesson. Warm runs again with the same folders.
"""
import statistics
import subprocess
import sys
import tempfile
import time

from lessons.__main__ import lessons
from tests.benchmarks.race import environment
from tests.benchmarks.report import table, write

FIRST_STEP = """if True:  # lesson 18 is the main job: how long until it trains
    from lessons import l18_training, training_run
    job = training_run.prepare(training_run.complete({}), None, None)
    next(l18_training.train(job.trainer, job.training))"""
# Lessons that work for long are measured to the first line of results (18 prints none so early: FIRST_STEP).
WORK = {14: "  step ", 15: "  step ", 18: "", 19: "temperature 0 ", 20: "  scoring "}
MUST_AIM = {"cold": "8 s / 5 s", "warm": "2 s / 1.2 s"}


def run(options):
    print("start-up: python -m lessons N, seconds to the end")
    results, rows = {}, []
    for number, name, _ in lessons():
        times, reason = {"cold": [], "warm": []}, None
        for _ in range(max(1, options.rounds // 4)):
            with tempfile.TemporaryDirectory() as folder:
                for kind in "cold", "warm", "warm":
                    seconds, failure = seconds_of(number, folder)
                    times[kind].append(seconds)
                    reason = reason or failure
        results[number] = {"name": name, "failed": reason} | times
        cells = [f"{statistics.median(times[kind]):.2f}" for kind in ("cold", "warm")]
        rows.append([f"{number:2d} {name}" + ", first result" * (number in WORK), *cells, reason or ""])
    table(["lesson", f"cold (must / aim {MUST_AIM['cold']})", f"warm ({MUST_AIM['warm']})", ""], rows)
    write("startup", results, options.rounds)


def seconds_of(number, folder):
    """-> seconds, None; or seconds and the last line on stderr of a lesson that failed."""
    command = [sys.executable, *(["-c", FIRST_STEP] if number == 18 else ["-m", "lessons", str(number)])]
    caches = {"NUMBA_CACHE_DIR": f"{folder}/numba", "MPLCONFIGDIR": f"{folder}/matplotlib"}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(
            command, env=environment() | caches | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE,
            stderr=errors, text=True) as process:
        first_step = any(WORK.get(number) and line.startswith(WORK[number]) for line in process.stdout)
        seconds = time.perf_counter() - start
        if first_step:
            process.terminate()
        if process.wait() == 0 or first_step:
            return seconds, None
        errors.seek(0)
        return seconds, "FAILED: " + (errors.read().strip().splitlines() or ["?"])[-1][:80]
