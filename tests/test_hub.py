"""To a Hub over HTTP and back: what travels, what is fetched, what is refused, and what is said when it fails."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_hef import hailo_platform, install_hef
from helpers_hub import OWNER, TOKEN, hub, no_waiting  # noqa: F401  # fixtures
from helpers_models import features_for, small_model

from whisper_hailo_hf import HailoWhisperEncoder, RequestError, WhisperHailoError
from whisper_hailo_hf import WhisperHailoForConditionalGeneration as Model
from whisper_hailo_hf.artefacts import HEF_PATH, ONNX_INT8_PATH, ONNX_PATH, fingerprint, sha256_of
from whisper_hailo_hf.compile.quantize import quantize_encoder
from whisper_hailo_hf.hub.fetch import ArtefactFiles

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own, of httpx
ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / "examples" / "digits_theo.flac"
PLAIN = {"layer_windows": 0, "choices": False, "method": "minmax", "equalize": False, "bias_correction": False}
NAME = f"{OWNER}/small"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small model's folder with everything beside its weights: both graphs, the quantizer's report, HEFs for two
    chips."""
    folder = tmp_path_factory.mktemp("made") / "model"
    model = small_model()
    model.set_encoder_backend("onnx", threads=1)
    model.save_pretrained(folder)
    quantize_encoder(folder, np.random.default_rng(0).standard_normal((16, 8, 60)).astype(np.float32), **PLAIN)
    with hailo_platform("4.23"):
        install_hef(folder)
        install_hef(folder, arch="hailo8")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture
def pushed(hub, made):  # noqa: F811
    """The Hub with that model on it."""
    Model.from_pretrained(made, encoder_backend="torch").push_to_hub(NAME)
    hub.log.clear()
    return hub


