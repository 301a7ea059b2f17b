"""1,000 damaged files: each is refused in one line or loads to the same bits; none crashes, hangs, eats RAM.

A real run's folder, and a GPT-2 as it comes from elsewhere: other types of numbers and no checksum. There a
changed bit is another number, and what is loaded must be what stands in the file by the format's rules, which
are written here. random.Random(f"{SEED} {file} {n}") alone makes case n of a file; a failure names it.
"""
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lessons import training_job, training_run
from lessons.errors import InputError
from lessons.l17_weights import load_model
from lessons.parameters import Config
from lessons.run_folder import COLUMNS, cut_log, stopped_run
from tests import processes

pytestmark = processes.needs_fork
SEED = 4
CASES = {"run/model.safetensors": 220, "run/config.json": 80, "run/tokenizer.json": 80,
         "run/training.safetensors": 220, "run/log.csv": 100,
         "elsewhere/model.safetensors": 220, "elsewhere/config.json": 80}  # together 1,000
ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "data" / "grimm.txt").read_text("utf-8")[:5000]
CHECKPOINT, STEPS = 4, 6


# ---- the files

def read_by_hand(raw):  # -> header, numbers
    n = struct.unpack("<Q", raw[:8])[0]
    return raw[8:8 + n], raw[8 + n:]


def written_by_hand(header, numbers):
    return struct.pack("<Q", len(header)) + header + numbers


def arrays_by_hand(path):  # -> {name: float32 array}
    header, numbers = read_by_hand(path.read_bytes())
    arrays = {}
    for name, entry in json.loads(header).items():
        if name != "__metadata__":
            part = numbers[slice(*entry["data_offsets"])]
            if entry["dtype"] == "BF16":  # the upper half of a float32
                part = b"".join(b"\0\0" + part[i:i + 2] for i in range(0, len(part), 2))
            array = np.frombuffer(part, {"F64": "<f8", "F16": "<f2"}.get(entry["dtype"], "<f4"))
            arrays[name.removeprefix("transformer.")] = array.astype(np.float32).reshape(entry["shape"])
    return arrays


def from_elsewhere(folder, p):
    """A model as others store it: a prefix, a head, four types of numbers, few words in config.json."""
    folder.mkdir()
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for i, (name, view) in enumerate([*p.views.items(), ("lm_head.weight", p["wte.weight"])]):
        kind = ["F32", "F16", "BF16", "F64"][i % 4] if view.shape != p["wte.weight"].shape else "F32"
        upper_half = (view.view(np.uint32) >> 16).astype("<u2")
        part = {"F32": view, "F16": view.astype("<f2"), "BF16": upper_half, "F64": view.astype("<f8")}[kind]
        header[("" if name == "lm_head.weight" else "transformer.") + name] = {
            "dtype": kind, "shape": view.shape, "data_offsets": [len(numbers), len(numbers) + part.nbytes]}
        numbers += part.tobytes()
    (folder / "model.safetensors").write_bytes(written_by_hand(json.dumps(header).encode(), numbers))
    sizes = dict(zip(("vocab_size", "n_positions", "n_layer", "n_head", "n_embd"), p.config))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_ctx": 16, **sizes}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run that stands at its checkpoint, another one in other letters, and the model from elsewhere."""
    place = tmp_path_factory.mktemp("files")
    sizes = ["--tokenizer", "char", "--layers", "2", "--heads", "2", "--embd", "16", "--block", "16",
             "--batch", "4", "--steps", str(STEPS), "--eval-every", "1", "--save-every", "100"]
    for name, text in ("run", TEXT), ("other", TEXT.replace("e", "ε")):
        (place / f"{name}.txt").write_text(text, "utf-8")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(training_job, "train", processes.stops_after(CHECKPOINT))
            training_run.run([*sizes, "--data", str(place / f"{name}.txt"), "--out", str(place / name)])
    from_elsewhere(place / "elsewhere", load_model(place / "run")[0])
    return place


# ---- what can happen to any file: (rng, bytes) -> bytes

def flip(rng, data, times, first=0, last=None):
    data = bytearray(data)
    for _ in range(times):
        data[rng.choice(range(len(data))[first:last])] ^= 1 << rng.randrange(8)
    return bytes(data)


def piece(rng, data, longest=64):
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.randint(1, longest))


def without_a_piece(rng, data):
    start, stop = piece(rng, data)
    return data[:start] + data[stop:]


def a_piece_twice(rng, data):
    start, stop = piece(rng, data)
    return data[:stop] + data[start:]


