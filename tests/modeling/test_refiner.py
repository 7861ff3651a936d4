"""Refiners: the choice by configuration, and at which stage of a segmentation each works."""

import pytest
import torch

from tcl_d2 import load_config
from tcl_d2.modeling import PAMR, REFINER_REGISTRY, Refiner, RefinerChain, build_refiner
from tcl_d2.modeling.refiners import IMAGE_STAGES
from tcl_d2.modeling.segmentor import words_to_labels
from tcl_d2.modeling.segmentor.windows import Windows
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

    def bind(self, images, input_per_image=None, corners=None):
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


@pytest.mark.parametrize("stage", ["crop", *IMAGE_STAGES])
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
    size = {"crop": (48, 48), "windows": (48, 48), "input": input_per_image["image"].shape[1:]}.get(stage, (50, 40))
    for images, scores in model.refiner.inputs:
        assert scores.shape[1] == num_words + 1 if stage == "classes" else scores.shape[1] <= 4
        assert images.shape[-2:] == size
        assert stage in ("crop", "windows") or scores.shape[-2:] == size
    if stage == "windows":
        assert {len(images) for images, _ in model.refiner.inputs} == {num_windows(model, input_per_image["image"])}


def num_windows(model, image):
    return len(Windows(image, model.crop_size, model.stride).slices)


class Corners(Recorder):
    """Notes where windows are, and gives scores of another resolution."""

    def bind(self, images, input_per_image=None, corners=None):
        self.inputs.append(corners)
        return lambda scores: torch.nn.functional.avg_pool2d(scores, 2)


@torch.no_grad()
def test_windows_come_together_with_their_places():
    """Encoded some at a time, and refined once for each part of the words."""
    model = golden.build_model()
    model.set_text_embeddings(golden.load()["inference"]["text_embedding"])
    model._batches.pixels_at_once = 48 * 48
    image = torch.rand(3, 60, 80)
    model.refiner = Corners("windows")
    scores = model([{"image": image}, {"image": image[:, :48, :48]}])
    assert [corners.tolist() for corners in model.refiner.inputs] == [
        [[0, 0], [0, 24], [0, 32], [12, 0], [12, 24], [12, 32]],
        [[0, 0]],
    ]
    assert scores[0]["sem_seg"].shape[1:] == (60, 80) and scores[1]["sem_seg"].shape[1:] == (48, 48)


@torch.no_grad()
def test_a_chain_has_each_refiner_at_its_stage():
    """And those of one stage in their order."""
    model = golden.build_model()
    model.set_text_embeddings(golden.load()["inference"]["text_embedding"])
    image = {"image": golden.load()["inference"]["slide_image"][0].float()}
    plain = model([image])[0]["sem_seg"]
    first, second = Recorder("image"), Recorder("image")
    model.refiner = RefinerChain(RefinerChain(first, Recorder("crop")), second)
    torch.testing.assert_close(model([image])[0]["sem_seg"], 8 * plain)
    torch.testing.assert_close(second.inputs[0][1], 2 * first.inputs[0][1])


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


@pytest.mark.parametrize("stage, files", [("crop", [None]), *((stage, ["a.png", "b.png"]) for stage in IMAGE_STAGES)])
@torch.no_grad()
def test_a_refiner_of_whole_images_knows_their_files(stage, files):
    model = golden.build_model()
    model.set_text_embeddings(torch.randn(3, 32))
    model.set_protocol(**{**model.protocol, "refiner": ByFile(stage)})
    model([{"image": torch.zeros(3, 16, 16), "file_name": name} for name in ("a.png", "b.png")])
    assert model.refiner.files == files
