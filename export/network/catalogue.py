"""The architectures and what each is for. Torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass

NO_TEACHER = "none"


@dataclass(frozen=True)
class Architecture:
    """What an architecture was made for; each can be overridden when training.

    Attributes:
        help: One line for people.
        image_size: Width and height in pixels.
        loss: ``mse``, ``bce`` or ``l1``.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        learning_rate: Peak learning rate.
        batch: Images a step.
        latent_dim: Latent channels.
        taught_dim: Latent channels with a teacher.
        teacher: Whose features it learns where nothing is said; its trunk starts from them.
    """

    help: str
    image_size: tuple[int, int] = (480, 360)
    loss: str = "l1"
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    batch: int = 8
    latent_dim: int = 32
    taught_dim: int = 64
    teacher: str = NO_TEACHER


ARCHITECTURES: dict[str, Architecture] = {
    "edge": Architecture("small and fast"),
    "lite": Architecture(
        "starts from EfficientNet-Lite0 (extra teacher), better clusters, slower",
        teacher="efficientnet_lite0",
    ),
    "shallow": Architecture(
        "conv 32-64, stride 4, as in article 1", (224, 224), "mse", "sgd", 0.01
    ),
    "deep": Architecture(
        "conv 64-128-256, stride 8, as in article 2", (256, 256), "bce", "adam", 1e-3
    ),
}

DEFAULT_ARCHITECTURE = "edge"


def starts_pretrained(arch: str, teacher: str) -> bool:
    """Say whether a trunk starts from the weights of the teacher that it learns from."""
    return teacher != NO_TEACHER and teacher == ARCHITECTURES[arch].teacher
