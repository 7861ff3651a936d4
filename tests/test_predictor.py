"""From pictures and words to masks: what the predictor takes, returns and refuses."""

import copy
import pickle
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.data.shapes import GROUNDS, OBJECTS, draw_scene
from tcl_d2.modeling import DenseCLIP
from tcl_d2.modeling.checks import check_device
from tcl_d2.predictor import TCLPredictor, stream
from tcl_d2.segmentation import Segmentation
from tcl_d2.words.specificity import at_specificity
from tcl_d2.words.words import Words
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def predictor():
    return TCLPredictor(ROOT / "configs/shapes/trained.yaml")


def test_shipped_model_finds_what_is_there(predictor):
    """On scenes that it was not trained on, most pixels get the right one of all words."""
    words, accuracies = [*OBJECTS, *GROUNDS], []
    for index in range(6):
        scene = draw_scene(seed=7, index=index, size=96, objects=(2, 4))
        accuracies.append((predictor(scene.image, words).labels == scene.label).mean())
    assert np.mean(accuracies) > 0.5


def test_paths_arrays_and_pil_images_give_the_same(predictor, tmp_path):
    image = draw_scene(seed=7, index=0, size=60).image[:50]
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    images = [image, Image.fromarray(image), path, str(path)]
    results = predictor(images, ["brick", "sand"], background=True)
    assert results[0].scores.shape == (3, 50, 60) and results[0].classes == ["background", "brick", "sand"]
    for other in results[1:]:
        assert torch.equal(other.scores, results[0].scores)
    assert isinstance(predictor(path, ["brick"]), Segmentation)


