"""A model's folder for the hub: what is written, what from_pretrained takes, and what it refuses."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from tcl_d2 import load_config
from tcl_d2.checkpoint import from_official, read_checkpoint
from tcl_d2.checkpoint.card import carried_config
from tcl_d2.checkpoint.hub import is_hub_name, portable_config
from tcl_d2.checkpoint.model_config import model_config
from tcl_d2.commands import convert
from tcl_d2.commands.options.convert import argument_parser
from tcl_d2.data.shapes import draw_scene
from tcl_d2.predictor import TCLPredictor
from tests import golden
from tests.conftest import ROOT

TRAINED = ROOT / "tcl_d2/assets/shapes_tcl/weights.safetensors"
CONFIG = ROOT / "configs/shapes/trained.yaml"


def write_folder(*arguments: object) -> None:
    """As `tcl-d2 convert ARGUMENTS` does."""
    convert.main(argument_parser().parse_args([str(argument) for argument in arguments]))


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
    """Its configuration says what the model is and no place, and its card what it is in the hub's format."""
    assert sorted(path.name for path in written.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    values = yaml.safe_load((written / "config.yaml").read_text())
    assert "_BASE_" not in values and values["MODEL"]["CLIP"]["NAME"] == "tcl_d2://shapes_clip/model.json"
    assert values.keys() == {"MODEL", "INPUT", "TEST"} and "TEXT_CACHE" not in values["TEST"]["ZERO_SHOT"]
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
    with pytest.raises(ValueError, match=r"not the file that '.*README.md' tells of: .* \w{64}, .* \w{64}"):
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


def change(file: Path, **values: object) -> None:
    """Set keys of a YAML file; their names have __ for a dot."""
    content = yaml.safe_load(file.read_text())
    for key, value in values.items():
        *sections, name = key.split("__")
        section = content
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    file.write_text(yaml.safe_dump(content))


@pytest.mark.fault("a model's folder whose configuration sets folders, code, data or a training", "refused by its key")
@pytest.mark.parametrize(
    "key, value",
    [
        ("IMPORTS", ["evil.py"]),
        ("OUTPUT_DIR", "chosen"),
        ("TEST.ZERO_SHOT.TEXT_CACHE", "chosen"),
        ("TEST.ZERO_SHOT.SIMILARITY", "chosen"),
        ("TEST.ZERO_SHOT.WORDS", "chosen"),
        ("TEST.ZERO_SHOT.BY_DATASET", {"voc": ["TEST.ZERO_SHOT.WORDS", "chosen"]}),
        ("MODEL.WEIGHTS", "chosen"),
        ("MODEL.RECO.INDEX", "chosen"),
        ("MODEL.RECO.CACHE", "chosen"),
        ("MODEL.GROUPVIT.MULTI_LABEL.WORDS", "chosen"),
        ("DATASETS.TRAIN", ["chosen"]),
        ("SOLVER.MAX_ITER", 3),
        ("WANDB.PROJECT", "chosen"),
        ("MODEL.CLIP", 3),
        ("SOLVER.NO_SUCH_KEY", 3),
    ],
)
def test_a_models_configuration_sets_no_places(folder, tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chosen").mkdir()
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    change(folder / "config.yaml", **{key.replace(".", "__"): value})
    with pytest.raises(ValueError, match=rf"config.yaml' cannot be used .*{key}\b"):
        TCLPredictor.from_pretrained(folder)
    assert not list((tmp_path / "chosen").iterdir()) and not (tmp_path / "ran").exists()


@pytest.mark.fault("a model's folder whose configuration names files elsewhere, or addresses", "refused by its key")
@pytest.mark.parametrize(
    "key, value",
    [
        *(("MODEL.CLIP.NAME", name) for name in ("hf-hub:a/b", "local-dir:{}", "{}/clip.json", "http://a.b/clip.json")),
        *(("MODEL.CLIP.NAME", name) for name in ("tcl_d2://../../clip.json", "tcl_d2://{}/clip.json", "clip.json")),
        *(("MODEL.CLIP.PRETRAINED", name) for name in ("{}/x.pt", "../x.pt", "link.pt", "x.pt", "https://a.b/x.pt")),
        *(("MODEL.CLIP.PRETRAINED", name) for name in ("'{}/x.pt'", "hf-hub:a/b", "tcl_d2://{}/x.pt", "/dev/null")),
        *(("MODEL.DENSE_CLIP.PROXY.NAME", name) for name in ("hf-hub:a/b", "local-dir:{}", "hf_hub:a")),
        *(("MODEL.RECO.ENCODER.NAME", name) for name in ("hf-hub:a/b", "timm/a")),
        *(("MODEL.DENSE_CLIP.PROXY.PRETRAINED", name) for name in ("{}/x.pt", "x")),
        *(("MODEL.RECO.ENCODER.PRETRAINED", name) for name in ("{}/x.pt", "https://a.b/x.pt")),
        *(("MODEL.GROUPVIT.WEIGHTS", name) for name in ("{}", "owner/name", "gpt2")),
        ("MODEL.META_ARCHITECTURE", "{}/x.pt"),
    ],
)
def test_a_models_configuration_names_nothing_elsewhere(folder, tmp_path, monkeypatch, key, value):
    """Though there are such files: in the current folder, beside the model's, and behind a link in it."""
    monkeypatch.chdir(tmp_path)
    torch.save({}, tmp_path / "x.pt")
    shutil.copy(ROOT / "tcl_d2/assets/shapes_clip/model.json", tmp_path / "clip.json")
    (folder / "link.pt").symlink_to(tmp_path / "x.pt")
    change(folder / "config.yaml", **{key.replace(".", "__"): value.format(tmp_path)})
    with pytest.raises(ValueError, match=f"config.yaml' cannot be used .*{key} is "):
        TCLPredictor.from_pretrained(folder)


def test_every_text_of_a_models_configuration_is_held(tmp_path):
    """Whatever key is added: a path elsewhere is refused, by the model's configuration or as no place of it."""
    (tmp_path / "x.pt").touch()
    for key in text_keys(load_config()):
        *sections, name = key.split(".")
        values = {name: str(tmp_path / "x.pt")}
        for section in reversed(sections):
            values = {section: values}
        with pytest.raises(ValueError, match=rf"{key}\b"):
            model_config(values, tmp_path / "model")


def text_keys(cfg: dict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in cfg.items():
        if isinstance(value, dict):
            keys += text_keys(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            keys.append(f"{prefix}{name}")
    return keys


def test_a_models_configuration_names_files_of_its_own(folder, monkeypatch, tmp_path):
    shutil.copy(ROOT / "tcl_d2/assets/shapes_clip/weights.safetensors", folder / "clip.safetensors")
    change(folder / "config.yaml", MODEL__CLIP__PRETRAINED="clip.safetensors", MODEL__WEIGHTS="model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert str(folder / "clip.safetensors") == TCLPredictor.from_pretrained("small-world").cfg.MODEL.CLIP.PRETRAINED


@pytest.mark.fault("a model's folder with a training's whole configuration", "the model's part of it alone is taken")
def test_of_a_whole_configuration_the_models_part_is_taken(folder, tmp_path):
    """As earlier versions wrote it; no code of it is run."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    cfg = load_config(CONFIG, ["SOLVER.MAX_ITER", 3, "OUTPUT_DIR", tmp_path / "out", "TEST.ZERO_SHOT.KP_WEIGHT", 0.25])
    cfg.IMPORTS, cfg.TEST.ZERO_SHOT.TEXT_CACHE = [str(tmp_path / "evil.py")], str(tmp_path / "cache")
    (folder / "config.yaml").write_text(cfg.dump())
    predictor = TCLPredictor.from_pretrained(folder)
    predictor(draw_scene(seed=7, index=0, size=60).image, ["brick", "sand"])
    assert predictor.cfg.TEST.ZERO_SHOT.KP_WEIGHT == 0.25 and predictor.cfg.SOLVER == load_config().SOLVER
    assert not any((tmp_path / name).exists() for name in ("ran", "out", "cache"))


@pytest.mark.fault("a checkpoint whose own configuration names files elsewhere", "refused by the key; --config-file")
def test_a_checkpoint_names_nothing_elsewhere(tmp_path):
    cfg = load_config(CONFIG, ["MODEL.CLIP.PRETRAINED", "/x/y.pt"])
    save_file(load_file(TRAINED), tmp_path / "x.safetensors", {"card": json.dumps({"configuration": cfg.dump()})})
    with pytest.raises(SystemExit, match="--config-file.*x.safetensors'.*: MODEL.CLIP.PRETRAINED is '/x/y.pt'"):
        write_folder(tmp_path / "x.safetensors", "--hub", tmp_path / "model")


NESTED = {
    "lists": "[" * 5000,
    "keys": "".join(f"{' ' * depth}a:\n" for depth in range(1000)),
    "aliases": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
    "keys of aliases": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 40)),
}


@pytest.mark.fault("YAML or JSON of a model that is nested deeply, or unfolds to any size", "one error that names it")
@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_nested_texts_are_refused(folder, tmp_path, text):
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    with pytest.raises(ValueError, match="README.md' has a damaged head"):
        TCLPredictor.from_pretrained(folder)
    (folder / "README.md").unlink()
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="small-world/config.yaml' cannot be used as a configuration"):
        TCLPredictor.from_pretrained(folder)

    for card in ("[" * 100_000, json.dumps({"configuration": text})):
        save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"card": card})
        with pytest.raises(ValueError, match="x.safetensors' has a damaged card"):
            carried_config(read_checkpoint(str(tmp_path / "x.safetensors")), str(tmp_path / "x.safetensors"))


def digest_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_checksum_may_be_written_in_other_ways(folder):
    for text in (digest_of(folder).upper(), f"sha256:{digest_of(folder)}"):
        (folder / "README.md").write_bytes(f"---\r\nweights_sha256: '{text}'\r\n---\r\n# model\r\n".encode())
        TCLPredictor.from_pretrained(folder)


@pytest.mark.fault("a model's card that cannot be read, or whose checksum is damaged", "one error; never unchecked")
@pytest.mark.parametrize("damage", ["folder", "pipe", "dangling link", "bytes", "short", "empty", "no key", "no head"])
def test_a_card_that_cannot_be_read_is_no_missing_card(folder, damage):
    card = folder / "README.md"
    text, digest = card.read_text(), digest_of(folder)
    card.unlink()
    if damage == "folder":
        card.mkdir()
    elif damage == "pipe":
        os.mkfifo(card)
    elif damage == "dangling link":
        card.symlink_to(folder / "none")
    else:
        replaced = {"short": digest[:12], "empty": "", "bytes": digest}.get(damage, digest)
        text = text.replace(digest, replaced)
        text = text.replace("weights_sha256:", "weights_sha257:") if damage == "no key" else text
        text = text.replace("\n---", "\n") if damage == "no head" else text
        card.write_bytes((b"\xff" if damage == "bytes" else b"") + text.encode())
    with pytest.raises(ValueError, match="README.md' (is no file|has a damaged head|tells of)"):
        TCLPredictor.from_pretrained(folder)
