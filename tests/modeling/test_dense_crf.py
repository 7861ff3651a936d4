"""DenseCRF against mean field by its formulas, with all pairs of pixels held at once."""

import sys

import pytest
import torch

from tcl_d2 import load_config
from tcl_d2.modeling.checks import check_meta_architecture
from tcl_d2.modeling.refiners import DenseCRF, dense_crf
from tests import golden
from tests.conftest import ROOT

STRONG = {"iterations": 10, "gaussian_sxy": 5.0, "bilateral_sxy": 20.0, "bilateral_srgb": 13.0, "bilateral_compat": 3.0}


@pytest.fixture
def package():
    return pytest.importorskip("pydensecrf", reason="needs pydensecrf2: pip install pydensecrf2, or make test EVERY=1")


def kernel(features: torch.Tensor) -> torch.Tensor:
    """Return exp(-|f - f'|^2 / 2) of features [N, F], divided by the square roots of the sums of rows and columns."""
    values = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    scale = values.sum(1).rsqrt()
    return scale[:, None] * values * scale


def plain_mean_field(image: torch.Tensor, scores: torch.Tensor, crf: DenseCRF) -> torch.Tensor:
    """Return probabilities [K, H, W] of an image [3, H, W] in 0..255."""
    rows, columns = torch.meshgrid(*map(torch.arange, image.shape[1:]), indexing="ij")
    place = torch.stack([rows, columns], -1).flatten(0, 1).double()
    color = image.flatten(1).T.double()

    bilateral = torch.cat([place / crf.bilateral["sxy"], color / crf.bilateral["srgb"]], 1)
    pairs = crf.gaussian["compat"] * kernel(place / crf.gaussian["sxy"]) + crf.bilateral["compat"] * kernel(bilateral)

    unary = scores.flatten(1).double().log_softmax(0)
    probabilities = unary.exp()
    for _ in range(crf.iterations):
        probabilities = (unary + probabilities @ pairs).softmax(0)
    return probabilities.view(scores.shape).float()


def two_halves(height: int = 12, width: int = 15) -> torch.Tensor:
    """Return an image [3, H, W]: red at the left, green at the right, a little uneven."""
    image = torch.randint(0, 6, (3, height, width)).float()
    image[0, :, : width // 2] += 200
    image[1, :, width // 2 :] += 120
    return image


@pytest.mark.parametrize("settings, limit", [({"iterations": 1}, 0.04), (STRONG, 0.03)])
def test_equals_mean_field(package, settings, limit):
    """Up to the lattice, by which the package approximates the kernels."""
    torch.manual_seed(0)
    image, scores = two_halves(), torch.randn(3, 12, 15)
    crf = DenseCRF(**settings, pixel_mean=(100.0, 90.0, 80.0), pixel_std=(50.0, 60.0, 70.0))
    normalized = (image - torch.tensor(crf.pixel_mean)[:, None, None]) / torch.tensor(crf.pixel_std)[:, None, None]
    (probabilities,) = crf(normalized[None], scores[None])
    expected = plain_mean_field(image, scores, crf)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=limit)
    assert (probabilities - scores.softmax(0)).abs().max() > 5 * limit


def test_labels_follow_the_image(package):
    """Of two halves a fifth of the pixels is wrong before."""
    torch.manual_seed(0)
    image, truth = two_halves(40, 60), torch.zeros(40, 60, dtype=torch.int64)
    truth[:, 30:] = 1
    wrong = torch.rand(40, 60) < 0.2
    scores = torch.nn.functional.one_hot(truth ^ wrong.long(), 2).permute(2, 0, 1).float()
    (probabilities,) = DenseCRF()(image[None], scores[None])
    assert torch.equal(probabilities.argmax(0), truth)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(40, 60))


@torch.no_grad()
def test_model_with_a_background(package):
    """Probabilities are of background and classes, at the output's size; labels are their argmax."""
    figures = golden.load()["inference"]
    model = golden.build_model()
    model.refiner = DenseCRF(iterations=2)
    model.set_text_embeddings(figures["text_embedding"], background=True)
    input_per_image = {"image": figures["slide_image"][0].float(), "height": 50, "width": 40}
    probabilities = model([input_per_image])[0]["sem_seg"]
    assert probabilities.shape == (len(figures["text_embedding"]) + 1, 50, 40)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(50, 40))
    (output,) = model([{**input_per_image, "labels_only": True}])
    assert torch.equal(output["sem_seg_labels"], probabilities.argmax(0))


@pytest.mark.fault("DenseCRF with too many classes for the size of an image", "it works at a smaller size; a warning")
def test_memory_is_bounded(package, monkeypatch, caplog):
    monkeypatch.setattr(dense_crf, "_MOST_SCORES", 2 * 20 * 30)
    image, scores = two_halves(40, 60), torch.rand(2, 40, 60)
    scores[0, :, :30] += 1
    scores[1, :, 30:] += 1
    (probabilities,) = DenseCRF()(image[None], scores[None])
    assert "2 classes of an image of (40, 60) at (20, 30)" in caplog.text
    assert probabilities[0, :, :28].min() > 0.9 and probabilities[1, :, 32:].min() > 0.9
    assert probabilities.shape == scores.shape


@pytest.mark.fault("DenseCRF is asked for, but pydensecrf2 is not installed", "an error that says how to install it")
def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    cfg = load_config(ROOT / "configs/shapes/tcl.yaml", ["TEST.ZERO_SHOT.REFINE", "densecrf"])
    with pytest.raises(RuntimeError, match="REFINE densecrf needs pydensecrf2.*pip install pydensecrf2"):
        check_meta_architecture(cfg)


@pytest.mark.parametrize(
    "key, value", [("ITERS", 0), ("BILATERAL_SRGB", 0), ("GAUSSIAN_SXY", -1), ("GAUSSIAN_COMPAT", -1)]
)
def test_numbers_out_of_range_are_named(key, value):
    options = ["TEST.ZERO_SHOT.REFINE", "densecrf", f"TEST.ZERO_SHOT.DENSECRF.{key}", value]
    with pytest.raises(ValueError, match=f"DENSECRF.{key} is {value}"):
        check_meta_architecture(load_config(ROOT / "configs/shapes/tcl.yaml", options))
