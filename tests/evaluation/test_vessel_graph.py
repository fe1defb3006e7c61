"""Graphs of structures that touch: by hand, and their distances."""

from __future__ import annotations

import numpy as np
import pytest

from threefold.evaluation.vessel_graph import (
    GraphEdits,
    VesselGraph,
    consensus_graph,
    detection_f1,
    expected_graphs,
    graph_edits,
    nearest_class,
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


def test_the_consensus_has_what_most_graphs_have() -> None:
    graphs = [graph("zy", "zy"), graph("zyx", "zy", "yx"), graph("zyx", "yx"), graph("zx")]
    assert consensus_graph(graphs) == graph("zyx")  # an edge of half the graphs is none of most
    assert consensus_graph(graphs[:3]) == graph("zyx", "zy", "yx")
    with pytest.raises(ValueError, match="at least one graph"):
        consensus_graph([])


def test_no_graph_is_nearer_to_all_than_the_consensus() -> None:
    rng = np.random.default_rng(0)
    graphs = [vessel_graph(rng.integers(0, 5, (3, 3)), NAMES) for _ in range(15)]
    consensus = consensus_graph(graphs)
    least = sum(graph_edits(g, consensus).count for g in graphs)
    for other in graphs:
        assert least <= sum(graph_edits(g, other).count for g in graphs)


def test_the_nearest_class_is_that_of_the_fewest_edits() -> None:
    expected = expected_graphs(
        {"left": [graph("zy", "zy")], "right": [graph("zyx", "zy", "yx")], "double": []}
    )
    assert list(expected) == ["left", "right"]
    assert nearest_class(graph("zy"), expected).name == "left"
    assert nearest_class(graph("zyxw", "zy", "yx"), expected).name == "right"


def test_equally_near_classes_are_no_answer() -> None:
    near = nearest_class(graph("zyx", "zy"), {"left": graph("zy", "zy"), "right": graph("zyx", "zy", "yx")})
    assert (near.name, dict(near.edits)) == (None, {"left": 1, "right": 1})
    with pytest.raises(ValueError, match="at least one expected graph"):
        nearest_class(graph("z"), {})


def test_detection_of_a_structure() -> None:
    truths = [graph("zy"), graph("zy"), graph("z"), graph("z")]
    found = [graph("zy"), graph("z"), graph("zy"), graph("z")]
    assert detection_f1(found, truths, "z") == 1
    assert detection_f1(found, truths, "y") == 0.5
    assert detection_f1(found, truths, "x") is None
    assert detection_f1([graph("")], [graph("x")], "x") == 0
