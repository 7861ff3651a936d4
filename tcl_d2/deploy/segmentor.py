"""OnnxSegmentor: an exported model, from pictures to segmentations."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..segmentation import Segmentation
from ..utils.images import ImageLike, as_array
from ..utils.resize import resize_bilinear, segmentation_size
from ..words.parsing import as_lists
from ..words.words import BackgroundLike, ClassesLike, Words, read_background
from .bands import ScoreBands
from .card import KEY, EmbeddingsCard, ModelCard, VocabularyCard, check_files, read_card
from .labels import ScoreRule

if TYPE_CHECKING:  # imported where it is used, with a clear error
    from onnxruntime import InferenceSession


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
            path: of an ONNX file that gives scores.
            embeddings: file of text embeddings (.npz), if they are an input of the model.
            providers: ONNX Runtime's execution providers, in their order; None: all that are installed.
            num_threads: threads of one run; 0: as many as cores.

        Raises:
            FileNotFoundError, ImportError, ValueError: a file is missing, damaged or of another version, the two do
                not go together, or ONNX Runtime is not installed; says what to do.
        """
        self.path = path
        self.session = _open_session(path, providers, num_threads)
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.card = read_card(ModelCard, metadata.get(KEY, ""), path)
        if self.card.output != "scores":
            raise ValueError(f"'{path}' gives labels, and windows need scores to be averaged: export without --labels")
        check_files(path, self.card)

        self._inputs: dict[str, np.ndarray] = {}
        if self.card.vocabulary is None:
            self._inputs["text"], self.vocabulary = self._read_embeddings(embeddings)
        elif embeddings is None:
            self.vocabulary = self.card.vocabulary
        else:
            raise ValueError(f"'{path}' was exported with its classes: leave {embeddings} out, or export without them")

    def __call__(
        self,
        image: ImageLike,
        classes: ClassesLike | None = None,
        background: BackgroundLike = None,
        *,
        labels_only: bool = False,
    ) -> Segmentation:
        """Segment an image.

        Args:
            image: path, bytes, PIL image, or array, see utils.images.as_array.
            classes: None, or those that the file is for; so that a TCLPredictor can be replaced.
            background: likewise.
            labels_only: whether to go without the scores, which take 4 bytes for each class at each pixel.

        Raises:
            ValueError: no image, other classes than those of the file, or too little memory.
        """
        self._check_classes(classes, background)
        words, pixels = self.vocabulary, as_array(image)

        # Resize the image for the model
        size = height, width = pixels.shape[:2]
        model_size = segmentation_size(height, width, self.card.min_size, self.card.max_size)
        resized = pixels if model_size == size else resize_bilinear(pixels, *model_size)

        bands = ScoreBands(resized, size, self.card, self.predict, words.num_embeddings)
        try:
            labels, scores = self._segment(bands, size, labels_only)
        except MemoryError:
            gigabytes = 4 * len(words.names) * np.prod(size) / 1e9
            raise ValueError(
                f"memory ran out for an image of {size[1]} x {size[0]} pixels, whose scores take {gigabytes:.1f} GB: "
                "ask for labels alone (labels_only=True), or shrink it"
            ) from None
        return Segmentation(pixels, words.names, labels, words.has_background, scores, bool(words.negative))

    def predict(self, crops: np.ndarray) -> np.ndarray:
        """Run the graph: crops fp32 [n, 3, h, w], RGB in 0..255, padded -> scores of words fp32 [n, W, h', w']."""
        try:
            return np.asarray(self.session.run(["scores"], {"images": crops, **self._inputs})[0])
        except Exception as error:  # its types are its own, without a common base
            height, width = crops.shape[2:]
            sizes = f"{len(crops)} windows of {width} x {height} pixels"
            raise ValueError(f"onnxruntime cannot run '{self.path}' on {sizes} ({error})") from None

    def _segment(
        self, bands: ScoreBands, size: tuple[int, int], labels_only: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return labels int64 [H, W], and scores fp32 [K, H, W] or None."""
        rule = ScoreRule(self.card, self.vocabulary)
        if labels_only and not self.card.area_threshold:
            return np.concatenate([rule.finish(rule.class_scores(scores)).argmax(0) for _, scores in bands]), None

        # Hold the scores of all classes
        scores = np.empty((len(self.vocabulary.names), *size), np.float32)
        for rows, word_scores in bands:
            scores[:, rows] = rule.class_scores(word_scores)
        rule.finish(scores)
        return scores.argmax(0), None if labels_only else scores

    def _check_classes(self, classes: ClassesLike | None, background: BackgroundLike) -> None:
        expected = self.vocabulary
        is_same = background is None or read_background(background) == expected.background
        if classes is not None:
            words = Words.read(classes)
            is_same &= as_lists(words.classes) == as_lists(expected.classes) and words.negative == expected.negative
        if not is_same:
            raise ValueError(
                f"'{self.path}' was exported for {', '.join(expected.names)}: export it with other classes, or "
                "without any, for text embeddings as an input"
            )

    def _read_embeddings(self, path: str | Path | None) -> tuple[np.ndarray, VocabularyCard]:
        if path is None:
            raise ValueError(
                f"'{self.path}' was exported without classes: give a file of text embeddings beside it (--embeddings; "
                "tcl-d2 export words.npz --classes WORDS makes one)"
            )
        try:
            with np.load(path, allow_pickle=False) as archive:
                text, card_text = archive["text"], str(archive["card"])
        except FileNotFoundError:
            raise
        except Exception:  # a wrong byte makes the reader of archives raise many types
            raise ValueError(f"'{path}' is no file of text embeddings: expected an .npz file of this project") from None

        card = read_card(EmbeddingsCard, card_text, path)
        if card.text_encoder != self.card.text_encoder:
            raise ValueError(f"'{path}' has embeddings of another CLIP than '{self.path}': make both of one model")
        shape = [card.vocabulary.num_embeddings, self.card.embed_dim]
        if text.dtype != np.float32 or list(text.shape) != shape:
            raise ValueError(f"'{path}' is damaged: its embeddings are {text.dtype} {list(text.shape)}, not {shape}")
        return text, card.vocabulary


def _open_session(path: str | Path, providers: Sequence[str] | None, num_threads: int) -> "InferenceSession":
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("exported models need ONNX Runtime: pip install onnxruntime") from None

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no ONNX file '{path}'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    providers = list(providers or onnxruntime.get_available_providers())
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its types are its own, without a common base
        version = onnxruntime.__version__
        raise ValueError(f"'{path}' is no ONNX file that onnxruntime {version} can run ({error})") from None
