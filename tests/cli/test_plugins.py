"""`threefold plugins`: what is there by name, and what could not be loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from threefold.cli.app import app
from threefold.core import registry


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that offers a network which is not in it."""
    info = tmp_path / "acme-1.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.4\n")
    (info / "entry_points.txt").write_text("[threefold.networks]\nacme-net = acme_broken:Net\n")
    (tmp_path / "acme_broken.py").write_text("Nett = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.forget()
    yield
    registry.forget()


def test_each_is_listed_with_its_place_its_source_and_its_problem(acme: None) -> None:
    result = CliRunner().invoke(app, ["plugins", "--json"])
    assert result.exit_code == 0, result.output
    found = {(one["group"], one["name"]): one for one in json.loads(result.stdout)}
    assert found["networks", "swin-unet"]["source"] == "built in"
    assert found["tasks", "regression"]["place"] == "threefold.tasks.regression:RegressionTask"
    assert {"head-ct", "fetal-heart", "object-background", "varied-head"} == {
        n for g, n in found if g == "phantoms"
    }
    broken = found["networks", "acme-net"]
    assert (broken["place"], broken["source"]) == ("acme_broken:Net", "acme 1.4")
    assert "acme_broken has no 'Net'. Did you mean 'Nett'?" in broken["problem"]
    assert [one for one in found.values() if one["problem"]] == [broken]

    shown = CliRunner().invoke(app, ["plugins"])
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["networks:", "tasks:", "phantoms:"]
    at = next(number for number, line in enumerate(lines) if line.split()[0] == "acme-net")
    assert lines[at].split() == ["acme-net", "acme_broken:Net", "acme", "1.4"]
    assert lines[at + 1].startswith("    can't be loaded: network 'acme-net': acme_broken has no 'Net'.")
