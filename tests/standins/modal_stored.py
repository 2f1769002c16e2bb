"""What the stand-in for Modal keeps on its disk: local source, secrets and volumes. Images are only recorded."""

import asyncio
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_grpc
from modal_proto import api_pb2 as pb

from tests.standins.modal_container import Container
from tests.standins.modal_web import Sites

BUILDER = "2025.06"
SUCCESS = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
Handler = Callable[[Any, Any], Awaitable[None]]


def rpc(answer: Callable[[Any, Any], Message | None]) -> Handler:
    """A handler of one request and one answer; nothing returned: Empty."""

    async def handler(self: "Stored", stream: Any) -> None:
        await stream.send_message(answer(self, await stream.recv_message()) or Empty())

    return handler


class Stored(api_grpc.ModalClientBase):
    """The part of the control plane that answers for these. `commits`: volume, {file: mtime in ns}."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.numbers: Counter[str] = Counter()
        self.sites = Sites()
        self.blobs_url = ""
        self.images: dict[str, pb.Image] = {}
        self.sources: dict[str, list[pb.MountFile]] = {}
        self.secrets: dict[str, dict[str, str]] = {}  # by name
        self.containers: dict[str, Container] = {}  # by function
        self.commits: list[tuple[str, dict[str, int]]] = []
        self.hold_at = 0  # the commit of this number is never answered: the container waits until it is killed
        for folder in ("blobs", "volumes", "containers"):
            (root / folder).mkdir()

    def volume(self, name: str) -> Path:
        """What has been committed to it."""
        folder = self.root / "volumes" / name
        folder.mkdir(exist_ok=True)
        return folder

    def _new(self, prefix: str) -> str:
        self.numbers[prefix] += 1
        return f"{prefix}-{self.numbers[prefix]:04d}"

    # --- images, local source, secrets

    @rpc
    def ImageGetOrCreate(self, request: Message) -> Message:
        image = "im-" + hashlib.sha256(request.image.SerializeToString(deterministic=True)).hexdigest()[:12]
        self.images[image] = request.image
        metadata = pb.ImageMetadata(image_builder_version=BUILDER)
        return pb.ImageGetOrCreateResponse(image_id=image, result=SUCCESS, metadata=metadata)

    @rpc
    def MountBatchedCheckExistence(self, request: Message) -> Message:
        missing = [digest for digest in request.sha256_hex_hashes if not (self.root / "blobs" / digest).exists()]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    @rpc
    def MountPutFile(self, request: Message) -> Message:
        blob = self.root / "blobs" / request.sha256_hex
        if request.WhichOneof("data_oneof") == "data_blob_id":
            (self.root / "blobs" / request.data_blob_id).rename(blob)
        elif request.WhichOneof("data_oneof") == "data" or request.sha256_hex == hashlib.sha256(b"").hexdigest():
            blob.write_bytes(request.data)
        return pb.MountPutFileResponse(exists=blob.exists())

    @rpc
    def BlobCreate(self, request: Message) -> Message:
        """A large file goes by HTTP."""
        self.blobs_url = self.blobs_url or self.sites.uploads(self.root / "blobs")
        blob = self._new("bl")
        return pb.BlobCreateResponse(blob_ids=[blob], upload_urls=pb.UploadUrlList(items=[f"{self.blobs_url}/{blob}"]))

    @rpc
    def MountGetOrCreate(self, request: Message) -> Message:
        mount = "mo-modal" if request.deployment_name else self._new("mo")  # its own packages are installed here
        self.sources[mount] = list(request.files)
        metadata = pb.MountHandleMetadata(content_checksum_sha256_hex="0" * 64)
        return pb.MountGetOrCreateResponse(mount_id=mount, handle_metadata=metadata)

    @rpc
    def SecretGetOrCreate(self, request: Message) -> Message:
        name = request.deployment_name or self._new("anonymous")  # a function's own env is a secret without a name
        if request.object_creation_type != pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            self.secrets[name] = dict(request.env_dict)
        if name not in self.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret {name!r} not found in environment 'main'")
        if missing := [key for key in request.required_keys if key not in self.secrets[name]]:
            raise GRPCError(Status.FAILED_PRECONDITION, f"Secret is missing key(s): {missing}")
        return pb.SecretGetOrCreateResponse(secret_id=f"st-{name}")

    # --- volumes

    @rpc
    def VolumeGetOrCreate(self, request: Message) -> Message:
        self.volume(request.deployment_name)
        metadata = pb.VolumeMetadata(version=pb.VOLUME_FS_VERSION_V1, name=request.deployment_name)
        return pb.VolumeGetOrCreateResponse(
            volume_id=f"vo-{request.deployment_name}", version=pb.VOLUME_FS_VERSION_V1, metadata=metadata
        )

    @rpc
    def VolumeListFiles(self, request: Message) -> Message:
        """The top folder, whatever is asked for."""
        names = (path.name for path in self.volume(request.volume_id.removeprefix("vo-")).iterdir())
        return pb.VolumeListFilesResponse(entries=[pb.FileEntry(path=name) for name in names])

    async def VolumeReload(self, stream: Any) -> None:
        """Whatever others have committed."""
        name = (await stream.recv_message()).volume_id.removeprefix("vo-")
        own = self._caller(stream).volumes[name]
        shutil.copytree(self.volume(name), own, dirs_exist_ok=True, copy_function=_copy_if_newer)
        await stream.send_message(Empty())

    def _caller(self, stream: Any) -> Container:
        return next(c for c in self.containers.values() if c.name == stream.metadata["x-modal-node"])

    async def VolumeCommit(self, stream: Any) -> None:
        """Whatever the calling container has changed; what it has deleted stays: nothing here deletes."""
        name = (await stream.recv_message()).volume_id.removeprefix("vo-")
        caller, volume = self._caller(stream), self.volume(name)
        shutil.copytree(caller.volumes[name], volume, dirs_exist_ok=True, copy_function=_copy_if_newer)
        files = (path for path in volume.rglob("*") if path.is_file())
        self.commits.append((name, {path.relative_to(volume).as_posix(): path.stat().st_mtime_ns for path in files}))
        if len(self.commits) == self.hold_at:
            await asyncio.Event().wait()
        await stream.send_message(pb.VolumeCommitResponse(skip_reload=True))


def _copy_if_newer(source: str, target: str) -> None:
    if not os.path.exists(target) or os.stat(source).st_mtime_ns > os.stat(target).st_mtime_ns:
        shutil.copy2(source, f"{target}.part")
        os.replace(f"{target}.part", target)
