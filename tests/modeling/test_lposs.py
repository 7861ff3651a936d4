"""LPOSS and LPOSS+ against the figures of the official release; each mistake that is easily made is seen by them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.modeling import DENSE_HEAD_REGISTRY, build_refiner
from tcl_d2.modeling.checks import check_meta_architecture
from tcl_d2.modeling.refiners import LPOSS, PixelLPOSS, RefinerChain, lposs, lposs_plus
from tcl_d2.modeling.refiners.lposs import patch_centers
from tcl_d2.modeling.refiners.lposs_plus import PixelGraph, scaled_lab
from tcl_d2.modeling.refiners.propagation import propagate
from tcl_d2.modeling.segmentor import words_to_labels
from tests.conftest import ROOT
from tests.golden import lposs as golden

ALPHA = 0.95
IMAGES = ("two_windows", "image", "whole")
pytestmark = pytest.mark.usefixtures("no_gradient")


@pytest.fixture
def no_gradient():
    with torch.no_grad():
        yield


def build_lposs(**options) -> LPOSS:
    return LPOSS(golden.build_vision, **{"neighbors": 20, **options})


def build_lposs_plus(**options) -> RefinerChain:
    pixels = PixelLPOSS(pixel_mean=golden.PIXEL_MEAN, pixel_std=golden.PIXEL_STD, **options)
    return RefinerChain(build_lposs(), pixels)


def centers_of(figures: dict) -> torch.Tensor:
    corners = figures["locations"][:, [0, 2]]
    grid = tuple(figures["grid"].tolist())
    return patch_centers(corners, (8 * grid[0], 8 * grid[1]), grid)


def spread(figures: dict, refiner: LPOSS, steps: int = 10) -> torch.Tensor:
    """Propagate the golden cosines over the graph of the golden features: z, [N, 7]."""
    graph = refiner.graph(figures["dino_features"], centers_of(figures))
    return propagate(graph.matmul, figures["cosines"], ALPHA, steps).float() / (1 - ALPHA)


def segment(model, image: torch.Tensor, size: torch.Tensor, **request) -> dict:
    height, width = size.tolist()
    return model([{"image": image[0], "height": height, "width": width, **request}])[0]


# ------------------------------------------------------------------------------------ the graph of patches


def test_graph_of_nine_patches():
    """An edge that both ends chose counts twice, and a negative similarity is none."""
    figures = golden.load()["tiny"]
    y, _, x, _ = figures["location"][0].tolist()
    centers = patch_centers(torch.tensor([[y, x]]), (48, 48), (3, 3))
    refiner = build_lposs(neighbors=figures["k"])
    weights = refiner.weights(figures["features"], centers).to_dense()
    expected = figures["weights"].clone().fill_diagonal_(0)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    graph = refiner.graph(figures["features"], centers).to_dense().float()
    torch.testing.assert_close(graph, figures["normalised"], rtol=0, atol=1e-6)


def test_graph_of_two_windows():
    figures = golden.load()["two_windows"]
    arguments = figures["dino_features"], centers_of(figures)
    weights = build_lposs().weights(*arguments).to_dense()
    torch.testing.assert_close(weights, figures["weights"].clone().fill_diagonal_(0), rtol=0, atol=1e-5)
    graph = build_lposs().graph(*arguments).to_dense().float()
    torch.testing.assert_close(graph, figures["normalised"], rtol=0, atol=1e-6)


def test_row_sums_of_twelve_windows():
    figures = golden.load()["image"]
    graph = build_lposs().graph(figures["dino_features"], centers_of(figures))
    assert int((graph.values() != 0).sum()) == figures["nonzeros"]
    torch.testing.assert_close(graph.to_dense().sum(1).float(), figures["row_sums"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("block", [1, 100])
def test_neighbors_are_found_by_blocks(block, monkeypatch):
    """With any number of similarities at once; labels do not depend on it."""
    figures = golden.load()["image"]
    monkeypatch.setattr(lposs, "_SIMILARITIES_AT_ONCE", block * len(figures["cosines"]))
    torch.testing.assert_close(spread(figures, build_lposs()), figures["propagated"], rtol=0, atol=5e-5)


def test_fewer_patches_than_neighbors():
    figures = golden.load()["whole"]
    assert len(figures["cosines"]) == 54
    scores = [spread(figures, build_lposs(neighbors=count)) for count in (54, 400)]
    assert torch.equal(*scores)


# ------------------------------------------------------------------------------------ the scores of patches


@pytest.mark.parametrize("name", IMAGES)
def test_ten_steps_are_the_releases(name):
    figures = golden.load()[name]
    torch.testing.assert_close(spread(figures, build_lposs()), figures["propagated"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_converged_solution_is_the_exact_one(name):
    figures = golden.load()[name]
    torch.testing.assert_close(spread(figures, build_lposs(), 0), figures["exact"], rtol=0, atol=5e-5)


def test_words_do_not_see_each_other():
    """So that they may come in chunks; one without scores stays so."""
    figures = golden.load()["two_windows"]
    graph = build_lposs().graph(figures["dino_features"], centers_of(figures))
    scores = torch.cat([torch.zeros(72, 1), figures["cosines"]], 1)
    together = propagate(graph.matmul, scores, ALPHA, 10)
    assert not together[:, 0].any()
    for k in range(1, 8):
        alone = propagate(graph.matmul, scores[:, k : k + 1], ALPHA, 10)
        torch.testing.assert_close(together[:, k : k + 1], alone, rtol=0, atol=1e-12)


def test_features_are_the_values_of_dino():
    figures = golden.load()["two_windows"]
    image = figures["image"].float()
    windows = torch.cat([image[..., y:y2, x:x2] for y, y2, x, x2 in figures["locations"].tolist()])
    mean, std = (torch.tensor(values)[:, None, None] for values in (golden.PIXEL_MEAN, golden.PIXEL_STD))
    features = build_lposs().vision_features((windows - mean) / std)
    features = F.normalize(features.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
    torch.testing.assert_close(features, figures["dino_features"], rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------ whole segmentations


SEGMENTATIONS = {"two_windows": build_lposs, "image": build_lposs, "image_plus": build_lposs_plus}


@pytest.mark.parametrize("words_at_once", [256, 2])
@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_segmentations_are_the_releases(name, words_at_once, monkeypatch):
    """Labels at every pixel, and scores; of words in chunks, too, which part the three of the first class."""
    monkeypatch.setattr(words_to_labels, "WORDS_AT_ONCE", words_at_once)
    figures, image = golden.load()[name], golden.load()[name.removesuffix("_plus")]["image"]
    model = golden.build_model(SEGMENTATIONS[name]())
    scores = segment(model, image, figures["original_size"])["sem_seg"]
    assert torch.equal(scores.argmax(0), figures["labels"].long())
    output = segment(model, image, figures["original_size"], labels_only=True)
    assert torch.equal(output["sem_seg_labels"], figures["labels"].long())

    if "scores_every_3rd" in figures:
        z = scores / (1 - ALPHA) ** (1 + name.endswith("plus"))
        bound = 5e-3 if name.endswith("plus") else 5e-5
        torch.testing.assert_close(z[None, :, ::3, ::3], figures["scores_every_3rd"], rtol=0, atol=bound)


@pytest.mark.parametrize("name, different", [("image", 20), ("image_plus", 192)])
def test_words_that_are_joined_at_the_results_size_are_seen(name, different):
    figures, image = golden.load()[name], golden.load()["image"]["image"]
    model = golden.build_model(SEGMENTATIONS[name]())
    model.join_words_first = False
    labels = segment(model, image, figures["original_size"], labels_only=True)["sem_seg_labels"]
    assert int((labels != figures["labels"]).sum()) == different


def test_a_background_has_no_constant_score():
    """As the release's config says it: a first class with words of its own wins by them alone, below 0 too."""
    figures, test = golden.load()["image"], configured("dense_clip/lposs.yaml").TEST.ZERO_SHOT
    model = golden.build_model(build_lposs())
    (subset,) = model._requested.subsets
    feature = model.pixel_features(figures["image"]).values.mean((0, 2, 3))
    request = figures["image"], figures["original_size"]

    def labels(background: bool) -> torch.Tensor:
        model.set_text_embeddings(0.1 * golden.load()["text"] - feature)  # unlike everything
        model._requested = replace(model._requested, subsets=[subset._replace(background=background)])
        return segment(model, *request, labels_only=True)["sem_seg_labels"]

    expected = labels(False)
    model.logit_scale, model.background_score = test.LOGIT_SCALE, test.BACKGROUND_SCORE
    assert expected.any() and torch.equal(labels(True), expected)
    model.logit_scale = 0.0
    assert (labels(True) == 0).float().mean() > 0.9


