"""Bad data, numbers gone bad and broken benchmarks: what goes on, what stops, and what is said."""

import io
import random
import shutil
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tcl_d2.data import register_benchmark_folder
from tcl_d2.data.pairs.mapper import read_caption, read_image
from tcl_d2.data.pairs.stream import ImageTextStream, SkipCounter, WorkerIterator
from tcl_d2.engine import Trainer
from tcl_d2.modeling import TCL
from tests import running
from tests.data.distributed import write_tar
from tests.engine.test_trainer import train, weights


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), number % 256, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


FAULTS = {  # of a sample, and the reason under which it is counted
    "truncated": (lambda image, text: {"jpg": image[: len(image) // 2], "txt": text}, "unreadable image"),
    "wrong format": (lambda image, text: {"jpg": b"<html>no image</html>", "txt": text}, "unreadable image"),
    "zero bytes": (lambda image, text: {"jpg": b"", "txt": text}, "no image"),
    "missing caption": (lambda image, text: {"jpg": image}, "no caption"),
    "blank caption": (lambda image, text: {"jpg": image, "txt": b" \n"}, "empty caption"),
    "no text": (lambda image, text: {"jpg": image, "txt": b"\xff\xfe\x00"}, "caption is no UTF-8 text"),
}


def write_shards(folder: Path, share: float, shards: int = 4, size: int = 50) -> tuple[list[dict], Counter, set]:
    """Write shards with a share of broken samples; return their rows, the faults by reason, and the good captions."""
    draw, reasons, good = random.Random(0), Counter(), set()
    broken = set(draw.sample(range(shards * size), int(share * shards * size)))

    for s in range(shards):
        files = {}
        for number in range(s * size, (s + 1) * size):
            parts = {"jpg": jpeg(number), "txt": f"caption {number}".encode()}
            if number in broken:
                make, reason = FAULTS[draw.choice(sorted(FAULTS))]
                parts = make(*parts.values())
                reasons[reason] += 1
            else:
                good.add(f"caption {number}")
            files |= {f"{number:05d}.{suffix}": content for suffix, content in parts.items()}
        write_tar(folder / f"{s}.tar", files)

    return [{"shard": str(folder / f"{s}.tar"), "num_samples": size} for s in range(shards)], reasons, good


def mapper(sample: dict) -> str:
    """As the real one reads, without its augmentation."""
    read_image(sample["image_bytes"], sample["key"])
    return read_caption(sample["captions"][0], sample["key"])


@pytest.mark.fault(
    "1 % and 50 % of the samples in shards broken in six ways", "skipped and counted by reason, none lost"
)
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_broken_share_of_samples(tmp_path, share, monkeypatch):
    """A pass gives each good sample once; the counts are those of the faults."""
    rows, reasons, good = write_shards(tmp_path, share)
    counted = Counter()
    monkeypatch.setattr(SkipCounter, "add", lambda self, reason, message: counted.update([reason]))
    one_pass = list(islice(WorkerIterator(ImageTextStream("t", rows, mapper, 20, 0), 0, 1), len(good)))
    assert set(one_pass) == good and counted <= reasons  # those after the last good one are not met yet
    assert sum(reasons.values()) - sum(counted.values()) <= 20


@pytest.mark.fault("a tar cut at any byte", "its whole samples are used, the rest is counted")
def test_tar_cut_anywhere(tmp_path):
    """At 60 places: what comes of it are whole samples, at least those that lie before the place; others go on."""
    rows, _, _ = write_shards(tmp_path, 0, shards=2, size=10)
    whole = Path(rows[0]["shard"]).read_bytes()
    with tarfile.open(rows[0]["shard"]) as file:
        ends = [member.offset_data + member.size for member in file if member.name.endswith("txt")]
    for place in random.Random(0).sample(range(len(whole)), 60):
        Path(rows[0]["shard"]).write_bytes(whole[:place])
        captions = set(islice(WorkerIterator(ImageTextStream("t", rows, mapper, 4, 0), 0, 1), 40))
        num_whole = len([end for end in ends if end <= place])
        assert {f"caption {n}" for n in (*range(num_whole), *range(10, 20))} <= captions, place
        assert captions <= {f"caption {n}" for n in range(20)}


@pytest.mark.fault("a shard that vanishes, or becomes a folder, while training", "counted, the other shards go on")
@pytest.mark.parametrize("replace", [None, Path.mkdir])
def test_shard_vanishes(tmp_path, replace, caplog):
    rows, _, good = write_shards(tmp_path, 0, shards=3, size=10)
    stream = WorkerIterator(ImageTextStream("t", rows, mapper, 4, 0), 0, 1)
    first = list(islice(stream, 30))
    gone = Path(rows[0]["shard"])
    gone.unlink()
    if replace:
        replace(gone)
    later = set(islice(stream, 60))
    assert set(first) == good and later <= good and {f"caption {n}" for n in range(10, 30)} <= later
    assert "unreadable shard" in caplog.text and gone.name in caplog.text


# ------------------------------------------------------------------------------------------------ numbers gone bad


@pytest.fixture
def bad_numbers(shapes_cfg, monkeypatch):
    """A config, and a function that makes a loss NaN, or the gradient alone, in the steps that it is given."""
    shapes_cfg.VIS_PERIOD, shapes_cfg.SOLVER.MAX_ITER, shapes_cfg.SOLVER.MAX_SKIPPED = 0, 8, 2
    compute, calls = TCL.compute_losses, []

    def spoil(steps: range, of_gradient: bool = False) -> None:
        def spoiled(self, *inputs):
            losses = compute(self, *inputs)
            if len(calls) in steps:
                w = self.sim2mask.w.sum()
                bad = (0 * w).sqrt() if of_gradient else w * float("nan")
                losses["loss_tcl_image"] = losses["loss_tcl_image"] + bad
            calls.append(None)
            return losses

        monkeypatch.setattr(TCL, "compute_losses", spoiled)

    return shapes_cfg, spoil


@pytest.mark.fault(
    "a NaN loss, or a NaN gradient of finite losses", "the step is left out, the log names loss and batch"
)
@pytest.mark.parametrize("of_gradient", [False, True])
def test_bad_step_is_left_out(bad_numbers, caplog, of_gradient):
    cfg, spoil = bad_numbers
    spoil(range(2, 4), of_gradient)
    trainer = train(cfg)
    assert all(value.isfinite().all() for value in weights(trainer).values())
    assert trainer.iter == 8
    name = "the gradient" if of_gradient else "loss_tcl_image"
    for count in (1, 2):
        assert f"({count} in a row): {name} is NaN or Inf; the batch: " in caplog.text
    assert "shapes" in caplog.text.split("the batch: ")[1].splitlines()[0]


@pytest.mark.fault(
    "losses that stay NaN", "stops with a checkpoint of the last good state, from which --resume goes on"
)
def test_bad_steps_in_a_row_stop_the_training(bad_numbers):
    cfg, spoil = bad_numbers
    spoil(range(3, 100))
    with pytest.raises(FloatingPointError, match="3 steps in a row .*MAX_SKIPPED is 2.*loss_tcl_image is NaN"):
        train(cfg)
    saved = torch.load(f"{cfg.OUTPUT_DIR}/model_0000005.pth", weights_only=True)
    assert all(value.isfinite().all() for value in saved["model"].values() if value.is_floating_point())
    spoil(range(0))
    assert train(cfg, resume=True).iter == 8


# ------------------------------------------------------------------------------------------------ evaluation


def spoil_image(folder: Path) -> None:
    path = next(iter(sorted((folder / "images").iterdir())))
    path.write_bytes(path.read_bytes()[:100])


def spoil_label(folder: Path) -> None:
    path = next(iter(sorted((folder / "labels").iterdir())))
    path.write_bytes(path.read_bytes()[:60])


def odd_value(folder: Path) -> None:
    path = next(iter(sorted((folder / "labels").iterdir())))
    Image.fromarray(np.full(np.array(Image.open(path)).shape, 200, np.uint8)).save(path)


def odd_size(folder: Path) -> None:
    path = next(iter(sorted((folder / "labels").iterdir())))
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(path)


@pytest.fixture
def copied_set(world, tmp_path, shapes_cfg):
    """A copy of the validation images as another dataset, and a config that evaluates on it."""
    folder = tmp_path / "set"
    shutil.copytree(world / "shapes/val", folder)
    words = MetadataCatalog.get("shapes_stuff_val").stuff_classes
    (folder / "classes.txt").write_text("\n".join(words))
    name = register_benchmark_folder(str(folder))
    shapes_cfg.DATASETS.TEST = (name,)
    shapes_cfg.TEST.ZERO_SHOT.REFINE = "none"
    yield folder, shapes_cfg
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.fault("an image or label that is cut, has a wrong value or size", "a named error, or left out and counted")
@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_image, "Image .*could not be read"),
        (spoil_label, "Label .*could not be read"),
        (odd_value, "Label .*has the value 200"),
        (odd_size, "image and label differ in size"),
    ],
)
def test_broken_benchmark(copied_set, spoil, message, caplog):
    """Left out, the figures are those of the other images."""
    folder, cfg = copied_set
    model, name = Trainer.build_model(cfg).eval(), cfg.DATASETS.TEST[0]
    spoil(folder)
    with pytest.raises((OSError, ValueError), match=message):
        Trainer.test(cfg, model)
    cfg.TEST.ZERO_SHOT.SKIP_BROKEN = True
    skipping = Trainer.test(cfg, model)[name]
    assert (skipping["images"], skipping["skipped"]) == (11, 1)
    assert caplog.text.count("Image left out of the evaluation (1 so far)") == 1
    for part in ("images", "labels"):
        next(iter(sorted((folder / part).iterdir()))).unlink()
    assert Trainer.test(cfg, model)[name]["sem_seg"] == pytest.approx(skipping["sem_seg"], nan_ok=True)


