"""The tests of f are test_f and test_f_*: they are also lesson 17's exercises.

Files are made, read and damaged by the format's rules, written here. The safetensors package reads too.
"""
import json
import os
import stat
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.numpy import load_file

from lessons import devices, gpt2_folder
from lessons import l17_weights as lesson
from lessons.errors import InputError
from lessons.l05_tokenizer import char_tokenizer, train_bpe
from lessons.l16_gpt import gpt_forward
from lessons.parameters import Config, init_parameters
from lessons.tokenizer_json import save_tokenizer
from tests.close import assert_close, unchanged

ROOT = Path(__file__).parents[1]
TEXT = "to be or not to be, that is the question"


def model(vocab_size=13, seed=0):
    p = init_parameters(Config(vocab_size, block_size=6, n_layer=2, n_head=2, n_embd=8), seed)
    noise = np.random.default_rng(seed).normal(0, 0.1, p.flat.size).astype(np.float32)
    for view in p.views.values():  # biases and norms too: zeros and ones hide a swap
        view += noise[:view.size].reshape(view.shape) * (1 if view.ndim == 2 else 3)
    return p


def file_bytes(tensors, metadata=None, length=None):
    """A safetensors file by its rules. tensors: name -> (dtype, shape, bytes)."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + b"".join(
        data for _, _, data in tensors.values())


def tensors_of(p, dtype="F32"):
    return {name: (dtype, view.shape, view.tobytes()) for name, view in p.views.items()}


def foreign(folder, tensors, **config):
    """A GPT-2 folder as it comes from elsewhere."""
    folder.mkdir(exist_ok=True)
    sizes = {"vocab_size": 13, "n_positions": 6, "n_ctx": 6, "n_layer": 2, "n_head": 2, "n_embd": 8}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes, **config}))
    (folder / "model.safetensors").write_bytes(file_bytes(tensors, {"format": "pt"}))
    return folder


def refused(call, *arguments, says=()):
    """The error is one line, and names what it should."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    for word in [says] if isinstance(says, str) else says:
        assert word in line, f"the message does not say {word!r}: {line}"


def same_views(p, q, rtol=0, atol=0):
    for name, view in p.views.items():
        assert_close(q.views[name], view, name, rtol, atol)


# ---- write_atomically

def new(temporary):
    temporary.write_text("NEW")


def write_old_then(path, write):
    path.write_text("OLD")
    lesson.write_atomically(path, write)


def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_write_atomically(tmp_path):
    paths = []
    write_old_then(tmp_path / "a file", lambda temporary: (paths.append(temporary), new(temporary)))
    assert len(paths) == 1, f"write was called {len(paths)} times, expected 1"
    assert Path(paths[0]) == tmp_path / "a file.tmp", "beside it: no other disk can be renamed from"
    assert files(tmp_path) == {"a file": "NEW"}


def test_write_atomically_where_there_is_no_file_yet(tmp_path):
    lesson.write_atomically(tmp_path / "file", new)
    assert files(tmp_path) == {"file": "NEW"}


def test_write_atomically_leaves_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    seen, replace = [], os.replace
    look = lambda when: seen.append((when, files(tmp_path).get("file")))
    monkeypatch.setattr(lesson.os, "replace", lambda *names: (look("before the rename"), replace(*names)))
    write_old_then(tmp_path / "file", lambda temporary: (new(temporary), look("after write")))
    assert seen == [("after write", "OLD"), ("before the rename", "OLD")], "who opens it then must find OLD"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_write_atomically_keeps_the_old_file_if_writing_fails_halfway(tmp_path, error):
    def write(temporary):
        temporary.write_text("NE")
        raise error

    with pytest.raises(error):
        write_old_then(tmp_path / "file", write)
    assert files(tmp_path) == {"file": "OLD"}


def test_write_atomically_puts_the_bytes_on_the_disk_before_the_name(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def note_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "bytes")
        fsync(descriptor)

    monkeypatch.setattr(lesson.os, "fsync", note_fsync)
    monkeypatch.setattr(lesson.os, "replace", lambda *names: (events.append("name"), replace(*names)))
    write_old_then(tmp_path / "file", new)
    assert events == (["bytes", "name", "folder"] if os.name == "posix" else ["bytes", "name"])


