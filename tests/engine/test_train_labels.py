"""Training on labels: beside captions, alone, resumed; settings that do not fit together."""

import pytest
import torch
from detectron2.engine import HookBase

from tcl_d2 import load_config
from tcl_d2.commands.train import check
from tcl_d2.engine import Trainer
from tcl_d2.engine.training_data import check_training_data
from tests.conftest import ROOT

LABEL_LOSSES = {"loss_sem_seg_bce", "loss_sem_seg_dice"}


def small_config(name: str, folder, *options: object):
    """A config of the small world cut down to four iterations, without loader processes."""
    small = ["OUTPUT_DIR", folder, "DATALOADER.NUM_WORKERS", 0, "DATALOADER.SHUFFLE_BUFFER", 50, "VIS_PERIOD", 0]
    small += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1, "SOLVER.BASE_LR", 1e-4]
    return load_config(ROOT / f"configs/shapes/{name}.yaml", [*small, "DATASETS.TEST", "()", *options])


class KeepLosses(HookBase):
    def __init__(self):
        self.losses = {}

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.losses[self.trainer.iter] = {name: latest[name][0] for name in latest if name.startswith("loss_")}


def train(cfg, last_iter: int | None = None) -> dict[int, dict[str, float]]:
    """Go on with a training, perhaps up to an iteration before its last; return the losses of each iteration."""
    trainer, keeper = Trainer(cfg), KeepLosses()
    trainer.resume_or_load(resume=True)
    trainer.register_hooks([keeper])
    trainer.max_iter = last_iter or trainer.max_iter
    trainer.train()
    return keeper.losses


def test_labels_beside_captions_resumed(in_world, tmp_path):
    """The losses of both; after a stop the same as without one."""
    period = ("SOLVER.CHECKPOINT_PERIOD", 2)
    whole = train(small_config("semi_supervised", tmp_path / "whole", *period))
    assert all(losses.keys() > LABEL_LOSSES and "loss_tcl_image" in losses for losses in whole.values())
    assert all(losses[name] > 0 for losses in whole.values() for name in LABEL_LOSSES)

    cfg = small_config("semi_supervised", tmp_path / "stopped", *period)
    parts = {**train(cfg, last_iter=2), **train(cfg)}
    assert parts.keys() == whole.keys() == {0, 1, 2, 3}
    for iteration, losses in whole.items():
        assert parts[iteration] == pytest.approx(losses, abs=1e-4)


def test_masks_learn_from_labels_alone(in_world, tmp_path):
    """No captions, and no losses of them; the masks of the trained model learn."""
    cfg = small_config("finetune", tmp_path, "SOLVER.MAX_ITER", 8, "SOLVER.BASE_LR", 1e-3, "SOLVER.WARMUP_ITERS", 0)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.34  # 4 of 12 images, all of them in each batch
    losses = train(cfg)
    assert all(step.keys() == LABEL_LOSSES for step in losses.values())
    assert losses[7]["loss_sem_seg_bce"] < losses[0]["loss_sem_seg_bce"]
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert not [name for name in saved if name.startswith("losses.")]


@pytest.mark.fault("labels, captions and loss heads that do not fit together", "refused at the start, with the key")
@pytest.mark.parametrize(
    "config, options, message",
    [
        ("tcl", ["DATASETS.TRAIN", "('shapes_train','shapes_val')"], "LABELED_RATIO is 0.0; .* DATASETS.TRAIN"),
        ("tcl", ["DATALOADER.LABELED_RATIO", 0.5], "LABELED_RATIO is 0.5; .* labeled dataset"),
        ("tcl", ["MODEL.TCL.EXTRA_LOSS_HEADS", ["SemSegBCELoss"]], "SemSegBCELoss, which needs labels, but DATASETS.T"),
        (
            *("semi_supervised", ["MODEL.TCL.EXTRA_LOSS_HEADS", []]),
            "no loss head takes labels .*SemSegBCELoss and SemSegDiceLoss.*MODEL.TCL.EXTRA_LOSS_HEADS",
        ),
        (
            *("semi_supervised", ["DATASETS.TRAIN", "('shapes_sem_seg_train',)"]),
            "ImageTCLLoss, which needs captions, but DATASETS.TRAIN names no image-text dataset",
        ),
        (
            *("finetune", ["DATASETS.TRAIN", "('shapes_train','shapes_val')", "DATALOADER.LABELED_RATIO", 0.5]),
            "no loss head takes captions.*MODEL.TCL.EXTRA_LOSS_HEADS",
        ),
        ("finetune", ["INPUT.MIN_SIZE_TRAIN", (5, 1)], "INPUT.MIN_SIZE_TRAIN is .5, 1.; expected the least and"),
        ("finetune", ["INPUT.MIN_SIZE_TRAIN", (5, 6, 7)], "INPUT.MIN_SIZE_TRAIN is .5, 6, 7."),
        ("finetune", ["INPUT.MAX_SIZE_TRAIN", 0], "INPUT.MAX_SIZE_TRAIN is 0; expected at least 1"),
        ("groupvit", ["SOLVER.IMS_PER_BATCH", 1], "SOLVER.IMS_PER_BATCH is 1; expected at least 2: GroupViT contrasts"),
        ("finetune", ["INPUT.SEM_SEG.NUM_ABSENT", -1], "INPUT.SEM_SEG.NUM_ABSENT is -1"),
        ("groupvit", ["DATASETS.TRAIN", "('shapes_val',)"], "DATASETS.TRAIN is .*'shapes_val'.*GroupViT"),
    ],
)
def test_settings_that_do_not_fit(in_world, config, options, message):
    cfg = load_config(ROOT / f"configs/shapes/{config}.yaml", options)
    with pytest.raises(ValueError, match=message):
        check_training_data(cfg)
    with pytest.raises(ValueError, match=f"cannot start:\n  .*{message}"):
        check(cfg, eval_only=False, weights="")


@pytest.mark.parametrize("config", ["tcl", "semi_supervised", "finetune", "groupvit"])
def test_settings_that_fit(in_world, config):
    check_training_data(load_config(ROOT / f"configs/shapes/{config}.yaml"))


@pytest.mark.fault("a number of absent classes below 0", "refused, with the config key")
def test_number_of_absent_classes(in_world, tmp_path):
    with pytest.raises(ValueError, match="INPUT.SEM_SEG.NUM_ABSENT is -1"):
        Trainer.build_train_loader(small_config("finetune", tmp_path, "INPUT.SEM_SEG.NUM_ABSENT", -1))
