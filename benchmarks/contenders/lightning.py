"""Lightning's Trainer around a LightningModule that logs its loss."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from contenders.common import LEARNING_RATE, Job, StepClock, Trained, main, make_data, make_net


class Classifier(lightning.LightningModule):
    """The module of Lightning's own introduction."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at torch's defaults."""
        return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)


def train(job: Job, clock: StepClock) -> Trained:
    """Train with nothing written to disk and no bar."""
    loader = DataLoader(TensorDataset(*make_data(job)), batch_size=job.batch_size, shuffle=True)
    model = Classifier(make_net(job))
    trainer = lightning.Trainer(
        max_steps=job.total_steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    return Trained(predict=model.net, steps=trainer.global_step)


if __name__ == "__main__":
    main(train, libraries=("lightning",), note="self.log at every step; logger, checkpoints, bar, summary off")
