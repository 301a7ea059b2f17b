"""python -m lessons                          lists the lessons
python -m lessons 12                       runs lesson 12 (also by name: attention)
python -m lessons training --steps 200     what follows goes to the lesson
"""
import errno
import importlib
import os
import re
import sys

from lessons.errors import InputError


def lessons():
    """[(12, "attention", "what the lesson asks"), ...] read from the files, without running them."""
    folder = os.path.dirname(os.path.abspath(__file__))
    found = []
    for file in sorted(os.listdir(folder)):
        name = re.fullmatch(r"l(\d\d)_(\w+)\.py", file)
        if name:
            with open(os.path.join(folder, file), encoding="utf-8") as f:
                line = re.match(r'\s*r?"""(.*?)("""|\n|$)', f.read(1000))
            question = re.sub(r"Lesson \d+[^:]*: ([^.]{,40}\. (?=\S))?", "", line[1].strip()) if line else ""
            found.append((int(name[1]), name[2], question))  # "Lesson 18: training. " would say it twice
    return found


def listing():
    return "\n".join(f"  {number:2d}  {name:<15} {question}" for number, name, question in lessons())


def find(which):
    """(number, name) of the lesson that `which` means: its number, its name, how that begins, or its file."""
    which = os.path.basename(which).removesuffix(".py")
    for test in (lambda number, name: which.isdecimal() and number == int(which),
                 lambda number, name: which.lower() in (name, f"l{number:02d}_{name}"),
                 lambda number, name: name.startswith(which.lower())):
        hits = [(number, name) for number, name, _ in lessons() if test(number, name)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            stop(f"{which!r} fits several lessons: {', '.join(f'{number} {name}' for number, name in hits)}.")
    stop(f"There is no lesson {which!r}. The lessons are:\n{listing()}")


def run(which, *arguments):
    number, name = find(which)
    try:
        main = importlib.import_module(f"lessons.l{number:02d}_{name}").main
        if not arguments and sys.stdout.isatty():
            print(f"lesson {number}, {name}: read lessons/l{number:02d}_{name}.py beside this\n")
        if arguments and not takes(main, arguments):
            stop(f"Lesson {number} takes no options: {' '.join(arguments)}")
        main(*arguments)
    except InputError as error:
        stop(error)
    except PermissionError as error:
        stop(f"{error.filename or 'A file'}: {error.strerror}. Copy the course to a place of your own.")
    except ModuleNotFoundError as error:
        if (error.name or "lessons").split(".")[0] in ("lessons", "kernels"):
            raise  # a file of ours is missing: no set-up brings it back
        stop(f"The package {error.name} is not installed in {sys.executable}. "
             "Set up: python3 environment.py. Then: make lesson 12, or .venv/bin/python -m lessons 12")


def takes(main, arguments):
    import inspect

    try:
        inspect.signature(main).bind(*arguments)
    except TypeError:
        return False
    return True


def stop(line):
    print(line, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        if sys.argv[1:2] in ([], [""], ["-h"], ["--help"]):
            print(f"{__doc__}\n{listing()}" if sys.argv[1:] else f"The lessons are:\n{listing()}")
        else:
            sys.stdout.reconfigure(errors="replace")  # a terminal without "é" shows "?" and goes on
            run(*sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has seen enough: python -m lessons | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails at it again
        stop("The disk, or the file that the output goes to, is full: make room.")