@pytest.mark.skipif(os.name != "posix", reason="POSIX gives the smallest number that is free")
def test_write_atomically_closes_what_it_opens(tmp_path):
    def free():
        os.close(number := os.dup(0))
        return number

    before = free()
    write_old_then(tmp_path / "file", new)
    assert free() == before, "a file or the folder is still open"


def test_write_atomically_names_the_file_where_the_system_does_not(tmp_path):
    """Writing on a full disk fails with no name, opening a file with one."""
    for error, name in (OSError(28, "No space left on device"), str(tmp_path / "file")), (
            OSError(13, "Permission denied", "another"), "another"):
        def write(temporary, error=error):
            raise error

        with pytest.raises(OSError) as caught:
            write_old_then(tmp_path / "file", write)
        assert caught.value.filename == name, f"{caught.value}: the file is {caught.value.filename}"


def test_kill_9_in_mid_write_leaves_the_old_file_and_the_next_write_clears_up(tmp_path):
    path = tmp_path / "file"
    path.write_text("OLD")
    script = ("import sys, time; from lessons.l17_weights import write_atomically\n"
              "def write(temporary):\n"
              "    temporary.write_text('NE')\n"
              "    print('halfway', flush=True)\n"
              "    time.sleep(60)\n"
              "write_atomically(sys.argv[1], write)")
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline().strip() == b"halfway"
        child.kill()
    assert files(tmp_path) == {"file": "OLD", "file.tmp": "NE"}
    lesson.write_atomically(path, new)
    assert files(tmp_path) == {"file": "NEW"}


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk_keeps_the_old_file_and_is_named(tmp_path):
    script = ("import resource, sys; from lessons.l17_weights import write_atomically\n"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"  # as a full disk: write() fails
              "try:\n"
              "    write_atomically(sys.argv[1], lambda temporary: temporary.write_bytes(bytes(5000)))\n"
              "except OSError as error:\n"
              "    print(error)")
    (tmp_path / "file").write_text("OLD")
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(tmp_path / "file") in done.stdout
    assert files(tmp_path) == {"file": "OLD"}


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
def test_write_atomically_gives_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        lesson.write_atomically(tmp_path / "file", new)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege on Windows")
def test_write_atomically_follows_a_link_and_leaves_it(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    lesson.write_atomically(tmp_path / "link", new)
    assert (tmp_path / "link").is_symlink(), "the link itself was replaced"
    assert files(tmp_path / "elsewhere") == {"file": "NEW"}


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege on Windows")
def test_write_atomically_does_not_write_through_a_leftover(tmp_path):
    (tmp_path / "another file").write_text("mine")
    (tmp_path / "file.tmp").symlink_to("another file")
    lesson.write_atomically(tmp_path / "file", new)
    assert files(tmp_path) == {"another file": "mine", "file": "NEW"}


def test_write_atomically_with_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lesson.write_atomically("file", new)
    assert files(tmp_path) == {"file": "NEW"}


def test_write_atomically_refuses_what_is_no_file(tmp_path):
    refused(lesson.write_atomically, tmp_path, new, says=str(tmp_path))
    assert tmp_path.is_dir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(lesson.write_atomically, tmp_path / "pipe", new, says="pipe")


def test_write_atomically_into_no_folder_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        lesson.write_atomically(tmp_path / "no folder" / "file", new)


# ---- the training state

NUMBERS = [np.float32, np.float64, np.int32, np.int64, np.bool_]


ARRAYS = st.sampled_from(NUMBERS).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=3)))
JSON = st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.integers())


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), ARRAYS, max_size=3),
       st.dictionaries(st.text(), JSON, max_size=3))
def test_load_state_returns_what_save_state_was_given(tmp_path, tensors, run):
    lesson.save_state(tmp_path / "state", tensors, run)
    loaded, loaded_run = lesson.load_state(tmp_path / "state")
    assert loaded_run == run and loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes(), "every bit, NaN and -0 too"


