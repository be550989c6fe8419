"""Networks that read and paint small images, without normalisation: for models that generate them."""

from torch import nn

from lightning_meta.errors import ConfigError, require_at_least


def image_reader(size: int, channels: int, hidden: int, outputs: int) -> nn.Sequential:
    """Of an image `(channels, size, size)` so many numbers: two convolutions of stride 2, and a linear layer."""
    quarter = quarter_of(size)
    require_at_least(1, channels=channels, hidden=hidden)
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(hidden, 2 * hidden, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * hidden * quarter**2, outputs),
    )


def image_painter(inputs: int, size: int, channels: int, hidden: int) -> nn.Sequential:
    """Of so many numbers an image's logits `(channels, size, size)`: the mirror image of `image_reader`."""
    quarter = quarter_of(size)
    require_at_least(1, channels=channels, hidden=hidden)
    return nn.Sequential(
        nn.Linear(inputs, 2 * hidden * quarter**2),
        nn.LeakyReLU(0.2),
        nn.Unflatten(1, (2 * hidden, quarter, quarter)),
        nn.ConvTranspose2d(2 * hidden, hidden, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(hidden, channels, 4, 2, 1),
    )


def quarter_of(size: int) -> int:
    """The side of the map in the middle."""
    if size < 4 or size % 4:
        raise ConfigError(f"image_size={size} must be a multiple of 4: it is halved twice.")
    return size // 4
