"""Reading pictures: files, bytes, PIL images and arrays become upright RGB of 8 bits."""

import io
import logging
import re
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .files import open_path

logger = logging.getLogger(__name__)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 100_000_000  # a larger image is taken for a decompression bomb
ImageLike = str | Path | bytes | Image.Image | np.ndarray
_LEFTOVERS = {"__MACOSX", ".AppleDouble", "@eaDir", ".ipynb_checkpoints"}  # folders of macOS, Synology and Jupyter
_WHITES = {8: 255, 12: 4095, 16: 65535}  # the brightest value of so many bits
_TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that exchange height and width; a TIFF's size has them already
_MAX_WARNINGS = 5  # of pictures whose bits are guessed; a dataset may have millions
_guessed: list[str] = []


class BrokenSample(ValueError):
    """A sample that cannot be used; the message names it.

    Attributes:
        reason: a few words, to count by.
        detail: what is wrong with this sample.
    """

    def __init__(self, reason: str, sample: str, detail: object = ""):
        super().__init__(reason, sample, str(detail))  # by these it is pickled, to go from a process to another
        self.reason = reason
        self.detail = str(detail)

    def __str__(self) -> str:
        reason, sample, detail = self.args
        return f"{reason}: {sample}" + (f" ({detail})" if detail else "")


def is_leftover(path: str) -> bool:
    """Return whether a relative path, with slashes, is one that other systems leave in folders and archives.

    Such files (._NAME, __MACOSX/NAME, ...) have the names of images, but are none, or are thumbnails and copies.
    """
    return any(part.startswith("._") or part in _LEFTOVERS for part in path.split("/"))


def read_image(source: str | bytes, name: str) -> Image.Image:
    """Decode a file or its content to RGB, upright as EXIF says; any mode that PIL reads, 16 bits scaled to 8.

    Raises:
        BrokenSample: missing, truncated, no image, of floats, or too large; calls it `name`.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else open_path(source)
        with file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}"
                raise BrokenSample("image too large", name, size)
            return to_rgb(image, name)
    except BrokenSample:
        raise
    except Exception as error:  # PIL and its decoders raise many types
        detail = re.sub(r"<_io\.BytesIO .*?>", repr(name), str(error))  # which has an address in memory
        raise BrokenSample("unreadable image", name, detail) from None


def image_size(path: str) -> tuple[int, int] | None:
    """Return the height and width that `read_image` gives a file, without decoding it; None where it cannot be told."""
    try:
        with open_path(path) as file, Image.open(file) as image:
            is_turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _TURNED
            return image.size if is_turned else image.size[::-1]
    except Exception:  # PIL raises many types; who reads the image says what is wrong with it
        return None


def to_rgb(image: Image.Image, name: str = "a picture") -> Image.Image:
    """Convert a PIL image of any mode but "F" to RGB, upright as its EXIF says, 16 bits scaled to 8.

    Raises:
        ValueError: its pixels are floats or integers beyond 16 bits, of which nothing says what is white.
    """
    if image.mode == "F":
        raise ValueError("an image of floats, of which nothing says what is white: save it with 8 or 16 bits")
    is_deep = ";16" in raw_mode(image)  # PIL keeps the upper 8 bits of each color
    image = turn_upright(image)
    if image.mode.startswith("I"):
        return _scale_to_8_bits(image, name).convert("RGB")

    image = image.convert("RGB")
    brightest = max(high for _, high in image.getextrema())
    if is_deep and 0 < brightest < 16:
        _warn_of_range(name, "16 bits a color, of which 12 or fewer are used: it is almost black")
    return image


def _scale_to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale gray integers to 8 bits; PIL's own conversion would clip them."""
    pixels = np.asarray(image)
    darkest, brightest = int(pixels.min()), int(pixels.max())
    bits = next((bits for bits, white in _WHITES.items() if brightest <= white), None)
    if darkest < 0 or bits is None:
        raise ValueError(
            f"an image of the values {darkest} to {brightest}, of which nothing says what is white: save it with 8 or "
            "16 bits"
        )
    if brightest and bits < 16:
        _warn_of_range(name, f"more than 8 bits, but no value above {brightest}: {_WHITES[bits]} is taken for white")
    return Image.fromarray((pixels.astype(np.float64) * 255 / _WHITES[bits]).round().astype(np.uint8))


def _warn_of_range(name: str, problem: str) -> None:
    """Warn of the first pictures with more bits than they use."""
    if len(_guessed) < _MAX_WARNINGS:
        _guessed.append(name)
        logger.warning("%s is stored with %s. Save such pictures with 8 bits.", name, problem)


def raw_mode(image: Image.Image) -> str:
    """Return PIL's name for how a file's pixels are stored; "" once it is decoded."""
    if not getattr(image, "tile", None):
        return ""
    arguments = image.tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says; damaged EXIF is ignored."""
    image.load()  # which turns a TIFF, and then says so
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # PIL raises many types for damaged EXIF
        return image


def as_array(image: ImageLike) -> np.ndarray:
    """Return any picture as an RGB array uint8 [H, W, 3].

    Args:
        image: path; bytes of a file; PIL image, turned as its EXIF says; RGB array uint8 [H, W, 3]; or gray array
            [H, W], uint8 or uint16 (0..65535, scaled to 8 bits as 16-bit files are).

    Raises:
        ValueError: the file is no image, or the object is no picture; says what it is.
    """
    if isinstance(image, (str, Path)):
        return np.asarray(read_image(str(image), str(image)))
    if isinstance(image, bytes):
        return np.asarray(read_image(image, "a picture"))

    # An RGB array stays as it is; a gray one is treated as a gray file
    given = type(image).__name__
    if isinstance(image, np.ndarray):
        given = f"{image.dtype} {list(image.shape)}"
        if image.size and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return image
        if image.size and image.dtype in (np.uint8, np.uint16) and image.ndim == 2:
            image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        if image.width and image.height:
            return np.asarray(to_rgb(image))
        given = f"an image of {image.width} x {image.height} pixels"

    raise ValueError(
        "An image is a path, a file's bytes, a PIL image, an RGB array uint8 [H, W, 3] or a gray array uint8 or uint16 "
        f"[H, W], with at least one pixel, not {given}."
    )
