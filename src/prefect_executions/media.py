"""Which media type a file's name says, and which media types are already compressed.

Law: a name gives the same type on every machine, so the system's own table
(``/etc/mime.types``) is not read.
"""

from __future__ import annotations

import mimetypes
from functools import cache

UNKNOWN = "application/octet-stream"

# What `mimetypes` does not know, or tells differently on different Pythons.
# Registered names (IANA) where there is one, else the name that the format's own community uses.
SCIENTIFIC = {
    ".7z": "application/x-7z-compressed",
    ".arrow": "application/vnd.apache.arrow.file",
    ".asdf": "application/x-asdf",
    ".avif": "image/avif",
    ".bam": "application/x-bam",
    ".br": "application/x-brotli",
    ".bz2": "application/x-bzip2",
    ".cif": "chemical/x-cif",
    ".dcm": "application/dicom",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".ecsv": "text/csv",
    ".fasta": "text/x-fasta",
    ".fastq": "text/x-fastq",
    ".feather": "application/vnd.apache.arrow.file",
    ".fit": "application/fits",
    ".fits": "application/fits",
    ".flac": "audio/flac",
    ".fts": "application/fits",
    ".fz": "application/fits",
    ".geojson": "application/geo+json",
    ".gz": "application/gzip",
    ".h5": "application/x-hdf5",
    ".hdf": "application/x-hdf",
    ".hdf5": "application/x-hdf5",
    ".heic": "image/heic",
    ".ipynb": "application/x-ipynb+json",
    ".jp2": "image/jp2",
    ".jsonl": "application/jsonl",
    ".jsonld": "application/ld+json",
    ".lz4": "application/x-lz4",
    ".log": "text/plain",
    ".mat": "application/x-matlab-data",
    ".md": "text/markdown",
    ".mkv": "video/matroska",
    ".n3": "text/n3",
    ".nc": "application/x-netcdf",
    ".ndjson": "application/x-ndjson",
    ".nii": "application/x-nifti",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".nt": "application/n-triples",
    ".ogg": "audio/ogg",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".onnx": "application/x-onnx",
    ".orc": "application/x-orc",
    ".parquet": "application/vnd.apache.parquet",
    ".pdb": "chemical/x-pdb",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".py": "text/x-python",
    ".r": "text/x-r",
    ".root": "application/x-root",
    ".rst": "text/x-rst",
    ".safetensors": "application/x-safetensors",
    ".sqlite": "application/vnd.sqlite3",
    ".svgz": "application/gzip",
    ".tgz": "application/gzip",
    ".toml": "application/toml",
    ".ttl": "text/turtle",
    ".vot": "application/x-votable+xml",
    ".votable": "application/x-votable+xml",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".whl": "application/zip",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xz": "application/x-xz",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zip": "application/zip",
    ".zst": "application/zstd",
}

# Deflating these again costs time and gains under a few per cent.
_COMPRESSED = frozenset(
    {
        "application/gzip",
        "application/java-archive",
        "application/pdf",
        "application/vnd.apache.parquet",
        "application/x-7z-compressed",
        "application/x-bam",
        "application/x-brotli",
        "application/x-bzip2",
        "application/x-lz4",
        "application/x-npz",
        "application/x-rar-compressed",
        "application/x-xz",
        "application/zip",
        "application/zstd",
        "audio/flac",
        "audio/mp4",
        "audio/mpeg",
        "audio/ogg",
        "image/avif",
        "image/gif",
        "image/heic",
        "image/jp2",
        "image/jpeg",
        "image/png",
        "image/webp",
    }
)

_COMPRESSED_FAMILIES = ("application/vnd.openxmlformats-", "application/vnd.oasis.opendocument.", "video/")


def media_type(name: str) -> str:
    """Return the media type that the ending of *name* says, or ``application/octet-stream``.

    An ending that says a compression (``table.csv.gz``) gives the compression's
    type, because that is what the bytes are.
    """
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    suffix = f".{ending.lower()}" if stem and dot else ""
    return SCIENTIFIC.get(suffix) or _python_types().get(suffix, UNKNOWN)


def already_compressed(media: str) -> bool:
    """Whether files of the type *media* gain nothing from another compression."""
    return media in _COMPRESSED or media.startswith(_COMPRESSED_FAMILIES)


@cache
def _python_types() -> dict[str, str]:
    return mimetypes.MimeTypes(filenames=()).types_map[True]
