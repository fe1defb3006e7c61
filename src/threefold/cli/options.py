"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Accept paths that leave the cohort's folder (../, absolute).")
]
Device = Annotated[str, typer.Option(help="Where the network runs, for example cpu or cuda.")]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Images a pass of the network; volumes go one at a time.")
]
