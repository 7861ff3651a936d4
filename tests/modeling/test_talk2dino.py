"""Talk2DINO equals its release on a small model: texts, tokens, scores, labels; mistakes near at hand do not."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from tcl_d2 import load_config
from tcl_d2.data.features import read_square
from tcl_d2.engine.optimizer import FullModelClippedAdamW, trained_parameters
from tcl_d2.modeling import PAMR, Talk2DINO
from tcl_d2.modeling.encoders.positions import PositionRule
from tcl_d2.modeling.encoders.text import TextEmbedder
from tcl_d2.modeling.functional import normalize, tokens_to_map
from tcl_d2.modeling.talk2dino.attention import ClassAttention
from tcl_d2.modeling.talk2dino.loss import contrast, own_heads
from tcl_d2.modeling.talk2dino.model import stretch
from tcl_d2.modeling.talk2dino.projection import Projection, load_projection
from tcl_d2.words.templates import get_templates
from tests.golden import talk2dino as golden

WINDOWS = ("square", "stretched")


def check(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dinov2")


@pytest.fixture(scope="module")
def vision(folder):
    return golden.build_vision(folder)


@pytest.fixture(scope="module")
def model(vision) -> Talk2DINO:
    return golden.build_model(vision)


def predict(model: Talk2DINO, window: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores of the golden classes on the grid, or refined ones, and enlarged."""
    image = golden.load()["window"][window]["image"]
    text = golden.load()["text"]["embedding"]
    features, place = model.encode_crops(model.normalize_images(list(image)))
    scores = model.predict_masks(model.prepare(features, text), text, slice(None))
    return scores, model.crop_masks(features, place, text)


def sample(scores: torch.Tensor) -> torch.Tensor:
    every = golden.load()["meta"]["every"]
    return scores[..., ::every, ::every]


# ------------------------------------------------------------------------------------ parts


class Tokens:
    """The golden tokens of prompts, in place of a tokenizer: each word is its number, each template too."""

    def __call__(self, texts: list[str]) -> torch.Tensor:
        tokens = golden.load()["text"]["tokens"].long()
        return torch.stack([tokens[tuple(map(int, text.split()))] for text in texts])


def test_texts_are_the_golden_ones():
    """The mean over templates of features that are not normalized, then the projection, then length 1."""
    figures, tower = golden.load()["text"], golden.build_text()
    prompts = tower.encode_text(figures["tokens"].flatten(0, 1).long()).unflatten(0, figures["tokens"].shape[:2])
    check(prompts, figures["prompt_embedding"], 5e-6)
    check(golden.build_projection()(prompts.mean(1)), figures["projected_mean"], 5e-6)

    embedder = TextEmbedder(tower, Tokens(), projection=golden.build_projection())
    words, templates = [str(number) for number in range(5)], ["{} 0", "{} 1", "{} 2"]
    check(embedder(words, templates), figures["embedding"], 5e-7)
    embedder.normalize_prompts = True  # as SCLIP's
    assert (embedder(words, templates) - figures["embedding"]).abs().max() > 1e-3


def test_prompts_are_not_projected_before_the_mean():
    figures = golden.load()["text"]
    wrong = normalize(golden.build_projection()(figures["prompt_embedding"]).mean(1), 1)
    assert (wrong - figures["embedding"]).abs().max() > 1e-2


def test_projected_texts_follow_the_projection():
    """Cached features are of the projection as it is, in memory and in files."""
    projection = golden.build_projection()
    embedder = TextEmbedder(golden.build_text(), Tokens(), projection=projection)
    before, digest = embedder(["0"], ["{} 0"]), embedder._digest(torch.zeros(1))
    projection.linear_layer.weight.mul_(0.5)
    assert not torch.allclose(embedder(["0"], ["{} 0"]), before, atol=1e-3)
    assert embedder._digest(torch.zeros(1)) != digest


@pytest.mark.parametrize("window", WINDOWS)
def test_tokens_and_attention_are_the_golden_ones(model, window):
    figures = golden.load()["window"][window]
    squares = stretch(model.normalize_images(list(figures["image"])), model.image_size)
    patches, attention = model.attend(squares)
    check(patches.flatten(2).transpose(1, 2), figures["patch_tokens"], 5e-6)
    check(attention.logits, figures["attention_logits"], 5e-6)
    check(model.vision.tokens(squares)[:, 0], figures["class_token"], 5e-6)
    if "network_input" in figures:
        check(squares, figures["network_input"].float(), 1e-3)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("cleaning, name", [(0.0, "score"), (0.2, "cleaned")])
