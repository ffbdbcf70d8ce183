"""Batches of tensors that are already in memory."""

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from agt_lightning.lightning import ContentBatches


def tensor_loader(*tensors: Tensor, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Serve tensors in their own order, ``batch_size`` rows at a time, the last short batch included.

    A batch is one slice, not ``batch_size`` samples collated one by one: at 10 000 rows that is most of the step.

    Args:
        tensors: tensors with one common leading length.
        batch_size: rows per batch; larger than the data means one batch.
    """
    dataset = TensorDataset(*tensors)
    batches = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    return DataLoader(dataset, sampler=batches, batch_size=None)


def content_loader(*tensors: Tensor, batches: int) -> DataLoader[tuple[Tensor, ...]]:
    """Serve tensors in so many batches, each sample in the one that its content chooses.

    An inserted or deleted sample then leaves all other batches as they are.

    Args:
        tensors: tensors with one common leading length.
        batches: number of batches, none of which may be empty.
    """
    dataset = TensorDataset(*tensors)
    return DataLoader(dataset, batch_sampler=ContentBatches(dataset, batches))
