"""The official GroupViT release's figures: tokens, groups, scores, backgrounds, whole segmentations, in fp32."""

import logging
import pickle
import re
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from huggingface_hub import constants
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from tcl_d2 import load_config
from tcl_d2.checkpoint.card import make_card
from tcl_d2.checkpoint.hub import portable_config, write_folder
from tcl_d2.commands.train import check
from tcl_d2.config.loading import dataset_config
from tcl_d2.engine import Trainer
from tcl_d2.evaluation.dataset_settings import words_from_config
from tcl_d2.modeling import GroupViT, Refiner
from tcl_d2.modeling.encoders.text import TextEmbedder
from tcl_d2.modeling.functional import resize_scores
from tcl_d2.modeling.groupvit import (
    build_groupvit,
    build_untrained_groupvit,
    check_groupvit,
)
from tcl_d2.modeling.groupvit.official import from_official
from tcl_d2.modeling.segmentor import words_to_labels
from tcl_d2.predictor import TCLPredictor
from tcl_d2.words.vocabulary import WordSubset
from tests.conftest import ROOT
from tests.golden import groupvit as golden


@pytest.fixture(autouse=True)
def no_gradient():
    with torch.no_grad():
        yield


def write_hub_folder(path) -> None:
    """Write a folder as on the hub, with a small random model that knows CLIP's tokens."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)  # with which several groups occur
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "depths": [1, 1, 1]}
    vision |= {"num_hidden_layers": 3, "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 4], "image_size": 48}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.GroupViTConfig(
        vision_config=vision, text_config=text, projection_dim=16, projection_intermediate_dim=32
    )
    model = transformers.GroupViTModel(config)
    for parameter in model.parameters():  # as they are, they are so small that all groups would look the same
        parameter.data += torch.randn_like(parameter) / 5
    model.save_pretrained(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("groupvit") / "small"
    write_hub_folder(path)
    return path


# ------------------------------------------------------------------------------------ golden figures


@pytest.mark.parametrize("name", golden.WHOLE)
def test_tokens_and_features(name):
    encoder, expected = golden.build_encoder(), golden.load()["whole"][name]
    tokens, (to_segments, to_groups) = encoder.encode_groups(golden.image(name))
    torch.testing.assert_close(tokens, expected["group_tokens"], rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.mean(1), expected["pooled"], rtol=0, atol=1e-5)
    torch.testing.assert_close(to_segments, expected["attention_1"].flatten(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(to_groups, expected["attention_2"], rtol=0, atol=1e-5)
    assert torch.equal(to_segments.argmax(1), expected["assigned_1"].flatten(1).long())
    assert torch.equal(to_groups.argmax(1), expected["assigned_2"].long())

    groups = encoder.encode_image(golden.image(name))
    torch.testing.assert_close(groups.group_features, expected["group_embedding"], rtol=0, atol=1e-5)
    torch.testing.assert_close(groups.image_features, expected["image_embedding"], rtol=0, atol=1e-5)
    maps = resize_scores(groups.maps, expected["group_map"].shape[-2:])
    torch.testing.assert_close(maps, expected["group_map"], rtol=0, atol=1e-5)


def test_text_features_are_the_releases():
    """7 classes x 2 templates, with the golden tokens for tokenizer."""
    figures = golden.load()
    encoder, tokens = golden.build_encoder(), figures["tokens"].flatten(0, 1)
    torch.testing.assert_close(encoder.encode_text(tokens), figures["prompt_embedding"], rtol=0, atol=1e-5)

    embed = TextEmbedder(encoder, lambda prompts: tokens[: len(prompts)])
    text = embed([f"word {i}" for i in range(7)], [f"{i} {{}}" for i in range(2)])
    torch.testing.assert_close(text, figures["text_embedding"], rtol=0, atol=1e-5)


def test_tokenizer_is_the_releases():
    tokenizer = GroupViT.build_tokenizer(load_config())
    figures = golden.load()["tokenizer"]
    assert torch.equal(tokenizer(figures["texts"]), figures["tokens"])


@pytest.mark.parametrize("name", golden.WHOLE)
def test_scores_of_a_crop_are_the_releases(name):
    model, expected = golden.build_model(), golden.load()["whole"][name]
    text = golden.load()["text_embedding"]
    features = model.prepare(model.encode(golden.image(name)), text)
    assert torch.equal(features.group_of_pixel, expected["group_of_pixel"])
    torch.testing.assert_close(features.table[0].T, expected["table"], rtol=0, atol=1e-5)

    scores = model.crop_masks(*model.encode_crops(golden.image(name)), text)
    torch.testing.assert_close(scores, expected["scores"], rtol=0, atol=1e-5)
    for threshold, background in expected["background"].items():
        model.background_score = float(threshold)
        assert torch.equal(model.predict_background(features, torch.tensor([]))[:, 0], background.float())


@pytest.mark.parametrize("words_at_once", [2, 64])
@pytest.mark.parametrize("background", [False, True])
def test_scores_averaged_over_windows_are_the_releases(background, words_at_once, monkeypatch):
    monkeypatch.setattr(words_to_labels, "WORDS_AT_ONCE", words_at_once)
    model, figures = golden.build_model(), golden.load()["windows"]
    expected = figures["background" if background else "plain"]
    model.set_text_embeddings(golden.load()["text_embedding"], background)
    height, width = golden.load()["config"]["result"]
    input_per_image = {"image": golden.image("large")[0], "height": height, "width": width}

    scores = model([input_per_image])[0]["sem_seg"]
    all_scores = figures["plain"]["scores"][0]
    if background:
        all_scores = torch.cat([expected["scores"][0], all_scores])
    torch.testing.assert_close(scores, all_scores, rtol=0, atol=1e-5)

    assert torch.equal(scores.argmax(0), expected["labels"].long())
    labels = model([{**input_per_image, "labels_only": True}])[0]["sem_seg_labels"]
    assert torch.equal(labels, expected["labels"].long())


# ------------------------------------------------------------------------------------ the rule


def test_datasets_of_one_pass_have_the_scores_of_each_alone():
    """They share groups, but each has probabilities among its own words, and its own background."""
    model, text = golden.build_model(background_score=0.35), golden.load()["text_embedding"]
    subsets = [
        WordSubset(torch.tensor([0, 2, 4, 6]), torch.tensor([1, 2, 3, 4]), 5, True),
        WordSubset(torch.tensor([5, 3, 1]), torch.tensor([0, 1, 2]), 3, False),
    ]
    input_per_image = {"image": golden.image("large")[0]}
    model.set_text_embeddings(text)
    model._requested = replace(model._requested, subsets=subsets)
    together = model([input_per_image])[0]["by_dataset"]

    for subset, output in zip(subsets, together):
        model.set_text_embeddings(text[subset.words], subset.background)
        assert torch.equal(model([input_per_image])[0]["sem_seg"], output["sem_seg"])


def test_images_are_encoded_once_for_large_vocabularies(monkeypatch):
    """1,203 words: 256 at a time are looked up, in a table that is made once."""
    model, counts = golden.build_model(), []
    model.set_text_embeddings(torch.randn(1203, 32), background=True)
    encode, predict = model.encode, model.predict_masks
    monkeypatch.setattr(model, "encode", lambda images: counts.append("encode") or encode(images))

    def count_words(features, text, words):
        counts.append(len(range(*words.indices(len(text)))))
        return predict(features, text, words)

    monkeypatch.setattr(model, "predict_masks", count_words)
    labels = model([{"image": golden.image("square")[0], "labels_only": True}])[0]["sem_seg_labels"]
    assert counts.count("encode") == 1 and max(counts[1:]) == 256 and sum(counts[1:]) == 1203
    assert labels.shape == (96, 96)


def test_refinement_is_of_the_groups_maps():
    model = golden.build_model()
    plain = model.encode(golden.image("square")).group_of_pixel
    model.refiner = Refiner()
    model.refiner.forward = lambda images, maps: maps.flip(1)
    refined = model.encode(golden.image("square")).group_of_pixel
    assert torch.equal(refined, 3 - plain) and len(plain.unique()) > 1


def test_one_word_is_everywhere(caplog):
    """Said once: words are compared with each other."""
    model = golden.build_model()
    model.set_text_embeddings(golden.load()["text_embedding"][:1], background=True)
    with caplog.at_level(logging.WARNING):
        labels = model([{"image": golden.image("square")[0], "labels_only": True}])[0]["sem_seg_labels"]
    assert (labels == 1).all() and "with a single one, each pixel is of that word" in caplog.text


# ------------------------------------------------------------------------------------ evaluation


def test_config_reaches_the_model(monkeypatch):
    """Its sizes too; an error names those that a file of the official release has not."""
    sizes = {key.upper(): value for key, value in golden.SIZES.items() if key != "vocab_size"}
    tokenizer = SimpleNamespace(vocab_size=golden.SIZES["vocab_size"], context_length=77)
    monkeypatch.setattr(GroupViT, "build_tokenizer", lambda cfg: tokenizer)

    def build(**keys):
        keys = {**sizes, "WEIGHTS": golden.PATH, **keys}
        options = [part for key, value in keys.items() for part in (f"MODEL.GROUPVIT.{key}", value)]
        return build_model(load_config(ROOT / "configs/groupvit/yfcc.yaml", [*options, "MODEL.DEVICE", "cpu"])).eval()

    model, expected = build(), golden.build_encoder().state_dict()
    assert (model.crop_size, model.background_score, model.refiner) == (448, 0.95, None)
    assert list(model.templates) == ["a photo of a {}."]
    assert all(torch.equal(value, expected[name]) for name, value in model.clip.state_dict().items())
    with pytest.raises(ValueError, match="groupvit.pt.*MODEL.GROUPVIT .1 weights differ; .*position_embeddings"):
        build(IMAGE_SIZE=112)


def test_words_give_masks_and_dense_heads_are_refused(folder):
    """Words in, masks out; methods that change a CLIP's last block are refused."""
    options = ["MODEL.GROUPVIT.WEIGHTS", folder, "MODEL.DEVICE", "cpu", "TEST.ZERO_SHOT.CROP_SIZE", 96]
    options += ["TEST.ZERO_SHOT.STRIDE", 48, "INPUT.MIN_SIZE_TEST", 96, "TEST.ZERO_SHOT.TEXT_CACHE", ""]
    predictor = TCLPredictor(ROOT / "configs/groupvit/yfcc.yaml", *options)
    segmentation = predictor(ROOT / "docs/shapes.png", ["brick", "grass", "lava"], background=True)
    assert segmentation.classes == ["background", "brick", "grass", "lava"]
    assert len(np.unique(segmentation.labels)) > 1
    encoded = predictor.encode(ROOT / "docs/shapes.png", longest_side=200)
    assert np.array_equal(predictor(encoded, "brick, not: lava").labels, predictor(encoded, "brick, lava").labels)
    (best, _), *_ = predictor.rank_words(encoded, (100, 50), "brick, grass, lava").items()
    assert best == segmentation.classes[1:][np.argmax(predictor(encoded, "brick, grass, lava").scores[:, 50, 100])]
    with pytest.raises(ValueError, match="'sclip' .*GroupViT"):
        predictor.with_dense_head("sclip")


