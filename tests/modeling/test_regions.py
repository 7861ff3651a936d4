"""Votes of regions: each region gets its most frequent class, or that of its best mean score."""

import numpy as np
import pytest
import torch
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.modeling import PAMR, build_refiner
from tcl_d2.modeling.refiners import RegionVote
from tests import golden
from tests.conftest import ROOT

REGIONS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 2, 2, 0]], np.uint8)
SCORES = torch.tensor(  # of two classes; the first is best at 4 of 6 pixels of region 1, but by little
    [
        [[0.6, 0.6, 0.6, 0.1, 0.2, 0.7], [0.6, 0.0, 0.0, 0.9, 0.1, 0.2]],
        [[0.5, 0.5, 0.5, 0.3, 0.3, 0.1], [0.5, 0.9, 0.9, 0.3, 0.3, 0.8]],
    ]
)


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(REGIONS).save(tmp_path / "a.png")
    return tmp_path


def decide(folder, rule: str) -> torch.Tensor:
    refine = RegionVote(folder, rule).bind(torch.zeros(1, 3, 2, 6), {"file_name": "photos/a.jpg"})
    return refine(SCORES[None])[0]


def test_most_frequent_class(folder):
    """Scores are shares of votes; a pixel of no region votes for itself."""
    shares = decide(folder, "vote")
    torch.testing.assert_close(
        shares[0], torch.tensor([[4 / 6] * 3 + [1 / 4] * 2 + [1.0], [4 / 6] * 3 + [1 / 4] * 2 + [0.0]])
    )
    torch.testing.assert_close(shares.sum(0), torch.ones(2, 6))
    assert shares.argmax(0).tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]


def test_best_mean_score(folder):
    """Another class than the most frequent one; a pixel of no region keeps its scores."""
    means = decide(folder, "mean")
    assert means.argmax(0).tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 1]]
    torch.testing.assert_close(means[:, 0, 0], SCORES[:, :, :3].flatten(1).mean(1))
    assert torch.equal(means[..., 5], SCORES[..., 5])


def test_the_first_of_equally_frequent_classes(folder):
    refine = RegionVote(folder).bind(torch.zeros(1, 3, 2, 6), {"file_name": "a.png"})
    scores = torch.zeros(1, 3, 2, 6)
    scores[0, 2, 0, :3] = scores[0, 1, 1, :3] = 1
    assert refine(scores)[0, :, :, :3].argmax(0).eq(1).all()


@torch.no_grad()
@pytest.mark.parametrize("rule", ["vote", "mean"])
def test_regions_after_another_refiner(rule, tmp_path):
    """As a configuration asks for them; with a background, and a result of another size than the model's."""
    regions = np.arange(12).reshape(3, 4).repeat(15, 0).repeat(12, 1)[:44, :45].astype(np.uint8) + 1
    Image.fromarray(regions).save(tmp_path / "a.png")
    options = ["TEST.ZERO_SHOT.REGIONS.FOLDER", str(tmp_path), "TEST.ZERO_SHOT.REGIONS.RULE", rule]
    refiner = build_refiner(load_config(ROOT / "configs/shapes/tcl.yaml", options))
    assert [type(part) for part in refiner.parts] == [PAMR, RegionVote]

    model = golden.build_model()
    model.set_text_embeddings(golden.load()["inference"]["text_embedding"], background=True)
    image = golden.load()["inference"]["slide_image"][0].float()
    inputs = {"image": image, "height": 44, "width": 45, "file_name": "x/a.jpg"}
    model.refiner = refiner.parts[0]
    scores = model([inputs])[0]["sem_seg"]
    model.refiner = refiner
    labels = model([{**inputs, "labels_only": True}])[0]["sem_seg_labels"]

    for number in range(1, 13):
        inside = torch.from_numpy(regions == number)
        if rule == "mean":
            expected = scores[:, inside].mean(1).argmax()
        else:
            expected = torch.bincount(scores.argmax(0)[inside]).argmax()
        assert (labels[inside] == expected).all()


@pytest.mark.fault(
    "votes of regions without their folder, or of images that are no files", "one error says what to give"
)
def test_what_is_missing_is_named(folder):
    options = ["TEST.ZERO_SHOT.REGIONS.FOLDER", "nowhere"]
    with pytest.raises(FileNotFoundError, match="REGIONS.FOLDER is 'nowhere', but there is no such folder"):
        build_refiner(load_config(ROOT / "configs/shapes/tcl.yaml", options))
    with pytest.raises(ValueError, match="RULE is 'best'; expected one of vote, mean"):
        RegionVote(folder, "best")
    with pytest.raises(ValueError, match="give images as files"):
        RegionVote(folder).bind(torch.zeros(1, 3, 2, 6), {})
    with pytest.raises(FileNotFoundError, match="no regions of 'b.jpg'"):
        RegionVote(folder).bind(torch.zeros(1, 3, 2, 6), {"file_name": "b.jpg"})
