"""Write docs/results/demo-hematoma.md and its pictures from the demo's runs, and the README's table.

for seed in 0 1 2 3 4 5 6 7 8 9; do threefold demo hematoma --out out/seed-$seed --seed $seed; done
python docs/figures/demo_results.py out/seed-?
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import torch

from threefold.reporting.table import markdown
from threefold.reporting.tables import evaluation_tables
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PICTURES = ("examples", "roc", "calibration", "shift", "losses")
GOALS = {"auc": 0.90, "dice": 0.75}


def seed_row(run: RunFolder) -> str:
    """Return a row of the table of seeds: internal AUC and Dice, external AUC."""
    evaluation = evaluate_run(run).evaluation
    seed = json.loads((run.path / "environment.json").read_text())["command"]
    number = seed[seed.index("--seed") + 1] if "--seed" in seed else "0"
    cells = [number]
    for metric, group in (("auc", "internal"), ("dice", "internal"), ("auc", "external")):
        found = evaluation.find(metric, group_kind="site group", group=group)
        assert found is not None
        cells.append(f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] n={found.n}/{found.patients}")
    return "| " + " | ".join(cells) + " |"


def main(folders: list[Path]) -> None:
    """Write the page, its pictures and the README's table."""
    runs = [RunFolder(folder / "run") for folder in folders]
    first = evaluate_run(runs[0])
    table = markdown(evaluation_tables(first.evaluation)[0])
    environment = json.loads(runs[0].environment.read_text())
    goals = " and ".join(
        f"{name.upper() if name == 'auc' else 'Dice'} {goal:.2f}" for name, goal in GOALS.items()
    )
    seeds = " ".join(map(str, range(len(runs))))
    page = [
        "# The hematoma demo",
        "",
        "An easy phantom cohort: these numbers show that the program works from a cohort to tables by",
        "hospital, and nothing about patients. Made by",
        "",
        "```",
        f"for seed in {seeds}; do threefold demo hematoma --out out/seed-$seed --seed $seed; done",
        "python docs/figures/demo_results.py out/seed-?",
        "```",
        "",
        f"on {environment['platform'].split('-')[0]}, {environment['cores']} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, torch {environment['packages']['torch']}.",
        "",
        f"## {len(runs)} seeds",
        "",
        f"Held-out patients of known sites; the goal was set before: at least {goals} on each seed.",
        "Phantom, split and training all take the seed. n: cases/patients.",
        "",
        "| seed | AUC, known sites | Dice, known sites | AUC, other sites |",
        "| --- | --- | --- | --- |",
        *(seed_row(run) for run in runs),
        "",
        f"## Seed {seed_row(runs[0]).split('|')[1].strip()} in full",
        "",
        re.sub("^## ", "### ", table),
    ]
    for name in PICTURES:
        page += [f"![{name}](demo-hematoma/{name}.png)", ""]
    (RESULTS / "demo-hematoma").mkdir(exist_ok=True)
    for name in PICTURES:
        shutil.copy(runs[0].figures / f"{name}.png", RESULTS / "demo-hematoma" / f"{name}.png")
    (RESULTS / "demo-hematoma.md").write_text("\n".join(page).rstrip() + "\n")
    readme = ROOT / "README.md"
    rows = [line for line in table.splitlines() if line.startswith("|")]
    wanted = ("| metric", "| ---", "| F1", "| AUC", "| Sensitivity", "| Specificity", "| Dice")
    kept = "\n".join(row.rsplit("|", 2)[0] + "|" for row in rows if row.startswith(wanted))
    text = re.sub(
        r"<!-- demo table -->.*?<!-- end -->",
        f"<!-- demo table -->\n\n{kept}\n\n<!-- end -->",
        readme.read_text(),
        flags=re.DOTALL,
    )
    readme.write_text(text)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
