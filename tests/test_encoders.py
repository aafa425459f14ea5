"""The encoder families: shapes, budgets, layouts, alignment of frames, windows, and what they refuse."""

import copy

import pytest
import torch
from helpers_models import FAMILIES, features_for, loss_inputs_for, same_states, small_config, small_model
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from whisper_hailo_hf import (
    HailoWhisperEncoder,
    RequestError,
    WhisperHailoConfig,
    WhisperHailoForConditionalGeneration,
)
from whisper_hailo_hf.encoders import HostStage, build_encoder, get_family
from whisper_hailo_hf.encoders.export import folded
from whisper_hailo_hf.encoders.layers import AxisConv2d, PositionMap

PUBLISHED = {"tiny": (384, 6), "base": (512, 8), "small": (768, 12)}  # d_model, heads
ALLOWED = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.AdaptiveAvgPool2d,
    nn.Sigmoid,
    nn.Upsample,
    nn.Identity,
    PositionMap,  # a constant that is added
)


def encoder_for(family="conv", **changes):
    return small_model(family, cls=HailoWhisperEncoder, **changes)


def preset_config(preset, **changes):
    d_model, heads = PUBLISHED[preset]
    options = get_family("conv").preset(preset)
    sizes = {"d_model": d_model, "encoder_attention_heads": heads, "encoder_layers": options.pop("encoder_layers")}
    return WhisperHailoConfig(**sizes | {"encoder_options": options, "encoder_preset": preset} | changes)


@torch.no_grad()
def states_of(encoder, features):
    return encoder(features)[0]


# Presets


def test_presets():
    assert list(get_family("conv").presets) == ["micro", "tiny", "base", "small"]


@pytest.mark.parametrize("preset", ["tiny", "base", "small"])
def test_preset_builds_within_the_budget(preset):
    with torch.device("meta"):
        core, host = build_encoder(preset_config(preset))
    count = sum(parameter.numel() for parameter in core.parameters())
    if preset != "small":
        assert 6e6 < count <= 12e6
    else:
        assert count < 60e6
    assert host.positional_map.weight.shape == (1500, PUBLISHED[preset][0])
    # wide maps run at 750 frames or fewer; only the head's output and the stem's own are at 1500
    for block in core.blocks:
        assert block.reduce.conv.in_channels == core.conv2.conv.out_channels
    leaves = [part for part in core.modules() if not list(part.children()) and not isinstance(part, nn.ModuleList)]
    assert all(isinstance(part, ALLOWED) for part in leaves)


def test_micro_preset_hears_thirty_seconds():
    options = get_family("conv").preset("micro")
    layers = options.pop("encoder_layers")
    config = small_config(max_source_positions=1500, encoder_layers=layers, encoder_options=options, num_mel_bins=80)
    states = states_of(HailoWhisperEncoder(config).eval(), features_for(config, batch=1))
    assert states.shape == (1, 1500, 16)


def test_body_runs_at_half_rate():
    seen = {}
    encoder = encoder_for()
    for name, module in encoder.core.named_modules():
        if isinstance(module, AxisConv2d):
            module.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output.shape[-1]}))
    states_of(encoder, features_for(encoder.config))
    assert {frames for name, frames in seen.items() if name.startswith("blocks")} == {15}
    assert seen["conv1.conv"] == 30


# Layouts


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_conv_layouts_agree(activation, depthwise):
    options = {"width": 24, "inner": 12, "activation": activation, "depthwise": depthwise, "taps": 5}
    check_layouts("conv", encoder_layers=3, encoder_options=options)


@pytest.mark.parametrize("tiles", ["all", "first"])
@pytest.mark.parametrize("window", [None, 0.2])
def test_attention_layouts_agree(window, tiles):
    check_layouts("attention", encoder_options={"window_seconds": window, "tiles": tiles})


