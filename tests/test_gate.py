"""What is let in to the page beside the API: bodies, addresses, paths. The page is the one that Modal serves."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from gradio import mcp, route_utils
from huggingface_hub.utils import _detect_agent, build_hf_headers
from starlette.types import ASGIApp, Message

import app
from cnn.checkpoint import DEFAULT
from cnn.serve import gate
from cnn.ui import theme
from cnn.ui.theme import MAX_CALL

CALLS = ("/gradio_api/call/classify", "/gradio_api/queue/join", "/gradio_api/run/classify", "/gradio_api/mcp/",
         "/gradio_api/component_server", "/gradio_api/cancel")  # fmt: skip
OWN = "http://127.0.0.1:9"  # the page's address, as Modal says it
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
HEAD = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'

pytestmark = pytest.mark.filterwarnings("ignore:The .* function is executing locally")


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def page(uploads: Path) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        patch.setattr(app, "warm_up", lambda: None)
        patch.setattr(app.modal, "is_local", lambda: False)
        patch.setattr(app.page, "get_web_url", lambda: OWN, raising=False)
        with TestClient(app.page.local(), raise_server_exceptions=False) as visitor:
            yield visitor


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("told", [True, False])
def test_a_call_larger_than_a_megabyte_is_refused_in_one_sentence(path: str, told: bool, page: TestClient):
    body = b" " * (MAX_CALL + 1)
    reply = page.post(path, content=body if told else iter([body[:1000], body[1000:]]), headers=JSON)
    assert reply.status_code == 413
    assert reply.json() == {"error": theme.CALL_TOO_LARGE}


@pytest.mark.parametrize("path", CALLS)
def test_nesting_without_end_ends_in_an_answer_without_a_trace(path: str, page: TestClient):
    for deep in (300, 100_000):
        nested = b"[" * deep + b"]" * deep
        body = b'{"data": [%b], "session_hash": "x", "fn_index": 0, "jsonrpc": "2.0", "id": 1}' % nested
        told = page.post(path, content=body, headers=JSON).text
        assert "Traceback" not in told and "Recursion" not in told
    assert page.get("/healthz").status_code == 200


def test_uploads_are_larger_than_calls_and_have_a_limit_too(
    page: TestClient, uploads: Path, monkeypatch: pytest.MonkeyPatch
):
    sound = {"files": ("a.wav", b"0" * 3 * MAX_CALL)}
    (path,) = page.post("/gradio_api/upload", files=sound).json()
    assert Path(path).stat().st_size == 3 * MAX_CALL
    Path(path).unlink()
    monkeypatch.setattr(theme, "MAX_FORM", 2 * MAX_CALL)
    reply = page.post("/gradio_api/upload", files=sound)
    assert reply.status_code == 413 and reply.json() == {"error": gate.TOO_LARGE}
    assert "200 MB" in gate.TOO_LARGE and gate.MAX_FORM > 200_000_000


def status(server: ASGIApp, *messages: Message) -> int:
    """Of an upload whose body comes in these messages; after the last of them nothing comes."""
    left, said = list(messages), []

    async def receive() -> Message:
        return left.pop(0) if left else await asyncio.Event().wait()

    async def send(message: Message) -> None:
        said.append(message)

    headers = [(name.encode(), value.encode()) for name, value in FORM.items()]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/gradio_api/upload", "raw_path": b"/gradio_api/upload", "query_string": b"", "root_path": "",
             "headers": headers, "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}  # fmt: skip
    asyncio.run(server(scope, receive, send))
    assert list(json.loads(said[1]["body"])) == ["error"]
    return said[0]["status"]


def test_of_an_upload_that_breaks_off_nothing_is_kept(page: TestClient, uploads: Path, monkeypatch: pytest.MonkeyPatch):
    begun = {"type": "http.request", "body": HEAD + b"0" * 400, "more_body": True}
    assert status(page.app, begun, {"type": "http.disconnect"}) == 499
    assert files(uploads) == []
    monkeypatch.setattr(theme, "MAX_FORM", 1000)
    assert status(page.app, begun, begun, begun) == 413
    assert files(uploads) == []
    monkeypatch.setattr(gate, "STALLED", 0.05)
    assert status(page.app, begun) == 408
    assert files(uploads) == []


def test_of_all_that_is_sent_at_once_only_so_much_is_taken():
    async def server(scope: dict, receive: ASGIApp, send: ASGIApp) -> None:
        while (await receive()).get("more_body"):
            pass
        for message in ({"type": "http.response.start", "status": 200, "headers": []}, {"type": "http.response.body"}):
            await send(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "AT_THE_GATE", 1000)
        client = TestClient(gate.Gate(server, lambda path: (5000, "too large")))
    for _ in range(2):  # what has gone through is let go
        assert client.post("/", content=b" " * 900).status_code == 200
    reply = client.post("/", content=b" " * 1100)
    assert reply.status_code == 429 and int(reply.headers["retry-after"]) > 0


@pytest.mark.parametrize("place", ["file=https://example.org/a.wav", "file=http%3A//example.org/", "file/http://a.b/",
                                   "proxy=https://a.hf.space/"])  # fmt: skip
def test_no_address_is_fetched_for_a_visitor(place: str, page: TestClient, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    async def resolve(host: str) -> str:
        asked.append(host)
        raise OSError

    monkeypatch.setattr(route_utils.safehttpx, "async_validate_url", resolve)
    reply = page.get(f"/gradio_api/{place}")
    assert (reply.status_code, asked) == (403, [])
    assert "Nothing is fetched" in reply.json()["error"]


def test_mcp_calls_the_page_itself_wherever_a_visitor_says_that_it_is(
    page: TestClient, monkeypatch: pytest.MonkeyPatch
):
    called: list[str] = []

    def client(address: str, **_: object) -> None:
        called.append(address)
        raise ConnectionError

    monkeypatch.setattr(mcp, "Client", client)
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "models", "arguments": {}}}
    forged = {"X-Forwarded-Host": "elsewhere.example", "X-Forwarded-Proto": "https"}
    assert page.post("/gradio_api/mcp/", json=call, headers=JSON | forged).status_code == 200
    assert called == [OWN]


def test_the_hub_is_not_asked_what_calls_it(monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    monkeypatch.setattr(_detect_agent, "_registry", None)
    monkeypatch.setattr(_detect_agent, "_load_registry", lambda: asked.append(True) or {})
    build_hf_headers()
    assert not asked


@pytest.mark.parametrize("path", ["app.py", "requirements.txt", ".git/config", "README.md", "/etc/hostname",
                                  str(DEFAULT.relative_to(app.ASSETS.parent))])  # fmt: skip
def test_no_file_below_the_served_folder_is_given_out(path: str, page: TestClient):
    for asked in (path, app.ASSETS.parent / path, app.ASSETS / "examples" / ".." / ".." / path):
        assert page.get(f"/gradio_api/file={str(asked).replace('..', '%2E%2E')}").status_code == 403
    assert page.get(f"/gradio_api/file={app.ASSETS / 'examples' / 'dog.ogg'}").status_code == 200


def test_what_gradio_has_and_no_page_needs_is_closed(page: TestClient, uploads: Path):
    page.post("/gradio_api/call/models", json={"data": [], "session_hash": "mine"})
    assert page.get("/gradio_api/deep_link?session_hash=mine").status_code == 404
    assert page.post("/gradio_api/process_recording", files={"video": ("a.mp4", b"0")}).status_code == 404
    assert page.get("/monitoring/summary").status_code == 403
    assert files(uploads) == []
