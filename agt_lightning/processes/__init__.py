"""The processes that train one model together, each on its own part of every batch."""

from agt_lightning.processes.base import ALONE, OneProcess, Processes
from agt_lightning.processes.default_group import DefaultGroup
from agt_lightning.processes.errors import ProcessError
from agt_lightning.processes.message import Entry, Message

__all__ = ["ALONE", "DefaultGroup", "Entry", "Message", "OneProcess", "ProcessError", "Processes"]
