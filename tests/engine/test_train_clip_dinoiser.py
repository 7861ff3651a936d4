"""CLIP-DINOiser's head in the training engine: from a folder of images, resumed after kills; what does not fit."""

import json
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng
from PIL import Image
from torch import nn

from tcl_d2 import load_config
from tcl_d2.assets import FOLDER
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.checkpoint.card import check_resume, make_card
from tcl_d2.commands.options.train import argument_parser
from tcl_d2.commands.train import check, main
from tcl_d2.data import UnlabeledImageMapper, register_image_folder
from tcl_d2.data.unlabeled import read_mask
from tcl_d2.engine import Trainer
from tcl_d2.engine.optimizer import trained_parameters
from tcl_d2.modeling import DenseCLIP, build_clip
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "dev"))
import kill_and_resume  # noqa: E402

CONFIG = ROOT / "configs/shapes/clip_dinoiser.yaml"
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 2514, "width": 32, "heads": 2, "layers": 1},
}
KEY = "MODEL.DENSE_CLIP.DINOISER"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of a small CLIP, a teacher with patches of the same size, and a head as the release's file has it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    shutil.copy(FOLDER / "shapes_clip/bpe.txt.gz", folder)
    CLIP["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": "bpe.txt.gz"}
    (folder / "clip.json").write_text(json.dumps(CLIP))
    torch.save(build_clip(str(folder / "clip.json"), "").state_dict(), folder / "clip.pt")
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "teacher.pth")

    head = nn.ModuleDict({"obj_proj": nn.Conv2d(32, 256, 3), "bkg_decoder": nn.Conv2d(32, 1, 1)})
    torch.save({"epoch": 3, "model_state_dict": head.state_dict()}, folder / "last.pt")
    return folder


