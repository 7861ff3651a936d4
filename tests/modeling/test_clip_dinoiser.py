"""CLIP-DINOiser's release: figures of features, segmentations and a training, in fp32; mistakes that they must see."""

import pytest
import torch
from detectron2.solver import build_lr_scheduler
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.engine.optimizer import build_optimizer
from tcl_d2.modeling.dense_clip import clip_dinoiser
from tcl_d2.modeling.dense_clip import model as dense_model
from tcl_d2.modeling.dense_clip.clip_dinoiser import bce, object_targets
from tcl_d2.modeling.encoders.clip import project_values
from tcl_d2.modeling.encoders.positions import PositionRule
from tcl_d2.modeling.functional import self_similarity, tokens_to_map
from tcl_d2.modeling.segmentor import crops
from tcl_d2.modeling.segmentor.windows import pad_below
from tests.conftest import ROOT
from tests.golden import clip_dinoiser as golden

TRAINED = ("obj_proj.weight", "obj_proj.bias", "bkg_decoder.weight", "bkg_decoder.bias")


def close(values: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(values, expected, rtol=0, atol=atol)


def predict(model, name: str) -> torch.Tensor:
    """Predict probabilities [1, 6, h, w] of an image, class 0 as the background."""
    text = golden.load()["text"]
    features, _ = model.encode_crops(model.normalize_images(list(golden.load()["images"][name])))
    features = model.prepare(features, text)
    scores = model.predict_masks(features, text, slice(None))
    return torch.cat([model.predict_background(features, torch.tensor([0])), scores[:, 1:]], 1)


# ------------------------------------------------------------------------------------ features


@torch.no_grad()
@pytest.mark.parametrize("name", golden.IMAGES)
def test_stages_are_the_releases(name):
    model, expected, text = golden.build_model(), golden.load()["stages"][name], golden.load()["text"]
    head, clip = model.head, model.clip
    black = -model.pixel_mean / model.pixel_std
    images = pad_below(model.normalize_images(list(golden.load()["images"][name])), 8, black)
    tokens = clip.forward_blocks(images, len(clip.blocks) - head.num_blocks, position=head.position)

    pooled, logits = head(clip, tokens, images, with_objects=True)
    close(pooled, expected["pooled"], 5e-6)
    close(logits, expected["background_logit"], 1e-5)
    if name == "wide":
        close(head.correlate(expected["intermediate"]), expected["correlations"].flatten(2), 2e-6)
        pooled = head.pool(expected["maskclip"], expected["correlations"].flatten(2))
        close(pooled, expected["pooled"], 5e-6)

    features = model.prepare(model.encode(images), text)
    close(model.predict_masks(features, text, slice(None)), expected["probabilities"], 2e-5)
    close(predict(model, name), expected["with_background"], 2e-5)


@torch.no_grad()
def test_images_of_a_batch_are_those_alone():
    model = golden.build_model()
    images = model.normalize_images(list(golden.load()["train"]["images"][0]))
    together = model.encode(images)
    for number, image in enumerate(images):
        alone = model.encode(image[None])
        close(together.clip_features[number], alone.clip_features[0], 2e-6)
        close(together.objects[number], alone.objects[0], 1e-5)


# ------------------------------------------------------------------------------------ whole segmentations


def segment(model, rows=None, **options) -> dict:
    slide = golden.load()["slide"]
    return model([{"image": slide["image"][0, :, :rows], **options}])[0]


def segment_labels(model, variant: str) -> torch.Tensor:
    slide = golden.load()["slide"]
    rows = slide["low"]["rows"] if variant == "low" else None
    height, width = (slide["low"] if variant == "low" else slide)["original_size"].tolist()
    golden.set_words(model, background=variant != "plain")
    return segment(model, rows, height=height, width=width, labels_only=True)["sem_seg_labels"]


@pytest.mark.parametrize("variant", ["plain", "background", "low"])
def test_segmentation_is_the_releases(variant):
    """Windows, of which `low` is padded; the background by probabilities and objects."""
    model, slide = golden.build_model(), golden.load()["slide"]
    assert torch.equal(segment_labels(model, variant), slide[variant]["labels"].long())

    average = segment(model, slide["low"]["rows"] if variant == "low" else None)["sem_seg"]
    close(average[None, :, ::3, ::3], slide[variant]["window_average_every_3rd"], 2e-5)


@pytest.mark.parametrize("words", [[], [0], [0, 2]])
@torch.no_grad()
def test_background_of_no_word_and_of_several(words):
    model, text = golden.build_model(), golden.load()["text"]
    features, _ = model.encode_crops(model.normalize_images(list(golden.load()["images"]["wide"])))
    features = model.prepare(features, text)
    is_background = predict(model, "wide")[:, :1] == 1
    background = model.predict_background(features, torch.tensor(words, dtype=torch.int64))
    assert (background[is_background] == 1).all()
    expected = features.scores[:, words].amax(1, keepdim=True) if words else torch.zeros_like(background)
    assert torch.equal(background[~is_background], expected[~is_background])


# ------------------------------------------------------------------------------------ mistakes


def set_head(**attributes):
    def change(model, monkeypatch):
        for name, value in attributes.items():
            monkeypatch.setattr(model.head, name, value)

    return change


def change_method(name, change_inputs):
    def change(model, monkeypatch):
        method = getattr(model.head, name)
        monkeypatch.setattr(model.head, name, lambda *inputs: method(*change_inputs(*inputs)))

    return change


def values_alone(model, monkeypatch):
    values = lambda block, x: block.attn.out_proj(project_values(block, x))  # noqa: E731
    monkeypatch.setattr(clip_dinoiser, "value_path", values)


def softmaxed(model, monkeypatch):
    monkeypatch.setattr(model.head, "gamma", -2.0)
    change_method("pool", lambda features, correlations: (features, correlations.softmax(-1)))(model, monkeypatch)


def mean_padding(model, monkeypatch):
    monkeypatch.setattr(crops, "pad_below", lambda images, multiple, value: pad_below(images, multiple, 0 * value))


def zero_padding_of_the_convolution(model, monkeypatch):
    monkeypatch.setattr(model.head.obj_proj, "padding_mode", "zeros")


def objects_of_features_as_they_are(model, monkeypatch):
    monkeypatch.setattr(model.head, "object_logits", lambda features: model.head.bkg_decoder(features))


def half_the_scale(model, monkeypatch):
    monkeypatch.setattr(dense_model, "SOFTMAX_SCALE", 50.0)


def one_hot(model, monkeypatch):
    def prepare(features, text):
        features = type(model).prepare(model, features, text)
        is_background = (features.scores.amax(1, keepdim=True) < 0.99) & (features.objects <= 0)
        return features._replace(scores=features.scores.masked_fill(is_background, 0))

    monkeypatch.setattr(model, "prepare", prepare)


def unit(features):
    return F.normalize(features, dim=1)


@torch.no_grad()
@pytest.mark.parametrize(
    "mistake, name",
    [
        (values_alone, "wide"),
        (set_head(position=PositionRule(0.1)), "wide"),
        (set_head(position=PositionRule(keeps_equal_count=True)), "same_count"),
        (set_head(num_blocks=2), "wide"),
        (set_head(num_blocks=4), "wide"),
        (zero_padding_of_the_convolution, "wide"),
        (change_method("correlate", lambda f: (unit(f),)), "wide"),
        (objects_of_features_as_they_are, "wide"),
        (change_method("pool", lambda features, c: (unit(features), c)), "wide"),
        (set_head(gamma=0.0), "wide"),
        (set_head(gamma=-2.0), "wide"),
        (softmaxed, "wide"),
        (lambda model, monkeypatch: monkeypatch.setattr(model, "background_score", 1.1), "wide"),
        (one_hot, "wide"),
        (mean_padding, "ragged"),
        (half_the_scale, "wide"),
    ],
)
def test_figures_see_plausible_mistakes(mistake, name, monkeypatch):
    """Each moves a probability by hundreds of times the figures' tolerance."""
    model = golden.build_model()
    mistake(model, monkeypatch)
    assert (predict(model, name) - golden.load()["stages"][name]["with_background"]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"quick_gelu": True},
        {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)},
    ],
)
def test_figures_see_another_activation_or_normalization(options):
    difference = predict(golden.build_model(**options), "wide") - golden.load()["stages"]["wide"]["with_background"]
    assert difference.abs().max() > 1e-2