def test_scores_of_a_window_are_the_golden_ones(vision, window, cleaning, name):
    figures, model = golden.load()["window"][window], golden.build_model(vision, cleaning=cleaning)
    grid, scores = predict(model, window)
    check(grid, figures[f"{name}_grid"], 5e-7)
    check(sample(scores), figures[f"{name}_sampled"], 5e-7)

    model.refiner = PAMR()
    refined, scores = predict(model, window)
    assert refined.shape == scores.shape
    check(sample(scores), figures["pamr_sampled" if name == "score" else "cleaned_pamr_sampled"], 2e-6)


def test_cosines_are_the_golden_ones(model):
    figures = golden.load()["window"]["square"]
    features, _ = model.encode_crops(model.normalize_images(list(figures["image"])))
    text = golden.load()["text"]["embedding"]
    check(model.clip_similarity(features.clip_features, text), figures["similarity"], 5e-7)


# ------------------------------------------------------------------------------------ whole images

PASSES = {
    "plain": {},
    "background": {"background": True},
    "pamr": {"refiner": True},
    "background_pamr": {"background": True, "refiner": True},
    "background_cleaned": {"background": True, "cleaning": 0.2},
    "background_cleaned_pamr": {"background": True, "cleaning": 0.2, "refiner": True},
}


def segment(model: Talk2DINO, background: bool, **request) -> dict:
    golden.set_words(model, background)
    figures = golden.load()["slide"]
    height, width = figures["original_size"]
    (output,) = model([{"image": figures["image"][0], "height": height, "width": width, **request}])
    return output


@pytest.mark.parametrize("name", PASSES)
def test_labels_are_the_golden_ones(vision, name):
    background, refiner, cleaning = map(PASSES[name].get, ("background", "refiner", "cleaning"))
    model = golden.build_model(vision, refiner=PAMR() if refiner else None, cleaning=cleaning or 0.0)
    labels = segment(model, bool(background), labels_only=True)["sem_seg_labels"]
    assert torch.equal(labels, golden.load()["slide"][name]["labels"].long())


@pytest.mark.parametrize("name", ["plain", "background_cleaned_pamr"])
def test_averaged_scores_are_the_golden_ones(vision, name):
    background = bool(PASSES[name].get("background"))
    refiner, cleaning = (PAMR(), 0.2) if background else (None, 0.0)
    model = golden.build_model(vision, refiner=refiner, cleaning=cleaning)
    golden.set_words(model, background)
    (output,) = model([{"image": golden.load()["slide"]["image"][0]}])
    check(sample(output["sem_seg"]), golden.load()["slide"][name]["scores_sampled"][0], 2e-6 if refiner else 5e-7)


def test_cleaning_sees_all_words_though_they_come_in_parts(vision, monkeypatch):
    """Its extremes are over the whole vocabulary."""
    monkeypatch.setattr("tcl_d2.modeling.segmentor.words_to_labels.WORDS_AT_ONCE", 2)
    monkeypatch.setattr("tcl_d2.modeling.talk2dino.model._WORDS_AT_ONCE", 3)
    labels = segment(golden.build_model(vision, cleaning=0.2), True, labels_only=True)["sem_seg_labels"]
    assert torch.equal(labels, golden.load()["slide"]["background_cleaned"]["labels"].long())


def test_a_class_has_its_scores_alone_without_cleaning(model, vision):
    """And others with cleaning, for which a vocabulary cannot be cut."""
    cleaned = golden.build_model(vision, cleaning=0.2)
    text = golden.load()["text"]["embedding"]
    for segmentor, depends in ((model, False), (cleaned, True)):
        assert segmentor.scores_depend_on_vocabulary == depends
        image = segmentor.normalize_images(list(golden.load()["window"]["square"]["image"]))
        features, _ = segmentor.encode_crops(image)
        together = segmentor.predict_masks(segmentor.prepare(features, text), text, slice(None))
        alone = segmentor.predict_masks(segmentor.prepare(features, text[:1]), text[:1], slice(None))
        assert torch.allclose(alone, together[:, :1], atol=1e-6) != depends


