"""A command `tcl-d2 prepare NAME` of a release."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...data import preparation
from ...data.dataset_files import datasets_root
from ...utils.downloads import PathManager
from ...utils.errors import named, one_message
from ...utils.files import check_shared_memory
from ...utils.locks import locked_folder
from ..options.prepare.releases import Release


@dataclass(frozen=True)
class Preparation:
    """Brings a release into place, and checks the result."""

    release: Release
    prepare: Callable[[argparse.Namespace], None]

    def main(self, args: argparse.Namespace) -> None:
        """Prepare and check the data as `run` does, and exit with 1 if any are wrong."""
        with one_message(OSError, ValueError):
            sys.exit(0 if self.run(args) else 1)

    def run(self, args: argparse.Namespace) -> bool:
        """Prepare the data, unless --check is given, check them, and return whether they are right.

        Raises:
            OSError, ValueError: files are missing or broken; says what to do.
        """
        root = datasets_root()
        args.source = args.source or [root / name for name in self.release.downloads if (root / name).exists()]

        try:
            check_shared_memory(preparation.SHARED_MEMORY)
            if not args.check:
                with locked_folder(root, f"preparation of {args.benchmarks[0]}", "DETECTRON2_DATASETS"):
                    if args.download and not args.source:
                        args.source = [self._download()]
                    self.prepare(args)
            return preparation.check(args.benchmarks, args.processes)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}\nPut {' and '.join(self.release.downloads)} into {root} (DETECTRON2_DATASETS), or name them "
                f"with --source. They are to be had at {self.release.page}"
            ) from None

    def _download(self) -> Path:
        with named("--source"):
            return Path(PathManager.get_local_path(self.release.address))
