"""Pictures of a training for its event writers."""

from collections.abc import Callable

import numpy as np
from detectron2.utils.events import get_event_storage, has_event_storage


def put_picture(name: str, period: int, draw: Callable[[], np.ndarray]) -> None:
    """Draw a picture of a training's iteration for its writers, such as TensorBoard, where it is time for one.

    Args:
        name: of the picture.
        period: iterations between pictures; 0 for none.
        draw: gives it, RGB uint8 [3, H, W].
    """
    if period > 0 and has_event_storage() and get_event_storage().iter % period == 0:
        get_event_storage().put_image(name, draw())
