"""Numbers that users give."""

import numpy as np


def is_whole(value: object) -> bool:
    """Return whether a value is an int, also one of NumPy's, but no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_count(name: str, value: object, least: int) -> int:
    """Return an argument's value; ValueError unless it is a whole number of at least `least`."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number, at least {least}.")
    return value
