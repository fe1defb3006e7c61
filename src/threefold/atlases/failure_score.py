"""The probability that a registration has failed, from its signals: a calibrated table. Needs no torch.

Failed means: the true Dice, mean over the structures, is below 0.6. `benchmarks/registration_failure.py` fits
the table on real brains and phantoms and tests it on others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

TABLE_NAME = "failure_score.json"


@dataclass(frozen=True)
class SignalWeight:
    """What a signal says.

    Attributes:
        low, high: values beyond these, which no calibration case had, count as these.
        centre: where it says nothing, and what an undefined signal counts as.
        weight: log odds of failure per unit.
    """

    low: float
    high: float
    centre: float
    weight: float

    def log_odds(self, value: float | None) -> float:
        """Return what a value adds; 0 where it is not known."""
        if value is None or not math.isfinite(value):
            return 0.0
        return self.weight * (min(max(value, self.low), self.high) - self.centre)


@dataclass(frozen=True)
class FailureTable:
    """A logistic regression: log odds of failure, and the weights of signals by name."""

    intercept: float
    signals: Mapping[str, SignalWeight]

    def score(self, row: Mapping[str, Any]) -> float:
        """Return the probability of failure, 0 to 1, of a registration's signals by name.

        It is 1 where no label lies in the image: then what images and labels tell is NaN.
        """
        if math.isnan(row.get("tissue_correlation", 0.0)):
            return 1.0
        return 1 / (1 + math.exp(-self.intercept - sum(self.parts(row).values())))

    def parts(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Return what each signal adds to the log odds, the most alarming first."""
        found = {name: weight.log_odds(row.get(name)) for name, weight in self.signals.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1]))


@cache
def failure_table() -> FailureTable:
    """Return the package's table."""
    content = json.loads((files("threefold.atlases") / TABLE_NAME).read_text(encoding="utf-8"))
    return FailureTable(
        content["intercept"], {name: SignalWeight(**one) for name, one in content["signals"].items()}
    )
