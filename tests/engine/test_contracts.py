"""Detectron2's contracts: its hooks overridden as in its own examples, its evaluators, datasets, predictor, loops."""

import json
import logging
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.datasets import load_sem_seg
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor, DefaultTrainer, SimpleTrainer, hooks
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.data import BenchmarkMapper, ImageTextDatasetMapper, build_image_text_train_loader, check_datasets
from tcl_d2.engine import Trainer
from tcl_d2.evaluation import EVALUATOR_REGISTRY, ZeroShotSemSegEvaluator, build_evaluator
from tcl_d2.evaluation.report import verify_results
from tcl_d2.predictor import TCLPredictor
from tests import running
from tests.conftest import ROOT


@pytest.fixture
def cfg(shapes_cfg):
    os.makedirs(shapes_cfg.OUTPUT_DIR, exist_ok=True)
    shapes_cfg.merge_from_list(["VIS_PERIOD", 0, "TEST.ZERO_SHOT.REFINE", "none"])
    shapes_cfg.TEST.ZERO_SHOT.MAX_IMAGES = 4
    return shapes_cfg


@pytest.fixture
def info(caplog):
    for name in ("tcl_d2", "detectron2"):
        caplog.set_level(logging.INFO, logger=name)  # which the demo sets higher
    caplog.set_level(logging.INFO)
    return caplog


# ------------------------------------------------------------------------------------------------- the Trainer's hooks


class PlainTrainer(Trainer):
    """Overrides each hook with Detectron2's signature and Detectron2's own parts."""

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=ImageTextDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=DatasetMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        if output_folder is None:
            output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        return SemSegEvaluator(dataset_name, output_dir=output_folder)


@pytest.fixture
def pairs(in_world):
    """Images with captions, a row each: Detectron2's own loaders do not read shards."""
    rows = [{"file_name": str(path), "captions": ["a brick"]} for path in (in_world / "shapes/val/images").iterdir()]
    DatasetCatalog.register("t_pairs", lambda: rows)
    yield "t_pairs"
    DatasetCatalog.remove("t_pairs")


def test_hooks_overridden_as_in_detectron2_train_evaluate_and_resume(cfg, pairs, info):
    """In micro-batches, with an evaluation in the middle and at the end, over a resume."""
    cfg.DATASETS.TRAIN = (pairs,)
    cfg.merge_from_list(["SOLVER.IMS_PER_MICRO_BATCH", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 4])
    cfg.DATASETS.TEST = ("shapes_stuff_val",)
    cfg.SOLVER.MAX_ITER = 3
    PlainTrainer(cfg).train()
    cfg.SOLVER.MAX_ITER = 5
    trainer = PlainTrainer(cfg)
    trainer.resume_or_load(resume=True)
    results = trainer.train()

    assert trainer.start_iter == 3 and trainer.iter == 5
    assert results["shapes_stuff_val"]["sem_seg"]["mIoU"] == results["average"]["mIoU"] > 0
    assert results["shapes_stuff_val"]["images"] == 4
    assert Path(cfg.OUTPUT_DIR, "inference/sem_seg_predictions.json").exists()
    assert info.text.count("The SemSegEvaluator of 'shapes_stuff_val' keeps no progress") == 1
    assert "not come from build_image_text_train_loader: --resume restarts" in info.text


@pytest.mark.fault("Detectron2's own training loader over shards", "the error says which loader reads them")
def test_shards_are_not_read_by_detectron2s_loader(cfg):
    with pytest.raises(ValueError, match="00000.tar is a shard .*build_image_text_train_loader"):
        PlainTrainer(cfg).train()


