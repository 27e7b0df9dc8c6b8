"""The `executions` command as a module: `python -m prefect_executions.cli`, for an interpreter without the script."""

import sys

from prefect_executions.cli.app import main

sys.exit(main())
