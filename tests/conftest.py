import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

from tcl_d2 import add_tcl_config

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A data sets' root with a small world of 300 training pairs and 12 validation images."""
    root = tmp_path_factory.mktemp("datasets")
    command = [sys.executable, "datasets/prepare_shapes.py", "--root", root / "shapes", "--train", "300", "--val", "12"]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, capture_output=True)
    return root


@pytest.fixture
def in_world(world, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))
    return world


@pytest.fixture
def shapes_cfg(in_world, tmp_path):
    """The small world's configuration, cut down to a few iterations, without loader processes."""
    cfg = get_cfg()
    add_tcl_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/shapes/tcl.yaml"))
    cfg.merge_from_list(
        ["OUTPUT_DIR", str(tmp_path / "output"), "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4]
        + ["SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1, "MODEL.TCL.UNFREEZE_ITER", 2, "DATASETS.TEST", "()"]
        + ["DATALOADER.SHUFFLE_BUFFER", 50]
    )
    return cfg
