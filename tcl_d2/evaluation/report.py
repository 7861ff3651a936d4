"""One table over all benchmarks, with their average."""

import logging
from collections.abc import Mapping

from tabulate import tabulate

logger = logging.getLogger(__name__)
_METRICS = ("mIoU", "fwIoU", "mACC", "pACC")


def average(results: Mapping[str, Mapping]) -> dict[str, float]:
    """Mean over data sets of each metric, in percent."""
    rows = [result["sem_seg"] for result in results.values()]
    return {metric: sum(row[metric] for row in rows) / len(rows) for metric in _METRICS}


def write_report(results: Mapping[str, Mapping]) -> str:
    """Results {data set: {"sem_seg": metrics}} as a table with a line each and the average; also logged."""
    rows = [(name, *(result["sem_seg"][metric] for metric in _METRICS)) for name, result in results.items()]
    rows.append(("average", *average(results).values()))
    table = tabulate(rows, headers=("data set", *_METRICS), floatfmt=".2f", tablefmt="pipe")
    logger.info("Zero-shot semantic segmentation, %%\n%s", table)
    return table
