"""A Hub on the loopback: as much of its HTTP interface as the client (huggingface_hub 2.4) asks for when it creates a
repository, commits to it with LFS, and loads from it. It checks tokens, and can break off and lie."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_" + "a" * 34
OWNER = "user"
PART = 1 << 20  # of a multipart upload


@dataclass
class Repository:
    """Branches and commits: each the files of that state, by path; large ones by their LFS oid."""

    private: bool = False
    commits: dict[str, dict[str, bytes | str]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes | str]) -> str:
        sha = hashlib.sha1(repr((branch, len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> str | None:
        """The commit that a branch, or a commit, is."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """The server and what it holds.

    Attributes:
        url: its endpoint.
        repositories: by owner/name.
        objects: LFS objects by oid.
        log: (method, path) of each request.
        uploads: oid and bytes of each LFS object, or part of one, that arrived whole.
        cut_all_but: oid of the one LFS object whose upload comes through; all others break off in their middle.
        tampered: paths whose content is sent with its last byte changed.
        wants_parts: ask for LFS objects in parts.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.log: list[tuple[str, str]] = []
        self.uploads: list[tuple[str, int]] = []
        self.cut_all_but: str | None = None
        self.tampered: set[str] = set()
        self.wants_parts = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Any) -> dict[str, str]:
        """For another process that shall use this Hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repository = self.repositories[name]
        stored = repository.commits[repository.branches[revision]]
        return {
            path: content if isinstance(content, bytes) else self.objects[content] for path, content in stored.items()
        }

    def fetched(self, name: str) -> set[str]:
        """Paths of a repository whose content was asked for."""
        start = f"/{name}/resolve/"
        return {path[len(start) :].partition("/")[2] for method, path in self.log if method == "GET" and start in path}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET

    # Answers

    def _send(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if not any(name.lower() == "content_length" for name in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, message: str, code: str = "") -> None:
        self._send(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def _break_off(self) -> None:
        """As when the line is cut."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes | None:
        """What was sent; None if the connection is broken off before its end."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and self.hub.cut_all_but is not None:
            url = urlsplit(self.path)
            if not url.path.endswith(self.hub.cut_all_but) and url.query != "part=1":
                self.rfile.read(length // 2)
                return None
        return self.rfile.read(length)

    # Requests

    def _route(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.log.append((self.command, path))
        body = self._body()
        if body is None:
            return self._break_off()
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            return self._error(401, "Invalid credentials in Authorization header")
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            return self._lfs_object(parts[1:], query, body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs_batch(json.loads(body))
        if parts[0] == "api":
            return self._api(parts[1:], body, given is not None)
        return self._resolve(path, given is not None)

    def _api(self, parts: list[str], body: bytes, known: bool) -> None:
        if parts == ["validate-yaml"]:
            return self._validate(json.loads(body)["content"])
        if parts == ["repos", "create"]:
            return self._create(json.loads(body), known)
        if parts[0] != "models" or len(parts) < 3:
            return self._error(404, "no such endpoint")
        name, rest = "/".join(parts[1:3]), parts[3:]
        repository = self._repository(name, known)
        if repository is None:
            return None
        if not rest or rest[0] == "revision":
            sha = repository.at(rest[1] if rest else "main")
            if sha is None:
                return self._error(404, "Invalid rev id", "RevisionNotFound")
            files = [{"rfilename": path} for path in repository.commits[sha]]
            return self._send(200, {"id": name, "sha": sha, "private": repository.private, "siblings": files})
        if rest[0] == "tree":
            found = repository.commits[repository.at(rest[1]) or ""]
            inside = "/".join([*rest[2:], ""]) if rest[2:] else ""
            listed = [path for path in found if path.startswith(inside)]
            if inside and not listed:
                return self._error(404, "no such folder", "EntryNotFound")
            return self._send(200, [{"type": "file", "path": path, "size": 1, "oid": "0"} for path in listed])
        if not known:
            return self._error(401, "write access is for those who log in")
        if rest[0] == "branch":
            if rest[1] in repository.branches:
                return self._error(409, "Reference already exists")
            sha = repository.commit(rest[1], dict(repository.commits[repository.branches["main"]]))
            return self._send(200, {"ref": rest[1], "oid": sha})
        if rest[0] == "preupload":
            return self._preupload(repository, rest[1], json.loads(body))
        if rest[0] == "commit":
            return self._commit(repository, name, rest[1], body)
        return self._error(404, "no such endpoint")

    def _repository(self, name: str, known: bool) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not known):
            self._error(401 if not known else 404, "Repository not found", "RepoNotFound")
            return None
        return repository

    def _create(self, asked: dict[str, Any], known: bool) -> None:
        owner = asked.get("organization") or OWNER
        name = f"{owner}/{asked['name']}"
        if not known:
            return self._error(401, "Invalid username or password.")
        if owner != OWNER:
            return self._error(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": "1"}
        if name in self.hub.repositories:
            return self._send(409, answer | {"error": "You already created this model repo"})
        made = self.hub.repositories[name] = Repository(
            asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        made.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._send(200, answer)

    def _validate(self, text: str) -> None:
        """What the Hub looks at in a card, in part: that it is YAML, and that the licence is one."""
        errors = []
        try:
            data = yaml.safe_load(text.split("---\n")[1])
            licences = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "other")
            if data.get("license") not in (None, *licences):
                errors.append({"message": f'"license" must be one of {licences}'})
        except (yaml.YAMLError, IndexError) as error:
            errors.append({"message": f"no front matter: {error}"})
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    # Commits

    def _preupload(self, repository: Repository, branch: str, asked: dict[str, Any]) -> None:
        there = repository.commits[repository.branches[branch]]
        answers = []
        for file in asked["files"]:
            large = file["path"].endswith((".safetensors", ".onnx", ".hef")) or file["size"] > 10_000_000
            known = there.get(file["path"])
            oid = known if isinstance(known, str) else None if known is None else _blob_oid(known)
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": answers})

    def _lfs_batch(self, asked: dict[str, Any]) -> None:
        answers = []
        for one in asked["objects"]:
            answer: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": self._where_to(one), "verify": {"href": f"{self.hub.url}/lfs/verify"}}
            answers.append(answer)
        self._send(200, {"transfer": "basic", "objects": answers})

    def _where_to(self, one: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.hub.url}/lfs/{one['oid']}"
        if not self.hub.wants_parts:
            return {"href": url}
        count = -(-one["size"] // PART)
        header = {"chunk_size": str(PART)} | {str(part): f"{url}?part={part}" for part in range(1, count + 1)}
        return {"href": f"{url}/complete", "header": header}

    def _lfs_object(self, parts: list[str], query: dict[str, list[str]], body: bytes) -> None:
        if parts == ["verify"]:
            asked = json.loads(body)
            found = self.hub.objects.get(asked["oid"], b"")
            return self._send(200) if len(found) == asked["size"] else self._error(404, "not uploaded")
        oid = parts[0]
        if parts[1:] == ["complete"]:
            body = b"".join(content for _, content in sorted(self.hub.parts.pop(oid).items()))
        elif "part" in query:
            self.hub.parts.setdefault(oid, {})[int(query["part"][0])] = body
            self.hub.uploads.append((oid, len(body)))
            return self._send(200, ETag=hashlib.md5(body).hexdigest())
        else:
            self.hub.uploads.append((oid, len(body)))
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "the content is not what its hash says")
        self.hub.objects[oid] = body
        return self._send(200)

    def _commit(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
        if branch not in repository.branches:
            return self._error(404, "Invalid rev id", "RevisionNotFound")
        files = dict(repository.commits[repository.branches[branch]])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._error(400, "an LFS object was not uploaded")
                files[value["path"]] = value["oid"]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(branch, files)
        return self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    # Loads

    def _resolve(self, path: str, known: bool) -> None:
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        repository = self._repository(name, known)
        if repository is None:
            return None
        sha = repository.at(revision)
        if sha is None:
            return self._error(404, "Invalid rev id", "RevisionNotFound")
        stored = repository.commits[sha].get(file)
        if stored is None:
            return self._send(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=sha)
        etag = stored if isinstance(stored, str) else _blob_oid(stored)
        content = self.hub.objects[stored] if isinstance(stored, str) else stored
        if file in self.hub.tampered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        return self._send(200, content, Content_Length=str(len(content)), **headers)


def _blob_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Hub]:
    """A Hub of its own that this process uses, logged in, with an empty cache."""
    with serving(monkeypatch, tmp_path / "hf") as found:
        yield found


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, home: Any) -> Iterator[Hub]:
    """What the fixture does. The client reads its settings from its own constants, which are set from the environment
    when it is imported, long before a test runs."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    found = Hub()
    for name, value in found.environment(home).items():
        monkeypatch.setenv(name, value)
    use(monkeypatch, found, home)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers_hub, "_hf_api", None)
    try:
        yield found
    finally:
        found.close()


def use(monkeypatch: pytest.MonkeyPatch, found: Hub, home: Any) -> None:
    """Endpoint and cache of this process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", os.path.join(home, "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.path.join(home, "token"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not wait before it tries again."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "time", SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None}))
