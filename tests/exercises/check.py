"""make check 12: is the learner's file right, and if not, what is the first thing to mend?

The answer is tried in a process of its own (inside.py), a file at a time, with the reference's files around it.
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
        return all_wrong(f"{show(path)}:{found[0]}: it {found[1]}.\nThe exercise is to write it with what the lesson "
                         "imports; a file that does this is not run.")
    verdicts, wanted = {}, functions(right)
    for name in todo:
        if name not in nodes:
            verdicts[name] = Verdict("wrong", "it is gone", f"{show(path)} has no {name} any more. Its stub: make "
                                     f"exercise {int(todo[name].lesson)} FRESH=1 (keeps your file beside the new one)")
        elif is_blank(nodes[name]):
            verdicts[name] = Verdict("to do")
        elif signature(nodes[name]) != signature(wanted[name]):
            verdicts[name] = Verdict("wrong", "another signature", f"{show(path)}:{nodes[name].lineno}: def "
                                     f"{signature(nodes[name])}\nis called as  def {signature(wanted[name])}")
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
                return {name: Verdict("wrong", "its file cannot be imported",
                                      f"{show(path)} cannot be imported\n{place(event['text'])}") for name in run}
            if event["event"] == "collect":
                return {name: Verdict("wrong", "its tests cannot start", place(event["text"])) for name in run}
            if event["event"] == "start":
                at = event["test"]
            if event["event"] == "test":
                tests[asked_for(event["test"], names)].append(event | {"output": output(printed, *event["printed"])})
                at = None
            if event["event"] == "end":
                return {name: found(name) for name in run}
            if event["event"] in ("silent", "gone"):
                name = asked_for(at, names) if at else None
                text = (f"no end after {seconds} seconds: an endless loop?" if event["event"] == "silent" else
                        f"the process was ended by your code, or crashed (exit code {event['code']}). A kernel that "
                        "writes outside of an array does that, and so does os._exit")
                text += "".join(f"\nyour code: {show(path)}:{line}" for line in hung_at(hangs, path))
                if name is None:
                    return {name: Verdict("wrong", "its file cannot be imported", text) for name in run}
                before = run[:run.index(name)]
                return {n: found(n) for n in before} | {name: Verdict("wrong", "does not end", f"{at}\n{text}")}
    raise AssertionError("a process ended without saying so")


def events(path, file, names, run, seconds, printed, hangs):  # yields dicts; the last is end, silent or gone
    word = secrets.token_hex(16)
    orders = {"word": word, "path": str(path), "file": file, "names": names, "run": run, "seconds": seconds - 1,
              "printed": str(printed), "hangs": str(hangs)}
    environment = dict(os.environ, PYTHONHASHSEED="0")
    if file.startswith("kernels"):  # its own folder: Numba's is keyed by one file, and inlines functions of others
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
                line = lines.get(timeout=seconds)
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


def hung_at(hangs, path):  # -> the line of the learner's file at which it hung, if that is known
    text = hangs.read_text(errors="replace") if hangs.exists() else ""
    return re.findall(rf'File "{re.escape(str(path))}", line (\d+)', text)[:1]


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
    node = None
    try:
        node = functions(read(path)).get(following)
    except SyntaxError:
        pass
    print(f"\nNext: {following}, {show(path)}{f':{node.lineno}' if node else ''}. A hint: make hint {int(lesson)}")
    return False


def keep(lesson, exercises, verdicts):
    """progress.json learns what is done, each with the text that was: another text is not done."""
    done = {name: digest(text_of(read(mine(lesson, exercises[name].file)), name))
            for name, verdict in verdicts.items() if verdict.state == "done"}
    workbook.remember(lesson, done=done)