def check_layouts(family, **changes):
    width = encoder_for(family, time_axis="width", **changes)
    height = HailoWhisperEncoder(small_config(family, time_axis="height", **changes)).eval()
    height.load_state_dict(width.state_dict())  # not a shape differs
    features = features_for(width.config)
    first, second = states_of(width, features), states_of(height, features)
    assert torch.allclose(first, second, atol=1e-6)
    assert first.std() > 0.1
    with torch.no_grad():
        core = height.core(height.host.windows(features))
    assert core.shape[1:] == (16, height.core.frames // 2, 1)


def test_layouts_train_alike():
    gradients = []
    for axis in ("width", "height"):
        model = small_model("conv", time_axis=axis).train()
        model(**loss_inputs_for(model.config)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5), name


# Frames


@pytest.mark.parametrize("taps", [3, 5])
def test_conv_frames_are_aligned(taps):
    """An impulse at mel frame 2i moves the states around i more than all others, wherever it is."""
    options = {"width": 24, "inner": 12, "taps": taps, "gate_every": 0}
    encoder = encoder_for("conv", max_source_positions=200, encoder_options=options)
    silence = torch.zeros(1, 8, 400)
    quiet = states_of(encoder, silence)
    for frame in (1, 40, 99, 100, 101, 160, 198):
        features = silence.clone()
        features[..., 2 * frame] = 3.0
        moved = (states_of(encoder, features) - quiet).abs().sum(-1)[0]
        centre = (moved * torch.arange(200)).sum() / moved.sum()
        assert abs(moved.argmax().item() - frame) <= 2, frame
        if 20 < frame < 180:
            assert abs(centre.item() - frame) < 2, frame
            # no tap reaches further than the dilations allow
            assert not moved[: frame - 4 * taps - 8].any()
            assert not moved[frame + 4 * taps + 9 :].any()


def test_gates_see_the_whole_window():
    encoder = encoder_for(
        "conv", max_source_positions=200, encoder_options={"width": 24, "inner": 12, "gate_every": 1}
    )
    features = torch.zeros(1, 8, 400)
    quiet = states_of(encoder, features)
    features[..., :40] = 3.0
    assert (states_of(encoder, features) - quiet)[0, -20:].abs().max() > 1e-5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_axis_convolution_is_a_conv1d(taps, dilation, stride):
    torch.manual_seed(0)
    hidden = torch.randn(2, 6, 21)
    conv = AxisConv2d(6, 4, taps, stride=stride, dilation=dilation)
    expected = nn.functional.conv1d(
        hidden, conv.weight.squeeze(2), conv.bias, stride, dilation * (taps - 1) // 2, dilation
    )
    assert torch.allclose(conv(hidden.unsqueeze(2)).squeeze(2), expected, atol=1e-6)
    assert expected.shape[-1] == -(-21 // stride)
    assert torch.allclose(conv.plain()(hidden.unsqueeze(2)).squeeze(2), expected, atol=1e-6)


def test_even_taps_have_no_centre_and_are_not_padded():
    with pytest.raises(ValueError, match="4 taps has no centre"):
        AxisConv2d(2, 2, 4, stride=2)
    hidden = torch.randn(2, 6, 21)
    conv = AxisConv2d(6, 4, 2)
    expected = nn.functional.conv1d(hidden, conv.weight.squeeze(2), conv.bias)
    assert expected.shape[-1] == 20
    assert torch.allclose(conv(hidden.unsqueeze(2)).squeeze(2), expected, atol=1e-6)
    assert torch.allclose(conv.plain()(hidden.unsqueeze(2)).squeeze(2), expected, atol=1e-6)


# The pyramid of the conv family


def frames_of_blocks(encoder, features):
    """Frames at which each block runs."""
    seen = []
    axis = 3 if encoder.config.time_axis == "width" else 2
    hooks = [
        block.register_forward_hook(lambda module, args, output: seen.append(output.shape[axis]))
        for block in encoder.core.blocks
    ]
    states = states_of(encoder, features)
    for hook in hooks:
        hook.remove()
    return seen, states


@pytest.mark.parametrize("time_axis", ["width", "height"])
@pytest.mark.parametrize(
    ("positions", "levels", "frames"),
    [
        (48, (0, 1, 2, 1, 0), [24, 12, 6, 12, 24]),
        (60, (1, 2, 3, 0, 0), [15, 8, 4, 30, 30]),  # 30, 15, 8, 4: two odd levels, and a rise of three at once
        (60, (2, 2, 2, 2, 2), [8] * 5),
        (60, (2, 0, 2, 0, 2), [8, 30, 8, 30, 8]),
        (60, (2,), [8] * 5),
        (60, (0, 1), [30, 30, 30, 15, 15]),
    ],
)
def test_blocks_run_at_their_levels(time_axis, positions, levels, frames):
    options = {"width": 16, "stem": 8, "inner": 8, "levels": levels, "positions": True, "refine_depthwise": True}
    encoder = encoder_for(
        max_source_positions=positions, encoder_layers=5, encoder_options=options, time_axis=time_axis
    )
    features = features_for(encoder.config)
    seen, states = frames_of_blocks(encoder, features)
    assert seen == frames
    assert states.shape == (len(features), positions, encoder.config.d_model)


def test_no_frame_is_shifted_by_the_levels():
    """A sound at one place moves the states around that place most, on the way through odd levels too."""
    options = {"width": 16, "inner": 8, "levels": (3,), "gate_every": 0, "dilations": (1,)}
    encoder = encoder_for(max_source_positions=300, encoder_layers=1, encoder_options=options)
    quiet = torch.zeros(1, encoder.config.num_mel_bins, 600)
    for place in (90, 151, 208):
        loud = quiet.clone()
        loud[:, :, 2 * place : 2 * place + 2] = 5.0
        change = (states_of(encoder, loud) - states_of(encoder, quiet)).abs().sum(-1)[0]
        touched = change.nonzero().flatten()
        middle = float((touched.min() + touched.max()) / 2)
        assert abs(middle - place) <= 16  # one frame of the lowest level is 16 states long
        assert abs(int(change.argmax()) - place) <= 16


def test_a_table_of_positions_is_part_of_the_core():
    encoder = encoder_for(encoder_options={"width": 16, "inner": 8, "positions": True})
    features = features_for(encoder.config)
    before = states_of(encoder, features)
    with torch.no_grad():
        encoder.core.positional_map.weight[0] = 1.0
    after = states_of(encoder, features)
    assert not torch.equal(before[:, :2], after[:, :2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (4,)}, "levels are whole numbers from 0"),
        ({"levels": ()}, "levels are whole numbers from 0"),
        ({"stem": -1}, "stem is a number of channels"),
        ({"norm": "layer"}, "norm is 'batch' or 'none', not 'layer'"),
        ({"refine_taps": 4}, "taps are odd"),
    ],
)
def test_wrong_options_of_the_pyramid(options, message):
    with pytest.raises(RequestError, match=message):
        encoder_for(encoder_layers=2, encoder_options=options)


