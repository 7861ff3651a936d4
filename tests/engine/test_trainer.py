"""Training: weight decay, schedule, clipping, stages, resuming, the same seed twice, precision, and that it learns."""

import os

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from tcl_d2.engine import Trainer
from tcl_d2.engine.hooks import BestAverageCheckpointer, LearnedScalars
from tcl_d2.engine.optimizer import FullModelClippedAdamW, trained_parameters


def train(cfg, resume: bool = False) -> Trainer:
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def logged(trainer: Trainer, key: str) -> dict[int, float]:
    return {iteration: value for value, iteration in trainer.storage.history(key).values()}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained_parameters(trainer.model).items()}


@pytest.fixture
def cfg(shapes_cfg):
    os.makedirs(shapes_cfg.OUTPUT_DIR, exist_ok=True)
    shapes_cfg.VIS_PERIOD = 0
    return shapes_cfg


def test_weights_decay_and_biases_do_not(cfg):
    """1-d parameters and biases do not decay; 0-d scalars do, as in the official release."""
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {
        "grounder.decoder.0.conv1.conv.weight": 0.05,
        "grounder.decoder.0.conv1.conv.bias": 0.0,
        "grounder.decoder.0.conv1.norm.weight": 0.0,
        "grounder.decoder.0.conv1.gate": 0.05,
        "grounder.blocks.0.attn.in_proj_weight": 0.05,
        "grounder.blocks.0.attn.in_proj_bias": 0.0,
        "sim2mask.b": 0.05,
        "losses.ImageTCLLoss.logit_scale": 0.05,
    }

    named = dict(model.named_parameters())
    assert {name: decay[id(named[name])] for name in expected} == expected
    assert not any(id(p) in decay for p in model.clip.parameters())
    assert optimizer.defaults["eps"] == 1e-6 and optimizer.defaults["betas"] == (0.9, 0.999)


