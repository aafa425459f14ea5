"""The model classes as Transformers models: saving and loading, training, outputs, copies. Both encoder families."""

import copy
import inspect
import json
import pickle

import pytest
import torch
from helpers_models import (
    FAMILIES,
    SHAPES,
    features_for,
    inputs_for,
    loss_inputs_for,
    randomise,
    same_states,
    small_config,
    small_model,
)
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSpeechSeq2Seq,
    GenerationConfig,
    GenerationMixin,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.modeling_whisper import sinusoids

from whisper_hailo_hf import (
    HailoWhisperEncoder,
    RequestError,
    WhisperHailoConfig,
    WhisperHailoForConditionalGeneration,
    WhisperHailoModel,
)
from whisper_hailo_hf.encoders import PositionMap

CLASSES = [WhisperHailoForConditionalGeneration, WhisperHailoModel, HailoWhisperEncoder]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return small_model(family)


@torch.no_grad()
def run(model, inputs=None):
    """The model's main output for fixed inputs."""
    inputs = inputs or inputs_for(model.config)
    if isinstance(model, HailoWhisperEncoder):
        return model(inputs["input_features"])[0]
    return model(**inputs)[0]


def close(first, second):
    """Equal but for the kernel that a convolution took, which may depend on where its weights lie in memory."""
    return torch.allclose(first, second, atol=1e-6)


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name or "batches" in name}


# Saving and loading


@pytest.mark.parametrize("cls", CLASSES)
def test_save_and_load(family, cls, tmp_path):
    model = small_model(family, cls=cls)
    model.save_pretrained(tmp_path)
    again, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not again.training
    assert same_states(model, again)
    assert close(run(model), run(again))


def test_files_of_a_saved_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "whisper_hailo_shim.py",
    }
    assert "proj_out.weight" not in load_file(tmp_path / "model.safetensors")


def test_sharded(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same_states(model, type(model).from_pretrained(tmp_path))


def test_variant(model, tmp_path):
    model.save_pretrained(tmp_path, variant="fp32")
    assert (tmp_path / "model.fp32.safetensors").exists()
    with pytest.raises(OSError, match="variant"):
        type(model).from_pretrained(tmp_path)
    assert same_states(model, type(model).from_pretrained(tmp_path, variant="fp32"))


def test_given_state_dict(model, tmp_path):
    other = small_model(model.config.encoder_family, seed=1)
    model.save_pretrained(tmp_path / "other", state_dict=other.state_dict())
    assert same_states(other, type(model).from_pretrained(tmp_path / "other"))
    again = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert same_states(model, again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype(model, dtype, tmp_path):
    model.save_pretrained(tmp_path / "full")
    half = type(model).from_pretrained(tmp_path / "full", dtype=dtype)
    assert half.dtype == dtype
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    inputs = inputs_for(model.config)
    inputs["input_features"] = inputs["input_features"].to(dtype)
    output = run(half, inputs)
    assert output.dtype == dtype
    assert torch.allclose(output.float(), run(model), atol=0.1)
    half.save_pretrained(tmp_path / "half")
    assert type(model).from_pretrained(tmp_path / "half", dtype="auto").dtype == dtype
    assert type(model).from_pretrained(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, "cpu"])
def test_device_map(model, device_map, tmp_path):
    pytest.importorskip("accelerate")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, device_map=device_map, low_cpu_mem_usage=True)
    assert close(run(model), run(again))


