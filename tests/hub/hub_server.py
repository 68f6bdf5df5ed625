"""A small Hub on this machine, for the unmodified huggingface_hub client.

It speaks what the client says when it makes a repository, uploads and downloads: create, validate-yaml, preupload, the
LFS batch with its uploads, commit, branches and tags, revision, tree, and resolve with ranges. Repositories live in
memory. `faults` make it fail as the real one may: a status code, a cut connection, other bytes than were stored.

    with HubServer() as hub:
        subprocess.run(..., env=os.environ | hub.environment(home, token="hf_alice_may_write"))

    python -m tests.hub.hub_server HOME     # prints those variables as JSON, and serves until its stdin ends

Source: the requests of huggingface_hub 0.36 and 2.4, and https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import yaml  # type: ignore[import-untyped]
from huggingface_hub.repocard import REGEX_YAML_BLOCK

TOKENS = {"hf_alice_may_write": "alice", "hf_bob_is_another": "bob"}
"""The users, and who may do what: alice writes below alice/, bob below bob/; a token that is not here is wrong."""
LARGE = (".safetensors", ".bin", ".pt", ".npy", ".parquet")
"""Files that go through LFS, as .gitattributes of a new model repository has it."""
# The ones that the Hub lists for models and that the tests or users of this project may give.
LICENCES = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"}) | {
    *("cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0", "mpl-2.0", "odbl", "odc-by", "openrail", "unknown", "other")
}
PIPELINES = frozenset({"feature-extraction", "other", "tabular-classification", "time-series-forecasting"})
DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Blob:
    """The content of a file."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        """Name in LFS."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Name in git: for a large file that of its pointer."""
        content = self.content
        if self.large:
            pointer = (
                "version https://git-lfs.github.com/spec/v1",
                f"oid sha256:{self.sha256}",
                f"size {len(content)}",
            )
            content = "".join(f"{line}\n" for line in pointer).encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        """What the client names it by in its cache."""
        return self.sha256 if self.large else self.oid


@dataclass
class Repository:
    """A model on the Hub."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    """Files of each commit, by its hash."""
    refs: dict[str, str] = field(default_factory=dict)
    """Commit of each branch and tag."""

    def commit(self, ref: str, files: dict[str, Blob]) -> str:
        """Add a commit and move a branch to it; return its hash."""
        names = sorted((name, blob.etag) for name, blob in files.items())
        digest = hashlib.sha1(json.dumps([names, len(self.commits)]).encode()).hexdigest()
        self.commits[digest], self.refs[ref] = files, digest
        return digest

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch, tag or hash."""
        found = self.refs.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class Fault:
    """Something that goes wrong in the next requests that it fits."""

    method: str
    path: str
    """Regular expression that is found in the path."""
    times: int = 1
    status: int | None = None
    """Answer with this status."""
    cut_after: int | None = None
    """Send this many bytes of the body, and cut the connection."""
    change: Callable[[bytes], bytes] | None = None
    """Send another body of the same length."""


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def check_card(content: str) -> list[str]:
    """Return what the Hub would refuse in a card's metadata."""
    found = REGEX_YAML_BLOCK.search(content)
    if not found:
        return []  # the Hub warns of empty metadata and takes it
    try:
        data = yaml.safe_load(found[2])
    except yaml.YAMLError as error:
        return [f"the metadata is not YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata must be an object"]
    errors = []
    licences = data.get("license")
    for licence in licences if isinstance(licences, list) else [licences]:
        if licence is not None and licence not in LICENCES:
            errors.append(f'"license" must be one of the Hub\'s, got {licence!r}')
    if data.get("license") == "other" and not data.get("license_name"):
        errors.append('"license_name" is needed with "license: other"')
    for name in ("tags", "metrics", "datasets"):
        values = data.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            errors.append(f'"{name}" must be a list of words, got {values!r}')
    unnamed = [name for name in data.get("datasets", []) if not DATASET.fullmatch(str(name))]
    errors += [f'"datasets": {name!r} is no name' for name in unnamed]
    if data.get("pipeline_tag", "other") not in PIPELINES:
        errors.append(f'"pipeline_tag" is not known: {data["pipeline_tag"]!r}')
    return errors + _check_index(data.get("model-index", []))


