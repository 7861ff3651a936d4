#!/usr/bin/env bash
# torch 2.14.1, on a CPU with AMX for bfloat16: a convolution whose stride is its kernel (patch embedding), on an image as wide as one patch
# and several patches high, gives wrong numbers in bfloat16, other ones on each call. An image of two columns is right, and so is fp32.
# Computed in fp32 the column is right. On a CPU without AMX nothing is wrong, and this script says that it cannot tell.
# Seen: largest error of 5 calls, NaN counted as inf: 5e37 or inf with one column, 0.015 with two, where outputs are about 1.
set -euo pipefail
grep -qw amx_bf16 /proc/cpuinfo || { echo "this CPU has no AMX for bfloat16: nothing to see"; exit 0; }
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 numpy
"$folder/env/bin/python" - <<'PYTHON'
import torch

torch.manual_seed(0)
patches = torch.nn.Conv2d(3, 128, 8, stride=8, bias=False)
torch.nn.init.normal_(patches.weight, std=(3 * 8 * 8) ** -0.5)


@torch.no_grad()
def largest_error(columns: int) -> float:
    image = torch.randn(8, 3, 6 * 8, columns * 8)
    expected = patches(image)
    errors = []
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((patches(image).float() - expected).abs().nan_to_num(torch.inf).max())
    return float(max(errors))


one, two = largest_error(1), largest_error(2)
print(f"one column {one:.3g}, two columns {two:.3g}")
assert two < 0.05
assert one > 0.2, "a single column of patches is right in bfloat16 now"
PYTHON
