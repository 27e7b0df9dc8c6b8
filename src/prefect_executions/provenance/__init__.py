"""Tell an execution as W3C PROV-XML (`provo.xml`), read it back, check its times, convert it."""

from prefect_executions.provenance.conversion import Form, convert
from prefect_executions.provenance.reading import read
from prefect_executions.provenance.times import time_faults
from prefect_executions.provenance.writing import write

__all__ = ["Form", "convert", "read", "time_faults", "write"]
