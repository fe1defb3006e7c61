"""Errors of typed specifications name the key's path and the nearest valid key."""

from __future__ import annotations

from pathlib import Path

import pytest

from threefold.errors import ExperimentError
from threefold.experiment import Experiment
from threefold.validation import parse_spec, parse_yaml, read_yaml, sentence


def _refusal(data: dict[str, object]) -> str:
    with pytest.raises(ExperimentError) as caught:
        parse_spec(Experiment, data, where="my.yaml", error=ExperimentError)
    return str(caught.value)


def test_misspelt_keys_name_path_and_nearest_key() -> None:
    message = _refusal(
        {
            "name": "x",
            "tasks": {"clasification": {}},
            "training": {"epcohs": 3, "optimiser": {"lerning_rate": 1}},
            "network": {"kind": "swin-unet", "encoder": {"embed_dims": 3}},
        }
    )
    assert message.startswith("my.yaml:")
    assert (
        "tasks: 'clasification' is no kind of task; say which one it is (kind: ...). "
        "Did you mean 'classification'?" in message
    )
    assert "training.epcohs: unknown key. Did you mean 'epochs'?" in message
    assert "training.optimiser.lerning_rate: unknown key. Did you mean 'learning_rate'?" in message
    assert "network.encoder.embed_dims: unknown key. Did you mean 'embed_dim'?" in message


def test_a_key_like_none_lists_the_valid_ones() -> None:
    message = _refusal({"name": "x", "tasks": {"classification": {}}, "balancing": {"zzz": 1}})
    assert "balancing.zzz: unknown key. Valid: method, gradnorm_alpha." in message


def test_wrong_values_show_what_was_found() -> None:
    message = _refusal({"name": "x", "tasks": {"classification": {"weight": -1}}, "training": {"epochs": 0}})
    assert "tasks.classification.weight" in message
    assert "found -1" in message
    assert "training.epochs: Input should be greater than 0, found 0." in message


def test_numbers_that_would_fail_later_are_refused() -> None:
    training = {"seed": -1, "optimiser": {"learning_rate": float("inf")}}
    message = _refusal(
        {"name": "x", "tasks": {"classification": {"weight": float("nan")}}, "training": training}
    )
    assert "training.seed: Input should be greater than or equal to 0, found -1." in message
    assert "training.optimiser.learning_rate: Input should be a finite number, found inf." in message
    assert "tasks.classification.weight" in message


@pytest.mark.parametrize(
    ("text", "ended"),
    [("wrong", "wrong."), ("wrong.", "wrong."), ("Did you mean 'x'?", "Did you mean 'x'?")],
)
def test_a_sentence_ends_once(text: str, ended: str) -> None:
    assert sentence(text) == ended


def test_missing_key() -> None:
    assert "tasks: missing, expected a value." in _refusal({"name": "x"})


def test_rules_between_keys() -> None:
    data = {
        "name": "x",
        "tasks": {"reconstruction": {}},
        "training": {"selection": {"metric": "auc"}},
    }
    assert "training.selection.metric is auc, but no task gives it" in _refusal(data)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "is empty"), ("- a\n- b", "found list"), ("a: [", "not valid YAML"), ("1: 2", "keys and values")],
)
def test_text_that_is_no_mapping(text: str, problem: str) -> None:
    with pytest.raises(ExperimentError, match=problem):
        parse_yaml(text, "here", ExperimentError)


def test_a_text_says_the_same_again_whatever_became_of_what_it_said() -> None:
    text = "kept: {inner: [1, 2]}\nshared: &one [3]\nagain: *one\n"
    first = parse_yaml(text, "here", ExperimentError)
    assert first["shared"] is first["again"]
    first["kept"]["inner"].append("changed")
    first["shared"].clear()
    expected = {"kept": {"inner": [1, 2]}, "shared": [3], "again": [3]}
    assert parse_yaml(text, "there", ExperimentError) == expected


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml", ExperimentError)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ExperimentError, match="can't be read as text"):
        read_yaml(binary, ExperimentError)
