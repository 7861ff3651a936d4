"""Lists of class words in text files."""

from pathlib import Path


def read_words(path: str | Path) -> list[str]:
    """Read a file with a word a line, UTF-8 with or without a byte-order mark; blank lines are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, or has no words; names it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8, a class word a line.") from None
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise ValueError(f"{path} names no class: it needs a class word a line.")
    return words