def test_save_state_twice_writes_the_same_bytes(tmp_path):
    for name in "first", "second":
        lesson.save_state(tmp_path / name, {"b": np.ones(3), "a": np.ones(2)}, {"x": 1, "y": [2]})
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_loaded_arrays_can_be_trained_on(tmp_path):
    lesson.save_state(tmp_path / "state", {"a": np.ones(3)}, {})
    lesson.load_state(tmp_path / "state")[0]["a"][:] = 2
    assert_close(lesson.load_state(tmp_path / "state")[0]["a"], np.ones(3), "the file's own copy")


def test_load_state_notices_a_changed_bit_in_any_byte(tmp_path):
    path, a = tmp_path / "state", np.arange(3, dtype=np.float32)
    lesson.save_state(path, {"a": a}, {"step": 5, "lr": 0.1})
    data = path.read_bytes()
    for i in range(len(data)):
        changed = bytearray(data)
        changed[i] ^= 1 << i % 8
        path.write_bytes(changed)
        with pytest.raises(InputError):
            lesson.load_state(path)


def test_load_state_refuses_a_file_cut_off_anywhere(tmp_path):
    path = tmp_path / "a state"
    lesson.save_state(path, {"a": np.ones(3)}, {})
    data = path.read_bytes()
    for n in range(len(data)):
        path.write_bytes(data[:n])
        refused(lesson.load_state, path, says=str(path))
    path.write_bytes(data + b"\0")
    refused(lesson.load_state, path, says=str(path))


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES = {"a header of 2^62 bytes": (2**62, {"a": A}, 8), "a header of 90 MB": (90_000_000, {"a": A}, 8),
        "offsets beyond the file": (None, {"a": A | {"shape": [2**40], "data_offsets": [0, 2**42]}}, 8),
        "a shape that overflows": (None, {"a": A | {"shape": [2**40, 2**40]}}, 8),
        "offsets in reverse": (None, {"a": A | {"data_offsets": [8, 0]}}, 8),
        "overlapping": (None, {"a": A, "b": A | {"data_offsets": [4, 12]}}, 12),
        "a hole": (None, {"a": A, "b": A | {"data_offsets": [12, 20]}}, 20),
        "an unknown type": (None, {"a": A | {"dtype": "F33"}}, 8), "no tensors": (None, [1, 2], 8),
        "a type that NumPy lacks": (None, {"__metadata__": {lesson.STATE: "{}"},
                                           "a": A | {"dtype": "F8_E4M3", "shape": [8]}}, 8)}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path, lie):
    length, header, size = LIES[lie]
    header = json.dumps(header).encode()
    path = tmp_path / "state"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(size))
    refused(lesson.load_state, path, says=str(path))


