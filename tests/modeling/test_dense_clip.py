"""The official releases' figures of the dense CLIPs: features, refinements, whole segmentations, in fp32."""

from itertools import chain

import pytest
import torch
from torch.nn import functional as F

from tcl_d2.modeling import PAMR
from tcl_d2.modeling.dense_clip import ClearCLIPHead, CLIPHead, MaskCLIPHead, NACLIPHead, ProxyCLIPHead, SCLIPHead
from tcl_d2.modeling.dense_clip.refinement import denoise_prompts, smooth_keys
from tcl_d2.modeling.encoders.text import TextEmbedder
from tcl_d2.modeling.functional import normalize
from tcl_d2.modeling.segmentor.windows import Windows, batch_windows, pad_to_multiple
from tests.golden import dense_clip as golden

HEADS = {
    "vanilla": CLIPHead,
    "maskclip_quick_gelu": MaskCLIPHead,
    "sclip": SCLIPHead,
    "clearclip": ClearCLIPHead,
    "naclip": NACLIPHead,
}
pytestmark = pytest.mark.usefixtures("no_gradient")


@pytest.fixture
def no_gradient():
    with torch.no_grad():
        yield


def check_features(features: torch.Tensor, expected: dict) -> None:
    """Compare features [1, D, h, w] with a golden entry: as they are, normalized, and as cosines with the words."""
    tokens = features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected["features"], rtol=0, atol=1e-5)
    if "normalized" in expected:
        torch.testing.assert_close(normalize(tokens, 2), expected["normalized"], rtol=0, atol=2e-6)
    cosines = torch.einsum("bdhw,kd->bkhw", normalize(features, 1), golden.load()["text"])
    torch.testing.assert_close(cosines, expected["logits"], rtol=0, atol=2e-6)


def compute_features(head, image, quick_gelu=True):
    clip = golden.build_clip(quick_gelu)
    tokens = clip.forward_blocks(image, len(clip.blocks) - 1, position=head.position)
    return head(clip, tokens, image)


@pytest.mark.parametrize("name", golden.IMAGES)
@pytest.mark.parametrize("method", HEADS)
def test_features_are_the_releases(method, name):
    check_features(compute_features(HEADS[method](), golden.image(name)), golden.load()[method][name])


@pytest.mark.parametrize("name", golden.IMAGES)
def test_features_of_the_maskclip_release_with_its_own_activation(name):
    features = compute_features(MaskCLIPHead(), golden.image(name), quick_gelu=False)
    check_features(features, golden.load()["maskclip_official"][name])


def test_neighborhood_of_another_size():
    check_features(compute_features(NACLIPHead(1.5), golden.image("wide")), golden.load()["naclip"]["std_1_5"])


