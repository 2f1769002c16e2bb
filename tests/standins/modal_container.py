"""A container of the stand-in for Modal: a function's process with its source, its volumes and its environment.

It lives in mount and host-name namespaces (`unshare`), so that volumes lie where the function expects them; the host
name tells which container calls.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from modal_proto import api_pb2 as pb

MOUNTS = Path("/mnt")  # covered by an empty file system; volumes are mounted below it
BLOCKS = ("im-", "st-")  # what a container is told of the function's dependencies: image and secrets


@dataclass
class Container:
    """A process of one function. `volumes`: where its copies lie, by volume."""

    name: str
    function: str
    folder: Path
    since: float = field(default_factory=time.time)
    volumes: dict[str, Path] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    @property
    def root(self) -> Path:
        """What /root is on Modal: where the source lies and the process starts."""
        return self.folder / "root"

    def put_source(self, files: Iterable[pb.MountFile], blobs: Path) -> None:
        for file in files:
            target = self.folder / file.filename.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(blobs / file.sha256_hex, target)

    def put_volume(self, name: str, committed: Path) -> None:
        self.volumes[name] = self.folder / "volumes" / name
        shutil.copytree(committed, self.volumes[name])

    async def start(self, function: pb.Function, environment: dict[str, str]) -> asyncio.subprocess.Process:
        """Its process, whose output is to be read."""
        script = f"set -e; mount -t tmpfs tmpfs {MOUNTS}; echo {self.name} > /proc/sys/kernel/hostname; "
        for volume in function.volume_mounts:
            copy, place = self.volumes[volume.volume_id.removeprefix("vo-")], Path(volume.mount_path)
            if place.parent != MOUNTS:
                raise ValueError(f"{place} is not in {MOUNTS}")
            script += f"mkdir {place}; mount --bind {shlex.quote(str(copy))} {place}; "
        self.process = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "--uts", *["--map-root-user"] * (os.geteuid() != 0),
            "bash", "-c", f'{script} exec "$@"', "-", sys.executable, "-m", "modal._container_entrypoint",
            cwd=self.root, env=environment, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return self.process

    def environment(
        self, function: pb.Function, layout: pb.AppLayout, url: str, secrets: dict[str, str]
    ) -> dict[str, str]:
        """What Modal's entry point reads: `layout`, the app's, and the control plane's `url`."""
        arguments = pb.ContainerArguments(
            task_id=self.name, function_id=self.function, app_id="ap", function_def=function, app_layout=layout,
            environment_name="main",
        )  # fmt: skip
        path = self.folder / "arguments"
        path.write_bytes(arguments.SerializeToString())
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
        return kept | secrets | {
            "MODAL_TASK_ID": self.name, "MODAL_IS_REMOTE": "1", "MODAL_SERVER_URL": url,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(path), "MODAL_IMAGE_ID": function.image_id,
            "MODAL_ENVIRONMENT": "main", "MODAL_CONFIG_PATH": "/dev/null/none", "PYTHONPATH": str(self.root),
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip

    def kill(self) -> None:
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def objects_of(function: pb.Function) -> list[pb.Object]:
    """The volumes, the image and the secrets of a function, as its container is told of them."""
    objects = []
    for volume in function.volume_mounts:
        told = pb.VolumeMetadata(version=pb.VOLUME_FS_VERSION_V1, name=volume.volume_id.removeprefix("vo-"))
        objects.append(pb.Object(object_id=volume.volume_id, volume_metadata=told))
    needed = (dependency.object_id for dependency in function.object_dependencies)
    return objects + [pb.Object(object_id=each) for each in needed if each.startswith(BLOCKS)]
