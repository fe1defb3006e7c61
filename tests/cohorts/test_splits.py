"""Splits: no patient on two sides, the asked shares, the same parts whatever the order of the rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from threefold.cohorts.cohort import AtlasSpec, Case, Cohort, CohortSpec
from threefold.cohorts.splits import (
    Split,
    make_split,
    read_split,
    require_targets,
    write_split,
)
from threefold.cohorts.stratification import apportion, assign
from threefold.core.targets import MaskSpec
from threefold.errors import CohortError, RunError
from threefold.experiment import SplitSpec

from .cases import known, retold

SPEC = CohortSpec(name="x", modality="ct", dimensions=2, classes=("no", "yes"), mask=MaskSpec())
IMAGE = Path("/x/a.nii")


def _cohort(cases: Iterable[Case], **update: Any) -> Cohort:
    return Cohort(Path("/x"), SPEC.model_copy(update=update), tuple(cases))


def _case(name: str, patient: str, site: str = "s", split: Any = None, **targets: Any) -> Case:
    return Case(name, patient, site, IMAGE, targets=known(**targets), split=split)


def _patients(n: int, sites: int = 2, slices: int = 2) -> list[Case]:
    return [
        _case(f"{p}-{s}", f"p{p}", f"s{p % sites}", label=p // sites % 2)
        for p in range(n)
        for s in range(slices)
    ]


def _sides(cohort: Cohort, split: Split) -> dict[str, set[str]]:
    sides: dict[str, set[str]] = defaultdict(set)
    for case in cohort.cases:
        sides[case.patient_id].add(split.parts[case.case_id])
    return sides


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    """Generate cohorts with patients of several sites and labels, and absent targets."""
    n = draw(st.integers(3, 40))
    sites = draw(st.integers(1, 4))
    cases = []
    for p in range(n):
        for s in range(draw(st.integers(1, 3))):
            cases.append(
                _case(
                    f"c{p}-{s}",
                    f"p{p}",
                    f"s{draw(st.integers(0, sites - 1)) if draw(st.integers(0, 9)) == 0 else p % sites}",
                    label=draw(st.sampled_from([None, 0, 1])),
                    mask=draw(st.sampled_from([None, IMAGE])),
                )
            )
    return _cohort(cases)


SPECS = st.builds(
    SplitSpec,
    kind=st.sampled_from(["patient", "slice", "site", "leave-one-site-out"]),
    hold_out=st.sampled_from([(), ("s0",)]),
    validation=st.sampled_from([0.1, 0.15, 0.3]),
    test=st.sampled_from([0.0, 0.2, 0.4]),
    seed=st.integers(0, 5),
)


@settings(max_examples=120, deadline=None)
@given(cohort=cohorts(), spec=SPECS, random=st.randoms(use_true_random=False))
def test_properties_of_any_split(cohort: Cohort, spec: SplitSpec, random: Any) -> None:
    try:
        split = make_split(cohort, spec)
    except CohortError:
        assume(False)
    assert set(split.parts) == {case.case_id for case in cohort.cases}
    shared = {patient for patient, sides in _sides(cohort, split).items() if len(sides) > 1}
    assert split.leaking_patients == tuple(sorted(shared))
    assert not shared or spec.kind == "slice"
    shuffled = list(cohort.cases)
    random.shuffle(shuffled)
    assert make_split(_cohort(shuffled), spec).parts == split.parts
    assert {"train", "validation"} <= set(split.parts.values())
    held = set(spec.hold_out or ())
    if spec.kind == "leave-one-site-out":
        held |= {min(set(cohort.sites) - held)}
    assert all(split.parts[case.case_id] == "test" for case in cohort.cases if case.site in held)
    name = "case_id" if spec.kind == "slice" else "patient_id"
    held_groups = {getattr(case, name) for case in cohort.cases if case.site in held}
    part_of = {getattr(c, name): split.parts[c.case_id] for c in cohort.cases}
    free = Counter(part for group, part in part_of.items() if group not in held_groups)
    test = 0.0 if spec.kind in ("site", "leave-one-site-out") else spec.test
    n = free.total()
    shares = {"train": 1 - spec.validation - test, "validation": spec.validation, "test": test}
    for part, share in shares.items():
        # A share that would round to none still gets one group, which the others give.
        assert abs(free[part] - share * n) < 2
        assert (free[part] == 0) == (share == 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [20, 60, 200])
def test_each_part_looks_like_the_whole(n: int, seed: int) -> None:
    cohort = _cohort(
        _case(f"c{p}", f"p{p}", f"s{p * p % 7 % 4}", label=int(p % 10 < 3), mask=IMAGE if p % 3 else None)
        for p in range(n)
    )
    split = make_split(cohort, SplitSpec(seed=seed))
    sizes = Counter(split.parts.values())
    for key in ("site", "label", "mask"):
        whole = Counter(getattr(case, key) for case in cohort.cases)
        for part, size in sizes.items():
            here = Counter(getattr(case, key) for case in split.cases(cohort, part))
            for value, count in whole.items():
                assert abs(here[value] - count * size / n) <= 1.7, (key, value, part)


@pytest.mark.parametrize("seed", range(5))
def test_with_atlases_masks_are_spread_and_structures_are_not_looked_at(seed: int) -> None:
    atlas = AtlasSpec(name="mean", image="a.nii", structures="l.nii")
    spec = SPEC.model_copy(update={"atlases": (atlas,), "structures": ("artery",)})
    cases = [
        _case(f"c{p}", f"p{p}", "s0", label=p % 2, mask=IMAGE if p % 5 == 0 else None) for p in range(30)
    ]
    some = [retold(case, structures=IMAGE if p % 3 else None) for p, case in enumerate(cases)]
    cohort = Cohort(Path("/x"), spec, tuple(cases))
    split = make_split(cohort, SplitSpec(seed=seed))
    assert split.parts == make_split(Cohort(Path("/x"), spec, tuple(some)), SplitSpec(seed=seed)).parts
    masked = Counter(split.parts[case.case_id] for case in cases if case.mask)
    assert masked == {"train": 4, "validation": 1, "test": 1}


def test_the_seed_matters_and_the_draw_is_fixed() -> None:
    cohort = _cohort(_patients(30))
    splits = [make_split(cohort, SplitSpec(seed=seed)).parts for seed in range(4)]
    assert len({tuple(sorted(parts.items())) for parts in splits}) == 4
    # The draw must never change: runs of earlier versions would silently test on their training patients.
    tested = sorted({name.split("-")[0] for name, part in splits[0].items() if part == "test"}, key=int)
    assert tested == ["2", "7", "13", "15", "20", "24"]


def test_a_patient_of_two_sites_is_wholly_tested_where_one_is_held_out() -> None:
    cases = [*_patients(20), _case("both-0", "both", "s0"), _case("both-1", "both", "s1")]
    split = make_split(_cohort(cases), SplitSpec(kind="site", hold_out=("s1",)))
    assert split.parts["both-0"] == split.parts["both-1"] == "test"
    assert not split.leaks
    others = {split.parts[c.case_id] for c in cases if c.site == "s0" and c.patient_id != "both"}
    assert others == {"train", "validation"}


def test_leave_one_site_out_tests_every_site_once() -> None:
    cohort = _cohort(_patients(24, sites=3))
    splits = [
        make_split(cohort, SplitSpec(kind="leave-one-site-out", fold=fold, validation=0.25))
        for fold in range(3)
    ]
    tested = [{case.site for case in split.cases(cohort, "test")} for split in splits]
    assert tested == [{"s0"}, {"s1"}, {"s2"}]
    always = [
        make_split(cohort, SplitSpec(kind="leave-one-site-out", fold=fold, hold_out=("s1",)))
        for fold in range(2)
    ]
    assert [{c.site for c in s.cases(cohort, "test")} for s in always] == [{"s0", "s1"}, {"s1", "s2"}]
    with pytest.raises(CohortError, match=r"fold 3 .* does not exist; the 3 folds are 0 to 2"):
        make_split(cohort, SplitSpec(kind="leave-one-site-out", fold=3))


def test_folds_test_every_patient_once_and_look_alike() -> None:
    cohort = _cohort(_patients(31, sites=3), site_groups={"external": ("s2",)})
    splits = [make_split(cohort, SplitSpec(folds=4, fold=fold, seed=5)) for fold in range(4)]
    free = [case for case in cohort.cases if case.site != "s2"]
    held_out = {case.case_id for case in cohort.cases if case.site == "s2"}
    tested = [{case.case_id for case in split.cases(cohort, "test")} for split in splits]
    assert all(held_out < each for each in tested)
    assert Counter(name for each in tested for name in each - held_out) == Counter(c.case_id for c in free)
    for split in splits:
        assert all(len(parts) == 1 for parts in _sides(cohort, split).values())
        assert set(split.parts.values()) == {"train", "validation", "test"}
        of_fold = [case for case in split.cases(cohort, "test") if case.site != "s2"]
        labels, sites = (Counter(getattr(case, what) for case in of_fold) for what in ("label", "site"))
        assert len({case.patient_id for case in of_fold}) in (5, 6)
        assert max(labels.values()) - min(labels.values()) <= 4
        assert max(sites.values()) - min(sites.values()) <= 4
    with pytest.raises(ValueError, match="fold 4 of 4 does not exist"):
        SplitSpec(folds=4, fold=4)
    with pytest.raises(ValueError, match="folds are of patients, but kind is slice"):
        SplitSpec(folds=4, kind="slice")


def test_site_groups_can_be_held_out() -> None:
    cohort = _cohort(_patients(24, sites=3), site_groups={"far": ("s1", "s2")})
    split = make_split(cohort, SplitSpec(kind="site", hold_out=("far",)))
    assert {case.site for case in split.cases(cohort, "test")} == {"s1", "s2"}
    with pytest.raises(CohortError, match=r"hold_out names 'fra', where no case is from. Did you mean 'far'"):
        make_split(cohort, SplitSpec(kind="site", hold_out=("fra",)))


def test_external_without_cases_is_not_held_out_by_default() -> None:
    cohort = _cohort(_patients(12), site_groups={"external": ("elsewhere",)})
    assert make_split(cohort, SplitSpec()) == make_split(cohort, SplitSpec(hold_out=()))


def test_slice_leaks_and_says_so() -> None:
    split = make_split(_cohort(_patients(10, slices=6)), SplitSpec(kind="slice"))
    assert split.leaks
    assert set(split.leaking_patients) <= {f"p{n}" for n in range(10)}


def test_column_goes_by_the_table() -> None:
    cases = [_case(f"{p}", f"p{p}", split=("train", "validation", "test")[p % 3]) for p in range(6)]
    split = make_split(_cohort(cases), SplitSpec(kind="column"))
    assert split.parts == {case.case_id: case.split for case in cases}
    assert split.kind == "column"


def test_column_without_a_part_names_the_case() -> None:
    cases = [_case("a", "p", split="train"), _case("lost", "q")]
    with pytest.raises(CohortError, match=r"1 case\(s\) \(lost\) without a part"):
        make_split(_cohort(cases), SplitSpec(kind="column"))


def test_column_that_leaks_is_refused_by_name() -> None:
    cases = [
        _case("a", "p7", split="train"),
        _case("b", "p7", split="test"),
        _case("c", "q", split="validation"),
    ]
    with pytest.raises(CohortError, match=r"p7: a in train, b in test"):
        make_split(_cohort(cases), SplitSpec(kind="column"))


@pytest.mark.parametrize(
    ("cases", "spec", "said"),
    [
        ([_case("a", "p")], SplitSpec(), "1 patients; a patient split into train, validation, test needs at "
         "least 3"),
        ([_case("a", "p")], SplitSpec(kind="slice", test=0), "1 cases"),
        (_patients(9), SplitSpec(validation=0), "nothing is left for validation"),
        (_patients(9), SplitSpec(validation=0.5, test=0.5), "nothing is left for train"),
        (_patients(9), SplitSpec(kind="site"), "needs hold_out"),
        (_patients(9), SplitSpec(kind="site", hold_out=("s0", "s1")), "0 patients that are not held out"),
        (_patients(9, sites=1), SplitSpec(kind="leave-one-site-out"), "at least 2 sites"),
        ([_case("a", "p", split="train")], SplitSpec(kind="column"), "validation part of the column"),
        (_patients(3), SplitSpec(folds=4), "3 patients that are not held out can't be divided into 4 folds"),
        (_patients(2), SplitSpec(folds=2), "1 patients that are not held out; a patient split into train"),
    ],
)  # fmt: skip
def test_what_can_not_be_split(cases: list[Case], spec: SplitSpec, said: str) -> None:
    with pytest.raises(CohortError) as error:
        make_split(_cohort(cases), spec)
    assert said in str(error.value)


def test_one_class_or_no_target_in_train_is_refused() -> None:
    cases = [_case(f"{n}", f"p{n}", label=None if n == 0 else 0) for n in range(10)]
    cohort = _cohort(cases)
    split = make_split(cohort, SplitSpec())
    with pytest.raises(CohortError, match=r"labelled train cases of the patient split are 'no'"):
        require_targets(cohort, split, ["label"])
    with pytest.raises(CohortError, match=r"none of the \d train cases .* has a mask"):
        require_targets(cohort, split, ["mask"])
    require_targets(cohort, split, [])


def test_a_changed_table_does_not_fit_the_split() -> None:
    split = make_split(_cohort(_patients(6)), SplitSpec())
    with pytest.raises(CohortError, match=r"1 case\(s\) \(new\)"):
        split.cases(_cohort([*_patients(6), _case("new", "p")]), "train")


def test_a_split_survives_the_file(tmp_path: Path) -> None:
    cases = [*_patients(9, slices=3), _case("#a,\n'b\"", "p;,\n1"), _case("#c", "p;,\n1")]
    for kind in ("slice", "patient"):
        split = make_split(_cohort(cases), SplitSpec(kind=kind))
        write_split(tmp_path / "split.csv", split)
        assert read_split(tmp_path / "split.csv") == split


@pytest.mark.parametrize(
    "text",
    [
        "",
        "case_id,part\na,train\n",
        "# kind: slice\n# leaking patients: nonsense\ncase_id,part\n",
        "# kind: slice\n# leaking patients: 3\ncase_id,part\n",
        "# kind: slice\n# leaking patients: []\ncase_id,part\na,trian\n",
        "# kind: slice\n# leaking patients: []\ncase_id,part\na,train\na,test\n",
        "# kind: slice\n# leaking patients: []\ncase_id,part\na\n",
    ],
)
def test_what_is_no_split_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(RunError, match=r"split\.csv"):
        read_split(tmp_path / "split.csv")


@given(
    total=st.integers(0, 200),
    weights=st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(any),
)
def test_apportion_is_whole_and_near(total: int, weights: list[int]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    counts = apportion(total, shares)
    assert sum(counts) == total
    assert min(counts) >= 0
    wanting = sum(share > 0 for share in shares)
    for count, share in zip(counts, shares, strict=True):
        assert share > 0 or count == 0
        assert count > 0 or share == 0 or total < wanting
        assert abs(count - total * share) < 1 + wanting


def test_assign_wants_sizes_that_add_up() -> None:
    with pytest.raises(ValueError, match="2 groups"):
        assign({"a": [], "b": []}, {"train": 3}, 0)
