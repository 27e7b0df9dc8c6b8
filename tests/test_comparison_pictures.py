"""Pictures are compared by all pixels of all pages, and by everything else in their files."""

from __future__ import annotations

import io
import struct
from datetime import UTC, datetime
from zlib import crc32

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from marks import long_if, long_unless
from prefect_executions.comparison import picture_files, pictures
from prefect_executions.comparison.outputs import compare_output
from prefect_executions.comparison.results import Runs, RunSpan
from prefect_executions.comparison.verdict import Agreement
from prefect_executions.mediatypes import media_type
from prefect_executions.methods.model import Comparison

DAY = datetime(2026, 9, 22, tzinfo=UTC)
RUNS = Runs(RunSpan(DAY, DAY), RunSpan(DAY, DAY))


def compared(before, after, name="p.png", **declared):
    comparison = Comparison(**declared) if declared else None
    return compare_output(name, media_type(name), before, after, declared=comparison, runs=RUNS)


def picture(size=(4, 3), dots=(), mode="L", form="PNG", **how):
    drawn = Image.new(mode, size)
    for dot in dots:
        drawn.putpixel(dot, 9 if mode != "RGB" else (0, 9, 0))
    stream = io.BytesIO()
    drawn.save(stream, form, **how)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1"])
def test_pictures_are_compared_by_their_pixels(mode):
    dots = [(0, 0), (2, 1)]
    plain, other = picture(dots=dots, mode=mode), picture(dots=dots, mode=mode, form="TIFF")
    assert compared(plain, other).words == ("the same pixels in another file",)
    found = compared(plain, picture(dots=dots[:1], mode=mode))
    step = 255 if mode == "1" else 9
    words = f"1 of 12 pixels differ, in a channel by up to {step}"
    assert (found.agreement, found.by, found.words) == (Agreement.DIFFERS, "pixels", (words,))
    assert compared(plain, picture(size=(3, 4), mode=mode)).words == ("it was 4 x 3 pixels and is 3 x 4",)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_pixels_may_differ_by_what_is_declared(mode):
    plain, other = picture(mode=mode), picture(dots=[(1, 1)], mode=mode)
    found = compared(plain, other, absolute_tolerance=9)
    assert (found.agreement, found.words) == (Agreement.EQUAL, ("the same pixels in another file, or within 9",))
    assert compared(plain, other, absolute_tolerance=8.9).agreement is Agreement.DIFFERS


MODES = {
    "1": (np.bool_, 0),
    "L": (np.uint8, 0),
    "LA": (np.uint8, 2),
    "P": (np.uint8, 0),
    "RGB": (np.uint8, 3),
    "RGBA": (np.uint8, 4),
    "I;16": (np.uint16, 0),
    "I": (np.int32, 0),
    "F": (np.float32, 0),
}
FORMS = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "TIFF": tuple(MODES)}


def encoded(pages, form, mode, **how):
    pictures = []
    for page in pages:
        picture = Image.new("P", page.shape[::-1]) if mode == "P" else Image.fromarray(page)
        if mode == "P":
            picture.putpalette([7, 7, 7] * 256)
            picture.putdata(page.ravel().tolist())
        assert picture.mode == mode
        pictures.append(picture)
    stream = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if len(pages) > 1 else {}
    pictures[0].save(stream, form, **more, **how)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("form", "mode"),
    long_unless(
        [(form, mode) for form, modes in FORMS.items() for mode in modes],
        [("PNG", "P"), ("PNG", "RGBA"), ("TIFF", "I;16")],
    ),
)
@given(st.data())
def test_any_other_channel_of_any_pixel_of_any_page_differs(form, mode, data):
    kind, channels = MODES[mode]
    count = data.draw(st.integers(1, 3)) if form == "TIFF" else 1
    shape = (2, 3, *([channels] if channels else []))
    generator = np.random.default_rng(data.draw(st.integers(0, 9)))
    pages = [generator.integers(0, 2 if mode == "1" else 200, shape).astype(kind) for _ in range(count)]
    page = data.draw(st.integers(0, count - 1))
    place = tuple(data.draw(st.integers(0, side - 1)) for side in shape)
    others = [one.copy() for one in pages]
    if mode == "1":
        others[page][place] = not others[page][place]
    else:
        others[page][place] += data.draw(st.sampled_from([1, 50] if mode != "F" else [np.float32(2**-16), np.nan]))
    before, after = encoded(pages, form, mode), encoded(others, form, mode)
    found = compared(before, after, f"p.{form.lower()}")
    assert found.agreement is Agreement.DIFFERS
    if mode != "LA" or form == "PNG":
        assert found.by == "pixels"
        assert found.words[0].removeprefix(f"page {page + 1}: ").startswith("1 of 6 pixels differ")
        how = {"optimize": True} if form == "PNG" else {"compression": "tiff_deflate"}
        same = compared(before, encoded(pages, form, mode, **how), f"p.{form.lower()}")
        assert same.agreement in {Agreement.EQUAL, Agreement.SAME}


