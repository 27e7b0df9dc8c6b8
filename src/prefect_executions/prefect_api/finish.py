"""Completion of the bundle of a killed process: its logs, pauses and steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from prefect_executions.bundles import layout
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.logfiles import seal_log
from prefect_executions.capture.parameters import register_credentials
from prefect_executions.capture.secrets import SecretMask, mask_names
from prefect_executions.documents import json_value
from prefect_executions.errors import OrchestratorError
from prefect_executions.executions.record import ExecuteRequest
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.methods.model import Method
from prefect_executions.prefect_api.blocks import resolve_secret
from prefect_executions.prefect_api.flow_runs import merge_prefect_history, steps


def finish_interrupted(
    bundle: OpenBundle, parameters: Mapping[str, Any], environment: Mapping[str, str], names: tuple[str, ...] = ()
) -> None:
    """Complete the open *bundle* of an execution whose process is gone; idempotent.

    *names* are additional names of secrets among the *parameters*.

    Raises:
        SecretError: If a secret of the run has no value any more, so that the logs may hold it.
    """
    mask = secret_mask(bundle, parameters, environment, names)
    mask_logs(bundle, mask)
    job_status = bundle.read(JobStatus)
    if job_status.execution_status.terminal:
        return
    with suppress(OrchestratorError):
        job_status = merge_prefect_history(job_status)
        if job_status.steps is None or not all(step.ended for step in job_status.steps):
            job_status = job_status.model_copy(update={"steps": steps(job_status, mask.mask) or None})
    bundle.write_document(job_status)


def mask_logs(bundle: OpenBundle, mask: SecretMask) -> None:
    """Mask secrets that child processes wrote into the logs and the names of outputs; idempotent.

    Children that are still running may write more; that stays out of the bundle.
    """
    for log in (layout.STDOUT, layout.STDERR):
        seal_log(bundle.folder / log, mask)
    with suppress(OSError):  # a file that cannot be renamed cannot be read either, and gathering reports it
        mask_names(bundle.paths.outputs, mask)


def secret_mask(
    bundle: OpenBundle, parameters: Mapping[str, Any], environment: Mapping[str, str], names: tuple[str, ...] = ()
) -> SecretMask:
    """Return the mask for the secrets of an execution whose process is gone, and of those that shared its secrets.

    Raises:
        SecretError: If one of them has no value any more.
    """
    mask = SecretMask()
    values = bundle.read(ExecuteRequest).values
    for name in bundle.read(Method).secrets & values.keys():
        if values[name] is not None and "secret" in values[name]:  # else it was never resolved
            mask.add(resolve_secret(name, values[name]["secret"], environment).get_secret_value())
    for name in bundle.secret_names():
        mask.add(resolve_secret("", name, environment).get_secret_value())
    register_credentials({name: json_value(value) for name, value in parameters.items()}, mask, names)
    return mask