@pytest.mark.parametrize("name", golden.IMAGES)
def test_neighborhoods_are_the_releases(name):
    expected = golden.load()["naclip"][name]["addition_row_7"]
    rows, columns = (side // 8 for side in golden.image(name).shape[-2:])
    omega = NACLIPHead().neighborhood((rows, columns))
    torch.testing.assert_close(omega[7], expected, rtol=0, atol=1e-6)
    assert omega[0].abs().max() == 0 == omega[:, 0].abs().max()


# ------------------------------------------------------------------------------------ ProxyCLIP


def proxy_features(vision, image, beta=1.2, gamma=3.0):
    clip = golden.build_clip()
    head = ProxyCLIPHead(torch.nn.Identity(), beta, gamma)
    tokens = clip.forward_blocks(image, len(clip.blocks) - 1, position=head.position)
    return head.gather(clip, tokens, clip.grid(image), vision.float()), head.attention(vision.float())


@pytest.mark.parametrize(
    "entry, name, target",
    [("square_9x9", "square", "forward"), ("square_12x12", "square", "forward"), ("wide_11x14", "wide", "upright")],
)
def test_features_under_the_attention_of_a_vision_model(entry, name, target):
    expected = golden.load()["proxyclip"][entry]
    features, attention = proxy_features(expected["vfm"], golden.image(name))
    check_features(features, expected[target])
    assert (attention == 0).float().mean().item() == pytest.approx(expected["share_masked"], abs=1e-6)


@pytest.mark.parametrize(
    "entry, name, target",
    [("square_9x9", "square", "forward_attended"), ("wide_11x14", "wide", "upright_attended")],
)
def test_values_under_the_attention_of_a_vision_model(entry, name, target):
    """What the attention gathers, before the output projection."""
    expected, image, clip = golden.load()["proxyclip"][entry], golden.image(name), golden.build_clip()
    clip.blocks[-1].attn.out_proj = torch.nn.Identity()
    gathered = []
    clip.project = lambda tokens, grid: gathered.append(tokens)

    head = ProxyCLIPHead(torch.nn.Identity())
    tokens = clip.forward_blocks(image, len(clip.blocks) - 1, position=head.position)
    head.gather(clip, tokens, clip.grid(image), expected["vfm"].float())
    torch.testing.assert_close(gathered[0], expected[target], rtol=0, atol=2e-6)


def test_another_threshold_and_scale_of_proxy_attention():
    expected = golden.load()["proxyclip"]["square_12x12"]
    features, _ = proxy_features(expected["vfm"], golden.image("square"), beta=1.0, gamma=5.0)
    check_features(features, expected["beta_1_gamma_5"])


def test_proxy_attention_of_a_batch_is_that_of_each_image():
    """The release has one window at a time; its mean over a batch would make scores depend on what is beside."""
    figures, square = golden.load()["proxyclip"]["batch_of_two"], golden.image("square")
    images = torch.cat([square, square.flip(-1)])
    features, _ = proxy_features(figures["vfm"], images)
    for index in range(2):
        alone, _ = proxy_features(figures["vfm"][index : index + 1], images[index : index + 1])
        torch.testing.assert_close(features[index : index + 1], alone, rtol=0, atol=2e-6)
    assert (features.flatten(2).transpose(1, 2) - figures["features"]).abs().max() > 1e-3


def test_flat_image_has_no_nan():
    """Each pair of patches is left out there, and the release gives NaN; here a patch sees at least itself."""
    features, _ = proxy_features(golden.load()["proxyclip"]["degenerate"]["vfm"], golden.image("square"))
    assert features.isfinite().all()


def test_proxy_windows_are_padded_to_multiples_of_56():
    expected = golden.load()["proxyclip"]["square_9x9"]["pad_of_65x120"]
    padded, (rows, columns) = pad_to_multiple(torch.zeros(1, 3, 65, 120), ProxyCLIPHead.pad_to)
    pads = (columns.start, padded.shape[3] - columns.stop, rows.start, padded.shape[2] - rows.stop)
    assert pads == tuple(int(value) for value in expected)


# ------------------------------------------------------------------------------------ refinements, PAMR, words


@pytest.mark.parametrize("suffix, threshold", [("", 1.0), ("_below_0_6", 0.6)])
def test_refinements_of_given_similarities(suffix, threshold):
    figures = golden.load()["maskclip_refine"]
    cosines, keys = figures["logits"].float(), figures["keys"].float()
    denoised = denoise_prompts(cosines, 0.5)
    torch.testing.assert_close(denoised, figures["prompt_denoising"], rtol=0, atol=0)
    assert torch.equal((denoised == -100).all((2, 3)), figures["classes_dropped"].bool())

    smoothed, both = figures[f"key_smoothing{suffix}"], figures[f"both{suffix}"]
    torch.testing.assert_close(smooth_keys(cosines, keys, threshold), smoothed, rtol=0, atol=1e-5)
    torch.testing.assert_close(smooth_keys(denoised, keys, threshold), both, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["square", "wide"])
@pytest.mark.parametrize(
    "refinement, options",
    [
        ("prompt_denoising", {"prompt_denoising": 0.5}),
        ("key_smoothing", {"key_smoothing": 1.0}),
        ("both", {"prompt_denoising": 0.5, "key_smoothing": 1.0}),
    ],
)
def test_refinements_of_the_network(refinement, options, name):
    model = golden.build_model(MaskCLIPHead(), quick_gelu=False, **options)
    features, _ = model.encode_crops(golden.image(name))
    text = golden.load()["text"]
    scores = model.predict_masks(model.prepare(features, text), text, slice(None))
    torch.testing.assert_close(scores, golden.load()["maskclip_official"][name][refinement], rtol=0, atol=5e-5)


def test_pamr_of_naclip_is_the_releases():
    figures = golden.load()["pamr"]
    image, logits = figures["image"].float(), figures["logits"].float()
    logits = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=True)
    refined = PAMR(figures["iterations"], figures["dilations"].tolist())(image, logits)
    torch.testing.assert_close(refined, figures["refined"], rtol=0, atol=2e-6)


