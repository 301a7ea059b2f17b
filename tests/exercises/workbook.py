"""The learner's folder: workbook/12/lessons/l12_attention.py, workbook/12/kernels/cpu/attention.py, and
workbook/progress.json, which knows what was done and how many hints were read. Nothing written here is ever
overwritten but progress.json and what this program itself made.
"""
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from lessons.errors import InputError
from tests.exercises.sheet import ROOT, files_of, first_line, functions, lines_of, text_of
from tests.exercises.stub import blank, pieces, signature

WORKBOOK = Path(os.environ.get("WORKBOOK") or ROOT / "workbook").expanduser().absolute()


def mine(lesson, file):
    return WORKBOOK / lesson / file


def show(path):
    """As short as it can be said here."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read(path):  # -> text
    """A learner's file. InputError if it cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{show(path)} is not UTF-8 text: save it with that encoding") from None
    except FileNotFoundError:
        lesson = int(path.relative_to(WORKBOOK).parts[0])
        raise InputError(f"{show(path)} is missing. Get it back: make exercise {lesson}") from None


def reference(file):
    return (ROOT / file).read_text(encoding="utf-8")


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- progress.json ----------------------------------------------------------------------------------------

def progress():  # -> {"12": {"done": {name: digest}, "next": name, "hints": {name: n}, "stubs": {file: ...}}}
    path = WORKBOOK / "progress.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(entry.get(key, {}), dict) for entry in found.values()
               for key in ("done", "hints", "stubs")) and all(
                   isinstance(n, int) for entry in found.values() for n in entry.get("hints", {}).values()):
            return found
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError):
        pass
    raise InputError(f"{show(path)} is damaged. It holds no answers: delete it, and check each lesson again")


def remember(lesson, **entries):
    """Set entries of one lesson: remember("12", done={...})."""
    everything = progress()
    everything.setdefault(lesson, {}).update(entries)
    WORKBOOK.mkdir(parents=True, exist_ok=True)
    write(WORKBOOK / "progress.json", json.dumps(everything, indent=1, sort_keys=True) + "\n")


def of(lesson, key):
    return progress().get(lesson, {}).get(key, {})


def write(path, text):
    """All or nothing: a full disk must not cost what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def answers(source, exercises):  # -> {name: digest of its text and of all that is no exercise, its helpers}
    nodes, lines = functions(source), lines_of(source)
    for name in exercises:
        if name in nodes:
            for i in range(first_line(nodes[name]) - 1, nodes[name].end_lineno):
                lines[i] = ""
    rest = "".join(lines)
    return {name: digest(text_of(source, name) + rest) for name in exercises if name in nodes}


def finished(lesson, file, exercises):  # -> names: their last check was good, and they are as they were then
    done = of(lesson, "done")
    try:
        source = read(mine(lesson, file))
        nodes, wanted, now = functions(source), functions(reference(file)), answers(source, exercises)
    except (SyntaxError, ValueError, OSError):  # there is none, or none that can be read
        return set()
    return {name for name in now if now[name] == done.get(name)
            and signature(nodes[name]) == signature(wanted[name])}  # it may have changed with the course


# ---- make exercise ----------------------------------------------------------------------------------------

def start(lesson, exercises, fresh):
    """Write the lesson's files with blanks. Returns the paths; InputError if one exists and not fresh."""
    paths = {file: mine(lesson, file) for file in files_of(exercises)}
    there = [path for path in paths.values() if path.exists()]
    if len(there) == len(paths) and not fresh:
        raise InputError(f"{show(there[0])} is there already, and stays as it is. To go on: make check "
                         f"{int(lesson)}. To start over: make exercise {int(lesson)} FRESH=1, which keeps it")
    written, stubs = [], of(lesson, "stubs")
    for file, path in paths.items():
        if path.exists() and not fresh:
            continue  # one of several was deleted: it alone comes back
        if path.exists():
            old = free(path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}.old"))
            os.replace(path, old)
            print(f"kept   {show(old)}")
        stub = blank(reference(file), files_of(exercises)[file])
        write(path, stub)
        newer(path).unlink(missing_ok=True)
        stubs = {**stubs, file: {name: digest(text) for name, text in pieces(stub).items()}}
        written.append(path)
        print(f"wrote  {show(path)}")
    remember(lesson, stubs=stubs)
    return written


def free(path):  # -> a path like it under which nothing lies
    while path.exists():
        path = path.with_stem(f"{path.stem}x")
    return path


def newer(path):
    return path.with_name(f"{path.name}.new")


def updated(lesson, exercises):  # yields a line for each file whose lesson changed after `make exercise`
    """The course was updated: the new stub is put beside the learner's file, which stays as it is."""
    stubs = of(lesson, "stubs")
    for file, todo in files_of(exercises).items():
        path = mine(lesson, file)
        beside = newer(path)
        stub = blank(reference(file), todo)
        now = {name: digest(text) for name, text in pieces(stub).items()}
        before = stubs.get(file, now)  # not known if progress.json was deleted
        if path.exists() and now != before:
            changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            write(beside, stub)
            stubs = {**stubs, file: now}
            remember(lesson, stubs=stubs)
            yield (f"The course has a newer {file}: {', '.join(changed)} changed. Your file stays as it is; "
                   f"the new stub is beside it, {show(beside)}. Take what you need, then delete it.")
        elif beside.exists():
            yield f"{show(beside)}, the newer stub, still waits for you. Take what you need, then delete it."


# ---- MINE=1 -----------------------------------------------------------------------------------------------

def my_course(sheet):  # -> folder for LESSONS_PATH, [a line for each file that is used]
    """Every file with a finished function, its unfinished ones filled in from the reference."""
    folder, lines, wanted = WORKBOOK / "mine", [], {}
    for lesson, exercises in sheet.items():
        for file, todo in files_of(exercises).items():
            done = finished(lesson, file, todo)
            if done:
                text = filled(read(mine(lesson, file)), reference(file), set(todo) - done)
                yours = show(mine(lesson, file))
                wanted[folder / file] = f"{text}\n# Made for MINE=1. Change {yours} instead.\n"
                lines.append(f"  {file:32} {len(done)} of {len(todo)} yours: "
                             f"{', '.join(name for name in todo if name in done)}")
    for path in [*folder.rglob("*.py")]:
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write(path, text)
    return folder, lines


def compiled(folder, texts):  # -> NUMBA_CACHE_DIR for these texts and the reference's kernels
    """Numba does not notice when another file changes of which it has compiled a function in: so the folder
    is named by all texts that may take part. Folders of earlier texts go."""
    kernels = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("kernels/**/*.py"))]
    now = folder / digest("".join([*texts, *kernels]))
    for other in folder.glob("*"):
        if other != now and time.time() - other.stat().st_mtime > 3600:  # another check may be at work in it
            shutil.rmtree(other, ignore_errors=True)
    return now


def filled(source, right, names):
    """A learner's file in which the named functions are the reference's. Its helpers and imports stay."""
    lines, nodes, solutions = lines_of(source), functions(source), functions(right)
    for name in sorted((name for name in names if name in nodes), key=lambda name: -nodes[name].lineno):
        lines[first_line(nodes[name]) - 1:nodes[name].end_lineno] = [text_of(right, name)]
    gone = [name for name in solutions if name in names and name not in nodes]
    return "".join(lines) + "".join(f"\n\n{text_of(right, name)}" for name in gone if "." not in name)
