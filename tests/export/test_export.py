"""Exported graphs equal the modules: TCL and each dense head, ONNX and torch.export, scores and labels, any size."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tcl_d2.deploy import OnnxSegmentor
from tcl_d2.deploy.card import KEY
from tcl_d2.export import (
    CropLabels,
    CropScores,
    check_exportable,
    embed_vocabulary,
    make_card,
    make_program,
    save_onnx,
    save_program,
)
from tcl_d2.modeling.dense_clip import DenseHead, build_dense_head
from tcl_d2.modeling.encoders.positions import PositionRule
from tcl_d2.modeling.resize_matrices import antialias_matrix, cubic_matrix, linear_matrix
from tcl_d2.modeling.segmentor.score_rules import ScoreSettings
from tests.export.conftest import BACKGROUND, CLASSES, picture

SIZES = ((1, 16, 16), (3, 24, 24), (1, 8, 40), (2, 56, 16), (1, 8, 8))  # crops, height and width
HEADS = ("clip", "maskclip", "sclip", "clearclip", "naclip")  # all that can be exported but CLIP-DINOiser's


def crops(count: int, height: int, width: int) -> torch.Tensor:
    return 255 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def check_graph(session: onnxruntime.InferenceSession, module: nn.Module, sizes=SIZES, **inputs) -> None:
    for size in sizes:
        images = crops(*size)
        outputs = session.run(None, {"images": images.numpy(), **inputs})[0]
        with torch.no_grad():
            expected = module(images, *map(torch.from_numpy, inputs.values()))
        np.testing.assert_allclose(outputs, expected.numpy(), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("source, target", [(3, 7), (6, 4), (14, 14), (2, 1)])
def test_matrices_resize_as_torch_does(source, target):
    values = torch.randn(1, 1, source, source)
    for matrix, options in (
        (cubic_matrix(source, target, target / source), {"mode": "bicubic", "align_corners": False}),
        (linear_matrix(source, target), {"mode": "bilinear", "align_corners": True}),
        (antialias_matrix(source, target, "bicubic"), {"mode": "bicubic", "antialias": True}),
        (antialias_matrix(source, target, "bilinear"), {"mode": "bilinear", "antialias": True}),
    ):
        expected = F.interpolate(values, size=(target, target), **options)
        torch.testing.assert_close(matrix @ values @ matrix.T, expected, rtol=0, atol=1e-5)


RULES = [PositionRule(), PositionRule(0.1, True), PositionRule(0.1), PositionRule(0.0, True)]


@pytest.mark.parametrize("rule", [*RULES, PositionRule(antialias="bicubic"), PositionRule(antialias="bilinear")])
@pytest.mark.parametrize("grid", [(3, 4), (4, 3), (2, 6), (5, 7)])
def test_positions_of_a_graph_are_those_of_the_rule(rule, grid):
    position = torch.randn(1 + 12, 5)
    in_graph = rule._resize_in_graph(position, (3, 4), grid)
    torch.testing.assert_close(in_graph, rule.resize(position, (3, 4), grid), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------- graphs


def test_scores_of_tcl_equal_those_of_the_module(tcl, tcl_onnx):
    vocabulary = embed_vocabulary(tcl.model, CLASSES, BACKGROUND)
    check_graph(OnnxSegmentor(tcl_onnx).session, CropScores(tcl.model, vocabulary.text))


def test_a_flat_crop_has_scores(tcl_onnx):
    """The exporter once took PAMR's 1e-8 for 0, and flat crops became NaN."""
    segmentor = OnnxSegmentor(tcl_onnx)
    assert np.isfinite(segmentor.predict(np.full((1, 3, 16, 16), 200, np.float32))).all()


def test_a_graph_has_no_text_encoder(tcl):
    parts = CropScores(tcl.model)
    assert not [name for name in parts.state_dict() if "token_embedding" in name or name == "text"]
    assert [name for name in tcl.model.state_dict() if "token_embedding" in name]


def test_program_and_labels_equal_those_of_the_module(build, tmp_path):
    """By torch.export, as labels; the file carries the card. ONNX files are made of the same programs."""
    background = ("TEST.ZERO_SHOT.BACKGROUND_SCORE", 0.2)
    dense = build("MODEL.META_ARCHITECTURE", "DenseCLIP", "TEST.ZERO_SHOT.REFINE", "none", *background)
    vocabulary = embed_vocabulary(dense.model, CLASSES, BACKGROUND)
    settings = ScoreSettings(dense.model.background_score)
    module = CropLabels(CropScores(dense.model, vocabulary.text), vocabulary.subset, settings)
    save_program(module, tmp_path / "model.pt2", make_card(dense.model, dense.cfg, "labels", vocabulary.card))

    files = {KEY: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    assert json.loads(files[KEY])["vocabulary"]["classes"] == CLASSES
    for size in ((16, 16), (40, 32)):
        images = torch.tensor(picture(*size)).permute(2, 0, 1)[None].float()
        labels = program(images)
        assert torch.equal(labels, module(images)) and len(labels.unique()) > 1
        inputs = [{"image": image, "vocabulary": CLASSES, "background": BACKGROUND} for image in images]
        expected = torch.stack([output["sem_seg"].argmax(0) for output in dense.model(inputs)])
        assert torch.equal(labels, expected)


class EachHead(DenseHead):
    """The features of several heads, one after the other in the batch: one graph is quicker to make than one of each.

    What is before the last block is in it once.
    """

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, clip, tokens, images):
        return torch.cat([head(clip, tokens, images) for head in self.heads])


