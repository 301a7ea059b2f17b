"""README.md and README.zh-CN.md: what they tell a reader to type works, and what they point at is there.

The commands run in a copy of this folder, with few steps and a short text in place of Shakespeare.
"""
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from lessons.__main__ import lessons
from lessons.l16_gpt import count_parameters
from lessons.parameters import Config
from lessons.run_folder import FILES
from lessons.training_options import complete
from tests.exercises.sheet import sheet
from tests.test_make import ROOT, script

ENGLISH, CHINESE = READMES = "README.md", "README.zh-CN.md"
NOT_COPIED = ".venv", "out", "workbook", ".git", ".hypothesis", ".pytest_cache", ".ruff_cache"
QUICK = {"train": "--steps 3", "generate": "--tokens 5", "test": "--collect-only", "bench": "--help"}
NUMBERED = "lesson", "exercise", "check", "watch", "hint", "solution"
# With nothing written yet these do not succeed: what they are to say.
SAYS = {"check 1": "to do", "make watch": "to do", "make solution": "is not done",
        "-m tests report": "there is no"}
WITHOUT_MAKE = {"tests mutants": "--help",
                "lessons training": "--help", "lessons generation": "--help", "pytest": "--version",
                "ruff": "--exit-zero"}  # what ruff finds is the business of .ci/run
WINDOWS_PYTHON = ".venv\\Scripts\\python "
MADE_LATER = re.compile(r"NN|NAME|^out/|^workbook/|^\.venv$")  # files that a run, a set-up or a reader makes


def read(name):
    return (ROOT / name).read_text("utf-8")


def blocks(text):
    """[(language, lines), ...] of the fenced blocks, and the text without them."""
    pattern = r"^```(\w*)\n(.*?)^```$"
    found = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    return [(language, body.splitlines()) for language, body in found], re.sub(
        pattern, "", text, flags=re.MULTILINE | re.DOTALL)


def commands(text, *languages):
    """The lines of the blocks in these languages, without their comments."""
    return [re.sub(r"\s+# .*", "", line) for language, lines in blocks(text)[0] if language in languages
            for line in lines]


def code(text):
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", blocks(text)[1])


def quick(command):
    """The command with options that make it short."""
    command = command.replace("py ", "python3 ", 1) if command.startswith("py ") else command
    command = command.replace(WINDOWS_PYTHON, ".venv/bin/python ")
    for start, words in SAYS.items():
        if start in command:
            return f"timeout 9 {command} 2>&1 | grep '{words}'"
    if verb := re.fullmatch(r'make (\w+)(?: MINE=1)?(?: ARGS=(?:"(.*)"|(\S+)))?', command):
        verb, given = verb[1], verb[2] or verb[3] or ""
        more = "--version" if (verb, given) == ("test", "") else QUICK.get(verb, "")
        mine = " MINE=1" if "MINE=1" in command else ""
        return f'make {verb}{mine} ARGS="{given} {more}"' if more else command
    module = re.fullmatch(rf"\.venv/bin/python -m ({'|'.join(WITHOUT_MAKE)})( .*)?", command)
    return f"{command} {WITHOUT_MAKE[module[1]]}" if module else command


