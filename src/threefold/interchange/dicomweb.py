"""A PACS over DICOMweb: receive the images of a study (QIDO-RS, WADO-RS), store results in it (STOW-RS)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from threefold.errors import PacsError, UsageError, bounded
from threefold.images.dicom_groups import WITHOUT_IMAGE
from threefold.run import make_folder, write_atomically

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient

OnFailure = Callable[[str, str], None]
"""Called with the UID of an instance, or the name of a file, and why it did not come or go through."""

_UID = re.compile(r"[0-9.]{1,64}")
_TIMEOUT = 60.0
"""Seconds without an answer after which a PACS counts as gone."""
_NO_IMAGES = (*WITHOUT_IMAGE, "SEG", "RTDOSE", "RWV")


class Pacs:
    """A PACS, by the address of its DICOMweb service."""

    def __init__(self, url: str) -> None:
        """Name the service; nothing is asked yet.

        Args:
            url: for example http://localhost:8042/dicom-web; a user and password in it are used, as are those
                of ~/.netrc.

        Raises:
            UsageError: it is no address, or the library is missing.
        """
        if find_spec("dicomweb_client") is None:
            raise UsageError(
                "a PACS needs dicomweb-client, which is not installed: pip install -c constraints.txt "
                "'.[dicom]'"
            )
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self.name = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        """The address without user and password, for messages."""
        try:
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            usable = False
        if not usable:
            raise UsageError(f"{self.name}: expected an address such as https://HOST/dicom-web.")
        self._client = _client(self.name, parts.username, parts.password)

    def receive(
        self,
        study: str,
        into: Path,
        *,
        on_failure: OnFailure,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Bring the images of a study here, a folder a series; what is there already is not asked for again.

        Args:
            study: StudyInstanceUID.
            into: folder for the series.
            on_failure: told of each instance that can't be had; the others are.
            progress: told the number of instances that are done, and of all.

        Returns:
            How many instances are there.

        Raises:
            UsageError: `study` is no UID.
            PacsError: the PACS can't be reached, refuses, or has no images of the study.
            RunError: an instance can't be written.
        """
        if not _UID.fullmatch(study):
            raise UsageError(f"--study {bounded(study, 80)}: expected a StudyInstanceUID (digits and dots).")
        wanted: list[tuple[str, str]] = []
        with self._asked("the series of the study"):
            for one in self._client.search_for_series(study_instance_uid=study):
                series, modality = _value(one, "0020000E"), _value(one, "00080060")
                if modality in _NO_IMAGES or not _UID.fullmatch(series):
                    continue
                wanted += [(series, uid) for uid in self._instances(study, series)]
        if not wanted:
            raise PacsError(
                f"{self.name}: has no images of study {study}. Correct its UID, or send it there."
            )
        there = 0
        for number, (series, uid) in enumerate(wanted, start=1):
            path = into / series / f"{uid}.dcm"
            try:
                if not path.is_file():
                    with self._asked("an instance"):
                        content = self._instance(study, series, uid)
                    make_folder(path.parent)
                    write_atomically(path, content)
                there += 1
            except PacsError as error:
                on_failure(uid, str(error))
            if progress is not None:
                progress(number, len(wanted))
        return there

    def send(self, files: Sequence[Path], *, on_failure: OnFailure) -> int:
        """Store DICOM files; one that is there already stays as it is.

        Args:
            files: to store.
            on_failure: told of each file that was not stored.

        Returns:
            How many were stored.
        """
        import pydicom

        stored = 0
        for path in files:
            try:
                with self._asked("to store"):
                    answer = self._client.store_instances([pydicom.dcmread(path)])
                refused = answer.get("FailedSOPSequence") or []
                if refused:
                    reason = int(refused[0].get("FailureReason") or 0)
                    raise PacsError(f"{self.name}: refused to store it (failure reason {reason:04X}).")
                stored += 1
            except PacsError as error:
                on_failure(path.name, str(error))
        return stored

    def _instances(self, study: str, series: str) -> list[str]:
        """Return the UIDs of a series' instances; asked for page by page, until nothing new comes."""
        uids: dict[str, None] = {}
        while True:
            page = self._client.search_for_instances(
                study_instance_uid=study, series_instance_uid=series, offset=len(uids)
            )
            before = len(uids)
            uids |= dict.fromkeys(_value(one, "00080018") for one in page)
            if len(uids) == before:
                return [uid for uid in uids if _UID.fullmatch(uid)]

    def _instance(self, study: str, series: str, uid: str) -> bytes:
        dataset = self._client.retrieve_instance(
            study, series, uid, media_types=(("application/dicom", "*"),)
        )
        stream = io.BytesIO()
        dataset.save_as(stream)
        return stream.getvalue()

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Ask inside this context; whatever goes wrong is one kind of error."""
        import requests

        try:
            yield
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            hint = (
                "Give user and password in ~/.netrc." if status in (401, 403) else "Correct address and UID."
            )
            raise PacsError(f"{self.name}: asked for {what}, answered HTTP {status}. {hint}") from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise PacsError(
                f"{self.name}: can't be reached ({type(error).__name__}: {bounded(str(error), 200)}). Is the "
                "service running? Repeat the command to resume."
            ) from error
        except (PacsError, MemoryError):
            raise
        except Exception as error:  # whatever the library makes of an odd answer
            raise PacsError(
                f"{self.name}: asked for {what}, gave no DICOMweb answer ({type(error).__name__}: "
                f"{bounded(str(error), 200)}). Correct the address."
            ) from error


def _client(url: str, user: str | None, password: str | None) -> DICOMwebClient:
    import requests
    from dicomweb_client.api import DICOMwebClient

    class Patient(requests.adapters.HTTPAdapter):
        """Waits for an answer, but not for ever."""

        def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
            options["timeout"] = options.get("timeout") or _TIMEOUT
            return super().send(request, *arguments, **options)

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Patient())
    if user is not None:
        session.auth = (unquote(user), unquote(password or ""))
    client = DICOMwebClient(url, session=session)
    client.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=200)
    return client


def _value(answer: Any, tag: str) -> str:
    """Return the first value of an attribute of a QIDO answer, as text; empty where there is none."""
    found = (answer.get(tag) or {}).get("Value") or [""]
    return str(found[0])
