"""Cards: an exported file's description of the images, windows, words and scores that go with its graph."""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from ..utils.files import BLANK, digest_file
from ..version import __version__
from ..words.words import Words

FORMAT = 3  # raise it when readers of the old format would go wrong
_OLDER = (1, 2)  # formats that are read too: without checksums, and without squeezes_padding
KEY = "tcl_d2"  # of the card among a file's metadata

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VocabularyCard(Words):
    """Words, and where their text embeddings are.

    Attributes:
        word_indices: index of the text embedding of each word of each class.
        class_indices: index of that class, with the background as 0, if there is one; for negative words, the number
            of classes.
    """

    word_indices: list[int]
    class_indices: list[int]

    @property
    def num_embeddings(self) -> int:
        return max(self.word_indices) + 1


@dataclass(frozen=True)
class ModelCard:
    """How an exported graph is used.

    Attributes:
        output: "scores", or "labels".
        text_encoder: digest of the model that text embeddings come from.
        min_size: short side of the images that the model sees, in pixels; 0: as they are.
        max_size: greatest length of the long side, in pixels.
        crop_size: side of the sliding windows, in pixels; 0: the whole image is the window.
        stride: step between windows, in pixels.
        patch_size: windows that are smaller are padded, in pixels.
        pad_to: windows are padded to multiples of so many pixels; 1: not at all.
        pixel_mean: color of the padding, RGB in 0..255.
        squeezes_padding: whether padding is at the right and at the bottom, and scores of padded windows are squeezed
            into the windows; otherwise it is on all sides, and cut off.
        background_score: a pixel whose best score is not above this is background, if there is one.
        logit_scale: scale of a softmax over words; 0 for none.
        area_threshold: classes that win at most this share of the pixels lose them; 0 for none.
        vocabulary: the classes in the graph; None if text embeddings are an input.
        sha256: of the ONNX file, computed with BLANK in its place; BLANK until the file is written.
        external_data: SHA-256 of each file beside it that has weights of it, by name.
    """

    method: str
    output: str
    text_encoder: str
    embed_dim: int
    min_size: int
    max_size: int
    crop_size: int
    stride: int
    windows_at_once: int
    patch_size: int
    pad_to: int
    pixel_mean: list[float]
    background_score: float
    logit_scale: float
    area_threshold: float
    vocabulary: VocabularyCard | None
    squeezes_padding: bool = False
    sha256: str = BLANK
    external_data: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EmbeddingsCard:
    """The description of a file of text embeddings."""

    text_encoder: str
    vocabulary: VocabularyCard


def write_card(card: ModelCard | EmbeddingsCard) -> str:
    return json.dumps({"format": FORMAT, "version": __version__, **asdict(card)})


Card = TypeVar("Card", ModelCard, EmbeddingsCard)


def read_card(card_type: type[Card], text: str, path: object) -> Card:
    """Read a card of a type from what write_card wrote; ValueError names the file and says what to do."""
    try:
        values = json.loads(text)
        file_format, version = values.pop("format"), values.pop("version")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise ValueError(f"'{path}' does not say how it is used: expected a file that this project exported") from None
    if file_format not in (FORMAT, *_OLDER):
        raise ValueError(
            f"'{path}' is of format {file_format}, which tcl_d2 {version} wrote; tcl_d2 {__version__} reads format "
            f"{FORMAT}: export it again, or use that version"
        )

    try:
        if values["vocabulary"] is not None:
            values["vocabulary"] = VocabularyCard(**values["vocabulary"])
        return card_type(**values)
    except (KeyError, TypeError) as error:  # entries are missing, or it has others
        raise ValueError(f"'{path}' is damaged: {error}. Export it again") from None


def check_files(path: str | Path, card: ModelCard) -> None:
    """Check an ONNX file and its external data by the checksums of its card; warn if it has none.

    Raises:
        OSError, ValueError: a file cannot be read, or is not the one that was exported.
    """
    if card.sha256 == BLANK:
        logger.warning("'%s' has no checksums, so damage goes unnoticed: export it again", path)
        return

    for name, digest in {Path(path).name: card.sha256, **card.external_data}.items():
        if digest_file(file := Path(path).with_name(name), digest) != digest:
            raise ValueError(
                f"'{file}' is not the file that was exported with '{path}': its SHA-256 differs. It is damaged or "
                "of another model: get it again. If you changed it, tcl_d2.export.add_checksums(path) updates its card"
            )
