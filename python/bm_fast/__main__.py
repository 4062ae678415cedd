"""``python -m bm_fast`` is the command ``bm-fast``."""

import sys

from bm_fast.cli import main

sys.exit(main())
