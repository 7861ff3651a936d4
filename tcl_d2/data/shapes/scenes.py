"""The small world: procedurally drawn scenes of textured objects on textured grounds, with captions and labels.

Real CLIP weights and photo sets cannot ship with a repository; this world can be drawn anywhere from a seed. Its
classes are told apart by material, pattern and color, which a small region shows, as most classes of photographs are;
outlines vary freely and are never a class. Everything is numpy on arrays of H x W pixels; files are written by
`tcl-d2 prepare shapes`.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

COLORS = {
    "red": (205, 35, 35),
    "green": (40, 160, 50),
    "blue": (40, 70, 210),
    "yellow": (235, 205, 40),
    "purple": (140, 45, 165),
}
PATTERNS = ("checked", "striped", "dotted")
MATERIALS = ("brick", "wood", "leopard", "zebra", "lava", "marble", "honeycomb", "denim")
GROUNDS = ("grass", "sand", "water", "snow", "gravel", "soil")
OUTLINES = ("disc", "ring", "square", "triangle", "star", "heart", "cross", "blob")

# Words of the objects, in label order 0..22; grounds follow as 23..28 in the label files.
OBJECTS = MATERIALS + tuple(f"{color} {pattern}" for pattern in PATTERNS for color in COLORS)
# Seen in pictures, never named by a caption: what is asked for at evaluation was never read in training.
HELD_OUT = ("blue checked", "red dotted", "green striped")
# Seen in the labeled scenes, but held out of the labels of the base classes: are they still found by their words?
NOVEL = OBJECTS[2::3]
MIN_VISIBLE = 30  # pixels; an object that shows less (cut off, covered) is not named
UNLABELED = 255  # the plain ground of some training scenes


@dataclass
class Scene:
    """A picture with its labels and caption.

    Attributes:
        image: RGB uint8 [H, W, 3].
        label: index of OBJECTS + GROUNDS, or UNLABELED, uint8 [H, W].
        caption: a text as on the web.
    """

    image: np.ndarray
    label: np.ndarray
    caption: str


# ---------------------------------------------------------------------------------------------- noise and color


@cache
def _noise_field(grain: float, size: int = 256) -> np.ndarray:
    """Draw smooth periodic noise in [-1, 1], float32 [size, size], with features of about `grain` pixels."""
    rng = np.random.default_rng(int(grain * 1000))
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(frequency[:, None], frequency[None, :]) * grain
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) * np.exp(-4 * radius**2)).real
    return np.clip(field / (2 * field.std()), -1, 1).astype(np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, grain: float) -> np.ndarray:
    """Cut a random part out of a noise field, float32 [height, width]."""
    field = _noise_field(grain)
    rows = (rng.integers(field.shape[0]) + np.arange(height)) % field.shape[0]
    columns = (rng.integers(field.shape[1]) + np.arange(width)) % field.shape[1]
    return field[rows[:, None], columns]


def _jitter(rng: np.random.Generator, color, spread: float = 18) -> np.ndarray:
    """Vary a color at random, float32 [3]."""
    return np.asarray(color, np.float32) + rng.normal(0, spread, 3).astype(np.float32)


def _blend(low, high, amount: np.ndarray) -> np.ndarray:
    """Mix two colors, each [3] or [H, W, 3]: `low` where `amount` [H, W] is 0, `high` where it is 1."""
    amount = np.clip(amount, 0, 1)[..., None]
    return low * (1 - amount) + high * amount


def _rotated_grid(rng, height: int, width: int, angle: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates in a frame turned by `angle` (radians; random if None) and shifted at random."""
    angle = rng.uniform(0, np.pi) if angle is None else angle
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u = np.cos(angle) * x + np.sin(angle) * y + rng.uniform(0, 64)
    v = -np.sin(angle) * x + np.cos(angle) * y + rng.uniform(0, 64)
    return u, v


# ---------------------------------------------------------------------------------------------- materials
# Each draws float32 [height, width, 3] (0..255, not clipped) with its own variation of scale, hue and direction.


