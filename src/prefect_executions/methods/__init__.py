"""What a Method is: an OGC process description, the code or scripts behind it, and the rules of its declaration.

A descriptor Method has modules of its own, which are not loaded for others:
`reading` makes a Method of a file, `asking` its form and the values of its
inputs, `scripts` what is run, `wishes` what the infrastructure is asked for.
"""

from prefect_executions.methods.comparisons import Comparison, comparison_of
from prefect_executions.methods.describing import (
    METHOD_TYPES,
    AdditionalParameter,
    AdditionalParameters,
    CodeIdentity,
    InputDescription,
    Link,
    MetadataEntry,
    Method,
    Notebook,
    OutputDescription,
    Repository,
    SourceFile,
    check_type,
)
from prefect_executions.methods.files import DESCRIPTORS, FILE_FORMAT, InputFile, descriptor_in
from prefect_executions.methods.forms import (
    MARK,
    SECRET_FORM,
    SECRET_REFERENCE,
    is_secret_reference,
    marked,
    marked_version,
    secret_inputs,
    unmarked,
)
from prefect_executions.methods.openapi import as_openapi, inputs_of

__all__ = [
    "DESCRIPTORS",
    "FILE_FORMAT",
    "MARK",
    "METHOD_TYPES",
    "SECRET_FORM",
    "SECRET_REFERENCE",
    "AdditionalParameter",
    "AdditionalParameters",
    "CodeIdentity",
    "Comparison",
    "InputDescription",
    "InputFile",
    "Link",
    "MetadataEntry",
    "Method",
    "Notebook",
    "OutputDescription",
    "Repository",
    "SourceFile",
    "as_openapi",
    "check_type",
    "comparison_of",
    "descriptor_in",
    "inputs_of",
    "is_secret_reference",
    "marked",
    "marked_version",
    "secret_inputs",
    "unmarked",
]
