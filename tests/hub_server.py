"""A small Hugging Face Hub on loopback, for the real client, with faults on demand.

It speaks what the client needs for models: files at a revision with their ETag and commit, large
files by a redirect to another origin (`localhost` instead of `127.0.0.1`, as a CDN would be),
ranges, repositories, uploads by the commit API with LFS's basic transfer. `requests` has all that
was asked, `faults` what is to go wrong.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")  # as the Hub's own .gitattributes has it


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    """Branches and commits; a commit maps paths to contents."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        tree = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        names = json.dumps([len(self.commits), {k: sha256(v) for k, v in sorted(tree.items())}])
        oid = hashlib.sha1(names.encode()).hexdigest()
        self.commits[oid] = tree
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match."""

    method: str
    path: str
    times: int = 1
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # close the connection after so many bytes of the body
    shorter: int = 0  # send that much less, as if the file were no longer
    damage: bool = False  # another last byte
    drop: bool = False  # close the connection without an answer


@dataclass
class Request:
    """What was asked; names of headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]


class Hub:
    """State of the server; `token` opens private and gated repositories and allows uploads."""

    token = "hf_the-one-that-works"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.port}/cdn"

    def add(self, repo_id: str, files: dict[str, bytes], **kind: bool) -> str:
        repository = self.repositories.setdefault(repo_id, Repository(**kind))
        return repository.commit(files)

    def seen(self, method: str, path: str = "") -> list[Request]:
        """Requests of this method whose path matches a regular expression."""
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]


@contextmanager
def serving() -> Iterator[Hub]:
    """A running Hub, which ends with the context."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.handle_one()

    do_GET = do_POST = do_PUT = do_HEAD

    def handle_one(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.sent = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.sent = b"".join(self.chunks())
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, path, headers))
        self.fault = self.next_fault(path)
        if self.fault and self.fault.drop:
            self.close_connection = True
            return
        if self.fault and self.fault.status != 200:
            self.answer(self.fault.status, b"")
            return
        for pattern, handler in _ROUTES:
            method, _, route = pattern.partition(" ")
            match = re.fullmatch(route, path)
            if match and self.command in method.split("|"):
                handler(self, *match.groups())
                return
        self.error(404, "", "no such address")

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def next_fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    # What is sent

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        fault = self.fault
        cut = None
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        if fault is not None:
            headers.update(fault.headers)
            cut = fault.cut
            if fault.damage and body:
                body = body[:-1] + bytes([body[-1] ^ 1])
            if fault.shorter and self.command == "GET":
                body = body[: -fault.shorter]
                headers["Content-Length"] = str(len(body))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    def json(self, content: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str, message: str, **headers: str) -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message, **headers})

    # Who may

    def knows_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def may_write(self) -> bool:
        if not self.knows_token():
            self.error(401, "", "Invalid credentials in Authorization header")
        return self.knows_token()

    def repository(self, repo_id: str) -> Repository | None:
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and not self.knows_token()):
            status = 404 if self.knows_token() else 401
            self.error(status, "RepoNotFound", "Repository not found")
        elif found.gated and not self.knows_token():
            self.error(401, "GatedRepo", "Access to this repository is restricted")
        else:
            return found
        return None

    # Files

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self.repository(repo_id)
        if repository is None:
            return
        commit = repository.resolve(revision)
        if commit is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        tree = repository.commits[commit]
        about = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path not in tree:
            self.error(404, "EntryNotFound", "Entry not found", **about)
        elif path.endswith(LARGE):
            name = sha256(tree[path])
            self.hub.large[name] = tree[path]
            about["X-Linked-Etag"] = f'"{name}"'
            about["X-Linked-Size"] = str(len(tree[path]))
            about["Location"] = f"{self.hub.cdn}/{name}?file={path}"
            self.answer(302, b"", about)
        else:
            self.content(tree[path], {**about, "ETag": f'"{git_oid(tree[path])}"'})

    def deliver(self, name: str) -> None:
        if name not in self.hub.large:
            self.error(404, "", "no such object")
            return
        disposition = f"inline; filename*=UTF-8''{name}; filename=\"{name}\";"
        about = {"ETag": f'"{name[:32]}"', "Content-Disposition": disposition}
        self.content(self.hub.large[name], about)

    def content(self, body: bytes, about: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted is None:
            self.answer(200, body, about)
            return
        start = int(wanted[1])
        about["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.answer(206, body[start:], about)

    # Uploads

    def create(self) -> None:
        if not self.may_write():
            return
        asked = json.loads(self.sent)
        repo_id = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            self.json({"error": "You already created this model repo", "url": url}, status=409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self.json({"url": url, "name": repo_id})

    def validate_yaml(self) -> None:
        self.json({"errors": [], "warnings": []})

    def info(self, repo_id: str, revision: str | None) -> None:
        repository = self.repository(repo_id)
        if repository is None:
            return
        commit = repository.resolve(revision or "main")
        files = [{"rfilename": path} for path in repository.commits[commit or ""]]
        private = repository.private
        self.json({"id": repo_id, "sha": commit, "private": private, "siblings": files, "tags": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id)
        if repository is None or not self.may_write():
            return
        if revision not in repository.branches:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        tree = repository.commits[repository.branches[revision]]
        files = []
        for file in json.loads(self.sent)["files"]:
            path = file["path"]
            large = path.endswith(LARGE)
            oid = (sha256 if large else git_oid)(tree[path]) if path in tree else None
            mode = "lfs" if large else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": files})

    def batch(self, repo_id: str) -> None:
        if self.repository(repo_id) is None or not self.may_write():
            return
        objects = []
        for asked in json.loads(self.sent)["objects"]:
            one = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large:
                upload = f"{self.hub.endpoint}/lfs/{asked['oid']}"
                one["actions"] = {
                    "upload": {"href": upload},
                    "verify": {"href": f"{upload}/verify"},
                }
            objects.append(one)
        self.json({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if sha256(self.sent) != oid:
            self.error(400, "", "the content has another hash")
            return
        self.hub.large[oid] = self.sent
        self.answer(200, b"")

    def verify(self, oid: str) -> None:
        found = self.hub.large.get(oid)
        size = json.loads(self.sent)["size"]
        self.answer(200 if found is not None and len(found) == size else 404, b"")

    def commit(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id)
        if repository is None or not self.may_write():
            return
        files = {}
        for line in map(json.loads, self.sent.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        oid = repository.commit(files, revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{oid}"
        self.json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


_REPO = "([^/]+/[^/]+)"
_ROUTES = [
    (rf"GET|HEAD /{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET|HEAD /cdn/([0-9a-f]+)", _Handler.deliver),
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"POST /api/models/{_REPO}/preupload/(.+)", _Handler.preupload),
    (rf"POST /api/models/{_REPO}/commit/(.+)", _Handler.commit),
    (rf"GET /api/models/{_REPO}(?:/revision/(.+))?", _Handler.info),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT /lfs/([0-9a-f]+)", _Handler.put),
    ("POST /lfs/([0-9a-f]+)/verify", _Handler.verify),
]
