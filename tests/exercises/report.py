"""A class's workbooks, checked: one row for each learner, written to a CSV file.

    python -m tests report FOLDER...

In FOLDER lie zip files or folders, one for each learner, with a workbook somewhere inside. Only files that
the sheet knows are taken out of them. Each workbook is checked in processes of its own, within limits of time
and memory: one that hangs or crashes touches no other. For a class that you do not trust use a container.
"""
import csv
import io
import json
import os
import re
import signal
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
from tests.exercises.workbook import free

SECONDS, BYTES, FILES = 900, 1 << 20, 5000  # for one workbook; of one of its files; in one hand-in
PLACES = {(lesson, file) for lesson in sheet() for file in files_of(sheet()[lesson])}
LESSON_FILES = {Path(file).name: (lesson, file) for lesson, file in PLACES if file.startswith("lessons/l")}


def main(*folders):
    if not folders:
        raise InputError("which folder? For example: python -m tests report submissions")
    handed_in = [one for folder in folders for one in submissions(Path(folder))]
    if not handed_in:
        raise InputError(f"there is nothing handed in in {' '.join(folders)}: no zip file, no folder")
    path, rows, start = free(Path(time.strftime("report-%Y%m%d-%H%M%S.csv"))), [], time.monotonic()
    with open(path, "x", newline="", encoding="utf-8-sig") as file:  # with that mark Excel reads "é"
        pool = ThreadPoolExecutor(cores())
        try:
            for row in pool.map(checked, handed_in):
                rows.append(row)
                left = (time.monotonic() - start) / len(rows) * (len(handed_in) - len(rows))
                print(f"  {len(rows)} of {len(handed_in)}, {left / 60:.0f} min left  {row['name']}: "
                      f"{row['done']} of {row['of']} done  {printable(row['note'])}", flush=True)
        finally:  # Ctrl-C: what is checked is written
            pool.shutdown(wait=False, cancel_futures=True)
            write(file, rows)
            print(f"wrote {path}: {len(rows)} of {len(handed_in)}", flush=True)
    return 0


def submissions(folder):  # -> [path, ...]
    """All that lies in it: nobody who handed something in may be missing. Or itself, if it is a workbook."""
    if not folder.exists():
        raise InputError(f"there is no {folder}")
    if folder.is_file() or any((folder / lesson).is_dir() for lesson in sheet()):
        return [folder]
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))


def checked(path):  # -> {"name", "done", "of", "hints", "note", "states": {"12 attention_forward": "done"}}
    path = path.resolve()
    name = path.parent.name if path.name == "workbook" else path.stem if path.is_file() else path.name
    row = {"name": printable(name), "done": 0, "of": 0, "hints": 0, "note": "", "states": {}}
    with tempfile.TemporaryDirectory() as folder:
        try:
            row["note"] = unpack(path, Path(folder))
            states, hints, note = verdicts_in(folder)
            row |= {"states": states, "hints": hints, "note": "; ".join(filter(None, [row["note"], note]))}
        except Exception as error:  # noqa: BLE001  (whatever is wrong with it, the next one is checked)
            row["note"] = (str(error).splitlines() or [type(error).__name__])[0].replace(folder, "")
    row["done"], row["of"] = [*row["states"].values()].count("done"), len(row["states"])
    return row


def unpack(path, folder):  # -> a note, or ""
    """Copies the files that the sheet knows. ValueError if there are none, or one is too large."""
    found, lonely, notes = {}, {}, []
    for name, read in members(path):
        parts = name.split("/")
        if any(part.startswith((".", "__")) for part in parts):
            continue  # .ipynb_checkpoints, __MACOSX
        match = re.search(r"(?:^|/)(\d\d?)/((?:lessons|kernels)/[\w/]+\.py)$", name)
        place = match and (f"{int(match[1]):02d}", match[2])
        if place in PLACES:
            found.setdefault("/".join(place), []).append((len(parts), name, read))
        elif parts[-1] == "progress.json":
            found.setdefault("progress.json", []).append((len(parts), name, read))
        elif parts[-1] in LESSON_FILES:  # a lesson's file alone, in no workbook
            lonely.setdefault("/".join(LESSON_FILES[parts[-1]]), []).append((len(parts), name, read))
    for target, places in ({} if set(found) - {"progress.json"} else lonely).items():
        found[target] = places
    if not set(found) - {"progress.json"}:
        raise ValueError("no workbook in it: a file such as workbook/12/lessons/l12_attention.py is missing")
    for target, places in found.items():
        _, name, read = min(places, key=lambda place: place[:2])  # of several the one that lies highest
        if len(places) > 1:
            notes.append(f"{target} is in it {len(places)} times, {name} was taken")
        text = read(BYTES + 1)
        if len(text) > BYTES:
            raise ValueError(f"{name} is larger than {BYTES >> 20} MB")
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_bytes(text)
    return "; ".join(notes)


