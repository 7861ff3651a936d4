"""Configuration: it survives a round trip, every shipped file builds, and every key is documented."""

import re
import sys

import open_clip
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

import tcl_d2
from tcl_d2 import load_config
from tcl_d2.config import merge_options
from tcl_d2.config.loading import dataset_config
from tcl_d2.config.meanings import documented_keys
from tcl_d2.modeling import DENSE_HEAD_REGISTRY
from tcl_d2.modeling.checks import check_meta_architecture
from tcl_d2.utils.downloads import PathManager
from tests import golden
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "dev"))
import config_table  # noqa: E402

CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_dumped_config_is_read_as_it_was(path, tmp_path):
    cfg = load_config(path)
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    again = load_config(tmp_path / "dumped.yaml")
    assert as_lists(again) == as_lists(cfg)


def as_lists(value: object) -> object:
    """Return a configuration without the difference of tuple and list."""
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if "shapes" in path.parts and path.stem != "reco"],  # which needs an index
    ids=lambda path: path.stem,
)
def test_small_worlds_configs_build_a_model(path):
    cfg = load_config(path)
    model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    if cfg.MODEL.META_ARCHITECTURE == "TCL":
        assert list(model.losses) == [*cfg.MODEL.TCL.LOSS_HEADS, *cfg.MODEL.TCL.EXTRA_LOSS_HEADS]


def test_official_config_has_openais_clip():
    """Built without OpenAI's weights, it must have the layers and the activation that these would bring."""
    clip, paper = (load_config(ROOT / path).MODEL.CLIP for path in ("configs/eval/official.yaml", "configs/tcl.yaml"))
    assert open_clip.get_pretrained_cfg(paper.NAME, paper.PRETRAINED)["quick_gelu"]
    assert open_clip.get_model_config(clip.NAME) == {**open_clip.get_model_config(paper.NAME), "quick_gelu": True}


def test_config_reaches_the_model(tmp_path):
    clip, weights = golden.write_clip(tmp_path)
    cfg = load_config(ROOT / "configs/tcl.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.CLIP.NAME", str(clip), "MODEL.CLIP.PRETRAINED", str(weights)])
    cfg.merge_from_list(["MODEL.TCL.FREEZE", 1, "MODEL.TCL.AREA_PRIOR", 0.25, "MODEL.TCL.GUMBEL_TAU", 0.5])
    cfg.merge_from_list(["TEST.ZERO_SHOT.KP_WEIGHT", 0.1, "TEST.ZERO_SHOT.PAMR.ITERS", 3])
    model = build_model(cfg)
    assert len(model.grounder.blocks) == 2 and model.sim2mask.tau == 0.5 and model.kp_weight == 0.1
    assert model.losses["PositiveAreaLoss"].prior == 0.25 and model.refiner.iterations == 3
    assert not any(p.requires_grad for p in model.grounder.blocks.parameters())  # first stage


def add_other_plugin(cfg: CfgNode) -> None:
    """Add keys as another plugin does, which has nodes of the same names."""
    cfg.MODEL.CLIP = CfgNode({"NAME": "RN50", "FREEZE": True})
    cfg.TEST.ZERO_SHOT = CfgNode({"SHOTS": 0})
    cfg.INPUT.IMAGE_TEXT = CfgNode({"MAX_WORDS": 30})


def test_keys_are_added_to_those_of_another_plugin():
    """Its values stay, whether it is called before or, if TCL's is called again, after."""
    before, after = get_cfg(), get_cfg()
    add_other_plugin(before)
    tcl_d2.add_tcl_config(before)
    tcl_d2.add_tcl_config(after)
    add_other_plugin(after)
    with pytest.raises(ValueError, match="MODEL.CLIP.PRETRAINED: another plugin.*add_tcl_config after it"):
        check_meta_architecture(load_over(after, "MODEL.META_ARCHITECTURE", "TCL"))

    tcl_d2.add_tcl_config(after)
    assert before == after and before.MODEL.CLIP.FREEZE and before.MODEL.CLIP.NAME == "RN50"
    assert before.TEST.ZERO_SHOT.SHOTS == 0 and before.TEST.ZERO_SHOT.KP_WEIGHT == 0.3
    before.merge_from_file(str(ROOT / "configs/shapes/tcl.yaml"))
    assert type(build_model(before)).__name__ == "TCL"


