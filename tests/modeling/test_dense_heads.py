"""Dense heads in a model: by name, as TCL's partner; mistakes that figures must see."""

import pytest
import torch
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.config import merge_options
from tcl_d2.modeling import DENSE_HEAD_REGISTRY, TCL, DenseCLIP, MaskCLIP, build_dense_head
from tcl_d2.modeling.dense_clip import ClearCLIPHead, CLIPHead, MaskCLIPHead, NACLIPHead, SCLIPHead
from tcl_d2.modeling.encoders.clip import run_block
from tcl_d2.modeling.encoders.positions import PositionRule
from tests import golden
from tests.conftest import ROOT
from tests.golden import dense_clip as dense_golden
from tests.modeling.test_dense_clip import compute_features

NAMES = sorted(name for name, _ in DENSE_HEAD_REGISTRY)
VISION = "test_vit"  # of timm: 3 blocks, 64 channels, patches of 16 pixels


@pytest.fixture
def cfg(tmp_path):
    cfg = load_config(ROOT / "configs/shapes/maskclip.yaml", ["OUTPUT_DIR", tmp_path])
    cfg.MODEL.META_ARCHITECTURE = "DenseCLIP"
    cfg.MODEL.DENSE_CLIP.PROXY.NAME = VISION
    cfg.MODEL.DENSE_CLIP.PROXY.PRETRAINED = cfg.MODEL.DENSE_CLIP.DINOISER.WEIGHTS = ""
    return cfg


@pytest.mark.parametrize("name", NAMES)
def test_a_head_is_chosen_by_name(cfg, name):
    cfg.MODEL.DENSE_CLIP.HEAD = name
    model = DenseCLIP(cfg).eval()
    (output,) = model([{"image": torch.randint(256, (3, 60, 75)), "vocabulary": ["brick", "wood"]}])
    assert output["sem_seg"].shape == (2, 60, 75) and output["sem_seg"].isfinite().all()
    assert output["sem_seg"].std() > 0


def test_maskclip_is_dense_clip_with_its_head(cfg):
    image = {"image": torch.randint(256, (3, 60, 75)), "vocabulary": ["brick", "wood"]}
    cfg.MODEL.DENSE_CLIP.HEAD = "maskclip"
    expected = DenseCLIP(cfg).eval()([image])[0]["sem_seg"]
    cfg.MODEL.DENSE_CLIP.HEAD = "sclip"  # not read
    assert torch.equal(MaskCLIP(cfg).eval()([image])[0]["sem_seg"], expected)


@pytest.mark.fault("a dense head that does not exist", "the heads are listed")
def test_an_unknown_head_is_named(cfg):
    with pytest.raises(ValueError, match=f"'sclipp', but .*{', '.join(NAMES)}"):
        build_dense_head("sclipp", cfg)


def test_a_head_of_ones_own(cfg, monkeypatch):
    monkeypatch.setattr(DENSE_HEAD_REGISTRY, "_obj_map", dict(DENSE_HEAD_REGISTRY))  # for this test alone

    @DENSE_HEAD_REGISTRY.register()
    def head_of_a_test(cfg):
        return NACLIPHead(2.0)

    assert build_dense_head("head_of_a_test", cfg).sigma == 2.0


@pytest.mark.parametrize("scores", ["logit", ""])
def test_unknown_scores_are_named(cfg, scores):
    cfg.MODEL.DENSE_CLIP.SCORES = scores
    with pytest.raises(ValueError, match="MODEL.DENSE_CLIP.SCORES.*mask, cosine, probability"):
        DenseCLIP(cfg)


@pytest.mark.fault("key smoothing of features that are not on CLIP's grid, or a threshold below 0", "named at once")
@pytest.mark.parametrize(
    "head, key, value, message",
    [
        ("proxyclip", "KEY_SMOOTHING", 1.0, "ProxyCLIPHead has a grid of its own"),
        ("sclip", "KEY_SMOOTHING", -1.0, "is -1.0; expected"),
        ("sclip", "PROMPT_DENOISING", -0.5, "is -0.5; expected"),
    ],
)
def test_unfit_refinements_are_named(cfg, head, key, value, message):
    cfg.MODEL.DENSE_CLIP.HEAD = head
    cfg.MODEL.DENSE_CLIP[key] = value
    with pytest.raises(ValueError, match=f"MODEL.DENSE_CLIP.{key} (.* )?{message}"):
        DenseCLIP(cfg)


