"""Serve the web page: the model, its page, and scenes to begin with."""

import argparse
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ..data.shapes import GROUNDS, OBJECTS, draw_scene
from ..segmentation import drawing
from ..utils.errors import expect, named, one_message
from .model_options import read_model
from .page import Page
from .page_layout import build_page
from .page_server import read_users, serve


def main(args: argparse.Namespace) -> None:
    """Serve the page until it is stopped."""
    with one_message():
        check_address(args.host, args.port)
        expect(1 <= args.max_size <= 100, "--max-size", args.max_size, "1 to 100 megapixels")
        expect(args.queue_size >= 1, "--queue-size", args.queue_size, "at least 1")
        with named("--auth"):
            users = read_users(Path(args.auth)) if args.auth else None
        page = Page(read_model(args)(), args.max_size)
        page.predictor(args.method)  # raises at once for one that cannot be built
    with TemporaryDirectory() as folder, TemporaryDirectory() as uploads:
        os.environ.setdefault("GRADIO_TEMP_DIR", uploads)  # else one for all users of this machine, /tmp/gradio
        blocks = build_page(page, example_scenes(Path(folder)), args.method)
        server = {"server_name": args.host, "server_port": args.port, "auth": users, "allowed_paths": [folder]}
        with one_message():
            serve(blocks, page, args.queue_size, args.max_size, **server)


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
