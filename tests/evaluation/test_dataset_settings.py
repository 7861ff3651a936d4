"""Settings and words by dataset: what a configuration says for one dataset, and what does not fit."""

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.config.loading import dataset_config
from tcl_d2.data import register_benchmark_folder
from tcl_d2.engine import Trainer
from tcl_d2.engine.training_data import check_training_data
from tcl_d2.evaluation.dataset_settings import check_dataset_settings, words_from_config
from tcl_d2.evaluation.evaluation_pass import group_by_images
from tcl_d2.words.vocabulary import dataset_classes, make_vocabulary
from tests.conftest import ROOT
from tests.running import check_error, run

CONFIGS = sorted(
    path.relative_to(ROOT / "configs")
    for name in ("dense_clip", "talk2dino", "unified")
    for path in (ROOT / "configs" / name).glob("*.yaml")
)
BY_DATASET = "TEST.ZERO_SHOT.BY_DATASET"


@pytest.fixture
def cfg(in_world, tmp_path):
    options = ["OUTPUT_DIR", tmp_path / "output", "DATALOADER.NUM_WORKERS", 0, "TEST.ZERO_SHOT.MAX_IMAGES", 3]
    return load_config(ROOT / "configs/shapes/dense_clip.yaml", options)


def set_by_dataset(cfg, name, *options):
    cfg.TEST.ZERO_SHOT.BY_DATASET[name] = list(options)


def evaluate(cfg, *names):
    cfg.DATASETS.TEST = names
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())
    return {name: results[name]["sem_seg"]["mIoU"] for name in names}


def test_values_for_one_dataset(cfg):
    """Size, windows, rule and prompts of one dataset; another of the same images has the others."""
    options = ["INPUT.MIN_SIZE_TEST", 72, "TEST.ZERO_SHOT.CROP_SIZE", 0, "TEST.ZERO_SHOT.TEMPLATES", "tcl"]
    plain = evaluate(cfg, "shapes_val", "shapes_objects_val")
    expected = evaluate(
        load_config(
            ROOT / "configs/shapes/dense_clip.yaml",
            [*options, "DATALOADER.NUM_WORKERS", 0, "TEST.ZERO_SHOT.MAX_IMAGES", 3, "OUTPUT_DIR", cfg.OUTPUT_DIR],
        ),
        "shapes_objects_val",
    )
    assert group_by_images([cfg], dict.fromkeys(cfg.DATASETS.TEST)) == [["shapes_val", "shapes_objects_val"]]

    set_by_dataset(cfg, "shapes_objects_val", *options)
    assert group_by_images([cfg], dict.fromkeys(cfg.DATASETS.TEST)) == [["shapes_val"], ["shapes_objects_val"]]
    model = Trainer.build_model(cfg).eval()
    Trainer.test(cfg, model)
    assert model.crop_size == cfg.TEST.ZERO_SHOT.CROP_SIZE  # not that of the last pass
    for names in (("shapes_val", "shapes_objects_val"), ("shapes_objects_val", "shapes_val")):
        results = evaluate(cfg, *names)
        assert results["shapes_objects_val"] == expected["shapes_objects_val"] != plain["shapes_objects_val"]
        assert results["shapes_val"] == plain["shapes_val"]


def test_words_of_a_file(cfg, tmp_path):
    """A class of several words, and a background of words: as a vocabulary that is given by hand."""
    names, background = dataset_classes("shapes_val")
    path = tmp_path / "words.txt"
    path.write_text("\n".join(["meadow, sand", f"{names[0]}, {names[0]} thing", *names[1:]]))
    cfg.TEST.ZERO_SHOT.WORDS = str(path)
    evaluate(cfg, "shapes_val")
    words = words_from_config(cfg, "shapes_val")
    assert background and words[0] == ["meadow", "sand"]

    model = Trainer.build_model(cfg)
    model.set_dataset("shapes_val", class_words={"shapes_val": words})
    expected = make_vocabulary([[names[0], f"{names[0]} thing"], *names[1:]], ["meadow", "sand"])
    _, (subset,) = model._classes({})
    assert tuple(subset.classes.tolist()) == expected.classes and subset.num_classes == expected.num_classes


