"""The learner's folder: what `make exercise`, hint, progress, solution, MINE=1 and an update do to it."""
import csv
import io
import json
import os
import subprocess
import sys
import zipfile

import pytest

from lessons.errors import InputError
from tests.exercises import check, commands, report, workbook
from tests.exercises.check import Verdict
from tests.exercises.sheet import ROOT, Exercise, files_of, functions, sheet, text_of
from tests.exercises.stub import blank

SOURCE = '''"""Lesson 12."""
import math


@staticmethod
def twice(x, n=2):  # (N,) -> (N,)
    """Returns 2 x.

    >>> twice(2)
    4
    """
    # the answer
    y = x * n  # more of it

    return y


class Box:
    def get(self):
        """What is in it."""
        T, C = self.shape
        return T * C


def rest():
    return math.pi
'''
TWICE = Exercise("12", "twice", "lessons/l12_x.py", ["a", "b"])
GET = Exercise("12", "Box.get", "lessons/l12_x.py", ["a", "b"], keep=1)


@pytest.fixture(autouse=True)
def book(tmp_path, monkeypatch):
    monkeypatch.setattr(workbook, "WORKBOOK", tmp_path / "workbook")
    return tmp_path / "workbook"


def path_of(lesson, name):
    return workbook.mine(lesson, sheet()[lesson][name].file)


def solve(lesson, *names):
    """Paste the reference into the workbook, and note it as a good check would."""
    for file, todo in files_of(sheet()[lesson]).items():
        path = workbook.mine(lesson, file)
        wanted = set(names or todo) & set(todo)
        path.write_text(workbook.filled(path.read_text(), workbook.reference(file), wanted))
    states = {name: Verdict("done" if not names or name in names else "to do") for name in sheet()[lesson]}
    check.keep(lesson, sheet()[lesson], states)


# ---- blanks ---------------------------------------------------------------------------------------------

def test_a_blank_keeps_signature_decorators_docstring_and_what_is_to_be_kept():
    stub = blank(SOURCE, {"twice": TWICE, "Box.get": GET})
    assert stub == SOURCE.replace('''    # the answer
    y = x * n  # more of it

    return y
''', '''    # TODO: about 2 lines. Stuck? make hint 12
    raise NotImplementedError("twice")
''').replace('''        return T * C
''', '''        # TODO: about 1 line. Stuck? make hint 12
        raise NotImplementedError("Box.get")
''')


def test_blanks_filled_again_are_the_file():
    stub = blank(SOURCE, {"twice": TWICE, "Box.get": GET})
    assert workbook.filled(stub, SOURCE, {"twice", "Box.get"}) == SOURCE


# ---- make exercise --------------------------------------------------------------------------------------

def test_exercise_writes_the_blanks_and_says_in_which_order_to_fill_them(book, capsys):
    commands.exercise("12")
    said = capsys.readouterr().out
    names = list(sheet()["12"])
    places = [said.index(f"  {name} ") for name in names]
    assert places == sorted(places) and "about" in said and "make check 12" in said
    for name in names:
        assert f'raise NotImplementedError("{name}")' in path_of("12", name).read_text()


def test_exercise_overwrites_nothing_and_fresh_keeps_the_old_file(book, capsys):
    commands.exercise("12")
    path = path_of("12", "causal_mask")
    path.write_text("my work")
    with pytest.raises(InputError, match="stays as it is.*make check 12.*FRESH=1"):
        commands.exercise("12")
    assert path.read_text() == "my work"
    commands.exercise("12", "fresh")
    old, = path.parent.glob("*.old")
    assert old.read_text() == "my work" and "NotImplementedError" in path.read_text()
    assert old.name in capsys.readouterr().out


def test_fresh_twice_within_a_second_keeps_both(book):
    commands.exercise("16")
    path = path_of("16", "gpt_forward")
    for text in "first", "second":
        path.write_text(text)
        commands.exercise("16", "fresh")
    assert {old.read_text() for old in path.parent.glob(f"{path.name}*.old")} == {"first", "second"}


@pytest.mark.parametrize("verb", [commands.exercise, commands.check, commands.hint, commands.watch,
                                  commands.solution])