def test_another_training_loader_goes_on_over_checkpoints(cfg):
    """It is not begun anew at each checkpoint, as the plugin's own is: the same first samples would come again."""
    cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 2])
    batches = list(islice(build_image_text_train_loader(cfg), 4))
    seen = []

    def iterate():
        for batch in batches:
            seen.append(batch)
            yield batch

    class ListTrainer(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return iterate()

    ListTrainer(cfg).train()
    assert [id(batch) for batch in seen] == [id(batch) for batch in batches]


def test_a_mapper_of_the_users_keeps_resuming_exact(cfg):
    """The loader that build_image_text_train_loader gives restarts also where a subclass has built it."""

    class MappedTrainer(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            mapper = ImageTextDatasetMapper(cfg, is_train=False)
            return build_image_text_train_loader(cfg, mapper=mapper)

    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    losses = []
    for resume in (False, True):
        trainer = MappedTrainer(cfg)
        if resume:
            Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
        trainer.resume_or_load(resume)
        trainer.train()
        losses.append({i: value for value, i in trainer.storage.history("total_loss").values()})
    assert losses[1] == pytest.approx({i: losses[0][i] for i in (2, 3)}, abs=1e-4)


def test_a_loader_of_a_subclass_is_built_for_each_dataset(cfg):
    """Though their images are the same: it may read them in another way."""
    cfg.DATASETS.TEST = ("shapes_val", "shapes_stuff_val")
    names = []

    class NamedTrainer(Trainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            names.append(dataset_name)
            return super().build_test_loader(cfg, dataset_name)

    model = Trainer.build_model(cfg).eval()
    results = NamedTrainer.test(cfg, model)
    assert names == ["shapes_val", "shapes_stuff_val"]
    assert results["average"] == pytest.approx(Trainer.test(cfg, model)["average"])


def test_evaluators_can_be_given(cfg):
    """Detectron2's and ours in one pass, which both see scores; None for a dataset that is not scored."""
    cfg.DATASETS.TEST = ("shapes_stuff_val", "shapes_objects_val", "shapes_val")
    model = Trainer.build_model(cfg).eval()
    evaluators = [SemSegEvaluator("shapes_stuff_val"), ZeroShotSemSegEvaluator("shapes_objects_val"), None]
    given = Trainer.test(cfg, model, evaluators)
    assert given["shapes_val"] == {"images": 4, "skipped": 0}

    ours = Trainer.test(cfg, model)
    assert given["shapes_objects_val"]["sem_seg"] == pytest.approx(ours["shapes_objects_val"]["sem_seg"], nan_ok=True)
    for metric in ("pACC", "mACC"):
        theirs = given["shapes_stuff_val"]["sem_seg"][metric]
        assert theirs == pytest.approx(ours["shapes_stuff_val"]["sem_seg"][metric])
    with pytest.raises(ValueError, match="number of evaluators is 1; expected 3"):
        Trainer.test(cfg, model, evaluators[0])


@pytest.mark.fault("a build_evaluator that raises NotImplementedError for a dataset", "it is left out with a warning")
def test_a_dataset_without_evaluator_is_left_out_as_in_detectron2(cfg, info):
    class PartTrainer(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            if dataset_name == "shapes_val":
                raise NotImplementedError("no evaluator of this type")
            return super().build_evaluator(cfg, dataset_name, output_folder)

    cfg.DATASETS.TEST = ("shapes_val", "shapes_stuff_val")
    results = PartTrainer.test(cfg, Trainer.build_model(cfg).eval())
    assert results["shapes_val"] == {} and results["average"]["mIoU"] == results["shapes_stuff_val"]["sem_seg"]["mIoU"]
    assert "'shapes_val' is not evaluated" in info.text and "no evaluator of this type" in info.text


class Gray(torch.nn.Module):
    """A model of another project: scores of as many classes as it was built for, and no words."""

    def __init__(self, num_classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, num_classes))

    def forward(self, batched_inputs):
        grays = [row["image"].float().mean(0) / 255 - 0.5 for row in batched_inputs]
        return [{"sem_seg": self.weight[:, None, None] * gray} for gray in grays]


def test_a_model_without_words_is_evaluated_as_by_detectron2(cfg):
    """On each dataset in its own pass, also where their images are the same."""
    cfg.DATASETS.TEST = ("shapes_val", "shapes_objects_val")
    cfg.TEST.ZERO_SHOT.MAX_IMAGES = 0
    model = Gray(len(MetadataCatalog.get("shapes_val").stuff_classes))
    ours, theirs = Trainer.test(cfg, model), DefaultTrainer.test.__func__(Trainer, cfg, model)
    assert ours["shapes_val"]["sem_seg"]["mIoU"] > 0
    for name in cfg.DATASETS.TEST:
        assert ours[name]["sem_seg"] == pytest.approx(theirs[name]["sem_seg"], nan_ok=True)


# ------------------------------------------------------------------------------------------------- expected results


@pytest.mark.parametrize("task", ["shapes_val", "average", "sem_seg"])
def test_expected_results_are_verified(cfg, info, task):
    metrics = {"mIoU": 50.0}
    results = {"shapes_val": {"sem_seg": metrics, "images": 4}, "average": metrics}
    cfg.TEST.EXPECTED_RESULTS = [[task, "mIoU", 51.0, 2.0]]
    verify_results(cfg, results)
    assert "Results verification passed" in info.text

    cfg.TEST.EXPECTED_RESULTS = [[task, "mIoU", 51.0, 0.5]]
    with pytest.raises(SystemExit) as stop:
        verify_results(cfg, results)
    assert stop.value.code == 1


def test_results_that_are_missing_are_not_the_expected_ones(cfg):
    cfg.TEST.EXPECTED_RESULTS = [["shapes_val", "mIoU", 51.0, 100.0]]
    with pytest.raises(SystemExit):
        verify_results(cfg, {})


def test_a_training_ends_with_the_verification(cfg, info):
    cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER = ("shapes_objects_val",), 2
    cfg.TEST.EXPECTED_RESULTS = [["average", "mIoU", 50.0, 50.0]]
    assert Trainer(cfg).train()["average"].keys() == {"mIoU", "fwIoU", "mACC", "pACC"}
    cfg.TEST.EXPECTED_RESULTS = [["average", "mIoU", 200.0, 1.0]]
    with pytest.raises(SystemExit):
        Trainer(cfg).train()

    assert "Results verification passed" in info.text and "Result verification failed" in info.text
    assert "copypaste: Task: sem_seg" in info.text and "copypaste: Task: average" in info.text
    assert "copypaste: mIoU,fwIoU,mACC,pACC" in info.text


@pytest.mark.fault("results of --eval-only are not TEST.EXPECTED_RESULTS", "exit status 1, expected and actual results")
def test_eval_only_ends_with_the_verification(world, tmp_path):
    expected = "[['shapes_objects_val','mIoU',200.0,1.0]]"
    options = ["DATASETS.TEST", "('shapes_objects_val',)", "TEST.ZERO_SHOT.MAX_IMAGES", 1]
    options += ["TEST.EXPECTED_RESULTS", expected, "OUTPUT_DIR", tmp_path / "out"]
    done = running.run(world, "train_net.py", "--config-file", "configs/shapes/tcl.yaml", "--eval-only", *options)
    assert done.returncode == 1
    assert "Result verification failed" in done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------- evaluators by type


@pytest.fixture
def sem_seg_dataset(in_world):
    """The small world's validation images as Detectron2 registers datasets: no image_id, no colors."""
    name, folder = "t_sem_seg", in_world / "shapes/val"
    DatasetCatalog.register(name, lambda: load_sem_seg(str(folder / "labels"), str(folder / "images"), image_ext="png"))
    metadata = MetadataCatalog.get(name)
    metadata.set(stuff_classes=MetadataCatalog.get("shapes_stuff_val").stuff_classes, ignore_label=255)
    metadata.evaluator_type = "sem_seg"
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_datasets_of_type_sem_seg_are_evaluated(cfg, sem_seg_dataset):
    """Also resumed, with saved predictions, and figures as those of the same images with IDs."""
    check_datasets(test=[sem_seg_dataset])
    cfg.TEST.ZERO_SHOT.SAVE_PREDICTIONS = True
    cfg.DATASETS.TEST = (sem_seg_dataset,)
    model = Trainer.build_model(cfg).eval()
    results = Trainer.test(cfg, model)
    resumed = Trainer.test(cfg, model, resume=True)
    assert resumed[sem_seg_dataset]["sem_seg"] == pytest.approx(results[sem_seg_dataset]["sem_seg"], nan_ok=True)

    files = sorted(Path(cfg.OUTPUT_DIR, "inference", sem_seg_dataset, "predictions").iterdir())
    assert [path.name for path in files] == ["00000.png", "00003.png", "00006.png", "00009.png"]
    with Image.open(files[0]) as image:
        assert image.mode == "P" and len(np.unique(image)) > 1

    cfg.DATASETS.TEST = ("shapes_stuff_val",)
    same = Trainer.test(cfg, model)["shapes_stuff_val"]["sem_seg"]
    assert results[sem_seg_dataset]["sem_seg"] == pytest.approx(same, nan_ok=True)


def test_ignored_label_is_the_metadatas(cfg, sem_seg_dataset):
    """With the last class's index ignored, its pixels count nowhere, and it is never true."""
    words = MetadataCatalog.get(sem_seg_dataset).stuff_classes
    last = len(words) - 1
    pixels = []
    for num_classes, ignored in ((last + 1, 255), (last, last)):
        MetadataCatalog.remove(sem_seg_dataset)
        metadata = MetadataCatalog.get(sem_seg_dataset)
        metadata.set(stuff_classes=words[:num_classes], ignore_label=ignored, evaluator_type="sem_seg")
        evaluator = build_evaluator(cfg, sem_seg_dataset)
        for row in DatasetCatalog.get(sem_seg_dataset):
            evaluator.process([row], [{"sem_seg_labels": torch.zeros(96, 96, dtype=torch.int64)}])
        pixels.append(evaluator.statistics["confusion_matrix"].sum(1))
    assert pixels[0][last] > 0 and np.array_equal(pixels[0][:last], pixels[1])


def draw(path: str, shape: tuple[int, ...]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 19, shape, dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    "name", ["ade20k_sem_seg_val", "coco_2017_val_panoptic_stuffonly", "cityscapes_fine_sem_seg_val"]
)
def test_detectron2s_own_datasets_are_evaluated(cfg, tmp_path, monkeypatch, name):
    """By name, from a miniature of their files; all their images count."""
    metadata = MetadataCatalog.get(name)
    if os.path.isabs(metadata.get("image_root") or metadata.image_dir):
        pytest.skip("DETECTRON2_DATASETS was set when Detectron2 was imported")
    monkeypatch.chdir(tmp_path)

    if not name.startswith("cityscapes"):
        draw(f"{metadata.image_root}/1.jpg", (64, 80, 3))
        draw(f"{metadata.sem_seg_root}/1.png", (64, 80))
    else:
        draw(f"{metadata.image_dir}/bonn/bonn_0_0_leftImg8bit.png", (64, 80, 3))
        for suffix in ("labelIds", "labelTrainIds", "instanceIds"):
            draw(f"{metadata.gt_dir}/bonn/bonn_0_0_gtFine_{suffix}.png", (64, 80))
        polygons = Path(metadata.gt_dir, "bonn/bonn_0_0_gtFine_polygons.json")
        polygons.write_text(json.dumps({"imgHeight": 64, "imgWidth": 80, "objects": []}))

    check_datasets(test=[name])
    cfg.DATASETS.TEST = (name,)
    result = Trainer.test(cfg, Trainer.build_model(cfg).eval())[name]
    assert result["images"] == 1 and 0 <= result["sem_seg"]["pACC"] <= 100
    assert {f"ACC-{word}" for word in metadata.stuff_classes} <= result["sem_seg"].keys()


@pytest.mark.fault("a dataset of Detectron2's own is not there, or is of another type", "one error that names it")
def test_unfit_datasets_of_detectron2_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OSError, ValueError), match="ade20k_sem_seg_val|ADEChallengeData2016"):
        check_datasets(test=["ade20k_sem_seg_val"])
    with pytest.raises(FileNotFoundError, match="'coco_2017_val': no file .*instances_val2017.json"):
        check_datasets(test=["coco_2017_val"])
    with pytest.raises(ValueError, match="'voc_2007_val' is of the wrong kind.*stuff_classes"):
        check_datasets(test=["voc_2007_val"])


def test_an_evaluator_of_the_users_is_built_by_type(cfg, sem_seg_dataset):
    @EVALUATOR_REGISTRY.register("t_counting")
    class CountingEvaluator(DatasetEvaluator):
        def __init__(self, cfg, dataset_name, output_folder=None):
            self.dataset_name = dataset_name

        def reset(self):
            self.shapes = []

        def process(self, inputs, outputs):
            self.shapes += [tuple(output["sem_seg"].shape) for output in outputs]

        def evaluate(self):
            return {"counting": {"images": len(self.shapes)}}

    MetadataCatalog.remove(sem_seg_dataset)
    words = MetadataCatalog.get("shapes_stuff_val").stuff_classes
    MetadataCatalog.get(sem_seg_dataset).set(stuff_classes=words, evaluator_type="t_counting")
    cfg.DATASETS.TEST = (sem_seg_dataset,)
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())
    assert results == {sem_seg_dataset: {"counting": {"images": 4}, "images": 4, "skipped": 0}}


