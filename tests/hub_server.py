"""A stand-in for the Hugging Face hub: a local server that speaks as much of its protocol as is needed."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import pytest
import yaml
from huggingface_hub import constants

SHA = "0123456789abcdef0123456789abcdef01234567"


class Stub(BaseHTTPRequestHandler):
    """The hub: repositories are folders below `server.root`, of one commit each."""

    def log_message(self, *args):
        pass

    def answer(self, body, code=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self):
        path = urlparse(self.path).path.strip("/")
        self.server.asked.append(f"{self.command} /{path}")
        if path.startswith("api/models/"):
            owner, name, *rest = path.removeprefix("api/models/").split("/")
            folder = self.server.root / owner / name
            if not folder.is_dir():
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            files = [{"type": "file", "path": p.name, "oid": SHA, "size": p.stat().st_size} for p in folder.iterdir()]
            if rest[:1] == ["tree"]:
                return self.answer(files)
            info = {
                "id": f"{owner}/{name}",
                "sha": SHA,
                "siblings": [{"rfilename": f["path"]} for f in files],
            }
            return self.answer({**info, "private": False, "tags": [], "downloads": 0, "likes": 0})
        repo, _, name = path.partition(f"/resolve/{SHA}/")
        file = self.server.root / repo / name
        if not (name and file.is_file()):
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        body = file.read_bytes()
        etag = hashlib.sha1(body).hexdigest()
        return self.answer(body, ETag=f'"{etag}"', X_Repo_Commit=SHA, Content_Type="application/octet-stream")

    do_GET = do_HEAD = serve

    def do_POST(self):
        path = urlparse(self.path).path.strip("/")
        self.server.asked.append(f"POST /{path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://{self.headers['Host']}"
        if path == "api/repos/create":
            wanted = json.loads(body)
            if wanted["name"] == "forbidden":
                return self.answer({"error": "You have no right to create this"}, 403)
            repo = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            (self.server.root / repo).mkdir(parents=True, exist_ok=True)
            return self.answer({"url": f"{url}/{repo}", "name": repo, "id": SHA})
        if path == "api/validate-yaml":
            # Metadata of a card.
            _, *parts = json.loads(body)["content"].split("---\n")
            wrong = parts and not isinstance(yaml.safe_load(parts[0]), dict)
            return self.answer({"errors": [], "warnings": []}, 400 if wrong else 200)
        owner, name, action = path.removeprefix("api/models/").split("/")[:3]
        if action == "branch":
            return self.answer({})
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.answer({"files": modes, "commitOid": SHA})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                (self.server.root / owner / name / line["value"]["path"]).write_bytes(content)
        return self.answer(
            {
                "success": True,
                "commitOid": SHA,
                "commitUrl": f"{url}/{owner}/{name}/commit/{SHA}",
                "hookOutput": "",
            }
        )


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A running hub with nothing on it; `huggingface_hub` talks to it alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.daemon_threads = True
    server.root, server.asked = tmp_path / "hub", []
    server.root.mkdir()
    server.url = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
