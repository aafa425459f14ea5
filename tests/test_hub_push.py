"""`whisper-hailo push` and what it plans: what goes and what stays, what forbids it, and the upload."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_hef import hailo_platform, install_hef
from helpers_hub import OWNER, hub, no_waiting  # noqa: F401  # fixtures
from helpers_models import small_model
from safetensors.torch import load_file, save_file

from whisper_hailo_hf import RequestError, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.artefacts import (
    HEF_PATH,
    ONNX_INT8_PATH,
    fingerprint,
    sha256_of,
    stored_fingerprint,
    stored_parameters,
)
from whisper_hailo_hf.cli.main import main
from whisper_hailo_hf.compile.quantize import quantize_encoder
from whisper_hailo_hf.hub.code import FOLDER, code_files
from whisper_hailo_hf.hub.push import plan_push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own, of httpx
NAME = f"{OWNER}/small"
RECORD = """
title: A small one
name: user/small
summary: It says nothing.
license: apache-2.0
language: [en]
data:
  - {name: noise, licence: CC BY 4.0}
training: None.
limits: All.
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    small_model().save_pretrained(folder)
    data = np.random.default_rng(0).standard_normal((16, 8, 60)).astype(np.float32)
    quantize_encoder(folder, data, layer_windows=0, choices=False, method="minmax", equalize=False)
    with hailo_platform("4.23"):
        install_hef(folder)
    (folder / "README.md").write_text(
        "---\nlicense: mit\nlanguage: en\nlibrary_name: transformers\n"
        "pipeline_tag: automatic-speech-recognition\n---\n"
    )
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture
def record(tmp_path) -> Path:
    path = tmp_path / "card.yaml"
    path.write_text(RECORD)
    return path


