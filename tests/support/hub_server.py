"""
A Hub for tests: real HTTP for the real `huggingface_hub`, on this machine, with nothing behind it but memory.

    with HubServer() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(cache)})

It speaks what a client needs to create, fill and read model repositories: LFS uploads, commits, revisions and private
repositories. `hub.fail` makes chosen requests fail. `python tests/support/hub_server.py 8000` serves until interrupted.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit


TOKENS = {"hf_owner": "user", "hf_other": "somebody"}


@dataclass
class Commit:
    """One version of a repository: its files as path -> content."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Every commit of every branch, newest last."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("0" * 40, "initial", {})]})

    def find(self, revision: str) -> Commit | None:
        """The newest commit of a branch, or the commit of that id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = (commit for branch in self.branches.values() for commit in branch)
        return next((commit for commit in commits if commit.oid == revision), None)

    def add(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        """A new commit on a branch."""
        content = message + branch + str(time.monotonic_ns())
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), message, files)
        self.branches[branch].append(commit)
        return commit


@dataclass
class Fault:
    """What happens to the next `times` requests whose `"METHOD /path"` matches `pattern`."""

    pattern: str
    status: int = 0
    cut: bool = False
    delay: float = 0.0
    times: int = 10**6


class HubServer:
    """
    The server, in a thread of this process, as a context manager.

    Args:
        port (`int`, *optional*, defaults to 0): 0 picks a free one.
        lfs (`bool`, *optional*, defaults to `True`): Whether large files go through LFS, or inside the commit as any
            other. A client with xet needs the latter.

    Attributes:
        repositories (`dict[str, Repository]`): What was published, by `"user/repo"`.
        requests (`list[str]`): `"METHOD /path"` of every request.
        faults (`list[Fault]`): What goes wrong.
    """

    def __init__(self, port: int = 0, lfs: bool = True):
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lfs = lfs
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: str, token: str | None = "hf_owner") -> dict[str, str]:
        """Environment variables of a process that takes this for the Hub, with its cache and token in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_HUB_DISABLE_XET": "1" if self.lfs else "0",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0" if token else "1",
        }

    def use_in(self, monkeypatch, home: str) -> "HubServer":
        """Makes the clients of this process, which read their settings when imported, talk to this server."""
        import huggingface_hub
        import transformers

        settings = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_TOKEN_PATH": f"{home}/token",
            "HF_HUB_DISABLE_XET": self.lfs,
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", self.endpoint)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setenv("HF_TOKEN", "hf_owner")
        return self

    def fail(self, pattern: str, **what) -> None:
        """Adds a [`Fault`]: `status`, `cut`, `delay` and `times`."""
        self.faults.append(Fault(pattern, **what))

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of the newest commit, which a test may change in place."""
        return self.repositories[repo_id].find(revision).files

    def messages(self, repo_id: str, branch: str = "main") -> list[str]:
        """Messages of the commits after the initial one."""
        return [commit.message for commit in self.repositories[repo_id].branches[branch][1:]]


class Refusal(Exception):
    """An answer that is an error: status, message, and the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None, **headers: str):
        super().__init__(message)
        self.status, self.code, self.body, self.headers = status, code, body or {}, headers


