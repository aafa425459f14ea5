"""`export_encoder`: what the file holds, both layouts, the comparison with torch, and how it fails."""

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers_models import features_for, small_config, small_model
from transformers import WhisperConfig

from whisper_hailo_hf import (
    HailoWhisperEncoder,
    WhisperHailoError,
    WhisperHailoForConditionalGeneration,
    __version__,
    artefacts,
    export_encoder,
)
from whisper_hailo_hf.compile import export as module
from whisper_hailo_hf.compile.export import speech_like_features
from whisper_hailo_hf.encoders.export import INPUT_NAME, OPSETS, OUTPUT_NAME
from whisper_hailo_hf.errors import RequestError

onnxruntime = pytest.importorskip("onnxruntime")


def encoder_for(family="conv", **changes):
    return small_model(family, cls=HailoWhisperEncoder, **changes)


def run(path, features):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run([OUTPUT_NAME], {INPUT_NAME: features.numpy()})[0]


def names_of(path):
    graph = onnx.load(path).graph
    return [node.name for node in graph.node], [tensor.name for tensor in graph.initializer]


# What is written


@pytest.mark.parametrize("own", ["width", "height"])
@pytest.mark.parametrize("asked", ["width", "height"])
@pytest.mark.parametrize("family", ["conv", "attention", "linear_attention"])
def test_either_axis_gives_the_same_numbers(family, own, asked, tmp_path):
    encoder = encoder_for(family, time_axis=own)
    report = export_encoder(encoder, tmp_path / "a.onnx", time_axis=asked)
    onnx.checker.check_model(onnx.load(report.path), full_check=True)
    expected = [1, 8, 1, 60] if asked == "width" else [1, 8, 60, 1]
    assert report.input_shape == expected
    assert report.output_shape == ([1, 16, 1, 30] if asked == "width" else [1, 16, 30, 1])
    assert (report.time_axis, report.windows) == (asked, 3)
    assert 0 <= report.max_difference <= 1e-4
    assert report.max_value > 0.5
    assert report.snr_db is None or report.snr_db > 80
    features = features_for(encoder.config, batch=1)
    wanted = encoder(features).last_hidden_state
    found = torch.from_numpy(run(report.path, features.unsqueeze(2 if asked == "width" else 3)))
    found = found.transpose(2, 3) if asked != own else found
    assert torch.allclose(encoder.host.states(found), wanted, atol=1e-4)
    assert encoder.config.time_axis == own


@pytest.mark.parametrize("time_axis", ["width", "height"])
def test_nothing_but_the_network(time_axis, tmp_path):
    # an untrained student: its biases are all equal, which the exporter stores once
    torch.manual_seed(0)
    encoder = HailoWhisperEncoder(small_config(encoder_layers=3)).eval()
    report = export_encoder(encoder, tmp_path / "a.onnx", time_axis=time_axis)
    assert set(report.operators) <= {"Conv", "Relu", "Add", "Mul", "Sigmoid", "GlobalAveragePool", "Resize"}
    graph = onnx.load(report.path).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len({node.input[2] for node in convolutions}) == len(convolutions)  # each has a bias of its own
    for node in convolutions:
        assert node.input[1:] == [f"{node.name[1:-5].replace('/', '.')}.{part}" for part in ("weight", "bias")]
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
        assert len(sizes) == 4, value.name
        assert sizes[0] == 1, value.name
        assert all(size > 0 for size in sizes), value.name
    assert {value.name for value in (*graph.value_info, *graph.output)} == {node.output[0] for node in graph.node}
    assert not any(tensor.external_data for tensor in graph.initializer)
    assert (
        report.parameters
        == sum(np.prod(tensor.dims) for tensor in graph.initializer if "Resize" not in tensor.name)
        + 4 * report.operators["Resize"]
    )


@pytest.mark.parametrize("family", ["conv", "linear_attention"])
def test_names_are_the_same_each_time_and_in_each_opset(family, tmp_path):
    encoder = encoder_for(family)
    first = names_of(export_encoder(encoder, tmp_path / "a.onnx", windows=0).path)
    assert "/blocks.0/mix/conv/Conv" in first[0] or "/layers.0/attn/q_proj/Conv" in first[0]
    assert all(name and not name.startswith(("onnx::", "/")) for name in first[1])
    assert len(set(first[0])) == len(first[0])
    for opset in OPSETS if family == "conv" else (13, 18):
        report = export_encoder(encoder, tmp_path / f"{opset}.onnx", opset=opset, windows=0)
        assert onnx.load(report.path).opset_import[0].version == opset == report.opset
        assert names_of(report.path) == first
    other = names_of(export_encoder(encoder, tmp_path / "b.onnx", time_axis="height", windows=0).path)
    assert other == first


