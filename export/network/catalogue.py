"""The architectures: what each is for, and where its network is built. Torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass

NO_TEACHER = "none"


@dataclass(frozen=True)
class Architecture:
    """What an architecture was made for; each can be overridden when training.

    ``builder`` is the ``module:function`` that turns an ``AutoencoderConfig`` into an
    ``Autoencoder``; with ``origin`` (``module:NAME`` of what is known of the weights that its trunk
    starts from, with ``teacher``; else empty) it takes ``pretrained`` too. ``image_size`` is width
    and height, ``learning_rate`` the peak, ``taught_dim`` the latent channels with a teacher.
    """

    builder: str
    help: str
    image_size: tuple[int, int] = (480, 360)
    loss: str = "l1"
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    batch: int = 8
    latent_dim: int = 32
    taught_dim: int = 64
    teacher: str = NO_TEACHER
    origin: str = ""


_NETWORK = "aeseg_edge.export.network"

ARCHITECTURES: dict[str, Architecture] = {
    "edge": Architecture(f"{_NETWORK}.edge:build", "small and fast"),
    "lite": Architecture(
        f"{_NETWORK}.lite:build",
        "starts from EfficientNet-Lite0 (extra teacher), better clusters, slower",
        teacher="efficientnet_lite0",
        origin=f"{_NETWORK}.efficientnet:ORIGIN",
    ),
    "shallow": Architecture(
        f"{_NETWORK}.articles:build_shallow",
        "conv 32-64, stride 4, as in article 1",
        (224, 224),
        "mse",
        "sgd",
        0.01,
    ),
    "deep": Architecture(
        f"{_NETWORK}.articles:build_deep",
        "conv 64-128-256, stride 8, as in article 2",
        (256, 256),
        "bce",
        "adam",
        1e-3,
    ),
}
"""Every encoder by its name; a new one is a file with its builder and a row here."""

DEFAULT_ARCHITECTURE = "edge"


def starts_pretrained(arch: str, teacher: str) -> bool:
    """Say whether a trunk starts from the weights of the teacher that it learns from."""
    row = ARCHITECTURES[arch]
    return bool(row.origin) and teacher == row.teacher