@pytest.fixture
def cli(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["push", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(end.value.code or 0), captured.out, captured.err

    return run


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# The plan


def test_what_goes_and_what_stays(folder):
    for name in ("optimizer.pt", "runs/events.log", "hailo8/encoder.hef", "pytorch_model.bin", ".cache/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    plan = plan_push(folder, NAME)
    assert {file.name: file.what for file in plan.files} == {
        "README.md": "card",
        "config.json": "model",
        "generation_config.json": "model",
        HEF_PATH: "artefact",
        "model.safetensors": "weights",
        ONNX_INT8_PATH: "artefact",
        "onnx/encoder_int8.report.json": "artefact",
        "whisper_hailo_shim.py": "code",
    }
    assert plan.size == sum((folder / file.name).stat().st_size for file in plan.files)
    assert set(plan.left_out) == {"optimizer.pt", "runs/", "hailo8/encoder.hef", "pytorch_model.bin"}
    assert "config.json does not record it" in plan.left_out["hailo8/encoder.hef"]
    assert plan.problems == []
    assert len(plan.checks) == 3
    assert "no processor" in plan.notes[0]


def test_the_stored_weights_are_those_of_the_model(folder, tmp_path):
    model = WhisperHailoForConditionalGeneration.from_pretrained(folder, encoder_backend="torch")
    encoder, known = model.get_encoder(), fingerprint(model.get_encoder().core)
    assert stored_fingerprint(folder) == known
    assert stored_parameters(folder) == sum(parameter.numel() for parameter in model.parameters())
    encoder.save_pretrained(tmp_path / "alone")
    model.model.save_pretrained(tmp_path / "headless", max_shard_size="20kB")
    model.half().save_pretrained(tmp_path / "half")
    assert len(list((tmp_path / "headless").glob("*.safetensors"))) > 1
    assert stored_fingerprint(tmp_path / "alone") == stored_fingerprint(tmp_path / "headless") == known
    assert stored_fingerprint(tmp_path / "half") == fingerprint(model.get_encoder().core.float())


def change_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(one for one in tensors if one.endswith("core.head.bias"))
    save_file(tensors | {name: tensors[name] + 1}, folder / "model.safetensors", {"format": "pt"})


def change_chip(folder):
    config = json.loads((folder / "config.json").read_text())
    config["artefacts"][HEF_PATH]["hw_arch"] = "hailo8"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: (f / HEF_PATH).write_bytes(b"x"), "hailo8l/encoder.hef: encoder.hef is damaged"),
        (lambda f: (f / HEF_PATH).unlink(), f"config.json records {HEF_PATH}, which is not there: make it with"),
        (lambda f: (f / ONNX_INT8_PATH).unlink(), "make it with whisper-hailo quantize"),
        (change_weights, "was made from other weights than those loaded: make it anew with whisper-hailo"),
        (change_chip, "it is for hailo8l, and config.json says hailo8"),
        (lambda f: (f / "model.safetensors").unlink(), "has no encoder's weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "model.safetensors cannot be read"),
        (lambda f: (f / "README.md").unlink(), "no README.md: give --card a record"),
        (lambda f: (f / "README.md").write_text("# no front matter"), "the card names no license"),
        (lambda f: (f / "README.md").write_text("---\nlicense: [\n---\n"), "front matter cannot be read"),
        (lambda f: (f / "README.md").write_text("---\nlicense: other\n---\n"), "needs license_name and license_link"),
    ],
)
def test_what_forbids_it(folder, cli, change, line):
    change(folder)
    status, _, err = cli(folder, NAME, "--yes")  # without a Hub: nothing is sent
    assert status == 2
    assert [one for one in err.splitlines() if one.startswith("error: ") and line in one], err


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda f: (f / "nowhere", NAME), "is no model folder: it has no config.json"),
        (lambda f: (f, "small"), "small is no name of a repository: it is of the form owner/model"),
        (lambda f: (f, "user/a b"), "user/a b is no name of a repository"),
        (lambda f: (f, "a/b/c"), "a/b/c is no name of a repository"),
        (lambda f: (edit(f, model_type="whisper") or f, NAME), "holds no model of this package"),
        (lambda f: ((f / "config.json").write_text("{") and f, NAME), "config.json cannot be read"),
        (lambda f: (f, NAME, "--card", f / "none.yaml"), "none.yaml cannot be read"),
    ],
)
def test_a_wrong_request_is_one_line(folder, cli, make, line):
    status, out, err = cli(*make(folder))
    assert (status, out) == (2, "")
    (only,) = err.splitlines()
    assert line in only


# The verb


def test_a_dry_run_sends_nothing(hub, folder, cli):  # noqa: F811
    status, out, err = cli(folder, NAME)
    assert status == 0
    assert "8 files" in out
    assert f"would go to {NAME}" in out
    assert "model.safetensors" in out
    assert "nothing was sent: --yes sends it" in err
    status, out, _ = cli(folder, NAME, "--json", "--dry-run")
    plan = json.loads(out)
    assert (status, plan["pushed"], plan["problems"]) == (0, False, [])
    assert plan["size"] == sum(file["size"] for file in plan["files"])
    assert hub.log == []


@pytest.mark.parametrize("go", ["--yes", "--no-dry-run"])
def test_it_goes(hub, folder, cli, go):  # noqa: F811
    status, out, err = cli(folder, NAME, go, "--private", "--message", "the first")
    assert status == 0, err
    assert f"goes to {NAME}: 8 files" in out
    assert f"pushed: {hub.url}/{NAME}/commit/" in err
    assert hub.repositories[NAME].private
    for name, content in hub.files(NAME).items():
        assert name == ".gitattributes" or content == (folder / name).read_bytes()
    sent = len(hub.uploads)
    assert cli(folder, NAME, go)[0] == 0
    assert len(hub.uploads) == sent
    assert len(hub.repositories[NAME].commits) == 2  # nothing changed: no commit


