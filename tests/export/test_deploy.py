"""An exported model at work equals the predictor, for whole images, and refuses what it does not know."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from tcl_d2.commands.result_folder import Source
from tcl_d2.commands.segment_exported import segment_files
from tcl_d2.deploy import OnnxSegmentor, bands
from tcl_d2.deploy.card import FORMAT, KEY, EmbeddingsCard, ModelCard
from tcl_d2.deploy.labels import ScoreRule
from tcl_d2.export import CropScores, embed_vocabulary, files, make_card, save_embeddings, save_onnx
from tcl_d2.export.cards import digest_text_encoder
from tcl_d2.export.files import add_checksums
from tcl_d2.modeling.segmentor.score_rules import ScoreSettings, build_score_rule
from tests.conftest import ROOT
from tests.export.conftest import BACKGROUND, CLASSES, picture
from tests.running import check_error, holder, run


@pytest.fixture(scope="module")
def segmentor(tcl_onnx):
    return OnnxSegmentor(tcl_onnx)


# ------------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("size", [(52, 52), (30, 61), (131, 70), (5, 60), (3, 3)])
def test_whole_images_equal_those_of_the_predictor(tcl, segmentor, size, monkeypatch):
    """With padding, with windows, larger and smaller than the model sees them, in bands of a few rows."""
    monkeypatch.setattr(bands, "_BYTES_AT_ONCE", 20_000)
    image = picture(*size)
    expected = tcl(image, CLASSES, BACKGROUND)
    segmentation = segmentor(image)
    np.testing.assert_allclose(segmentation.scores, expected.scores.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(segmentation.labels, expected.labels)
    np.testing.assert_array_equal(segmentor(image, CLASSES, BACKGROUND, labels_only=True).labels, expected.labels)
    assert segmentation.classes == expected.classes and segmentation.background
    text = ", ".join(words if isinstance(words, str) else " | ".join(words) for words in CLASSES)
    assert segmentor(image, text, " | ".join(BACKGROUND)).classes == expected.classes


def test_the_whole_image_as_window(tcl, tcl_onnx):
    segmentor, crop_size = OnnxSegmentor(tcl_onnx), tcl.model.crop_size
    segmentor.card = replace(segmentor.card, crop_size=0)
    tcl.model.crop_size = 0
    try:
        expected = tcl(picture(61, 90), CLASSES, BACKGROUND)
    finally:
        tcl.model.crop_size = crop_size
    np.testing.assert_allclose(segmentor(picture(61, 90)).scores, expected.scores.numpy(), rtol=0, atol=1e-5)


def test_windows_of_a_large_image_are_not_held(segmentor, monkeypatch):
    """Of 17 x 17 windows, those of at most three rows are held at once; each is run once."""
    monkeypatch.setattr(bands, "_BYTES_AT_ONCE", 100_000)
    card, runs, held = replace(segmentor.card, stride=40), [], []

    def predict(crops):
        runs.append(len(crops))
        held.append(len(windows._windows))
        return np.full((len(crops), 6, 10, 10), 0.5, np.float32)

    windows = bands.ScoreBands(picture(680, 680), (700, 690), card, predict, 6)
    heights = [scores.shape[1] for rows, scores in windows if np.allclose(scores, 0.5)]
    assert sum(runs) == 17 * 17 and max(held) <= 2 and sum(heights) == 700 and max(heights) < 10


@pytest.mark.parametrize("background", [False, True, ["a"]])
@pytest.mark.parametrize("settings", [(0.5, 0.0, 0.0), (0.4, 40.0, 0.0), (0.4, 40.0, 0.2)])
@pytest.mark.parametrize("words", [["x", ["y", "z"]], ["x", "not: y | w", "z"]])
def test_rules_of_labels_are_those_of_the_model(background, settings, words, tcl, segmentor):
    """With a softmax or without, with SCLIP's area rule, with words of no class, negative ones among them."""
    import torch

    settings = ScoreSettings(*settings)
    model = tcl.model
    vocabulary = embed_vocabulary(model, words, background)
    scores = torch.rand(vocabulary.card.num_embeddings, 5, 7)
    names = ("background_score", "logit_scale", "area_threshold")
    rule = ScoreRule(replace(segmentor.card, **dict(zip(names, settings))), vocabulary.card)

    expected = build_score_rule(vocabulary.subset, settings, labels_only=False)
    expected.update(scores.clone())
    class_scores = rule.finish(rule.class_scores(scores.numpy().copy()))
    np.testing.assert_allclose(class_scores, expected.output()["sem_seg"].numpy(), rtol=0, atol=1e-5)

    if not settings.area_threshold:
        expected = build_score_rule(vocabulary.subset, settings, labels_only=True)
        expected.update(scores.clone())
        np.testing.assert_array_equal(class_scores.argmax(0), expected.output()["sem_seg_labels"].numpy())


