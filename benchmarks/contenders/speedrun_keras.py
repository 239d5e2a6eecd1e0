"""The speed run's default program in Keras 3, on its torch backend."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, when it is imported

import keras
import torch
from torch import Tensor

from contenders.speedrun_common import BATCH_SIZE, CLASSES, LEARNING_RATE, Clock, Job, Samples, main

Layers = keras.layers


def make_model(seed: int) -> keras.Model:
    """The common network in Keras's layers and starting weights, channels last as is its default."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            Layers.Conv2D(16, 3, padding="same", activation="relu"),
            Layers.MaxPooling2D(),
            Layers.Conv2D(32, 3, padding="same", activation="relu"),
            Layers.MaxPooling2D(),
            Layers.Flatten(),
            Layers.Dense(CLASSES),
        ]
    )


class Judge(keras.callbacks.Callback):
    """Judges after each epoch, off the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """After the last step of an epoch."""

        def predict(images: Tensor) -> Tensor:
            return torch.as_tensor(self.model(images.permute(0, 2, 3, 1), training=False)).cpu()

        self.model.stop_training = self.clock.judge(predict, epoch + 1)


def train(job: Job, samples: Samples, clock: Clock) -> None:
    """Train from NumPy arrays with no bar."""
    images, labels = samples
    model = make_model(job.seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE), loss=loss)
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy()
    clock.go()
    model.fit(*arrays, batch_size=BATCH_SIZE, epochs=job.epochs, verbose=0, callbacks=[Judge(clock)])


if __name__ == "__main__":
    main(train, note="its own layers and starting weights, channels last, NumPy arrays, torch backend, not compiled")
