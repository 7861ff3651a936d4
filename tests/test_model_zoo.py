"""Configs by name: from any folder, with their models, and the nearest names of one that is not there."""

import shutil

import pytest
import torch
from torch import nn

from tcl_d2 import assets, load_config, model_zoo
from tcl_d2.assets import list_configs
from tcl_d2.utils.tensors import read_tensors
from tests.conftest import ROOT

TRAINED = "tcl_d2://shapes_tcl/weights.safetensors"


YAML_CONFIGS = [name for name in list_configs() if name.endswith(".yaml")]
LAZY = """
from detectron2.config import LazyCall as L
from torch import nn

model = L(nn.Linear)(in_features=3, out_features=2)
train = {"init_checkpoint": "", "device": "cpu"}
"""


@pytest.mark.parametrize("name", YAML_CONFIGS)
def test_every_config_is_read_by_its_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == model_zoo.get_config(name)
    assert (ROOT / "configs" / name).samefile(model_zoo.get_config_file(name))


def test_all_configs_of_the_project_have_names():
    assert len(YAML_CONFIGS) == len(list((ROOT / "configs").rglob("*.yaml"))) > 20


def test_a_file_goes_before_a_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tcl.yaml").write_text("SOLVER: {MAX_ITER: 7}")
    assert load_config("tcl.yaml").SOLVER.MAX_ITER == 7
    assert model_zoo.get_config("tcl.yaml").SOLVER.MAX_ITER == 50_000


@pytest.mark.fault("the name of a config that does not exist", "one error lists the nearest names")
@pytest.mark.parametrize(
    "name, nearest",
    [
        ("shapes/traind.yaml", "names: shapes/trained.yaml"),
        ("configs/shapes/tcl.yaml", "shapes/tcl.yaml"),
        ("eval/oficial", "names: eval/official.yaml"),
        ("qqq", "; names: ablations/cc3m.yaml, .*, tcl.yaml"),
    ],
)
def test_nearest_names_are_said(name, nearest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for function in (load_config, model_zoo.get_config_file, model_zoo.get_config, model_zoo.get):
        with pytest.raises(FileNotFoundError, match=f"no config '{name}'.*{nearest}"):
            function(name)


def test_models_are_built_by_name():
    """In training mode, as Detectron2's; `trained` brings the weights that were trained with the config."""
    weights = read_tensors(ROOT / "tcl_d2/assets/shapes_tcl/weights.safetensors")
    trained = model_zoo.get("shapes/tcl.yaml", trained=True, device="cpu")
    untrained = model_zoo.get("shapes/tcl.yaml").state_dict()
    assert trained.training and trained.device.type == "cpu" and len(weights) > 20
    assert all(torch.equal(trained.state_dict()[name], value.float()) for name, value in weights.items())
    assert not all(torch.equal(untrained[name], value.float()) for name, value in weights.items())


def test_trained_weights_are_those_of_a_config():
    assert model_zoo.get_config("shapes/tcl.yaml").MODEL.WEIGHTS == ""
    assert model_zoo.get_config("shapes/tcl.yaml", trained=True).MODEL.WEIGHTS == TRAINED
    assert model_zoo.get_checkpoint_url("tcl.yaml") == load_config("eval/official.yaml").MODEL.WEIGHTS != ""
    with pytest.raises(ValueError, match="no trained weights for 'shapes/maskclip.yaml', only for .*shapes/tcl.yaml"):
        model_zoo.get("shapes/maskclip.yaml", trained=True)


def test_lazy_configs_are_read_and_built(tmp_path, monkeypatch):
    """As by Detectron2's model zoo: a file that ends in .py, with its weights in train.init_checkpoint."""
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes/tcl.py").write_text(LAZY)
    shutil.copytree(ROOT / "configs", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py"))
    monkeypatch.setattr(assets, "_CONFIGS", tmp_path)
    assert "shapes/tcl.py" in assets.list_configs()

    model = nn.Linear(3, 2)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    monkeypatch.setattr(model_zoo, "get_checkpoint_url", lambda config_path: str(tmp_path / "weights.pth"))
    assert model_zoo.get_config("shapes/tcl.py", trained=True).train.init_checkpoint == f"{tmp_path}/weights.pth"
    built = [model_zoo.get("shapes/tcl.py", trained) for trained in (True, False)]
    assert [torch.equal(other.weight, model.weight) for other in built] == [True, False]