def test_figures_see_padding_that_is_cut_off(monkeypatch):
    model = golden.build_model()
    encode_crops = model.encode_crops

    def cut_off(images):
        features, place = encode_crops(images)
        height, width = place.size
        return features, crops.CropPlace(tuple(features.images.shape[-2:]), (slice(height), slice(width)))

    monkeypatch.setattr(model, "encode_crops", cut_off)
    assert (segment_labels(model, "low") != golden.load()["slide"]["low"]["labels"]).sum() > 10


# ------------------------------------------------------------------------------------ teachers


def teacher_images() -> torch.Tensor:
    """The first batch of the training, as its CLIP sees it."""
    return golden.build_model().normalize_images(list(golden.load()["train"]["images"][0]))


def last_attention(encoder, images: torch.Tensor) -> list[torch.Tensor]:
    """Compute queries, keys and values [B, C, h, w] of a vision model's last attention."""
    projected = []
    encoder.model.blocks[-1].attn.qkv.register_forward_hook(lambda *call: projected.append(call[-1]))
    grid = encoder(images).shape[-2:]
    return [tokens_to_map(part, grid) for part in projected[0].chunk(3, dim=-1)]


@torch.no_grad()
def test_dino_says_which_patches_are_similar():
    figures = golden.load()["train"]
    queries, keys, _ = last_attention(golden.build_dino(), teacher_images())
    values = golden.build_dino().values(teacher_images())
    close(F.normalize(values.flatten(2), dim=1), figures["dino_features"], 1e-5)
    target = self_similarity(values) >= 0.2
    assert torch.equal(target, figures["corr_target"].flatten(2).bool())
    for others in (queries, keys):  # mistakes
        assert ((self_similarity(others) >= 0.2) != target).float().mean() > 0.1