# ------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def open_model(build, tmp_path_factory):
    """A dense CLIP whose text embeddings are an input and whose weights lie beside the graph, and its predictor.

    With MaskCLIP's refinements, which compare all words.
    """
    refined = ("MODEL.DENSE_CLIP.PROMPT_DENOISING", 0.3, "MODEL.DENSE_CLIP.KEY_SMOOTHING", 0.9)
    predictor = build("MODEL.META_ARCHITECTURE", "DenseCLIP", "TEST.ZERO_SHOT.REFINE", "none", *refined)
    assert predictor.cfg.MODEL.DENSE_CLIP.HEAD == "maskclip"
    path = tmp_path_factory.mktemp("open") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_LARGEST", 0)
        save_onnx(CropScores(predictor.model), path, make_card(predictor.model, predictor.cfg))
    assert sorted(os.listdir(path.parent)) == ["model.onnx", "model.onnx.data"]
    return path, predictor


def test_text_embeddings_may_be_an_input(open_model, tmp_path):
    path, predictor = open_model
    for classes, background in ((["brick", "lava"], False), (["water", ["grass", "sand"], "ice"], True)):
        vocabulary = embed_vocabulary(predictor.model, classes, background)
        card = EmbeddingsCard(digest_text_encoder(predictor.model), vocabulary.card)
        save_embeddings(tmp_path / "words.npz", vocabulary.text, card)
        segmentation = OnnxSegmentor(path, tmp_path / "words.npz")(picture(60, 70))
        expected = predictor(picture(60, 70), classes, background)
        np.testing.assert_allclose(segmentation.scores, expected.scores.numpy(), rtol=0, atol=1e-5)
        assert segmentation.classes == expected.classes


@pytest.mark.fault("text embeddings that are missing, damaged, or of another CLIP", "one error names the file")
def test_embeddings_that_do_not_fit_are_said(open_model, tcl_onnx, tmp_path):
    path, predictor = open_model
    with pytest.raises(ValueError, match="model.onnx' .*without classes"):
        OnnxSegmentor(path)

    # Of another CLIP, for another model, or of another size
    vocabulary = embed_vocabulary(predictor.model, ["brick"])
    save_embeddings(tmp_path / "other.npz", vocabulary.text, EmbeddingsCard("0" * 32, vocabulary.card))
    with pytest.raises(ValueError, match="other.npz' .*another CLIP"):
        OnnxSegmentor(path, tmp_path / "other.npz")
    with pytest.raises(ValueError, match="classes.*other.npz"):
        OnnxSegmentor(tcl_onnx, tmp_path / "other.npz")
    card = EmbeddingsCard(digest_text_encoder(predictor.model), vocabulary.card)
    save_embeddings(tmp_path / "short.npz", vocabulary.text[:, :3], card)
    with pytest.raises(ValueError, match=r"short.npz' .*\[1, 3\].*\[1, 16\]"):
        OnnxSegmentor(path, tmp_path / "short.npz")

    # Broken, or encrypted as a flipped bit says
    save_embeddings(tmp_path / "whole.npz", vocabulary.text, card)
    encrypted = bytearray((tmp_path / "whole.npz").read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] ^= 1
    for content in (bytes(encrypted), b"PK\x03\x04 no archive", b"text", b""):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(ValueError, match="broken.npz' "):
            OnnxSegmentor(path, tmp_path / "broken.npz")


def with_card(path, target, **changes):
    """Copy an ONNX file with another card; without the entries that become None."""
    model = onnx.load(path)
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    values = {**json.loads(entry.value), **changes}
    entry.value = json.dumps({key: value for key, value in values.items() if key not in changes or value is not None})
    onnx.save(model, target)
    return target


