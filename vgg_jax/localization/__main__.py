"""Where networks see the objects of a test set (appendix A of arXiv:1409.1556).

python -m vgg_jax.localization BOXES [BOXES ...] --classifier RUN [--scales 256,384]

BOXES are workdirs of localization networks, whose boxes are merged together; RUN is
that of a classifier, which rates them. Prints errors; writes localization.json
and boxes.png into the first of BOXES.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vgg_jax.cli import UsageError, scales
from vgg_jax.compilation import cache_compilations


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate what the command line says; 0, or 1 after an error's one line."""
    parser = argparse.ArgumentParser(
        prog="python -m vgg_jax.localization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("boxes", type=Path, nargs="+", metavar="BOXES")
    parser.add_argument("--classifier", type=Path, required=True, metavar="RUN")
    parser.add_argument("--scales", default="", metavar="Q,Q", help="short sides")
    options = parser.parse_args(arguments)
    cache_compilations()
    # Here, so that --help is quick.
    from vgg_jax.localization.compare import run_localization

    try:
        chosen = scales(options.scales.split(",")) if options.scales else ()
        run_localization(options.boxes, options.classifier, chosen)
    except (UsageError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