class Handler(BaseHTTPRequestHandler):
    """One connection: finds the route of each request and answers it."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        path, self.query = unquote(address.path), parse_qs(address.query)
        self.body, line = b"", f"{self.command} {path}"
        self.hub.requests.append(line)
        try:
            fault = self._take_fault(line)
            if fault is not None:
                time.sleep(fault.delay)
                if fault.cut:
                    return self._cut()
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault is not None and fault.status:
                raise Refusal(fault.status, "made to fail")
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    with self.hub.lock:
                        answer = action(self, **match.groupdict())
                    return self._send(*answer) if isinstance(answer, tuple) else self._send_json(answer)
            raise Refusal(404, f"no route for {line}")
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal), **refusal.headers}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._send_json({"error": str(refusal), **refusal.body}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _take_fault(self, line: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def _cut(self) -> None:
        """Half of what is sent or received, then silence and a closed connection."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
        if self.command == "GET":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
        self.close_connection = True

    def _send_json(self, value, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ---- Who may do what ----

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def _repository(self, repo_id: str, write: bool = False) -> Repository:
        user, repository = self._user(), self.hub.repositories.get(repo_id)
        is_owner = user == repo_id.split("/")[0]
        if repository is None or (repository.private and not is_owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not is_owner:
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")
        return repository

    def _commit(self, repo_id: str, revision: str, **kwargs) -> Commit:
        commit = self._repository(repo_id, **kwargs).find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- Routes ----

    def whoami(self) -> dict:
        user = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def create(self) -> dict:
        values, user = json.loads(self.body), self.whoami()["name"]
        repo_id = f"{values.get('organization') or user}/{values['name']}"
        if repo_id in self.hub.repositories:
            raise Refusal(409, "You already created this model repo", body={"url": f"{self.hub.endpoint}/{repo_id}"})
        if not repo_id.startswith(f"{user}/"):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace of {repo_id}")
        private = values.get("private") or values.get("visibility") == "private"
        self.hub.repositories[repo_id] = Repository(bool(private))
        return {"url": f"{self.hub.endpoint}/{repo_id}"}

    def branch(self, repo_id: str, revision: str) -> dict:
        repository = self._repository(repo_id, write=True)
        if revision in repository.branches:
            raise Refusal(409, f"Reference {revision} exists already")
        repository.branches[revision] = list(repository.branches["main"])
        return {}

    def info(self, repo_id: str, revision: str = "main") -> dict:
        commit = self._commit(repo_id, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        private = self.hub.repositories[repo_id].private
        return {
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit.oid,
            "siblings": siblings,
            "private": private,
            "tags": [],
        }

    def tree(self, repo_id: str, revision: str, folder: str = "") -> list[dict]:
        files = self._commit(repo_id, revision).files
        return [self._entry(path, content) for path, content in files.items() if path.startswith(folder or "")]

    def paths_info(self, repo_id: str, revision: str) -> list[dict]:
        wanted, files = parse_qs(self.body.decode())["paths"], self._commit(repo_id, revision).files
        return [self._entry(path, files[path]) for path in wanted if path in files]

    def _is_lfs(self, path: str) -> bool:
        return self.hub.lfs and path.endswith((".safetensors", ".png", ".pt", ".pth", ".bin"))

    def _entry(self, path: str, content: bytes) -> dict:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if self._is_lfs(path):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def preupload(self, repo_id: str, revision: str) -> dict:
        present, answers = self._commit(repo_id, revision, write=True).files, []
        for asked in json.loads(self.body)["files"]:
            path, is_lfs = asked["path"], self._is_lfs(asked["path"])
            entry = self._entry(path, present[path]) if path in present else {}
            oid = entry["lfs"]["oid"] if "lfs" in entry else entry.get("oid")
            mode = "lfs" if is_lfs else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, repo_id: str) -> dict:
        self._repository(repo_id, write=True)
        answers = []
        for blob in json.loads(self.body)["objects"]:
            answers.append({"oid": blob["oid"], "size": blob["size"]})
            if blob["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.endpoint}/_lfs/{blob['oid']}", "header": {}}
                verify = {"href": f"{self.hub.endpoint}/_lfs/verify", "header": {}}
                answers[-1]["actions"] = {"upload": upload, "verify": verify}
        return {"transfer": "basic", "objects": answers}

    def lfs_put(self, oid: str) -> dict:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have this hash")
        self.hub.blobs[oid] = self.body
        return {}

    def lfs_verify(self) -> dict:
        if json.loads(self.body)["oid"] not in self.hub.blobs:
            raise Refusal(404, "Not uploaded")
        return {}

    def commit(self, repo_id: str, revision: str) -> dict:
        files, message = dict(self._commit(repo_id, revision, write=True).files), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = self.hub.repositories[repo_id].add(revision, message, files).oid
        return {"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid, "hookOutput": ""}

    def resolve(self, repo_id: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        commit = self._commit(repo_id, revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.oid})
        entry = self._entry(path, commit.files[path])
        etag = entry.get("lfs", entry)["oid"]
        return commit.files[path], {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"', "Accept-Ranges": "none"}

    def validate_yaml(self) -> dict:
        """What the Hub checks of a model card's metadata, as far as its types and the model index go."""
        import yaml
        from huggingface_hub.repocard_data import model_index_to_eval_results

        match, errors = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL), []
        data = yaml.safe_load(match[1]) if match else {}
        for name in ("license", "pipeline_tag", "library_name"):
            if name in data and not (isinstance(data[name], str) and data[name]):
                errors.append({"message": f'"{name}" must be a string'})
        for name in ("tags", "datasets", "metrics"):
            if not all(isinstance(value, str) and value for value in data.get(name) or []):
                errors.append({"message": f'"{name}" must be a list of strings'})
        try:
            model_index_to_eval_results(data.get("model-index") or [{"name": "none", "results": []}])
        except (KeyError, TypeError, ValueError) as error:
            errors.append({"message": f'"model-index" is invalid: {error!r}'})
        if errors:
            raise Refusal(400, "Invalid metadata in README.md", body={"errors": errors, "warnings": []})
        return {"errors": [], "warnings": []}


REPO, REVISION = r"(?P<repo_id>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", f"/api/models/{REPO}", Handler.info),
    ("GET", f"/api/models/{REPO}/revision/{REVISION}", Handler.info),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", Handler.tree),
    ("POST", f"/api/models/{REPO}/paths-info/{REVISION}", Handler.paths_info),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/api/models/{REPO}/branch/{REVISION}", Handler.branch),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("POST", "/_lfs/verify", Handler.lfs_verify),
    ("GET|HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]


if __name__ == "__main__":
    with HubServer(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as server:
        print(server.endpoint, flush=True)
        threading.Event().wait()