# ------------------------------------------------------------------------------------ traps


class Cosines(Talk2DINO):
    """Cosines in place of their sigmoid."""

    def _scores(self, features, text):
        return self.clip_similarity(features.clip_features, text)


class Scaled(Talk2DINO):
    """With a scale, as a contrast has one."""

    def _scores(self, features, text):
        return (self.clip_similarity(features.clip_features, text) / 0.07).sigmoid()


class Softmax(Talk2DINO):
    def _scores(self, features, text):
        return self.clip_similarity(features.clip_features, text).softmax(1)


class CornersApart(Talk2DINO):
    """Enlarged as this project's other methods."""

    align_corners = False


class Padded(Talk2DINO):
    """A window that is no square is padded, in place of stretched."""

    def encode(self, images):
        return super().encode(F.pad(images, (0, 0, 0, images.shape[3] - images.shape[2])))


class ClassTokenInTheMap(Talk2DINO):
    """The map begins with the class token, four patches too early."""

    def encode(self, images):
        features = super().encode(images)
        tokens = self.vision.tokens(stretch(images, self.image_size))[:, 1 : 1 + features.clip_features[0, 0].numel()]
        patches = tokens_to_map(tokens, features.clip_features.shape[2:])
        return features._replace(clip_features=normalize(patches, 1))


class NoNorm(Talk2DINO):
    """Patches before the final norm."""

    def encode(self, images):
        block = self.vision.last_block(stretch(images, self.image_size))
        tokens = block.model.blocks[-1](block.tokens)
        patches = tokens_to_map(tokens, self.vision.grid(stretch(images, self.image_size)))
        return super().encode(images)._replace(clip_features=normalize(patches, 1))


@pytest.mark.parametrize("wrong", [Cosines, Scaled, Softmax, CornersApart, Padded, ClassTokenInTheMap, NoNorm])
def test_mistakes_give_other_scores(vision, wrong):
    figures = golden.load()["window"]["stretched"]
    _, scores = predict(golden.build_model(vision, wrong), "stretched")
    assert (sample(scores) - figures["score_sampled"]).abs().max() > 1e-3


@pytest.mark.parametrize("position", [PositionRule(), PositionRule(offset=0.1)])
def test_positions_by_other_rules_give_other_scores(folder, position):
    """Without antialias, or as SCLIP's release resizes them, which ProxyCLIP takes for DINOv2."""
    model = golden.build_model(golden.build_vision(folder, position))
    figures = golden.load()["window"]["square"]
    assert (predict(model, "square")[0] - figures["score_grid"]).abs().max() > 1e-3


def test_bgr_gives_other_scores(model):
    figures, text = golden.load()["window"]["square"], golden.load()["text"]["embedding"]
    features, _ = model.encode_crops(model.normalize_images(list(figures["image"].flip(1))))
    assert (model.predict_masks(features, text, slice(None)) - figures["score_grid"]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        lambda attention: attention._replace(logits=attention.logits.softmax(2)),
        lambda attention: attention._replace(logits=attention.logits * 8),
        lambda attention: attention._replace(patches=normalize(attention.patches, 2)),
    ],
)
def test_other_attention_cleans_otherwise(vision, change, monkeypatch):
    """After the softmax, without the scale, of patches of length 1."""
    read = ClassAttention.read
    monkeypatch.setattr(ClassAttention, "read", lambda *arguments: change(read(*arguments)))
    grid, _ = predict(golden.build_model(vision, cleaning=0.2), "square")
    assert (grid - golden.load()["window"]["square"]["cleaned_grid"]).abs().max() > 2e-6


