"""`python -m prefect_executions.cli`: the command line, for an interpreter without the script `executions`."""

import sys

from prefect_executions.cli.app import main

sys.exit(main())