def test_without_normalisation_nothing_needs_folding():
    encoder = encoder_for(encoder_options={"width": 16, "inner": 8, "norm": "none"})
    assert not [m for m in encoder.core.modules() if isinstance(m, nn.BatchNorm2d)]
    features = encoder.host.windows(features_for(encoder.config))
    with torch.no_grad():
        assert torch.allclose(folded(encoder.core)(features), encoder.core(features), atol=1e-5)


# The host's part


def test_windows_and_states_of_the_host():
    host = HostStage(12, 4, 3, "all", "width", positional_map=True)
    features = torch.arange(2 * 5 * 24.0).view(2, 5, 24)
    windows = host.windows(features)
    assert windows.shape == (8, 5, 1, 6)
    assert torch.equal(windows[5].squeeze(1), features[1, :, 6:12])
    core_output = torch.randn(8, 4, 1, 3)
    with torch.no_grad():
        host.positional_map.weight.normal_()
        states = host.states(core_output)
        side_by_side = torch.cat(list(core_output[4:].squeeze(2)), dim=-1).t()
        expected = host.layer_norm(side_by_side + host.positional_map.weight)
    assert torch.allclose(states[1], expected, atol=1e-6)


def test_first_tile_leaves_zeros_behind():
    encoder = encoder_for("attention", encoder_options={"window_seconds": 0.2, "tiles": "first"})
    every = encoder_for("attention", encoder_options={"window_seconds": 0.2})
    features = features_for(encoder.config)
    first, states = states_of(every, features), states_of(encoder, features)
    assert torch.allclose(states[:, :10], first[:, :10], atol=1e-6)
    assert not states[:, 10:].any()
    assert states.shape == (2, 30, 16)


# Attention


def stock_encoder(**changes):
    torch.manual_seed(0)
    config = WhisperConfig(**{**WHISPER, **changes})
    encoder = WhisperEncoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 8,
}


@pytest.mark.parametrize("time_axis", ["width", "height"])
@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [30, 10, 5])
def test_attention_has_stock_states(seconds, mel_bins, time_axis):
    stock = stock_encoder(num_mel_bins=mel_bins)
    ours = HailoWhisperEncoder(
        small_config(
            "attention",
            max_source_positions=1500,
            num_mel_bins=mel_bins,
            time_axis=time_axis,
            encoder_options={"window_seconds": seconds},
        )
    ).eval()
    ours.load_stock_encoder(stock)
    assert ours.core.frames == seconds * 100
    features = features_for(ours.config, batch=2)
    states = states_of(ours, features)
    assert states.shape == (2, 1500, 16)
    if seconds == 30:
        expected = stock(features)[0]
    else:  # each window stands for itself, with the first rows of the table
        short = stock_encoder(num_mel_bins=mel_bins, max_source_positions=50 * seconds)
        weights = stock.state_dict()
        weights["embed_positions.weight"] = weights["embed_positions.weight"][: 50 * seconds]
        short.load_state_dict(weights)
        expected = torch.cat([short(window)[0] for window in features.split(100 * seconds, dim=-1)], dim=1)
    assert torch.allclose(states, expected, atol=1e-4)
    assert expected.std() > 0.1


def test_attention_takes_stock_weights_of_its_shape_only():
    ours = encoder_for("attention", max_source_positions=1500)
    for name, value in (("d_model", 32), ("num_mel_bins", 80), ("max_source_positions", 750)):
        with pytest.raises(RequestError, match=f"this encoder has {name} .* must agree"):
            ours.load_stock_encoder(stock_encoder(**{name: value}))