def test_an_unknown_type_of_dataset_is_refused_before_anything_is_evaluated(cfg, monkeypatch):
    cfg.DATASETS.TEST = ("shapes_val", "voc_2007_val")
    model = Trainer.build_model(cfg).eval()
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(ValueError, match="'voc_2007_val' has the evaluator_type 'pascal_voc'.*coco, .*lvis, sem_seg"):
        Trainer.test(cfg, model)


def test_detectron2s_evaluator_counts_classes_of_the_ground_truth_alone(cfg):
    """It sees our model and test loader; the classes that occur have the same IoU, others count in the protocol."""
    name = "shapes_stuff_val"
    cfg.TEST.ZERO_SHOT.MAX_IMAGES = 0
    model = Trainer.build_model(cfg).eval()
    model.set_dataset(name)
    loader = build_detection_test_loader(cfg, name, mapper=BenchmarkMapper(cfg, is_train=False))
    theirs = inference_on_dataset(model, loader, SemSegEvaluator(name, distributed=False))["sem_seg"]
    ours = inference_on_dataset(model, loader, ZeroShotSemSegEvaluator(name, distributed=False))["sem_seg"]

    words = MetadataCatalog.get(name).stuff_classes
    true_words = [word for word in words if not np.isnan(theirs[f"IoU-{word}"])]
    for word in true_words:
        for metric in ("IoU", "ACC"):
            assert theirs[f"{metric}-{word}"] == pytest.approx(ours[f"{metric}-{word}"])
    counted = [word for word in words if not np.isnan(ours[f"IoU-{word}"])]
    assert theirs["mIoU"] * len(true_words) == pytest.approx(ours["mIoU"] * len(counted))


