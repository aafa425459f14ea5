"""The `linear_attention` family: its maths, its 500 frames, its layouts, and how it is built."""

import pytest
import torch
from helpers_models import features_for, loss_inputs_for, same_states, small_config, small_model
from torch import nn

from whisper_hailo_hf import HailoWhisperEncoder, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.encoders import build_encoder, get_family
from whisper_hailo_hf.encoders.linear_attention import KernelAttention, LinearAttentionCore
from whisper_hailo_hf.errors import RequestError

FAMILY = "linear_attention"


def encoder_for(**changes):
    encoder = small_model(FAMILY, cls=HailoWhisperEncoder, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for part in encoder.core.modules():
            if isinstance(part, nn.GroupNorm):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.3)
    return encoder


@pytest.mark.parametrize(
    ("feature_map", "phi"),
    [
        ("elu", lambda x: nn.functional.elu(x) + 1),
        ("silu", lambda x: x * torch.sigmoid(x) + 1),
        ("relu", lambda x: x.clamp(min=0)),
    ],
)
def test_attention_is_the_formula(feature_map, phi):
    torch.manual_seed(0)
    attention, hidden = KernelAttention(8, 2, feature_map).double(), torch.randn(2, 8, 1, 5).double()
    query, key, value = (proj(hidden).squeeze(2) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
    query, key = phi(query), phi(key)
    mixed = torch.zeros_like(value)
    for head in range(2):
        own = range(4 * head, 4 * head + 4)
        for frame in range(5):
            denominator = sum(query[:, c, frame] * key[:, c].sum(-1) for c in own) + 1e-6
            for c in own:
                sums = (key[:, c] * value[:, c]).sum(-1)
                mixed[:, c, frame] = query[:, c, frame] * sums / denominator / 4**0.5
    assert torch.allclose(attention(hidden), attention.out_proj(mixed.unsqueeze(2)))


def test_a_third_of_the_frames_each_three_times():
    encoder = encoder_for(max_source_positions=1500)
    output = encoder(features_for(encoder.config, batch=1), output_hidden_states=True)
    assert output.last_hidden_state.shape == (1, 1500, 16)
    assert {states.shape for states in output.hidden_states[:-1]} == {(1, 500, 16)}
    with torch.no_grad():
        (core,) = encoder.core(encoder.host.windows(features_for(encoder.config, batch=1)))
    thirds = core.reshape(16, 500, 3)
    assert torch.equal(thirds[..., 0], thirds[..., 1])
    assert torch.equal(thirds[..., 0], thirds[..., 2])
    assert thirds[..., 0].std() > 0.1


def test_frames_stay_where_they_are():
    """What sounds in the middle shows in the middle; the global sums only rescale the rest alike."""
    encoder = encoder_for(max_source_positions=300, encoder_layers=1)
    quiet = torch.full((1, 8, 600), -0.5)
    loud = quiet.clone()
    loud[..., 296:304] = 1.5
    with torch.no_grad():
        change = (encoder(loud).last_hidden_state - encoder(quiet).last_hidden_state).abs().sum(-1)[0]
    assert 145 <= change.argmax() <= 155


def test_layouts_give_the_same():
    wide, tall = encoder_for(), encoder_for(time_axis="height")
    assert same_states(wide, tall)
    features = features_for(wide.config)
    assert torch.allclose(wide(features).last_hidden_state, tall(features).last_hidden_state, atol=1e-5)


@pytest.mark.parametrize("time_axis", ["width", "height"])
def test_backends_agree(time_axis):
    pytest.importorskip("onnxruntime")
    encoder = encoder_for(time_axis=time_axis)
    features = features_for(encoder.config)
    with torch.no_grad():
        expected = encoder(features).last_hidden_state
        encoder.set_encoder_backend("onnx", threads=1)
        found = encoder(features).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-4)


def test_it_trains():
    model = small_model(FAMILY).train()
    model(**loss_inputs_for(model.config)).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.get_encoder().core.named_parameters()}
    del gradients["embed_positions.weight"]  # fixed sinusoids
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())


def test_saved_and_loaded(tmp_path):
    model = small_model(FAMILY, encoder_options={"feature_map": "silu"})
    model.save_pretrained(tmp_path)
    loaded = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path)
    assert same_states(model, loaded)
    assert loaded.config.encoder_options == {"feature_map": "silu"}
    features = features_for(model.config)
    assert torch.equal(
        loaded.get_encoder()(features).last_hidden_state, model.get_encoder()(features).last_hidden_state
    )


def test_from_whisper_takes_decoder_and_stem(stock_whisper):
    model = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family=FAMILY, preset="tiny")
    assert model.config.encoder_layers == 6
    from transformers import WhisperForConditionalGeneration

    stock = WhisperForConditionalGeneration.from_pretrained(stock_whisper)
    core = model.get_encoder().core
    assert isinstance(core, LinearAttentionCore)
    assert torch.equal(core.conv2.weight.squeeze(2), stock.model.encoder.conv2.weight)
    assert torch.equal(core.conv1.bias, stock.model.encoder.conv1.bias)
    assert same_states(model.model.decoder, stock.model.decoder)


def test_preset_has_as_many_parameters_as_the_student_of_that_name():
    def parameters(family):
        settings = get_family(family).preset("tiny")
        sizes = {"d_model": 384, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "num_mel_bins": 80}
        layers = settings.pop("encoder_layers")
        config = small_config(
            family, **sizes, max_source_positions=1500, encoder_layers=layers, encoder_options=settings
        )
        with torch.device("meta"):
            core, _ = build_encoder(config)
        return sum(parameter.numel() for parameter in core.parameters())

    assert 0.8 < parameters(FAMILY) / parameters("conv") < 1.2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_options": {"feature_map": "exp"}}, "feature_map is 'elu', 'silu' or 'relu', not 'exp'"),
        ({"encoder_options": {"width": 3}}, "the linear_attention family has no option width"),
        ({"max_source_positions": 40}, "needs max_source_positions that 3 divides, not 40"),
        ({"encoder_attention_heads": 3}, "d_model 16 is not a multiple of encoder_attention_heads 3"),
    ],
)
def test_bad_options(changes, words):
    with pytest.raises(RequestError, match=words):
        HailoWhisperEncoder(small_config(FAMILY, **changes))


def test_it_has_one_preset():
    with pytest.raises(RequestError, match="the linear_attention family has no preset 'base': choose tiny"):
        get_family(FAMILY).preset("base")