def test_each_dense_head_equals_its_module(build, tmp_path):
    """As ONNX, with text embeddings as an input. MaskCLIP's refinements are in test_deploy.py.

    Without onnxscript's passes over the graph, which take time; the other tests' graphs have them.
    """
    predictor = build("MODEL.META_ARCHITECTURE", "DenseCLIP", "TEST.ZERO_SHOT.REFINE", "none")
    predictor.model.head = EachHead([build_dense_head(name, predictor.cfg) for name in HEADS])
    module = CropScores(predictor.model)
    path = tmp_path / "heads.onnx"
    program = make_program(module, make_card(predictor.model, predictor.cfg))
    names = {"input_names": ["images", "text"], "output_names": ["scores"]}
    torch.onnx.export(program, f=path, **names, dynamo=True, verbose=False, optimize=False)
    session = onnxruntime.InferenceSession(path)
    check_graph(session, module, SIZES, text=np.random.default_rng(0).standard_normal((4, 16), np.float32))


@pytest.fixture(scope="module")
def dinoiser(build):
    """A CLIP-DINOiser with three blocks, whose threshold and objects divide the patches."""
    options = ["MODEL.META_ARCHITECTURE", "DenseCLIP", "TEST.ZERO_SHOT.REFINE", "none"]
    options += ["MODEL.DENSE_CLIP.HEAD", "clip_dinoiser", "MODEL.DENSE_CLIP.DINOISER.WEIGHTS", ""]
    options += ["MODEL.DENSE_CLIP.SCORES", "probability", "TEST.ZERO_SHOT.BACKGROUND_SCORE", 0.5]
    return build(*options, layers=3)


def test_clip_dinoiser_with_its_background_and_padding(dinoiser, tmp_path):
    """The graph equals the module; the labels of whole images, with padded windows, are the model's."""
    model = dinoiser.model
    vocabulary = embed_vocabulary(model, CLASSES, BACKGROUND)
    module = CropScores(model, vocabulary.text, vocabulary.background_words)
    path = tmp_path / "dinoiser.onnx"
    save_onnx(module, path, make_card(model, dinoiser.cfg, vocabulary=vocabulary.card))
    segmentor = OnnxSegmentor(path)
    check_graph(segmentor.session, module, SIZES[:4])

    for size in ((61, 75), (30, 83)):  # windows of 40 x 40 and of 35 x 40 pixels
        image = picture(*size)
        segmentation, expected = segmentor(image), dinoiser(image, CLASSES, BACKGROUND)
        np.testing.assert_allclose(segmentation.scores, expected.scores, rtol=0, atol=1e-4)
        share = (expected.labels == 0).mean()
        assert np.array_equal(segmentation.labels, expected.labels) and 0.05 < share < 1


def test_labels_of_crops_by_clip_dinoiser(dinoiser):
    vocabulary = embed_vocabulary(dinoiser.model, CLASSES, BACKGROUND)
    scores = CropScores(dinoiser.model, vocabulary.text, vocabulary.background_words)
    image = torch.from_numpy(picture(160, 160).copy()).permute(2, 0, 1)
    images = image.unfold(1, 40, 40).unfold(2, 40, 40).flatten(1, 2).transpose(0, 1)  # 16 crops
    inputs = [{"image": crop, "vocabulary": CLASSES, "background": BACKGROUND} for crop in images]
    expected = torch.stack([output["sem_seg"].argmax(0) for output in dinoiser.model(inputs)])
    labels = CropLabels(scores, vocabulary.subset, ScoreSettings(0.0))(images.float())
    assert torch.equal(labels, expected) and len(labels.unique()) > 1


def test_clip_dinoiser_without_classes_cannot_be_exported(dinoiser):
    with pytest.raises(ValueError, match="finds the background itself, .* give --classes, or .*FIND_OBJECTS False"):
        CropScores(dinoiser.model)


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.fault(
    "export of a whole-image refiner, or of rules that need whole images", "one error says which setting to change"
)
def test_what_cannot_be_exported_is_said(tcl, build):
    tcl = build("TEST.ZERO_SHOT.PAMR.WHOLE_IMAGE", True, "MODEL.TCL.FREEZE", 1, layers=2)
    with pytest.raises(ValueError, match="PAMR.*WHOLE_IMAGE"):
        check_exportable(tcl.model)
    tcl.model.join_words_first = True
    with pytest.raises(ValueError, match="JOIN_WORDS_FIRST"):
        check_exportable(tcl.model)
    with pytest.raises(ValueError, match="Linear"):
        check_exportable(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="AREA_THRESHOLD"):
        CropLabels(None, None, ScoreSettings(0.5, area_threshold=0.1))