def test_prompts_are_normalized_before_their_mean():
    figures = golden.load()["text_ensemble"]
    tokens = figures["tokens"].long().flatten(0, 1)
    embed = TextEmbedder(golden.build_clip(), lambda prompts: tokens[: len(prompts)], normalize_prompts=True)
    text = embed([f"word {i}" for i in range(7)], [f"{i} {{}}" for i in range(80)])
    torch.testing.assert_close(text, figures["query_features"], rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------ whole segmentations


def segment(model, image, size, labels_only=True):
    return model([{"image": image, "height": int(size[0]), "width": int(size[1]), "labels_only": labels_only}])[0]


@pytest.mark.parametrize("variant", ["plain", "thresholds", "one_word_each"])
def test_segmentation_of_sclip(variant):
    """Windows without padding, several words a class, scale, threshold, area rule."""
    figures = golden.load()["slide"]["sclip"]
    settings = figures[variant]
    model = golden.build_model(
        SCLIPHead(),
        crop_size=int(figures["crop"]),
        stride=int(figures["stride"]),
        logit_scale=float(settings["logit_scale"]),
        background_score=float(settings["prob_thd"]),
        area_threshold=max(0.0, float(settings.get("area_thd", -1))),
    )
    classes = torch.arange(7) if variant == "one_word_each" else figures["word_class"]
    golden.set_words(model, classes, background=True)
    image, size = figures["image"][0].float(), figures["original_size"]

    labels = segment(model, image, size)["sem_seg_labels"]
    assert torch.equal(labels, settings["labels"].long())
    scores = segment(model, image, size, labels_only=False)["sem_seg"]
    assert torch.equal(scores.argmax(0), settings["labels"].long())
    if "probabilities_every_3rd" in settings:  # of the background the larger of probability and threshold
        expected = settings["probabilities_every_3rd"]
        torch.testing.assert_close(scores[1:, ::3, ::3], expected[1:], rtol=0, atol=5e-6)


def test_window_average_of_sclip():
    figures = golden.load()["slide"]["sclip"]
    model = golden.build_model(SCLIPHead())
    windows = Windows(figures["image"][0].float(), int(figures["crop"]), int(figures["stride"]))
    text = golden.load()["text"]
    masks = (model.crop_masks(*model.encode_crops(crops), text) for crops in batch_windows([windows], 2))
    average = windows.average(chain.from_iterable(masks))
    torch.testing.assert_close(average[None, :, ::3, ::3], figures["window_average_every_3rd"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("refined", [False, True])
def test_segmentation_of_naclip(refined):
    """The whole image at once, with and without PAMR at the output's size."""
    sclip, figures = golden.load()["slide"]["sclip"], golden.load()["slide"]["naclip_whole"]
    model = golden.build_model(
        NACLIPHead(),
        crop_size=0,
        logit_scale=float(figures["logit_scale"]),
        background_score=float(figures["prob_thd"]),
        refiner=PAMR(10, (8, 16), whole_image=True) if refined else None,
    )
    golden.set_words(model, sclip["word_class"], background=True)
    labels = segment(model, sclip["image"][0].float(), sclip["original_size"])["sem_seg_labels"]
    assert torch.equal(labels, figures["labels_pamr" if refined else "labels"].long())


def test_segmentation_of_clearclip():
    """Windows padded to whole patches."""
    sclip, figures = golden.load()["slide"]["sclip"], golden.load()["slide"]["clearclip_padded"]
    model = golden.build_model(
        ClearCLIPHead(),
        crop_size=int(figures["crop"]),
        stride=int(figures["stride"]),
        logit_scale=float(figures["logit_scale"]),
        background_score=float(figures["prob_thd"]),
    )
    golden.set_words(model, sclip["word_class"], background=True)
    image = sclip["image"][0, :, : int(figures["rows"])].float()
    assert torch.equal(segment(model, image, sclip["original_size"])["sem_seg_labels"], figures["labels"].long())