# ------------------------------------------------------------------------------- evaluations that name no dataset


class TheirTrainer(DefaultTrainer):
    """Detectron2's own test, which does not tell the model of which dataset the images are."""

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=BenchmarkMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(cfg, dataset_name)


@pytest.fixture
def nameless_dataset(in_world):
    """The small world's stuff, with rows as Detectron2's own loader gives them: without the dataset's name."""
    name = "t_nameless"
    folder = in_world / "shapes/val"
    DatasetCatalog.register(name, lambda: load_sem_seg(folder / "labels", folder / "images", "png", "png"))
    words = MetadataCatalog.get("shapes_stuff_val").stuff_classes
    MetadataCatalog.get(name).set(stuff_classes=words, evaluator_type="sem_seg", ignore_label=255)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.fault("Detectron2's own test on several datasets", "each is segmented into its own words")
def test_each_dataset_of_a_plain_test_has_its_own_words(cfg):
    cfg.merge_from_list(["DATASETS.TEST", ("shapes_objects_val", "shapes_stuff_val"), "TEST.ZERO_SHOT.MAX_IMAGES", 0])
    model = Trainer.build_model(cfg).eval()
    expected = Trainer.test(cfg, model)
    for name, results in TheirTrainer.test(cfg, model).items():
        assert results["sem_seg"]["mIoU"] == pytest.approx(expected[name]["sem_seg"]["mIoU"])


