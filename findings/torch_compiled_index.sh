#!/usr/bin/env bash
# torch 2.14.1: torch.compile takes values[:, index] of a transposed tensor and a transposed index to be contiguous, which they are not
# when the graph runs: what follows as a view (flatten, or a matrix product) ends in "view size is not compatible", where the same
# function runs without compiling, and with the backend "eager". values.index_select(1, index.flatten()) is right in all of them.
# Seen: eager backend equal, aot_eager RuntimeError; index_select equal under aot_eager.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 numpy
"$folder/env/bin/python" - <<'PYTHON'
import torch


def gather(values, index):
    return values[:, index].flatten(1)


def select(values, index):
    return values.index_select(1, index.flatten()).flatten(1)


values = torch.rand(2, 4, 117).transpose(1, 2)
index = torch.randint(0, 117, (24, 117)).T
expected = gather(values, index)
assert torch.equal(torch.compile(gather, backend="eager")(values, index), expected)
assert torch.equal(torch.compile(select, backend="aot_eager")(values, index), expected)
torch._dynamo.reset()
try:
    torch.compile(gather, backend="aot_eager")(values, index)
except RuntimeError as error:
    print(error)
    assert "view size is not compatible" in str(error)
else:
    raise SystemExit("torch.compile indexes a transposed tensor rightly now")
PYTHON
