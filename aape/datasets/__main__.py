"""`python -m aape.datasets <dataset> <root> <out.csv>`."""

import sys

from aape.datasets import main

sys.exit(main())
