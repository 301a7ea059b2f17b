"""Peak memory of the main job with its defaults, in 30 steps: it does not grow after the first few."""
import os
import subprocess
import sys
import tempfile

from tests.benchmarks.race import environment
from tests.benchmarks.report import table, write

STEPS, RUNS = 30, 3
MUST_AIM = "600 MB / 400 MB"


def run(options):
    print(f"memory: the largest resident set of `python -m lessons training --steps {STEPS}`")
    peaks = [peak_megabytes() for _ in range(RUNS)]
    table(["", "peak", "must / aim"], [[f"worst of {RUNS} runs", f"{max(peaks):.0f} MB", MUST_AIM]])
    write("memory", {"megabytes": peaks}, RUNS)


def peak_megabytes():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lessons", "training", "--steps", str(STEPS), "--out", folder]
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the main job ended with code {process.returncode}: its memory says nothing")
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1024)
