"""When each claim of a study was written down: one that comes after its runs tests nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from threefold.errors import RunError
from threefold.experiment.spec import Spec
from threefold.run import write_atomically
from threefold.studies.study_claims import asked_pairs, claims_by_cohort, is_labels_id
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import ClaimSpec, StudySpec


class Line(Spec):
    """What decides a claim's verdict in one cohort.

    Not the number of replicates, which may be raised: it changes p by chance alone.
    """

    metric: str
    group: str
    baseline_group: str | None
    expected: Literal["higher", "lower", "different"]
    confidence: float
    margin: float
    beyond: float = 0.0
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
    written: str | None
    """When it was written down (ISO 8601, UTC); None where that is not known."""
    finished_before: int | None
    """How many of its runs had finished by then; None where that is not known."""
    seen: bool
    """Whether any of its runs has finished since, or had: what it came to may have been seen."""
    line: Line


class Protocol(Spec):
    """The claims of a study as they were written down, those that it no longer has among them."""

    lines: tuple[WrittenLine, ...]


def line_of(study: StudySpec, claim: ClaimSpec, cohort: str) -> Line:
    """Return what decides a claim's verdict in a cohort; the order of seeds and splits does not."""
    return Line(
        metric=claim.metric,
        group=claim.group,
        baseline_group=claim.baseline_group,
        expected=claim.expected,
        confidence=study.confidence,
        margin=study.margin,
        beyond=claim.beyond,
        pairs=tuple(sorted((first, second) for first, second, _ in asked_pairs(study, claim, cohort))),
    )


def lines_of(study: StudySpec) -> list[Line]:
    """Return the lines of a study's claims, in the order of `claims_by_cohort`."""
    return [line_of(study, claim, cohort) for claim, cohort in claims_by_cohort(study)]


def write_down(study: StudySpec, folder: StudyFolder) -> Sequence[WrittenLine]:
    """Write into a study's folder when each of its claims was written down.

    Returns:
        The lines that are new though some of their runs have finished.

    Raises:
        RunError: the folder can't be written, or what it says of the claims is damaged.
    """
    known = {each.line for each in _before(folder)}
    protocol = protocol_of(study, folder)
    text = protocol.model_dump_json(indent=2) + "\n"
    if not folder.protocol.is_file() or folder.protocol.read_text(encoding="utf-8") != text:
        write_atomically(folder.protocol, text)
    return [each for each in protocol.lines if each.line not in known and each.finished_before]


def protocol_of(study: StudySpec, folder: StudyFolder) -> Protocol:
    """Return what `write_down` would write now.

    A line that was there before keeps its time. One that the study no longer has stays once any of its runs
    has finished.

    Raises:
        RunError: what the folder says of the claims is damaged.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = {
        each.line: each.model_copy(update={"seen": each.seen or _finished(each.line, folder) > 0})
        for each in _before(folder)
    }
    asked = {line_of(study, claim, cohort): claim.claim for claim, cohort in claims_by_cohort(study)}
    kept = [each for line, each in known.items() if line in asked or each.seen]
    new = [
        WrittenLine(claim=words, written=now, finished_before=number, seen=number > 0, line=line)
        for line, words in asked.items()
        if line not in known
        for number in (_finished(line, folder),)
    ]
    return Protocol(lines=(*kept, *new))


def read_protocol(folder: StudyFolder) -> Protocol:
    """Return when the claims of a study's folder were written down.

    Of a folder without a protocol, which an earlier version made, nothing is known but what the study says.

    Raises:
        RunError: it is damaged, or the folder is not a study.
    """
    if not folder.protocol.is_file():
        study = folder.read()
        unknown = (
            WrittenLine(
                claim=claim.claim,
                written=None,
                finished_before=None,
                seen=False,
                line=line_of(study, claim, cohort),
            )
            for claim, cohort in claims_by_cohort(study)
        )
        return Protocol(lines=tuple(unknown))
    try:
        return Protocol.model_validate_json(folder.protocol.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RunError(
            f"{folder.protocol}: can't be read ({reason}). It says when each claim was written down. Put a "
            "copy of it back, or run the study in a new --out."
        ) from error


def _before(folder: StudyFolder) -> tuple[WrittenLine, ...]:
    """Return what was written down before; nothing of a folder that is new."""
    is_new = not folder.protocol.is_file() and not folder.study.is_file()
    return () if is_new else read_protocol(folder).lines


def _finished(line: Line, folder: StudyFolder) -> int:
    """Return how many of a line's runs have finished, those among them whose folders were removed since."""
    outcomes = map(folder.outcome, line.runs)
    return sum(outcome is not None and outcome.state == "finished" for outcome in outcomes)
