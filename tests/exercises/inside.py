"""The process in which a learner's file is tried: here it may hang, crash, grow or print without end.

It reads its orders from stdin and writes a JSON line for every event to what was its stdout; what the learner
prints goes to a file. Only lines with the word that came with the orders count (check.py reads them).
"""
import faulthandler
import importlib.util
import json
import os
import re
import sys
import tempfile

from tests.exercises.messages import MEMORY, PRINTED, said
from tests.exercises.sheet import ROOT, asked_for, file_of_tests, module_name, on_gpu

FILES = {"open": (0,), "os.remove": (0,), "os.rename": (0, 1), "os.rmdir": (0,), "os.truncate": (0,),
         "os.mkdir": (0,), "os.link": (1,), "os.symlink": (1,)}  # audit event -> arguments that name files
CACHES = re.compile(r"[\\/](__pycache__|\.hypothesis)([\\/]|$)")
TRUSTED = re.compile(r"(numpy|math|operator|builtins|tests\.close|tests\.guesses|_pytest\.python_api)($|\.)|"
                     r"tests\.test_|tests\.cudasim\.(run|module)$|kernels\.cuda\.(compiled|memory)$")


def main():
    orders = json.loads(sys.stdin.readline())
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    printed = os.open(orders["printed"], os.O_RDWR | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)

    def tell(event, **more):
        events.write(json.dumps({"word": orders["word"], "event": event, **more}) + "\n")
        events.flush()

    import hypothesis
    import pytest
    if orders["file"].startswith("kernels"):
        import numba  # noqa: F401  (what it takes is not the learner's)
    if on_gpu(orders["file"]):
        from tests import cudasim
        if not orders["gpu"]:
            cudasim.install()
        import kernels.cuda.memory  # noqa: F401  (and so that the guard knows it)
    # No shrinking: it calls a wrong answer hundreds of times, and the learner waits.
    hypothesis.settings.register_profile("check", database=None, derandomize=True, deadline=None, phases=(
        hypothesis.Phase.explicit, hypothesis.Phase.generate))
    hypothesis.settings.load_profile("check")
    import tests.close
    import tests.conftest  # noqa: F401
    guard = Guard()
    limit_memory()
    with open(orders["hangs"], "w") as hangs:
        def alarm():  # says where it is, and ends the process, even in the middle of a kernel
            faulthandler.dump_traceback_later(orders["seconds"], exit=True, file=hangs)

        fence = Fence(orders["file"])
        tell("ready")
        alarm()
        try:
            with fence:
                load(module_name(orders["file"]), orders["path"])
            if changed := guard.changed():
                raise ImportError(f"it changes {changed}, which the check must be able to rely on")
        except BaseException as error:  # noqa: BLE001  (SystemExit too: whatever it is, it is told)
            tell("import", text=said(error, orders["path"], orders["lesson"]))
        else:
            alarm()
            code = pytest.main([file_of_tests(orders["file"]), "-o", "addopts=", "-s", "-p", "no:terminal",
                                "-p", "no:cacheprovider", "-p", "no:unraisableexception"],
                               plugins=[Reporter(orders, tell, guard, alarm, fence)])
            tell("end", code=int(code))
    os._exit(0)  # what the learner's file left for the end of the process does not run


def limit_memory():
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY,) * 2)
    except (OSError, ValueError):  # macOS has no such file, and would not keep to the limit
        pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (PRINTED,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def load(name, path):
    """The learner's file as the module of that name. Only it: every other file is the reference's."""
    parent, child = name.rsplit(".", 1)
    package = importlib.import_module(parent)
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path))
    with open(path, encoding="utf-8-sig") as file:
        code = compile(file.read(), path, "exec")  # not from __pycache__, which may be of a second ago
    sys.modules[name] = module
    exec(code, vars(module))  # noqa: S102  (that is what the process is for)
    setattr(package, child, module)


