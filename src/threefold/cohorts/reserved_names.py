"""Names that a cohort can't give to its own columns, structures and groups: the program's tables use them.

A run's predictions.csv has the program's columns and, beside them, the further columns of cases.csv. Two of
one name could not be told apart once a network has been trained.
"""

from __future__ import annotations

RESERVED_COLUMNS = (
    "part",
    "site_group",
    "mask_truth_voxels",
    "mask_predicted_voxels",
    "mask_overlap_voxels",
    "mask_volume",
    "mask_truth_volume",
    "mask_volume_unit",
    "mask_volume_low",
    "mask_volume_high",
    "prediction_set",
    "out_of_distribution",
    "out_of_distribution_score",
    "out_of_distribution_mahalanobis",
    "out_of_distribution_nearest",
    "out_of_distribution_reasons",
    "psnr",
    "ssim",
    "graph_edits",
    "arch",
    "topology_class",
    "agrees",
    "not_measured",
)
"""Columns of predictions.csv that are none of cases.csv."""
RESERVED_PREFIXES = ("probability_", "calibrated_probability_")
"""What its columns of probabilities begin with."""
RESERVED_STRUCTURES = ("union",)
"""All structures together, in structures.csv."""
RESERVED_TARGETS = (
    *RESERVED_COLUMNS,
    *("case_id", "patient_id", "site", "image", "split", "slice", "reference"),
)
"""Columns that a target can't have: its name is the name of its column."""
RESERVED_GROUPS = ("all",)
"""All test cases, in every table of results."""


def column_problem(name: str) -> str:
    """Return why a further column of cases.csv can't have a name; empty where it can."""
    if not name.isprintable():
        return f"column {name!r}: control characters in its name. Write the name in letters, digits and signs"
    if name in RESERVED_COLUMNS:
        return f"column '{name}': a run's predictions have a column of that name. Rename yours, my_{name} say"
    for prefix in RESERVED_PREFIXES:
        if name.startswith(prefix):
            return (
                f"column '{name}': in a run's predictions {prefix}<class> is what the network says. "
                f"Rename yours, my_{name} say"
            )
    return ""
