"""What a training changes: networks, their moving average, their optimisers; and its files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# Learning rate of factorized priors relative to the rest: they start wide, and narrow slowly
# otherwise.
PRIOR_RATE = 10.0
# AdamW's decay of the second moment.
SECOND_MOMENT = 0.98
WEIGHT_DECAY = 1e-4
# Largest norm of the gradient of a network.
MAX_GRADIENT_NORM = 1.0
_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingState:
    """Networks by name ("" for a single one), AdamW for each, and the average of their weights."""

    def __init__(
        self, networks: Mapping[str, nn.Module], learning_rate: float, momentum: float = 0.9
    ) -> None:
        self.networks = networks
        self._learning_rate = learning_rate
        self._optimisers = {
            key: torch.optim.AdamW(
                _groups(network),
                learning_rate,
                betas=(momentum, SECOND_MOMENT),
                weight_decay=WEIGHT_DECAY,
            )
            for key, network in networks.items()
        }
        self.average = {key: value.detach().clone() for key, value in self.weights().items()}

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of all networks."""
        return {
            _joined(name, key): value
            for name, network in self.networks.items()
            for key, value in network.state_dict().items()
        }

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the networks. KeyError, RuntimeError if they do not fit."""
        for name, network in self.networks.items():
            keys = network.state_dict()
            network.load_state_dict({key: weights[_joined(name, key)] for key in keys})

    def descend(self, name: str, loss: Tensor, rate: float) -> None:
        """A step of one network against the gradient of its loss, at `rate` times its rate."""
        optimiser = self._optimisers[name]
        for group in optimiser.param_groups:
            group["lr"] = self._learning_rate * rate * group["scale"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        nn.utils.clip_grad_norm_(self.networks[name].parameters(), MAX_GRADIENT_NORM)
        optimiser.step()

    def average_in(self, step: int, max_decay: float) -> None:
        """Move the average towards the weights after so many steps."""
        decay = min(max_decay, step / (step + 10))
        for key, value in self.weights().items():
            self.average[key].lerp_(value.detach(), 1 - decay)

    def save(self, path: Path, step: int, seconds: float) -> None:
        """Write a checkpoint."""
        tensors = {f"state.{key}": value for key, value in self.weights().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.items()}
        for name, key, parameter in self._parameters():
            moments = self._optimisers[name].state[parameter]
            tensors |= {f"{moment}.{key}": moments[moment] for moment in _MOMENTS if moments}
        numbers = {"step": torch.tensor(step), "seconds": torch.tensor(seconds)}
        write_tensors(path, tensors | numbers)

    def resume(self, path: Path) -> tuple[int, float]:
        """Go on from a checkpoint, if there is one: steps and seconds so far."""
        if not path.exists():
            return 0, 0.0
        device = str(next(iter(self.average.values())).device)
        tensors = load_file(path, device=device)
        step = int(tensors["step"])
        self.load({key: tensors[f"state.{key}"] for key in self.average})
        for key, value in self.average.items():
            value.copy_(tensors[f"average.{key}"])
        for name, key, parameter in self._parameters():
            if f"{_MOMENTS[0]}.{key}" in tensors:
                moments = {moment: tensors[f"{moment}.{key}"] for moment in _MOMENTS}
                steps = {"step": torch.tensor(float(step))}
                self._optimisers[name].state[parameter] = steps | moments
        return step, float(tensors["seconds"])

    def _parameters(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        for name, network in self.networks.items():
            for key, parameter in network.named_parameters():
                yield name, f"{name}.{key}", parameter


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    named = list(network.named_parameters())
    priors = [value for key, value in named if "bottleneck" in key]
    others = [value for key, value in named if "bottleneck" not in key]
    groups: list[dict[str, Any]] = [{"params": others, "scale": 1.0}]
    return [*groups, {"params": priors, "scale": PRIOR_RATE}] if priors else groups


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that replaces another at once."""
    part = path.with_suffix(".part")
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, part)
    os.replace(part, path)


def append_row(log: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON to a log."""
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")
