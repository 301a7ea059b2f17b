"""`python -m lessons ...` in a fork of the test process: all is imported and compiled there already."""
import contextlib
import os
import runpy
import signal
import sys
import time
import traceback

import pytest

from lessons import training_job

running = set()  # process ids of children that nobody has waited for
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="needs fork() as Linux has it")


def fork(*options, output, before=None, call=None):  # -> process id
    """What the child prints goes to the files output.out and output.err. It calls before(), and then call()
    or, if there is none, the command line with these options. It exits as an interpreter would."""
    if pid := os.fork():
        running.add(pid)
        return pid
    code = 1
    try:
        for descriptor, name in (1, "out"), (2, "err"):
            os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a new interpreter, also under nohup
        for number in signal.SIGTERM, signal.SIGHUP:
            signal.signal(number, signal.SIG_DFL)
        if before:
            before()
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
        sys.argv = ["lessons", *map(str, options)]
        call() if call else runpy.run_module("lessons", run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:  # noqa: BLE001 (an interpreter shows any)
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # its terminal may be gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)


def wait(pid, seconds=60):  # -> exit code, or -N if signal N ended it
    """A process that hangs is killed and fails the test."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            running.remove(pid)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    end_all()
    raise AssertionError(f"the process has not ended after {seconds} seconds")


def over(pid):  # it has ended, and wait(pid) will say how
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_all():
    """For the end of a test, which may have failed: no child stays."""
    while running:
        pid = running.pop()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def lessons(*options, output, before=None):  # -> exit code, what went to standard error
    code = wait(fork(*options, output=output, before=before))
    with open(f"{output}.err", encoding="utf-8", errors="replace") as file:
        return code, file.read()


def stops_after(step):  # -> a stand-in for training_job.train: there the run is told to stop, as by Ctrl-C
    def train_and_stop(trainer, *arguments):
        for result in train(trainer, *arguments):
            if trainer.steps == step:
                os.kill(os.getpid(), signal.SIGINT)
            yield result

    train = training_job.train
    return train_and_stop