def load_over(cfg: CfgNode, *options: object) -> CfgNode:
    cfg = cfg.clone()
    cfg.merge_from_list(list(options))
    return cfg


def test_keys_are_added_once():
    """A second call leaves the values that were set since; renamed keys are still read."""
    cfg = get_cfg()
    tcl_d2.add_tcl_config(cfg)
    cfg.TEST.ZERO_SHOT.KP_WEIGHT = 0.1
    once = cfg.clone()
    tcl_d2.add_tcl_config(cfg)
    assert cfg == once and cfg.key_is_renamed("TEST.ZERO_SHOT.PAMR.ENABLED")


def test_a_value_in_the_place_of_keys_is_named():
    cfg = get_cfg()
    cfg.MODEL.CLIP = "ViT-B-16"
    with pytest.raises(ValueError, match="MODEL.CLIP is 'ViT-B-16'"):
        tcl_d2.add_tcl_config(cfg)


def test_detectron2s_own_keys_come_with_tcls_configs():
    """A detector's config that is merged after add_tcl_config alone stays as it is."""
    cfg, theirs = get_cfg(), dict(leaves(get_cfg()))
    tcl_d2.add_tcl_config(cfg)
    ours = dict(leaves(cfg))
    assert {key: ours[key] for key in theirs} == theirs
    for name in ("tcl.yaml", "shapes/trained.yaml"):
        merged = cfg.clone()
        merged.merge_from_file(str(ROOT / "configs" / name))
        assert merged == load_config(name)


@pytest.mark.fault("a model of TCL's under Detectron2's own order and scale of colors", "one error that names the key")
@pytest.mark.parametrize(
    "options, key", [([], "INPUT.FORMAT"), (["INPUT.FORMAT", "RGB"], "MODEL.PIXEL_MEAN is .*BGR.*tcl.yaml")]
)
def test_a_model_under_detectron2s_defaults_is_refused(options, key):
    """As after add_tcl_config and a config file that does not begin with one of TCL's."""
    cfg = get_cfg()
    tcl_d2.add_tcl_config(cfg)
    clip = ["MODEL.CLIP.NAME", "tcl_d2://shapes_clip/model.json", "MODEL.CLIP.PRETRAINED", ""]
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "MaskCLIP", "MODEL.DEVICE", "cpu", *clip, *options])
    with pytest.raises(ValueError, match=key):
        build_model(cfg)


@pytest.mark.parametrize("name", ["GeneralizedRCNN", "NoSuchModel", ""])
def test_a_model_that_is_no_segmentor_is_named(name):
    """Detectron2's default, without a config file, is a detector."""
    known = "DenseCLIP, DinoTxt, GroupViT, MaskCLIP, ReCo, TCL, TIPSv2, Talk2DINO"
    with pytest.raises(ValueError, match=f"is '{name}', .*one of {known}.*shapes/tcl"):
        check_meta_architecture(load_config(None, ["MODEL.META_ARCHITECTURE", name]))
    check_meta_architecture(load_config(ROOT / "configs/tcl.yaml"))


@pytest.mark.fault("another order of color channels than RGB", "an error, for images are always given in RGB")
def test_channels_are_in_clips_order():
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'BGR'; expected RGB"):
        check_meta_architecture(load_config(ROOT / "configs/tcl.yaml", ["INPUT.FORMAT", "BGR"]))


def test_an_int_is_taken_for_a_float(tmp_path):
    """On the command line and in a file, also below another file; yacs refuses it."""
    (tmp_path / "base.yaml").write_text("TEST: {ZERO_SHOT: {KP_WEIGHT: 0}}\nSOLVER: {MAX_ITER: 7}")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nSOLVER: {BASE_LR: 1}")
    cfg = load_config(tmp_path / "top.yaml", ["TEST.ZERO_SHOT.BACKGROUND_SCORE", 1, "SOLVER.WARMUP_ITERS", 3])
    values = [cfg.TEST.ZERO_SHOT.KP_WEIGHT, cfg.SOLVER.BASE_LR, cfg.TEST.ZERO_SHOT.BACKGROUND_SCORE]
    assert values == [0.0, 1.0, 1.0] and all(type(value) is float for value in values)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (7, 3)
    assert load_config(None, ["TEST.ZERO_SHOT.KP_WEIGHT", "0"]).TEST.ZERO_SHOT.KP_WEIGHT == 0.0


