"""UnlabeledImageMapper: turns an image without caption or label into the training input of a dense head."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..config.ranges import check_values
from ..utils.errors import named
from ..utils.images import MAX_PIXELS, BrokenSample, read_image
from .dataset_files import check_files

_KEY = "MODEL.DENSE_CLIP.DINOISER.OBJECT_MASKS"


class UnlabeledImageMapper:
    """Reads and augments an image and, where a head learns from it, the mask of its objects, as CLIP-DINOiser does."""

    @configurable
    def __init__(
        self, *, size: int = 448, flip_prob: float = 0.5, brightness: float = 0.5, object_masks: str | None = None
    ):
        """Set the augmentation.

        Args:
            size: to which the short side is resized, bilinear; and of the square crop, in pixels.
            brightness: colors are multiplied by a factor of 1 - brightness to 1 + brightness.
            object_masks: folder of the masks of objects, see mask_path; None for none.

        Raises:
            ValueError: a number is out of its range; names the config key.
        """
        check_values("INPUT.IMAGE_TEXT", SIZE=size, FLIP_PROB=flip_prob)
        check_values("INPUT.UNLABELED", BRIGHTNESS=brightness)
        self.size = size
        self.flip_prob = flip_prob
        self.brightness = brightness
        self.object_masks = object_masks

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        dinoiser = cfg.MODEL.DENSE_CLIP.DINOISER
        has_masks = cfg.MODEL.DENSE_CLIP.HEAD == "clip_dinoiser" and dinoiser.FIND_OBJECTS
        return {
            "size": cfg.INPUT.IMAGE_TEXT.SIZE,
            "flip_prob": cfg.INPUT.IMAGE_TEXT.FLIP_PROB,
            "brightness": cfg.INPUT.UNLABELED.BRIGHTNESS,
            "object_masks": dinoiser.OBJECT_MASKS if has_masks else None,
        }

    def __call__(self, sample: dict) -> dict:
        """Turn an image into the model's training input.

        Args:
            sample: `image_bytes` (the image file's content) or `file_name`; and optionally `key`, its name.

        Returns:
            image: fp32 [3, size, size], RGB, 0..255.
            objects: with object masks, the probability of an object, fp32 [1, size, size].
            height, width: size of `image`.
            key: name of the image (str).

        Raises:
            BrokenSample: the image cannot be used.
            OSError: its mask is missing, or of another size; names it.
        """
        name = sample.get("key") or sample["file_name"]
        image = read_image(sample.get("image_bytes") or sample["file_name"], name)
        layers = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        if self.object_masks is not None:
            layers = torch.cat([layers, read_mask(mask_path(self.object_masks, name), image.size)])

        layers = self._augment(layers, name)
        factor = 1 + self.brightness * (2 * torch.rand(1).item() - 1)
        mapped = {"image": (factor * layers[:3]).clamp(0, 255), "height": self.size, "width": self.size, "key": name}
        return {**mapped, "objects": layers[3:]} if len(layers) > 3 else mapped

    def _augment(self, layers: Tensor, name: str) -> Tensor:
        """Resize layers [C, H, W], cut a random square out, and flip it perhaps."""
        height, width = (int(self.size * side / min(layers.shape[1:])) for side in layers.shape[1:])
        if height * width > MAX_PIXELS:
            raise BrokenSample("image too long", name, f"{layers.shape[2]} x {layers.shape[1]} pixels")
        layers = F.interpolate(layers[None], size=(height, width), mode="bilinear", align_corners=False)[0]

        top, left = (int(torch.randint(side - self.size + 1, ())) for side in (height, width))
        layers = layers[:, top : top + self.size, left : left + self.size]
        return layers.flip(-1) if torch.rand(()) < self.flip_prob else layers


def check_object_masks(folder: str, dataset_name: str) -> None:
    """Check that the images of a registered dataset have masks; of shards, that there is a folder of masks.

    Raises:
        OSError: masks are missing; names the key and one of them.
        ValueError: two images have the same mask.
    """
    with named(_KEY):
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"there is no folder '{folder}' of the masks of objects: give it, or learn without objects by "
                "MODEL.DENSE_CLIP.DINOISER.FIND_OBJECTS False"
            )
        names = [row["file_name"] for row in DatasetCatalog.get(dataset_name) if "file_name" in row]
        paths = [mask_path(folder, name) for name in names]
        check_files(paths, f"masks of the images of '{dataset_name}'")
        twice = [path for path, count in Counter(paths).items() if count > 1]
        if twice:
            raise ValueError(f"several images of '{dataset_name}' have the name of the mask {twice[0]}: rename them")


def mask_path(folder: str, name: str) -> Path:
    """Return where the mask of an image's objects is, by the image's name, such as FOLDER/photo.png of photo.jpg."""
    return Path(folder, f"{Path(name).stem}.png")


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """Read the mask of the objects of an image of this width and height: probabilities fp32 [1, H, W].

    Raises:
        OSError: there is no such mask, or it is of another size or no gray PNG of 0 to 255; names it.
    """
    try:
        with Image.open(path) as mask:
            pixels = np.array(mask.convert("L"))
    except OSError as error:
        raise OSError(f"{_KEY}: the mask {path} cannot be read: {error}") from None

    if pixels.shape != size[::-1]:
        height, width = pixels.shape
        raise OSError(f"{_KEY}: the mask {path} has {width} x {height} pixels, but its image {size[0]} x {size[1]}")
    if pixels.max(initial=0) == 1:
        raise OSError(f"{_KEY}: the mask {path} has the values 0 and 1; expected 0 to 255, with 255 for objects")
    return torch.from_numpy(pixels)[None].float() / 255
