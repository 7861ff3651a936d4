"""A model's folder for the hub: what is written, what from_pretrained takes, and what it refuses."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from tcl_d2 import load_config
from tcl_d2.checkpoint import carried_config, from_official, read_checkpoint
from tcl_d2.checkpoint.hub import is_hub_name, portable_config
from tcl_d2.commands import convert
from tcl_d2.data.shapes import draw_scene
from tcl_d2.predictor import TCLPredictor
from tests import golden
from tests.conftest import ROOT

TRAINED = ROOT / "tcl_d2/assets/shapes_tcl/weights.safetensors"
CONFIG = ROOT / "configs/shapes/trained.yaml"


def write_folder(*arguments: object) -> None:
    """As `tools/convert_checkpoint.py ARGUMENTS` does."""
    convert.main(convert.argument_parser().parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "small-world"
    write_folder(TRAINED, "--hub", folder, "--config-file", CONFIG)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(written, tmp_path / "small-world"))


@pytest.fixture
def hub(written, tmp_path, monkeypatch) -> Path:
    """The hub client without a network; its cache has owner/small. Gives the snapshot's folder."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache/models--owner--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    return Path(shutil.copytree(written, repository / "snapshots" / ("0" * 40)))


def labels(predictor: TCLPredictor) -> torch.Tensor:
    return torch.from_numpy(predictor(draw_scene(seed=7, index=0, size=60).image, ["brick", "sand", "lava"]).labels)


def test_a_folder_gives_the_same_model_from_anywhere(written, monkeypatch, tmp_path):
    expected = labels(TCLPredictor(CONFIG))
    monkeypatch.chdir(tmp_path)
    assert torch.equal(labels(TCLPredictor.from_pretrained("shapes")), expected)
    predictor = TCLPredictor.from_pretrained(written, "TEST.ZERO_SHOT.BACKGROUND_SCORE", 0.125)
    assert torch.equal(labels(predictor), expected) and predictor.model.background_score == 0.125


def test_a_model_of_the_hub_is_taken_from_the_cache(hub):
    assert torch.equal(labels(TCLPredictor.from_pretrained("owner/small")), labels(TCLPredictor(CONFIG)))


def test_the_models_that_have_names(monkeypatch):
    monkeypatch.setattr(TCLPredictor, "__init__", lambda self, cfg, *options: setattr(self, "cfg", (cfg, options)))
    cfg, options = TCLPredictor.from_pretrained("official", "MODEL.WEIGHTS", "/tcl.pth").cfg
    assert cfg.MODEL.WEIGHTS.endswith("/v1.0.0/tcl.pth") and options == ("MODEL.WEIGHTS", "/tcl.pth")
    assert TCLPredictor.from_pretrained("shapes/trained.yaml").cfg[0].MODEL.WEIGHTS.startswith("tcl_d2://")


