"""Pictures of class maps and of text, as RGB arrays uint8 [H, W, 3]."""

import textwrap
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_ALPHA = 0.6  # of colours over the image
_FONT = 15  # pixels of letters
_LEGEND_WIDTH = 240  # pixels, the least: a narrow picture gets a white margin
Color = tuple[int, int, int]


def enlarge(picture: np.ndarray, side: int = 480) -> np.ndarray:
    """Repeat the pixels of [H, W, ...] by a whole factor, until the long side has at least so many."""
    factor = -(-side // max(picture.shape[:2]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def blend(image: np.ndarray, colored: np.ndarray, alpha: float) -> np.ndarray:
    """Lay colours over an image, both RGB uint8 [H, W, 3]; alpha 1 leaves nothing of the image."""
    return np.asarray(Image.blend(Image.fromarray(image), Image.fromarray(colored), alpha))


def draw_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    colors: Sequence[Color],
    plain: Collection[int] = (),
    shares: bool = True,
) -> np.ndarray:
    """Draw an image with its classes in colour, their outlines, and a legend below.

    Args:
        image: RGB uint8 [H, W, 3]. labels: index of each pixel's class [H, W].
        plain: classes that are left as the image is.
        shares: whether the legend has the classes that occur with their share of the image, rather than all classes (as
            frames of a video need, which are all of one size).
    """
    # The classes' colours over the image, and white between the classes.
    is_plain = np.isin(labels, list(plain))[..., None]
    picture = enlarge(np.where(is_plain, image, blend(image, np.array(colors, np.uint8)[labels], _ALPHA)))
    picture[_outline(enlarge(labels))] = 255

    # The legend.
    entries = list(zip(classes, colors))
    if shares:
        counts = np.bincount(labels.ravel(), minlength=len(classes))
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        entries = [(f"{classes[k]} {100 * counts[k] / labels.size:.0f} %", colors[k]) for k in order]
    legend = draw_legend(entries, max(picture.shape[1], _LEGEND_WIDTH))

    margin = legend.shape[1] - picture.shape[1]
    picture = np.pad(picture, ((0, 0), (0, margin), (0, 0)), constant_values=255)
    return np.concatenate([picture, legend])


def draw_legend(entries: Sequence[tuple[str, Color]], width: int) -> np.ndarray:
    """Draw a white strip with a coloured square and a text for each entry; a text that is too long is cut."""
    font, line = ImageFont.load_default(_FONT), _FONT + 9

    # Places from left to right, then in the next line.
    places, x, y = [], 8, 6
    for text, color in entries:
        text = " ".join(text.split())  # line breaks have no length
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
    """Draw a text, broken into lines, in the upper left of a white picture."""
    picture = Image.new("RGB", (width, height), "white")
    lines = textwrap.fill(text, max(1, int(width / (0.55 * size))))
    ImageDraw.Draw(picture).text((4, 2), lines, fill="black", font=ImageFont.load_default(size))
    return np.asarray(picture)


def _outline(labels: np.ndarray) -> np.ndarray:
    """Find where a pixel's class is not that of the one right of or below it."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge
