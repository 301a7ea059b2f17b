"""The sheet is honest: what it asks for can be written from the stub, and its tests notice mistakes.

EXERCISES=all (as .ci/run has it) takes the learner's road through every lesson, not through one only; all
mutants are tried by `python -m tests mutants`.
"""
import ast
import os
import re
import textwrap
import tomllib

import pytest

from tests.exercises import check, mutants, mutate, workbook
from tests.exercises.sheet import (
    ROOT,
    Exercise,
    asked_for,
    file_of_tests,
    files_of,
    functions,
    sheet,
    text_of,
)
from tests.exercises.stub import blank, signature

ALL = [exercise for exercises in sheet().values() for exercise in exercises.values()]
FILES = sorted({(exercise.lesson, exercise.file) for exercise in ALL})
each = pytest.mark.parametrize("exercise", ALL, ids=lambda e: f"{e.lesson}.{e.name}")


def node_of(exercise):
    return functions(workbook.reference(exercise.file))[exercise.name]


# ---- what the learner sees ------------------------------------------------------------------------------

def test_every_lesson_has_exercises_and_every_kernel_file_is_in_the_sheet():
    numbers = {path.name[1:3] for path in (ROOT / "lessons").glob("l[0-9][0-9]_*.py")}
    assert numbers == set(sheet())
    for number, exercises in sheet().items():
        assert 3 <= sum(e.file.startswith(f"lessons/l{number}") for e in exercises.values()) <= 8, number
    kernels = {f"kernels/{room}/{path.name}" for room in ("cpu", "cuda")
               for path in (ROOT / "kernels" / room).glob("*.py")}
    none = {"kernels/cpu/__init__.py", "kernels/cpu/memory.py", "kernels/cuda/__init__.py",
            "kernels/cuda/compiled.py", "kernels/cuda/memory.py", "kernels/cuda/vectors.py",
            "kernels/cuda/decoding.py"}
    assert {file for _, file in FILES} >= kernels - none


@each
def test_the_docstring_states_shapes_and_what_to_compute(exercise):
    text, node = text_of(workbook.reference(exercise.file), exercise.name), node_of(exercise)
    doc = ast.get_docstring(node)
    assert doc, "it has no docstring"
    head = text[:text.index('"""')]
    comment = head[head.index("def "):].split(":", 1)[1]
    assert re.search(r"\(.*\)|->|float|int|str|text|\bid", comment + doc), \
        "neither the line of def nor the docstring says what goes in and comes out"
    assert len(doc) > 70, "the docstring is too short to write the function from it"


@each
def test_a_stub_keeps_signature_decorators_and_docstring(exercise):
    source = workbook.reference(exercise.file)
    stub = blank(source, {exercise.name: exercise})
    before, after = functions(source), functions(stub)
    assert {name: signature(node) for name, node in before.items()} \
        == {name: signature(node) for name, node in after.items()}
    one, other = before[exercise.name], after[exercise.name]
    assert ast.get_docstring(one, clean=False) == ast.get_docstring(other, clean=False)
    assert [*map(ast.unparse, one.decorator_list)] == [*map(ast.unparse, other.decorator_list)]
    assert ast.unparse(other.body[-1]) == f"raise NotImplementedError('{exercise.name}')"
    assert len(one.body) > 1 + exercise.keep, "nothing is left to write"


@each
def test_hints_lead_and_do_not_give_the_whole_answer(exercise):
    assert 2 <= len(exercise.hints) <= 4 and len(set(exercise.hints)) == len(exercise.hints)
    node = node_of(exercise)
    told = squeezed(" ".join(exercise.hints))
    lines = [squeezed(ast.unparse(node)) for node in simple_statements(node.body[1 + exercise.keep:])]
    given = [line for line in lines if line in told or line.removeprefix("return") in told]
    assert len(given) <= max(len(lines) / 2, 0), f"the hints hold {len(given)} of {len(lines)} statements"


def squeezed(text):
    return re.sub(r"[\s`'\"]", "", text)


def simple_statements(body):
    for statement in body:
        inner = [child for field in ("body", "orelse") for child in getattr(statement, field, [])]
        if inner:
            yield from simple_statements(inner)
        else:
            yield statement


