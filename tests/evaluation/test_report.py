"""The report: measured beside published, averages, incomplete sets, and the files."""

import csv
import json

from detectron2.data import MetadataCatalog

from tcl_d2.evaluation.published import PublishedRow, find_published
from tcl_d2.evaluation.report import average, save_report, write_report
from tests.data.test_benchmarks import EIGHT

TCL = find_published("TCL", "ViT-B-16", pamr=True, protocol="unified")


def result(name: str, value: float, images: int, classes: tuple[str, ...] = ()) -> dict:
    metrics = dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), value)
    return {"sem_seg": metrics | {f"IoU-{word}": value for word in classes}, "images": images, "skipped": 0}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_eight_beside_the_published_row():
    results = {name: result(name, 10.0 + i, EIGHT[name][1]) for i, name in enumerate(EIGHT)}
    header, _, measured, published, *others, source = write_report(results, TCL).splitlines()
    assert cells(header)[1:] == ["VOC", "Context", "Object", "VOC20", "Context59", "Stuff", "City", "ADE", "average"]
    assert cells(measured) == ["mIoU", *(f"{10.0 + i}" for i in range(8)), "13.5"]
    assert cells(published) == [
        "published [1]",
        "55.0",
        "30.4",
        "31.6",
        "83.2",
        "33.9",
        "22.4",
        "24.0",
        "17.1",
        "37.2",
    ]

    assert [cells(line)[0] for line in others] == ["fwIoU", "mACC", "pACC"]
    assert source == "[1] TCL, ViT-B-16, with PAMR, unified protocol: TCL paper (CVPR 2023), Table 2"


def test_sets_that_were_not_published_have_no_published_average():
    results = {name: result(name, 50.0, 1449) for name in ("zeroshot_voc_val", "shapes_val")}
    lines = write_report(results, TCL).splitlines()
    assert cells(lines[3]) == ["published [1]", "55.0", "", ""]
    assert "published" not in write_report({"shapes_val": result("shapes_val", 50.0, 100)}, TCL)


def test_every_published_row_has_its_source():
    """A row without a figure on these datasets is left out; the others keep their order."""
    rows = [PublishedRow("X", {"shapes_val": 1.0}, "a table", "own", note="a run")]
    rows += [PublishedRow("X", {"no_such_set": 3.0}, "elsewhere", "own"), rows[0]._replace(miou={"shapes_val": 2.0})]
    lines = write_report({"shapes_val": result("shapes_val", 50.0, 100)}, rows).splitlines()
    assert [cells(line) for line in lines[3:5]] == [["published [1]", "1.0", "1.0"], ["published [2]", "2.0", "2.0"]]
    assert lines[-2:] == [
        "[1] X, no PAMR, own protocol: a table (a run)",
        "[2] X, no PAMR, own protocol: a table (a run)",
    ]


def test_metrics_that_not_all_results_have_are_left_out():
    results = {name: result(name, 50.0, 100, ("brick",)) for name in ("shapes_val", "shapes_stuff_val")}
    results["shapes_val"]["sem_seg"]["sharpness"] = 1.0
    assert list(average(results)) == ["mIoU", "fwIoU", "mACC", "pACC"]


def test_a_part_of_the_images_is_said():
    table = write_report({"zeroshot_voc_val": result("zeroshot_voc_val", 50.0, 12)}, TCL)
    assert table.endswith("zeroshot_voc_val: 12 of 1449 images")


def test_files_have_each_metric_and_the_iou_of_each_class(tmp_path):
    words = ("road", "sidewalk")
    results = {"zeroshot_cityscapes_val": result("zeroshot_cityscapes_val", 25.0, 500)}
    metrics = results["zeroshot_cityscapes_val"]["sem_seg"]
    for word in MetadataCatalog.get("zeroshot_cityscapes_val").stuff_classes:
        metrics[f"IoU-{word}"] = 30.0 if word in words else float("nan")
    save_report(results, tmp_path, TCL, {"weights": "x.pth"})

    # A line a dataset
    (row,) = csv.DictReader((tmp_path / "results.csv").open())
    expected = {
        "dataset": "zeroshot_cityscapes_val",
        "images": "500",
        "skipped": "0",
        "mIoU": "25.0",
        "published mIoU": "24.0",
    }
    assert {key: row[key] for key in expected} == expected

    # The same, with settings and classes
    whole = json.loads((tmp_path / "results.json").read_text())
    assert whole["settings"] == {"weights": "x.pth"} and whole["average"]["mIoU"] == 25.0
    assert whole["published"][0]["source"].startswith("TCL paper")
    iou = whole["IoU of each class"]["zeroshot_cityscapes_val"]
    assert (iou["road"], iou["sky"]) == (30.0, None)  # None: it does not occur
