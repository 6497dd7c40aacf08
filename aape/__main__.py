"""`python -m aape`."""

import sys

from aape.cli import main

sys.exit(main())