def test_configs_are_of_the_releases_parts():
    """Seven templates, TCL's without the last two; the text tower of ViT-B/16 beside ViT-L, too."""
    assert get_templates("talk2dino") == get_templates("tcl")[:7]
    for name, background in (("vitb", 0.55), ("vitl", 0.54), ("dinov3_vitb", 0.55), ("dinov3_vitl", 0.54)):
        cfg = load_config(f"talk2dino/{name}.yaml")
        test = cfg.TEST.ZERO_SHOT
        assert (cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED) == ("ViT-B-16", "openai")
        assert (["talk2dino"], background) == (test.TEMPLATES, test.BACKGROUND_SCORE)
        assert (test.CROP_SIZE, test.STRIDE) == (448, 224)
        assert not cfg.MODEL.TALK2DINO.CLEANING and cfg.MODEL.TALK2DINO.PROJECTION.endswith(f"/{name}_mlp_infonce.pth")


# ------------------------------------------------------------------------------------ files of the projection


def save_projection(folder, **names: str) -> str:
    """Write the golden projection as the release's files are, with other names for its layers."""
    state = golden.weights("projection")
    for old, new in names.items():
        state = {name.replace(f"{old}.", f"{new}."): value for name, value in state.items()}
    torch.save(state, folder / "projection.pth")
    return str(folder / "projection.pth")


def read(path: str, projection: Projection) -> Projection:
    load_projection(projection, "MODEL.TALK2DINO.PROJECTION", path, "ViT-B-16 and DINOv2")
    return projection


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"linear_layer": "projection.linear_layer", "hidden_layers.0": "projection.hidden_layers.0"},
        {"hidden_layers.0": "linear_layer2"},
    ],
)
def test_projections_are_read_in_all_layouts(tmp_path, names):
    """The release's, its older one, and that of a training's checkpoint."""
    loaded = read(save_projection(tmp_path, **names), Projection(32, 192)).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in golden.weights("projection").items())


@pytest.mark.fault("a projection of Talk2DINO for an image model of another width", "one error says what differs")
def test_a_projection_of_another_width_is_refused(tmp_path):
    message = (
        r"PROJECTION: '.*' does not fit ViT-B-16 and DINOv2 \(4 weights differ; .*the file has \(192, 32\), the model"
    )
    with pytest.raises(ValueError, match=message):
        read(save_projection(tmp_path), Projection(32, 192 + 64))


def build_cfg(*options):
    return load_config(
        "shapes/talk2dino.yaml", ["MODEL.TALK2DINO.NAME", "test_vit", "MODEL.TALK2DINO.PRETRAINED", "", *options]
    )


@pytest.mark.fault("an image model of Talk2DINO without a class token, or a window of no whole patches", "it is named")
@pytest.mark.parametrize(
    "options, message",
    [
        (("NAME", "vit_medium_patch16_gap_240"), "NAME is vit_medium_patch16_gap_240; expected a model with a class"),
        (("IMAGE_SIZE", 50), "IMAGE_SIZE is 50; expected a multiple of the patches' 16 pixels"),
        (("NAME", "resnet18"), "NAME is 'resnet18', a ResNet"),
        (("PROJECTION", "missing.pth"), "PROJECTION: .*missing.pth"),
    ],
)
def test_unusable_settings_are_named(options, message):
    key, value = options
    with pytest.raises((OSError, ValueError), match=f"MODEL.TALK2DINO.{message}"):
        build_model(build_cfg(f"MODEL.TALK2DINO.{key}", value))


def test_checkpoints_hold_the_projection_and_no_image_model():
    names = build_model(build_cfg()).state_dict()
    assert {name for name in names if not name.startswith("clip.")} == {
        f"projection.{name}" for name in golden.weights("projection")
    }
    assert not [name for name in names if "visual" in name]


# ------------------------------------------------------------------------------------ training


class Captions:
    """The golden captions' tokens, in place of a tokenizer: each caption is its number."""

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return golden.load()["extraction"]["captions"][list(map(int, texts))].long()


def test_features_are_the_golden_ones(model):
    """Images resized by the short side, bicubic, and cropped; captions as they are, not normalized."""
    figures = golden.load()["extraction"]
    images = [to_pil_image(image) for image in figures["images"].values()]
    heads = model.encode_squares(torch.stack([read_square(image, figures["crop"]) for image in images]))
    check(heads, figures["heads"], 5e-7)

    model.tokenizer = Captions()
    check(model.encode_captions([str(number) for number in range(len(figures["captions"]))]), figures["text"], 5e-6)


