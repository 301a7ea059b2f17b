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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lessons.devices import cores
from lessons.errors import InputError
from tests.exercises import rules, workbook
from tests.exercises.messages import place
from tests.exercises.sheet import ROOT, asked_for, files_of, functions, on_gpu
from tests.exercises.stub import is_blank, signature
from tests.exercises.workbook import compiled, mine, read, reference, show

PLAIN = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")  # kernels run as plain Python
NOT_IN_TRAINING = {"01", "02", "03", "04", "07", "11", "20", "26"}  # lessons that make train does without
UNUSABLE = "its file cannot be used"
SECONDS = 20  # that one test may take; the slowest of ours takes less than 2


class Verdict(NamedTuple):
    state: str  # "done", "wrong", "to do", "waits"
    note: str = ""  # for the table
    text: str = ""  # what is wrong, in full


def check(lesson, exercises, seconds=SECONDS):  # -> {name: Verdict}
    verdicts = {}
    with ThreadPoolExecutor(cores()) as pool:  # they wait for processes, one for each file
        for found in pool.map(lambda item: check_file(mine(lesson, item[0]), *item, seconds),
                              files_of(exercises).items()):
            verdicts |= found
    return {name: verdicts[name] for name in exercises}


def check_file(path, file, todo, seconds):  # -> {name: Verdict}
    def all_wrong(text):
        return dict.fromkeys(todo, Verdict("wrong", UNUSABLE, text))

    if not path.exists():
        return {name: Verdict("to do", "its file is not there") for name in todo}
    try:
        source, right = read(path), reference(file)
        nodes, found = functions(source), rules.broken(source, right, file)
    except SyntaxError as error:
        line, caret = (error.text or "").rstrip("\n"), " " * ((error.offset or 1) - 1) + "^"
        return all_wrong(f"{show(path)}:{error.lineno or 1}: {error.msg}\n    {line}\n    {caret}")
    except InputError as error:
        return all_wrong(str(error))
    except (OSError, RecursionError, MemoryError) as error:
        return all_wrong(f"{show(path)} cannot be read: {type(error).__name__} {error}")
    if found:
        return all_wrong(f"{show(path)}:{found[0]}: it {found[1]}.\nThe exercise is to write it with what "
                         "the lesson imports. A file that does more is not run.")
    verdicts, wanted = {}, functions(right)
    for name in todo:
        if name not in nodes:
            text = f"{show(path)} has no {name} any more: is it renamed? {signature(wanted[name])}: ..."
            verdicts[name] = Verdict("wrong", "it is gone", text)
        elif is_blank(nodes[name]):
            verdicts[name] = Verdict("to do")
            if len(nodes[name].body) > 2 + todo[name].keep:  # more than docstring and raise
                text = (f"{show(path)}:{nodes[name].end_lineno}: the stub's raise NotImplementedError is "
                        f"still in {name}: take that line out when the rest is written")
                verdicts[name] = Verdict("wrong", "its raise is still there", text)
        elif signature(nodes[name]) != signature(wanted[name]):
            text = (f"{show(path)}:{nodes[name].lineno}: {signature(nodes[name])}\n"
                    f"must be, as others call it: {signature(wanted[name])}")
            verdicts[name] = Verdict("wrong", "another signature", text)
    run = [name for name in todo if name not in verdicts]
    while run:  # again, without what hung or crashed
        verdicts |= (found := try_file(path, file, todo, run, seconds, verdicts))
        run = [name for name in run if name not in found]
    if on_gpu(file) and there_is_a_gpu():  # it says less than the simulator, which therefore comes first
        run = [name for name in todo if verdicts[name].state == "done"]
        while run:
            verdicts |= (found := try_file(path, file, todo, run, seconds, verdicts, gpu=True))
            run = [name for name in run if name not in found]
    return verdicts


def there_is_a_gpu():
    from kernels.cuda.compiled import problem
    return problem() is None


def try_file(path, file, todo, run, seconds, verdicts, gpu=False):  # -> {name: Verdict}, of some of run
    """One process. What counts is what it has told of each test; how it ended decides about the last one."""
    told, expected, ready, at, names = {name: [] for name in run}, [], False, None, list(todo)
    with tempfile.TemporaryDirectory() as folder:
        printed, hangs = Path(folder, "printed"), Path(folder, "hangs")
        for event in events(path, file, todo, run, seconds, printed, hangs, gpu):
            what = event["event"]
            if what == "ready":
                ready = True
            elif what == "collected":
                expected = event["tests"]
            elif what == "start":
                at = event["test"]
            elif what == "test":
                at = None
                event["printed"] = output(printed, *event["printed"])
                told[asked_for(event["test"], names)].append(event)
        hung = hung_at(hangs, path) if hangs.exists() else None
    if not ready:
        raise SystemExit("The check itself could not start; it says why above.")
    if what in ("import", "collect") or at is None and what != "end":
        text = event.get("text") or how_it_ended(event, hung, seconds, path)
        step = "its tests cannot start" if what == "collect" else "it cannot be imported"
        return dict.fromkeys(run, Verdict("wrong", UNUSABLE, shown(f"{show(path)}: {step}\n{text}", path)))
    to_do = {name for name, verdict in verdicts.items() if verdict.state == "to do"}
    if at is None:
        return {name: judged(name, told[name], expected, names, path, to_do) for name in run}
    last = asked_for(at, names)
    before = {name: judged(name, told[name], expected, names, path, to_do) for name in run[:run.index(last)]}
    note = "does not end" if hung is not None or what == "silent" else "ends the process"
    text = shown(f"{at}\n{how_it_ended(event, hung, seconds, path)}", path)
    return before | {last: Verdict("wrong", note, text)}