# ---- the tests ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("lesson, file", FILES)
def test_a_file_of_tests_stands_by_itself(lesson, file):
    """It needs nothing of later lessons. Tests of a lesson import no kernels, tests of kernels no lesson."""
    for node in ast.walk(ast.parse((ROOT / file_of_tests(file)).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            later = re.match(r"lessons\.l(\d\d)_", name)
            assert not (later and later[1] > lesson), f"{file_of_tests(file)} imports {name}, a later lesson"
            if file.startswith("kernels"):
                assert not later, f"{file_of_tests(file)} imports {name}: a kernel's oracle is not the lesson"
            else:
                assert not name.startswith("kernels"), f"{file_of_tests(file)} imports {name}"


@each
def test_tests_name_the_function_that_they_are_about(exercise):
    names = [name for name, entry in sheet()[exercise.lesson].items() if entry.file == exercise.file]
    tests = functions((ROOT / file_of_tests(exercise.file)).read_text())
    assert any(asked_for(test, names) == exercise.name for test in tests), "it has no test"


def test_the_longest_name_that_fits_is_asked_for():
    names = ["softmax", "softmax_backward", "Tokenizer.encode"]
    assert asked_for("test_softmax_backward_of_rows[1-2]", names) == "softmax_backward"
    assert asked_for("test_softmax[softmax_backward]", names) == "softmax"
    assert asked_for("test_tokenizer_encode_of_nothing", names) == "Tokenizer.encode"
    assert asked_for("test_softmaxes", names) is None


# ---- mutants --------------------------------------------------------------------------------------------

@each
def test_there_are_three_mistakes_by_hand_and_all_are_valid(exercise):
    made = mutate.hand_made(exercise, workbook.reference(exercise.file))
    assert len({text for _, text in made}) == len(made) >= 3
    for mutant, text in made:
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            raise AssertionError(f"{mutant} is no Python: {error}") from None
        right = textwrap.dedent(text_of(workbook.reference(exercise.file), exercise.name))
        assert ast.dump(tree) != ast.dump(ast.parse(right)), f"{mutant} changes nothing"


def test_every_entry_belongs_to_an_exercise_and_every_survivor_is_a_mutant():
    for kind in "mutants", "survivors":
        entries = tomllib.loads((ROOT / f"tests/{kind}.toml").read_text())
        for lesson, names in entries.items():
            assert set(names) <= set(sheet()[lesson]), f"{kind}.toml, lesson {lesson}"
    for exercise in ALL:
        made = {mutant for mutant, _ in mutate.general(exercise, workbook.reference(exercise.file))}
        for mutant in mutate.survivors(exercise.lesson, exercise.name):
            assert mutant in made, f"survivors.toml, {exercise.lesson}.{exercise.name}: it has no {mutant}"


SOURCE = '''
def f(x, n):
    """Doc: 1 + 1."""
    if n < 2:
        raise ValueError("1 + 1")
    total = x.sum(axis=-1, keepdims=True) / n
    for i in range(n):
        total += x[1:i] * 3
    return -total, n
'''


def test_general_mutants_are_the_mistakes_that_they_should_be():
    made = mutate.general(Exercise("12", "f", "x.py", []), SOURCE)
    assert len(made) == 32
    for mistake in ["n < 2 -> n <= 2", "x.sum(axis=-1, keepdims=True) / n -> x.sum(axis=-1, keepdims=True)",
                    "range(n) -> range(n - 1)", "1:i -> 1 + 1:i", "1:i -> 1:i - 1", "x[1:i] * 3 -> 3",
                    "total += x[1:i] * 3 -> (removed)", "total += x[1:i] * 3 -> total -= x[1:i] * 3",
                    "True -> False", "-1 -> 0", "x.sum -> x.mean",
                    "-total -> total", "return (-total, n) -> return None",
                    "return (-total, n) -> return (answer_double(-total), n)",
                    "return (-total, n) -> return (-total, answer_nan(n))"]:
        assert mistake in dict(made), "\n".join(dict(made))
    texts = [text for _, text in made]
    assert len(set(texts)) == len(texts) and ast.unparse(ast.parse(SOURCE)) not in texts
    assert all("'1 + 1'" in text and "Doc: 1 + 1." in text for text in texts if "raise" in text)


def test_the_mutants_of_one_file_are_killed_and_a_survivor_is_told(capsys):
    """By the same worker as all others in `python -m tests mutants`."""
    results = [result for found in mutants.tried([("08", "kernels/cpu/losses.py")]) for result in found]
    assert {result["kind"] for result in results} == {"blank", "hand", "general"}
    assert mutants.summary(results) == 0, capsys.readouterr().out
    assert "100.0%" in capsys.readouterr().out
    assert mutants.summary([results[-1] | {"killed": False, "mutant": "a -> b"}]) == 1
    assert 'mutant = "a -> b"' in capsys.readouterr().out


# ---- the road of a learner --------------------------------------------------------------------------------

@pytest.mark.parametrize("lesson", list(sheet()) if os.environ.get("EXERCISES") == "all" else ["12"])
def test_every_solution_passes_in_the_workbook(tmp_path, monkeypatch, lesson):
    monkeypatch.setattr(workbook, "WORKBOOK", tmp_path)
    exercises = sheet()[lesson]
    workbook.start(lesson, exercises, fresh=False)
    assert {v.state for v in check.check(lesson, exercises).values()} == {"to do"}
    for file, todo in files_of(exercises).items():
        path = workbook.mine(lesson, file)
        path.write_text(workbook.filled(path.read_text(), workbook.reference(file), set(todo)))
    verdicts = check.check(lesson, exercises)
    assert {v.state for v in verdicts.values()} == {"done"}, {n: v for n, v in verdicts.items() if v.text}
