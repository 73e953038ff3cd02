"""`python -m mvar_kernels` checks this installation."""

import sys

from mvar_kernels.selfcheck import main

sys.exit(main())
