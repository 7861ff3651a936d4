"""The package's layers: imports run down, so that any part can be used without what lies above it; and their map."""

import ast
import re

from tests.conftest import ROOT

LAYERS = (  # from the bottom; each may import what stands before it
    "version",
    "utils",
    "runs",
    "assets",
    "config",
    "words",
    "segmentation",
    "deploy",
    "modeling",
    "data",
    "checkpoint",
    "model_zoo",
    "evaluation",
    "predictor",
    "ray",
    "export",
    "engine",
    "commands",
    "__main__",
    "registration",
    "__init__",
)
METHODS = {"tcl", "dense_clip", "groupvit", "reco", "talk2dino", "tips"}  # in modeling


def imported_parts(path, package: str = "tcl_d2") -> set[str]:
    """Return the parts of a package that a module of it imports: the first names below."""
    folders = path.relative_to(ROOT).parts[:-1]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(folders[: len(folders) - node.level + 1])
            targets = [node.module] if node.module else [alias.name for alias in node.names]
            names += [".".join([*base, name]) for name in targets]
    return {name.removeprefix(f"{package}.").split(".")[0] for name in names if name.startswith(f"{package}.")}


def test_imports_run_down():
    upwards = []
    for path in (ROOT / "tcl_d2").rglob("*.py"):
        layer = path.relative_to(ROOT / "tcl_d2").with_suffix("").parts[0]
        for part in imported_parts(path) - {layer}:
            if LAYERS.index(part) > LAYERS.index(layer):
                upwards.append(f"{path.relative_to(ROOT)} imports {part}")
    assert not upwards


def test_methods_are_whole_in_their_folders():
    """They use no other method but the dense heads, and what they share uses none."""
    folder, wrong = ROOT / "tcl_d2/modeling", []
    outside = {folder / f"{name}.py" for name in ("__init__", "checks", "losses", "mask_statistics")}
    for path in set(folder.rglob("*.py")) - outside:
        part = path.relative_to(folder).with_suffix("").parts[0]
        allowed = {part, "dense_clip"} if part in METHODS else set()
        others = METHODS & imported_parts(path, "tcl_d2.modeling") - allowed
        wrong += [f"{path.relative_to(ROOT)} imports {other}" for other in others]
    assert not wrong


def test_the_map_has_every_file_of_the_large_parts():
    """docs/architecture.md names no file that is gone, and leaves out none of the model and of the data."""
    named = set(re.findall(r"`(?:tcl_d2/)?(\w+(?:\.py|/))`", (ROOT / "docs/architecture.md").read_text()))
    existing = {path.name for path in (ROOT / "tcl_d2").rglob("*.py")}
    existing |= {f"{path.name}/" for path in (ROOT / "tcl_d2").rglob("*") if path.is_dir()}
    assert named <= existing | {"demo/", "dev/", "tools/", "datasets/"}

    parts = [path for part in ("modeling", "data") for path in (ROOT / "tcl_d2" / part).iterdir()]
    names = {f"{path.name}/" if path.is_dir() else path.name for path in parts if not path.name.startswith("__")}
    assert names <= named
