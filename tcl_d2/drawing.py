"""Pictures of class maps and of text, as RGB arrays uint8 [H, W, 3]."""

import textwrap
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_ALPHA = 0.6  # of colours over the image
_FONT = 15  # pixels of letters
Color = tuple[int, int, int]


def enlarge(picture: np.ndarray, side: int = 480) -> np.ndarray:
    """[H, W, ...] by a whole factor, until its long side has at least so many pixels."""
    factor = -(-side // max(picture.shape[:2]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def draw_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    colors: Sequence[Color],
    plain: Collection[int] = (),
    shares: bool = True,
) -> np.ndarray:
    """An image with its classes in colour, their outlines, and a legend below.

    Args:
        image: RGB uint8 [H, W, 3]. labels: index of each pixel's class [H, W].
        plain: classes that are left as the image is.
        shares: whether the legend has the classes that occur with their share of the image, rather than all classes (as
            frames of a video need, which are all of one size).
    """
    labels_shown = enlarge(labels)
    enlarged, palette = enlarge(image), np.array(colors, np.float32)
    colored = ~np.isin(labels_shown, list(plain))
    picture = np.where(colored[..., None], (1 - _ALPHA) * enlarged + _ALPHA * palette[labels_shown], enlarged)
    picture[_outline(labels_shown)] = 255
    entries = list(zip(classes, colors))
    if shares:
        counts = np.bincount(labels.ravel(), minlength=len(classes))
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        entries = [(f"{classes[k]} {100 * counts[k] / labels.size:.0f} %", colors[k]) for k in order]
    return np.concatenate([picture.round().astype(np.uint8), draw_legend(entries, picture.shape[1])])


def draw_legend(entries: Sequence[tuple[str, Color]], width: int) -> np.ndarray:
    """A white strip with a coloured square and a text for each entry."""
    font, line = ImageFont.load_default(_FONT), _FONT + 9
    places, x, y = [], 8, 6
    for text, color in entries:
        taken = int(font.getlength(text)) + _FONT + 24
        if x > 8 and x + taken > width:
            x, y = 8, y + line
        places.append((x, y, text, color))
        x += taken
    strip = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(strip)
    for x, y, text, color in places:
        draw.rectangle((x, y + 2, x + _FONT, y + 2 + _FONT), fill=color, outline="gray")
        draw.text((x + _FONT + 6, y), text, fill="black", font=font)
    return np.asarray(strip)


def draw_text(text: str, height: int, width: int, size: int = 12) -> np.ndarray:
    """A text, broken into lines, in the upper left of a white picture."""
    picture = Image.new("RGB", (width, height), "white")
    lines = textwrap.fill(text, max(1, int(width / (0.55 * size))))
    ImageDraw.Draw(picture).text((4, 2), lines, fill="black", font=ImageFont.load_default(size))
    return np.asarray(picture)


def _outline(labels: np.ndarray) -> np.ndarray:
    """Where a pixel's class is not that of the one right of or below it."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge
