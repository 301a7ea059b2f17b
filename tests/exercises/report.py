"""A class's workbooks, checked: one row for each, written to a CSV file.

    python -m tests report FOLDER...

In FOLDER lie zip files or folders, one for each learner, with a workbook somewhere inside. Only files that
the sheet knows are taken out of them. Each workbook is checked in processes of its own, within limits of time
and memory: one that hangs or crashes touches no other. For a class that you do not trust use a container.
"""
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lessons.devices import cores
from lessons.errors import InputError
from tests.exercises.sheet import ROOT, files_of, sheet

SECONDS, BYTES = 600, 1 << 20  # that one workbook may take, and that one of its files may have
KNOWN = re.compile(r"(?:^|/)(?:(\d\d)/((?:lessons|kernels)/[\w/]+\.py)|(progress\.json))$")


def main(*folders):
    if not folders:
        raise InputError("which folder? For example: python -m tests report submissions/")
    handed_in = [one for folder in folders for one in submissions(Path(folder))]
    if not handed_in:
        raise InputError(f"there is no zip file and no folder in {' '.join(folders)}")
    rows = []
    with ThreadPoolExecutor(cores()) as pool:
        for row in pool.map(checked, handed_in):
            rows.append(row)
            said = row["note"] or f"{row['done']} done"
            print(f"  {len(rows)} of {len(handed_in)}  {row['name']}: {said}", flush=True)
    path = Path(time.strftime("report-%Y%m%d-%H%M%S.csv"))
    write(path, rows)
    print(f"wrote {path}")
    return 0


def submissions(folder):  # -> [path, ...]
    """The zip files and folders in it; or itself, if it is one learner's zip file or workbook."""
    if not folder.exists():
        raise InputError(f"there is no {folder}")
    if folder.is_file() or any((folder / lesson).is_dir() for lesson in sheet()):
        return [folder]
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__"))
                  and (path.is_dir() or path.suffix.lower() == ".zip"))


def checked(path):  # -> {"name", "done", "hints", "note", "states": {"12 attention_forward": "done"}}
    name = path.stem if path.is_file() else path.resolve().name
    row = {"name": name, "done": 0, "hints": 0, "note": "", "states": {}}
    with tempfile.TemporaryDirectory() as folder:
        try:
            unpack(path, Path(folder))
            row |= verdicts_in(folder)
        except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            row["note"] = str(error).splitlines()[0] if str(error) else type(error).__name__
    row["done"] = list(row["states"].values()).count("done")
    return row


def unpack(path, folder):
    """Copies the files that the sheet knows. ValueError if there are none, or one is too large."""
    wanted = {(lesson, file) for lesson in sheet() for file in files_of(sheet()[lesson])}
    found = {}
    for name, read in members(path):
        match = KNOWN.search(name)
        target = match and (match[3] or f"{match[1]}/{match[2]}")
        if match and "__MACOSX" not in name and (match[3] or (match[1], match[2]) in wanted):
            if target in found:
                raise ValueError(f"{target} is in it twice: {found[target]} and {name}")
            text = read(BYTES + 1)
            if len(text) > BYTES:
                raise ValueError(f"{name} is larger than {BYTES >> 20} MB")
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            (folder / target).write_bytes(text)
            found[target] = name
    if not any(target != "progress.json" for target in found):
        raise ValueError("no workbook in it: a file such as workbook/12/lessons/l12_attention.py is missing")


def members(path):  # yields (name, read(n) -> at most n bytes)
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield file.relative_to(path).as_posix(), lambda n, file=file: file.open("rb").read(n)
    else:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                yield entry.filename.replace("\\", "/"), lambda n, entry=entry: archive.open(entry).read(n)


def verdicts_in(folder):  # -> {"states", "hints"} or {"note"}
    process = subprocess.Popen([sys.executable, "-m", "tests.exercises.report"], cwd=ROOT, text=True,
                               env=dict(os.environ, WORKBOOK=folder),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, error = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # what it started ends by its own alarm
        process.communicate()
        return {"note": f"not checked within {SECONDS} seconds"}
    if process.returncode:
        return {"note": (error.strip().splitlines() or ["the check failed"])[-1]}
    return json.loads(out)


def check_workbook():
    """In a process of its own: print the states of what is in WORKBOOK."""
    from tests.exercises import check, workbook

    states, hints, note = {}, 0, ""
    for lesson, exercises in sheet().items():
        if (workbook.WORKBOOK / lesson).is_dir():
            for name, verdict in check.check(lesson, exercises).items():
                states[f"{int(lesson)} {name}"] = verdict.state
            try:
                hints += sum(n for n in workbook.of(lesson, "hints").values() if isinstance(n, int))
            except InputError:
                note = "progress.json is damaged"
    print(json.dumps({"states": states, "hints": hints, "note": note}))


def write(path, rows):
    columns = [f"{int(lesson)} {name}" for lesson in sheet() for name in sheet()[lesson]
               if any(f"{int(lesson)} {name}" in row["states"] for row in rows)]
    with open(path, "x", newline="", encoding="utf-8-sig") as file:  # with that mark Excel reads "é"
        table = csv.writer(file)
        table.writerow(["name", "done", "hints", "note", *columns])
        for row in rows:
            name = row["name"]
            if name.startswith(("=", "+", "-", "@")):
                name = f"'{name}"  # or a spreadsheet computes it
            table.writerow([name, row["done"], row["hints"], row["note"],
                            *(row["states"].get(column, "") for column in columns)])


if __name__ == "__main__":
    check_workbook()
