"""OUTPUT_DIR: it is kept to one run of each purpose, and cleared of what killed writers left."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from detectron2.utils import comm

from ..utils.files import remove_unfinished
from ..utils.locks import locked_folder


@contextmanager
def output_folder(path: str, purpose: str) -> Iterator[None]:
    """Make OUTPUT_DIR, and keep other runs of the same purpose out of it until the block ends.

    The main process has the lock; the others wait until it has it.

    Args:
        path: OUTPUT_DIR.
        purpose: "training" or "evaluation"; one of each may share a folder.

    Raises:
        ValueError: it is no folder that can be written, or another run has it.
    """
    if not path:
        raise ValueError("OUTPUT_DIR is empty: give a folder for logs, checkpoints and results")

    is_main = comm.is_main_process()
    with locked_folder(path, purpose, "OUTPUT_DIR") if is_main else nullcontext():
        for folder in Path(path).glob("inference/**/") if is_main else ():
            remove_unfinished(folder)
        comm.synchronize()
        yield