def test_options_are_merged_into_a_configuration_that_is_there():
    """As the predictor does with the options that it is given beside a configuration."""
    cfg = load_config()
    merge_options(
        cfg, ["TEST.ZERO_SHOT.KP_WEIGHT", 0, "MODEL.TCL.LOSS_HEADS", ["ImageTCLLoss"], "MODEL.WEIGHTS", "x.pth"]
    )
    assert (cfg.TEST.ZERO_SHOT.KP_WEIGHT, cfg.MODEL.TCL.LOSS_HEADS, cfg.MODEL.WEIGHTS) == (
        0.0,
        ["ImageTCLLoss"],
        "x.pth",
    )


def test_base_may_be_a_config_of_the_project(tmp_path):
    """By its name, from any folder; a file of this name beside the config comes first."""
    (tmp_path / "mine.yaml").write_text('_BASE_: "shapes/tcl.yaml"\nSEED: 7')
    expected = load_config("shapes/tcl.yaml", ["SEED", 7])
    assert load_config(tmp_path / "mine.yaml") == expected
    (tmp_path / "both.yaml").write_text('_BASE_: ["shapes/tcl.yaml", "mine.yaml"]')
    assert load_config(tmp_path / "both.yaml") == expected

    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes/tcl.yaml").write_text("SEED: 3")
    assert load_config(tmp_path / "mine.yaml") == load_config(None, ["SEED", 7])
    (tmp_path / "lost.yaml").write_text('_BASE_: "shapes/tlc.yaml"')
    with pytest.raises(FileNotFoundError, match="shapes/tlc.yaml"):
        load_config(tmp_path / "lost.yaml")


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: [1", "'.*bad.yaml' could not be read"),
        ("", "'.*bad.yaml'.* is empty"),
        ("_BASE_: bad_base.yaml", "'.*bad.yaml'.* is empty"),
        ("- MODEL", "holds a list; expected keys"),
        ("MODEL: !!python/object/apply:os.getcwd []", "could not be read"),
        ("MODEL: {NAEM: x}", "MODEL.NAEM"),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER"),
        ("MODEL: 3", "MODEL"),
    ],
)
def test_bad_config_files_are_named(tmp_path, text, message):
    (tmp_path / "bad_base.yaml").write_text("")
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises((KeyError, ValueError), match=message):
        load_config(tmp_path / "bad.yaml")


@pytest.mark.fault("a picture in place of a config file", "an error that names it")
def test_a_file_that_is_no_text_is_named():
    with pytest.raises(ValueError, match="page.png' could not be read"):
        load_config(ROOT / "docs/page.png")


