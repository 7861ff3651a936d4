"""Images that an evaluation leaves out for a fault of their files, where the config allows it."""

import logging
from collections.abc import Iterable, Iterator, Sequence

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class SkippedImages:
    """Counts the images left out, of this process; each is logged once."""

    def __init__(self):
        self._images: set[str] = set()

    def add(self, image: str, reason: object) -> None:
        if image not in self._images:
            self._images.add(image)
            logger.warning("Image left out of the evaluation (%d so far): %s", len(self._images), reason)

    def total(self) -> int:
        """Of all processes, on rank 0."""
        return sum(len(images) for images in comm.gather(self._images))


class DropBrokenImages:
    """A test loader's batches without the images that BenchmarkMapper could not read; each data set counts them."""

    def __init__(self, loader: Iterable[list[dict]], skipped: Sequence[SkippedImages]):
        self.loader = loader
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            for one in batch:
                if "error" in one:
                    for skipped in self.skipped:
                        skipped.add(one["file_name"], one["error"])
            yield [one for one in batch if "error" not in one]
