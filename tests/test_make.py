"""What a person types: the Makefile, environment.py, `python -m lessons`. Nothing is downloaded here.

Each test works in a small house of its own: the real Makefile and environment.py, five lessons that only
print, and a uv that only writes down what it was asked. The PATH holds nothing but the tools below, so that
no uv of this machine comes in.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXTRAS = "bench", "cuda", "ptx"
LOCKS = "requirements.txt", *(f"requirements-{extra}.txt" for extra in EXTRAS)
TOOLS = "make", "sh", "sed", "find", "rm", "head", "mkdir", "ln", "touch", "sleep"
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")

LESSONS = {
    "l02_ngrams": '"""Lesson 2: counting. How far does it get us?"""\ndef main(): print("ngrams ran")',
    "l12_attention": '"""Lesson 12: attention looks back."""\ndef main(*a): print("attention ran", *a)',
    "l18_training": '"""How does a text become a model?\n\nMore."""\ndef main(*a): print("training ran", *a)',
    "l23_translation": '"""Lesson 23: translation."""\ndef main(): print("translation ran")',
    "l19_generation": 'def main(*a): print("generation ran", *a)',
}
UV = """#!/bin/sh
echo "$*" >> uv.log
case "$*" in
  venv*) mkdir -p .venv/bin; ln -s "`command -v python3`" .venv/bin/python ;;
esac
"""


@pytest.fixture
def house(tmp_path):
    """A folder with the real Makefile, small lessons and tests, and a complete .venv; tools in ../bin."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    script(tools / "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    house = tmp_path / "a house"  # a space in the path must do no harm
    (house / "lessons").mkdir(parents=True)
    for name in ("Makefile", "environment.py",
                 "lessons/__init__.py", "lessons/__main__.py", "lessons/errors.py"):
        shutil.copy(ROOT / name, house / name)
    for name, text in LESSONS.items():
        (house / "lessons" / f"{name}.py").write_text(text)
    (house / "tests").mkdir()
    (house / "tests" / "__main__.py").write_text("import sys\nprint('tests', *sys.argv[1:])\n")
    for lock in LOCKS:
        (house / lock).write_text("# nothing to install\n")
    (house / ".venv" / "bin").mkdir(parents=True)
    (house / ".venv" / "bin" / "python").symlink_to(tools / "python3")
    (house / ".venv" / "ok").touch()
    return house


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


