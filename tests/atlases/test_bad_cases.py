"""A bad case harms only itself; a changed cohort is propagated again only where the change bears on it."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threefold.atlases import propagation
from threefold.atlases.outcome import left_out_of
from threefold.atlases.propagation import propagate
from threefold.atlases.spec import PropagationSpec
from threefold.audits.audit import audit
from threefold.cohorts.cohort import Cohort, CohortSpec, read_cohort, write_cohort
from threefold.errors import CohortError
from threefold.images.memory import out_of_memory
from threefold.images.reading import read_label_map
from threefold.images.writing import write_nifti

PLAIN = PropagationSpec(size=(10, 10, 10), affine_steps=2, epochs=0, refinement_steps=1)
TRAINED = PLAIN.model_copy(update={"epochs": 1, "channels": (2, 2), "final_channels": (2,)})


def quality(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "quality.csv").open(newline="") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}


def with_a_nan(path: Path) -> None:
    image = propagation.read_image(path)
    array = np.array(image.array, np.float32)
    array[2, 3, 4] = np.nan
    write_nifti(path, array, image.affine)


def constant(path: Path) -> None:
    image = propagation.read_image(path)
    write_nifti(path, np.ones_like(image.array), image.affine)


def a_slice(path: Path) -> None:
    write_nifti(path, np.ones((5, 5), np.float32), np.eye(4))


def other_label(path: Path) -> None:
    labels = read_label_map(path)
    write_nifti(path, np.full_like(labels.array, 9), labels.affine)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def a_fifo(path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no FIFOs")
    path.unlink()
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


HARMS: list[tuple[str, Callable[[Path], None], str]] = [
    ("image", with_a_nan, "1 NaN and 0 infinite voxels"),
    ("image", constant, "holds one value only"),
    ("image", a_slice, "expected a volume"),
    ("mask", other_label, "expected the values 0"),
    ("reference", other_label, "expected the values 0"),
    *[(column, Path.unlink, "no such file") for column in ("image", "mask", "reference")],
    *[(column, truncated, "truncated") for column in ("image", "mask", "reference")],
    *[(column, harm, "") for harm in (a_fifo, a_loop) for column in ("image", "mask", "reference")],
]


def test_each_bad_case_is_left_out_with_its_reason(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    good = {column: getattr(cohort.cases[0], column) for column in ("image", "mask", "reference")}
    rows = [{"case_id": "good", "patient_id": "p", "site": "s", **good}]
    for number, (column, harm, _) in enumerate(HARMS):
        copies = {name: cohort.folder / f"{number}-{name}.nii.gz" for name in good}
        for name, path in copies.items():
            shutil.copy(good[name], path)
        harm(copies[column])
        rows.append({"case_id": str(number), "patient_id": "p", "site": "s", **copies})
    many = write_cohort(tmp_path / "many", with_atlases_of(cohort), rows, allow_outside=True)
    out = tmp_path / "out"
    made = propagate(many, out, PLAIN)
    assert [case.case_id for case in made.cases] == ["good"]
    assert made.cases[0].structures is not None
    failed, table = left_out_of(made), quality(out)
    assert list(failed) == sorted(str(number) for number in range(len(HARMS)))
    for number, (_, _, reason) in enumerate(HARMS):
        row = table[str(number)]
        assert row["registration"] == "failed"
        assert row["reason"] == failed[str(number)]
        assert reason in row["reason"]
    assert "files" not in {finding.check for finding in audit(made).findings}


def with_atlases_of(cohort: Cohort) -> CohortSpec:
    """Return a cohort's description with its atlases' paths absolute."""
    atlases = [
        atlas.model_copy(
            update={key: str(cohort.folder / getattr(atlas, key)) for key in ("image", "structures")}
        )
        for atlas in cohort.spec.atlases
    ]
    return cohort.spec.model_copy(update={"atlases": tuple(atlases)})


def test_a_case_that_has_structures_and_no_image_is_left_out_too(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort(rows={"one": {"structures": "reference/one.nii.gz"}})
    cohort.cases[0].image.unlink()
    made = propagate(cohort, tmp_path / "out", PLAIN)
    assert [case.case_id for case in made.cases] == ["two", "three"]
    assert "no such file" in left_out_of(made)["one"]


def test_a_users_own_columns_are_not_replaced(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort(rows={"one": {"atlas": "drawn by hand"}})
    with pytest.raises(CohortError, match=r"column 'atlas'.*Rename yours, my_atlas"):
        propagate(cohort, tmp_path / "out", PLAIN)
    assert not (tmp_path / "out").exists()


def test_where_no_case_is_left_nothing_is_made(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    for case in cohort.cases:
        case.image.unlink()
    with pytest.raises(CohortError, match=r"no case can be used.\n  failed: one: .*no such file"):
        propagate(cohort, tmp_path / "out", PLAIN)
    assert not list(tmp_path.glob("*out*"))


def test_memory_that_runs_out_at_one_case_ends_no_other(
    make_cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, real, seen = make_cohort(), propagation.refine, []

    def refine(*given: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return real(*given)

    def read(path: Path) -> Any:
        if path == cohort.cases[2].image:
            raise out_of_memory(path) from MemoryError()
        return propagation_read(path)

    propagation_read = propagation.read_image
    monkeypatch.setattr(propagation, "refine", refine)
    monkeypatch.setattr(propagation, "read_image", read)
    out = tmp_path / "out"
    failed = left_out_of(propagate(cohort, out, PLAIN))
    assert [why.startswith("not enough memory") for why in failed.values()] == [True, True]
    monkeypatch.undo()
    assert left_out_of(propagate(cohort, out, PLAIN, renew=False)) != {}  # runs were trained on it
    assert left_out_of(propagate(cohort, out, PLAIN)) == {}
    assert [case.case_id for case in read_cohort(out).cases] == ["one", "two", "three"]


def test_ids_whose_files_would_be_one_are_refused_before_anything_is_written(
    make_cohort: Any, tmp_path: Path
) -> None:
    cohort = make_cohort()
    table = cohort.folder / "cases.csv"
    name = cohort.cases[0].case_id
    table.write_text(table.read_text().replace(f"{cohort.cases[1].case_id},", f"{name.upper()},"))
    with pytest.raises(CohortError, match=rf"ids differ in case alone.*{name}/{name.upper()}.*rename them"):
        propagate(read_cohort(cohort.folder), tmp_path / "out", PLAIN)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_no_case_s_fault(
    make_cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    cohort = make_cohort()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left"):
        propagate(cohort, tmp_path / "out", PLAIN)
    monkeypatch.undo()
    made = propagate(cohort, tmp_path / "out", PLAIN)
    assert len(made.cases) == 3


class Counted:
    """Counts alignments and registrations, and keeps what is said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.aligned, self.refined = 0, 0
        align, refine = propagation.align, propagation.refine

        def counted_align(*given: Any, **settings: Any) -> Any:
            self.aligned += 1
            return align(*given, **settings)

        def counted_refine(*given: Any) -> Any:
            self.refined += 1
            return refine(*given)

        monkeypatch.setattr(propagation, "align", counted_align)
        monkeypatch.setattr(propagation, "refine", counted_refine)

    def of(self, cohort: Cohort, out: Path, spec: PropagationSpec) -> tuple[int, int, list[str]]:
        """Propagate; return the number of alignments and registrations, and what was said."""
        self.aligned = self.refined = 0
        said: list[str] = []
        propagate(cohort, out, spec, say=said.append)
        return self.aligned, self.refined, said


