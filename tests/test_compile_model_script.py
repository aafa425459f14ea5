"""Model scripts: what is written for an encoder, and what of a user's own is caught before the compiler starts."""

from __future__ import annotations

import pytest
from helpers_har import write_har
from helpers_models import small_model

from whisper_hailo_hf import RequestError
from whisper_hailo_hf.compile.export import export_encoder
from whisper_hailo_hf.compile.hef_check import asks_for_16_bits
from whisper_hailo_hf.compile.hn_diff import diff_har
from whisper_hailo_hf.compile.model_script import check_script, generate, parse_script, read_script, script_text
from whisper_hailo_hf.hailo.har import read_har

CHECK = "model_optimization_config(checker_cfg, policy=enabled)\n"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    export_encoder(small_model(), folder / "encoder.onnx", windows=0)
    write_har(folder / "encoder.onnx", folder / "encoder.har")
    return read_har(folder / "encoder.har"), diff_har(folder / "encoder.onnx", folder / "encoder.har")


def written(network, entries=1024, **kwargs) -> list[str]:
    return [line.command for line in generate(*network, entries, **kwargs)]


def test_a_script_without_a_report(network):
    assert written(network) == [
        "model_optimization_flavor(optimization_level=2, compression_level=0)",
        "model_optimization_config(calibration, batch_size=8, calibset_size=1024)",
        "quantization_param({ew_add*}, precision_mode=a16_w16)",
        "quantization_param(output_layer1, precision_mode=a16_w16)",
        (
            "post_quantization_optimization(finetune, policy=enabled, dataset_size=1024, epochs=4, batch_size=8, "
            "learning_rate=1e-05)"
        ),
        "model_optimization_config(checker_cfg, policy=enabled, dataset_size=16, analyze_mode=simple)",
        "performance_param(optimize_for_batch=1)",
    ]


def test_a_script_for_little_audio_and_no_fine_tuning(network):
    lines = written(network, 100, finetune_epochs=0, noise_check=False)
    assert "model_optimization_flavor(optimization_level=1, compression_level=0)" in lines
    assert "model_optimization_config(calibration, batch_size=8, calibset_size=100)" in lines
    assert "post_quantization_optimization(finetune, policy=disabled)" in lines
    assert "model_optimization_config(checker_cfg, policy=disabled)" in lines


def report(*layers, sixteen_bit=()) -> dict:
    keys = ("name", "kind", "input_bits", "weight_bits")
    return {"layers": [dict(zip(keys, one, strict=True)) for one in layers], "settings": {"sixteen_bit": sixteen_bit}}


def test_a_script_from_a_report(network):
    har, diff = network
    adds = [match.node for match in diff.matches if match.op == "Add"]
    conv = next(match for match in diff.matches if match.op == "Conv")
    short = conv.layers[0].rpartition("/")[2]
    given = ("input_features", "input", None, None)
    lines = written(
        network, report=report(given, (conv.node, "conv", 8, 4), *((add, "add", 16, None) for add in adds))
    )
    assert [line for line in lines if line.startswith("quantization_param")] == [
        f"quantization_param({short}, precision_mode=a8_w4)",
        "quantization_param({ew_add*}, precision_mode=a16_w16)",
    ]
    assert all(line.why for line in generate(har, diff, 1024))
    lines = written(network, report=report((adds[0], "add", 16, None), sixteen_bit=["output"]))
    wide = [line for line in lines if "a16_w16" in line]
    assert len(wide) == 2
    assert "{" not in wide[0] or len(adds) == 1
    assert wide[1] == "quantization_param(output_layer1, precision_mode=a16_w16)"
    with pytest.raises(RequestError, match="names the layer /elsewhere/Conv, which this graph does not have"):
        written(network, report=report(("/elsewhere/Conv", "conv", 16, 16)))