def _brick(rng, h, w):
    u, v = _rotated_grid(rng, h, w, rng.choice([0, np.pi / 2]) + rng.normal(0, 0.1))
    row_height = rng.uniform(3.5, 5)
    row = np.floor(v / row_height)
    mortar = ((v % row_height) < 1) | (((u + (row % 2) * row_height) % (2 * row_height)) < 1)
    stone = _jitter(rng, (165, 75, 50)) + 18 * _noise(rng, h, w, 6.0)[..., None]
    return _blend(stone, _jitter(rng, (200, 190, 175)), mortar)


def _wood(rng, h, w):
    u, v = _rotated_grid(rng, h, w)
    grain = v + 3 * _noise(rng, h, w, 24.0)
    rings = 0.5 + 0.5 * np.sin(grain * 2 * np.pi / rng.uniform(3, 4.5)) + 0.3 * _noise(rng, h, w, 3.0)
    return _blend(_jitter(rng, (110, 65, 25)), _jitter(rng, (185, 130, 70)), rings)


def _leopard(rng, h, w):
    coat = _jitter(rng, (220, 165, 70)) + 15 * _noise(rng, h, w, 24.0)[..., None]
    return _blend(coat, _jitter(rng, (45, 28, 15), 8), (_noise(rng, h, w, 4.0) - 0.15) * 6)


def _zebra(rng, h, w):
    u, v = _rotated_grid(rng, h, w)
    phase = (v + 4 * _noise(rng, h, w, 24.0)) * 2 * np.pi / rng.uniform(4.5, 6.5)
    return _blend(_jitter(rng, (20, 20, 22), 8), _jitter(rng, (240, 240, 235), 8), 0.5 + 2 * np.sin(phase))


def _lava(rng, h, w):
    cracks = 1 - 2.5 * np.abs(_noise(rng, h, w, 5.0))
    crust = _jitter(rng, (45, 25, 25), 8) + 10 * _noise(rng, h, w, 3.0)[..., None]
    glow = _blend(_jitter(rng, (235, 70, 10)), np.array([255, 225, 90], np.float32), cracks * 1.5 - 0.6)
    return _blend(crust, glow, cracks)


def _marble(rng, h, w):
    u, v = _rotated_grid(rng, h, w)
    veins = np.abs(np.sin(v * np.pi / rng.uniform(6, 9) + 3 * _noise(rng, h, w, 8.0)))
    return _blend(_jitter(rng, (120, 125, 135), 10), _jitter(rng, (232, 230, 226), 8), veins * 2.2)


def _honeycomb(rng, h, w):
    u, v = _rotated_grid(rng, h, w)
    k = 2 * np.pi / rng.uniform(5, 6.5)
    cells = np.cos(k * u) + np.cos(k * (u / 2 + v * 0.866)) + np.cos(k * (u / 2 - v * 0.866))
    return _blend(_jitter(rng, (150, 95, 15), 10), _jitter(rng, (250, 190, 50), 12), (cells + 1.5) / 2.2)


def _denim(rng, h, w):
    u, v = _rotated_grid(rng, h, w, np.pi / 4 + rng.normal(0, 0.15))
    twill = 0.5 + 0.35 * np.sin(v * 2 * np.pi / rng.uniform(2.2, 2.8)) + 0.5 * _noise(rng, h, w, 3.0)
    return _blend(_jitter(rng, (45, 60, 100), 10), _jitter(rng, (120, 140, 180), 10), twill)


def _checked(rng, h, w):
    u, v = _rotated_grid(rng, h, w)
    cell = rng.uniform(3, 4.2)
    return (np.floor(u / cell) + np.floor(v / cell)) % 2


def _striped(rng, h, w):
    _, v = _rotated_grid(rng, h, w)
    return 0.5 + 3 * np.sin(v * 2 * np.pi / rng.uniform(4.5, 6.5))


