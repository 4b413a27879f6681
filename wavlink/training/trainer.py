"""`transformers.Trainer` with the batches, chunks and saved folders of `wavlink.train`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from processing import WavLinkProcessor
from processing.collator import AudioTextCollator, CaptionedAudio
from processing.datasets.load import caption_columns, durations
from processing.sampling import BatchPlan
from wavlink import compat

from .finetuning import clamp_scale, decayed_names, has_lora, load_adapter, merged_state_dict, save_adapter
from .grad_cache import backward

STRATEGIES = {"random": 1, "group_by_length": 16}  # `train_sampling_strategy`, and batches in a run that is sorted


class EpochBatches(Sampler):
    """This process's share of the batches of one epoch of a `BatchPlan`, as rows of `dataset`.

    Trainer and Accelerate iterate over it once an epoch, after `set_epoch`.
    """

    def __init__(self, plan: BatchPlan, dataset: Dataset):
        self.plan = plan
        self.by_epoch = isinstance(dataset, CaptionedAudio)  # its captions and crops depend on the epoch
        self.epoch = 0
        self.sampler = self  # whose epoch Accelerate sets when a resumed one skips batches (transformers 5.6)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.batches_per_epoch

    def __iter__(self) -> Iterator[list]:
        for batch in self.plan.epoch(self.epoch):
            share = batch[self.plan.rank :: self.plan.world_size].tolist()
            yield [(self.epoch, index) for index in share] if self.by_epoch else share


def _without_subsets(dataset) -> tuple:
    """The data set below any `torch.utils.data.Subset`, and the rows selected from it, int64 `[rows]`."""
    if type(dataset) is not Subset:
        return dataset, np.arange(len(dataset))
    below, rows = _without_subsets(dataset.dataset)
    return below, rows[np.asarray(dataset.indices, dtype=np.int64)]


def _durations(dataset) -> list[float]:
    if isinstance(dataset, ConcatDataset):
        return [seconds for part in dataset.datasets for seconds in _durations(part)]
    dataset, rows = _without_subsets(dataset)
    known = durations(dataset.dataset if isinstance(dataset, CaptionedAudio) else dataset)
    return [known[row] for row in rows.tolist()]


class _ClampedScale(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model: nn.Module | None = None, **kwargs: Any) -> None:
        clamp_scale(model)


class _NoCalibration(TrainerCallback):
    """Drop a calibration at the start of training, which changes the weights that it was fit to."""

    def on_train_begin(self, args, state, control, model: nn.Module | None = None, **kwargs: Any) -> None:
        getattr(model, "module", model).config.match_calibration = None


class WavLinkTrainer(Trainer):
    """Train a WavLink with `transformers.Trainer`, with the same gradient for any number of processes and chunks.

    A batch has `per_device_train_batch_size` clips a process, or the data set's if those are fewer; processes share
    it, unevenly if necessary. Rows that do not fill a batch are left out of that epoch, and no row is used twice in an
    epoch (`processing.sampling.BatchPlan`). `train_sampling_strategy` is `"random"` or `"group_by_length"`.

    Training drops the model's calibration (`match_calibration`): `wavlink calibrate` fits one to the new weights.

    If the model has the LoRA of `finetuning.set_trainable`, a saved folder holds the merged weights, which AutoModel
    loads, and `adapter/`, from which `resume_from_checkpoint` goes on; give it a model built in the same way.

    Args:
        args, kwargs: Trainer's. `processing_class` is by default the collator's processor, and `data_collator` that of
            the `processing_class`, with all columns that are named like captions.
        micro_batch_size: clips that pass through the towers at a time on each process (`grad_cache.backward`), with
            the gradient of the undivided batch. 0: all at once.

    Raises:
        ValueError: arguments that would train on anything but one contrastive batch a step.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from transformers import TrainingArguments
    >>> from wavlink import WavLinkModel, WavLinkProcessor, WavLinkTrainer
    >>> files = [str(sounds_folder / name) for name in ("low.wav", "high.wav")]
    >>> trainer = WavLinkTrainer(
    ...     model=WavLinkModel.from_pretrained(model_folder),
    ...     args=TrainingArguments(
    ...         output_dir=output_folder, per_device_train_batch_size=2, max_steps=1, remove_unused_columns=False,
    ...         report_to=[], use_cpu=True, disable_tqdm=True,
    ...     ),
    ...     processing_class=WavLinkProcessor.from_pretrained(model_folder),
    ...     train_dataset=Dataset.from_dict({"audio": files, "caption": ["a low sound", "a high sound"]}),
    ... )
    >>> trainer.train().global_step
    {'train_runtime': ...}
    1

    ```
    """

    def __init__(self, *args: Any, micro_batch_size: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_ClampedScale())
        self.add_callback(_NoCalibration())
        self.args.dataloader_pin_memory &= torch.accelerator.is_available()  # without one torch warns and does not pin
        _refuse(self.args, micro_batch_size)
        if self._model_with_lora() and not all(hasattr(Trainer, name) for name in compat.TRAINER_HOOKS):
            raise ValueError(
                "the Trainer of this version of transformers would save LoRA in place without its weights: put peft's "
                "get_peft_model around the model, or install transformers<6"
            )
        self.micro_batch_size = micro_batch_size
        self.can_return_loss = True  # a loss in evaluation also without `label_names`
        if self.processing_class is None:
            self.processing_class = getattr(self.data_collator, "processor", None)
        elif isinstance(self.processing_class, WavLinkProcessor) and self.data_collator is default_data_collator:
            dataset = self.eval_dataset if self.train_dataset is None else self.train_dataset
            columns = caption_columns(dataset) if getattr(dataset, "column_names", None) else ["captions"]
            self.data_collator = AudioTextCollator(self.processing_class, columns)

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of `BatchPlan`, this process's share of each."""
        dataset, args = self.train_dataset, self.args
        if not hasattr(dataset, "__len__"):
            if dataset is None or args.world_size == 1:
                return super().get_train_dataloader()
            raise ValueError(
                f"a train_dataset without a length cannot be shared by {args.world_size} processes without repeating "
                "rows: give one with a length, or train with train.py, which shares streams"
            )
        group = STRATEGIES[args.train_sampling_strategy]
        dataset, rows = _without_subsets(dataset)
        plan = BatchPlan(
            np.zeros(len(rows)) if group == 1 else np.asarray(_durations(dataset))[rows],
            compat.train_batch_size(self) * args.world_size,
            epochs=1,
            seed=args.seed if args.data_seed is None else args.data_seed,
            group=group,
            rank=args.process_index,
            world_size=args.world_size,
            rows=rows,
        )
        if isinstance(dataset, CaptionedAudio):
            dataset.plan = plan  # which replaces a clip that cannot be read
        return DataLoaderShard(  # not `accelerator.prepare`, which would divide the shares once more
            dataset,
            device=args.device,
            batch_sampler=EpochBatches(plan, dataset),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters with weight decay; see `finetuning.decayed_names`."""
        return decayed_names(model)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add a batch's gradients, in chunks of `micro_batch_size`, and return its loss."""
        if not self.micro_batch_size:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers have a mode too
            self.optimizer.train()
        return backward(self.accelerator, model, compat.on_device(self, inputs), self.micro_batch_size)

    def _model_with_lora(self):
        """The model if it has LoRA in place, else None; Trainer itself saves and loads a `PeftModel`."""
        model = self.accelerator.unwrap_model(self.model)
        return model if has_lora(model) and not isinstance(model, PeftModel) else None

    def _save(self, output_dir=None, state_dict=None):
        model = self._model_with_lora()
        if model is None or not self.args.should_save:
            return super()._save(output_dir, state_dict)
        super()._save(output_dir, merged_state_dict(model, state_dict))
        adapter = Path(output_dir or self.args.output_dir) / "adapter"
        save_adapter(model, adapter, base=model.name_or_path, state=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if (adapted := self._model_with_lora()) is None:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_adapter(adapted, Path(resume_from_checkpoint) / "adapter")

    def _load_best_model(self):
        if (adapted := self._model_with_lora()) is None:
            return super()._load_best_model()
        load_adapter(adapted, Path(self.state.best_model_checkpoint) / "adapter")


def _refuse(args: TrainingArguments, micro_batch_size: int) -> None:
    """Refuse arguments that would train on anything but one contrastive batch a step."""
    if micro_batch_size < 0:
        raise ValueError(f"micro_batch_size is a number of clips, or 0 for all at once, got {micro_batch_size}")
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps} adds no negatives: each clip would still "
            "meet only its own small batch. Raise per_device_train_batch_size to the batch you want and give "
            "micro_batch_size, the clips that fit into memory: the gradient is then that of the large batch"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"one process with {args.n_gpu} GPUs (DataParallel) has no negatives across them: start a process for "
            "each with accelerate launch or torchrun, or show it one with CUDA_VISIBLE_DEVICES"
        )
    if args.remove_unused_columns:
        raise ValueError(
            "the collator needs the data set's columns: give TrainingArguments remove_unused_columns=False"
        )
    if args.train_sampling_strategy not in STRATEGIES:
        raise ValueError(
            f"train_sampling_strategy must be one of {', '.join(STRATEGIES)}, got {args.train_sampling_strategy!r}"
        )