def test_to_a_branch_and_as_json(hub, folder, cli):  # noqa: F811
    assert cli(folder, NAME, "--yes")[0] == 0
    change = json.loads((folder / "generation_config.json").read_text()) | {"num_beams": 3}
    (folder / "generation_config.json").write_text(json.dumps(change))
    status, out, _ = cli(folder, NAME, "--yes", "--revision", "beams", "--json")
    done = json.loads(out)
    assert (status, done["pushed"]) == (0, True)
    assert done["commit"].endswith(hub.repositories[NAME].branches["beams"])
    for branch, beams in (("main", None), ("beams", 3)):
        assert json.loads(hub.files(NAME, branch)["generation_config.json"]).get("num_beams") == beams


def test_a_card_from_a_record_and_the_code(hub, folder, record, cli):  # noqa: F811
    before = (folder / "config.json").read_bytes()
    status, _, err = cli(folder, NAME, "--yes", "--card", record, "--include-code")
    assert status == 0, err
    files = hub.files(NAME)
    card = files["README.md"].decode()
    assert "# A small one" in card
    assert "| `hailo8l/encoder.hef` |" in card
    assert "With `trust_remote_code=True` the model also loads where the package is not installed" in card
    for name, text in code_files(True).items():
        assert files[name].decode() == text
    assert json.loads(files["config.json"])["auto_map"] == {
        "AutoConfig": f"{FOLDER}/whisper_hailo.WhisperHailoConfig",
        "AutoModelForSpeechSeq2Seq": f"{FOLDER}/whisper_hailo.WhisperHailoForConditionalGeneration",
    }
    assert (folder / "config.json").read_bytes() == before
    assert not (folder / FOLDER).exists()
    assert WhisperHailoForConditionalGeneration.from_pretrained(NAME).encoder_backend == "torch"


def test_the_hub_s_own_check_of_the_card(hub, folder, cli):  # noqa: F811
    text = (folder / "README.md").read_text().replace("license: mit", "license: my-own")
    (folder / "README.md").write_text(text)
    status, _, err = cli(folder, NAME, "--yes")
    assert status == 2
    assert '"license" must be one of' in err.splitlines()[-1]
    assert hub.uploads == []


def test_a_push_that_was_cut_goes_on(hub, folder, cli, no_waiting):  # noqa: F811
    hub.cut_all_but = sha256_of(folder / HEF_PATH)
    status, _, err = cli(folder, NAME, "--yes")
    assert status == 1
    line = err.splitlines()[-1]
    assert line.startswith("error: the Hub could not be reached")
    assert set(hub.files(NAME)) == {".gitattributes"}
    there, sent, hub.cut_all_but = set(hub.objects), len(hub.uploads), None
    assert cli(folder, NAME, "--yes")[0] == 0
    assert there
    assert not there & {oid for oid, _ in hub.uploads[sent:]}
    assert hub.files(NAME)[HEF_PATH] == (folder / HEF_PATH).read_bytes()


@pytest.mark.parametrize(("token", "line"), [("hf_wrong", "does not accept the token"), ("", "there is no token")])
def test_tokens(hub, folder, cli, monkeypatch, token, line):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", token)
    status, _, err = cli(folder, NAME, "--yes")
    assert status == 2
    assert line in err.splitlines()[-1]


def test_offline(hub, folder, cli, monkeypatch):  # noqa: F811
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, _, err = cli(folder, NAME, "--yes")
    assert status == 2
    assert "offline mode is on: unset HF_HUB_OFFLINE" in err.splitlines()[-1]


def test_an_encoder_alone(hub, made, tmp_path, cli):  # noqa: F811
    model = WhisperHailoForConditionalGeneration.from_pretrained(made, encoder_backend="torch")
    model.get_encoder().save_pretrained(tmp_path / "alone")
    shutil.copy(made / "README.md", tmp_path / "alone")
    plan = plan_push(tmp_path / "alone", f"{OWNER}/alone", include_code=True)
    assert plan.problems == plan.notes == []
    with pytest.raises(RequestError, match="no name of a repository"):
        plan_push(tmp_path / "alone", "alone")
    assert cli(tmp_path / "alone", f"{OWNER}/alone", "--yes")[0] == 0
    assert torch.equal(
        load_file(tmp_path / "alone" / "model.safetensors")["core.head.bias"], model.get_encoder().core.head.bias
    )
