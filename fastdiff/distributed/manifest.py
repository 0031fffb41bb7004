"""What a store holds: manifest.json with the job, versions and the model's hash, and a record for every unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdiff.distributed.formats import unit_name
from fastdiff.distributed.storage import Storage
from fastdiff.errors import expect
from fastdiff.train.teacher import weights_digest

MANIFEST = "manifest.json"
SUMMARY = "summary.json"
RECORDS = "records"
FORMAT = 1
Record = dict[str, Any]


def versions() -> dict[str, str]:
    """Of what the samples' bits depend on, here."""
    import fastdiff

    return {"fastdiff": fastdiff.__version__, "torch": torch.__version__, "numpy": np.__version__}


def refuse_other_versions(here: Mapping[str, str], there: Mapping[str, str], who: str) -> None:
    """Raises ValueError that names both where they differ. who: has the second, e.g. "worker 3"."""
    wrong = [f"{name} {here[name]} here and {there.get(name)} there" for name in here if here[name] != there.get(name)]
    expect(not wrong, f"{who} has other versions: {', '.join(wrong)}; samples would not have the same bits")


def read_manifest(store: Storage) -> dict[str, Any] | None:
    """None if there is none. Raises ValueError that names the store for a file that is something else."""
    try:
        found = json.loads(store.read(MANIFEST))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{store.name}/{MANIFEST} is not the manifest of a job: {error}") from error
    expect(
        isinstance(found, dict) and isinstance(found.get("job"), dict),
        f"{store.name}/{MANIFEST} is not the manifest of a job",
    )
    expect(
        found.get("format") == FORMAT,
        f"{store.name}/{MANIFEST} has format {found.get('format')}; this fastdiff reads {FORMAT}",
    )
    return found


def begin(store: Storage, job: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
    """Write the manifest, or take the one that is there. One without the model's hash is of a job that no worker could
    begin, and is replaced.

    Raises ValueError if there is one and `resume` is False, or if it is that of another job or of other versions: it
    names both.
    """
    found = read_manifest(store)
    if found is None or found["model_sha256"] is None:
        expect(not store.sizes(RECORDS), f"{store.name} holds records without a {MANIFEST}; give another --out")
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found = {"format": FORMAT, "job": dict(job), "versions": versions(), "model_sha256": None, "begun": date}
        write_json(store, MANIFEST, found)
        return found
    expect(resume, f"{store.name} holds a job already; go on with it by --resume, or give another --out")
    before = found["job"]
    wrong = [f"{key} {before.get(key)!r} there and {job[key]!r} here" for key in job if before.get(key) != job[key]]
    expect(not wrong, f"{store.name} holds another job: {', '.join(wrong)}; give another --out")
    refuse_other_versions(versions(), found["versions"], f"the job in {store.name}")
    return found


def model_digest(model: Any) -> str:
    """SHA-256 of a module's weights; "none" for a function."""
    return weights_digest(model) if isinstance(model, nn.Module) else "none"


def keep_model(store: Storage, manifest: dict[str, Any], digest: str, who: str) -> None:
    """Write the hash of the model that the first worker has. Raises ValueError if a worker has another."""
    if manifest["model_sha256"] is None:
        manifest["model_sha256"] = digest
        write_json(store, MANIFEST, manifest)
    before = manifest["model_sha256"]
    expect(
        before == digest,
        f"the model {manifest['job'].get('model')} of {who} has other weights than the job in {store.name} began with: "
        f"SHA-256 {digest[:12]}... and {before[:12]}...",
    )


def write_json(store: Storage, name: str, data: Any) -> None:
    """A file for people and programs."""
    store.write(name, (json.dumps(data, indent=1) + "\n").encode())


def record_name(unit: Sequence[int]) -> str:
    """The file that says that a unit is made."""
    return f"{RECORDS}/{unit_name(unit[0], unit[1])}.json"


def read_record(store: Storage, unit: Sequence[int]) -> Record | None:
    """None for one that is not there, or damaged."""
    try:
        found = json.loads(store.read(record_name(unit)))
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("files"), dict) and "samples_sha256" in found
    return found if whole else None


def made_units(store: Storage, units: Sequence[Sequence[int]]) -> dict[int, Record]:
    """Number -> record of the units that are made, with all their files in their sizes. Records of files that are gone
    are made void, so that the unit is made again."""
    names, sizes = store.sizes(RECORDS), {**store.sizes("samples"), **store.sizes("statistics")}
    found = {}
    for number, unit in enumerate(units):
        if record_name(unit) not in names:
            continue
        record = read_record(store, unit)
        if record is not None and all(sizes.get(name) == file["bytes"] for name, file in record["files"].items()):
            found[number] = record
        else:
            write_json(store, record_name(unit), {})
    return found


def hash_of(records: Sequence[Record]) -> str:
    """SHA-256 over the hashes of the units' samples, in their order."""
    return hashlib.sha256("".join(record["samples_sha256"] for record in records).encode()).hexdigest()
