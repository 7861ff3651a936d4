"""ReCo: a word's reference embedding is made from images that CLIP retrieves for it (Shin et al., NeurIPS 2022).

arXiv 2206.07045. Nothing is trained. Where the release differs from the paper (it takes columns of later images too in
the agreement of a patch with an image), this is the paper's rule.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.logger import log_first_n
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

from ...config.ranges import check_values
from ...utils.errors import expect
from ...utils.tensors import LastValue, digest_weights, weights_version
from ...words.vocabulary import check_words, make_vocabulary
from ..dense_clip.heads import DenseHead, MaskCLIPHead, build_dense_head
from ..encoders.clip import FrozenCLIP
from ..encoders.text import WordReader
from ..encoders.vision import VisionEncoder, build_vision_model
from ..functional import map_size, normalize, resize_scores, tokens_to_map
from ..refiners.base import keep_scores
from ..segmentor.base import ZeroShotSegmentor
from .cache import ReferenceCache, digest_texts
from .cosegmentation import find_seeds, make_reference, weigh_patches
from .index import ArchiveImages, ImageEmbedder, ImageIndex, ImageRecord, find_index, iterate_images

logger = logging.getLogger(__name__)
_IMAGES_AT_ONCE = 16  # of the archive, while references are made
_SAME_WORD = 1 - 1e-5  # cosine of two text features of one word; which words are embedded together moves it by rounding


class ReCoFeatures(NamedTuple):
    """What is computed once for a batch of crops."""

    images: Tensor  # normalized crops [B, 3, H, W]
    clip_features: Tensor  # of the dense CLIP, normalized, [B, D, h, w]
    embedding: Tensor  # of the image encoder, not normalized, [B, C, h', w']
    refine: Callable[[Tensor], Tensor] = keep_scores  # masks [B, K, H, W] by the crops' edges
    references: Tensor | Any = None  # of all words, of length 1, [W, C]


class RetrievedImages(NamedTuple):
    """Images of the archive for a word, the most similar first."""

    images: Tensor  # RGB uint8 [n, 3, S, S]
    boxes: Tensor  # the seed patch of each in pixels, int64 [n, 4] as x0, y0, x1, y1


@META_ARCH_REGISTRY.register()
class ReCo(ZeroShotSegmentor):
    """Segments by similarities of an image encoder's features and a word's reference, times a dense CLIP's masks."""

    clip: FrozenCLIP

    @configurable
    def __init__(
        self,
        *,
        index_folder: Path,
        encoder: VisionEncoder | int,
        head: DenseHead | None = None,
        num_images: int = 50,
        image_size: int = 224,
        text_attention: bool = True,
        context: Sequence[str] = (),
        use_dense_clip: bool = True,
        cache: Path | None = None,
        **zero_shot,
    ):
        """Build the segmentor from its parts; `zero_shot` are the arguments of ZeroShotSegmentor.

        Args:
            encoder: the image encoder; or the number of CLIP's blocks that serve as one.
            head: of the dense CLIP; None for MaskCLIP's.
            num_images: images of the archive for each word, of side `image_size` in pixels.
            text_attention: whether the dense CLIP guides co-segmentation.
            context: words that co-segmentation leaves out, in the order of their own references.
            use_dense_clip: whether scores are multiplied by the dense CLIP's masks.
        """
        super().__init__(**zero_shot)
        self.head = head or MaskCLIPHead()
        is_clip = isinstance(encoder, int)
        self.encoder = None if is_clip else encoder
        self.clip_blocks = encoder if is_clip else len(self.clip.blocks) - self.head.num_blocks
        self._check_numbers(num_images, image_size)

        # Retrieval and co-segmentation
        self.index_folder = index_folder
        self.num_images = num_images
        self.image_size = image_size
        self.text_attention = text_attention
        self.context = check_words(context) if context else ()
        self.use_dense_clip = use_dense_clip
        self.cache = ReferenceCache(cache)
        self._index, self._digests = LastValue(), LastValue()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        # Check the index before models are built
        reco = cfg.MODEL.RECO
        index_folder = Path(reco.INDEX).expanduser()
        if reco.INDEX:
            find_index(index_folder)

        # The image encoder
        encoder = reco.ENCODER.BLOCKS
        if reco.ENCODER.NAME != "clip":
            model = build_vision_model("MODEL.RECO.ENCODER", reco.ENCODER.NAME, reco.ENCODER.PRETRAINED)
            encoder = VisionEncoder(model, pixel_mean=cfg.MODEL.PIXEL_MEAN, pixel_std=cfg.MODEL.PIXEL_STD)

        arguments = super().from_config(cfg)
        if reco.CONTEXT:
            identify = partial(WordReader(arguments["tokenizer"]).identify, templates=arguments["templates"])
            make_vocabulary(reco.CONTEXT, identify=identify)  # raises for words that do not work
        return {
            **arguments,
            "index_folder": index_folder,
            "encoder": encoder,
            "head": build_dense_head(cfg.MODEL.DENSE_CLIP.HEAD, cfg),
            "num_images": reco.NUM_IMAGES,
            "image_size": reco.IMAGE_SIZE,
            "text_attention": reco.TEXT_ATTENTION,
            "context": reco.CONTEXT,
            "use_dense_clip": reco.DENSE_CLIP,
            "cache": Path(reco.CACHE).expanduser() if reco.CACHE else None,
        }

    @classmethod
    def check_encoder(cls, cfg: CfgNode) -> None:
        super().check_encoder(cfg)
        find_index(Path(cfg.MODEL.RECO.INDEX).expanduser())

    def _check_numbers(self, num_images: int, image_size: int) -> None:
        most = len(self.clip.blocks) - self.head.num_blocks
        expect(1 <= self.clip_blocks <= most, "MODEL.RECO.ENCODER.BLOCKS", self.clip_blocks, f"1 to {most}")
        check_values("MODEL.RECO", NUM_IMAGES=num_images, IMAGE_SIZE=image_size)
        expected = f"a multiple of {self.pad_to}: whole patches of all models"
        expect(image_size % self.pad_to == 0, "MODEL.RECO.IMAGE_SIZE", image_size, expected)

    @property
    def pad_to(self) -> int:
        """Pad to whole patches of CLIP and of the image encoder."""
        patch_size = self.clip.patch_size if self.encoder is None else self.encoder.patch_size
        return math.lcm(patch_size, self.clip.patch_size, self.head.pad_to or 1)

    # ------------------------------------------------------------------------------------ scores

    def encode(self, images: Tensor) -> ReCoFeatures:
        tokens = self.clip.forward_blocks(images, self.clip_blocks, position=self.head.position)
        clip_features = normalize(self.head.continue_features(self.clip, tokens, self.clip_blocks, images), 1)
        if self.encoder is not None:
            embedding = self.encoder(images)
        else:
            embedding = tokens_to_map(F.layer_norm(tokens, tokens.shape[-1:]), self.clip.grid(images))
        return ReCoFeatures(images, clip_features, embedding, self.bind_refiner("crop", images))

    def prepare(self, features: ReCoFeatures, text: Tensor) -> ReCoFeatures:
        return features._replace(references=self.references(text))

    def predict_masks(self, features: ReCoFeatures, text: Tensor, words: slice) -> Tensor:
        # At the crop's size, or where masks are refined, at the resolution at which the other methods refine
        size = map_size(features.images)
        if self.refines("crop"):
            rows, columns = self.clip.grid(features.images)
            size = 4 * rows, 4 * columns

        with torch.autocast(self.device.type, enabled=False):
            unit = normalize(features.embedding, 1)
            similarity = torch.einsum("bchw,kc->bkhw", unit, features.references[words])
        masks = resize_scores(similarity.sigmoid(), size)
        if self.use_dense_clip:
            masks = masks * resize_scores(self.dense_clip_masks(features.clip_features, text[words]), size)
        return features.refine(masks)

    # ------------------------------------------------------------------------------------ references

    @property
    def index(self) -> ImageIndex:
        """The index of the archive, opened and checked for the CLIP's weights as they are; errors as ImageIndex's."""
        weights = [*self.clip.state_dict().values(), self.pixel_mean, self.pixel_std]
        version = self.index_folder, weights_version(weights)
        return self._index(version, lambda: ImageIndex(self.index_folder, ImageEmbedder(self).digest()))

    @torch.no_grad()
    def references(self, text: Tensor) -> Tensor:
        """Return the reference embeddings of words, making those that are new: text features [W, D] -> fp32 [W, C].

        They are of length 1, or 0 where the archive has no image. A word of the context has the context's reference.
        """
        with torch.autocast(self.device.type, enabled=False):
            text = normalize(text, 1)
            context_text, context = self._context()
            if not len(context):
                return self._make_references(text, context_text, context)

            # Other words' references are made without the context
            cosines, nearest = (text @ context_text.T).max(1)
            references = context[nearest]
            others = (cosines <= _SAME_WORD).nonzero()[:, 0]
            if len(others):
                references[others] = self._make_references(text[others], context_text, context)
            return references

    def _context(self) -> tuple[Tensor, Tensor]:
        """Return text features [c, D] and references [c, C] of the context's words; each leaves out those before it."""
        if not self.context:
            empty = torch.empty(0, self.clip.embed_dim, dtype=torch.float32, device=self.device)
            return empty, empty
        text = self.embed_vocabulary(self.context, self.templates)
        references = self._make_references(text[:1], text[:0], text[:0])
        for number in range(1, len(text)):
            reference = self._make_references(text[number : number + 1], text[:number], references)
            references = torch.cat([references, reference])
        return text, references

    def _make_references(self, text: Tensor, context_text: Tensor, context: Tensor) -> Tensor:
        """Return the references [W, C] of words [W, D], without the context [c, D] with references [c, C]."""
        settings = self._settings()

        def compute(numbers: list[int]) -> Iterator[Tensor]:
            retrieved = self.index.search(text[numbers], self.num_images)
            for number, records in zip(tqdm(numbers, "reference embeddings", leave=False, unit="word"), retrieved):
                yield self._cosegment(text[number], records, context)

        others = digest_texts(settings, context_text)
        keys = [digest_texts(others, word) for word in text.half().cpu()]
        return self.cache.get_all(keys, compute, self.device)

    def _cosegment(self, text: Tensor, records: list[ImageRecord], context: Tensor) -> Tensor:
        """Make the reference embedding [C] of a word [D] from its images, without the context [c, C]."""
        features = self.encode_archive(records)
        return make_reference(features.embedding, self._weigh_patches(features, text, context))

    def _weigh_patches(self, features: ReCoFeatures, text: Tensor, context: Tensor) -> Tensor:
        """Weigh the patches of the images of a word [D], without the context [c, C]: [n, h, w]."""
        attention = self.dense_clip_masks(features.clip_features, text[None])[:, 0] if self.text_attention else None
        return weigh_patches(features.embedding, attention, context)

    @torch.no_grad()
    def retrieve(self, text: Tensor) -> RetrievedImages:
        """Find the images from which the reference of a word [D] is made, and the seed of each."""
        with torch.autocast(self.device.type, enabled=False):
            text = normalize(text, 0)

            # A word of the context leaves out those before it
            context_text, context = self._context()
            same = (context_text @ text > _SAME_WORD).nonzero()[:1, 0].tolist()
            context = context[: same[0]] if same else context

            # Its images and their seeds
            (records,) = self.index.search(text[None], self.num_images)
            features = self.encode_archive(records)
            pixels = self.denormalize_images(features.images).round().clamp(0, 255).byte()
            if not len(pixels):
                return RetrievedImages(pixels, torch.empty(0, 4, dtype=torch.int64))
            seeds = find_seeds(features.embedding, self._weigh_patches(features, text, context))

        # The seeds' patches in pixels
        width = features.embedding.shape[-1]
        corners = torch.stack([seeds % width, seeds // width], 1)
        boxes = torch.cat([corners, corners + 1], 1) * self.image_size // width
        return RetrievedImages(pixels, boxes)

    def encode_archive(self, records: list[ImageRecord]) -> ReCoFeatures:
        """Encode images of the archive; unreadable ones are left out, with a warning."""
        squares = ArchiveImages(records, self.image_size, InterpolationMode.BILINEAR)
        batches, num_read = [], 0
        for batch in iterate_images(squares, _IMAGES_AT_ONCE):
            for problem in (image for image in batch if isinstance(image, str)):
                logger.warning("Left out an image of the archive: %s", problem)
            if images := [image for image in batch if not isinstance(image, str)]:
                batches.append(self.encode(self.normalize_images(images)))
                num_read += len(images)

        if num_read < self.num_images:
            message = (
                f"The archive of {self.index_folder} has {num_read} images for a word, in place of the "
                f"{self.num_images} of MODEL.RECO.NUM_IMAGES"
            )
            log_first_n(logging.WARNING, message, name=__name__, key="message")
        if not batches:
            blank = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.float32, device=self.device)
            images, clip_features, embedding, *_ = self.encode(blank)
            return ReCoFeatures(images[:0], clip_features[:0], embedding[:0])
        images, clip_features, embedding = (torch.cat(parts) for parts in zip(*(batch[:3] for batch in batches)))
        return ReCoFeatures(images, clip_features, embedding)

    def _settings(self) -> str:
        """Return a digest of all that references depend on besides words: archive, models, settings as they are."""
        encoders = [module for module in self.modules() if isinstance(module, VisionEncoder)]
        weights = [*self.head.state_dict().values(), *(weight for encoder in encoders for weight in encoder.weights())]
        digests = self._digests(
            weights_version(weights), lambda: [digest_weights(self.head), *(encoder.digest() for encoder in encoders)]
        )

        head = sorted((name, value) for name, value in vars(self.head).items() if not name.startswith("_"))
        facts = [self.index.digest, *digests, type(self.head).__name__, head, self.clip_blocks]
        facts += [self.encoder is None, self.num_images, self.image_size, self.text_attention]
        return digest_texts(*facts, self.mask_shift, self.mask_scale)
