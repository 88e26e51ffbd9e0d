"""What an artifact says of its use: recipe, licence, card. A server of this machine stands for the hub."""

import base64
import hashlib
import importlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import ssdd
from ssdd.artifact import DistilledSet, Preprocessing
from ssdd.artifact.card import card_file, card_text, write_card
from ssdd.config import PretrainConfig, as_dict

RECIPE = as_dict(PretrainConfig(steps=3, batch=4, lr=0.4, schedule="constant", contrast=2.0))


def example(**changes) -> DistilledSet:
    g = torch.Generator().manual_seed(0)
    pre = Preprocessing((0.4,), (0.2,))
    changes = {"recipe": RECIPE, "licence": "cc-by-4.0", "source": "somewhere", **changes}
    return DistilledSet(torch.rand(6, 1, 8, 8, generator=g), torch.randn(6, 4, generator=g), pre, **changes)


def test_the_recipe_is_kept_in_the_file(tmp_path):
    pairs = DistilledSet.load(example().save(tmp_path / "a.safetensors"))
    assert (pairs.recipe, pairs.licence) == (RECIPE, "cc-by-4.0")
    assert ssdd.recipe_of(pairs) == PretrainConfig(**RECIPE)
    assert ssdd.info(tmp_path / "a.safetensors")["recipe"] == RECIPE
    with pytest.raises(ssdd.InputError, match="no recipe"):
        ssdd.recipe_of(example(recipe={}))
    with pytest.raises(ssdd.InputError, match="no setting 'speed'"):
        ssdd.recipe_of(example(recipe={"speed": 1}))


def test_files_without_a_recipe_load(tmp_path):
    example().save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["ssdd"])
        tensors = {key: file.get_tensor(key) for key in ("images", "targets")}
    for key in ("recipe", "licence"):
        del meta[key]
    save_file(tensors, tmp_path / "old.safetensors", metadata={"ssdd": json.dumps(meta)})
    old = DistilledSet.load(tmp_path / "old.safetensors")
    assert (old.recipe, old.licence) == ({}, "")
    save_file(tensors, tmp_path / "bad.safetensors", metadata={"ssdd": json.dumps(meta | {"recipe": 7})})
    with pytest.raises(ssdd.InputError, match="recipe is a int"):
        DistilledSet.load(tmp_path / "bad.safetensors")


def test_pretraining_uses_the_recipe_unless_told_otherwise(ssdd_command, tmp_path):
    file = example().save(tmp_path / "a.safetensors")

    def made(*flags):
        out = tmp_path / "w.safetensors"
        output = ssdd_command("pretrain", file, "-o", out, "--model", "convnet-4", "--overwrite", "-q", *flags)
        with safe_open(out, "pt") as weights:
            return json.loads(weights.metadata()["ssdd"])["pretrain"], output.stdout

    recipe, output = made()
    assert recipe == RECIPE and "the artifact's recipe: 3 steps, lr 0.4, constant, batch 4" in output
    recipe, output = made("--lr", "0.2", "--contrast", "1")
    assert recipe == RECIPE | {"lr": 0.2, "contrast": 1.0} and "the artifact's recipe, changed: 3 steps" in output
    assert made("--epochs", "5")[0] == RECIPE | {"steps": 5}
    example(recipe={}).save(file)
    assert made("--steps", "2")[0] == as_dict(PretrainConfig(steps=2, lr=0.1, schedule="constant"))


def test_pretraining_from_python_uses_it_when_nothing_is_given():
    pairs = example()
    one, two = (ssdd.seeded(lambda: ssdd.build("convnet-4", 1, (8, 8), 4), 0) for _ in range(2))
    ssdd.pretrain(one, pairs)
    ssdd.pretrain(two, pairs, PretrainConfig(**RECIPE))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_run_leaves_the_recipe_and_a_card(ssdd_command, tmp_path):
    flags = ["--teacher.epochs=1", "--teacher.widths=4-8", "--student.model=convnet-4", "--pretrain.steps=7"]
    out = tmp_path / "run"
    ssdd_command("distill", "-o", out, "-m", 4, "--steps", 2, "-q", "--licence", "mit", *flags)
    pairs = DistilledSet.load(out / "distilled.safetensors")
    assert pairs.recipe["steps"] == 7 and pairs.licence == "mit"
    text = (out / "README.md").read_text()
    assert front(text)["license"] == "mit" and "| steps | 7 |" in text


