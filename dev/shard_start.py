#!/usr/bin/env python
"""Measure what it costs a loader process to begin in the middle of a shard: reading the headers before.

python dev/shard_start.py
"""

import os
import tarfile
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import machine, seconds

from tcl_d2.data.pairs.shard_samples import read_samples
from tcl_d2.data.pairs.shards import open_shard

PAIRS, IMAGE_BYTES = 10_000, 30_000


def write_shard(path: Path) -> None:
    """Write a shard as img2dataset does: an image, a caption and facts of each pair."""
    files = {"jpg": os.urandom(IMAGE_BYTES), "txt": b"a caption", "json": b"{}" * 300}
    with tarfile.open(path, "w") as tar:
        for number in range(PAIRS):
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))


def read(shard: str, first: int) -> None:
    """Read a shard's samples from one on."""
    with open_shard(shard) as tar:
        for _ in read_samples(tar, shard, first):
            pass


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        shard = Path(folder, "00000.tar")
        write_shard(shard)
        size = shard.stat().st_size / 1e6
        whole, last = seconds(lambda: read(str(shard), 0), lambda: read(str(shard), PAIRS - 10), repeat=3)
    print(f"{machine()}: of a shard of {PAIRS:,} pairs ({size:.0f} MB),")
    print(f"{last:.2f} s for the last 10 pairs, {whole:.2f} s for all")
