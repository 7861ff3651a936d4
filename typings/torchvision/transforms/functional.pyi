"""What torchvision does not say: PIL images are taken too, and stay such."""

from typing import TypeVar

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

_Image = TypeVar("_Image", Image.Image, Tensor)

def resize(img: _Image, size: int | list[int], interpolation: InterpolationMode = ...) -> _Image: ...
def center_crop(img: _Image, output_size: list[int]) -> _Image: ...
def pil_to_tensor(pic: Image.Image) -> Tensor: ...
