"""Pictures of a training for its event writers, such as TensorBoard."""

from collections.abc import Callable

import numpy as np
from detectron2.utils.events import get_event_storage, has_event_storage


def put_picture(name: str, period: int, draw: Callable[[], np.ndarray]) -> None:
    """Draw a picture, RGB uint8 [3, H, W], for the writers every `period` iterations; 0 for none."""
    if period > 0 and has_event_storage() and get_event_storage().iter % period == 0:
        get_event_storage().put_image(name, draw())