# ------------------------------------------------------------------------------------ TCL's partner


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_tcl_with_the_masks_of_a_head(cfg, name):
    """TCL's masks are the mixture of its own and of the head's, from the tokens that both share."""
    figures = golden.load()["inference"]
    crops, text = figures["image"].float(), figures["text_embedding"]
    alone = golden.build_model()
    mixed = golden.build_model(kp_weight=0.25, kp_head=build_dense_head(name, cfg))

    features, place = mixed.encode_crops(crops)
    tcl_masks = alone.predict_masks(alone.encode_crops(crops)[0], text, slice(None))
    head_masks = mixed.dense_clip_masks(features.clip_features, text)
    head_masks = F.interpolate(head_masks, size=tcl_masks.shape[-2:], mode="bilinear", align_corners=False)
    masks = mixed.predict_masks(features, text, slice(None))
    torch.testing.assert_close(masks, 0.25 * head_masks + 0.75 * tcl_masks)
    assert (head_masks - tcl_masks).abs().max() > 0.01


# ------------------------------------------------------------------------------------ labels without scores


@pytest.mark.parametrize("size", [(1, 1), (7, 150), (200, 5)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_labels_alone_are_those_of_the_scores(cfg, name, size):
    """With classes and a background of several words, negative words, a softmax, and images of odd sizes."""
    options = ["MODEL.DENSE_CLIP.HEAD", name, "MODEL.DENSE_CLIP.SCORES", "cosine", "TEST.ZERO_SHOT.LOGIT_SCALE", 40.0]
    merge_options(cfg, options)
    model = DenseCLIP(cfg).eval()
    image = torch.randint(256, (3, *size))
    for background in (False, True, ["sky", "wall", "grass"]):
        classes = {
            "vocabulary": [["brick", "red brick"], "lava", ["grass", "meadow"]],
            "background": background,
            "negative": ["wood"],
        }
        scores, labels = model([{"image": image, **classes}, {"image": image, **classes, "labels_only": True}])
        assert scores["sem_seg"].isfinite().all() and labels["sem_seg_labels"].shape == size
        assert torch.equal(labels["sem_seg_labels"], scores["sem_seg"].argmax(0))


# ------------------------------------------------------------------------------------ mistakes


class MeanOfBoth(SCLIPHead):
    def attend(self, query, key, value, grid):
        return super().attend(query, key, value, grid) / 2


class PatchesAlone(ClearCLIPHead):
    def attend(self, query, key, value, grid):
        attended = F.scaled_dot_product_attention(query, query[:, :, 1:], value[:, :, 1:])
        return attended


class ScaledNeighborhood(NACLIPHead):
    def neighborhood(self, grid, device=None):
        return super().neighborhood(grid, device) / 8


class WithoutOffset(ClearCLIPHead):
    position = PositionRule(keeps_equal_count=True)


class AlwaysResized(MaskCLIPHead):
    position = PositionRule()


@torch.no_grad()
@pytest.mark.parametrize(
    "mistake, method, name",
    [
        (MeanOfBoth, "sclip", "square"),
        (PatchesAlone, "clearclip", "square"),
        (ScaledNeighborhood, "naclip", "square"),
        (WithoutOffset, "clearclip", "wide"),
        (AlwaysResized, "maskclip_quick_gelu", "same_count"),
    ],
)
def test_figures_see_plausible_mistakes(mistake, method, name):
    """Each moves the cosines by a thousand times the tolerance of the figures."""
    features = compute_features(mistake(), dense_golden.image(name))
    cosines = torch.einsum("bdhw,kd->bkhw", F.normalize(features, dim=1), dense_golden.load()["text"])
    assert (cosines - dense_golden.load()[method][name]["logits"]).abs().max() > 5e-3


class TwoBlocks(CLIPHead):
    """CLIP's own, of which it computes the last two blocks itself."""

    num_blocks = 2

    def forward(self, clip, tokens, images):
        return super().forward(clip, run_block(clip.blocks[-2], tokens), images)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@torch.no_grad()
def test_a_head_may_compute_several_blocks(cfg, smoothing, monkeypatch):
    monkeypatch.setitem(DENSE_HEAD_REGISTRY._obj_map, "two_blocks", lambda cfg: TwoBlocks())
    image = {"image": torch.randint(256, (3, 60, 75)), "vocabulary": ["brick", "wood"]}

    # As the last block alone: of a dense CLIP, and of TCL's knowledge preservation, which shares more blocks
    cfg.merge_from_list(["MODEL.DENSE_CLIP.KEY_SMOOTHING", smoothing])
    tcl = load_config("shapes/trained.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    for build, config, key in ((DenseCLIP, cfg, "MODEL.DENSE_CLIP.HEAD"), (TCL, tcl, "MODEL.TCL.KP_HEAD")):
        scores = []
        for name in ("clip", "two_blocks"):
            torch.manual_seed(0)
            config.merge_from_list([key, name])
            scores.append(build(config).eval()([image])[0]["sem_seg"])
        torch.testing.assert_close(*scores)