def test_bfloat16_finds_nearly_the_same_groups(folder):
    cfg = ["MODEL.GROUPVIT.WEIGHTS", folder, "MODEL.DEVICE", "cpu", "TEST.ZERO_SHOT.TEXT_CACHE", ""]
    model = build_model(load_config(ROOT / "configs/groupvit/yfcc.yaml", cfg)).eval()
    image = {"image": torch.rand(3, 96, 128) * 255, "vocabulary": ["brick", "grass", "lava"], "labels_only": True}
    labels = model([image])[0]["sem_seg_labels"]
    model.precision = torch.bfloat16
    assert (model([image])[0]["sem_seg_labels"] == labels).float().mean() > 0.7  # random weights: groups lie close


def test_model_can_be_pickled(folder):
    model = golden.build_model()
    model.set_text_embeddings(golden.load()["text_embedding"], background=True)
    image = {"image": golden.image("square")[0]}
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied([image])[0]["sem_seg"], model([image])[0]["sem_seg"])


@pytest.mark.parametrize("name", ["yfcc", "redcaps"])
def test_settings_of_the_release(name):
    cfg = load_config(ROOT / f"configs/groupvit/{name}_own_protocol.yaml")
    assert f"nvidia/groupvit-gcc-{name}" == cfg.MODEL.GROUPVIT.WEIGHTS
    for dataset_name, threshold in zip(cfg.DATASETS.TEST, (0.95, 0.35, 0.95)):
        assert threshold == dataset_config(cfg, dataset_name).TEST.ZERO_SHOT.BACKGROUND_SCORE
        assert ["background"] not in words_from_config(cfg, dataset_name)
    assert ["monitor"] in words_from_config(cfg, "zeroshot_context_val")


