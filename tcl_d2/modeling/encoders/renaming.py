"""Names of weights in a release, and those of the library that its model is built on."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Names = Sequence[tuple[str, str]]  # # is a number, * the rest, ? is q, k and v, which are one weight in the release


def rename_weights(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Rename weights by pairs of a release's name and ours, of which the first that fits counts; others stay."""
    renamed = {}
    for key, value in state.items():
        name = _rename(key, names)
        if "?" in name:
            renamed |= {name.replace("?", part): chunk for part, chunk in zip("qkv", value.chunk(3))}
        else:
            renamed[name] = value
    return renamed


def _rename(key: str, names: Names) -> str:
    for theirs, ours in names:
        pattern = theirs.replace(".", r"\.").replace("#", r"(\d+)").replace("*", "(.+)")
        if match := re.fullmatch(pattern, key):
            parts = iter(match.groups())
            return re.sub("[#*]", lambda _, parts=parts: next(parts), ours)
    return key
