"""Drawing of class maps, scores and text on plain arrays: RGB pictures are uint8 [H, W, 3]."""

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..utils.files import replacing

_OVERLAY_ALPHA = 0.6  # weight of the class colors over the image
_HEAT_ALPHA = 0.6  # weight of the score colors over the image
_FONT_SIZE = 15  # height of the legend's letters, in pixels
_MIN_LEGEND_WIDTH = 240  # pixels; a picture that is narrower gets a white margin
Color = tuple[int, int, int]
_TAB10 = "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf"  # matplotlib's
_TURBO = Path(__file__).parent.parent / "assets/turbo.png"  # a picture of 256 x 1 pixels, Google's color map


# ------------------------------------------------------------------------------------------------- colors


def distinct_colors(count: int) -> list[Color]:
    """Return RGB colors that are far apart: the palette of PASCAL VOC, black first."""
    # Bits 0, 3, 6, ... of the index belong to red, 1, 4, 7, ... to green, and 2, 5, 8, ... to blue.
    indices = np.arange(count)
    colors = np.zeros((count, 3), int)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (indices >> (3 * bit + channel) & 1) << (7 - bit)
    return [tuple(color) for color in colors.tolist()]


def class_colors(num_classes: int, background: bool = False) -> list[Color]:
    """Return an RGB color of each class: light ones for few classes, and black for a background, the first class."""
    black = [(0, 0, 0)] * int(background)
    count = num_classes - len(black)
    colors = [cast(Color, ImageColor.getrgb(color)) for color in _TAB10.split()]
    if count > len(colors):
        colors = distinct_colors(count + 1)[1:]  # without black
    return [*black, *colors[:count]]


# ------------------------------------------------------------------------------------------------- drawing


def enlarge(picture: np.ndarray, side: int = 480) -> np.ndarray:
    """Repeat the pixels of [H, W, ...] by a whole factor, so that the long side has at least `side` pixels."""
    factor = enlarging_factor(picture, side)
    return picture.repeat(factor, 0).repeat(factor, 1)


def enlarging_factor(picture: np.ndarray, side: int = 480) -> int:
    """Return the factor of `enlarge`."""
    return -(-side // max(picture.shape[:2]))


def blend(image: np.ndarray, colored: np.ndarray, alpha: float) -> np.ndarray:
    """Lay a colored picture over an image, both RGB uint8 [H, W, 3]; alpha 1 leaves nothing of the image."""
    return np.asarray(Image.blend(Image.fromarray(image), Image.fromarray(colored), alpha))


def draw_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    colors: Sequence[Color],
    plain: Collection[int] = (),
    shares: bool = True,
) -> np.ndarray:
    """Draw an image with its classes in color, their outlines, and a legend below; return an RGB picture.

    Args:
        image: RGB uint8 [H, W, 3].
        labels: class index of each pixel, integers [H, W].
        plain: indices of classes that are left as the image is.
        shares: whether the legend has only the classes that occur, each with its share of the image. The frames of a
            video need all classes, so that the pictures are of one size.
    """
    # Draw the legend
    entries = list(zip(classes, colors))
    if shares:
        counts = np.bincount(labels.ravel(), minlength=len(classes))
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        entries = [(f"{classes[k]} {100 * counts[k] / labels.size:.0f} %", colors[k]) for k in order]
    picture = draw_classes(image, labels, colors, plain)
    legend = draw_legend(entries, max(picture.shape[1], _MIN_LEGEND_WIDTH))

    # Put the legend below the picture
    margin = legend.shape[1] - picture.shape[1]
    picture = np.pad(picture, ((0, 0), (0, margin), (0, 0)), constant_values=255)
    return np.concatenate([picture, legend])


def draw_classes(
    image: np.ndarray, labels: np.ndarray, colors: Sequence[Color], plain: Collection[int] = ()
) -> np.ndarray:
    """Draw the picture of draw_overlay without its legend."""
    is_plain = np.isin(labels, list(plain))[..., None]
    picture = np.where(is_plain, image, blend(image, np.array(colors, np.uint8)[labels], _OVERLAY_ALPHA))
    return draw_outlines(picture, labels)


def darken_around(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Darken a picture RGB uint8 [H, W, 3] but for a mask bool [H, W]."""
    return np.where(mask[..., None], picture, picture // 3)


def draw_outlines(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Enlarge an image [H, W, 3], and draw white lines between the classes [H, W] of its pixels."""
    picture = enlarge(image)
    picture[_outline(enlarge(labels))] = 255
    return picture


def draw_groups(image: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Enlarge an image [H, W, 3], and draw groups of its pixels (indices [H, W]) in their mean colors, outlined."""
    flat, pixels = groups.ravel(), image.reshape(-1, 3)
    counts = np.bincount(flat)
    sums = np.stack([np.bincount(flat, channel) for channel in pixels.T], axis=1)
    colors = sums / np.maximum(counts, 1)[:, None]
    return draw_outlines(colors.astype(np.uint8)[groups], groups)


def draw_heat_map(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Draw scores [H, W], floats in 0..1 or uint8 in 0..255, over an image [H, W, 3], from blue (0) to red (1)."""
    if scores.dtype != np.uint8:
        scores = (256 * scores).clip(0, 255).astype(np.uint8)
    with Image.open(_TURBO) as colors:
        colored = np.asarray(colors)[0][scores]
    return blend(image, colored, _HEAT_ALPHA)


def draw_legend(entries: Sequence[tuple[str, Color]], width: int) -> np.ndarray:
    """Draw a white strip with a colored square and a text for each entry; a text that is too long is cut."""
    font, line_height = ImageFont.load_default(_FONT_SIZE), _FONT_SIZE + 9

    # Place the entries from left to right, then in the next line
    places, x, y = [], 8, 6
    for text, color in entries:
        text = " ".join(text.split())  # a text with line breaks has no length
        entry_width = int(font.getlength(text)) + _FONT_SIZE + 24
        if x > 8 and x + entry_width > width:
            x, y = 8, y + line_height
        places.append((x, y, text, color))
        x += entry_width

    # Draw them
    strip = Image.new("RGB", (width, y + line_height), "white")
    draw = ImageDraw.Draw(strip)
    for x, y, text, color in places:
        draw.rectangle((x, y + 2, x + _FONT_SIZE, y + 2 + _FONT_SIZE), fill=color, outline="gray")
        draw.text((x + _FONT_SIZE + 6, y), text, fill="black", font=font)
    return np.asarray(strip)


def draw_text(text: str, height: int, width: int, size: int = 12) -> np.ndarray:
    """Draw a text, broken into lines, in the upper left of a white picture [height, width, 3]; `size` in pixels."""
    picture = Image.new("RGB", (width, height), "white")
    lines = textwrap.fill(text, max(1, int(width / (0.55 * size))))
    ImageDraw.Draw(picture).text((4, 2), lines, fill="black", font=ImageFont.load_default(size))
    return np.asarray(picture)


def _outline(labels: np.ndarray) -> np.ndarray:
    """Find the pixels whose class differs from the class of the pixel to the right or below, bool [H, W]."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


# ------------------------------------------------------------------------------------------------- saving


def save_picture(picture: np.ndarray | Image.Image, path: Path) -> None:
    """Write a picture, or an array RGB uint8 [H, W, 3], as a PNG file."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with replacing(path) as unfinished:
        picture.save(unfinished, "PNG")


def draw_palette(labels: np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """Return class indices [H, W] as a picture with the classes' colors, or, beyond 255 classes, as 16-bit gray.

    The index of pixels of no class is the number of classes.
    """
    if len(colors) > 255:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette([channel for color in colors for channel in color])
    return picture
