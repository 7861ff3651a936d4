"""The releases that `tcl-d2 prepare` brings into place: what each is for, where to get it, and its options."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Release:
    """A dataset as its owners distribute it.

    Attributes:
        description: of the command.
        benchmarks: registered datasets that are read from it, and checked.
        downloads: archives or folders as their owners name them; looked for in DETECTRON2_DATASETS.
        page: where to get them, for errors.
        address: of the archive that has all, for --download; "" where there is none.
        drawn: benchmarks that --from-instances draws, and then alone checks.
    """

    description: str
    benchmarks: tuple[str, ...]
    downloads: tuple[str, ...]
    page: str
    address: str = ""
    drawn: tuple[str, ...] = ()

    def argument_parser(self) -> argparse.ArgumentParser:
        """Return the parser of the command's options."""
        style = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(description=self.description, formatter_class=style)
        names = ", ".join(self.downloads)
        sources = f"archives or folders as distributed; else, those in $DETECTRON2_DATASETS of: {names}"
        parser.add_argument("--source", type=Path, nargs="+", metavar="PATH", help=sources)
        parser.add_argument("--processes", type=int, default=os.cpu_count())
        parser.add_argument("--check", action="store_true", help="change nothing, only check what is there")
        parser.set_defaults(benchmarks=self.benchmarks, download=False)
        if self.address:
            parser.add_argument(
                "--download", action="store_true", help=f"download {self.address} where there is no source"
            )
        if self.drawn:
            parser.add_argument(
                "--from-instances",
                dest="benchmarks",
                action="store_const",
                const=self.drawn,
                help=f"draw {', '.join(self.drawn)} from the annotations of instances",
            )
        return parser


_CONTEXT_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010 and https://cs.stanford.edu/~roozbeh/pascal-context"

VOC = Release(
    """Bring PASCAL VOC 2012 into $DETECTRON2_DATASETS/VOC2012, for zeroshot_voc_val, zeroshot_voc20_val and _train.

Only the images that have a segmentation are taken. Can be repeated and interrupted.

    tcl-d2 prepare voc --download
    tcl-d2 prepare voc --source ~/VOCtrainval_11-May-2012.tar
    tcl-d2 prepare voc --check
""",
    benchmarks=("zeroshot_voc_val", "zeroshot_voc20_val", "zeroshot_voc20_train"),
    downloads=("VOCtrainval_11-May-2012.tar", "VOCdevkit"),
    page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    address="https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
)

CONTEXT = Release(
    """Bring PASCAL Context into $DETECTRON2_DATASETS/VOC2010.

For zeroshot_context_val, zeroshot_context59_val and _train.

The release's MATLAB files (459 classes) become PNGs of 60: 0 for the background, then the 59 classes of the benchmark.
Ready PNGs in VOC2010/SegmentationClassContext with ImageSets/SegmentationContext/{train,val}.txt are used as they are.
Can be repeated and interrupted.

    tcl-d2 prepare context --source ~/VOCtrainval_03-May-2010.tar ~/trainval.tar.gz ~/labels.txt
    tcl-d2 prepare context --check
""",
    benchmarks=("zeroshot_context_val", "zeroshot_context59_val", "zeroshot_context59_train"),
    downloads=("VOCtrainval_03-May-2010.tar", "trainval.tar.gz", "labels.txt"),
    page=_CONTEXT_PAGE,
)

CONTEXT459 = Release(
    """Bring PASCAL Context's validation set with all 459 classes into $DETECTRON2_DATASETS/pcontext_full.

For zeroshot_context459_val. The release's MATLAB files become class indices of 16 bits, 0..458; 65535 is ignored.
Images are VOC 2010's, as for zeroshot_context59_val, and are linked. A folder pcontext_full as other projects prepare
it is used as it is. Can be repeated and interrupted.

    tcl-d2 prepare context459 --source ~/VOCtrainval_03-May-2010.tar ~/trainval.tar.gz
    tcl-d2 prepare context459 --check
""",
    benchmarks=("zeroshot_context459_val",),
    downloads=("VOCtrainval_03-May-2010.tar", "trainval.tar.gz"),
    page=_CONTEXT_PAGE,
)

