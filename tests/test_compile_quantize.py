"""The quantizer: what each step buys, what the report says, what lands where, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import soundfile
import torch
from helpers_models import features_for, small_model
from onnx import helper, numpy_helper

from whisper_hailo_hf import (
    RequestError,
    WhisperHailoForConditionalGeneration,
    artefacts,
    quantize_encoder,
)
from whisper_hailo_hf.backends.emulator import IntegerGraph
from whisper_hailo_hf.cli.main import main
from whisper_hailo_hf.compile.calibration import Calibration, observe
from whisper_hailo_hf.compile.correction import correct_biases
from whisper_hailo_hf.compile.equalize import equalize
from whisper_hailo_hf.compile.export import export_encoder
from whisper_hailo_hf.compile.float_graph import FloatGraph
from whisper_hailo_hf.compile.simulation import Rounding, Simulation
from whisper_hailo_hf.encoders.placement import place

PYRAMID = {
    "width": 24,
    "inner": 12,
    "stem": 12,
    "levels": (1, 2),
    "positions": True,
    "refine_taps": 5,
    "refine_depthwise": True,
}
QUICK = {"method": "minmax", "layer_windows": 0, "choices": False}


def calibration(count: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 8, 60)).astype(np.float32)


def float_graph(tmp_path, model) -> FloatGraph:
    export_encoder(model, tmp_path / "float.onnx", windows=0)
    return FloatGraph.read(onnx.load(tmp_path / "float.onnx"))


def tiles(model, count: int = 8) -> list[torch.Tensor]:
    return [model.get_encoder().host.windows(features_for(model.config, 1, seed)) for seed in range(count)]


@torch.no_grad()
def uneven(model, seed: int = 0):
    """The same function with channels of very different ranges: each ReLU's output between two convolutions of a
    block is multiplied, and what reads it divided."""
    random = torch.Generator().manual_seed(seed)
    for block in model.get_encoder().core.blocks:
        for unit, following in ((block.reduce, block.mix), (block.mix, block.expand)):
            factor = torch.exp(torch.empty(len(unit.norm.weight)).uniform_(-3, 3, generator=random))
            unit.norm.weight.mul_(factor)
            unit.norm.bias.mul_(factor)
            following.conv.weight.div_(factor[None, :, None, None])
    return model


# The report


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A model, its report, and its file."""
    model = small_model(encoder_options=PYRAMID)
    folder = tmp_path_factory.mktemp("reported")
    seen = []
    report = quantize_encoder(
        model, calibration(), output=folder / "int8.onnx", progress=lambda *args: seen.append(args)
    )
    return model, report, seen


def test_the_report_says_what_was_done(reported):
    model, report, _ = reported
    assert report.sha256 == artefacts.sha256_of(report.path)
    assert report.weights == artefacts.fingerprint(model.get_encoder().core)
    assert (report.calibration_windows, report.report_windows, report.held_out) == (21, 3, True)
    assert report.opset == 17
    assert report.left_in_float == {}
    assert report.input["dtype"] == report.output["dtype"] == "uint8"
    assert list(report.steps) == ["ranges", "equalisation", "bias correction"]
    assert report.equalized > 4
    assert report.seconds > 0
    again = json.loads(json.dumps(report.to_dict()))
    assert again["states"]["snr_db"] == report.states.snr_db
    text = " ".join(" ".join(row) for row in (*report.summary(), *report.layer_rows(5)))
    assert "held-out" in text
    assert "/head/Conv" in text


def test_the_states_are_near_and_the_simulation_is_what_runs(reported):
    _, report, _ = reported
    assert report.states.snr_db > 25
    assert 0.99 < report.states.cosine_min <= report.states.cosine_p5 <= report.states.cosine_mean < 1
    # torch's simulation against ONNX Runtime's integers
    assert report.steps["bias correction"] == pytest.approx(report.states.snr_db, abs=0.05)


