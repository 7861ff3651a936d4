"""Where sliding windows lie."""


def window_starts(length: int, crop_size: int, stride: int) -> list[int]:
    """List where windows start along a side: every `stride` pixels, the last one shifted back inside."""
    if length <= crop_size:
        return [0]
    return [min(start, length - crop_size) for start in range(0, length - crop_size + stride, stride)]
