"""Importing the plugin registers it, in any order, and imports no more than is used."""

import importlib.util
import subprocess
import sys

import pytest

from tcl_d2 import registration

REGISTERED = "from detectron2.modeling import META_ARCH_REGISTRY as R; assert {'TCL', 'ReCo'} <= set(dict(R))"
HEAVY = {"torch", "lvis", "open_clip", "timm", "transformers", "scipy", "matplotlib"}
HEAVY |= {"detectron2.data", "detectron2.modeling", "detectron2.engine"}
HAS_DATASETS = "from detectron2.data import DatasetCatalog as D; assert 'zeroshot_voc_val' in D.list()"
REFINE = "import torch; PAMR()(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 4, 4))"


def imported(code: str) -> set[str]:
    """Run code in a new process without a network, and return the names of HEAVY that it has imported."""
    code = f"import socket, sys; socket.socket.connect = None; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr or "import detectron2" in code  # which warns of torch.jit.script
    return HEAVY & set(done.stdout.split())


def test_everything_is_registered_after_detectron2s_models():
    """The other order is that of all other tests."""
    code = f"import detectron2.engine; from tcl_d2.modeling import GroupViT; {REGISTERED}; {HAS_DATASETS}"
    assert "lvis" not in imported(code)


def test_no_more_is_imported_than_is_used():
    evaluator = "from tcl_d2.evaluation import ZeroShotSemSegEvaluator"
    config = "from tcl_d2 import load_config; load_config('shapes/tcl.yaml')"
    code = f"from tcl_d2.modeling import PAMR; {REFINE}; {evaluator}; {config}"
    assert imported(code) == {"torch", "detectron2.data"}
    assert imported("import tcl_d2; tcl_d2.__version__") == set()


FIRST = """
import os, torch, tcl_d2
for name in {}:
    if os.fork() == 0:
        __import__(name)
        from detectron2.data import DatasetCatalog as D
        os._exit('zeroshot_voc_val' not in D.list())
    assert os.wait()[1] == 0, name
"""


def test_any_module_may_be_imported_first():
    """Though it imports the part of Detectron2 with which others of this project are registered, before it is whole."""
    names = ["tcl_d2.data.shapes"]
    subprocess.run([sys.executable, "-W", "ignore", "-c", FIRST.format(names)], check=True)


def test_a_module_that_was_only_looked_for_is_registered_when_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "imported_later.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    calls = []
    registration._after_import("imported_later", lambda: calls.append("imported_later" in sys.modules))
    assert importlib.util.find_spec("imported_later") and not calls
    importlib.import_module("imported_later")
    assert calls == [True]
    registration._after_import("imported_later", lambda: calls.append("at once"))
    assert calls == [True, "at once"]


def test_other_names_are_refused():
    import tcl_d2.modeling

    with pytest.raises(AttributeError, match="tcl_d2.modeling.*PAMRR"):
        _ = tcl_d2.modeling.PAMRR
    assert "PAMR" in tcl_d2.modeling.__all__