def test_each_layer_is_reported(reported):
    _, report, _ = reported
    graph = onnx.load(report.path).graph
    names = [layer.name for layer in report.layers]
    assert names[0] == "input_features"
    ran = [n.name for n in graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear", "Resize")]
    assert names[1:] == ran
    total = report.layers[-1].cumulated_db
    for layer in report.layers:
        assert layer.output_bits == 8
        assert (layer.weight_bits == 8) == (layer.kind == "conv")
        assert layer.alone_db > report.states.snr_db - 1  # one layer alone costs less than all together
        assert layer.range[0] <= 0 <= layer.range[1]
        assert layer.seen[0] < layer.seen[1]
    assert total < min(layer.alone_db for layer in report.layers) + 6
    assert report.layers[1].cumulated_db > total


def test_progress_is_told(reported):
    seen = reported[2]
    kinds = {what for what, _, _ in seen}
    assert {"measuring channels", "calibrating", "each layer alone", "trying 16 bits"} <= kinds
    for kind in kinds:
        done = [(d, n) for what, d, n in seen if what == kind]
        assert done[-1][0] == done[-1][1]
        assert [d for d, _ in done] == sorted(d for d, _ in done)


def test_what_a_choice_would_buy_is_what_it_buys(reported, tmp_path):
    model, report, _ = reported
    gains = {tuple(choice.sixteen_bit): choice for choice in report.choices}
    assert {("output",), ("residual_adds",), ("output", "residual_adds")} <= set(gains)
    both = gains["output", "residual_adds"]
    assert both.gain_db > max(gains[("output",)].gain_db, gains[("residual_adds",)].gain_db) > 0.3
    again = quantize_encoder(
        model,
        calibration(),
        output=tmp_path / "wide.onnx",
        sixteen_bit=("output", "residual_adds"),
        layer_windows=0,
        choices=False,
    )
    assert again.states.snr_db == pytest.approx(both.snr_db, abs=0.5)
    assert again.states.snr_db > report.states.snr_db + 0.3
    assert again.opset == 21
    assert again.output["dtype"] == "uint16"


def test_outlier_channels_are_named(tmp_path):
    model = small_model()
    with torch.no_grad():
        model.get_encoder().core.head.weight[5] *= 30
    report = quantize_encoder(model, calibration(), output=tmp_path / "x.onnx", choices=False, layer_windows=0)
    channel, ratio = report.layers[-1].outliers[0]
    assert channel == 5
    assert ratio > 8


# Equalisation


def test_equalisation_keeps_the_float_function(tmp_path):
    for options in (
        PYRAMID,
        {"width": 16, "inner": 8, "activation": "silu"},
        {"width": 16, "inner": 8, "norm": "none"},
    ):
        model = small_model(encoder_options=options)
        graph = float_graph(tmp_path, model)
        simulation, windows = Simulation(graph), tiles(model, 4)
        seen = observe(simulation, windows, place(graph.ops, [graph.output]).bits)
        even = graph.copy()
        assert equalize(even, seen) >= 2
        after = Simulation(even)
        changed = [name for name in graph.constants if not np.array_equal(graph.constants[name], even.constants[name])]
        assert len(changed) >= 8
        for window in windows:
            wanted, found = simulation.run(window), after.run(window)
            assert (wanted - found).abs().max() < 1e-5 * wanted.abs().max()


def test_equalisation_mends_uneven_channels(tmp_path):
    """The float function is that of an even model; without equalisation its quiet channels drown."""
    even, model = small_model(), uneven(small_model())
    features = features_for(model.config)
    with torch.no_grad():
        wanted, found = even.get_encoder()(features)[0], model.get_encoder()(features)[0]
    assert torch.allclose(wanted, found, atol=1e-4)
    report = {}
    for on in (False, True):
        report[on] = quantize_encoder(model, calibration(), output=tmp_path / "x.onnx", equalize=on, **QUICK)
    plain = quantize_encoder(even, calibration(), output=tmp_path / "x.onnx", equalize=False, **QUICK)
    assert report[False].states.snr_db < plain.states.snr_db - 3
    assert report[True].states.snr_db > plain.states.snr_db - 1
    assert report[True].steps["equalisation"] > report[True].steps["ranges"] + 3


# Bias correction


def mean_errors(simulation, reference, rounding, windows) -> dict[str, float]:
    """By convolution, the mean over its channels of the absolute mean error of its output before it is stored."""
    found: dict[str, list[torch.Tensor]] = {}
    for window in windows:
        values = simulation.start(window, rounding)
        for node in simulation.graph.nodes:
            result = simulation.compute(node, values, rounding)
            if simulation.graph.bias_of(node):
                exact = reference.compute(node, values)
                found.setdefault(node.name, []).append((exact - result).mean((0, 2, 3)))
            simulation.store(node, result, values, rounding)
    return {name: float(torch.stack(errors).mean(0).abs().mean()) for name, errors in found.items()}


@torch.no_grad()
def test_bias_correction_takes_the_mean_error_away(tmp_path):
    model = small_model(encoder_options=PYRAMID)
    graph, windows = float_graph(tmp_path, model), tiles(model, 24)
    placement = place(graph.ops, [graph.output])
    reference, simulation = Simulation(graph), Simulation(graph)
    scales = Calibration(observe(reference, windows, placement.bits), "minmax").scale
    rounding = Rounding(placement, scales, {layer.name: 4 for layer in placement.layers})
    before = mean_errors(simulation, reference, rounding, windows)
    corrected = correct_biases(simulation, rounding, windows[:12])
    assert set(corrected) == set(before)
    after = mean_errors(simulation, reference, rounding, windows[12:])  # windows that it never saw
    assert sum(after.values()) < 0.5 * sum(before.values())


def test_bias_correction_raises_the_snr_of_4_bit_weights(tmp_path):
    model = small_model(encoder_options=PYRAMID)
    bits = {"/blocks.*": 4, "/head/*": 4}
    report = quantize_encoder(model, calibration(), output=tmp_path / "x.onnx", weight_bits=bits, **QUICK)
    assert report.steps["bias correction"] > report.steps["equalisation"] + 0.5
    weights = [
        numpy_helper.to_array(one)
        for one in onnx.load(tmp_path / "x.onnx").graph.initializer
        if one.name.startswith("blocks.") and one.name.endswith("weight")
    ]
    assert len(weights) > 6
    for weight in weights:
        assert weight.dtype == np.int8
        assert np.abs(weight).max() == 7


# Fine-tuning


def test_finetuning_brings_the_states_nearer(tmp_path):
    model = small_model()
    report = quantize_encoder(
        model,
        calibration(32),
        output=tmp_path / "x.onnx",
        weight_bits={"*": 4},
        finetune_steps=40,
        finetune_learning_rate=1e-3,
        **QUICK,
    )
    first, last = report.finetune_loss
    assert last < 0.7 * first
    assert report.steps["fine-tuning"] > report.steps["bias correction"] + 1  # on windows held out
    assert report.states.snr_db == pytest.approx(report.steps["fine-tuning"], abs=0.05)
    with torch.no_grad():  # the model's own weights are as they were
        features = features_for(model.config)
        assert torch.equal(model.get_encoder()(features)[0], small_model().get_encoder()(features)[0])


def test_finetuning_that_diverges_is_left_out(tmp_path, caplog):
    settings = {"output": tmp_path / "x.onnx", "finetune_steps": 12, "finetune_learning_rate": 1.0, **QUICK}
    report = quantize_encoder(small_model(), calibration(), **settings)
    assert report.finetune_loss[1] > report.finetune_loss[0]
    assert report.steps["fine-tuning"] == report.steps["bias correction"]
    assert "fine-tuning made it worse and is left out" in caplog.text


# Where it lands


@pytest.fixture
def saved(tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_into_a_model_s_folder(saved):
    before = json.loads((saved / "config.json").read_text())
    report = quantize_encoder(saved, calibration(), **QUICK)
    assert report.path == str(saved / artefacts.ONNX_INT8_PATH)
    after = json.loads((saved / "config.json").read_text())
    assert after.pop("artefacts")[artefacts.ONNX_INT8_PATH]["sha256"] == report.sha256
    assert after == {key: value for key, value in before.items() if key != "artefacts"}
    model = WhisperHailoForConditionalGeneration.from_pretrained(saved, encoder_backend="emulator")
    assert model.encoder_backend == "emulator"
    assert [path.name for path in saved.glob("**/*.part")] == []


def test_elsewhere_the_model_s_folder_stays_as_it_is(saved, tmp_path):
    before = (saved / "config.json").read_bytes()
    quantize_encoder(saved, calibration(), output=tmp_path / "new" / "x.onnx", **QUICK)
    assert (tmp_path / "new" / "x.onnx").is_file()
    assert (saved / "config.json").read_bytes() == before


def test_the_file_stands_alone(tmp_path):
    quantize_encoder(small_model(), calibration(), output=tmp_path / "x.onnx", **QUICK)
    model = onnx.load(tmp_path / "x.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [one.domain for one in model.opset_import] == [""]
    properties = {one.key: one.value for one in model.metadata_props}
    assert properties["whisper_hailo.encoder_family"] == "conv"
    assert json.loads(properties["whisper_hailo.quantization"])["method"] == "minmax"


# Other graphs


def test_attention_is_quantised_where_it_can_be(tmp_path):
    model = small_model("attention")
    report = quantize_encoder(model, calibration(), output=tmp_path / "x.onnx", layer_windows=0)
    assert report.states.snr_db > 15
    assert "Erf" in report.left_in_float
    assert not {"Conv", "MatMul", "LayerNormalization", "Softmax"} & set(report.left_in_float)
    kinds = [layer.kind for layer in report.layers]
    assert (kinds.count("matmul"), kinds.count("softmax"), kinds.count("norm")) == (4, 2, 4)


def test_kernel_attention_is_quantised_where_it_can_be(tmp_path):
    """Its input goes to a padding first, its output comes from a norm: the emulator needs integers at both."""
    model = small_model("linear_attention", encoder_layers=1)
    report = quantize_encoder(model, calibration(), output=tmp_path / "x.onnx", layer_windows=0)
    assert report.states.snr_db > 10
    assert not {"Conv", "ReduceSum", "InstanceNormalization"} & set(report.left_in_float)
    kinds = {layer.name: layer.kind for layer in report.layers}
    assert list(kinds.values()).count("reduce") == 3
    assert list(kinds.values()).count("div") == 1


def test_a_float_onnx_file(tmp_path):
    model = small_model()
    export_encoder(model, tmp_path / "float.onnx", windows=0)
    report = quantize_encoder(tmp_path / "float.onnx", calibration(), output=tmp_path / "x.onnx", **QUICK)
    assert report.weights is None
    assert report.states.snr_db > 20
    twin = quantize_encoder(model, calibration(), output=tmp_path / "y.onnx", **QUICK)
    assert np.array_equal(
        IntegerGraph(report.path).run(calibration(1)[:, :, None]),
        IntegerGraph(twin.path).run(calibration(1)[:, :, None]),
    )


def graph_of(nodes, constants=(), shape=(1, 8, 1, 60), outputs=("y",), kind=onnx.TensorProto.FLOAT, inputs=("x",)):
    """A small ONNX model."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_weights_that_are_shared_and_operators_that_torch_does_not_run(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.3, (8, 8, 1, 3)).astype(np.float32)
    padding = {"pads": [0, 1, 0, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "one", **padding),
        helper.make_node("HardSwish", ["a"], ["b"], "swish"),
        helper.make_node("Conv", ["b", "w"], ["c"], "two", **padding),
        helper.make_node("Relu", ["c"], ["d"], "relu"),
        helper.make_node("Add", ["a", "d"], ["y"], "sum"),
    ]
    onnx.save(graph_of(nodes, [("w", weight)]), tmp_path / "float.onnx")
    report = quantize_encoder(tmp_path / "float.onnx", calibration(), output=tmp_path / "x.onnx", **QUICK)
    assert report.states.snr_db > 25
    assert report.left_in_float == {"HardSwish": 1}
    with pytest.raises(RequestError, match="no gradient of HardSwish: leave finetune_steps at 0"):
        quantize_encoder(tmp_path / "float.onnx", calibration(), output=tmp_path / "x.onnx", finetune_steps=1, **QUICK)


CONV = [("w", np.ones((8, 8, 1, 1), np.float32))]


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (graph_of([helper.make_node("Erf", ["x"], ["y"])]), "no layer that could run in integers"),
        (graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], CONV, ("n", 8, 1, 60)), "open shape"),
        (graph_of([helper.make_node("Relu", ["x"], ["y"])], shape=(1, 60)), r"log-mel features are \(1, mel bins"),
        (graph_of([helper.make_node("Add", ["x", "z"], ["y"])], inputs=("x", "z")), "log-mel features are"),
        (
            graph_of(
                [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Erf", ["x"], ["z"])], outputs=("y", "z")
            ),
            "the graph has 2 outputs: the quantizer takes graphs with one",
        ),
        (
            graph_of([helper.make_node("Relu", ["x"], ["y"])], kind=onnx.TensorProto.FLOAT16),
            "the graph's input x is not float32",
        ),
    ],
)
def test_graphs_that_are_refused(tmp_path, model, line):
    onnx.save(model, tmp_path / "float.onnx")
    with pytest.raises(RequestError, match=line) as raised:
        quantize_encoder(tmp_path / "float.onnx", calibration(), output=tmp_path / "x.onnx", **QUICK)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "x.onnx").exists()


def test_what_is_quantised_already(tmp_path):
    quantize_encoder(small_model(), calibration(), output=tmp_path / "x.onnx", **QUICK)
    with pytest.raises(RequestError, match="quantised already: give the float one"):
        quantize_encoder(tmp_path / "x.onnx", calibration(), output=tmp_path / "y.onnx", **QUICK)


@pytest.mark.parametrize(
    ("kwargs", "line"),
    [
        ({"method": "median"}, "method is one of minmax, percentile, mse, kl, not 'median'"),
        ({"sixteen_bit": "/nothing/*"}, r"no layer is named '/nothing/\*': use 'residual_adds', 'output' or names"),
        ({"weight_bits": {"/nothing": 4}}, "no layer with weights is named '/nothing': such are /conv1"),
        ({"weight_bits": {"*": 5}}, "weights have 4, 8, 16 bits, not 5"),
        ({"windows": 0}, "windows is a positive number"),
        ({"finetune_steps": -1}, "finetune_steps is 0 or more"),
        ({"output": None}, "name an output file"),
        ({"output": "."}, r". is a folder: name an ONNX file in it"),
    ],
)
def test_wrong_requests(tmp_path, kwargs, line):
    with pytest.raises(RequestError, match=line) as raised:
        quantize_encoder(small_model(), calibration(), **{"output": tmp_path / "x.onnx"} | kwargs)
    assert "\n" not in str(raised.value)


# The verb


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["quantize", *map(str, arguments)])
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def test_the_verb(tmp_path, capsys, make_speech):
    """Real log-mel features of 30 s, through a table of audio, on a folder."""
    model = small_model(max_source_positions=1500, num_mel_bins=80, encoder_options={"width": 16, "inner": 8})
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "speech").mkdir()
    for index in range(10):
        soundfile.write(tmp_path / "speech" / f"{index}.wav", make_speech(4, index), 16_000)
    code, out, err = run(
        capsys, tmp_path / "model", "--audio", tmp_path / "speech", "--method", "minmax", "--sixteen-bit", "output",
        "--weight-bits", "/blocks.*=4", "--quick", "--report", tmp_path / "report.json", "--json",
    )  # fmt: skip
    assert code == 0, err
    data = json.loads(out)
    assert data == json.loads((tmp_path / "report.json").read_text())
    assert data["output"]["dtype"] == "uint16"
    assert data["settings"]["weight_bits"] == {"/blocks.*": 4}
    assert "windows: ranges may be too narrow" in err
    assert (tmp_path / "model" / artefacts.ONNX_INT8_PATH).is_file()
    code, out, err = run(capsys, tmp_path / "model", "-a", tmp_path / "speech", "--quick", "--method", "minmax")
    assert code == 0
    assert "states, SNR" in out
    assert "/head/Conv" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere", "--audio", "."], "no model folder nowhere here"),
        (["{model}", "--audio", "nowhere"], "no such file or folder of audio to calibrate with"),
        (["{model}", "--audio", ".", "--weight-bits", "head"], "--weight-bits head: write it as name=bits"),
        (["{model}", "--audio", ".", "--method", "median"], "method is one of"),
        (["{model}"], "--audio"),
    ],
)
def test_the_verb_explains_in_one_line(saved, capsys, arguments, line):
    code, out, err = run(capsys, *(word.format(model=saved) for word in arguments))
    assert code == 2
    assert out == ""
    assert line in err
    assert len(err.strip().splitlines()) == 1
