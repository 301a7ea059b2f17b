"""The process in which a learner's file is tried: tests run here, and here it may hang, crash or grow.

It reads its orders from stdin and writes a JSON line for every event to what was its stdout. What the learner
prints goes to a file. Only a line with the word that came with the orders counts (check.py reads them).
"""
import faulthandler
import importlib.util
import json
import linecache
import os
import re
import sys
import traceback

from tests.exercises.sheet import asked_for, module_name, test_file

MEMORY, PRINTED = 2 << 30, 16 << 20  # bytes that an answer may use more than was used before, and may print
NO_NUMBER = object()


def main():
    orders = json.loads(sys.stdin.readline())
    events, printed = os.fdopen(os.dup(1), "w", encoding="utf-8"), os.open(orders["printed"], os.O_RDWR | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)

    def tell(event, **more):
        events.write(json.dumps({"word": orders["word"], "event": event, **more}) + "\n")
        events.flush()

    kernels = orders["file"].startswith("kernels")
    import pytest
    import hypothesis
    if kernels:
        import numba  # noqa: F401  (before its memory is counted)
    hypothesis.settings.register_profile("check", database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("check")
    import tests.conftest  # noqa: F401
    guard = Guard(("numpy", "math", "builtins", "operator", "tests", "_pytest.python_api"))
    limit_memory()
    hangs = open(orders["hangs"], "w+")
    faulthandler.dump_traceback_later(orders["seconds"], file=hangs)
    tell("ready")
    try:
        load(module_name(orders["file"]), orders["path"])
    except BaseException as error:  # SystemExit too
        tell("import", text=said(error, orders["path"]))
        return
    if changed := guard.changed():
        tell("import", text=f"your file changes {changed}: the check must be able to rely on it")
        return
    plugin = Reporter(orders, tell, guard, hangs)
    code = pytest.main([test_file(orders["file"]), "-o", "addopts=", "-s", "-p", "no:terminal", "-p",
                        "no:cacheprovider", "-p", "no:unraisableexception", "-p", "no:threadexception"],
                       plugins=[plugin])
    tell("end", code=int(code))
    events.close()
    os._exit(0)  # what the learner's file left for the end of the process does not run


def limit_memory():
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        with open("/proc/self/statm") as f:
            now = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY,) * 2)
    except (OSError, ValueError):  # macOS has no such file, and does not keep to the limit
        pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (PRINTED,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def load(name, path):
    """The learner's file as the module of that name: only it, every other file is the reference's."""
    parent, child = name.rsplit(".", 1)
    package = importlib.import_module(parent)
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path))
    with open(path, encoding="utf-8-sig") as file:
        code = compile(file.read(), path, "exec")  # not from __pycache__, which may be of a second ago
    sys.modules[name] = module
    exec(code, vars(module))
    setattr(package, child, module)


class Guard:
    """Notices when an answer changes what the tests rely on: the modules as they were before it was imported."""

    def __init__(self, roots):
        self.roots, self.before = roots, {}
        self.look()

    def look(self):
        for name, module in list(sys.modules.items()):
            if module is not None and any(name == root or name.startswith(f"{root}.") for root in self.roots) \
                    and name not in self.before:
                self.before[name] = dict(vars(module))

    def changed(self):  # -> "numpy.isclose", or None
        for name, before in self.before.items():
            now = vars(sys.modules[name]) if name in sys.modules else {}
            for key, value in before.items():
                if now.get(key, NO_NUMBER) is not value and not key.startswith("__"):
                    return f"{name}.{key}"
            if name.startswith("tests.test_") or name == "tests.close":
                for key in now.keys() - before.keys():
                    if not key.startswith(("__", "@")):
                        return f"{name}.{key}"
        return None


