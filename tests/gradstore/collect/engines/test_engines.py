"""Every engine against one backward pass per row, on models that are hard for engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradstore.collect import (
    Autocast,
    Batch,
    Compiled,
    LoopEngine,
    StreamingEngine,
    VmapEngine,
)
from gradstore.collect.conformance import check_engine
from gradstore.collect.engines.choice import require_agreement
from gradstore.collect.models.parameters import num_parameters, select, trainable
from gradstore.errors import ConfigError, EngineError
from tests.support.families import conditional_unet
from tests.support.gradients import OBJECTIVE, Denoiser, batch, vectors
from tests.support.worlds import unet

BOTH = pytest.mark.parametrize("engine", [StreamingEngine, VmapEngine])


def gradients(engine: Any, given: Batch, length: int) -> Tensor:
    whole = torch.full((len(given), length), torch.nan)

    def receive(start: int, piece: Tensor) -> None:
        whole[:, start : start + piece.shape[1]] = piece

    engine(given, receive)
    return whole


@BOTH
@pytest.mark.parametrize(("rows", "draws"), [(1, 1), (5, 1), (3, 4)])
def test_equals_the_loop(engine: Any, rows: int, draws: int) -> None:
    check_engine(engine, unet(0), OBJECTIVE, batch(rows, draws))


@BOTH
def test_equals_the_loop_with_class_labels(engine: Any) -> None:
    labels = torch.tensor([0, 2, 1])
    model = unet(0, num_class_embeds=3)
    check_engine(engine, model, OBJECTIVE, batch(3, 2, class_labels=labels))


def conditional() -> UNet2DConditionModel:
    torch.manual_seed(0)
    model = conditional_unet(sample_size=8, in_channels=1, out_channels=1)
    return model.eval()


@BOTH
def test_a_text_conditional_model(engine: Any) -> None:
    """LayerNorm, GEGLU and cross-attention over tokens."""
    tokens = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    check_engine(engine, conditional(), OBJECTIVE, batch(3, 2, encoder_hidden_states=tokens))


@BOTH
def test_lora_adapters_alone(engine: Any) -> None:
    from peft import LoraConfig

    model = conditional()
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    model.requires_grad_(True)
    select(model, "lora")
    assert trainable(model)
    assert all("lora_" in name for name in trainable(model))
    tokens = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    check_engine(engine, model, OBJECTIVE, batch(3, 2, encoder_hidden_states=tokens))


@BOTH
@pytest.mark.parametrize("pattern", ["attentions", r"norm.*\.weight$", "bias", "conv_in"])
def test_chosen_parameters_alone(engine: Any, pattern: str) -> None:
    model = unet(0)
    everything = gradients(LoopEngine(model, OBJECTIVE), batch(3, 1), num_parameters(model))
    spans, start = {}, 0
    for name, parameter in trainable(model).items():
        spans[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    select(model, pattern)
    assert 0 < num_parameters(model) < everything.shape[1]
    check_engine(engine, model, OBJECTIVE, batch(3, 1))
    found = gradients(engine(model, OBJECTIVE), batch(3, 1), num_parameters(model))
    expected = torch.cat([everything[:, spans[name]] for name in trainable(model)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_pattern_that_finds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'lora' is found in none of .* such as conv_in\.weight"):
        select(unet(0), "lora")
    with pytest.raises(ConfigError, match="is not a regular expression"):
        select(unet(0), "(")


@BOTH
def test_a_module_called_twice(engine: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    model = Denoiser(lambda x: layer(torch.tanh(layer(x))), layer)
    check_engine(engine, model, OBJECTIVE, vectors(4, 2))


@BOTH
def test_parameters_that_modules_share(engine: Any) -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    two.weight = one.weight
    model = Denoiser(lambda x: two(torch.tanh(one(x))), one, two)
    assert num_parameters(model) == 36 + 6 + 6
    check_engine(engine, model, OBJECTIVE, vectors(4, 2))


@BOTH
def test_layers_that_are_not_used(engine: Any) -> None:
    torch.manual_seed(0)
    used, unused, dropped = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def body(x: Tensor) -> Tensor:
        dropped(x)
        out: Tensor = used(x)
        return out

    model = Denoiser(body, unused, used, dropped)
    check_engine(engine, model, OBJECTIVE, vectors(3, 1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)

    def piece(x: Tensor) -> Tensor:
        return torch.tanh(two(torch.tanh(two(x))))

    def body(x: Tensor) -> Tensor:
        out: Tensor = checkpoint(piece, one(x), use_reentrant=reentrant)
        return out

    model = Denoiser(body, one, two)
    check_engine(StreamingEngine, model, OBJECTIVE, vectors(4, 2))


def test_gradient_checkpointing_of_diffusers() -> None:
    model = unet(0)
    plain = gradients(LoopEngine(model, OBJECTIVE), batch(3, 2), num_parameters(model))
    model.enable_gradient_checkpointing()
    found = gradients(StreamingEngine(model, OBJECTIVE), batch(3, 2), num_parameters(model))
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-5)


@BOTH
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.Conv2d(4, 6, (3, 1), dilation=(2, 1), padding=(2, 0)),
        nn.Conv2d(4, 48, 3, stride=2, padding=1),  # few positions: a product
        nn.Conv2d(4, 80, 2, dilation=2, padding=(0, 1), bias=False),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 6, 1, padding=1),
        nn.Conv2d(4, 6, 1, stride=2),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.Conv1d(4, 6, 3, padding=1),
        nn.Conv3d(4, 2, 2),
        nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2, bias=False),
        nn.ConvTranspose2d(4, 3, (3, 1), dilation=(2, 1)),
        nn.ConvTranspose3d(4, 2, 2),
        nn.GroupNorm(2, 4, eps=0.1),
        nn.LayerNorm(4),
        nn.LayerNorm((4, 4), bias=False),
        nn.RMSNorm(4),
        nn.RMSNorm((4, 4), eps=0.1),
        RMSNorm(4, eps=0.1),
        RMSNorm(4, eps=1e-6, bias=True),
        nn.Linear(4, 3, bias=False),
    ],
    ids=lambda layer: str(layer)[:40],
)
def test_each_kernel(engine: Any, layer: nn.Module) -> None:
    """The rows of a layer between others, on inputs that are not centred."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    name = type(layer).__name__.replace("Transpose", "")
    shape = {"Conv1d": (4, 16), "Conv3d": (4, 4, 2, 2)}.get(name, (4, 4, 4))
    into = nn.Linear(6, 64)

    def body(x: Tensor) -> Tensor:
        out = layer(into(x).reshape(-1, *shape) + 3).flatten(1)
        whole = torch.nn.functional.pad(out, (0, -out.shape[1] % 6))
        return whole.sin().reshape(len(out), -1, 6).mean(1)

    check_engine(engine, Denoiser(body, into, layer), OBJECTIVE, vectors(4, 2))


