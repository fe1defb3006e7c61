"""A trained run, ready to predict: one pass over any images, no labels needed.

from threefold.inference.predictor import Predictor

for prediction in Predictor.from_run("my-run").predict(["scan.nii.gz", "folder"]):
    print(prediction.case_id, prediction.probabilities)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from threefold import __version__
from threefold.cohorts.cohort import CohortSpec
from threefold.cohorts.trained_on import TrainedOn, read_trained_on
from threefold.core.foreign_code import verify_code
from threefold.errors import RunError, ThreefoldError, UsageError, WeightsError
from threefold.evaluation.predictions import (
    CALIBRATED_PREFIX,
    PREDICTION_SET,
    SET_SEPARATOR,
    probability_column,
)
from threefold.experiment import Experiment
from threefold.experiments import read_experiment
from threefold.images.reading import Uneven
from threefold.inference.agreement import contradiction
from threefold.inference.calibration import Calibration, read_calibration
from threefold.inference.cases import Progress, probabilities_of, volume_columns
from threefold.inference.engine import Committee, Prepared, Result, Seat, run_network
from threefold.inference.listing import Inputs, Listing, Source, find_sources
from threefold.inference.out_of_distribution import (
    OutOfDistribution,
    TrainingFeatures,
    judge,
    read_features,
)
from threefold.inference.output import DISAGREEMENT, Prediction, PredictionFolder, VolumeInterval
from threefold.inference.sources import Asked, OnError, prepare_each, refuse_other_question
from threefold.inference.structures import topology_columns
from threefold.interchange.dicom_results import DicomResults, require_dicom
from threefold.interchange.dicom_seg import Algorithm, SegmentationType
from threefold.models.store import name_of, read_card, run_path, warning_in
from threefold.networks.pretrained import load_pretrained
from threefold.run import COPY_AGAIN, Epoch, RunFolder
from threefold.runs.finished import verify_made, verify_settings
from threefold.tasks.build import build_network, build_tasks
from threefold.tasks.questions import Question, questions_of, the_only
from threefold.threads import share_cores
from threefold.validation import parse_spec, read_json

UNKNOWN = (
    "what the run was trained on is not known (it was made by an earlier version): intensities, spacing and "
    "size could not be held against it"
)
UNCALIBRATED = (
    "there is no calibration (the run is of an earlier version, an ensemble, or predicts by other weights): "
    "probabilities are raw, and there are no prediction sets and intervals"
)


@dataclass(frozen=True)
class Predictor:
    """A run's network with what is needed to ask it.

    Attributes:
        network: with the run's weights, on `device`.
        experiment: as run.
        cohort: meaning of the cohort trained on.
        threshold: of the positive class's probability, chosen on the run's validation cases; None where
            the run has none.
        version: of the program that trained the run, and the first 12 hex digits of its weights' SHA-256.
        run: the run folder's name, or the model's.
        device: where the network runs.
        seen: what the run's training images were; None: not known, as of runs that were made before it was
            written down.
        questions: what the network is asked: its heads, and how what they say is written down.
        thresholds: of each class question by its task, where there are several.
        engine: what computes the network in place of PyTorch; empty: nothing does.
        warning: of the model's card; empty where the run has none.
        calibration: what the run's validation cases say of its predictions; None: the run has none (an
            earlier version made it), or other weights than its own were asked for.
        training: the encoder's features of training cases; None: the run has none.
    """

    network: nn.Module
    experiment: Experiment
    cohort: CohortSpec
    threshold: float | None
    version: str
    run: str
    device: torch.device
    seen: TrainedOn | None = None
    questions: tuple[Question, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    engine: str = ""
    warning: str = ""
    calibration: Calibration | None = None
    training: TrainingFeatures | None = None

    @property
    def asked(self) -> Asked:
        """What images are prepared for, and held against."""
        return Asked(self.cohort, self.experiment.data.preprocessing, self.seen)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known beside every prediction."""
        said = self.warning, "" if self.seen is not None else UNKNOWN
        return tuple(one for one in said if one)

    @property
    def limits(self) -> tuple[str, ...]:
        """What can't be said of how far the predictions can be trusted; it is not repeated beside each."""
        return (UNCALIBRATED,) if self.calibration is None else self.calibration.limits()

    @classmethod
    def from_run(
        cls, run: str | os.PathLike[str], *, device: str = "cpu", weights: Epoch | None = None
    ) -> Predictor:
        """Load a run's network once.

        Args:
            run: a folder that `threefold train` left, with its weights; or the name of a model that the
                package ships, such as threefold/head-ct.
            device: for example cpu, cuda, cuda:1.
            weights: of the best or the last epoch; None: as its experiment says.

        Raises:
            RunError: not a run folder, one without (such) weights, one whose settings are not those that it
                was finished with, or one of two classes without a threshold.
            WeightsError: the weights are damaged or another network's.
            UsageError: there is no such device.
        """
        share_cores()
        folder = RunFolder(run_path(run))
        status = folder.read_status()
        if not folder.weights.is_file():
            raise RunError(
                f"{folder.path}: has no {folder.weights.name} yet (state: {status.get('state')}). Let its "
                "training finish: `threefold train ... --resume`."
            )
        verify_settings(folder)
        experiment = read_experiment(folder.experiment)
        verify_code(folder, experiment)
        cohort = _read_cohort_spec(folder)
        file = weights_of(folder, weights)
        if file != folder.weights:
            status = {"state": status["state"], **_description(file)}
        _require_threshold(folder, experiment, cohort, status)
        tasks = build_tasks(experiment, cohort)
        network = build_network(experiment, cohort, tasks)
        report = load_pretrained(network, file, decoders_from_encoder=False)
        differing = [*report.missing, *report.unused]
        if differing:
            raise WeightsError(
                f"{file}: not the weights of this run's network: {len(report.missing)} are missing "
                f"and {len(report.unused)} unknown, for example {differing[0]}. The experiment.yaml or "
                "cohort.json beside them was changed."
            )
        verify_made(folder, file, file.with_suffix(".json"), folder.calibration, folder.features)
        own = file == folder.weights
        return cls(
            network=network.to(_device(device)).eval(),
            experiment=experiment,
            cohort=cohort,
            threshold=status.get("threshold"),
            thresholds=status.get("thresholds", {}),
            questions=questions_of(experiment, cohort, tasks),
            version=_version(file),
            run=name_of(folder.path),
            device=_device(device),
            seen=read_trained_on(folder.trained_on),
            warning=warning_in(read_card(folder)),
            calibration=read_calibration(folder.calibration) if own else None,
            training=read_features(folder.features) if own else None,
        )

    def predict(
        self,
        inputs: Inputs,
        out: str | os.PathLike[str] | PredictionFolder | None = None,
        *,
        batch_size: int = 16,
        uneven: Uneven = "refuse",
        dicom: SegmentationType | None = None,
        allow_outside: bool = False,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Predict images, folders, DICOM series or cohorts, a batch at a time.

        A 2D network that is given a volume predicts each slice along the third axis. Listing the inputs
        and refusing `out` happen at the call; the predictions come as the iterator is advanced.

        Each image is held against what the network was trained on (`cohorts.meaning`): what is proven to be
        something else is an error, what can't be proven is in the prediction's remarks.

        Args:
            inputs: a path, several paths, a cohort, the files of one case by channel, or a `Listing`;
                `find_sources` says what a folder stands for.
            out: folder for masks, predictions.csv and failed.csv: a new one, or one of the same call, which
                is gone on with: what it holds of unchanged inputs is neither made nor yielded again.
            batch_size: images a pass of the network; volumes go one at a time. Which images share a pass
                depends on the list of inputs alone, so that one that is done later has the same digits.
            uneven: what to do with an unevenly spaced or tilted DICOM series.
            dicom: write into `out`, of each DICOM input, a segmentation of this type and a measurement
                report; None: neither.
            allow_outside: accept cohorts whose paths leave their folder.
            on_error: told of each input that can't be predicted; None: the first one raises.
            progress: told the number of inputs (not slices) that are read.

        Raises:
            ImageError: an input can't be read (unless `on_error` is given), or a mask can't be written.
            CohortError: a cohort can't be read, or asks what the network was not trained for.
            RunError: `out` holds something else, another process writes into it, or it can't be written.
        """
        listing = find_sources(inputs, allow_outside=allow_outside)
        specs = {id(one.cohort): one.cohort for one in listing.sources if one.cohort is not None}
        for spec in specs.values():
            refuse_other_question(self.cohort, spec)
        if not isinstance(out, PredictionFolder | None):
            out = self.folder(Path(out), listing, batch_size=batch_size, uneven=uneven, dicom=dicom)
        return self._predictions(listing, out, batch_size, uneven, on_error, progress)

    def folder(
        self,
        path: Path,
        listing: Listing,
        *,
        batch_size: int = 16,
        uneven: Uneven = "refuse",
        dicom: SegmentationType | None = None,
    ) -> PredictionFolder:
        """Return a folder of predictions, to be made or gone on with; options as for `predict`.

        Raises:
            RunError: there is something else in it.
            UsageError: DICOM objects can't be made: a library is missing, or labels may overlap.
        """
        classes = any(one.kind == "class" for one in self.questions)
        threshold = {"threshold": self.threshold} if classes else {}
        coverage = {} if self.calibration is None else {"coverage": self.calibration.coverage}
        return PredictionFolder(
            path,
            labels={one.head: len(one.names) or 1 for one in self.questions if one.kind == "labels"},
            same={**threshold, **coverage, "run": self.run, "version": self.version},
            options={
                "inputs": listing.asked,
                "uneven": uneven,
                "batch_size": batch_size,
                "program": __version__,
                **({"engine": self.engine} if self.engine else {}),
                **({DISAGREEMENT: True} if isinstance(self.network, Committee) and self.network.maps else {}),
            },
            dicom=None if dicom is None else self._dicom_results(dicom),
        )

    def _dicom_results(self, kind: SegmentationType) -> DicomResults:
        require_dicom()
        several = [one.head for one in self.questions if one.kind == "labels"]
        if kind == "labelmap" and len(several) > 1:
            raise UsageError(
                f"a labelmap holds one label a voxel, and those of {', '.join(several)} may overlap. Leave "
                "--labelmap out."
            )
        return DicomResults(self.cohort, self.questions, Algorithm(self.run, self.version), kind)

    def _predictions(
        self,
        listing: Listing,
        folder: PredictionFolder | None,
        batch_size: int,
        uneven: Uneven,
        on_error: OnError | None,
        progress: Progress | None,
    ) -> Iterator[Prediction]:
        def unanswered(one: Prepared, error: RunError) -> None:
            assert on_error is not None
            if folder is None or folder.fail(
                one.number,
                one.case_id,
                str(one.image.source),
                str(error),
                answered=True,
                slices=one.volume is not None,
            ):
                on_error(Source(one.case_id, str(one.image.source)), error)

        with nullcontext() if folder is None else folder.opened(listing):
            prepared = self._prepared(listing.sources, folder, batch_size, uneven, on_error, progress)
            for one, result in run_network(
                self.network,
                prepared,
                self.questions,
                device=self.device,
                batch_size=batch_size,
                on_failure=None if on_error is None else unanswered,
            ):
                prediction = self._prediction(one, result)
                yield prediction if folder is None else folder.add(one.number, prediction)

    def _prepared(
        self,
        sources: tuple[Source, ...],
        folder: PredictionFolder | None,
        batch_size: int,
        uneven: Uneven,
        on_error: OnError | None,
        progress: Progress | None,
    ) -> Iterator[Prepared]:
        for number, source in enumerate(sources):

            def failed(part: Source, error: ThreefoldError, number: int = number) -> None:
                assert on_error is not None
                if folder is not None:
                    folder.fail(number, part.name, part.where, str(error))
                on_error(part, error)

            if folder is None or folder.begin(number):
                given = 0
                last = None  # held back, so that its answer ends its input
                for one in prepare_each(
                    source, self.asked, uneven=uneven, on_error=None if on_error is None else failed
                ):
                    if folder is not None:
                        folder.give(number)
                    if last is not None:
                        yield last
                    last = replace(one, number=number)
                    given += 1
                if folder is not None:
                    folder.end(number)
                if last is not None and given == 1 and last.volume is None:
                    last = replace(last, seat=_seat(number, len(sources), batch_size))
                if last is not None:
                    yield last
            if progress is not None:
                progress(number + 1, len(sources))

    def _prediction(self, one: Prepared, result: Result) -> Prediction:
        if one.shows_nothing:
            empty = {head: np.zeros_like(labels) for head, labels in result.labels.items()}
            agreed = {head: np.zeros_like(values) for head, values in result.disagreement.items()}
            result = Result(labels=empty, note=result.note, disagreement=agreed)
        asked, labelled = the_only(self.questions, "class"), the_only(self.questions, "labels")
        probabilities = {} if asked is None else probabilities_of(asked, result)
        decision = self.decide(probabilities, asked) if probabilities else None
        mask = None if labelled is None else result.labels[labelled.head]
        contradicts = contradiction(decision, mask, one.image, self.cohort, self.seen)
        trust = {} if asked is None else self._trust(asked, _columns_of(probabilities))
        return Prediction(
            case_id=one.case_id,
            probabilities=probabilities,
            decision=decision,
            mask=mask,
            image=one.image,
            slice_index=one.slice_index,
            volume=one.volume,
            note=result.note,
            remarks=(
                *one.remarks,
                *((contradicts,) if contradicts else ()),
                *result.remarks,
                *self.notes,
            ),
            topology=self._topology(one, mask, labelled, probabilities),
            answers=self._answers(one, result),
            masks={
                question.head: result.labels[question.head]
                for question in self.questions
                if question.kind == "labels" and question.prefix
            },
            members=result.members,
            disagreement=result.disagreement,
            calibrated={name: trust[f"{CALIBRATED_PREFIX}{name}"] for name in probabilities if trust},
            prediction_set=tuple(trust[PREDICTION_SET].split(SET_SEPARATOR)) if trust else (),
            volume_interval=None if mask is None or labelled is None else self._volume(labelled, mask, one),
            out_of_distribution=None if one.shows_nothing else self._judged(one, result),
        )

    def _trust(self, question: Question, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the calibration says of an answer, as columns without prefix."""
        return {} if self.calibration is None else self.calibration.columns(question, answer)

    def _volume(self, question: Question, mask: NDArray[np.uint8], one: Prepared) -> VolumeInterval | None:
        measured = volume_columns(mask, None, one.image)
        ends = self._trust(question, measured)
        if not ends:
            return None
        return VolumeInterval(
            measured["mask_volume"],
            ends["mask_volume_low"],
            ends["mask_volume_high"],
            measured["mask_volume_unit"],
        )

    def _judged(self, one: Prepared, result: Result) -> OutOfDistribution:
        thresholds = None if self.calibration is None else self.calibration.distances
        return judge(self.training, thresholds, result.features, one.unlike)

    def _answers(self, one: Prepared, result: Result) -> dict[str, Any]:
        """Return what is said beside the only diagnosis and mask, by the columns' names."""
        found: dict[str, Any] = {}
        for question in self.questions:
            if question.kind == "labels" and question.prefix:
                measured = volume_columns(result.labels[question.head], None, one.image)
                del measured["mask_truth_volume"]
                if ends := self._trust(question, measured):
                    found |= {f"{question.prefix}{name}": value for name, value in (measured | ends).items()}
            if question.task is None or not question.prefix or question.head not in result.pooled:
                continue
            told = question.task.columns(result.pooled[question.head], None)
            kept = {name: value for name, value in told.items() if not _is_truth(name)}
            kept |= self._trust(question, kept)
            found |= {f"{question.prefix}{name}": value for name, value in kept.items()}
            if question.kind == "class":
                decided = self.decide(probabilities_of(question, result), question)
                found[f"{question.prefix}decision"] = decided
        return found

    def _topology(
        self,
        one: Prepared,
        mask: NDArray[np.uint8] | None,
        question: Question | None,
        probabilities: dict[str, float],
    ) -> dict[str, str]:
        if mask is None or question is None or not question.names:
            return {}
        return topology_columns(
            mask,
            None,
            names=question.names,
            classes=tuple(probabilities) or self.cohort.classes,
            placement=one.placement,
            image=one.image,
            probabilities=probabilities,
        )

    def threshold_of(self, question: Question) -> float | None:
        """Return the threshold of a question's positive class; None: the most probable is decided for."""
        return self.thresholds.get(question.head) if question.prefix else self.threshold

    def decide(self, probabilities: Mapping[str, float], question: Question | None = None) -> str:
        """Return the class decided for, given each class's probability.

        Args:
            probabilities: by class.
            question: that they answer; None: the network's only class question.
        """
        question = question or the_only(self.questions, "class")
        threshold = None if question is None else self.threshold_of(question)
        positive = None if question is None else question.positive_class
        if question is None or positive is None or threshold is None:
            return max(probabilities, key=probabilities.__getitem__)
        name = question.classes[positive]
        return name if probabilities[name] >= threshold else question.classes[1 - positive]


def _columns_of(probabilities: Mapping[str, float]) -> dict[str, float]:
    return {probability_column(name): value for name, value in probabilities.items()}


def _is_truth(column: str) -> bool:
    """Whether a column of a table of predictions holds what is known, and not what the network says."""
    return column in ("label", "truth") or column.startswith("truth_")


def _seat(number: int, count: int, batch_size: int) -> Seat:
    """Return the seat of an input that is one picture, by its number in the list of all."""
    index, place = divmod(number, batch_size)
    return Seat(index, place, min(batch_size, count - index * batch_size))


def _device(name: str) -> torch.device:
    """Return the device, tried.

    Raises:
        UsageError: if there is none of that name.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"--device {name}: not available here ({reason}). Use cpu.") from error
    return device


def _require_threshold(
    run: RunFolder, experiment: Experiment, cohort: CohortSpec, status: Mapping[str, Any]
) -> None:
    """Refuse a run that decides between two classes without the threshold that it was finished with."""
    asked = [
        one
        for one in questions_of(experiment, cohort)
        if one.kind == "class" and one.positive_class is not None
    ]
    known = status.get("thresholds") or {}
    if any((known.get(one.head) if one.prefix else status.get("threshold")) is None for one in asked):
        raise RunError(
            f"{run.status}: has no threshold (state: {status['state']}). Expected the one chosen on the "
            "validation cases, since the network decides between two classes. Finish the run: `threefold "
            f"finish {run.path}`; or copy its folder again."
        )


def _read_cohort_spec(folder: RunFolder) -> CohortSpec:
    spec = folder.read_cohort()["spec"]
    return parse_spec(CohortSpec, spec, where=str(folder.cohort), error=RunError)


def weights_of(run: RunFolder, epoch: Epoch | None) -> Path:
    """Return the file of the best or the last epoch's weights; None: of those that the run predicts with.

    Raises:
        RunError: the run keeps no such weights.
    """
    if epoch is None or epoch == read_experiment(run.experiment).training.selection.weights:
        return run.weights
    other, status = run.other_weights(epoch), run.read_status()
    if other.is_file():
        return other
    if status.get("epoch") is not None and status["epoch"] == status.get("best_epoch"):
        return run.weights  # one epoch is both
    raise RunError(
        f"{run.path}: keeps no weights of its {epoch} epoch ({other.name}): it was made by an earlier "
        "version, or copied without them. Leave --weights out, or copy the run folder again."
    )


def _description(weights: Path) -> dict[str, Any]:
    """Return what is said of weights in the file beside them; nothing where there is none."""
    path = weights.with_suffix(".json")
    return read_json(path, RunError, COPY_AGAIN) if path.is_file() else {}


def _version(weights: Path) -> str:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return f"{_description(weights).get('version', '?')}+{digest[:12]}"
