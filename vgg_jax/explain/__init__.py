"""Maps of where a network sees a class, as pure functions of images and labels."""

from vgg_jax.explain.maps import class_activation_map, class_score_map, grad_cam

__all__ = ["class_activation_map", "class_score_map", "grad_cam"]
