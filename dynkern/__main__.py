"""python -m dynkern: the command line."""

import sys

from dynkern.cli import main

sys.exit(main())
