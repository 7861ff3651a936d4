"""Hooks of mkdocs.yml: the repository's pages under their own paths, and the API pages of docs/public.md."""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FILES = ("*.md", "LICENSE", "docs/*.*", "datasets/README.md")


def on_config(config: MkDocsConfig) -> None:
    """Add the API pages to the navigation."""
    config.nav.append({"API": [{package: page_of(package)} for package in public_names()]})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the repository, and add the API pages; the theme's own stay."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)

    for path in sorted(path for pattern in FILES for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for package, names in public_names().items():
        content = "\n\n".join([f"# {package}", *(f"::: {place_of(package, name)}" for name in names)])
        files.append(File.generated(config, page_of(package), content=content))
    return files


def page_of(package: str) -> str:
    """Return the path of a package's API page."""
    return f"api/{package}.md"


def place_of(package: str, name: str) -> str:
    """Return the full name of a package's name, in its module where the package imports it only when it is used."""
    folder = ROOT.joinpath(*package.split("."))
    for node in ast.parse((folder / "__init__.py").read_text()).body if folder.is_dir() else ():
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_NAMES":
            modules = {name: module for module, names in ast.literal_eval(node.value).items() for name in names}
            return f"{package}.{modules[name]}.{name}"
    return f"{package}.{name}"


def public_names() -> dict[str, list[str]]:
    """Return the names that docs/public.md promises, by package; of loss heads it promises all."""
    rows = re.findall(r"^\| `(tcl_d2[\w.]*)` \| (.*) \|$", (ROOT / "docs/public.md").read_text(), re.MULTILINE)
    names = {package: re.findall(r"`(\w+)`", text) for package, text in rows}
    losses = ast.parse((ROOT / "tcl_d2/modeling/tcl/losses.py").read_text()).body
    heads = [node.name for node in losses if isinstance(node, ast.ClassDef) and node.name.endswith("Loss")]
    names["tcl_d2.modeling.losses"] += heads
    del names["tcl_d2"]  # its functions are those of tcl_d2.config
    return names