@pytest.mark.parametrize(
    "form", long_if(["PNG", "TIFF", "JPEG", "GIF", "BMP", "WEBP", "PPM"], {"GIF", "BMP", "WEBP", "PPM"})
)
@given(st.data())
def test_a_damaged_or_incomplete_picture_differs(form, data):
    pixels = np.full((40, 40, 3), 128, np.uint8)  # grey, because decoders fill what is missing with grey
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    whole = stream.getvalue()
    cut = data.draw(st.integers(1, len(whole) - 1))
    assert compared(whole, whole[:cut], f"p.{form.lower()}").agreement is Agreement.DIFFERS
    assert compared(whole[:cut], whole, f"p.{form.lower()}").agreement is Agreement.DIFFERS
    assert compared(whole, whole + b"more", f"p.{form.lower()}").agreement is Agreement.DIFFERS
    at, value = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    assume(form != "JPEG" or at < whole.rindex(b"\xff\xda"))  # the codes of a scan may be of the same pixels
    damaged = bytearray(whole)
    damaged[at] ^= value
    found = compared(whole, bytes(damaged), f"p.{form.lower()}")
    assert found.agreement is Agreement.DIFFERS or form in {"TIFF", "JPEG"}


def page(value, shape=(8, 8), kind=np.uint8):
    return np.full(shape, value, kind)


def test_every_page_is_compared():
    before = encoded([page(1), page(2), page(3)], "TIFF", "L")
    found = compared(before, encoded([page(1), page(2), page(4)], "TIFF", "L"), "p.tif")
    assert (found.agreement, found.words) == (
        Agreement.DIFFERS,
        ("page 3: 64 of 64 pixels differ, in a channel by up to 1",),
    )
    found = compared(before, encoded([page(1), page(2)], "TIFF", "L"), "p.tif")
    assert found.words == ("it had 3 pages and has 2",)
    same = encoded([page(1), page(2), page(3)], "TIFF", "L", compression="tiff_lzw")
    assert compared(before, same, "p.tif").words == ("the same pixels in another file",)
    near = encoded([page(1), page(2), page(4)], "TIFF", "L")
    assert compared(before, near, "p.tif", absolute_tolerance=1).agreement is Agreement.EQUAL


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_a_film_is_compared_by_bytes(form):
    before = encoded([page(10), page(20)], form, "L", duration=100)
    for after in (
        encoded([page(10), page(250)], form, "L", duration=100),
        encoded([page(10), page(20), page(30)], form, "L", duration=100),
        encoded([page(10), page(20)], form, "L", duration=200),
        encoded([page(10)], form, "L"),
    ):
        found = compared(before, after, f"p.{form.lower()}")
        assert (found.agreement, found.by) == (Agreement.DIFFERS, "bytes")
        assert "compared by bytes, because" in found.words[-1]


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc32(name + content))


def with_chunk(png, name, content):
    end = png.index(b"IDAT") - 4
    return png[:end] + chunk(name, content) + png[end:]


def png_of_16_bits(pixels):
    import zlib  # noqa: PLC0415

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_channels_of_16_bits_are_not_rounded():
    pixels = np.full((2, 2, 3), 1000, np.uint16)
    other = pixels.copy()
    other[1, 1, 2] += 1
    found = compared(png_of_16_bits(pixels), png_of_16_bits(other))
    assert (found.agreement, found.by) == (Agreement.DIFFERS, "bytes")
    assert found.words[-1] == "compared by bytes, because its 3 channels have 16 bits each"