def test_total_norm_is_clipped():
    """One step of plain SGD-like size is checked through Adam's first moment, which is linear in the gradient."""
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = FullModelClippedAdamW([a, b], max_norm=5.0, lr=1.0)
    a.grad, b.grad = torch.tensor([30.0, 0.0]), torch.tensor([0.0, 40.0])
    with EventStorage() as storage:
        optimizer.step()
        assert storage.latest()["gradient_norm"][0] == pytest.approx(50)
    torch.testing.assert_close(optimizer.state[a]["exp_avg"], 0.1 * torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(optimizer.state[b]["exp_avg"], 0.1 * torch.tensor([0.0, 4.0]))


def test_schedule_warms_up_to_the_full_rate_then_falls_to_the_minimum(cfg):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 100, 20
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(cfg.SOLVER.BASE_LR * 1e-4)
    assert max(rates) == rates[20] == pytest.approx(cfg.SOLVER.BASE_LR)
    assert rates[10] == pytest.approx(cfg.SOLVER.BASE_LR / 2, rel=1e-3)
    assert rates[60] == pytest.approx((cfg.SOLVER.BASE_LR + cfg.SOLVER.BASE_LR_END) / 2, rel=1e-3)
    assert rates[-1] == pytest.approx(cfg.SOLVER.BASE_LR_END, rel=0.1)


def test_copied_blocks_train_in_the_second_stage_alone(cfg):
    """The copied block keeps its weights in the first stage, and moves from the configured iteration on."""
    start = weights(Trainer(cfg))
    cfg.SOLVER.MAX_ITER = 2
    first = weights(train(cfg))
    cfg.SOLVER.MAX_ITER = 4
    both = weights(train(cfg))
    block = "grounder.blocks.0.mlp.c_fc.weight"
    assert torch.equal(start[block], first[block]) and not torch.equal(start[block], both[block])
    assert not torch.equal(start["grounder.projection.weight"], first["grounder.projection.weight"])


def test_resume_right_after_the_switch_trains_the_block(cfg):
    """Iterations 0-1 are the first stage; the training that starts at 2 is in the second from its first step."""
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.MAX_ITER = 3
    train(cfg)
    with open(f"{cfg.OUTPUT_DIR}/last_checkpoint", "w") as file:
        file.write("model_0000001.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    before = weights(trainer)
    trainer.train()
    block = "grounder.blocks.0.mlp.c_fc.weight"
    assert not torch.equal(before[block], weights(trainer)[block])
    assert len(trainer.optimizer.state) == len(before)


def test_resume_goes_on_with_optimizer_and_schedule(cfg):
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    whole = logged(train(cfg), "lr")
    with open(f"{cfg.OUTPUT_DIR}/last_checkpoint", "w") as file:
        file.write("model_0000001.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    state = trainer.optimizer.state
    assert state and all(float(entry["step"]) == 2 for entry in state.values())
    trainer.train()
    assert logged(trainer, "lr") == pytest.approx({i: whole[i] for i in (2, 3)})


def test_best_checkpoint_is_remembered_over_a_resume(cfg):
    """Else the first evaluation after a resume would overwrite model_best.pth, however bad it is."""
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = ("shapes_objects_val",), 2

    def best(trainer: Trainer) -> BestAverageCheckpointer:
        return next(hook for hook in trainer._hooks if isinstance(hook, BestAverageCheckpointer))

    stopped, resumed = Trainer(cfg), Trainer(cfg)
    stopped.iter, best(stopped).best_metric, best(stopped).best_iter = 2, 99.0, 1
    resumed.load_state_dict(stopped.state_dict())
    assert (best(resumed).best_metric, best(resumed).best_iter) == (99.0, 1)


def test_best_checkpoint_does_not_become_the_last(cfg, monkeypatch):
    """It is written after the final one where the last evaluation is the best: --resume must not begin there."""
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = ("shapes_objects_val",), 2
    scores = iter((10.0, 20.0))
    monkeypatch.setattr(Trainer, "test", staticmethod(lambda cfg, model: {"average": {"mIoU": next(scores)}}))
    train(cfg)
    assert os.path.isfile(f"{cfg.OUTPUT_DIR}/model_best.pth")
    with open(f"{cfg.OUTPUT_DIR}/last_checkpoint") as file:
        assert file.read() == "model_final.pth"
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4


def test_same_seed_gives_the_same_losses(cfg):
    first = logged(train(cfg), "total_loss")
    assert len(first) == 4 and logged(train(cfg), "total_loss") == first
    cfg.SEED += 1
    assert logged(train(cfg), "total_loss") != first


def test_log_has_every_loss_and_learned_scalar(cfg):
    trainer = Trainer(cfg)
    next(hook for hook in trainer._hooks if isinstance(hook, LearnedScalars)).PERIOD = 1
    trainer.train()
    losses = {f"loss_{name}" for name in ("tcl_image", "tcl_feature", "area_pos", "area_neg", "tv_image", "tv_mask")}
    learned = {f"learned/{name}" for name in ("sim2mask.w", "sim2mask.b", "losses.ImageTCLLoss.logit_scale")}
    assert losses | learned | {"total_loss", "gradient_norm", "lr", "data_time"} <= trainer.storage.histories().keys()


def test_pictures_of_masks(cfg):
    """Every VIS_PERIOD iterations TensorBoard gets images, their own and another text's mask, and captions."""
    cfg.VIS_PERIOD = 2
    trainer = Trainer(cfg)
    with EventStorage() as storage:
        for iteration in range(4):
            storage.iter = iteration
            trainer.model(next(trainer._trainer._data_loader_iter))
        pictures = [(picture.shape, iteration) for _, picture, iteration in storage._vis_data]
    shape = (3, 4 * 48, 3 * 48 + 260)
    assert pictures == [(shape, 0), (shape, 2)]


def test_bfloat16_on_a_cpu(cfg):
    """Trains in low precision, with a first loss close to full precision's."""
    cfg.SOLVER.MAX_ITER = 2
    full = logged(train(cfg), "total_loss")
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "bfloat16"
    low = logged(train(cfg), "total_loss")
    assert low != full and low[0] == pytest.approx(full[0], rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_on_a_gpu(cfg, dtype):
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = "cuda", True, dtype
    cfg.DATASETS.TEST = ("shapes_objects_val",)
    trainer = train(cfg)
    assert trainer._last_eval_results["average"]["mIoU"] > 0


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SOLVER.AMP.DTYPE", "int8", "float16, bfloat16"),
        ("SOLVER.AMP.DTYPE", "float16", "needs a GPU"),
        ("SOLVER.WARMUP_ITERS", 4, "less than SOLVER.MAX_ITER"),
        ("SOLVER.WARMUP_ITERS", -1, "SOLVER.WARMUP_ITERS is -1; expected at least 0"),
        ("SOLVER.MAX_ITER", 0, "SOLVER.MAX_ITER is 0; expected at least 1"),
        ("SOLVER.CHECKPOINT_PERIOD", -1, "SOLVER.CHECKPOINT_PERIOD is -1; expected at least 0"),
        ("SOLVER.MAX_SKIPPED", -1, "SOLVER.MAX_SKIPPED is -1"),
        ("TEST.EVAL_PERIOD", -1, "TEST.EVAL_PERIOD is -1"),
        ("VIS_PERIOD", -1, "VIS_PERIOD is -1"),
        ("MODEL.TCL.FREEZE", 6, "0 to 5"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "full_model"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1.0, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE is -1.0; expected at least 0"),
        ("SOLVER.BASE_LR", -1.0, "SOLVER.BASE_LR is -1.0"),
        ("SOLVER.WEIGHT_DECAY", -1.0, "SOLVER.WEIGHT_DECAY is -1.0"),
        ("SOLVER.BETAS", [0.9], "SOLVER.BETAS is .0.9.; expected 2 numbers"),
        ("SOLVER.BETAS", [0.9, 1.0], "SOLVER.BETAS is .0.9, 1.0."),
        ("MODEL.TCL.AREA_PRIOR", 5.0, "MODEL.TCL.AREA_PRIOR is 5.0"),
        ("MODEL.META_ARCHITECTURE", "MaskCLIP", "nothing to train"),
    ],
)
@pytest.mark.fault("numbers of a training out of their range", "refused, with the config key")
def test_unfit_settings_are_named(cfg, key, value, message):
    cfg.SOLVER.AMP.ENABLED = "AMP" in key
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        Trainer(cfg)


def test_nothing_is_left_of_a_training_that_is_resumed_at_its_end(cfg):
    cfg.SOLVER.MAX_ITER = 2
    before = weights(train(cfg))
    again = train(cfg, resume=True)
    assert again.start_iter == 2 and all(torch.equal(before[name], value) for name, value in weights(again).items())


@pytest.mark.fault("a training anew where another one left checkpoints", "a warning before the first is replaced")
def test_checkpoints_of_another_training_are_told(cfg, caplog):
    cfg.SOLVER.MAX_ITER = 2
    train(cfg)
    train(cfg, resume=True)
    assert "has checkpoints of another training" not in caplog.text
    Trainer(cfg).resume_or_load(resume=False)
    assert f"'{cfg.OUTPUT_DIR}' has checkpoints of another training" in caplog.text


def test_training_on_the_small_world_improves_masks(cfg):
    """End to end: a short training more than doubles the mIoU of dense CLIP's own start, without PAMR and KP."""
    cfg.merge_from_list(
        ["SOLVER.MAX_ITER", 20, "SOLVER.WARMUP_ITERS", 3, "MODEL.TCL.UNFREEZE_ITER", 17, "SOLVER.IMS_PER_BATCH", 12]
        + ["TEST.ZERO_SHOT.REFINE", "none", "TEST.ZERO_SHOT.KP_WEIGHT", 0.0]
        + ["DATASETS.TEST", '("shapes_objects_val",)']
    )
    before = Trainer.test(cfg, Trainer.build_model(cfg).eval())["average"]["mIoU"]
    trainer = train(cfg)
    after = trainer._last_eval_results["average"]["mIoU"]
    assert after > 2 * before and after > 12, (before, after)
