"""Refiners: the choice by configuration, and at which stage of a segmentation each works."""

import pytest
import torch

from tcl_d2 import load_config
from tcl_d2.modeling import PAMR, REFINER_REGISTRY, Refiner, build_refiner
from tcl_d2.modeling.segmentor import words_to_labels
from tests import golden
from tests.conftest import ROOT


class Recorder(Refiner):
    """Notes what it is given, and doubles the scores."""

    def __init__(self, stage: str):
        super().__init__()
        self.stage = stage
        self.inputs = []

    def forward(self, images, scores):
        self.inputs.append((images, scores))
        return 2 * scores


class ByFile(Refiner):
    """Notes the files of the images that it is given."""

    def __init__(self, stage: str):
        super().__init__()
        self.stage, self.files = stage, []

    def bind(self, images, input_per_image=None):
        self.files.append(None if input_per_image is None else input_per_image.get("file_name"))
        return torch.clone


def shapes_config(*options):
    return load_config(ROOT / "configs/shapes/tcl.yaml", options)


def test_refiner_of_a_config():
    assert isinstance(build_refiner(shapes_config()), PAMR)
    assert build_refiner(shapes_config("TEST.ZERO_SHOT.REFINE", "none")) is None
    naclip = build_refiner(load_config(ROOT / "configs/dense_clip/naclip.yaml"))
    assert (naclip.stage, naclip.dilations) == ("image", (8, 16))
    with pytest.raises(ValueError, match="REFINE is 'crf'; expected one of none, .*pamr"):
        build_refiner(shapes_config("TEST.ZERO_SHOT.REFINE", "crf"))


def test_refiner_of_the_users_own(monkeypatch):
    monkeypatch.setitem(REFINER_REGISTRY._obj_map, "own", lambda cfg: Recorder("crop"))
    assert isinstance(build_refiner(shapes_config("TEST.ZERO_SHOT.REFINE", "own")), Recorder)


@pytest.mark.fault("a config still has TEST.ZERO_SHOT.PAMR.ENABLED", "an error that names TEST.ZERO_SHOT.REFINE")
def test_the_old_key_is_named():
    with pytest.raises(KeyError, match="PAMR.ENABLED was renamed to TEST.ZERO_SHOT.REFINE.*False is none"):
        shapes_config("TEST.ZERO_SHOT.PAMR.ENABLED", "False")


@pytest.mark.parametrize("stage", ["crop", "image", "classes"])
@torch.no_grad()
def test_each_stage_has_its_scores(stage, monkeypatch):
    """Words come 4 at a time; the constant of the background is a class's score at the last stage alone."""
    monkeypatch.setattr(words_to_labels, "WORDS_AT_ONCE", 4)
    figures = golden.load()["inference"]
    num_words = len(figures["text_embedding"])
    model = golden.build_model()
    model.set_text_embeddings(figures["text_embedding"], background=True)
    input_per_image = {"image": figures["slide_image"][0].float(), "height": 50, "width": 40}
    plain = model([input_per_image])[0]["sem_seg"]

    model.refiner = Recorder(stage)
    refined = model([input_per_image])[0]["sem_seg"]
    torch.testing.assert_close(refined[1:], 2 * plain[1:])
    assert refined[0].max() == (0.8 if stage == "classes" else 0.4)  # the golden model's constant is 0.4
    for images, scores in model.refiner.inputs:
        assert scores.shape[1] == num_words + 1 if stage == "classes" else scores.shape[1] <= 4
        assert images.shape[-2:] == ((48, 48) if stage == "crop" else (50, 40))
        assert stage == "crop" or scores.shape[-2:] == (50, 40)


@pytest.mark.parametrize("whole_image", [False, True])
@torch.no_grad()
def test_affinities_are_built_once_for_all_words(whole_image, monkeypatch):
    """Of each window, or of the image, however many parts the words come in; the results are the same."""
    figures, counts = golden.load()["inference"], []
    model = golden.build_model()
    model.refiner = PAMR(2, (1, 2), whole_image)
    model.set_text_embeddings(figures["text_embedding"])
    build = model.refiner.affinity
    monkeypatch.setattr(model.refiner, "affinity", lambda *args: counts.append(1) or build(*args))

    input_per_image = {"image": figures["slide_image"][0].float()}
    expected, num_built = model([input_per_image])[0]["sem_seg"], len(counts)
    monkeypatch.setattr(words_to_labels, "WORDS_AT_ONCE", 2)
    torch.testing.assert_close(model([input_per_image])[0]["sem_seg"], expected, rtol=0, atol=1e-6)
    assert len(counts) == 2 * num_built


@pytest.mark.parametrize(
    "stage, files", [("crop", [None]), ("image", ["a.png", "b.png"]), ("classes", ["a.png", "b.png"])]
)
@torch.no_grad()
def test_a_refiner_of_whole_images_knows_their_files(stage, files):
    model = golden.build_model()
    model.set_text_embeddings(torch.randn(3, 32))
    model.set_protocol(**{**model.protocol, "refiner": ByFile(stage)})
    model([{"image": torch.zeros(3, 16, 16), "file_name": name} for name in ("a.png", "b.png")])
    assert model.refiner.files == files
