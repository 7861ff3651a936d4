"""A comparison of configurations on benchmarks: a table and a figure of measured and published mIoU, and of costs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from matplotlib.figure import Figure
from tabulate import tabulate

from ..utils.files import replacing
from ..words.parsing import decode_argument
from .published import PublishedRow
from .report import dataset_titles, list_gaps, mean, published_miou, write_csv


class Comparand(NamedTuple):
    """A configuration in a comparison.

    Attributes:
        results: by dataset, {"mIoU": in percent, "images": number that counts, "skipped": number}.
        cost: the state of a CostMeter.
        published: rows to compare with.
        measures: by dataset, metrics over all classes besides the protocol's, in percent, by name.
    """

    results: Mapping[str, Mapping]
    cost: Mapping[str, float]
    published: Sequence[PublishedRow]
    measures: Mapping[str, Mapping[str, float]] = MappingProxyType({})


def write_comparison(comparands: Mapping[str, Comparand], folder: Path) -> str:
    """Write comparison.md, comparison.csv and comparison.png, and return the table in Markdown.

    Args:
        comparands: by the configuration's name; all have results of the same datasets.
    """
    # File names of any bytes as text
    texts = (decode_argument(name).encode("utf-8", "backslashreplace").decode() for name in comparands)
    comparands = dict(zip(texts, comparands.values()))
    names = list(next(iter(comparands.values())).results)
    measured = [row for comparand in comparands.values() for row in comparand.measures.values()]
    metrics = list(dict.fromkeys(metric for row in measured for metric in row))
    rows = list(_rows(comparands, names, metrics))
    gaps = [f"{name}: {gap}  " for name, comparand in comparands.items() for gap in list_gaps(comparand.results)]
    lines = [*_main_table(rows, names), *_shared_costs(comparands), *gaps]
    for metric in metrics:
        columns = ["configuration", *_columns(metric, names)]
        cells = [[row[column] for column in columns] for row in rows if not row["source"]]
        lines += ["", tabulate(cells, (f"{metric}, %", *dataset_titles(names), "average"), "pipe", floatfmt=".1f")]
    table = "\n".join(lines).rstrip() + "\n"

    # The files
    with replacing(folder / "comparison.md") as unfinished:
        unfinished.write_text(table, encoding="utf-8")
    write_csv(folder / "comparison.csv", rows)
    with replacing(folder / "comparison.png") as unfinished:
        _draw(comparands, names).savefig(unfinished, format="png", dpi=110)
    return table


def _columns(metric: str, names: Sequence[str]) -> list[str]:
    return [f"{name} {metric}" for name in (*names, "average")]


def _rows(comparands: Mapping[str, Comparand], names: Sequence[str], metrics: Sequence[str]) -> Iterable[dict]:
    """Yield the measured row of each configuration, and its published ones below."""
    columns = (*names, "average", "seconds per image", "peak memory in MB")
    for configuration, (results, cost, published, measures) in comparands.items():
        values = [results[name]["mIoU"] for name in names]
        seconds = cost["seconds"] / cost["images"] if cost["images"] else None
        measured = (*values, mean(values), seconds, cost["peak_memory"])
        row = {"configuration": configuration, "source": "", **dict(zip(columns, measured))}
        for metric in metrics:
            values = [measures.get(name, {}).get(metric) for name in names]
            row.update(zip(_columns(metric, names), (*values, mean(values))))
        yield row

        for row in published:
            if any(name in row.miou for name in names):
                figures = (*published_miou(row, names), None, None)
                yield {"configuration": configuration, "source": row.describe(), **dict(zip(columns, figures))}


def _main_table(rows: Sequence[dict], names: Sequence[str]) -> list[str]:
    """Return the table of mIoU and costs, and the numbered sources of its published rows."""
    sources = list(dict.fromkeys(row["source"] for row in rows if row["source"]))
    header = ("mIoU, %", "", *dataset_titles(names), "average", "s / image", "peak MB")
    cells = []
    for row in rows:
        origin = f"published [{sources.index(row['source']) + 1}]" if row["source"] else "measured"
        cells.append([row["configuration"], origin, *list(row.values())[2 : len(header)]])
    formats = ("", "", *[".1f"] * (len(names) + 1), ".3f", ".0f")
    numbered = [f"[{number}] {source}  " for number, source in enumerate(sources, start=1)]
    return [tabulate(cells, header, "pipe", floatfmt=formats), "", *numbered]


def _shared_costs(comparands: Mapping[str, Comparand]) -> list[str]:
    """Return a line about the configurations whose costs were measured in one process with others."""
    together = [name for name, comparand in comparands.items() if comparand.cost.get("together", 1) > 1]
    if not together:
        return []
    names = ", ".join(together)
    return [
        f"{names}: in one pass with others; s / image counts what was shared for each, peak MB is of all together  "
    ]


def _draw(comparands: Mapping[str, Comparand], names: Sequence[str]) -> Figure:
    """Draw a bar for each configuration at each benchmark, and a line at the first published figure for it."""
    width = 0.8 / len(comparands)
    figure = Figure(figsize=(2 + 0.5 * len(names) * max(2, len(comparands)), 4), layout="constrained")
    axis = figure.subplots()

    published = []  # (place, figure)
    for number, (configuration, comparand) in enumerate(comparands.items()):
        places = [index + (number + 0.5) * width - 0.4 for index in range(len(names))]
        bars = axis.bar(places, [comparand.results[name]["mIoU"] for name in names], 0.9 * width, label=configuration)
        axis.bar_label(bars, fmt="%.1f", fontsize=7, label_type="center")  # clear of the published lines
        for place, name in zip(places, names):
            published += [(place, row.miou[name]) for row in comparand.published if name in row.miou][:1]

    if published:
        places, values = zip(*published)
        left, right = ([place + side * 0.45 * width for place in places] for side in (-1, 1))
        axis.hlines(values, left, right, colors="black", linestyles="dashed", label="published")
    axis.set_xticks(range(len(names)), dataset_titles(names))
    axis.set_ylabel("mIoU, %")
    axis.legend(fontsize=8)
    return figure