@torch.no_grad()
def test_found_says_where_objects_are():
    """Its probabilities are resized, without antialias, before the threshold."""
    figures = golden.load()["train"]
    _, keys, _ = last_attention(golden.build_found(), teacher_images())
    weight, bias = (figures["found"][f"decoder.{name}"].float() for name in ("weight", "bias"))
    probabilities = torch.sigmoid(F.conv2d(keys, weight, bias))
    close(probabilities, figures["found_probabilities"], 1e-5)

    target = figures["found_target"].bool()
    inputs = [{"objects": objects} for objects in probabilities]
    assert torch.equal(object_targets(inputs, torch.zeros(target.shape)), target)
    before = F.interpolate((probabilities > 0.5).float(), size=(6, 6), mode="bilinear") > 0.5
    antialiased = F.interpolate(probabilities, size=(6, 6), mode="bilinear", antialias=True) > 0.5
    assert (before != target).float().mean() > 0.1 and (antialiased != target).float().mean() > 0.05


def test_masks_of_the_images_size_have_found_s_targets():
    """Enlarged to the images, as a file has them, and made small again."""
    figures = golden.load()["train"]
    masks = F.interpolate(figures["found_probabilities"], size=(48, 48), mode="bilinear")
    target = object_targets([{"objects": mask} for mask in masks], torch.zeros(3, 1, 6, 6))
    assert (target != figures["found_target"].bool()).float().mean() < 0.03


# ------------------------------------------------------------------------------------ training