def test_a_verb_without_a_lesson_or_a_workbook_says_what_to_type(verb):
    with pytest.raises(InputError, match=f"make {verb.__name__} 12"):
        verb("")
    if verb is not commands.exercise:
        with pytest.raises(InputError, match="no workbook yet: make exercise 12"):
            verb("12")


def test_a_lesson_is_found_by_its_name():
    assert commands.lesson_of("attention")[0] == commands.lesson_of("12")[0] == "12"


# ---- hints and progress ---------------------------------------------------------------------------------

def test_hints_come_one_at_a_time_for_the_first_unfinished_function(book, capsys):
    commands.exercise("12")
    solve("12", "attention_forward")
    hints = sheet()["12"]["attention_backward"].hints
    for n in range(1, len(hints) + 2):
        capsys.readouterr()
        commands.hint("12")
        said = capsys.readouterr().out
        assert "attention_forward" not in said
        assert all((hint in said) == (i < n) for i, hint in enumerate(hints))
    line = functions(workbook.reference("lessons/l12_attention.py"))["attention_backward"].lineno
    assert f"lessons/l12_attention.py:{line}" in said


def test_a_hint_is_about_what_the_last_check_named(book, capsys):
    commands.exercise("12")
    states = dict.fromkeys(sheet()["12"], Verdict("to do")) | {"split_heads": Verdict("wrong", "", "bad")}
    check.report("12", sheet()["12"], states)
    check.keep("12", sheet()["12"], states)
    assert "Next: split_heads" in capsys.readouterr().out
    commands.hint("12")
    assert capsys.readouterr().out.startswith("split_heads, hint 1 of")


def test_a_changed_helper_makes_the_answers_of_its_file_undone_and_a_file_that_breaks_keeps_them(book):
    commands.exercise("12")
    solve("12", "causal_mask", "softmax")
    file, names = sheet()["12"]["causal_mask"].file, sheet()["12"]
    todo = files_of(names)[file]
    path = path_of("12", "causal_mask")
    good = path.read_text()
    path.write_text(good + "\n\ndef helper():\n    pass\n")
    assert workbook.finished("12", file, todo) == set()
    path.write_text(good + "\n(")
    assert workbook.finished("12", file, todo) == set()
    check.keep("12", names, dict.fromkeys(names, Verdict("to do"))
               | dict.fromkeys(todo, Verdict("wrong", check.UNUSABLE)))
    path.write_text(good)
    assert workbook.finished("12", file, todo) == {"causal_mask"}


def test_kernels_as_plain_python_do_not_count_as_done(book, monkeypatch, capsys):
    commands.exercise("06")
    monkeypatch.setattr(check, "PLAIN", True)
    solve("06")
    assert not check.report("06", sheet()["06"], dict.fromkeys(sheet()["06"], Verdict("done")))
    assert "They count once they are compiled" in capsys.readouterr().out
    counted = [name for file, todo in files_of(sheet()["06"]).items()
               for name in workbook.finished("06", file, todo)]
    assert counted and not {"add_rows", "scatter_rows"} & set(counted)


def test_ctrl_c_while_my_functions_train_waits_until_they_have_saved(book, monkeypatch):
    class Process:
        waited = 0

        def __init__(self, *words, **more):
            pass

        def wait(self):
            self.waited += 1
            if self.waited < 3:
                raise KeyboardInterrupt
            return 130

    monkeypatch.setattr(subprocess, "Popen", Process)
    assert commands.run_mine("training") == 130


def test_progress_counts_what_is_done_and_forgets_what_was_changed_since(book, capsys):
    commands.exercise("12")
    solve("12", "causal_mask", "merge_heads")
    commands.hint("12")
    capsys.readouterr()
    commands.progress()
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith(" 12 "))
    n = len(sheet()["12"])
    assert f"##{'.' * (n - 2)} " in row and f"2 of {n}" in row and "1 hint" in row
    path = path_of("12", "causal_mask")
    path.write_text(path.read_text().replace("np.tri(", "np.zeros("))
    commands.progress()
    assert f" 1 of {n}" in capsys.readouterr().out, "a changed answer is not done any more"


@pytest.mark.parametrize("damage", ["{", "[]", '{"12": 3}', '{"12": {"done": []}}'])
def test_a_damaged_progress_file_is_said_in_one_line(book, damage):
    commands.exercise("12")
    (book / "progress.json").write_text(damage)
    with pytest.raises(InputError, match="progress.json is damaged"):
        commands.progress()


