"""Networks of others: any `nn.Module`, by naming its heads, with pooled heads on its features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from threefold.core.arguments import arguments_of, require_arguments
from threefold.core.outputs import Head, Outputs
from threefold.core.registry import find
from threefold.errors import ExperimentError, RunError, bounded
from threefold.experiment import ForeignNetworkSpec
from threefold.networks.cam import CamLayer, HasCamLayer
from threefold.networks.heads import apply_pooled, pooled_head
from threefold.networks.stages import Staged

_OUTPUT = "output"


class ForeignNetwork(nn.Module):
    """A module whose outputs are given to tasks by name; those that it does not give are pooled of a layer.

    Once, when it is made, it is asked about an image of zeros, so that whatever does not fit is refused
    before training.

    Args:
        spec: names the class, its arguments, and what of its outputs is whose.
        in_channels: channels C of the image.
        heads: by task.
        size: of the image, (*S).

    Raises:
        ExperimentError: the class can't be made, or what it returns is not what the tasks need; says what was
            expected and found.
    """

    def __init__(
        self, spec: ForeignNetworkSpec, *, in_channels: int, heads: Mapping[str, Head], size: Sequence[int]
    ) -> None:
        super().__init__()
        self.kinds = dict(heads)
        self._spec = spec
        self._own = _own_heads(spec, heads)
        self.net = _make(spec, in_channels, heads, self._own, len(size))
        self.heads = nn.ModuleDict()
        image = torch.zeros(1, in_channels, *size)
        returned, layer = self._ask(image)
        names = _names_of(returned)  # an output that the module gives by a task's name is never replaced
        self._own = tuple(name for name in heads if name in self._own or name in names)
        if len(self._own) < len(heads):
            features = _pooled(layer, image.ndim, spec)
            for name, head in heads.items():
                if name not in self._own:
                    self.heads[name] = pooled_head(features.shape[1], head)
        self._check(returned, image)

    def forward(self, image: Tensor) -> Outputs:
        """(B, C, *S) image to the heads' outputs."""
        with self._listening() as kept:
            returned = self.net(image)
        features = None
        if self._spec.pool is not None:
            layer = returned if self._spec.pool == _OUTPUT else kept[0]
            features = _pooled(layer, image.ndim, self._spec)
        if isinstance(returned, Outputs):
            features = returned.features if features is None else features
        found = dict(self._given(returned))
        if features is not None:
            pooled = {name: head for name, head in self.kinds.items() if name in self.heads}
            found |= apply_pooled(self.heads, pooled, features)
        return Outputs({name: found[name] for name in self.kinds}, features)

    def cam_layer(self) -> CamLayer:
        """Return the layer that the experiment, or the module itself, names.

        Raises:
            RunError: neither names one.
        """
        if self._spec.cam is None:
            if isinstance(self.net, HasCamLayer):
                return self.net.cam_layer().within("net")
            raise RunError(
                f"{self._spec.kind}: names no layer for Grad-CAM. Say which submodule it is (network.cam), "
                "with an output of (B, C, *S)."
            )
        return CamLayer(f"net.{self._spec.cam}", "channels first", _LARGEST_STRIDE)

    def stage_layers(self) -> dict[str, str]:
        """Return the submodules of the encoder's stages by their names.

        Raises:
            RunError: neither the experiment nor the module names any.
        """
        if self._spec.stages is not None:
            return {name: f"net.{module}" for name, module in self._spec.stages.items()}
        if isinstance(self.net, Staged):
            return {name: f"net.{module}" for name, module in self.net.stage_layers().items()}
        raise RunError(
            f"{self._spec.kind}: names no stages, so it has no features stage by stage. Name submodules "
            "(network.stages: {first: layer1})."
        )

    def shared_parameter(self) -> str | None:
        """Return the parameter that the experiment names; None: it names none."""
        return None if self._spec.shared is None else f"net.{self._spec.shared}"

    def _ask(self, image: Tensor) -> tuple[Any, Any]:
        """Return what the module returns of an image, and the output of the layer that is pooled."""
        was_training = self.net.training
        self.net.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(), self._listening() as kept:
                returned = self.net(image)
        except ImportError as error:
            raise ExperimentError(
                f"network {self._spec.kind}: needs a package that is not installed "
                f"({bounded(str(error).strip().partition(chr(10))[0])}). Install it."
            ) from error
        except Exception as error:  # whatever a user's module raises
            raise ExperimentError(
                f"network {self._spec.kind}: fails on an image of shape {tuple(image.shape)} "
                f"({type(error).__name__}: {bounded(str(error))}). Correct its arguments, or "
                "data.preprocessing.size."
            ) from error
        finally:
            self.net.train(was_training)
        return returned, returned if self._spec.pool == _OUTPUT else (kept[0] if kept else None)

    @contextmanager
    def _listening(self) -> Iterator[list[Any]]:
        """Yield a list that the layer which is pooled adds its output to."""
        kept: list[Any] = []
        if self._spec.pool in (None, _OUTPUT):
            yield kept
            return
        module = _submodule(self.net, str(self._spec.pool), self._spec, "pool")
        handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        try:
            yield kept
        finally:
            handle.remove()

    def _given(self, returned: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the heads that the module gives by itself."""
        if isinstance(returned, Outputs):
            returned = returned.heads
        places = self._spec.heads or {}
        for number, name in enumerate(self._own):
            where = places.get(name, name if isinstance(returned, Mapping) else number)
            if isinstance(returned, Tensor):
                if len(self._own) > 1:
                    raise ExperimentError(
                        f"network {self._spec.kind}: returns one tensor, but {len(self._own)} tasks "
                        f"({', '.join(self._own)}) need one each. Name a layer to pool (network.pool), or "
                        "return a mapping."
                    )
                yield name, returned
                continue
            try:
                output = returned[where]
            except (KeyError, IndexError, TypeError):
                pool = ", or name a layer to pool (network.pool)" if self.kinds[name].kind == "pooled" else ""
                raise ExperimentError(
                    f"network {self._spec.kind}: returns {_described(returned)}, without '{where}' for "
                    f"the task {name}. Say where it is (network.heads){pool}."
                ) from None
            yield name, output

    def _check(self, returned: Any, image: Tensor) -> None:
        """Refuse outputs of another shape than the tasks need."""
        for name, output in self._given(returned):
            head = self.kinds[name]
            grid = () if head.kind == "pooled" else tuple(image.shape[2:])
            expected = (1, head.outputs, *grid)
            found = tuple(output.shape) if isinstance(output, Tensor) else _described(output)
            if found != expected:
                leave = f" Or name a layer to pool (network.pool), and leave '{name}' out of what it returns."
                pool = leave if head.kind == "pooled" else ""
                raise ExperimentError(
                    f"network {self._spec.kind}: for the task {name} expected an output of shape {expected} "
                    f"for an image of {tuple(image.shape)}, found {found}. Correct its arguments.{pool}"
                )
        if self._spec.cam is not None:
            _submodule(self.net, self._spec.cam, self._spec, "cam")
        for module in (self._spec.stages or {}).values():
            _submodule(self.net, module, self._spec, "stages")
        if self._spec.shared is not None and self._spec.shared not in dict(self.net.named_parameters()):
            raise ExperimentError(
                f"network {self._spec.kind}: network.shared names no parameter '{self._spec.shared}'."
            )


_KEYS = tuple(ForeignNetworkSpec.model_fields)
_LARGEST_STRIDE = 1024
"""More than any network has: Grad-CAM takes the power of two below it that fits the layer's map."""


def _own_heads(spec: ForeignNetworkSpec, heads: Mapping[str, Head]) -> tuple[str, ...]:
    """Return the tasks whose output the module gives by itself.

    Raises:
        ExperimentError: `heads` names a task that there isn't.
    """
    unknown = [name for name in spec.heads or {} if name not in heads]
    if unknown:
        raise ExperimentError(
            f"network.heads names '{unknown[0]}', which is no task with a head. Tasks: {', '.join(heads)}."
        )
    if spec.pool is None:
        return tuple(heads)
    named = spec.heads or {}
    return tuple(name for name, head in heads.items() if name in named or head.kind != "pooled")


def class_of(spec: ForeignNetworkSpec) -> Any:
    """Return the class that a network's settings name.

    Raises:
        ExperimentError: there is no such class, or it has no such arguments; the nearest is told.
    """
    made, _ = find("networks", spec.kind)
    require_arguments(made, spec.options, f"network {spec.kind}", keys=_KEYS)
    return made


def _make(
    spec: ForeignNetworkSpec, in_channels: int, heads: Mapping[str, Head], own: Sequence[str], dimensions: int
) -> nn.Module:
    """Make the module; arguments that its class has and the experiment leaves out are filled in.

    Raises:
        ExperimentError: there is no such class, or it can't be made.
    """
    made, options = class_of(spec), spec.options
    known, _ = arguments_of(made)
    counts = [heads[name].outputs for name in own]
    outputs = counts[0] if len(counts) == 1 else (None if counts else 1)  # of none, nobody looks at it
    filled = {
        "in_channels": in_channels,
        "spatial_dims": dimensions,
        "dimensions": dimensions,
        "heads": heads,
    }
    if outputs is not None:
        filled |= {"out_channels": outputs, "num_classes": outputs}
    options = {name: value for name, value in filled.items() if name in known} | options
    try:
        module = made(**options)
    except Exception as error:  # whatever a user's class raises
        several = ""
        if outputs is None and {"out_channels", "num_classes"} & ({*known} - {*options}):
            several = (
                f" out_channels and num_classes are filled in for one task; here are {len(own)} "
                f"({', '.join(own)}): set them, or give the class an argument `heads`."
            )
        raise ExperimentError(
            f"network {spec.kind}: can't be made with {bounded(str(options))} ({type(error).__name__}: "
            f"{bounded(str(error))}). Its arguments: {', '.join(known)}.{several}"
        ) from error
    if not isinstance(module, nn.Module):
        returned = type(module).__name__
        raise ExperimentError(f"network {spec.kind}: expected a torch.nn.Module, found {returned}.")
    return module


def _submodule(network: nn.Module, name: str, spec: ForeignNetworkSpec, key: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        parent = name.rpartition(".")[0]
        inner = dict(network.named_modules()).get(parent, network)
        parent = parent if inner is not network else ""
        names = ", ".join(".".join(filter(None, (parent, one))) for one, _ in inner.named_children())
        raise ExperimentError(
            f"network {spec.kind}: network.{key} names no submodule '{name}'. There are: {names}."
        ) from None


def _pooled(layer: Any, ndim: int, spec: ForeignNetworkSpec) -> Tensor:
    """Return (B, F): the mean over space of (B, F, *S), over tokens of (B, N, F), or (B, F) itself."""
    if isinstance(layer, list | tuple) and layer:
        layer = layer[-1]  # of a list of stages, the deepest
    if isinstance(layer, Tensor) and layer.ndim == ndim:
        return layer.flatten(2).mean(dim=2)
    if isinstance(layer, Tensor) and layer.ndim == 3:
        return layer.mean(dim=1)
    if isinstance(layer, Tensor) and layer.ndim == 2:
        return layer
    raise ExperimentError(
        f"network {spec.kind}: network.pool ({spec.pool}) gives {_described(layer)}; expected (B, F, *S), "
        "tokens (B, N, F) or (B, F)."
    )


def _names_of(returned: Any) -> tuple[str, ...]:
    """Return the names of a mapping's outputs."""
    found = returned.heads if isinstance(returned, Outputs) else returned
    return tuple(found) if isinstance(found, Mapping) else ()


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, value))}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a sequence of {len(value)}"
    return type(value).__name__
