"""The samples of a webdataset shard: successive files of a tar whose names are equal up to the first dot."""

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, BinaryIO, cast

from ...utils.images import IMAGE_SUFFIXES, BrokenSample, is_leftover

# What a tar that is broken raises when it is read
BROKEN_TAR = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
_BROKEN_HEADER = (  # which typeshed does not know
    tarfile.InvalidHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    tarfile.TruncatedHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
)
SORT_ADVICE = "a sample's files must follow one another: if they lie apart, write the shard with tar --sort=name"
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # not of hidden files


@dataclass
class ShardSample:
    """The files of a sample.

    Attributes:
        name: shard and sample, for messages.
        files: content by the name's lower-case rest after the first dot.
        repeated: names that come twice.
    """

    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)

    def has_image(self) -> bool:
        """Return whether a file has the name of an image."""
        return any(f".{rest}".endswith(IMAGE_SUFFIXES) for rest in self.files)

    def image(self) -> bytes:
        """Return the file of the image; BrokenSample unless there is exactly one."""
        if self.repeated:
            raise BrokenSample("a file name twice", self.name, ", ".join(sorted(self.repeated)))
        image = self._only_file(IMAGE_SUFFIXES, "image")
        if not image:
            raise BrokenSample("no image", self.name, "the file is empty")
        return image

    def to_pair(self) -> dict:
        """Convert to a mapper's input; BrokenSample unless there is exactly one image and one caption."""
        image, caption = self.image(), self._only_file((".txt",), "caption")
        return {"image_bytes": image, "captions": [caption], "key": self.name}

    def _only_file(self, suffixes: tuple[str, ...], content: str) -> bytes:
        """Return the file with one of these suffixes.

        The file `my.photo.png` has the key `my` and the rest `photo.png`. A rest that is a suffix wins over one that
        ends in it.
        """
        exact = [suffix[1:] for suffix in suffixes if suffix[1:] in self.files]
        fitting = exact[:1] or [rest for rest in self.files if f".{rest}".endswith(suffixes)]
        if not fitting:
            raise BrokenSample(f"no {content}", self.name, SORT_ADVICE)
        if len(fitting) > 1:
            raise BrokenSample(f"several {content}s", self.name, ", ".join(fitting))
        return self.files[fitting[0]]


class StrictTarInfo(tarfile.TarInfo):
    """A header that must be whole: tarfile itself takes a broken one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except _BROKEN_HEADER as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from None


def open_tar(stream: BinaryIO, is_file: bool) -> tarfile.TarFile:
    """Open a shard; in a file on this disk, passed-over members are not read."""
    return tarfile.open(fileobj=stream, mode="r:*" if is_file else "r|*", tarinfo=StrictTarInfo)


def read_samples(tar: tarfile.TarFile, shard: str, first: int = 0, last: int | None = None) -> Iterator[ShardSample]:
    """Yield the samples of a shard that is at its beginning, without the `first` ones, up to number `last`.

    Samples without an image are yielded too, but not counted. After BROKEN_TAR, an unfinished pair is dropped.
    """
    number = 0
    for key, members in groupby(_named_files(tar), lambda member: _split(member)[0]):
        # Read the sample
        sample = ShardSample(f"{shard}/{key}")
        try:
            for member in members:
                rest = _split(member)[1].lower()
                if rest in sample.files:
                    sample.repeated.add(member.name)
                sample.files[rest] = cast(IO[bytes], tar.extractfile(member)).read() if number >= first else b""
        except BROKEN_TAR:
            with suppress(BrokenSample):  # such a sample may lack files
                if number >= first and sample.to_pair():
                    yield sample
            raise

        # Count it
        if number >= first:
            yield sample
        number += sample.has_image()
        if number == last:
            return


def iterate_headers(tar: tarfile.TarFile) -> Iterator[bool]:
    """Yield whether each sample of a shard has an image, without reading it; BROKEN_TAR as read_samples."""
    for _, members in groupby(_named_files(tar), lambda member: _split(member)[0]):
        yield any([member.name.lower().endswith(IMAGE_SUFFIXES) for member in members])


def _named_files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        vars(tar)["members"] = []  # tarfile would keep every header
        if member.isreg() and _NAME.fullmatch(member.name) and not is_leftover(member.name):
            yield member


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    match = cast(re.Match, _NAME.fullmatch(member.name))
    return match[1], match[2]
