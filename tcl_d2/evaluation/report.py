"""The report over all benchmarks: one table with their average beside the published figures, and files of it.

Results are {dataset: {"sem_seg": metrics in percent, "images": how many count, "skipped": how many were left out}}, and
of measures that have tables, {"tables": rows by title} besides.
"""

import csv
import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import testing
from tabulate import tabulate

from ..utils.files import replacing
from .confusion import overall_metrics
from .published import PublishedRow

logger = logging.getLogger(__name__)


def average(results: Mapping[str, Mapping]) -> dict[str, float]:
    """Return the mean over datasets of each metric that all of them have, without those of each class."""
    rows = [overall_metrics(result["sem_seg"]) for result in results.values()]
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}


def write_report(results: Mapping[str, Mapping], published: Sequence[PublishedRow]) -> str:
    """Return a table of each metric over the datasets, with published mIoU where there is any; also logged.

    Args:
        results: as above.
        published: rows to compare with, see published_for.
    """
    # A row for each metric, and what was published below mIoU
    published = [row for row in published if any(name in row.miou for name in results)]
    rows = []
    for metric, mean_value in average(results).items():
        rows.append((metric, *(result["sem_seg"][metric] for result in results.values()), mean_value))
        if metric == "mIoU":
            for number, row in enumerate(published, start=1):
                rows.append((f"published [{number}]", *published_miou(row, results)))

    # The table
    titles = [MetadataCatalog.get(name).get("title", name) for name in results]
    table = tabulate(rows, ("%", *titles, "average"), "pipe", floatfmt=".1f")

    # Where the published rows are from, and what the measured ones do not cover
    sources = [f"[{number}] {row.describe()}" for number, row in enumerate(published, start=1)]
    table = "\n".join([table, *sources, *list_gaps(results)])

    logger.info("Zero-shot semantic segmentation\n%s", table)
    return table


def published_miou(row: PublishedRow, dataset_names: Iterable[str]) -> list[float | None]:
    """Return a published row's figures on datasets, and their mean; None for what was not published."""
    values = [row.miou.get(name) for name in dataset_names]
    return [*values, mean(values)]


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of figures; None where one of them is missing."""
    return None if None in values else sum(values) / len(values)


def list_gaps(results: Mapping[str, Mapping]) -> list[str]:
    """Return a line of text for each dataset of which not all images count."""
    lines = []
    for name, result in results.items():
        expected = MetadataCatalog.get(name).get("num_images", ())
        if expected and result["images"] not in expected:
            lines.append(f"{name}: {result['images']} of {expected[0]} images")
        if result["skipped"]:
            lines.append(f"{name}: {result['skipped']} images left out, since they or their labels are broken")
    return lines


def save_report(
    results: Mapping[str, Mapping], folder: Path, published: Sequence[PublishedRow], settings: Mapping
) -> None:
    """Write results.json (with the metrics of each class, and tables) and results.csv (a line a dataset).

    Args:
        results: as above.
        folder: for the files.
        published: see write_report. The first row with a dataset's figure goes into the line of the dataset.
        settings: what the results depend on, as JSON takes it.
    """
    means = average(results)
    rows = [
        {
            "dataset": name,
            "images": result["images"],
            "skipped": result["skipped"],
            **{metric: result["sem_seg"][metric] for metric in means},
            "published mIoU": next((row.miou[name] for row in published if name in row.miou), None),
        }
        for name, result in results.items()
    ]

    # The same with the settings, each class and the tables
    report = {"settings": settings, "average": means, "datasets": rows}
    for title, metric in (("IoU of each class", "IoU"), ("accuracy of each class", "ACC")):
        report[title] = {name: _class_values(name, metric, result["sem_seg"]) for name, result in results.items()}
    for name, result in results.items():
        for metric in _further_class_metrics(name, result["sem_seg"]):
            report.setdefault(f"{metric} of each class", {})[name] = _class_values(name, metric, result["sem_seg"])
        for title, table in result.get("tables", {}).items():
            report.setdefault(title, {})[name] = table
    report["published"] = [row._asdict() for row in published]

    # The files
    with replacing(folder / "results.json") as unfinished:
        unfinished.write_text(json.dumps(report, indent=1))
    with replacing(folder / "results.csv") as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def check_expected_results(cfg: CfgNode) -> None:
    """Check that TEST.EXPECTED_RESULTS can be compared with results; ValueError names the first row that cannot.

    Args:
        cfg: the configuration, see verify_results.
    """
    for row in cfg.TEST.EXPECTED_RESULTS:
        is_row = isinstance(row, (list, tuple)) and len(row) == 4
        if not is_row or not all(isinstance(value, (int, float)) for value in row[2:]):
            raise ValueError(
                f"TEST.EXPECTED_RESULTS has {row!r}; expected rows of a task, a metric, a value and a tolerance, "
                "such as ['average', 'mIoU', 37.2, 0.5]"
            )


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping]) -> None:
    """Check results against TEST.EXPECTED_RESULTS with Detectron2's function, which exits with 1 where one differs.

    Args:
        cfg: the configuration. Its rows are [task, metric, value, tolerance]; a task is a dataset, "average" or, where
            there is one dataset, Detectron2's own "sem_seg".
        results: as Trainer.test returns them.
    """
    metrics_by_task = defaultdict(dict)  # a task that is missing differs, too
    datasets = [name for name in results if name != "average"]
    if len(datasets) == 1:
        metrics_by_task.update(results[datasets[0]])
    for name, result in results.items():
        metrics_by_task[name] = result.get("sem_seg", result)
    testing.verify_results(cfg, metrics_by_task)


def _further_class_metrics(dataset_name: str, metrics: Mapping[str, float]) -> list[str]:
    """List the metrics that every class has, besides IoU and accuracy."""
    words = MetadataCatalog.get(dataset_name).stuff_classes
    endings = tuple(f"-{word}" for word in words)
    names = [name.removesuffix(endings[0]) for name in metrics if name.endswith(endings[0])]
    names = [name for name in names if all(name + ending in metrics for ending in endings)]
    return [name for name in names if name not in ("IoU", "ACC")]


def _class_values(dataset_name: str, metric: str, metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return a metric of each class; None for a class that does not occur."""
    words = MetadataCatalog.get(dataset_name).stuff_classes
    values = {word: metrics.get(f"{metric}-{word}", math.nan) for word in words}
    return {word: None if math.isnan(value) else value for word, value in values.items()}
