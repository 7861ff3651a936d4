# The names that the package hands on, for lazy_loader and for editors
from .benchmarks import BenchmarkMapper as BenchmarkMapper
from .benchmarks import register_benchmark as register_benchmark
from .benchmarks import register_benchmark_folder as register_benchmark_folder
from .checks import check_datasets as check_datasets
from .labeled import LabeledDatasets as LabeledDatasets
from .labeled import SemSegDatasetMapper as SemSegDatasetMapper
from .loader import build_image_text_train_loader as build_image_text_train_loader
from .pairs.mapper import ImageTextDatasetMapper as ImageTextDatasetMapper
from .pairs.register import register_caption_folder as register_caption_folder
from .pairs.register import register_caption_list as register_caption_list
from .pairs.register import register_coco_captions as register_coco_captions
from .pairs.register import register_image_folder as register_image_folder
from .pairs.register import register_webdataset as register_webdataset
from .unlabeled import UnlabeledImageMapper as UnlabeledImageMapper
