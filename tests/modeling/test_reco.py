"""ReCo: the official release's references and scores, planted seeds, and what the cache and the archive bring."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tcl_d2 import load_config
from tcl_d2.data.archive import index_archive, list_archive
from tcl_d2.data.shapes import draw_scene
from tcl_d2.modeling import DENSE_HEAD_REGISTRY, MaskCLIP, ReCo, ZeroShotSegmentor
from tcl_d2.modeling.reco.cache import ReferenceCache
from tcl_d2.modeling.reco.cosegmentation import find_seeds, make_reference, weigh_patches
from tcl_d2.modeling.reco.index import ImageEmbedder, ImageRecord
from tcl_d2.modeling.reco.model import ReCoFeatures
from tests.conftest import ROOT
from tests.golden import reco as golden
from tests.running import check_error, run

CONFIG = ROOT / "configs/shapes/reco.yaml"
SWITCHES = [(True, True), (True, False), (False, True), (False, False)]
CLASSES = ["dog", "cat", "sky"]


# ------------------------------------------------------------------------------------ figures of the release


@pytest.mark.parametrize("text_attention, context_elimination", SWITCHES)
def test_references_are_the_releases(text_attention, context_elimination):
    """Also of the context's words, each made without those before it; a class that is one of them has its reference."""
    expected = golden.expected(text_attention, context_elimination)
    model = golden.build_model(text_attention, context_elimination)
    for group in ("context", "classes"):
        words = list(expected[group])
        if words:
            references = model.references(golden.text(words))
            torch.testing.assert_close(references, torch.stack(list(expected[group].values())), rtol=0, atol=1e-5)


@pytest.mark.parametrize("text_attention, context_elimination", SWITCHES)
def test_scores_are_the_releases(text_attention, context_elimination):
    model = golden.build_model(text_attention, context_elimination)
    scene, text = golden.load()["scene"], golden.text(CLASSES)
    images = torch.zeros(2, 3, *scene["size"])
    features = ReCoFeatures(images, F.normalize(scene["dense_clip"], dim=1), scene["encoder"])
    prepared = model.prepare(features, text)
    scores = torch.cat([model.predict_masks(prepared, text, words) for words in (slice(0, 1), slice(1, 3))], dim=1)
    expected = golden.expected(text_attention, context_elimination)["scores"]
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_steps_of_a_reference():
    expected = golden.expected(True, True)
    steps, images = expected["steps of dog"], golden.load()["archive"]["dog"]
    context = torch.stack(list(expected["context"].values()))
    attention = golden.build_model().dense_clip_masks(F.normalize(images["dense_clip"], dim=1), images["text"][None])

    guidance = weigh_patches(images["encoder"], attention[:, 0], context[:0])
    torch.testing.assert_close(guidance, steps["text_attention"], rtol=0, atol=1e-5)
    weights = weigh_patches(images["encoder"], attention[:, 0], context)
    torch.testing.assert_close(weights, steps["weights"], rtol=0, atol=1e-5)

    seeds = find_seeds(images["encoder"], weights)
    seed_features = images["encoder"].flatten(2)[torch.arange(5), :, seeds]
    assert torch.equal(seed_features, steps["seeds"])
    reference = make_reference(images["encoder"], weights)
    torch.testing.assert_close(reference, steps["reference"], rtol=0, atol=1e-5)


def test_figures_see_the_rule_of_the_release():
    """Its slip moves references far more than the tolerance."""
    paper, release = (golden.expected(True, True, rule)["classes"]["dog"] for rule in ("paper", "code"))
    assert (paper - release).abs().max() > 0.01


# ------------------------------------------------------------------------------------ co-segmentation


def test_seeds_are_the_patches_that_the_images_share():
    """Each image has one patch of a common direction, at its own place."""
    features = torch.randn(6, 32, 5, 7)
    places = torch.tensor([3, 0, 34, 17, 20, 9])
    common = 5 * torch.randn(32)
    features.flatten(2)[torch.arange(6), :, places] = common + 0.1 * torch.randn(6, 32)
    assert torch.equal(find_seeds(features, torch.ones(6, 5, 7)), places)
    reference = make_reference(features, torch.ones(6, 5, 7))
    assert F.cosine_similarity(reference, common, dim=0) > 0.99

    # A weight of 0 leaves the shared patch out
    weights = torch.ones(6, 5, 7)
    weights.flatten(1)[torch.arange(6), places] = 0
    assert not (find_seeds(features, weights) == places).any()


def test_seeds_are_those_of_the_whole_adjacency():
    features, weights = torch.randn(4, 8, 3, 5), torch.rand(4, 3, 5)
    unit = F.normalize(features, dim=1).permute(0, 2, 3, 1).reshape(60, 8)
    adjacency = (unit @ unit.T) * weights.flatten()
    agreement = adjacency.view(60, 4, 15).amax(2).mean(1)
    assert torch.equal(find_seeds(features, weights), agreement.view(4, 15).argmax(1))


