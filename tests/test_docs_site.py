"""The documentation as a site: it builds without a warning, its links lead somewhere, and it has every public name."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import ROOT

for package in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(package, reason="the site needs pip install '.[docs]'")
sys.path.insert(0, str(ROOT / "dev"))
import docs_site  # noqa: E402


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value and tag != "link":
                self.links.append(value)
            elif name == "id":
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the built site, by path."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_links_lead_somewhere(site):
    broken = []
    for path, page in site.items():
        for link in map(urlsplit, page.links):
            if link.scheme or link.netloc:
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (link.fragment and unquote(link.fragment) not in site[target].anchors):
                broken.append((str(path), link.geturl()))
    assert len(site) > 30 and not broken


def test_headings_have_the_anchors_that_github_gives_them(site):
    pages = {path.parent.name: page for path, page in site.items()}
    assert {"how-to-add-", "rules"} <= pages["CONTRIBUTING"].anchors


@pytest.mark.parametrize("package", docs_site.public_names())
def test_public_names_are_documented(site, package):
    (page,) = (page for path, page in site.items() if path.parent.name == package)
    names = docs_site.public_names()[package]
    assert names and {docs_site.place_of(package, name) for name in names} <= page.anchors
