"""The official release's layout: read, written, and through every door the golden masks."""

import json
import logging

import pytest
import torch
from detectron2.modeling import build_model
from omegaconf import OmegaConf
from torch import nn

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer, from_official, read_checkpoint, to_official
from tcl_d2.checkpoint.card import make_card
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


@pytest.mark.fault("weights of a model under DistributedDataParallel or torch.compile", "read: names go without them")
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_wrapped_models_are_read(cfg, tmp_path, prefix, key):
    """Ours and the official release's, under the names that training programs give a state dict."""
    for name, official in (("official", golden.load()["model"]), ("ours", from_official(golden.load()["model"]))):
        state = {prefix + weight: value for weight, value in official.items()}
        torch.save({key: state, "epoch": 3} if key else state, tmp_path / f"{name}.pth")
        model = build_model(cfg)
        TCLCheckpointer(model).load(str(tmp_path / f"{name}.pth"))
        expected = from_official(golden.load()["model"])
        assert torch.equal(model.grounder.projection.weight, expected["grounder.projection.weight"].float())
        assert torch.equal(model.clip.visual.proj, expected["clip.model.visual.proj"].float())


def test_a_compiled_model_reads_and_writes_plain_names(tmp_path):
    """Whatever is around it when it is saved, and when it is loaded."""
    plain, wrapped = nn.Linear(2, 1), nn.DataParallel(torch.compile(nn.Linear(2, 1)))
    TCLCheckpointer(wrapped, str(tmp_path)).save("x")
    assert torch.load(tmp_path / "x.pth", weights_only=True)["model"].keys() == plain.state_dict().keys()
    TCLCheckpointer(plain).load(str(tmp_path / "x.pth"))
    assert torch.equal(plain.weight, wrapped.module.weight)


@pytest.mark.parametrize("layout", ["official", "ours", "older card"])
@pytest.mark.fault("a checkpoint of a CLIP with the other activation", "an error that says which, and the key")
def test_another_activation_is_refused(cfg, tmp_path, layout):
    """Weights do not show it: the official release has OpenAI's CLIP, and ours say it on the card."""
    model = build_model(cfg)
    path = tmp_path / "ours.pth"
    if layout == "official":
        path = save(tmp_path / "tcl.pth")
    elif layout == "ours":
        TCLCheckpointer(model, str(tmp_path), card=make_card(cfg)).save("ours")
        assert read_checkpoint(str(path))["card"]["activation"] == "QuickGELU"
    else:
        card = make_card(load_config(None, ["MODEL.CLIP.NAME", "ViT-B-16", "MODEL.CLIP.PRETRAINED", "openai"]))
        torch.save({"model": model.state_dict(), "card": card}, path)
    TCLCheckpointer(model).load(str(path))

    cfg.MODEL.CLIP.NAME = str(tmp_path / "gelu.json")
    (tmp_path / "gelu.json").write_text(json.dumps({**golden.CLIP_CONFIG, "quick_gelu": False}))
    with pytest.raises(ValueError, match="trained with .*QuickGELU.* has GELU.*MODEL.CLIP.NAME.*-quickgelu"):
        TCLCheckpointer(build_model(cfg)).load(str(path))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_weights_that_do_not_say_their_activation(cfg, tmp_path, caplog, quick_gelu):
    """A state dict alone, with its CLIP: a warning where the model's GELU would be a guess."""
    cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED = str(tmp_path / "clip.json"), ""
    (tmp_path / "clip.json").write_text(json.dumps({**golden.CLIP_CONFIG, "quick_gelu": quick_gelu}))
    torch.save(from_official(golden.load()["model"]), tmp_path / "ours.pth")
    model = build_model(cfg)
    caplog.clear()
    TCLCheckpointer(model).load(str(tmp_path / "ours.pth"))
    assert ("that ends in -quickgelu" in messages(caplog)) == (not quick_gelu)


def messages(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_every_weight_is_accounted_for(cfg, tmp_path, caplog):
    state = without_clip() | {"masker.extra": torch.zeros(1), "tcli_loss.queue": torch.zeros(1)}
    torch.save({"model": state, "optimizer": {}, "step": 3}, tmp_path / "tcl.pth")
    model = build_model(cfg)
    with caplog.at_level(logging.INFO):
        TCLCheckpointer(model).load(str(tmp_path / "tcl.pth"))
    said = messages(caplog)
    assert "not read, for it is no part of the model: optimizer, step" in said
    assert "39 of its 41 weights are used" in said
    assert f"{len(golden.load()['model']) - 39} weights of the frozen CLIP; MODEL.CLIP.PRETRAINED's stay" in said
    assert "Not used: masker.extra " in said and "Not used: losses.ImageTCLLoss.queue " in said


def test_another_clip_is_named(cfg, tmp_path):
    """Both: the file's by its shapes, and the configuration's."""
    state = without_clip()
    state["masker.image_encoder.decoder.image_proj.proj"] = torch.zeros(768, 512)
    torch.save({"model": state}, tmp_path / "tcl.pth")
    with pytest.raises(ValueError) as error:
        TCLCheckpointer(build_model(cfg)).load(str(tmp_path / "tcl.pth"))
    said = str(error.value)
    assert "tcl.pth' does not fit" in said and "width 768 and 512 dimensions" in said
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
