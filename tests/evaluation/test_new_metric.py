"""A metric of a user's own: a subclass of the evaluator, and a Trainer that builds it."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tcl_d2.engine import Trainer
from tcl_d2.evaluation import ZeroShotSemSegEvaluator


class ClassCountEvaluator(ZeroShotSemSegEvaluator):
    """Also counts the classes that an image is segmented into, on average."""

    def empty_statistics(self):
        return {**super().empty_statistics(), "num_images": np.zeros(1), "num_classes": np.zeros(1)}

    def update_statistics(self, prediction, label):
        super().update_statistics(prediction, label)
        self.statistics["num_images"] += 1
        self.statistics["num_classes"] += len(prediction.unique())

    def compute_metrics(self, statistics):
        classes_per_image = float(statistics["num_classes"][0] / statistics["num_images"][0])
        return {**super().compute_metrics(statistics), "classes per image": classes_per_image}


class ClassCountTrainer(Trainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return ClassCountEvaluator(cfg, dataset_name, output_folder)


def test_a_new_metric_comes_into_the_files_and_the_table(shapes_cfg, caplog):
    """Also where the evaluation goes on from statistics that an earlier one has saved."""
    shapes_cfg.DATASETS.TEST = ("shapes_val", "shapes_objects_val")
    shapes_cfg.TEST.ZERO_SHOT.REFINE = "none"
    model, folder = Trainer.build_model(shapes_cfg).eval(), Path(shapes_cfg.OUTPUT_DIR)
    with caplog.at_level(logging.INFO):
        results = ClassCountTrainer.test(shapes_cfg, model)

    # The report has it
    values = [results[name]["sem_seg"]["classes per image"] for name in shapes_cfg.DATASETS.TEST]
    assert all(1 <= value <= 12 for value in values)
    report = json.loads((folder / "results.json").read_text())
    assert report["average"]["classes per image"] == pytest.approx(np.mean(values))
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [float(row["classes per image"]) for row in rows] == values
    assert f"| classes per image | {values[0]:.1f}" in " ".join(caplog.text.split())

    # So does the saved progress
    resumed = ClassCountTrainer.test(shapes_cfg, model, resume=True)
    assert [resumed[name]["sem_seg"]["classes per image"] for name in shapes_cfg.DATASETS.TEST] == values
    plain = Trainer.test(shapes_cfg, model, resume=True)  # without the statistics, what was saved is not used
    assert plain["average"].keys() == {"mIoU", "fwIoU", "mACC", "pACC"}


def test_results_name_the_settings_that_zero_shot_segmentation_reads(shapes_cfg):
    """Without those of Detectron2's detectors, but with what another plugin adds to MODEL."""
    shapes_cfg.DATASETS.TEST = ("shapes_objects_val",)
    shapes_cfg.merge_from_list(["TEST.ZERO_SHOT.REFINE", "none", "TEST.ZERO_SHOT.MAX_IMAGES", 1])
    shapes_cfg.MODEL.MY_KEY = 3
    Trainer.test(shapes_cfg, Trainer.build_model(shapes_cfg).eval())
    settings = json.loads(Path(shapes_cfg.OUTPUT_DIR, "results.json").read_text())["settings"]
    assert settings["MODEL"].keys() == {
        "META_ARCHITECTURE", "WEIGHTS", "DEVICE", "PIXEL_MEAN", "PIXEL_STD", "CLIP", "DENSE_CLIP", "GROUPVIT", "TCL",
        "RECO", "TIPS", "DINO_TXT", "TALK2DINO", "MY_KEY"
    }  # fmt: skip
    assert settings["INPUT"] == {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 96, "RESIZE_TEST": "opencv_bilinear"}
    assert settings["TEST.ZERO_SHOT"]["MAX_IMAGES"] == 1 and {"tcl_d2", "torch"} <= settings.keys()
