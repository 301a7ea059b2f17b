"""The file of a model of lessons 3, 4 and 11: what is saved comes back, and what is no such file is named."""
import math
from pathlib import Path

import numpy as np
import pytest

from lessons import model_file
from lessons.errors import InputError
from tests.close import assert_close

PATH = Path("out/hmm.npz")


class Trap:
    """What pickle would run while it reads: a file must not be able to do that."""

    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(text="a text", seconds=12.5, **arrays):
    model_file.save_model(PATH, text, seconds, **arrays)


def test_what_is_saved_comes_back():
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False]), "c": np.ones(3, np.float32)}
    save(**arrays, states=7)
    found, seconds = model_file.load_model(PATH, "a text")
    assert seconds == 12.5 and isinstance(seconds, float)
    assert set(found) == {*arrays, "states"} and found["states"] == 7
    for name, array in arrays.items():
        assert_close(found[name], array, name, 0, 0, dtype=array.dtype)


def test_no_half_written_file_stays_beside_it():
    save(a=np.zeros(3))
    assert [path.name for path in Path("out").iterdir()] == ["hmm.npz"]


def test_an_earlier_model_is_kept(capsys):
    for number in range(3):
        save(a=np.array([number]))
    assert capsys.readouterr().out.splitlines() == ["The earlier model is kept as out/hmm.npz.1.",
                                                    "The earlier model is kept as out/hmm.npz.2."]
    for name, number in ("out/hmm.npz.1", 0), ("out/hmm.npz.2", 1), ("out/hmm.npz", 2):
        assert model_file.load_model(name, "a text")[0]["a"] == [number], name


def test_another_text_is_refused():
    save("one text", a=np.zeros(3))
    with pytest.raises(InputError, match=r"out/hmm\.npz learned from another text: train anew"):
        model_file.load_model(PATH, "one text, and a word more")


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"there is no model out/hmm\.npz: train one"):
        model_file.load_model(PATH, "a text")


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 and no more", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_none_is_named(content):
    PATH.parent.mkdir()
    PATH.write_bytes(content)
    with pytest.raises(InputError, match=r"out/hmm\.npz is damaged or no model"):
        model_file.load_model(PATH, "a text")


@pytest.mark.parametrize("arrays", [{"a": np.zeros(3)}, {"seconds": 1.0}, {"seconds": "long", "sha256": "x"},
                                    {"seconds": np.zeros(3), "sha256": "x"},
                                    {"seconds": math.nan, "sha256": "x"}, {"seconds": -1, "sha256": "x"}])
def test_arrays_of_something_else_are_no_model(arrays):
    PATH.parent.mkdir()
    np.savez(PATH, **arrays)
    with pytest.raises(InputError, match="damaged or no model"):
        model_file.load_model(PATH, "a text")


def test_a_single_array_is_no_model():
    PATH.parent.mkdir()
    with open(PATH, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="damaged or no model"):
        model_file.load_model(PATH, "a text")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_damaged(share):
    save(a=np.random.default_rng(0).normal(size=500))
    whole = PATH.read_bytes()
    PATH.write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(InputError, match="damaged or no model"):
        model_file.load_model(PATH, "a text")


def test_a_changed_byte_is_found():
    save(a=np.random.default_rng(0).normal(size=500))
    whole = PATH.read_bytes()
    at = whole.index(b"NUMPY") + 1000  # in the midst of the numbers
    PATH.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    with pytest.raises(InputError, match="damaged or no model"):
        model_file.load_model(PATH, "a text")


def test_a_file_cannot_run_code():
    PATH.parent.mkdir()
    trap = np.empty(1, object)
    trap[0] = Trap()
    np.savez(PATH, a=trap, seconds=1.0, sha256=model_file.checksum("a text"))
    with pytest.raises(InputError, match="damaged or no model"):
        model_file.load_model(PATH, "a text")
    assert not Path("trapped").exists()


def test_a_folder_that_cannot_be_made_is_named():
    Path("out").write_text("a file in the way")
    with pytest.raises(InputError, match=r"out/hmm\.npz cannot be written"):
        save(a=np.zeros(3))


@pytest.mark.parametrize("make", [
    lambda path: path.write_text("a book"), lambda path: np.savez(path, a=np.zeros(3)), Path.mkdir])
def test_what_is_no_model_is_neither_overwritten_nor_moved(make):
    PATH.parent.mkdir()
    make(PATH)
    with pytest.raises(InputError, match=r"out/hmm\.npz .*name another file"):
        save(a=np.zeros(3))
    assert [path.name for path in Path("out").iterdir()] == ["hmm.npz"]


def test_a_place_is_checked_before_training(capsys):
    model_file.check_place(PATH)
    assert not PATH.exists()
    save(a=np.zeros(3))
    model_file.check_place(PATH)
    assert PATH.exists() and not capsys.readouterr().out


def test_whatever_bit_is_changed_it_is_one_line_or_nothing():
    save(a=np.arange(3.0))
    whole = PATH.read_bytes()
    refused = 0
    for at in range(0, len(whole), 2):
        PATH.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at // 2 % 8)]) + whole[at + 1:])
        try:
            model_file.load_model(PATH, "a text")
        except InputError:
            refused += 1
    assert refused > len(whole) / 5, f"only {refused} of {len(whole) // 2} changes were noticed"


def test_a_place_where_nothing_can_be_made_is_named_before_training(monkeypatch):
    def full(dir):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(model_file.tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match=r"out/hmm\.npz cannot be written: No space left"):
        model_file.check_place(PATH)
