"""``python -m aeseg_edge.cli``."""

import sys

from aeseg_edge.cli.main import main

sys.exit(main())
