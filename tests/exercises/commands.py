"""What a learner types: exercise, check, hint, watch, progress, solution, and MINE=1."""
import difflib
import os
import subprocess
import sys
import time

from lessons.errors import InputError
from tests.exercises import check as checking
from tests.exercises import workbook
from tests.exercises.sheet import ROOT, files_of, first_line, functions, sheet, text_of
from tests.exercises.stub import size
from tests.exercises.workbook import mine, read, reference, show


def lesson_of(which, verb="exercise"):  # "12", "attention" -> "12", {name: Exercise}
    from lessons.__main__ import find

    if not which:
        raise InputError(f"which lesson? For example: make {verb} 12. make progress lists them")
    number, name = find(which)
    lesson = f"{number:02d}"
    if lesson not in sheet():
        raise InputError(f"lesson {number}, {name}, has no exercises. make progress lists those that have")
    return lesson, sheet()[lesson]


def begun(which, verb):
    lesson, exercises = lesson_of(which, verb)
    if not is_begun(lesson, exercises):
        raise InputError(f"lesson {int(lesson)} has no workbook yet: make exercise {int(lesson)} writes one")
    return lesson, exercises


def is_begun(lesson, exercises):
    return any(mine(lesson, file).exists() for file in files_of(exercises))


def exercise(which="", fresh=""):
    lesson, exercises = lesson_of(which)
    written = workbook.start(lesson, exercises, fresh == "fresh")
    print("\nWrite, in this order:")
    for file, todo in files_of(exercises).items():
        if mine(lesson, file) in written:
            print(f"  {show(mine(lesson, file))}")
            nodes = functions(reference(file))
            for name, entry in todo.items():
                print(f"    {name:26} {size(nodes[name], entry)}")
    print(f"\nThen: make check {int(lesson)}, as often as you like. Stuck? make hint {int(lesson)}")
    return 0


def check(which="", scope=""):
    lesson, exercises = begun(which, "check")
    if scope == "mine":
        use_mine()
    for line in workbook.updated(lesson, exercises):
        print(f"{line}\n")
    if sys.stdout.isatty():
        print("checking ...", end="\r", flush=True)
    verdicts = checking.check(lesson, exercises)
    good = checking.report(lesson, exercises, verdicts)
    checking.keep(lesson, exercises, verdicts)
    return 0 if good else 1


def hint(which=""):
    lesson, exercises = begun(which, "hint")
    left = unfinished(lesson, exercises)
    named = workbook.progress().get(lesson, {}).get("next")  # by the last check
    name = named if named in left else left[0] if left else None
    if name is None:
        print(f"Lesson {int(lesson)} is done. make solution {int(lesson)} compares yours with the reference.")
        return 0
    entry, seen = exercises[name], workbook.of(lesson, "hints")
    n = seen.get(name, 0)
    for i, text in enumerate(entry.hints[:n + 1], 1):
        print(f"{name}, hint {i} of {len(entry.hints)}: {text}")
    if n < len(entry.hints):
        workbook.remember(lesson, hints={**seen, name: n + 1})
        print(f"\nAnother: make hint {int(lesson)}. Done? make check {int(lesson)}")
    else:
        line = first_line(functions(reference(entry.file))[name])
        print(f"\nThat was the last. The reference's answer: {entry.file}:{line}")
    return 0


def watch(which="", scope=""):
    """Check again whenever a file of the lesson's workbook is saved."""
    lesson, exercises = begun(which, "watch")
    paths = [mine(lesson, file) for file in files_of(exercises)]
    before = None
    while True:  # asks for the files' times: events get lost on network drives
        now = [saved(path) for path in paths]
        if now != before:
            if sys.stdout.isatty():
                print("\033[2J\033[H", end="")
            print(f"{time.strftime('%H:%M:%S')}  watching lesson {int(lesson)}; Ctrl-C ends it\n", flush=True)
            subprocess.run([sys.executable, "-m", "tests", "check", lesson, *scope.split()], check=False)
            before = now
        time.sleep(0.3)


def saved(path):
    try:
        return path.stat().st_mtime_ns, path.stat().st_size
    except OSError:  # an editor that is just putting the new file in its place
        return None


def progress():
    from lessons.__main__ import lessons

    names, left = {f"{number:02d}": name for number, name, _ in lessons()}, []
    for lesson, exercises in sheet().items():
        todo, hints = len(unfinished(lesson, exercises)), sum(workbook.of(lesson, "hints").values())
        done = len(exercises) - todo
        bar = "#" * done + "." * todo
        read_hints = f"   {hints} hint{'s' * (hints > 1)}" if hints else ""
        print(f"{int(lesson):3} {names[lesson]:12} {bar:16} {done:2} of {len(exercises):2}{read_hints}")
        if todo:
            left.append((not is_begun(lesson, exercises), lesson))  # what is begun comes first
    if left:
        fresh, lesson = min(left)
        print(f"\nGo on: make {'exercise' if fresh else 'check'} {int(lesson)}")
    else:
        print("\nEverything is done: make train MINE=1 trains a GPT on what you wrote.")
    return 0


def unfinished(lesson, exercises):  # -> names, in the order of writing
    done = set().union(*(workbook.finished(lesson, file, todo) for file, todo in files_of(exercises).items()))
    return [name for name in exercises if name not in done]


def solution(which=""):
    lesson, exercises = begun(which, "solution")
    left = unfinished(lesson, exercises)
    if left:
        raise InputError(f"{left[0]} is not done: make check {int(lesson)} says what is missing, make hint "
                         f"{int(lesson)} helps. The solution is there to compare with, once all are done")
    for name, entry in exercises.items():
        yours, ours = text_of(read(mine(lesson, entry.file)), name), text_of(reference(entry.file), name)
        print(f"---- {name}: {'the same as the reference' if yours == ours else '- yours, + the reference'}")
        if yours != ours:
            lines = difflib.unified_diff(yours.splitlines(), ours.splitlines(), lineterm="", n=2)
            print("\n".join(line for line in lines if not line.startswith(("---", "+++", "@@"))))
    return 0


def use_mine():
    """The environment in which the learner's finished functions stand in place of the reference's."""
    folder, lines = workbook.my_course(sheet())
    if not lines:
        print("Nothing of yours is finished yet: all functions are the reference's.\n", flush=True)
        return
    print("Runs with your functions; all others are the reference's:\n" + "\n".join(lines) + "\n", flush=True)
    os.environ["LESSONS_PATH"] = str(folder)
    if kernels := sorted(folder.glob("kernels/**/*.py")):
        os.environ["NUMBA_CACHE_DIR"] = str(workbook.compiled(folder / "compiled", map(read, kernels)))


def run_mine(*arguments):
    """python -m lessons ..., on the learner's code."""
    use_mine()
    process = subprocess.Popen([sys.executable, "-m", "lessons", *arguments], cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            pass  # it has got the Ctrl-C, too, and is saving
