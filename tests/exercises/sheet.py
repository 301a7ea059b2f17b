"""The sheet: what a learner writes (tests/exercises.toml), and which tests ask for it.

A lesson's exercises lie in its own file and in its kernels'. Each file has one file of tests:

    lessons/l12_attention.py  ->  tests/test_l12_attention.py
    kernels/cpu/attention.py  ->  tests/test_cpu_attention.py
    kernels/cuda/matmul.py    ->  tests/test_cuda_matmul.py, which runs in the simulator of a GPU
"""
import ast
import functools
import io
import re
import threading
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
parsing = threading.Lock()


class Exercise(NamedTuple):
    lesson: str  # "12"
    name: str  # "attention_forward"; a method is "Tokenizer.encode"
    file: str  # "lessons/l12_attention.py"
    hints: list
    keep: int = 0  # so many statements stay in the stub


@functools.cache
def sheet():  # -> {"12": {"attention_forward": Exercise}}, lessons and functions in the order of writing
    with open(ROOT / "tests/exercises.toml", "rb") as file:
        lessons = tomllib.load(file)
    return {number: {name: Exercise(number, name, **entry) for name, entry in lessons[number].items()}
            for number in sorted(lessons)}


def files_of(exercises):  # {name: Exercise} -> {file: {name: Exercise}}
    found = {}
    for name, exercise in exercises.items():
        found.setdefault(exercise.file, {})[name] = exercise
    return found


def module_name(file):
    """
    >>> module_name("kernels/cpu/attention.py")
    'kernels.cpu.attention'
    """
    return file.removesuffix(".py").replace("/", ".")


def on_gpu(file):
    return file.startswith("kernels/cuda")


def file_of_tests(file):
    """
    >>> file_of_tests("kernels/cpu/attention.py"), file_of_tests("lessons/l12_attention.py")
    ('tests/test_cpu_attention.py', 'tests/test_l12_attention.py')
    """
    return "tests/test_" + file.removeprefix("lessons/").removeprefix("kernels/").replace("/", "_")


def asked_for(test, names):
    """The function that a test is about: the longest name that fits, or None.

    >>> asked_for("test_softmax_backward_of_rows[3]", ["softmax", "softmax_backward"])
    'softmax_backward'
    """
    test = re.sub(r"\[.*", "", test) + "_"
    fits = [name for name in names if test.startswith(f"test_{name.replace('.', '_').lower()}_")]
    return max(fits, key=len, default=None)


def parse(source):
    """ast.parse, one at a time: Python 3.11's fails in a thread where garbage is collected in between."""
    with parsing:
        return ast.parse(source)


def functions(source):  # -> {name: node}
    """The functions of a file; a method is Class.method. SyntaxError if the file is not Python."""
    found = {}
    for node in parse(source).body:
        for inner in [node, *node.body] if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):
                found[inner.name if inner is node else f"{node.name}.{inner.name}"] = inner
    return found


def first_line(node):
    """Decorators belong to their function."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def lines_of(source):
    """As Python counts them: str.splitlines would also cut at a form feed."""
    return io.StringIO(source).readlines()


def text_of(source, name):  # -> the lines of one function, decorators included; None if it is not there
    node = functions(source).get(name)
    return node and "".join(lines_of(source)[first_line(node) - 1:node.end_lineno])


def has_docstring(node):
    return ast.get_docstring(node) is not None
