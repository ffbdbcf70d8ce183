"""The group of processes that train one model: collectives, errors that all of them raise, fingerprints."""

from agt_lightning.distributed.errors import ProcessError
from agt_lightning.distributed.group import SINGLE_PROCESS, ProcessGroup, SingleProcess
from agt_lightning.distributed.message import Entry, Message
from agt_lightning.distributed.torch_group import TorchProcessGroup

__all__ = ["SINGLE_PROCESS", "TorchProcessGroup", "Entry", "Message", "SingleProcess", "ProcessError", "ProcessGroup"]