class LargestTensor(TorchFunctionMode):
    """Notes how many numbers the largest result of an operation has."""

    size = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.numel())
        return result


def test_the_whole_adjacency_is_never_held():
    features, weights = torch.randn(20, 4, 6, 7), torch.rand(20, 6, 7)
    with LargestTensor() as largest:
        find_seeds(features, weights)
    assert largest.size == 42 * 20 * 42


def test_eliminated_context_is_weighed_less():
    features = torch.randn(3, 16, 4, 4)
    reference = F.normalize(features[1, :, 2, 3], dim=0)
    weights = weigh_patches(features, None, reference[None])
    assert weights[1, 2, 3] == weights.min() and weights.min() == pytest.approx(1 - torch.tensor(1.0).sigmoid().item())


# ------------------------------------------------------------------------------------ the model


@pytest.fixture(scope="module")
def index(world, tmp_path_factory):
    """The index of the small world's training scenes."""
    folder = tmp_path_factory.mktemp("index")
    parts = [[str(path)] for path in (world / "shapes/train").glob("*.tar")]
    index_archive(parts, folder, ImageEmbedder(MaskCLIP(load_config(CONFIG))))
    return folder


@pytest.fixture
def cfg(index, tmp_path):
    options = ["MODEL.RECO.INDEX", index, "MODEL.RECO.NUM_IMAGES", 10, "MODEL.RECO.CACHE", tmp_path / "cache"]
    return load_config(CONFIG, options)


@pytest.fixture
def model(cfg):
    return ReCo(cfg).eval()


def segment(model: ZeroShotSegmentor, words: list[str]) -> torch.Tensor:
    image = torch.randint(256, (3, 60, 75), generator=torch.Generator().manual_seed(0))
    return model([{"image": image, "vocabulary": words}])[0]["sem_seg"]


def test_a_words_scores_do_not_depend_on_the_others(model):
    together = segment(model, ["brick", "wood", "grass"])
    for number, word in enumerate(["brick", "wood", "grass"]):
        torch.testing.assert_close(segment(model, [word])[0], together[number], rtol=0, atol=1e-5)
    assert together.std(dim=(1, 2)).min() > 0.01 and not torch.allclose(together[0], together[1])


def test_references_are_kept_in_files(model, cfg, monkeypatch):
    """By archive, models and words: the same model needs no image again, another setting does."""
    first = segment(model, ["brick", "wood"])
    cosegmented = []
    monkeypatch.setattr(ReCo, "encode_archive", lambda self, records: cosegmented.append(records) or 1 / 0)
    assert torch.equal(segment(ReCo(cfg).eval(), ["wood", "brick"])[[1, 0]], first)

    for key, value in (("NUM_IMAGES", 9), ("TEXT_ATTENTION", False), ("CONTEXT", ["sand"])):
        other = cfg.clone()
        other.MODEL.RECO[key] = value
        with pytest.raises(ZeroDivisionError):
            segment(ReCo(other).eval(), ["wood", "brick"])
    assert len(cosegmented) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "num_images", 5),
        lambda model: setattr(model, "image_size", 56),
        lambda model: setattr(model, "text_attention", False),
        lambda model: setattr(model, "mask_scale", 5.0),
        lambda model: setattr(model, "clip_blocks", 3),
        lambda model: setattr(model, "head", DENSE_HEAD_REGISTRY.get("sclip")(None)),
        lambda model: setattr(model.head, "sigma", 2.0),
    ],
)
def test_references_follow_the_settings(cfg, monkeypatch, change):
    """Those of other settings are not taken for them, also where a model's settings are changed."""
    cfg.MODEL.DENSE_CLIP.HEAD, cfg.MODEL.RECO.CONTEXT = "naclip", []
    model = ReCo(cfg).eval()
    segment(model, ["brick"])
    monkeypatch.setattr(ReCo, "encode_archive", lambda self, records: 1 / 0)
    segment(model, ["brick"])
    change(model)
    with pytest.raises(ZeroDivisionError):
        segment(model, ["brick"])


def test_an_index_follows_the_weights(model):
    """Also those that are loaded into the CLIP alone."""
    segment(model, ["brick"])
    model.clip.load_state_dict({name: value + 0.01 for name, value in model.clip.state_dict().items()})
    with pytest.raises(ValueError, match="index of another CLIP"):
        segment(model, ["wood"])