# ---- an update of the course ----------------------------------------------------------------------------

def test_an_update_names_what_changed_and_puts_the_new_stub_beside(book, monkeypatch):
    commands.exercise("12")
    path = path_of("12", "causal_mask")
    mine = path.read_text() + "\n# mine\n"
    path.write_text(mine)
    assert list(workbook.updated("12", sheet()["12"])) == []
    old = workbook.reference
    monkeypatch.setattr(workbook, "reference", lambda file: old(file).replace(
        "def causal_mask(Tq, Tk):", "def causal_mask(Tq, Tk, window):"))
    line, = workbook.updated("12", sheet()["12"])
    assert "causal_mask" in line and "padding_mask" not in line and f"{path.name}.new" in line
    assert path.read_text() == mine
    new = path.with_name(path.name + ".new")
    assert "def causal_mask(Tq, Tk, window):" in new.read_text() and "NotImplementedError" in new.read_text()
    assert "still waits" in next(workbook.updated("12", sheet()["12"]))
    new.unlink()
    assert list(workbook.updated("12", sheet()["12"])) == []


def test_a_change_of_an_answer_only_is_no_update(book, monkeypatch):
    commands.exercise("12")
    old = workbook.reference
    monkeypatch.setattr(workbook, "reference", lambda file: old(file).replace("np.tri(Tq", "np.tri( Tq"))
    assert list(workbook.updated("12", sheet()["12"])) == []


# ---- solution, and MINE=1 -------------------------------------------------------------------------------

def test_solution_waits_until_all_is_done_and_then_compares(book, capsys):
    commands.exercise("12")
    solve("12", "attention_forward")
    with pytest.raises(InputError, match="is not done.*make hint 12"):
        commands.solution("12")
    solve("12")
    path = path_of("12", "merge_heads")
    path.write_text(path.read_text().replace("    B, H, T, D = x.shape\n",
                                             "    B, H, T, D = x.shape  # mine\n"))
    solve_as_it_is("12")
    capsys.readouterr()
    commands.solution("12")
    said = capsys.readouterr().out
    assert "-    B, H, T, D = x.shape  # mine" in said and "+    B, H, T, D = x.shape\n" in said
    assert "causal_mask: the same as the reference" in said


def solve_as_it_is(lesson):
    check.keep(lesson, sheet()[lesson], dict.fromkeys(sheet()[lesson], Verdict("done")))


def test_mine_takes_finished_functions_and_fills_the_others_from_the_reference(book):
    commands.exercise("12")
    path = path_of("12", "causal_mask")
    path.write_text(path.read_text().replace("import math\n", "import math\nMINE = 1\n")
                    + "\n\ndef helper():\n    return 1\n")
    solve("12", "causal_mask")
    folder, lines = workbook.my_course(sheet())
    text = (folder / "lessons/l12_attention.py").read_text()
    assert "MINE = 1" in text and "def helper()" in text, "helpers and imports of the learner stay"
    assert "NotImplementedError" not in text
    right = workbook.reference("lessons/l12_attention.py")
    assert all(text_of(text, name) == text_of(right, name) for name in functions(right))
    assert "1 of " in lines[0] and "causal_mask" in lines[0]
    assert not (folder / "kernels/cpu/attention.py").exists(), "nothing of it is finished"


def test_mine_runs_what_the_learner_wrote_in_lessons_and_kernels(book):
    """In a process of its own, as make lesson 12 MINE=1 does it."""
    for lesson, name in ("12", "causal_mask"), ("06", "add_rows"):
        commands.exercise(lesson)
        path = path_of(lesson, name)
        path.write_text(path.read_text() + f"\nprint('{name} of mine')\n")
        solve(lesson, name)
    program = ("from tests.exercises import commands; commands.use_mine(); import subprocess, sys; "
               "sys.exit(subprocess.run([sys.executable, '-c', 'import lessons.l12_attention, "
               "kernels.cpu.embedding, kernels.cpu.losses']).returncode)")
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True,
                          env={"WORKBOOK": str(book), "PATH": ""}, check=True).stdout
    assert "causal_mask of mine" in said and "add_rows of mine" in said
    assert "1 of" in said and "lessons/l12_attention.py" in said, "it says whose code runs"