def _check_index(index: Any) -> list[str]:
    """Return what is wrong with `model-index`; see https://github.com/huggingface/hub-docs, modelcard.md."""
    if not isinstance(index, list):
        return ['"model-index" must be a list']
    errors = []
    for place, model in enumerate(index):
        where = f"model-index[{place}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model.get("results"):
            errors.append(f'"{where}" needs "name" and "results"')
            continue
        for number, result in enumerate(model["results"]):
            at = f"{where}.results[{number}]"
            for entry, wanted in (("task", ("type",)), ("dataset", ("type", "name"))):
                value = result.get(entry)
                if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in wanted):
                    errors.append(f'"{at}.{entry}" needs {" and ".join(wanted)}')
            metrics = result.get("metrics")
            if not metrics or not all(isinstance(one.get("type"), str) and "value" in one for one in metrics):
                errors.append(f'"{at}.metrics" needs type and value')
    return errors


class HubServer:
    """The server; a context that starts and stops it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        """LFS objects by their SHA-256."""
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []
        """Method, path and status of each answered request."""
        self.ranges: list[str] = []
        """`Range` headers that were sent."""
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]  # the handler's way to us
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Return what a client's environment must hold: this Hub, a cache of its own, and at most one token."""
        entries = {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # plain LFS, which is what is spoken here
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return entries | ({"HF_TOKEN": token} if token else {})

    def fault(self, fault: Fault) -> None:
        """Let something go wrong."""
        with self.lock:
            self.faults.append(fault)

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the fault that fits a request, once for each of its times."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    ROUTES: tuple[tuple[str, str, str], ...] = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/repos/create", "create"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "upload"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<kind>branch|tag)/(?P<revision>[^/]+)", "make_ref"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?", "information"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "resolve"),
        ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "resolve"),
    )

    def log_message(self, format: str, *words: Any) -> None:
        """Keep quiet: `requests` has them."""

    @property
    def hub(self) -> HubServer:
        """The server."""
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        return hub

    def _handle(self) -> None:
        """Find the route, and answer."""
        self.body = self._read()
        path = urlsplit(self.path).path
        self.broken = self.hub.take_fault(self.command, path)
        with self.hub.lock:
            try:
                if self.broken and self.broken.status:
                    raise Refusal(self.broken.status, "", f"the Hub says {self.broken.status}")
                for method, pattern, name in self.ROUTES:
                    found = re.fullmatch(pattern, path)
                    if found and method == self.command:
                        answers = {key: unquote(value) for key, value in found.groupdict().items() if value}
                        getattr(self, name)(**answers)
                        return
                raise Refusal(404, "NotFound", f"{self.command} {path} is not spoken here")
            except Refusal as refusal:
                headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                self._send({"error": refusal.message}, refusal.status, {k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _read(self) -> bytes:
        """Return the body, which large uploads send in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(
        self, content: dict[str, Any] | list[Any] | bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """Answer with JSON or bytes."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.hub.requests.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.broken and self.broken.change:
            body = self.broken.change(body)
        if self.broken and self.broken.cut_after is not None:
            self.wfile.write(body[: self.broken.cut_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)

    def _user(self) -> str | None:
        """Return who asks; None for anybody."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def _may_write(self, owner: str) -> str:
        """Return the user, who must be the owner."""
        user = self._user()
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        if user != owner:
            raise Refusal(403, "", f"You don't have the rights to create or write below the namespace {owner!r}")
        return user

    def _repository(self, name: str, *, write: bool = False) -> Repository:
        """Return a repository; a private one does not exist for others."""
        found = self.hub.repositories.get(name)
        owner = name.split("/")[0]
        if not found or (found.private and self._user() != owner):
            raise Refusal(401 if self._user() is None else 404, "RepoNotFound", "Repository not found")
        if write:
            self._may_write(owner)
        return found

    def _files(self, repository: Repository, revision: str) -> tuple[str, dict[str, Blob]]:
        """Return a commit and its files."""
        commit = repository.find(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    def whoami(self) -> None:
        """Say who asks."""
        user = self._user()
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        self._send({"type": "user", "name": user, "orgs": []})

    def validate_card(self) -> None:
        """Check the metadata of a card."""
        errors = check_card(json.loads(self.body)["content"])
        answer = {"errors": [{"message": message} for message in errors], "warnings": []}
        self._send(answer, 400 if errors else 200)

    def create(self) -> None:
        """Make a repository."""
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or self._user() or ""
        self._may_write(owner)
        name = f"{owner}/{wanted['name'].split('/')[-1]}"
        url = f"{self.hub.address}/{name}"
        if name in self.hub.repositories:
            self._send({"error": "You already created this model repo", "url": url}, 409)
            return
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        repository = self.hub.repositories[name] = Repository(private)
        attributes = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE)
        repository.commit("main", {".gitattributes": Blob(attributes.encode(), large=False)})
        self._send({"url": url, "name": name, "id": name})

    def preupload(self, repo: str, revision: str) -> None:
        """Say which files go through LFS."""
        self._files(self._repository(repo, write=True), revision)
        answer = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) or file["size"] > 10 << 20 else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send({"files": answer})

    def batch(self, repo: str) -> None:
        """Say where large files are to be sent; those that are there already are not asked for."""
        self._repository(repo, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.address}/lfs/{wanted['oid']}"}}
            missing = wanted["oid"] not in self.hub.uploads
            objects.append({"oid": wanted["oid"], "size": wanted["size"]} | ({"actions": upload} if missing else {}))
        self._send({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        """Take a large file."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "", "the SHA-256 is another")
        self.hub.uploads[oid] = self.body
        self._send({})

    def commit(self, repo: str, revision: str) -> None:
        """Add a commit to a branch."""
        repository = self._repository(repo, write=True)
        head, files = self._files(repository, revision)
        files = dict(files)
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                if value.get("parentCommit", head) != head:
                    raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            elif entry["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), large=False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.uploads:
                    raise Refusal(400, "", "LFS object was never uploaded")
                files[value["path"]] = Blob(self.hub.uploads[value["oid"]], large=True)
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
            else:
                raise Refusal(400, "", f"{entry['key']} is not spoken here")
        commit = repository.commit(revision, files)
        self._send({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.address}/{repo}/commit/{commit}"})

    def make_ref(self, repo: str, kind: str, revision: str) -> None:
        """Make a branch, or a tag of `revision`."""
        repository = self._repository(repo, write=True)
        wanted = json.loads(self.body or b"{}")
        name, start = (revision, "main") if kind == "branch" else (wanted["tag"], revision)
        if name in repository.refs:
            raise Refusal(409, "", f"Reference already exists: {name}")
        repository.refs[name], _ = self._files(repository, wanted.get("startingPoint") or start)
        self._send({})

    def information(self, repo: str, revision: str = "main") -> None:
        """Tell about a revision."""
        repository = self._repository(repo)
        commit, files = self._files(repository, revision)
        siblings = [{"rfilename": name} for name in sorted(files)]
        self._send({"id": repo, "sha": commit, "private": repository.private, "tags": [], "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        """List the files of a revision."""
        _, files = self._files(self._repository(repo), revision)
        entries = []
        for name, blob in sorted(files.items()):
            entry: dict[str, Any] = {"type": "file", "path": name, "oid": blob.oid, "size": len(blob.content)}
            if blob.large:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
            entries.append(entry)
        self._send(entries)

    def resolve(self, repo: str, revision: str, file: str) -> None:
        """Give a file, or a part of it."""
        commit, files = self._files(self._repository(repo), revision)
        if file not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        blob = files[file]
        content = blob.content
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{blob.etag}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            self._send(content, 200, headers)
            return
        self.hub.ranges.append(wanted[0])
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(content[first : last + 1], 206, headers)


def main() -> None:
    """Serve alice until stdin ends, with the client's cache in the folder that the command line names."""
    token = next(iter(TOKENS))
    with HubServer() as hub:
        print(json.dumps(hub.environment(Path(sys.argv[1]), token)), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
