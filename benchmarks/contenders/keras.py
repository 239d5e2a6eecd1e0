"""Keras 3 on its torch backend: compile and fit."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, when it is imported

import keras
import torch
from torch import Tensor

from contenders.common import CLASSES, LEARNING_RATE, Job, StepClock, Trained, main, make_data

Layers = keras.layers


def make_model(job: Job) -> keras.Model:
    """The common network in Keras's layers, channels last as is its default."""
    keras.utils.set_random_seed(job.seed)
    if job.workload == "mlp":
        body = [Layers.Flatten(), Layers.Dense(256, activation="relu"), Layers.Dense(128, activation="relu")]
    else:
        body = [
            Layers.Conv2D(16, 3, padding="same", activation="relu"),
            Layers.MaxPooling2D(),
            Layers.Conv2D(32, 3, padding="same", activation="relu"),
            Layers.MaxPooling2D(),
            Layers.Flatten(),
        ]
    return keras.Sequential([keras.Input((28, 28, 1)), *body, Layers.Dense(CLASSES)])


def make_optimizer(model: keras.Model, clock: StepClock) -> keras.optimizers.AdamW:
    """Keras's AdamW, which also ticks the clock; a callback would make Keras prepare logs at every step."""

    class TickingAdamW(keras.optimizers.AdamW):
        def apply(self, grads: list[Tensor], trainable_variables: list[keras.Variable] | None = None) -> None:
            super().apply(grads, trainable_variables)
            clock.tick()

    clock.when_done = lambda: setattr(model, "stop_training", True)
    return TickingAdamW(learning_rate=LEARNING_RATE)


def train(job: Job, clock: StepClock) -> Trained:
    """Train from NumPy arrays with no bar."""
    images, labels = make_data(job)
    model = make_model(job)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=make_optimizer(model, clock), loss=loss)
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy()
    model.fit(*arrays, batch_size=job.batch_size, epochs=job.epochs, verbose=0)

    def predict(images: Tensor) -> Tensor:
        return torch.as_tensor(model.predict(images.permute(0, 2, 3, 1).numpy(), verbose=0))

    return Trained(predict=predict, steps=int(model.optimizer.iterations))


if __name__ == "__main__":
    main(
        train,
        libraries=("keras",),
        torch_optimizer=False,
        note="its own layers, initial weights and AdamW (weight decay 0.004), channels last, NumPy arrays",
    )
