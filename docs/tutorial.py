"""A tutorial: segment, evaluate, train a little, and look at the results. It takes two minutes on a CPU.

From any folder, as `python docs/tutorial.py` or cell by cell in `docs/tutorial.ipynb`. Pictures go to output/tutorial.
"""

import subprocess
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger

from tcl_d2 import load_config
from tcl_d2.data.dataset_files import datasets_root
from tcl_d2.engine import Trainer
from tcl_d2.predictor import TCLPredictor

OUTPUT = Path("output/tutorial")

# 1. Draw the small world: scenes of textured objects with captions, and validation images with labels.
if not (datasets_root() / "shapes/val").is_dir():
    subprocess.run([sys.executable, "-m", "tcl_d2", "prepare", "shapes"], check=True)

# 2. Segment an image with the trained model of the project. Words that it has never seen get low scores.
predictor = TCLPredictor("shapes/trained.yaml")
scene = DatasetCatalog.get("shapes_val")[0]
segmentation = predictor(scene["file_name"], ["brick", "yellow checked", "lava", "unicorn"], background=True)
print("\nShare of the image:", {word: round(area, 2) for word, area in segmentation.areas().items()})

# 3. Save pictures: the overlay with its legend, the labels, and the scores of each word.
for path in segmentation.save(OUTPUT, "scene", heat_maps=True):
    print("  ", path)

# 4. Evaluate on a benchmark, any registered dataset with label files; here on 10 images of the small world.
setup_logger(name="tcl_d2")
few_images = ["DATASETS.TEST", ("shapes_val",), "TEST.ZERO_SHOT.MAX_IMAGES", 10, "OUTPUT_DIR", OUTPUT]
cfg = load_config("shapes/trained.yaml", few_images)
before = Trainer.test(cfg, predictor.model)

# 5. Train a model for 30 iterations: too few, but the losses fall. The frozen CLIP comes with the project.
short = ["DATASETS.TEST", (), "SOLVER.MAX_ITER", 30, "SOLVER.WARMUP_ITERS", 5, "MODEL.TCL.UNFREEZE_ITER", 20]
trainer = Trainer(load_config("shapes/tcl.yaml", [*short, "OUTPUT_DIR", OUTPUT]))
trainer.resume_or_load(resume=False)
trainer.train()
after = Trainer.test(cfg, trainer.model)

figures = [f"{result['average']['mIoU']:.1f} %" for result in (before, after)]
print(f"\nmIoU on 10 images: {figures[0]} after 200 iterations, {figures[1]} after 30.")
print(f"TensorBoard has the losses and masks: tensorboard --logdir {OUTPUT}")
