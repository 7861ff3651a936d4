"""train_net.py as a user runs it: train, resume, evaluate, and one clear error instead of a stack of calls."""

import json
import os
import shutil
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog

from tcl_d2.commands import train
from tcl_d2.engine import argument_parser
from tcl_d2.utils.tensors import read_tensors
from tests import golden, running
from tests.conftest import ROOT
from tests.engine.test_output import holder
from tests.running import check_error

SMALL = ["DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.WARMUP_ITERS", 1, "MODEL.TCL.UNFREEZE_ITER", 2]
ONE = ["DATASETS.TEST", '("shapes_objects_val",)', "TEST.ZERO_SHOT.REFINE", "none"]
LAUNCHERS = {
    "own": ["train_net.py", "--num-processes", 2],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "train_net.py"],
}


def started(root, launcher: str, *arguments) -> AbstractContextManager[running.Script]:
    """Start two processes by a launcher."""
    return running.started(root, *LAUNCHERS[launcher], "--config-file", "configs/shapes/tcl.yaml", *arguments)


def run(root, *arguments, config="configs/shapes/tcl.yaml"):
    return running.run(root, "train_net.py", "--config-file", config, *arguments)


def last_miou(folder) -> float:
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [row["average/mIoU"] for row in rows if "average/mIoU" in row][-1]


def test_train_resume_and_evaluate(world, tmp_path):
    """Stops at 2 iterations, goes on to 4, and --eval-only gives the figure that training ended with."""
    out = tmp_path / "out"
    options = [*SMALL, *ONE, "OUTPUT_DIR", out, "SOLVER.CHECKPOINT_PERIOD", 2]
    first = run(world, *options, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1)
    assert first.returncode == 0, first.stderr
    assert {"model_final.pth", "model_best.pth", "config.yaml", "metrics.json", "log.txt"} <= set(os.listdir(out))
    second = run(world, "--resume", *options, "SOLVER.MAX_ITER", 4)
    assert second.returncode == 0 and "Starting training from iteration 2" in second.stderr + second.stdout
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 3
    evaluated = run(world, "--eval-only", *ONE, "MODEL.WEIGHTS", out / "model_final.pth", "OUTPUT_DIR", tmp_path / "e")
    assert evaluated.returncode == 0, evaluated.stderr
    assert results(tmp_path / "e")["average"]["mIoU"] == pytest.approx(last_miou(out))


def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_several_processes_give_the_same_figures_as_one(world, tmp_path):
    options = [*ONE, "MODEL.DEVICE", "cpu", "TEST.ZERO_SHOT.MAX_IMAGES", 5, "DATALOADER.NUM_WORKERS", 0]
    options += ["TEST.ZERO_SHOT.MEASURES", "['SoftIoU', 'ConfusedPairs']", "OUTPUT_DIR"]
    assert run(world, "--eval-only", *options, tmp_path / "one").returncode == 0
    expected = results(tmp_path / "one")
    with started(world, "own", "--eval-only", *options, tmp_path / "two") as script:
        done = script.wait()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two/log.txt.rank1").exists()
    for key in ("datasets", "IoU of each class", "soft_IoU of each class", "most confused pairs"):
        assert results(tmp_path / "two")[key] == expected[key]


