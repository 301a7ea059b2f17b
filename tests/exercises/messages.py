"""An exception, as a learner wants to read it: what is wrong, and where in their own file."""
import errno
import linecache
import re
import traceback

MEMORY, PRINTED = 2 << 30, 16 << 20  # bytes that an answer may need, and may print
TELLING = re.compile(r"No implementation|No conversion|Cannot unify|Invalid use|not defined|"
                     r"Unknown attribute|[Uu]ndeclared|annot determine|[Uu]nsupported|not supported|"
                     r"No match|mismatch|Untyped")


def said(error, path, lesson):  # -> lines; {path} stands for the learner's file
    """At most 3,000 characters, whatever an exception of the learner's says."""
    try:
        return words_of(error, path, lesson)[:3000]
    except Exception:  # noqa: BLE001  (its own __str__ may fail)
        return type(error).__name__


def words_of(error, path, lesson):
    kind, lines = type(error).__name__, [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{kind}: {error.msg}\n{place(error.lineno, path)}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f"\n{place(frames[-1].lineno, path)}" if frames else ""
    where = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()) if "alsifying" in note) + where
    if kind == "Fault":  # of the simulator: a rule of the GPU is broken
        return lines[0] + where
    if isinstance(error, AssertionError):
        lines = str(error).split("\nassert ")[0].splitlines()  # pytest adds the expression to a message
        return "\n".join(line[:300] for line in lines[:20] or ["the test's assertion fails"]) + where
    if isinstance(error, TypeError) and "NoneType" in str(error) and not frames:
        return f"it returned None: did you forget `return`?{where}"
    if isinstance(error, ValueError) and "read-only" in str(error):
        return f"an argument is changed that must not be: make a new array{where}"
    if "DID NOT RAISE" in str(error):
        return f"it accepts what the docstring says it refuses: {error}{where}"
    if isinstance(error, NotImplementedError):
        return f"it needs {error}, which is not written yet{where}"
    if isinstance(error, MemoryError):
        return f"it wants more than {MEMORY >> 30} GB of memory{where}"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"it prints more than {PRINTED >> 20} MB{where}"
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return f"it ends the program, by {kind}{where}"
    if type(error).__module__.startswith("numba"):
        return compilation(kind, lines, path, lesson)
    if isinstance(error, IndexError) and not frames and "/kernels/cpu/" in path:  # compiled
        where = ("\nthe kernel reads or writes outside of an array. Plain Python names the line: "
                 f"NUMBA_DISABLE_JIT=1 make check {lesson}")
    return f"{kind}: " + "\n  ".join(lines[:6]) + where


def compilation(kind, lines, path, lesson):
    """Numba's TypingError fills a page. One line of it says what, one says where."""
    lines = [line.strip() for line in lines]
    what = next((line for line in lines[1:] if TELLING.search(line)), lines[0] if lines else "")
    found = [re.search(r'File "(.+)", line (\d+)', line) for line in lines]
    at = [int(place[2]) for place in found if place and path.endswith(place[1].lstrip("./"))]
    where = f"\n{place(at[-1], path)}" if at else ""
    return (f"Numba cannot compile it ({kind}): {what}{where}\n"
            f"It runs as plain Python with NUMBA_DISABLE_JIT=1 make check {lesson}")


def place(number, path):
    return f"your code: {{path}}:{number}:  {linecache.getline(path, number).strip()}"
