"""dev/shapes_few_masks.py: what each training gets, its classes in two groups, the table and the figure."""

import json
import statistics
import sys

import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.engine.training_data import check_training_data
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "dev"))
import shapes_few_masks  # noqa: E402
from shapes_few_masks import BASE, COUNTS, DATA, GROUPS, NOVEL, WAYS  # noqa: E402


def test_the_groups_are_all_classes():
    assert sorted(BASE + NOVEL) == sorted(MetadataCatalog.get(DATA).stuff_classes) and len(NOVEL) == 7
    assert sorted(BASE) == sorted(MetadataCatalog.get("shapes_base_sem_seg_train").stuff_classes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", COUNTS)
def test_trainings_differ_in_labels_and_captions_alone(way, count):
    recipe = shapes_few_masks.recipe(way, count)
    if way == "labels alone" and count == 0:
        assert recipe is None  # nothing to train
        return
    config, options = recipe
    cfg = load_config(ROOT / "configs/shapes" / config, options)
    check_training_data(cfg)
    assert ("shapes_train" in cfg.DATASETS.TRAIN) == (way == "labels and captions")
    assert ("shapes_base_sem_seg_train" in cfg.DATASETS.TRAIN) == (count > 0)
    assert cfg.MODEL.WEIGHTS == "tcl_d2://shapes_tcl/weights.safetensors" and DATA in cfg.DATASETS.TEST
    if count:
        ratio = cfg.DATALOADER.LABELED_RATIO or 1
        assert ratio * cfg.SOLVER.IMS_PER_BATCH == 8 and count == 512 * cfg.DATALOADER.RANDOM_SUBSET_RATIO


def test_the_table_has_means_of_the_last_evaluations(tmp_path, monkeypatch, capsys):
    """From what trainings write: the last evaluation counts, a class's IoU in its own group."""

    def write_trainings(recipes, seeds, iterations, output, jobs):
        for number, name in enumerate(recipes):
            for seed in seeds:
                folder = output / name / f"{iterations}_{seed}"
                folder.mkdir(parents=True)
                ious = {f"{DATA}/sem_seg/IoU-{c}": number + 10 * (c in NOVEL) + seed for c in BASE + NOVEL}
                rows = [{"iteration": 0}, {"average/mIoU": 0, **dict.fromkeys(ious, 99)}, {"average/mIoU": 0, **ious}]
                (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))

    monkeypatch.setattr(shapes_few_masks, "train_all", write_trainings)
    monkeypatch.setattr(shapes_few_masks, "evaluate_start", lambda _: dict.fromkeys(GROUPS, 7.0))
    monkeypatch.setattr(sys, "argv", ["few_masks", "--output", str(tmp_path), "--seeds", "1", "3"])
    shapes_few_masks.main()

    table = (tmp_path / "few_masks.md").read_text()
    assert table in capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[0] for row in cells] == ["0", "8", "32", "128", "512"]
    spread = f"± {statistics.stdev([1, 3]):.1f}"
    assert cells[0][1:] == [f"2.0 {spread}", f"12.0 {spread}", "7.0", "7.0"]  # both ways
    assert cells[1][1:] == [f"{mean:.1f} {spread}" for mean in (3, 13, 7, 17)]
    assert Image.open(tmp_path / "few_masks.png").size == (990, 396)


def test_the_start_is_evaluated_by_its_groups(in_world, tmp_path):
    start = shapes_few_masks.evaluate_start(tmp_path)
    assert start.keys() == GROUPS.keys() and all(0 < miou < 100 for miou in start.values())
