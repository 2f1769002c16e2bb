"""A stand-in for Modal's control plane on loopback: enough for `modal run`, `deploy`, `serve` and `secret create`.

    with modal_standin(tmp_path) as standin:    # the commands run in standin.environment()

Real: Modal's client and command line, the upload of local source, functions in processes of their own, secrets in their
environment, and volumes: a container works on a copy, and what it does not commit is lost when it is killed, as every
container is when its app ends. Not real: images, GPUs, time-outs and retries, which are in `functions`, and that
several inputs are computed at once: `waiting` tells how many there were.

The service definition comes with Modal's package (modal_proto), as does the helper that answers what is not written
here with UNIMPLEMENTED. Only one app runs at a time. What it stores is in modal_stored.py, containers are in
modal_container.py, web endpoints in modal_web.py.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpclib.server
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from modal._utils.grpc_testing import patch_mock_servicer
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_pb2 as pb

from tests.standins.loopback import address, event_loop, listening
from tests.standins.modal_container import Container, objects_of
from tests.standins.modal_stored import BUILDER, Stored, rpc
from tests.standins.modal_web import Message as AsgiMessage
from tests.standins.modal_web import chunk, message


@dataclass
class Call:
    """Inputs of a function and what has come of them."""

    id: str
    function: str
    inputs: int = 0
    outputs: list[pb.FunctionGetOutputsItem] = field(default_factory=list)
    inward: list[pb.DataChunk] = field(default_factory=list)  # of a web request, to the function
    outward: list[pb.DataChunk] = field(default_factory=list)


@patch_mock_servicer
class Standin(Stored):
    """The tests read `functions` (a choice of each) and `waiting` by name."""

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self.url = url
        self.changed = asyncio.Condition()
        self.logs: list[tuple[int, str]] = []
        self.running = False
        self.ids: dict[str, tuple[str, pb.Function, tuple[str, ...]]] = {}  # function -> name, definition, secrets
        self.layout: dict[str, str] = {}  # function by name, in the app that runs
        self.classes: dict[str, str] = {}  # class by name, in it
        self.urls: dict[str, str] = {}  # of web endpoints, by the name of the function or CLASS.METHOD
        self.calls: dict[str, Call] = {}
        self.asked: dict[str, tuple[Call, int]] = {}  # input -> its call and place
        self.queues: dict[str, asyncio.Queue[pb.FunctionGetInputsItem]] = defaultdict(asyncio.Queue)
        self.tasks: set[asyncio.Task] = set()
        self.functions: dict[str, list[pb.Function]] = {}
        self.waiting: Counter[str] = Counter()

    def environment(self) -> dict[str, str]:
        """For Modal's commands."""
        token = {"MODAL_TOKEN_ID": "ak-test", "MODAL_TOKEN_SECRET": "as-test", "MODAL_CONFIG_PATH": "/dev/null/none"}
        return os.environ | token | {"MODAL_SERVER_URL": self.url}

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
        for mount in function.mount_ids:
            container.put_source(self.sources[mount], self.root / "blobs")
        for volume in function.volume_mounts:
            name = volume.volume_id.removeprefix("vo-")
            container.put_volume(name, self.volume(name))
        told: dict[str, str] = {}
        for secret in secrets:
            told |= self.secrets[secret.removeprefix("st-")]
        layout = self._layout(objects_of(function))
        process = await container.start(function, container.environment(function, layout, self.url, told))
        await asyncio.gather(
            self._log(process.stdout, pb.FILE_DESCRIPTOR_STDOUT), self._log(process.stderr, pb.FILE_DESCRIPTOR_STDERR)
        )
        code = await process.wait()
        del self.containers[container.function]
        failure = pb.GenericResult(
            status=pb.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE, exception=f"the container ended with {code}"
        )
        answered = {output.input_id for call in self.calls.values() for output in call.outputs}
        for number, (call, _) in self.asked.items():
            if call.function == container.function and number not in answered:
                await self._answer(number, failure, pb.DATA_FORMAT_PICKLE)

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
