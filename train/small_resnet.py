"""`small_resnet`: a residual network of 0.7 M parameters for faces of 48 pixels, registered with timm.

One block at each of four widths, behind a 3 x 3 stem of stride 2: 6 million multiply-adds for an image of 48 pixels.
"""

from typing import Any, cast

from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

WIDTHS = 24, 48, 96, 192


@register_model
def small_resnet(pretrained: bool = False, **options: Any) -> ResNet:
    """Raises ValueError for pretrained weights: there are none."""
    if pretrained:
        raise ValueError("small_resnet has no pretrained weights")
    model: Any = ResNet(
        BasicBlock,  # type: ignore[arg-type]  # which timm annotates as an instance
        (1, 1, 1, 1),
        channels=WIDTHS,
        stem_type="deep",  # the stem's width is then ours to choose
        stem_width=WIDTHS[0] // 2,
        num_classes=options.get("num_classes", 1000),
    )
    model.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return cast(ResNet, model)
