"""The exercises: what `make exercise 12` and the other verbs call.

python -m tests exercise 12 [fresh]   write workbook/12/, the lesson with blanks (fresh: again)
python -m tests check 12 [mine]       is it right? (mine: other lessons' finished functions are used too)
python -m tests hint 12               one hint more for the first function that is not done
python -m tests watch 12 [mine]       check at every save
python -m tests solution 12           yours beside the reference's, once all are done
python -m tests progress              all lessons
python -m tests mine 18 --steps 9     python -m lessons 18 --steps 9, on your own finished functions
python -m tests report FOLDER...      a class's workbooks: checks them all, writes one CSV
python -m tests mutants [12 ...]      do the tests notice mistakes?
"""
import os
import sys

from lessons.__main__ import takes
from lessons.errors import InputError


def main(verb="", *arguments):
    if verb == "" or {"-h", "--help"} & {verb, *arguments}:
        print(__doc__)
        return 0
    if verb in ("mutants", "report"):
        import importlib
        return importlib.import_module(f"tests.exercises.{verb}").main(*arguments)
    from tests.exercises import commands
    verbs = {"exercise": commands.exercise, "check": commands.check, "hint": commands.hint,
             "watch": commands.watch, "solution": commands.solution, "progress": commands.progress,
             "mine": commands.run_mine}
    if verb not in verbs:
        raise InputError(f"there is no verb {verb!r}; python -m tests lists them")
    word = {"exercise": "fresh", "check": "mine", "watch": "mine"}.get(verb)
    if not takes(verbs[verb], arguments) or word and arguments[1:] not in ((), (word,)):
        raise InputError(f"{verb} does not take {' '.join(arguments)!r}; python -m tests shows what it takes")
    return verbs[verb](*arguments)


if __name__ == "__main__":
    try:
        code = main(*sys.argv[1:])
        sys.stdout.flush()
        sys.exit(code)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has seen enough: make progress | head -3
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"{error.filename or 'The output'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)
