"""Names of networks and tasks: found, nearly right, foreign, broken."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from threefold.core.registry import GROUPS, Plugin, find, is_built_in, listed
from threefold.errors import ExperimentError
from threefold.evaluation.metrics import metric_of
from threefold.images.formats import states_place
from threefold.images.reading import read_image

NET = "class Net:\n    class Inner:\n        pass\n"


def distribution(folder: Path, points: str, name: str = "acme-nets", version: str = "1.4") -> None:
    """Lay out an installed package that gives entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points)
    (info / "top_level.txt").write_text("acme_nets\n")


@pytest.fixture
def acme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package: a network that works, one that doesn't, one with a built-in name."""
    site = folder / "site-packages"
    site.mkdir()
    (site / "acme_nets.py").write_text(NET)
    points = "[threefold.networks]\nacme = acme_nets:Net\nbroken = acme_nets:Nett\n"
    distribution(
        site, points + "densenet = acme_nets:Net\n[threefold.tasks]\ncounting = nowhere_to_be:Task\n"
    )
    monkeypatch.syspath_prepend(str(site))
    return site


def test_a_built_in_name_is_the_programs_own() -> None:
    task, code = find("tasks", "regression")
    assert (task.__name__, code) == ("RegressionTask", None)
    assert is_built_in("tasks", "regression")
    assert not is_built_in("networks", "regression")


def test_a_module_of_the_working_folder_is_found_and_described(folder: Path) -> None:
    (folder / "mine_found.py").write_text(NET)
    net, code = find("networks", "mine_found:Net")
    inner, _ = find("networks", "mine_found:Net.Inner")
    assert (net.__name__, inner) == ("Net", net.Inner)
    assert code is not None
    assert (code.name, code.file) == ("mine_found:Net", str(folder / "mine_found.py"))
    assert code.sha256 == hashlib.sha256(NET.encode()).hexdigest()
    assert (code.distribution, code.version) == ("", "")


def test_the_working_folder_does_not_stay_where_modules_are_looked_for(folder: Path) -> None:
    (folder / "mine_left.py").write_text(NET)
    (folder / "mine_broken.py").write_text("raise OSError('no disk')\n")
    before = [*sys.path]
    find("networks", "mine_left:Net")
    with pytest.raises(ExperimentError):
        find("networks", "mine_broken:Net")
    assert sys.path == before


def test_a_library_is_described_by_its_package(folder: Path) -> None:
    import yaml

    _, code = find("networks", "yaml:Loader")
    assert code is not None
    assert (code.distribution, code.version) == ("PyYAML", yaml.__version__)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "swin-unett",
            "there is no network 'swin-unett'. Did you mean 'swin-unet'? One of your own is MODULE:",
        ),
        ("not_here_at_all:Net", "can't import not_here_at_all (ModuleNotFoundError: No module named"),
        ("not_here_at_all:Net", "Install it, or run the command in the folder that holds it."),
        ("mine_needing:Net", "(ModuleNotFoundError: No module named 'absent_library')."),
        ("mine_needing:Net", "mine_needing imports absent_library: install that."),
        ("mine_wrong:Net", "can't import mine_wrong (SyntaxError:"),
        ("mine_wrong:Net", "Correct the module."),
        ("mine_exits:Net", "can't import mine_exits (SystemExit: 3). Correct the module."),
        ("mine_named:Nett", "mine_named has no 'Nett'. Did you mean 'Net'?"),
        ("mine_named:", "mine_named has no ''"),
        (":Net", "there is no network ':Net'"),
        ("mine/named:Net", "can't import mine/named"),
        (".mine:Net", "'.mine:Net' names no module"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(name: str, said: str, folder: Path) -> None:
    (folder / "mine_named.py").write_text(NET)
    (folder / "mine_needing.py").write_text("import absent_library\n" + NET)
    (folder / "mine_wrong.py").write_text("class Net(\n")
    (folder / "mine_exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(ExperimentError) as refused:
        find("networks", name)
    assert said in str(refused.value)


def test_names_of_installed_packages_are_found(acme: Path) -> None:
    net, code = find("networks", "acme")
    assert net.__name__ == "Net"
    assert code is not None
    assert (code.file, code.distribution, code.version) == (str(acme / "acme_nets.py"), "acme-nets", "1.4")
    with pytest.raises(ExperimentError, match=r"there is no network 'acmee'\. Did you mean 'acme'"):
        find("networks", "acmee")
    with pytest.raises(
        ExperimentError, match=r"network 'broken': acme_nets has no 'Nett'\. Did you mean 'Net'"
    ):
        find("networks", "broken")
    assert find("networks", "densenet")[1] is None, "no package takes the place of what the program has"


def test_what_there_is_is_listed_with_where_it_comes_from(acme: Path) -> None:
    found = {plugin.name: plugin for plugin in listed("networks")}
    assert found["acme"] == Plugin("networks", "acme", "acme_nets:Net", "acme-nets 1.4")
    assert found["densenet"].source == "built in"
    assert not any(plugin.problem for plugin in found.values())
    tried = {plugin.name: plugin.problem for plugin in listed("networks", load=True)}
    assert [name for name, problem in tried.items() if problem] == ["broken"]
    (counting,) = (plugin for plugin in listed("tasks", load=True) if plugin.problem)
    assert counting.name == "counting"
    assert "can't import nowhere_to_be" in counting.problem


def test_metrics_and_readers_of_installed_packages_are_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "acme_raw.py").write_text(
        "import numpy as np\n"
        "from threefold import Image, Metric, Reader\n"
        "def read(path):\n"
        "    return Image(np.fromfile(path, np.uint8).reshape(2, -1), np.eye(4), path)\n"
        "RAW = Reader(name='raw', read=read, suffixes=('.raw',), states_place=False)\n"
        "SIZE = Metric(name='size', title='Size', of='mask')\n"
    )
    distribution(
        folder,
        "[threefold.readers]\nraw = acme_raw:RAW\nlost = acme_raw:LOST\nno-reader = acme_raw:SIZE\n"
        "[threefold.metrics]\nacme-size = acme_raw:SIZE\n",
    )
    monkeypatch.syspath_prepend(str(folder))
    assert [plugin.name for plugin in listed("readers", load=True) if plugin.problem] == ["lost"]
    (folder / "scan.raw").write_bytes(bytes(range(6)))
    image = read_image(folder / "scan.raw")
    assert (image.array.shape, image.facts.format, image.facts.spacing_stated) == ((2, 3), "raw", False)
    assert not states_place(folder / "scan.raw")
    assert (metric_of("acme-size").name, metric_of("acme-size").title) == ("acme-size", "Size")
    with pytest.raises(ExperimentError, match=r"there is no metric 'acme-siez'.*Did you mean 'acme-size'"):
        metric_of("acme-siez")


def test_everything_built_in_is_where_it_is_said_to_be() -> None:
    problems = [plugin for group in GROUPS for plugin in listed(group, load=True) if plugin.problem]
    assert problems == []


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from threefold.core.registry import GROUPS, listed\n"
        "print(sum(1 for group in GROUPS for _ in listed(group)), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    count, torch = said.split()
    assert int(count) >= 14
    assert torch == "False"
