"""The phantom's page says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from threefold.phantoms.head_ct import PRESETS
from threefold.phantoms.head_protocol import SCANNERS

PAGE = (Path(__file__).parents[2] / "docs" / "explanation" / "head-ct-phantom.md").read_text()


def test_the_table_of_sites_is_the_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 12))
    for (_, cells), scanner in zip(rows, SCANNERS, strict=True):
        expected = [v if isinstance(v, str) else f"{v:g}" for v in vars(scanner).values()]
        assert cells.split(" | ") == expected


def test_the_protocol_is_the_presets() -> None:
    def row(name: str) -> list[str]:
        found = re.search(rf"^\| {name} \| (.*) \|$", PAGE, flags=re.MULTILINE)
        assert found is not None, name
        return found[1].split(" | ")

    specs = [PRESETS["study"], PRESETS["demo"]]
    assert row("patients per internal site / external site") == [
        f"{s.patients_per_site} / {s.external_patients_per_site}" for s in specs
    ]
    assert row("slices per patient") == [f"{s.slices[0]} to {s.slices[1]}" for s in specs]
    assert row("hematoma") == [
        "{:g} to {:g} ml, {:g} to {:g} HU".format(*s.hematoma_volume, *s.hematoma_density) for s in specs
    ]
    assert row("marker") == [
        "{:g} to {:g} HU, {:.0f} to {:.0f} % of the section".format(
            *s.marker_density, *(100 * share for share in s.marker_share)
        )
        for s in specs
    ]


def test_the_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "head-ct-phantom.md", "exec"), {})
