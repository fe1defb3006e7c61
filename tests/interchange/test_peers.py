"""Results held against other programs: dicom3tools, DCMTK, OHIF's adapters, a PACS on loopback."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import typer
from numpy.testing import assert_array_equal
from typer.testing import CliRunner

from threefold.cli.predict import predict
from threefold.images.reading import read_image, read_label_map
from threefold.inference.predictor import Predictor
from threefold.interchange.dicomweb import Pacs

from ..inference.conftest import Threshold, make_experiment, make_spec, write_run
from .test_dicom_results import write_series

pytestmark = pytest.mark.peer

STUDY = "1.2.826.0.1.3680043.8.498.77"
PLUGINS = Path("/usr/share/orthanc/plugins")
NODE_MODULES = Path(os.environ.get("THREEFOLD_NODE_MODULES", ".peers/node_modules"))
app = typer.Typer()
app.command()(predict)


def needs(program: str, package: str) -> str:
    """Return where a program is; skip, saying what would bring it, where it is not there."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program} (apt-get install {package})")
    return found


def said_by(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", make_experiment(), make_spec(), 0.3).path


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    uids = {"FrameOfReferenceUID": f"{STUDY}.9", "SeriesInstanceUID": f"{STUDY}.1"}
    return write_series(tmp_path_factory.mktemp("scans") / "scan", StudyInstanceUID=STUDY, **uids)


@pytest.fixture(scope="module")
def results(run: Path, scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of predictions with DICOM objects: of a volume, and of a slice alone."""
    out = tmp_path_factory.mktemp("results") / "out"
    known = replace(Predictor.from_run(run), network=Threshold())
    assert len(list(known.predict([scan, scan / "1.dcm"], out, dicom="binary"))) == 5
    return out


def test_dciodvfy_finds_no_error(results: Path) -> None:
    program = needs("dciodvfy", "dicom3tools")
    files = sorted((results / "dicom").iterdir())
    assert [path.name for path in files] == ["1-seg.dcm", "1-sr.dcm", "scan-seg.dcm", "scan-sr.dcm"]
    for path in files:
        said = said_by(program, path)
        assert "Segmentation" in said or "Comprehensive3DSR" in said
        assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_dsrdump_prints_the_report(results: Path) -> None:
    said = said_by(needs("dsrdump", "dcmtk"), results / "dicom" / "scan-sr.dcm")
    assert "Comprehensive 3D SR Document" in said
    assert '"Hematoma"' in said
    assert said.count('"Diagnosis"') == 4
    assert '(mL,UCUM,"mL")' in said
    assert [line for line in said.splitlines() if line.startswith("E:")] == []


_PLACE_FRAMES = """
import fs from 'fs';
const { adaptersSEG } = await import('@cornerstonejs/adapters');
const [seg, described] = process.argv.slice(2);
const file = fs.readFileSync(seg);
const slices = JSON.parse(fs.readFileSync(described));
const provider = { get: (kind, id) => slices[id][kind] };
const found = await adaptersSEG.Cornerstone.Segmentation.generateToolState(
  Object.keys(slices), file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength), provider,
  { skipOverlapping: false, tolerance: 1e-3 },
);
fs.writeFileSync(1, Buffer.from(found.labelmapBufferArray[0]).toString('base64'));
"""


def test_cornerstones_adapters_place_each_frame_on_its_slice(
    results: Path, scan: Path, tmp_path: Path
) -> None:
    """OHIF's own library is given the slices, and puts each frame of the segmentation on its own."""
    node = needs("node", "nodejs")
    if not (NODE_MODULES / "@cornerstonejs" / "adapters").is_dir():
        pytest.skip(f"needs @cornerstonejs/adapters in {NODE_MODULES} (.ci/run installs it by npm)")
    slices = {}
    for one in read_image(scan).slices:
        uid = str(pydicom.dcmread(one.path, stop_before_pixels=True).SOPInstanceUID)
        plane = {
            "imageOrientationPatient": [*one.grid.right, *one.grid.down], "rows": one.grid.shape[0],
            "imagePositionPatient": [*one.grid.position], "columns": one.grid.shape[1],
            "frameOfReferenceUID": f"{STUDY}.9", "rowCosines": [*one.grid.right],
            "columnCosines": [*one.grid.down],
        }  # fmt: skip
        slices[f"file:{uid}"] = {
            "imagePlaneModule": plane,
            "generalSeriesModule": {"seriesInstanceUID": f"{STUDY}.1", "studyInstanceUID": STUDY},
            "sopCommonModule": {"sopInstanceUID": uid},
            "generalImageModule": {"sopInstanceUID": uid},
            "instance": {"Rows": one.grid.shape[0], "Columns": one.grid.shape[1]},
        }
    (tmp_path / "slices.json").write_text(json.dumps(slices))
    (tmp_path / "node_modules").symlink_to(NODE_MODULES.absolute())
    (tmp_path / "place.mjs").write_text(_PLACE_FRAMES)
    done = subprocess.run(
        [node, tmp_path / "place.mjs", results / "dicom" / "scan-seg.dcm", tmp_path / "slices.json"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mask = read_label_map(results / "masks" / "scan.nii.gz").array
    placed = np.frombuffer(base64.b64decode(done.stdout.splitlines()[-1]), np.uint8)
    assert_array_equal(placed.reshape(mask.shape[2], *mask.shape[:2]), np.moveaxis(mask, -1, 0))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DICOMweb address of an Orthanc that was started for the tests, on loopback alone."""
    program = shutil.which("Orthanc") or needs("orthanc", "orthanc orthanc-dicomweb")
    if not list(PLUGINS.glob("libOrthancDicomWeb.so*")):
        pytest.skip("needs the DICOMweb plugin of Orthanc (apt-get install orthanc-dicomweb)")
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True, "RegisteredUsers": {"reader": "secret"},
        "Plugins": [str(path) for path in PLUGINS.glob("libOrthancDicomWeb.so*")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            assert process.poll() is None, (folder / "log").read_text()
            yield f"http://reader:secret@127.0.0.1:{port}/dicom-web"
        finally:
            process.terminate()
            process.wait(30)


def test_a_study_goes_from_the_pacs_and_its_results_back(
    orthanc: str, run: Path, scan: Path, tmp_path: Path
) -> None:
    pacs, lost = Pacs(orthanc), []
    note = lambda name, why: lost.append(f"{name}: {why}")  # noqa: E731
    assert pacs.send(sorted(scan.iterdir()), on_failure=note) == 4, lost
    out = tmp_path / "out"
    command = [str(run), "--from", orthanc, "--study", STUDY, "--to", orthanc, "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "4 instances of the study received" in done.stderr
    assert "2 of 2 DICOM objects stored at http://127.0.0.1" in done.stderr
    assert "secret" not in done.output
    client = pacs._client
    series = client.search_for_series(study_instance_uid=STUDY)
    assert sorted(one["00080060"]["Value"][0] for one in series) == ["CT", "SEG", "SR"]
    (path,) = (out / "dicom").glob("*-seg.dcm")
    sent = pydicom.dcmread(path)
    kept = client.retrieve_instance(STUDY, sent.SeriesInstanceUID, sent.SOPInstanceUID)
    assert kept.PixelData == sent.PixelData
    again = CliRunner().invoke(app, command)  # nothing is received or predicted anew
    assert again.exit_code == 0, again.output
    assert len(client.search_for_series(study_instance_uid=STUDY)) == 3


def test_what_a_pacs_refuses_is_said(orthanc: str, run: Path, tmp_path: Path) -> None:
    for address, study, says in (
        (orthanc, "1.2.3.4", "has no images of study 1.2.3.4"),
        (orthanc.replace("secret", "wrong"), STUDY, "answered HTTP 401. Give user and password"),
        (orthanc.replace("dicom-web", "elsewhere"), STUDY, "answered HTTP 404"),
    ):
        command = [str(run), "--from", address, "--study", study, "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        assert says in str(done.exception)
        assert not (tmp_path / "out").exists()