@pytest.mark.fault("the making of references is stopped", "those that were made are not made again")
def test_references_are_kept_as_they_come(model, cfg, monkeypatch):
    words = ["brick", "wood", "grass"]
    expected = segment(model, words)
    for file in Path(cfg.MODEL.RECO.CACHE).glob("*"):
        file.unlink()

    made = []
    cosegment = ReCo._cosegment

    def stop_before_the_last(self, *args):
        if len(made) == 7:  # six of the context, of which grass is a word too, and brick
            raise KeyboardInterrupt
        made.append(args)
        return cosegment(self, *args)

    monkeypatch.setattr(ReCo, "_cosegment", stop_before_the_last)
    with pytest.raises(KeyboardInterrupt):
        segment(ReCo(cfg).eval(), words)
    made.clear()
    torch.testing.assert_close(segment(ReCo(cfg).eval(), words), expected)
    assert len(made) == 1


@pytest.mark.fault("a file in ReCo's cache is cut off", "the reference is made again")
def test_a_broken_reference_is_made_again(tmp_path):
    expected = ReferenceCache(tmp_path).get_all(["a"], lambda numbers: [torch.arange(3.0)], "cpu")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    again = ReferenceCache(tmp_path).get_all(["a"], lambda numbers: [torch.arange(3.0)], "cpu")
    assert torch.equal(again, expected)
    assert torch.equal(ReferenceCache(tmp_path).get_all(["a"], None, "cpu"), expected)  # whole again


@pytest.mark.fault("two words of ReCo's context that are one text for the tokenizer", "an error that names both")
def test_context_of_one_text_is_refused(cfg):
    cfg.MODEL.RECO.CONTEXT = ["sand", "Sand"]
    with pytest.raises(ValueError, match="'sand' and 'Sand'"):
        ReCo(cfg)


@pytest.mark.parametrize("head", sorted(name for name, _ in DENSE_HEAD_REGISTRY))
def test_any_dense_head_and_an_encoder_of_timm(model, cfg, head):
    cfg.MODEL.DENSE_CLIP.HEAD = head
    cfg.MODEL.DENSE_CLIP.PROXY.NAME = cfg.MODEL.RECO.ENCODER.NAME = "test_vit"
    cfg.MODEL.DENSE_CLIP.PROXY.PRETRAINED = cfg.MODEL.RECO.ENCODER.PRETRAINED = ""
    cfg.MODEL.DENSE_CLIP.DINOISER.WEIGHTS = ""
    cfg.MODEL.RECO.IMAGE_SIZE = 112 if head == "proxyclip" else 64
    cfg.MODEL.RECO.CONTEXT = []
    other = ReCo(cfg).eval()
    assert not any("encoder" in name for name in other.state_dict())
    scores = segment(other, ["brick", "wood"])
    assert scores.shape == (2, 60, 75) and scores.std() > 0.001 and scores.min() >= 0 and scores.max() <= 1


def test_the_reference_alone(model, cfg):
    cfg.MODEL.RECO.DENSE_CLIP = False
    alone = ReCo(cfg).eval()
    text = alone.embed_vocabulary(["brick"], alone.templates)
    features, place = alone.encode_crops(torch.randn(1, 3, 48, 48))
    masks = alone.crop_masks(features, place, text)
    torch.testing.assert_close(model.references(text), alone.references(text))
    dense = F.interpolate(alone.dense_clip_masks(features.clip_features, text), (48, 48), mode="bilinear")
    torch.testing.assert_close(masks * dense, model.crop_masks(features, place, text))