PLAIN = encoded([page(5)], "PNG", "L")


@pytest.mark.parametrize(
    ("name", "content"),
    [(b"tEXt", b"scale\x001"), (b"pHYs", b"\0\0\0\1\0\0\0\1\1"), (b"tRNS", b"\0\5"), (b"prVt", b"1")],
)
def test_other_metadata_differs(name, content):
    found = compared(PLAIN, with_chunk(PLAIN, name, content))
    words = f"the same pixels, but other metadata: PNG chunk {name.decode()}"
    assert (found.agreement, found.words) == (Agreement.DIFFERS, (words,))
    other = content[:-1] + bytes([content[-1] ^ 1])
    first, second = (with_chunk(PLAIN, name, one) for one in (content, other))
    assert compared(first, second).agreement is Agreement.DIFFERS
    assert compared(first, with_chunk(encoded([page(5)], "PNG", "L", compress_level=0), name, content)).agreement.agrees


@pytest.mark.parametrize(("day", "agreement"), [(22, Agreement.VOLATILE), (2, Agreement.DIFFERS)])
def test_times_of_the_run_in_metadata_are_volatile(day, agreement):
    times = [struct.pack(">H5B", 2026, 9, day, 12, minute, 0) for minute in (1, 2)]
    assert compared(*(with_chunk(PLAIN, b"tIME", time) for time in times)).agreement is agreement
    tiffs = [encoded([page(5)], "TIFF", "L", tiffinfo={306: f"2026:09:{day:02} 12:0{minute}:00"}) for minute in (1, 2)]
    assert compared(*tiffs, "p.tif").agreement is agreement


def test_another_palette_of_the_same_colours_differs():
    def with_palette(colours, indices):
        picture = Image.new("P", (4, 1))
        picture.putpalette(colours)
        picture.putdata(indices)
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()

    before = with_palette([1, 1, 1, 2, 2, 2, 2, 2, 2], [0, 1, 2, 0])
    assert compared(before, with_palette([1, 1, 1, 2, 2, 2, 2, 2, 2], [0, 1, 1, 0])).agreement is Agreement.DIFFERS
    assert compared(before, with_palette([1, 1, 1, 2, 2, 2, 3, 3, 3], [0, 1, 2, 0])).agreement is Agreement.DIFFERS
    near = with_palette([1, 1, 1, 2, 2, 2, 2, 2, 2], [0, 1, 1, 0])
    assert compared(before, near, absolute_tolerance=5).agreement is Agreement.DIFFERS


def test_a_hidden_alpha_channel_and_colours_below_it_are_compared():
    clear = np.zeros((2, 2, 4), np.uint8)
    other = clear.copy()
    other[0, 0, 0] = 9
    assert compared(encoded([clear], "PNG", "RGBA"), encoded([other], "PNG", "RGBA")).agreement is Agreement.DIFFERS
    opaque = np.full((2, 2, 4), 255, np.uint8)
    found = compared(encoded([opaque[..., :3]], "PNG", "RGB"), encoded([opaque], "PNG", "RGBA"))
    assert found.words == ("its pixels were RGB with 8 + 8 + 8 bits and are RGBA with 8 + 8 + 8 + 8 bits",)


def test_data_of_a_tiff_that_it_does_not_list_is_not_ignored():
    """ImageJ writes a stack with one directory and the other pages behind it."""
    one = encoded([page(5)], "TIFF", "L")
    found = compared(one + page(1).tobytes(), one + page(2).tobytes(), "p.tif")
    assert (found.agreement, found.by) == (Agreement.DIFFERS, "bytes")
    assert "data besides the pages" in found.words[-1]


def test_other_tags_of_a_tiff_differ():
    before, after = (encoded([page(5)], "TIFF", "L", tiffinfo={33550: (size, 1.0, 0.0)}) for size in (1.0, 2.0))
    found = compared(before, after, "p.tif")
    assert (found.agreement, found.words) == (
        Agreement.DIFFERS,
        ("the same pixels, but other metadata: TIFF tag 33550",),
    )


