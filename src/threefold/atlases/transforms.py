"""Registrations as files that other programs read: an affine and a displacement field as ITK has them.

ITK counts mm along LPS+: the first two coordinates are those of RAS+ with the other sign. A place x of the
image is at A(x + u(x)) in the atlas, so that with ANTs: `-t ATLAS_field.nii.gz -t ATLAS_affine.txt`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from threefold.images.geometry import Affine

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_text(alignment: Affine) -> str:
    """Return an affine map as an ITK transform file.

    Args:
        alignment: (4, 4) the image's RAS+ mm to the atlas's RAS+ mm.
    """
    matrix = _TO_LPS @ alignment @ _TO_LPS
    parameters = " ".join(f"{value:.12g}" for value in (*matrix[:3, :3].flatten(), *matrix[:3, 3]))
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {parameters}\nFixedParameters: 0 0 0\n"
    )


def field_vectors(displacement: Tensor, grid: Affine) -> NDArray[np.float32]:
    """Return a displacement as LPS+ mm.

    Args:
        displacement: (1, 3, *S), voxels of the registration grid.
        grid: (4, 4) that grid's voxels to RAS+ mm.

    Returns:
        (*S, 3).
    """
    turn = _TO_LPS[:3, :3] @ grid[:3, :3]
    moved = np.einsum("xc,cijk->ijkx", turn, displacement[0].double().cpu().numpy())
    return np.ascontiguousarray(moved, np.float32)