def test_runs_without_a_gpu_and_says_so(monkeypatch, caplog):
    """A config made for GPUs serves on a laptop."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml", "MODEL.DEVICE", "cuda", "MODEL.WEIGHTS", "")
    assert predictor.model.device.type == "cpu"
    assert "torch finds no GPU here" in caplog.text and "MODEL.WEIGHTS is empty" in caplog.text


@pytest.mark.parametrize(
    "image, words, message",
    [
        ("/none.png", ["a"], "/none.png"),
        (np.zeros((3, 5, 5), np.float32), ["a"], r"not float32 \[3, 5, 5\]"),
        (7, ["a"], "not int"),
        (np.zeros((9, 9, 3), np.uint8), [], "at least one class word"),
        (np.zeros((9, 9, 3), np.uint8), ["a", " "], "not blank"),
        (np.zeros((9, 9, 3), np.uint8), ["a", "a"], "twice: a"),
        (np.zeros((0, 9, 3), np.uint8), ["a"], r"at least one pixel, not uint8 \[0, 9, 3\]"),
    ],
)
def test_bad_input_is_named(predictor, image, words, message):
    with pytest.raises(ValueError, match=message):
        predictor(image, words)


def test_one_text_is_words_separated_by_commas(predictor):
    assert predictor(np.zeros((9, 9, 3), np.uint8), "red brick, lava").classes == ["red brick", "lava"]


@pytest.mark.fault("'background' among the class words, with a background besides", "an error says to leave it out")
def test_background_is_no_class_word_where_there_is_one(predictor):
    image, words = np.zeros((9, 9, 3), np.uint8), ["background", "grass"]
    with pytest.raises(ValueError, match="'background'"):
        predictor(image, words, background=True)
    assert predictor(image, words).classes == words


@pytest.mark.parametrize("classes", ["person | man, background music", [["person", "man"], "background music"]])
def test_a_class_may_have_several_words(classes):
    assert Words.read(classes, True).classes == [["person", "man"], "background music"]
    with pytest.raises(ValueError, match="'background'"):
        Words.read("wall | background, cat", True)


@pytest.mark.parametrize(
    "classes, background",
    [
        ("wood | marble, lava", "soil, sand"),
        ("wood|marble,lava", " soil | sand ,"),
        ([["wood", "marble"], "lava"], ["soil", "sand"]),
    ],
)
def test_texts_are_the_same_as_lists_of_words(predictor, classes, background):
    """A class has the best of its words; the background, besides its constant score, the best of its own."""
    image = draw_scene(seed=7, index=5, size=96).image
    wood, marble, lava, *backgrounds = predictor(image, ["wood", "marble", "lava", "soil", "sand"]).scores
    constant = torch.full_like(wood, predictor.model.background_score)
    expected = torch.stack([torch.stack([constant, *backgrounds]).amax(0), torch.maximum(wood, marble), lava])

    segmentation = predictor(image, classes, background)
    assert segmentation.classes == ["background", "wood", "lava"]
    torch.testing.assert_close(segmentation.scores, expected, rtol=0, atol=1e-5)
    lists = predictor(image, [["wood", "marble"], "lava"], ["soil", "sand"], labels_only=True)
    assert np.array_equal(segmentation.labels, lists.labels)
    assert (segmentation.labels != predictor(image, classes, True).labels).any()  # these words matter


@pytest.mark.parametrize("background", [False, True])
def test_negative_words_take_pixels_away(predictor, background):
    """They compete as a class does, and what they win is the last class, of no word; as an argument and as written."""
    image = draw_scene(seed=7, index=18, size=96, objects=(4, 5)).image
    whole = predictor(image, ["marble", "yellow striped", "grass", "sand"], background)
    segmentation = predictor(image, ["marble", "yellow striped"], background, negative=["grass", "sand"])
    assert segmentation.classes[-1] == "not: grass | sand" and segmentation.negative
    assert torch.equal(segmentation.scores[-1], whole.scores[-2:].amax(0))
    assert torch.equal(segmentation.scores[:-1], whole.scores[:-2])
    assert segmentation.areas()["not: grass | sand"] == whole.areas()["grass"] + whole.areas()["sand"] > 0.5
    assert not predictor(image, ["marble"], background).negative
    texts = predictor(image, "marble, yellow striped", background, negative="grass | sand")
    assert torch.equal(texts.scores, segmentation.scores)

    for classes in ("marble, yellow striped, not: grass | sand", ["marble", ["not: grass", "sand"], "yellow striped"]):
        written = predictor(image, classes, background, labels_only=True)
        assert written.classes == segmentation.classes and np.array_equal(written.labels, segmentation.labels)


@pytest.mark.fault("a word that is asked for and negative, given to a predictor", "an error names it")
def test_a_word_both_asked_for_and_negative_is_refused(predictor):
    with pytest.raises(ValueError, match="'lava' .*negative"):
        predictor.stream([], "brick | lava, not: lava")
    with pytest.raises(ValueError, match="class word"):
        predictor.stream([], "not: lava")


def test_parents_are_no_words_unless_they_are_asked_for(predictor):
    image, text = draw_scene(seed=7, index=18, size=96, objects=(4, 5)).image, "red striped < striped, brick < stone"
    expected = predictor(image, ["red striped", "brick"])
    assert torch.equal(predictor(image, text).scores, expected.scores)
    general = predictor(image, at_specificity(text, "parents"))
    assert general.classes == ["striped", "stone"] and (general.scores > expected.scores - 1e-6).all()


@pytest.mark.parametrize("method", ["tcl", "sclip"])
def test_an_encoded_image_gives_the_same_at_once(predictor, monkeypatch, method):
    """Of another size of the result, too; CLIP sees it once."""
    predictor = predictor if method == "tcl" else predictor.with_dense_head(method)
    image = draw_scene(seed=7, index=5, size=96).image[:72]
    expected = [predictor(image, words, True).scores for words in ("wood, lava", "brick")]

    encoded = predictor.encode(image)
    assert torch.equal(predictor(encoded, "wood, lava", True).scores, expected[0])
    monkeypatch.setattr(predictor.model, "encode", None)
    assert torch.equal(predictor(encoded, "brick", True).scores, expected[1])
    assert predictor([encoded], "brick", longest_side=48)[0].labels.shape == (36, 48)


@pytest.mark.fault("an image that another predictor has encoded", "an error says so")
def test_an_image_of_another_predictor_is_refused(predictor):
    encoded = predictor.with_dense_head("clip").encode(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="another predictor"):
        predictor(encoded, "brick")


@pytest.mark.parametrize("method", ["tcl", "sclip"])
def test_words_are_ranked_by_their_mean_score_in_a_region(predictor, method):
    """The scores are those of a segmentation into the same words; of a point, its own."""
    predictor = predictor if method == "tcl" else predictor.with_dense_head(method)
    image, words = draw_scene(seed=7, index=5, size=96).image[:72], ["wood", ["brick", "lava"], "grass", "denim"]
    segmentation = predictor(image, words)
    region = segmentation.region(60, 40)
    ranking = predictor.rank_words(image, region, words)
    means = segmentation.scores[:, torch.from_numpy(region)].mean(1).tolist()
    assert ranking == pytest.approx(dict(zip(segmentation.classes, means)), abs=1e-5) and len(ranking) == 4
    assert list(ranking) == [segmentation.classes[index] for index in np.argsort(means)[::-1]]

    at_point = predictor.rank_words(predictor.encode(image), (60, 40), "wood, brick | lava, grass, denim")
    assert at_point == pytest.approx(dict(zip(segmentation.classes, segmentation.scores[:, 40, 60].tolist())), abs=1e-6)


def test_a_region_of_a_large_image_is_ranked_at_a_smaller_size(predictor):
    image = draw_scene(seed=7, index=18, size=96, objects=(4, 5)).image.repeat(6, 0).repeat(6, 1)
    segmentation = predictor(image, ["marble", "grass"])
    region = segmentation.mask("marble")
    ranking = predictor.rank_words(image, region, ["marble", "grass"])
    means = segmentation.scores[:, torch.from_numpy(region)].mean(1).tolist()
    assert list(ranking.values()) == pytest.approx(means, abs=0.02) and list(ranking) == ["marble", "grass"]
    assert set(predictor.rank_words(image, (575, 0), ["marble", "grass"])) == {"marble", "grass"}


def test_regions_are_named_among_the_words_of_a_benchmark(predictor):
    """Most objects of scenes that the model was not trained on have their own word among the best three of 23."""
    hits = []
    for index in range(4):
        scene = draw_scene(seed=7, index=index, size=96, objects=(2, 4))
        encoded, names = predictor.encode(scene.image), [*OBJECTS, *GROUNDS]
        for label in np.unique(scene.label[scene.label < len(OBJECTS)]):
            ranking = predictor.rank_words(encoded, scene.label == label, "shapes_objects_val")
            assert set(ranking) == set(OBJECTS)
            hits.append(names[label] in list(ranking)[:3])
    assert len(hits) >= 8 and np.mean(hits) > 0.5


@pytest.mark.fault("words to rank: none, an unknown benchmark, a dataset without words", "an error that names it")
@pytest.mark.parametrize(
    "words, message",
    [
        ([], "at least one class word"),
        (" , ", "at least one class word"),
        ("zeroshot_moon_val", "there is no benchmark 'zeroshot_moon_val'; there are .*zeroshot_voc_val"),
        ("shapes_train", "the dataset 'shapes_train' has no class words"),
    ],
)
def test_unusable_words_to_rank(predictor, words, message):
    with pytest.raises(ValueError, match=message):
        predictor.rank_words(np.zeros((9, 9, 3), np.uint8), (0, 0), words)


@pytest.mark.parametrize("head", ["clip", "maskclip", "sclip", "clearclip", "naclip"])
def test_a_dense_head_shares_the_clip(predictor, head):
    """It gives the scores of the method's own configuration, and the first model stays as it was."""
    image, words = draw_scene(seed=7, index=1, size=96).image, ["brick", "sand", "lava"]
    before = predictor(image, words).scores
    dense = predictor.with_dense_head(head)
    options = ["MODEL.DENSE_CLIP.HEAD", head, "TEST.ZERO_SHOT.BACKGROUND_SCORE", dense.model.background_score]
    expected = TCLPredictor("shapes/dense_clip.yaml", *options)
    assert torch.equal(dense(image, words, True).scores, expected(image, words, True).scores)
    assert dense.model.clip is predictor.model.clip and type(dense.model) is DenseCLIP
    assert torch.equal(predictor(image, words).scores, before) and predictor.cfg.MODEL.META_ARCHITECTURE == "TCL"


