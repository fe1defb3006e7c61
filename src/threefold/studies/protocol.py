"""When each claim of a study was written down: one that comes after its runs tests nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from datetime import UTC, datetime
from typing import Literal

from threefold.errors import RunError
from threefold.experiment.spec import Spec
from threefold.run import make_folder, write_atomically
from threefold.studies.claim_pairs import asked_pairs, is_labels_id
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import ClaimSpec, StudySpec, claim_cohorts


class Line(Spec):
    """What decides a claim's verdict in one cohort."""

    metric: str
    group: str
    baseline_group: str | None
    expected: Literal["higher", "lower", "different"]
    confidence: float
    margin: float
    pairs: tuple[tuple[str, str], ...]
    """Ids of the runs, baseline and variant: by them cohorts, variants, splits and seeds are fixed."""

    @property
    def runs(self) -> frozenset[str]:
        """Ids of all its runs; a cohort's own structures are none."""
        names = (name for pair in self.pairs for name in pair)
        return frozenset(name for name in names if not is_labels_id(name))


class WrittenLine(Spec):
    """A line of the protocol."""

    claim: str
    """In words, which decide nothing."""
    written: str
    """When it was written down (ISO 8601, UTC); empty where that is not known."""
    finished: int | None
    """How many of its runs had finished by then; None where that is not known."""
    says: Line


class Protocol(Spec):
    """The claims of a study as they were written down, those that it no longer has among them."""

    lines: tuple[WrittenLine, ...] = ()

    def finished_before(self, says: Line, finished: Set[str]) -> int:
        """Return how many of a line's runs had finished when it was written down; 0 if that is not known.

        Args:
            says: the line.
            finished: ids of the runs that have finished now: a line that is not here is written now.
        """
        before = [line.finished or 0 for line in self.lines if line.says == says]
        return before[0] if before else len(says.runs & finished)

    def withdrawn(self, study: StudySpec, finished: Set[str]) -> int:
        """Return how many lines a study no longer has, or has in another form, though runs have finished."""
        now = {says for _, says in _lines(study)}
        return sum(line.says not in now and bool(line.says.runs & finished) for line in self.lines)


def line_of(study: StudySpec, claim: ClaimSpec, cohort: str) -> Line:
    """Return what decides a claim's verdict in a cohort."""
    return Line(
        metric=claim.metric,
        group=claim.group,
        baseline_group=claim.baseline_group,
        expected=claim.expected,
        confidence=study.confidence,
        margin=study.margin,
        pairs=tuple((first, second) for first, second, _ in asked_pairs(study, claim, cohort)),
    )


def write_down(study: StudySpec, folder: StudyFolder) -> Sequence[WrittenLine]:
    """Write a study into its folder, and when each of its claims was written down.

    A line that was there before keeps its time. One that the study no longer has stays if any of its runs has
    finished, since what it came to may have been seen.

    Returns:
        The lines that are new though some of their runs have finished.

    Raises:
        RunError: the folder can't be written, or what it says of the claims is damaged.
    """
    make_folder(folder.path)
    begun = folder.protocol.is_file() or folder.study.is_file()
    known = {line.says: line for line in read_protocol(folder).lines} if begun else {}
    asked = {says: claim.claim for claim, says in _lines(study)}
    runs = {name for says in (*known, *asked) for name in says.runs}
    finished = {name for name in runs if folder.is_finished(name)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = {
        says: WrittenLine(claim=words, written=now, finished=len(says.runs & finished), says=says)
        for says, words in asked.items()
        if says not in known
    }
    kept = [line for says, line in known.items() if says in asked or says.runs & finished]
    protocol = Protocol(lines=(*kept, *new.values()))
    text = protocol.model_dump_json(indent=2) + "\n"
    if not folder.protocol.is_file() or folder.protocol.read_text(encoding="utf-8") != text:
        write_atomically(folder.protocol, text)
    folder.write(study)
    return [line for line in new.values() if line.finished]


def read_protocol(folder: StudyFolder) -> Protocol:
    """Return when the claims of a study's folder were written down.

    Of a folder without a protocol, which an earlier version made, nothing is known but what the study says.

    Raises:
        RunError: it is damaged, or the folder is not a study.
    """
    if not folder.protocol.is_file():
        lines = _lines(folder.read())
        unknown = (
            WrittenLine(claim=claim.claim, written="", finished=None, says=says) for claim, says in lines
        )
        return Protocol(lines=tuple(unknown))
    try:
        return Protocol.model_validate_json(folder.protocol.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder.protocol}: can't be read ({error}). It says when each claim was written down. Put a "
            "copy of it back, or run the study in a new --out."
        ) from error


def _lines(study: StudySpec) -> Iterator[tuple[ClaimSpec, Line]]:
    for claim in study.claims:
        for cohort in claim_cohorts(study, claim):
            yield claim, line_of(study, claim, cohort)