def test_the_folder_stands_alone(written):
    """Its configuration is whole, and its card says what it is in the hub's format."""
    assert sorted(path.name for path in written.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    values = yaml.safe_load((written / "config.yaml").read_text())
    assert "_BASE_" not in values and values["MODEL"]["CLIP"]["NAME"] == "tcl_d2://shapes_clip/model.json"
    assert values["TEST"]["ZERO_SHOT"]["TEXT_CACHE"] == load_config().TEST.ZERO_SHOT.TEXT_CACHE
    card = ModelCard((written / "README.md").read_text())
    assert card.data.pipeline_tag == "image-segmentation" and "zero-shot" in card.data.tags
    assert 'from_pretrained("OWNER/small-world")' in card.text and "shapes_train" in card.text
    carried = read_checkpoint(str(written / "model.safetensors"))["card"]["configuration"]
    assert carried == (written / "config.yaml").read_text()


def test_the_card_says_no_data_of_weights_that_do_not(tmp_path):
    """A configuration names data for a training, of which weights without a card need not come."""
    save_file(load_file(TRAINED), tmp_path / "x.safetensors")
    write_folder(tmp_path / "x.safetensors", "--hub", tmp_path / "model", "--config-file", CONFIG)
    text = (tmp_path / "model/README.md").read_text()
    assert "trained on" not in text and "versions" not in text and "| CLIP | tcl_d2://shapes_clip/model.json" in text


def test_the_shipped_models_card_has_a_configuration_of_today():
    cfg = load_config()
    cfg.merge_from_other_cfg(carried_config(read_checkpoint(str(TRAINED)), str(TRAINED)))
    trained = load_config(CONFIG)
    assert (cfg.MODEL.TCL, cfg.SOLVER, cfg.TEST.ZERO_SHOT) == (
        trained.MODEL.TCL,
        trained.SOLVER,
        trained.TEST.ZERO_SHOT,
    )


def test_a_training_checkpoint_brings_its_own_configuration(shapes_cfg, tmp_path):
    """With the frozen CLIP: no file of CLIP's weights is needed. Stripped: CLIP by its name."""
    from tcl_d2.engine import Trainer

    Trainer(shapes_cfg).checkpointer.save("model_final", iteration=1)
    checkpoint = f"{shapes_cfg.OUTPUT_DIR}/model_final.pth"
    write_folder(checkpoint, "--hub", tmp_path / "whole", "--opts", "MODEL.TCL.AREA_PRIOR", "0.25")
    cfg = TCLPredictor.from_pretrained(tmp_path / "whole").cfg
    assert (cfg.MODEL.CLIP.PRETRAINED, cfg.MODEL.TCL.AREA_PRIOR) == ("", 0.25)
    write_folder(checkpoint, "--hub", tmp_path / "small", "--strip")
    predictor = TCLPredictor.from_pretrained(tmp_path / "small")
    assert predictor.cfg.MODEL.CLIP.PRETRAINED.endswith("shapes_clip/weights.safetensors")
    whole, small = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "small"))
    assert small.keys() == {name for name in whole if name.startswith(("grounder.", "sim2mask."))} != whole.keys()


@pytest.mark.parametrize(
    "name, pretrained, expected",
    [
        ("ViT-B-16", "openai", ("ViT-B-16-quickgelu", "")),
        ("ViT-L-14-336-quickgelu", "openai", ("ViT-L-14-336-quickgelu", "")),
        ("ViT-B-16", "laion2b_s34b_b88k", ("ViT-B-16", "")),
        ("ViT-B-16-quickgelu", "", ("ViT-B-16-quickgelu", "")),
    ],
)
def test_the_clip_in_the_weights_keeps_its_activation(name, pretrained, expected):
    """OpenAI's weights go with QuickGELU, which is only known from where they came."""
    cfg = load_config(None, ["MODEL.CLIP.NAME", name, "MODEL.CLIP.PRETRAINED", pretrained])
    whole = portable_config(cfg, {"clip.model.logit_scale": torch.zeros(1)}).MODEL.CLIP
    assert whole == {**cfg.MODEL.CLIP, "NAME": expected[0], "PRETRAINED": expected[1]}
    assert portable_config(cfg, {"grounder.w": torch.zeros(1)}).MODEL.CLIP == cfg.MODEL.CLIP


@pytest.mark.fault("--hub: a CLIP that is a file of this disk", "an error that says what others would lack")
def test_files_of_this_disk_are_no_part_of_a_folder(tmp_path):
    clip, weights = golden.write_clip(tmp_path)
    torch.save({"model": from_official(golden.load()["model"])}, tmp_path / "x.pth")
    folder = ["--hub", tmp_path / "hub", "--config-file", ROOT / "configs/tcl.yaml", "--opts"]
    with pytest.raises(SystemExit, match="MODEL.CLIP.NAME is '.*golden_clip.json', a file that others do not have"):
        write_folder(tmp_path / "x.pth", *folder, "MODEL.CLIP.NAME", clip)
    options = ["MODEL.CLIP.PRETRAINED", weights]
    with pytest.raises(SystemExit, match="MODEL.CLIP.PRETRAINED is '.*golden_clip.pt'.*give the tag"):
        write_folder(tmp_path / "x.pth", "--strip", *folder, *options)
    assert not (tmp_path / "hub").exists()


