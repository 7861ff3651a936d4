"""The report over all benchmarks: one table with their average beside the published figures, and files of it."""

import csv
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from detectron2.data import MetadataCatalog
from tabulate import tabulate

from ..utils.files import replacing
from .zero_shot import METRICS

logger = logging.getLogger(__name__)


def average(results: Mapping[str, Mapping]) -> dict[str, float]:
    """Mean over data sets of each metric, in percent."""
    rows = [result["sem_seg"] for result in results.values()]
    return {metric: sum(row[metric] for row in rows) / len(rows) for metric in METRICS}


def write_report(results: Mapping[str, Mapping], method: str) -> str:
    """mIoU in percent of each data set and the average, beside what was published, as a table; also logged.

    Args:
        results: {data set: {"sem_seg": metrics, "images": how many counted, "skipped": how many left out as broken}}.
        method: meta-architecture; its published figures stand in the data sets' metadata, where there are any.
    """
    known = {name: MetadataCatalog.get(name) for name in results}
    measured = [result["sem_seg"]["mIoU"] for result in results.values()]
    published = [_published(name, method) for name in results]
    rows = [("this model", *measured, average(results)["mIoU"])]
    if any(value is not None for value in published):
        mean = None if None in published else sum(published) / len(published)
        rows.append((f"published: {method}", *published, mean))
    titles = [metadata.get("title", name) for name, metadata in known.items()]
    table = tabulate(rows, ("mIoU, %", *titles, "average"), "pipe", floatfmt=".1f")
    for name, result in results.items():
        whole = known[name].get("num_images", ())
        if whole and result["images"] not in whole:
            table += f"\n{name}: {result['images']} of {whole[0]} images"
        if result["skipped"]:
            table += f"\n{name}: {result['skipped']} images left out, since they or their labels are broken"
    logger.info("Zero-shot semantic segmentation\n%s", table)
    return table


def save_report(results: Mapping[str, Mapping], folder: Path, method: str, settings: Mapping) -> None:
    """Writes results.json (with IoU of each class and `settings`) and results.csv (a line a data set)."""
    rows = []
    for name, result in results.items():
        metrics = result["sem_seg"]
        row = {"data set": name, "images": result["images"], "skipped": result["skipped"]} | {
            metric: metrics[metric] for metric in METRICS
        }
        rows.append(row | {"published mIoU": _published(name, method)})
    classes = {
        name: {
            word: None if math.isnan(value := result["sem_seg"][f"IoU-{word}"]) else value
            for word in MetadataCatalog.get(name).stuff_classes
        }
        for name, result in results.items()
    }
    whole = {"settings": settings, "average": average(results), "data sets": rows, "IoU of each class": classes}
    with replacing(folder / "results.json") as unfinished:
        unfinished.write_text(json.dumps(whole, indent=1))
    with replacing(folder / "results.csv") as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _published(name: str, method: str) -> float | None:
    return MetadataCatalog.get(name).get("published", {}).get(method)