def judged(name, tests, expected, names, path, to_do):  # -> Verdict, of a function whose tests are over
    failed = [test for test in tests if not test["passed"]]
    if not failed:
        wanted = [test for test in expected if asked_for(test, names) == name]
        if not tests or len(tests) != len(wanted):
            return Verdict("wrong", "", f"{len(tests)} of {len(wanted)} tests came to their end")
        return Verdict("done", f"{len(tests)} test{'s' * (len(tests) > 1)}")
    first = failed[0]
    if first["waits"] in to_do:
        return Verdict("waits", f"for {first['waits']}")
    text = f"{first['test']}  ({first['file']}:{first['line']})\n{first['text']}"
    if "your code:" not in text:
        text += f"\nyour code: {{path}}{line_of(path, name)}"
    note = f"{len(failed)} of {len(tests)} tests fail"
    return Verdict("wrong", note, shown(text, path) + first["printed"])


def how_it_ended(event, hung, seconds, path):
    where = f"\n{place(int(hung[0]), str(path))}" if hung else ""
    if hung is not None or event["event"] == "silent":
        return f"it does not end within {seconds} seconds: an endless loop?{where}"
    if event["event"] == "end":
        return "it ended the run of the tests"
    return (f"it ended the process, or crashed it (exit code {event['code']}): by os._exit, or by a kernel "
            "that writes outside of an array")


def shown(text, path):
    return text.replace("{path}", show(path)).replace(str(path), show(path))


def events(path, file, todo, run, seconds, printed, hangs, gpu):
    """Yields dicts; the last is end, silent or gone."""
    word = secrets.token_hex(16)
    orders = {"word": word, "path": str(path), "file": file, "names": list(todo), "run": run,
              "lesson": int(next(iter(todo.values())).lesson), "seconds": seconds,
              "printed": str(printed), "hangs": str(hangs), "gpu": gpu}
    environment = dict(os.environ, PYTHONHASHSEED="0")
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(printed.parent))  # all it may write to
    if file.startswith("kernels/cpu"):  # compiled code of its own: the reference's must not mix with it
        others = sorted(Path(os.environ.get("LESSONS_PATH", path.parent)).rglob("kernels/**/*.py"))
        folder = compiled(path.parent / "compiled" / path.stem, map(read, [path, *others]))
        environment |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(folder)}
    process = subprocess.Popen([sys.executable, "-m", "tests.exercises.inside"], cwd=ROOT, env=environment,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    lines = queue.Queue()
    threading.Thread(target=pour, args=(process.stdout, lines), daemon=True).start()
    try:
        process.stdin.write(json.dumps(orders) + "\n")
        process.stdin.close()
        patience = 120  # until it is ready: importing Numba from a cold disk takes its time
        while True:
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                yield {"event": "silent"}
                return
            if line is None:
                yield {"event": "gone", "code": process.wait()}
                return
            if word in line:
                event, patience = json.loads(line), seconds + 5
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
    text = hangs.read_text(errors="replace")
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
    unusable = first is not None and verdicts[first].note == UNUSABLE
    if first:
        said = verdicts[first].text.replace("\n", "\n  ")
        print(f"\n{said}" if unusable else f"\n{first} is wrong: {said}")
    left = [name for name in exercises if verdicts[name].state != "done"]
    kernels = [name for name in exercises if exercises[name].file.startswith("kernels/cpu")]
    if not left and PLAIN and kernels:
        print(f"\nAll are right as plain Python. They count once they are compiled: make check {int(lesson)}")
        return False
    if not left:
        train = "" if lesson in NOT_IN_TRAINING else ", make train MINE=1"
        print(f"\nAll {len(exercises)} are done. Compare: make solution {int(lesson)}. Use them: make lesson "
              f"{int(lesson)} MINE=1{train}")
    elif unusable:
        print(f"\nNext: mend the file, then make check {int(lesson)}")
    else:
        name = following(exercises, verdicts)
        path = mine(lesson, exercises[name].file)
        print(f"\nNext: {name}, {show(path)}{line_of(path, name)}. A hint: make hint {int(lesson)}")
    return not left


def following(exercises, verdicts):  # -> the function to go on with: the first wrong one, or the first to do
    for state in "wrong", "to do":
        for name in exercises:
            if verdicts[name].state == state:
                return name
    return None


def line_of(path, name):  # -> ":21", or nothing if it cannot be found
    try:
        return f":{functions(read(path))[name].lineno}"
    except (SyntaxError, KeyError, ValueError, OSError):
        return ""


def keep(lesson, exercises, verdicts):
    """progress.json learns what is done, each with the text that was: another text is not done."""
    usable = {name for name in exercises if verdicts[name].note != UNUSABLE}
    done = {name: text for name, text in workbook.of(lesson, "done").items() if name not in usable}
    for file, todo in files_of(exercises).items():
        good = [name for name in todo if verdicts[name].state == "done"]
        if good and not (file.startswith("kernels/cpu") and PLAIN):
            texts = workbook.answers(read(mine(lesson, file)), todo)
            done |= {name: texts[name] for name in good}
    workbook.remember(lesson, done=done, next=following(exercises, verdicts))
