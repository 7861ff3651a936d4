"""The evaluator against an independent computation, label rules, ignored pixels, and bad label files."""

import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tcl_d2.data import register_benchmark
from tcl_d2.evaluation import ZeroShotSemSegEvaluator
from tcl_d2.evaluation.confusion import confusion_matrix
from tcl_d2.evaluation.progress import SkippedImages

CLASSES = ("background", "cat", "dog", "cow")


@pytest.fixture
def four_classes(tmp_path):
    """Four classes; label files hold 0 (background), 10, 20, 30 and 255; 99 has no meaning. Three images."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        size = (12 + i, 9)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")
        values = rng.choice([0, 10, 20, 255], size).astype(np.uint8)  # no cow in the ground truth
        Image.fromarray(values).save(tmp_path / f"labels/{i}.png")

    register_benchmark(
        "t_bench",
        images=str(tmp_path / "images"),
        labels=str(tmp_path / "labels"),
        classes=CLASSES,
        background=True,
        label_map={0: 0, 10: 1, 20: 2, 30: 3},
    )
    yield tmp_path
    DatasetCatalog.remove("t_bench")
    MetadataCatalog.remove("t_bench")


def scores_of(prediction: np.ndarray, classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(prediction), classes).permute(2, 0, 1).float()


def run(predict) -> dict:
    evaluator = ZeroShotSemSegEvaluator("t_bench")
    for dataset_dict in DatasetCatalog.get("t_bench"):
        raw = np.array(Image.open(dataset_dict["sem_seg_file_name"]))
        evaluator.process([dataset_dict], [{"sem_seg": scores_of(predict(raw))}])
    return evaluator.evaluate()["sem_seg"]


def test_equals_an_independent_computation(four_classes):
    """Over the whole dataset, class by class, with loops over pixels; 'cow' is predicted but never there, IoU 0."""
    rng = np.random.default_rng(1)
    predictions = {}

    def predict(raw):
        predictions[raw.tobytes()] = (raw, rng.integers(0, 4, raw.shape))
        return predictions[raw.tobytes()][1]

    result = run(predict)
    pairs = [(r, p) for raw, prediction in predictions.values() for r, p in zip(raw.ravel(), prediction.ravel())]
    pairs = [({0: 0, 10: 1, 20: 2}[r], p) for r, p in pairs if r != 255]
    ious, accuracies = [], []
    for k, name in enumerate(CLASSES):
        both = sum(t == k and p == k for t, p in pairs)
        either = sum(t == k or p == k for t, p in pairs)
        ious.append(both / either)
        assert result[f"IoU-{name}"] == pytest.approx(100 * both / either)
        if any(t == k for t, _ in pairs):
            accuracies.append(both / sum(t == k for t, _ in pairs))
            assert result[f"ACC-{name}"] == pytest.approx(100 * accuracies[-1])
    assert np.isnan(result["ACC-cow"])
    assert result["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert result["mACC"] == pytest.approx(100 * np.mean(accuracies))
    assert result["pACC"] == pytest.approx(100 * np.mean([t == p for t, p in pairs]))
    share = [sum(t == k for t, _ in pairs) / len(pairs) for k in range(4)]
    assert result["fwIoU"] == pytest.approx(100 * np.dot(share, ious))


def test_ground_truth_scores_100_and_absent_classes_do_not_count(four_classes):
    result = run(lambda raw: np.where(raw == 255, 3, raw // 10).astype(np.int64) % 4)
    assert result["mIoU"] == pytest.approx(100)
    assert np.isnan(result["IoU-cow"])


def test_ignored_pixels_change_nothing(four_classes):
    def predict(fill):
        return lambda raw: np.where(raw == 255, fill, 1).astype(np.int64)

    assert run(predict(0)) == pytest.approx(run(predict(3)), nan_ok=True)


def test_the_parts_of_processes_add_up_to_the_whole(four_classes):
    """Two evaluators with a part of the images each hold what one with all of them does."""
    first, second, whole = (ZeroShotSemSegEvaluator("t_bench", distributed=False) for _ in range(3))
    for i, dataset_dict in enumerate(DatasetCatalog.get("t_bench")):
        size = np.array(Image.open(dataset_dict["sem_seg_file_name"])).shape
        output = {"sem_seg": scores_of(np.random.default_rng(i).integers(0, 4, size))}
        for evaluator in (second if i == 1 else first, whole):
            evaluator.process([dataset_dict], [output])
    parts = [evaluator.statistics["confusion_matrix"] for evaluator in (first, second)]
    assert parts[1].any() and np.array_equal(parts[0] + parts[1], whole.statistics["confusion_matrix"])


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda path: Image.fromarray(np.full((12, 9), 99, np.uint8)).save(path), ValueError, "the value 99"),
        (lambda path: Image.fromarray(np.zeros((12, 9, 3), np.uint8)).save(path), OSError, "3 channels"),
        (lambda path: path.write_bytes(b"no png"), OSError, "could not be read"),
        (lambda path: path.unlink(), OSError, "could not be read"),
        (lambda path: Image.fromarray(np.zeros((5, 5), np.uint8)).save(path), ValueError, "differ in size"),
    ],
)
def test_bad_labels_are_named(four_classes, make, error, message):
    evaluator, dataset_dict = ZeroShotSemSegEvaluator("t_bench"), DatasetCatalog.get("t_bench")[0]
    make(four_classes / "labels/0.png")
    with pytest.raises(error, match=f"labels/0.png.*{message}"):
        evaluator.process([dataset_dict], [{"sem_seg": torch.zeros(4, 12, 9)}])


@pytest.mark.fault("predictions out of range, of another shape, type or size, or nan", "an error names image and value")
@pytest.mark.parametrize(
    "output, message",
    [
        ({"sem_seg_labels": torch.full((12, 9), 5)}, "the value 5.*4 classes"),
        ({"sem_seg_labels": torch.full((12, 9), 255, dtype=torch.uint8)}, "the value 255.*4 classes"),
        ({"sem_seg_labels": torch.full((12, 9), -1)}, "the value -1"),
        ({"sem_seg_labels": torch.zeros(12, 9)}, "float32"),
        ({"sem_seg_labels": [[0] * 9] * 12}, "list"),
        ({"sem_seg_labels": torch.zeros(1, 12, 9, dtype=torch.int64)}, r"\[1, 12, 9\]"),
        ({"sem_seg_labels": torch.zeros(9, 12, dtype=torch.int64)}, r"\[9, 12\].*\[12, 9\]"),
        ({"sem_seg": torch.zeros(3, 12, 9)}, "3 classes"),
        ({"sem_seg": torch.zeros(4, 108)}, r"\[4, 108\]"),
        ({"sem_seg": [[[0.0] * 9] * 12] * 4}, "list"),
        ({"sem_seg": torch.zeros(4, 9, 12)}, r"\[9, 12\].*\[12, 9\]"),
        ({"sem_seg": torch.full((4, 12, 9), torch.nan)}, "nan"),
        ({"instances": []}, "sem_seg.*instances"),
    ],
)
@pytest.mark.parametrize("skips", [False, True])
def test_predictions_that_do_not_fit_are_named(four_classes, output, message, skips):
    """Also where broken labels are skipped: a wrong prediction is the model's fault."""
    evaluator, row = ZeroShotSemSegEvaluator("t_bench"), DatasetCatalog.get("t_bench")[0]
    evaluator.attach(None, SkippedImages() if skips else None)
    with pytest.raises(ValueError, match=f"(?s)prediction for .*images/0.png.*{message}"):
        evaluator.process([{**row, "height": 12, "width": 9}], [output])
    assert not evaluator.statistics["confusion_matrix"].any()