def test_load_state_refuses_other_files_by_name(tmp_path):
    refused(lesson.load_state, tmp_path / "absent", says="absent")
    refused(lesson.load_state, tmp_path, says=str(tmp_path))
    files = {"text": b"to be or not to be", "empty": b"", "pickle": b"\x80\x04\x95" + bytes(50)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        refused(lesson.load_state, tmp_path / name, says=name)
    lesson.save_model(tmp_path / "m", model(), None)
    refused(lesson.load_state, tmp_path / "m" / "model.safetensors", says="not a training state")
    (tmp_path / "foreign").write_bytes(file_bytes({"a": ("F32", (1,), bytes(4))}))
    refused(lesson.load_state, tmp_path / "foreign", says="foreign")
    (tmp_path / "older").write_bytes(file_bytes({}, {"training state 1": '{"crc32": 0, "settings": {}}'}))
    refused(lesson.load_state, tmp_path / "older", says="is not a training state 2")


# ---- a file of tensors

def test_laid_out():
    a = np.float32([[1, 2, 3], [4, 5, 6]])
    arrays = {"transposed": np.asfortranarray(a), "sliced": np.repeat(a, 2, axis=1)[:, ::2], "as it is": a,
              "big end first": a.astype(">f4")}
    got = lesson.laid_out(arrays)
    assert list(got) == sorted(arrays), "the names are to be sorted"
    for name, array in got.items():
        assert array.shape == (2, 3) and array.dtype.str == "<f4", f"{name}: {array.dtype.str} {array.shape}"
        assert array.flags.c_contiguous, f"{name} does not lie row after row: its strides are {array.strides}"
        assert_close(struct.unpack("<6f", array.tobytes()), [1, 2, 3, 4, 5, 6], f"{name}, as it lies", 0, 0)


def test_laid_out_keeps_shapes_types_and_what_it_was_given():
    arrays = {"d": np.array([True, False]), "c": np.float64(3), "b": np.zeros((2, 0), np.int8),
              "a": np.arange(4, dtype=">i8")}
    before = {name: (array.dtype, array.tobytes()) for name, array in arrays.items()}
    numbers = {name: array.tolist() for name, array in arrays.items()}
    got = lesson.laid_out(arrays)
    for name, dtype in {"a": "<i8", "b": "|i1", "c": "<f8", "d": "|b1"}.items():
        assert got[name].dtype.str == dtype, f"{name} became {got[name].dtype.str}"
        assert_close(got[name], np.array(numbers[name]).reshape(arrays[name].shape), name, 0, 0)
    assert list(arrays) == list("dcba"), "the caller's dict has changed"
    after = {name: (array.dtype, array.tobytes()) for name, array in arrays.items()}
    assert before == after, "the caller's arrays have changed"


def test_laid_out_does_not_copy_what_lies_so_already():
    a = np.ones((2, 3), "<f4")
    assert np.shares_memory(lesson.laid_out({"a": a})["a"], a), "a large model would be in memory twice"


MIXED = {"b": np.arange(5, dtype=np.int8), "c": np.float16([[1, 2.5]]), "a": np.arange(6.0).reshape(2, 3).T,
         "d": np.array([True, False]), "é\n": np.float32(3), "e": np.zeros((0, 4), np.int64),
         "f": np.arange(3, dtype=">u2"), "g": np.arange(4.0)[::2]}


def header_and_numbers(path):
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    assert n <= len(data) - 8, f"the first 8 bytes, {data[:8].hex(' ')}, say that the header has {n} bytes"
    return json.loads(data[8:8 + n]), data[8 + n:], n


def test_write_tensors(tmp_path):
    arrays = {"a": np.float32([[1, 2, 3], [4, 5, 6]]), "b": np.array([7, 8]), "c": np.uint8([9])}
    lesson.write_tensors(tmp_path / "file", arrays, {"x": "é"})
    header, numbers, _ = header_and_numbers(tmp_path / "file")
    assert header.pop("__metadata__") == {"x": "é"}
    assert header == {"b": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
                      "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [16, 40]},
                      "c": {"dtype": "U8", "shape": [1], "data_offsets": [40, 41]}}
    assert numbers == struct.pack("<2q6fB", 7, 8, 1, 2, 3, 4, 5, 6, 9), f"the numbers are {numbers.hex(' ')}"


def test_write_tensors_writes_what_the_package_reads(tmp_path):
    with unchanged(**MIXED):
        lesson.write_tensors(tmp_path / "file", MIXED, {"x": "1", "a": "é"})
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == MIXED.keys()
    for name, array in MIXED.items():
        assert loaded[name].dtype == array.dtype.newbyteorder("<")
        assert_close(loaded[name], array, name, 0, 0)
    with safe_open(tmp_path / "file", "numpy") as file:
        assert file.metadata() == {"x": "1", "a": "é"}


def test_write_tensors_puts_every_number_at_a_multiple_of_its_size(tmp_path):
    for length in range(8):
        lesson.write_tensors(tmp_path / "file", MIXED, {"x": "x" * length})
        header, _, n = header_and_numbers(tmp_path / "file")
        assert n % 8 == 0, f"a header of {n} bytes: the numbers begin at no multiple of 8"
        for name, array in MIXED.items():
            start, _ = header[name]["data_offsets"]
            assert start % array.itemsize == 0, f"{name}, {array.dtype}, begins at {start}"


def test_write_tensors_writes_the_same_bytes_whatever_the_order(tmp_path):
    for name, order in ("first", sorted(MIXED)), ("second", sorted(MIXED)[::-1]):
        lesson.write_tensors(tmp_path / name, {name: MIXED[name] for name in order}, {"x": "1", "y": "2"})
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_write_tensors_leaves_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    def fail(*names):
        raise PermissionError(13, "the rename fails")

    (tmp_path / "file").write_text("OLD")
    monkeypatch.setattr(lesson.os, "replace", fail)
    with pytest.raises(PermissionError, match="the rename fails"):
        lesson.write_tensors(tmp_path / "file", {"a": np.ones(3)}, {})
    assert files(tmp_path) == {"file": "OLD"}, "is it written by write_atomically?"


@pytest.mark.parametrize("save", [lambda folder, p: lesson.save_model(folder, p, None),
                                  lambda folder, p: lesson.save_state(folder / "state", {"a": p.flat}, {})])
def test_saving_copies_no_numbers(save, tmp_path):
    p = init_parameters(Config(vocab_size=50_000, n_layer=1, n_head=2, n_embd=32))
    tracemalloc.start()
    save(tmp_path, p)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < p.flat.nbytes / 4, f"{peak:,} bytes for a model of {p.flat.nbytes:,}"


def test_checksum():
    a, b = np.float32([[1, 2, 3]]), np.array([True, False])
    parts = [b'{"x": 1}', b'["a", "<f4", [1, 3]]', struct.pack("<3f", 1, 2, 3), b'["b", "|b1", [2]]', b"\1\0"]
    want = str(zlib.crc32(b"".join(parts)))
    got = lesson.checksum({"b": b, "a": a}, {"x": 1})
    assert got == want, f"got {got!r}, expected {want!r}: of {parts}"
    for same in a.astype(">f4"), np.repeat(a, 2, axis=1)[:, ::2]:
        assert lesson.checksum({"a": same, "b": b}, {"x": 1}) == want, "it depends on how the numbers lie"


def test_checksum_of_anything_else_is_another():
    a, b = np.float32([[1, 2, 3]]), np.array([True, False])
    same, about = {"a": a, "b": b}, {"x": 1}
    others = [(same, about), (same, {"x": 2}), ({"a": a}, about), ({"b": a, "a": b}, about),
              ({"a": a, "c": b}, about), (same | {"a": a.T}, about), (same | {"a": -a}, about),
              (same | {"a": a.view(np.int32)}, about)]
    assert len({lesson.checksum(*other) for other in others}) == 8, "two of the eight have the same checksum"


# ---- the model folder

TOKENIZERS = {"char": char_tokenizer(TEXT), "bpe": train_bpe(TEXT * 5, 260), "none": None}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_load_model_returns_what_save_model_was_given(tmp_path, tokenizer):
    folder = tmp_path / "a new folder" / "in another"
    p = model(vocab_size=260)
    lesson.save_model(folder, p, tokenizer)
    q, loaded = lesson.load_model(folder)
    assert q.config == p.config
    same_views(p, q)
    if tokenizer is None:
        assert loaded is None
    else:
        assert np.array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))