@pytest.mark.parametrize("kind", [np.float64, np.uint32, np.int8])
def test_pixels_that_pillow_would_round_are_compared_by_bytes(kind):
    """Each is a TIFF of one strip, made by hand."""
    first, second = (tiff_of(page(100, kind=kind) + step * page(1, kind=kind)) for step in (0, 1))
    found = compared(first, second, "p.tif")
    assert (found.agreement, found.by) == (Agreement.DIFFERS, "bytes")
    assert "not compared completely" in found.words[-1]


def tiff_of(pixels, order="<"):
    codes = {"u": 1, "i": 2, "f": 3}
    tags = [
        (256, pixels.shape[1]),
        (257, pixels.shape[0]),
        (258, pixels.itemsize * 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, pixels.shape[0]),
        (279, pixels.nbytes),
        (339, codes[pixels.dtype.kind]),
    ]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}I", 8 + len(data)) + data
    return head + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"


def test_the_order_of_bytes_is_not_a_value():
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    assert compared(tiff_of(pixels), tiff_of(pixels, ">"), "p.tif").agreement is Agreement.EQUAL
    found = compared(tiff_of(pixels), tiff_of(pixels + 1, ">"), "p.tif")
    assert found.words == ("64 of 64 pixels differ, in a channel by up to 1",)


def test_a_jpeg_is_compared_with_its_metadata():
    pixels = np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3)
    before = encoded([pixels], "JPEG", "RGB", quality=90)
    assert compared(before, encoded([pixels], "JPEG", "RGB", quality=90, optimize=True), "p.jpg").words == (
        "the same pixels in another file",
    )
    assert compared(before, encoded([pixels], "JPEG", "RGB", quality=90, comment=b"x"), "p.jpg").words == (
        "the same pixels, but other metadata: JPEG segment FE",
    )
    other = pixels.copy()
    other[3, 4] ^= 0xFF
    assert compared(before, encoded([other], "JPEG", "RGB", quality=90), "p.jpg").agreement is Agreement.DIFFERS


def test_text_in_a_picture_is_a_value():
    def with_text(text):
        notes = PngImagePlugin.PngInfo()
        notes.add_text("threshold", text, zip=True)
        return encoded([page(5)], "PNG", "L", pnginfo=notes)

    assert compared(with_text("1"), with_text("2")).agreement is Agreement.DIFFERS


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0+", b""]), st.binary(max_size=80))
def test_no_content_breaks_the_comparison_of_pictures(begin, rest):
    assert compared(PLAIN, begin + rest).agreement is Agreement.DIFFERS
    assert compared(begin + rest, begin + rest + b"\0").agreement is Agreement.DIFFERS


@pytest.mark.parametrize(("mode", "bytes_of_a_pixel"), [("1", 1), ("L", 1), ("I;16", 2), ("RGB", 4), ("F", 4)])
def test_a_picture_that_takes_too_much_memory_is_compared_by_bytes(monkeypatch, mode, bytes_of_a_pixel):
    monkeypatch.setattr(pictures, "_MOST_BYTES", 100 * bytes_of_a_pixel)  # instead of 160 MiB
    form = "TIFF" if mode == "F" else "PNG"
    for size, by in (((10, 10), "pixels"), ((10, 11), "bytes")):
        verdict = compared(picture(size, mode=mode, form=form), picture(size, [(9, 9)], mode, form), f"p.{form}")
        assert (verdict.agreement, verdict.by) == (Agreement.DIFFERS, by)


def test_a_difference_anywhere_in_a_picture_of_many_strips_is_found(monkeypatch):
    monkeypatch.setattr(pictures, "_BLOCK", 8)  # strips of one row, so that a small picture has several
    for mode in ("L", "RGB", "I;16", "1"):
        plain = picture((5, 7), mode=mode)
        for dot in ((0, 0), (4, 6), (2, 3)):
            words = compared(plain, picture((5, 7), [dot], mode)).words
            assert words[0].startswith("1 of 35 pixels differ")
        dots = [(x, y) for x in range(5) for y in range(7)]
        assert compared(plain, picture((5, 7), dots, mode)).words[0].startswith("35 of 35 pixels differ")


