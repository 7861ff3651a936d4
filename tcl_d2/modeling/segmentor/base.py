"""ZeroShotSegmentor: the base of all systems that segment images into the classes of a vocabulary."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.logger import log_first_n
from torch import Tensor

from ...config.ranges import check_values
from ...segmentation.drawing import class_colors
from ...segmentation.objects import ComponentSettings
from ...utils.errors import expect
from ...utils.tensors import have_equal_weights
from ...words.datasets import has_classes
from ...words.templates import check_templates, get_templates
from ...words.vocabulary import (
    ClassWords,
    Vocabulary,
    WordSubset,
    dataset_vocabulary,
    join_vocabularies,
    make_vocabulary,
)
from ...words.words import BackgroundLike, ClassesLike, Words
from ..encoders.base import DualEncoder
from ..encoders.clip import FrozenCLIP
from ..encoders.clip_loading import build_clip, build_tokenizer, check_clip
from ..encoders.text import TextEmbedder
from ..refiners.base import IMAGE_STAGES, Refiner
from ..refiners.build import build_refiner
from .batches import ImageBatches, WindowGrid
from .crops import CropSegmentor
from .objects import OUTPUTS, add_objects
from .windows import Windows, batch_windows
from .words_to_labels import hold, score_words

_USE_OUR_CONFIG = "use tcl_d2.load_config, or let your config file begin with _BASE_: tcl.yaml"
_PROTOCOL = (  # the arguments of set_protocol that are attributes of the model
    "templates",
    "crop_size",
    "stride",
    "background_score",
    "refiner",
    "logit_scale",
    "area_threshold",
    "join_words_first",
    "components",
)


@dataclass(frozen=True, eq=False)
class _Classes:
    """The classes to look for.

    Attributes:
        words: the words of all datasets; or text features [W, D] in their place.
        subsets: those of each dataset.
        templates: None for those of the protocol.
        asked: a user's words; None where classes are a dataset's, or text features.
    """

    words: Sequence[str] | Tensor
    subsets: list[WordSubset]
    templates: tuple[str, ...] | None = None
    asked: Words | None = None


class ZeroShotSegmentor(CropSegmentor):
    """Segments images into the classes of a vocabulary: windows, words and background.

    A subclass says what CropSegmentor asks for. One that stands on another model than CLIP builds that model in
    `build_encoder`.

    Attributes:
        scores_depend_on_vocabulary: whether a word's scores depend on the other words. Datasets of the same images
            then share what `encode` computes, but not the scores.
    """

    scores_depend_on_vocabulary = False

    @configurable
    def __init__(
        self,
        *,
        clip: DualEncoder,
        tokenizer: Callable[[list[str]], Tensor],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        precision: torch.dtype = torch.float32,
        text_cache: Path | None = None,
        mask_shift: float = 0.25,
        mask_scale: float = 10.0,
        dataset_name: str | Sequence[str] | None = None,
        **protocol,
    ):
        """Build the segmentor from its parts; a ValueError names the config key that does not fit.

        Args:
            tokenizer: N texts -> int64 [N, context].
            pixel_mean: of RGB in 0..255, as pixel_std.
            precision: dtype of autocast in inference; torch.float32 for none.
            text_cache: folder that keeps text features, if any.
            mask_shift: masks from CLIP's dense similarities s are sigmoid((s - mask_shift) * mask_scale).
            dataset_name: registered dataset whose classes are the default, for images that do not name theirs.
            protocol: the arguments of set_protocol.
        """
        super().__init__(
            clip=clip, pixel_mean=pixel_mean, pixel_std=pixel_std, mask_shift=mask_shift, mask_scale=mask_scale
        )

        # Words
        self.tokenizer = tokenizer
        self.embed_vocabulary = TextEmbedder(clip, tokenizer, text_cache)
        names = [dataset_name] if isinstance(dataset_name, str) else dataset_name or ()
        self.dataset_names: Sequence[str] = tuple(names)
        self._requested: _Classes | None = None  # by set_vocabulary, set_dataset or set_text_embeddings
        self._defaults: dict[str, _Classes] = {}  # of datasets, where none were set

        # Scores
        self.set_protocol(**protocol)
        self.precision = precision
        self._batches = ImageBatches()

    @classmethod
    def from_config(cls, cfg: CfgNode, clip: DualEncoder | None = None) -> dict:
        test = cfg.TEST.ZERO_SHOT
        check_images(cfg)

        return {
            # Words and images
            "clip": clip or cls.build_encoder(cfg),
            "tokenizer": cls.build_tokenizer(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            # Scores
            "precision": _autocast_dtype(test.PRECISION, cfg.MODEL.DEVICE),
            "text_cache": Path(test.TEXT_CACHE).expanduser() if test.TEXT_CACHE else None,
            "mask_shift": cfg.MODEL.CLIP.MASK_SHIFT,
            "mask_scale": cfg.MODEL.CLIP.MASK_SCALE,
            # As Detectron2's DefaultPredictor, which gives no vocabulary, takes the metadata of the first
            "dataset_name": cfg.DATASETS.TEST,
            **cls.protocol_from_config(cfg),
        }

    @classmethod
    def build_encoder(cls, cfg: CfgNode) -> DualEncoder:
        """Build the model of images and texts that a configuration names; by default a CLIP."""
        return FrozenCLIP(build_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED))

    @classmethod
    def build_tokenizer(cls, cfg: CfgNode) -> Callable[[list[str]], Tensor]:
        """Build the tokenizer of that model: N texts -> int64 [N, context]."""
        return build_tokenizer(cfg.MODEL.CLIP.NAME)

    @classmethod
    def check_encoder(cls, cfg: CfgNode) -> None:
        """Look whether what `build_encoder` needs is there, before anything costly is built; errors as it."""
        check_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED)

    def share_weights(self, other: "ZeroShotSegmentor") -> None:
        """Take another model's CLIP, if it is equal: it is held once, and what it computes may be shared."""
        are_clips = isinstance(self.clip, FrozenCLIP) and isinstance(other.clip, FrozenCLIP)
        if are_clips and self.clip.activation == other.clip.activation and have_equal_weights(self.clip, other.clip):
            self.clip = self.embed_vocabulary.clip = other.clip

    # ------------------------------------------------------------------------------------ protocol

    def set_protocol(
        self,
        *,
        templates: Sequence[str],
        crop_size: int,
        stride: int,
        background_score: float,
        refiner: Refiner | None = None,
        logit_scale: float = 0.0,
        area_threshold: float = 0.0,
        join_words_first: bool = False,
        normalize_prompts: bool = False,
        components: ComponentSettings | None = None,
    ) -> None:
        """Set the inference protocol: windows, prompts, and the rule from scores to labels.

        A ValueError names the config key that does not fit; an OSError what a refiner needs and cannot be read.

        Args:
            templates: prompt templates, each with one `{}`, for vocabularies that bring none.
            crop_size: side of the sliding windows, in pixels; 0: the whole image is the window. `stride` is the step.
            background_score: constant score of the background, in 0..1.
            logit_scale: as in ScoreSettings, and so is area_threshold; normalize_prompts as in TextEmbedder.
            join_words_first: see CropSegmentor.
            components: what counts as an object; None for the defaults.
        """
        check_values("TEST.ZERO_SHOT", CROP_SIZE=crop_size, BACKGROUND_SCORE=background_score)
        check_values("TEST.ZERO_SHOT", LOGIT_SCALE=logit_scale, AREA_THRESHOLD=area_threshold)
        _check_stride(crop_size, stride)

        # Words
        self.templates = check_templates(templates)
        self.embed_vocabulary.normalize_prompts = normalize_prompts

        # Windows and scores
        self.crop_size, self.stride = crop_size, stride
        self.background_score = background_score
        self.logit_scale = logit_scale
        self.area_threshold = area_threshold
        self.join_words_first = join_words_first
        if refiner is not None:
            refiner.load()
        self.refiner = refiner
        self.components = components or ComponentSettings()
        self.components.check()

    @classmethod
    def protocol_from_config(cls, cfg: CfgNode) -> dict:
        """Return the arguments of `set_protocol` that a configuration gives; ValueError as there."""
        test = cfg.TEST.ZERO_SHOT
        _check_stride(test.CROP_SIZE, test.STRIDE)
        return {
            "templates": get_templates(test.TEMPLATES),
            "crop_size": test.CROP_SIZE,
            "stride": test.STRIDE,
            "background_score": test.BACKGROUND_SCORE,
            "refiner": build_refiner(cfg),
            "logit_scale": test.LOGIT_SCALE,
            "area_threshold": test.AREA_THRESHOLD,
            "join_words_first": test.JOIN_WORDS_FIRST,
            "normalize_prompts": test.NORMALIZE_PROMPTS,
            "components": component_settings(cfg),
        }

    @property
    def protocol(self) -> dict[str, Any]:
        """The arguments of `set_protocol` as they are now."""
        values = {name: getattr(self, name) for name in _PROTOCOL}
        return {**values, "normalize_prompts": self.embed_vocabulary.normalize_prompts}

    @contextmanager
    def keep_settings(self) -> Iterator[None]:
        """Restore the protocol and the classes as they were, after others were set."""
        protocol, classes = self.protocol, self._requested
        try:
            yield
        finally:
            self.set_protocol(**protocol)
            self._requested = classes

    @property
    def is_memory_short(self) -> bool:
        return self._batches.is_memory_short

    @property
    def _grid(self) -> WindowGrid:
        return WindowGrid(self.crop_size, self.stride)

    # ------------------------------------------------------------------------------------ classes

    def set_vocabulary(
        self,
        classes: ClassesLike,
        background: BackgroundLike = False,
        templates: Sequence[str] | None = None,
        negative: Sequence[str] = (),
    ) -> None:
        """Set the classes that images without a vocabulary of their own are segmented into.

        Args:
            classes: the word, or the list of words, of each class, without the background; or a text, see
                TCLPredictor.__call__, as for `background` and `negative`.
            background: whether a background comes before them, at the constant score or by the model's own map; or its
                words.
            templates: prompt templates; None for the model's.
            negative: words whose pixels are of no class, see make_vocabulary.

        Raises:
            ValueError: see Words.read and make_vocabulary.
        """
        words = Words.read(classes, background, negative)
        templates = None if templates is None else check_templates(templates)
        vocabulary = self.make_vocabulary(words, templates=templates)
        self._requested = _Classes(*join_vocabularies([vocabulary]), templates, words)

    def set_dataset(self, *names: str, class_words: Mapping[str, Sequence[ClassWords]] | None = None) -> None:
        """Set the classes of a registered dataset, see dataset_class_names, of which the first may be the background.

        With several datasets, shared images are segmented once and each distinct word is scored once.

        Args:
            class_words: the words of a dataset's classes, by its name, in place of its metadata's; see
                dataset_classes.
        """
        self._requested = self._dataset_classes(names, class_words or {})

    def set_text_embeddings(self, embeddings: Tensor, background: bool = False) -> None:
        """Set the classes by their text features [K, D], of any lengths; ValueError for another shape."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.clip.embed_dim:
            raise ValueError(f"Text embeddings must be [K, {self.clip.embed_dim}], not {list(embeddings.shape)}.")
        words = torch.arange(len(embeddings))
        subset = WordSubset(words, words + int(background), len(words) + int(background), background)
        self._requested = _Classes(embeddings.detach(), [subset])

    def make_vocabulary(
        self,
        classes: ClassesLike,
        background: BackgroundLike = False,
        negative: Sequence[str] = (),
        templates: Sequence[str] | None = None,
    ) -> Vocabulary:
        """Make a vocabulary; arguments and errors as set_vocabulary's."""
        templates = templates or self.templates
        words = Words.read(classes, background, negative)
        vocabulary = make_vocabulary(**vars(words), identify=partial(self.identify, templates=templates))
        self._warn(vocabulary.words, templates)
        return vocabulary

    def text_features(self, words: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Embed words, each by its prompts: fp32 [W, D] of length 1, on the model's device, without gradient."""
        return self.embed_vocabulary(words, templates or self.templates)

    def identify(self, words: Sequence[str], templates: Sequence[str] | None = None) -> list[bytes]:
        """Return a key for each word, the same for words that are one text under the templates, or the model's."""
        return self.embed_vocabulary.identify(words, templates or self.templates)

    def _warn(self, words: Sequence[str], templates: Sequence[str]) -> None:
        """Log what a user should know of words, each message once."""
        for message in self.embed_vocabulary.warnings(words, templates):
            log_first_n(logging.WARNING, message, name=__name__, key="message")

    @property
    def metadata(self) -> Metadata:
        """The names and colors of the classes that are looked for, as Detectron2's Visualizer takes them.

        Of several datasets, those of the first. RuntimeError where the names of the classes are not known.
        """
        classes = self._requested or self._default_classes({})
        if classes.asked is not None:
            return _make_metadata(classes.asked)
        name = classes.subsets[0].dataset_name
        if name is None:
            raise RuntimeError("The classes were set by text embeddings, which have no names.")
        return MetadataCatalog.get(name)

    def _dataset_classes(self, names: Sequence[str], class_words: Mapping[str, Sequence[ClassWords]]) -> _Classes:
        """Return the classes of datasets; arguments as set_dataset's."""
        vocabularies = [dataset_vocabulary(name, class_words.get(name), self.identify) for name in names]
        words, subsets = join_vocabularies(vocabularies)
        self._warn(words, self.templates)
        return _Classes(words, subsets)

    def _classes(self, input_per_image: dict) -> tuple[Tensor, list[WordSubset]]:
        """Return the text features of all words [W, D], and the words of each dataset."""
        if input_per_image.get("vocabulary") is not None:
            background, negative = input_per_image.get("background", False), input_per_image.get("negative", ())
            vocabulary = self.make_vocabulary(input_per_image["vocabulary"], background, negative)
            classes = _Classes(*join_vocabularies([vocabulary]))
        else:
            classes = self._requested or self._default_classes(input_per_image)

        if isinstance(classes.words, Tensor):
            return classes.words.to(self.device), classes.subsets
        return self.embed_vocabulary(classes.words, classes.templates or self.templates), classes.subsets

    def _default_classes(self, input_per_image: dict) -> _Classes:
        """Return the classes of the dataset of an image, or else of the one that the model was built with.

        Raises:
            RuntimeError: there is none, or it is not known which of several is meant.
        """
        name = input_per_image.get("dataset_name")
        if name is None or not has_classes(name):
            name = self._default_dataset("file_name" in input_per_image)
        if name not in self._defaults:
            self._defaults[name] = self._dataset_classes([name], {})
        return self._defaults[name]

    def _default_dataset(self, is_of_a_dataset: bool) -> str:
        names = self.dataset_names
        if names and has_classes(names[0]) and not (is_of_a_dataset and len(names) > 1):
            return names[0]

        if not names:
            problem = "DATASETS.TEST is empty"
        elif not has_classes(names[0]):
            problem = f"'{names[0]}' has no classes"
        else:
            problem = f"it has {len(names)} datasets, and the image does not say of which it is"
        raise RuntimeError(
            "The model does not know which classes to look for: call model.set_vocabulary(names) or "
            "model.set_dataset(name), give each input a 'vocabulary' or its 'dataset_name', or let DATASETS.TEST begin "
            f"with a dataset that has stuff_classes ({problem})."
        )

    # ------------------------------------------------------------------------------------ whole images

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment images, in Detectron2's inference format.

        Args:
            batched_inputs: a dict an image:

                image: Tensor [3, H, W], RGB, 0..255, already at the size at which windows are taken.
                height, width: size of the result in pixels; default: the image's.
                vocabulary: the word, or the list of words, of each class, in place of those set before.
                dataset_name: registered dataset whose classes are looked for where none were set.
                background: whether a background comes before the vocabulary (bool), or its words (list[str]).
                negative: words besides the vocabulary whose pixels are of no class (list[str]).
                labels_only: whether to give labels, without holding all scores (bool).
                label_scores: whether labels come with the score of the class at each pixel (bool).
                instances: whether to give objects too: the connected components of each class (bool).
                panoptic_seg: whether to give a panoptic segmentation too: things by connected components, stuff by
                    class; without a dataset, all classes are things (bool).
                kept_crops: a list in which what does not depend on words is kept, where the image is segmented alone:
                    empty at first, and given again with further words, as long as the model stays as it is.

        Returns:
            a dict an image:

            sem_seg: scores fp32 [K, height, width], background first where there is one; last the best score of the
                negative words where there are any, and their label is its index.
            sem_seg_labels: in its place where `labels_only`: the class with the largest score, int64 [height, width].
            sem_seg_scores: beside them where `label_scores`: its score, fp32 [height, width]; the background's is not
                told.
            instances, panoptic_seg: see make_instances and make_panoptic_seg, on the CPU.
            dataset_name: whose classes these are, where they are a dataset's (str).
            by_dataset: in their place where several datasets were set: a list of such dicts.
        """
        if torch.jit.is_tracing():
            raise RuntimeError(
                f"{type(self).__name__} cannot be traced: the windows of the traced image's size would stand for those "
                "of every image. Trace the masks of one crop instead: encode_crops and crop_masks."
            )
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            one_by_one = any(map(self.refines, IMAGE_STAGES))  # what a refiner holds of an image is large
            return self._batches.segment(self._segment_images, batched_inputs, self._grid, self.device, one_by_one)

    @torch.no_grad()
    def _segment_images(self, batched_inputs: Sequence[dict]) -> list[dict]:
        """Segment images whose windows have one size, and whose words are the same."""
        text, subsets = self._classes(batched_inputs[0])
        windows = [self._lay_windows(input_per_image) for input_per_image in batched_inputs]

        # Crops are encoded once, if what that gives fits into memory
        batch_size = self._batches.windows_at_once(self._grid.window_size(batched_inputs[0]), self.device)

        def encode() -> Iterable[tuple]:
            return map(self.encode_crops, batch_windows(windows, batch_size))

        groups = self.word_groups(text, subsets)
        kept_crops = batched_inputs[0].get("kept_crops")
        if kept_crops is not None and len(batched_inputs) == 1 and not self.is_memory_short:
            if not kept_crops:
                kept_crops.extend(list(encode()))  # all or, where memory runs out, none
            encode = partial(iter, kept_crops)
        elif len(groups) > 1 and not self.is_memory_short:
            encode = hold(encode)

        # Segment into the classes of each dataset
        outputs = [[] for _ in windows]
        for group_text, group in groups:
            results = score_words(self, windows, encode, group_text, group, batched_inputs[0])
            for image_outputs, image_results in zip(outputs, results):
                image_outputs += image_results

        objects = [name for name in OUTPUTS if batched_inputs[0].get(name)]
        for image_outputs in outputs:
            for output, subset in zip(image_outputs, subsets):
                if subset.dataset_name is not None:
                    output["dataset_name"] = subset.dataset_name
                if objects:
                    add_objects(output, subset, self.components, objects)
        return [output[0] if len(output) == 1 else {"by_dataset": output} for output in outputs]

    def _lay_windows(self, input_per_image: dict) -> Windows:
        image = self.normalize_images([input_per_image["image"]])[0]
        height, width = (input_per_image.get(key, side) for key, side in zip(("height", "width"), image.shape[1:]))
        return Windows(image, self.crop_size, self.stride, (height, width))

    def word_groups(self, text: Tensor, subsets: list[WordSubset]) -> list[tuple[Tensor, list[WordSubset]]]:
        """Group datasets that can share scores: the text features of their words, and the words of each."""
        if not self.scores_depend_on_vocabulary:
            return [(text, subsets)]
        return [(text[subset.words], [subset._replace(words=torch.arange(len(subset.words)))]) for subset in subsets]


def _make_metadata(words: Words) -> Metadata:
    """Make the metadata of words: all classes are things, and, in a map of labels, stuff."""
    first = int(words.has_background)
    colors = class_colors(len(words.names), words.has_background)
    things = slice(first, first + len(words.classes))
    return Metadata().set(
        stuff_classes=words.names, stuff_colors=colors, thing_classes=words.names[things], thing_colors=colors[things]
    )


def check_images(cfg: CfgNode) -> None:
    """Check that images come as CLIP takes them: Detectron2's own defaults are for its detectors.

    Raises:
        ValueError: names the first key that is not as TCL's configs have it.
    """
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(
            f"INPUT.FORMAT is '{cfg.INPUT.FORMAT}'; expected RGB, the order of channels that CLIP takes. TCL's configs "
            f"set it: {_USE_OUR_CONFIG}"
        )
    theirs = get_cfg().MODEL
    keys = ["PIXEL_MEAN", *(["PIXEL_STD"] if any(cfg.MODEL.PIXEL_MEAN) else [])]  # 0 and 1 leave images as they are
    for key in keys:
        if list(cfg.MODEL[key]) == list(theirs[key]):
            raise ValueError(f"MODEL.{key} is {list(theirs[key])}, Detectron2's for BGR: {_USE_OUR_CONFIG}")


def component_settings(cfg: CfgNode) -> ComponentSettings:
    """Return what a configuration says about objects."""
    test = cfg.TEST.ZERO_SHOT.CONNECTED_COMPONENTS
    return ComponentSettings(test.MIN_AREA, test.CONNECTIVITY, cfg.TEST.DETECTIONS_PER_IMAGE)


def _check_stride(crop_size: int, stride: int) -> None:
    is_right = crop_size <= 0 or 1 <= stride <= crop_size
    expect(is_right, "TEST.ZERO_SHOT.STRIDE", stride, f"1 to {crop_size} (CROP_SIZE)")


def _autocast_dtype(name: str, device: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes or (name == "float16" and not device.startswith("cuda")):
        raise ValueError(
            f"TEST.ZERO_SHOT.PRECISION must be float32, bfloat16 or, on CUDA, float16; not '{name}' on '{device}'."
        )
    return dtypes[name]
