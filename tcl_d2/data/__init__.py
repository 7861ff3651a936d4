"""Data: image-text pairs to train on, benchmarks to evaluate on, and the small world."""

import detectron2.data  # noqa: F401  (before the modules here, which are needed to register the datasets with it)
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
