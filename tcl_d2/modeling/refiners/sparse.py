"""Sparse matrices of torch, for products with the scores of many words."""

import warnings

import torch
from torch import Tensor


def matrix_of_rows(columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    """Build a sparse matrix [R, num_columns] from the column and the value of n entries in each row, [R, n].

    A row may name a column twice: products add them up.
    """
    num_rows, count = columns.shape
    row_starts = torch.arange(0, num_rows * count + 1, count, device=columns.device)
    return _csr_matrix(row_starts, columns.flatten(), values.flatten(), (num_rows, num_columns))


def coalesced_matrix(matrix: Tensor, values: Tensor) -> Tensor:
    """Build a sparse matrix [R, C] with the entries of a coalesced one in torch's COO layout, and other values."""
    rows, columns = matrix.indices()
    counts = torch.bincount(rows, minlength=len(matrix))
    row_starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return _csr_matrix(row_starts, columns, values, (len(matrix), matrix.shape[1]))


def plus_transpose(columns: Tensor, values: Tensor) -> Tensor:
    """Add the matrix [R, R] of n entries in each row, [R, n], and its transpose, in torch's COO layout."""
    rows = torch.arange(len(columns), device=columns.device)[:, None].expand_as(columns)
    indices = torch.stack([rows.flatten(), columns.flatten()])
    indices = torch.cat([indices, indices.flip(0)], 1)
    size = len(columns), len(columns)
    return torch.sparse_coo_tensor(indices, values.flatten().repeat(2), size, check_invariants=False).coalesce()


def _csr_matrix(row_starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        # torch calls them experimental; products are tested against plain loops
        warnings.filterwarnings("ignore", "Sparse (CSR tensor support|invariant checks)", UserWarning)
        # 32 bits, as MKL and cuSPARSE take them: others are copied in each product
        return torch.sparse_csr_tensor(row_starts.int(), columns.int(), values, size=size, check_invariants=False)
