"""The file of CLIP-DINOiser's release: as the weights of a head or of a model, converted, in a folder for the hub."""

import json
import shutil
import sys

import pytest
import torch
from torch import nn

from tcl_d2 import load_config
from tcl_d2.assets import FOLDER
from tcl_d2.checkpoint import TCLCheckpointer, read_checkpoint
from tcl_d2.checkpoint.hub import portable_config
from tcl_d2.commands import convert
from tcl_d2.commands.options.convert import argument_parser
from tcl_d2.modeling import DenseCLIP
from tests.conftest import ROOT

KEY = "MODEL.DENSE_CLIP.DINOISER.WEIGHTS"


@pytest.fixture
def released(tmp_path):
    """A file in the release's layout, for the width of the small world's CLIP."""
    head = nn.ModuleDict({"obj_proj": nn.Conv2d(128, 256, 3), "bkg_decoder": nn.Conv2d(128, 1, 1)})
    torch.save({"epoch": 100, "model_state_dict": head.state_dict()}, tmp_path / "last.pt")
    return tmp_path / "last.pt"


@pytest.fixture
def cfg(tmp_path):
    """A CLIP-DINOiser whose CLIP has GELU, as the release's."""
    clip = json.loads((FOLDER / "shapes_clip/model.json").read_text())
    shutil.copy(FOLDER / "shapes_clip/bpe.txt.gz", tmp_path)
    (tmp_path / "clip.json").write_text(json.dumps({**clip, "quick_gelu": False}))
    options = ["MODEL.CLIP.NAME", tmp_path / "clip.json", "MODEL.DENSE_CLIP.DINOISER.FIND_OBJECTS", True]
    return load_config(ROOT / "configs/shapes/clip_dinoiser.yaml", options)


def head_of(cfg, weights: str = "") -> dict[str, torch.Tensor]:
    model = DenseCLIP(cfg)
    if weights:
        TCLCheckpointer(model).load(weights)
    return model.head.state_dict()


def test_released_file_is_read_by_both_keys(cfg, released, tmp_path):
    expected = torch.load(released, weights_only=True)["model_state_dict"]
    cfg.merge_from_list([KEY, str(released)])
    by_head = head_of(cfg)
    cfg.merge_from_list([KEY, ""])
    by_model = head_of(cfg, str(released))
    assert expected.keys() == by_head.keys() == by_model.keys()
    for name, value in expected.items():
        assert torch.equal(by_head[name], value) and torch.equal(by_model[name], value)

    # A checkpoint of ours as the weights of a head, without objects, too
    TCLCheckpointer(DenseCLIP(cfg), str(tmp_path)).save("ours")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    cfg.merge_from_list([KEY, str(tmp_path / "ours.pth"), "MODEL.DENSE_CLIP.DINOISER.FIND_OBJECTS", False])
    head = head_of(cfg)
    assert head.keys() == {"obj_proj.weight", "obj_proj.bias"}
    assert all(torch.equal(value, ours[f"head.{name}"]) for name, value in head.items())


def test_released_file_is_converted(released, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tcl-d2 convert", *map(str, arguments)])
        convert.main(argument_parser().parse_args())
        return capsys.readouterr().out

    described = run(released)
    assert "CLIP: ViT-B-16, laion2b_s34b_b88k" in described and "parameters: dense head 295,297" in described
    run(released, tmp_path / "ours.safetensors")
    state = read_checkpoint(str(tmp_path / "ours.safetensors"))["model"]
    expected = torch.load(released, weights_only=True)["model_state_dict"]
    assert all(torch.equal(state[f"head.{name}"], value) for name, value in expected.items())


@pytest.mark.fault("CLIP-DINOiser's weights with a CLIP of QuickGELU, or without the second convolution", "named")
def test_unfit_weights_of_a_model_are_named(cfg, released, tmp_path):
    state = torch.load(released, weights_only=True)["model_state_dict"]
    torch.save({f"head.{name}": value for name, value in state.items() if "obj" in name}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match="lacks 2 weights, such as head.bkg_decoder.bias.*DINOISER.FIND_OBJECTS"):
        head_of(cfg, str(tmp_path / "part.pt"))
    cfg.MODEL.CLIP.NAME = "tcl_d2://shapes_clip/model.json"
    with pytest.raises(ValueError, match="was trained with a CLIP that has GELU, but the model's has QuickGELU"):
        head_of(cfg, str(released))


def test_folder_for_the_hub_brings_the_head(cfg):
    cfg.merge_from_list([KEY, "/mine/last.pt", "MODEL.CLIP.NAME", "ViT-B-16", "MODEL.CLIP.PRETRAINED", "openai"])
    portable = portable_config(cfg, {"head.obj_proj.weight": torch.zeros(1)})
    assert portable.MODEL.DENSE_CLIP.DINOISER.WEIGHTS == "" and portable.MODEL.DENSE_CLIP.HEAD == "clip_dinoiser"
