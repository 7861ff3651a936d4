"""Files that hold no model, bad numbers or a damaged card: one error that names the file."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tcl_d2.checkpoint import TCLCheckpointer, read_checkpoint
from tcl_d2.checkpoint.card import carried_config
from tcl_d2.modeling.encoders.clip_loading import read_clip_weights
from tcl_d2.modeling.groupvit.loading import load_official

TENSOR = torch.zeros(1)


@pytest.mark.fault("a checkpoint that holds no model, or no card where it should be", "an error that names the file")
@pytest.mark.parametrize(
    "content, message",
    [
        ({0: TENSOR, 1: TENSOR}, "holds no model"),
        ({"model": {0: TENSOR}}, "holds no model"),
        ({"model": {"a": TENSOR, "b": 3}}, "holds no model"),
        ({"model": {}}, "holds no model"),
        ({"model": 3}, "holds no model"),
        ([TENSOR], "holds no model"),
        (TENSOR, "holds no model"),
        ({"model": {"a": TENSOR}, "card": "text"}, "has a damaged card"),
        ({"model": {"a": TENSOR}, "card": {"configuration": 3}}, "has a damaged card"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=f"odd.pth' {message}"):
        read_checkpoint(str(tmp_path / "odd.pth"))


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_names_inside_a_checkpoint_are_shown(tmp_path, key):
    """What is around them says nothing of the model."""
    torch.save({"epoch": 3, "name": "run", key: {"module.backbone.a": TENSOR}}, tmp_path / "odd.pth")
    for read in (TCLCheckpointer(nn.Linear(2, 1)).load, read_clip_weights, partial(load_official, nn.Linear(2, 1))):
        with pytest.raises(ValueError, match=r"odd.pth'.*\['backbone.a'\]"):
            read(str(tmp_path / "odd.pth"))
    torch.save({key: {"module.a": TENSOR, "a": TENSOR}}, tmp_path / "twice.pth")
    with pytest.raises(ValueError, match="twice.pth' has two weights with one name"):
        read_checkpoint(str(tmp_path / "twice.pth"))


@pytest.mark.parametrize("text", ["[1]", "3", '{"model": 3}', "{cut"])
def test_cards_that_are_no_object(tmp_path, text):
    save_file({"a": TENSOR}, tmp_path / "odd.safetensors", {"card": text})
    with pytest.raises(ValueError, match="odd.safetensors' has a damaged card"):
        read_checkpoint(str(tmp_path / "odd.safetensors"))


@pytest.mark.parametrize("text", ["MODEL: [1", "- MODEL", "3"])
def test_configurations_that_are_no_yaml_of_keys(tmp_path, text):
    save_file({"a": TENSOR}, tmp_path / "odd.safetensors", {"card": json.dumps({"configuration": text})})
    with pytest.raises(ValueError, match="odd.safetensors' has a damaged card"):
        carried_config(read_checkpoint(str(tmp_path / "odd.safetensors")), str(tmp_path / "odd.safetensors"))


@pytest.mark.fault("weights of NaN or Inf are loaded", "an error that names the file and the first such weight")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_nan_or_inf_are_refused(tmp_path, value):
    state = {"weight": torch.zeros(1, 2), "bias": torch.tensor([value])}
    torch.save({"model": state}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS: .*bad.pth' is of no use: 1 of its 2 weights .* such as bias"):
        TCLCheckpointer(nn.Linear(2, 1)).load(str(tmp_path / "bad.pth"))