def one_line(raised, *words: str) -> str:
    line = str(raised.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


@torch.no_grad()
def states(model):
    return model.get_encoder()(features_for(model.config))[0]


# What travels


def test_everything_travels_through_save_pretrained(made, tmp_path):
    Model.from_pretrained(made, encoder_backend="torch").save_pretrained(tmp_path / "copy")
    records = json.loads((made / "config.json").read_text())["artefacts"]
    assert set(records) == {
        *(ONNX_PATH, ONNX_INT8_PATH, "onnx/encoder_int8.report.json"),
        *(HEF_PATH, "hailo8/encoder.hef"),
    }
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["artefacts"] == records
    for name, record in records.items():
        assert sha256_of(tmp_path / "copy" / name) == record["sha256"]


def test_a_record_says_what_a_user_must_know(made):
    records = json.loads((made / "config.json").read_text())["artefacts"]
    for name in (ONNX_PATH, ONNX_INT8_PATH):
        assert {"sha256", "size", "weights", "time_axis", "producer", "versions", "source"} <= set(records[name])
        assert records[name]["versions"]["onnx"]
    assert records[ONNX_INT8_PATH]["fidelity"]["snr_db"] > 10
    assert records[ONNX_INT8_PATH]["input"]["scale"] > 0
    report = json.loads((made / "onnx" / "encoder_int8.report.json").read_text())
    assert report["path"] == ONNX_INT8_PATH  # and no place on the machine that it was made on
    assert report["states"]["snr_db"] == records[ONNX_INT8_PATH]["fidelity"]["snr_db"]


def test_the_source_is_recorded(stock_whisper, tmp_path):
    model = Model.from_whisper(stock_whisper, preset="micro")
    assert model.config.source == {"checkpoint": Path(stock_whisper).name}  # of a folder, its name alone
    model.set_encoder_backend("onnx", threads=1)
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["artefacts"][ONNX_PATH]["source"] == config["source"] == model.config.source


def test_the_source_on_the_hub_has_its_commit(hub, stock_whisper):  # noqa: F811
    from transformers import WhisperForConditionalGeneration

    WhisperForConditionalGeneration.from_pretrained(stock_whisper).push_to_hub(f"{OWNER}/stock")
    model = Model.from_whisper(f"{OWNER}/stock", preset="micro")
    commit = hub.repositories[f"{OWNER}/stock"].branches["main"]
    assert model.config.source == {"checkpoint": f"{OWNER}/stock", "revision": commit}


def test_what_does_not_fit_stays_behind_aloud(folder, tmp_path, caplog):
    model = Model.from_pretrained(folder, encoder_backend="torch")
    with torch.no_grad():
        model.get_encoder().core.head.bias += 1
    model.save_pretrained(tmp_path / "copy")
    assert f"{HEF_PATH} stays behind: encoder.hef was made from other weights than those loaded" in caplog.text
    assert not (tmp_path / "copy" / "hailo8l").exists()


def test_pushed_whole_and_in_one_commit(pushed, made):
    files = pushed.files(NAME)
    for name in json.loads(files["config.json"])["artefacts"]:
        assert files[name] == (made / name).read_bytes()
    assert len(pushed.repositories[NAME].commits) == 2  # the one that it was made with, and this
    assert "it may be used, or how well it does" in files["README.md"].decode()


def test_a_card_that_is_there_stays(hub, made):  # noqa: F811
    model = Model.from_pretrained(made, encoder_backend="torch")
    card = "---\nlicense: mit\n---\n\n# Mine\n"
    model.push_to_hub(NAME, card=card)
    model.push_to_hub(NAME, commit_message="again")
    assert hub.files(NAME)["README.md"].decode() == card
    model.save_pretrained(made.parent / "again", push_to_hub=True, repo_id=f"{OWNER}/other", private=True)
    assert hub.repositories[f"{OWNER}/other"].private
    assert HEF_PATH in hub.files(f"{OWNER}/other")


def test_an_encoder_alone_travels_too(hub, made):  # noqa: F811
    model = Model.from_pretrained(made, encoder_backend="torch")
    model.get_encoder().push_to_hub(f"{OWNER}/encoder")
    again = HailoWhisperEncoder.from_pretrained(f"{OWNER}/encoder", encoder_backend="onnx")
    again(features_for(again.config))
    assert again.backend.info()["graph"].endswith(ONNX_PATH)
    assert fingerprint(again.core) == fingerprint(model.get_encoder().core)


# What is fetched


def test_torch_fetches_nothing_beside_the_weights(pushed):
    model = Model.from_pretrained(NAME, encoder_backend="torch")
    assert not [name for name in pushed.fetched(NAME) if "/" in name]
    model.set_encoder_backend("onnx", threads=1)  # what is chosen later is fetched then
    assert [name for name in pushed.fetched(NAME) if "/" in name] == [ONNX_PATH]
    assert torch.allclose(states(model), states(Model.from_pretrained(NAME, encoder_backend="torch")), atol=1e-4)


@pytest.mark.parametrize(
    ("backend", "chip", "wanted"), [("hef", "HAILO8L", HEF_PATH), ("auto", "HAILO8", "hailo8/encoder.hef")]
)
def test_a_pi_takes_the_hef_for_its_chip_and_no_graph(pushed, made, backend, chip, wanted):
    with hailo_platform("4.23", architecture=chip):
        model = Model.from_pretrained(NAME, encoder_backend=backend)
        assert model.encoder_backend == "hef"
        assert [name for name in pushed.fetched(NAME) if "/" in name] == [wanted]
        expected = states(Model.from_pretrained(made, encoder_backend="emulator"))
        assert torch.equal(states(model), expected)
        model.get_encoder().backend.close()


def test_auto_without_a_chip_takes_the_graph(pushed):
    model = Model.from_pretrained(NAME)
    assert model.encoder_backend == "onnx"
    assert [name for name in pushed.fetched(NAME) if "/" in name] == [ONNX_PATH]


def test_a_fallback_is_fetched_while_there_is_a_connection(pushed):
    with hailo_platform("4.23"):
        Model.from_pretrained(NAME, encoder_backend="hef", encoder_backend_options={"fallback": "emulator"})
    assert {name for name in pushed.fetched(NAME) if "/" in name} == {HEF_PATH, ONNX_INT8_PATH}


def test_saving_fetches_what_is_missing(pushed, tmp_path):
    model = Model.from_pretrained(NAME, encoder_backend="torch")
    model.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / HEF_PATH).is_file()
    assert Model.from_pretrained(tmp_path / "copy").config.artefacts == model.config.artefacts


def test_revision_subfolder_and_cache(pushed, tmp_path):
    repository = pushed.repositories[NAME]
    first, files = repository.branches["main"], repository.commits[repository.branches["main"]]
    repository.commit("main", {"README.md": b"# gone"})
    repository.commit("dev", {f"inner/{name}": content for name, content in files.items()})
    cache = tmp_path / "cache"
    for where in ({"revision": first}, {"revision": "dev", "subfolder": "inner"}):
        model = Model.from_pretrained(NAME, encoder_backend="onnx", cache_dir=cache, **where)
        assert cache in model.get_encoder().artefacts[ONNX_PATH].parents
    with pytest.raises(OSError, match="not a valid git identifier"):
        Model.from_pretrained(NAME, encoder_backend="torch", revision="nowhere", cache_dir=cache)


def test_a_commit_between_two_files_changes_nothing(pushed, made):
    """All files of a load are of the state of the repository that it began with."""
    model = Model.from_pretrained(NAME, encoder_backend="torch")
    other = small_model(seed=1)
    other.set_encoder_backend("onnx", threads=1)
    other.push_to_hub(NAME)
    model.set_encoder_backend("onnx")
    assert model.get_encoder().artefacts[ONNX_PATH].read_bytes() == (made / ONNX_PATH).read_bytes()


