"""`Call`: a call of a Method's function in its flow run, with the settings and collectors of its recording."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from logging import Logger, LoggerAdapter
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect.context import FlowRunContext
from prefect.logging.loggers import flow_run_logger

from prefect_executions.capture.code import RunStart
from prefect_executions.capture.host import Meter
from prefect_executions.capture.late_code import run_start
from prefect_executions.capture.probes import Probe, probe
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.errors import ExecutionsError
from prefect_executions.flow import prefect_logs
from prefect_executions.flow.context import running_id
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.invocation import Invocation, current_invocation
from prefect_executions.flow.opening import add_requested_labels, workbench_for
from prefect_executions.flow.outcome import mask_error
from prefect_executions.flow.shared_secrets import SharedSecrets, join
from prefect_executions.settings import Settings
from prefect_executions.workbench.workbench import Workbench

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a Method's function in its flow run, and what the recording collects about it.

    Attributes:
        arguments: As the function gets them: when the inputs are staged, with staged files and resolved secrets.
        begun: The start of the call, in nanoseconds of the epoch.
        start: Where the code is, and the modules that were loaded when the call began.
        task_logs: The task runs that have logged something.
    """

    declared: Declared
    context: FlowRunContext
    run: FlowRun
    arguments: inspect.BoundArguments = field(repr=False)  # contains resolved secrets
    invocation: Invocation
    settings: Settings
    workbench: Workbench
    log: LoggerAdapter[Logger]
    secrets: SharedSecrets = field(repr=False)
    meter: Meter = field(default_factory=Meter)
    begun: int = field(default_factory=time.time_ns)
    start: RunStart = field(repr=False)
    task_logs: set[prefect_logs.TaskLog] = field(default_factory=set)

    @property
    def mask(self) -> SecretMask:
        """Masks the secrets of this execution and of all that share its process."""
        return self.secrets.mask

    @property
    def time_limit(self) -> float | None:
        """Seconds that the author's code may take: the shorter of the author's limit and the operator's."""
        operators = self.settings.time_limit
        limits = [self.declared.method.time_limit, operators.total_seconds() if operators else None]
        return min((limit for limit in limits if limit), default=None)

    def will_retry(self, error: BaseException | None) -> bool:
        """Whether Prefect will retry: its rule RetryFailedFlows compares the run count with the retries."""
        retries = self.context.flow.retries if self.context.flow else 0
        return isinstance(error, Exception) and self.run.run_count <= (retries or 0)

    @contextmanager
    def never_losing(self, doing: str) -> Iterator[None]:
        """Log a failure of the recording instead of raising it; settle repairs the record later."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the law: after the work, never lose
            with suppress(Exception):
                self.log.warning(
                    "execution %s: %s failed and is left to settle: %s", self.run.id, doing, self.mask.mask(str(error))
                )

    def report_opened(self, execution_id: str) -> None:
        """Report to the caller of the Method that the record is open, and label it as it was submitted."""
        self.invocation.on_opened(execution_id)
        add_requested_labels(self.run, execution_id, self.settings)

    def report_returned(self) -> None:
        """Report to the caller of the Method that its code has ended."""
        with self.never_losing("calling on_returned"):
            self.invocation.on_returned()

    @contextmanager
    def sharing_secrets(self) -> Iterator[None]:
        """Share the secrets of this process until the block ends."""
        try:
            yield
        finally:
            self.secrets.leave(str(self.run.id))

    @contextmanager
    def masking_errors(self) -> Iterator[None]:
        """Mask the secrets in what the block raises."""
        try:
            yield
        except BaseException as error:
            with self.never_losing("masking the error"):
                mask_error(error, self.mask)
            raise


def without_frames(function: Callable[P, R]) -> Callable[P, R]:
    """Let *function* raise errors of this package without the frames that led to them: the message says what to do."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ExecutionsError as error:
            raise error.with_traceback(None) from None

    return called


def for_call(
    declared: Declared, entry: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call | None:
    """Return the call to record, if Prefect is calling *entry* as the function of a flow run, else None.

    A Method's plain function may be called from inside its own run or another one; such a call is not recorded.
    The caller uses `Call.sharing_secrets` around it.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or getattr(context.flow, "fn", None) is not entry:
        return None
    if running_id() == str(context.flow_run.id):
        return None
    arguments = inspect.signature(declared.function).bind(*args, **kwargs)
    arguments.apply_defaults()
    invocation, settings = current_invocation(), Settings.read()
    if invocation.image:
        settings = settings.model_copy(update={"runtime": invocation.image.runtime})
    return Call(
        declared=declared,
        context=context,
        run=context.flow_run,
        arguments=arguments,
        invocation=invocation,
        settings=settings,
        workbench=workbench_for(settings),
        log=flow_run_logger(context.flow_run, context.flow),
        start=probe(Probe.CODE, partial(run_start, declared.source), RunStart(None, frozenset()), {}),
        secrets=join(enclosed=context.flow_run.parent_task_run_id is not None or context.flow_run.run_count > 1),
    )