class Reporter:
    """A pytest plugin: runs the tests of the functions asked for, and tells what happened."""

    def __init__(self, orders, tell, guard, hangs):
        self.orders, self.tell, self.guard, self.hangs = orders, tell, guard, hangs
        self.text = None

    def pytest_collection_modifyitems(self, items):
        wanted = [item for item in items if asked_for(item.name, self.orders["names"]) in self.orders["run"]]
        # In the order of the sheet, so that the first mistake shown is the first to mend.
        wanted.sort(key=lambda item: self.orders["names"].index(asked_for(item.name, self.orders["names"])))
        items[:] = wanted
        self.guard.look()
        self.globals = arrays_of(sys.modules.values())

    def pytest_collectreport(self, report):
        if report.failed:
            self.tell("collect", text=str(report.longrepr)[-1500:])

    def pytest_runtest_logstart(self, nodeid, location):
        faulthandler.dump_traceback_later(self.orders["seconds"], file=self.hangs)
        self.text, self.began = None, os.lseek(1, 0, os.SEEK_CUR)
        self.passed = False
        self.tell("start", test=location[2])

    def pytest_exception_interact(self, node, call):
        if hasattr(node, "originalname"):
            self.text = said(call.excinfo.value, self.orders["path"])
            self.missing = str(call.excinfo.value) if call.excinfo.type is NotImplementedError else None

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.passed = report.outcome == "passed" and not hasattr(report, "wasxfail")
        if report.failed and self.text is None:
            self.text, self.missing = str(report.longrepr)[-1500:], None
        if report.skipped and self.text is None:
            self.text, self.missing = "the test was skipped: your code raised what pytest takes for that", None

    def pytest_runtest_logfinish(self, nodeid, location):
        sys.stdout.flush()
        text, missing = self.text, getattr(self, "missing", None)
        if changed := self.guard.changed():
            self.passed, text, missing = False, f"your code changes {changed}: the check must be able to rely on it", None
        elif name := next((name for name, array, before in self.globals if array.tobytes() != before), None):
            self.passed, text, missing = False, (f"your code changes {name}, which the test handed in, in place: "
                                                 "work on a copy, or write the result into a new array"), None
            self.globals = [(n, a, a.tobytes()) for n, a, _ in self.globals]
        elif not self.passed and text is None:
            text = "the test did not come to its end"
        if missing:
            self.missing = None
        file, line, _ = location
        self.tell("test", test=location[2], passed=self.passed and text is None, text=text, waits=missing,
                  file=file, line=line + 1, printed=(self.began, os.lseek(1, 0, os.SEEK_CUR)))


def arrays_of(modules):  # -> [(name, array, its bytes)] of what test modules hold
    import numpy as np

    return [(name, value, value.tobytes()) for module in list(modules)
            if getattr(module, "__name__", "").startswith("tests.test_")
            for name, value in vars(module).items() if isinstance(value, np.ndarray) and value.nbytes < 1 << 20]


def said(error, path):
    """An exception as a learner wants to read it: what, and where in their own file."""
    kind, text = type(error).__name__, str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f"\nyour code: {{path}}:{frames[-1].lineno}:  {frames[-1].line}" if frames else ""
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()) if "alsifying" in note)
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{kind}: {error.msg}\nyour code: {{path}}:{error.lineno}:  {(error.text or '').strip()}"
    if isinstance(error, AssertionError):
        lines = text.split("\nassert ")[0].splitlines()
        return "\n".join(lines[:20] or ["an assertion of the test fails"]) + notes + where
    if isinstance(error, MemoryError):
        return f"MemoryError: it wants more than {MEMORY >> 30} GB. {text}{where}"
    if isinstance(error, OSError) and error.errno == 27:
        return f"it prints more than {PRINTED >> 20} MB{where}"
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return f"{kind}: your code ends the program{where}"
    if type(error).__module__.startswith("numba"):
        return numba_said(text, kind, path)
    if isinstance(error, IndexError) and not frames:
        where = ("\na kernel reads or writes outside of an array. NUMBA_DISABLE_JIT=1 make check N runs it as plain "
                 "Python, and names the line")
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return f"{kind}: " + "\n  ".join(lines[:6]) + notes + where


def numba_said(text, kind, path):
    """A TypingError is a page. One line of it says what, one says where."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    what = next((line for line in reversed(lines) if re.search(
        r"No implementation|No conversion|Cannot unify|Invalid use|not defined|Unknown attribute|Undeclared|"
        r"cannot determine|Unsupported|is not supported|Use of unsupported|No match|mismatch", line)), lines[0] if lines else "")
    places = [re.search(r'File "([^"]+)", line (\d+)', line) for line in lines]
    numbers = [int(place[2]) for place in places if place and path.endswith(place[1].lstrip("./"))]
    where = f"\nyour code: {{path}}:{numbers[-1]}:  {linecache.getline(path, numbers[-1]).strip()}" if numbers else ""
    return f"Numba cannot compile it ({kind}): {what}{where}\nNUMBA_DISABLE_JIT=1 make check N runs it as plain Python"


if __name__ == "__main__":
    main()
