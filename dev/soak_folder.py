#!/usr/bin/env python
"""Segment a folder of very many small images, some of them broken, while it changes and the run is killed; report.

The folder has survived if every good image has its results once, every other one is named, nothing is half-written, and
the memory of the process stays as it is.

    python dev/soak_folder.py                  # 100,000 images, 20 minutes on an idle core
    python dev/soak_folder.py --images 2000    # a minute
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tabulate import tabulate

from tcl_d2.commands.result_folder import SETTINGS
from tcl_d2.data.shapes import draw_scene

ROOT = Path(__file__).resolve().parent.parent
SIDE = 16  # pixels
IMAGES_PER_FOLDER = 1000
FAULTS = ("empty", "cut", "no image", "a link to nothing")
# The small world's model, at the images' own size and without PAMR
OPTIONS = ["INPUT.MIN_SIZE_TEST", 0, "TEST.ZERO_SHOT.REFINE", "none", "TEST.ZERO_SHOT.IMS_PER_BATCH", 64]
Run = dict[str, object]


class Photos:
    """The folder of images.

    Attributes:
        broken: files that cannot be read, by what is wrong with them.
        removed: files that were taken away during a run.
        added: files that came during a run.
    """

    def __init__(self, folder: Path, count: int, share_broken: float, rng: random.Random):
        """Draw the images.

        Args:
            folder: where to.
            count: how many.
            share_broken: share of those that are broken.
            rng: chooses them.
        """
        self.folder = folder
        self.count = count
        self.rng = rng
        self.scenes = [draw_scene(seed=7, index=index, size=SIDE).image for index in range(32)]
        self.broken: dict[Path, str] = {}
        self.removed: set[Path] = set()
        self.added: set[Path] = set()
        for index in range(count):
            path = self._path(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._draw(path, index)
            if rng.random() < share_broken:
                self.broken[path] = rng.choice(FAULTS)
                self._break(path, self.broken[path])

    def _path(self, index: int) -> Path:
        """Return the path of an image; each name is in two folders."""
        return self.folder / f"{index // IMAGES_PER_FOLDER:04d}" / f"{index % (2 * IMAGES_PER_FOLDER):04d}.jpg"

    def _draw(self, path: Path, index: int) -> None:
        scene = self.scenes[index % len(self.scenes)]
        Image.fromarray(np.roll(scene, (index // 32 % SIDE, index // 32 // SIDE), (0, 1))).save(path, quality=90)

    def _break(self, path: Path, fault: str) -> None:
        content = path.read_bytes()
        path.unlink()
        if fault == "a link to nothing":
            path.symlink_to(path.with_suffix(".none"))
        else:
            half = content[: len(content) // 2]
            path.write_bytes({"empty": b"", "cut": half, "no image": b"<html>" + half}[fault])

    def results_of(self, paths: Iterable[Path]) -> set[str]:
        """Return the names of the results of images, below the folder of the results."""
        names = [path.relative_to(self.folder).with_suffix("") for path in paths]
        return {f"{name}{ending}" for name in names for ending in (".json", "_labels.png")}

    def change(self, number: int) -> None:
        """Take so many images away, and add as many, at random places."""
        for _ in range(number):
            path = self._path(self.rng.randrange(self.count))
            if path not in self.broken:
                path.unlink(missing_ok=True)
                self.removed.add(path)
            new = path.with_name(f"new_{len(self.added)}.jpg")
            self._draw(new, len(self.added))
            self.added.add(new)


def segment(photos: Photos, output: Path, log: Path, kill_at: float | None, changes: int) -> Run:
    """Run the command once.

    Args:
        photos: the images.
        output: folder for the results.
        log: file for what the command prints.
        kill_at: share of the images after which it is killed; None to let it end.
        changes: how many images to take away and to add while it runs.

    Returns:
        what came of it: exit code, seconds, resident memory in MB over time, and the images named as done and left out.
    """
    command = [sys.executable, "demo/demo.py", photos.folder, "--classes", "brick, lava, grass", "--background"]
    command += ["--output", output, "--no-overlay", "--resume", "--opts", *OPTIONS]
    start = time.monotonic()
    with log.open("w") as file:
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}  # a line is in the log as soon as the image is done
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)

    # Watch it
    megabytes, changed = [], False
    while process.poll() is None:
        time.sleep(1)
        num_done = sum(1 for _ in read_lines(log, " -> "))
        if num_done:
            megabytes.append(resident_memory(process.pid) or megabytes[-1])  # a process that has ended holds none
        if num_done > 0.1 * photos.count and changes and not changed:
            photos.change(changes)
            changed = True
        if kill_at is not None and num_done > kill_at * photos.count:
            process.kill()
            process.wait()

    return {
        "exit code": process.returncode,
        "seconds": time.monotonic() - start,
        "megabytes": megabytes,
        "done": Counter(line.partition(" -> ")[0] for line in read_lines(log, " -> ")),
        "left out": list(read_lines(log, "left out: ")),
    }


def read_lines(log: Path, part: str) -> Iterator[str]:
    """Yield the lines with a part, without the bar that is drawn before them."""
    with log.open(errors="replace") as file:
        for line in file:
            if part in line:
                yield re.sub(r"^.*\r", "", line.rstrip("\n")).strip()


def resident_memory(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def check(photos: Photos, output: Path, runs: list[Run]) -> dict[str, int]:
    """Compare what there is with what there should be, and return the numbers of what is wrong."""
    images = {path for path in photos.folder.rglob("*.jpg") if path.is_file()}
    done = sum((run["done"] for run in runs), Counter())
    named = {Path(re.search(r"(/.+?\.jpg)", line)[1]) for line in runs[-1]["left out"]}

    # The results that there should be, and those that there are
    good = images - photos.broken.keys()
    expected = photos.results_of(good)
    allowed = photos.results_of(images | photos.removed) | {SETTINGS}
    there = {str(path.relative_to(output)) for path in output.rglob("[!.]*") if path.is_file()}
    return {
        "good images without results": len(expected - there),
        "images that were segmented twice": sum(count > 1 for count in done.values()),
        "broken images that were not named": len(photos.broken.keys() - named),
        "good images that were left out": len(named & good),
        "files that are no results": len(there - allowed),
        "results that are not whole": sum(not is_whole(output / name) for name in expected & there),
    }


def is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text())["height"] == SIDE
        with Image.open(path) as image:
            image.load()
            return image.size == (SIDE, SIDE)
    except (OSError, ValueError, KeyError):
        return False


def growth(megabytes: list[float]) -> str:
    """Describe the memory of a run: at its first tenth and at its last, the mean of a tenth of the samples."""
    tenth = max(1, len(megabytes) // 10)
    first, last = (np.mean(part) for part in (megabytes[tenth : 2 * tenth], megabytes[-tenth:]))
    return f"{first:.0f} MB after a tenth, {last:.0f} MB in the last tenth ({100 * (last / first - 1):+.1f} %)"


def soak(count: int, share_broken: float, seed: int) -> bool:
    """Segment the folder in two runs, of which the first is killed; print the report, return whether all is right."""
    rng = random.Random(seed)
    with TemporaryDirectory() as temporary:
        photos = Photos(Path(temporary, "photos"), count, share_broken, rng)
        output, log = Path(temporary, "output"), Path(temporary, "log.txt")
        print(f"{count} images are drawn, {len(photos.broken)} of them broken", flush=True)

        runs = []
        for kill_at in (rng.uniform(0.3, 0.7), None):
            changes = 0 if runs else count // 1000
            runs.append(segment(photos, output, log, kill_at, changes))
            print(f"run {len(runs)}: {sum(runs[-1]['done'].values())} images segmented", flush=True)
        wrong = check(photos, output, runs)

    # Print the report
    table = [
        ("images", count),
        *((f"broken: {name}", number) for name, number in Counter(photos.broken.values()).items()),
    ]
    table += [("taken away while it ran", len(photos.removed)), ("added while it ran", len(photos.added))]
    for number, run in enumerate(runs, start=1):
        num_done, seconds = sum(run["done"].values()), run["seconds"]
        how = f"exit code {run['exit code']}" + (", killed" if run["exit code"] < 0 else "")
        table.append((f"run {number}: {how}", f"{num_done} segmented, {num_done / seconds:.0f} a second"))
        table.append((f"run {number}: resident memory", growth(run["megabytes"])))
    print(tabulate([*table, *wrong.items()], ("what", "count"), "pipe"))
    return not any(wrong.values()) and runs[-1]["exit code"] == 1  # for the broken ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--broken", type=float, default=0.005, help="share of the images that are broken")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not soak(args.images, args.broken, args.seed):
        sys.exit("error: the folder did not survive; see the table")


if __name__ == "__main__":
    main()