def test_options_stand_over_a_dense_heads_settings():
    options = ["TEST.ZERO_SHOT.LOGIT_SCALE", 20, "MODEL.DENSE_CLIP.HEAD", "sclip", "MODEL.WEIGHTS", ""]
    dense = TCLPredictor("shapes/trained.yaml", *options).with_dense_head("naclip")
    assert dense.model.logit_scale == 20 and type(dense.model.head).__name__ == "NACLIPHead"
    assert dense.model.background_score == 0.3 and dense.model.refiner is None


def test_an_unknown_dense_head_is_named(predictor):
    with pytest.raises(ValueError, match="'nclip'.*naclip"):
        predictor.with_dense_head("nclip")


@pytest.mark.fault("ProxyCLIP without the weights of its vision model, and without a network", "one error says so")
def test_missing_weights_of_the_vision_model_are_named(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="vit_base_patch8_224.dino.*PROXY.PRETRAINED"):
        predictor.with_dense_head("proxyclip")


def test_options_are_applied_over_a_configuration():
    cfg = load_config(ROOT / "configs/shapes/trained.yaml")
    cfg.freeze()
    predictor = TCLPredictor(cfg, "TEST.ZERO_SHOT.BACKGROUND_SCORE", 0.125, "TEST.ZERO_SHOT.REFINE", "none")
    assert predictor.model.background_score == 0.125 and predictor.model.refiner is None
    assert cfg.TEST.ZERO_SHOT.BACKGROUND_SCORE == 0.4