def test_save_model_stores_gpt2_names_and_float32(tmp_path):
    p = init_parameters(Config(13, 6, 2, 2, 8), dtype=np.float64)
    lesson.save_model(tmp_path, p, None)
    data = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
    assert header["__metadata__"]["format"] == "pt", "transformers refuses a file without this"
    assert header["h.1.attn.c_attn.weight"]["shape"] == [8, 24] and header["wpe.weight"]["shape"] == [6, 8]
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F32"}
    assert not any("lm_head" in name for name in header), "the head is wte.weight"


def test_save_model_without_a_tokenizer_removes_another_models(tmp_path):
    lesson.save_model(tmp_path, model(), char_tokenizer("abc"))
    lesson.save_model(tmp_path, model(), None)
    assert lesson.load_model(tmp_path)[1] is None


def test_save_model_writes_the_numbers_last(tmp_path, monkeypatch):
    names, write = [], lesson.write_atomically
    monkeypatch.setattr(lesson, "write_atomically", lambda path, f: (names.append(path.name), write(path, f)))
    lesson.save_model(tmp_path, model(), char_tokenizer("abc"))
    assert sorted(names) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert names[-1] == "model.safetensors", "a crash before it leaves a folder that is no model yet"


def test_save_model_twice_writes_the_same_bytes(tmp_path):
    for name in "first", "second":
        lesson.save_model(tmp_path / name, model(40), char_tokenizer(TEXT))
    for name in "model.safetensors", "config.json", "tokenizer.json":
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_save_model_where_a_file_stands(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        lesson.save_model(tmp_path / "file", model(), None)
    assert (tmp_path / "file").read_text() == "mine"


def test_load_model_with_and_without_the_transformer_prefix(tmp_path):
    p = model()
    same_views(p, lesson.load_model(foreign(tmp_path / "without", tensors_of(p)))[0])
    prefixed = {f"transformer.{name}": tensor for name, tensor in tensors_of(p).items()}
    same_views(p, lesson.load_model(foreign(tmp_path / "with", prefixed))[0])
    tensors = tensors_of(p) | {"transformer.wte.weight": prefixed["transformer.wte.weight"]}
    refused(lesson.load_model, foreign(tmp_path / "both", tensors), says="unexpected transformer.wte.weight")


def test_load_model_accepts_a_head_only_if_it_is_the_token_table(tmp_path):
    p = model()
    tensors = tensors_of(p)
    head = {"lm_head.weight": tensors["wte.weight"]}
    same_views(p, lesson.load_model(foreign(tmp_path, tensors | head))[0])
    prefixed = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    same_views(p, lesson.load_model(foreign(tmp_path, prefixed | head))[0])
    p["wte.weight"][3, 2] += 1
    head = {"lm_head.weight": ("F32", (13, 8), p["wte.weight"].tobytes())}
    refused(lesson.load_model, foreign(tmp_path, tensors | head), says="lm_head.weight")
    head = {"lm_head.weight": ("F32", (12, 8), bytes(12 * 8 * 4))}
    refused(lesson.load_model, foreign(tmp_path, tensors | head), says=["wrong", "lm_head.weight", "12"])


def test_load_model_ignores_gpt2s_stored_masks(tmp_path):
    p = model()
    masks = {"h.0.attn.bias": ("BOOL", (1, 1, 6, 6), bytes(36)),
             "h.1.attn.masked_bias": ("F32", (), bytes(4))}
    same_views(p, lesson.load_model(foreign(tmp_path, tensors_of(p) | masks))[0])


def test_load_model_names_what_is_missing_unexpected_or_wrong(tmp_path):
    tensors = tensors_of(model())
    for name in "h.0.ln_1.weight", "ln_f.bias":
        del tensors[name]
    tensors["extra.weight"] = ("F32", (2,), bytes(8))
    tensors["wpe.weight"] = ("F32", (8, 6), bytes(8 * 6 * 4))
    tensors["h.1.ln_2.bias"] = ("I64", (8,), bytes(64))
    refused(lesson.load_model, foreign(tmp_path, tensors), says=[
        "missing h.0.ln_1.weight, ln_f.bias", "unexpected extra.weight", "wpe.weight: F32 [8, 6] instead",
        "[6, 8]", "h.1.ln_2.bias: I64", str(tmp_path)])
    refused(lesson.load_model, foreign(tmp_path, {}), says="and 25 more")
    refused(lesson.load_model, foreign(tmp_path, tensors_of(model()), n_layer=9_000_000), says="missing h.10")


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_load_model_converts_other_floats_to_float32(tmp_path, dtype):
    p = model()
    for view in p.views.values():
        view[:] = np.round(view * 64) / 64  # few bits: exact in each of the types
    tensors = {}
    for name, view in p.views.items():
        bits = (view.view(np.uint32) >> 16).astype("<u2")  # bfloat16 is float32 without its lower half
        data = {"F64": view.astype("<f8"), "F16": view.astype("<f2"), "BF16": bits}[dtype]
        tensors[name] = (dtype, view.shape, data.tobytes())
    q, _ = lesson.load_model(foreign(tmp_path, tensors))
    assert q.flat.dtype == np.float32
    same_views(p, q)


def test_tensor_by_hand(tmp_path):
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    half = np.array([0x3F80, 0xC020, 0x7F80, 0x0000], "<u2")  # IEEE: 1, -2.5, infinity, 0
    (tmp_path / "file").write_bytes(file_bytes({
        "other": ("F32", (1,), bytes(4)), "a": ("F32", (2, 3), a.tobytes()),
        "half": ("BF16", (4,), half.tobytes())}))
    assert_close(gpt2_folder.tensor_by_hand(tmp_path / "file", "a"), a, "a", 0, 0)
    got = gpt2_folder.tensor_by_hand(tmp_path / "file", "half")
    assert got.dtype == np.float32 and got.tolist() == [1, -2.5, np.inf, 0]


@pytest.mark.filterwarnings("error")  # a warning would be a second line
def test_load_model_refuses_a_number_that_float32_cannot_hold(tmp_path):
    huge = np.full(8, 1e300)
    tensors = tensors_of(model()) | {"ln_f.bias": ("F64", (8,), huge.tobytes())}
    refused(lesson.load_model, foreign(tmp_path, tensors), says="infinity")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_load_model_refuses_numbers_that_are_none(tmp_path, bad):
    p = model()
    p["h.0.ln_1"][1][3] = bad
    refused(lesson.load_model, foreign(tmp_path, tensors_of(p)), says="model.safetensors")


CONFIGS = {"activation_function": "relu", "layer_norm_epsilon": 1e-6, "model_type": "llama",
           "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False,
           "vocab_size": "many", "n_layer": -2, "n_embd": True, "n_positions": 1.5}


@pytest.mark.parametrize("field", CONFIGS)
def test_load_model_refuses_another_formula_or_impossible_sizes(tmp_path, field):
    folder = foreign(tmp_path, tensors_of(model()), **{field: CONFIGS[field]})
    refused(lesson.load_model, folder, says=["config.json", repr(CONFIGS[field])])


@pytest.mark.parametrize("n_head", [0, 3, -2, 10**9])
def test_load_model_refuses_heads_that_do_not_divide_the_channels(tmp_path, n_head):
    refused(lesson.load_model, foreign(tmp_path, tensors_of(model()), n_head=n_head), says=[
        "config.json", f"n_head={n_head}"])


def test_load_model_with_a_narrower_mlp(tmp_path):
    tensors = tensors_of(model())
    tensors["h.0.mlp.c_fc.weight"] = ("F32", (8, 16), bytes(8 * 16 * 4))
    refused(lesson.load_model, foreign(tmp_path, tensors, n_inner=16), says="h.0.mlp.c_fc.weight")
    foreign(tmp_path, tensors_of(model()), n_inner=None)
    lesson.load_model(tmp_path)


@pytest.mark.parametrize("text", [
    b"", b"{", b"[1, 2]", b"17", b"\xff\xfe\xfd", b'{"vocab_size": 13}', b"[" * 100_000, b'{"a":' * 100_000,
    b'{"vocab_size": ' + b"4" * 5000 + b"}"], ids=lambda text: repr(text[:12]))
def test_load_model_with_a_damaged_config(tmp_path, text):
    foreign(tmp_path, tensors_of(model()))
    (tmp_path / "config.json").write_bytes(text)
    refused(lesson.load_model, tmp_path, says=str(tmp_path / "config.json"))


def test_load_model_where_there_is_none(tmp_path):
    refused(lesson.load_model, tmp_path / "absent", says="absent")
    refused(lesson.load_model, tmp_path, says=str(tmp_path))
    foreign(tmp_path, tensors_of(model()))
    refused(lesson.load_model, tmp_path / "config.json", says="config.json")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    refused(lesson.load_model, tmp_path, says="model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    refused(lesson.load_model, tmp_path, says="model.safetensors")


def test_messages_stay_on_one_line_whatever_stands_in_the_file(tmp_path):
    odd = "a\nb\x1b[2J\u2028" * 1000
    for tensors, config in ({odd: ("F32", (1,), bytes(4))}, {}), (tensors_of(model()), {"model_type": odd}):
        with pytest.raises(InputError) as caught:
            lesson.load_model(foreign(tmp_path, tensors, **config))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000 + len(str(tmp_path))


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_load_model_does_not_wait_for_what_is_no_file(tmp_path):
    for name in "config.json", "model.safetensors", "tokenizer.json":
        for make in (os.mkfifo, lambda path: path.symlink_to(path.name),
                     lambda path: path.symlink_to("/dev/zero")):
            lesson.save_model(tmp_path, model(40), char_tokenizer(TEXT))
            (tmp_path / name).unlink()
            make(tmp_path / name)
            refused(lesson.load_model, tmp_path, says=str(tmp_path))
            (tmp_path / name).unlink()


def test_load_model_notices_a_changed_bit_in_any_byte_of_our_files(tmp_path):
    """Or it does not matter: a key of config.json that nobody reads, the name of the checksum."""
    tokenizer = char_tokenizer("to be")
    p = init_parameters(Config(tokenizer.vocab_size, block_size=2, n_layer=1, n_head=2, n_embd=4))
    for name in "model.safetensors", "config.json", "tokenizer.json":
        lesson.save_model(tmp_path, p, tokenizer)
        data, unnoticed = (tmp_path / name).read_bytes(), 0
        for i in range(0, len(data), 13):
            changed = bytearray(data)
            changed[i] ^= 1 << i // 13 % 8
            (tmp_path / name).write_bytes(changed)
            try:
                q, loaded = lesson.load_model(tmp_path)
            except InputError:
                continue
            unnoticed += 1
            same_views(p, q)
            assert q.config == p.config and loaded.tokens == tokenizer.tokens
        assert unnoticed < len(data) / 26, f"{name}: {unnoticed} of {len(data) / 13:.0f} bits went unnoticed"


def test_load_model_refuses_other_sizes_than_ours_were_saved_with(tmp_path):
    lesson.save_model(tmp_path, model(), None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_head": 4}))  # every shape still fits
    refused(lesson.load_model, tmp_path, says=["config.json", "checksum"])
    (tmp_path / "config.json").write_text(json.dumps(config | {"author": "somebody"}))
    same_views(model(), lesson.load_model(tmp_path)[0])


def test_load_model_refuses_another_tokenizer_with_as_many_tokens(tmp_path):
    lesson.save_model(tmp_path, model(40), char_tokenizer(TEXT))
    file = tmp_path / "tokenizer.json"
    save_tokenizer(char_tokenizer(TEXT.replace("q", "z")), file)
    refused(lesson.load_model, tmp_path, says=[str(file), "saved with"])
    save_tokenizer(char_tokenizer(TEXT), file)
    stored = json.loads(file.read_text("utf-8"))
    del stored["model"]["crc32"]
    file.write_text(json.dumps(stored, indent=4), "utf-8")  # the same one, as another program writes it
    assert lesson.load_model(tmp_path)[1].tokens == char_tokenizer(TEXT).tokens
    lesson.save_model(tmp_path, model(40), None)
    save_tokenizer(char_tokenizer(TEXT), file)
    assert lesson.load_model(tmp_path)[1].tokens == char_tokenizer(TEXT).tokens, "saved without: any may come"


def test_load_model_with_another_models_tokenizer(tmp_path):
    lesson.save_model(tmp_path, model(vocab_size=13), char_tokenizer(TEXT))
    assert char_tokenizer(TEXT).vocab_size > 13
    refused(lesson.load_model, tmp_path, says=["tokenizer.json", "13"])
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(lesson.load_model, tmp_path, says="tokenizer.json")


def test_transformers_opens_the_folder_and_computes_the_same_logits(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch and transformers: the bench extra")
    transformers = pytest.importorskip("transformers", reason="needs torch and transformers: the bench extra")
    tokenizer, p = char_tokenizer(TEXT), model(vocab_size=40)
    lesson.save_model(tmp_path / "ours", p, tokenizer)
    tokens = tokenizer.encode(TEXT)[None, :6]
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), f"transformers misses something: {info}"
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert_close(gpt_forward(devices.ops("numpy"), p, tokens)[0], logits, "logits", 1e-4, 1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    same_views(p, lesson.load_model(tmp_path / "theirs")[0])
    split = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert split(TEXT)["input_ids"] == tokenizer.encode(TEXT).tolist()


# ---- the demonstration

def test_crash_shows_what_each_way_of_writing_leaves(tmp_path):
    leaves = {"in place, halfway": {"file": "NE"}, "halfway": {"file": "OLD", "file.tmp": "NE"},
              "before the rename": {"file": "OLD", "file.tmp": "NEW"}, "after it": {"file": "NEW"}}
    for point, left in leaves.items():
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / "file").write_text("OLD")
        script = "import sys; from lessons.l17_weights import crash; crash(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "file"), point], cwd=ROOT, check=False)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == left, point


def test_main_with_a_folder_lists_its_tensors(tmp_path, capsys):
    p = model()
    lesson.main(foreign(tmp_path, tensors_of(p)))
    printed = capsys.readouterr().out
    assert all(name in printed for name in p.views)
    assert f"{sum(view.size for view in p.views.values()):,} parameters" in printed
