"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Accept paths outside the cohort's folder (../, absolute).")
]
Device = Annotated[str, typer.Option(help="Device to run the network on, for example cpu or cuda.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch; volumes are processed one at a time.")]
