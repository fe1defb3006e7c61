"""Pooled features of each stage of a network's encoder, for the cases of a cohort."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.failures import Failures, none_left
from threefold.core.outputs import Outputs
from threefold.errors import NoFeaturesError, RunError
from threefold.inference.cases import Progress, prepare_cases
from threefold.inference.engine import in_batches
from threefold.inference.predictor import Predictor
from threefold.inference.sliding import predict_large
from threefold.inference.sources import refuse_other_question
from threefold.networks.cpu import cpu_kernels
from threefold.networks.stages import Staged, pooled

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """What a network's encoder makes of n cases.

    Attributes:
        cases: (n,) their ids.
        stages: (n, C) mean over the image of each stage's output, by the stage's name, in order.
        pooled: (n, F) what the network itself calls its features: what its classifier reads.
    """

    cases: tuple[str, ...]
    stages: Mapping[str, Floats]
    pooled: Floats

    def of(self, cases: Sequence[str]) -> Features:
        """Return the features of some of the cases, in the order asked for."""
        at = [self.cases.index(name) for name in cases]
        stages = {name: values[at] for name, values in self.stages.items()}
        return Features(tuple(cases), stages, self.pooled[at])


@dataclass(frozen=True)
class _Call:
    """One pass of a network: its features (B, F) and those of its stages, (B, C) by name."""

    features: Tensor
    stages: Mapping[str, Tensor]


def stage_features(
    predictor: Predictor,
    cases: Sequence[Case],
    spec: CohortSpec,
    *,
    batch_size: int = 16,
    failed: Failures | None = None,
    progress: Progress | None = None,
    by_stage: bool = True,
) -> Features:
    """Return the features of some cases, in their order.

    Of an image larger than the network's the features are of the window that the diagnosis comes from
    (`threefold.inference.sliding`); of a network without one, of the whole image where it is predicted in one
    pass, else of its middle.

    Args:
        predictor: a run's network.
        cases: of one cohort.
        spec: of that cohort.
        batch_size: images a pass; volumes go one at a time.
        failed: gets each case that can't be read, and why; it has no features. None: the first one raises.
        progress: told after each batch.
        by_stage: those of each stage too, and not the last ones alone.

    Raises:
        NoFeaturesError: the network gives none.
        CohortError: the cohort's axes, unit or classes are not those trained on.
        ImageError: naming the case whose image can't be read, where `failed` is None; else, no case can be.
        RunError: the network names no stages and is asked for them, or a feature is not finite.
    """
    refuse_other_question(predictor.cohort, spec)
    network, device = predictor.network, predictor.device
    asked = replace(predictor.asked, judged=spec != predictor.cohort)
    prepared = prepare_cases(cases, spec, asked, failed)
    found: list[_Call] = []
    done: list[str] = []
    with _listening(network, by_stage=by_stage) as calls, cpu_kernels(network), torch.inference_mode():
        for batch in in_batches(prepared, batch_size):
            images = torch.from_numpy(np.stack([one.array for one in batch]))  # (B, C, *S)
            calls.clear()
            if batch[0].window is None:
                network(images.to(device))
                call = calls[0]
            else:
                outputs, _ = predict_large(
                    network, images, batch[0].window, device=device, name=batch[0].case_id
                )
                call = _call_of(outputs, calls)
            _refuse_not_finite(call, [one.case_id for one in batch])
            found.append(call)
            done += [one.case_id for one in batch]
            if progress is not None:
                progress(len(done), len(cases))
    if failed and not done:
        raise none_left(f"cohort '{spec.name}'", failed)
    names = tuple(found[0].stages) if found else ()
    return Features(
        cases=tuple(done),
        stages={name: _rows([call.stages[name] for call in found]) for name in names},
        pooled=_rows([call.features for call in found]),
    )


@contextmanager
def _listening(network: nn.Module, *, by_stage: bool) -> Iterator[list[_Call]]:
    """Yield a list that each pass of the network adds what its stages gave to."""
    if by_stage and not isinstance(network, Staged):
        raise RunError(f"{type(network).__name__}: names no stages, so it has no features stage by stage.")
    places = network.stage_layers() if by_stage and isinstance(network, Staged) else {}
    calls: list[_Call] = []
    stages: dict[str, Tensor] = {}

    def keep_stage(name: str) -> nn.Module:
        module = network.get_submodule(places[name])
        last = getattr(module, "channels_last", False)
        hooks.append(
            module.register_forward_hook(
                lambda _, __, output: stages.__setitem__(
                    name, pooled(output, channels_last=last).float().cpu()
                )
            )
        )
        return module

    def keep_call(_: nn.Module, __: object, outputs: Outputs) -> None:
        if outputs.features is None:
            raise NoFeaturesError(
                "The network gives no features, so nothing is said of what they tell. Name a layer of it to "
                "pool (network.pool)."
            )
        calls.append(_Call(outputs.features.float().cpu(), dict(stages)))
        stages.clear()

    hooks = [network.register_forward_hook(keep_call)]
    for name in places:
        keep_stage(name)
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _call_of(outputs: Outputs, calls: Sequence[_Call]) -> _Call:
    """Return the pass that outputs' features are from; of outputs put together of windows, the first."""
    if outputs.features is None:
        return calls[0]
    features = outputs.features.float().cpu()
    return next(call for call in calls if torch.equal(call.features, features))


def _refuse_not_finite(call: _Call, cases: Sequence[str]) -> None:
    for name, values in {**call.stages, "features": call.features}.items():
        for case, good in zip(cases, values.isfinite().all(dim=1).tolist(), strict=True):
            if not good:
                raise RunError(
                    f"case {case}: the network's {name} is not finite. Its weights, or the image's "
                    "intensities, are damaged; `threefold check` says more of the images."
                )


def _rows(parts: Sequence[Tensor]) -> Floats:
    return torch.cat(list(parts)).numpy() if parts else np.zeros((0, 0), np.float32)