@pytest.mark.fault("an evaluation with the words of another dataset", "an error that names both datasets")
def test_an_evaluation_with_the_words_of_another_dataset_is_refused(cfg, nameless_dataset):
    """Words that were set before, or the model's default."""
    cfg.DATASETS.TEST = ("shapes_objects_val",)
    model = Trainer.build_model(cfg).eval()
    refused = pytest.raises(ValueError, match=f"classes of 'shapes_objects_val', not of '{nameless_dataset}'.*set_dat")
    loader = build_detection_test_loader(cfg, nameless_dataset, mapper=BenchmarkMapper(cfg, is_train=False))
    with refused:
        inference_on_dataset(model, loader, build_evaluator(cfg, nameless_dataset))

    model.set_dataset("shapes_objects_val")
    cfg.DATASETS.TEST = ("shapes_objects_val", nameless_dataset)
    with refused:
        TheirTrainer.test(cfg, model)


@pytest.mark.fault("a plain test on several datasets whose rows do not name them", "an error says how to name them")
def test_images_of_no_known_dataset_are_refused(cfg, nameless_dataset):
    """Also by an evaluator of Detectron2's, which looks at the numbers of classes alone."""
    cfg.DATASETS.TEST = (nameless_dataset, "shapes_objects_val")
    model = Trainer.build_model(cfg).eval()
    with pytest.raises(RuntimeError, match="set_dataset.*'dataset_name'.*does not say of which"):
        TheirTrainer.test(cfg, model, [SemSegEvaluator(name, distributed=False) for name in cfg.DATASETS.TEST])


