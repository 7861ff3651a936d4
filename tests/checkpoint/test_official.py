"""The official release's layout: read, written, and through every door the golden masks."""

import logging

import pytest
import torch
from detectron2.modeling import build_model
from omegaconf import OmegaConf

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer, from_official, to_official
from tests import golden


@pytest.fixture
def cfg(tmp_path):
    clip, weights = golden.write_clip(tmp_path)
    options = ["MODEL.META_ARCHITECTURE", "TCL", "MODEL.DEVICE", "cpu", "MODEL.TCL.FREEZE", 2]
    options += ["MODEL.CLIP.NAME", clip, "MODEL.CLIP.PRETRAINED", weights]
    options += ["TEST.ZERO_SHOT.CROP_SIZE", 48, "TEST.ZERO_SHOT.STRIDE", 24]
    return load_config(None, [*options, "MODEL.PIXEL_MEAN", [0.0] * 3, "MODEL.PIXEL_STD", [1.0] * 3])


def save(path, **rest):
    state = golden.load()["model"]
    torch.save({"model": state, **rest}, path)
    return str(path)


def without_clip() -> dict:
    return {name: value for name, value in golden.load()["model"].items() if not name.startswith("clip_")}


def test_there_and_back_is_bit_identical():
    official = golden.load()["model"]
    ours = from_official(official)
    again = to_official(ours, freeze=2)
    assert again.keys() == official.keys()
    assert all(torch.equal(again[name], value) for name, value in official.items())
    assert from_official(again).keys() == ours.keys()


def test_blocks_that_are_counted_from_0_are_read_too():
    first = {name.replace("resblocks.2.", "resblocks.0."): value for name, value in without_clip().items()}
    assert from_official(first).keys() == from_official(without_clip()).keys()


@pytest.mark.parametrize("content", ["model", "training", "without clip", "bare"])
@torch.no_grad()
def test_golden_masks_through_the_python_interface(cfg, tmp_path, content):
    """As released; a training checkpoint with its configuration; without the frozen CLIP; a state dict alone."""
    path = tmp_path / "tcl.pth"
    if content == "training":
        save(path, optimizer={"state": {}}, step=7, config=OmegaConf.create({"train": {"lr": 1}}))
    elif content == "bare":
        torch.save(golden.load()["model"], path)
    else:
        torch.save({"model": golden.load()["model"] if content == "model" else without_clip()}, path)
    model = build_model(cfg).eval()
    TCLCheckpointer(model).load(str(path))
    figures = golden.load()["inference"]
    model.kp_weight, model.refiner.iterations = 0.3, 10
    masks = model.crop_masks(*model.encode_crops(figures["image"].float()), figures["text_embedding"])
    torch.testing.assert_close(masks, figures["pamr_kp"], rtol=0, atol=1e-5)


def messages(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_every_weight_is_accounted_for(cfg, tmp_path, caplog):
    state = without_clip() | {"masker.extra": torch.zeros(1), "tcli_loss.queue": torch.zeros(1)}
    torch.save({"model": state, "optimizer": {}, "step": 3}, tmp_path / "tcl.pth")
    model = build_model(cfg)
    for name in ("tcl_d2", "detectron2", "fvcore"):
        logging.getLogger(name).propagate = True
    with caplog.at_level(logging.INFO):
        TCLCheckpointer(model).load(str(tmp_path / "tcl.pth"))
    said = messages(caplog)
    assert "not read, for it is no part of the model: optimizer, step" in said
    assert "39 of its 41 weights are used" in said
    assert f"{len(golden.load()['model']) - 39} weights of the frozen CLIP; MODEL.CLIP.PRETRAINED's stay" in said
    assert "Not used: masker.extra (no weight of the model has this name)" in said
    assert "Not used: losses.ImageTCLLoss.queue (a TCL has no such part)" in said


def test_another_clip_is_named(cfg, tmp_path):
    """Both: the file's by its shapes, with open_clip's names, and the configuration's."""
    state = without_clip()
    state["masker.image_encoder.decoder.image_proj.proj"] = torch.zeros(768, 512)
    torch.save({"model": state}, tmp_path / "tcl.pth")
    with pytest.raises(ValueError) as error:
        TCLCheckpointer(build_model(cfg)).load(str(tmp_path / "tcl.pth"))
    said = str(error.value)
    assert "tcl.pth' does not fit" in said and "width 768 and 512 dimensions (such as " in said and "ViT-B-16" in said
    assert "the model has a CLIP of width 128 and 32 dimensions" in said


def test_a_projection_of_another_rank_is_refused(cfg, tmp_path):
    state = without_clip() | {"masker.image_encoder.decoder.image_proj.proj": torch.zeros(768)}
    torch.save({"model": state}, tmp_path / "tcl.pth")
    with pytest.raises(ValueError, match=r"tcl.pth' does not fit.*projection.weight: \(768,\) in the file.*an unknown"):
        TCLCheckpointer(build_model(cfg)).load(str(tmp_path / "tcl.pth"))


def test_another_number_of_blocks_is_refused(cfg, tmp_path):
    cfg.MODEL.TCL.FREEZE = 1  # a model with two copied blocks; the file has one
    torch.save({"model": without_clip()}, tmp_path / "tcl.pth")
    with pytest.raises(ValueError, match="lacks 12 weights, such as grounder.blocks.1.*MODEL.TCL.FREEZE"):
        TCLCheckpointer(build_model(cfg)).load(str(tmp_path / "tcl.pth"))
    both = without_clip()
    both |= {name.replace("resblocks.2.", "resblocks.3."): value for name, value in both.items()}
    torch.save({"model": both}, tmp_path / "two.pth")
    cfg.MODEL.TCL.FREEZE = 2
    with pytest.raises(ValueError, match="has also grounder.blocks.1"):
        TCLCheckpointer(build_model(cfg)).load(str(tmp_path / "two.pth"))


def test_missing_parts_of_the_grounder_are_an_error(cfg, tmp_path):
    """Detectron2 would go on with random ones."""
    state = {name: value for name, value in without_clip().items() if "sim2mask" not in name}
    torch.save({"model": state}, tmp_path / "tcl.pth")
    with pytest.raises(ValueError, match="lacks 2 weights, such as sim2mask.b"):
        TCLCheckpointer(build_model(cfg)).load(str(tmp_path / "tcl.pth"))


def test_dense_clip_takes_the_clip_of_a_tcl_checkpoint(cfg, tmp_path):
    cfg.MODEL.META_ARCHITECTURE = "MaskCLIP"
    model = build_model(cfg)
    with torch.no_grad():
        model.clip.visual.proj.zero_()
    TCLCheckpointer(model).load(save(tmp_path / "tcl.pth"))
    expected = golden.load()["model"]["clip_image_encoder.clip_proj.proj"].float()
    assert torch.equal(model.clip.visual.proj, expected)
