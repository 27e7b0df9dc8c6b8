"""All faults as one table: ``python tests/faults``; see `table`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from faults.table import main  # noqa: E402 - found only now

if __name__ == "__main__":
    sys.exit(main())
