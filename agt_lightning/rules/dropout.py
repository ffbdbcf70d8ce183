"""Dropout that is switched off; an active one is recorded as a product with its mask, see `capture/dropout.py`."""

from agt_lightning.rules.base import Site
from agt_lightning.rules.roundings import EXACT, Roundings
from agt_lightning.rules.shape import Cast


class InactiveDropout(Cast):
    """``dropout`` in evaluation mode or with p = 0: the identity."""

    def roundings(self, site: Site) -> Roundings:
        """None."""
        return EXACT

    def problem(self, site: Site) -> str | None:
        """Refuse active dropout."""
        if not site["train"] or site["p"] == 0:
            return None
        return (
            f"`aten.dropout` at {site.call.source} is active (p = {site['p']}) in a way whose mask cannot be drawn "
            "again. Set `p=0` or keep that layer in `eval()` during training."
        )