def front(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_the_card_says_what_a_user_must_know():
    text = card_text(example(metrics={"loss": 0.5}, support_input="raw"), "a.safetensors")
    found = front(text)
    assert found["license"] == "cc-by-4.0" and "dataset-distillation" in found["tags"]
    for section in ("Use", "Preprocessing", "Pre-training recipe", "How it was made", "Source and licence"):
        assert f"\n## {section}\n" in text
    assert "| mean | 0.4 |" in text and "| lr | 0.4 |" in text and "without normalisation" in text
    assert front(card_text(example(licence="ask Eve"), "a.safetensors"))["license"] == "other"


def test_a_card_is_not_broken_by_names():
    text = card_text(example(source="x\n---\nlicense: mit\n# <b>*y*", licence="```\n# z"), "a`b.safetensors")
    assert front(text)["license"] == "other" and text.count("\n---\n") == 1
    assert not re.search(r"^# (?!6 distilled)", text, re.MULTILINE) and "\\<b\\>" in text


def test_a_card_takes_nobodys_place(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert write_card(example(), first).name == "README.md" == write_card(example(), first).name
    assert write_card(example(), second).name == "b.README.md"
    (tmp_path / "README.md").write_text("mine")
    assert card_file(first).name == "a.README.md"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that an upload uses: create, validate, preupload, LFS, commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/validate-yaml":
            self.server.validated = json.loads(body)
            return self.answer({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            name = "eve/" + json.loads(body)["name"]
            self.server.created = json.loads(body)
            return self.answer({"url": f"{self.server.address}/datasets/{name}", "id": "1"})
        if "/preupload/" in self.path:
            kind = {True: "lfs", False: "regular"}
            names = [f["path"] for f in json.loads(body)["files"]]
            files = [
                {"path": n, "uploadMode": kind[n.endswith(".safetensors")], "shouldIgnore": False, "oid": None}
                for n in names
            ]
            return self.answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{self.server.address}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            if self.server.refuse:
                return self.answer({"error": "no right to write"}, 403)
            self.server.commit = [json.loads(line) for line in body.splitlines()]
            url = f"{self.server.address}/datasets/eve/set/commit/1"
            return self.answer({"commitOid": "1", "commitUrl": url, "hookOutput": "", "success": True})
        return self.answer({}, 404)

    def do_PUT(self):
        self.server.uploaded[self.path.removeprefix("/lfs/")] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_GET(self):
        self.server.seen.append((self.path, None))
        self.answer({}, 404)

    def answer(self, values, status=200):
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub", reason="NOT INSTALLED: huggingface_hub, so push is not tested")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_pretended")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.seen, server.uploaded, server.refuse = [], {}, False
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_push_uploads_the_set_and_its_card(hub, ssdd_command, tmp_path):
    file = example().save(tmp_path / "distilled.safetensors")
    write_card(example(), file)
    output = ssdd_command("push", file, "set", "--private", "--endpoint", hub.address)
    assert hub.address in output.stdout and hub.created["type"] == "dataset"
    assert hub.created.get("private") or hub.created["visibility"] == "private"  # as the library's version has it
    assert all(token == "Bearer hf_pretended" for path, token in hub.seen if path.startswith("/api"))
    assert hub.uploaded[hashlib.sha256(file.read_bytes()).hexdigest()] == file.read_bytes()
    assert front(hub.validated["content"])["license"] == "cc-by-4.0" and hub.validated["repoType"] == "dataset"
    lines = {line["value"].get("path"): line["value"] for line in hub.commit}
    assert set(lines) == {None, "README.md", "distilled.safetensors"}
    assert base64.b64decode(lines["README.md"]["content"]) == (tmp_path / "README.md").read_bytes()


def test_push_says_what_is_missing(hub, ssdd_command, tmp_path, monkeypatch):
    file = example().save(tmp_path / "a.safetensors")
    hub.refuse = True
    with pytest.raises(ssdd.InputError, match="push: set: the hub does not take it .*no right to write"):
        ssdd.push(file, "set", endpoint=hub.address)
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.seen)
    with pytest.raises(ssdd.InputError, match="no Hugging Face token"):
        ssdd.push(file, "set", endpoint=hub.address)
    with pytest.raises(ssdd.InputError, match=r"none\.safetensors"):
        ssdd.push(tmp_path / "none.safetensors", "set", endpoint=hub.address)
    assert len(hub.seen) == before
