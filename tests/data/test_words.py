"""Files of class words, as editors on any system write them."""

import pytest

from tcl_d2.data.words import read_words


@pytest.mark.fault("a byte-order mark or Windows line ends in a file of words", "no part of a word")
@pytest.mark.parametrize(
    "content", ["background\n\n straße \n", "\ufeffbackground\r\nstraße\r\n", "background\rstraße"]
)
def test_words_are_read_as_any_editor_saves_them(tmp_path, content):
    path = tmp_path / "words.txt"
    path.write_bytes(content.encode())
    assert read_words(path) == ["background", "straße"]


@pytest.mark.fault("a file of words that is Latin-1, UTF-16 or empty", "one error that names the file")
@pytest.mark.parametrize(
    "content, message",
    [
        ("straße\n".encode("latin-1"), "words.txt is not UTF-8"),
        ("cat\n".encode("utf-16"), "words.txt is not UTF-8"),
        (b"", "words.txt names no class"),
        (b"\xef\xbb\xbf \n\n", "words.txt names no class"),
    ],
)
def test_files_without_words_are_refused(tmp_path, content, message):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_words(tmp_path / "words.txt")
