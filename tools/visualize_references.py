#!/usr/bin/env python
"""Show of which images ReCo makes the reference embeddings of words: a row a word, with a frame around each seed.

python tools/visualize_references.py "brick, grass" --config-file configs/shapes/reco.yaml
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tcl_d2.modeling import ReCo
from tcl_d2.predictor import TCLPredictor
from tcl_d2.segmentation.drawing import draw_text, enlarge, save_picture
from tcl_d2.utils.errors import one_message
from tcl_d2.utils.files import check_output
from tcl_d2.words.vocabulary import check_words

CONFIG = "shapes/reco.yaml"
SIDE = 96  # of an image in the picture at least, in pixels
GAP = 4  # white pixels between images


def draw_image(image: np.ndarray, box: list[int]) -> np.ndarray:
    """Draw an image, RGB uint8 [S, S, 3], with a frame around a box x0, y0, x1, y1."""
    picture = enlarge(image, SIDE)
    factor = len(picture) // len(image)
    x0, y0, x1, y1 = (factor * side for side in box)

    # White between two black lines is seen on any color
    picture = Image.fromarray(picture)
    draw = ImageDraw.Draw(picture)
    for margin, color in ((1, "black"), (0, "white"), (-1, "black")):
        draw.rectangle((x0 - margin, y0 - margin, x1 - 1 + margin, y1 - 1 + margin), outline=color)
    return np.pad(np.asarray(picture), ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def draw_word(model: ReCo, word: str, count: int) -> np.ndarray:
    """Draw a word, and beside it the images that are most similar to it; white where there are fewer."""
    (text,) = model.embed_vocabulary([word], model.templates)
    images, boxes = model.retrieve(text)
    panels = [
        draw_image(image.permute(1, 2, 0).cpu().numpy(), box) for image, box in zip(images[:count], boxes.tolist())
    ]

    height = model.image_size * -(-SIDE // model.image_size) + GAP
    blank = np.full((height, height, 3), 255, np.uint8)
    title = draw_text(word, height, 120, size=16)
    return np.concatenate([title, *panels, *[blank] * (count - len(panels))], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", help='words with commas: "brick, grass"')
    parser.add_argument("--config-file", default=CONFIG, help="a config of a ReCo; default: %(default)s")
    parser.add_argument("--count", type=int, default=8, help="images of each word; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("output/references.png"), help="default: %(default)s")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config's, last")
    args = parser.parse_args()

    with one_message():
        check_output(args.output)
        words = check_words([word.strip() for word in args.words.split(",")])
        if args.count < 1:
            raise ValueError(f"--count is {args.count}; expected at least 1 image")
        model = TCLPredictor(args.config_file, *args.opts).model
        if not isinstance(model, ReCo):
            raise ValueError(
                f"--config-file {args.config_file} is of a {type(model).__name__}, which retrieves no images; expected "
                "a ReCo's, such as shapes/reco.yaml"
            )
        picture = np.concatenate([draw_word(model, word, args.count) for word in words])
        save_picture(picture, args.output)
    print(args.output)


if __name__ == "__main__":
    main()
