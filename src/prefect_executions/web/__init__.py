"""The HTTP server: Methods and executions for programs in any language; `app` is the ASGI application to mount."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # FastAPI takes a third of a second to import; only a server needs it.
    from prefect_executions.settings import Settings  # noqa: PLC0415
    from prefect_executions.web.app import create_app  # noqa: PLC0415
    from prefect_executions.workbench.entry import catalog_of  # noqa: PLC0415

    settings = Settings.read()
    globals()[name] = application = create_app(lambda: catalog_of(settings))
    return application