def zeros(rng, data):  # a sector that the disk has lost
    start, stop = piece(rng, data, 512)
    return data[:start] + bytes(stop - start) + data[stop:]


def more_bytes(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at:]


def halves_swapped(rng, data):
    at = rng.randrange(1, len(data))
    return data[at:] + data[:at]


OTHER_FILES = [b"", b"\n", b"\0", b"null", b"{}", b"[]", b"to be or not to be", b"\x80\x04\x95" + bytes(50),
               b"PK\3\4" + bytes(26), b"\x89PNG\r\n\x1a\n" + bytes(99), b"\xff\xfe{\0}\0", bytes(4096),
               b"<!DOCTYPE html>\n<html>404</html>\n",
               b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 548105171\n"]
ANY = [
    ("a bit", lambda rng, data: flip(rng, data, 1)),
    ("bits", lambda rng, data: flip(rng, data, rng.randint(2, 20))),
    ("a bit at the start", lambda rng, data: flip(rng, data, 1, 0, 16)),
    ("a bit at the end", lambda rng, data: flip(rng, data, 1, -16)),
    ("cut off", lambda rng, data: data[:rng.randrange(len(data))]),
    ("the start is lost", lambda rng, data: data[rng.randrange(1, len(data)):]),
    ("a piece is lost", without_a_piece),
    ("a piece twice", a_piece_twice),
    ("zeros", zeros),
    ("more bytes", more_bytes),
    ("more at the end", lambda rng, data: data + rng.randbytes(rng.randint(1, 99))),
    ("halves swapped", halves_swapped),
    ("noise", lambda rng, data: rng.randbytes(rng.randint(1, 2000))),
    ("a file of another kind", lambda rng, data: rng.choice(OTHER_FILES)),
    ("other line ends", lambda rng, data: data.replace(b"\n", b"\r\n")),
]


# ---- what can stand in a file's place: (path)

def a_socket(path):
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as unix:
        patch.chdir(path.parent)  # the name of a socket must be short
        unix.bind(path.name)


PLACES = [("nothing", lambda path: None), ("a folder", Path.mkdir), ("a pipe", os.mkfifo),
          ("a socket", a_socket), ("a link to itself", lambda path: path.symlink_to(path.name)),
          ("a link to nothing", lambda path: path.symlink_to("nowhere")),
          ("a link to a device without end", lambda path: path.symlink_to("/dev/zero"))]


# ---- games with JSON: a key or a value anywhere becomes another one, goes, comes, or is there twice

ODD = ["NaN", "Infinity", "-1", "0", "1", "-0", "1.5", "1e400", "4" * 5000, str(2**31), str(2**63),
       "true", "null", '""', '"12"', r'"a\nb\u001b[31m"', r'"\ud800"', r'"\u0000"', '"' + "x" * 10**6 + '"',
       "[]", "{}", "[[]]", "[1, 2]", '{"a": {}}', "", "01", "'a'", "1,", "[" * 10**5 + "]" * 10**5,
       '{"a":' * 10**5 + "1" + "}" * 10**5]
NAMES = ["", "a", "a\nb", "\x1b[2J", "é学", "x" * 10**5, "__metadata__", "__class__"]


def spots(value):  # every (container, key) in it, from the outside
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from spots(value[key])


def json_game(rng, text):
    game, value = rng.choice(["value", "value", "value", "name", "gone", "new", "twice"]), json.loads(text)
    every = [(where, key) for where, key in spots(value) if game == "value" or isinstance(where, dict)]
    where, key = rng.choice(every[:rng.choice([8, None])])  # half of the time near the beginning
    odd = rng.choice([*ODD, json.dumps(where[key])])
    if game == "gone":
        del where[key]
    elif game == "name":
        pairs = [(rng.choice(NAMES) if name == key else name, what) for name, what in where.items()]
        where.clear()
        where.update(pairs)
    else:
        where[{"value": key, "new": rng.choice(NAMES), "twice": "TWICE"}[game]] = "ODD"
    return json.dumps(value).replace('"TWICE"', json.dumps(key)).replace('"ODD"', odd).encode()


# ---- games with the header of a safetensors file, which then fits itself: (rng, header, numbers) -> the same

def two(rng, header, alike=None):  # entries of the header
    names = [name for name in header if name != "__metadata__"]
    while True:
        a, b = (header[name] for name in rng.sample(names, 2))
        if alike is None or a[alike] == b[alike]:
            return a, b


def swapped(rng, header, numbers):
    a, b = two(rng, header, alike="shape")
    for key in "data_offsets", "dtype":
        a[key], b[key] = b[key], a[key]
    return header, numbers


def overlapping(rng, header, numbers):
    a, b = two(rng, header)
    a["data_offsets"] = b["data_offsets"]
    return header, numbers


def another_type(rng, header, numbers):
    entry, _ = two(rng, header)
    size = {"F64": 8, "F32": 4}.get(entry["dtype"], 2)
    entry["dtype"], new = rng.choice([
        ("I8", 1), ("BOOL", 1), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F16", 2), ("BF16", 2), ("I16", 2),
        ("F32", 4), ("I32", 4), ("U32", 4), ("F64", 8), ("I64", 8), ("C64", 8)])
    entry["shape"][-1] = entry["shape"][-1] * size // new
    return header, numbers


def another_name(rng, header, numbers):
    old = rng.choice([name for name in header if name != "__metadata__"])
    return {rng.choice(NAMES) if name == old else name: entry for name, entry in header.items()}, numbers


def many_more(rng, header, numbers):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(numbers), len(numbers)]}
    return header | {f"h.{i}.ln_1.weight": empty for i in range(2, 20_000)}, numbers


