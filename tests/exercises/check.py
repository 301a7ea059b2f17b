"""make check 12: is the learner's file right, and if not, what is the first thing to mend?

The answer is tried in a process of its own (inside.py), file by file, each among the reference's other files.
Nothing is taken for right that was not seen to be: each test of a function must have ended, and passed.
"""
import contextlib
import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from tests.exercises import rules, workbook
from tests.exercises.sheet import ROOT, asked_for, files_of, functions, text_of
from tests.exercises.stub import is_blank, signature
from tests.exercises.workbook import digest, mine, read, reference, show

SECONDS = 20  # that one test may take; the slowest of ours takes less than 2


class Verdict(NamedTuple):
    state: str  # "done", "wrong", "to do", "waits"
    note: str = ""  # for the table
    text: str = ""  # what is wrong, in full


def check(lesson, exercises, seconds=SECONDS):  # -> {name: Verdict}
    verdicts = {}
    for file, todo in files_of(exercises).items():
        verdicts |= check_file(mine(lesson, file), file, todo, seconds)
    return {name: verdicts[name] for name in exercises}


def check_file(path, file, todo, seconds):  # -> {name: Verdict}
    def all_wrong(text):
        return {name: Verdict("wrong", "its file cannot be used", text) for name in todo}

    if not path.exists():
        return {name: Verdict("to do", "its file is not there") for name in todo}
    source, right = read(path), reference(file)
    try:
        nodes = functions(source)
    except SyntaxError as error:
        line = (error.text or "").rstrip("\n")
        caret = " " * ((error.offset or 1) - 1) + "^"
        return all_wrong(f"{show(path)}:{error.lineno}: {error.msg}\n    {line}\n    {caret}")
    if found := rules.broken(source, right, file):
        return all_wrong(f"{show(path)}:{found[0]}: it {found[1]}.\nThe exercise is to write it with what "
                         "the lesson imports. A file that does more is not run.")
    verdicts, wanted = {}, functions(right)
    for name in todo:
        if name not in nodes:
            text = (f"{show(path)} has no {name} any more. Its stub: make exercise "
                    f"{int(todo[name].lesson)} FRESH=1, which keeps your file, too")
            verdicts[name] = Verdict("wrong", "it is gone", text)
        elif is_blank(nodes[name]):
            verdicts[name] = Verdict("to do")
        elif signature(nodes[name]) != signature(wanted[name]):
            text = (f"{show(path)}:{nodes[name].lineno}: def {signature(nodes[name])}\n"
                    f"must be, as others call it: def {signature(wanted[name])}")
            verdicts[name] = Verdict("wrong", "another signature", text)
    run = [name for name in todo if name not in verdicts]
    while run:  # again, without what hung or crashed
        verdicts |= (found := try_file(path, file, list(todo), run, seconds, verdicts))
        run = [name for name in run if name not in found]
    return verdicts


def try_file(path, file, names, run, seconds, verdicts):  # -> {name: Verdict}, of some of run at least
    """One process. It tells of every test that ends; when it falls silent or stops, it is told on."""
    waits = {name for name, verdict in verdicts.items() if verdict.state == "to do"}
    tests, ready, at = {name: [] for name in run}, False, None

    def place(text):
        return text.replace("{path}", show(path)).replace(str(path), show(path))

    def found(name):
        passed = [test["passed"] for test in tests[name]]
        if not passed:
            return Verdict("wrong", "", f"no test of {name} could be run")
        if all(passed):
            return Verdict("done", f"{len(passed)} test{'s' * (len(passed) > 1)}")
        test = next(test for test in tests[name] if not test["passed"])
        if test["waits"] in waits:
            return Verdict("waits", f"for {test['waits']}")
        line = functions(read(path))[name].lineno
        text = place(test["text"])
        if "your code:" not in text:
            text += f"\nyour code: {show(path)}:{line}"
        return Verdict("wrong", f"{passed.count(False)} of {len(passed)} tests fail",
                       f"{test['test']}  ({test['file']}:{test['line']})\n{text}{test.get('output', '')}")

    with tempfile.TemporaryDirectory() as folder:
        printed, hangs = Path(folder, "printed"), Path(folder, "hangs")
        for event in events(path, file, names, run, seconds, printed, hangs):
            ready = ready or event["event"] == "ready"
            if not ready:
                raise SystemExit("The check itself could not start; it says why above.")
            if event["event"] == "import":
                text = f"{show(path)} cannot be imported\n{place(event['text'])}"
                return dict.fromkeys(run, Verdict("wrong", "its file cannot be imported", text))
            if event["event"] == "collect":
                return dict.fromkeys(run, Verdict("wrong", "its tests cannot start", place(event["text"])))
            if event["event"] == "start":
                at = event["test"]
            if event["event"] == "test":
                event["output"] = output(printed, *event["printed"])
                tests[asked_for(event["test"], names)].append(event)
                at = None
            if event["event"] == "end":
                return {name: found(name) for name in run}
            if event["event"] in ("silent", "gone"):
                lines = hung_at(hangs, path)
                hung = event["event"] == "silent" or lines is not None
                text = f"it does not end within {seconds} seconds: an endless loop?" if hung else \
                    (f"it ended the process, or crashed it (exit code {event['code']}): by os._exit, or by a "
                     "kernel that writes outside of an array")
                text += "".join(f"\nyour code: {show(path)}:{line}" for line in (lines or [])[:1])
                if at is None:
                    return dict.fromkeys(run, Verdict("wrong", "its file cannot be imported", text))
                name = asked_for(at, names)
                note = "does not end" if hung else "ends the process"
                before = {other: found(other) for other in run[:run.index(name)]}
                return before | {name: Verdict("wrong", note, f"{at}\n{text}")}
    raise AssertionError("a process ended without saying so")


