"""What Ray Data calls with batches of pictures, and the rows of its results."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..predictor import TCLPredictor
from ..segmentation import Segmentation
from ..segmentation.run_lengths import encode_rle
from ..utils.http_stream import HTTPStream
from ..utils.images import ImageLike
from ..utils.threads import map_ahead
from ..words.words import BackgroundLike, ClassesLike, Words

SEGMENT = pa.struct({"word": pa.string(), "area": pa.float64(), "score": pa.float32(), "counts": pa.string()})
FIELDS = {"height": pa.int32(), "width": pa.int32(), "segments": pa.list_(SEGMENT), "error": pa.string()}
_PAUSES = (1, 2)  # seconds before each further try: a picture's address that is gone holds up few others
_MAX_BYTES = 1 << 28  # of a file at an address


class ImageSegmenter:
    """Segment batches of pictures: the class for `map_batches` of Ray Data, which builds a model in each of its actors.

    ```python
    masks = ray.data.read_parquet("photos.parquet").map_batches(
        ImageSegmenter,
        fn_constructor_args=["official", "dog, cat"],
        fn_constructor_kwargs={"image": "jpg", "keep": ["key"]},
        compute=ray.data.ActorPoolStrategy(size=8),
        num_gpus=0.5,
        batch_size=64,
    )
    ```
    """

    def __init__(
        self,
        model: str | Path,
        classes: ClassesLike,
        background: BackgroundLike = False,
        *,
        image: str = "image",
        keep: Sequence[str] = (),
        options: Sequence[object] = (),
    ):
        """Build the model; errors as TCLPredictor's.

        Args:
            model: as TCLPredictor.from_pretrained takes it.
            classes, background: as a call of the predictor takes them.
            image: name of the column of pictures: bytes of files, paths, addresses (https://...) or RGB arrays uint8
                [H, W, 3], of any sizes.
            keep: names of columns to put before the results.
            options: KEY, VALUE pairs over the values of the model's configuration.
        """
        self.predictor = TCLPredictor.from_pretrained(model, *options)
        self.words = Words.read(classes, background)
        self.image = image
        self.keep = list(keep)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> pa.Table:
        """Segment the pictures of a batch, a dict of columns; ValueError for a column that is not there.

        Returns:
            the columns of `keep`, and for each picture `height` and `width`; `segments`, with the word, share of the
            picture, mean score in 0..1 and COCO's compressed RLE of each class that occurs, but the background;
            and `error`, why there are none.
        """
        for name in (self.image, *self.keep):
            if name not in batch:
                raise ValueError(f"There is no column '{name}' in a batch, which has {', '.join(batch)}.")
        kept = {name: pa.array(list(batch[name])) for name in self.keep}
        return to_table(kept, list(segment_images(self.predictor, batch[self.image], self.words, label_scores=True)))


def segment_images(
    predictor: TCLPredictor,
    images: Iterable[ImageLike | OSError | ValueError],
    words: Words,
    label_scores: bool = False,
) -> Iterator[Segmentation | OSError | ValueError]:
    """Yield the segmentations of pictures, labels only, and an error in place of one that cannot be read.

    Addresses are read in threads, and never stored: PathManager would keep every picture on the disk.
    """
    found = map_ahead(_fetch, images, predictor.cfg.DATALOADER.NUM_WORKERS)
    return predictor.stream(found, words, labels_only=True, label_scores=label_scores, return_exceptions=True)


def _fetch(image: ImageLike | OSError | ValueError) -> ImageLike | OSError | ValueError:
    if not (isinstance(image, str) and image.startswith(("http://", "https://"))):
        return image
    try:
        with HTTPStream(image, pauses=_PAUSES) as stream:
            content = bytearray()
            while chunk := stream.read(1 << 20):
                content += chunk
                if len(content) > _MAX_BYTES:
                    raise ValueError(f"{image} has more than {_MAX_BYTES >> 20} MB")
            return bytes(content)
    except (OSError, ValueError) as error:
        return error


def to_table(columns: Mapping[str, pa.Array], results: Sequence[Segmentation | OSError | ValueError]) -> pa.Table:
    """Make a table of columns that are there and of results, FIELDS."""
    rows = [_describe(result) for result in results]
    ours = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in FIELDS.items()}
    return pa.table({**columns, **ours})


def _describe(result: Segmentation | OSError | ValueError) -> dict[str, Any]:
    if not isinstance(result, Segmentation):
        return {"error": str(result)}
    scores, areas, segments = result.label_scores, result.areas(), []
    assert scores is not None  # segment_images was asked for them
    for word in result.things():
        if areas[word]:
            mask = result.mask(word)
            score = float(np.mean(scores[mask]))
            segments.append({"word": word, "area": areas[word], "score": score, "counts": encode_rle(mask)["counts"]})
    height, width = result.labels.shape
    return {"height": height, "width": width, "segments": segments}