def part(cohort: Cohort, *names: str) -> Cohort:
    return Cohort(cohort.folder, cohort.spec, tuple(case for case in cohort.cases if case.case_id in names))


def test_a_changed_cohort_reuses_what_is_the_same(
    make_cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, out, counted = make_cohort(), tmp_path / "out", Counted(monkeypatch)
    assert counted.of(part(cohort, "one", "two"), out, PLAIN) == (2, 2, [])
    first = (out / "structures" / "one.nii.gz").read_bytes()
    # one removed, one added
    aligned, refined, said = counted.of(part(cohort, "one", "three"), out, PLAIN)
    assert (aligned, refined) == (1, 1)
    assert said[0] == "reused from before: 1 alignments, 1 registrations"
    assert "done anew: 1 registrations, not done before: three" in said
    assert [case.case_id for case in read_cohort(out).cases] == ["one", "three"]
    assert (out / "structures" / "one.nii.gz").read_bytes() == first
    # a column that bears on no voxel
    renamed = part(make_cohort(rows={"one": {"site": "elsewhere"}}), "one", "three")
    assert counted.of(renamed, out, PLAIN)[:2] == (0, 0)
    assert read_cohort(out).cases[0].site == "elsewhere"
    # another mask: judged anew, aligned as before
    labels = read_label_map(cohort.cases[0].mask)
    write_nifti(cohort.cases[0].mask, np.roll(labels.array, 1, axis=0), labels.affine)
    aligned, refined, said = counted.of(renamed, out, PLAIN)
    assert (aligned, refined) == (0, 1)
    assert "done anew: 1 registrations, as mask changed: one" in said
    # and it is what a propagation of its own gives
    propagate(renamed, tmp_path / "alone", PLAIN)
    for name in ("quality.csv", "cases.csv", "structures/one.nii.gz", "structures/three.nii.gz"):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_the_bad_case_nothing_is_done_again_and_with_it_mended_the_network_is(
    make_cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, out, counted = make_cohort(), tmp_path / "out", Counted(monkeypatch)
    good = cohort.cases[1].image.read_bytes()
    with_a_nan(cohort.cases[1].image)
    assert counted.of(cohort, out, TRAINED)[:2] == (2, 2)
    weights = (out / "registration" / "weights.safetensors").read_bytes()
    (out / "registration" / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    aligned, refined, said = counted.of(part(cohort, "one", "three"), out, TRAINED)
    assert (aligned, refined) == (0, 0)
    assert said == ["reused from before: 2 alignments, 1 registration networks, 2 registrations"]
    assert (out / "registration" / "weights.safetensors").read_bytes() == weights
    assert left_out_of(read_cohort(out)) == {}
    cohort.cases[1].image.write_bytes(good)
    aligned, refined, said = counted.of(cohort, out, TRAINED)
    assert (aligned, refined) == (1, 3)
    assert "done anew: 1 registration networks, as cases changed" in said
    assert "done anew: 2 registrations, as network changed: one, three" in said


def test_what_was_changed_by_hand_or_has_runs_is_not_replaced(make_cohort: Any, tmp_path: Path) -> None:
    cohort, out = make_cohort(), tmp_path / "out"
    propagate(cohort, out, PLAIN)
    fewer = part(cohort, "one", "two")
    with pytest.raises(CohortError, match=r"runs were trained on it\. Nothing was overwritten"):
        propagate(fewer, out, PLAIN, renew=False)
    steps = (out / "steps.json").read_text()
    (out / "steps.json").write_text(steps.replace('"matrix": [[', '"matrix": [[1', 1))
    with pytest.raises(CohortError, match=r"steps\.json is not as it was written"):
        propagate(fewer, out, PLAIN)
    (out / "steps.json").write_text(steps)
    labels = read_label_map(out / "structures" / "two.nii.gz")
    write_nifti(out / "structures" / "two.nii.gz", labels.array * 0 + 1, labels.affine)
    corrected = (out / "structures" / "two.nii.gz").read_bytes()
    with pytest.raises(CohortError, match=r"two\.nii\.gz is not as it was written: someone changed it"):
        propagate(fewer, out, PLAIN)
    assert (out / "structures" / "two.nii.gz").read_bytes() == corrected
    assert len(read_cohort(out).cases) == 3


def test_a_renewal_killed_between_two_renamings_loses_nothing(
    make_cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, out = make_cohort(), tmp_path / "out"
    propagate(cohort, out, PLAIN)
    real = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name == ".out.unfinished":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        propagate(part(cohort, "one", "two"), out, PLAIN)
    monkeypatch.undo()
    assert not out.exists()
    counted = Counted(monkeypatch)
    assert counted.of(cohort, out, PLAIN) == (0, 0, [])  # the earlier one is back
    assert counted.of(part(cohort, "one", "two"), out, PLAIN)[:2] == (0, 0)
    assert len(read_cohort(out).cases) == 2


def test_a_damaged_record_or_label_map_is_made_again(
    make_cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, out, counted = make_cohort(), tmp_path / "out", Counted(monkeypatch)
    propagate(cohort, tmp_path / "whole", PLAIN)

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        propagate(cohort, out, PLAIN, progress=stop)
    progress = tmp_path / ".out.unfinished" / "progress"
    maps = sorted(progress.glob("*.nii.gz"))
    maps[0].write_bytes(maps[0].read_bytes()[:-1])
    record = next(path for path in progress.glob("*.json") if "matrix" in path.read_text())
    record.write_text(record.read_text().replace("1", "2"))
    aligned, refined, _ = counted.of(cohort, out, PLAIN)
    assert (aligned, refined) == (1, 1)
    for name in ("quality.csv", "structures/one.nii.gz", "structures/two.nii.gz", "structures/three.nii.gz"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
