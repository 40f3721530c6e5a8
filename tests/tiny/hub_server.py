"""
A server on the loopback interface that speaks the part of the Hub's HTTP protocol that publishing and loading use.

It keeps repositories in memory, with commits, branches and tags, stores large files by their hash, and records every
request. A test can make it refuse or stall a request.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN, READ_TOKEN = "hf_" + "w" * 34, "hf_" + "r" * 34  # one may write, one only read
PART_SIZE = 100_000  # larger files are uploaded in parts
REPOSITORY = r"(?P<repository>[\w.-]+/[\w.-]+)"


class Refusal(Exception):
    """An answer other than success: status, message and error code of the Hub."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        self.status, self.message = status, message
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


@dataclass
class Commit:
    """`files` has the content of each small file, and the hash of each large one as a `str`."""

    files: dict[str, bytes | str]
    message: str
    sha: str = ""

    def __post_init__(self):
        listed = sorted((path, str(content)) for path, content in self.files.items())
        self.sha = self.sha or hashlib.sha1(repr((listed, self.message)).encode()).hexdigest()


@dataclass
class Repository:
    private: bool = False
    commits: list[Commit] = field(default_factory=lambda: [Commit({".gitattributes": b""}, "initial commit")])
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.branches.setdefault("main", self.commits[0].sha)

    def find(self, revision: str) -> Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit.sha == sha:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, branch: str, files: dict[str, bytes | str], message: str) -> Commit:
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append(Commit(files, message, sha))
        self.branches[branch] = sha
        return self.commits[-1]


