"""Code of the user's: it is imported once, its files find their neighbors, and what is wrong with it is named."""

import sys

import pytest

from tcl_d2.utils.imports import import_code, import_lazily


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory; modules that are imported from it are forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["my_code.py", "my_code"])
def test_code_runs_once(folder, name, capsys):
    (folder / "my_code.py").write_text("print('registered')")
    for _ in range(2):
        import_code(name)
    assert capsys.readouterr().out == "registered\n"


def test_a_file_finds_the_modules_beside_it_and_hides_no_other(folder, capsys):
    """Also a file with the name of a module that is loaded already."""
    (folder / "project").mkdir()
    (folder / "project/beside_it.py").write_text("WORD = 'found'")
    (folder / "project/json.py").write_text("from beside_it import WORD\nprint(WORD)")
    import_code("project/json.py")
    import json

    assert capsys.readouterr().out == "found\n" and json.loads("1") == 1


@pytest.mark.fault("code of the user's (--import) that is missing or broken", "one error names it and the line")
@pytest.mark.parametrize(
    "code, name, parts",
    [
        (None, "my_code.py", ["'my_code.py' (--import or IMPORTS)", "No such file"]),
        (None, "no_such_module", ["'no_such_module'", "No module named 'no_such_module'"]),
        ("x = (", "my_code.py", ["SyntaxError", "my_code.py, line 1"]),
        ("\nimport no_such_module", "my_code.py", ["No module named", "my_code.py, line 2"]),
        ("\n\nx = {}['key']", "my_code", ["KeyError: 'key'", "my_code.py, line 3"]),
        ("from tcl_d2.modeling import *\nMETA_ARCH_REGISTRY", "my_code.py", ["NameError", "my_code.py, line 2"]),
    ],
)
def test_broken_code_is_named(folder, code, name, parts):
    if code is not None:
        (folder / "my_code.py").write_text(code)
    for _ in range(2):  # a second try meets no half of a module
        with pytest.raises(ValueError) as error:
            import_code(name)
        assert all(part in str(error.value) for part in parts), str(error.value)


def test_a_lazy_module_is_loaded_when_it_is_used(folder, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    (folder / "loaded_late.py").write_text("import sys\nsys.loaded = True\nword = 'found'")
    monkeypatch.syspath_prepend(folder)
    import_lazily("loaded_late")
    import loaded_late

    assert not hasattr(sys, "loaded") and loaded_late.word == "found" and sys.loaded
    del sys.loaded
    import_lazily("missing_module")
    with pytest.raises(ModuleNotFoundError):
        import missing_module  # noqa: F401