def training_inputs(step: int) -> list[dict]:
    """A batch of the golden training, with the masks that FOUND makes."""
    figures = golden.load()["train"]
    images = figures["images"][step]
    with torch.no_grad():
        _, keys, _ = last_attention(golden.build_found(), golden.build_model().normalize_images(list(images)))
        weight, bias = (figures["found"][f"decoder.{name}"].float() for name in ("weight", "bias"))
        masks = torch.sigmoid(F.conv2d(keys, weight, bias))
    return [{"image": image, "objects": mask} for image, mask in zip(images, masks)]


class Dino:
    def __init__(self):
        self.encoder = golden.build_dino()

    def __call__(self, images):
        return self_similarity(self.encoder.values(images))


def build_trained():
    return golden.build_model(golden.build_head(teacher=Dino())).train()


def settings():
    options = ["MODEL.DENSE_CLIP.DINOISER.WEIGHTS", "", "SOLVER.STEPS", (3,), "SOLVER.MAX_ITER", 5]
    return load_config(ROOT / "configs/dense_clip/train_clip_dinoiser.yaml", options)


def test_training_is_the_releases():
    """Losses, gradients, learning rates and weights of five steps."""
    figures, model, cfg = golden.load()["train"], build_trained(), settings()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    parameters = {name: model.head.get_parameter(name) for name in TRAINED}

    for step in range(5):
        close(torch.tensor([group["lr"] for group in optimizer.param_groups]), figures["rates"][step], 1e-9)
        losses = model(training_inputs(step))
        close(losses["loss_correlation"], figures["losses"]["correlation"][step], 1e-6)
        close(losses["loss_objects"], figures["losses"]["background"][step], 1e-6)

        optimizer.zero_grad()
        sum(losses.values()).backward()
        for name, parameter in parameters.items():
            close(parameter.grad.norm(), figures["grad_norms"][name][step], 1e-6)
        if step == 0:
            for name, gradient in figures["grads_step_1"].items():
                every = 4 if name.endswith("every_4th") else 1
                close(parameters[name.removesuffix("_every_4th")].grad[::every], gradient, 1e-7)
        optimizer.step()
        scheduler.step()

        for name, weight in figures["weights_after"].get(str(step + 1), {}).items():
            every = 4 if name.endswith("every_4th") else 1
            close(parameters[name.removesuffix("_every_4th")].detach()[::every], weight, 2e-6)
    assert all(parameter.grad is None for parameter in model.clip.parameters())


def test_targets_and_predictions_of_the_first_batch():
    figures, model = golden.load()["train"], build_trained()
    with torch.no_grad():
        images = teacher_images()
        tokens = model.clip.forward_blocks(images, 1, position=model.head.position)
        _, normed = clip_dinoiser.run_block_with_norm(model.clip.blocks[1], tokens)
        intermediate = normed[:, 1:].transpose(1, 2).unflatten(2, (6, 6))
        close(model.head.correlate(intermediate), figures["predicted_correlations"].flatten(2), 2e-6)
        close(model.head.object_logits(intermediate), figures["predicted_background"], 1e-5)
    correlations, target = figures["predicted_correlations"], figures["corr_target"].bool()
    expected = figures["losses"]["correlation"][0]
    close(bce(correlations.clamp(min=0), target), expected, 1e-6)

    # Mistakes: without the clamp, with gamma, and the cosine as a probability
    unlike = [bce(correlations, target), bce(correlations.masked_fill(correlations < 0.2, 0), target)]
    unlike.append(F.binary_cross_entropy(correlations.clamp(0, 1), target.float()))
    assert all((loss - expected).abs() > 1e-3 for loss in unlike)


def test_head_without_objects_learns_similarity_alone():
    model = golden.build_model(clip_dinoiser.CLIPDINOiserHead(128, 48, finds_objects=False, teacher=Dino())).train()
    losses = model([{"image": image} for image in golden.load()["train"]["images"][0]])
    assert losses.keys() == {"loss_correlation"} and not model.has_background_map
    assert len(model.head.parameter_groups(settings())) == 1