def test_evaluation_of_a_hubs_folder(folder, in_world, tmp_path):
    """Three benchmarks of the same images in one pass, and each alone."""
    names = ("shapes_val", "shapes_objects_val", "shapes_stuff_val")
    options = ["MODEL.GROUPVIT.WEIGHTS", folder, "MODEL.DEVICE", "cpu", "TEST.ZERO_SHOT.MAX_IMAGES", 3]
    options += ["INPUT.MIN_SIZE_TEST", 64, "TEST.ZERO_SHOT.CROP_SIZE", 48, "TEST.ZERO_SHOT.STRIDE", 24]
    options += ["DATALOADER.NUM_WORKERS", 0, "TEST.ZERO_SHOT.TEXT_CACHE", tmp_path / "text"]

    def evaluate(*datasets: str) -> dict:
        output = tmp_path / "-".join(datasets)
        cfg = load_config(
            ROOT / "configs/groupvit/yfcc.yaml", [*options, "DATASETS.TEST", datasets, "OUTPUT_DIR", output]
        )
        check(cfg, eval_only=True, weights="")
        return Trainer.test(cfg, Trainer.build_model(cfg).eval())

    together = evaluate(*names)
    for name in names:
        assert together[name]["sem_seg"] == pytest.approx(evaluate(name)[name]["sem_seg"], rel=0, abs=0, nan_ok=True)
    assert len({together[name]["sem_seg"]["mIoU"] for name in names}) > 1


