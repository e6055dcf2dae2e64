"""``python -m dfpo`` is the command ``dfpo``."""

import sys

from dfpo.cli import main

sys.exit(main())