def test_short_memory_changes_nothing():
    """Windows are encoded one by one, and again for more words; scores wait on the CPU."""
    image, figures = golden.load()["image"]["image"], golden.load()["image_plus"]
    model = golden.build_model(build_lposs_plus())
    model._batches.is_memory_short, model._batches.pixels_at_once = True, 48 * 48
    output = segment(model, image, figures["original_size"], labels_only=True)
    assert torch.equal(output["sem_seg_labels"], figures["labels"].long())


# ------------------------------------------------------------------------------------ mistakes on patches


def one_sided(columns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The weights that each patch gives its neighbors, dense [N, N]."""
    return torch.zeros(len(columns), len(columns)).scatter_(1, columns, values)


def with_edges(change: Callable[[torch.Tensor], torch.Tensor], monkeypatch) -> LPOSS:
    """A refiner whose weights [N, N] are another function of the one-sided ones."""

    def build(columns, values):
        return change(one_sided(columns, values)).to_sparse().coalesce()

    monkeypatch.setattr(lposs, "plus_transpose", build)
    return build_lposs()


def with_centers(change: Callable[[torch.Tensor], torch.Tensor], figures: dict) -> torch.Tensor:
    graph = build_lposs().graph(figures["dino_features"], change(centers_of(figures)))
    return propagate(graph.matmul, figures["cosines"], ALPHA, 10).float() / (1 - ALPHA)


def spread_each_window_alone(figures: dict) -> torch.Tensor:
    names = ("dino_features", "cosines")
    parts = zip(figures["locations"].split(1), *(figures[name].split(36) for name in names))
    windows = [{"grid": figures["grid"], "locations": place, **dict(zip(names, part))} for place, *part in parts]
    return torch.cat([spread(window, build_lposs()) for window in windows])


def spread_by_rows(figures: dict) -> torch.Tensor:
    """D^-1 W in place of D^-1/2 W D^-1/2."""
    weights = build_lposs().weights(figures["dino_features"], centers_of(figures)).to_dense().double()
    by_rows = weights / weights.sum(1, keepdim=True)
    return propagate(by_rows.matmul, figures["cosines"], ALPHA, 10).float() / (1 - ALPHA)


def spread_by_repetition(figures: dict) -> torch.Tensor:
    """Ten times z := alpha S z + y, in place of conjugate gradients."""
    graph, y = build_lposs().graph(figures["dino_features"], centers_of(figures)), figures["cosines"].double()
    z = y
    for _ in range(10):
        z = ALPHA * (graph @ z) + y
    return z.float()


def spread_as_one_vector(figures: dict) -> torch.Tensor:
    """One step length for all words."""
    graph, y = build_lposs().graph(figures["dino_features"], centers_of(figures)), figures["cosines"]

    def multiply(long):
        return (graph @ long.view(y.shape)).view(-1, 1)

    return propagate(multiply, y.reshape(-1, 1), ALPHA, 10).float().view(y.shape) / (1 - ALPHA)


MISTAKES = {
    "solved": lambda figures, patch: spread(figures, build_lposs(), 0),
    "five steps": lambda figures, patch: spread(figures, build_lposs(), 5),
    "no conjugate gradients": lambda figures, patch: spread_by_repetition(figures),
    "one step length": lambda figures, patch: spread_as_one_vector(figures),
    "a graph for each window": lambda figures, patch: spread_each_window_alone(figures),
    "positions in the window": lambda figures, patch: with_centers(lambda x: x[:36].repeat(12, 1), figures),
    "the larger weight": lambda figures, patch: spread(figures, with_edges(lambda w: torch.maximum(w, w.T), patch)),
    "mutual alone": lambda figures, patch: spread(figures, with_edges(lambda w: torch.minimum(w, w.T), patch)),
    "not symmetric": lambda figures, patch: spread(figures, with_edges(lambda w: w, patch)),
    "itself not counted": lambda figures, patch: spread(figures, build_lposs(neighbors=21)),
    "itself kept": lambda figures, patch: spread(figures, with_edges(lambda w: w + w.T + 2 * torch.eye(len(w)), patch)),
    "rows normalized": lambda figures, patch: spread_by_rows(figures),
    "distance in patches": lambda figures, patch: with_centers(lambda x: x / 8, figures),
    "no distance": lambda figures, patch: with_centers(torch.zeros_like, figures),
    "no cube": lambda figures, patch: spread(figures, build_lposs(gamma=1.0)),
    "softmax before": lambda figures, patch: spread(
        {**figures, "cosines": (100 * figures["cosines"]).softmax(1)}, build_lposs()
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake, monkeypatch):
    """By more than a hundred times the bound of the comparison with the release."""
    figures = golden.load()["image"]
    z = MISTAKES[mistake](figures, monkeypatch)
    assert (z - figures["propagated"]).abs().max() > 1e-2


def test_a_factor_of_all_weights_does_not_matter(monkeypatch):
    figures = golden.load()["image"]
    z = spread(figures, with_edges(lambda w: (w + w.T) / 2, monkeypatch))
    torch.testing.assert_close(z, figures["propagated"], rtol=0, atol=5e-5)


def test_words_are_joined_after_propagation():
    """Before, most labels would be others."""
    figures = golden.load()["image"]

    def join(scores):
        return torch.cat([scores[:, :3].amax(1, keepdim=True), scores[:, 3:]], 1)

    before = spread({**figures, "cosines": join(figures["cosines"])}, build_lposs())
    after = join(figures["propagated"])
    assert (before.argmax(1) != after.argmax(1)).float().mean() > 0.1


def test_keys_and_queries_are_not_values():
    image = torch.zeros(1, 3, 48, 48)
    expected = build_lposs().vision_features(image)[0].flatten(1).T
    heads = golden.build_vision().last_block(image).project_heads()
    differences = [(part[0, :, 1:].transpose(0, 1).flatten(1) - expected).abs().max() for part in heads]
    assert differences[2] == 0 and min(differences[:2]) > 1e-2
    assert golden.load()["two_windows"]["dino_features"].shape[1] == expected.shape[1]


def test_quick_gelu_is_seen():
    figures = golden.load()["image"]
    model = golden.build_model(build_lposs(), quick_gelu=True)
    output = segment(model, figures["image"], figures["original_size"], labels_only=True)
    assert not torch.equal(output["sem_seg_labels"], figures["labels"].long())


# ------------------------------------------------------------------------------------ the graph of pixels


def spread_pixels(refiner: PixelLPOSS) -> torch.Tensor:
    """Refine the golden scores of pixels, undivided by 1 - alpha: [1, 4, 17, 22]."""
    figures = golden.load()["pixels"]
    return refiner(figures["image"].float(), figures["scores"].float()) / (1 - ALPHA)


def test_colors_are_the_releases():
    figures = golden.load()["pixels"]
    lab = scaled_lab(figures["image"][0].float() / 255) * torch.tensor([100.0, 128.0, 128.0])[:, None, None]
    torch.testing.assert_close(lab, figures["lab"][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("at_once", [64, 1000])
def test_graph_of_pixels(at_once, monkeypatch):
    """A row, in bands of any size, and the sums of all."""
    monkeypatch.setattr(lposs_plus, "_PIXELS_AT_ONCE", at_once)
    figures = golden.load()["pixels"]
    graph = PixelGraph(scaled_lab(figures["image"][0].float() / 255), 0.01, 13)
    padded = torch.cat([graph.band(slice(row, row + 1)).to_dense() for row in range(17)]).view(374, 17 + 12, 22 + 12)
    dense = padded[:, 6:-6, 6:-6].flatten(1).float()
    torch.testing.assert_close(dense[40], figures["weights_row_40"], rtol=0, atol=1e-5)
    torch.testing.assert_close(dense.sum(1), figures["weights_row_sums"], rtol=0, atol=5e-5)
    assert int((dense > 0).sum()) == figures["nonzeros"]

    matrix = graph.multiply(torch.eye(374, dtype=torch.float64))
    torch.testing.assert_close(matrix[40].float(), figures["normalised_row_40"], rtol=0, atol=1e-5)
    torch.testing.assert_close(matrix, matrix.T)


@pytest.mark.parametrize("steps, name", [(10, "refined"), (0, "exact")])
def test_scores_of_pixels(steps, name):
    torch.testing.assert_close(spread_pixels(PixelLPOSS(steps=steps)), golden.load()["pixels"][name], rtol=0, atol=1e-3)


def test_edges_that_are_not_held_are_the_same(monkeypatch):
    """As of images with too many of them; and words in parts."""
    expected = spread_pixels(PixelLPOSS())
    monkeypatch.setattr(lposs_plus, "_MOST_EDGES", 0)
    monkeypatch.setattr(lposs_plus, "_WORDS_AT_ONCE", 3)
    torch.testing.assert_close(spread_pixels(PixelLPOSS()), expected, rtol=0, atol=1e-6)


DIVIDED = torch.tensor([100.0, 128.0, 128.0])[:, None, None]
COLORS = {
    "Lab not divided": lambda rgb: scaled_lab(rgb) * DIVIDED,
    "all by 100": lambda rgb: scaled_lab(rgb) * DIVIDED / 100,
    "a and b by 255": lambda rgb: scaled_lab(rgb) * DIVIDED / torch.tensor([100.0, 255.0, 255.0])[:, None, None],
    "RGB": lambda rgb: rgb,
    "the normalized image": lambda rgb: scaled_lab((rgb - 0.45) / 0.27),
    "BGR": lambda rgb: scaled_lab(rgb.flip(0)),
    "0..255": lambda rgb: scaled_lab(255 * rgb),
}
SETTINGS = {"solved": {"steps": 0}, "13 each way": {"window": 27}, "1 each way": {"window": 3}, "tau": {"tau": 0.1}}


@pytest.mark.parametrize("mistake", [*COLORS, *SETTINGS, "squared"])
def test_mistakes_on_pixels_are_seen(mistake, monkeypatch):
    if mistake in COLORS:
        monkeypatch.setattr(lposs_plus, "scaled_lab", COLORS[mistake])
    if mistake == "squared":
        weights = PixelGraph.weights

        def squared(*args):
            return torch.exp(-(0.01 * weights(*args).log()).square() / 0.01)

        monkeypatch.setattr(PixelGraph, "weights", squared)
    refined = spread_pixels(PixelLPOSS(**SETTINGS.get(mistake, {})))
    assert not torch.allclose(refined, golden.load()["pixels"]["refined"], rtol=0, atol=0.1)


# ------------------------------------------------------------------------------------ configurations


def configured(config: str, *options) -> CfgNode:
    shared = ["TEST.ZERO_SHOT.LPOSS.NAME", "golden_dino", "TEST.ZERO_SHOT.TEXT_CACHE", "", "MODEL.DEVICE", "cpu"]
    return load_config(ROOT / "configs" / config, [*shared, *options])


def test_refiner_of_the_releases_config(tmp_path):
    """With a file of DINO's weights in the layout of facebookresearch's."""
    weights = golden.write_dino(tmp_path)
    cfg = configured("dense_clip/lposs_plus.yaml", "TEST.ZERO_SHOT.LPOSS.PRETRAINED", weights)
    refiner = build_refiner(cfg)
    patches, pixels = refiner.parts
    refiner.load()
    assert (patches.neighbors, patches.gamma, patches.sigma, patches.alpha, patches.steps) == (400, 3, 100, 0.95, 10)
    assert (pixels.tau, pixels.window, pixels.alpha, pixels.steps) == (0.01, 13, 0.95, 10)
    (alone,) = build_refiner(configured("dense_clip/lposs.yaml", "TEST.ZERO_SHOT.REFINE", "lposs_pixels")).parts
    assert (type(alone), alone.stage, alone.pixel_mean) == (PixelLPOSS, "input", pixels.pixel_mean)

    figures = golden.load()["two_windows"]
    window = figures["image"][..., :48].float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    features = F.normalize(patches.vision_features((window - mean) / std)[0].flatten(1).T, dim=1)
    torch.testing.assert_close(features, figures["dino_features"][:36], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config, options",
    [
        ("shapes/trained.yaml", []),
        ("shapes/trained.yaml", ["MODEL.TCL.KP_HEAD", "sclip"]),
        ("shapes/groupvit.yaml", ["MODEL.GROUPVIT.WEIGHTS", ""]),
        *(("shapes/dense_clip.yaml", ["MODEL.DENSE_CLIP.HEAD", name]) for name, _ in DENSE_HEAD_REGISTRY),
    ],
)
def test_every_method_is_refined(config, options):
    """Scores of any grid and a background; an image that is of no whole patches, and one smaller than a window."""
    if "proxyclip" in options:
        options = [*options, "MODEL.DENSE_CLIP.PROXY.NAME", "golden_dino", "MODEL.DENSE_CLIP.PROXY.PRETRAINED", ""]
    torch.manual_seed(0)
    options = [*options, "TEST.ZERO_SHOT.REFINE", "lposs_plus", "TEST.ZERO_SHOT.LPOSS.PRETRAINED", ""]
    model = build_model(configured(config, *options)).eval()
    for size in ((50, 75), (20, 30)):
        image = torch.randint(0, 256, (3, *size))
        inputs = {"image": image, "vocabulary": ["brick", "lava"], "background": True, "height": 40, "width": 60}
        scores = model([inputs])[0]["sem_seg"]
        assert scores.shape == (3, 40, 60) and scores.dtype == torch.float32 and scores.isfinite().all()


def test_half_precision_is_for_the_model_alone():
    """What the refiner computes stays in fp32 and fp64."""
    figures = golden.load()["image"]
    image = figures["image"].float()
    windows = torch.cat([image[..., y:y2, x:x2] for y, y2, x, x2 in figures["locations"].tolist()])
    arguments = windows, None, figures["locations"][:, [0, 2]]
    scores = figures["cosines"].view(12, 6, 6, 7).permute(0, 3, 1, 2)
    expected = build_lposs().bind(*arguments)(scores)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(build_lposs().bind(*arguments)(scores), expected)


@pytest.mark.fault("LPOSS with numbers out of their ranges, or an unknown vision model", "an error that names the key")
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("NEIGHBORS", 0, "LPOSS.NEIGHBORS is 0"),
        ("ALPHA", 1.0, "LPOSS.ALPHA is 1.0; expected at least 0 and less than 1"),
        ("SIGMA", 0.0, "LPOSS.SIGMA is 0.0"),
        ("TAU", -1.0, "LPOSS.TAU is -1.0"),
        ("STEPS", -1, "LPOSS.STEPS is -1"),
        ("WINDOW", 12, "LPOSS.WINDOW is 12; expected an odd number"),
        ("NAME", "resnet18", "LPOSS.NAME is 'resnet18', a ResNet"),
        ("NAME", "vit_none", "LPOSS.NAME is 'vit_none', which timm .* does not have"),
    ],
)
def test_unusable_settings_are_named(key, value, message):
    options = ["TEST.ZERO_SHOT.REFINE", "lposs_plus", f"TEST.ZERO_SHOT.LPOSS.{key}", value]
    with pytest.raises(ValueError, match=message):
        check_meta_architecture(configured("shapes/dense_clip.yaml", *options))


@pytest.mark.fault("no weights for LPOSS's vision model", "one error when the model is built, before an image is read")
def test_missing_weights_are_named_when_the_model_is_built(tmp_path):
    options = ["TEST.ZERO_SHOT.REFINE", "lposs", "TEST.ZERO_SHOT.LPOSS.PRETRAINED", str(tmp_path / "dino.pth")]
    with pytest.raises(OSError, match="LPOSS.PRETRAINED: .*dino.pth"):
        build_model(configured("shapes/dense_clip.yaml", *options))


def test_windows_without_their_corners_are_refused():
    with pytest.raises(ValueError, match="2 windows without their corners"):
        build_lposs().bind(torch.zeros(2, 3, 48, 48))
