"""Checkpoints that earlier versions wrote: they load, segment as they did, and their trainings go on."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.engine import Trainer

FOLDER = Path(__file__).parent / "written"
WRITTEN = sorted(FOLDER.glob("*.pth"))  # after two iterations on the small world, the second one of stage two
OPTIONS = ["MODEL.CLIP.NAME", str(FOLDER / "clip.json"), "MODEL.CLIP.PRETRAINED", "", "MODEL.TCL.FREEZE", 1]
OPTIONS += ["MODEL.TCL.DECODER_BLOCKS", 1, "MODEL.TCL.UNFREEZE_ITER", 1, "DATASETS.TEST", "()"]


def config(path: Path, *options: object):
    return load_config("shapes/tcl.yaml", [*OPTIONS, "MODEL.WEIGHTS", str(path), *options])


def segment(path: Path) -> torch.Tensor:
    """Segment a fixed image by a checkpoint, which holds the CLIP's weights too."""
    cfg = config(path)
    model = build_model(cfg).eval()
    TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    ramp = torch.arange(3 * 60 * 48) % 256
    with torch.no_grad():
        (output,) = model([{"image": ramp.view(3, 60, 48), "vocabulary": ["brick", "sand", "lava"]}])
    return output["sem_seg"]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_masks_are_those_of_the_version_that_wrote_it(path):
    expected = torch.load(path.with_suffix(".pt"), weights_only=True)
    torch.testing.assert_close(segment(path)[:, ::4, ::4], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_its_training_goes_on(path, in_world, tmp_path):
    """With the optimizer's state and the samples, from the third iteration on."""
    options = ["SOLVER.MAX_ITER", 3, "SOLVER.WARMUP_ITERS", 1, "SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 0]
    cfg = config(path, *options, "OUTPUT_DIR", str(tmp_path))
    (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "last_checkpoint").write_text(path.name)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2 and trainer.optimizer.state
    trainer.train()
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 2
