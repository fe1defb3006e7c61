"""A run's network computed by ONNX Runtime or OpenVINO in place of PyTorch.

The network is written as an ONNX graph from images (B, C, *S) to its heads, and to its features where it
gives any: of slices with any number of images a batch, of volumes with one. OpenVINO reads that graph and
keeps it in its own format.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from threefold.core.outputs import Outputs
from threefold.errors import RunError, UsageError

Format = Literal["onnx", "openvino"]
Engine = Literal["onnx", "openvino", "openvino-bf16"]
"""What computes a network; OpenVINO in float32, or in bfloat16 where the processor has it."""
FILES: dict[Format, tuple[str, ...]] = {
    "onnx": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
}
"""The files of a network in each format, the first being the one that is opened."""
IMAGE, FEATURES = "image", "features"
_OPSET = 20
_NEEDED: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}

_Compute = Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]]


def format_of(engine: Engine) -> Format:
    """Return the format that an engine reads."""
    return "onnx" if engine == "onnx" else "openvino"


def require_engine(format_: Format) -> None:
    """Refuse a format whose libraries are not installed.

    Raises:
        UsageError: saying how to install them.
    """
    if any(find_spec(name) is None for name in _NEEDED[format_]):
        raise UsageError(
            f"{format_} needs {', '.join(_NEEDED[format_])}, which are not all installed: pip install "
            "'threefold[export]'."
        )


class EngineNetwork(nn.Module):
    """A network in an engine, asked as the PyTorch network that it was written from.

    Attributes:
        kinds: the heads, as the plain network has them.
        fixed_size: it takes images of the size that it was written for, and no other.
    """

    fixed_size = True

    def __init__(self, folder: Path, engine: Engine, names: Sequence[str], plain: nn.Module) -> None:
        """Open a network.

        Args:
            folder: of the files that `write_network` wrote.
            engine: what computes it, with as many threads as PyTorch has.
            names: of the graph's outputs, in order.
            plain: the network that it was written from; its weights are not kept.

        Raises:
            UsageError: the engine is not installed.
            RunError: the files can't be read.
        """
        super().__init__()
        format_ = format_of(engine)
        require_engine(format_)
        self.kinds = getattr(plain, "kinds", {})
        self._names = tuple(names)
        path = folder / FILES[format_][0]
        try:
            self._compute = _onnx(path) if engine == "onnx" else _openvino(path, engine)
        except Exception as error:  # each library has its own
            raise RunError(
                f"{path}: can't be opened ({str(error).strip().splitlines()[0]:.200}). Export the run again."
            ) from error

    def forward(self, image: Tensor) -> Outputs:
        """Return the outputs for (B, C, *S) float32 images, in float32 on the CPU."""
        found = self._compute(np.ascontiguousarray(image.cpu().numpy(), np.float32))
        heads = {
            name: torch.from_numpy(np.array(one, np.float32))
            for name, one in zip(self._names, found, strict=True)
        }
        features = heads.pop(FEATURES, None)
        return Outputs(heads, features)


def write_network(
    network: nn.Module, folder: Path, format_: Format, *, channels: int, size: Sequence[int]
) -> tuple[str, ...]:
    """Write a network's graph and weights into a folder; return the names of its outputs in order.

    Args:
        network: on the CPU, in evaluation mode; it is left as it is.
        folder: where to.
        format_: of the files.
        channels: of an image.
        size: of an image, in voxels.

    Raises:
        UsageError: the libraries are not installed.
        RunError: the network holds something that has no counterpart in ONNX, or the disk refuses.
    """
    require_engine(format_)
    slices = len(size) == 2
    example = torch.zeros(2 if slices else 1, channels, *size)
    with torch.inference_mode():
        outputs: Outputs = network(example)
    names = (*outputs.heads, *(() if outputs.features is None else (FEATURES,)))
    path = folder / FILES["onnx"][0]
    try:
        with _quiet():
            torch.onnx.export(
                _InOrder(network),
                (example,),
                path,
                dynamo=True,
                opset_version=_OPSET,
                input_names=[IMAGE],
                output_names=[*names],
                dynamic_shapes=({0: torch.export.Dim("batch")} if slices else None,),
                external_data=False,
                verbose=False,
            )
            if format_ == "openvino":
                import openvino

                openvino.save_model(openvino.convert_model(path), folder / FILES["openvino"][0], False)
                path.unlink()
    except OSError:
        raise
    except Exception as error:  # each library has its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(
            f"the network can't be written as {format_}: {reason[0]:.300}. A network of your own has to be "
            "one that torch.export takes: no decisions by the values of tensors, and no other libraries."
        ) from error
    return names


class _InOrder(nn.Module):
    """A network that returns its outputs as a tuple, as graphs do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs: Outputs = self.network(image)
        return (*outputs.heads.values(), *(() if outputs.features is None else (outputs.features,)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the libraries say of their own workings from a user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _onnx(path: Path) -> _Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {IMAGE: image})


def _openvino(path: Path, engine: Engine) -> _Compute:
    import openvino

    precision = "bf16" if engine == "openvino-bf16" else "f32"  # left alone it takes bf16 where it can
    compiled = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    )
    request = compiled.create_infer_request()
    return lambda image: [*request.infer([image]).values()]
