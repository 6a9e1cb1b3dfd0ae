# SPDX-License-Identifier: Apache-2.0
"""torch.distributed.checkpoint on sealed files: data, names and ``.metadata`` alike, and no pickle trusted.

    dcp.save(state, storage_writer=SealedWriter("checkpoint", to=["team.pub"]))
    dcp.load(state, storage_reader=SealedReader("checkpoint", key=Key.read("team.key")))

Every rank writes sealed files of its own under fresh names. ``.metadata`` is signed and sealed JSON that names them
with the digests of their preambles; it replaces the older one by a rename, and only then older data are deleted, so a
crash leaves the old checkpoint or the new one. Files of different saves do not mix, and a stranger's do not enter: a
preamble holds the digest of the sealed manifest, whose key commitment admits one file key, so a file under another key
is refused.
"""

import contextlib
import dataclasses
import io
import json
import os
import secrets
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
    _StoragePrefix,
)
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future

from privguard import _canon
from privguard.attest import journal
from privguard.checkpoint import archive, files
from privguard.checkpoint.archive import Audience, Contents
from privguard.checkpoint.content import stream, tree
from privguard.checkpoint.content.payload import Bytes
from privguard.checkpoint.durable import Directory, sweep
from privguard.checkpoint.keys.key import Key, To
from privguard.checkpoint.keys.trust import Trust
from privguard.checkpoint.opened import Sealed, head_of
from privguard.errors import SealError, TamperedError

_METADATA = ".metadata"
_DATA = "data"


class _SealedFiles(FileSystem):
    """The file system that torch's writer and reader use, with every stream sealed or opened."""

    def __init__(self, audience: Audience | None = None, key: Key | None = None) -> None:
        super().__init__()
        self._audience = audience
        self._key = key
        self._journal = journal.current()  # torch may write and read in threads of its own
        self.expected: dict[str, str] = {}  # file name → digest of its preamble, from the metadata

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        path = Path(path)
        if mode == "wb" and self._audience is not None:
            manifest = files.manifest("dcp-data")
            with (
                journal.recorded_in(self._journal),
                stream.sealing(path, _DATA, self._audience, manifest=manifest) as out,
            ):
                yield _Kept(out)
        elif mode == "rb" and self._key is not None:
            with journal.recorded_in(self._journal), Sealed(path, self._key) as sealed:
                if self.expected.get(path.name) != sealed.preamble.digest():
                    raise TamperedError(f"{path}: belongs to another save than the metadata beside it")
                yield stream.opening(sealed, _DATA)
        else:
            raise SealError(f"mode={mode!r}: expected to write with recipients, or to read with a key")


class _Kept(io.BufferedWriter):
    """torch closes the stream before its block ends; the end is sealed when the block ends well, and not by a close."""

    def close(self) -> None:
        self.flush()


