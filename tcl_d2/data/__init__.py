"""Data: image-text pairs to train on, benchmarks to evaluate on, and the small world."""

from ..utils.imports import lazy_names

_NAMES = {
    "benchmarks": ("BenchmarkMapper", "register_benchmark", "register_benchmark_folder"),
    "checks": ("check_datasets",),
    "labeled": ("LabeledDatasets", "SemSegDatasetMapper"),
    "loader": ("build_image_text_train_loader",),
    "pairs.mapper": ("ImageTextDatasetMapper",),
    "pairs.register": (
        "register_caption_folder",
        "register_caption_list",
        "register_coco_captions",
        "register_image_folder",
        "register_webdataset",
    ),
    "unlabeled": ("UnlabeledImageMapper",),
}
__all__, __getattr__ = lazy_names(__name__, _NAMES)