class Fence:
    """While it is up nothing is written but to this check's own folders, and the reference is not read."""

    def __init__(self, file):
        self.up, self.reference = False, str(ROOT / file)
        folders = tempfile.gettempdir(), os.environ.get("NUMBA_CACHE_DIR", os.devnull), os.devnull
        self.free = tuple(map(os.path.realpath, folders))
        sys.addaudithook(self.look)  # cannot be taken away again

    def __enter__(self):
        self.up = True

    def __exit__(self, *error):
        self.up = False

    def look(self, event, arguments):
        if not self.up or event not in FILES:
            return
        paths = [os.path.realpath(os.fsdecode(arguments[i])) for i in FILES[event]
                 if isinstance(arguments[i], (str, bytes))]  # and not the number of an open one
        writes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)
        for path in paths:
            if path == self.reference:
                raise PermissionError(f"it reads {path}, the reference's answer")
            if writes and not path.startswith(self.free) and not CACHES.search(path):
                raise PermissionError(f"it writes {path}: an answer changes no files")


class Guard:
    """Notices that an answer changed what the tests rely on: the modules as they were before it came."""

    def __init__(self):
        self.before = {}
        self.look()

    def look(self):
        """Take note of modules that were loaded since."""
        for name, module in list(sys.modules.items()):
            if name not in self.before and module is not None and TRUSTED.match(name):
                self.before[name] = dict(vars(module))

    def changed(self):  # -> "numpy.isclose", or None
        for name, before in self.before.items():
            now = vars(sys.modules[name]) if name in sys.modules else {}
            for key, value in before.items():
                if now.get(key, self) is not value and not key.startswith("__"):
                    return f"{name}.{key}"
            if name.startswith("tests."):  # a new name there may hide a built-in one
                for key in now.keys() - before.keys():
                    if not key.startswith(("__", "@")):
                        return f"{name}.{key}"
        return None


class Reporter:
    """A pytest plugin: runs the tests of the functions asked for, in the order of the sheet, and tells."""

    def __init__(self, orders, tell, guard, alarm, fence):
        self.orders, self.tell, self.guard, self.alarm, self.fence = orders, tell, guard, alarm, fence

    def pytest_collection_modifyitems(self, items):
        names = self.orders["names"]
        about = {item: asked_for(item.name, names) for item in items}
        items[:] = sorted((item for item in items if about[item] in self.orders["run"]),
                          key=lambda item: names.index(about[item]))
        self.guard.look()
        self.tell("collected", tests=[item.location[2] for item in items])
        self.inputs = [(name, array, array.tobytes()) for name, array in arrays_of_tests()]

    def pytest_collectreport(self, report):
        if report.failed:
            self.tell("collect", text=str(report.longrepr)[-1500:])

    def pytest_runtest_logstart(self, nodeid, location):
        self.alarm()
        self.printed, self.passed, self.text, self.waits = os.lseek(1, 0, os.SEEK_CUR), False, None, None
        self.tell("start", test=location[2])
        self.fence.__enter__()

    def pytest_exception_interact(self, node, call):
        if hasattr(node, "originalname"):  # a test
            error = call.excinfo.value
            self.text = said(error, self.orders["path"], self.orders["lesson"])
            self.waits = str(error) if isinstance(error, NotImplementedError) else None

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.passed = report.outcome == "passed" and not hasattr(report, "wasxfail")
        if report.skipped:
            self.text = "the test was skipped: your code raised what pytest takes for that"
        if report.failed and self.text is None:
            self.text = str(report.longrepr)[-1500:]

    def pytest_runtest_logfinish(self, nodeid, location):
        self.fence.__exit__()
        sys.stdout.flush()
        self.passed = self.passed and self.text is None
        if changed := self.guard.changed():
            self.fail(f"your code changes {changed}, which the check must be able to rely on")
        for i, (name, array, before) in enumerate(self.inputs):
            if array.tobytes() != before:
                self.inputs[i] = (name, array, array.tobytes())
                self.fail(f"your code changes {name}, which the test handed in, in place: work on a copy, or "
                          f"write the result into a new array")
        file, line, test = location
        self.tell("test", test=test, passed=self.passed, text=self.text or "it did not come to its end",
                  waits=self.waits, file=file, line=line + 1,
                  printed=(self.printed, os.lseek(1, 0, os.SEEK_CUR)))

    def fail(self, text):
        self.passed, self.text, self.waits = False, text, None


def arrays_of_tests():  # yields (name, array): what test modules hand in
    import numpy as np

    for module in [module for name, module in sys.modules.items() if name.startswith("tests.test_")]:
        for name, value in vars(module).items():
            if isinstance(value, np.ndarray) and value.nbytes < 1 << 20:
                yield name, value


if __name__ == "__main__":
    main()
