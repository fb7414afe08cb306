"""Steerable filter bases, built once by escnn and kept on disk.

A steerable convolution is linear in its coefficients: filter = coefficients @ basis (Weiler & Cesa 2019, "General
E(2)-Equivariant Steerable CNNs"; Cesa, Lang & Weiler 2022). escnn solves the kernel constraint and samples the
solutions on the grid; this module asks it for one pair of fields at a time, brings the result into a canonical
orthonormal form and caches it under a name that is the hash of everything it depends on.

Why canonical: the kernel space is unique but a solver's basis of it is not, and stored coefficients would mean other
filters on another machine. Why orthonormal: isotropic noise on the coefficients is then isotropic noise on the filter.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dpeq.resources import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpeq.groups import SymmetryGroup

__all__ = ["steerable_basis"]

_log = logging.getLogger(__name__)
_FORMAT = "1"  # raise when the canonical form changes: old files are then ignored, never misread


@cache
def steerable_basis(
    group: SymmetryGroup, in_representation: str, out_representation: str, kernel_size: int
) -> torch.Tensor:
    """Orthonormal basis of the equivariant kernels between two fields.

    Returns:
        float64 tensor ``[n_basis, out_size, in_size, *[kernel_size] * dim]``, rows orthonormal as flat vectors.
    """
    key = f"{_FORMAT}|{group.name}|{in_representation}|{out_representation}|{kernel_size}"
    path = cache_dir("bases") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    cached = _read(path, key)
    if cached is not None:
        return cached
    basis = _canonical(_solve(group, in_representation, out_representation, kernel_size))
    tensor = torch.from_numpy(basis)
    _write(path, key, tensor)
    return tensor


def _read(path: Path, key: str) -> torch.Tensor | None:
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        _log.warning("The cached filter basis %s is unreadable (%s); it is built anew.", path, error)
        return None
    basis = tensors.get("basis")
    digest = tensors.get("digest")
    if basis is None or digest is None or bytes(digest.tolist()) != _digest(basis, key):
        _log.warning("The cached filter basis %s does not match its checksum; it is built anew.", path)
        return None
    return basis


def _write(path: Path, key: str, basis: torch.Tensor) -> None:
    """Writes beside the target and renames: readers and concurrent writers see a whole file or none."""
    digest = torch.tensor(list(_digest(basis, key)), dtype=torch.uint8)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    try:
        save_file({"basis": basis.contiguous(), "digest": digest}, temporary)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _digest(basis: torch.Tensor, key: str) -> bytes:
    return hashlib.sha256(key.encode() + basis.contiguous().numpy().tobytes()).digest()


def _canonical(kernels: np.ndarray) -> np.ndarray:
    """A basis that depends on the span alone: orthonormalise the projections of fixed generic vectors onto it.

    The projector onto the span is unique; its images of fixed vectors, orthonormalised by QR with positive diagonal,
    vary continuously with it, so rounding in the solver cannot turn the basis.
    """
    count, shape = len(kernels), kernels.shape[1:]
    rows = kernels.reshape(count, -1)
    # SVD only finds the span: linearly dependent solutions are dropped.
    _, singular, vt = np.linalg.svd(rows, full_matrices=False)
    span = vt[singular > 1e-8 * singular[0]]
    generic = np.random.Generator(np.random.PCG64(20230130)).standard_normal((len(span), rows.shape[1]))
    q, r = np.linalg.qr((generic @ span.T @ span).T)
    return np.ascontiguousarray((q * np.sign(np.diag(r))).T.reshape(len(span), *shape))


def _solve(group: SymmetryGroup, in_representation: str, out_representation: str, kernel_size: int) -> np.ndarray:
    """Sampled kernels ``[n, out_size, in_size, *kernel]`` from escnn, axes in dpeq's order."""
    with _quiet_escnn():
        from escnn import nn as enn

        gspace = _gspace(group)
        in_type, out_type = (
            enn.FieldType(gspace, [_representation(gspace, r)]) for r in (in_representation, out_representation)
        )
        convolution = enn.R2Conv if group.dim == 2 else enn.R3Conv
        # The frequency cut-off of the reference networks (r -> 3r): angular detail up to what a 3x3 grid can hold.
        layer = convolution(
            in_type, out_type, kernel_size, bias=False, initialize=False, frequencies_cutoff=lambda r: 3 * r
        )
        expansion = layer.basisexpansion
        unit_vectors = torch.eye(expansion.dimension())
        with torch.no_grad():
            kernels = torch.stack([expansion(vector) for vector in unit_vectors]).double().numpy()
    kernels = kernels.reshape(len(kernels), out_type.size, in_type.size, *[kernel_size] * group.dim)
    if group.dim == 3:
        # escnn orders a volume z, y, x (rotations act on the last two axes); dpeq and MONAI order it x, y, z.
        kernels = kernels.transpose(0, 1, 2, 5, 4, 3)
    return np.ascontiguousarray(kernels)


def _gspace(group: SymmetryGroup) -> Any:
    from escnn import gspaces

    n = group.rotations
    if group.order == 1:
        return gspaces.trivialOnR2() if group.dim == 2 else gspaces.trivialOnR3()
    if group.dim == 2:
        if not group.mirrored:
            return gspaces.rot2dOnR2(n)
        return gspaces.flip2dOnR2() if n == 1 else gspaces.flipRot2dOnR2(n)
    if not group.mirrored:
        return gspaces.rot2dOnR3(n)
    return gspaces.mirOnR3() if n == 1 else gspaces.conicalOnR3(n)


def _representation(gspace: Any, name: str) -> Any:
    return gspace.trivial_repr if name == "trivial" else gspace.regular_repr


@contextmanager
def _quiet_escnn() -> Iterator[None]:
    """escnn's own warnings are not the user's, and its randomised SVD is replaced by the exact one.

    escnn 1.0.11 hands ``np.matrix`` to scikit-learn's unseeded ``randomized_svd``, which current scikit-learn refuses;
    with the hook unset it uses SciPy's deterministic SVD, which is also several times faster at these sizes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from escnn.group import _numerical

        original = _numerical.randomized_svd
        _numerical.randomized_svd = None
        try:
            yield
        finally:
            _numerical.randomized_svd = original