@pytest.mark.fault("label or image files changed since an evaluation that is resumed", "all is evaluated again")
@pytest.mark.parametrize("part", ["labels", "images"])
def test_resumed_evaluation_sees_changed_files(copied_set, part):
    """Also where their size is the same: their time of change differs."""
    folder, cfg = copied_set
    model, done = Trainer.build_model(cfg).eval(), []
    model.register_forward_hook(lambda _, inputs, outputs: done.extend(outputs))
    Trainer.test(cfg, model)
    Trainer.test(cfg, model, resume=True)
    assert len(done) == 12
    next(iter(sorted((folder / part).iterdir()))).touch()
    Trainer.test(cfg, model, resume=True)
    assert len(done) == 24


@pytest.mark.fault("--eval-only meets a broken image or a label value without a class", "one line that names the file")
@pytest.mark.parametrize("spoil, message", [(spoil_image, "could not be read"), (odd_value, "has the value 200")])
def test_evaluation_names_a_broken_file_in_one_line(copied_set, world, tmp_path, spoil, message):
    """Whether the main process meets it or a loader's."""
    folder, _ = copied_set
    spoil(folder)
    arguments = ["--eval-only", "DATASETS.TEST", f"('{folder}',)", "TEST.ZERO_SHOT.REFINE", "none"]
    command = ["train_net.py", "--config-file", "configs/shapes/tcl.yaml", *arguments, "OUTPUT_DIR", tmp_path / "out"]
    done = running.run(world, *command)
    running.check_error(done, str(folder), message)
    assert len(done.stderr[done.stderr.index("error: ") :].splitlines()) == 1