def events(path, file, names, run, seconds, printed, hangs):  # yields dicts; the last is end, silent or gone
    word = secrets.token_hex(16)
    orders = {"word": word, "path": str(path), "file": file, "names": names, "run": run,
              "seconds": seconds, "printed": str(printed), "hangs": str(hangs)}
    environment = dict(os.environ, PYTHONHASHSEED="0")
    if file.startswith("kernels"):  # compiled code of its own: the reference's must not mix with it
        kernels = "".join(sorted(read(other) for other in path.parents[2].rglob("kernels/**/*.py")))
        environment |= {"NUMBA_BOUNDSCHECK": "1",
                        "NUMBA_CACHE_DIR": str(path.parents[2] / "compiled" / digest(kernels))}
    process = subprocess.Popen([sys.executable, "-m", "tests.exercises.inside"], cwd=ROOT, env=environment,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    lines = queue.Queue()
    threading.Thread(target=pour, args=(process.stdout, lines), daemon=True).start()
    try:
        process.stdin.write(json.dumps(orders) + "\n")
        process.stdin.close()
        while True:
            try:
                line = lines.get(timeout=seconds + 5)
            except queue.Empty:
                yield {"event": "silent"}
                return
            if line is None:
                yield {"event": "gone", "code": process.wait()}
                return
            event = json.loads(line)
            if event.get("word") == word:
                yield event
                if event["event"] in ("end", "import", "collect"):
                    return
    finally:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.kill()
        process.wait()


def pour(stream, lines):
    for line in stream:
        lines.put(line)
    lines.put(None)


def output(printed, start, end, most=600):
    """What the learner printed during a test: its beginning."""
    if end <= start:
        return ""
    with open(printed, "rb") as file:
        file.seek(start)
        text = file.read(min(end - start, most)).decode("utf-8", "replace").rstrip("\n")
    more = f"\n  | ... and {end - start - most:,} bytes more" if end - start > most else ""
    return "\nit printed:\n" + "\n".join(f"  | {line}" for line in text.splitlines()) + more


def hung_at(hangs, path):  # -> lines of the learner's file, innermost first; None if it did not hang
    text = hangs.read_text(errors="replace") if hangs.exists() else ""
    return re.findall(rf'File "{re.escape(str(path))}", line (\d+)', text) if "Timeout" in text else None


def report(lesson, exercises, verdicts):
    """Print the table and the first wrong one in full. Returns True if everything is done."""
    width = max(map(len, exercises)) + 2
    for file, todo in files_of(exercises).items():
        print(show(mine(lesson, file)))
        for name in todo:
            state, note, _ = verdicts[name]
            print(f"  {state:6} {name:{width}} {note}".rstrip())
    first = next((name for name in exercises if verdicts[name].state == "wrong"), None)
    if first:
        print(f"\n{first} is wrong: " + verdicts[first].text.replace("\n", "\n  "))
    left = [name for name in exercises if verdicts[name].state != "done"]
    if not left:
        print(f"\nAll {len(exercises)} are done. Compare: make solution {int(lesson)}. Use them: make lesson "
              f"{int(lesson)} MINE=1, make train MINE=1")
        return True
    following = first or next(name for name in left if verdicts[name].state == "to do")
    path = mine(lesson, exercises[following].file)
    print(f"\nNext: {following}, {show(path)}{line_of(path, following)}. A hint: make hint {int(lesson)}")
    return False


def line_of(path, name):  # -> ":21", or nothing if it cannot be found
    try:
        return f":{functions(read(path))[name].lineno}"
    except (SyntaxError, KeyError):
        return ""


def keep(lesson, exercises, verdicts):
    """progress.json learns what is done, each with the text that was: another text is not done."""
    done = {name: digest(text_of(read(mine(lesson, exercises[name].file)), name))
            for name, verdict in verdicts.items() if verdict.state == "done"}
    workbook.remember(lesson, done=done)
