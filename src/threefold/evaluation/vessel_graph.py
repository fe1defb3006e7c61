"""Which structures of a label map touch: the adjacency graph, and its edit distance to another.

Two structures touch where voxels of theirs are 26-neighbours. The vertices are the structures present.
Graphs of one cohort share the set of possible vertices, so that their edit distance needs no matching:
it is the number of vertices and edges that only one of them has. The idea to grade the graph of vessels
beside the voxels follows the TopCoW challenge (Yang et al. 2023, arXiv 2312.17670).
"""

from __future__ import annotations

from collections.abc import Sequence
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
