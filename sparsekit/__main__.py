"""`python -m sparsekit`."""

import sys

from sparsekit.cli.main import main

sys.exit(main())
