"""Which structures of a label map touch: the adjacency graph, its edit distance, the class it resembles.

Two structures touch where voxels of theirs are 26-neighbours. The vertices are the structures present.
Graphs of one cohort share the set of possible vertices, so that their edit distance needs no matching:
it is the number of vertices and edges that only one of them has. Detection per vessel, and the idea to
grade the graph of vessels beside the voxels, follow the TopCoW challenge (Yang et al. 2023, arXiv
2312.17670).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threefold.topology import contact_counts

Edge = tuple[str, str]


@dataclass(frozen=True)
class VesselGraph:
    """Structures and which of them touch.

    Attributes:
        structures: those present.
        edges: pairs of structures that touch, each pair in the order of the cohort's structures.
    """

    structures: frozenset[str]
    edges: frozenset[Edge]


@dataclass(frozen=True)
class GraphEdits:
    """What turns a graph into another: what it lacks and what it has too much.

    Attributes:
        missing_structures, extra_structures: in the order of their names.
        missing_edges, extra_edges: likewise.
    """

    missing_structures: tuple[str, ...]
    extra_structures: tuple[str, ...]
    missing_edges: tuple[Edge, ...]
    extra_edges: tuple[Edge, ...]

    @property
    def count(self) -> int:
        """The edit distance."""
        return sum(
            len(edits)
            for edits in (
                self.missing_structures,
                self.extra_structures,
                self.missing_edges,
                self.extra_edges,
            )
        )


@dataclass(frozen=True)
class NearestClass:
    """The class whose expected graph is nearest.

    Attributes:
        name: of the class; None where two or more are equally near.
        edits: the edit distance to each class's expected graph.
    """

    name: str | None
    edits: Mapping[str, int]


def vessel_graph(labels: NDArray[np.generic], names: Sequence[str], *, contacts: int = 1) -> VesselGraph:
    """Return the adjacency graph of a label map.

    Args:
        labels: (I, J) or (I, J, K) integers 0..len(names); 0 is the background.
        names: of the structures of label 1, 2, ...
        contacts: pairs of neighbouring voxels that make two structures touch, at least.

    Raises:
        ValueError: the label map is not of integers 0..len(names).
    """
    counts = contact_counts(labels, len(names))
    present = np.bincount(np.asarray(labels).ravel().astype(np.int64), minlength=len(names) + 1)[1:]
    touching = zip(*np.nonzero(np.triu(counts >= contacts, k=1)), strict=True)
    return VesselGraph(
        frozenset(name for name, voxels in zip(names, present, strict=True) if voxels),
        frozenset((names[i], names[j]) for i, j in touching),
    )


def graph_edits(graph: VesselGraph, expected: VesselGraph) -> GraphEdits:
    """Return what `graph` lacks of the `expected` one, and what it has beyond it."""
    return GraphEdits(
        tuple(sorted(expected.structures - graph.structures)),
        tuple(sorted(graph.structures - expected.structures)),
        tuple(sorted(expected.edges - graph.edges)),
        tuple(sorted(graph.edges - expected.edges)),
    )


def consensus_graph(graphs: Sequence[VesselGraph]) -> VesselGraph:
    """Return the graph of the structures and edges that more than half of the graphs have.

    It is a graph with the least sum of edit distances to them.

    Raises:
        ValueError: there is no graph.
    """
    if not graphs:
        raise ValueError("a consensus needs at least one graph")
    structures = {name for graph in graphs for name in graph.structures}
    edges = {edge for graph in graphs for edge in graph.edges}
    return VesselGraph(
        frozenset(s for s in structures if 2 * sum(s in g.structures for g in graphs) > len(graphs)),
        frozenset(e for e in edges if 2 * sum(e in g.edges for g in graphs) > len(graphs)),
    )


def expected_graphs(truths: Mapping[str, Sequence[VesselGraph]]) -> dict[str, VesselGraph]:
    """Return the consensus of each class's true graphs; classes without one are left out."""
    return {name: consensus_graph(graphs) for name, graphs in truths.items() if graphs}


def nearest_class(graph: VesselGraph, expected: Mapping[str, VesselGraph]) -> NearestClass:
    """Return the class whose expected graph is the fewest edits away.

    Raises:
        ValueError: there is no class.
    """
    if not expected:
        raise ValueError("the nearest class needs at least one expected graph")
    edits = {name: graph_edits(graph, other).count for name, other in expected.items()}
    fewest = min(edits.values())
    nearest = [name for name, count in edits.items() if count == fewest]
    return NearestClass(nearest[0] if len(nearest) == 1 else None, edits)


def detection_f1(
    graphs: Sequence[VesselGraph], truths: Sequence[VesselGraph], structure: str
) -> float | None:
    """Return the F1 score of finding a structure, over cases: 2 TP / (2 TP + FP + FN).

    Returns:
        0..1; None where no case has it, truly or predicted.
    """
    pairs = [
        (structure in g.structures, structure in t.structures) for g, t in zip(graphs, truths, strict=True)
    ]
    hits = sum(found and true for found, true in pairs)
    errors = sum(found != true for found, true in pairs)
    return 2 * hits / (2 * hits + errors) if hits or errors else None
