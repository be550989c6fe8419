"""ANML: a second network says, image by image, which features the first one may show and learn from.

Beaulieu, Frati, Miconi, Lehman, Stanley, Clune, Cheney: "Learning to Continually Learn" (2020), arXiv:2002.09571.

The gates are between 0 and 1; a feature that is closed is not seen by the head, and gives it no gradient.

Deviations: those of OML, as which it is trained: the inner loop moves the head alone. In the paper's meta-training it
moves the whole first network, and in its tests the head.
"""

from typing import Any

from torch import Tensor, nn

from lightning_meta.algorithms.continual.oml import OML
from lightning_meta.backbones import Backbone, as_backbone
from lightning_meta.errors import ConfigError


class ANML(OML):
    """OML on features that another network gates.

    Args:
        backbone: the first network.
        modulator: the second one, whose features are mapped to the gates.
        **kwargs: of `OML`.
    """

    def __init__(self, backbone: Backbone, modulator: Backbone, n_way: int | None = None, **kwargs: Any) -> None:
        super().__init__(backbone, n_way, **kwargs)
        self.learner[0] = Gated(self.backbone, as_backbone(modulator, norm="transductive"))


class Gated(Backbone):
    """Features of a backbone times gates in (0, 1) that a second one says."""

    def __init__(self, backbone: Backbone, modulator: Backbone) -> None:
        super().__init__()
        if backbone.in_shape != modulator.in_shape:
            raise ConfigError(
                f"the backbone is for inputs of shape {backbone.in_shape}, the modulator for {modulator.in_shape}; "
                "both read the same images."
            )
        self.backbone, self.modulator = backbone, modulator
        self.gates = nn.Linear(modulator.out_features, backbone.out_features)
        self.in_shape, self.out_features = backbone.in_shape, backbone.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map images to features `(B, out_features)`."""
        return self.backbone(x) * self.gates(self.modulator(x)).sigmoid()