class SealedWriter(FileSystemWriter):
    """Writes a distributed checkpoint that only recipients can open."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        to: To,
        auditors: To = (),
        facts: Mapping[str, Any] | None = None,
        trust: Trust | None = None,
        thread_count: int = 1,
    ) -> None:
        """Write into the folder ``path``, which all ranks share; ``trust`` says who signs.

        ``auditors`` may read ``facts``, JSON values and the bytes of a ``ledger``, and nothing else.

        Raises:
            NoRecipientError: nobody could open it.
        """
        # Syncing is done by the sealed file itself, before its rename; torch would sync the wrong descriptor.
        super().__init__(path, thread_count=thread_count, sync_files=False)
        self._audience = Audience.of(to, auditors)
        self._facts = dict(facts or {})
        self._to, self._trust = to, trust or Trust()
        self.fs = _SealedFiles(self._audience)

    def prepare_local_plan(self, plan: Any) -> Any:
        """Make the folder; an older checkpoint in it is no reason to warn, since it stays whole until the end.

        Args:
            plan: torch's plan of this rank.
        """
        self.fs.mkdir(self.path)
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Give every rank fresh names, so that the older checkpoint in the folder stays whole until the end.

        Args:
            plans: torch's plans, one for each rank.
        """
        save = secrets.token_hex(8)
        return [
            dataclasses.replace(plan, storage_data=_StoragePrefix(f"__{rank}_{save}_"))
            for rank, plan in enumerate(plans)
        ]

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Seal the metadata, put it in place, and delete what only the older metadata named.

        Args:
            metadata: torch's metadata of the checkpoint.
            results: what each rank wrote.
        """
        folder = Path(self.path)
        metadata.storage_data = {one.index: one.storage_data for each in results for one in each}
        names = {one.relative_path for one in metadata.storage_data.values()}
        digests = {name: head_of(folder / name).preamble.digest() for name in sorted(names)}
        content = _canon.canonical({"metadata": _to_json(metadata), "files": digests})
        signer = self._trust.signing_key(self._to)
        contents = Contents(
            members={_METADATA: Bytes(content)},
            manifest=files.manifest("dcp") | {name: value for name, value in self._facts.items() if name != "ledger"},
            ledger=self._facts.get("ledger", b""),
            signer=signer,
        )
        archive.write_file(folder / _METADATA, contents, self._audience)
        for path in folder.glob("__*.distcp"):
            if path.name not in names:
                path.unlink()
        with Directory(folder) as directory:
            sweep(directory)  # of saves in which a rank died


class SealedReader(FileSystemReader):
    """Reads a distributed checkpoint that ``SealedWriter`` wrote; nothing in it is run as code."""

    def __init__(self, path: str | os.PathLike[str], *, key: Key, trust: Trust | None = None) -> None:
        """Read from the folder ``path`` with ``key`` what the run's own signer sealed, or whom ``trust`` names."""
        super().__init__(path)
        self._key = key
        self._trust = trust or Trust()
        self.fs = _SealedFiles(key=key)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 — torch's signature
        """The metadata, every byte of it authenticated before it is read.

        Raises:
            TamperedError: the key does not open it, it is not what was written, or somebody else sealed it.
            PlainCheckpointError: it is in clear, and so a pickle that could run code.
        """
        path = Path(self.path) / _METADATA
        with Sealed(path, self._key) as sealed:
            sealed.verify_signer(*self._trust.signers(self._key))
            if sealed.manifest.get("content") != "dcp":
                raise TamperedError(f"{path}: sealed, but not as the metadata of a distributed checkpoint")
            content = json.loads(sealed.read(_METADATA))
        self.fs.expected = content["files"]
        metadata = _from_json(content["metadata"])
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def read_data(self, plan: Any, planner: Any) -> Future[None]:
        """Read what the plan asks for; objects other than tensors load only where they need no code.

        Args:
            plan: torch's plan of this rank.
            planner: torch's planner, which says where tensors go.
        """
        return super().read_data(plan, cast("Any", _CarefulPlanner(planner)))


class _CarefulPlanner:
    """torch's own planner, asked for objects only after the restricted unpickler has accepted their bytes."""

    def __init__(self, planner: Any) -> None:
        self._planner = planner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._planner, name)

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        try:
            torch.load(value, weights_only=True)  # noqa: TID251 — the restricted unpickler: data, never code
        except Exception as error:
            raise SealError(
                f"{read_item.dest_index.fqn}: expected tensors, numbers, text and containers of them, which "
                "load without code; take the object apart before it is saved"
            ) from error
        value.seek(0)
        self._planner.load_bytes(read_item, value)


def _to_json(metadata: Metadata) -> dict[str, Any]:
    """Names, shapes, places and the planner's paths as JSON; torch's own file is a pickle of the same."""
    planner, tensors = tree.pack(metadata.planner_data, prefix="planner")
    if tensors:
        raise TypeError("planner_data: expected names and numbers, found tensors")
    return {
        "entries": {name: _entry_to_json(entry) for name, entry in metadata.state_dict_metadata.items()},
        "planner": planner,
        "storage": [
            [at.fqn, None if at.offset is None else list(at.offset), at.index, to.relative_path, to.offset, to.length]
            for at, to in metadata.storage_data.items()
        ],
        "version": metadata.version,
    }


def _from_json(value: dict[str, Any]) -> Metadata:
    storage = {
        MetadataIndex(name, None if offset is None else torch.Size(offset), index): _StorageInfo(path, start, length)
        for name, offset, index, path, start, length in value["storage"]
    }
    return Metadata(
        state_dict_metadata={name: _entry_from_json(entry) for name, entry in value["entries"].items()},
        planner_data=tree.unpack(value["planner"], {}),
        storage_data=storage,
        version=value["version"],
    )


def _entry_to_json(entry: TensorStorageMetadata | BytesStorageMetadata) -> Any:
    if isinstance(entry, BytesStorageMetadata):
        return None
    return {
        "dtype": str(entry.properties.dtype).removeprefix("torch."),
        "requires_grad": entry.properties.requires_grad,
        "size": list(entry.size),
        "chunks": [[list(chunk.offsets), list(chunk.sizes)] for chunk in entry.chunks],
    }


def _entry_from_json(entry: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if entry is None:
        return BytesStorageMetadata()
    properties = TensorProperties(tree.DTYPES[entry["dtype"]], requires_grad=entry["requires_grad"])
    chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in entry["chunks"]]
    return TensorStorageMetadata(properties, torch.Size(entry["size"]), chunks)
