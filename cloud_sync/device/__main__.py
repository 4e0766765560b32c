"""``python -m cloud_sync.device`` is ``edged-sync``."""

import sys

from cloud_sync.device.cli import main

sys.exit(main())