def test_mine_without_anything_finished_says_so(book, capsys, monkeypatch):
    commands.exercise("12")
    capsys.readouterr()
    commands.use_mine()
    assert "Nothing of yours is finished yet" in capsys.readouterr().out
    assert "LESSONS_PATH" not in os.environ


# ---- a class --------------------------------------------------------------------------------------------

def submission(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_a_report_checks_every_submission_and_none_spoils_another(tmp_path, monkeypatch, capsys):
    file, folder = "lessons/l16_gpt.py", tmp_path / "class"
    folder.mkdir()
    right, here = workbook.reference(file), "workbook/16/" + file
    todo = {name: e for name, e in sheet()["16"].items() if e.file == file}
    progress = json.dumps({"16": {"hints": {"gpt_forward": 2}, "done": {"gpt_backward": "claimed"}}})
    submission(folder / "anna.zip", {"anna/" + here: right, "anna/workbook/progress.json": progress,
                                     "anna/.ipynb_checkpoints/16/" + file: "", "copy/of/16/" + file: "old"})
    submission(folder / "=ben.zip", {here: blank(right, todo)})
    submission(folder / "carla.zip", {here: right + "\nnp.matmul.os._exit(0)\n"})
    submission(folder / "dora.zip", {"../../16/" + file: right, "x": "y"})
    (folder / "emil.rar").write_bytes(b"not a zip file")
    submission(folder / "fritz.zip", {"notes.txt": "sorry"})
    submission(folder / "gerda.zip", {here: right + "\n#" + "x" * (2 << 20)})
    plain = folder / "hans" / "workbook" / "16" / "lessons"
    plain.mkdir(parents=True)
    (plain / "l16_gpt.py").write_text(right + "\nraise SystemExit\n")
    (folder / "ina_4711").mkdir()
    submission(folder / "ina_4711" / "workbook.zip", {"l16_gpt.py": right})
    submission(folder / "jan.zip", {here: right.replace("Lesson 16", "Le\xe7on 16").encode("latin-1")})
    broken = (folder / "anna.zip").read_bytes()
    (folder / "kim.zip").write_bytes(broken[:200] + bytes(200) + broken[400:])
    monkeypatch.chdir(tmp_path)
    assert report.main("class") == 0
    table, = tmp_path.glob("report-*.csv")
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig")))}
    assert list(rows) == ["'=ben", "anna", "carla", "dora", "emil", "fritz", "gerda", "hans", "ina_4711",
                          "jan", "kim"]
    columns = [f"16 {name}" for name in todo]
    states = {name: {row[column] for column in columns} for name, row in rows.items()}
    assert states["anna"] == states["ina_4711"] == {"done"}
    assert rows["anna"]["hints"] == "2" and rows["anna"]["done"] == str(len(todo))
    assert "is in it 2 times" in rows["anna"]["note"]
    assert states["'=ben"] == {"to do"} and states["fritz"] == states["dora"] == {"not handed in"}
    assert all(state.startswith("wrong: its file cannot be used") for name in ("carla", "hans", "jan")
               for state in states[name])
    assert "neither a zip file nor a folder" in rows["emil"]["note"]
    assert "no workbook" in rows["fritz"]["note"]
    assert "larger than 1 MB" in rows["gerda"]["note"] and rows["kim"]["note"]
    assert not (tmp_path.parent / "16").exists(), "a path that leads outside leads nowhere"
    assert not any(column.startswith("12 ") for column in rows["anna"]), "only lessons that were handed in"


def test_a_report_that_is_stopped_writes_what_it_has(tmp_path, monkeypatch):
    def checked(path):
        if path.name == "b":
            raise KeyboardInterrupt
        return {"name": path.name, "done": 1, "of": 1, "hints": 0, "note": "=1+1",
                "states": {"12 exp": "done"}}

    monkeypatch.setattr(report, "checked", checked)
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / "class" / name).mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        report.main("class")
    table, = tmp_path.glob("report-*.csv")
    assert table.read_text(encoding="utf-8-sig").splitlines()[1] == "a,1,1,0,'=1+1,done"


@pytest.mark.parametrize("folder, said", [("nowhere", "there is no nowhere"),
                                          (".", "there is nothing handed in")])
def test_a_report_on_nothing_says_so(tmp_path, monkeypatch, folder, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        report.main(folder)