def call(house, *command, **more):
    """(exit code, output, errors) of a command in the house."""
    more |= {"PATH": str(house.parent / "bin"), "HOME": str(house), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(command, check=False, cwd=house, env=more, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def make(house, *words, **more):
    return call(house, "make", *words, **more)


# Verbs


@pytest.mark.parametrize("words, output", [
    (["lesson", "12"], "attention ran\n"),
    (["lesson", "012"], "attention ran\n"),
    (["lesson", "attention"], "attention ran\n"),
    (["lesson", "att"], "attention ran\n"),
    (["lesson", "N=12"], "attention ran\n"),
    (["-j4", "lesson", "2"], "ngrams ran\n"),
    (["lesson", "12", "ARGS=--steps 9"], "attention ran --steps 9\n"),
    (["train"], "training ran\n"),
    (["train", "ARGS=--steps 9 --out x"], "training ran --steps 9 --out x\n"),
    (["lesson", "train"], "training ran\n"),  # the lesson, and not the verb after it
    (["generate"], "generation ran --model out/shakespeare\n"),
    (["generate", "ARGS=--model y"], "generation ran --model out/shakespeare --model y\n"),
    (["exercise", "12"], "tests exercise 12\n"),
    (["exercise", "attention", "FRESH=1"], "tests exercise attention fresh\n"),
    (["check", "12"], "tests check 12\n"),
    (["check", "N=12", "MINE=1"], "tests check 12 mine\n"),
    (["watch", "12"], "tests watch 12\n"),
    (["hint", "12"], "tests hint 12\n"),
    (["solution", "12"], "tests solution 12\n"),
    (["check"], "tests check\n"),
    (["progress"], "tests progress\n"),
    (["lesson", "12", "MINE=1"], "tests mine 12\n"),
    (["train", "MINE=1", "ARGS=--steps 9"], "tests mine training --steps 9\n"),
    (["generate", "MINE=1"], "tests mine generation --model out/shakespeare\n"),
])
def test_a_verb_does_its_work_and_says_nothing_else(house, words, output):
    (house / "12").touch()  # a file with the name of a word must do no harm
    assert make(house, *words, N="5") == (0, output, "")


@pytest.mark.parametrize("words, line", [
    (["lesson", "99"], "There is no lesson '99'. The lessons are:"),
    (["lesson", "test"], "There is no lesson 'test'. The lessons are:"),
    (["lesson", "ten"], "There is no lesson 'ten'. The lessons are:"),  # though at-ten-tion has it
    (["lesson", "tr"], "'tr' fits several lessons: 18 training, 23 translation."),
    (["lesson", "2", "ARGS=--steps 9"], "Lesson 2 takes no options: --steps 9"),
    (["lesson", "1", "2"], "one lesson at a time: make lesson 1"),
    (["check", "12", "13"], "one lesson at a time: make check 12"),
    (["hint", "12", "MIN=1"], "nothing here is called MIN. Options go into ARGS: "),
    (["12"], "there is no verb '12'; make lists them"),
    (["train", "5"], "there is no verb '5'; make lists them"),
    (["train", "STEPS=9"], "nothing here is called STEPS. Options go into ARGS: "),
    (["train", "args=--steps 9", "ARGS=x=y z"], "nothing here is called args. Options go into ARGS: "),
])
def test_a_wrong_word_gets_a_line_and_starts_nothing(house, words, line):
    code, output, errors = make(house, *words)
    assert (code, output) == (2, "")
    assert line in errors and "Traceback" not in errors


def test_make_lists_the_verbs_and_the_lessons_without_an_environment(house):
    shutil.rmtree(house / ".venv")
    code, output, errors = make(house)
    assert (code, errors) == (0, "") and not (house / ".venv").exists()
    for verb in ("lesson 12", "exercise 12", "check 12", "hint 12", "solution 12", "progress", "train",
                 "generate", "test", "ptx", "bench", "clean"):
        assert re.search(rf"^  make {verb} +\w+", output, re.MULTILINE), verb
    assert output.endswith("The lessons are:\n"
                           "   2  ngrams          How far does it get us?\n"
                           "  12  attention       attention looks back.\n"
                           "  18  training        How does a text become a model?\n"
                           "  19  generation      \n"
                           "  23  translation     translation.\n")


def test_make_lesson_alone_lists_the_lessons(house):
    code, output, errors = make(house, "lesson")
    assert (code, errors) == (0, "") and output.startswith("The lessons are:\n   2  ngrams ")


def test_make_test_runs_pytest(house):
    assert make(house, "test", "ARGS=--version")[0] == 0


def test_make_clean_keeps_what_the_learner_made(house):
    for file in "out/x/model.safetensors", "workbook/12/l12_attention.py", "lessons/__pycache__/x.pyc":
        (house / file).parent.mkdir(parents=True)
        (house / file).touch()
    code, output, _ = make(house, "clean")
    assert code == 0 and "out/" in output and "workbook/" in output
    assert not (house / ".venv").exists() and not (house / "lessons/__pycache__").exists()
    assert (house / "out/x/model.safetensors").exists() and (house / "workbook/12/l12_attention.py").exists()


# The environment


@pytest.fixture
def fresh(house):
    """A house without .venv, on a machine with uv."""
    shutil.rmtree(house / ".venv")
    script(house.parent / "bin" / "uv", UV)
    return house


def asked(house):
    """What uv was asked since the last time, by first word."""
    log = house / "uv.log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.write_text("")
    return [line.split()[0] for line in lines]


def test_the_first_verb_sets_up_and_the_second_does_not(fresh):
    code, output, _ = make(fresh, "lesson", "2")
    assert code == 0 and asked(fresh) == ["venv", "pip"]
    assert re.match(r"Setting up .venv with uv, once: .* MB .*\nngrams ran\n$", output)
    assert make(fresh, "lesson", "2") == (0, "ngrams ran\n", "") and asked(fresh) == []


def test_a_newer_lock_updates_the_environment(fresh):
    make(fresh, "lesson", "2")
    asked(fresh)
    os.utime(fresh / ".venv" / "ok", (1, 1))
    assert make(fresh, "lesson", "2")[0] == 0 and asked(fresh) == ["pip"]


def test_an_environment_made_by_hand_is_not_thrown_away(fresh):
    make(fresh, "lesson", "2")
    asked(fresh)
    (fresh / ".venv" / "ok").unlink()
    (fresh / ".venv" / "mine").touch()
    assert make(fresh, "lesson", "2")[0] == 0 and asked(fresh) == ["pip"]
    assert (fresh / ".venv" / "mine").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(fresh):
    make(fresh, "lesson", "2")
    asked(fresh)
    (fresh / ".venv/bin/python").unlink()
    (fresh / ".venv/bin/python").symlink_to("/nowhere/python3")
    assert make(fresh, "lesson", "2")[0] == 0 and asked(fresh) == ["venv", "pip"]


def test_a_second_set_up_waits_and_finds_the_work_done(fresh):
    script(fresh.parent / "bin" / "uv", UV + "touch .venv/at_work; until [ -e go ]; do sleep 0.1; done")
    words = "make", "lesson", "2"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(call, fresh, *words)
        while not (fresh / ".venv" / "at_work").exists():
            assert not first.done(), first.result()
        second = pool.submit(call, fresh, *words)
        with pytest.raises(TimeoutError):
            second.result(timeout=1)
        (fresh / "go").touch()
        assert first.result()[0] == 0 and asked(fresh) == ["venv", "pip"]
    code, output, _ = second.result()
    assert code == 0 and asked(fresh) == [] and output == (
        "Another set-up is at work in this folder; waiting for it.\n"
        ".venv is as requirements.txt wants it.\nngrams ran\n")


def test_a_terminal_sees_what_the_set_up_is_doing(fresh):
    script(fresh.parent / "bin" / "uv", UV + 'echo "Downloading numpy (16.9 MiB)"')
    ours, theirs = os.openpty()
    done = subprocess.run(["python3", "environment.py"], check=False, cwd=fresh, stdout=theirs, stderr=theirs,
                          env={"PATH": str(fresh.parent / "bin")})
    os.close(theirs)
    assert done.returncode == 0 and b"\rDownloading numpy (16.9 MiB) " in os.read(ours, 10_000)


@pytest.mark.parametrize("killed", ["$$", "$PPID"])  # the installer alone, or environment.py with it
@pytest.mark.parametrize("moment", ["venv", "pip"])
def test_a_set_up_that_was_killed_repairs_itself(fresh, killed, moment):
    uv = fresh.parent / "bin" / "uv"
    script(uv, UV + f'case "$*" in {moment}*) kill -9 {killed}; esac\n')
    code, output, _ = make(fresh, "lesson", "2")
    assert code != 0 and "ran" not in output and not (fresh / ".venv" / "ok").exists()
    asked(fresh)
    script(uv, UV)
    code, output, _ = make(fresh, "lesson", "2")
    assert code == 0 and output.endswith("ngrams ran\n") and asked(fresh) == ["venv", "pip"]


def test_an_update_that_was_killed_is_followed_by_a_new_start(fresh):
    make(fresh, "lesson", "2")
    os.utime(fresh / ".venv" / "ok", (1, 1))
    script(fresh.parent / "bin" / "uv", UV + "kill -9 $PPID\n")
    assert call(fresh, "python3", "environment.py")[0] != 0
    asked(fresh)
    script(fresh.parent / "bin" / "uv", UV)
    assert make(fresh, "lesson", "2")[0] == 0 and asked(fresh) == ["venv", "pip"]


def test_a_set_up_that_failed_says_why_and_keeps_what_is_there(fresh):
    make(fresh, "lesson", "2")
    script(fresh.parent / "bin" / "uv", UV + "echo error: disk full >&2; exit 2\n")
    os.utime(fresh / ".venv" / "ok", (1, 1))
    asked(fresh)
    for _ in range(2):
        code, _, errors = make(fresh, "lesson", "2")
        assert code == 2 and asked(fresh) == ["pip"]
        assert errors.startswith("The packages could not be installed: error: disk full (details: ")


def test_make_bench_installs_once_what_it_compares_with(fresh):
    (fresh / "tests" / "benchmarks").mkdir(parents=True)
    (fresh / "tests" / "benchmarks" / "__main__.py").write_text('print("benchmarks ran")')
    code, output, _ = make(fresh, "bench")
    assert code == 0 and "PyTorch" in output and "GB" in output and output.endswith("benchmarks ran\n")
    assert asked(fresh) == ["venv", "pip", "pip", "pip"]
    assert make(fresh, "bench") == (0, "benchmarks ran\n", "") and asked(fresh) == []


def test_make_ptx_installs_the_compiler_once(fresh):
    (fresh / "tests" / "ptx.py").write_text("import sys\nprint('ptx', *sys.argv[1:])\n")
    code, output, _ = make(fresh, "ptx", "ARGS=matmul")
    assert code == 0 and "compiler" in output and " MB on disk" in output and output.endswith("ptx matmul\n")
    assert asked(fresh) == ["venv", "pip", "pip"]
    assert make(fresh, "ptx") == (0, "ptx\n", "") and asked(fresh) == []


def python_with(house, change):
    """For PYTHON=: a Python in which this was done first."""
    python = house.parent / "bin" / "changed"
    program = (f"import ctypes, os, runpy, sys, types; {change}; "
               "del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')")
    script(python, f'#!/bin/sh\nexec "{sys.executable}" -c "{program}" "$@"\n')
    return python


def driver(gpus, version):
    """A change for python_with: NVIDIA's driver, with so many GPUs."""
    return (f"write = lambda place, n: setattr(place._obj, 'value', n); "
            f"ctypes.CDLL = lambda name: types.SimpleNamespace(cuInit=lambda flags: {0 if gpus else 100}, "
            f"cuDeviceGetCount=lambda n: write(n, {gpus}), cuDriverGetVersion=lambda n: write(n, {version}))")


@pytest.mark.parametrize("words, ran", [
    (["train", "ARGS=--device cuda --steps 9"], "training ran --device cuda --steps 9\n"),
    (["train", "ARGS=--steps 9  --device=cuda"], "training ran --steps 9 --device=cuda\n"),
    (["train", "MINE=1", "ARGS=--device  cuda"], "tests mine training --device cuda\n"),
    (["lesson", "18", "ARGS=--device cuda"], "training ran --device cuda\n"),
])
def test_the_gpu_gets_its_packages_when_it_is_asked_for(fresh, words, ran):
    words += f"PYTHON={python_with(fresh, driver(1, 13000))}",
    code, output, _ = make(fresh, *words)
    assert code == 0 and "numba-cuda" in output and " MB on disk" in output and output.endswith(ran)
    assert asked(fresh) == ["venv", "pip", "pip"]
    assert make(fresh, *words) == (0, ran, "") and asked(fresh) == []


@pytest.mark.parametrize("change, line", [
    ("ctypes.CDLL = lambda name: open('/no/driver')", "this machine has none. Without --device "),
    (driver(0, 13000), "this machine has none. Without --device "),
    (driver(1, 12040), "580 or newer. This one is for CUDA 12.4: update it."),
])
def test_without_a_gpu_nothing_is_installed_for_one(fresh, change, line):
    code, output, errors = make(fresh, "train", "ARGS=--device cuda", f"PYTHON={python_with(fresh, change)}")
    assert (code, output) == (2, "") and line in errors and len(errors.splitlines()) == 2
    assert asked(fresh) == [] and not (fresh / ".venv").exists()


@pytest.mark.parametrize("device", ["cpu", "numpy", "cudas"])
def test_other_devices_need_nothing_more(house, device):
    assert make(house, "train", f"ARGS=--device {device}") == (0, f"training ran --device {device}\n", "")


def test_extras_and_the_rest_stay_valid_beside_each_other(fresh):
    python = f"PYTHON={python_with(fresh, driver(1, 13000))}"
    verbs = [(".venv/ok",), (".venv/ptx",), (".venv/bench",), ("train", "ARGS=--device cuda")]
    for words in verbs:
        assert make(fresh, *words, python)[0] == 0
    assert {path.name for path in (fresh / ".venv").iterdir()} == {"bin", "ok", *EXTRAS}
    asked(fresh)
    for words in verbs:
        assert make(fresh, *words, python)[0] == 0 and asked(fresh) == []
    os.utime(fresh / ".venv" / "ptx", (1, 1))  # its lock is newer: it alone is brought up to date
    for words in verbs:
        assert make(fresh, *words, python)[0] == 0
    assert asked(fresh) == ["pip"]


def test_an_extra_that_does_not_exist_is_one_line(fresh):
    code, output, errors = call(fresh, "python3", "environment.py", "gpu")
    assert (code, output, errors) == (1, "", "There is no extra 'gpu'. There are: bench, cuda, ptx.\n")


@pytest.mark.parametrize("trouble, line", [
    ("sys.version_info = (3, 9, 2)", "Python 3.11 or newer is needed, and this is 3.9. "),
    ("sys.modules['ensurepip'] = None", "lacks the venv module. Debian, Ubuntu: apt install python3-venv. "),
    ("os.mkdir = lambda path: open('/dev/null/' + path)", "Cannot write .venv in "),
])
def test_what_this_machine_lacks_is_said_in_one_line(house, trouble, line):
    shutil.rmtree(house / ".venv")
    code, output, errors = make(house, "lesson", "2", f"PYTHON={python_with(house, trouble)}")
    assert (code, output) == (2, "") and line in errors
    assert len(errors.splitlines()) == 2 and errors.splitlines()[1].startswith("make: ***")
    assert not (house / ".venv").exists()


def test_a_machine_without_python_is_told_so(house):
    shutil.rmtree(house / ".venv")
    code, _, errors = make(house, "test", "PYTHON=python3.99")
    assert code == 2 and errors.startswith("There is no 'python3.99' here, and Python 3.11 or newer")


def test_pip_without_network_says_so_and_goes_on_when_there_is_one(house):
    shutil.rmtree(house / ".venv")
    (house / "requirements.txt").write_text(f"nothing==1 --hash=sha256:{'0' * 64}\n")
    closed = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    code, output, errors = make(house, "lesson", "2", **closed)
    assert code == 2 and output.startswith("Setting up .venv with pip") and errors.startswith("No network: ")
    (house / "requirements.txt").write_text("# nothing to install\n")
    code, output, errors = make(house, "lesson", "2")
    assert code == 0 and output.endswith("ngrams ran\n")


# python -m lessons


def lessons(house, *words):
    return call(house, sys.executable, "-m", "lessons", *words)


def write(house, name, body):
    (house / "lessons" / f"{name}.py").write_text(body)


def test_a_lesson_with_exactly_this_name_comes_before_one_that_contains_it(house):
    write(house, "l14_self_attention", "def main(): print('self-attention ran')")
    assert lessons(house, "attention")[1] == "attention ran\n"
    assert lessons(house, "self")[1] == "self-attention ran\n"


def test_a_lesson_is_found_by_its_file_as_the_shell_completes_it(house):
    assert lessons(house, "lessons/l12_attention.py")[1] == "attention ran\n"


def test_on_a_terminal_a_lesson_says_which_file_to_read(house):
    pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    master, terminal = pty.openpty()
    subprocess.run([sys.executable, "-m", "lessons", "12"], cwd=house, stdout=terminal, check=True)
    os.close(terminal)
    output = os.read(master, 1000).decode().replace("\r", "")
    os.close(master)
    assert output == "lesson 12, attention: read lessons/l12_attention.py beside this\n\nattention ran\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_behind_the_output_is_one_line(house):
    code, _, errors = call(house, "sh", "-c", f"'{sys.executable}' -m lessons 12 > /dev/full")
    assert (code, errors) == (2, "The disk, or the file that the output goes to, is full: make room.\n")


def test_a_folder_that_may_not_be_written_is_one_line(house):
    write(house, "l03_hmm", "def main(): raise PermissionError(13, 'Permission denied', 'out')")
    line = "out: Permission denied. Copy the course to a place of your own.\n"
    assert lessons(house, "3") == (2, "", line)


def test_a_terminal_that_is_not_utf_8_shows_question_marks(house):
    write(house, "l03_hmm", "def main(): print('caf\u00e9 \u8bba\u8bed')")
    ascii_only = "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
    assert call(house, "sh", "-c", f"{ascii_only} '{sys.executable}' -m lessons 3")[:2] == (0, "caf? ??\n")


def test_help_shows_how_to_call_it(house):
    code, output, _ = lessons(house, "--help")
    assert code == 0 and "python -m lessons 12" in output and "12  attention" in output


@pytest.mark.parametrize("body, code, line", [
    ("import nowhere_to_be_found", 2, "The package nowhere_to_be_found is not installed in "),
    ("import lessons.errors as e\ndef main(): raise e.InputError('no such file: x')", 2, "no such file: x"),
    ("def main(): raise KeyboardInterrupt", 130, "\nStopped by Ctrl-C."),
])
def test_an_expected_end_of_a_lesson_is_one_line(house, body, code, line):
    write(house, "l03_hmm", body)
    assert lessons(house, "3")[0] == code
    assert lessons(house, "3")[2].startswith(line) and len(lessons(house, "3")[2].strip().splitlines()) == 1


def test_a_mistake_of_ours_keeps_its_traceback(house):
    write(house, "l03_hmm", "from lessons import errors\nimport lessons.l04_missing")
    assert "Traceback" in lessons(house, "3")[2]


def test_a_reader_that_has_seen_enough_stops_a_lesson_silently(house):
    write(house, "l03_hmm", "def main():\n    for line in range(100000): print(line)")
    code, output, errors = call(house, "sh", "-c", f"'{sys.executable}' -m lessons 3 | head -n 1")
    assert (code, output, errors) == (0, "0\n", "")


# The locks


def pins(lock):  # -> {package: version}
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_locks_hold_every_package_and_no_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["dependencies"]) <= set(pins("requirements.txt"))
    assert set(project["optional-dependencies"]) == set(EXTRAS)
    torch = project["optional-dependencies"]["bench"].pop(0)
    assert f'TORCH = "{torch}"' in (ROOT / "environment.py").read_text()
    for extra, wanted in project["optional-dependencies"].items():
        here = pins(f"requirements-{extra}.txt")
        assert {re.match(r"[\w-]+", package)[0] for package in wanted} <= set(here)
        assert not set(here) & set(pins("requirements.txt"))
    for file in LOCKS:
        text = (ROOT / file).read_text()
        assert not re.search(r"https?://|file://|^-|^/", text, re.MULTILINE), file
        assert text.count("==") <= text.count("--hash=sha256:"), file


def test_the_extras_fit_into_one_environment():
    locks = [pins(f"requirements-{extra}.txt") for extra in EXTRAS]
    for one in locks:
        for other in locks:
            assert {name: one[name] for name in one.keys() & other} == {
                name: other[name] for name in one.keys() & other}
