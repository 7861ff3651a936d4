"""OnnxSegmentor: an exported model, from pictures to segmentations."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..segmentation import Segmentation
from ..utils.images import ImageLike, as_array
from ..utils.resize import resize_bilinear, segmentation_size
from ..utils.vocabulary import read_background, read_vocabulary
from ..utils.words import as_lists
from .bands import ScoreBands
from .card import KEY, EmbeddingsCard, ModelCard, VocabularyCard, check_files, read_card
from .labels import ScoreRule

if TYPE_CHECKING:  # imported where it is used, with a clear error
    from onnxruntime import InferenceSession

_MAX_THREADS = 1024  # each takes memory


class OnnxSegmentor:
    """Segmenter of pictures with an exported model, on ONNX Runtime.

    segmentor = OnnxSegmentor("model.onnx")
    segmentation = segmentor("photo.jpg")
    segmentation.labels, segmentation.areas(), segmentation.mask("red apple")
    """

    def __init__(
        self,
        path: str | Path,
        embeddings: str | Path | None = None,
        *,
        providers: Sequence[str] | None = None,
        num_threads: int = 0,
    ):
        """Load an exported model.

        Args:
            path: of the ONNX file, whose output are scores.
            embeddings: file of text embeddings (.npz), where they are an input of the model.
            providers: ONNX Runtime's execution providers, in their order; None: all that are installed.
            num_threads: threads of one run; 0: as many as cores.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: ONNX Runtime is not installed.
            ValueError: a file cannot be read, is damaged or of another version, or the two do not go together; says
                what to do.
        """
        self.path = path
        self.session = _open_session(path, providers, num_threads)
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.card: ModelCard = read_card(ModelCard, metadata.get(KEY, ""), path)
        if self.card.output != "scores":
            raise ValueError(f"'{path}' gives labels, and windows need scores to be averaged: export without --labels")
        check_files(path, self.card)

        self._inputs, self.vocabulary = {}, self.card.vocabulary
        if self.vocabulary is None:
            text, self.vocabulary = self._read_embeddings(embeddings)
            self._inputs["text"] = text
        elif embeddings is not None:
            raise ValueError(f"'{path}' was exported with its classes: leave {embeddings} out, or export without them")

    @property
    def words(self) -> list[str | list[str]]:
        """The word, or the list of words, of each class, without the background."""
        return self.vocabulary.classes

    @property
    def background(self) -> bool | list[str]:
        """Whether there is a background besides; or its words."""
        return self.vocabulary.background

    def __call__(
        self,
        image: ImageLike,
        classes: Sequence[str | Sequence[str]] | None = None,
        background: bool | Sequence[str] | None = None,
        *,
        labels_only: bool = False,
    ) -> Segmentation:
        """Segment an image.

        Args:
            image: path, PIL image, or array, see utils.images.as_array.
            classes: None, or those that the file is for; so that a TCLPredictor can be replaced.
            background: likewise.
            labels_only: whether to go without the scores, which take 4 bytes for each class at each pixel.

        Returns:
            the segmentation, of the image's size.

        Raises:
            ValueError: no image, other classes than those of the file, too little memory, or see predict.
        """
        self._check_classes(classes, background)
        pixels = as_array(image)

        # Resize the image for the model
        size = pixels.shape[:2]
        model_size = segmentation_size(*size, self.card.min_size, self.card.max_size)
        resized = pixels if model_size == size else resize_bilinear(pixels, *model_size)

        bands = ScoreBands(resized, size, self.card, self.predict, self.vocabulary.num_embeddings)
        try:
            labels, scores = self._segment(bands, size, labels_only)
        except MemoryError:
            raise ValueError(f"memory ran out for an image of {size[1]} x {size[0]} pixels: shrink it") from None
        has_background, has_negative = self.vocabulary.has_background, bool(self.vocabulary.negative)
        return Segmentation(pixels, self.vocabulary.names, labels, has_background, scores, has_negative)

    def predict(self, crops: np.ndarray) -> np.ndarray:
        """Run the graph: crops fp32 [n, 3, h, w], RGB in 0..255, padded -> scores of words fp32 [n, W, h', w'].

        Raises:
            ValueError: ONNX Runtime cannot, as where its memory runs out; says why.
        """
        try:
            return self.session.run(["scores"], {"images": crops, **self._inputs})[0]
        except Exception as error:  # its types are its own, without a common base
            height, width = crops.shape[2:]
            sizes = f"{len(crops)} windows of {width} x {height} pixels"
            raise ValueError(f"onnxruntime cannot run '{self.path}' on {sizes} ({error})") from None

    def _segment(
        self, bands: ScoreBands, size: tuple[int, int], labels_only: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the labels int64 [H, W], and the scores fp32 [K, H, W], unless labels alone are wanted."""
        rule = ScoreRule(self.card, self.vocabulary)
        if labels_only and not self.card.area_threshold:
            return np.concatenate([rule.best_class(scores) for _, scores in bands]), None

        # Hold the scores of all classes
        shape = (len(self.vocabulary.names), *size)
        try:
            scores = np.empty(shape, np.float32)
        except MemoryError:
            raise ValueError(
                f"no memory for the scores of {shape[0]} classes at {size[0]} x {size[1]} pixels, "
                f"{4 * np.prod(shape) / 1e9:.1f} GB: ask for labels alone (labels_only=True), or shrink the image"
            ) from None
        for rows, word_scores in bands:
            scores[:, rows] = rule.class_scores(word_scores)
        rule.finish(scores)
        return scores.argmax(0), None if labels_only else scores

    def _check_classes(self, classes: Sequence | None, background: bool | Sequence[str] | None) -> None:
        """Check that classes are those of the file; ValueError names them."""
        is_same = background is None or read_background(background) == read_background(self.background)
        if classes is not None:
            words, _, negative = read_vocabulary(classes)
            is_same &= as_lists(words) == as_lists(self.words) and negative == self.vocabulary.negative
        if not is_same:
            raise ValueError(
                f"'{self.path}' was exported for {', '.join(self.vocabulary.names)}: export it with other classes, or "
                "without any, for text embeddings as an input"
            )

    def _read_embeddings(self, path: str | Path | None) -> tuple[np.ndarray, VocabularyCard]:
        """Read a file of text embeddings fp32 [W, D]; errors as __init__'s."""
        if path is None:
            raise ValueError(
                f"'{self.path}' was exported without classes: give a file of text embeddings beside it (--embeddings; "
                "tools/deploy/export_model.py words.npz --classes WORDS makes one)"
            )
        try:
            with np.load(path, allow_pickle=False) as archive:
                text, card_text = archive["text"], str(archive["card"])
        except FileNotFoundError:
            raise
        except Exception:  # a wrong byte makes the reader of archives raise many types
            raise ValueError(f"'{path}' is no file of text embeddings: expected an .npz file of this project") from None

        card: EmbeddingsCard = read_card(EmbeddingsCard, card_text, path)
        if card.text_encoder != self.card.text_encoder:
            raise ValueError(f"'{path}' has embeddings of another CLIP than '{self.path}': make both of one model")
        shape = [card.vocabulary.num_embeddings, self.card.embed_dim]
        if text.dtype != np.float32 or list(text.shape) != shape:
            raise ValueError(f"'{path}' is damaged: its embeddings are {text.dtype} {list(text.shape)}, not {shape}")
        return text, card.vocabulary


def _open_session(path: str | Path, providers: Sequence[str] | None, num_threads: int) -> "InferenceSession":
    """Open an ONNX file; errors as OnnxSegmentor's."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("exported models need ONNX Runtime: pip install onnxruntime") from None

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no ONNX file '{path}'")
    if not 0 <= num_threads <= _MAX_THREADS:
        raise ValueError(f"the number of threads is {num_threads}; expected 1 to {_MAX_THREADS}, or 0: one a core")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    providers = list(providers or onnxruntime.get_available_providers())
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its types are its own, without a common base
        version = onnxruntime.__version__
        raise ValueError(f"'{path}' is no ONNX file that onnxruntime {version} can run ({error})") from None
