"""A stopped evaluation goes on where it was, in one process or several, and never mixes models or settings."""

import logging
import os
import signal

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tcl_d2.engine import Trainer
from tcl_d2.evaluation.progress import EvaluationProgress, fingerprint
from tcl_d2.utils.tensors import digest_weights

EMPTY = {"confusion_matrix": np.zeros((2, 2), np.int64)}


def save(folder, rank: int, done: list[str], mark: str = "a", statistics: dict | None = None) -> None:
    """Write the file of a process whose confusion matrix has the number of its images everywhere."""
    progress = EvaluationProgress(folder, mark, resume=False)
    progress._file = folder / f"progress_{rank}.npz"
    progress.save(statistics or {"confusion_matrix": np.full((2, 2), len(done))}, done)


def restore(folder, resume: bool = True) -> EvaluationProgress:
    progress = EvaluationProgress(folder, "a", resume)
    progress.restore(EMPTY)
    return progress


def test_files_of_several_processes_are_added_once(tmp_path):
    save(tmp_path, 0, ["a", "b"])
    save(tmp_path, 1, ["c"])
    for _ in range(2):  # the second time, from the merged file
        progress = restore(tmp_path)
        assert sorted(progress.done) == ["a", "b", "c"] and (progress.statistics["confusion_matrix"] == 3).all()
    assert [path.name for path in tmp_path.glob("progress_*")] == ["progress_0.npz"]


def test_images_are_counted_once_when_stopped_between_merging_and_removing(tmp_path):
    """The merged file holds the other's images too."""
    save(tmp_path, 0, ["a", "b", "c"])
    save(tmp_path, 1, ["c"])
    assert (restore(tmp_path).statistics["confusion_matrix"] == 3).all()


def test_other_models_and_broken_files_are_not_used(tmp_path):
    save(tmp_path, 0, ["a"], mark="other")
    (tmp_path / "progress_1.npz").write_bytes(b"PK cut")
    progress = restore(tmp_path)
    assert progress.done == [] and not progress.statistics["confusion_matrix"].any()
    assert not list(tmp_path.glob("progress_*"))


@pytest.mark.fault(
    "saved progress of other statistics: a name, a shape or a dtype differs", "these images are done again"
)
@pytest.mark.parametrize(
    "statistics",
    [
        {"confusion_matrix": np.ones((3, 3), np.int64)},
        {"confusion_matrix": np.ones((2, 2))},
        {"counts": np.ones((2, 2), np.int64)},
        {"confusion_matrix": np.ones((2, 2), np.int64), "counts": np.ones(1)},
    ],
)
def test_files_with_other_statistics_are_not_used(tmp_path, statistics):
    save(tmp_path, 0, ["a"], statistics=statistics)
    assert restore(tmp_path).done == [] and not list(tmp_path.glob("progress_*"))


def test_without_resume_all_is_done_again(tmp_path):
    save(tmp_path, 0, ["a"])
    assert restore(tmp_path, resume=False).done == [] and not list(tmp_path.glob("progress_*"))


def test_fingerprint_is_of_weights_and_facts():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    first = digest_weights(model)
    assert fingerprint(first, settings={"a": 1}) == fingerprint(first, settings={"a": 1})
    assert fingerprint(first, settings={"a": 1}) != fingerprint(first, settings={"a": 2})
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    assert digest_weights(model) != first


class Stopped(Exception):
    pass


@pytest.fixture
def cfg(shapes_cfg):
    shapes_cfg.DATASETS.TEST = ("shapes_val", "shapes_objects_val")
    shapes_cfg.TEST.ZERO_SHOT.REFINE = "none"
    shapes_cfg.TEST.ZERO_SHOT.IMS_PER_BATCH = 2
    return shapes_cfg


