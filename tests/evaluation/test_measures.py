"""Measures beside the protocol's: similar words, confused pairs and boundaries, by hand and beside Detectron2."""

import csv
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from tcl_d2.data import register_benchmark
from tcl_d2.data.labels import LabelMapper
from tcl_d2.engine import Trainer
from tcl_d2.evaluation import MEASURE_REGISTRY, Measure, ZeroShotSemSegEvaluator
from tcl_d2.evaluation.comparison import Comparand, write_comparison
from tcl_d2.evaluation.confusion import class_iou, most_confused
from tcl_d2.evaluation.dataset_settings import check_dataset_settings
from tcl_d2.evaluation.measures import (
    BoundaryIoU,
    ClassBoundaryIoU,
    PresentIoU,
    SoftIoU,
    ZeroIoU,
    build_measures,
    soft_metrics,
)
from tcl_d2.evaluation.similarity import class_similarity, read_similarity
from tcl_d2.words.vocabulary import join_vocabularies, make_vocabulary
from tests import running

DATA, K = "shapes_objects_val", 23  # a benchmark with ignored pixels, and its classes
# Two classes of 10 pixels each: 4 pixels of the first are taken for the second
CONFUSION = np.array([[6, 4, 0], [0, 10, 0]])


def random_case(seed: int, num_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Draw a confusion matrix [K, K + 1] and a similarity [K, K]."""
    rng = np.random.default_rng(seed)
    similarity = rng.random((num_classes, num_classes))
    np.fill_diagonal(similarity, 1)
    return rng.integers(0, 50, (num_classes, num_classes + 1)), similarity


# ---------------------------------------------------------------------------------------- soft metrics


def test_soft_metrics_by_hand():
    """With half of a credit: class 0 has (8 + 6) / 2 of 10 + 6 - 7 pixels, class 1 (10 + 12) / 2 of 10 + 14 - 11."""
    iou, accuracy = soft_metrics(CONFUSION, np.array([[1, 0.5], [0.5, 1]]))
    assert iou == pytest.approx([7 / 9, 11 / 13]) and accuracy == pytest.approx(18 / 20)


def test_soft_metrics_of_the_truth_alone_or_the_prediction_alone():
    """A similarity need not be symmetric: the row is the ground truth."""
    iou, accuracy = soft_metrics(CONFUSION, np.array([[1, 0.5], [0, 1]]))
    assert iou == pytest.approx([7 / 9, 11 / 13]) and accuracy == pytest.approx(18 / 20)
    iou, accuracy = soft_metrics(CONFUSION, np.array([[1, 0], [0.5, 1]]))
    assert iou == pytest.approx([6 / 10, 10 / 14]) and accuracy == pytest.approx(16 / 20)


def test_identity_gives_the_plain_metrics():
    confusion, similarity = random_case(0)
    iou, accuracy = soft_metrics(confusion, np.eye(5))
    assert iou == pytest.approx(class_iou(confusion))
    assert accuracy == pytest.approx(np.trace(confusion) / confusion.sum())


def test_all_ones_leave_the_pixels_of_no_class():
    """All that has a class is right: without pixels of no class, each class has IoU 1."""
    confusion, _ = random_case(0)
    everything = np.ones((5, 5))
    iou, accuracy = soft_metrics(confusion[:, :5], everything)
    assert iou == pytest.approx(np.ones(5)) and accuracy == 1
    iou, accuracy = soft_metrics(confusion, everything)
    assert accuracy == pytest.approx(confusion[:, :5].sum() / confusion.sum())
    occurrences = confusion.sum(1) + confusion.sum(0)[:5]
    dice = (occurrences - confusion[:, 5]) / occurrences  # the share of a class's pixels that have any class
    assert iou == pytest.approx(dice / (2 - dice))


@pytest.mark.parametrize("seed", range(5))
def test_soft_metrics_are_symmetric_and_grow_with_similarity(seed):
    confusion, similarity = random_case(seed)
    square = confusion[:, :5]
    iou, accuracy = soft_metrics(square, similarity)
    swapped_iou, swapped_accuracy = soft_metrics(square.T, similarity.T)
    assert iou == pytest.approx(swapped_iou) and accuracy == pytest.approx(swapped_accuracy)

    plain_iou, _ = soft_metrics(square, np.eye(5))
    higher_iou, higher_accuracy = soft_metrics(square, (1 + similarity) / 2)
    assert (plain_iou <= iou).all() and (iou <= higher_iou).all() and (higher_iou <= 1).all()
    assert accuracy < higher_accuracy <= 1


def test_a_class_that_is_only_predicted_counts_by_its_similarity():
    """Without a jump from IoU 0, as in the protocol, to 1; a class that does not occur counts nowhere."""
    confusion = np.array([[0, 10, 0], [0, 0, 0], [0, 0, 0]])
    for value in (0.0, 0.5, 1.0):
        similarity = np.eye(3)
        similarity[0, 1] = value
        iou, _ = soft_metrics(confusion, similarity)
        assert iou[:2] == pytest.approx([value / (2 - value)] * 2) and np.isnan(iou[2])


def test_most_confused_pairs_have_their_similarity():
    confusion = np.array([[6, 4, 0], [1, 7, 2], [0, 0, 0]])[:2]
    rows = most_confused(confusion, ["sofa", "couch"], np.array([[1, 0.9], [0.8, 1]]))
    assert rows == [
        {"is": "sofa", "taken for": "couch", "pixels": 4, "% of it": 40.0, "similarity": 0.9},
        {"is": "couch", "taken for": "(no class)", "pixels": 2, "% of it": 20.0, "similarity": 0.0},
        {"is": "couch", "taken for": "sofa", "pixels": 1, "% of it": 10.0, "similarity": 0.8},
    ]
    assert "similarity" not in most_confused(confusion, ["sofa", "couch"])[0]


# ---------------------------------------------------------------------------------------- similarity


def similarity_of(classes: list, features: list[list[float]], background: bool | list = False) -> np.ndarray:
    _, (subset,) = join_vocabularies([make_vocabulary(classes, background, shared_words=True)])
    return class_similarity(subset, torch.nn.functional.normalize(torch.tensor(features), dim=1))


def test_similarity_of_words_by_hand():
    """Cosines 0.8 of a and b, 0.6 of b and c, 0 of a and c: their mean counts as 0."""
    similarity = similarity_of(["a", "b", "c"], [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    mean = (0.8 + 0.6) / 3
    expected = [[1, (0.8 - mean) / (1 - mean), 0], [0, 1, (0.6 - mean) / (1 - mean)], [0, 0, 1]]
    assert similarity == pytest.approx(np.triu(expected) + np.triu(expected, 1).T, abs=1e-6)


def test_classes_are_as_similar_as_their_nearest_words():
    """Words of a background and of no class count nowhere; a word of two classes makes them the same."""
    classes, features = ["a", ["x", "b"], "c"], [[1.0, 0.0], [0.0, -1.0], [0.8, 0.6], [0.0, 1.0]]
    alone = similarity_of(["a", "b", "c"], [features[0], *features[2:]])
    similarity = similarity_of(classes, features)
    assert similarity[0, 1] == pytest.approx(alone[0, 1])
    with_background = similarity_of(classes, [[0.6, 0.8], *features], background=["sky"])
    assert np.array_equal(with_background[1:, 1:], similarity)
    assert np.array_equal(with_background[0], [1, 0, 0, 0]) and np.array_equal(with_background[:, 0], [1, 0, 0, 0])

    shared = similarity_of([["a", "b"], ["b", "c"], "d"], [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    assert shared[0, 1] == pytest.approx(1)


def test_two_classes_or_one_have_no_more_than_the_mean():
    assert np.array_equal(similarity_of(["a", "b"], [[1.0, 0.0], [0.9, 0.1]]), np.eye(2))
    assert np.array_equal(similarity_of(["a"], [[1.0, 0.0]]), [[1]])
    assert np.array_equal(similarity_of(["a"], [[1.0, 0.0]], background=True), np.eye(2))


def test_a_similarity_is_read_of_either_file(tmp_path):
    expected = np.array([[1, 0.5], [0.25, 1]])
    np.save(tmp_path / "t_set.npy", expected.astype(np.float32))
    (tmp_path / "t_set.csv").write_text("1,0.5\n0.25,1\n")
    for name in ("t_set.npy", "t_set.csv", "{dataset}.csv"):
        assert np.array_equal(read_similarity(str(tmp_path / name), "t_set", 2), expected)


@pytest.mark.fault("a similarity matrix that is not square, not in 0..1, no numbers, or not there", "it is named")
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("s.csv", "1,0,0\n0,1,0\n", "is 2 x 3"),
        ("s.csv", "1,0,0\n0,1,0\n0,0,1\n", "is 3 x 3"),
        ("s.csv", "1,0\n0,0.5\n", "1 on the diagonal"),
        ("s.csv", "1,-0.1\n0,1\n", "values in -0.1..1"),
        ("s.csv", "1,nan\n0,1\n", "values in nan"),
        ("s.csv", "cat,dog\n1,0\n", "cannot be read"),
        ("s.csv", "1,0\n0\n", "cannot be read"),
        ("s.npy", "1,0\n0,1\n", "cannot be read"),
        ("s.npy", None, "cannot be read .*No such file"),
    ],
)
def test_an_unfit_similarity_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises((OSError, ValueError), match=f"TEST.ZERO_SHOT.SIMILARITY '{path}' {message}|{message}") as error:
        read_similarity(str(path), "t_set", 2)
    assert str(path) in str(error.value) and "a row and a column for each class" in str(error.value)


@pytest.mark.fault("a similarity matrix in a file of pickled objects", "it is refused, nothing of it runs")
def test_a_pickled_similarity_is_refused(tmp_path):
    np.save(tmp_path / "s.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        read_similarity(str(tmp_path / "s.npy"), "t_set", 2)


# ---------------------------------------------------------------------------------------- predictions


@pytest.fixture
def predictions(in_world) -> dict[str, np.ndarray]:
    """Labels of the small world, moved by some pixels and with noise; by image."""
    labels, rng, predictions = LabelMapper.of(DATA), np.random.default_rng(0), {}
    for dataset_dict in DatasetCatalog.get(DATA)[:4]:
        label = labels.read(dataset_dict["sem_seg_file_name"])
        moved = np.roll(np.where(label == K, 0, label), (2, 5), (0, 1))
        noise = rng.random(label.shape) < 0.01
        predictions[dataset_dict["file_name"]] = np.where(noise, rng.integers(0, K, label.shape), moved)
    return predictions


def evaluate(evaluator, predictions: dict[str, np.ndarray], num_classes: int = K) -> dict[str, float]:
    evaluator.reset()
    for file_name, prediction in predictions.items():
        scores = torch.nn.functional.one_hot(torch.from_numpy(prediction), num_classes).permute(2, 0, 1).float()
        evaluator.process([{"file_name": file_name}], [{"sem_seg": scores}])
    return evaluator.evaluate()["sem_seg"]


@pytest.fixture
def twelve_classes(in_world):
    """The small world with 12 classes: with 16 or more, indices of uint8 in Detectron2's evaluator overflow."""
    name, folder = "t_twelve", in_world / "shapes/val"
    label_map = {**{value: value % 12 for value in range(25)}, **dict.fromkeys(range(25, 30), 255)}
    register_benchmark(
        name, f"{folder}/images", f"{folder}/labels", classes=[f"class {k}" for k in range(12)], label_map=label_map
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def evaluate_like_detectron2(name: str, predictions: dict[str, np.ndarray], *measures: type[Measure]) -> list[dict]:
    """Evaluate 12 classes by Detectron2's evaluator, and by ours with measures; return the metrics of both."""
    names, labels = MetadataCatalog.get(name).stuff_classes, LabelMapper.of(name)
    theirs = SemSegEvaluator(
        name, distributed=False, sem_seg_loading_fn=lambda path, dtype: labels.read(path).astype(dtype)
    )
    theirs._ignore_label = len(names)  # which the mapper has made of the others
    ours = ZeroShotSemSegEvaluator(name, distributed=False, measures=[measure(names) for measure in measures])
    predictions = {file_name: prediction % 12 for file_name, prediction in predictions.items()}
    return [evaluate(evaluator, predictions, 12) for evaluator in (theirs, ours)]


# ---------------------------------------------------------------------------------------- many classes


def test_means_and_zeros_by_hand():
    """Class 1 is only predicted, class 2 never found, class 3 does not occur: mIoU has the IoUs 6/10, 0 and 0."""
    matrix = np.zeros((4, 5), np.int64)
    matrix[0, :2], matrix[2, 0] = (6, 1), 3
    metrics = {}
    for measure in (PresentIoU, ZeroIoU):
        metrics |= measure(list("abcd")).compute_metrics({"confusion_matrix": matrix})
    assert metrics == {"present_mIoU": pytest.approx(30), "zero_IoU": pytest.approx(200 / 3)}
    assert np.nanmean(class_iou(matrix)) == pytest.approx(0.2)


def test_present_iou_is_detectron2s_miou(twelve_classes, predictions):
    expected, metrics = evaluate_like_detectron2(twelve_classes, predictions, PresentIoU)
    assert metrics["present_mIoU"] == pytest.approx(expected["mIoU"], rel=1e-12)
    assert metrics["present_mIoU"] > metrics["mIoU"] + 1  # some classes are only predicted


def test_benchmarks_of_many_classes_report_both_means(shapes_cfg):
    shapes_cfg.TEST.ZERO_SHOT.MEASURES = ["ZeroIoU", "ConfusedPairs"]
    for name in ("zeroshot_ade847_val", "zeroshot_context459_val", "zeroshot_lvis_val"):
        measures = [type(measure).__name__ for measure in build_measures(shapes_cfg, name)]
        assert measures == ["ZeroIoU", "ConfusedPairs", "PresentIoU"]
    assert len(build_measures(shapes_cfg, "zeroshot_coco_stuff_val")) == 2


# ---------------------------------------------------------------------------------------- boundaries


def test_boundary_iou_is_that_of_detectron2(twelve_classes, predictions):
    pytest.importorskip("cv2", exc_type=ImportError)
    names = MetadataCatalog.get(twelve_classes).stuff_classes
    expected, metrics = evaluate_like_detectron2(twelve_classes, predictions, BoundaryIoU)

    ious = [metrics[f"BoundaryIoU-{name}"] for name in names]
    assert ious == pytest.approx([expected[f"BoundaryIoU-{name}"] for name in names], nan_ok=True, rel=1e-12)
    for name in names:
        if not np.isnan(expected[f"IoU-{name}"]):
            assert metrics[f"min(IoU, B-Iou)-{name}"] == pytest.approx(expected[f"min(IoU, B-Iou)-{name}"])
    assert metrics["boundary_mIoU"] == pytest.approx(np.nanmean(ious)) and 0 < metrics["boundary_mIoU"] < 100


def test_boundary_iou_of_each_class_is_that_of_its_mask(predictions):
    """By another computation: a pixel is of the boundary where a window around it leaves the mask."""
    pytest.importorskip("cv2", exc_type=ImportError)
    names = MetadataCatalog.get(DATA).stuff_classes
    evaluator = ZeroShotSemSegEvaluator(DATA, distributed=False, measures=[ClassBoundaryIoU(names)])
    metrics = evaluate(evaluator, predictions)

    def boundary(mask: np.ndarray) -> torch.Tensor:
        distance = max(1, round(0.02 * np.hypot(*mask.shape)))
        outside = torch.nn.functional.pad(~torch.from_numpy(mask), (1, 1, 1, 1), value=True).float()
        near = torch.nn.functional.max_pool2d(outside[None], 2 * distance + 1, 1, distance)[0, 1:-1, 1:-1]
        return torch.from_numpy(mask) & (near > 0)

    labels, hits, union = LabelMapper.of(DATA), np.zeros(K), np.zeros(K)
    for dataset_dict in DatasetCatalog.get(DATA)[:4]:
        label = labels.read(dataset_dict["sem_seg_file_name"])
        prediction = predictions[dataset_dict["file_name"]]
        for k in range(K):
            truth, predicted = boundary(label == k), boundary((prediction == k) & (label < K))
            hits[k] += (truth & predicted).sum()
            union[k] += (truth | predicted).sum()
    ious = np.array([100 * hit / size if size else np.nan for hit, size in zip(hits, union)])
    assert [metrics[f"class_boundary_IoU-{name}"] for name in names] == pytest.approx(ious, nan_ok=True)
    assert metrics["class_boundary_mIoU"] == pytest.approx(np.nanmean(ious)) and 0 < np.nanmean(ious) < 100


def test_the_truth_has_all_boundaries_also_beside_ignored_pixels(tmp_path, in_world):
    pytest.importorskip("cv2", exc_type=ImportError)
    measure = ClassBoundaryIoU(["a", "b"])
    label = torch.zeros(40, 40, dtype=torch.int64)
    label[10:30, 10:30] = 1
    ignored = label.clone()
    ignored[8:20, 8:32] = 2  # a band over the upper edge of class 1
    statistics = measure.empty_statistics()
    measure.update_statistics(statistics, label, ignored)
    assert measure.compute_metrics(statistics)["class_boundary_mIoU"] == 100


@pytest.mark.fault("Boundary IoU without OpenCV", "one error before the start says what to install")
def test_boundaries_need_opencv(shapes_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    shapes_cfg.TEST.ZERO_SHOT.MEASURES = ["BoundaryIoU"]
    with pytest.raises(RuntimeError, match="MEASURES BoundaryIoU needs cv2.*pip install opencv-python-headless"):
        check_dataset_settings(shapes_cfg, ["shapes_val"])


@pytest.mark.fault("Detectron2's Boundary IoU of more than 254 classes", "one error before the start names another")
def test_boundary_iou_has_a_largest_number_of_classes():
    pytest.importorskip("cv2", exc_type=ImportError)
    BoundaryIoU(["word"] * 254)
    with pytest.raises(ValueError, match="BoundaryIoU; expected ClassBoundaryIoU for 255 classes: .* at most 254"):
        BoundaryIoU(["word"] * 255)


# ---------------------------------------------------------------------------------------- evaluation


@pytest.fixture
def cfg(shapes_cfg):
    """Two benchmarks of the same images, one with a background, with the measures of words."""
    shapes_cfg.DATASETS.TEST = ("shapes_val", "shapes_objects_val")
    shapes_cfg.merge_from_list(["TEST.ZERO_SHOT.REFINE", "none", "TEST.ZERO_SHOT.IMS_PER_BATCH", 4])
    shapes_cfg.TEST.ZERO_SHOT.MEASURES = ["SoftIoU", "ConfusedPairs"]
    return shapes_cfg


def test_measures_come_into_the_report_and_leave_the_rest_as_it_is(cfg, caplog):
    model = Trainer.build_model(cfg).eval()
    with caplog.at_level(logging.INFO):
        results = Trainer.test(cfg, model)
    report = json.loads(Path(cfg.OUTPUT_DIR, "results.json").read_text())
    lines = Path(cfg.OUTPUT_DIR, "results.csv").read_text()
    cfg.TEST.ZERO_SHOT.MEASURES = []
    plain = Trainer.test(cfg, model)

    # The protocol's metrics are the same
    for name in cfg.DATASETS.TEST:
        assert results[name].keys() == plain[name].keys() == {"sem_seg", "images", "skipped"}
        metrics, plain_metrics = results[name]["sem_seg"], plain[name]["sem_seg"]
        assert {key: metrics[key] for key in plain_metrics} == pytest.approx(plain_metrics, nan_ok=True, rel=0, abs=0)
        assert plain_metrics["mIoU"] < metrics["soft_mIoU"] < 100 and plain_metrics["pACC"] < metrics["soft_pACC"] < 100
    assert "most confused pairs" not in json.loads(Path(cfg.OUTPUT_DIR, "results.json").read_text())

    # The report has the measures, with the similarity of the model's own words
    rows = report["most confused pairs"]["shapes_objects_val"]
    names = list(MetadataCatalog.get("shapes_objects_val").stuff_classes)
    features = model.embed_vocabulary(names, model.templates).double()
    cosines = (features @ features.T).cpu()
    mean = cosines[~torch.eye(len(names), dtype=bool)].mean()
    assert len(rows) == 10 and rows[0]["pixels"] >= rows[1]["pixels"] > 0
    for row in rows:
        cosine = cosines[names.index(row["is"]), names.index(row["taken for"])]
        assert row["similarity"] == pytest.approx(max(0, float((cosine - mean) / (1 - mean))), abs=1e-3)
    with_background = [row for row in report["most confused pairs"]["shapes_val"] if "background" in row.values()]
    assert with_background and all(row["similarity"] == 0 for row in with_background)

    values = [results[name]["sem_seg"]["soft_mIoU"] for name in cfg.DATASETS.TEST]
    assert report["average"]["soft_mIoU"] == pytest.approx(np.mean(values))
    ious = report["soft_IoU of each class"]["shapes_val"].values()
    assert values[0] == pytest.approx(np.mean([iou for iou in ious if iou is not None]))
    assert ",soft_mIoU,soft_pACC," in lines
    assert "shapes_val, most confused pairs" in caplog.text and "| soft_mIoU" in caplog.text


def test_measures_of_a_file_in_an_evaluation_that_goes_on(cfg, tmp_path, monkeypatch):
    """With a matrix for each dataset; and with boundaries, whose statistics are kept too."""
    pytest.importorskip("cv2", exc_type=ImportError)
    for name in cfg.DATASETS.TEST:
        np.save(tmp_path / f"{name}.npy", np.eye(len(MetadataCatalog.get(name).stuff_classes)))
    cfg.TEST.ZERO_SHOT.SIMILARITY = str(tmp_path / "{dataset}.npy")
    cfg.TEST.ZERO_SHOT.MEASURES = ["SoftIoU", "BoundaryIoU", "ClassBoundaryIoU", "SoftIoU"]
    check_dataset_settings(cfg, cfg.DATASETS.TEST)
    model = Trainer.build_model(cfg).eval()
    whole = Trainer.test(cfg, model)
    for name in cfg.DATASETS.TEST:
        metrics = whole[name]["sem_seg"]
        assert metrics["soft_mIoU"] == pytest.approx(metrics["mIoU"])
        assert 0 < metrics["boundary_mIoU"] < 100 and 0 < metrics["class_boundary_mIoU"] < 100

    # Stopped after 8 of 12 images
    monkeypatch.setattr("tcl_d2.evaluation.progress.PERIOD", 0.0)  # save after every batch
    seen, forward = [], model.forward

    def run(inputs: list[dict]) -> list[dict]:
        if len(seen) == 8:
            raise KeyboardInterrupt
        seen.extend(inputs)
        return forward(inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "forward", run)
        Trainer.test(cfg, model)
    resumed = Trainer.test(cfg, model, resume=True)
    for name in cfg.DATASETS.TEST:
        assert resumed[name]["sem_seg"] == pytest.approx(whole[name]["sem_seg"], nan_ok=True)


def test_an_evaluator_alone_needs_a_similarity(in_world, predictions):
    names = MetadataCatalog.get(DATA).stuff_classes
    evaluator = ZeroShotSemSegEvaluator(DATA, distributed=False, measures=[SoftIoU(names)])
    with pytest.raises(ValueError, match=f"measures of '{DATA}' need the similarity.*set_similarity"):
        evaluate(evaluator, predictions)
    evaluator.set_similarity(np.eye(K))
    metrics = evaluate(evaluator, predictions)
    assert metrics["soft_mIoU"] == pytest.approx(metrics["mIoU"])


def test_a_measure_of_a_users_own(cfg):
    @MEASURE_REGISTRY.register()
    class WorstClass(Measure):
        def compute_metrics(self, statistics):
            return {"worst": 100 * np.nanmin(class_iou(statistics["confusion_matrix"]))}

    try:
        cfg.TEST.ZERO_SHOT.MEASURES = ["WorstClass"]
        metrics = Trainer.test(cfg, Trainer.build_model(cfg).eval())["shapes_val"]["sem_seg"]
    finally:
        del MEASURE_REGISTRY._obj_map["WorstClass"]
    assert metrics["worst"] == np.nanmin([value for name, value in metrics.items() if name.startswith("IoU-")])


@pytest.mark.fault("a measure that is not known", "one error before the start lists those that are")
def test_an_unknown_measure_is_named(shapes_cfg):
    shapes_cfg.TEST.ZERO_SHOT.MEASURES = ["SoftIuO"]
    with pytest.raises(ValueError, match="'shapes_val': TEST.ZERO_SHOT.MEASURES has 'SoftIuO'; .*SoftIoU, Conf.*Bound"):
        check_dataset_settings(shapes_cfg, ["shapes_val"])


@pytest.mark.fault("an evaluation with a similarity matrix that is not square", "one error before the start")
def test_an_unfit_similarity_is_one_error_of_the_script(world, tmp_path):
    (tmp_path / "s.csv").write_text("1,0,0\n0,1,0\n")
    options = ["TEST.ZERO_SHOT.MEASURES", "['SoftIoU']", "TEST.ZERO_SHOT.SIMILARITY", tmp_path / "s.csv"]
    command = ["train_net.py", "--config-file", "configs/shapes/trained.yaml", "--eval-only", *options]
    done = running.run(world, *command, "OUTPUT_DIR", tmp_path / "out")
    running.check_error(done, "Dataset 'shapes_val'", "s.csv' is 2 x 3", "(24)")
    assert not (tmp_path / "out").exists()


def test_a_comparison_has_a_table_of_each_measure(tmp_path):
    names = ("zeroshot_voc_val", "zeroshot_voc20_val")
    results = {name: {"mIoU": 50.0, "images": 1449, "skipped": 0} for name in names}
    cost = {"seconds": 3.0, "images": 12, "peak_memory": 900.0}
    measures = {name: {"soft_mIoU": 60.0 + i} for i, name in enumerate(names)}
    comparands = {"a": Comparand(results, cost, (), measures), "b": Comparand(results, cost, ())}
    lines = write_comparison(comparands, tmp_path).splitlines()

    start = next(i for i, line in enumerate(lines) if "soft_mIoU, %" in line)
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    assert table[0] == ["soft_mIoU, %", "VOC", "VOC20", "average"]
    assert table[2:] == [["a", "60.0", "61.0", "60.5"], ["b", "", "", ""]]
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert [row["average soft_mIoU"] for row in rows] == ["60.5", ""]
    assert rows[0]["zeroshot_voc20_val soft_mIoU"] == "61.0"

    comparands["a"] = comparands["b"]
    assert "soft" not in write_comparison(comparands, tmp_path)