@pytest.mark.parametrize("value", [-1, 4, 40])
def test_confusion_matrices_have_no_other_classes(value):
    fine = torch.zeros(2, 3, dtype=torch.int64)
    for pair in ((torch.full_like(fine, value), fine), (fine, torch.full_like(fine, value))):
        with pytest.raises(ValueError, match=f"the value {value}"):
            confusion_matrix(*pair, 3)


@pytest.mark.fault("two rows of a dataset with one file_name", "an error at the start names it")
def test_two_rows_of_one_image_are_refused(four_classes):
    rows = DatasetCatalog.get("t_bench")
    rows[2] = {**rows[0], "sem_seg_file_name": rows[1]["sem_seg_file_name"]}
    DatasetCatalog.register("t_twice", lambda: rows)
    MetadataCatalog.get("t_twice").set(stuff_classes=list(CLASSES), evaluator_type="sem_seg")
    try:
        with pytest.raises(ValueError, match="'t_twice'.*images/0.png"):
            ZeroShotSemSegEvaluator("t_twice")
    finally:
        DatasetCatalog.remove("t_twice")
        MetadataCatalog.remove("t_twice")


@pytest.mark.fault(
    "SAVE_PREDICTIONS of two images whose files would have one name, or of an ID that leads out of the folder",
    "an error at the start",
)
@pytest.mark.parametrize(
    "image_id, message",
    [("a", "'t_ids'.*images/0.png and .*images/1.png"), ("../outside", "images/0.png names '../outside.png'")],
)
def test_predictions_have_files_of_their_own(four_classes, tmp_path, image_id, message):
    rows = [{**row, "image_id": image_id} for row in DatasetCatalog.get("t_bench")]
    DatasetCatalog.register("t_ids", lambda: rows)
    MetadataCatalog.get("t_ids").set(stuff_classes=list(CLASSES), evaluator_type="sem_seg")
    try:
        with pytest.raises(ValueError, match=message):
            ZeroShotSemSegEvaluator("t_ids", output_dir=tmp_path)
        ZeroShotSemSegEvaluator("t_ids")
    finally:
        DatasetCatalog.remove("t_ids")
        MetadataCatalog.remove("t_ids")