def test_first_words_alone(cfg):
    """Of a benchmark with synonyms, whose first words are not all different."""
    cfg.TEST.ZERO_SHOT.WORDS = "first"
    words = words_from_config(cfg, "zeroshot_ade847_val")
    assert words[11] == ["person"] and len(words) == 847
    check_dataset_settings(cfg, ["zeroshot_ade847_val", "shapes_val"])
    assert words_from_config(cfg, "shapes_val") == [[name] for name in dataset_classes("shapes_val")[0]]


@pytest.mark.fault("another file of words under the same name when an evaluation is resumed", "it begins anew")
def test_other_words_begin_an_evaluation_anew(cfg, tmp_path):
    names, _ = dataset_classes("shapes_stuff_val")
    cfg.TEST.ZERO_SHOT.WORDS = str(tmp_path / "words.txt")
    cfg.DATASETS.TEST = ("shapes_stuff_val",)
    model = Trainer.build_model(cfg).eval()

    def evaluate_with(words, **options):
        (tmp_path / "words.txt").write_text("\n".join(words))
        return Trainer.test(cfg, model, **options)["average"]

    first = evaluate_with(names)
    changed = evaluate_with([f"{name}, some {name}" for name in names], resume=True)
    assert changed != first and evaluate_with(names, resume=True) == first


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_shipped_settings_fit_their_benchmarks(config, monkeypatch):
    """Each dataset's settings are known keys, and its words are for its classes, in their order."""
    monkeypatch.setattr("tcl_d2.utils.downloads.PAUSES", ())  # TIPS's tokenizer would be downloaded
    cfg = load_config(ROOT / "configs" / config)
    check_dataset_settings(cfg, cfg.DATASETS.TEST)
    for name in cfg.DATASETS.TEST:
        classes, background = dataset_classes(name, words_from_config(dataset_config(cfg, name), name))
        num_classes = len(MetadataCatalog.get(name).stuff_classes)
        assert make_vocabulary(classes, background).num_classes == num_classes


def test_published_settings():
    """Some of the published table: short side, crop, step, scale, threshold; words in all."""
    expected = {
        ("sclip", "voc"): (336, 224, 112, 65, 0.1, 56),
        ("sclip", "coco_stuff"): (448, 224, 112, 40, 0.1, 171),
        ("clearclip", "cityscapes"): (448, 224, 224, 50, 0.3, 19),
        ("clearclip", "coco_object"): (448, 448, 224, 50, 0.4, 81),
        ("naclip", "voc20"): (336, 0, 112, 40, 0.1, 30),
        ("proxyclip", "ade20k"): (448, 336, 112, 40, 0.3, 150),
        ("proxyclip", "coco_object"): (336, 336, 112, 40, 0.25, 97),
        ("clip_dinoiser", "voc"): (448, 448, 224, 0, 0.99, 21),
        ("clip_dinoiser", "context"): (448, 448, 224, 0, 0, 60),  # the background is a word like any other
        ("clip_dinoiser", "coco_object"): (448, 448, 224, 0, 0.99, 81),
    }

    for (method, benchmark), values in expected.items():
        name = f"zeroshot_{benchmark}_val"
        cfg = dataset_config(load_config(ROOT / f"configs/dense_clip/{method}.yaml"), name)
        test = cfg.TEST.ZERO_SHOT
        vocabulary = make_vocabulary(*dataset_classes(name, words_from_config(cfg, name)))
        size = cfg.INPUT.MIN_SIZE_TEST, test.CROP_SIZE, test.STRIDE
        assert (*size, test.LOGIT_SCALE, test.BACKGROUND_SCORE, len(vocabulary.words)) == values, (method, benchmark)