def members(path):  # yields (name, read(n) -> at most n bytes), of zip files in it, too
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink()]
        entries = [(file.relative_to(path).as_posix(), lambda n, file=file: first(file.open("rb"), n))
                   for file in files[:FILES]]
    else:
        entries = members_of_zip(path)
    for name, read in entries:
        if name.lower().endswith(".zip"):
            inner = io.BytesIO(read(20 * BYTES))
            for inside, read_inside in members_of_zip(inner):
                yield f"{name.removesuffix('.zip')}/{inside}", read_inside
        else:
            yield name, read


def members_of_zip(file):
    if not zipfile.is_zipfile(file):
        raise ValueError("neither a zip file nor a folder")
    archive = zipfile.ZipFile(file)
    return [(entry.filename.replace("\\", "/"), lambda n, entry=entry: first(archive.open(entry), n))
            for entry in archive.infolist()[:FILES] if not entry.is_dir()]


def first(file, n):
    with file:
        return file.read(n)


def verdicts_in(folder):  # -> {"12 attention_forward": state}, hints, note
    process = subprocess.Popen([sys.executable, "-m", "tests.exercises.report"], cwd=ROOT, text=True,
                               env=dict(os.environ, WORKBOOK=folder),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    states, hints, note = {}, 0, ""
    try:
        out, error = process.communicate(timeout=SECONDS)
        if process.returncode:
            note = (error.strip().splitlines() or ["the check failed"])[-1]
    except subprocess.TimeoutExpired:
        process.terminate()
        out, _ = process.communicate()
        note = f"not all checked: {SECONDS} seconds are over"
    for line in out.splitlines():
        lesson = json.loads(line)
        states |= lesson["states"]
        hints += lesson["hints"]
    return states, hints, note


def check_workbook():
    """In a process of its own: a line for each lesson in WORKBOOK, as soon as it is checked."""
    from tests.exercises import check, workbook

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an end that also ends what it started
    for lesson, exercises in sheet().items():
        if (workbook.WORKBOOK / lesson).is_dir():
            states = {f"{int(lesson)} {name}": f"{verdict.state}: {verdict.note}" if verdict.state == "wrong"
                      else verdict.state for name, verdict in check.check(lesson, exercises).items()}
            try:
                hints = sum(workbook.of(lesson, "hints").values())
            except InputError:  # damaged: it only costs the count
                hints = 0
            print(json.dumps({"states": states, "hints": min(hints, 999)}), flush=True)


def write(file, rows):
    columns = [f"{int(lesson)} {name}" for lesson in sheet() for name in sheet()[lesson]
               if any(f"{int(lesson)} {name}" in row["states"] for row in rows)]
    table = csv.writer(file)
    table.writerow(["name", "done", "of", "hints", "note", *columns])
    for row in rows:
        cells = [row["name"], row["done"], row["of"], row["hints"], row["note"]]
        table.writerow([harmless(cell) for cell in
                        [*cells, *(row["states"].get(column, "not handed in") for column in columns)]])


def harmless(cell):
    """A spreadsheet would compute what begins like a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip().startswith(("=", "+", "-", "@")) else cell


def printable(text):
    return os.fsencode(text).decode("utf-8", "replace").translate(dict.fromkeys(range(32), " "))


if __name__ == "__main__":
    check_workbook()