@BOTH
def test_embeddings(engine: Any) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(10, 6, padding_idx=3)

    def body(x: Tensor) -> Tensor:
        entries = (x.detach().abs() * 1e3).long() % 10
        out: Tensor = table(entries).sum(1) + table(entries[:, :2]).prod(1)
        return out

    check_engine(engine, Denoiser(body, table), OBJECTIVE, vectors(5, 2))


def test_what_streaming_does_not_know_is_refused_by_name() -> None:
    class Scaled(nn.Linear):
        pass

    def refused(*layers: nn.Module) -> str:
        model = Denoiser(lambda x: x, *layers)
        with pytest.raises(EngineError) as caught:
            StreamingEngine(model, OBJECTIVE)
        return str(caught.value)

    assert "layers.0 (BatchNorm1d: its class is not known)" in refused(nn.BatchNorm1d(6))
    assert "layers.1 (Scaled: its class" in refused(nn.Linear(6, 6), Scaled(6, 6))
    assert "its padding is not plain zeros" in refused(nn.Conv1d(1, 1, 3, padding_mode="circular"))
    assert "its padding is not plain zeros" in refused(nn.Conv1d(1, 1, 3, padding="same"))
    assert "max_norm" in refused(nn.Embedding(3, 3, max_norm=1.0))
    more = nn.Linear(6, 6)
    more.extra = nn.Parameter(torch.ones(6))
    assert "layers.0 (Linear: it has a further parameter extra)" in refused(more)
    hooked = nn.Linear(6, 6)
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    assert "it has hooks" in refused(hooked)
    # The engine ignores frozen layers.
    frozen = nn.BatchNorm1d(6).requires_grad_(False)
    StreamingEngine(Denoiser(lambda x: x, frozen, nn.Linear(6, 6)), OBJECTIVE)


