"""A Kubernetes cluster as its API shows it: objects as JSON, and commands inside of containers.

The one module that speaks to the Kubernetes client. Objects are dictionaries as
the server has them, so that what it has dropped can be seen.
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

_PATIENCE = (10.0, 60.0)  # seconds for a connection, and for an answer
_SILENCE = 300.0  # seconds without a byte from a command after which nobody is believed to be there
_USUAL = "~/.kube/config"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Json = dict[str, Any]


class Refused(Exception):  # noqa: N818 - it is an answer
    """The API server answers no; `status` is HTTP's."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        """Speak to the cluster of *kubeconfig*, else ``KUBECONFIG``, else the pod we are in, else ``~/.kube/config``.

        Raises:
            InfrastructureError: If none of them names a cluster.
        """
        self._configuration = Configuration()
        # Read here: the client itself reads it once, when it is imported.
        named = kubeconfig or os.environ.get("KUBECONFIG")
        try:
            self.namespace = _configure(self._configuration, named)
        except (ConfigException, OSError) as error:
            raise InfrastructureError(
                f"No Kubernetes cluster is named by {named or _USUAL}; set KUBECONFIG to a file that names one: {error}"
            ) from error
        self._api = ApiClient(self._configuration)
        self._client: Any = DynamicClient(self._api, discoverer=lambda *_: None)

    def close(self) -> None:
        """Close the connections."""
        self._api.rest_client.pool_manager.clear()

    def ask(
        self,
        method: Literal["get", "post", "patch", "delete"],
        path: str,
        body: Mapping[str, Any] | None = None,
        **wishes: str,
    ) -> Json:
        """Return the answer to one request; *path* begins below the namespace, unless it begins with a slash.

        Raises:
            Refused: If the server says no.
            InfrastructureError: If the server cannot be reached, or has failed.
        """
        group, _, rest = path.partition("/")
        whole = path if not group else f"/{_ROOT[group]}/namespaces/{self.namespace}/{rest}"
        if method == "patch":
            wishes["content_type"] = "application/merge-patch+json"
        with _reaching(whole):
            told = self._client.request(
                method, whole, body=body, serialize=False, _request_timeout=_PATIENCE, query_params=[], **wishes
            )
            answer: Json = json.loads(told.data)
        return answer

    def command(self, pod: str, container: str, script: str, *arguments: str, talks: bool = False) -> Command:
        """Start a shell's *script* in a container; with *talks* it has an input.

        Raises:
            Refused: If the container is not there, or does not run.
            InfrastructureError: If the server cannot be reached, or has failed.
        """
        # The client changes its own connection for this; others must go on with theirs.
        api = CoreV1Api(ApiClient(self._configuration))
        with _reaching(f"a command in {pod}"):
            return Command(
                stream(
                    api.connect_get_namespaced_pod_exec,
                    pod,
                    self.namespace,
                    container=container,
                    command=["/bin/sh", "-c", script, "sh", *arguments],
                    stdin=talks,
                    stdout=True,
                    stderr=True,
                    tty=False,
                    binary=True,
                    _preload_content=False,
                )
            )


_ROOT = {"batch": "apis/batch/v1", "core": "api/v1"}


class Command:
    """A command that runs in a container; what it writes is told by stream; `said` has what it complained of."""

    def __init__(self, told: WSClient) -> None:
        self._told = told
        # Read frame by frame: the client itself would first collect all that there is.
        self._frames = told.sock
        self._frames.settimeout(_SILENCE)
        self._status = b""
        self._over = False
        self.said = ""

    def send(self, data: bytes) -> None:
        """Write to its input, which has no end: whoever reads has to know how much will come."""
        with _reaching("the input of a command"):
            self._told.write_stdin(data)

    def pieces(self) -> Iterator[tuple[Literal["stdout", "stderr"], bytes]]:
        """Yield what it writes until it has ended.

        Raises:
            InfrastructureError: If the connection is lost.
        """
        while not self._over:
            channel, data = self._frame()
            if channel == ERROR_CHANNEL:
                self._status += data
            elif channel in _CHANNELS and data:
                yield _CHANNELS[channel], data

    def code(self) -> int | None:
        """Wait for its end; return its exit code, None when the connection was lost before."""
        self.said += b"".join(data for name, data in self.pieces() if name == "stderr").decode(errors="replace")
        if not self._status:
            return None
        status = json.loads(self._status)
        causes = status.get("details", {}).get("causes", [])
        codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
        if status.get("status") == "Success":
            return 0
        self.said += "" if codes else status.get("message", "")
        return next(iter(codes), 1)

    def _frame(self) -> tuple[int, bytes]:
        """Return the channel and the content of the next frame."""
        try:
            with _reaching("a command"):
                kind, frame = self._frames.recv_data_frame(control_frame=True)
        except InfrastructureError as error:
            self._over = True
            if self._status and isinstance(error.__cause__, WebSocketConnectionClosedException):
                return _NONE, b""
            raise
        self._over = kind == ABNF.OPCODE_CLOSE
        if kind not in {ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT} or not frame.data:
            return _NONE, b""
        return frame.data[0], frame.data[1:]

    def close(self) -> None:
        """Leave it."""
        with suppress(OSError, WebSocketException):
            self._told.close()
            self._frames.shutdown()  # what the other side has closed, the client leaves open


_NONE = -1
_CHANNELS: Mapping[int, Literal["stdout", "stderr"]] = {STDOUT_CHANNEL: "stdout", STDERR_CHANNEL: "stderr"}


def _configure(configuration: Configuration, kubeconfig: str | None) -> str:
    """Fill *configuration*; return the namespace that its source names."""
    if kubeconfig is None and _OWN_NAMESPACE.exists():
        with suppress(ConfigException):
            load_incluster_config(client_configuration=configuration)
            return _OWN_NAMESPACE.read_text().strip()
    load_kube_config(config_file=kubeconfig or _USUAL, client_configuration=configuration)
    return str(list_kube_config_contexts(kubeconfig or _USUAL)[1]["context"].get("namespace") or "default")


@contextmanager
def _reaching(what: str) -> Iterator[None]:
    """Tell apart that the server says no and that it is away."""
    try:
        yield
    except ApiException as error:
        said = _said(error)
        if error.status and error.status < 500:  # noqa: PLR2004 - HTTP: from here on the server has failed
            raise Refused(error.status, said) from error
        raise InfrastructureError(f"Kubernetes failed when asked for {what}: {said}") from error
    except (HTTPError, WebSocketException, OSError) as error:
        raise InfrastructureError(f"Kubernetes failed when asked for {what}: {error}") from error


def _said(error: ApiException) -> str:
    with suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(error.body)["message"])
    return str(error.reason or error)
