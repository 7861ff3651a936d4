"""Correct labels in labelme's files as a person would, by the true labels of the small world's training scenes.

python dev/shapes_correct.py my/segmented/labelme
"""

import argparse
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog

from tcl_d2.data.benchmarks.labelme import read_labelme_folder
from tcl_d2.data.labels import read_label
from tcl_d2.data.shapes import GROUNDS, OBJECTS
from tcl_d2.segmentation.tool_files import LabeledPicture, write_labelme


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of labelme's files beside their pictures")
    folder = parser.parse_args().folder

    labels = {row["image_id"]: row["sem_seg_file_name"] for row in DatasetCatalog.get("shapes_sem_seg_train")}
    names = [Path(image["file_name"]).stem for image in read_labelme_folder(folder)["images"]]
    pictures = [
        LabeledPicture(name, folder / f"{name}.png", 1 + read_label(labels[name]).astype(np.int64)) for name in names
    ]
    write_labelme(folder, pictures, [*OBJECTS, *GROUNDS])
    print(f"{len(names)} pictures corrected")


if __name__ == "__main__":
    main()
