"""Dropout that is switched off; an active one draws a random mask that the bounds would have to share."""

from agt_lightning.rules.base import Site
from agt_lightning.rules.shape import Cast


class InactiveDropout(Cast):
    """``dropout`` in evaluation mode or with p = 0: the identity."""

    def problem(self, site: Site) -> str | None:
        """Refuse a dropout that drops."""
        if not site["train"] or site["p"] == 0:
            return None
        return (
            f"`aten.dropout` at {site.call.source} is active (p = {site['p']}): its random mask is not part of the "
            "certified program. Set `p=0` or keep that layer in `eval()` during training."
        )
