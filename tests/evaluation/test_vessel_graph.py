"""Graphs of structures that touch: by hand, and their distances."""

from __future__ import annotations

import numpy as np

from threefold.evaluation.vessel_graph import (
    GraphEdits,
    VesselGraph,
    graph_edits,
    vessel_graph,
)

NAMES = ("z", "y", "x", "w")


def graph(structures: str, *edges: str) -> VesselGraph:
    return VesselGraph(frozenset(structures), frozenset((edge[0], edge[1]) for edge in edges))


def test_structures_touch_across_faces_edges_and_corners() -> None:
    labels = np.zeros((9, 4, 4), np.uint8)
    labels[0:2, 0:2, 0:2] = 1
    labels[2:4, 2:4, 2:4] = 2  # across a corner of 1
    labels[5:7, 2:4, 2:4] = 3  # a voxel away from 2
    assert vessel_graph(labels, NAMES) == graph("zyx", "zy")
    labels[4, 2:4, 2:4] = 3
    assert vessel_graph(labels, NAMES) == graph("zyx", "zy", "yx")
    assert vessel_graph(labels, NAMES, contacts=2) == graph("zyx", "yx")


def test_edits_are_what_only_one_graph_has() -> None:
    expected = graph("zyx", "zy", "yx")
    assert graph_edits(expected, expected) == GraphEdits((), (), (), ())
    edits = graph_edits(graph("zyw", "zy", "yw", "zw"), expected)
    assert edits == GraphEdits(("x",), ("w",), (("y", "x"),), (("y", "w"), ("z", "w")))
    assert edits.count == 5
