"""Workers that take turns. One round is a short measurement of each; the order turns around every round.

Whatever disturbs the machine for a second or a minute then disturbs all of them, and ratios keep their
meaning. `worker` starts a process and asks; `serve` is the process's side of the conversation.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

ROUND = 1.0  # about so many seconds for each worker in each round, but at least 3 steps
PAUSE = 0.2  # seconds before each measurement: idle threads of the worker before stop spinning


def serve(step, check=None):
    """Answer "check FILE" and "time N" on stdin, one line of JSON each. step(i) is what is timed."""
    print(json.dumps("ready"), flush=True)
    for i, line in enumerate(sys.stdin):
        command, argument = line.split(maxsplit=1)
        if command == "check":
            answer = check(argument.strip())
        else:
            answer = []
            for k in range(int(argument)):
                start = time.perf_counter()
                step(i + k)
                answer.append(time.perf_counter() - start)
        print(json.dumps(answer), flush=True)


def environment():
    """Ours without OPENBLAS_CORETYPE: the BLAS is to choose its kernels for the machine that is measured."""
    return {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}


class WorkerFailed(Exception):
    """The last line that the worker wrote on stderr."""


@contextmanager
def worker(module, *arguments):
    """Start `python -m tests.benchmarks.MODULE ARGUMENTS`; `with` gives ask(command, argument) -> answer."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (tempfile.TemporaryFile("w+") as errors,
          subprocess.Popen(command, env=environment(), stderr=errors, **pipes) as process):

        def answer():
            if line := process.stdout.readline():
                return json.loads(line)
            errors.seek(0)
            written = [text.strip() for text in errors if text.strip()]
            raise WorkerFailed(written[-1] if written else f"it ended with code {process.wait()}")

        def ask(command, argument):
            process.stdin.write(f"{command} {argument}\n")
            process.stdin.flush()
            return answer()

        try:
            answer()  # "ready"
            yield ask
        finally:
            process.kill()


def race(asks, rounds):
    """{name: ask} of workers -> {name: [seconds a step, the median of each round]}"""
    counts = {name: max(3, round(ROUND / min(ask("time", 3)))) for name, ask in asks.items()}
    seconds = {name: [] for name in asks}
    for number in range(rounds):
        for name in list(asks)[::-1 if number % 2 else 1]:
            time.sleep(PAUSE)
            seconds[name].append(statistics.median(asks[name]("time", counts[name])))
    return seconds


def ratios(slow, fast):
    """Two lists of seconds, round by round -> median, smallest and largest ratio."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(each), min(each), max(each)