def test_card_and_configuration_of_a_folder_for_the_hub(tmp_path):
    """They name the GroupViT, not a CLIP; the weights bring all that is needed."""
    cfg = load_config(ROOT / "configs/groupvit/redcaps.yaml", ["MODEL.CLIP.PRETRAINED", tmp_path / "clip.pt"])
    card = make_card(cfg)
    assert card["GroupViT"] == "nvidia/groupvit-gcc-redcaps" and "CLIP" not in card
    state = golden.build_model().state_dict()
    portable = portable_config(cfg, state)
    assert portable.MODEL.GROUPVIT.WEIGHTS == "" and portable.MODEL.CLIP.NAME == "ViT-B-16"
    assert portable.MODEL.CLIP.PRETRAINED == ""

    write_folder(tmp_path / "model", state, portable, card)
    text = (tmp_path / "model/README.md").read_text()
    assert "| GroupViT | with these weights |" in text and "CLIP" not in text
    assert f"holds {len(state)} weights, the encoders' alone" in text


@pytest.mark.fault("--hub --strip for a GroupViT", "an error: nothing would be left")
def test_a_stripped_groupvit_is_refused():
    cfg = load_config(ROOT / "configs/groupvit/yfcc.yaml")
    with pytest.raises(ValueError, match="nothing without its encoders: give --hub without --strip"):
        portable_config(cfg, {})


# ------------------------------------------------------------------------------------ weights


def test_official_names():
    """Every weight has transformers' name; what only training needs is left out."""
    state = golden.load()["model"]
    converted = from_official(state)
    assert converted.keys() == golden.build_encoder().model.state_dict().keys()
    count = sum(value.numel() for value in converted.values())
    assert count == sum(value.numel() for value in state.values()) - state["multi_label_logit_scale"].numel()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_checkpoint_of_an_official_training(tmp_path, prefix):
    """It has a configuration whose code is not run, and an optimizer's state; names may have a prefix."""
    config = OmegaConf.create({"model": {"type": "GroupViT"}, "epochs": [1, 2]})
    state = {prefix + name: value for name, value in golden.load()["model"].items()}
    checkpoint = {"model": state, "config": config, "epoch": 29, "optimizer": {"state": {}}}
    torch.save(checkpoint, tmp_path / "training.pth")
    state = golden.build_encoder(tmp_path / "training.pth").model.state_dict()
    expected = golden.build_encoder().model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.parametrize("weights_name", ["model.safetensors", "pytorch_model.bin"])
def test_model_in_the_hubs_cache_needs_no_network(folder, tmp_path, monkeypatch, weights_name):
    snapshot = tmp_path / "models--nvidia--small/snapshots/0123"
    shutil.copytree(folder, snapshot)
    expected = load_file(snapshot / "model.safetensors")
    if weights_name == "pytorch_model.bin":
        torch.save(expected, snapshot / weights_name)
        (snapshot / "model.safetensors").unlink()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)  # before 5.0

    check_groupvit("nvidia/small")
    state = build_groupvit("nvidia/small").state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.fault("GroupViT without transformers, or with an old one", "one error says what to install")
