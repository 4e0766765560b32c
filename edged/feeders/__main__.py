"""``python -m edged.feeders``."""

import sys

from edged.feeders.cli import main

sys.exit(main())