@pytest.mark.fault("an ONNX file of another format, vocabulary or origin", "one error names it, and what to do")
def test_files_of_others_are_refused(tcl_onnx, tmp_path):
    with pytest.raises(ValueError, match=f"format {FORMAT + 1}.*tcl_d2 9.0.*format {FORMAT}"):
        OnnxSegmentor(with_card(tcl_onnx, tmp_path / "new.onnx", format=FORMAT + 1, version="9.0"))
    with pytest.raises(ValueError, match="a.onnx' .*another"):
        OnnxSegmentor(with_card(tcl_onnx, tmp_path / "a.onnx", another=1))
    with pytest.raises(ValueError, match="b.onnx' "):
        OnnxSegmentor(with_card(tcl_onnx, tmp_path / "b.onnx", stride=1000))
    with pytest.raises(ValueError, match="c.onnx' .*labels"):
        OnnxSegmentor(with_card(tcl_onnx, tmp_path / "c.onnx", output="labels"))
    for request in ((["dog"],), (None, False), (None, "sky"), (CLASSES, [])):
        with pytest.raises(ValueError, match="background, brick, lava, grass"):
            OnnxSegmentor(tcl_onnx)(picture(8, 8), *request)
    with pytest.raises(ValueError, match="background is 1"):
        OnnxSegmentor(tcl_onnx)(picture(8, 8), CLASSES, 1)

    # Not of this project, damaged, missing
    plain = onnx.load(tcl_onnx)
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / "plain.onnx")
    with pytest.raises(ValueError, match="plain.onnx' "):
        OnnxSegmentor(tmp_path / "plain.onnx")
    (tmp_path / "broken.onnx").write_bytes(tcl_onnx.read_bytes()[:1000])
    with pytest.raises(ValueError, match="broken.onnx' .*onnxruntime"):
        OnnxSegmentor(tmp_path / "broken.onnx")
    with pytest.raises(FileNotFoundError, match="none.onnx"):
        OnnxSegmentor(tmp_path / "none.onnx")