@pytest.mark.parametrize(
    "options, message",
    [
        (["SOLVER.MAX_ITER", 3, "--resume"], "'--resume' comes after"),
        (["SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no value"),
        (["MODEL.CLIP.NAEM", "x"], "MODEL.CLIP.NAEM"),
        (["MODEL.DEVICE.X", "x"], "MODEL.DEVICE"),
        (["SOLVER.MAX_ITER", 0.5], "SOLVER.MAX_ITER"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises((KeyError, ValueError), match=message):
        load_config(None, options)


@pytest.mark.fault("a LazyConfig where a YAML file is expected", "an error that says what reads it")
def test_a_lazy_config_is_named():
    with pytest.raises(ValueError, match="'shapes/tcl.py' is Python, .* tcl_d2.model_zoo.get_config reads"):
        load_config("shapes/tcl.py")


def test_values_are_taken_as_a_command_line_gives_them():
    """One dataset without brackets, and a dict for a node."""
    options = [
        "DATASETS.TEST",
        "shapes_val",
        "TEST.ZERO_SHOT.BY_DATASET",
        "{'shapes_val': ['INPUT.MIN_SIZE_TEST', 72]}",
    ]
    cfg = load_config("shapes/trained.yaml", options)
    assert cfg.DATASETS.TEST == ("shapes_val",)
    assert dataset_config(cfg, "shapes_val").INPUT.MIN_SIZE_TEST == 72 != cfg.INPUT.MIN_SIZE_TEST


@pytest.mark.fault("a dense head that does not exist, in a config", "the key and the heads are named at the start")
@pytest.mark.parametrize("key", ["MODEL.DENSE_CLIP.HEAD", "MODEL.TCL.KP_HEAD"])
def test_unknown_dense_heads_are_named(key):
    names = ", ".join(sorted(name for name, _ in DENSE_HEAD_REGISTRY))
    with pytest.raises(ValueError, match=f"{key} is 'slcip', .*{names}"):
        check_meta_architecture(load_config("shapes/trained.yaml", [key, "slcip"]))


def test_code_that_a_config_names_is_imported(tmp_path, monkeypatch):
    """From a file, from options, and from what a run has dumped."""
    for name in ("of_file", "of_options"):
        (tmp_path / f"{name}.py").write_text(f"import tcl_d2\ntcl_d2.{name} = True")
        monkeypatch.setattr(tcl_d2, name, False, raising=False)
    (tmp_path / "top.yaml").write_text(f"IMPORTS: ['{tmp_path}/of_file.py']")
    load_config(tmp_path / "top.yaml")
    assert tcl_d2.of_file and not tcl_d2.of_options

    cfg = load_config(None, ["IMPORTS", [f"{tmp_path}/of_options.py"]])
    assert tcl_d2.of_options
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    assert [f"{tmp_path}/of_options.py"] == load_config(tmp_path / "dumped.yaml").IMPORTS


@pytest.mark.fault("a downloaded config that names code to import", "refused, the code does not run")
def test_a_downloaded_config_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "code.py").write_text(f"open('{tmp_path}/ran', 'w')")
    (tmp_path / "base.yaml").write_text(f"IMPORTS: ['{tmp_path}/code.py']")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml")
    for name in ("base.yaml", "top.yaml"):
        monkeypatch.setattr(PathManager, "get_local_path", lambda path, name=name: str(tmp_path / name))
        with pytest.raises(ValueError, match="was downloaded, and asks to run code, IMPORTS.*code.py"):
            load_config("https://example.org/top.yaml")
    assert not (tmp_path / "ran").exists()


def leaves(node, prefix=""):
    """Yield the keys of a configuration with their values."""
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.") if hasattr(value, "items") else [(f"{prefix}{key}", value)]


def test_every_key_is_documented():
    """docs/config.md is what dev/config_table.py prints, with a comment for every key that differs or is new."""
    assert (ROOT / "docs/config.md").read_text() == config_table.table()
    documented = dict(documented_keys())
    assert all(documented.values())

    theirs = dict(leaves(get_cfg()))
    changed = {key for key, value in leaves(load_config()) if key not in theirs or theirs[key] != value}
    assert changed <= documented.keys()


def test_every_key_is_read():
    """A key that is the plugin's alone has its name, as an attribute or a text, somewhere but in the table of keys."""
    sources = [path.read_text() for path in (ROOT / "tcl_d2").rglob("*.py") if path.name != "keys.py"]
    names = set(re.findall(r"[.\"]([A-Z][A-Z0-9_]+)\b", "\n".join(sources)))

    theirs = dict(leaves(get_cfg()))
    assert not [key for key, _ in documented_keys() if key not in theirs and key.split(".")[-1] not in names]


def test_comments_of_keys_stand_alone():
    """They become rows of a table, which nobody reads from the top."""
    leaning = ("And", "Its", "Likewise", "Same", "The same", "Also", "This", "That")
    for key, comment in documented_keys():
        assert comment.endswith(".") and not comment.startswith(tuple(f"{word} " for word in leaning)), key
        assert "likewise" not in comment, key