class HubServer(ThreadingHTTPServer):
    """
    Attributes:
        repositories (`dict[str, Repository]`):
            Repositories by name.
        objects (`dict[str, bytes]`):
            Large files by SHA-256.
        requests (`list[tuple[str, str]]`):
            Method and path of every request.
        received (`Counter[str]`):
            Bytes of large files that were received, by SHA-256.
        rule (`Callable[[str, str], None]`):
            Called before each request with its method and path; may raise a [`Refusal`] or wait.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.received: Counter[str] = Counter()
        self.rule: Callable[[str, str], None] = lambda method, path: None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that uses this server. Without Xet, whose storage is another service."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def contents(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """The content of each file at a revision."""
        files = self.repositories[repository].find(revision).files
        return {path: self.objects[file] if isinstance(file, str) else file for path, file in files.items()}

    def push(self, repository: str, files: dict[str, bytes | None], message: str = "by hand") -> None:
        """Adds a commit to the main branch; `None` removes a file."""
        found = self.repositories.setdefault(repository, Repository())
        merged = {**found.find("main").files, **files}
        found.add("main", {path: content for path, content in merged.items() if content is not None}, message)

    @contextmanager
    def stalling(self, method: str, pattern: str, after: int = 0) -> Iterator[threading.Event]:
        """
        Lets the first `after` matching requests pass, and never answers the others. Yields an event that is set when
        one waits; the others may still be on their way.
        """
        waits, ends, passed = threading.Event(), threading.Event(), []

        def rule(used: str, path: str) -> None:
            if used == method and re.search(pattern, path):
                with self.lock:
                    passed.append(path)
                    is_stalled = len(passed) > after
                if is_stalled:
                    waits.set()
                    ends.wait()
                    raise Refusal(500, "the client should be gone")

        self.rule = rule
        try:
            yield waits
        finally:
            self.rule = lambda method, path: None
            ends.set()


def _to_entry(path: str, content: bytes | str, server: HubServer) -> dict:
    if isinstance(content, str):
        size = len(server.objects[content])
        lfs = {"oid": content, "size": size, "pointerSize": 130}
        return {"type": "file", "path": path, "size": size, "oid": "0" * 40, "lfs": lfs}
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle_request(self) -> None:
        split = urlsplit(self.path)
        path = unquote(split.path)
        self.server.requests.append((self.command, path))
        self.query = {name: values[0] for name, values in parse_qs(split.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        try:
            self.server.rule(self.command, path)
            self.body = self.rfile.read(length)
            if len(self.body) < length:
                self.close_connection = True  # the client was killed
                return
            self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if self.token not in ("", TOKEN, READ_TOKEN):
                raise Refusal(401, "Invalid credentials in Authorization header")
            for method, pattern, answer in ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    with self.server.lock:
                        answer(self, **match.groupdict())
                    return
            raise Refusal(404, f"no such address: {path}")
        except Refusal as refusal:
            self.close_connection = True  # the body may not have been read
            self.send(
                json.dumps({"error": refusal.message}).encode(), refusal.status, Connection="close", **refusal.headers
            )
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_HEAD = handle_request  # noqa: N815

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, values, status: int = 200) -> None:
        self.send(json.dumps(values).encode(), status, **{"Content-Type": "application/json"})

    def find(self, repository: str) -> Repository:
        found = self.server.repositories.get(repository)
        if found is None or (found.private and not self.token):
            raise Refusal(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return found

    def check_may_write(self) -> None:
        if self.token != TOKEN:
            raise Refusal(403 if self.token else 401, "You don't have the rights to write")

    def create_repository(self) -> None:
        self.check_may_write()
        values = json.loads(self.body)
        name = f"{values.get('organization') or 'user'}/{values['name']}"
        if name in self.server.repositories:
            self.send_json({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        is_private = values.get("private") or values.get("visibility") == "private"
        self.server.repositories[name] = Repository(private=bool(is_private))
        self.send_json({"url": f"{self.server.url}/{name}"})

    def validate_card(self) -> None:
        self.send_json({"errors": [], "warnings": []})

    def describe(self, repository: str, revision: str | None = None) -> None:
        found = self.find(repository)
        commit = found.find(revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        values = {"id": repository, "modelId": repository, "private": found.private, "tags": [], "downloads": 0}
        self.send_json({**values, "sha": commit.sha, "siblings": siblings})

    def list_refs(self, repository: str) -> None:
        found = self.find(repository)

        def describe(kind: str, refs: dict[str, str]) -> list[dict]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]

        branches, tags = describe("heads", found.branches), describe("tags", found.tags)
        self.send_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def list_tree(self, repository: str, revision: str) -> None:
        files = self.find(repository).find(revision).files
        folders = sorted({path.rpartition("/")[0] for path in files if "/" in path})
        entries = [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in folders]
        self.send_json([*entries, *(_to_entry(path, content, self.server) for path, content in files.items())])

    def choose_modes(self, repository: str, revision: str) -> None:
        self.check_may_write()
        files = self.find(repository).find(revision).files
        ignored = files.get(".gitignore", b"").decode().splitlines()
        answers = []
        for file in json.loads(self.body)["files"]:
            entry = _to_entry(file["path"], files[file["path"]], self.server) if file["path"] in files else {}
            is_large = file["path"].endswith(".safetensors") or file["path"] == "tokenizer.json"
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large else "regular",
                    "shouldIgnore": file["path"] in ignored,
                    "oid": entry.get("lfs", entry).get("oid"),
                }
            )
        self.send_json({"files": answers})

    def start_transfers(self, repository: str) -> None:
        self.check_may_write()
        self.find(repository)
        answers = []
        for file in json.loads(self.body)["objects"]:
            answer = {"oid": file["oid"], "size": file["size"]}
            if file["oid"] not in self.server.objects:
                address = f"{self.server.url}/objects/{file['oid']}"
                upload: dict = {"href": address}
                if file["size"] > PART_SIZE:
                    numbers = range(1, -(-file["size"] // PART_SIZE) + 1)
                    parts = {str(number): f"{address}/{number}" for number in numbers}
                    upload["header"] = {"chunk_size": str(PART_SIZE), **parts}
                verify = {"href": f"{self.server.url}/verify/{file['oid']}"}
                answer["actions"] = {"upload": upload, "verify": verify}
            answers.append(answer)
        self.send_json({"transfer": "basic", "objects": answers})

    def store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content has another hash")
        self.server.objects[oid] = content

    def receive_object(self, oid: str) -> None:
        self.server.received[oid] += len(self.body)
        self.store(oid, self.body)
        self.send(b"")

    def receive_part(self, oid: str, number: str) -> None:
        self.server.received[oid] += len(self.body)
        self.server.parts[oid, int(number)] = self.body
        self.send(b"", ETag=hashlib.md5(self.body).hexdigest())

    def join_parts(self, oid: str) -> None:
        parts = json.loads(self.body)["parts"]
        self.store(oid, b"".join(self.server.parts[oid, part["partNumber"]] for part in parts))
        self.send(b"")

    def verify_object(self, oid: str) -> None:
        if len(self.server.objects.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refusal(404, "the object is incomplete")
        self.send(b"")

    def commit(self, repository: str, revision: str) -> None:
        self.check_may_write()
        found = self.find(repository)
        parent = found.find(revision)
        files, message = dict(parent.files), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", parent.sha) != parent.sha:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise Refusal(400, f"the content of {value['path']} is missing")
                files[value["path"]] = value["oid"]
            else:
                if key != "deletedFile" or value["path"] not in files:
                    raise Refusal(400, f"{key} {value.get('path')} is not possible")
                del files[value["path"]]
        request = {}
        if self.query.get("create_pr") == "1":
            number = 1 + sum(branch.startswith("refs/pr/") for branch in found.branches)
            revision = f"refs/pr/{number}"
            request = {"pullRequestUrl": f"{self.server.url}/{repository}/discussions/{number}"}
        commit = found.add(revision, files, message)
        address = f"{self.server.url}/{repository}/commit/{commit.sha}"
        self.send_json({"success": True, "commitOid": commit.sha, "commitUrl": address, **request})

    def add_tag(self, repository: str, revision: str) -> None:
        self.check_may_write()
        found = self.find(repository)
        name = json.loads(self.body)["tag"]
        if name in found.tags:
            raise Refusal(409, f"Tag {name} already exists")
        found.tags[name] = found.find(revision).sha
        self.send_json({})

    def add_branch(self, repository: str, branch: str) -> None:
        self.check_may_write()
        found = self.find(repository)
        if branch in found.branches:
            raise Refusal(409, f"Branch {branch} already exists")
        found.branches[branch] = found.find(json.loads(self.body or b"{}").get("startingPoint", "main")).sha
        self.send_json({})

    def download(self, repository: str, revision: str, path: str) -> None:
        commit = self.find(repository).find(revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.sha})
        entry = _to_entry(path, commit.files[path], self.server)
        etag = entry.get("lfs", entry)["oid"]
        content = self.server.contents(repository, commit.sha)[path]
        self.send(content, ETag=f'"{etag}"', **{"X-Repo-Commit": commit.sha})


MODEL = f"/api/models/{REPOSITORY}"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create_repository),
    ("POST", "/api/validate-yaml", Handler.validate_card),
    ("GET", MODEL, Handler.describe),
    ("GET", MODEL + "/revision/(?P<revision>[^/]+)", Handler.describe),
    ("GET", MODEL + "/refs", Handler.list_refs),
    ("GET", MODEL + "/tree/(?P<revision>[^/]+)", Handler.list_tree),
    ("POST", MODEL + "/preupload/(?P<revision>[^/]+)", Handler.choose_modes),
    ("POST", f"/{REPOSITORY}.git/info/lfs/objects/batch", Handler.start_transfers),
    ("PUT", "/objects/(?P<oid>[0-9a-f]{64})", Handler.receive_object),
    ("PUT", r"/objects/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)", Handler.receive_part),
    ("POST", "/objects/(?P<oid>[0-9a-f]{64})", Handler.join_parts),
    ("POST", "/verify/(?P<oid>[0-9a-f]{64})", Handler.verify_object),
    ("POST", MODEL + "/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", MODEL + "/tag/(?P<revision>[^/]+)", Handler.add_tag),
    ("POST", MODEL + "/branch/(?P<branch>[^/]+)", Handler.add_branch),
    ("HEAD", f"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.download),
    ("GET", f"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.download),
]


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Runs an empty server."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