def test_a_layer_whose_weight_is_used_behind_its_back_is_found_out() -> None:
    """torch's attention uses `out_proj`'s weight without calling it, so no hook fires."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    model = Denoiser(lambda x: torch.tanh(layer(x)) @ layer.weight, layer)
    engines = StreamingEngine(model, OBJECTIVE), LoopEngine(model, OBJECTIVE)
    with pytest.raises(EngineError, match="does not match one backward pass per row"):
        require_agreement("streaming", *engines, vectors(3, 1), 1e-3)


def test_rows_that_change_places_are_found_out() -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    model = Denoiser(lambda x: two(one(x).flip(0)).flip(0), one, two)
    engines = StreamingEngine(model, OBJECTIVE), LoopEngine(model, OBJECTIVE)
    with pytest.raises(EngineError, match="mixes or reorders rows"):
        require_agreement("streaming", *engines, vectors(2, 1), 1e-3)


def test_inputs_that_are_not_whole_rows_are_refused() -> None:
    layer = nn.Linear(6, 6)
    model = Denoiser(lambda x: x + layer(x[:1]).sum(), layer)
    with pytest.raises(EngineError, match="a Linear was given 1 inputs for 3 rows"):
        gradients(StreamingEngine(model, OBJECTIVE), vectors(3, 1), num_parameters(model))


@BOTH
def test_the_check_can_fail(engine: Any) -> None:
    def wrong(model: nn.Module, objective: Any) -> Any:
        made = engine(model, objective)
        return lambda batch, receive: made(
            batch, lambda start, piece: receive(start, piece * (1.01 if start else 1))
        )

    with pytest.raises(AssertionError, match="gradients equal the loop engine's"):
        check_engine(wrong, unet(0), OBJECTIVE, batch(2, 1))


@pytest.mark.parametrize("engine", [StreamingEngine, VmapEngine, LoopEngine])
def test_the_model_is_left_as_it_was(engine: Any) -> None:
    model = unet(0)
    model.conv_in.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    engine(model, OBJECTIVE)(batch(2, 1), lambda start, piece: None)

    class StopError(Exception):
        pass

    def stop(start: int, piece: Tensor) -> None:
        raise StopError

    with pytest.raises(StopError):
        engine(model, OBJECTIVE)(batch(2, 1), stop)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # raised inside torch
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_compiled_model() -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    model = Denoiser(lambda x: two(torch.tanh(one(x))), one, two)
    compiled = Compiled(OBJECTIVE)
    check_engine(StreamingEngine, model, compiled, vectors(4, 2))
    assert compiled.identity() == OBJECTIVE.identity()
    assert list(compiled._models) == [model]


@pytest.mark.parametrize("engine", [StreamingEngine, LoopEngine])
def test_mixed_precision_is_near_and_not_equal(engine: Any) -> None:
    model = unet(0)
    length = num_parameters(model)
    exact = gradients(LoopEngine(model, OBJECTIVE), batch(3, 1), length)
    cast = gradients(engine(model, Autocast(OBJECTIVE)), batch(3, 1), length)
    error = float((cast - exact).norm() / exact.norm())
    assert 1e-4 < error < 0.1
    check_engine(engine, model, Autocast(OBJECTIVE), batch(3, 1), tolerance=0.05)