def read_logs(folder: Path) -> str:
    """Return the logs of all processes."""
    return "".join(path.read_text() for path in folder.glob("log.txt*"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def last_worker(pid: int) -> int:
    """Of torchrun's children those that run train_net.py count; forked processes have another command line."""
    scripts = [child for child in children(pid) if b"train_net" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return (scripts or children(pid))[-1]


@pytest.mark.fault(
    "one of several processes is killed (own launcher, torchrun)", "the run ends within a minute and says which signal"
)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_process_that_is_killed_ends_the_run(world, tmp_path, launcher):
    """Within a minute and with the reason; until then, what loader processes leave out is in the log."""
    shutil.copytree(world, tmp_path / "data")
    shard = tmp_path / "data/shapes/train/00000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 10])
    options = [*SMALL, "VIS_PERIOD", 0, "SOLVER.MAX_ITER", 100000, "OUTPUT_DIR", tmp_path]
    with started(tmp_path / "data", launcher, *options) as script:
        deadline = time.monotonic() + 120
        while not ("eta:" in (logs := read_logs(tmp_path)) and "Skipped a sample (" in logs):
            assert script.poll() is None and time.monotonic() < deadline, logs[-3000:]
            time.sleep(0.2)
        os.kill(last_worker(script.pid), signal.SIGKILL)
        done = script.wait(timeout=60)
    assert done.returncode != 0 and "SIGKILL" in done.stderr


def test_stopped_evaluation_goes_on_with_resume(world, tmp_path):
    """The second run finds all images done and gives the same figures without looking at one."""
    options = [*ONE, "OUTPUT_DIR", tmp_path]
    assert run(world, "--eval-only", *options).returncode == 0
    first = results(tmp_path)
    second = run(world, "--eval-only", "--resume", *options)
    assert second.returncode == 0 and "12 of 12 images were done before" in second.stdout
    assert results(tmp_path) == first


def test_a_folder_is_evaluated_by_its_path(world, tmp_path):
    """As README says: images/, labels/ and classes.txt."""
    folder = tmp_path / "my_set"
    shutil.copytree(world / "shapes/val", folder)
    words = MetadataCatalog.get("shapes_stuff_val").stuff_classes
    (folder / "classes.txt").write_text("\n".join(words))
    names = f"('{folder}', 'shapes_stuff_val')"
    options = ["DATASETS.TEST", names, "TEST.ZERO_SHOT.REFINE", "none", "TEST.ZERO_SHOT.MAX_IMAGES", 3]
    done = run(world, "--eval-only", *options, "OUTPUT_DIR", tmp_path)
    assert done.returncode == 0, done.stderr
    folder_row, catalog_row = results(tmp_path)["datasets"]
    assert folder_row["dataset"] == str(folder) and folder_row["mIoU"] == catalog_row["mIoU"]


def test_official_checkpoint_gives_the_golden_masks(in_world, tmp_path):
    """As train_net.py --eval-only builds and loads it: the golden model, saved as the official release does."""
    clip, weights = golden.write_clip(tmp_path)
    torch.save({"model": golden.load()["model"], "step": 7}, tmp_path / "tcl.pth")
    options = ["MODEL.CLIP.NAME", clip, "MODEL.CLIP.PRETRAINED", weights, "MODEL.TCL.FREEZE", 2, *ONE[:2]]
    options += ["MODEL.WEIGHTS", tmp_path / "tcl.pth", "OUTPUT_DIR", tmp_path / "out", "MODEL.DEVICE", "cpu"]
    arguments = ["--config-file", "configs/tcl.yaml", "--eval-only", *map(str, options)]
    args = argument_parser().parse_args(arguments)
    model = train.prepare(train.setup(args), args)
    figures = golden.load()["inference"]
    with torch.no_grad():
        masks = model.eval().crop_masks(*model.encode_crops(figures["image"].float()), figures["text_embedding"])
    torch.testing.assert_close(masks, figures["pamr_kp"], rtol=0, atol=1e-5)


@pytest.mark.fault("missing datasets and weights", "one error names them all before anything is built")
def test_missing_data_and_weights_are_named_at_once(tmp_path):
    parts = ["cc3m", "cc12m", "img2dataset", "DETECTRON2_DATASETS", "MODEL.CLIP.PRETRAINED", "/none.pt"]
    check_error(run(tmp_path, "MODEL.CLIP.PRETRAINED", "/none.pt", config="configs/tcl.yaml"), *parts)


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["MODEL.CLIP.NAEM", "x"], ["MODEL.CLIP.NAEM"]),
        (["MODEL.WEIGHTS", "/none.pth"], ["cannot start", "MODEL.WEIGHTS: there is no file '/none.pth'"]),
        (["--eval-only", "MODEL.WEIGHTS", "/none.pth"], ["cannot start", "MODEL.WEIGHTS: there is no file"]),
        (["--eval-only", "MODEL.WEIGHTS", "README.md"], ["README.md"]),
        (["DATASETS.TEST", '("no_such_set",)'], ["no_such_set", "not registered"]),
        (["--eval-only", "DATASETS.TEST", "()"], ["DATASETS.TEST is empty"]),
        (["--eval-only", "DATASETS.TEST", "('shapes_train',)"], ["shapes_train", "DATASETS.TEST"]),
        (["DATASETS.TRAIN", "()", "MODEL.DEVICE", "gpu"], ["DATASETS.TRAIN is empty", "MODEL.DEVICE is 'gpu'"]),
        (["MODEL.DEVICE", "cuda:x"], ["MODEL.DEVICE is 'cuda:x'"]),
        (["--eval-only", "DATASETS.TEST", "(2012,)"], ["2012 is no name of a dataset"]),
        (["TEST.EXPECTED_RESULTS", "[['average', 'mIoU', 40]]"], ["cannot start", "EXPECTED_RESULTS is ['average',"]),
        (["--num-machines", "2"], ["--dist-url tcp://HOST:PORT"]),
    ],
)
def test_wrong_arguments_give_one_clear_error(world, tmp_path, arguments, parts):
    check_error(run(world, *arguments, "OUTPUT_DIR", tmp_path), *parts)