@pytest.fixture
def house(tmp_path):
    """A copy of this folder with an environment, a git history and short texts."""
    house = tmp_path / "house"
    shutil.copytree(ROOT, house, ignore=shutil.ignore_patterns(*NOT_COPIED))
    (house / "data" / "shakespeare.txt").write_text(read("data/shakespeare.txt")[:5000])
    (house / "my_book.txt").write_text(read("data/grimm.txt")[:5000])
    (house / ".venv" / "bin").mkdir(parents=True)
    script(house / ".venv" / "bin" / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for mark in "ok", "bench":
        (house / ".venv" / mark).touch()
    for words in ["init", "-q"], ["add", "lessons"], ["commit", "-q", "-m", "lessons"]:
        run(house, "git -c user.name=x -c user.email=x@y " + shlex.join(words))
    return house


def run(house, command):
    """(exit code, all that it printed). The environment is empty: no option of an outer make comes in."""
    done = subprocess.run(["sh", "-c", command], check=False, cwd=house, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={"PATH": os.environ["PATH"], "HOME": str(house)})
    return done.returncode, done.stdout


@pytest.mark.skipif(not all(map(shutil.which, ("make", "git"))), reason="make or git is not installed")
def test_every_command_runs(house):
    """The Chinese commands are the same ones: the last test says so."""
    def failures(lane):
        results = [(command, *run(house, command)) for command in lane]
        return [f"$ {command}\n{said}" for command, status, said in results if status]

    everything = list(dict.fromkeys(map(quick, commands(read(ENGLISH), "sh", "bat"))))
    model = [command for command in everything if re.search("train|generat", command)]
    others = [command for command in everything if command not in model]  # these can run beside the former
    with ThreadPoolExecutor() as pool:
        failed = [failure for lane in pool.map(failures, [model, others]) for failure in lane]
    assert not failed, f"README.md tells a reader to type what fails:\n{''.join(failed)}"
    assert (house / "out" / "shakespeare" / "model.safetensors").exists()


@pytest.mark.parametrize("name", READMES)
def test_every_command_stands_in_a_block_that_is_run(name):
    for language, lines in blocks(read(name))[0]:
        if language not in ("sh", "bat"):
            wrong = [line for line in lines if re.match(r"(\$ )?(make|python3?|py|git) ", line)]
            assert not wrong, f"{name}: {wrong[0]!r} stands in a block without the word sh, so nobody runs it"


@pytest.mark.parametrize("name", READMES)
def test_every_link_leads_somewhere(name):
    links = re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', blocks(read(name))[1])
    assert links
    for link in map("".join, links):
        file, _, place = link.partition("#")
        assert (ROOT / file).exists(), f"{name} links to {link}, which is not there"
        if place:
            headings = re.findall(r"^#+ (.*)$", read(file or name), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert place in slugs, f"{name} links to {link}, and there is no such heading"


@pytest.mark.parametrize("name", READMES)
def test_every_file_that_is_named_exists(name):
    text = read(name)
    words = code(text) + " ".join(commands(text, "sh", "bat")).replace('"', " ").split()
    for language, lines in blocks(text)[0]:
        words += [line.split()[0] for line in lines if language == "" and line.strip()]
    files = [word for word in words if re.fullmatch(r"[\w.-]+/[\w./-]*|[\w./-]+\.(py|txt|md|json|csv)", word)]
    assert len(files) > 15
    for file in files:
        if not MADE_LATER.search(file) and file not in FILES | {"my_book.txt", ".venv/bin/python"}:
            assert (ROOT / file).exists() or (ROOT / "lessons" / file).exists(), f"{name} names {file}"


@functools.cache
def help_text(lesson):
    command = sys.executable, "-m", "lessons", lesson, "--help"
    return subprocess.run(command, check=True, cwd=ROOT, text=True, stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize("name", READMES)
def test_every_option_and_verb_that_is_named_exists(name):
    known = help_text("training") + help_text("generation")
    verbs = " ".join(re.findall(r"^(?:VERBS|NUMBERED) := (.*)$", read("Makefile"), re.MULTILINE)).split()
    names = {str(number) for number, _, _ in lessons()} | {lesson for _, lesson, _ in lessons()}
    for span in code(read(name)):
        if span.startswith(("--", "make ")):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span):
                assert re.search(rf"{option}\b(?!-)", known), f"{name} names {option}, and no --help does"
        if span.startswith("make "):
            _, verb, *rest = span.split()
            assert verb in verbs, f"{name}: there is no verb in `{span}`"
            if verb in NUMBERED:
                assert rest[0] in names, f"{name}: there is no lesson in `{span}`"


@pytest.mark.parametrize("name", READMES)
def test_every_file_of_lessons_has_its_place(name):
    text = read(name)
    for number, lesson, _ in lessons():
        row = f"| {number} | [{lesson}](lessons/l{number:02d}_{lesson}.py) |"
        assert row in text, f"{name} lacks the row {row} ..."
    for path in (ROOT / "lessons").glob("[a-z]*.py"):
        if not re.match(r"l\d\d_", path.name):
            assert path.name in text, f"{name} does not say what lessons/{path.name} is for"


def test_numbers_that_the_code_knows():
    settings = complete({})
    sizes = Config(*(settings[size] for size in ("vocab_size", "block", "layers", "heads", "embd")))
    for name in READMES:
        assert f"{count_parameters(sizes):,} " in read(name) and f"{settings['steps']:,} " in read(name)
        for number in sum(map(len, sheet().values())), read("tests/mutants.toml").count("\n[["):
            assert re.search(rf"(?<![\d,]){number:,}(?![\d,])", read(name)), f"{name} does not say {number:,}"
        assert re.search(r"(\d+) MB to download", read("environment.py"))[1] in read(name)


def test_the_readme_of_data_has_every_text_and_its_size():
    text = read("data/README.md")
    for path in (ROOT / "data").glob("*.txt"):
        assert f"| `{path.name}` | {len(path.read_text('utf-8')):,} |" in text


def parts(name):
    """What both languages share, section by section; of blocks that are no commands the first words."""
    for section in re.split(r"^## ", read(name), flags=re.MULTILINE):
        found, prose = blocks(section)
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", prose) if link not in READMES]
        numbers = re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"\]\(.*?\)|`[^`]*`", "", prose))
        yield {"heading": section.splitlines()[0], "commands": commands(section, "sh", "bat"),
               "blocks": [(language, [line.split(" ")[0] for line in lines if language == ""])
                          for language, lines in found],
               "links": links, "code": Counter(code(section)),
               "numbers": Counter(number.replace(",", "") for number in numbers)}


def test_the_chinese_readme_says_the_same():
    english, chinese = map(list, map(parts, READMES))
    assert len(english) == len(chinese)
    for ours, theirs in zip(english, chinese, strict=True):
        for what in "commands", "blocks", "links", "code", "numbers":
            where = f"{what} under {ours['heading']!r} and {theirs['heading']!r}"
            assert ours[what] == theirs[what], f"README.md and README.zh-CN.md differ in the {where}"
