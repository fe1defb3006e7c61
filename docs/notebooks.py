"""Run the notebooks of docs/tutorials and write what their cells show into them; no Jupyter is needed.

Run: python docs/notebooks.py
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parent / "tutorials"


def notebooks() -> list[Path]:
    """Return the notebooks, in the order of their names."""
    return sorted(TUTORIALS.glob("*.ipynb"))


def executed(notebook: dict[str, Any], folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Run the code cells of a notebook in a folder, one after the other; yield the outputs of each.

    Args:
        notebook: content of the file (nbformat 4).
        folder: that the cells find themselves in.
    """
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] == "code":
                yield _outputs("".join(cell["source"]), f"cell {number}", names, number)


def _outputs(source: str, where: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    body = ast.parse(source, where)
    last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(body, where, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    found: list[dict[str, Any]] = []
    if printed.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        result = {"output_type": "execute_result", "execution_count": number, "metadata": {}}
        found.append({**result, "data": _shown(value)})
    return found


def _shown(value: Any) -> dict[str, Any]:
    """Return a value as text, a table as HTML too, a figure as a picture."""
    if hasattr(value, "savefig"):
        stream = io.BytesIO()
        value.savefig(stream, format="png", dpi=80)
        return {"image/png": base64.b64encode(stream.getvalue()).decode(), "text/plain": ["<Figure>"]}
    text: dict[str, Any] = {"text/plain": _lines(repr(value))}
    html = getattr(value, "_repr_html_", None)
    return text | ({"text/html": _lines(html())} if html is not None else {})


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """Run every notebook in a folder of its own, and write it anew."""
    os.environ.setdefault("MPLBACKEND", "agg")
    for path in notebooks():
        content = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        with tempfile.TemporaryDirectory() as folder:
            for number, (cell, outputs) in enumerate(
                zip(code, executed(content, Path(folder)), strict=True), start=1
            ):
                cell["execution_count"], cell["outputs"] = number, outputs
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
