"""The gradients of one batch: at once, in chunks, or shared out over several processes.

In chunks, the batch goes through the network twice: without gradients for the outputs, from which
the loss and its derivatives by the outputs follow; then again chunk by chunk with gradients, led on
from those derivatives. Memory grows with the chunk, while every text is still contrasted with the
whole batch: GradCache (Gao et al. 2021, arXiv:2101.06983). Several processes each take their rows
of the batch, exchange outputs, and add up the gradients of the weights: the sum is that of one
process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

from nexus_vdb.model.batches import Batch
from nexus_vdb.model.network import NexusOutput
from nexus_vdb.model.objective import Objective
from nexus_vdb.model.precision import autocast

__all__ = ["Ranks", "backward"]

_GROUPS = 4  # that a batch is parted into by length; more bring little, and smaller products

_FIELDS = tuple(field.name for field in fields(NexusOutput))

Network = Callable[[Tensor, Tensor], NexusOutput]
Side = tuple[Tensor, Tensor]


class Ranks:
    """This process among those that train together; alone unless `torch.distributed` is set up."""

    def __init__(self) -> None:
        there = dist.is_available() and dist.is_initialized()
        self.number = dist.get_rank() if there else 0
        self.count = dist.get_world_size() if there else 1

    def part(self, n: int) -> slice:
        """This process's rows of n, which its count divides."""
        size = n // self.count
        return slice(self.number * size, (self.number + 1) * size)

    def gather(self, mine: Tensor) -> Tensor:
        """The rows of all processes, in their order."""
        if self.count == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def share(self, module: nn.Module) -> None:
        """Give all processes the first one's weights."""
        if self.count > 1:
            for parameter in module.parameters():
                dist.broadcast(parameter.data, 0)

    def add_up(self, module: nn.Module) -> None:
        """Replace each gradient by the sum over all processes."""
        if self.count > 1:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    dist.all_reduce(parameter.grad)


def backward(
    network: Network,
    objective: Objective,
    batch: Batch,
    *,
    chunk: int = 0,
    scale: float = 1.0,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Add the gradients of a batch's loss to the parameters, those of this process's rows only.

    Args:
        network: Makes outputs of ids and mask.
        objective: Makes a loss of outputs.
        batch: The whole batch, on every process the same.
        chunk: Pairs that go through the network at once; 0 for all.
        scale: Of the loss.
        ranks: Who shares the batch.

    Returns:
        `loss` and its parts.
    """
    ranks = ranks or Ranks()
    if not chunk and ranks.count == 1:
        outputs = _by_length(network, batch.sides)
        loss, parts = objective(outputs, batch)
        (loss * scale).backward()
    else:
        loss, parts = _in_chunks(network, objective, batch, chunk=chunk, scale=scale, ranks=ranks)
    return {name: value.item() for name, value in {"loss": loss, **parts}.items()}


def _run(network: Network, side: Side) -> NexusOutput:
    # Losses stay in float32: bf16 keeps three digits of a cosine, and a temperature magnifies.
    with autocast(side[0].device.type):
        made = network(*side)
    return NexusOutput(*(getattr(made, name).float() for name in _FIELDS))


def _by_length(network: Network, sides: Sequence[Side]) -> list[NexusOutput]:
    """The outputs of each side; texts of like length go through together, for little padding."""
    lengths = torch.cat([mask.sum(1) for _, mask in sides])
    longest = int(lengths.max())
    ids, mask = (
        torch.cat([F.pad(side[i], (0, longest - side[i].shape[1])) for side in sides])
        for i in range(2)
    )
    order = lengths.argsort()
    groups = []
    for rows in order.chunk(_GROUPS):
        width = max(1, int(lengths[rows[-1]]))
        groups.append(_run(network, (ids[rows, :width], mask[rows, :width])))
    made, place = _join(groups), order.argsort()
    parts = torch.split(place, [len(side[0]) for side in sides])
    return [NexusOutput(*(getattr(made, name)[part] for name in _FIELDS)) for part in parts]


def _in_chunks(
    network: Network, objective: Objective, batch: Batch, *, chunk: int, scale: float, ranks: Ranks
) -> tuple[Tensor, dict[str, Tensor]]:
    device = batch.sides[0][0].device
    chunks = [list(_chunks(side, len(batch), chunk, ranks)) for side in batch.sides]
    states, mine = [], []
    with torch.no_grad():
        for side in chunks:
            outputs = []
            for one in side:
                states.append(_random_state(device))
                outputs.append(_run(network, one))
            mine.append(_join(outputs))
    leaves = [
        NexusOutput(*(ranks.gather(getattr(one, name)).requires_grad_() for name in _FIELDS))
        for one in mine
    ]
    loss, parts = objective(leaves, batch)
    (loss * scale).backward()
    remembered = iter(states)
    for side, leaf in zip(chunks, leaves, strict=True):
        start = ranks.part(len(leaf.embedding)).start
        for one in side:
            rows = slice(start, start + len(one[0]))
            start = rows.stop
            _lead_on(network, one, leaf, rows, next(remembered))
    return loss, parts


def _chunks(side: Side, pairs: int, chunk: int, ranks: Ranks) -> Iterator[Side]:
    """This process's rows, in chunks; negatives of a pair stay with it."""
    n = len(side[0])
    part = ranks.part(n)
    size = (chunk or pairs) * (n // pairs)
    for start in range(part.start, part.stop, size):
        rows = slice(start, min(start + size, part.stop))
        width = max(1, int(side[1][rows].sum(1).max()))
        yield side[0][rows, :width], side[1][rows, :width]


def _join(outputs: list[NexusOutput]) -> NexusOutput:
    return NexusOutput(*(torch.cat([getattr(one, name) for one in outputs]) for name in _FIELDS))


def _lead_on(
    network: Network, side: Side, leaf: NexusOutput, rows: slice, state: list[Tensor]
) -> None:
    """The second pass: the same dropout as in the first, and gradients from the leaves."""
    device = side[0].device
    now = _random_state(device)
    _set_random_state(state, device)
    outputs = _run(network, side)
    _set_random_state(now, device)
    pairs = [(getattr(outputs, name), getattr(leaf, name).grad) for name in _FIELDS]
    used = [(value, grad[rows]) for value, grad in pairs if grad is not None]
    torch.autograd.backward([value for value, _ in used], [grad for _, grad in used])


def _random_state(device: torch.device) -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
