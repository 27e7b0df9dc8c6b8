"""Random kills: ``python tests/faults/random_kills.py --executions 200``; see `chaos`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from faults.chaos import main  # noqa: E402 - found only now

if __name__ == "__main__":
    sys.exit(main())