def test_base_and_whole_model_load_each_other(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    base, info = WhisperHailoModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(info.values()), info
    base.save_pretrained(tmp_path / "base")
    whole, info = type(model).from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not any(info.values()), info
    assert same_states(model, whole)


def test_auto_classes_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    whole, base = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert (type(whole), type(base)) == (type(model), WhisperHailoModel)
    assert same_states(model, whole)
    assert same_states(model.model, base)


def test_encoder_of_a_model_stands_alone(model, tmp_path):
    model.get_encoder().save_pretrained(tmp_path)
    encoder = HailoWhisperEncoder.from_pretrained(tmp_path)
    features = features_for(model.config)
    assert close(encoder(features)[0], model.get_encoder()(features)[0])
    assert set(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == {"AutoConfig"}


def test_saving_over_itself_and_again(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)
    assert same_states(model, type(model).from_pretrained(tmp_path))


def test_torch_state_dict(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = type(model)(model.config)
    again.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert close(run(model), run(again.eval()))


def test_needs_our_config():
    for cls in CLASSES:
        with pytest.raises(RequestError, match="needs a WhisperHailoConfig, not a WhisperConfig"):
            cls(WhisperConfig())


def test_unknown_backend_costs_no_load(model, tmp_path):
    with pytest.raises(RequestError, match="unknown encoder backend 'abacus': choose auto"):
        type(model).from_pretrained(tmp_path / "not there", encoder_backend="abacus")


# Initialisation


@pytest.mark.parametrize("cls", CLASSES)
def test_initialisation_depends_on_the_seed_alone(family, cls):
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(cls(small_config(family)))
    assert same_states(models[0], models[1])
    assert not same_states(models[0], models[2])


def test_initial_values(family):
    torch.manual_seed(0)
    model = WhisperHailoForConditionalGeneration(small_config(family, d_model=64))
    check_initial_values(model)


@torch.no_grad()
def check_initial_values(model):
    std = model.config.init_std
    for name, module in model.get_encoder().named_modules():
        if isinstance(module, PositionMap):
            if module.kind == "sinusoids":
                assert torch.equal(module.weight, sinusoids(*module.weight.shape)), name
            else:
                assert not module.weight.any(), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
            assert not module.running_mean.any(), name
            assert (module.running_var == 1).all(), name
            assert module.num_batches_tracked == 0, name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
        elif isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(std, rel=0.35), name
            assert module.bias is None or not module.bias.any(), name


def test_missing_weights_are_initialised(family, tmp_path):
    small_model(family).save_pretrained(tmp_path)
    model, info = WhisperHailoForConditionalGeneration.from_pretrained(
        None, config=small_config(family), state_dict={}, output_loading_info=True
    )
    assert len(info["missing_keys"]) >= len(model.state_dict()) - 1  # the tied projection is one with the embedding
    assert not [name for name, tensor in model.state_dict().items() if tensor.is_meta or not tensor.isfinite().all()]
    check_initial_values(model)


def test_meta_device(family):
    with torch.device("meta"):
        model = WhisperHailoForConditionalGeneration(small_config(family))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    with torch.device("cpu"):
        assert not WhisperHailoForConditionalGeneration(
            small_config(family)
        ).model.encoder.host.layer_norm.weight.is_meta


# Copies


@pytest.mark.parametrize("after_forward", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stand_alone(model, duplicate, after_forward):
    if after_forward:
        expected = run(model)
        model.generate(features_for(model.config), max_new_tokens=2)
    twin = duplicate(model)
    assert same_states(model, twin)
    expected = run(model)
    assert close(run(twin), expected)
    with torch.no_grad():
        for parameter in twin.get_encoder().parameters():
            parameter.add_(1.0)
    assert close(run(model), expected)
    assert not close(run(twin), expected)


def test_conversions(model):
    expected = run(model)
    double = inputs_for(model.config)
    double["input_features"] = double["input_features"].double()
    output = run(copy.deepcopy(model).double(), double)
    assert output.dtype == torch.float64
    assert torch.allclose(output.float(), expected, atol=1e-5)
    assert run(copy.deepcopy(model).to(torch.bfloat16).float()).dtype == torch.float32
    half = copy.deepcopy(model).half()
    assert half.dtype == torch.float16


def test_encoder_is_not_answered_from_before_a_change(model):
    """`generate()` asks for the same window several times; what is remembered must not outlive the weights."""
    encoder, features = model.get_encoder(), features_for(model.config)
    with torch.no_grad():
        before = encoder(features)[0]
        assert torch.equal(encoder(features)[0], before)
        assert encoder(features)[0] is not before
        assert not torch.equal(encoder(features_for(model.config, seed=1))[0], before)
        encoder(features)
        model.half().float()
        rounded = encoder(features)[0]
        assert not torch.equal(rounded, before)
        encoder.host.layer_norm.bias += 1
        assert torch.allclose(encoder(features)[0], rounded + 1, atol=1e-5)
        encoder.load_state_dict(encoder.state_dict() | {"host.layer_norm.bias": encoder.host.layer_norm.bias - 1})
        assert torch.allclose(encoder(features)[0], rounded, atol=1e-5)


def test_encoder_is_not_answered_from_before_new_statistics():
    model = small_model("conv")
    with torch.no_grad():
        before = run(model)
    model.train()
    model(**loss_inputs_for(model.config))  # no step: only the running statistics move
    assert not torch.equal(run(model.eval()), before)


def test_answers_can_be_changed_in_place(model):
    encoder, features = model.get_encoder(), features_for(model.config)
    with torch.no_grad():
        expected = encoder(features)[0].clone()
        for _ in range(2):
            encoder(features)[0].zero_()
        assert torch.equal(encoder(features)[0], expected)


def test_inference_mode(family):
    with torch.inference_mode():
        model = small_model(family)
        states = model.get_encoder()(features_for(model.config))[0]
        assert torch.equal(model.get_encoder()(features_for(model.config))[0], states)
        model.generate(features_for(model.config), max_new_tokens=2)


# Training


def test_a_step_changes_every_trainable_parameter(model):
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    output = model(**loss_inputs_for(model.config, batch=3))
    output.loss.backward()
    optimizer.step()
    after = dict(model.named_parameters())
    same = {name for name in before if torch.equal(before[name], after[name])}
    # the bias of a key is the one thing that a softmax does not see
    assert {name for name in same if after[name].requires_grad} == set()
    frozen = {name for name, parameter in after.items() if not parameter.requires_grad}
    tables = {"conv": set(), "attention": {"model.encoder.core.embed_positions.weight"}}
    assert frozen == tables[model.config.encoder_family]


def test_training_learns(model):
    model.train()
    inputs = loss_inputs_for(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # renamed in Transformers 5.2x
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(family, reentrant):
    gradients, buffers = [], []
    for checkpointing in (False, True):
        model = small_model(family).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            assert model.is_gradient_checkpointing
            model.enable_input_require_grads()  # as PEFT does
        for seed in (0, 1):
            model(**loss_inputs_for(model.config, seed=seed), use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        buffers.append(statistics(model))
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name
    assert bool(buffers[0]) == (family == "conv")
    for name, buffer in buffers[0].items():
        assert torch.equal(buffer, buffers[1][name]), name
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_statistics_follow_the_batches():
    model = small_model("conv").train()
    before = statistics(model)
    model(**loss_inputs_for(model.config))
    after = statistics(model)
    for name, buffer in before.items():
        if name.endswith("batches_tracked"):
            assert after[name] == buffer + 1
        else:
            assert not torch.equal(after[name], buffer), name
    model.eval()
    model(**loss_inputs_for(model.config))
    assert all(torch.equal(buffer, after[name]) for name, buffer in statistics(model).items())


def test_frozen_encoder(model):
    states = model.get_encoder()(features_for(model.config))[0].detach()
    model.train()
    model.freeze_encoder()
    assert not any(parameter.requires_grad for parameter in model.get_encoder().parameters())
    assert all(parameter.requires_grad for parameter in model.get_decoder().parameters())
    model.train()
    for _ in range(2):
        model(**loss_inputs_for(model.config)).loss.backward()
    assert model.get_decoder().layers[0].fc1.weight.grad.any()
    assert all(parameter.grad is None for parameter in model.get_encoder().parameters())
    assert model.training
    # its statistics are frozen, too
    assert torch.equal(model.get_encoder()(features_for(model.config))[0], states)
    model.get_encoder().requires_grad_(True)
    assert model.train().get_encoder().training


def test_gradients_reach_the_input(model):
    features = features_for(model.config).requires_grad_()
    model.get_encoder()(features)[0].sum().backward()
    assert features.grad.abs().sum() > 0


# Embeddings


def test_projection_is_the_embedding(model, tmp_path):
    def tied(model):
        return model.proj_out.weight is model.get_input_embeddings().weight

    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert tied(model)
    assert tied(again)
    assert tied(copy.deepcopy(model))
    assert tied(again.half())
    again.resize_token_embeddings(130)
    assert tied(again)
    assert model.get_output_embeddings() is model.proj_out
    assert isinstance(model.get_input_embeddings(), nn.Embedding)


@pytest.mark.parametrize("size", [130, 110])
def test_resized_embeddings(model, size, tmp_path):
    expected = run(model)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == model.proj_out.out_features == size
    output = run(model)
    assert output.shape[-1] == size
    kept = min(size, expected.shape[-1])
    assert torch.allclose(output[..., :kept], expected[..., :kept], atol=1e-6)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert close(run(again), output)


def test_untied_embeddings(family, tmp_path):
    model = small_model(family, tie_word_embeddings=False)
    assert model.proj_out.weight is not model.get_input_embeddings().weight
    model.resize_token_embeddings(130)
    model.save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert same_states(model, again)
    assert again.proj_out.weight is not again.get_input_embeddings().weight


def test_decoder_embeddings_as_input(model):
    inputs = inputs_for(model.config)
    expected = run(model, inputs)
    ids = inputs.pop("decoder_input_ids")
    embedded = model.get_input_embeddings()(ids)
    assert torch.allclose(run(model, {**inputs, "decoder_inputs_embeds": embedded}), expected, atol=1e-6)


# Outputs


@pytest.mark.parametrize("by_config", [False, True])
@pytest.mark.parametrize("time_axis", ["width", "height"])
def test_hidden_states(family, by_config, time_axis):
    model = small_model(family, time_axis=time_axis)
    config = model.config
    config.output_hidden_states = by_config
    chosen = {} if by_config else {"output_hidden_states": True}
    with torch.no_grad():
        output = model(**inputs_for(config), **chosen)
        plain = model(**inputs_for(config), output_hidden_states=False)
    inner = (15, 24) if family == "conv" else (30, 16)  # conv: half rate, the width of its residual stream
    assert [tuple(state.shape) for state in output.encoder_hidden_states] == [(2, *inner)] * 2 + [(2, 30, 16)]
    assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    assert [tuple(state.shape) for state in output.decoder_hidden_states] == [(2, 5, 16)] * 3
    assert plain.encoder_hidden_states is None
    assert torch.allclose(plain.logits, output.logits, atol=1e-6)


@pytest.mark.parametrize("tiles", ["all", "first"])
def test_hidden_states_of_tiles_lie_side_by_side(tiles):
    model = small_model("attention", encoder_options={"window_seconds": 0.2, "tiles": tiles})
    with torch.no_grad():
        output = model.get_encoder()(features_for(model.config), output_hidden_states=True)
    frames = 30 if tiles == "all" else 10
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, frames, 16)] * 2 + [(2, 30, 16)]


def test_gradients_of_hidden_states_and_attentions(family):
    model = small_model(family, attn_implementation="eager")
    output = model(**inputs_for(model.config), output_hidden_states=True, output_attentions=True)
    kept = [
        output.encoder_hidden_states[0],
        output.encoder_hidden_states[1],
        output.decoder_hidden_states[0],
        output.decoder_attentions[0],
        output.cross_attentions[0],
    ]
    for tensor in kept:
        tensor.retain_grad()
    output.logits.flatten()[0].backward()
    for index, tensor in enumerate(kept):
        assert tensor.grad is not None, index


def test_attentions_are_the_decoders(family):
    model = small_model(family, attn_implementation="eager")
    with torch.no_grad():
        output = model(**inputs_for(model.config), output_attentions=True)
    assert output.encoder_attentions is None
    assert [tuple(weights.shape) for weights in output.decoder_attentions] == [(2, 4, 5, 5)] * 2
    assert [tuple(weights.shape) for weights in output.cross_attentions] == [(2, 4, 5, 30)] * 2
    assert torch.allclose(output.cross_attentions[0].sum(-1), torch.ones(2, 4, 5), atol=1e-5)


def test_tuples(model):
    inputs = inputs_for(model.config)
    with torch.no_grad():
        named, plain = model(**inputs, use_cache=False), model(**inputs, use_cache=False, return_dict=False)
        encoder = model.get_encoder()
        states = encoder(inputs["input_features"], return_dict=False)
    assert isinstance(plain, tuple)
    for first, second in zip(named.to_tuple(), plain, strict=True):
        assert torch.equal(first, second)
    assert isinstance(states, tuple)
    assert torch.equal(states[0], named.encoder_last_hidden_state)


def test_loss_is_the_last_value_of_its_tuple_first(model):
    inputs = loss_inputs_for(model.config)
    with torch.no_grad():
        loss, logits = model(**inputs, use_cache=False, return_dict=False)[:2]
        expected = nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_batches_do_not_mix(model):
    inputs = inputs_for(model.config, batch=4)
    whole = run(model, inputs)
    for row in range(4):
        one = run(model, {name: value[row : row + 1] for name, value in inputs.items()})
        assert torch.allclose(whole[row : row + 1], one, atol=1e-5)


def test_encoder_states_given_instead_of_features(model):
    inputs = inputs_for(model.config)
    with torch.no_grad():
        states = model.get_encoder()(inputs["input_features"])
        output = model(encoder_outputs=states, decoder_input_ids=inputs["decoder_input_ids"])[0]
    assert torch.equal(output, run(model, inputs))


@pytest.mark.parametrize("shape", [(2, 8, 59), (2, 8, 61), (2, 9, 60)])
def test_features_of_another_shape(model, shape):
    with pytest.raises(ValueError, match="expects the mel input features to be of length 60 with 8 bins") as caught:
        model.get_encoder()(torch.zeros(shape))
    assert "\n" not in str(caught.value)


def test_signature_and_bases(model):
    names = list(inspect.signature(model.forward).parameters)
    stock = list(inspect.signature(WhisperForConditionalGeneration.forward).parameters)[1:]
    assert [name for name in names if name != "logits_to_keep"] == stock  # the one that generate() asks for by name
    assert isinstance(model, WhisperForConditionalGeneration)
    assert GenerationMixin in type(model).__mro__
    assert model.can_generate()
    assert model.main_input_name == "input_features"
    assert model.get_encoder().conv1.stride[0] * model.get_encoder().conv2.stride[0] == 2


def test_counts(model):
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    encoder = sum(p.numel() for p in model.get_encoder().parameters())
    assert model.get_encoder().num_parameters() == encoder < model.num_parameters()


def test_compiled_encoder_gives_the_same(model):
    encoder, features = model.get_encoder(), features_for(model.config)
    compiled = torch.compile(encoder.forward, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(features)[0], encoder(features)[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's own look at tensors
def test_compiled_model_gives_the_same():
    model = small_model("conv", encoder_layers=1, decoder_layers=1)
    expected = run(model)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.allclose(run(compiled), expected, atol=1e-5)
    before = statistics(model)
    model.train()
    compiled(**loss_inputs_for(model.config)).loss.backward()
    assert model.get_encoder().core.conv1.conv.weight.grad.any()
    assert not any(torch.equal(buffer, before[name]) for name, buffer in statistics(model).items())


# From a stock Whisper


def stock_model(seed=0, dtype=torch.float32, **changes):
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(WhisperConfig(**SHAPES | changes)).eval()
    randomise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = GenerationConfig(num_beams=5, alignment_heads=[[0, 1]], decoder_start_token_id=101)
    return model.to(dtype)


def check_copied(ours, stock):
    for name, tensor in stock.model.decoder.state_dict().items():
        assert torch.equal(ours.model.decoder.state_dict()[name], tensor), name
    assert torch.equal(ours.proj_out.weight, stock.proj_out.weight)
    for name, tensor in stock.model.encoder.layer_norm.state_dict().items():
        assert torch.equal(ours.model.encoder.host.layer_norm.state_dict()[name], tensor)
    assert ours.generation_config.num_beams == 1
    assert ours.generation_config.alignment_heads == [[0, 1]]
    assert ours.dtype == stock.dtype
    assert not ours.training
    assert ours.model.decoder.layers[0].fc1.weight.data_ptr() != stock.model.decoder.layers[0].fc1.weight.data_ptr()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_from_whisper_copies(family, dtype, tied, tmp_path):
    stock = stock_model(dtype=dtype, tie_word_embeddings=tied)
    stock.save_pretrained(tmp_path / "stock")
    ours = WhisperHailoForConditionalGeneration.from_whisper(tmp_path / "stock", family=family)
    check_copied(ours, stock)
    assert (ours.proj_out.weight is ours.get_input_embeddings().weight) == tied
    assert ours.config.encoder_preset == ("micro" if family == "conv" else None)
    assert ours.config.architectures is None or ours.config.architectures == [type(ours).__name__]
    ours.save_pretrained(tmp_path / "ours")
    again = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype="auto")
    check_copied(again, stock)
    assert same_states(ours, again)
    if family == "attention":
        features = features_for(ours.config).to(dtype)
        with torch.no_grad():
            states, expected = ours.get_encoder()(features)[0], stock.get_encoder()(features)[0]
        assert torch.allclose(states.float(), expected.float(), atol=1e-4 if dtype == torch.float32 else 2e-2)


def test_from_whisper_starts_the_stem_where_shapes_allow(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    build = WhisperHailoForConditionalGeneration.from_whisper
    encoder = stock.get_encoder()
    fits = build(tmp_path, encoder_options={"width": 16}).get_encoder().core
    for unit, conv in ((fits.conv1, encoder.conv1), (fits.conv2, encoder.conv2)):
        assert torch.equal(unit.conv.weight.squeeze(2), conv.weight)
        assert torch.equal(unit.norm.bias, conv.bias)
    wider = build(tmp_path, encoder_options={"width": 20}).get_encoder().core
    assert not wider.conv1.norm.bias.any()


def test_from_whisper_settings(tmp_path):
    stock_model().save_pretrained(tmp_path)
    build = WhisperHailoForConditionalGeneration.from_whisper
    config = build(tmp_path, preset="micro", time_axis="height", encoder_layers=3).config
    assert (config.encoder_layers, config.time_axis, config.encoder_preset) == (3, "height", "micro")
    assert config.encoder_options == {"width": 32, "inner": 16}
    assert build(tmp_path, encoder_options={"inner": 8}).config.encoder_options["inner"] == 8
    assert build(tmp_path, family="attention").config.encoder_layers == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "recurrent"}, "unknown encoder family 'recurrent': choose attention, conv"),
        ({"preset": "huge"}, "no preset 'huge': choose micro, tiny, base, small"),
        ({"family": "attention", "preset": "tiny"}, "no preset 'tiny': leave preset out"),
        ({"family": "attention", "encoder_layers": 3}, "keeps the stock encoder's 2 layers"),
        ({"encoder_options": {"depth": 3}}, "has no option depth: it has activation"),
        ({"time_axis": "depth"}, "time_axis is 'width' or 'height', not 'depth'"),
        ({"family": "attention", "encoder_options": {"window_seconds": 0.25}}, "does not divide the 30 positions"),
    ],
)
def test_from_whisper_says_what_is_wrong(arguments, message, tmp_path):
    stock_model().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=message) as caught:
        WhisperHailoForConditionalGeneration.from_whisper(tmp_path, **arguments)
    assert "\n" not in str(caught.value)


def test_from_whisper_takes_stock_whispers_only(tmp_path):
    small_model().save_pretrained(tmp_path / "ours")
    with pytest.raises(RequestError, match=r"already has a pluggable encoder: load it with .*from_pretrained"):
        WhisperHailoForConditionalGeneration.from_whisper(tmp_path / "ours")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RequestError, match="is a bert checkpoint, no Whisper"):
        WhisperHailoForConditionalGeneration.from_whisper(tmp_path / "bert")


def test_an_encoder_and_a_whole_model_are_not_taken_for_each_other(tiny_config_kwargs, tmp_path):
    model = WhisperHailoForConditionalGeneration(WhisperHailoConfig(**tiny_config_kwargs))
    model.save_pretrained(tmp_path / "whole")
    model.get_encoder().save_pretrained(tmp_path / "alone")
    with pytest.raises(RequestError, match=r"holds a WhisperHailoForConditionalGeneration.*get_encoder"):
        HailoWhisperEncoder.from_pretrained(tmp_path / "whole")
    with pytest.raises(RequestError, match="holds a HailoWhisperEncoder"):
        WhisperHailoForConditionalGeneration.from_pretrained(tmp_path / "alone")
    assert isinstance(HailoWhisperEncoder.from_pretrained(tmp_path / "alone"), HailoWhisperEncoder)