def test_exported_twice_the_file_is_the_same(tmp_path):
    reports = [export_encoder(encoder_for(), tmp_path / f"{n}.onnx", windows=0) for n in range(2)]
    assert reports[0].sha256 == reports[1].sha256 == artefacts.sha256_of(reports[0].path)


def test_metadata_says_whose_it_is_and_what_the_host_does(tmp_path):
    encoder = encoder_for("attention", encoder_options={"window_seconds": 0.2}, encoder_preset=None)
    report = export_encoder(encoder, tmp_path / "a.onnx", time_axis="height")
    found = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert found == report.metadata
    assert found["whisper_hailo.weights"] == artefacts.fingerprint(encoder.core)
    assert found["whisper_hailo.encoder_family"] == "attention"
    assert json.loads(found["whisper_hailo.encoder_options"]) == {"window_seconds": 0.2}
    assert found["whisper_hailo.time_axis"] == "height"
    assert found["whisper_hailo.producer"] == f"whisper_hailo_hf {__version__}"
    assert json.loads(found["whisper_hailo.host_epilogue"]) == {
        "states": 30, "tiles": 3, "positional_map": False, "layer_norm": True, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    student = export_encoder(encoder_for(encoder_preset="micro"), tmp_path / "b.onnx", windows=0).metadata
    assert student["whisper_hailo.encoder_preset"] == "micro"
    assert json.loads(student["whisper_hailo.host_epilogue"])["positional_map"] is True


def test_report_is_plain_json(tmp_path):
    report = export_encoder(encoder_for(), tmp_path / "a.onnx")
    assert json.loads(json.dumps(report.to_dict()))["size"] == (tmp_path / "a.onnx").stat().st_size


# From what


def test_from_a_whole_model_an_encoder_or_a_folder(tmp_path):
    model = small_model("conv")
    model.save_pretrained(tmp_path / "model")
    model.get_encoder().save_pretrained(tmp_path / "encoder")
    sources = (model, model.model, model.get_encoder(), tmp_path / "model", str(tmp_path / "encoder"))
    files = {export_encoder(source, tmp_path / "a.onnx", windows=0).sha256 for source in sources}
    assert len(files) == 1


def test_trained_weights(tmp_path):
    """The bundled demo model, whose states are of any size that training gave them."""
    demo = Path(module.__file__).parent.parent / "demo"
    report = export_encoder(demo, tmp_path / "a.onnx", windows=1)
    assert report.max_difference <= 1e-4
    assert report.graph_max_value > report.graph_difference > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_compared_in_float32(dtype, tmp_path):
    encoder = encoder_for().to(dtype)
    report = export_encoder(encoder, tmp_path / "a.onnx", time_axis="height")
    assert report.max_difference <= 1e-4
    assert encoder.dtype == dtype


@pytest.mark.parametrize("training", [False, True])
def test_the_model_stays_as_it_is(training, tmp_path):
    model = small_model("conv").train(training)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    export_encoder(model, tmp_path / "a.onnx", time_axis="height")
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# What fails


def test_other_numbers_are_refused_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"the old graph")

    def spoil(core, *args, **kwargs):
        changed = copy.deepcopy(core)
        with torch.no_grad():
            changed.head.bias[3] += 0.1  # what is added to all channels, the host's LayerNorm takes out again
        return export_core(changed, *args, **kwargs)

    export_core = module.export_core
    monkeypatch.setattr(module, "export_core", spoil)
    with pytest.raises(
        WhisperHailoError, match=r"states differ from torch's by up to 0\.\d+ .*: a.onnx was not written"
    ):
        export_encoder(encoder_for(), path)
    assert path.read_bytes() == b"the old graph"
    assert list(tmp_path.iterdir()) == [path]
    assert export_encoder(encoder_for(), path, tolerance=0.5).max_difference > 0.001


