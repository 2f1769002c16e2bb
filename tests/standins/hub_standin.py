"""A stand-in for the Hugging Face Hub on loopback: models and Spaces, commits, small and LFS files, downloads.

    with hub_standin(tmp_path, token="hf_test") as hub:   # the client is told with HF_ENDPOINT=hub.url

The token may write to what belongs to `tester`; a Space is kept as `spaces/OWNER/NAME`. The client runs with
HF_HUB_DISABLE_XET and HF_HUB_DISABLE_TELEMETRY.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from tests.standins.loopback import address, event_loop, listening

OWNER = "tester"


@dataclass(frozen=True)
class Commit:
    sha: str
    files: dict[str, bytes]
    message: str = ""


@dataclass
class Hub:
    blobs: Path  # a folder for LFS uploads
    token: str
    url: str = ""
    repos: dict[str, list[Commit]] = field(default_factory=dict)  # by OWNER/NAME, oldest first
    sdks: dict[str, str] = field(default_factory=dict)  # of Spaces
    private: set[str] = field(default_factory=set)

    def add(self, repo: str, files: dict[str, bytes], message: str = "") -> str:
        """A commit that leaves the repository with these files; its hash."""
        commits = self.repos.setdefault(repo, [])
        told = json.dumps([len(commits), *((k, hashlib.sha256(v).hexdigest()) for k, v in sorted(files.items()))])
        commits.append(Commit(hashlib.sha1(told.encode()).hexdigest(), files, message))
        return commits[-1].sha

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._guard])
        repo = "/api/{kind:models|spaces}/{owner}/{name}"
        app.router.add_post("/api/repos/create", self._create)
        app.router.add_post("/api/validate-yaml", self._validate)
        app.router.add_get(repo, self._info)
        app.router.add_get(repo + "/revision/{revision}", self._info)
        app.router.add_post(repo + "/preupload/{revision}", self._preupload)
        app.router.add_post(repo + "/commit/{revision}", self._commit)
        for kind in ("", "/{kind:spaces}"):
            app.router.add_post(kind + "/{owner}/{name}.git/info/lfs/objects/batch", self._batch)
        app.router.add_put("/lfs/{oid}", self._lfs_put)
        app.router.add_post("/lfs/{oid}/verify", self._nothing)
        app.router.add_get("/{owner}/{name}/resolve/{revision}/{path:.+}", self._resolve)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        authorised = request.headers.get("Authorization") == f"Bearer {self.token}"
        if request.path.startswith("/api/") and request.method == "POST" and not authorised:
            return refusal(401, "", "Invalid credentials in Authorization header")
        if (owner := request.match_info.get("owner")) and request.method == "POST" and owner != OWNER:
            return refusal(403, "", "Forbidden: you don't have write access to this repository")
        return await handler(request)

    def _at(self, request: web.Request) -> Commit | web.Response:
        """The commit that is asked for, or the Hub's refusal."""
        commits = self.repos.get(name_of(request))
        if commits is None:
            return refusal(404, "RepoNotFound", "Repository not found")
        revision = request.match_info.get("revision", "main")
        found = commits[-1:] if revision == "main" else [c for c in commits if c.sha == revision]
        return found[0] if found else refusal(404, "RevisionNotFound", "Invalid rev id")

    async def _nothing(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        owner, kind = asked.get("organization") or OWNER, "spaces/" if asked.get("type") == "space" else ""
        repo = f"{kind}{owner}/{asked['name']}"
        if repo in self.repos:
            told = {"error": "You already created this repo", "url": f"{self.url}/{repo}"}
            return web.json_response(told, status=409)
        if owner != OWNER:
            return refusal(403, "", "You don't have the rights to create a model under this namespace")
        if asked.get("visibility") == "private" or asked.get("private"):
            self.private.add(repo)
        if kind:
            self.sdks[repo] = asked["sdk"]
        self.add(repo, {".gitattributes": b"*.pth filter=lfs diff=lfs merge=lfs -text\n"})
        told = {"url": f"{self.url}/{repo}", "name": f"{owner}/{asked['name']}"}
        return web.json_response(told | {"id": told["name"]})

    async def _validate(self, request: web.Request) -> web.Response:
        """The Hub's check of a README's front matter, as far as it concerns models and Spaces."""
        asked = await request.json()
        needed = ["\nlicense: ", *(["\nsdk: ", "\ncolorFrom: "] if asked.get("repoType") == "space" else [])]
        fine = asked["content"].lstrip("\ufeff").startswith("---\n") and all(x in asked["content"] for x in needed)
        errors = [] if fine else [{"message": "empty or missing yaml metadata in repo card"}]
        return web.json_response({"errors": errors, "warnings": []}, status=400 if errors else 200)

    async def _info(self, request: web.Request) -> web.Response:
        commit = self._at(request)
        if isinstance(commit, web.Response):
            return commit
        repo = name_of(request)
        files = [{"rfilename": name} for name in sorted(commit.files)]
        told = {"_id": "1", "id": repo.removeprefix("spaces/"), "modelId": repo, "sha": commit.sha}
        told |= {"private": repo in self.private}
        told |= {"disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": files}
        return web.json_response(told)

    async def _preupload(self, request: web.Request) -> web.Response:
        commit = self._at(request)
        if isinstance(commit, web.Response):
            return commit
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".pth") else "regular", "shouldIgnore": False,
             "oid": None}
            for f in (await request.json())["files"]
        ]  # fmt: skip
        return web.json_response({"files": files})

    async def _batch(self, request: web.Request) -> web.Response:
        objects = []
        for asked in (await request.json())["objects"]:
            told = {"oid": asked["oid"], "size": asked["size"], "authenticated": True}
            if not (self.blobs / asked["oid"]).exists():
                place = f"{self.url}/lfs/{asked['oid']}"
                told["actions"] = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
            objects.append(told)
        kind = "application/vnd.git-lfs+json"
        return web.json_response({"transfer": "basic", "objects": objects}, content_type=kind)

    async def _lfs_put(self, request: web.Request) -> web.Response:
        content, oid = await request.read(), request.match_info["oid"]
        if hashlib.sha256(content).hexdigest() != oid:
            return web.Response(status=400, text="sha256 does not match")
        (self.blobs / oid).write_bytes(content)
        return web.Response()

    async def _commit(self, request: web.Request) -> web.Response:
        head = self._at(request)
        if isinstance(head, web.Response):
            return head
        files, header = dict(head.files), {}
        for line in (await request.read()).splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = (self.blobs / value["oid"]).read_bytes()
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        if header.get("parentCommit") not in (None, head.sha):
            return refusal(412, "", "A commit has happened since. Please refresh and try again.")
        repo = name_of(request)
        sha = self.add(repo, files, header["summary"])
        return web.json_response({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo}/commit/{sha}"})

    async def _resolve(self, request: web.Request) -> web.Response:
        commit = self._at(request)
        if isinstance(commit, web.Response):
            return commit
        content = commit.files.get(request.match_info["path"])
        if content is None:
            return refusal(404, "EntryNotFound", "Entry not found", commit.sha)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return web.Response(body=content, headers=headers)  # aiohttp leaves the body out of the answer to HEAD


def name_of(request: web.Request) -> str:
    """What the repository is called in `Hub.repos`."""
    kind = "spaces/" if request.match_info.get("kind") == "spaces" else ""
    return kind + "{owner}/{name}".format(**request.match_info)


def refusal(status: int, code: str, message: str, sha: str = "") -> web.Response:
    headers = {"X-Error-Code": code, "X-Error-Message": message} | ({"X-Repo-Commit": sha} if sha else {})
    return web.json_response({"error": message}, status=status, headers=headers)


@contextmanager
def hub_standin(blobs: Path, token: str) -> Iterator[Hub]:
    """A Hub that answers at `url` until the end of the block."""
    with event_loop() as run:
        listener = listening()
        hub = Hub(blobs, token, address(listener))
        runner = web.AppRunner(hub.application(), access_log=None)
        run(runner.setup())
        run(web.SockSite(runner, listener).start())
        try:
            yield hub
        finally:
            run(runner.cleanup())
