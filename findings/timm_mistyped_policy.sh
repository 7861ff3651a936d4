#!/usr/bin/env bash
# timm 1.0.31: rand_augment_transform refuses a section that it does not know ("strong1"), but takes two kinds of mistyped ones in silence:
# a set of transforms that there is not ("tweigths" for "tweights") becomes the default set, and a key without its number ("mstd", "inc")
# is left out. A training then runs with another augmentation than its configuration says. Check the sections before.
# Seen: "tweights" has weights for the choice, "tweigths" none; magnitudes of "rand-m9-mstd" have no deviation; "strong1" AssertionError.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q timm==1.0.31 torch==2.14.1 torchvision numpy
"$folder/env/bin/python" - <<'PYTHON'
from timm.data.auto_augment import rand_augment_transform

weighted = rand_augment_transform("rand-m9-tweights", {})
mistyped = rand_augment_transform("rand-m9-tweigths", {})
deviations = [rand_augment_transform(f"rand-m9-{part}", {}).ops[0].magnitude_std for part in ("mstd0.5", "mstd")]
print(weighted.choice_weights is not None, mistyped.choice_weights is not None, deviations)
assert weighted.choice_weights is not None
assert mistyped.choice_weights is None and deviations == [0.5, 0], "timm refuses or reads a mistyped section now"
try:
    rand_augment_transform("rand-m9-strong1", {})
except AssertionError as error:
    print("strong1:", error)
else:
    raise SystemExit("timm takes unknown sections now")
PYTHON
