"""What a stored value means: colours, palettes, lookup tables, rescales. Right by the standard, or refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import convert_color_space
from pydicom.sequence import Sequence

from silo_node.imaging import decode, header
from silo_node.imaging.errors import PixelError
from tests.silo_node.imaging.conftest import write_dicom

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
RNG = np.random.default_rng(8)
SHUFFLED = RNG.permutation(256)
COLOURS = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 90)], axis=-1)
LUMINANCE = np.array([0.299, 0.587, 0.114])
ORDERS = {"<": uid.ExplicitVRLittleEndian, ">": uid.ExplicitVRBigEndian}


def _white(path: Path, window: str = "full") -> np.ndarray:
    picture = decode.read(path, size=(16, 16), window=window)
    return picture.astype(np.float64) / np.iinfo(picture.dtype).max


def _code(path: Path, window: str = "full") -> str:
    with pytest.raises(PixelError) as caught:
        decode.read(path, size=(16, 16), window=window)
    return caught.value.code


def _is(path: Path, wanted: np.ndarray, window: str = "full") -> bool:
    return bool(np.abs(_white(path, window) - wanted).max() <= 0.0061)


def _own_range(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / np.ptp(values)


# --- colours


def _colour(path: Path, values: np.ndarray, photometric: str, *, order: str = "<", **elements: Any) -> Path:
    """`values`: as they are stored, [h, w, 3] or in whatever order the elements say."""
    kind = np.uint16 if values.itemsize == 2 else np.uint8
    said = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": photometric, **elements}
    said["PixelData"] = values.astype(values.dtype.newbyteorder(order)).tobytes()
    return write_dicom(path, np.zeros((16, 16), kind), syntax=ORDERS[order], **said)


def test_colours_are_read_right_in_every_order(tmp_path: Path) -> None:
    wanted = COLOURS @ LUMINANCE / 255
    ybr = convert_color_space(COLOURS, "RGB", "YBR_FULL")
    halved = np.stack([ybr[:, 0::2, 0], ybr[:, 1::2, 0], ybr[:, 0::2, 1], ybr[:, 0::2, 2]], axis=-1)
    for name, path in {
        "pixel": _colour(tmp_path / "1.dcm", COLOURS, "RGB"),
        "plane": _colour(tmp_path / "2.dcm", np.moveaxis(COLOURS, -1, 0), "RGB", PlanarConfiguration=1),
        "ybr": _colour(tmp_path / "3.dcm", ybr, "YBR_FULL"),
        "ybr plane": _colour(tmp_path / "4.dcm", np.moveaxis(ybr, -1, 0), "YBR_FULL", PlanarConfiguration=1),
        "halved": _colour(tmp_path / "5.dcm", halved, "YBR_FULL_422"),
    }.items():
        assert header.read(path).problem is None, name
        assert _is(path, wanted), name


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("high", [11, 13, 15])
def test_twelve_bits_of_colour_anywhere_in_sixteen_are_read(tmp_path: Path, order: str, high: int) -> None:
    values = RNG.integers(0, 4096, (16, 16, 3))
    rest = RNG.integers(0, 2**16, values.shape) & ~(4095 << (high - 11))
    stored = (values << (high - 11) | rest).astype(np.uint16)
    path = _colour(tmp_path / "1.dcm", stored, "RGB", order=order, bits=12, HighBit=high)
    assert _is(path, values @ LUMINANCE / 4095)


@pytest.mark.parametrize(
    ("photometric", "code"),
    [
        ("HSV", "PIXELS_UNSUPPORTED"), ("CMYK", "PIXELS_UNSUPPORTED"), ("ARGB", "PIXELS_UNSUPPORTED"),
        ("YBR_PARTIAL_420", "PIXELS_UNSUPPORTED"), ("YBR_ICT", "PIXELS_CORRUPT"), ("YBR_RCT", "PIXELS_CORRUPT"),
        ("MONOCHROME2", "PIXELS_CORRUPT"), ("PALETTE COLOR", "PIXELS_CORRUPT"), ("YBR_FULL_422", "PIXELS_CORRUPT"),
    ],
)  # fmt: skip
def test_colours_that_are_not_what_they_are_called_are_refused(tmp_path: Path, photometric: str, code: str) -> None:
    assert _code(_colour(tmp_path / "1.dcm", COLOURS, photometric)) == code


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_a_colour_of_one_sample_or_below_zero_is_refused(tmp_path: Path, photometric: str) -> None:
    path = write_dicom(tmp_path / "1.dcm", RAMP, PhotometricInterpretation=photometric)
    assert _code(path) == "PIXELS_CORRUPT"
    assert _code(_colour(tmp_path / "2.dcm", COLOURS, photometric, PixelRepresentation=1)) == "PIXELS_CORRUPT"


# --- palettes


def _palette(path: Path, tables: list[bytes], descriptor: list[int], index: np.ndarray = RAMP, **options: Any) -> Path:
    segmented = "Segmented" if options.pop("segmented", False) else ""
    write_dicom(path, index, PhotometricInterpretation="PALETTE COLOR", **options)
    dataset = pydicom.dcmread(path)
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", descriptor)
        dataset.add_new(f"{segmented}{colour}PaletteColorLookupTableData", "OW", table)
    dataset.save_as(path)
    return path


BYTES = [RNG.integers(0, 256, 256) for _ in range(3)]
WORDS = [RNG.integers(0, 65536, 256) for _ in range(3)]


def _looked_up(tables: list[np.ndarray], white: int, index: np.ndarray = RAMP) -> np.ndarray:
    return np.stack([table[index] for table in tables], axis=-1) @ LUMINANCE / white


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_palette_of_words_is_read(tmp_path: Path, order: str) -> None:
    options = {"syntax": ORDERS[order], "index": RAMP.astype(f"{order}u2")}
    tables = [table.astype(f"{order}u2").tobytes() for table in WORDS]
    assert _is(_palette(tmp_path / "1.dcm", tables, [256, 0, 16], **options), _looked_up(WORDS, 65535))
    shifted = [table[:100] for table in tables]
    wanted = _looked_up(WORDS, 65535, np.clip(RAMP.astype(int) - 200, 0, 49))
    assert _is(_palette(tmp_path / "2.dcm", shifted, [50, 200, 16], **options), wanted)


def test_a_palette_of_bytes_is_read_even_where_each_takes_a_word(tmp_path: Path) -> None:
    packed, spread = (
        [table.astype("u1").tobytes() for table in BYTES],
        [table.astype("<u2").tobytes() for table in BYTES],
    )
    for tables, bits in ((packed, 8), (spread, 8), (spread, 16)):
        assert _is(_palette(tmp_path / "1.dcm", tables, [256, 0, bits]), _looked_up(BYTES, 255)), bits


def test_an_index_beyond_a_palette_of_bytes_has_its_last_entry(tmp_path: Path) -> None:
    tables = [table.astype("u1").tobytes() for table in BYTES]
    path = _palette(tmp_path / "1.dcm", tables, [256, 0, 8], RAMP.astype(np.uint16) * 2)
    assert _is(path, _looked_up(BYTES, 255, np.minimum(RAMP.astype(int) * 2, 255)))


def test_a_palette_for_every_value_of_sixteen_bits_is_read(tmp_path: Path) -> None:
    tables = [RNG.integers(0, 65536, 65536) for _ in range(3)]
    index = RNG.integers(0, 65536, (16, 16), dtype=np.uint16)
    path = _palette(tmp_path / "1.dcm", [table.astype("<u2").tobytes() for table in tables], [0, 0, 16], index)
    assert _is(path, _looked_up(tables, 65535, index))


def test_bits_beside_a_palettes_index_are_not_of_it(tmp_path: Path) -> None:
    tables = [table.astype("<u2").tobytes() for table in WORDS]
    for high in (7, 15):
        index = (RAMP.astype(np.uint16) << (high - 7)) | np.uint16(0xFF00 if high == 7 else 0x00FF)
        path = _palette(tmp_path / "1.dcm", tables, [256, 0, 16], index, bits=8, HighBit=high)
        assert _is(path, _looked_up(WORDS, 65535)), high


def test_a_segmented_palette_is_read(tmp_path: Path) -> None:
    table = struct.pack("<6H", 0, 1, 0, 1, 255, 65535)  # black, then a line to white
    assert _is(_palette(tmp_path / "1.dcm", [table] * 3, [256, 0, 16], segmented=True), RAMP / 255)


@pytest.mark.parametrize(
    ("tables", "descriptor", "segmented"),
    [
        ([bytes(200)] * 3, [256, 0, 16], False),
        ([bytes(512), bytes(100), bytes(512)], [256, 0, 16], False),
        ([bytes(600)] * 3, [256, 0, 16], False),
        ([bytes(512)] * 3, [256, 0, 77], False),
        ([struct.pack("<5H", 0, 1, 0, 1, 255)] * 3, [256, 0, 16], True),
        ([struct.pack("<4H", 2, 1, 0, 0)] * 3, [256, 0, 16], True),
    ],
    ids=["short", "one is short", "long", "77 bits", "a line without its end", "a loop"],
)
def test_a_palette_that_contradicts_itself_is_refused(
    tmp_path: Path, tables: list[bytes], descriptor: list[int], segmented: bool
) -> None:
    assert _code(_palette(tmp_path / "1.dcm", tables, descriptor, segmented=segmented)) == "PIXELS_CORRUPT"


# --- lookup tables


def _lut(entries: int, first: int, bits: int, data: Any, *, kind: str = "US", first_kind: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", first_kind, [entries, first, bits])
    item.add_new("LUTData", kind, data)
    return Sequence([item])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("keyword", ["ModalityLUTSequence", "VOILUTSequence"])
def test_a_lookup_table_of_words_or_of_bytes_is_read(tmp_path: Path, keyword: str, order: str) -> None:
    """As numbers, as words, and eight bits an entry, two in a word."""
    wanted = _own_range(SHUFFLED)[RAMP]
    packed = SHUFFLED.astype("u1").tobytes()
    packed = packed if order == "<" else np.frombuffer(packed, "<u2").astype(">u2").tobytes()
    for name, lut in {
        "numbers": _lut(256, 0, 16, (SHUFFLED * 257).tolist()),
        "words": _lut(256, 0, 16, (SHUFFLED * 257).astype(f"{order}u2").tobytes(), kind="OW"),
        "bytes": _lut(256, 0, 8, packed, kind="OW"),
    }.items():
        path = write_dicom(tmp_path / "1.dcm", RAMP, syntax=ORDERS[order], **{keyword: lut})
        assert _is(path, wanted, "dicom"), name


def test_a_table_of_the_window_gives_brightness_and_not_the_pictures_own_range(tmp_path: Path) -> None:
    half = np.arange(256) * 2
    path = write_dicom(tmp_path / "1.dcm", RAMP, VOILUTSequence=_lut(256, 0, 10, half.tolist()))
    assert _is(path, half[RAMP] / 1023, "dicom")
    path = write_dicom(
        tmp_path / "2.dcm",
        RAMP,
        VOILUTSequence=_lut(256, 0, 10, half.tolist()),
        PhotometricInterpretation="MONOCHROME1",
    )
    assert _is(path, 1 - half[RAMP] / 1023, "dicom")


def test_a_table_longer_than_a_pixel_can_count_is_read(tmp_path: Path) -> None:
    table = RNG.integers(0, 65536, 4096)
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        path = write_dicom(tmp_path / "1.dcm", RAMP, **{keyword: _lut(4096, 0, 16, table.tolist())})
        wanted = _own_range(table[RAMP]) if keyword.startswith("Mod") else table[RAMP] / 65535
        assert _is(path, wanted, "dicom"), keyword
    tables = [RNG.integers(0, 65536, 4096) for _ in range(3)]
    path = _palette(tmp_path / "2.dcm", [table.astype("<u2").tobytes() for table in tables], [4096, 0, 16])
    assert _is(path, _looked_up(tables, 65535))


@pytest.mark.parametrize(("first", "kind"), [(-128, "SS"), (65536 - 128, "US")])
def test_a_first_value_below_zero_is_one_however_it_is_written(tmp_path: Path, first: int, kind: str) -> None:
    lut = _lut(256, first, 10, SHUFFLED.tolist(), first_kind=kind)
    path = write_dicom(tmp_path / "1.dcm", RAMP, VOILUTSequence=lut, RescaleSlope="1", RescaleIntercept="-128")
    assert _is(path, SHUFFLED[RAMP] / 1023, "dicom")


@pytest.mark.parametrize("keyword", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize(
    "lut",
    [
        (256, 0, 16, list(range(50))), (256, 0, 16, list(range(300))), (256, 0, 8, [300] * 256), (256, 0, 17, [1] * 256),
        (256, 0, 0, [0] * 256), (0, 0, 16, [1] * 256),
    ],
    ids=["short", "long", "entries beyond their bits", "17 bits", "no bits", "65,536 said"],
)  # fmt: skip
def test_a_lookup_table_that_contradicts_itself_is_refused(tmp_path: Path, keyword: str, lut: tuple[Any, ...]) -> None:
    assert _code(write_dicom(tmp_path / "1.dcm", RAMP, **{keyword: _lut(*lut)}), "dicom") == "PIXELS_CORRUPT"


# --- rescales and windows


def _texts(path: Path, *elements: tuple[int, str]) -> Path:
    """Elements of group 0028 as they stand, whether pydicom would write them or not."""
    write_dicom(path, RAMP)
    body = path.read_bytes()
    at = body.index(b"\xe0\x7f\x10\x00")
    extra = b"".join(
        struct.pack("<HH2sH", 0x28, tag, b"DS", len(text) + len(text) % 2) + (text + " " * (len(text) % 2)).encode()
        for tag, text in elements
    )
    path.write_bytes(body[:at] + extra + body[at:])
    return path


CENTRE, WIDTH, INTERCEPT, SLOPE = 0x1050, 0x1051, 0x1052, 0x1053


def test_a_slope_or_an_intercept_alone_counts(tmp_path: Path) -> None:
    window = ((CENTRE, "128"), (WIDTH, "257"))  # black up to 0, white from 256 on
    assert _is(_texts(tmp_path / "1.dcm", *window, (INTERCEPT, "64")), np.clip((RAMP + 64.0) / 256, 0, 1), "dicom")
    assert _is(_texts(tmp_path / "1.dcm", *window, (SLOPE, "2")), np.clip(RAMP * 2.0 / 256, 0, 1), "dicom")
    assert _is(_texts(tmp_path / "1.dcm", *window, (INTERCEPT, ""), (SLOPE, "")), RAMP / 256, "dicom")


@pytest.mark.parametrize("slope", ["0", "1e-320", "1\\2", "abc", "nan", "inf"])
def test_a_slope_that_leaves_nothing_of_the_picture_is_refused(tmp_path: Path, slope: str) -> None:
    assert _code(_texts(tmp_path / "1.dcm", (INTERCEPT, "0"), (SLOPE, slope))) == "PIXELS_CORRUPT"


@pytest.mark.parametrize("window", [("1e300", "1e300"), ("nan", "5"), ("1", "inf"), ("0", "-5")])
def test_a_window_that_shows_nothing_is_none(tmp_path: Path, window: tuple[str, str]) -> None:
    assert _is(_texts(tmp_path / "1.dcm", (CENTRE, window[0]), (WIDTH, window[1])), RAMP / 255, "dicom")


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)])
def test_what_is_no_number_is_black_and_stretches_no_range(tmp_path: Path, keyword: str, kind: type) -> None:
    values = (1000 + np.arange(256)).astype(kind).reshape(16, 16)
    values[0, :3] = np.nan, np.inf, -np.inf
    path = write_dicom(tmp_path / "1.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, name)
    dataset.BitsAllocated = values.itemsize * 8
    setattr(dataset, keyword, values.tobytes())
    dataset.save_as(path)
    wanted = (values - 1003) / (1255 - 1003)
    wanted[0, :3] = 0
    assert _is(path, wanted)


# --- enhanced multi-frame (PS3.3 C.7.6.16)


def _enhanced(path: Path, shared: Dataset, by_frame: list[Dataset], **options: Any) -> Path:
    frames = np.stack([np.rot90(RAMP, turn) for turn in range(3)])
    write_dicom(path, np.repeat(np.repeat(frames, 3, 1), 3, 2), **options)
    dataset = pydicom.dcmread(path)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(by_frame)
    dataset.save_as(path)
    return path


def _group(**macros: dict[str, Any]) -> Dataset:
    group = Dataset()
    for name, elements in macros.items():
        item = Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        setattr(group, name, Sequence([item]))
    return group


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless])
def test_what_all_frames_share_and_what_each_has_of_its_own_count(tmp_path: Path, syntax: uid.UID) -> None:
    """Shared: the slope, and pixels twice as high as wide; by frame the window, of which the middle one's is stored 50..150."""
    shared = _group(
        PixelValueTransformationSequence={"RescaleSlope": "2", "RescaleIntercept": "-100", "RescaleType": "US"},
        PixelMeasuresSequence={"PixelSpacing": ["2", "1"]},
    )
    windows = [
        _group(FrameVOILUTSequence={"WindowCenter": centre, "WindowWidth": "200", "VOILUTFunction": "LINEAR_EXACT"})
        for centre in ("1", "100", "7")
    ]
    path = _enhanced(tmp_path / "1.dcm", shared, windows, syntax=syntax)
    assert header.read(path).problem is None
    picture = decode.read(path, size=(16, 16), window="dicom") / 255.0
    assert not picture[:, :4].any() and not picture[:, 12:].any(), "half as wide as high"
    wanted = np.clip((np.rot90(RAMP, 1).astype(float) - 50) / 100, 0, 1)
    assert np.abs(picture[:, 4:12] - wanted.reshape(16, 8, 2).mean(axis=2)).max() < 2 / 255


def test_a_frames_own_lookup_table_is_used(tmp_path: Path) -> None:
    luts = [_lut(256, 0, 10, table.tolist()) for table in (np.arange(256), SHUFFLED, np.arange(256))]
    path = _enhanced(
        tmp_path / "1.dcm", Dataset(), [_group(FrameVOILUTSequence={"VOILUTSequence": lut}) for lut in luts]
    )
    assert _is(path, SHUFFLED[np.rot90(RAMP, 1)] / 1023, "dicom")