def _dotted(rng, h, w):
    u, v = _rotated_grid(rng, h, w)
    period = rng.uniform(5, 6.5)
    radius = np.hypot(u % period - period / 2, v % period - period / 2)
    return 2 * (period * 0.33 - radius)


_COVERAGE = {"checked": _checked, "striped": _striped, "dotted": _dotted}  # [H, W], 1 where the second color is


def _colored_pattern(rng, h, w, color: str, pattern: str):
    paint = _jitter(rng, COLORS[color])
    other = _jitter(rng, (238, 236, 228), 8)
    if pattern == "dotted":  # light dots on the color; the others have no figure and ground
        paint, other = other, paint
    return _blend(other, paint, _COVERAGE[pattern](rng, h, w)) + 8 * _noise(rng, h, w, 12.0)[..., None]


_MATERIAL = {
    "brick": _brick,
    "wood": _wood,
    "leopard": _leopard,
    "zebra": _zebra,
    "lava": _lava,
    "marble": _marble,
    "honeycomb": _honeycomb,
    "denim": _denim,
}

# Grounds: base color, strength and grain of two layers of noise.
_GROUND = {
    "grass": ((75, 125, 45), (35, 3.0), (15, 24.0)),
    "sand": ((215, 190, 140), (10, 3.0), (14, 24.0)),
    "water": ((55, 130, 165), (12, 6.0), (22, 24.0)),
    "snow": ((235, 240, 248), (4, 3.0), (8, 24.0)),
    "gravel": ((135, 132, 128), (55, 4.0), (8, 12.0)),
    "soil": ((95, 68, 48), (24, 4.0), (14, 12.0)),
}


def _draw_object(rng, name: str, h: int, w: int) -> np.ndarray:
    if name in _MATERIAL:
        return _MATERIAL[name](rng, h, w)
    return _colored_pattern(rng, h, w, *name.split())


def _draw_ground(rng, name: str, h: int, w: int) -> np.ndarray:
    color, fine, coarse = _GROUND[name]
    base = _jitter(rng, color, 8)
    shade = fine[0] * _noise(rng, h, w, fine[1]) + coarse[0] * _noise(rng, h, w, coarse[1])
    return base + shade[..., None]


def _draw_outline(rng, name: str, h: int, w: int, center: tuple[float, float], radius: float) -> np.ndarray:
    """Draw the inside of an outline that is turned and stretched at random, bool [h, w]."""
    # Pixel coordinates in the outline's frame: 1 is about its radius
    angle = rng.uniform(0, 2 * np.pi)
    stretch = rng.uniform(0.8, 1.25)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    x, y = (x - center[1]) / radius, (y - center[0]) / radius
    u = (np.cos(angle) * x + np.sin(angle) * y) * stretch
    v = (-np.sin(angle) * x + np.cos(angle) * y) / stretch
    r, theta = np.hypot(u, v), np.arctan2(v, u)

    if name == "disc":
        return r < 0.95
    if name == "ring":
        return (r < 1.05) & (r > 0.45)
    if name == "square":
        return np.maximum(abs(u), abs(v)) < 0.82
    if name == "triangle":
        return np.maximum(v, abs(u) * 0.866 - v / 2) < 0.55
    if name == "star":
        return r < 0.85 + 0.3 * np.cos(5 * theta)
    if name == "heart":
        return u**2 + (v * 1.1 - 0.7 * np.sqrt(abs(u)) + 0.2) ** 2 < 0.75
    if name == "cross":
        return (np.minimum(abs(u), abs(v)) < 0.36) & (np.maximum(abs(u), abs(v)) < 1.05)

    # A blob
    waves = sum(rng.normal(0, 0.25 / k) * np.cos(k * theta + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5))
    return r < 0.85 + waves


# ---------------------------------------------------------------------------------------------- captions

_OPENINGS = ("", "", "a photo of ", "there is ", "look at ", "my picture of ", "here we see ", "close up of ")
_JOINTS = (" and ", " next to ", " with ", " beside ", " near ")
_PLACES = (" on the {}", " on {}", " over the {}", ", {} in the background", " lying on {}")


