"""Importing the plugin registers it, in any order, and imports no more than is used."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tcl_d2 import registration

REGISTERED = "from detectron2.modeling import META_ARCH_REGISTRY as R; assert {'TCL', 'ReCo'} <= set(dict(R))"
HEAVY = {"torch", "lvis", "open_clip", "timm", "transformers", "scipy", "matplotlib"}
HEAVY |= {"detectron2.data", "detectron2.modeling", "detectron2.engine"}
HAS_DATASETS = "from detectron2.data import DatasetCatalog as D; assert 'zeroshot_voc_val' in D.list()"
EVALUATOR = "from tcl_d2.evaluation import ZeroShotSemSegEvaluator"
CONFIG = "from tcl_d2 import load_config; load_config('shapes/tcl.yaml')"
REFINE = "import torch; PAMR()(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 4, 4))"
QUIET = "import warnings; warnings.simplefilter('ignore')"  # Detectron2 warns of torch.jit.script
CODES = {
    "what is used": f"from tcl_d2.modeling import PAMR; {REFINE}; {EVALUATOR}; {CONFIG}",
    # The other order is that of all other tests
    "after Detectron2": f"{QUIET}; import detectron2.engine; from tcl_d2.modeling import GroupViT; {REGISTERED}",
    # It imports the part of Detectron2 with which others of this project are registered, before it is whole
    "any first": f"{QUIET}; import tcl_d2.data.shapes",
}
# Each code in a process that has imported torch alone
IN_FORKS = """
import json, os, socket, sys, torch
socket.socket.connect = None
for name, code in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        exec(code)
        print(json.dumps([name, list(sys.modules)]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""


@pytest.fixture(scope="module")
def imported():
    """The names of HEAVY that each of CODES imports, without a network."""
    codes = {name: f"{code}; {HAS_DATASETS}" for name, code in CODES.items()}
    done = subprocess.run([sys.executable, "-c", IN_FORKS, json.dumps(codes)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return {name: HEAVY & set(modules) for name, modules in map(json.loads, lines)}


def test_everything_is_registered_in_any_order(imported):
    assert imported.keys() == CODES.keys() and "lvis" not in imported["after Detectron2"]


def test_no_more_is_imported_than_is_used(imported):
    assert imported["what is used"] == {"torch", "detectron2.data"}


def test_the_version_needs_nothing():
    code = "import sys, tcl_d2; tcl_d2.__version__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split()) and not done.stderr


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
