#!/usr/bin/env python
"""Ask the web page by many clients at once, each with a picture and words of its own; print a report.

The page has survived if each client got the masks of its own picture, exactly as the predictor alone makes them, or a
message, knew within seconds that it waits, and the memory of the server stays as it is.

    python dev/soak_page.py                              # 50 clients, five minutes
    python dev/soak_page.py --clients 5 --seconds 10
"""

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gradio_client import Client, handle_file
from gradio_client.utils import QueueError, Status
from PIL import Image
from soak_folder import resident_memory
from tabulate import tabulate

from tcl_d2.data.shapes import GROUNDS, OBJECTS, draw_scene
from tcl_d2.predictor import TCLPredictor
from tcl_d2.segmentation import drawing

ROOT = Path(__file__).resolve().parent.parent
USER = ("soak", "a pass:word")
PATIENCE = 30  # seconds until a client must know that it waits; it shares the machine with the server
LONGEST = 120  # seconds that it waits
GROWTH = 0.05  # of the server's memory, from when it keeps a result of each client, in fifths of the rest of the run


@contextmanager
def served_page(folder: Path, queue_size: int) -> Iterator[tuple[int, str]]:
    """Serve the page to USER, and give its process and its address; its log is in the folder."""
    users = folder / "users.txt"
    users.touch(mode=0o600)
    users.write_text(":".join(USER) + "\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tcl_d2", "app", "--port", port, "--auth", users, "--queue-size", queue_size]
    env = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with (folder / "log.txt").open("w") as log:
        page = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        next(line for line in page.stdout if str(port) in line)  # it is served now
        yield page.pid, f"http://127.0.0.1:{port}"
    finally:
        page.terminate()
        page.wait()


class Visitor:
    """A client with a picture, its words, and the masks that the predictor alone makes of them.

    Attributes:
        waits: seconds of each answer.
        told: seconds until it knew that its request waits or is computed, or was answered.
        outcomes: number of answers and of messages.
        problems: what should not be.
    """

    def __init__(self, number: int, folder: Path, predictor: TCLPredictor, address: str):
        scene, names = draw_scene(seed=7, index=number, size=96, objects=(3, 4)), [*OBJECTS, *GROUNDS]
        self.path, self.words = folder / f"{number}.png", [names[value] for value in np.unique(scene.label)]
        Image.fromarray(scene.image).save(self.path)
        labels = drawing.enlarge(predictor(scene.image, self.words).labels)
        self.masks = {name: labels == index for index, name in enumerate(self.words) if (labels == index).any()}
        downloads = folder / str(number)
        downloads.mkdir()
        options = {"download_files": downloads, "httpx_kwargs": {"timeout": PATIENCE}}
        self.client = Client(address, auth=USER, verbose=False, **options)
        self.waits: list[float] = []
        self.told: list[float] = []
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []

    def ask_until(self, end: float) -> None:
        """Ask again and again."""
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                self.check(self._ask())
                self.waits.append(time.monotonic() - start)
                self.outcomes["answers"] += 1
            except QueueError as error:
                self.outcomes[f"refused: {error}"] += 1
                time.sleep(1)
            except Exception as error:
                self.problems.append(f"{type(error).__name__}: {error}")

    def _ask(self) -> dict:
        """Return the page's picture with the masks in it."""
        start, job = time.monotonic(), self.client.submit(handle_file(self.path), self.words, api_name="/run")
        while not job.done() and job.status().code in (Status.STARTING, Status.JOINING_QUEUE):
            time.sleep(0.1)
        self.told.append(time.monotonic() - start)
        return job.result(LONGEST)[0]["value"]

    def check(self, answer: dict) -> None:
        """Compare an answer with the masks that there should be."""
        masks = {part["label"]: Path(part["image"]) for part in answer["annotations"]}
        if masks.keys() != self.masks.keys():
            self.problems.append(f"{[*masks]} in place of {[*self.masks]}")
        for name, path in masks.items():
            alpha = np.asarray(Image.open(path).convert("RGBA"))[..., 3]
            if not np.array_equal(alpha > 0, self.masks.get(name)):
                self.problems.append(f"other pixels of {name}")


def watch(process: int, address: str, end: float, visitors: Sequence[Visitor]) -> tuple[list[float], list[float]]:
    """Return the server's memory in MB once each visitor was answered, and the seconds of its health address."""
    megabytes, seconds = [], []
    while time.monotonic() < end:
        start = time.monotonic()
        urllib.request.urlopen(f"{address}/health", timeout=30).read()
        seconds.append(time.monotonic() - start)
        if all(visitor.waits for visitor in visitors):
            megabytes.append(resident_memory(process))
        time.sleep(1)
    return megabytes, seconds


def soak(num_clients: int, seconds: float, queue_size: int) -> bool:
    """Serve and ask the page, print the report, and return whether all is as it should be."""
    with TemporaryDirectory() as temporary, served_page(Path(temporary), queue_size) as (process, address):
        folder, predictor = Path(temporary), TCLPredictor("shapes/trained.yaml")
        visitors = [Visitor(number, folder, predictor, address) for number in range(num_clients)]
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(num_clients) as pool:
            runs = [pool.submit(visitor.ask_until, end) for visitor in visitors]
            megabytes, healths = watch(process, address, end, visitors)
            for run in runs:
                run.result()

    # Print the report
    waits = [wait for visitor in visitors for wait in visitor.waits]
    told = [wait for visitor in visitors for wait in visitor.told]
    fifths = [part.mean() for part in np.array_split(megabytes, 5)]  # NaN, and so no success, if some were not answered
    problems = Counter(problem for visitor in visitors for problem in visitor.problems)
    silent = sum(not visitor.waits for visitor in visitors)
    table = sorted(sum((visitor.outcomes for visitor in visitors), Counter()).items())
    table += [("clients without an answer", silent), ("problems", sum(problems.values())), *problems.most_common(5)]
    table += [("wait, median (s)", np.median(waits)), ("95th percentile", np.quantile(waits, 0.95))]
    table += [("longest", max(waits)), ("until it knew that it waits, 95th percentile (s)", np.quantile(told, 0.95))]
    table += [("longest", max(told)), ("health address, 95th percentile (s)", np.quantile(healths, 0.95))]
    table += [("longest", max(healths))]
    table += [
        (f"memory, fifth {number} once all were answered (MB)", mean) for number, mean in enumerate(fifths, start=1)
    ]
    print(tabulate(table, ("what", f"{num_clients} clients, {seconds:.0f} s"), "pipe", floatfmt=".2f"))
    return not problems and not silent and max(told) < PATIENCE and fifths[-1] < (1 + GROWTH) * fifths[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument(
        "--queue-size", type=int, default=40, help="of the page: with fewer than there are clients, some are refused"
    )
    args = parser.parse_args()
    if not soak(args.clients, args.seconds, args.queue_size):
        sys.exit("error: the page did not answer all as it should; see the table")


if __name__ == "__main__":
    main()
