"""A PACS that answers oddly: every answer is a result or one kind of error, and a file that came is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from threefold.errors import PacsError, UsageError
from threefold.interchange import dicomweb
from threefold.interchange.dicomweb import Pacs

Answer = tuple[int, str, bytes]
STUDY, SERIES = "1.2.3", "1.2.3.4"


def listed(**values: str) -> dict[str, object]:
    return {tag.removeprefix("t"): {"vr": "UI", "Value": [value]} for tag, value in values.items()}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[str], Answer]], str]]:
    """Start a server on loopback that answers as a function of the path says; return its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[str], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, kind, body = answer(self.path.partition("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/dicom-web"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def study_of(files: dict[str, bytes]) -> Callable[[str], Answer]:
    """Answer as a PACS with a CT series of these instances, and a report."""

    def answer(path: str) -> Answer:
        if path.endswith(f"/studies/{STUDY}/series"):
            series = [listed(t0020000E=SERIES, t00080060="CT"), listed(t0020000E="1.2.5", t00080060="SR")]
            return 200, "application/dicom+json", json.dumps(series).encode()
        if path.endswith(f"/series/{SERIES}/instances"):
            instances = [listed(t00080018=uid) for uid in files]
            return 200, "application/dicom+json", json.dumps(instances).encode()
        uid = path.rpartition("/")[2]
        if files.get(uid):
            body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + files[uid] + b"\r\n--x--"
            return 200, 'multipart/related; type="application/dicom"; boundary=x', body
        return 404, "text/plain", b""

    return answer


def test_a_study_is_received_once_and_a_lost_instance_harms_itself(
    serve: Callable[..., str], dicom_file: Callable[..., Path], tmp_path: Path
) -> None:
    pixels = np.zeros((6, 8))
    made = [dicom_file(tmp_path / f"{k}", pixels, (0, 0, k)).read_bytes() for k in range(3)]
    files = {f"1.9.{k}": content for k, content in enumerate(made)}
    files |= {"1.9.7": b"", "../../escaped": b"x"}
    pacs, lost = Pacs(serve(study_of(files))), list[tuple[str, str]]()
    into = tmp_path / "received"
    assert pacs.receive(STUDY, into, on_failure=lambda *one: lost.append(one)) == 3
    assert sorted(path.name for path in (into / SERIES).iterdir()) == [f"1.9.{k}.dcm" for k in range(3)]
    assert [path.name for path in into.iterdir()] == [SERIES]
    assert [name for name, _ in lost] == ["1.9.7"]
    assert "answered HTTP 404" in lost[0][1]
    files["1.9.0"] = b""  # it is there already
    assert pacs.receive(STUDY, into, on_failure=lambda *one: lost.append(one)) == 3


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, "application/dicom+json", b"[]"), "has no images of study 1.2.3"),
        ((204, "text/plain", b""), "has no images of study 1.2.3"),
        ((200, "text/html", b"<html>"), "gave no DICOMweb answer"),
        ((200, "application/dicom+json", b"{"), "gave no DICOMweb answer"),
        ((403, "text/plain", b""), "answered HTTP 403. Give user and password"),
        ((500, "text/plain", b""), "answered HTTP 500"),
    ],
)
def test_odd_answers_are_one_kind_of_error(
    serve: Callable[..., str], tmp_path: Path, answer: Answer, says: str
) -> None:
    pacs = Pacs(serve(lambda path: answer))
    with pytest.raises(PacsError, match=says):
        pacs.receive(STUDY, tmp_path / "received", on_failure=lambda *one: None)
    assert not (tmp_path / "received").exists()


def test_a_pacs_that_is_not_there(tmp_path: Path, dicom_file: Callable[..., Path]) -> None:
    lost = list[tuple[str, str]]()
    pacs = Pacs("http://reader:secret@127.0.0.1:9/dicom-web")
    with pytest.raises(PacsError, match=r"http://127\.0\.0\.1:9/dicom-web: can't be reached") as caught:
        pacs.receive(STUDY, tmp_path, on_failure=lambda *one: None)
    assert "secret" not in str(caught.value)
    path = dicom_file(tmp_path / "a.dcm", np.zeros((6, 8)), (0, 0, 0), StudyInstanceUID=STUDY)
    assert pacs.send([path], on_failure=lambda *one: lost.append(one)) == 0
    assert lost[0][0] == "a.dcm"


@pytest.mark.parametrize("address", ["localhost/dicom-web", "ftp://host/x", "http://", "http://host:port/x"])
def test_what_is_no_address_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError, match="expected an address"):
        Pacs(address)


def test_a_study_is_named_by_its_uid_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="expected a StudyInstanceUID"):
        Pacs("http://host/x").receive("../1", tmp_path, on_failure=lambda *one: None)
    monkeypatch.setattr(dicomweb, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs dicomweb-client"):
        Pacs("http://host/x")
