"""Write the tables and figures of a study into docs/results/studies/NAME.md, and pack it beside them.

threefold study run NAME --out studies/NAME
python docs/figures/study_results.py studies/NAME...

What stands in the page before and after the two marks is kept: what the numbers say is not written here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from threefold.evaluation.comparison import VariantRow
from threefold.evaluation.metrics import METRICS
from threefold.reporting.figures import save
from threefold.reporting.study_tables import claim_table, pair_table, reliance_table, variant_table
from threefold.reporting.table import markdown
from threefold.studies.archive import pack_study
from threefold.studies.comparison import Comparison, compare_study, write_comparison
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import LABELS, plan_runs

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "studies"
BEGIN, END = "<!-- made by docs/figures/study_results.py -->", "<!-- end -->"
WIDTH = 1100  # pixels of a picture in the docs


def machine(folder: StudyFolder, comparison: Comparison) -> str:
    """Return where the runs were computed and how long they took."""
    plans = plan_runs(comparison.study)
    there = [plan.id for plan in plans if plan.id not in comparison.missing]
    outcomes = [outcome for name in there if (outcome := folder.outcome(name)) is not None]
    about = json.loads(folder.run(there[0]).environment.read_text())
    hours = sum(outcome.seconds for outcome in outcomes) / 3600
    return (
        f"{len(there)} of {len(plans)} runs, {hours:.1f} hours of {about['threads']} thread each, "
        "beside other work; "
        f"{str(about['platform']).split('-')[0]}, {about['cores']} cores, "
        f"torch {about['packages']['torch']}, at most "
        f"{max(outcome.memory for outcome in outcomes):.1f} GiB a run."
    )


def curves(rows: Sequence[VariantRow], metric: str, group: str, label: str, across: str) -> Figure:
    """Draw a metric of each variant over the cohorts: single runs, and the mean with its interval."""
    shown = [row for row in rows if (row.metric, row.group) == (metric, group)]
    cohorts = list(dict.fromkeys(row.cohort for row in shown))
    figure = Figure(figsize=(7.4, 4), layout="constrained")
    axes = figure.subplots()
    variants = list(dict.fromkeys(row.variant for row in shown))
    for place, variant in enumerate(variants):
        found = {row.cohort: row.mean for row in shown if row.variant == variant}
        at = [cohorts.index(name) + 0.06 * (place - (len(variants) - 1) / 2) for name in found]
        values = [mean.estimate.value for mean in found.values()]
        ends = [
            [mean.estimate.value - mean.estimate.low for mean in found.values()],
            [mean.estimate.high - mean.estimate.value for mean in found.values()],
        ]
        (line, *_) = axes.errorbar(at, values, ends, marker="o", capsize=2, linewidth=1.2, label=variant)
        for x, mean in zip(at, found.values(), strict=True):
            axes.plot([x + 0.02] * len(mean.each), mean.each, ".", color=line.get_color(), markersize=4)
    axes.set_xticks(range(len(cohorts)), cohorts)
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.grid(axis="y", linewidth=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def dots(comparison: Comparison, cohort: str, metrics: Sequence[tuple[str, str, str]]) -> Figure:
    """Draw metrics of a cohort's variants, and of its own labels: single runs, the mean and its interval."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (metric, group, label) in zip(
        figure.subplots(1, len(metrics), sharey=True), metrics, strict=True
    ):
        found = {
            claim.baseline: claim.baseline_mean
            for claim in comparison.claims
            if (claim.baseline, claim.cohort, claim.metric, claim.group) == (LABELS, cohort, metric, group)
        }
        found |= {
            row.variant: row.mean
            for row in comparison.means
            if (row.cohort, row.metric, row.group) == (cohort, metric, group)
        }
        names = [row.variant for row in comparison.means if row.cohort == cohort]
        names = list(
            dict.fromkeys([*(LABELS for line in comparison.claims if line.baseline == LABELS), *names])
        )
        shown: set[tuple[float, ...]] = set()
        for place, name in enumerate(names):
            mean = found.get(name)
            of_masks = METRICS[metric].of not in ("case", "evidence")
            frozen = mean is not None and of_masks and mean.each in shown
            if mean is not None and mean.each and not frozen:  # a classifier's frozen segmenter was shown
                shown.add(mean.each)
                found_mean = mean.estimate
                ends = [found_mean.low, found_mean.high]
                axes.plot(ends, [place, place], color="#2166ac", linewidth=2)
                axes.plot(found_mean.value, place, "o", color="#2166ac", markersize=5)
                axes.plot(mean.each, [place] * len(mean.each), "|", color="black", markersize=7)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(label, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", linewidth=0.3)
    return figure


DOTS = {
    "aortic-arch-claims": (
        "hearts",
        (
            ("structure_dice", "all", "Dice, mean over vessels"),
            ("graph_edits", "all", "contacts of vessels wrong, a case"),
            ("balanced_accuracy", "all", "balanced accuracy"),
        ),
    ),
    "hematoma-sensitivity": (
        "s0.5",
        (
            ("auc", "internal", "AUC at known hospitals"),
            ("auc", "external", "AUC at unseen hospitals"),
            ("truth_dice", "internal", "Dice with the truth"),
        ),
    ),
    "mask-shape": (
        "s0.9",
        (
            ("auc", "external", "AUC at unseen sites"),
            ("shortcut_flip", "all", "decisions changed by the background"),
        ),
    ),
    "mask-shortcut": (
        "s0.9",
        (
            ("auc", "internal", "AUC at known sites"),
            ("auc", "external", "AUC at unseen sites"),
            ("shortcut_flip", "all", "decisions changed by the background"),
        ),
    ),
}
CURVES = {
    "hematoma-claims": (
        "auc",
        "external",
        "AUC at unseen hospitals",
        "strength of the clip in training",
    ),
    "object-background": (
        "auc",
        "external",
        "AUC at unseen sites",
        "strength of the background in training",
    ),
    "aortic-arch-degradation": (
        "structure_dice",
        "all",
        "Dice of vessels with the truth",
        "displacement of the training labels",
    ),
}


def made(folder: StudyFolder) -> tuple[str, str]:
    """Return the study's name and what stands between the marks; pictures are written."""
    comparison = compare_study(folder)
    write_comparison(comparison, folder)
    study = comparison.study
    pictures = RESULTS / study.name
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [
        "```console",
        f"$ threefold study run {study.name} --out studies/{study.name}",
        f"$ threefold study compare studies/{study.name}",
        f"$ python docs/figures/study_results.py studies/{study.name}",
        "```",
        "",
        machine(folder, comparison),
        "",
    ]
    if comparison.missing:
        parts += [
            f"**{len(comparison.missing)} runs have not finished.** What is below is of the others; no claim "
            "has a verdict before all of its runs have.",
            "",
        ]
    if study.name in CURVES:
        metric, group, label, across = CURVES[study.name]
        save(curves(comparison.means, metric, group, label, across), pictures / "curves.png")
        parts += [f"![{label} by cohort and variant]({study.name}/curves.png)", ""]
    if study.name in DOTS:
        cohort, metrics = DOTS[study.name]
        save(dots(comparison, cohort, metrics), pictures / "variants.png")
        words = f"Variants on {cohort}: the mean over seeds, its interval, and each seed as a tick"
        parts += [f"![{words}]({study.name}/variants.png)", ""]
    archive = pictures / f"{study.name}.tar.xz"
    archive.unlink(missing_ok=True)
    pack_study(folder, archive)
    parts += [
        f"The tables of its runs are packed in [{archive.name}]({study.name}/{archive.name}): `tar xf`, then "
        "`threefold study compare` computes all of this from them.",
        "",
    ]
    settings = {"confidence": study.confidence, "replicates": study.replicates}
    claims = claim_table(comparison.claims, margin=study.margin, withdrawn=comparison.withdrawn, **settings)
    parts.append(markdown(claims))
    with Image.open(folder.figures / "claims.png") as whole:
        whole.thumbnail((WIDTH, 4 * WIDTH))
        whole.convert("P", palette=Image.Palette.ADAPTIVE).save(pictures / "claims.png", optimize=True)
    words = "Each claim's difference with its interval, and the single pairs of runs as ticks"
    parts += [f"![{words}]({study.name}/claims.png)", ""]
    parts.append(markdown(variant_table(comparison.means, **settings)))
    if comparison.reliance:
        parts.append(markdown(reliance_table(comparison.reliance)))
    if comparison.pairs:
        pairs = RESULTS / f"{study.name}-pairs.md"
        table = markdown(pair_table(comparison.pairs, confidence=study.confidence))
        pairs.write_text(f"# {study.name}: each pair of runs\n\n{table}")
        parts.append(f"[DeLong's test of each pair of runs]({pairs.name})\n")
    return study.name, "\n".join(parts)


def main(folders: Sequence[Path]) -> None:
    """Write the pages."""
    for path in folders:
        name, text = made(StudyFolder(path))
        page = RESULTS / f"{name}.md"
        old = page.read_text() if page.is_file() else f"# {name}\n\n{BEGIN}\n{END}\n"
        before, _, rest = old.partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n\n{text.rstrip()}\n\n{END}{after}")
        print(page)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
