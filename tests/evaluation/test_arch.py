"""Arches drawn by hand: single and double, left and right, closed and broken, with and without a trachea."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from threefold.evaluation.arch import ArchFinding, find_arch, knows_arch
from threefold.phantoms.fetal_heart import PRESETS, true_structures
from threefold.phantoms.fetal_parameters import draw_cases
from threefold.phantoms.fetal_protocol import STRUCTURES
from threefold.phantoms.fetal_topology import violations

NAMES = STRUCTURES
SPACING = (0.8, 0.8, 1.0)
SHAPE = (64, 64, 56)
Labels = NDArray[np.uint8]

# Places in mm: right, front, head. The trachea runs at (25, 25).
ROOT, CROWN, JOIN, FEET = (26, 36, 14), (26, 33, 30), (25, 14, 30), (25, 13, 4)
LEFT, RIGHT = (17, 25, 34), (33, 25, 34)


def draw(labels: Labels, name: str, *points: Sequence[float], radius: float = 2.2) -> None:
    """Draw a vessel along straight pieces between points (mm)."""
    centres = np.stack(np.indices(SHAPE), -1) * np.array(SPACING)  # (I, J, K, 3)
    for start, end in pairwise(points):
        a, along = np.array(start, float), np.subtract(end, start).astype(float)
        share = np.clip(((centres - a) @ along) / (along @ along), 0, 1)
        near = np.linalg.norm(centres - a - share[..., None] * along, axis=-1) < radius
        labels[near & (labels == 0)] = NAMES.index(name) + 1


def heart(*sides: Sequence[float], gap: float = 0, thin: float = 2.2) -> Labels:
    """An aorta with an arch past each side, pulmonary arteries and a duct to the left."""
    return _heart(sides, gap, thin).copy()


@cache
def _heart(sides: Sequence[Sequence[float]], gap: float, thin: float) -> Labels:
    labels = np.zeros(SHAPE, np.uint8)
    draw(labels, "DAO", JOIN, FEET)
    draw(labels, "AO", ROOT, CROWN)
    for number, side in enumerate(sides):
        draw(labels, "AO", CROWN, side, JOIN, radius=thin if number else 2.2)
    if gap:
        place = np.arange(SHAPE[1]) * SPACING[1]
        cut = np.abs(place - 20) < gap / 2
        right = np.arange(SHAPE[0]) * SPACING[0] > 25
        labels[np.ix_(right, cut)] = 0
    draw(labels, "MPA", (22, 38, 12), (22, 33, 20))
    draw(labels, "LPA", (22, 33, 20), (10, 25, 20), radius=1.5)
    draw(labels, "RPA", (22, 33, 20), (26, 29, 20), (40, 25, 20), radius=1.5)
    draw(labels, "AD", (22, 33, 20), (16, 20, 26), JOIN, radius=1.5)
    draw(labels, "PVs", (12, 18, 14), (38, 18, 14), radius=1.5)
    return labels


def trachea() -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, np.uint8)
    draw(mask, "SVC", (25, 25, 12), (25, 25, 50), radius=1.8)
    return mask > 0


@pytest.fixture(scope="module", params=[False, True], ids=["midline", "trachea"])
def windpipe(request: pytest.FixtureRequest) -> NDArray[np.bool_] | None:
    return trachea() if request.param else None


def test_arches(windpipe: NDArray[np.bool_] | None) -> None:
    found = {
        name: find_arch(heart(*sides), NAMES, SPACING, trachea=windpipe)
        for name, sides in {"left": (LEFT,), "right": (RIGHT,), "double": (LEFT, RIGHT)}.items()
    }
    assert {name: finding.arch for name, finding in found.items()} == {
        "left": "single-left",
        "right": "single-right",
        "double": "double",
    }
    assert [f.ring_closed for f in found.values()] == [False, False, True]
    assert [f.diagnosis for f in found.values()] == ["CoA", "RAA", "DAA"]
    assert found["left"].offset_mm == pytest.approx(-8, abs=1.5)
    assert found["right"].offset_mm == pytest.approx(8, abs=1.5)


def test_a_thin_second_arch_makes_a_ring_until_it_breaks(windpipe: NDArray[np.bool_] | None) -> None:
    def finding(gap: float) -> ArchFinding:
        return find_arch(heart(LEFT, RIGHT, gap=gap, thin=0.9), NAMES, SPACING, trachea=windpipe)

    assert finding(0).arch == "double"
    broken = finding(1)
    assert (broken.arch, broken.ring_closed, broken.diagnosis) == ("open-ring", False, "DAA")
    assert finding(8).arch == "single-left"  # too wide a gap to call it an arch


def test_the_ring_through_the_duct_is_no_double_arch(windpipe: NDArray[np.bool_] | None) -> None:
    # A right arch, and a left duct from the pulmonary trunk, which lies on the aorta's root.
    labels = heart(RIGHT)
    draw(labels, "MPA", ROOT, (22, 38, 12))
    finding = find_arch(labels, NAMES, SPACING, trachea=windpipe)
    assert (finding.arch, finding.ring_closed) == ("single-right", False)


def test_small_tunnels_and_islands_are_no_ring(windpipe: NDArray[np.bool_] | None) -> None:
    labels = heart(LEFT)
    labels[32:34, 44:46, 14:20] = (
        0  # a tunnel through the ascending aorta, from front to back and from head to feet
    )
    labels[:, 45, 16] = 0
    labels[5:8, 5:8, 40:43] = 4
    assert find_arch(labels, NAMES, SPACING, trachea=windpipe).arch == "single-left"


@pytest.mark.parametrize("slant", [-0.35, 0.2])
def test_a_body_aslant(slant: float) -> None:
    straight = heart(LEFT, RIGHT)
    labels = np.zeros_like(straight)
    for height in range(SHAPE[2]):
        by = round(slant * (height - 28))
        labels[:, :, height] = np.roll(np.roll(straight[:, :, height], by, 0), -by // 2, 1)
    assert find_arch(labels, NAMES, SPACING).arch == "double"


def test_what_can_not_be_known_is_undetermined() -> None:
    labels = heart(LEFT)
    for absent in ("AO", "DAO"):
        without = np.where(labels == NAMES.index(absent) + 1, 0, labels).astype(np.uint8)
        assert find_arch(without, NAMES, SPACING) == ArchFinding("undetermined", False, None)
    aorta = np.where(np.isin(labels, (4, 6)), labels, 0).astype(np.uint8)
    assert find_arch(aorta, NAMES, SPACING) == ArchFinding("undetermined", False, None)  # no midline
    broken = labels.copy()
    broken[:, 26:36] = np.where(np.isin(labels[:, 26:36], (4, 6)), 0, labels[:, 26:36])  # 8 mm of the arch
    assert find_arch(broken, NAMES, SPACING) == ArchFinding("undetermined", False, None)
    middle = find_arch(heart((25, 25, 34)), NAMES, SPACING)
    assert (middle.arch, middle.diagnosis) == ("undetermined", "undetermined")
    assert middle.offset_mm is not None
    assert middle.agrees("CoA") is None


@pytest.mark.parametrize("seed", range(6))
def test_any_label_map_has_a_finding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((9, 8, 7), np.uint8)
    at = tuple(rng.integers(0, 7, (3, 4 + 20 * seed)))
    labels[at] = rng.integers(1, 12, len(at[0]))
    labels[0, 0, 0], labels[1, 0, 0], labels[0, 0, 6] = 4, 6, 11
    trachea = labels == 3 if seed % 2 else None
    assert find_arch(labels, NAMES, SPACING, trachea=trachea).diagnosis in (
        "CoA",
        "RAA",
        "DAA",
        "undetermined",
    )


def test_phantom_patients_have_the_arch_of_their_diagnosis() -> None:
    spec = PRESETS["study"].model_copy(update={"patients": (5, 5, 5), "size": 80, "spacing": 0.9})
    for case in draw_cases(spec, 4):
        labels, diagnosis = true_structures(case), case.anatomy.diagnosis
        if violations(labels, diagnosis):
            continue  # a cohort would have drawn this patient anew
        finding = find_arch(labels, STRUCTURES, (case.spacing,) * 3)
        assert (case.case_id, finding.diagnosis) == (case.case_id, diagnosis)
        assert finding.ring_closed == (diagnosis == "DAA")


def test_agreement_with_the_classifier() -> None:
    assert ArchFinding("single-right", False, 5.0).agrees("RAA") is True
    assert ArchFinding("single-right", False, 5.0).agrees("DAA") is False
    assert ArchFinding("open-ring", False, None).agrees("DAA") is True


def test_names_and_shapes_are_checked() -> None:
    assert knows_arch(NAMES)
    assert not knows_arch(["AO", "LSA"])
    labels = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="needs structures AO and DAO, found LSA"):
        find_arch(labels, ["LSA"], (1, 1, 1))
    with pytest.raises(ValueError, match=r"trachea of its shape, found \(4, 4, 4\) and \(4, 4\)"):
        find_arch(labels, NAMES, (1, 1, 1), trachea=np.zeros((4, 4)))
