"""One linear layer whose training clips the gradient of each sample: the step under replaced and edited samples."""

from agt_lightning.domains.ball.clipped.analysis import ClippedAnalysis
from agt_lightning.domains.ball.clipped.poison import Edits, ForeignSamples, Replacements

__all__ = ["ClippedAnalysis", "Edits", "ForeignSamples", "Replacements"]
