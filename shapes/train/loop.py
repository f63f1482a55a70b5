"""One training loop for every network of the family: EMA, cosine rate, and a state to resume.

The batch of step i is drawn from generators seeded with i, so a resumed run needs no memory of
random numbers and ends at the same weights as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...training.state import Unfinished, read_state, save_atomically


@dataclass(frozen=True)
class Draw:
    """The random numbers of one step."""

    step: int
    numpy: np.random.Generator
    torch: torch.Generator

    def randn(self, *shape: int) -> torch.Tensor:
        """Standard normal float32 on the CPU."""
        return torch.randn(shape, generator=self.torch)

    def timesteps(self, count: int, total: int = 1000) -> torch.Tensor:
        """Uniform timesteps, int64 ``[count]``, one from each of ``count`` equal strata."""
        place = (torch.arange(count) + torch.rand(count, generator=self.torch)) / count
        return (
            (place * total).long().clamp_(0, total - 1)[torch.randperm(count, generator=self.torch)]
        )


def draw_for(stage: str, seed: int, step: int) -> Draw:
    """The numbers that belong to one step of one stage."""
    sequence = np.random.SeedSequence([seed, step, *stage.encode()])
    number = int(sequence.generate_state(1, np.uint64)[0] >> 1)
    return Draw(step, np.random.default_rng(sequence), torch.Generator().manual_seed(number))


def some_of(most: int, steps: int | None) -> int:
    """How many of ``most`` samples to prepare where no more than so many steps are run."""
    return most if steps is None else min(most, 8 * steps)


@dataclass(frozen=True)
class Plan:
    """How one stage is trained."""

    stage: str
    steps: int
    batch: int
    rate: float
    ema: float = 0.998
    warmup: int = 100
    save_every: int = 200
    seed: int = 0

    def limited(self, steps: int | None) -> Plan:
        """The plan with so many steps, or itself."""
        return self if steps is None else dataclasses.replace(self, steps=steps)

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to a fiftieth."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        along = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, along))))


def train(
    plan: Plan,
    network: torch.nn.Module,
    loss_of: Callable[[Draw], tuple[torch.Tensor, dict[str, float]]],
    state_path: Path,
    *,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """Trains ``network`` in place, or goes on where ``state_path`` left off.

    Args:
        loss_of: the loss of one step, drawn from the step's numbers only, and figures to show.
        stop_after: leaves after so many steps of this call, as an interruption would.

    Returns:
        The averaged weights (EMA), by parameter name, fp32 on the CPU.

    Raises:
        Unfinished: ``stop_after`` came before the plan's end.
    """
    from tqdm import tqdm

    parameters = dict(network.named_parameters())
    average = {name: p.detach().clone() for name, p in parameters.items()}
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    first = 0
    if state_path.exists():
        state = read_state(state_path)
        network.load_state_dict(state["network"], strict=False)
        optimiser.load_state_dict(state["optimiser"])
        for name, value in state["average"].items():
            average[name].copy_(value)
        first = state["step"]

    def save(step: int) -> None:
        save_atomically(
            {
                "network": {name: p.detach().cpu() for name, p in parameters.items()},
                "average": {name: p.cpu() for name, p in average.items()},
                "optimiser": optimiser.state_dict(),
                "step": step,
            },
            state_path,
        )

    network.train()
    last = plan.steps if stop_after is None else min(plan.steps, first + stop_after)
    bar = tqdm(range(first, last), desc=plan.stage, initial=first, total=plan.steps, mininterval=5)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = plan.rate_at(step)
        loss, figures = loss_of(draw_for(plan.stage, plan.seed, step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        # A young average must not remember the random start.
        keep = min(plan.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - keep)
        if step % 20 == 0:
            bar.set_postfix(
                {"loss": f"{loss.item():.4f}"} | {k: f"{v:.3f}" for k, v in figures.items()}
            )
        if (step + 1) % plan.save_every == 0 or step + 1 == last:
            save(step + 1)
    network.eval()
    if last < plan.steps:
        raise Unfinished(f"{plan.stage} stopped at step {last} of {plan.steps}")
    return {name: value.cpu() for name, value in average.items()}