def test_what_is_written_is_taken(network):
    text = script_text(generate(*network, 1024))
    assert check_script(text, "encoder.alls", network[0], 1024, noise_check=True) == []
    assert [command.name for command in parse_script(text, "x")][:2] == [
        "model_optimization_flavor",
        "model_optimization_config",
    ]


def test_what_is_read(network):
    text = (
        "# a comment\n\nnormalization1 = normalization([0.0, 1.0], [1.0, 1.0])  # and one behind\n"
        "quantization_param([conv1, conv2],\n    precision_mode=a16_w16)\nset_seed(seed=5)\n"
    )
    first, second, third = parse_script(text, "x")
    assert (first.name, first.targets, first.arguments) == (
        "normalization",
        "normalization1",
        ("[0.0, 1.0]", "[1.0, 1.0]"),
    )
    assert (second.line, second.arguments[0], second.value("precision_mode")) == (4, "[conv1, conv2]", "a16_w16")
    assert (third.line, third.value("seed"), third.value("sead")) == (6, "5", None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("normalization([0.0], [1.0])\n", r"mine.alls, line 1: .*write normalization1 = normalization"),
        ("set_seed(seed=1)\nquantization_param conv1\n", r"line 2: 'quantization_param conv1' is no command"),
        ("set_seed(seed=1))\n", "is no command of the form"),
        ("quantization_param([conv1,\n", r"line 1: .* lacks a closing bracket"),
        ("quantization_params(conv1, precision_mode=a16_w16)\n", "'quantization_param' is meant"),
        ("quantization_param(conv99, precision_mode=a16_w16)\n", "has no layer 'conv99'; conv"),
        ("quantization_param([conv1, dense1], precision_mode=a16_w16)\n", "has no layer 'dense1'"),
        ("model_optimization_config(calibration, calibset_size=4096)\n", "4096, but the calibration set has 1024"),
        (
            "performance_param(compiler_optimization_level=max)\nresources_param(strategy=greedy)\n",
            "exclude each other",
        ),
    ],
)
def test_scripts_that_are_refused(network, text, line):
    with pytest.raises(RequestError, match=line):
        check_script(text + CHECK, "mine.alls", network[0], 1024, noise_check=True)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("set_seed(seed=1)\n", "does not turn the noise check on"),
        (CHECK.replace("enabled", "disabled"), "turns the noise check off"),
    ],
)
def test_the_noise_check_must_be_on(network, text, line):
    with pytest.raises(RequestError, match=f"{line}: add .* --skip-noise-check"):
        check_script(text, "mine.alls", network[0], 1024, noise_check=True)
    assert check_script(text, "mine.alls", network[0], 1024, noise_check=False) == []


def test_what_is_left_to_the_compiler(network):
    text = CHECK + "brand_new_command(x)\nquantization_param({matmul*}, precision_mode=a16_w16)\n"
    warnings = check_script(text, "mine.alls", network[0], 1024, noise_check=True)
    assert len(warnings) == 2
    assert "'brand_new_command' is in no public script" in warnings[0]
    assert "no layer of this network is meant by {matmul*}" in warnings[1]


def test_files_that_are_no_scripts(tmp_path):
    with pytest.raises(RequestError, match="no such model script"):
        read_script(tmp_path / "none.alls")
    (tmp_path / "binary.alls").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RequestError, match="cannot be read as a model script"):
        read_script(tmp_path / "binary.alls")


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("quantization_param(output_layer1, precision_mode=a16_w16)", True),
        ("quantization_param([conv1, encoder/output_layer1], precision_mode=a16_w16)", True),
        ("quantization_param({output*}, precision_mode=a16_w16)", True),
        ("model_optimization_config(globals, output_16bit=enabled)", True),
        ("quantization_param(conv1, precision_mode=a16_w16)", False),
        ("quantization_param(output_layer1, precision_mode=a8_w8)", False),
    ],
)
def test_which_scripts_want_a_wide_output(network, text, wide):
    assert asks_for_16_bits(text, network[0]) is wide
