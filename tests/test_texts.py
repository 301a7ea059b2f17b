"""Texts by name and by file: what is read, and the one line that says what is wrong."""
import pytest

from lessons.errors import InputError
from lessons.texts import DATA, names, numbered, read_text, split


@pytest.mark.parametrize("name", ["shakespeare", "grimm", "lunyu", "tang"])
def test_a_text_of_the_course_is_its_file_to_the_byte(name):
    assert name in names()
    assert read_text(name).encode() == (DATA / f"{name}.txt").read_bytes()


@pytest.mark.parametrize("raw, text", [
    ("né 论语\n".encode(), "né 论语\n"),
    (b"\xef\xbb\xbfto be\r\nor not\r\n", "to be\nor not\n"),  # as Notepad saves it
    (b"\r\r\n", "\r\n"),
])
def test_a_file_is_read_without_what_windows_adds(raw, text, tmp_path):
    (tmp_path / "text.txt").write_bytes(raw)
    assert read_text(str(tmp_path / "text.txt")) == text


@pytest.mark.parametrize("raw, line", [
    (b"", "is empty"),
    (b"\xef\xbb\xbf", "is empty"),
    (b"\xef\xbb\xbfab\xff", "is not UTF-8: the byte at offset 5 is 0xff"),
    ("论语".encode("utf-16"), "is UTF-16.*iconv -f utf-16"),
    ("学而时习之".encode("gb18030"), "is not UTF-8: the byte at offset 2 is 0xb6.*iconv -f gb18030"),
    (b"ELF\0\1", "is not text: the byte at offset 3 is 0"),
])
def test_what_is_no_text_is_refused_in_one_line(raw, line, tmp_path):
    (tmp_path / "text.txt").write_bytes(raw)
    with pytest.raises(InputError, match=line) as error:
        read_text(str(tmp_path / "text.txt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, line", [("", "'' is a folder"), ("no file", "'no file'.*shakespeare")])
def test_a_name_without_a_file_is_refused_in_one_line(name, line):
    with pytest.raises(InputError, match=line):
        read_text(name)


def test_the_last_tenth_is_for_validation():
    assert split("abcdefghijklmnopqrst") == ("abcdefghijklmnopqr", "st")
    assert split("abcdefghijklmnopqrs") == ("abcdefghijklmnopq", "rs")  # the cut at 17.1 is rounded down


def test_characters_are_numbered_in_the_order_of_unicode_and_can_be_read_back():
    codes, alphabet = numbered("论语 ab 语")
    assert alphabet == " ab论语" and codes.dtype == "int64"
    assert "".join(alphabet[code] for code in codes) == "论语 ab 语"
