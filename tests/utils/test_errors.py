"""The message that ends a command."""

import io
import sys

from tcl_d2.utils.errors import one_message


def test_what_is_printed_needs_no_code_for_its_letters(monkeypatch):
    """Names of files and words are printed after hours of work, on a terminal of any encoding."""
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii"))
    with one_message():
        print("läva \udcff", flush=True)
    assert output.getvalue() == b"l\\xe4va \\udcff\n"
