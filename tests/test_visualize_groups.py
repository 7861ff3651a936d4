"""tools/visualize_groups.py: pictures of a GroupViT's groups."""

import sys

import pytest
from PIL import Image

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import visualize_groups  # noqa: E402

SCENE = str(ROOT / "docs/shapes.png")


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["visualize_groups.py", *map(str, arguments)])
    visualize_groups.main()


def test_a_row_for_each_image(tmp_path, monkeypatch):
    """Image, groups of both stages and classes, side by side; the second image is not whole patches."""
    pytest.importorskip("transformers")
    Image.open(SCENE).convert("RGB").crop((0, 0, 100, 67)).save(tmp_path / "b.png")
    output = tmp_path / "groups.png"
    options = ["--opts", "MODEL.GROUPVIT.DEPTHS", "(1,1,1)", "MODEL.GROUPVIT.GROUPS", "(6,3)"]
    command = [SCENE, tmp_path / "b.png", "--classes", "brick, grass", "--output", output]
    run(monkeypatch, *command, "--config-file", "shapes/groupvit.yaml", *options)
    with Image.open(output) as picture:
        assert picture.width >= 4 * 490 and picture.height > 500


@pytest.mark.fault("visualize_groups.py: an output that cannot be written", "one message, before the model is built")
@pytest.mark.parametrize("output, part", [("/proc/x.png", "/proc/x.png cannot be written"), ("/tmp", "is a folder")])
def test_outputs_that_cannot_be_written(monkeypatch, output, part):
    with pytest.raises(SystemExit, match=f"error: .*{part}"):
        run(monkeypatch, SCENE, "--classes", "brick", "--output", output)


def test_models_without_groups_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, SCENE, "--classes", "brick", "--config-file", "shapes/trained.yaml")
    assert "shapes/trained.yaml' is a TCL, which has no groups" in str(stop.value)
