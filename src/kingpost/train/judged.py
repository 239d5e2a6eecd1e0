"""Predictions of the best weights, kept for the report: what was right, what was wrong, and how wrong."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import Tensor

from kingpost.assembly import Layout
from kingpost.files import write_atomically
from kingpost.train.evaluate import in_own_unit, outputs
from kingpost.train.loop import Job

MOST_SAMPLES, WORST = 20_000, 32


def save_judged(job: Job) -> None:
    """Write ``judged.safetensors``: for the test part (or else validation), predictions, targets and the worst samples.

    Keys: ``predictions`` (classes, values, or probabilities of labels), ``targets``, ``losses`` ``(N,)``,
    ``worst`` ``(K,)`` indices by falling loss, and ``worst_inputs`` ``(K, ...)`` where there is one input.
    Tasks whose predictions say little one by one (the tokens of a language model) are left out.
    """
    a, splits = job.assembly, job.dataset.splits
    part = next((part for part in ("test", "validation") if part in splits), None)
    if part is None or not a.setting.task.one_by_one:
        return
    predictions: list[Tensor] = []
    targets: list[Tensor] = []
    losses: list[Tensor] = []
    inputs: list[Tensor] = []
    a.model.eval()
    size = 4 * job.recipe.batch_size
    for raw, batch in outputs(a.model, splits[part], size, a.setting.device, Layout()):
        one_by_one = zip(torch.split(raw, 1), torch.split(batch.targets, 1), strict=True)
        losses.append(torch.stack([a.setting.task.criterion(output, target) for output, target in one_by_one]).cpu())
        shown, wanted = in_own_unit(a.setting.task.predictions(raw), batch.targets, job.dataset.fitted)
        predictions.append(shown.cpu())
        targets.append(wanted.cpu())
        inputs.append(batch.inputs[0].cpu())
        if sum(map(len, losses)) >= MOST_SAMPLES:
            break
    all_losses, all_inputs = torch.cat(losses), torch.cat(inputs)
    worst = all_losses.topk(min(WORST, len(all_losses))).indices
    tensors = {
        "predictions": torch.cat(predictions),
        "targets": torch.cat(targets),
        "losses": all_losses,
        "worst": worst,
        "worst_inputs": all_inputs[worst],
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path = job.run.folder / "judged.safetensors"
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata={"part": part}))
