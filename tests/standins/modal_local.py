"""A stand-in for Modal's control plane on loopback: enough for `modal run`, `deploy`, `serve` and `secret create`.

    with modal_standin(tmp_path) as standin:    # the commands run in standin.environment()

Real: Modal's client and command line, the upload of local source, functions in processes of their own, secrets in their
environment, and volumes: a container works on a copy, and what it does not commit is lost when it is killed, as every
container is when its app ends. Not real: images, GPUs, time-outs and retries, which are in `functions`, and that
several inputs are computed at once: `waiting` tells how many there were.

Containers live in mount and host-name namespaces (`unshare`), so that volumes lie where the functions expect them; the
host name tells which container calls. The service definition comes with Modal's package (modal_proto), as does the
helper that answers what is not written here with UNIMPLEMENTED. Only one app runs at a time.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpclib.server
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal._utils.grpc_testing import patch_mock_servicer
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_grpc
from modal_proto import api_pb2 as pb

from tests.standins.loopback import address, event_loop, listening
from tests.standins.modal_web import Message as AsgiMessage
from tests.standins.modal_web import Sites, chunk, message

MOUNTS = Path("/mnt")  # covered by an empty file system in containers; volumes are mounted below it
BUILDER = "2025.06"
SUCCESS = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
Handler = Callable[[Any, Any], Awaitable[None]]


def rpc(answer: Callable[[Any, Any], Message | None]) -> Handler:
    """A handler of one request and one answer; nothing returned: Empty."""

    async def handler(self: "Standin", stream: Any) -> None:
        await stream.send_message(answer(self, await stream.recv_message()) or Empty())

    return handler


@dataclass
class Call:
    """Inputs of a function and what has come of them."""

    id: str
    function: str
    inputs: int = 0
    outputs: list[pb.FunctionGetOutputsItem] = field(default_factory=list)
    inward: list[pb.DataChunk] = field(default_factory=list)  # of a web request, to the function
    outward: list[pb.DataChunk] = field(default_factory=list)


@dataclass
class Container:
    """A process of one function. `volumes`: where its copies lie, by volume."""

    name: str
    function: str
    folder: Path
    since: float = field(default_factory=time.time)
    volumes: dict[str, Path] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    def kill(self) -> None:
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@patch_mock_servicer
class Standin(api_grpc.ModalClientBase):
    """The tests read `functions` (a choice of each) and `waiting` by name, `commits`: volume, {file: mtime in ns}."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url = root, url
        self.numbers: Counter[str] = Counter()
        self.changed = asyncio.Condition()
        self.logs: list[tuple[int, str]] = []
        self.running = False
        self.ids: dict[str, tuple[str, pb.Function, tuple[str, ...]]] = {}  # function -> name, definition, secrets
        self.layout: dict[str, str] = {}  # function by name, in the app that runs
        self.classes: dict[str, str] = {}  # class by name, in it
        self.urls: dict[str, str] = {}  # of web endpoints, by the name of the function or CLASS.METHOD
        self.sites = Sites()
        self.blobs_url = ""
        self.images: dict[str, pb.Image] = {}
        self.sources: dict[str, list[pb.MountFile]] = {}
        self.secrets: dict[str, dict[str, str]] = {}  # by name
        self.calls: dict[str, Call] = {}
        self.asked: dict[str, tuple[Call, int]] = {}  # input -> its call and place
        self.queues: dict[str, asyncio.Queue[pb.FunctionGetInputsItem]] = defaultdict(asyncio.Queue)
        self.containers: dict[str, Container] = {}  # by function
        self.tasks: set[asyncio.Task] = set()
        self.functions: dict[str, list[pb.Function]] = {}
        self.commits: list[tuple[str, dict[str, int]]] = []
        self.waiting: Counter[str] = Counter()
        self.hold_at = 0  # the commit of this number is never answered: the container waits until it is killed
        for folder in ("blobs", "volumes", "containers"):
            (root / folder).mkdir()

    def environment(self) -> dict[str, str]:
        """For Modal's commands."""
        token = {"MODAL_TOKEN_ID": "ak-test", "MODAL_TOKEN_SECRET": "as-test", "MODAL_CONFIG_PATH": "/dev/null/none"}
        return os.environ | token | {"MODAL_SERVER_URL": self.url}

    def volume(self, name: str) -> Path:
        """What has been committed to it."""
        folder = self.root / "volumes" / name
        folder.mkdir(exist_ok=True)
        return folder

    def _new(self, prefix: str) -> str:
        self.numbers[prefix] += 1
        return f"{prefix}-{self.numbers[prefix]:04d}"

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _until(self, found: Callable[[], Any], seconds: float) -> None:
        """Wait for something to be found, or so long."""
        async with self.changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait_for(found), seconds)

    # --- the client, the app

    ClientHello = rpc(lambda self, _: pb.ClientHelloResponse(image_builder_version=BUILDER))
    AppHeartbeat = AppSetTags = VolumeHeartbeat = rpc(lambda self, _: None)

    @rpc
    def EnvironmentGetOrCreate(self, request: Message) -> Message:
        settings = pb.EnvironmentSettings(image_builder_version=BUILDER)
        metadata = pb.EnvironmentMetadata(name="main", settings=settings)
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-main", metadata=metadata)

    @rpc
    def AppCreate(self, request: Message) -> Message:
        self.logs, self.layout, self.running = [], {}, True
        return pb.AppCreateResponse(app_id=self._new("ap"), app_page_url=self.url, app_logs_url=self.url)

    @rpc
    def AppGetByDeploymentName(self, request: Message) -> Message:
        """Every deployment is the first."""
        return pb.AppGetByDeploymentNameResponse()

    @rpc
    def AppPublish(self, request: Message) -> Message:
        self.layout, self.classes = dict(request.function_ids), dict(request.class_ids)
        return pb.AppPublishResponse(url=self.url, deployed_at=time.time())

    @rpc
    def AppGetLayout(self, request: Message) -> Message:
        """What `modal serve` asks when a file has changed: it creates the same functions anew."""
        return pb.AppGetLayoutResponse(app_layout=self._layout([]))

    @rpc
    def TaskList(self, request: Message) -> Message:
        return pb.TaskListResponse(
            tasks=[pb.TaskStats(task_id=c.name, enqueued_at=c.since) for c in self.containers.values()]
        )

    @rpc
    def ContainerStop(self, request: Message) -> Message:
        """Another is started for the next input, with the function as it is then."""
        for container in self.containers.values():
            if container.name == request.task_id:
                container.kill()
        return pb.ContainerStopResponse()

    def _layout(self, more: list[pb.Object]) -> pb.AppLayout:
        functions = [pb.Object(object_id=f, function_handle_metadata=self._handle(f)) for f in self.layout.values()]
        classes = [
            pb.Object(object_id=c, class_handle_metadata=pb.ClassHandleMetadata()) for c in self.classes.values()
        ]
        return pb.AppLayout(objects=[*functions, *classes, *more], function_ids=self.layout, class_ids=self.classes)

    async def AppGetLogs(self, stream: Any) -> None:
        request = await stream.recv_message()
        place, end = int((request.last_entry_id or "0").split("-")[0]), time.monotonic() + (request.timeout or 1)
        while time.monotonic() < end:
            for descriptor, text in self.logs[place:]:
                place += 1
                entry = pb.TaskLogs(data=text, file_descriptor=descriptor, timestamp=time.time())
                await stream.send_message(pb.TaskLogsBatch(entry_id=f"{place}-0", items=[entry]))
            if not self.running:
                await stream.send_message(pb.TaskLogsBatch(app_done=True))
                return
            more = partial(lambda place: len(self.logs) > place or not self.running, place)
            await self._until(more, end - time.monotonic())

    async def AppClientDisconnect(self, stream: Any) -> None:
        await stream.recv_message()
        await self.stop()
        await stream.send_message(Empty())

    async def stop(self) -> None:
        """End the app and kill its containers."""
        while self.tasks:  # one that is only being started has no process yet
            for container in self.containers.values():
                container.kill()
            await asyncio.wait(self.tasks, timeout=0.05)
        self.running = False
        await self._notify()

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

    async def VolumeCommit(self, stream: Any) -> None:
        """Whatever the calling container has changed; what it has deleted stays: nothing here deletes."""
        name = (await stream.recv_message()).volume_id.removeprefix("vo-")
        caller = next(c for c in self.containers.values() if c.name == stream.metadata["x-modal-node"])
        volume = self.volume(name)
        shutil.copytree(caller.volumes[name], volume, dirs_exist_ok=True, copy_function=_copy_if_newer)
        files = (path for path in volume.rglob("*") if path.is_file())
        self.commits.append((name, {path.relative_to(volume).as_posix(): path.stat().st_mtime_ns for path in files}))
        if len(self.commits) == self.hold_at:
            await asyncio.Event().wait()
        await stream.send_message(pb.VolumeCommitResponse(skip_reload=True))

    # --- functions

    @rpc
    def FunctionPrecreate(self, request: Message) -> Message:
        function = request.existing_function_id or self._new("fu")
        metadata = pb.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            function_schema=request.function_schema,
        )
        return pb.FunctionPrecreateResponse(function_id=function, handle_metadata=metadata)

    @rpc
    def FunctionCreate(self, request: Message) -> Message:
        choices = [ranked.function for ranked in request.function_data.ranked_functions] or [request.function]
        plain = choices[0]  # they differ in their GPUs
        function = request.existing_function_id or self._new("fu")
        for method, endpoint in [("", plain), *plain.method_definitions.items()]:
            if endpoint.webhook_config.type:
                name = endpoint.function_name
                if not request.existing_function_id or name not in self.urls:
                    self.urls[name] = self.sites.endpoint(method, partial(self._exchange, function))
                endpoint.web_url = self.urls[name]
        self.functions[plain.function_name] = choices
        self.ids[function] = plain.function_name, plain, tuple(plain.secret_ids)
        told = pb.FunctionData(function_name=plain.function_name, timeout_secs=plain.timeout_secs)
        told.ranked_functions.add().function.CopyFrom(plain)
        return pb.FunctionCreateResponse(
            function_id=function, function=plain, function_data=told, handle_metadata=self._handle(function)
        )

    @rpc
    def FunctionBindParams(self, request: Message) -> Message:
        function, (name, plain, _) = self._new("fu"), self.ids[request.function_id]
        self.ids[function] = name, plain, tuple(request.function_options.secret_ids)
        return pb.FunctionBindParamsResponse(bound_function_id=function, handle_metadata=self._handle(function))

    @rpc
    def ClassCreate(self, request: Message) -> Message:
        return pb.ClassCreateResponse(class_id=self._new("cs"), handle_metadata=pb.ClassHandleMetadata())

    def _handle(self, function: str) -> pb.FunctionHandleMetadata:
        _, plain, _ = self.ids[function]
        handle = _described(plain, definition_id=f"de-{function}", max_object_size_bytes=2 << 20)
        handle.class_parameter_info.CopyFrom(plain.class_parameter_info)
        for name, method in plain.method_definitions.items():
            told = _described(method, is_method=True, use_method_name=name)
            handle.method_handle_metadata[name].CopyFrom(told)
        return handle

    # --- calls, on the client's side

    @rpc
    def FunctionMap(self, request: Message) -> Message:
        call = Call(self._new("fc"), request.function_id)
        self.calls[call.id] = call
        items = [self._ask(call, item) for item in request.pipelined_inputs]
        return pb.FunctionMapResponse(
            function_call_id=call.id, function_call_jwt=call.id, pipelined_inputs=items, max_inputs_outstanding=1000
        )

    @rpc
    def FunctionPutInputs(self, request: Message) -> Message:
        call = self.calls[request.function_call_id]
        return pb.FunctionPutInputsResponse(inputs=[self._ask(call, item) for item in request.inputs])

    FunctionFinishInputs = FunctionCallCancel = rpc(lambda self, _: None)

    def _ask(self, call: Call, item: pb.FunctionPutInputsItem) -> pb.FunctionPutInputsResponseItem:
        number = self._new("in")
        call.inputs += 1
        name = self.ids[call.function][0]
        self.waiting[name] = max(self.waiting[name], call.inputs - len(call.outputs))
        self.asked[number] = call, item.idx
        asked = pb.FunctionGetInputsItem(input_id=number, input=item.input, function_call_id=call.id)
        self.queues[call.function].put_nowait(asked)
        if call.function not in self.containers:
            container = Container(self._new("ta"), call.function, self.root / "containers" / f"{time.time_ns()}")
            self.containers[call.function] = container
            task = asyncio.get_running_loop().create_task(self._run(container))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return pb.FunctionPutInputsResponseItem(idx=item.idx, input_id=number, input_jwt=number)

    async def FunctionGetOutputs(self, stream: Any) -> None:
        request = await stream.recv_message()
        call = self.calls[request.function_call_id]
        seen = int((request.last_entry_id or "0").split("-")[0])
        await self._until(lambda: len(call.outputs) > seen, request.timeout)
        left = call.inputs - len(call.outputs)
        await stream.send_message(
            pb.FunctionGetOutputsResponse(
                outputs=call.outputs[seen:], last_entry_id=f"{len(call.outputs)}-0", num_unfinished_inputs=left
            )
        )

    async def _exchange(self, function: str, asked: pb.FunctionInput, body: bytes) -> AsyncIterator[AsgiMessage]:
        """What a web endpoint answers, as it comes."""
        call = Call(self._new("fc"), function)
        call.inward.append(chunk(1, {"type": "http.request", "body": body, "more_body": False}))
        self.calls[call.id] = call
        self._ask(call, pb.FunctionPutInputsItem(input=asked))
        sent = 0
        try:
            while not call.outputs or len(call.outward) > sent:
                await self._until(lambda sent=sent: call.outputs or len(call.outward) > sent, 5)
                for part in call.outward[sent:]:
                    sent += 1
                    yield message(part)
        finally:
            if not call.outputs:  # the visitor has left
                call.inward.append(chunk(2, {"type": "http.disconnect"}))
                await self._notify()

    # --- calls, on the container's side

    ContainerHello = TaskResult = rpc(lambda self, _: None)
    ContainerHeartbeat = rpc(lambda self, _: pb.ContainerHeartbeatResponse())

    @rpc
    def FunctionGetDynamicConcurrency(self, request: Message) -> Message:
        return pb.FunctionGetDynamicConcurrencyResponse(concurrency=request.max_concurrency or 1)

    async def FunctionCallGetDataIn(self, stream: Any) -> None:
        request = await stream.recv_message()
        call, seen = self.calls[request.function_call_id], request.last_index
        while not call.outputs:
            await self._until(lambda seen=seen: call.outputs or len(call.inward) > seen, 5)
            for part in call.inward[seen:]:
                seen += 1
                await stream.send_message(part)

    async def FunctionCallPutDataOut(self, stream: Any) -> None:
        request = await stream.recv_message()
        self.calls[request.function_call_id].outward.extend(sorted(request.data_chunks, key=lambda part: part.index))
        await self._notify()
        await stream.send_message(Empty())

    async def FunctionGetInputs(self, stream: Any) -> None:
        request = await stream.recv_message()
        item = await self.queues[request.function_id].get()
        await stream.send_message(pb.FunctionGetInputsResponse(inputs=[item]))

    async def FunctionPutOutputs(self, stream: Any) -> None:
        for output in (await stream.recv_message()).outputs:
            await self._answer(output.input_id, output.result, output.data_format)
        await stream.send_message(Empty())

    async def _answer(self, number: str, result: pb.GenericResult, data_format: int) -> None:
        call, place = self.asked[number]
        call.outputs.append(
            pb.FunctionGetOutputsItem(result=result, idx=place, input_id=number, data_format=data_format)
        )
        await self._notify()

    # --- containers

    async def _run(self, container: Container) -> None:
        """The function's process until it ends; whatever it was asked and has not answered has failed then."""
        _, function, secrets = self.ids[container.function]
        root = container.folder / "root"
        for mount in function.mount_ids:
            for file in self.sources[mount]:
                target = container.folder / file.filename.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.root / "blobs" / file.sha256_hex, target)
        script = f"set -e; mount -t tmpfs tmpfs {MOUNTS}; echo {container.name} > /proc/sys/kernel/hostname; "
        for volume in function.volume_mounts:
            name, place = volume.volume_id.removeprefix("vo-"), Path(volume.mount_path)
            if place.parent != MOUNTS:
                raise ValueError(f"{place} is not in {MOUNTS}")
            container.volumes[name] = container.folder / "volumes" / name
            shutil.copytree(self.volume(name), container.volumes[name])
            script += f"mkdir {place}; mount --bind {shlex.quote(str(container.volumes[name]))} {place}; "
        container.process = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "--uts", *["--map-root-user"] * (os.geteuid() != 0),
            "bash", "-c", f'{script} exec "$@"', "-", sys.executable, "-m", "modal._container_entrypoint",
            cwd=root, env=self._environment(container, function, secrets), start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await asyncio.gather(
            self._log(container.process.stdout, pb.FILE_DESCRIPTOR_STDOUT),
            self._log(container.process.stderr, pb.FILE_DESCRIPTOR_STDERR),
        )
        code = await container.process.wait()
        del self.containers[container.function]
        failure = pb.GenericResult(
            status=pb.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE, exception=f"the container ended with {code}"
        )
        answered = {output.input_id for call in self.calls.values() for output in call.outputs}
        for number, (call, _) in self.asked.items():
            if call.function == container.function and number not in answered:
                await self._answer(number, failure, pb.DATA_FORMAT_PICKLE)

    def _environment(self, container: Container, function: pb.Function, secrets: tuple[str, ...]) -> dict[str, str]:
        objects = []
        for volume in function.volume_mounts:
            told = pb.VolumeMetadata(version=pb.VOLUME_FS_VERSION_V1, name=volume.volume_id.removeprefix("vo-"))
            objects.append(pb.Object(object_id=volume.volume_id, volume_metadata=told))
        for dependency in function.object_dependencies:
            if dependency.object_id.startswith(("im-", "st-")):
                objects.append(pb.Object(object_id=dependency.object_id))
        arguments = pb.ContainerArguments(
            task_id=container.name, function_id=container.function, app_id="ap", function_def=function,
            app_layout=self._layout(objects), environment_name="main",
        )  # fmt: skip
        path = container.folder / "arguments"
        path.write_bytes(arguments.SerializeToString())
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
        for secret in secrets:
            kept |= self.secrets[secret.removeprefix("st-")]
        root = str(container.folder / "root")
        return kept | {
            "MODAL_TASK_ID": container.name, "MODAL_IS_REMOTE": "1", "MODAL_SERVER_URL": self.url,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(path), "MODAL_IMAGE_ID": function.image_id,
            "MODAL_ENVIRONMENT": "main", "MODAL_CONFIG_PATH": "/dev/null/none", "PYTHONPATH": root,
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip

    async def _log(self, reader: asyncio.StreamReader, descriptor: int) -> None:
        async for line in reader:
            self.logs.append((descriptor, line.decode(errors="replace")))
            await self._notify()


def _described(definition: pb.Function | pb.MethodDefinition, **more: Any) -> pb.FunctionHandleMetadata:
    return pb.FunctionHandleMetadata(
        function_name=definition.function_name,
        function_type=definition.function_type,
        function_schema=definition.function_schema,
        supported_input_formats=definition.supported_input_formats,
        supported_output_formats=definition.supported_output_formats,
        web_url=definition.web_url,
        **more,
    )


def _copy_if_newer(source: str, target: str) -> None:
    if not os.path.exists(target) or os.stat(source).st_mtime_ns > os.stat(target).st_mtime_ns:
        shutil.copy2(source, f"{target}.part")
        os.replace(f"{target}.part", target)


async def _start(root: Path, listener: Any) -> tuple[Standin, grpclib.server.Server]:
    standin = Standin(root, address(listener))
    server = grpclib.server.Server([standin], status_details_codec=custom_detail_codec)
    await server.start(sock=listener)
    return standin, server


async def _stop(standin: Standin, server: grpclib.server.Server) -> None:
    await standin.stop()
    await standin.sites.close()
    server.close()
    await server.wait_closed()


@contextmanager
def modal_standin(root: Path) -> Iterator[Standin]:
    """A control plane that keeps its volumes in `root` and runs until the end of the block."""
    logging.getLogger("grpclib.server").setLevel(logging.CRITICAL)  # streams that a client has left
    with event_loop() as run:
        standin, server = run(_start(root, listening()))
        try:
            yield standin
        finally:
            run(_stop(standin, server))
