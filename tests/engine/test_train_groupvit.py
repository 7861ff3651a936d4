"""GroupViT in the training engine: it trains, evaluates, resumes exactly, and leaves out what is NaN."""

import os

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.commands.convert import stripped
from tcl_d2.commands.options.train import argument_parser
from tcl_d2.commands.train import main
from tcl_d2.engine import Trainer
from tcl_d2.modeling import GroupViT
from tests.conftest import ROOT

pytest.importorskip("transformers")
CONFIG = ROOT / "configs/shapes/groupvit.yaml"
SMALL = ["MODEL.GROUPVIT.WIDTH", 32, "MODEL.GROUPVIT.DEPTHS", "(1, 1, 1)", "MODEL.GROUPVIT.GROUPS", "(6, 3)"]
SMALL += ["MODEL.GROUPVIT.TEXT_WIDTH", 64, "MODEL.GROUPVIT.TEXT_DEPTH", 1, "DATALOADER.NUM_WORKERS", 0]
SMALL += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1, "VIS_PERIOD", 0]
NOUNS = ["MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS", 2, "MODEL.GROUPVIT.MULTI_LABEL.WORDS", "tcl_d2://words/shapes.txt"]
EVALUATION = ["DATASETS.TEST", "('shapes_objects_val',)", "TEST.EVAL_PERIOD", 2, "TEST.ZERO_SHOT.MAX_IMAGES", 1]


@pytest.fixture
def cfg(in_world, tmp_path):
    options = [*SMALL, *NOUNS, "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path, "DATALOADER.SHUFFLE_BUFFER", 50]
    return load_config(CONFIG, [*options, "SOLVER.BASE_LR", 1e-4])


def train(cfg, resume: bool = False) -> Trainer:
    seed_all_rng(None)  # the draws of a step depend on the seed and the iteration alone
    torch.manual_seed(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> dict[int, float]:
    return {iteration: value for value, iteration in trainer.storage.history("total_loss").values()}


def test_resume_is_exact(cfg, tmp_path):
    """Weights, optimizer, running statistics, noise and nouns are those of an uninterrupted training."""
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    whole = train(cfg)
    for name in ("model_0000003.pth", "model_final.pth"):
        (tmp_path / name).unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train(cfg, resume=True)
    assert losses(resumed) == pytest.approx({i: losses(whole)[i] for i in (2, 3)}, abs=1e-5)
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_best_checkpoint_of_evaluations_with_the_trained_text_encoder(cfg, tmp_path):
    """Each evaluation embeds the words anew: its result is that of its checkpoint, loaded into a new model."""
    cfg.merge_from_list([*EVALUATION, "SOLVER.BASE_LR", 0.01])
    trainer = train(cfg)
    assert {"model_best.pth", "model_final.pth"} <= set(os.listdir(tmp_path))
    model = Trainer.build_model(cfg).eval()
    TCLCheckpointer(model).load(str(tmp_path / "model_final.pth"))
    model.set_dataset("shapes_objects_val")
    trainer.model.eval()
    trainer.model.set_dataset("shapes_objects_val")
    torch.testing.assert_close(model._classes({})[0], trainer.model._classes({})[0])
    assert Trainer.test(cfg, model)["average"] == pytest.approx(trainer._last_eval_results["average"], nan_ok=True)


def test_there_is_no_second_stage(cfg):
    """The iteration of TCL's is past, and means nothing here."""
    cfg.merge_from_list(["MODEL.TCL.UNFREEZE_ITER", 1, "SOLVER.MAX_ITER", 2])
    assert len(losses(train(cfg))) == 2


@pytest.mark.fault("an image of NaN in GroupViT's training", "left out; weights and running statistics are as before")
def test_a_bad_batch_leaves_running_statistics(cfg):
    cfg.SOLVER.MAX_ITER = 2
    trainer = Trainer(cfg)
    batch = next(trainer._trainer._data_loader_iter)
    batch[0]["image"] = torch.full_like(batch[0]["image"], torch.nan)
    trainer._trainer.reset_data_loader(lambda: [batch, batch])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer._trainer.skipped_in_a_row == 2
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.fault("a GroupViT's checkpoint for another number of blocks", "the error names MODEL.GROUPVIT.DEPTHS")
def test_checkpoint_of_other_sizes_is_refused(cfg, tmp_path):
    """Where the frozen CLIP of another model may be missing, these weights may not."""
    model = Trainer.build_model(cfg)
    TCLCheckpointer(model, str(tmp_path)).save("small")
    cfg.MODEL.GROUPVIT.DEPTHS = (2, 1, 1)
    deeper = Trainer.build_model(cfg)
    with pytest.raises(ValueError, match="small.pth' does not fit the model: it lacks 16 .*MODEL.GROUPVIT.DEPTHS"):
        TCLCheckpointer(deeper).load(str(tmp_path / "small.pth"))


@pytest.mark.fault("released weights with the tokenizer of another CLIP", "the error names MODEL.CLIP.NAME")
def test_tokenizer_of_other_weights_is_refused(cfg):
    encoder = Trainer.build_model(cfg).clip
    encoder.model.config.text_config.vocab_size = 49408
    with pytest.raises(ValueError, match="MODEL.CLIP.NAME is 'tcl_d2://shapes_clip/model.json'.* 2,514 tokens.*49,408"):
        GroupViT.from_config(cfg, encoder)


@pytest.mark.fault("a GroupViT is to be stripped of its frozen CLIP", "the error says that nothing would be left")
def test_nothing_of_it_can_be_stripped(cfg):
    with pytest.raises(ValueError, match="--strip would leave nothing"):
        stripped(Trainer.build_model(cfg).state_dict())


def test_the_command_trains_from_a_folder_of_weights(in_world, tmp_path):
    """Two iterations from a hub's folder, in bfloat16, with an evaluation."""
    Trainer.build_model(load_config(CONFIG, SMALL)).clip.model.save_pretrained(tmp_path / "weights")
    options = [*SMALL, *EVALUATION, "MODEL.GROUPVIT.WEIGHTS", tmp_path / "weights", "OUTPUT_DIR", tmp_path / "output"]
    options += ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16", "SOLVER.MAX_ITER", 2]
    main(argument_parser().parse_args(["--config-file", str(CONFIG), *map(str, options)]))
    assert {"results.json", "model_best.pth", "model_final.pth"} <= set(os.listdir(tmp_path / "output"))