@pytest.mark.fault("an int where a setting is a float, given to a predictor", "taken as that number")
@pytest.mark.parametrize("as_path", [True, False])
def test_ints_are_taken_where_a_setting_is_a_float(as_path):
    path = ROOT / "configs/shapes/trained.yaml"
    predictor = TCLPredictor(path if as_path else load_config(path), "TEST.ZERO_SHOT.KP_WEIGHT", 0)
    assert predictor.cfg.TEST.ZERO_SHOT.KP_WEIGHT == 0.0


@pytest.mark.fault("a working size of images below 0 pixels, given to a predictor", "an error that names the setting")
@pytest.mark.parametrize("key, value", [("INPUT.MIN_SIZE_TEST", -1), ("INPUT.MAX_SIZE_TEST", 0)])
def test_sizes_out_of_range_are_refused_when_the_predictor_is_built(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value}"):
        TCLPredictor(ROOT / "configs/shapes/trained.yaml", key, value)


@pytest.mark.fault("a predictor of Detectron2's default configuration", "one error that names the models there are")
def test_configuration_of_another_model_is_refused():
    with pytest.raises(ValueError, match="META_ARCHITECTURE.*GeneralizedRCNN.*TCL"):
        TCLPredictor(load_config())


def test_labels_alone_are_those_of_the_scores(predictor):
    image = draw_scene(seed=7, index=0, size=60).image
    whole = predictor(image, ["brick", "sand", "lava"], background=True)
    segmentation = predictor(image, ["brick", "sand", "lava"], background=True, labels_only=True)
    assert segmentation.scores is None
    assert np.array_equal(segmentation.labels, whole.labels) and segmentation.areas() == whole.areas()


@pytest.mark.parametrize("labels_only", [True, False])
def test_longest_side_bounds_the_result_alone(predictor, labels_only):
    """The model sees the same picture: its labels are those of the whole result, at fewer points."""
    image = draw_scene(seed=7, index=0, size=96).image[:72].repeat(4, 0).repeat(4, 1)
    options = {"background": True, "labels_only": labels_only}
    whole, small = (predictor(image, ["brick", "sand"], **options, longest_side=side) for side in (None, 96))
    assert whole.labels.shape == (288, 384) and small.labels.shape == (72, 96) and small.image.shape == (72, 96, 3)
    assert (whole.labels[2::4, 2::4] == small.labels).mean() > 0.97
    assert predictor(image, ["brick"], longest_side=5000).image.shape == image.shape
    with pytest.raises(ValueError, match="longest_side is 0"):
        predictor(image, ["brick"], longest_side=0)


