"""The speed run's default program in Lightning."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from contenders.speedrun_common import (
    BATCH_SIZE,
    LEARNING_RATE,
    Clock,
    Job,
    Samples,
    evaluating,
    main,
    two_convolutions,
)


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
        """Adam at torch's defaults."""
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


class Judge(lightning.Callback):
    """Judges after each epoch, off the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """After the last step of an epoch."""
        predict = evaluating(pl_module.net, self.clock.job.device)  # type: ignore[arg-type]
        trainer.should_stop = self.clock.judge(predict, trainer.current_epoch + 1)


def train(job: Job, samples: Samples, clock: Clock) -> None:
    """Train with nothing written to disk and no bar."""
    loader = DataLoader(TensorDataset(*samples), batch_size=BATCH_SIZE, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=job.epochs,
        accelerator="cpu" if job.device == "cpu" else "gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Judge(clock)],
    )
    model = Classifier(two_convolutions())
    clock.go()
    trainer.fit(model, loader)


if __name__ == "__main__":
    main(train, note="DataLoader, self.log at every step; logger, checkpoints, bar and summary off")
