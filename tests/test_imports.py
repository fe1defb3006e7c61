"""What a command imports before it works: seconds of each start, on a small computer."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import threefold.inference.predictor, threefold.training.launch
print(*{"torch._dynamo", "lightning", "torchmetrics", "scipy.signal", "matplotlib"} & sys.modules.keys())
"""


def test_training_and_predicting_import_no_compiler_and_no_lightning() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