# Refusals


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("conv", {"max_source_positions": 31}, "needs an even max_source_positions, not 31"),
        ("recurrent", {}, "unknown encoder family 'recurrent': choose attention, conv"),
        (
            "conv",
            {"encoder_options": {"heads": 3}},
            "the conv family has no option heads: it has activation",
        ),
        ("conv", {"encoder_options": {"activation": "gelu"}}, "activation is 'relu', 'relu6' or 'silu', not 'gelu'"),
        ("conv", {"encoder_options": {"taps": 4}}, "taps are odd"),
        ("conv", {"encoder_options": {"width": "wide"}}, "positive whole numbers"),
        ("conv", {"encoder_options": {"dilations": []}}, "dilations are positive whole numbers"),
        ("attention", {"encoder_options": {"width": 3}}, "the attention family has no option width"),
        ("attention", {"encoder_options": {"window_seconds": 0.25}}, r"does not divide the 30 positions \(0.6 s\)"),
        ("attention", {"encoder_options": {"window_seconds": 0.201}}, "does not divide"),
        ("attention", {"encoder_options": {"window_seconds": 0}}, "does not divide"),
        ("attention", {"encoder_options": {"window_seconds": "ten"}}, "is a number of seconds, not 'ten'"),
        ("attention", {"encoder_options": {"tiles": "last"}}, "tiles is 'all' or 'first', not 'last'"),
        ("attention", {"encoder_attention_heads": 3}, "d_model 16 is not a multiple of encoder_attention_heads 3"),
        ("attention", {"activation_function": "gelu_new"}, "no activation_function 'gelu_new' here: choose relu"),
    ],
)
def test_refusals(family, changes, message):
    with pytest.raises(RequestError, match=message) as caught:
        HailoWhisperEncoder(small_config(family, **changes))
    assert "\n" not in str(caught.value)


def test_options_may_come_from_json():
    as_list = encoder_for("conv", encoder_layers=3, encoder_options={"width": 8, "inner": 8, "dilations": [1, 3]})
    assert [block.mix.conv.time_dilation for block in as_list.core.blocks] == [1, 3, 1]


# From the smallest to `small`


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", ["smallest", "small"])
def test_builds_trains_exports_and_loads_back(family, size, tmp_path):
    if size == "smallest":
        model = small_model(family)
    else:  # the shapes of whisper-small, with fewer layers and words
        shapes = {"decoder_attention_heads": 12, "decoder_ffn_dim": 3072, "encoder_ffn_dim": 3072}
        sizes = {"decoder_layers": 1, "vocab_size": 200, "max_target_positions": 448, "encoder_family": family}
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), 199)
        own = {} if family == "conv" else {"encoder_layers": 1, "encoder_options": {"window_seconds": 5}}
        few = {"encoder_layers": 2} if family == "conv" else {}
        torch.manual_seed(0)
        config = preset_config("small", **shapes | sizes | ids | own | few)
        model = WhisperHailoForConditionalGeneration(config)
    config = model.config
    features = features_for(config, batch=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.get_encoder().state_dict())
    inputs = {"input_features": features, "labels": torch.tensor([[5, 6, 7]])}
    model.train()(**inputs).loss.backward()
    optimizer.step()
    model.eval()
    head = "core.head.weight" if family == "conv" else "core.layers.0.fc2.weight"
    assert not torch.equal(before[head], model.get_encoder().state_dict()[head])
    expected = states_of(model.get_encoder(), features)
    assert expected.shape == (1, config.max_source_positions, config.d_model)
    model.set_encoder_backend("onnx", threads=1)
    assert torch.allclose(states_of(model.get_encoder(), features), expected, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "onnx" / "encoder.onnx").exists()
    again = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path)
    assert again.encoder_backend == "onnx"
    assert same_states(model, again)
    assert torch.allclose(states_of(again.get_encoder(), features), expected, atol=1e-4)
    assert again.generate(features, max_new_tokens=3).shape[0] == 1


def test_stock_small_checkpoint_gives_the_small_preset(tmp_path):
    sizes = {"encoder_attention_heads": 12, "decoder_attention_heads": 12, "decoder_layers": 1, "encoder_layers": 1}
    shapes = {"d_model": 768, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 60, "num_mel_bins": 128}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), 59)
    WhisperForConditionalGeneration(WhisperConfig(**sizes | shapes | ids)).save_pretrained(tmp_path)
    config = WhisperHailoForConditionalGeneration.from_whisper(tmp_path, encoder_layers=1).config
    assert (config.encoder_preset, config.encoder_layers, config.num_mel_bins) == ("small", 1, 128)
