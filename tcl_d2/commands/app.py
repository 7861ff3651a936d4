"""Serve a web page: a picture and words in, masks out.

tcl-d2 app                      # the small world's model, http://127.0.0.1:7860
tcl-d2 app --model official     # the official tcl.pth
tcl-d2 app --method sclip       # begin with its CLIP alone; the page has all methods to choose from
"""

import argparse
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ..data.shapes import GROUNDS, OBJECTS, draw_scene
from ..segmentation import drawing
from ..utils.errors import one_message
from .model_options import add_model_options, read_model
from .page import Page
from .page_layout import build_page


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    add_model_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Serve the page until it is stopped."""
    with one_message():
        check_address(args.host, args.port)
        page = Page(read_model(args)())
        page.predictor(args.method)  # raises at once for one that cannot be built
    with TemporaryDirectory() as folder:
        blocks = build_page(page, example_scenes(Path(folder)), args.method)
        server = {"server_name": args.host, "server_port": args.port, "allowed_paths": [folder]}
        with one_message():
            blocks.launch(**server, max_file_size="10mb", show_error=True)


def check_address(host: str, port: int) -> None:
    """Check that the page can be served at an address; ValueError says what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"the page cannot be served at --host {host} --port {port} ({error}): give another port, such as "
            "--port 7861, or another host"
        ) from None


def example_scenes(folder: Path) -> list[list]:
    """Draw scenes of the small world; return the path of each, and the words for its contents."""
    rows, names = [], [*OBJECTS, *GROUNDS]
    for index in (18, 21, 16, 15):  # of 80 scenes, some that the model segments well
        scene = draw_scene(seed=7, index=index, size=96, objects=(4, 5))
        path = folder / f"scene_{index}.png"
        Image.fromarray(drawing.enlarge(scene.image, 384)).save(path)  # the model sees it at its own size again
        rows.append([str(path), [names[value] for value in np.unique(scene.label)]])
    return rows