@pytest.mark.fault("pictures of 4000 x 3, 2 x 3000 and 1 x 1 pixels", "segmented and drawn as any other")
@pytest.mark.parametrize("height, width", [(3, 4000), (3000, 2), (1, 1)])
def test_extreme_pictures_are_segmented_and_drawn(predictor, tmp_path, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    segmentation = predictor(image, ["brick", "sand"], background=True)
    assert segmentation.labels.shape == (height, width)
    overlay, labels, *_ = segmentation.save(tmp_path, "x", heat_maps=True)
    assert Image.open(labels).size == (width, height)
    assert Image.open(overlay).width >= 240  # the legend has room
    shown = predictor(image, ["brick", "sand"], longest_side=100)
    assert shown.labels.shape == shown.image.shape[:2] and min(shown.labels.shape) >= 1


@pytest.mark.fault("a device that torch does not know, or has not here", "refused by name; a GPU's work is the CPU's")
@pytest.mark.parametrize("device", ["gpu", "meta", "hpu", "vulkan", "cuda:x"])
def test_a_device_that_torch_does_not_know_is_refused(device):
    with pytest.raises(ValueError, match=f"MODEL.DEVICE.*{device}"):
        TCLPredictor(ROOT / "configs/shapes/trained.yaml", "MODEL.DEVICE", device)


@pytest.mark.parametrize("device", ["mps", "mps:0", "xpu"])
def test_other_accelerators_are_checked_as_cuda_is(device, caplog, monkeypatch):
    """A predictor goes on on the CPU; a training and the other commands say so at once."""
    monkeypatch.setattr(torch.get_device_module(device.partition(":")[0]), "is_available", lambda: False)
    assert TCLPredictor(ROOT / "configs/shapes/trained.yaml", "MODEL.DEVICE", device).model.device.type == "cpu"
    assert f"MODEL.DEVICE is {device}, but torch finds no GPU" in caplog.text
    with pytest.raises(ValueError, match=f"MODEL.DEVICE.*{device}"):
        check_device(device)


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16], ids=str)
def default_dtype(request):
    """Return a function that makes another dtype torch's default, until the end of a test."""
    before = torch.get_default_dtype()
    yield lambda: torch.set_default_dtype(request.param)
    torch.set_default_dtype(before)


@pytest.mark.fault("a model built under torch.set_default_dtype of another type", "one error says so when it is built")
def test_a_model_of_another_dtype_is_not_built(default_dtype):
    default_dtype()
    for config in ("trained", "maskclip", "groupvit"):
        with pytest.raises(ValueError, match=f"{torch.get_default_dtype()}.*torch.float32"):
            TCLPredictor(ROOT / f"configs/shapes/{config}.yaml")


@pytest.mark.parametrize("method", ["tcl", "sclip"])
def test_the_default_dtype_does_not_change_what_a_model_finds(predictor, default_dtype, method, monkeypatch):
    predictor = predictor if method == "tcl" else predictor.with_dense_head(method)
    image, request = draw_scene(seed=7, index=5, size=96).image, (["wood", "lava"], True)
    expected = predictor(image, *request).scores
    monkeypatch.setattr(predictor.model.embed_vocabulary, "_features", {})
    default_dtype()
    assert torch.equal(predictor(image, *request).scores, expected)


@pytest.mark.fault("a model after half(), double() or bfloat16()", "one error names the type and the setting instead")
@pytest.mark.parametrize("part", ["model", "grounder"])
@pytest.mark.parametrize("convert", ["half", "double", "bfloat16"])
def test_converted_weights_are_refused(predictor, part, convert):
    predictor = copy.copy(predictor)
    predictor.model = copy.deepcopy(predictor.model)
    getattr(predictor.model if part == "model" else predictor.model.grounder, convert)()
    with pytest.raises(ValueError, match="torch.float32.*TEST.ZERO_SHOT.PRECISION"):
        predictor(np.zeros((9, 9, 3), np.uint8), "brick")
    with pytest.raises(ValueError, match="torch.float32.*SOLVER.AMP.ENABLED"):
        predictor.model.train()([{"image": torch.zeros(3, 48, 48), "caption": "brick"}] * 2)


def test_a_stream_gives_what_one_at_a_time_gives(predictor, tmp_path):
    """Of images of several sizes, in order, in batches; an image that cannot be read gives its error in its place."""
    images = [draw_scene(seed=7, index=index, size=96).image[: 96 - 7 * index] for index in range(4)]
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    request = (["brick", "sand", "lava"], True)

    for num_workers, batch_size in ((0, 1), (2, 4), (1, 1)):
        options = {"num_workers": num_workers, "batch_size": batch_size, "return_exceptions": True}
        results = list(predictor.stream([paths[4], *paths], *request, **options))
        for error in (results[0], results[5]):
            assert isinstance(error, ValueError) and "4.png" in str(error)
        for segmentation, image in zip(results[1:], images):
            expected = predictor(image, *request)
            assert np.array_equal(segmentation.image, image) and np.array_equal(segmentation.labels, expected.labels)
            torch.testing.assert_close(segmentation.scores, expected.scores, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="4.png"):
        list(predictor.stream(paths, *request))