@pytest.mark.fault("--eval-only of a TCL without weights", "a warning that its grounder is untrained")
def test_untrained_models_are_told(world, tmp_path):
    options = ["TEST.ZERO_SHOT.MAX_IMAGES", 1, "DATASETS.TEST", "shapes_objects_val", "OUTPUT_DIR", tmp_path]
    done = run(world, "--eval-only", "--resume", *options, "TEST.ZERO_SHOT.REFINE", "none")
    assert done.returncode == 0 and "the grounder of this TCL model is untrained" in done.stdout, done.stderr


def test_no_config_file_is_one_clear_error(world):
    """Detectron2's defaults alone are a detector's."""
    check_error(running.run(world, "train_net.py"), "GeneralizedRCNN", "config file", "shapes/tcl.yaml")


@pytest.mark.fault("wrong settings with several processes (own launcher, torchrun)", "one message, said once")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_several_processes_say_an_error_once(world, tmp_path, launcher):
    with started(world, launcher, "MODEL.DEVICE", "gpu", "OUTPUT_DIR", tmp_path / "out") as script:
        done = script.wait(timeout=120)
    assert done.returncode != 0 and done.stderr.count("error: cannot start") == done.stderr.count("is 'gpu'") == 1
    assert not (tmp_path / "out").exists()
    if launcher == "own":  # torchrun adds a stack of its own
        assert "Traceback (" not in done.stderr and "torch/multiprocessing" not in done.stderr


def test_a_folder_that_is_taken_stays_as_it_is(world, tmp_path):
    """The second training has written no configuration and no log when it finds that it is not alone."""
    with holder(tmp_path, "training"):
        check_error(run(world, "OUTPUT_DIR", tmp_path), "is taken by another training")
    assert set(os.listdir(tmp_path)) == {"ready", ".training.lock"}


@pytest.mark.fault("weights of NaN are to be evaluated", "an error that names the file and a weight")
def test_weights_of_nan_are_refused(world, tmp_path):
    weights = read_tensors(ROOT / "tcl_d2/assets/shapes_tcl/weights.safetensors")
    torch.save(
        {"model": {name: torch.full_like(value, float("nan")) for name, value in weights.items()}}, tmp_path / "n.pth"
    )
    done = run(world, "--eval-only", "MODEL.WEIGHTS", tmp_path / "n.pth", "OUTPUT_DIR", tmp_path / "out")
    check_error(done, "MODEL.WEIGHTS", "n.pth", "NaN or Inf, such as")


def test_checkpoint_of_another_model_is_refused(world, tmp_path):
    """Detectron2's checkpointer would go on with random weights."""
    torch.save({"model": golden.load()["model"]}, tmp_path / "tcl.pth")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "odd.pth")
    for name, part in (("tcl.pth", "does not fit the model"), ("odd.pth", "none of the weights")):
        check_error(run(world, "--eval-only", "MODEL.WEIGHTS", tmp_path / name, "OUTPUT_DIR", tmp_path), part)


@pytest.mark.fault("a checkpoint that carries code", "refused, the code does not run")
def test_malicious_checkpoint_is_refused(world, tmp_path):
    import pickle

    trap, mark = tmp_path / "trap.pth", tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    trap.write_bytes(pickle.dumps({"model": Trap()}))
    check_error(run(world, "--eval-only", "MODEL.WEIGHTS", trap, "OUTPUT_DIR", tmp_path), "trap.pth")
    assert not mark.exists()