def test_not_a_number_is_refused(tmp_path):
    encoder = encoder_for()
    with torch.no_grad():
        encoder.core.head.bias[3] = torch.nan
    with pytest.raises(WhisperHailoError, match="states differ from torch's by up to nan"):
        export_encoder(encoder, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"time_axis": "depth"}, "time_axis is 'width' or 'height', not 'depth'"),
        ({"opset": 12}, "opset 12 is none of those that Hailo reads: choose 13 to 18"),
        ({"opset": 19}, "opset 19"),
        ({"tolerance": 0}, "tolerance more than 0"),
        ({"tolerance": float("nan")}, "tolerance more than 0"),
        ({"windows": -1}, "windows is 0 or more"),
    ],
)
def test_bad_requests(settings, words, tmp_path):
    with pytest.raises(RequestError, match=words):
        export_encoder(encoder_for(), tmp_path / "a.onnx", **settings)
    assert not list(tmp_path.iterdir())


def test_bad_sources(tmp_path):
    WhisperConfig().save_pretrained(tmp_path / "stock")
    with pytest.raises(RequestError, match="without a pluggable encoder"):
        export_encoder(tmp_path / "stock", tmp_path / "a.onnx")
    with pytest.raises(RequestError, match="no model folder"):
        export_encoder(tmp_path / "none", tmp_path / "a.onnx")
    with pytest.raises(RequestError, match="has no pluggable encoder"):
        export_encoder(torch.nn.Linear(2, 2), tmp_path / "a.onnx")
    with pytest.raises(RequestError, match="is a folder: name an ONNX file in it"):
        export_encoder(encoder_for(), tmp_path)


def test_without_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'whisper-hailo-hf\[onnx\]'"):
        export_encoder(encoder_for(), tmp_path / "a.onnx")
    report = export_encoder(encoder_for(), tmp_path / "a.onnx", windows=0)
    assert (report.windows, report.max_difference, report.snr_db) == (0, None, None)


def test_without_onnx(tmp_path, monkeypatch):
    import builtins

    import_module = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "onnx":
            raise ImportError(name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RequestError, match=r"needs onnx: pip install 'whisper-hailo-hf\[onnx\]'"):
        export_encoder(encoder_for(), tmp_path / "a.onnx")


def test_an_encoder_that_no_file_can_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("whisper_hailo_hf.encoders.export._LIMIT", 1000)
    with pytest.raises(WhisperHailoError, match="one ONNX file holds 2"):
        export_encoder(encoder_for(), tmp_path / "a.onnx")


# The features that it is compared on


def test_features_look_like_those_of_speech():
    features = speech_like_features(80, 3000, 4)
    assert (features.shape, features.dtype) == ((4, 80, 3000), np.float32)
    speech, short, silence, again = features
    assert features.min() >= -1.5
    assert 0.5 < features.max() < 2
    assert speech.std() > 0.2
    assert np.ptp(short[:, 1000:]) == 0 < short[:, :1000].std()
    assert (silence == -1.5).all()
    assert not np.array_equal(speech, again)
    assert np.array_equal(features, speech_like_features(80, 3000, 4))


# The verb


def test_verb(cli, tmp_path):
    small_model("conv").save_pretrained(tmp_path / "model")
    path = tmp_path / "out" / "encoder.onnx"
    status, out, err = cli("export", tmp_path / "model", path, "--time-axis", "height", "--opset", 15)
    assert (status, err) == (0, "")
    assert "against torch" in out
    assert "1 x 8 x 60 x 1" in out
    assert onnx.load(path).opset_import[0].version == 15
    data = json.loads(cli("export", tmp_path / "model", path, "--json")[1])
    assert (data["time_axis"], data["opset"]) == ("width", 17)
    assert data["max_difference"] <= 1e-4


def test_into_a_model_s_folder(cli, tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    assert cli("export", tmp_path / "model")[0] == 0
    model = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert model.encoder_backend == "onnx"  # what `auto` takes is recorded and fits
    record = model.config.artefacts["onnx/encoder.onnx"]
    assert record["sha256"] == artefacts.sha256_of(tmp_path / "model" / "onnx" / "encoder.onnx")
    for arguments, line in (
        ([tmp_path / "model", "--time-axis", "height"], "the model's own graph lies along its width"),
        (["owner/model"], "name an ONNX file to write"),
    ):
        status, out, err = cli("export", *arguments)
        assert (status, out) == (2, "")
        assert line in err


def test_verb_refuses_in_one_line(cli, tmp_path):
    status, out, err = cli("export", tmp_path / "none", tmp_path / "a.onnx")
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: no model folder")
    small_model("conv").save_pretrained(tmp_path / "model")
    status, _, err = cli("export", tmp_path / "model", tmp_path / "a.onnx", "--tolerance", "1e-12")
    assert (status, len(err.splitlines())) == (1, 1)
    assert not (tmp_path / "a.onnx").exists()
