"""`make check`: a green one can be trusted, a red one says what is wrong. Here it reads answers."""
import os
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.exercises import check, rules, workbook
from tests.exercises.sheet import ROOT, files_of, functions, sheet, text_of
from tests.exercises.stub import blank

ATTENTION = "lessons/l12_attention.py"
NAMES = {name: entry for name, entry in sheet()["12"].items() if entry.file == ATTENTION}


def with_body(source, name, body):
    """source in which a function has another body after its docstring."""
    lines, node = source.splitlines(keepends=True), functions(source)[name]
    start = node.body[0].end_lineno
    lines[start:node.end_lineno] = [textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"]
    return "".join(lines)


def verdicts(folder, source, file=ATTENTION, names=NAMES, seconds=20):  # -> {name: Verdict}
    path = folder / "12" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return check.check_file(path, file, names, seconds)


def try_bodies(folder, seconds=20, **bodies):
    """Lesson 12 solved, with these functions answered otherwise: the verdicts on them and on causal_mask."""
    source = workbook.reference(ATTENTION)
    for name, body in bodies.items():
        source = with_body(source, name, body)
    names = {name: entry for name, entry in NAMES.items() if name in (*bodies, "causal_mask")}
    return verdicts(folder, source, names=names, seconds=seconds)


# ---- what is right is done, what is missing is not ------------------------------------------------------

def test_the_right_answers_are_done_and_blanks_are_to_do(tmp_path):
    source = workbook.reference(ATTENTION)
    assert {name: v.state for name, v in verdicts(tmp_path, source).items()} == dict.fromkeys(NAMES, "done")
    blanks = verdicts(tmp_path, blank(source, NAMES))
    assert {name: v.state for name, v in blanks.items()} == dict.fromkeys(NAMES, "to do")


def test_a_function_that_needs_a_blank_one_waits_for_it(tmp_path):
    source = blank(workbook.reference(ATTENTION), {"attention_forward": NAMES["attention_forward"]})
    found = verdicts(tmp_path, source)
    assert found["attention_forward"].state == "to do"
    assert found["cross_attention_forward"][:2] == ("waits", "for attention_forward")
    assert found["causal_mask"].state == "done", "a blank must not spoil the others"


def test_a_wrong_answer_is_told_with_numbers_a_guess_and_a_place(tmp_path):
    right = workbook.reference(ATTENTION)
    scale = " / math.sqrt(q.shape[-1])"
    text = verdicts(tmp_path, right.replace(scale, "", 1))["attention_forward"].text
    assert "got" in text and "expected" in text
    assert f"your code: {tmp_path}/12/{ATTENTION}:{functions(right)['attention_forward'].lineno}" in text
    assert "tests/test_l12_attention.py:" in text, "the test can be read"


def test_a_raise_that_was_left_under_the_answer_is_pointed_at(tmp_path):
    source = with_body(workbook.reference(ATTENTION), "merge_heads",
                       "y = x\nz = y\nraise NotImplementedError('merge_heads')")
    verdict = verdicts(tmp_path, source, names={"merge_heads": NAMES["merge_heads"]})["merge_heads"]
    line = functions(source)["merge_heads"].end_lineno
    assert verdict.state == "wrong" and f"{ATTENTION}:{line}: the stub's raise" in verdict.text


def test_mistakes_are_said_in_the_learners_terms(tmp_path):
    found = try_bodies(
        tmp_path, attention_backward="q, k, v, w = cache\ndout *= 0\nreturn dout, dout, dout",
        causal_mask="return missing_name", padding_mask="print('I was here')\nreturn lengths > 0",
        split_heads="return None", merge_heads="return x @ x")
    said = {"attention_backward": "dout", "causal_mask": "NameError: name 'missing_name' is not defined",
            "padding_mask": "| I was here", "split_heads": "did you forget `return`?",
            "merge_heads": "ValueError: matmul"}
    for name, words in said.items():
        assert found[name].state == "wrong" and words in found[name].text, found[name].text
        assert f"{ATTENTION}:" in found[name].text, "where in the learner's file"


# ---- a file that cannot be used -------------------------------------------------------------------------

@pytest.mark.parametrize("change, said", [
    (lambda s: s.replace("def causal_mask(Tq, Tk):", "def causal_mask(Tq, Tk)"), ["expected ':'", "^"]),
    (lambda s: "import nonsense_package\n" + s, [":1:", "imports nonsense_package"]),
    (lambda s: s + "\nspeed = 1 / 0\n", ["ZeroDivisionError", "speed = 1 / 0"]),
    (lambda s: s + "\nraise SystemExit(0)\n", ["it ends the program, by SystemExit"]),
], ids=["syntax", "package", "error", "exit"])
def test_a_file_that_cannot_be_imported_says_where(tmp_path, change, said):
    found = verdicts(tmp_path, change(workbook.reference(ATTENTION)))
    assert {v.state for v in found.values()} == {"wrong"}
    text = found["attention_forward"].text
    assert ATTENTION + ":" in text and all(word in text for word in said), text


def test_another_signature_and_a_function_that_is_gone_are_named(tmp_path):
    source = workbook.reference(ATTENTION).replace("def causal_mask(Tq, Tk):", "def causal_mask(n):")
    source = source.replace("def merge_heads(", "def merge_the_heads(")
    names = {name: NAMES[name] for name in ("causal_mask", "merge_heads")}
    found = verdicts(tmp_path, source, names=names)
    assert all(words in found["causal_mask"].text for words in ("causal_mask(n)", "causal_mask(Tq, Tk)"))
    assert "has no merge_heads any more" in found["merge_heads"].text


# ---- attempts to get a green check without the answer ----------------------------------------------------

@pytest.mark.parametrize("text, said", [
    ("from lessons.l12_attention import attention_forward", "imports lessons.l12_attention"),
    ("import lessons.l12_attention as theirs", "imports lessons.l12_attention"),
    ("from lessons import l12_attention", "imports lessons.l12_attention"),
    ("from kernels.cpu import attention", "imports kernels.cpu.attention"),
    ("from kernels.cpu.attention import forward", "imports kernels.cpu.attention"),
    ("from lessons import devices", "imports lessons.devices"),
    ("from . import l12_attention", "imports"),
    ("import tests.close", "imports tests.close"),
    ("import importlib", "imports importlib"),
    ("import os", "imports os"),
    ("import sys", "imports sys"),
    ("import unittest.mock", "imports unittest.mock"),
    ("import torch", "imports torch"),
    ("right = __import__('lessons.l12_attention')", "uses __import__"),
    ("exec(open('lessons/l12_attention.py').read())", "uses exec"),
    ("text = open('lessons/l12_attention.py').read()", "uses open"),
    ("np.isclose = lambda *a, **k: np.True_", "changes np: np.isclose"),
    ("np.testing.assert_allclose = print", "changes np: np.testing.assert_allclose"),
    ("setattr(x, 'isclose', print)", "uses setattr"),
    ("vars(x)['isclose'] = print", "uses vars"),
    ("np.__dict__['isclose'] = print", "reaches for np.__dict__"),
    ("n = np; n.isclose = print", "gives np, a module, another name"),
    ("from numpy import linalg; linalg.norm = print", "changes linalg: linalg.norm"),
    ("from numba.core.config import os", "imports numba.core.config.os"),
    ("from collections import _sys", "imports collections._sys"),
    ("from numpy import *", "imports numpy.*"),
    ("import numpy.testing as t", "imports numpy.testing"),
    ("class Yes(tuple): __eq__ = lambda *a: True", "defines __eq__"),
    ("match x:\n    case object(__globals__=g): g.clear()", "reaches for .__globals__"),
    ("f = getattr(x, '__glo' + 'bals__')", "uses getattr"),
    ("from typing import get_type_hints", "imports typing.get_type_hints"),
    ("breakpoint()", "waits for a keyboard"),
    ("np.lib.os._exit(0)", "reaches for .os"),
    ("(lambda: 0).__globals__.clear()", "reaches for .__globals__"),
    ("try: 1 / 0\nexcept Exception as e: e.__traceback__.tb_frame", "reaches for .tb_frame"),
    ("class Yes:\n    def __eq__(self, other): return True", "defines __eq__"),
    ("class Yes(np.ndarray):\n    def __array_ufunc__(self, *a): return self", "defines __array_ufunc__"),
    ("Yes = type('Yes', (), {'__eq__': lambda *a: True})", "makes a class by type(...)"),
])
def test_what_an_answer_may_not_do_is_named_with_its_line(text, said):
    source = workbook.reference(ATTENTION)
    assert rules.broken(source, source, ATTENTION) is None
    inside = with_body(source, "merge_heads", text + "\nreturn x")
    for cheat in source + text + "\n", inside:
        line, what = rules.broken(cheat, source, ATTENTION)
        assert said in what
        assert line > 20


def test_a_file_that_imports_the_reference_is_not_run(tmp_path):
    source = workbook.reference(ATTENTION) + "from lessons.l12_attention import attention_forward\n"
    found = verdicts(tmp_path, source)
    assert {v.state for v in found.values()} == {"wrong"}
    last = len(source.splitlines())
    assert f"{ATTENTION}:{last}: it imports lessons.l12_attention" in found["causal_mask"].text


def test_what_every_reference_does_is_allowed():
    for exercises in sheet().values():
        for file in files_of(exercises):
            source = workbook.reference(file)
            extra = "import math\nimport numpy as np\nfrom functools import partial\n"
            assert rules.broken(extra + source, source, file) is None


# The rest must hold even where reading the file found nothing: it is tried with the rules switched off.

@pytest.fixture
def without_rules(monkeypatch):
    monkeypatch.setattr(rules, "broken", lambda *arguments: None)


def test_answers_that_hang_exit_grow_or_print_are_wrong_and_spoil_no_other(tmp_path, without_rules):
    found = try_bodies(
        tmp_path, seconds=3,
        attention_forward="import os\nos._exit(0)",
        attention_backward="while True: pass",
        padding_mask="return np.ones(1 << 33)",
        split_heads="while True: print('y' * 9999)",
        merge_heads="raise SystemExit(0)",
        cross_attention_forward="import pytest\npytest.skip('not today')",
        flash_attention="import pytest\npytest.exit('all good', 0)")
    assert found["causal_mask"].state == "done"
    said = {"attention_forward": "it ended the process", "attention_backward": "an endless loop?",
            "padding_mask": "wants more than 2 GB", "split_heads": "prints more than 16 MB",
            "merge_heads": "ends the program", "cross_attention_forward": "was skipped",
            "flash_attention": "ended the run of the tests"}
    for name, text in said.items():
        assert found[name].state == "wrong" and text in found[name].text, (name, found[name])
    line = functions(workbook.reference(ATTENTION))["attention_backward"].lineno
    assert f"{ATTENTION}:" in found["attention_backward"].text, f"it names the line that hangs, near {line}"
    assert len(found["split_heads"].text) < 3000, "megabytes are not shown"


PATCHES = {
    "a patched NumPy": "np.isclose = lambda a, b, **k: np.ones(np.shape(b), bool)",
    "a patched NumPy module": "np.linalg.norm = lambda *a: 0",
    "a built-in": "import builtins\nbuiltins.abs = lambda x: 0",
    "the tests' comparison": "import tests.close\ntests.close.assert_close = lambda *a, **k: None",
    "the tests' own globals": "import sys\nsys.modules['tests.test_l12_attention'].assert_close = print",
    "deleted globals": "import sys\nsys.modules['tests.test_l12_attention'].__dict__.clear()",
    "a hidden built-in": "import tests.close\ntests.close.abs = lambda x: 0 * x",
    "deleted tests": "import sys\nm = sys.modules['tests.test_l12_attention']\n"
                     "[delattr(m, n) for n in list(vars(m)) if n.startswith('test_')]",
    "expected values, written over": "import sys\nm = sys.modules['tests.test_l12_attention']\n"
                                     "[v.fill(0) for v in vars(m).values() if isinstance(v, np.ndarray)]",
}


def test_what_changes_the_tools_of_the_check_is_never_done(tmp_path, without_rules):
    """Inside a function, where it runs while tests run, and at the top of the file, before them."""
    def inside(i, patch):
        found = try_bodies(tmp_path / f"in{i}", causal_mask=patch + "\nreturn np.ones((Tq, Tk), bool)")
        return found["causal_mask"]

    def on_top(i, patch):
        wrong = with_body(workbook.reference(ATTENTION), "causal_mask", "return np.ones((Tq, Tk), bool)")
        return verdicts(tmp_path / f"top{i}", wrong + patch + "\n")["causal_mask"]

    with ThreadPoolExecutor(2) as pool:
        tries = [(name, pool.submit(how, i, patch)) for how in (inside, on_top)
                 for i, (name, patch) in enumerate(PATCHES.items())]
        for name, future in tries:
            assert future.result().state == "wrong", name


def test_nan_of_the_right_type_is_wrong_everywhere(tmp_path):
    body = "return np.full((*q.shape[:-1], v.shape[-1]), np.nan), None"
    verdict = try_bodies(tmp_path, attention_forward=body)["attention_forward"]
    assert verdict.state == "wrong" and "got nan" in verdict.text


# ---- kernels ---------------------------------------------------------------------------------------------

KERNEL = "kernels/cpu/embedding.py"


def try_kernel(folder, body):  # -> the verdict, and the file's text
    source = workbook.reference(KERNEL)
    if body:
        source = with_body(source, "add_rows", body)
    return verdicts(folder, source, KERNEL, {"add_rows": sheet()["06"]["add_rows"]})["add_rows"], source


def test_a_kernel_that_numba_cannot_compile_gets_one_line_with_its_place(tmp_path):
    verdict, source = try_kernel(tmp_path, "x[0, 0, 0] = wte[0, 0] + 'one'")
    line = functions(source)["add_rows"].end_lineno
    assert "Numba cannot compile it" in verdict.text and f"{KERNEL}:{line}:  x[0, 0, 0] = " in verdict.text
    assert "NUMBA_DISABLE_JIT=1" in verdict.text and len(verdict.text.splitlines()) < 8


def test_a_kernel_that_leaves_its_array_is_found_and_plain_python_names_the_line(tmp_path, monkeypatch):
    verdict, _ = try_kernel(tmp_path, "x[0, 0, 100000] = wte[0, 0]")
    assert verdict.state == "wrong" and "outside of an array" in verdict.text, verdict.text
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    verdict, source = try_kernel(tmp_path, "x[0, 0, 100000] = wte[0, 0]")
    assert f"{KERNEL}:{functions(source)['add_rows'].end_lineno}:" in verdict.text, verdict.text


def test_a_kernel_is_compiled_anew_after_the_smallest_change(tmp_path):
    body = workbook.reference(KERNEL).split('"""')[8].split("@kernel")[0]
    body = textwrap.dedent(body)
    assert "token[c] + position[c]" in body
    assert try_kernel(tmp_path, body)[0].state == "done"
    assert try_kernel(tmp_path, body.replace("token[c] + pos", "token[c] - pos"))[0].state == "wrong"
    assert try_kernel(tmp_path, body)[0].state == "done"


# ---- files -----------------------------------------------------------------------------------------------

def test_an_answer_changes_no_files_and_does_not_read_the_reference(tmp_path, without_rules):
    victim = ROOT / f"victim-{os.getpid()}.txt"
    victim.write_text("precious")
    try:
        found = try_bodies(
            tmp_path, split_heads=f"np.memmap({str(victim)!r}, mode='w+', shape=9)\nreturn x",
            merge_heads=f"import os\nos.remove({str(victim)!r})\nreturn x",
            padding_mask=f"return exec(open({str(ROOT / ATTENTION)!r}).read(), globals())")
        assert victim.read_text() == "precious"
    finally:
        victim.unlink(missing_ok=True)
    assert found["causal_mask"].state == "done"
    for name, words in ("split_heads", "changes no files"), ("merge_heads", "changes no files"), \
            ("padding_mask", "the reference's answer"):
        assert found[name].state == "wrong" and words in found[name].text, found[name].text


# ---- a GPU's kernels, in the simulator --------------------------------------------------------------------

GPU_KERNELS = "kernels/cuda/first_steps.py"
GPU_NAMES = {name: entry for name, entry in sheet()["26"].items() if entry.file == GPU_KERNELS}
WRONG_KERNELS = {  # name: (what stands there, what a learner might write, what the check says)
    "transpose_tiled": ("    cuda.syncthreads()\n", "", [
        "transpose_tiled, line ", "a barrier is missing: it writes tile[", ", which thread ("]),
    "transpose_naive": ("out[left + tx, top + i]", "out[top + i, left + tx]", [
        "IndexError: transpose_naive, line ", "is outside: its shape is"]),
    "block_sums": ("part[t + step]", "part[t + step] * ONE / f32(2)", [
        "is wrong in 1 of 1 numbers", "out[0] was written by thread 0 of block 0"]),
    "copy": ("u32(x.size), stride", "u32(x.size) + stride, stride", ["copy, line ", "is outside: its"]),
}


def test_a_wrong_kernel_is_told_with_its_thread_and_its_line(tmp_path):
    source = workbook.reference(GPU_KERNELS)
    for name, (right, wrong, _) in WRONG_KERNELS.items():
        text = text_of(source, name)
        start = text.index('"""', text.index('"""') + 3)
        assert text.count(right, start) == 1, (name, text)
        source = source.replace(text, text[:start] + text[start:].replace(right, wrong))
    found = verdicts(tmp_path, source, GPU_KERNELS, GPU_NAMES)
    assert found["neighbour_average"].state == "done"
    for name, (_, _, said) in WRONG_KERNELS.items():
        text = found[name].text
        assert found[name].state == "wrong" and all(words in text for words in said), text
        assert f"your code: {tmp_path}/12/{GPU_KERNELS}:" in text and len(text.splitlines()) < 8, text


@pytest.mark.parametrize("body, said", [
    ("out[0] = sum(x)", "uses sum(...) in copy, which a GPU cannot run"),
    ("out[0] = np.exp(x[0])", "uses np.exp in copy"), ("parts = [x[0]]", "uses a list in copy"),
    ("out[0] = max(x[i] for i in range(3))", "uses a comprehension in copy"),
    ("cuda.syncthreads = print", "changes cuda: cuda.syncthreads"),
    ("from kernels.cuda import matmul", "imports kernels.cuda.matmul"),
    ("from kernels.cuda.first_steps import copy", "imports kernels.cuda.first_steps"),
    ("from tests.cudasim import arrays", "imports tests.cudasim")])
def test_what_no_gpu_can_run_is_named(body, said):
    source = workbook.reference(GPU_KERNELS)
    assert rules.broken(source, source, GPU_KERNELS) is None
    line, what = rules.broken(with_body(source, "copy", body), source, GPU_KERNELS)
    assert said in what and line == functions(source)["copy"].body[1].lineno


def test_a_kernel_cannot_change_the_simulator(tmp_path, without_rules):
    body = "import tests.cudasim.run\ntests.cudasim.run.compare = print\nreturn"
    source = with_body(workbook.reference(GPU_KERNELS), "copy", body)
    verdict = verdicts(tmp_path, source, GPU_KERNELS, {"copy": GPU_NAMES["copy"]})["copy"]
    assert verdict.state == "wrong"