def test_datasets_of_the_same_images_are_evaluated_in_one_pass(cfg, monkeypatch):
    """The same figures as each alone and image by image, and each image is seen once."""
    cfg.TEST.ZERO_SHOT.IMS_PER_BATCH = 1
    model = Trainer.build_model(cfg).eval()
    alone = {}
    for name in ("shapes_val", "shapes_objects_val", "shapes_stuff_val"):
        cfg.DATASETS.TEST = (name,)
        alone[name] = Trainer.test(cfg, model)[name]
    seen, batch_sizes, forward = [], [], model.forward

    def run(inputs):
        seen.extend(input_per_image["image_id"] for input_per_image in inputs)
        batch_sizes.append(len(inputs))
        return forward(inputs)

    monkeypatch.setattr(model, "forward", run)
    cfg.DATASETS.TEST, cfg.TEST.ZERO_SHOT.IMS_PER_BATCH = tuple(alone), 5
    together = Trainer.test(cfg, model)
    assert len(seen) == len(set(seen)) == 12 and batch_sizes == [5, 5, 2]
    for name in alone:
        assert together[name]["sem_seg"] == pytest.approx(alone[name]["sem_seg"], nan_ok=True)


def test_stopped_evaluation_goes_on(cfg, monkeypatch):
    """Stopped in the second pass; datasets of one pass that were saved at different moments count no image twice."""
    cfg.DATASETS.TEST = ("shapes_val", "shapes_objects_val")
    model = Trainer.build_model(cfg).eval()
    monkeypatch.setattr("tcl_d2.evaluation.progress.PERIOD", 0.0)  # save after every image
    whole = Trainer.test(cfg, model)
    seen, forward = [], model.forward

    def stop_at(count):
        def run(inputs):
            if len(seen) == count:
                raise Stopped
            seen.extend(input_per_image["image_id"] for input_per_image in inputs)
            return forward(inputs)

        return run

    monkeypatch.setattr(model, "forward", stop_at(6))
    save = EvaluationProgress.save

    def save_of_the_first_alone_at_last(self, statistics, done):
        if len(seen) < 6 or "objects" not in str(self.folder):
            save(self, statistics, done)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(EvaluationProgress, "save", save_of_the_first_alone_at_last)
        Trainer.test(cfg, model)
    seen.clear()
    monkeypatch.setattr(model, "forward", stop_at(-1))
    resumed = Trainer.test(cfg, model, resume=True)
    assert len(seen) == 12 - 4
    for name in cfg.DATASETS.TEST:
        assert resumed[name]["sem_seg"] == pytest.approx(whole[name]["sem_seg"], nan_ok=True)


@pytest.mark.fault(
    "Ctrl-C, SIGTERM or a closed terminal in evaluation", "progress is saved, one line says how to go on"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_what_is_done(cfg, monkeypatch, caplog, number):
    """The batch that is being worked on is finished; then the other images alone are left."""
    model = Trainer.build_model(cfg).eval()
    whole = Trainer.test(cfg, model)
    seen, forward = [], model.forward

    def run(inputs):
        seen.extend(input_per_image["image_id"] for input_per_image in inputs)
        if len(seen) == 6:
            os.kill(os.getpid(), number)
        return forward(inputs)

    monkeypatch.setattr(model, "forward", run)
    before = signal.getsignal(number)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as stop:
        Trainer.test(cfg, model)
    assert stop.value.code == 128 + number and signal.getsignal(number) == before
    assert f"Stopped by {number.name}, and what is done is saved: --eval-only --resume goes on" in caplog.text
    resumed = Trainer.test(cfg, model, resume=True)
    assert len(seen) == len(set(seen)) == 12
    for name in cfg.DATASETS.TEST:
        assert resumed[name]["sem_seg"] == pytest.approx(whole[name]["sem_seg"], nan_ok=True)


def test_limit_and_saved_predictions(cfg, tmp_path):
    """Palette PNGs of class indices; of 4 evenly spaced images."""
    cfg.merge_from_list(["TEST.ZERO_SHOT.MAX_IMAGES", 4, "TEST.ZERO_SHOT.SAVE_PREDICTIONS", True])
    model = Trainer.build_model(cfg).eval()
    results = Trainer.test(cfg, model)
    assert results["shapes_val"]["images"] == 4
    for name in cfg.DATASETS.TEST:
        files = sorted((tmp_path / "output/inference" / name / "predictions").iterdir())
        assert [path.stem for path in files] == [DatasetCatalog.get(name)[i]["image_id"] for i in (0, 3, 6, 9)]
        with Image.open(files[0]) as image:
            assert image.mode == "P"
            assert image.getpalette()[3:6] == list(MetadataCatalog.get(name).stuff_colors[1])
            assert np.array(image).max() < len(MetadataCatalog.get(name).stuff_classes)
