"""Talk2DINO in the training engine: features on disk, by parts and processes; a training on them, also resumed."""

import json
import os
import shutil

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from tcl_d2 import load_config
from tcl_d2.commands import features as command
from tcl_d2.commands.options.features import argument_parser
from tcl_d2.data import feature_loader, features
from tcl_d2.data.feature_loader import CaptionFeatures, build_feature_loader, find_features
from tcl_d2.data.features import make_features
from tcl_d2.engine import Trainer
from tcl_d2.modeling import Talk2DINO
from tests.conftest import ROOT

CONFIG = ROOT / "configs/shapes/talk2dino.yaml"
KEY = "MODEL.TALK2DINO"


@pytest.fixture(scope="module")
def pairs(world, tmp_path_factory):
    """A list of images with two captions each, of which one image cannot be read."""
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(6):
        shutil.copy(world / f"shapes/val/images/{number:05}.png", folder / f"{number}.png")
    (folder / "5.png").write_bytes(b"no image")
    rows = [{"image": f"{number}.png", "caption": [f"red brick {number}", "a lava"]} for number in range(6)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


@pytest.fixture
def cfg(pairs, tmp_path):
    options = ["DATASETS.TRAIN", (str(pairs),), f"{KEY}.FEATURES", tmp_path / "features", "VIS_PERIOD", 0]
    options += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_ITERS", 1, "DATASETS.TEST", ()]
    return load_config(CONFIG, [*options, "SOLVER.CHECKPOINT_PERIOD", 3, "OUTPUT_DIR", tmp_path / "output"])


@pytest.fixture(autouse=True)
def _without_a_log(monkeypatch):
    """It would go on writing to what a test has captured."""
    monkeypatch.setattr(command, "setup_logger", lambda **options: None)


def run(cfg, *arguments: str) -> None:
    """Run the command as a user does, on a file of the configuration."""
    path = ROOT.joinpath(cfg.OUTPUT_DIR).with_suffix(".yaml")
    path.write_text(cfg.dump())
    command.main(argument_parser().parse_args(["--config-file", str(path), *arguments]))


@pytest.fixture
def made(cfg, capsys):
    run(cfg)
    capsys.readouterr()
    return cfg


def train(cfg, resume: bool = False) -> Trainer:
    seed_all_rng(1)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


# ------------------------------------------------------------------------------------ features


def test_features_are_made_by_a_command(cfg, capsys):
    """A caption is a sample, with its image's heads; what cannot be read is left out and counted."""
    run(cfg, "--half")
    assert "10 captions of 5 images, " in capsys.readouterr().out
    captions = CaptionFeatures(find_features(cfg))
    assert len(captions) == 10
    assert torch.equal(captions[2]["heads"], captions[3]["heads"]) and not torch.equal(
        captions[2]["text"], captions[3]["text"]
    )
    assert torch.equal(captions[1]["text"], captions[9]["text"]) and captions[0]["heads"].dtype == torch.float16


def test_parts_and_processes_make_the_same(cfg, tmp_path, monkeypatch):
    """Stopped, gone on, and shared between two processes: the same features as of one."""
    command.check(cfg)
    model = Talk2DINO(cfg).eval()
    make_features(model, cfg, tmp_path / "whole")
    monkeypatch.setattr(features, "_IMAGES_PER_PART", 2)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    for rank in (1, 0):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        if rank == 1:
            with pytest.raises(OSError):  # files of the other process are not there yet
                make_features(model, cfg, tmp_path / "parts")
            kept = os.stat(next((tmp_path / "parts").glob("*.safetensors"))).st_mtime_ns
    counts = make_features(model, cfg, tmp_path / "parts")
    assert counts == {"images": 5, "captions": 10, "broken": 1}
    assert kept in {path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.safetensors")}

    whole, parts = (CaptionFeatures(sorted(tmp_path.glob(f"{name}/*.safetensors"))) for name in ("whole", "parts"))
    assert len(parts._files) == 3 and len(whole) == len(parts)
    for index in range(len(whole)):
        for name, value in whole[index].items():
            torch.testing.assert_close(parts[index][name], value, rtol=0, atol=1e-6)


def test_shards_have_features(in_world, tmp_path):
    cfg = load_config(CONFIG, [f"{KEY}.FEATURES", tmp_path / "features"])
    assert make_features(Talk2DINO(cfg).eval(), cfg, tmp_path / "features", num_threads=2)["images"] == 300
    assert len(CaptionFeatures(find_features(cfg))) == 300


@pytest.mark.fault("features of Talk2DINO of another model or other data, or that are not whole", "one error says so")
def test_unfit_features_are_named(made, tmp_path):
    made.SOLVER.IMS_PER_BATCH = 1
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 1; expected at least 2: Talk2DINO contrasts"):
        Trainer.build_train_loader(made)
    made.SOLVER.IMS_PER_BATCH = 4
    for key, value in (("NAME", "test_vit2"), ("IMAGE_SIZE", 96), ("PRETRAINED", "dino.pth")):
        other = made.clone()
        other.MODEL.TALK2DINO[key] = value
        with pytest.raises(ValueError, match=f"{KEY}.FEATURES: .* is of another {KEY}.{key} .*here {value}"):
            Trainer.build_train_loader(other)
    with pytest.raises(ValueError, match="is of another precision"):
        make_features(Talk2DINO(made).eval(), made, tmp_path / "features", half=True)

    (path,) = find_features(made)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is cut off, damaged"):
        find_features(made)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="has 0 of the 1 files of the features .*tcl-d2 features"):
        find_features(made)


@pytest.mark.fault("tcl-d2 features for a model that is not trained from them", "one error names the key")
def test_other_models_have_no_features(cfg):
    cfg.MODEL.META_ARCHITECTURE = "MaskCLIP"
    with pytest.raises(SystemExit, match="META_ARCHITECTURE is MaskCLIP; expected Talk2DINO"):
        run(cfg)


# ------------------------------------------------------------------------------------ training


def test_batches_are_whole_epochs_in_the_seeds_order(made, monkeypatch):
    """Each caption once an epoch; two processes have the halves of the batches of one."""
    loader = iter(build_feature_loader(made))
    texts = torch.stack([sample["text"] for _ in range(5) for sample in next(loader)])
    (path,) = find_features(made)
    assert len(CaptionFeatures([path])) == 10
    for epoch in texts.split(10):
        assert len({tuple(text.tolist()) for text in epoch}) == 6  # "a lava" is five of the ten
    assert not torch.equal(texts[:10], texts[10:])

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    second = next(iter(build_feature_loader(made)))
    assert torch.equal(torch.stack([sample["text"] for sample in second]), texts[2:4])
    feature_loader._order.cache_clear()


def test_a_killed_training_goes_on_with_the_same_losses(made):
    whole = train(made)
    expected = {name: value.clone() for name, value in whole.model.projection.state_dict().items()}
    losses = [value for value, _ in whole.storage.history("total_loss").values()]

    # From the checkpoint in the middle, as after a kill
    output = ROOT / made.OUTPUT_DIR
    (output / "last_checkpoint").write_text("model_0000002.pth")
    resumed = train(made, resume=True)
    assert [value for value, _ in resumed.storage.history("total_loss").values()] == losses[3:]
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.projection.state_dict().items())


def test_a_checkpoint_is_a_projection(made, tmp_path):
    """MODEL.TALK2DINO.PROJECTION takes a training's checkpoint."""
    projection = train(made).model.projection
    made.MODEL.TALK2DINO.PROJECTION = str(tmp_path / "output/model_final.pth")
    loaded = Talk2DINO(made).projection
    assert all(map(torch.equal, loaded.state_dict().values(), projection.state_dict().values()))
