"""A Hugging Face Trainer with sequences of changing length, and what can be wrong with what it is given."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.faultbench.shapes.course import Course, factor, parse

WORDS = 64


class Fault:
    """Nothing is wrong."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def loss(self, loss: Tensor) -> Tensor:
        """The loss that the model returns."""
        return loss

    def item(self) -> None:
        """Within the loading of an item."""


class NotANumber(Fault):
    """A label that nobody checked: the logarithm of 0."""

    def loss(self, loss: Tensor) -> Tensor:
        return loss + torch.log(loss.detach() * 0) if self.course.sick else loss


class Explosion(Fault):
    """The loss is summed where it was averaged: gradients are 500 times as large."""

    def loss(self, loss: Tensor) -> Tensor:
        return loss * 500 if self.course.sick else loss


class Crash(Fault):
    """A key that the collator does not know."""

    def loss(self, loss: Tensor) -> Tensor:
        if self.course.sick:
            raise KeyError("input_ids")
        return loss


class SlowLoader(Fault):
    """Each item is tokenised anew, in the main process."""

    def item(self) -> None:
        if self.course.sick:
            time.sleep(0.04)


FAULTS: dict[str, type[Fault]] = {
    "none": Fault,
    "nan": NotANumber,
    "explosion": Explosion,
    "crash": Crash,
    "slow-loader": SlowLoader,
}


class Sentences(Dataset[dict[str, Tensor]]):
    """Random words that tell their label, in batches of one length each."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 1 << 14

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.fault.item()
        generator = torch.Generator().manual_seed(index)
        label = index % 4
        words = torch.randint(16, (64,), generator=generator) + 16 * label
        return {"words": words, "labels": torch.tensor(label)}


def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    length = 8 + 8 * int(torch.randint(8, ()))
    return {
        "words": torch.stack([item["words"][:length] for item in items]),
        "labels": torch.stack([item["labels"] for item in items]),
    }


class Classifier(nn.Module):
    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.1)
        self.head = nn.Linear(32, 4)
        self.fault = fault

    def forward(self, words: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.head(self.layer(self.words(words)).mean(dim=1))
        loss = nn.functional.cross_entropy(scores, labels, label_smoothing=0.1)
        return {"loss": self.fault.loss(loss) if self.training else loss, "logits": scores}


class Pace(TrainerCallback):
    """Lets the training go at the pace of its course, and ends it in time."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self._steps = course.paced(iter(int, 1))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if next(self._steps, None) is None:
            control.should_training_stop = True
        return control


def main() -> None:
    course = parse(FAULTS, __doc__)
    torch.set_num_threads(1)
    fault = FAULTS[course.fault](course)
    per_ten_minutes = math.ceil(600 / factor() / course.pace)
    arguments = TrainingArguments(
        output_dir=str(course.output / "trainer"),
        per_device_train_batch_size=8,
        max_steps=1 << 20,
        seed=course.seed,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=50,
        warmup_steps=50,
        lr_scheduler_type="cosine",
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=per_ten_minutes,
        save_steps=per_ten_minutes,
        save_total_limit=3,
    )
    sentences = Sentences(fault)
    trainer = Trainer(
        model=Classifier(fault),
        args=arguments,
        train_dataset=sentences,
        eval_dataset=torch.utils.data.Subset(sentences, range(64)),
        data_collator=collate,
        callbacks=[Pace(course)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