def contrast_of(**options) -> tuple[torch.Tensor, Projection]:
    figures, projection = golden.load()["train"], golden.build_projection()
    with torch.enable_grad():
        loss = contrast(projection(figures["texts"].float()), figures["images"].float(), **options)
        loss.backward()
    return loss.detach(), projection


def test_loss_and_gradients_are_the_golden_ones():
    figures = golden.load()["train"]
    loss, projection = contrast_of()
    check(loss, figures["loss"], 1e-8)
    for name, parameter in projection.named_parameters():
        check(parameter.grad, figures["gradients"][name], 5e-9)


def test_heads_are_those_nearest_to_the_own_captions():
    """The same for all captions; the nearest head of each pair would be another matrix."""
    figures = golden.load()["train"]
    text = normalize(golden.build_projection()(figures["texts"].float()), 1)
    heads = normalize(figures["images"].float(), 2)
    images = own_heads(text, heads)
    assert torch.equal(images, heads[torch.arange(len(heads)), torch.tensor(figures["head_of_pair"])])
    check(text @ images.T, figures["scores"], 5e-7)
    assert (torch.einsum("bc,ihc->bih", text, heads).amax(2) - figures["scores"]).abs().max() > 0.1


def test_several_processes_have_the_loss_of_their_whole_batch(monkeypatch):
    """Scores are of all their captions and images, and so is the square of their number."""
    figures = golden.load()["train"]
    text = golden.build_projection()(figures["texts"].float())
    heads = figures["images"].float()
    unit = normalize(text, 1)
    others = iter([unit[2:], own_heads(unit, normalize(heads, 2))[2:]])
    monkeypatch.setattr("tcl_d2.modeling.talk2dino.loss.gather", lambda x: torch.cat([x, next(others)]))
    check(contrast(text[:2], heads[:2]), figures["loss"], 1e-8)


def test_loss_is_divided_by_the_square_of_the_batch():
    """Which the plain loss is not; the factor 1/N of the heads' means vanishes."""
    size = len(golden.load()["train"]["texts"])
    check(contrast_of(divided=False)[0], size**2 * golden.load()["train"]["loss"], 1e-6)


@torch.enable_grad()
@pytest.mark.parametrize("divided, eps", [(True, 1e-8), (False, 36e-8)])
def test_three_steps_are_the_golden_ones(divided, eps):
    """Those of the plain loss, with an epsilon that is larger by the same factor, too."""
    figures, projection = golden.load()["train"], golden.build_projection()
    optimizer = FullModelClippedAdamW(projection.parameters(), max_norm=0, lr=figures["lr"], eps=eps, weight_decay=0)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = contrast(projection(figures["texts"].float()), figures["images"].float(), divided)
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / (1 if divided else 36))

    assert sum(losses) / 3 == pytest.approx(figures["mean_loss_of_3_steps"], abs=1e-7)
    state = projection.state_dict()
    for name, value in figures["after_3_steps"].items():
        check(state[name], value, 1e-7)
    for name, value in figures["after_3_steps_weight_rows"].items():
        check(state[name][: len(value)], value, 1e-7)


def test_a_larger_epsilon_takes_other_steps():
    """Of the plain loss with the divided one's epsilon; so the division is not without effect."""
    figures = golden.load()["train"]
    _, projection = contrast_of(divided=False)
    before = projection.linear_layer.bias.clone()
    FullModelClippedAdamW(projection.parameters(), max_norm=0, lr=1e-4, eps=1e-8, weight_decay=0).step()
    with_plain = projection.linear_layer.bias - before

    _, projection = contrast_of(divided=True)
    FullModelClippedAdamW(projection.parameters(), max_norm=0, lr=1e-4, eps=1e-8, weight_decay=0).step()
    assert (projection.linear_layer.bias - before - with_plain).abs().max() > 1e-7 * figures["lr"]


def test_training_trains_the_projection_alone():
    """The loss of a batch of features, by name; the scale does not learn."""
    model = build_model(build_cfg()).train()
    with torch.enable_grad():
        batch = [{"text": torch.randn(model.clip.width), "heads": torch.randn(3, 64)} for _ in range(4)]
        (loss,) = model(batch).values()
        loss.backward()
    assert (
        {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        == set(trained_parameters(model))
        == {f"projection.{name}" for name in golden.weights("projection")}
    )
