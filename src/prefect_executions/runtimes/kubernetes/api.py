"""The Kubernetes API: objects as JSON, and commands in containers.

The only module that uses the Kubernetes client. Objects stay dictionaries as the
server returns them, which shows the fields that it dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from kubernetes.client import ApiClient, Configuration, CoreV1Api
from kubernetes.client.rest import ApiException
from kubernetes.config import (
    ConfigException,
    list_kube_config_contexts,
    load_incluster_config,
    load_kube_config,
)
from kubernetes.dynamic import DynamicClient
from kubernetes.stream import stream
from kubernetes.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDOUT_CHANNEL, WSClient
from urllib3.exceptions import HTTPError
from websocket import ABNF, WebSocketConnectionClosedException, WebSocketException

from prefect_executions.errors import InfrastructureError

_TIMEOUTS = (10.0, 60.0)  # seconds for a connection, and for a response
_IDLE_TIMEOUT = 300.0  # seconds without a byte from a command, after which the connection counts as lost
_DEFAULT_KUBECONFIG = "~/.kube/config"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Json = dict[str, Any]


class Refused(Exception):  # noqa: N818 - a response, which callers handle
    """The API server refused a request; `status` is the HTTP status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        """Connect to the cluster of *kubeconfig*, else ``KUBECONFIG``, else the pod around us, else ``~/.kube/config``.

        Raises:
            InfrastructureError: If none of them names a cluster.
        """
        self._configuration = Configuration()
        # The client itself reads the variable only once, when it is imported.
        path = kubeconfig or os.environ.get("KUBECONFIG")
        try:
            self.namespace = _configure(self._configuration, path)
        except (ConfigException, OSError) as error:
            raise InfrastructureError(
                f"No Kubernetes cluster is named by {path or _DEFAULT_KUBECONFIG}; "
                f"set KUBECONFIG to a file that names a cluster: {error}"
            ) from error
        self._api = ApiClient(self._configuration)
        self._client: Any = DynamicClient(self._api, discoverer=lambda *_: None)

    def close(self) -> None:
        """Close the connections."""
        self._api.rest_client.pool_manager.clear()

    def request(
        self,
        method: Literal["get", "post", "patch", "delete"],
        path: str,
        body: Mapping[str, Any] | None = None,
        **options: str,
    ) -> Json:
        """Return the response to one request; *path* is relative to the namespace, unless it begins with a slash.

        Raises:
            Refused: If the server refuses the request.
            InfrastructureError: If the server is unavailable, or failed.
        """
        group, _, rest = path.partition("/")
        full_path = path if not group else f"/{_ROOT[group]}/namespaces/{self.namespace}/{rest}"
        if method == "patch":
            options["content_type"] = "application/merge-patch+json"
        with _translate_errors(full_path):
            response = self._client.request(
                method, full_path, body=body, serialize=False, _request_timeout=_TIMEOUTS, query_params=[], **options
            )
            content: Json = json.loads(response.data)
        return content

    def command(self, pod: str, container: str, script: str, *arguments: str, stdin: bool = False) -> Command:
        """Start the shell text *script* in a container; with *stdin* it has an input.

        Raises:
            Refused: If the container is missing, or does not run.
            InfrastructureError: If the server is unavailable, or failed.
        """
        # The client changes its connection for this, so it gets one of its own.
        api = CoreV1Api(ApiClient(self._configuration))
        with _translate_errors(f"a command in {pod}"):
            return Command(
                stream(
                    api.connect_get_namespaced_pod_exec,
                    pod,
                    self.namespace,
                    container=container,
                    command=["/bin/sh", "-c", script, "sh", *arguments],
                    stdin=stdin,
                    stdout=True,
                    stderr=True,
                    tty=False,
                    binary=True,
                    _preload_content=False,
                )
            )


_ROOT = {"batch": "apis/batch/v1", "core": "api/v1"}


class Command:
    """A command that runs in a container; `errors` collects its stderr and the reason of a failure."""

    def __init__(self, client: WSClient) -> None:
        self._client = client
        # Read frame by frame: the client itself would first collect everything.
        self._frames = client.sock
        self._frames.settimeout(_IDLE_TIMEOUT)
        self._status = b""
        self._ended = False
        self.errors = ""

    def send(self, data: bytes) -> None:
        """Write to its input, which cannot be closed: the reader must know the length."""
        with _translate_errors("the input of a command"):
            self._client.write_stdin(data)

    def output(self) -> Iterator[tuple[Literal["stdout", "stderr"], bytes]]:
        """Yield its output until it has ended.

        Raises:
            InfrastructureError: If the connection is lost.
        """
        while not self._ended:
            channel, data = self._frame()
            if channel == ERROR_CHANNEL:
                self._status += data
            elif channel in _CHANNELS and data:
                yield _CHANNELS[channel], data

    def code(self) -> int | None:
        """Wait for its end; return its exit code, or None if the connection was lost first."""
        self.errors += b"".join(data for name, data in self.output() if name == "stderr").decode(errors="replace")
        if not self._status:
            return None
        status = json.loads(self._status)
        causes = status.get("details", {}).get("causes", [])
        codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
        if status.get("status") == "Success":
            return 0
        self.errors += "" if codes else status.get("message", "")
        return next(iter(codes), 1)

    def _frame(self) -> tuple[int, bytes]:
        """Return the channel and the content of the next frame."""
        try:
            with _translate_errors("a command"):
                kind, frame = self._frames.recv_data_frame(control_frame=True)
        except InfrastructureError as error:
            self._ended = True
            if self._status and isinstance(error.__cause__, WebSocketConnectionClosedException):
                return _NONE, b""
            raise
        self._ended = kind == ABNF.OPCODE_CLOSE
        if kind not in {ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT} or not frame.data:
            return _NONE, b""
        return frame.data[0], frame.data[1:]

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError, WebSocketException):
            self._client.close()
            self._frames.shutdown()  # the client leaves a socket open that the server has closed


_NONE = -1
_CHANNELS: Mapping[int, Literal["stdout", "stderr"]] = {STDOUT_CHANNEL: "stdout", STDERR_CHANNEL: "stderr"}


def _configure(configuration: Configuration, kubeconfig: str | None) -> str:
    """Fill *configuration*; return the namespace of its source."""
    if kubeconfig is None and _OWN_NAMESPACE.exists():
        with suppress(ConfigException):
            load_incluster_config(client_configuration=configuration)
            return _OWN_NAMESPACE.read_text().strip()
    load_kube_config(config_file=kubeconfig or _DEFAULT_KUBECONFIG, client_configuration=configuration)
    return str(list_kube_config_contexts(kubeconfig or _DEFAULT_KUBECONFIG)[1]["context"].get("namespace") or "default")


@contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Raise `Refused` if the server refuses *what*, InfrastructureError if it fails or is unavailable."""
    try:
        yield
    except ApiException as error:
        detail = _detail(error)
        if error.status and error.status < 500:  # noqa: PLR2004 - HTTP: a server error
            raise Refused(error.status, detail) from error
        raise InfrastructureError(f"Kubernetes failed for {what}: {detail}") from error
    except (HTTPError, WebSocketException, OSError) as error:
        raise InfrastructureError(f"Kubernetes failed for {what}: {error}") from error


def _detail(error: ApiException) -> str:
    with suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(error.body)["message"])
    return str(error.reason or error)
