"""Importing the plugin registers it, in any order, and imports no more than is used."""

import importlib.util
import subprocess
import sys

import pytest

from tcl_d2 import registration

REGISTERED = "from detectron2.modeling import META_ARCH_REGISTRY as R; assert {'TCL', 'ReCo'} <= set(dict(R))"
HEAVY = {"detectron2.modeling", "detectron2.engine", "open_clip", "timm", "transformers", "scipy", "matplotlib"}
HAS_DATASETS = "from detectron2.data import DatasetCatalog as D; assert 'zeroshot_voc_val' in D.list()"
REFINE = "import torch; PAMR()(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 4, 4))"


def imported(code: str) -> set[str]:
    """Run code in a new process, and return the names of HEAVY that it has imported."""
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr or code.startswith("import detectron2")  # which warns of torch.jit.script
    return HEAVY & set(done.stdout.split())


def test_everything_is_registered_after_detectron2s_models():
    """The other order is that of all other tests."""
    imported(f"import detectron2.modeling; from tcl_d2.modeling import GroupViT; {REGISTERED}; {HAS_DATASETS}")


def test_no_more_is_imported_than_is_used():
    evaluator = "from tcl_d2.evaluation import ZeroShotSemSegEvaluator"
    config = "from tcl_d2 import load_config; load_config('shapes/tcl.yaml')"
    assert imported(f"from tcl_d2.modeling import PAMR; {REFINE}; {evaluator}; {config}") == set()


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

    with pytest.raises(AttributeError, match="module 'tcl_d2.modeling' has no attribute 'PAMRR'"):
        _ = tcl_d2.modeling.PAMRR
    assert "PAMR" in tcl_d2.modeling.__all__