@pytest.mark.parametrize("version, message", [(None, "cannot be imported"), ("4.30.2", "but 4.30.2 is installed")])
def test_transformers_is_missing_or_old(version, message, monkeypatch):
    if version is None:
        monkeypatch.setitem(sys.modules, "transformers", None)
    else:
        monkeypatch.setattr("transformers.__version__", version)
    cfg = load_config(ROOT / "configs/groupvit/yfcc.yaml", ["MODEL.DEVICE", "cpu"])
    parts = f"{message}.*pip install 'transformers>=4.57'"
    with pytest.raises(ValueError, match=f"cannot start:(.|\n)*{parts}"):
        check(cfg, eval_only=True, weights="")
    with pytest.raises(RuntimeError, match=parts):
        build_model(cfg)


def spoil_folder(folder, change: str) -> None:
    """Make a GroupViT's folder another model's, or one whose weights do not fit."""
    if change == "config":
        (folder / "config.json").write_text('{"model_type": "clip"}')
        return
    if change == "empty":
        (folder / "config.json").unlink()
        return
    state = load_file(folder / "model.safetensors")
    if change == "missing":
        del state["text_projection.0.bias"]
    elif change == "shape":
        state["text_projection.0.bias"] = torch.zeros(5)
    else:
        state["text_projection.0.bias"][0] = torch.nan
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.fault(
    "a folder of another model, or whose weights do not fit", "one error names the folder and what differs"
)
@pytest.mark.parametrize(
    "change, message",
    [
        ("config", "is no GroupViT: its config.json says model_type 'clip', expected 'groupvit'"),
        ("empty", "has no config.json"),
        ("missing", "do not fit its config.json: 1 are missing or of another shape, such as .*text_projection.0.bias"),
        ("shape", "do not fit its config.json: 1 are missing or of another shape, such as .*text_projection.0.bias"),
        ("nan", "1 of its .* weights have NaN or Inf, such as text_projection.0.bias"),
    ],
)
def test_unfit_folder_is_named(folder, tmp_path, change, message):
    spoiled = tmp_path / "spoiled"
    shutil.copytree(folder, spoiled)
    spoil_folder(spoiled, change)
    with pytest.raises((OSError, ValueError), match=f"(?=.*spoiled).*{message}"):
        build_groupvit(str(spoiled))


@pytest.mark.fault("a file that is no GroupViT of the official release", "one error names the file and what differs")
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: {"visual.proj": torch.zeros(2)}, "is no GroupViT of the official release.*has: .'visual.proj'"),
        (lambda state: [1, 2], "holds no model"),
        (lambda state: {**state, "extra": torch.zeros(2)}, "1 weights differ; extra: the model has no such weight"),
        (
            lambda state: {key: value for key, value in state.items() if key != "text_encoder.ln_final.bias"},
            "1 weights differ; text_model.final_layer_norm.bias: the file has nothing",
        ),
        (
            lambda state: {key: value for key, value in state.items() if key != "img_encoder.pos_embed"},
            "vision_model.embeddings.position_embeddings: the file has nothing",
        ),
    ],
)
def test_unfit_file_is_named(tmp_path, change, message):
    torch.save(change(golden.load()["model"]), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"MODEL.GROUPVIT.WEIGHTS: .*weights.pth.*{message}"):
        golden.build_encoder(tmp_path / "weights.pth")


@pytest.mark.fault("an official GroupViT with another number of heads", "the error names MODEL.GROUPVIT.NUM_HEADS")
def test_number_of_heads_that_does_not_fit():
    with pytest.raises(ValueError, match="MODEL.GROUPVIT.WIDTH is 64; expected a multiple of 6"):
        build_untrained_groupvit(**{**golden.SIZES, "num_heads": 6})


@pytest.mark.parametrize("name", ["/none.pth", "/none/folder", "no name!"])
def test_missing_weights_are_named_before_anything_is_built(name):
    with pytest.raises(OSError, match=f"MODEL.GROUPVIT.WEIGHTS: .*'{re.escape(name)}'"):
        check_groupvit(name)