def test_offline_and_without_a_connection(pushed, monkeypatch, caplog):
    Model.from_pretrained(NAME, encoder_backend="torch")
    pushed.log.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for where in ({}, {"local_files_only": True}):
        with pytest.raises(RequestError) as raised:
            Model.from_pretrained(NAME, encoder_backend="emulator", **where)
        one_line(raised, f"a file of {NAME}/{ONNX_INT8_PATH} is not in the cache", "load it once with a connection")
    assert Model.from_pretrained(NAME).encoder_backend == "torch"  # auto goes on, and says why
    assert f"not onnx: a file of {NAME}/{ONNX_PATH} is not in the cache" in caplog.text
    caplog.clear()
    model = Model.from_pretrained(NAME, encoder_backend="onnx", encoder_backend_options={"threads": 1})
    assert "exporting the encoder anew" in caplog.text
    assert torch.isfinite(states(model)).all()
    assert pushed.log == []


def test_offline_with_all_in_the_cache(pushed, monkeypatch):
    expected = states(Model.from_pretrained(NAME, encoder_backend="onnx"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pushed.log.clear()
    assert torch.equal(states(Model.from_pretrained(NAME, encoder_backend="onnx")), expected)
    assert pushed.log == []


def test_a_private_model_needs_the_token(pushed, monkeypatch):
    pushed.repositories[NAME].private = True
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(OSError, match="token"):
        Model.from_pretrained(NAME, encoder_backend="torch")
    model = Model.from_pretrained(NAME, encoder_backend="torch", token=TOKEN)
    model.set_encoder_backend("emulator")
    copied = pickle.loads(pickle.dumps(model.get_encoder().artefacts))
    assert TOKEN.encode() not in pickle.dumps(model.get_encoder().artefacts)
    assert copied.here() == model.get_encoder().artefacts.here()


# What is refused


def test_a_tampered_hef_is_refused(pushed):
    pushed.tampered.add(HEF_PATH)
    with hailo_platform("4.23"):
        with pytest.raises(RequestError) as raised:
            Model.from_pretrained(NAME, encoder_backend="hef")
        one_line(raised, "encoder.hef is damaged: its content is not what config.json recorded", "fetch it again")
        assert Model.from_pretrained(NAME).encoder_backend == "onnx"


def test_a_hef_of_other_weights_is_refused(pushed, made):
    """Somebody trains on, pushes the weights, and forgets the HEF."""
    model = Model.from_pretrained(made, encoder_backend="torch")
    with torch.no_grad():
        model.get_encoder().core.head.bias += 1
    repository = pushed.repositories[NAME]
    files = dict(repository.commits[repository.branches["main"]])
    model.push_to_hub(f"{OWNER}/trained")
    trained = pushed.repositories[f"{OWNER}/trained"]
    files["model.safetensors"] = trained.commits[trained.branches["main"]]["model.safetensors"]
    repository.commit("main", files)
    with hailo_platform("4.23"), pytest.raises(RequestError) as raised:
        Model.from_pretrained(NAME, encoder_backend="hef")
    one_line(raised, "encoder.hef was made from other weights than those loaded", "whisper-hailo compile")


@pytest.mark.parametrize(
    ("backend", "name", "verb"), [("hef", HEF_PATH, "compile"), ("emulator", ONNX_INT8_PATH, "quantize")]
)
def test_what_is_missing_and_which_verb_makes_it(pushed, backend, name, verb):
    repository = pushed.repositories[NAME]
    files = dict(repository.commits[repository.branches["main"]])
    config = json.loads(pushed.files(NAME)["config.json"])
    for left in [one for one in config["artefacts"] if one.endswith(Path(name).name) and one != name]:
        del config["artefacts"][left]
    del files[name]
    repository.commit("main", files | {"config.json": json.dumps(config).encode()})
    with hailo_platform("4.23"), pytest.raises(RequestError) as raised:
        Model.from_pretrained(NAME, encoder_backend=backend)
    one_line(raised, name, f"whisper-hailo {verb}")


def test_a_config_that_names_a_file_elsewhere(pushed):
    config = json.loads(pushed.files(NAME)["config.json"])
    config["artefacts"]["../../.ssh/id_rsa"] = config["artefacts"][ONNX_PATH]
    repository = pushed.repositories[NAME]
    files = repository.commits[repository.branches["main"]] | {"config.json": json.dumps(config).encode()}
    repository.commit("main", files)
    with pytest.raises(RequestError, match="names an artefact outside the model folder"):
        Model.from_pretrained(NAME, encoder_backend="torch")


# What fails


def test_a_wrong_token(hub, made):  # noqa: F811
    model = Model.from_pretrained(made, encoder_backend="torch")
    with pytest.raises(RequestError) as raised:
        model.push_to_hub(NAME, token="hf_wrong")
    one_line(raised, f"the Hub does not accept the token for {NAME}: log in with `hf auth login`")
    assert hub.repositories == {}


def test_no_token(hub, made, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(RequestError) as raised:
        Model.from_pretrained(made, encoder_backend="torch").push_to_hub(NAME)
    one_line(raised, f"there is no token to push {NAME} with: log in with")


def test_somebody_else_s_name(hub, made):  # noqa: F811
    with pytest.raises(RequestError) as raised:
        Model.from_pretrained(made, encoder_backend="torch").push_to_hub("openai/whisper-tiny")
    one_line(raised, "the token does not allow this with openai/whisper-tiny")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({}, [f"there is no {OWNER}/nothing on the Hub, or it is private"]),
        ({"token": "hf_wrong"}, [f"the Hub does not accept the token for {OWNER}/nothing"]),
    ],
)
def test_a_missing_model_or_a_wrong_token_at_a_verb(hub, setting, words, monkeypatch, capsys, tmp_path):  # noqa: F811
    from whisper_hailo_hf.cli.main import main

    if setting:
        monkeypatch.setenv("HF_TOKEN", setting["token"])
    for verb in (["transcribe", str(RECORDING), "--model"], ["export"]):
        end = [] if verb[0] == "transcribe" else [str(tmp_path / "e.onnx")]
        with pytest.raises(SystemExit) as status:
            main([*verb, f"{OWNER}/nothing", *end])
        captured = capsys.readouterr()
        assert (status.value.code, captured.out) == (2, "")
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        for word in words:
            assert word in line


def test_a_full_disk(pushed, monkeypatch, capsys):
    from huggingface_hub import file_download

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = Model.from_pretrained(NAME, encoder_backend="torch")
    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(WhisperHailoError) as raised:
        model.set_encoder_backend("emulator")
    one_line(raised, f"no space is left on the disk while working on {NAME}", "HF_HOME")
    assert raised.value.exit_status == 1
    from whisper_hailo_hf.cli.main import main

    with pytest.raises(SystemExit) as status:
        main(["export", f"{OWNER}/nothing-yet", "x.onnx"])
    capsys.readouterr()
    pushed.repositories[f"{OWNER}/nothing-yet"] = pushed.repositories[NAME]
    with pytest.raises(SystemExit) as status:
        main(["export", f"{OWNER}/nothing-yet", "x.onnx"])
    assert status.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space is left on the disk" in line


def test_a_full_disk_while_saving_for_a_push(hub, made, monkeypatch):  # noqa: F811
    model = Model.from_pretrained(made, encoder_backend="torch")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("whisper_hailo_hf.artefacts.shutil.copyfile", full)
    with pytest.raises(WhisperHailoError, match="no space is left on the disk") as raised:
        model.push_to_hub(NAME)
    one_line(raised)


@pytest.mark.parametrize("parts", [False, True])
def test_an_upload_that_was_cut_goes_on(hub, made, no_waiting, monkeypatch, parts):  # noqa: F811
    monkeypatch.setattr("helpers_hub.PART", 1024)
    hub.wants_parts = parts
    model = Model.from_pretrained(made, encoder_backend="torch")
    hub.cut_all_but = sha256_of(made / HEF_PATH)
    with pytest.raises(WhisperHailoError) as raised:
        model.push_to_hub(NAME, card="---\nlicense: mit\n---\n")
    one_line(raised, f"the Hub could not be reached for {NAME}, or broke off")
    assert set(hub.files(NAME)) == {".gitattributes"}  # nothing of it is to be seen
    arrived = set(hub.objects)
    assert arrived == {hub.cut_all_but}
    sent, hub.cut_all_but = len(hub.uploads), None
    model.push_to_hub(NAME, card="---\nlicense: mit\n---\n")
    assert not arrived & {oid for oid, _ in hub.uploads[sent:]}  # what was there was not sent again
    for name, record in json.loads(hub.files(NAME)["config.json"])["artefacts"].items():
        assert sha256_of(made / name) == record["sha256"]
        assert hub.files(NAME)[name] == (made / name).read_bytes()


# The mapping


def test_names_fetch_nothing(tmp_path):
    files = ArtefactFiles.beside("nobody/nothing", ["a", "b"])
    assert list(files) == ["a", "b"]
    assert "a" in files
    assert len(files) == 2
    files["a"] = tmp_path
    del files["b"]
    assert dict(files) == {"a": tmp_path}
    files |= {"c": tmp_path}
    assert repr(files) == "ArtefactFiles(['a', 'c'])"
    assert list(ArtefactFiles.beside(None, ["a"])) == []
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").touch()
    assert list(ArtefactFiles.beside(tmp_path, ["a", "b"], subfolder="inner")) == ["a"]
