"""Importing the plugin registers it, in any order, and imports no more than is used."""

import subprocess
import sys

import pytest

REGISTERED = "from detectron2.modeling import META_ARCH_REGISTRY as R; assert {'TCL', 'ReCo'} <= set(dict(R))"
HEAVY = {"detectron2.modeling", "detectron2.engine", "open_clip", "timm", "transformers", "scipy", "matplotlib"}
REFINE = "import torch; PAMR()(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 4, 4))"


def imported(code: str) -> set[str]:
    """Run code in a new process, and return the names of HEAVY that it has imported."""
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr or code.startswith("import detectron2")  # which warns of torch.jit.script
    return HEAVY & set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        f"import tcl_d2; {REGISTERED}",
        f"import detectron2.modeling; import tcl_d2; {REGISTERED}",
        f"from tcl_d2.modeling import GroupViT; {REGISTERED}",
        "import tcl_d2; from detectron2.data import DatasetCatalog as D; assert 'zeroshot_voc_val' in D.list()",
    ],
)
def test_everything_is_registered(code):
    imported(code)


@pytest.mark.parametrize(
    "code, expected",
    [
        ("import tcl_d2", set()),
        (
            f"from tcl_d2.modeling import PAMR; {REFINE}",
            set(),
        ),
        ("from tcl_d2.evaluation import ZeroShotSemSegEvaluator", set()),
        ("from tcl_d2 import load_config; load_config('shapes/tcl.yaml')", set()),
        ("from tcl_d2.modeling import FrozenCLIP", {"open_clip", "timm", "transformers"}),
    ],
)
def test_no_more_is_imported_than_is_used(code, expected):
    assert imported(code) == expected


def test_other_names_are_refused():
    import tcl_d2.modeling

    with pytest.raises(AttributeError, match="module 'tcl_d2.modeling' has no attribute 'PAMRR'"):
        _ = tcl_d2.modeling.PAMRR
    assert "PAMR" in tcl_d2.modeling.__all__