@pytest.mark.fault("a setting for one dataset whose key or value is wrong, or for a dataset that is not", "it is named")
@pytest.mark.parametrize(
    "name, options, message",
    [
        ("shapes_val", ["TEST.ZERO_SHOT.CROP_SIZ", 3], "BY_DATASET.shapes_val: .*CROP_SIZ"),
        ("shapes_val", ["TEST.ZERO_SHOT.CROP_SIZE"], "BY_DATASET.shapes_val: .*no value"),
        ("shapes_val", ["TEST.ZERO_SHOT.CROP_SIZE", "wide"], "BY_DATASET.shapes_val: .*CROP_SIZE"),
        ("shapes_vall", ["TEST.ZERO_SHOT.CROP_SIZE", 3], "BY_DATASET is for shapes_vall; expected names of registered"),
        ("shapes_val", ["MODEL.CLIP.NAME", "ViT-B-32"], "shapes_val: MODEL.CLIP.NAME is the same for all datasets"),
        ("shapes_val", ["TEST.ZERO_SHOT.KP_WEIGHT", 0.0], "KP_WEIGHT is the same for all datasets"),
        ("shapes_val", ["TEST.ZERO_SHOT.STRIDE", 0], "'shapes_val': TEST.ZERO_SHOT.STRIDE is 0"),
        ("shapes_val", ["TEST.ZERO_SHOT.BACKGROUND_SCORE", 2.0], "'shapes_val': .*BACKGROUND_SCORE is 2.0"),
        ("shapes_val", ["TEST.ZERO_SHOT.TEMPLATES", "tlc"], "'shapes_val': TEST.ZERO_SHOT.TEMPLATES: 'tlc' is neither"),
        ("shapes_val", ["TEST.ZERO_SHOT.MAX_IMAGES", -3], "'shapes_val': .*MAX_IMAGES is -3"),
        ("shapes_val", ["TEST.ZERO_SHOT.IMS_PER_BATCH", 0], "'shapes_val': .*IMS_PER_BATCH is 0"),
        ("shapes_val", ["INPUT.MIN_SIZE_TEST", -3], "'shapes_val': INPUT.MIN_SIZE_TEST is -3"),
    ],
)
def test_unfit_settings_of_a_dataset_are_named(cfg, name, options, message):
    set_by_dataset(cfg, name, *options)
    with pytest.raises(ValueError, match=message):
        check_dataset_settings(cfg, ["shapes_val"])


@pytest.mark.fault("a dataset with two classes that are one text for the tokenizer", "an error before the start")
def test_classes_of_one_text_are_named_before_the_start(cfg, tmp_path):
    """In a file of words, in a folder of the user's, and in labels to train on."""
    names, _ = dataset_classes("shapes_val")
    (tmp_path / "words.txt").write_text("\n".join(["background", names[0], names[0].upper(), *names[2:]]))
    cfg.TEST.ZERO_SHOT.WORDS = str(tmp_path / "words.txt")
    with pytest.raises(ValueError, match="'shapes_val': 'brick' and 'BRICK'"):
        check_dataset_settings(cfg, ["shapes_val"])

    (tmp_path / "classes.txt").write_text("sand, soil\nred  striped\nRed striped, grass")
    name = register_benchmark_folder(str(tmp_path))
    cfg.merge_from_list(["TEST.ZERO_SHOT.WORDS", "", "MODEL.META_ARCHITECTURE", "TCL", "DATASETS.TRAIN", (name,)])
    cfg.MODEL.TCL.LOSS_HEADS = ["SemSegBCELoss"]
    for check in (lambda: check_dataset_settings(cfg, [name]), lambda: check_training_data(cfg)):
        with pytest.raises(ValueError, match=f"'{name}': 'red  striped' and 'Red striped'"):
            check()


@pytest.mark.fault("an unknown measure, or a similarity that no measure needs", "an error, also for objects alone")
@pytest.mark.parametrize("name", ["shapes_val", "shapes_instances_val"])
@pytest.mark.parametrize(
    "key, value, message", [("MEASURES", ["SoftIou"], "has 'SoftIou'"), ("SIMILARITY", "s.npy", "SoftIoU")]
)
def test_unfit_measures_are_named(cfg, name, key, value, message):
    cfg.TEST.ZERO_SHOT[key] = value
    with pytest.raises(ValueError, match=f"'{name}': TEST.ZERO_SHOT.{key} .*{message}"):
        check_dataset_settings(cfg, [name])


@pytest.mark.fault("settings of a dataset that are no list", "they are named, with an example")
@pytest.mark.parametrize("value", [3, "INPUT.MIN_SIZE_TEST", {"INPUT.MIN_SIZE_TEST": 96}])
def test_settings_that_are_no_list_are_named(cfg, value):
    cfg.TEST.ZERO_SHOT.BY_DATASET["shapes_val"] = value
    with pytest.raises(ValueError, match="BY_DATASET.shapes_val is .*; expected a list of KEY, VALUE pairs"):
        check_dataset_settings(cfg, ["shapes_val"])