@pytest.fixture
def images(in_world, tmp_path):
    """A folder of images, one of them in a folder below, and the masks of their objects."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    (images / "below").mkdir(parents=True)
    masks.mkdir()
    for number in range(6):
        source = in_world / f"shapes/val/images/{number:05}.png"
        shutil.copy(source, images / ("below" if number == 0 else "."))
        mask = np.zeros(np.asarray(Image.open(source)).shape[:2], np.uint8)
        mask[:, : 20 * number] = 255
        Image.fromarray(mask).save(masks / source.name)
    return images


@pytest.fixture
def options(models, images, tmp_path):
    """The configuration's options: a training from that folder, with masks."""
    options = ["MODEL.CLIP.NAME", models / "clip.json", "MODEL.CLIP.PRETRAINED", models / "clip.pt"]
    options += [f"{KEY}.TEACHER.NAME", "test_vit", f"{KEY}.TEACHER.PRETRAINED", models / "teacher.pth"]
    options += [f"{KEY}.FIND_OBJECTS", True, f"{KEY}.OBJECT_MASKS", tmp_path / "masks"]
    options += ["DATASETS.TRAIN", (str(images),), "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4]
    options += ["SOLVER.WARMUP_ITERS", 1, "DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", (), "VIS_PERIOD", 0]
    return [*options, "OUTPUT_DIR", tmp_path / "output"]


@pytest.fixture
def cfg(options):
    return load_config(CONFIG, options)


def train(cfg) -> Trainer:
    check(cfg, False, "")
    seed_all_rng(1)
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    return trainer


# ------------------------------------------------------------------------------------ training


def test_two_convolutions_are_trained_and_evaluated(cfg, models, tmp_path):
    """The checkpoint has them; an evaluation needs no teacher and no masks."""
    cfg.merge_from_list(["DATASETS.TEST", ("shapes_val",), "TEST.ZERO_SHOT.MAX_IMAGES", 2, f"{KEY}.WEIGHTS", ""])
    trainer = train(cfg)
    assert trained_parameters(trainer.model).keys() == {
        f"head.{name}" for name in ("obj_proj.weight", "obj_proj.bias", "bkg_decoder.weight", "bkg_decoder.bias")
    }
    assert {"loss_correlation", "loss_objects"} <= trainer.storage.histories().keys()
    assert trainer._last_eval_results["average"]["mIoU"] >= 0

    cfg.merge_from_list([f"{KEY}.TEACHER.PRETRAINED", "/nowhere.pth", f"{KEY}.OBJECT_MASKS", "/nowhere"])
    check(cfg, True, "")
    model = Trainer.build_model(cfg).eval()
    TCLCheckpointer(model).load(str(tmp_path / "output/model_final.pth"))
    results = Trainer.test(cfg, model)
    assert results["average"] == pytest.approx(trainer._last_eval_results["average"])


def test_losses_after_a_kill_are_the_uninterrupted_ones(in_world, options, models):
    """From shards, without masks; SIGKILL at a random moment. The first weights are from files."""
    options = [*options, "MODEL.META_ARCHITECTURE", "DenseCLIP", "MODEL.DENSE_CLIP.HEAD", "clip_dinoiser"]
    options += [f"{KEY}.FIND_OBJECTS", False, f"{KEY}.WEIGHTS", models / "last.pt", "SOLVER.MAX_ITER", 12]
    options += ["DATASETS.TRAIN", ("shapes_train",), "DATALOADER.NUM_WORKERS", 1, "SOLVER.BASE_LR", 1e-3]
    skipped = options.index("OUTPUT_DIR")
    del options[skipped : skipped + 2]
    result = kill_and_resume.run(kills=1, iterations=12, seed=0, options=options)
    assert result["all iterations"] and result["last iteration"] == 11
    assert result["largest difference"] <= 1e-4


def test_the_command_trains_from_a_folder_and_resumes(options, tmp_path, monkeypatch):
    """With the optimizer's states of both groups: the same weights as without a stop."""
    monkeypatch.chdir(tmp_path)
    options = [
        *map(str, options),
        f"{KEY}.WEIGHTS",
        "",
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
        "DATASETS.TRAIN",
        "('./images',)",
    ]
    arguments = ["--config-file", str(CONFIG)]
    main(argument_parser().parse_args([*arguments, *options]))
    output = tmp_path / "output"
    whole = torch.load(output / "model_final.pth", weights_only=True)["model"]

    for name in ("model_0000003.pth", "model_final.pth"):
        (output / name).unlink()
    (output / "last_checkpoint").write_text("model_0000001.pth")
    main(argument_parser().parse_args([*arguments, "--resume", *options]))
    resumed = torch.load(output / "model_final.pth", weights_only=True)["model"]
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------ images and masks


def test_image_and_mask_stay_in_step(images, tmp_path):
    """Through size, crop and flip; brightness is the image's alone."""
    halves = np.zeros((60, 90, 3), np.uint8)
    halves[:, 40:] = 100
    Image.fromarray(halves).save(tmp_path / "halves.png")
    (tmp_path / "their_masks").mkdir()
    Image.fromarray(halves[..., 0] // 100 * 255).save(tmp_path / "their_masks/halves.png")
    mapper = UnlabeledImageMapper(size=48, object_masks=str(tmp_path / "their_masks"))

    factors, means = [], []
    for _ in range(20):
        sample = mapper({"file_name": str(tmp_path / "halves.png")})
        image, objects = sample["image"], sample["objects"]
        assert image.shape == (3, 48, 48) and objects.shape == (1, 48, 48)
        factor = image.max() / 100
        torch.testing.assert_close(image, (objects * 100 * factor).expand(3, -1, -1))
        factors.append(factor.item())
        means.append(objects[0, 0, 0].item())
    assert 0.5 <= min(factors) < 0.8 and 1.2 < max(factors) <= 1.5 and {0.0, 1.0} <= set(means)


def test_sizes_are_those_of_the_release(tmp_path):
    """The long side is cut off to whole pixels; without antialias, as its torchvision resizes tensors."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 151, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    mapper = UnlabeledImageMapper(size=48, flip_prob=0, brightness=0)
    image = mapper({"file_name": str(tmp_path / "x.png")})["image"]
    resized = nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), size=(48, 72), mode="bilinear"
    )[0]
    differences = [(resized[:, :, left : left + 48] - image).abs().max() for left in range(25)]
    assert min(differences) < 1e-3


def test_a_folder_of_images_is_a_dataset(images):
    register_image_folder("images_of_a_test", str(images))
    try:
        assert [row.keys() for row in DatasetCatalog.get("images_of_a_test")] == [{"file_name"}] * 6
    finally:
        DatasetCatalog.remove("images_of_a_test")


@pytest.mark.fault("a mask of objects that is missing, of another size, or of 0 and 1", "an error names it")
def test_unfit_masks_are_named(images, tmp_path):
    for name, mask in {"small": np.zeros((5, 4)), "ones": np.eye(6)}.items():
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.raises(OSError, match="none.png cannot be read"):
        read_mask(tmp_path / "none.png", (6, 6))
    with pytest.raises(OSError, match="small.png has 4 x 5 pixels, but its image 6 x 6"):
        read_mask(tmp_path / "small.png", (6, 6))
    with pytest.raises(OSError, match="ones.png has the values 0 and 1; expected 0 to 255"):
        read_mask(tmp_path / "ones.png", (6, 6))


# ------------------------------------------------------------------------------------ what does not fit


@pytest.mark.fault("a training of CLIP-DINOiser's head whose parts do not fit", "one error each, before it starts")
@pytest.mark.parametrize(
    "change, message",
    [
        (["DATASETS.TRAIN", ("shapes_sem_seg_train",)], "DATASETS.TRAIN is .*; expected images without labels"),
        ([f"{KEY}.OBJECT_MASKS", "/nowhere"], "OBJECT_MASKS: there is no folder '/nowhere'.*FIND_OBJECTS False"),
        ([f"{KEY}.OBJECT_MASKS", "tests"], r"OBJECT_MASKS: 6 of 6 masks of the images of .* are missing, such as"),
        ([f"{KEY}.TEACHER.NAME", "test_vitt"], "TEACHER.NAME is 'test_vitt', which timm .* does not have"),
        ([f"{KEY}.TEACHER.NAME", "resnet18"], "TEACHER.NAME is 'resnet18', a ResNet; expected a VisionTransformer"),
        ([f"{KEY}.TEACHER.NAME", "vit_small_patch8_224"], "patches of 8 pixels; expected 16, as MODEL.CLIP.NAME"),
        ([f"{KEY}.TEACHER.PRETRAINED", "/nowhere.pth"], "TEACHER.PRETRAINED: there is no file '/nowhere.pth'"),
        (["INPUT.IMAGE_TEXT.SIZE", 56], "INPUT.IMAGE_TEXT.SIZE is 56; expected a multiple of CLIP's patches, 16"),
        ([f"{KEY}.GAMMA", 1.5], "DINOISER.GAMMA is 1.5; expected more than -1 and less than 1"),
    ],
)
def test_what_does_not_fit_is_said_at_the_start(cfg, change, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg.merge_from_list(change)
    with pytest.raises(ValueError, match=message):
        check(cfg, False, "")


@pytest.mark.fault("a training of a dense head that has nothing to train", "one error says to evaluate it")
def test_other_heads_have_nothing_to_train(cfg):
    cfg.MODEL.DENSE_CLIP.HEAD = "sclip"
    with pytest.raises(ValueError, match="DenseCLIP has nothing to train; evaluate it with --eval-only"):
        Trainer(cfg)


@pytest.mark.fault("weights of a head for another CLIP, for no head, or a CLIP of too few blocks", "one error each")
def test_unfit_weights_of_a_head_are_named(cfg, models, tmp_path):
    torch.save({"obj_proj.weight": torch.zeros(2)}, tmp_path / "other.pt")
    cfg.merge_from_list([f"{KEY}.WEIGHTS", str(tmp_path / "other.pt")])
    with pytest.raises(ValueError, match="DINOISER.WEIGHTS: .*other.pt' does not fit a clip_dinoiser for MODEL.CLIP"):
        DenseCLIP(cfg)

    cfg.merge_from_list([f"{KEY}.WEIGHTS", str(models / "last.pt"), "MODEL.CLIP.PRETRAINED", ""])
    for field, value, message in (("width", 64, r"the file has \(256, 32, 3, 3\)"), ("layers", 2, "MODEL.CLIP has 2")):
        clip = {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], field: value}}
        path = models / f"{field}.json"
        path.write_text(json.dumps(clip))
        cfg.MODEL.CLIP.NAME = str(path)
        with pytest.raises(ValueError, match=message):
            DenseCLIP(cfg)


@pytest.mark.fault("--resume of CLIP-DINOiser without its second convolution", "one error names the key")
def test_another_number_of_convolutions_is_not_resumed(cfg):
    checkpoint = {"card": make_card(cfg), "iteration": 1}
    cfg.merge_from_list([f"{KEY}.FIND_OBJECTS", False])
    with pytest.raises(ValueError, match="DINOISER.FIND_OBJECTS say .*False.*was trained with .*True"):
        check_resume("model.pth", checkpoint, make_card(cfg))


@pytest.mark.fault("CLIP-DINOiser's probabilities under a second softmax", "the error names the key")
def test_a_second_softmax_is_refused(cfg):
    cfg.TEST.ZERO_SHOT.LOGIT_SCALE = 40.0
    with pytest.raises(ValueError, match="LOGIT_SCALE is 40.0; expected 0: MODEL.DENSE_CLIP.SCORES probability"):
        DenseCLIP(cfg)
