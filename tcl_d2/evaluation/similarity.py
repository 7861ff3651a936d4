"""How similar the words of a dataset's classes are: by the model's text features, or as a file says."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..utils.files import open_path
from ..words.vocabulary import WordSubset


def class_similarity(subset: WordSubset, embeddings: Tensor) -> np.ndarray:
    """Compute the similarity of classes from the text features of their words.

    The cosine of two classes is the largest of a word of the first and a word of the second, as a class has the best of
    its words' scores. Cosines of CLIP's texts are high for any two words. So the mean over all pairs of different
    classes counts as 0, and 1 stays 1: the similarity is (cosine - mean) / (1 - mean), and 0 below the mean. A
    background stands for whatever is no other class: its similarity to every other class is 0.

    Args:
        subset: the words of a dataset's classes, as indices into the embeddings.
        embeddings: text features [W, D], normalized.

    Returns:
        symmetric matrix fp64 [K, K] in 0..1, with ones on the diagonal.
    """
    # The words of classes: not of the background, and not those that belong to no class
    first = int(subset.background)
    is_named = (subset.classes >= first) & (subset.classes < subset.num_classes)
    classes = subset.classes[is_named] - first
    features = embeddings.cpu().double()[subset.words[is_named]]

    # The largest cosine of each pair of classes
    count = subset.num_classes - first
    cosines = torch.full((count * count,), -1.0, dtype=torch.float64)
    pairs = classes[:, None] * count + classes
    cosines.scatter_reduce_(0, pairs.flatten(), (features @ features.T).flatten(), "amax")
    cosines = cosines.view(count, count).numpy()

    # From the mean over different classes to 1
    similarity = np.eye(subset.num_classes)
    is_pair = ~np.eye(count, dtype=bool)
    if is_pair.any():
        mean = cosines[is_pair].mean()
        scaled = ((cosines - mean) / max(1 - mean, 1e-6)).clip(0, 1)
        similarity[first:, first:][is_pair] = scaled[is_pair]
    return similarity


def read_similarity(path: str, dataset_name: str, num_classes: int) -> np.ndarray:
    """Read a similarity matrix: NumPy's .npy, or comma-separated numbers, a row per line.

    {dataset} in the path stands for the dataset's name. Rows are classes of the ground truth, columns predicted ones.

    Raises:
        OSError, ValueError: it cannot be read, or is no matrix [K, K] of numbers in 0..1 with ones on the diagonal.
    """
    path = path.replace("{dataset}", dataset_name)
    where = f"TEST.ZERO_SHOT.SIMILARITY '{path}'"
    expected = (
        f"expected a .npy or .csv file of numbers in 0..1 with a row and a column for each class of '{dataset_name}' "
        f"({num_classes}) in its order, and 1 on the diagonal"
    )
    try:
        with open_path(path) as file:
            if Path(path).suffix == ".npy":
                matrix = np.load(file, allow_pickle=False).astype(np.float64)
            else:
                matrix = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, ValueError, EOFError) as error:
        kind = type(error) if isinstance(error, OSError) else ValueError
        raise kind(f"{where} cannot be read ({error}); {expected}") from None

    is_matrix = matrix.shape == (num_classes, num_classes) and ((matrix >= 0) & (matrix <= 1)).all()  # nan is neither
    if not is_matrix or not (np.diag(matrix) == 1).all():
        values = f"with values in {matrix.min():g}..{matrix.max():g}" if matrix.size else "empty"
        raise ValueError(f"{where} is {' x '.join(map(str, matrix.shape))}, {values}; {expected}")
    return matrix