def test_a_picture_without_pixels_has_the_same_reason_each_time():
    data = picture()
    empty = data[:8] + chunk(b"IHDR", bytes(8) + data[24:29]) + data[33:]
    found = compared(empty, empty + b"", name="p.png", absolute_tolerance=1)
    other = compared(empty, picture(), absolute_tolerance=1)
    assert found.agreement is Agreement.EQUAL or "0x" not in str(found)
    assert "pillow cannot read the picture" in str(other)
    assert "0x" not in str(other)


@pytest.mark.filterwarnings("error")
def test_pillow_does_not_warn_of_a_large_picture(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # pillow warns above 89 million pixels
    assert compared(picture(), picture(form="TIFF")).agreement is Agreement.EQUAL


def test_an_unexpected_error_of_a_decoder_is_a_reason(monkeypatch):
    def fail(*_):
        raise KeyError("x")

    monkeypatch.setattr(Image.Image, "crop", fail)  # a defect of pillow, which no file triggers reliably
    assert "the picture cannot be read (KeyError)" in str(compared(picture(), picture(form="TIFF")))


def test_a_picture_that_takes_too_long_to_decode_is_compared_by_bytes():
    data = picture()
    many = data[:33] + chunk(b"tEXt", b"a\0b") * 100_001 + data[33:]
    assert "more than 100000 chunks" in str(compared(data, many))
    jpeg = picture(form="JPEG")
    start = jpeg.index(b"\xff\xda")
    scans = jpeg[:start] + jpeg[start:-2] * 101 + jpeg[-2:]
    assert "more than 100 scans" in str(compared(jpeg, scans, name="p.jpg"))


def test_a_tiff_of_very_many_pages_or_tags_is_compared_by_bytes(monkeypatch):
    def film(number, compression=None):
        pages = [Image.new("L", (1, 1), page % 256) for page in range(number)]
        stream = io.BytesIO()
        pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:], compression=compression)
        return stream.getvalue()

    monkeypatch.setattr(picture_files, "_MAX_COMPRESSED_PAGES", 3)  # instead of 4,000
    for pages, by in ((3, "pixels"), (4, "bytes")):
        data = film(pages, "tiff_lzw")
        assert compared(data, film(pages), "p.tif").by == by
    assert compared(film(4), film(5), "p.tif").by == "pixels"
    monkeypatch.setattr(picture_files, "_MOST_TAGS", 50)  # instead of 200,000
    assert "more than 50 tags" in str(compared(film(9), film(8), "p.tif"))


def test_a_jpeg_whose_scans_have_very_many_pixels_is_compared_by_bytes(monkeypatch):
    monkeypatch.setattr(picture_files, "_MOST_SCANNED", 100)  # instead of 2.5 billion
    small, large = picture((5, 5), form="JPEG"), picture((11, 10), form="JPEG")
    assert compared(small, picture((5, 5), [(0, 0)], form="JPEG", quality=95), "p.jpg").by == "pixels"
    assert "scans have more than 100 pixels" in str(compared(large, small, "p.jpg"))


def test_the_number_of_values_that_are_compared_one_by_one_is_limited(monkeypatch):
    monkeypatch.setattr(pictures, "_BLOCK", 8)  # strips of one row
    monkeypatch.setattr(pictures, "_MOST_COMPARED", 20)  # instead of 200 million
    dots = [(x, y) for x in range(8) for y in range(4)]
    found = compared(picture((8, 4)), picture((8, 4), dots))
    assert found.words == ("at least 16 of 32 pixels differ, in a channel by up to 9",)
    found = compared(picture((8, 4)), picture((8, 4), dots), absolute_tolerance=9)
    assert (found.agreement, found.by) == (Agreement.DIFFERS, "bytes")
    assert "too many values to compare one by one; the limit is 20" in str(found)
    film = [picture((8, 4), dots[at:], form="TIFF") for at in (0, 32)]
    several = [io.BytesIO(), io.BytesIO()]
    for stream, page in zip(several, film, strict=True):
        image = Image.open(io.BytesIO(page))
        image.save(stream, "TIFF", save_all=True, append_images=[image, image])
    words = compared(several[0].getvalue(), several[1].getvalue(), "p.tif").words
    assert words == (
        "page 1: at least 16 of 32 pixels differ, in a channel by up to 9",
        "the pages after page 1 were not compared",
    )
