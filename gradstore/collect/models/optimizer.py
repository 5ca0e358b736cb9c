"""Second moments of Adam, from a training run's optimiser state.

Two files are read: `adam.safetensors`, which `Recorder.save` writes, and `optimizer.bin`, which
diffusers' and accelerate's training scripts write, by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gradstore.collect.models.folders import MOMENTS_NAME, moments_file
from gradstore.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

_MEND: Final = "Use --metric fisher or kfac, which need no optimizer state."


def moments_digest(folder: Path) -> str:
    """SHA-256 of the file with a checkpoint's optimiser state."""
    digest = sha256()
    with moments_file(folder).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_moments(folder: Path, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Write the second moments of an Adam optimiser into a checkpoint's folder, by parameter name.

    Raises:
        CheckpointError: if the optimiser keeps no second moments, or updates other parameters.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors, settings = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise CheckpointError(
                    f"{folder}: the optimizer updates a parameter of shape "
                    f"{tuple(parameter.shape)} that the model does not have. Pass its own model."
                )
            name, state = names[parameter], optimizer.state.get(parameter, {})
            moment, step = _moment(state, parameter, where=str(folder))
            tensors[name] = moment.detach().float().cpu().contiguous()
            settings[name] = [step, *_numbers(group, where=str(folder))]
    save_file(tensors, folder / MOMENTS_NAME, metadata={"adam": json.dumps(settings)})


def load_moments(folder: Path, model: nn.Module) -> dict[str, tuple[Tensor, float]]:
    """Adam's v̂ and ε of each parameter: its step is `1 / (√v̂ + ε)` learning rates.

    Args:
        folder: the checkpoint.
        model: its model, with all trainable parameters enabled.

    Returns:
        float32 tensors of the parameters' shapes, and numbers, by parameter name. v̂ is the second
        moment with its bias corrected (arXiv 1412.6980, algorithm 1).

    Raises:
        CheckpointError: if there is no state, it is not Adam's, or it cannot be assigned to the
            model's parameters.
    """
    file = moments_file(folder)
    found = _own(file) if file.name == MOMENTS_NAME else _foreign(file, model)
    moments = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in found or found[name][0].shape != parameter.shape:
            had = "nothing" if name not in found else str(tuple(found[name][0].shape))
            raise CheckpointError(
                f"{file} has {had} for parameter {name} of shape {tuple(parameter.shape)}: it is "
                f"the state of another model. {_MEND}"
            )
        moment, step, beta, epsilon = found[name]
        corrected = moment.double() / (1 - beta**step) if step > 0 else moment.double()
        moments[name] = corrected.float(), epsilon
    return moments


_Moments = dict[str, tuple["Tensor", float, float, float]]


def _own(file: Path) -> _Moments:
    try:
        with safe_open(file, "pt") as content:
            settings = json.loads(content.metadata()["adam"])
            return {
                name: (content.get_tensor(name), *map(float, settings[name])) for name in settings
            }
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}. Restore it. {_MEND}") from error


def _foreign(file: Path, model: nn.Module) -> _Moments:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        groups, states = found["param_groups"], found["state"]
        numbers = [number for group in groups for number in group["params"]]
        if not isinstance(states, dict):
            raise TypeError("state is not a mapping")
    except Exception as error:  # torch.load may raise anything on a foreign file
        reason = " ".join((str(error) or repr(error)).split())[:300]
        raise CheckpointError(
            f"{file} cannot be read as an optimizer's state_dict: {reason} {_MEND}"
        ) from error
    # The file names parameters by number, in the order in which the optimiser got them: all of
    # the model's, or, if some were frozen in training, those that are not.
    every = dict(model.named_parameters())
    some = {name: one for name, one in every.items() if one.requires_grad}
    parameters = every if len(numbers) == len(every) else some
    if len(numbers) != len(parameters):
        raise CheckpointError(
            f"{file} has the states of {len(numbers)} parameters and the model has {len(every)}: "
            f"they cannot be assigned to each other. {_MEND}"
        )
    given = {number: group for group in groups for number in group["params"]}
    moments: _Moments = {}
    for number, (name, parameter) in zip(numbers, parameters.items(), strict=True):
        moment, step = _moment(states.get(number, {}), parameter, where=str(file))
        if moment.shape != parameter.shape:
            raise CheckpointError(
                f"{file}: state {number} has shape {tuple(moment.shape)}, and parameter {name} "
                f"{tuple(parameter.shape)}: the orders differ. {_MEND}"
            )
        moments[name] = (moment, step, *_numbers(given[number], where=str(file)))
    return moments


def _moment(state: Mapping[str, Any], parameter: Tensor, *, where: str) -> tuple[Tensor, float]:
    """Second moment and step of one parameter; zero if it never had a gradient."""
    if not state:
        return torch.zeros(parameter.shape), 0.0
    for name in ("max_exp_avg_sq", "exp_avg_sq"):  # the first is what AMSGrad divides by
        moment = state.get(name)
        if isinstance(moment, torch.Tensor):
            return moment, float(state.get("step", 0))
    kind = "8-bit" if {"state2", "absmax2", "qmap2"} & set(state) else "no Adam"
    raise CheckpointError(
        f"{where}: the optimizer state is {kind} state (it has {', '.join(map(str, state))} and no "
        f"exp_avg_sq). {_MEND}"
    )


def _numbers(group: Mapping[str, Any], *, where: str) -> tuple[float, float]:
    """β₂ and ε of a group of parameters."""
    try:
        return float(group["betas"][1]), float(group["eps"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: the optimizer is not Adam: no betas, eps. {_MEND}") from (
            error
        )