COCO = Release(
    """Bring COCO's validation images and COCO-Stuff's maps into $DETECTRON2_DATASETS/coco.

For zeroshot_coco_object_val and zeroshot_coco_stuff_val, which read the same maps. Can be repeated and interrupted.

    tcl-d2 prepare coco --source ~/val2017.zip ~/stuffthingmaps_trainval2017.zip
    tcl-d2 prepare coco --check

COCO-Object can also be drawn from instances_val2017.json, where COCO-Stuff's maps are not at hand. If they are, the
benchmark reads the maps, and this command says how much the two differ:

    tcl-d2 prepare coco --from-instances --source ~/val2017.zip ~/annotations_trainval2017.zip
""",
    benchmarks=("zeroshot_coco_object_val", "zeroshot_coco_stuff_val"),
    downloads=("val2017.zip", "stuffthingmaps_trainval2017.zip", "annotations_trainval2017.zip"),
    page="https://cocodataset.org/#download and https://github.com/nightrome/cocostuff",
    drawn=("zeroshot_coco_object_val",),
)

CITYSCAPES = Release(
    """Bring Cityscapes' validation set into $DETECTRON2_DATASETS/cityscapes, for zeroshot_cityscapes_val.

Polygons become *_labelTrainIds.png with cityscapesscripts. Can be repeated and interrupted.

    tcl-d2 prepare cityscapes --source ~/leftImg8bit_trainvaltest.zip ~/gtFine_trainvaltest.zip
    tcl-d2 prepare cityscapes --check
""",
    benchmarks=("zeroshot_cityscapes_val",),
    downloads=("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"),
    page="https://www.cityscapes-dataset.com/downloads, after registration",
)

ADE20K = Release(
    """Bring ADE20K's 150-class validation set into $DETECTRON2_DATASETS/ADEChallengeData2016, for zeroshot_ade20k_val.

Can be repeated and interrupted.

    tcl-d2 prepare ade20k --source ~/ADEChallengeData2016.zip
    tcl-d2 prepare ade20k --check
""",
    benchmarks=("zeroshot_ade20k_val",),
    downloads=("ADEChallengeData2016.zip",),
    page="http://sceneparsing.csail.mit.edu",
)

ADE847 = Release(
    """Bring the full ADE20K's validation set into $DETECTRON2_DATASETS/ADE20K_2021_17_01, for zeroshot_ade847_val.

The release's colored label images become 16-bit class indices: 0..846, and 65535 for pixels of no class. Where both
sides of an image are longer than 512 pixels, image and label are shrunk until the short side is 512, as is common.
Files that other projects prepared in images_detectron2 and annotations_detectron2 are used as they are. Can be repeated
and interrupted.

    tcl-d2 prepare ade847 --source ~/ADE20K_2021_17_01.zip
    tcl-d2 prepare ade847 --check
""",
    benchmarks=("zeroshot_ade847_val",),
    downloads=("ADE20K_2021_17_01.zip",),
    page="https://groups.csail.mit.edu/vision/datasets/ADE20K, after registration",
)

LVIS = Release(
    """Draw LVIS v1's validation annotations as label maps into $DETECTRON2_DATASETS/lvis, for zeroshot_lvis_val.

Instances are painted large before small, as category IDs in 16-bit PNGs. Pixels that nobody annotated are 0, and are
ignored. Images are COCO's (of train2017 and val2017), brought into $DETECTRON2_DATASETS/coco. Can be repeated and
interrupted.

    tcl-d2 prepare lvis --source ~/lvis_v1_val.json.zip ~/train2017.zip ~/val2017.zip
    tcl-d2 prepare lvis --check
""",
    benchmarks=("zeroshot_lvis_val",),
    downloads=("lvis_v1_val.json.zip", "train2017.zip", "val2017.zip"),
    page="https://www.lvisdataset.org/dataset and https://cocodataset.org/#download",
)

RELEASES = {
    "voc": VOC,
    "context": CONTEXT,
    "context459": CONTEXT459,
    "coco": COCO,
    "cityscapes": CITYSCAPES,
    "ade20k": ADE20K,
    "ade847": ADE847,
    "lvis": LVIS,
}
