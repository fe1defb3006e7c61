"""The demo's command goes from nothing to tables and figures, and goes on where it was stopped."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from threefold.cli.app import main
from threefold.phantoms import head_ct
from threefold.studies import demos
from threefold.training import progress


class Stopped(progress.Silence):
    """Knows whether it was stopped, as a bar has to be to give the terminal back."""

    stopped = False

    def stop(self) -> None:
        self.stopped = True


SMALL = (
    "training.epochs=1",
    "training.selection.metric=loss",
    "network.encoder.embed_dim=8",
    "data.preprocessing.size=[32, 32]",
    "evaluation.replicates=50",
)


def _call(*arguments: str, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["threefold", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == code


def test_demo_from_nothing_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = head_ct.PRESETS["demo"].model_copy(
        update={"patients_per_site": 4, "external_patients_per_site": 2, "sites": 6, "size": 96}
    )
    monkeypatch.setitem(head_ct.PRESETS, "demo", small)
    out = tmp_path / "demo"
    _call("demo", "hematoma", "--out", str(out), "--seed", "2", *SMALL)
    printed = capsys.readouterr().out
    assert "AUC" in printed
    assert "Dice" in printed
    for line in printed.splitlines():
        if line.startswith(("Tables: ", "Figures: ", "Pictures")):
            assert Path(line.split(": ")[1]).is_dir()
    weights = (out / "run" / "weights.safetensors").read_bytes()
    assert json.loads((out / "run" / "status.json").read_text())["state"] == "finished"
    _call("demo", "hematoma", "--out", str(out), "--seed", "2", *SMALL)
    assert capsys.readouterr().out == printed
    assert (out / "run" / "weights.safetensors").read_bytes() == weights


def test_an_interrupted_demo_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Stopped()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    interrupted = replace(demos.PHANTOMS["head-ct"], make=interrupt)
    monkeypatch.setattr(demos, "PHANTOMS", {"head-ct": interrupted})
    monkeypatch.setattr(progress, "terminal_progress", lambda: told)
    _call("demo", "hematoma", "--out", str(tmp_path / "demo"), code=130)
    assert "Repeat the command to resume" in capsys.readouterr().err
    assert told.stopped