# ------------------------------------------------------------------------------------- labels that lack classes


@pytest.fixture
def warnings(caplog):
    """What was warned of."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.fault("a class that occurs in no label of a dataset", "a warning names it")
def test_classes_without_labels_are_told(four_classes, warnings):
    run(lambda raw: np.zeros(raw.shape, np.int64))
    (message,) = warnings()
    assert "'t_bench'" in message and "1 of 4 classes" in message and "cow" in message and "dog" not in message


def test_nothing_is_told_where_all_classes_have_labels(four_classes, warnings):
    Image.fromarray(np.full((12, 9), 30, np.uint8)).save(four_classes / "labels/0.png")
    run(lambda raw: np.zeros(raw.shape, np.int64))
    assert not warnings()


@pytest.mark.fault("masks of 0 and 255 as the labels of two classes", "a warning: 255 is ignored")
def test_masks_of_0_and_255_are_told(four_classes, warnings):
    MetadataCatalog.get("t_bench").label_map.clear()
    MetadataCatalog.get("t_bench").label_map.update({0: 0, 1: 1})
    for path in (four_classes / "labels").iterdir():
        Image.fromarray(np.where(np.array(Image.open(path)) == 10, 255, 0).astype(np.uint8)).save(path)
    run(lambda raw: np.zeros(raw.shape, np.int64))
    (message,) = warnings()
    assert "cat" in message and "0 and 255" in message and "255 is ignored" in message


def test_nothing_evaluated_is_an_error(four_classes):
    with pytest.raises(ValueError, match="Nothing to evaluate"):
        ZeroShotSemSegEvaluator("t_bench").evaluate()


def test_label_rule_with_an_unknown_class_is_refused(four_classes):
    register_benchmark("t_rule", "i", "l", classes=("a", "b"), label_map={0: 2})
    try:
        with pytest.raises(ValueError, match="class 2; there are 2"):
            ZeroShotSemSegEvaluator("t_rule")
    finally:
        DatasetCatalog.remove("t_rule")
        MetadataCatalog.remove("t_rule")


def test_missing_label_file_is_found_before_evaluation(four_classes):
    (four_classes / "labels/1.png").unlink()
    with pytest.raises(FileNotFoundError, match="'t_bench': 1 of 3 labels are missing, such as .*1.png"):
        DatasetCatalog.get("t_bench")


def test_it_takes_what_detectron2s_evaluator_takes(four_classes, tmp_path):
    """The same arguments in the same order, and scores and labels of NumPy."""
    tensors, arrays = ZeroShotSemSegEvaluator("t_bench", False), ZeroShotSemSegEvaluator("t_bench", False, tmp_path)
    for dataset_dict in DatasetCatalog.get("t_bench"):
        scores = scores_of(np.array(Image.open(dataset_dict["sem_seg_file_name"])).astype(np.int64) % 4)
        tensors.process([dataset_dict], [{"sem_seg": scores}])
        arrays.process([dataset_dict], [{"sem_seg": scores.numpy()}])
    assert np.array_equal(arrays.statistics["confusion_matrix"], tensors.statistics["confusion_matrix"])
    assert len(list((tmp_path / "predictions").rglob("*.png"))) == 3

    arrays.reset()
    arrays.process([dataset_dict], [{"sem_seg_labels": scores.argmax(0).numpy()}])
    assert arrays.statistics["confusion_matrix"].sum() > 0