def test_a_test_leaves_the_models_words_and_protocol(cfg):
    """Those that were set before, and, where none were, the default ones; also after an error."""
    names = cfg.DATASETS.TEST = ("shapes_objects_val", "shapes_stuff_val")
    cfg.TEST.ZERO_SHOT.BY_DATASET = type(cfg)({names[1]: ["TEST.ZERO_SHOT.TEMPLATES", ["the {}"]]})
    model = Trainer.build_model(cfg).eval()
    Trainer.test(cfg, model)
    assert model.metadata.name == names[0]

    model.set_vocabulary(["brick", "lava"], background=True)
    model.set_protocol(**{**model.protocol, "templates": ["one {}"], "background_score": 0.7, "stride": 12})
    before, image = model.protocol, {"image": torch.randint(0, 256, (3, 48, 48))}
    scores = model([image])[0]["sem_seg"]
    Trainer.test(cfg, model)
    assert model.protocol == before and torch.equal(model([image])[0]["sem_seg"], scores)

    with pytest.raises(ValueError, match="evaluators"):
        Trainer.test(cfg, model, [])
    failing = ZeroShotSemSegEvaluator(names[0])
    failing.process = None
    with pytest.raises(TypeError):
        Trainer.test(cfg, model, [failing, None])
    assert model.protocol == before and torch.equal(model([image])[0]["sem_seg"], scores)


# ------------------------------------------------------------------------------------------------- the predictor


@pytest.fixture
def image(in_world):
    return read_image(str(in_world / "shapes/val/images/00000.png"), format="BGR")


def test_default_predictor_segments_into_the_classes_of_the_first_test_dataset(in_world, image):
    """As TCLPredictor does, and Detectron2's Visualizer draws it."""
    cfg = load_config(ROOT / "configs/shapes/trained.yaml", ["TEST.ZERO_SHOT.REFINE", "none"])
    ours = TCLPredictor(cfg)
    torch.save({"model": ours.model.state_dict()}, path := in_world / "trained.pth")
    cfg.MODEL.WEIGHTS = str(path)
    predictor = DefaultPredictor(cfg)
    scores = predictor(image)["sem_seg"]

    words = predictor.metadata.stuff_classes
    expected = ours(image[:, :, ::-1].copy(), words[1:], background=True).scores
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    picture = Visualizer(image[:, :, ::-1], predictor.metadata).draw_sem_seg(scores.argmax(0).cpu())
    assert picture.get_image().shape == image.shape and predictor.model.metadata is predictor.metadata


