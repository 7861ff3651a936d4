"""Files of the project that no program here reads: they can be parsed, and say what the project is."""

import json
import re
import sys

import pytest
import yaml

from tcl_d2 import __version__
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "dev"))
import notebook  # noqa: E402

YAML_FILES = [ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml", *ROOT.glob(".github/**/*.yml")]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_files_can_be_read(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict) and len(YAML_FILES) == 5


def test_workflows_check_style_tests_and_wheel():
    jobs = {}
    for name in ("ci", "package"):
        jobs |= yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())["jobs"]
    commands = {name: [step.get("run", "") for step in job["steps"]] for name, job in jobs.items()}
    assert "make lint" in commands["lint"] and "make test ${{ matrix.versions }}" in commands["test"]
    versions = [row["versions"] for row in jobs["test"]["strategy"]["matrix"]["include"]]
    assert set(versions) == {"LOWEST=1", "", "LATEST=1"}
    [outside] = [step for step in jobs["wheel"]["steps"] if "working-directory" in step]
    assert "tcl-d2" in outside["run"] and "runner.temp" in outside["working-directory"]


def test_citation_is_that_of_the_readme():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    readme = (ROOT / "README.md").read_text()
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert paper["title"] in readme and authors in readme and paper["year"] == 2023


def test_changelog_has_this_version():
    """Of a date, first; what breaks has dates, too."""
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert re.match(rf"{re.escape(__version__)} \(\d{{4}}-\d\d-\d\d\)\n", newest)
    breaks = newest.partition("### Compat break\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^- (.*)", breaks, re.MULTILINE)
    assert entries and all(re.match(r"\d{4}-\d\d-\d\d: ", entry) for entry in entries)


def test_notebook_is_the_tutorial():
    """docs/tutorial.ipynb is what dev/notebook.py prints, and its cells are the whole program."""
    text = (ROOT / "docs/tutorial.ipynb").read_text()
    assert text == notebook.notebook()
    cells = json.loads(text)["cells"]
    program = [line for line in (ROOT / "docs/tutorial.py").read_text().splitlines() if line]
    code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    assert [line for line in code.splitlines() if line] == [
        line for line in program[program.index("import subprocess") :] if not line.startswith("# ")
    ]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code"] * (len(cells) // 2) and len(cells) > 10