@pytest.mark.fault("--hub: a folder that has files, or weights that the configuration does not fit", "nothing written")
def test_nothing_is_replaced_and_nothing_unfit_written(folder, tmp_path):
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SystemExit, match="has files already .README.md, config.yaml, model.safetensors.: give another"):
        write_folder(TRAINED, "--hub", folder, "--config-file", CONFIG)
    with pytest.raises(SystemExit, match="README.md' is a file: give a folder"):
        write_folder(TRAINED, "--hub", folder / "README.md", "--config-file", CONFIG)
    assert content == {path.name: path.read_bytes() for path in folder.iterdir()}
    options = ["--hub", tmp_path / "new", "--config-file", CONFIG, "--opts", "MODEL.TCL.FREEZE", "4"]
    with pytest.raises(SystemExit, match="does not fit the model"):
        write_folder(TRAINED, *options)
    assert not (tmp_path / "new").exists()


@pytest.mark.fault(
    "a model's folder, or the hub's, without configuration or weights", "an error that says what is missing"
)
@pytest.mark.parametrize("lost", ["config.yaml", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(folder, hub, lost):
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"small-world' is no model for from_pretrained: it has no {lost}"):
        TCLPredictor.from_pretrained(folder)
    (hub / lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"'owner/small' is no model for from_pretrained: it has no {lost}"):
        TCLPredictor.from_pretrained("owner/small")


@pytest.mark.fault(
    "a model of the hub that is neither in the cache nor to be downloaded", "one error that says what to do"
)
def test_a_model_that_cannot_be_downloaded(hub):
    with pytest.raises(OSError, match=r"no folder 'owner/other', and the hub's.*Look at the name.*HF_TOKEN.*HF_HOME"):
        TCLPredictor.from_pretrained("owner/other")
    with pytest.raises(ValueError, match="no model 'offical': expected official, shapes, a folder"):
        TCLPredictor.from_pretrained("offical")
    assert not is_hub_name("/a/b") and not is_hub_name("../b") and not is_hub_name("a/b/c")


@pytest.mark.fault("weights in a model's folder that its card does not tell of", "an error with both checksums")
def test_damaged_weights_are_found_by_the_cards_checksum(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"not the file that README.md beside it tells of: its SHA-256 is \w{64}, exp"):
        TCLPredictor.from_pretrained(folder)

    # Without the card, or with one of another program, nobody knows better
    (folder / "README.md").write_text("# my model\n")
    TCLPredictor.from_pretrained(folder)
    (folder / "README.md").write_text("---\n- a: [\n---\n")
    with pytest.raises(ValueError, match="README.md' has a damaged head"):
        TCLPredictor.from_pretrained(folder)


@pytest.mark.fault("a model's folder with weights of another CLIP", "an error that names both")
def test_weights_of_another_clip_are_named(folder):
    (folder / "README.md").unlink()
    save_file(from_official(golden.load()["model"]), folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"model.safetensors' does not fit .* made with a CLIP of width 128 and 32 dim"
    ):
        TCLPredictor.from_pretrained(folder)


@pytest.mark.fault("a model's folder whose configuration is broken or not whole", "an error that names it")
@pytest.mark.parametrize("text", ["MODEL: [1", "- a\n", "_BASE_: other.yaml\n", "NO_SUCH_KEY: 3\n", "SEED: [1]\n"])
def test_configurations_that_cannot_be_used(folder, text):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="small-world/config.yaml' cannot be used as a configuration"):
        TCLPredictor.from_pretrained(folder)


@pytest.mark.fault("a model's folder whose configuration names code to import", "the code is not run")
def test_no_code_is_run_for_a_folder(folder, tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with (folder / "config.yaml").open("a") as file:
        file.write(f"IMPORTS: ['{tmp_path / 'evil.py'}']\n")
    values = yaml.safe_load((folder / "config.yaml").read_text())
    assert values["IMPORTS"] and TCLPredictor.from_pretrained(folder) and not (tmp_path / "ran").exists()