def test_metadata_of_a_model_have_the_names_of_its_classes(cfg, image):
    """Those of DefaultPredictor stay a benchmark's after set_vocabulary; Visualizer would write its names."""
    predictor = DefaultPredictor(cfg)
    model = predictor.model
    model.set_vocabulary([["brick", "wall"], "lava"], background=True, negative=["grass"])
    metadata = model.metadata
    assert metadata.stuff_classes == ["background", "brick", "lava", "not: grass"]
    assert metadata.thing_classes == ["brick", "lava"] and len(metadata.thing_colors) == 2
    labels = predictor(image)["sem_seg"].argmax(0)
    assert Visualizer(image[:, :, ::-1], metadata).draw_sem_seg(labels).get_image().shape == image.shape

    model.set_vocabulary(["brick", "lava"])
    assert model.metadata.stuff_classes == ["brick", "lava"] and len(model.metadata.stuff_colors) == 2
    model.set_dataset("shapes_stuff_val")
    assert model.metadata.stuff_classes == MetadataCatalog.get("shapes_stuff_val").stuff_classes
    model.set_text_embeddings(torch.randn(2, model.clip.embed_dim))
    with pytest.raises(RuntimeError, match="text embeddings, which have no names"):
        _ = model.metadata


@pytest.mark.fault("DefaultPredictor without a dataset that has classes", "the error says how to name the classes")
@pytest.mark.parametrize("names, problem", [((), "DATASETS.TEST is empty"), (("t_none",), "'t_none' has no classes")])
def test_default_predictor_without_classes_says_what_is_missing(cfg, image, names, problem):
    cfg.DATASETS.TEST = names
    predictor = DefaultPredictor(cfg)
    with pytest.raises(RuntimeError, match=f"set_vocabulary.*DATASETS.TEST begin with.*{problem}"):
        predictor(image)
    predictor.model.set_vocabulary(["brick", "lava"])
    assert predictor(image)["sem_seg"].shape == (2, *image.shape[:2])


# ------------------------------------------------------------------------------------------------- a LazyConfig


def test_lazy_config_is_the_yamls_model_and_trains(in_world):
    """The same scores, and a first loss, from the same random numbers; then Detectron2's trainer takes two steps."""
    lazy = LazyConfig.load(str(ROOT / "configs/shapes/tcl.py"))
    lazy.dataloader.train.num_workers = lazy.dataloader.test.num_workers = 0
    lazy.dataloader.train.total_batch_size = 4
    cfg = load_config(ROOT / "configs/shapes/tcl.yaml", ["VIS_PERIOD", 0, "SOLVER.IMS_PER_BATCH", 4])
    cfg.DATALOADER.NUM_WORKERS = 0

    def run_both(*makes):
        results = []
        for make in makes:
            seed_all_rng(0)
            results.append(make())
        return results

    model, same = run_both(lambda: instantiate(lazy.model), lambda: build_model(cfg))
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())
    batch, same_batch = run_both(
        lambda: next(iter(instantiate(lazy.dataloader.train))), lambda: next(iter(build_image_text_train_loader(cfg)))
    )
    losses, same_losses = run_both(lambda: model.train()(batch), lambda: same.train()(same_batch))
    assert losses == same_losses

    # As tools/lazyconfig_train_net.py
    lazy.optimizer.params.model = model
    optimizer = instantiate(lazy.optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    trainer = SimpleTrainer(model, instantiate(lazy.dataloader.train), optimizer)
    trainer.register_hooks([hooks.LRScheduler(scheduler=instantiate(lazy.lr_multiplier))])
    trainer.train(0, 2)
    results = inference_on_dataset(model, instantiate(lazy.dataloader.test), instantiate(lazy.dataloader.evaluator))
    assert 0 < results["sem_seg"]["mIoU"] < 100
