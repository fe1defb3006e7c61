"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from threefold.run import Epoch

AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Accept paths outside the cohort's folder (../, absolute).")
]
Device = Annotated[str, typer.Option(help="Device to run the network on, for example cpu or cuda.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch; volumes are processed one at a time.")]
Weights = Annotated[
    Epoch | None,
    typer.Option(help="Weights of the best or the last epoch (default: as the experiment says)."),
]
Budget = Annotated[
    str | None,
    typer.Option(help="With auto: training time, for example 90s, 30m or 8h (default: 30m)."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Parallel runs. [default: one per GPU, or as many as the cores allow]"),
]
Ray = Annotated[
    str | None,
    typer.Option(help="Run on a Ray cluster: its address (auto, ray://HOST:PORT), or `local`."),
]
