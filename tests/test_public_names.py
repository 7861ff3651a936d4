"""docs/public.md promises names; they are there, and what is there is what packages hand on."""

import importlib
import re

import pytest

from tests.conftest import ROOT

ROWS = re.findall(r"^\| `(tcl_d2[\w.]*)` \| (.*) \|$", (ROOT / "docs/public.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("package, names", ROWS, ids=[package for package, _ in ROWS])
def test_promised_names_are_there(package, names):
    module = importlib.import_module(package)
    names = re.findall(r"`(\w+)`", names)
    assert names and all(hasattr(module, name) for name in names)
    assert set(names) == set(getattr(module, "__all__", names))
