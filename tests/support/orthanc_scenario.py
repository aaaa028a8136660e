"""A series through a real PACS: python orthanc_scenario.py FOLDER.

test_orthanc.py runs it in a separate network namespace.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import dicom_files
import paths
import pydicom
from pynetdicom import AE, evt

from mricodec import codec

# Ports, in a network of its own.
HTTP, DICOM, NODE = 8042, 4242, 4243
RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"
SECONDS = 30.0


def call(path: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{HTTP}{path}", data, timeout=SECONDS) as answer:
        body: bytes = answer.read()
    return body


def start(folder: Path, program: str) -> subprocess.Popen[bytes]:
    configuration = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": HTTP,
        "DicomPort": DICOM,
        "AuthenticationEnabled": False,
        "Plugins": [],
        "DicomModalities": {"node": ["NODE", "127.0.0.1", NODE]},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    log = folder / "orthanc.log"
    process = subprocess.Popen([program, f"--logfile={log}", str(folder / "orthanc.json")])
    stop = time.monotonic() + SECONDS
    while True:
        try:
            call("/system")
            return process
        except OSError:
            if time.monotonic() > stop or process.poll() is not None:
                process.kill()
                reason = log.read_text()[-2000:] if log.exists() else "no log"
                sys.exit(f"Orthanc does not answer: {reason}")
            time.sleep(0.1)


def push_fetch_encode_decode(folder: Path, source: Path) -> bytes:
    """The stream of what the PACS gives back of a series."""
    for path in sorted(source.iterdir()):
        call("/instances", path.read_bytes())
    (series,) = json.loads(call("/series"))
    fetched = folder / "fetched"
    fetched.mkdir()
    for identifier in json.loads(call(f"/series/{series}"))["Instances"]:
        (fetched / f"{identifier}.dcm").write_bytes(call(f"/instances/{identifier}/file"))
    stream = codec.encode_series(fetched, lossless=True)
    assert stream is not None
    assert dict(codec.series_files(stream)) == dicom_files.contents(fetched)
    originals = {
        dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, source.iterdir())
    }
    decoded = list(codec.decode_series(stream))
    assert len(decoded) == len(originals)
    for dataset in decoded:
        assert dataset == originals[dataset.SOPInstanceUID]
    return stream


def wrap_forward_unwrap(stream: bytes) -> None:
    """Stored as Raw Data, forwarded by C-STORE to another node: the identical stream."""
    received: list[bytes] = []

    def keep(event: Any) -> int:
        received.append(event.encoded_dataset())
        return 0x0000

    node = AE("NODE")
    node.add_supported_context(RAW_DATA)
    server = node.start_server(
        ("127.0.0.1", NODE), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    try:
        stored = json.loads(call("/instances", codec.wrap(stream)))
        patient = json.loads(call(f"/instances/{stored['ID']}/patient"))
        first = next(codec.decode_series(stream))
        assert patient["MainDicomTags"]["PatientID"] == first.PatientID
        study = json.loads(call(f"/instances/{stored['ID']}/study"))
        assert study["MainDicomTags"]["StudyInstanceUID"] == first.StudyInstanceUID
        call("/modalities/node/store", stored["ID"].encode())
    finally:
        server.shutdown()
    (data,) = received
    assert pydicom.dcmread(io.BytesIO(data)).SOPClassUID == RAW_DATA
    assert codec.unwrap(data) == stream
    assert codec.unwrap(call(f"/instances/{stored['ID']}/file")) == stream


def main(folder: Path, program: str) -> None:
    process = start(folder, program)
    try:
        wrap_forward_unwrap(push_fetch_encode_decode(folder, paths.DICOM / "prostate_t2w"))
    finally:
        process.terminate()
        process.wait(SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
