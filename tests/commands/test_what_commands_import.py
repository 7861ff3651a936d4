"""No command imports more than it uses; help and errors of options come without torch."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from detectron2.engine import default_argument_parser
from PIL import Image

from tcl_d2.commands import COMMANDS, DATASETS, SPINS
from tcl_d2.commands.options.model import DENSE_HEADS
from tcl_d2.runs.options import argument_parser

# What takes long to import, and which commands may import it
MODELS = {"torch", "torchvision", "open_clip", "timm", "detectron2.data", "detectron2.modeling", "detectron2.engine"}
EXTRA = {"app": {"gradio", "pandas"}, "compare": {"matplotlib"}, "prepare.context": {"scipy.io", "scipy.sparse"}}
HEAVY = {"gradio", "lvis", "matplotlib", "onnxruntime", "pandas", "scipy.io", "scipy.ndimage", "scipy.sparse"}
HEAVY |= {"tensorboard", "torch.utils.tensorboard", "wandb.sdk"}  # open_clip imports transformers where it is

HELP = """
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from tcl_d2.commands import main

for words in {}:
    with suppress(SystemExit), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        main(words)
print(*sys.modules)
"""

# Each command in a process that has the modules of all models already, as main imports it
WORK = """
import json, os, sys
from importlib import import_module
from tcl_d2.utils.imports import import_lazily

import_lazily("wandb")
import detectron2.engine, open_clip
from tcl_d2.commands import main

from tcl_d2.modeling import DENSE_HEAD_REGISTRY

print("HEADS", *sorted(dict(DENSE_HEAD_REGISTRY)))
heavy, picture, output, names = json.loads(sys.argv[1])
for name in names:
    sys.stdout.flush()
    if os.fork() == 0:
        if name == "segment":
            try:
                main(["segment", picture, "--classes", "brick, grass", "--output", output])
            except SystemExit as end:
                assert end.code == 0
        else:
            import_module("tcl_d2.commands." + name.replace("-", "_"))
        print("IMPORTED", name, *(set(heavy) & set(sys.modules)), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""


def test_help_and_mistyped_options_need_no_torch():
    names = [[name] for name in COMMANDS if name not in ("reproduce", "prepare")]
    names += [["prepare", name] for name in DATASETS]
    commands = [[*name, option] for name in names for option in ("--help", "--mistyped")]
    commands += [["reproduce", "tcl", "--help"], ["segment", "--onnx", "model.onnx", "--help"]]
    code = HELP.format(commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "tcl_d2.commands.options.segment" in modules
    assert not modules & (MODELS | HEAVY | {"detectron2", "transformers"})


def test_no_command_imports_what_it_does_not_use(tmp_path):
    """`segment` segments a small picture; of the others, all that is imported before they work."""
    Image.new("RGB", (64, 64), (120, 80, 40)).save(tmp_path / "photo.png")
    names = [name for name in COMMANDS if name not in ("prepare", "evaluate")]
    names = [name for name in names if name != "app" or find_spec("gradio")]
    names += [f"prepare.{name}" for name in ("context", "labels", "shapes", "voc")]  # the others import as these do
    facts = json.dumps([sorted(HEAVY), str(tmp_path / "photo.png"), str(tmp_path / "out"), names])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WORK, facts], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    heads = next(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("HEADS"))
    assert heads == list(DENSE_HEADS)  # which --help of --method lists

    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("IMPORTED")]
    imported = {name: set(modules) for _, name, *modules in lines}
    assert {name: modules for name, modules in imported.items() if modules} == {
        name: modules for name, modules in EXTRA.items() if name in names
    }


def test_options_are_those_of_detectron2():
    """They are written down here, because Detectron2's parser takes seconds to import."""

    def facts(parser) -> dict:
        keys = ("option_strings", "type", "nargs", "default")
        return {action.dest: [getattr(action, key) for key in keys] for action in parser._actions}

    theirs, ours = facts(default_argument_parser()), facts(argument_parser())
    assert ours.keys() - theirs.keys() == {"imports", "num_processes"}
    different = {name for name, fact in theirs.items() if ours[name] != fact}
    assert different == {"dist_url"} and ours["dist_url"][3] == "auto"  # a free port


@pytest.mark.parametrize(
    ("given", "spins"), [({}, SPINS), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_sleep_soon_unless_the_user_says_otherwise(given, spins):
    """It is said before torch is loaded, which reads it then alone."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("GOMP_", "OMP_"))}
    code = "import os, sys, tcl_d2.commands; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", str(spins)]