def _write_phrase(rng, name: str, outline: str) -> str:
    """Write a phrase for an object: 'a brick heart', 'the zebra patch', ...; half of them name the outline."""
    noun = outline if rng.random() < 0.5 else rng.choice(("thing", "shape", "piece", "patch"))
    return f"{rng.choice(('a', 'one', 'the', 'a small', 'a large'))} {name} {noun}"


def _write_caption(rng, things: list[tuple[str, str]], ground: str | None) -> str:
    """Write a caption as on the web: it names a part of what is seen, and never what is held out.

    Args:
        rng: source of all choices.
        things: name and outline of each object that is visible.
        ground: name of the ground; None where it is plain.
    """
    # Choose what is named
    nameable = [thing for thing in things if thing[0] not in HELD_OUT]
    named = [thing for thing in nameable if rng.random() < 0.8] or nameable[:1]

    # Name the objects, and perhaps the ground
    text = ""
    for i, thing in enumerate(named):
        if i > 0:
            text += str(rng.choice(_JOINTS))
        text += _write_phrase(rng, *thing)
    if ground and (not named or rng.random() < 0.4):
        place = str(rng.choice(_PLACES)).format(ground)
        text = text + place if named else ground

    return str(rng.choice(_OPENINGS)) + (text or "a plain picture")


# ---------------------------------------------------------------------------------------------- scenes


def draw_scene(seed: int, index: int, size: int = 48, plain: float = 0.0, objects: tuple[int, int] = (1, 2)) -> Scene:
    """Draw a scene; it depends on the arguments alone.

    Args:
        seed: number of the world.
        index: number of the scene in this world.
        size: height and width in pixels; objects keep their size in pixels, so a larger scene holds more.
        plain: probability of an untextured ground (label 255), for pre-training: CLIP must know blank surroundings,
            because the image-level loss shows it masked pictures.
        objects: fewest and most objects, both included.
    """
    rng = np.random.default_rng([seed, index])

    # Draw the ground
    ground = None if rng.random() < plain else str(rng.choice(GROUNDS))
    if ground is None:
        image = np.full((size, size, 3), rng.normal((124, 116, 104), 12), np.float32)  # about the mean color
        label = np.full((size, size), UNLABELED, np.uint8)
    else:
        image = _draw_ground(rng, ground, size, size)
        label = np.full((size, size), len(OBJECTS) + GROUNDS.index(ground), np.uint8)

    # Draw the objects, the later ones over the earlier ones
    num_objects = rng.integers(objects[0], objects[1] + 1)
    classes = rng.choice(len(OBJECTS), num_objects, replace=False)
    outlines = {k: _paint_object(rng, image, label, k) for k in classes}

    # Describe what is still to be seen
    visible = [(OBJECTS[k], outlines[k]) for k in classes if (label == k).sum() >= MIN_VISIBLE]
    image = image + rng.normal(0, 3, image.shape)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), label, _write_caption(rng, visible, ground))


def _paint_object(rng, image: np.ndarray, label: np.ndarray, k: int) -> str:
    """Paint an object of class `k` into image and label; return its outline's name."""
    # Place the outline
    size = len(image)
    outline = str(rng.choice(OUTLINES))
    center = rng.uniform(0.12 * size, 0.88 * size, 2)
    radius = rng.uniform(8, 15)
    inside = _draw_outline(rng, outline, size, size, center, radius)
    top, bottom = np.flatnonzero(inside.any(1))[[0, -1]]
    left, right = np.flatnonzero(inside.any(0))[[0, -1]]
    box = (slice(top, bottom + 1), slice(left, right + 1))

    # Fill it
    texture = _draw_object(rng, OBJECTS[k], bottom + 1 - top, right + 1 - left)
    texture = texture * rng.uniform(0.85, 1.1)  # light
    image[box][inside[box]] = texture[inside[box]]
    label[inside] = k
    return outline
