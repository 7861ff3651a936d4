#!/usr/bin/env python
"""Print the tutorial as a notebook, made from docs/tutorial.py.

python dev/notebook.py > docs/tutorial.ipynb
"""

import argparse
import ast
import json
import re
from pathlib import Path

TUTORIAL = Path(__file__).resolve().parent.parent / "docs/tutorial.py"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def split(source: str) -> list[tuple[str, str]]:
    """Split the tutorial at its numbered comments into parts: text, and code."""
    text = ast.get_docstring(ast.parse(source))
    _, _, code = source.split('"""', 2)
    parts = re.split(r"^# (\d+\. .+)\n", code, flags=re.MULTILINE)
    return [(text, parts[0].strip()), *((title, part.strip()) for title, part in zip(parts[1::2], parts[2::2]))]


def cell(number: int, cell_type: str, source: str) -> dict:
    """Return a cell of nbformat 4.5."""
    code = {"execution_count": None, "outputs": []} if cell_type == "code" else {}
    lines = source.splitlines(keepends=True)
    return {"cell_type": cell_type, "id": f"{cell_type}-{number}", "metadata": {}, "source": lines, **code}


def notebook() -> str:
    """Return the notebook, in JSON."""
    cells = []
    for number, (text, code) in enumerate(split(TUTORIAL.read_text())):
        cells += [cell(number, "markdown", text), cell(number, "code", code)]
    return json.dumps({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(notebook(), end="")