def test_values_of_one_dataset_that_are_lists(cfg):
    """Datasets are grouped by their settings, also where a setting has several values."""
    set_by_dataset(cfg, "shapes_objects_val", "TEST.ZERO_SHOT.TEMPLATES", ["a {}", "the {}"])
    groups = group_by_images([cfg], dict.fromkeys(["shapes_val", "shapes_objects_val", "shapes_stuff_val"]))
    assert groups == [["shapes_val", "shapes_stuff_val"], ["shapes_objects_val"]]


@pytest.mark.fault(
    "words of a release that has none for a dataset, or of a file that is not there", "named at the start"
)
def test_unfit_words_are_named_at_the_start(in_world, tmp_path):
    command = ["train_net.py", "--config-file", "configs/shapes/dense_clip.yaml", "--eval-only", "OUTPUT_DIR", tmp_path]
    check_error(
        run(in_world, *command, "TEST.ZERO_SHOT.WORDS", "sclip"), "no words for 'shapes_val'", "zeroshot_voc_val"
    )
    check_error(run(in_world, *command, "TEST.ZERO_SHOT.WORDS", "nowhere.txt"), "nowhere.txt", "sclip, naclip")


@pytest.mark.fault("an evaluation with settings by dataset is stopped", "with --resume it gives the same figures")
def test_stopped_evaluation_with_settings_by_dataset_goes_on(cfg, monkeypatch):
    """Stopped in the second of two passes, each with other settings."""
    names = cfg.DATASETS.TEST = ("shapes_val", "shapes_objects_val", "shapes_stuff_val")
    cfg.TEST.ZERO_SHOT.IMS_PER_BATCH = 1
    set_by_dataset(cfg, "shapes_objects_val", "INPUT.MIN_SIZE_TEST", 72, "TEST.ZERO_SHOT.TEMPLATES", ["a {}", "the {}"])
    model = Trainer.build_model(cfg).eval()
    expected = Trainer.test(cfg, model)

    # Stop after the first pass and one image
    forward, seen = model.forward, []

    def stop_later(inputs: list[dict]) -> list[dict]:
        seen.append(inputs[0]["file_name"])
        if len(seen) == 5:
            raise KeyboardInterrupt
        return forward(inputs)

    monkeypatch.setattr("tcl_d2.evaluation.progress.PERIOD", 0.0)  # save after every image
    monkeypatch.setattr(model, "forward", stop_later)
    with pytest.raises(KeyboardInterrupt):
        Trainer.test(cfg, model)

    # Go on, with a model that has the settings of the pass that was stopped
    resumed = Trainer.test(cfg, model, resume=True)
    assert len(seen) == 3 + 3 + 1  # the fifth one twice
    for name in names:
        assert resumed[name]["sem_seg"] == pytest.approx(expected[name]["sem_seg"], nan_ok=True)


def test_votes_of_regions_are_evaluated(cfg, in_world):
    """Of regions that are the objects themselves; pixels of the background are of none."""
    plain = evaluate(cfg, "shapes_val")["shapes_val"]
    cfg.TEST.ZERO_SHOT.REGIONS.FOLDER = str(in_world / "shapes/val/labels")
    check_dataset_settings(cfg, ["shapes_val"])
    assert evaluate(cfg, "shapes_val")["shapes_val"] > plain


@pytest.mark.fault(
    "an evaluation with votes of regions whose files are missing or of another size",
    "one error at the start names them",
)
def test_unfit_regions_are_named_at_the_start(cfg, tmp_path):
    cfg.TEST.ZERO_SHOT.REGIONS.FOLDER = str(tmp_path)
    for number, size in enumerate(((96, 96), (96, 95), (48, 48))):
        with pytest.raises(FileNotFoundError, match=f"'shapes_val': {3 - number} images have no region file"):
            check_dataset_settings(cfg, ["shapes_val"])
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{4 * number:05}.png")  # three images are evaluated
    with pytest.raises(ValueError, match="(?s)2 region files.*00004.*96 x 95.*00008.*48 x 48"):
        check_dataset_settings(cfg, ["shapes_val"])
