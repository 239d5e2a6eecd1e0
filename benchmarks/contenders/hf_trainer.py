"""The Trainer of Hugging Face's transformers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from contenders.common import LEARNING_RATE, Job, StepClock, Trained, main, make_data, make_net


class Images(Dataset[dict[str, Tensor]]):
    """Samples as the dictionaries that the Trainer wants."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"images": self.images[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """A network that returns its loss with its scores."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and scores."""
        scores = self.net(images)
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def train(job: Job, clock: StepClock) -> Trained:
    """Train with nothing saved and no bar; everything else at the Trainer's defaults."""
    model = Classifier(make_net(job))
    arguments = TrainingArguments(
        output_dir="hf_trainer",
        max_steps=job.total_steps,
        per_device_train_batch_size=job.batch_size,
        learning_rate=LEARNING_RATE,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Images(*make_data(job)))
    trainer.train()
    return Trained(predict=model.net, steps=trainer.state.global_step)


if __name__ == "__main__":
    main(
        train,
        libraries=("transformers", "accelerate"),
        note="its defaults: gradients clipped to norm 1, rate decays linearly, no weight decay, fused AdamW",
    )