@pytest.mark.parametrize("word", ["brick", "grass", "water"])  # grass is the context's first word, water its third
@torch.no_grad()
def test_the_images_of_a_word_and_their_seeds(model, word):
    """The reference is the mean of the features of the seeds' patches."""
    (text,) = model.embed_vocabulary([word], model.templates)
    images, boxes = model.retrieve(text)
    assert images.shape == (10, 3, 48, 48) and images.dtype == torch.uint8 and len(boxes) == 10
    assert (boxes[:, 2:] - boxes[:, :2] == model.clip.patch_size).all() and boxes.min() >= 0 and boxes.max() <= 48

    embedding = model.encode(model.normalize_images(list(images))).embedding
    columns, rows = (boxes[:, :2] // model.clip.patch_size).T
    seeds = embedding[torch.arange(10), :, rows, columns]
    torch.testing.assert_close(F.normalize(seeds.mean(0), dim=0), model.references(text[None])[0], rtol=0, atol=1e-5)


def test_picture_of_images_and_seeds(world, index, tmp_path):
    """A row a word, blank where there are fewer images; a model that is no ReCo has none."""
    command = ["tools/visualize_references.py", "brick, grass", "--output", tmp_path / "picture.png"]
    options = ["--opts", "MODEL.RECO.INDEX", index, "MODEL.RECO.NUM_IMAGES", 3]
    done = run(world, *command, "--count", 4, *options)
    assert done.returncode == 0, done.stderr
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    assert picture.shape == (2 * 100, 120 + 4 * 100, 3)
    is_blank = [(picture[:96, x : x + 96] == 255).all() for x in range(120, 520, 100)]
    assert is_blank == [False, False, False, True]  # of three images that were asked for

    check_error(run(world, *command, "--config-file", "shapes/tcl.yaml"), "is of a TCL, which retrieves no images")
    check_error(run(world, *command, "--count", 0, *options), "--count is 0")


def test_masks_are_refined_as_of_other_methods(model, cfg):
    """With PAMR they are made at four times CLIP's grid."""
    cfg.TEST.ZERO_SHOT.REFINE = "pamr"
    refined = ReCo(cfg).eval()
    text = refined.embed_vocabulary(["brick", "wood"], refined.templates)
    features, _ = refined.encode_crops(torch.randn(1, 3, 48, 48))
    assert refined.predict_masks(refined.prepare(features, text), text, slice(None)).shape == (1, 2, 24, 24)


@pytest.mark.fault("ReCo with an archive of too few images, or of none", "a warning; it works with those")
def test_an_archive_that_is_empty(cfg, tmp_path, caplog):
    """Of the factor of its references nothing is known: 1/2."""
    cfg.MODEL.RECO.INDEX = str(tmp_path / "index")
    (tmp_path / "images").mkdir()
    index_archive(list_archive(str(tmp_path / "images")), tmp_path / "index", ImageEmbedder(MaskCLIP(cfg)))
    model = ReCo(cfg).eval()
    text = model.embed_vocabulary(["brick"], model.templates)
    features, place = model.encode_crops(torch.randn(1, 3, 48, 48))
    dense = F.interpolate(model.dense_clip_masks(features.clip_features, text), (48, 48), mode="bilinear")
    torch.testing.assert_close(model.crop_masks(features, place, text), dense / 2)
    assert "has 0 images for a word, in place of the 10" in caplog.text


@pytest.mark.fault("ReCo with an archive of too few images, or of none", "a warning; it works with those")
@torch.no_grad()
def test_an_archive_that_is_small(cfg, tmp_path, caplog):
    """Of three images, all are of each word."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        scene = draw_scene(seed=7, index=number, size=60)
        Image.fromarray(scene.image).save(tmp_path / f"images/{number}.png")
    cfg.MODEL.RECO.INDEX = str(tmp_path / "index")
    cfg.MODEL.RECO.CONTEXT = []
    index_archive(list_archive(str(tmp_path / "images")), tmp_path / "index", ImageEmbedder(MaskCLIP(cfg)))
    model = ReCo(cfg).eval()
    scores = segment(model, ["brick", "wood"])
    assert "has 3 images for a word, in place of the 10" in caplog.text and scores.std(dim=(1, 2)).min() > 0.001
    (text,) = model.embed_vocabulary(["brick"], model.templates)
    assert len(model.retrieve(text).images) == 3


@pytest.mark.fault("an image of ReCo's archive is gone", "a warning; the reference is made of the others")
def test_an_image_that_is_gone_is_left_out(model, tmp_path, caplog):
    text = model.embed_vocabulary(["brick"], model.templates)
    (records,) = model.index.search(text, 10)
    gone = ImageRecord(str(tmp_path / "gone.png"))
    features = model.encode_archive([*records[:4], gone, *records[4:]])
    torch.testing.assert_close(features.embedding, model.encode_archive(records).embedding)
    assert "gone.png" in caplog.text and len(records) == 10


@pytest.mark.fault("ReCo without an index of its archive", "one error says which command makes it")
def test_without_an_index(cfg, tmp_path):
    cfg.MODEL.RECO.INDEX = str(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="MODEL.RECO.INDEX.*index'.*tcl-d2 index ARCHIVE"):
        ReCo(cfg)


@pytest.mark.fault("ReCo with an index of another CLIP", "it is refused")
def test_an_index_of_another_clip(model, cfg):
    other = ReCo(cfg).eval()
    weights = {name: value + 0.01 for name, value in model.state_dict().items()}
    segment(other, ["brick"])
    other.load_state_dict(weights)
    with pytest.raises(ValueError, match="index of another CLIP"):
        segment(other, ["brick"])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("NUM_IMAGES", 0, "NUM_IMAGES is 0; expected"),
        ("IMAGE_SIZE", 50, "IMAGE_SIZE is 50; expected a multiple of 8"),
        ("ENCODER.BLOCKS", 6, "ENCODER.BLOCKS is 6; expected 1 to 5"),
        ("ENCODER.NAME", "no_vit", "MODEL.RECO.ENCODER.NAME is 'no_vit'"),
    ],
)
def test_values_out_of_range_are_named(cfg, key, value, message):
    cfg.merge_from_list([f"MODEL.RECO.{key}", value])
    with pytest.raises(ValueError, match=message):
        ReCo(cfg)