def test_a_stream_is_read_a_little_ahead_and_held_no_longer(predictor, monkeypatch):
    """A generator may be endless, and large images make small batches."""
    taken, batch_sizes = [], []

    def scenes():
        for index in range(1000):
            taken.append(index)
            yield np.zeros((8, 8, 3), np.uint8)

    hook = predictor.model.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0])))
    try:
        results = predictor.stream(scenes(), "brick", labels_only=True, batch_size=3)
        for _ in range(4):
            next(results)
        results = None
        assert 6 <= len(taken) <= 6 + 5 and batch_sizes == [3, 3]

        batch_sizes.clear()
        monkeypatch.setattr(stream, "_RESULT_BYTES_AT_ONCE", 8 * 3 * 60 * 60)  # labels take 8 bytes a pixel
        images = [np.zeros((60, 60, 3), np.uint8)] * 4
        assert len(list(predictor.stream(images, "brick", labels_only=True))) == 4 and batch_sizes == [3, 1]
    finally:
        hook.remove()


@pytest.mark.fault("an image of a list that memory is too small for", "named and left out; the others are segmented")
@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_an_image_that_memory_is_too_small_for_is_named(predictor, monkeypatch, error):
    forward = predictor.model.forward

    def run_in_little_memory(inputs):
        if any(input_per_image["width"] == 30 for input_per_image in inputs):
            raise error
        return forward(inputs)

    monkeypatch.setattr(predictor.model, "forward", run_in_little_memory)
    images = [np.zeros((20, width, 3), np.uint8) for width in (20, 30, 40)]
    results = list(predictor.stream(images, "brick", return_exceptions=True))
    assert [results[0].labels.shape, results[2].labels.shape] == [(20, 20), (20, 40)]
    assert "memory ran out for an image of 30 x 20 pixels" in str(results[1])
    with pytest.raises(ValueError, match="memory"):
        predictor(images, "brick")
    error.args = ("a bug",)
    if type(error) is RuntimeError:
        with pytest.raises(RuntimeError, match="a bug"):
            predictor(images, "brick")


@pytest.mark.parametrize("image", ["a.png", Path("a.png"), Image.new("RGB", (9, 9)), np.zeros((9, 9, 3), np.uint8)])
def test_a_stream_of_a_single_image_is_refused(predictor, image):
    """Its letters or rows are no images."""
    with pytest.raises(ValueError, match="single image"):
        predictor.stream(image, "brick")


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"num_workers": -1}, {"longest_side": 0}, {"classes": ["a", "a"]}]
)
def test_a_stream_refuses_bad_requests_at_once(predictor, options):
    with pytest.raises(ValueError, match="batch_size is|num_workers is|longest_side is|twice"):
        predictor.stream([], **{"classes": "brick", **options})


def ask_model(predictor, classes, background=False, negative=()):
    """Return the names of what a model looks for, and check that an image's own words are read likewise."""
    model, image = predictor.model, torch.zeros(3, 9, 9)
    request = {"image": image, "vocabulary": classes, "background": background, "negative": negative}
    with model.keep_settings():
        model.set_vocabulary(classes, background, negative=negative)
        names = model.metadata.stuff_classes
        assert len(names) == len(model([request])[0]["sem_seg"]) == len(model([{"image": image}])[0]["sem_seg"])
    return names


def ask_predictor(predictor, classes, background=False, negative=()):
    return predictor(np.zeros((9, 9, 3), np.uint8), classes, background, negative=negative).classes


ASK = pytest.mark.parametrize("ask", [ask_predictor, ask_model])


@ASK
@pytest.mark.parametrize("empty", [None, False, np.bool_(False), "", " , ", [], (), np.array([], str)])
def test_no_words_are_no_background_and_nothing_negative(predictor, ask, empty):
    """However they are written, whoever is asked."""
    negative = () if isinstance(empty, (bool, np.bool_)) else empty
    assert ask(predictor, ["brick", "lava"], empty, negative) == ["brick", "lava"]