def entry(key, change):  # change: (rng, old) -> new
    def game(rng, header, numbers):
        one, _ = two(rng, header)
        one[key] = change(rng, one[key])
        return header, numbers
    return game


def metadata(change):  # change: old -> new
    return lambda rng, header, numbers: (header | {"__metadata__": change(header["__metadata__"])}, numbers)


OVERFLOW = [[2**32, 2**32], [2**63, 2], [2**62, 4], [2**40, 2**40, 0]]
FITTING = [
    ("swapped", swapped), ("overlapping", overlapping), ("another type", another_type),
    ("another name", another_name), ("many more", many_more),
    ("a hole", lambda rng, header, numbers: (header, numbers + bytes(rng.randint(1, 99)))),
    ("offsets in reverse", entry("data_offsets", lambda rng, old: old[::-1])),
    ("another end", entry("data_offsets", lambda rng, old: [
        old[0], old[1] + rng.choice([-4, 4, 2**40, 2**63, -2**63])])),
    ("an axis more", entry("shape", lambda rng, old: rng.choice([[1, *old], [*old, 1]]))),
    ("axes in reverse", entry("shape", lambda rng, old: old[::-1])),
    ("one axis", entry("shape", lambda rng, old: [int(np.prod(old))])),
    ("no axis", entry("shape", lambda rng, old: [])),
    ("a product that overflows", entry("shape", lambda rng, old: rng.choice(OVERFLOW))),
    ("a huge axis", entry("shape", lambda rng, old: [rng.choice([2**31, 2**40, 2**62]), *old[1:]])),
    ("an unknown type", entry("dtype", lambda rng, old: rng.choice(["F33", "f32", "", 32, None]))),
    ("no metadata", metadata(lambda old: {})),
    ("half of the metadata", metadata(lambda old: dict([*old.items()][::2]))),
    ("more metadata", metadata(lambda old: old | {"author": "a\nb" * 1000})),
    ("metadata that is no text", metadata(lambda old: old | {"format": 5})),
]
HEADERS = [b"", b"{}", b"[]", b" ", b"{", b'"a"', b"\xff" * 9]
LENGTHS = [0, 1, 2, 7, 8, 99_999_999, 100_000_001, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def lying_length(rng, data):
    n = struct.unpack("<Q", data[:8])[0]
    lie = rng.choice([*LENGTHS, n - 1, n + 1, n + 8, len(data) - 8, len(data)])
    return struct.pack("<Q", lie) + data[8:]


def cut_at_a_border(rng, data):
    header, _ = read_by_hand(data)
    ends = [one["data_offsets"][1] for name, one in json.loads(header).items() if name != "__metadata__"]
    start = 8 + len(header)
    return data[:rng.choice([0, 1, 7, 8, 9, start - 1, start, start + 1, len(data) - 1,
                             *(start + end for end in sorted(ends)[:-1])])]


def in_header(game):  # game: (rng, header) -> header, both bytes. The length before it is put right
    def damage(rng, data):
        header, numbers = read_by_hand(data)
        return written_by_hand(game(rng, header), numbers)
    return damage


def fitting(game):
    def damage(rng, data):
        header, numbers = read_by_hand(data)
        header, numbers = game(rng, json.loads(header), numbers)
        return written_by_hand(json.dumps(header).encode(), numbers)
    return damage


TENSORS = [
    ("a lying length", lying_length), ("cut at a border", cut_at_a_border),
    ("a bit in the header", in_header(lambda rng, header: flip(rng, header, 1))),
    ("bits in the header", in_header(lambda rng, header: flip(rng, header, rng.randint(2, 9)))),
    ("another header", in_header(lambda rng, header: rng.choice([*HEADERS, b" " + header]))),
    *3 * [("JSON in the header", in_header(json_game))],
    *((f"header: {name}", fitting(game)) for name, game in FITTING)]


# ---- games with the rows of log.csv

def row_game(rng, data):
    lines = data.decode().split("\n")
    i = rng.randrange(len(lines) - 1)
    row = lines[i]
    lines[i] = rng.choice(["", "garbage", ",,,,,,,,", "ü,1,1,1,1,1,1,1,1", row + ",1", row.rpartition(",")[0],
                           row.replace(",", ";"), row.replace("0", "x"), row + "\r", "x" + row, '"' + row,
                           "\ufeff" + row, 5000 * "1" + row, "1e3" + row[1:], "nan" + row[1:],
                           row[:2] + "nan" + row[2:]])
    return "\n".join(lines).encode(rng.choice(["utf-8", "utf-8", "utf-16", "latin1"]), "replace")


def not_utf8(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + b"\xff\xfe" + data[at:]


ROWS = [("half a row at the end", lambda rng, data: data[:-rng.randint(1, 60)]),
        ("zeros at the end", lambda rng, data: data + bytes(rng.randint(1, 99))),
        ("not UTF-8", not_utf8), *8 * [("a row", row_game)]]


# ---- one case

def kinds(file):
    special = {".safetensors": TENSORS, ".csv": ROWS, ".json": 10 * [("JSON", json_game)]}
    return [*ANY, *special[Path(file).suffix], *PLACES, ("another model's", None)]


def damage(place, file, n):  # -> the kind of damage that case n did to a file in place
    rng, path = random.Random(f"{SEED} {file} {n}"), place / file
    kind, change = kinds(file)[n % len(kinds(file))]
    data = path.read_bytes()
    path.unlink()
    if (kind, change) in PLACES:
        change(path)
    else:
        path.write_bytes(change(rng, data) if change else (place / "other" / path.name).read_bytes())
    return kind


def mend(path, data):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def model_bits(folder):
    p, tokenizer = load_model(folder)
    return p.config, {name: view.tobytes() for name, view in p.views.items()}, tokenizer and tokenizer.tokens


def training_bits(folder):
    arrays, settings, progress = stopped_run(folder)
    return {name: array.tobytes() for name, array in arrays.items()}, settings, progress


def model_by_the_rules(folder):
    stored = json.loads((folder / "config.json").read_text())
    arrays = arrays_by_hand(folder / "model.safetensors")
    config = Config(*(stored[name] for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")))
    return config, {name: arrays[name].tobytes() for name in config.shapes()}, None


def check_log(path, damaged, sound):
    """What is left of a log: rows of numbers up to the checkpoint, and all sound ones that were there."""
    header, *rows = path.read_text().splitlines()
    assert header == ",".join(COLUMNS), "it has another first line"
    for row in rows:
        assert np.isfinite([float(value) for value in row.split(",")]).all() and row.count(",") == 8, row
        assert int(row.split(",")[0]) < CHECKPOINT, f"this row comes again: {row}"
    there = {*damaged.decode(errors="replace").split("\n")} & {*sound.decode().split("\n")[1:CHECKPOINT]}
    assert there <= {*rows}, f"rows are lost: {there - {*rows}}"


def meet(place, file, n, sound):  # -> the kind of damage, and what it came to
    kind, path = damage(place, file, n), place / file
    folder, damaged = path.parent, path.read_bytes() if path.is_file() else b""
    try:
        if path.name == "log.csv":
            cut_log(path, CHECKPOINT - 1)
            check_log(path, damaged, sound[file])
            return kind, "went on"
        got = training_bits(folder) if path.name == "training.safetensors" else model_bits(folder)
    except InputError as error:
        line = str(error)
        assert line.isprintable(), f"this is not one clean line: {line[:500]!r}"
        assert str(folder) in line, f"it does not say where: {line[:500]}"
        assert len(line) < 500 + 2 * len(str(path)), f"{len(line)} characters: {line[:500]}"
        assert not damaged or path.read_bytes() == damaged, "it is refused, and changed"
        return kind, "refused"
    if kind == "another model's" and got == sound[f"other/{path.name}"]:
        return kind, "the other's bits"  # a whole file: that it is not this folder's, --resume has to see
    if kind in ("nothing", "a link to nothing") and path.name == "tokenizer.json":
        assert got == (*sound["run"][:2], None)
        return kind, "loaded without"
    if got == sound[folder.name]:
        return kind, "the same bits"
    assert folder.name == "elsewhere", "it loads to other bits"
    assert got == model_by_the_rules(folder), "it loads to other bits than those in the file"
    return kind, "loaded as it stands there"


# ---- all cases

def memory():  # -> bytes that the process has been promised
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def all_cases(place, file, report):
    """For a process of its own: at 200 MB more than now, or 20 seconds for one case, the system ends it."""
    data, results = (place / file).read_bytes(), Counter()
    bits = training_bits if "training" in file else model_bits
    sound = {file: data, "run": bits(place / "run"), f"other/{Path(file).name}": bits(place / "other")}
    if file.startswith("elsewhere"):
        sound["elsewhere"] = model_bits(place / "elsewhere")
    warnings.simplefilter("error")  # each would be one more line
    resource.setrlimit(resource.RLIMIT_AS, (memory() + 200 * 10**6,) * 2)
    for n in range(CASES[file]):
        kind, _ = kinds(file)[n % len(kinds(file))]
        print(f"case {n} of {file}, seed {SEED}: {kind}", file=report, flush=True)
        signal.alarm(20)
        try:
            results[meet(place, file, n, sound)] += 1
        except Exception as error:  # noqa: BLE001 (each is reported)
            print(f"FAILED {type(error).__name__}: {str(error)[:1000]!r}", file=report, flush=True)
        signal.alarm(0)
        mend(place / file, data)
    print(json.dumps([[*key, count] for key, count in results.items()]), file=report, flush=True)


@pytest.mark.parametrize("file", CASES, ids=[f"{n} of {file}, seed {SEED}" for file, n in CASES.items()])
def test_a_damaged_file_is_refused_in_one_line_or_loads_to_the_same_bits(file, place, tmp_path):
    def cases():
        with open(tmp_path / "report", "w") as report:
            all_cases(place, file, report)

    assert sum(CASES.values()) == 1000
    data = (place / file).read_bytes()
    code = processes.wait(processes.fork(call=cases, output=tmp_path / "child"), 120)
    mend(place / file, data)
    *lines, last = (tmp_path / "report").read_text().splitlines()
    assert code == 0, f"{last} ended the process (exit code {code})\n{(tmp_path / 'child.err').read_text()}"
    failed = [f"{lines[i - 1]}\n    {line}" for i, line in enumerate(lines) if line.startswith("FAILED")]
    assert not failed, "\n".join([f"{len(failed)} of {CASES[file]} cases:", *failed[:20]])
    counts = Counter()
    for _, what, count in json.loads(last):
        counts[what] += count
    print(f"{file}: {dict(counts)}")
    assert counts.total() == CASES[file]


def command(place, file):  # -> the options that make the command line read a file
    if file in ("run/training.safetensors", "run/log.csv"):
        return ["training", "--resume", "--out", place / "run"]
    return ["generation", "--tokens", 3, "--model", place / Path(file).parent]


@pytest.mark.parametrize("file", CASES)
def test_the_command_line_survives_damaged_files_too(file, place, tmp_path):
    """Some of the cases as a process: one line and exit code 2, or it ends well."""
    data = (place / file).read_bytes()
    for n in random.Random(f"{SEED} {file}").sample(range(CASES[file]), 4):
        before = {path: path.read_bytes() for path in (place / "run").iterdir()}
        case = f"case {n} of {file}, seed {SEED}: {damage(place, file, n)}"
        code, errors = processes.lessons(*command(place, file), output=tmp_path / "child")
        mend(place / file, data)
        for path, sound in before.items():  # where training went on
            path.write_bytes(sound)
        assert code in (0, 2), f"{case}: exit code {code}, {errors}"
        assert code == 0 or errors.count("\n") == 1, f"{case}: not one line: {errors}"
        assert "Traceback" not in errors, f"{case}: {errors}"


@pytest.mark.parametrize("file", ["run/model.safetensors", "run/training.safetensors", "run/log.csv"])
def test_a_new_interpreter_answers_with_one_line_too(file, place):
    data = (place / file).read_bytes()
    (place / file).write_bytes(data.replace(b"e", b"\n"))
    done = subprocess.run([sys.executable, "-m", "lessons", *map(str, command(place, file))], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    (place / file).write_bytes(data)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and file in done.stderr, done.stderr
