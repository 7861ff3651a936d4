"""A comparison of configurations on benchmarks: a table and a figure of measured and published mIoU, and of costs."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure
from tabulate import tabulate

from ..utils.files import replacing
from ..utils.words import decode_argument
from .published import PublishedRow
from .report import list_gaps, mean, published_miou


class Comparand(NamedTuple):
    """What is known of one configuration.

    Attributes:
        results: by dataset, {"mIoU": in percent, "images": how many count, "skipped": how many were left out}.
        cost: the state of a CostMeter.
        published: rows to compare with.
        measures: by dataset, metrics over all classes besides the protocol's, in percent, by name.
    """

    results: Mapping[str, Mapping]
    cost: Mapping[str, float]
    published: Sequence[PublishedRow]
    measures: Mapping[str, Mapping[str, float]] = MappingProxyType({})


def write_comparison(comparands: Mapping[str, Comparand], folder: Path) -> str:
    """Write comparison.md, comparison.csv and comparison.png.

    Args:
        comparands: by the configuration's name; all have results of the same datasets.
        folder: for the files.

    Returns:
        the table in Markdown.
    """
    # File names of any bytes as text
    texts = (decode_argument(name).encode("utf-8", "backslashreplace").decode() for name in comparands)
    comparands = dict(zip(texts, comparands.values()))
    names = list(next(iter(comparands.values())).results)
    rows = list(_rows(comparands, names))

    # The table, with a number for each source
    titles = [MetadataCatalog.get(name).get("title", name) for name in names]
    header = ("mIoU, %", "", *titles, "average", "s / image", "peak MB")
    sources = list(dict.fromkeys(row["source"] for row in rows if row["source"]))
    cells = []
    for row in rows:
        origin = f"published [{sources.index(row['source']) + 1}]" if row["source"] else "measured"
        cells.append([row["configuration"], origin, *list(row.values())[2 : len(header)]])
    formats = ("", "", *[".1f"] * (len(names) + 1), ".3f", ".0f")
    lines = [tabulate(cells, header, "pipe", floatfmt=formats), ""]

    # What it is of
    lines += [f"[{number}] {source}  " for number, source in enumerate(sources, start=1)]
    for configuration, comparand in comparands.items():
        lines += [f"{configuration}: {gap}  " for gap in list_gaps(comparand.results)]

    # A table of each further measure
    for metric in _further_metrics(comparands):
        columns = _measure_columns(metric, names)
        cells = [[row["configuration"], *(row[column] for column in columns)] for row in rows if not row["source"]]
        lines += ["", tabulate(cells, (f"{metric}, %", *titles, "average"), "pipe", floatfmt=".1f")]
    table = "\n".join(lines).rstrip() + "\n"

    # The files
    with replacing(folder / "comparison.md") as unfinished:
        unfinished.write_text(table, encoding="utf-8")
    with replacing(folder / "comparison.csv") as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with replacing(folder / "comparison.png") as unfinished:
        _draw(comparands, names, titles).savefig(unfinished, format="png", dpi=110)
    return table


def _further_metrics(comparands: Mapping[str, Comparand]) -> list[str]:
    """List the metrics besides the protocol's that any configuration has."""
    measured = (metrics for comparand in comparands.values() for metrics in comparand.measures.values())
    return list(dict.fromkeys(metric for metrics in measured for metric in metrics))


def _measure_columns(metric: str, names: Sequence[str]) -> list[str]:
    return [f"{name} {metric}" for name in (*names, "average")]


def _rows(comparands: Mapping[str, Comparand], names: Sequence[str]) -> Iterable[dict]:
    """Yield the measured row of each configuration, and below it its published ones."""
    columns = (*names, "average", "seconds per image", "peak memory in MB")
    further_metrics = _further_metrics(comparands)
    for configuration, (results, cost, published, measures) in comparands.items():
        values = [results[name]["mIoU"] for name in names]
        seconds = cost["seconds"] / cost["images"] if cost["images"] else None
        measured = (*values, mean(values), seconds, cost["peak_memory"])
        row = {"configuration": configuration, "source": "", **dict(zip(columns, measured))}
        for metric in further_metrics:
            values = [measures.get(name, {}).get(metric) for name in names]
            row.update(zip(_measure_columns(metric, names), (*values, mean(values))))
        yield row

        for row in published:
            if any(name in row.miou for name in names):
                figures = (*published_miou(row, names), None, None)
                yield {"configuration": configuration, "source": row.describe(), **dict(zip(columns, figures))}


def _draw(comparands: Mapping[str, Comparand], names: Sequence[str], titles: Sequence[str]) -> Figure:
    """Draw a bar for each configuration at each benchmark, and a line at the first published figure for it."""
    width = 0.8 / len(comparands)
    figure = Figure(figsize=(2 + 0.5 * len(names) * max(2, len(comparands)), 4), layout="constrained")
    axis = figure.subplots()

    published_places, published_values = [], []
    for number, (configuration, comparand) in enumerate(comparands.items()):
        places = [index + (number + 0.5) * width - 0.4 for index in range(len(names))]
        bars = axis.bar(places, [comparand.results[name]["mIoU"] for name in names], 0.9 * width, label=configuration)
        axis.bar_label(bars, fmt="%.1f", fontsize=7, label_type="center")  # clear of the published lines
        for place, name in zip(places, names):
            value = next((row.miou[name] for row in comparand.published if name in row.miou), None)
            if value is not None:
                published_places.append(place)
                published_values.append(value)

    if published_values:
        left, right = ([place + side * 0.45 * width for place in published_places] for side in (-1, 1))
        axis.hlines(published_values, left, right, colors="black", linestyles="dashed", label="published")
    axis.set_xticks(range(len(names)), titles)
    axis.set_ylabel("mIoU, %")
    axis.legend(fontsize=8)
    return figure