@ASK
@pytest.mark.parametrize("words", ["soil, sand", ["soil", "sand"], ("soil", "sand"), np.array(["soil", "sand"])])
def test_words_may_come_as_a_text_or_as_any_sequence(predictor, ask, words):
    """A text is never taken for the list of its letters."""
    assert ask(predictor, ["brick"], words) == ["background", "brick"]
    assert ask(predictor, words, np.True_) == ["background", "soil", "sand"]
    assert ask(predictor, ["brick"], negative=words) == ["brick", "not: soil | sand"]
    assert ask(predictor, "brick < stone, not: soil | sand") == ["brick", "not: soil | sand"]


@pytest.mark.fault("words of another type, such as a dict, a set, a number or bytes", "an error names the argument")
@ASK
@pytest.mark.parametrize("name", ["classes", "background", "negative"])
@pytest.mark.parametrize("value", [{"brick": ["red brick"]}, {"brick"}, 1, 2.5, b"brick", range], ids=repr)
def test_words_of_another_type_are_refused_by_name(predictor, ask, name, value):
    """The words in a dict are not lost in silence."""
    with pytest.raises(ValueError, match=f"{name} is "):
        ask(predictor, **{"classes": ["lava"], name: value})


@ASK
def test_the_background_is_no_class_word_for_a_model_either(predictor, ask):
    with pytest.raises(ValueError, match="'background'"):
        ask(predictor, ["background", "grass"], ["sky"])


@pytest.mark.fault("a size or a count that is no whole number: nan, inf, 2.5, True, text", "an error names it at once")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 2.5, True, "20", np.float64(20)])
@pytest.mark.parametrize("name", ["longest_side", "batch_size", "num_workers"])
def test_sizes_and_counts_are_whole_numbers(predictor, name, value):
    image = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(ValueError, match=f"{name} is "):
        predictor.stream([], "brick", **{name: value})
    if name == "longest_side":
        with pytest.raises(ValueError, match="longest_side is "):
            predictor.encode(image, longest_side=value)
    assert len(list(predictor.stream([image], "brick", **{name: np.int64(1)}))) == 1


@pytest.mark.fault("a region that is a point of floats, or a mask of scores", "an error names it")
@pytest.mark.parametrize("x, y", [(1.5, 2), (2.0, 1.0), (float("nan"), 1), ("1", "2"), (None, 1), (True, False)])
def test_a_point_is_two_whole_numbers(predictor, x, y):
    image = np.zeros((9, 9, 3), np.uint8)
    segmentation = predictor(image, "brick")
    assert segmentation.region(np.int64(1), np.uint8(2)).all()
    for ask in (lambda: segmentation.region(x, y), lambda: predictor.rank_words(image, (x, y), "brick")):
        with pytest.raises(ValueError, match="point .*whole numbers"):
            ask()
    for mask in (np.full((9, 9), 0.2), np.full((9, 9), np.nan), np.full((9, 9), "a")):
        with pytest.raises(ValueError, match=str(mask.dtype)):
            predictor.rank_words(image, mask, "brick")


@pytest.mark.fault("an encoded image that is pickled, to go to another process", "an error says to send the picture")
def test_an_encoded_image_is_not_pickled(predictor):
    """It would take the whole model with it, and be refused where it arrives."""
    encoded = predictor.encode(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(TypeError, match="encoded image"):
        pickle.dumps(encoded)


def test_long_words_are_refused_in_all_entrances(predictor):
    """Before the tokenizer, which takes seconds for each."""
    image, word = np.zeros((9, 9, 3), np.uint8), "ab" * 50_000
    for ask in (
        lambda: predictor.rank_words(image, (0, 0), "_" * 100_000 + "!"),
        lambda: predictor(image, ["brick", word]),
        lambda: predictor(image, [["brick", word]]),
        lambda: predictor(image, f"brick, {word}"),
        lambda: predictor(image, ["brick"], [word]),
        lambda: predictor(image, ["brick"], negative=[word]),
        lambda: predictor.rank_words(image, (0, 0), ["brick", word]),
        lambda: predictor.model.set_vocabulary(["brick", word]),
    ):
        with pytest.raises(ValueError, match="100,00. characters"):
            ask()
