"""Images that an evaluation leaves out for a fault of their files, where the config allows it."""

import logging
from collections.abc import Iterable, Iterator, Sequence

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class SkippedImages:
    """Counts the images that this process leaves out; each is logged once."""

    def __init__(self):
        self._paths: set[str] = set()

    def add(self, path: str, reason: object) -> None:
        """Count an image by its file, and log the reason, unless it was counted before."""
        if path not in self._paths:
            self._paths.add(path)
            logger.warning("Image left out of the evaluation (%d so far): %s", len(self._paths), reason)

    def total(self) -> int:
        """Return the number of images that all processes have left out; 0 off rank 0."""
        return sum(len(paths) for paths in comm.gather(self._paths))


class DropBrokenImages:
    """Batches without the images that BenchmarkMapper could not read; each dataset counts them."""

    def __init__(self, loader: Iterable[list[dict]], skipped: Sequence[SkippedImages]):
        """Wrap a loader.

        Args:
            loader: batches of BenchmarkMapper's dicts.
            skipped: the counter of each dataset that has these images.
        """
        self.loader = loader
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            readable = [input_per_image for input_per_image in batch if "error" not in input_per_image]
            broken = [input_per_image for input_per_image in batch if "error" in input_per_image]
            for input_per_image in broken:
                for skipped in self.skipped:
                    skipped.add(input_per_image["file_name"], input_per_image["error"])
            if readable:
                yield readable
