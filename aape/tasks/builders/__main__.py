"""`python -m aape.tasks.builders <dataset> <root> <out.csv>`."""

import sys

from aape.tasks.builders import main

sys.exit(main())
