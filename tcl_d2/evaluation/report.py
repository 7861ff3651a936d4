"""The report over all benchmarks: one table with their average beside the published figures, and files of it.

Results are {dataset: {"sem_seg": metrics in percent, "images": number that counts, "skipped": number}}, with {"tables":
rows by title} if measures have tables.
"""

import csv
import json
import logging
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import print_csv_format, testing
from tabulate import tabulate

from ..utils.errors import expect
from ..utils.files import replacing
from .confusion import overall_metrics
from .published import PublishedRow, published_for

logger = logging.getLogger(__name__)


def report_results(cfg: CfgNode, results: OrderedDict, settings: Mapping) -> OrderedDict:
    """Log and write the results, also as Detectron2 prints them; return them with their average."""
    published = published_for(cfg)
    scored = {name: result for name, result in results.items() if "sem_seg" in result}  # not of other evaluators
    if scored:
        write_report(scored, published)
        save_report(scored, Path(cfg.OUTPUT_DIR), published, settings)

    for name, result in results.items():
        result.pop("tables", None)  # Detectron2's EvalHook takes numbers alone
        logger.info("Evaluation results for %s in csv format:", name)
        print_csv_format(result)
    if scored:
        results["average"] = average(scored)
        print_csv_format({"average": results["average"]})
    return results


def average(results: Mapping[str, Mapping]) -> dict[str, float]:
    """Return the mean over datasets of each metric over all classes that all of them have."""
    rows = [overall_metrics(result["sem_seg"]) for result in results.values()]
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}


def write_report(results: Mapping[str, Mapping], published: Sequence[PublishedRow]) -> str:
    """Log and return a table of each metric on each dataset, with the published mIoU."""
    # A row for each metric, and the published ones below mIoU
    published = [row for row in published if any(name in row.miou for name in results)]
    rows = []
    for metric, mean_value in average(results).items():
        rows.append((metric, *(result["sem_seg"][metric] for result in results.values()), mean_value))
        if metric == "mIoU":
            for number, row in enumerate(published, start=1):
                rows.append((f"published [{number}]", *published_miou(row, results)))
    table = tabulate(rows, ("%", *dataset_titles(results), "average"), "pipe", floatfmt=".1f")

    # The sources of the published rows, and the gaps of the measured ones
    sources = [f"[{number}] {row.describe()}" for number, row in enumerate(published, start=1)]
    table = "\n".join([table, *sources, *list_gaps(results)])
    logger.info("Zero-shot semantic segmentation\n%s", table)
    return table


def dataset_titles(names: Iterable[str]) -> list[str]:
    """Return the titles of datasets in tables."""
    return [MetadataCatalog.get(name).get("title", name) for name in names]


def published_miou(row: PublishedRow, dataset_names: Iterable[str]) -> list[float | None]:
    """Return a published row's figures on datasets, and their mean; None for what was not published."""
    values = [row.miou.get(name) for name in dataset_names]
    return [*values, mean(values)]


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of figures; None if one of them is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


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
    """Write results.json (with settings, class metrics and tables) and results.csv (a line a dataset)."""
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
    write_csv(folder / "results.csv", rows)

    # The same with the settings, each class and the tables
    report = {"settings": settings, "average": means, "datasets": rows}
    for name, result in results.items():
        for title, content in {**_class_tables(name, result["sem_seg"]), **result.get("tables", {})}.items():
            report.setdefault(title, {})[name] = content
    report["published"] = [row._asdict() for row in published]
    with replacing(folder / "results.json") as unfinished:
        unfinished.write_text(json.dumps(report, indent=1))


def write_csv(path: Path, rows: Sequence[Mapping]) -> None:
    """Write a table with the keys of the first row as its head."""
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _class_tables(dataset_name: str, metrics: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    """Return the metrics that every class has, by title and class; None for a class that does not occur."""
    words = MetadataCatalog.get(dataset_name).stuff_classes
    names = [name.removesuffix(f"-{words[0]}") for name in metrics if name.endswith(f"-{words[0]}")]
    tables = {}
    for name in names:
        values = {word: metrics[f"{name}-{word}"] for word in words if f"{name}-{word}" in metrics}
        if len(values) == len(words):
            title = f"{'accuracy' if name == 'ACC' else name} of each class"
            tables[title] = {word: None if math.isnan(value) else value for word, value in values.items()}
    return tables


# ------------------------------------------------------------------------------------------- expected results


def check_expected_results(cfg: CfgNode) -> None:
    """Raise a ValueError for the first row of TEST.EXPECTED_RESULTS that cannot be compared with results."""
    for row in cfg.TEST.EXPECTED_RESULTS:
        is_row = isinstance(row, (list, tuple)) and len(row) == 4
        is_row = is_row and all(isinstance(value, (int, float)) for value in row[2:])
        expected = "a task, a metric, a value and a tolerance, such as ['average', 'mIoU', 37.2, 0.5]"
        expect(is_row, "a row of TEST.EXPECTED_RESULTS", repr(row), expected)


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping]) -> None:
    """Check results against TEST.EXPECTED_RESULTS with Detectron2's function, which exits with 1 where one differs.

    A row is [task, metric, value, tolerance]; a task is a dataset, "average" or, with one dataset, Detectron2's own
    "sem_seg".
    """
    metrics_by_task = defaultdict(dict)  # a task that is missing differs, too
    datasets = [name for name in results if name != "average"]
    if len(datasets) == 1:
        metrics_by_task.update(results[datasets[0]])
    for name, result in results.items():
        metrics_by_task[name] = result.get("sem_seg", result)
    testing.verify_results(cfg, metrics_by_task)
