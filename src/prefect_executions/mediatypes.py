"""Media types (MIME types) by file extension, and which of them are already compressed.

Law: a name gives the same type on every machine and Python version, because a sealed
crate records it. So the tables of the system (``/etc/mime.types``) and of `mimetypes`,
which changes with Python, are not read. An extension that is not listed here is unknown.
"""

from __future__ import annotations

UNKNOWN = "application/octet-stream"

# Extensions that the common table below lacks, or gives another type.
# The type registered with IANA if there is one, else the type that the format's community uses.
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

# Each line is a media type and its extensions, from Python 3.11's `mimetypes`.
_COMMON = {
    extension: media
    for media, *extensions in map(
        str.split,
        """
application/javascript .js .mjs
application/json .json
application/manifest+json .webmanifest
application/msword .doc .dot .wiz
application/n-quads .nq
application/oda .oda
application/pdf .pdf
application/pkcs7-mime .p7c
application/postscript .ai .eps .ps
application/trig .trig
application/vnd.apple.mpegurl .m3u .m3u8
application/vnd.ms-excel .xlb .xls
application/vnd.ms-powerpoint .pot .ppa .pps .ppt .pwz
application/wasm .wasm
application/x-bcpio .bcpio
application/x-cpio .cpio
application/x-csh .csh
application/x-dvi .dvi
application/x-gtar .gtar
application/x-latex .latex
application/x-mif .mif
application/x-netcdf .cdf
application/x-pkcs12 .p12 .pfx
application/x-pn-realaudio .ram
application/x-python-code .pyc .pyo
application/x-sh .sh
application/x-shar .shar
application/x-shockwave-flash .swf
application/x-sv4cpio .sv4cpio
application/x-sv4crc .sv4crc
application/x-tar .tar
application/x-tcl .tcl
application/x-tex .tex
application/x-texinfo .texi .texinfo
application/x-troff .roff .t .tr
application/x-troff-man .man
application/x-troff-me .me
application/x-troff-ms .ms
application/x-ustar .ustar
application/x-wais-source .src
application/xml .rdf .wsdl .xpdl .xsl
audio/3gpp .3gp .3gpp
audio/3gpp2 .3g2 .3gpp2
audio/aac .aac .adts .ass .loas
audio/basic .au .snd
audio/mpeg .mp2 .mp3
audio/opus .opus
audio/x-aiff .aif .aifc .aiff
audio/x-pn-realaudio .ra
audio/x-wav .wav
image/bmp .bmp
image/gif .gif
image/heif .heif
image/ief .ief
image/jpeg .jpe .jpeg .jpg
image/png .png
image/svg+xml .svg
image/tiff .tif .tiff
image/vnd.microsoft.icon .ico
image/x-cmu-raster .ras
image/x-portable-anymap .pnm
image/x-portable-bitmap .pbm
image/x-portable-graymap .pgm
image/x-portable-pixmap .ppm
image/x-rgb .rgb
image/x-xbitmap .xbm
image/x-xpixmap .xpm
image/x-xwindowdump .xwd
message/rfc822 .eml .mht .mhtml .nws
text/css .css
text/csv .csv
text/html .htm .html
text/plain .bat .c .h .ksh .pl .srt .txt
text/richtext .rtx
text/tab-separated-values .tsv
text/vtt .vtt
text/x-setext .etx
text/x-sgml .sgm .sgml
text/x-vcard .vcf
text/xml .xml
video/mp4 .mp4
video/mpeg .m1v .mpa .mpe .mpeg .mpg
video/quicktime .mov .qt
video/x-msvideo .avi
video/x-sgi-movie .movie
""".strip().splitlines(),
    )
    for extension in extensions
}

# Deflating these again takes time and saves a few per cent at most.
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
    """Return the media type for the extension of *name*, or ``application/octet-stream``.

    The extension of a compressed file (``table.csv.gz``) gives the type of the
    compression, because that is what the bytes are.
    """
    stem, dot, extension = name.rpartition("/")[2].rpartition(".")
    suffix = f".{extension.lower()}" if stem and dot else ""
    return SCIENTIFIC.get(suffix) or _COMMON.get(suffix, UNKNOWN)


def already_compressed(media: str) -> bool:
    """Whether files of the type *media* gain nothing from another compression."""
    return media in _COMPRESSED or media.startswith(_COMPRESSED_FAMILIES)
