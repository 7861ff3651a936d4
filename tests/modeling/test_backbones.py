"""Every configuration in configs/backbones: its weights are known to open_clip, and its model segments."""

import open_clip
import pytest
import torch
from detectron2.modeling import build_model

from tcl_d2 import load_config
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs/backbones").glob("*.yaml"))


@pytest.fixture
def quick_weights(monkeypatch):
    """Weights that are not drawn, which takes seconds for a ViT-L."""
    for name in ("kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor.data.fill_(0.01))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_weights_are_known(path):
    clip = load_config(path).MODEL.CLIP
    assert clip.PRETRAINED in open_clip.list_pretrained_tags_by_model(clip.NAME)


@pytest.fixture(scope="module")
def segmented():
    """The configurations whose models have segmented."""
    return []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_model_segments(path, quick_weights, segmented):
    """On a small image; the shared depth is that of all blocks but the last."""
    cfg = load_config(path, ["MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", ""])
    if cfg in segmented:  # which differ in their weights alone
        return
    segmented.append(cfg)
    model = build_model(cfg).eval()
    assert len(model.grounder.blocks) == 1
    model.set_text_embeddings(torch.randn(2, model.clip.embed_dim))
    scores = model([{"image": torch.zeros(3, 64, 50)}])[0]["sem_seg"]
    assert scores.shape == (2, 64, 50) and scores.isfinite().all()
