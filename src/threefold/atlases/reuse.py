"""What of an earlier propagation is reused, and why the rest is done anew, in words. Needs no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from threefold.atlases.steps import Step
from threefold.atlases.workplace import Record

_NOUNS = {"alignment": "alignments", "network": "registration networks", "registration": "registrations"}
_NAMED = 3


class Reuse:
    """Compares the steps of a propagation with those that were done before."""

    def __init__(self, known: Mapping[str, Record]) -> None:
        """Take what is known now: steps that are done from here on do not count.

        Args:
            known: the steps done before, by key.
        """
        self._known = set(known)
        self._before: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in known.values():
            self._before[record.kind, record.of].append(record)
        self._reused: Counter[str] = Counter()
        self._anew: dict[tuple[str, str], list[str]] = defaultdict(list)

    def note(self, step: Step) -> None:
        """Count a step that the propagation needs."""
        if step.key in self._known:
            self._reused[step.kind] += 1
        else:
            self._anew[step.kind, self._reason(step)].append(step.of)

    def lines(self) -> list[str]:
        """Return what is reused and what is done anew and why; nothing where nothing was done before."""
        if not self._before:
            return []
        reused = ", ".join(f"{number} {_NOUNS[kind]}" for kind, number in self._reused.items())
        lines = [f"reused from before: {reused or 'nothing'}"]
        for (kind, reason), names in self._anew.items():
            shown = ", ".join(filter(None, names[:_NAMED]))
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"done anew: {len(names)} {_NOUNS[kind]}, {reason}{shown and f': {shown}'}{more}")
        return lines

    def _reason(self, step: Step) -> str:
        alike = self._before.get((step.kind, step.of))
        if alike is None:
            return "not done before"
        differing = min((step.differences(record.parts) for record in alike), key=len)
        return f"as {' and '.join(differing)} changed"