def flipped(path, target, position, bit=0):
    """Copy a file with one bit flipped."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    target.write_bytes(content)
    return target


@pytest.mark.fault("an ONNX file with a flipped bit, in its weights, graph or card", "one error names the file")
def test_flipped_bits_are_found(tcl_onnx, tmp_path):
    content = tcl_onnx.read_bytes()
    card = content.index(b'"sha256": "')
    positions = [*random.Random(0).sample(range(len(content)), 24), card + 3, card + 20, card - 5]
    for number, position in enumerate(positions):
        with pytest.raises(ValueError, match="flipped.onnx' "):
            OnnxSegmentor(flipped(tcl_onnx, tmp_path / "flipped.onnx", position, number % 8))


@pytest.mark.fault("external data of an ONNX file that are damaged, exchanged or lost", "one error names the file")
def test_external_data_are_checked(open_model, tmp_path):
    folder = shutil.copytree(open_model[0].parent, tmp_path / "model")
    path, data = folder / "model.onnx", folder / "model.onnx.data"
    whole = data.read_bytes()
    other = whole[::-1]  # of the same size, as another training's
    for content in (flipped(data, tmp_path / "x", len(whole) // 2).read_bytes(), other, whole + b"0"):
        data.write_bytes(content)
        with pytest.raises(ValueError, match="model.onnx.data' "):
            OnnxSegmentor(path, "words.npz")
    data.unlink()
    with pytest.raises(ValueError, match="model.onnx' .*model.onnx.data"):
        OnnxSegmentor(path, "words.npz")


@pytest.mark.fault("external data of an ONNX file in another folder", "one error names the file")
def test_external_data_elsewhere_are_refused(tcl_onnx, tmp_path):
    (tmp_path / "in").mkdir()
    model = onnx.load(tcl_onnx)
    onnx.save(model, tmp_path / "in/a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    shutil.move(tmp_path / "in/a.data", tmp_path / "a.data")
    model = onnx.load(tmp_path / "in/a.onnx", load_external_data=False)
    for location in ("../a.data", str(tmp_path / "a.data"), "link"):
        for entry in (entry for weight in model.graph.initializer for entry in weight.external_data):
            entry.value = location if entry.key == "location" else entry.value
        onnx.save(model, tmp_path / "in/a.onnx")
        with pytest.raises(ValueError, match="a.onnx' "):
            OnnxSegmentor(tmp_path / "in/a.onnx")
    with pytest.raises(ValueError, match="a.onnx' "):
        OnnxSegmentor(with_card(tcl_onnx, tmp_path / "a.onnx", external_data={"../in/a.onnx": "0" * 64}))


@pytest.mark.fault("an ONNX file of an earlier version, without checksums", "it runs, with a warning what to do")
def test_files_without_checksums_are_taken_with_a_warning(tcl_onnx, segmentor, tmp_path, caplog):
    old = with_card(tcl_onnx, tmp_path / "old.onnx", format=1, sha256=None, external_data=None)
    labels = OnnxSegmentor(old)(picture(20, 30)).labels
    np.testing.assert_array_equal(labels, segmentor(picture(20, 30)).labels)
    assert "old.onnx' has no checksum" in caplog.text and "export it again" in caplog.text

    # A file that its user changed is no longer the one that was exported
    caplog.clear()
    add_checksums(old)
    OnnxSegmentor(old)
    assert not caplog.text
    changed = with_card(old, tmp_path / "changed.onnx", background_score=0.75)
    with pytest.raises(ValueError, match="changed.onnx' .*add_checksums"):
        OnnxSegmentor(changed)
    add_checksums(changed)
    assert OnnxSegmentor(changed).card.background_score == 0.75


def raise_memory_error(*_: object) -> None:
    raise MemoryError


@pytest.mark.fault("too little memory for an image's scores", "one error says how much, and to ask for labels alone")
def test_too_little_memory_is_said(segmentor, monkeypatch):
    image = picture(10, 10)
    monkeypatch.setattr(np, "empty", raise_memory_error)
    with pytest.raises(ValueError, match="memory .*GB.*labels_only"):
        segmentor(image)


@pytest.mark.fault("an image for which ONNX Runtime's memory runs out", "it alone is left out, with its size")
def test_an_image_that_cannot_be_run_is_left_out(tcl_onnx, tmp_path, capsys, monkeypatch):
    segmentor = OnnxSegmentor(tcl_onnx)
    session = segmentor.session

    class Session:
        def run(self, names, inputs):
            if inputs["images"].mean() < 1:
                raise onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException("bad allocation")
            return session.run(names, inputs)

    # A black image, then another one
    segmentor.session = Session()
    for index, value in enumerate((0, 200)):
        Image.new("RGB", (50, 40), (value,) * 3).save(tmp_path / f"{index}.png")
    sources = [Source(tmp_path / f"{index}.png", str(index), {}) for index in range(2)]
    segment_files(segmentor, sources, tmp_path / "out", heat_maps=False)
    assert "left out: onnxruntime cannot run '" in (errors := capsys.readouterr().err) and "bad allocation" in errors
    assert not (tmp_path / "out/0.json").exists() and (tmp_path / "out/1.json").exists()

    monkeypatch.setattr(segmentor, "_segment", raise_memory_error)
    with pytest.raises(ValueError, match="memory .*9 x 8"):
        segmentor(picture(8, 9))


# ------------------------------------------------------------------------------------------------- commands


def test_command_needs_neither_torch_nor_detectron2(tcl_onnx, segmentor, tmp_path):
    """In a Python that finds onnxruntime, numpy and PIL alone."""
    site = tmp_path / "site"
    site.mkdir()
    packages = os.path.dirname(os.path.dirname(onnxruntime.__file__))
    for name in ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime", "google", "flatbuffers", "packaging"):
        if os.path.exists(f"{packages}/{name}"):
            (site / name).symlink_to(f"{packages}/{name}")
    (site / "tcl_d2").symlink_to(ROOT / "tcl_d2")
    Image.fromarray(picture(60, 70)).save(tmp_path / "photo.png")
    shutil.copy(tcl_onnx, tmp_path / "model.onnx")

    command = [sys.executable, "-S", "-m", "tcl_d2", "segment", "photo.png", "--onnx", "model.onnx", "--heat-maps"]
    env = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "1 of 1 images segmented" in done.stdout, done.stderr
    assert {"photo.png", "photo_1_brick.png"} <= set(os.listdir(tmp_path / "output/demo"))
    with Image.open(tmp_path / "output/demo/photo_labels.png") as labels:
        np.testing.assert_array_equal(np.array(labels), segmentor(picture(60, 70)).labels)


def test_command_imports_no_torch_where_it_is_installed(tcl_onnx, tmp_path):
    Image.fromarray(picture(20, 20)).save(tmp_path / "photo.png")
    code = "import sys, tcl_d2.commands as c\ntry: c.main()\nfinally: print({'torch', 'detectron2'} & set(sys.modules))"
    command = [sys.executable, "-c", code, "segment", "photo.png", "--onnx", str(tcl_onnx)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("set()\n"), done


def test_command_goes_past_a_broken_file_and_says_a_missing_model(world, tcl_onnx, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(20, 20)).save(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"no image")
    done = run(world, "-m", "tcl_d2", "segment", "in", "--onnx", tcl_onnx, folder=tmp_path)
    assert done.returncode == 1 and "b.png" in done.stderr and "1 of 2 images segmented" in done.stdout
    check_error(run(world, "-m", "tcl_d2", "segment", "in", "--onnx", "no.onnx", folder=tmp_path), "no.onnx")


@pytest.mark.fault("an exported model's results into a folder that another run has", "refused, and names the first")
def test_command_has_its_folder_alone(world, tcl_onnx, tmp_path):
    """And goes on where it has been killed, as its own pictures are known."""
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    command = ["-m", "tcl_d2", "segment", "a.png", "--onnx", tcl_onnx, "--output", "out"]
    (tmp_path / "out").mkdir()
    with holder(tmp_path / "out", "segmentation") as pid:
        check_error(run(world, *command, folder=tmp_path), "--output 'out'", f"process {pid} ")
    assert run(world, *command, folder=tmp_path).returncode == 0
    (tmp_path / "out/a.json").unlink()
    assert run(world, *command, folder=tmp_path).returncode == 0


EXPORT = ("-m", "tcl_d2", "export")


@pytest.mark.fault(
    "export to a name that cannot be written, or without what it needs", "an error at the start; no file"
)
def test_export_says_what_does_not_go_together(world, tmp_path):
    (tmp_path / "file").touch()
    for options, parts in (
        (("model.pth",), ("must end in .onnx, .pt2, .npz",)),
        (("words.npz",), ("need --classes",)),
        (("file/model.onnx",), ("file/model.onnx cannot be written",)),
        (("model.pt2", "--int8"), ("without --labels and --int8",)),
    ):
        check_error(run(world, *EXPORT, *options, folder=tmp_path), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_exported_words_are_those_of_the_segment_command(world, tmp_path):
    """Words of the background in a file stay where --background stands without words."""
    (tmp_path / "words.txt").write_text("background, sky, fire\nbrick\nlava, ice\n")
    options = ("--classes", "words.txt", "--config-file", "shapes/trained.yaml")
    for words, expected in ([], ["sky", "fire"]), (["grass"], ["grass"]):
        done = run(world, *EXPORT, "words.npz", "--background", *words, *options, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "words.npz", allow_pickle=False) as archive:
            assert json.loads(str(archive["card"]))["vocabulary"]["background"] == expected


def test_export_writes_what_the_predictor_does(world, clip_of, tmp_path):
    """In 8 bits; the labels of most pixels are the same."""
    classes = ("--classes", "brick, grass", "--background")
    settings = ("MODEL.CLIP.NAME", clip_of(1), "MODEL.CLIP.PRETRAINED", "", "SEED", 0, "INPUT.MIN_SIZE_TEST", 40)
    config = ("--config-file", "shapes/maskclip.yaml", "--opts", *settings, "TEST.ZERO_SHOT.REFINE", "none")
    done = run(world, *EXPORT, tmp_path / "model.onnx", "--int8", *classes, *config)
    assert done.returncode == 0 and "model.onnx: " in done.stdout, done.stderr
    segmentor = OnnxSegmentor(tmp_path / "model.onnx")
    assert segmentor(picture(40, 40)).classes == ["background", "brick", "grass"]
    assert isinstance(segmentor.card, ModelCard) and os.listdir(tmp_path) == ["model.onnx"]
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= operators
