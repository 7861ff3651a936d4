"""The documentation: every snippet and every command in it runs, but those that need what is not here."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.data.shapes import draw_scene
from tests import running
from tests.conftest import ROOT, draw_world

PAGES = (
    "README.md",
    "GETTING_STARTED.md",
    "docs/segment.md",
    "docs/train.md",
    "docs/evaluate.md",
    "docs/your_data.md",
    "docs/checkpoints.md",
    "CONTRIBUTING.md",
    "docs/reuse.md",
    "docs/measures.md",
    "docs/dense_clip.md",
    "docs/objects.md",
    "docs/reco.md",
    "docs/refiners.md",
    "docs/few_masks.md",
    "docs/label.md",
    "docs/operations.md",
    "docs/words.md",
    "docs/reproduce.md",
    "datasets/README.md",
)
INSTALLED = ("README.md", "docs/reuse.md")  # whose snippets run from the wheel alone
ELSEWHERE = (  # commands that are not run here, by what they need
    r"^(make|pip|git|source|srun|cd|apt-get|export|img2dataset) ?",  # an installation, a cluster, the network
    r"configs/tcl\.yaml|configs/(eval|dense_clip|unified)/",  # the paper's data or weights
    r"--config-file (tcl\.yaml|eval/|reco/)",  # the same, by name
    r"datasets/prepare_(?!shapes)",  # archives of the benchmarks' owners
    r"^tcl-d2 app",  # runs until it is stopped: tests/test_page.py
    r"--model official|^tcl-d2 reproduce",  # the paper's weights
    r"tools/shapes_demo\.py|dev/(?!config_table|notebook|shapes_correct)",  # take long
    r"-m pytest",  # these tests
    r"--num-processes 2|^torchrun",  # in several processes: tests/test_train_net.py
    r"^tcl-d2 compare",  # in a process for each configuration: tests/test_compare.py
)
FEW = "SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 1 TEST.ZERO_SHOT.MAX_IMAGES 4 SOLVER.IMS_PER_BATCH 4"
QUICK = {  # options that make a command short
    "train_net.py": FEW,
    "tcl-d2 train": FEW,
    "tcl-d2 evaluate": FEW,
    "tcl-d2 prepare shapes": "--train 100 --labeled 6 --val 4",  # the world that is there
    "prepare_shapes.py": "--train 100 --labeled 6 --val 4",
    "tools/analyze.py": "--count 2",
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str) -> list[str]:
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#\s.*", "", line).strip() for line in lines) if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the project (links to its parts), with a small world and a photo."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("configs", "demo", "dev", "docs", "tcl_d2", "tools", "train_net.py"):
        (folder / part).symlink_to(ROOT / part)
    (folder / "datasets").mkdir()
    for script in (ROOT / "datasets").glob("*.py"):
        shutil.copy(script, folder / "datasets")
    draw_world(folder / "datasets", train=100, labeled=6, val=4)
    Image.fromarray(draw_scene(7, 0).image).save(folder / "photo.jpg")
    return folder


def check(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def run(folder: Path, *command: str) -> str:
    """Run python COMMAND, and return what it prints."""
    done = running.run(folder / "datasets", *command, folder=folder)
    check(done)
    return done.stdout


def run_line(folder: Path, line: str) -> None:
    """A line of a shell; Python is run without the seconds of its imports, also with its output in a file."""
    words = shlex.split(re.sub(r"^tcl-d2 ", "python -m tcl_d2 ", line))
    if words[0] != "python":
        return check(subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True))

    command, file = (words[1:-2], words[-1]) if words[-2] == ">" else (words[1:], None)
    output = run(folder, *command)
    if file:
        (folder / file).write_text(output)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in INSTALLED])
def test_snippets_run(folder, page):
    """All of a page in one go, as a reader would who goes from top to bottom; those of INSTALLED: test_installed.py."""
    snippets = folder / f"{Path(page).stem}.py"
    snippets.write_text("\n".join(blocks(page, "python")))
    run(folder, snippets.name)


def test_the_tutorial_runs(folder):
    """With fewer iterations."""
    text = (ROOT / "docs/tutorial.py").read_text()
    for setting, short in (('MAX_ITER", 30', 'MAX_ITER", 3'), ('ITERS", 5', 'ITERS", 1'), ('ITER", 20', 'ITER", 2')):
        assert text.count(setting) == 1
        text = text.replace(setting, short)
    (folder / "tutorial.py").write_text(text)
    run(folder, "tutorial.py")
    assert (folder / "output/tutorial/scene.png").exists()


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(folder, page):
    """In their order: later ones use what earlier ones made."""
    for command in commands(page):
        if any(re.search(pattern, command) for pattern in ELSEWHERE):
            continue
        quick = next((options for script, options in QUICK.items() if script in command), "")
        run_line(folder, f"{command} {quick}")


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in (*ROOT.glob("*.md"), *ROOT.glob("d*/*.md"))])
def test_links_and_files_exist(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text)
    named = re.findall(r"`((?:configs|tcl_d2|tools|dev|docs|demo)/[\w/.-]*\w)`", text)
    for link, anchor in links:
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
    for path in named:
        assert (ROOT / path).exists(), path


def test_index_has_every_page():
    index = (ROOT / "docs/README.md").read_text()
    for page in {*ROOT.glob("docs/*.md")} - {ROOT / "docs/README.md"}:
        assert f"]({page.name})" in index, page.name


def test_keys_that_are_named_exist():
    """On all pages; keys that were renamed or removed, or that a page's own code adds, may be named, too."""
    cfg = load_config()
    pattern = r"\b((?:MODEL|TEST|SOLVER|DATASETS|INPUT|DATALOADER|WANDB)\.[A-Z0-9_.]*\w)"
    for page in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md")):
        text = page.read_text()
        added = set(re.findall(r'add_key\(\s*"([\w.]+)"', text))
        for key in set(re.findall(pattern, text)) - added:
            node = cfg
            for part in key.split("."):
                assert cfg.key_is_renamed(key) or cfg.key_is_deprecated(key) or part in node, f"{page.name} names {key}"
                node = node.get(part)
