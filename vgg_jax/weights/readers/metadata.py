"""This module checks what files of this library tell beside their arrays."""

import json

from vgg_jax.preprocessing import Normalization
from vgg_jax.weights.contents import HWIO, OIHW, Refusal


def validate_metadata(metadata: object) -> dict[str, str]:
    """Checks the texts that a file has beside its arrays, and returns them.

    Raises:
        Refusal: they are no texts, or those with a meaning cannot be understood.
    """
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise Refusal("expected text as metadata")
    if metadata.get("axes", OIHW) not in (OIHW, HWIO):
        raise Refusal(
            f"expected {OIHW} or {HWIO} as metadata 'axes', got "
            f"{metadata['axes']!r:.20}"
        )
    if metadata.get("channels", "RGB") not in ("RGB", "BGR"):
        raise Refusal(
            f"expected RGB or BGR as metadata 'channels', got "
            f"{metadata['channels']!r:.20}"
        )
    if "normalization" in metadata:
        text = metadata["normalization"]
        try:
            Normalization(**json.loads(text))
        except (OverflowError, TypeError, ValueError) as error:
            raise Refusal(
                "expected mean and std, a list of numbers each, as metadata "
                f"'normalization', got {text!r:.100} ({error})"
            ) from error
    return metadata


def parse_class_names(text: str | None) -> tuple[str, ...] | None:
    """Returns the names of the classes that metadata has as JSON.

    Raises:
        Refusal: other JSON.
    """
    if text is None:
        return None
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refusal("expected a JSON list of text as metadata 'class_names'")
    return tuple(names)
