"""Pixels: what a radiologist sees is what the network gets, whatever the file's encoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.data import get_testdata_file

from silo_node.imaging import decode
from silo_node.imaging.errors import PixelError

Dicom = Callable[..., Path]
RAMP8 = np.arange(256, dtype=np.uint8).reshape(16, 16)
RAMP16 = (np.arange(256, dtype=np.uint16) * 16).reshape(16, 16)


def _read(path: Path, window: str = "full", size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return decode.read(path, size=size, window=window)


def _white(picture: np.ndarray) -> np.ndarray:
    """The picture as shares of white."""
    return picture.astype(np.float64) / np.iinfo(picture.dtype).max


def test_eight_bits_come_back_exactly_and_stay_eight_bits(tmp_path: Path, dicom: Dicom) -> None:
    picture = _read(dicom(tmp_path / "1.dcm", RAMP8))
    assert picture.dtype == np.uint8 and np.array_equal(picture, RAMP8)


def test_twelve_bits_lose_nothing(tmp_path: Path, dicom: Dicom) -> None:
    picture = _read(dicom(tmp_path / "1.dcm", RAMP16, bits=12))
    assert picture.dtype == np.uint16
    assert np.array_equal(np.rint(_white(picture) * RAMP16.max()), RAMP16)


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize("pixels", [RAMP8, RAMP16, (RAMP16.astype(np.int16) - 2000)])
def test_every_lossless_encoding_gives_the_same_picture(
    tmp_path: Path, dicom: Dicom, syntax: uid.UID, pixels: np.ndarray
) -> None:
    pixels = np.kron(pixels, np.ones((4, 4), dtype=pixels.dtype))  # JPEG 2000 needs some size
    plain = _read(dicom(tmp_path / "plain.dcm", pixels))
    assert np.array_equal(_read(dicom(tmp_path / "other.dcm", pixels, syntax=syntax)), plain)


@pytest.mark.parametrize("name", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14", "JPEGLSLossless"])
@pytest.mark.parametrize("pixels", [RAMP8, RAMP16])
def test_lossless_jpeg_written_by_gdcm_gives_the_same_picture(
    tmp_path: Path, dicom: Dicom, name: str, pixels: np.ndarray
) -> None:
    plain = dicom(tmp_path / "plain.dcm", pixels)
    assert np.array_equal(_read(_gdcm(plain, tmp_path / "other.dcm", name)), _read(plain))


@pytest.mark.parametrize("name", ["JPEGBaselineProcess1", "JPEG2000", "JPEGLSNearLossless"])
def test_lossy_encodings_give_nearly_the_same_picture(tmp_path: Path, dicom: Dicom, name: str) -> None:
    plain = dicom(tmp_path / "plain.dcm", RAMP8)
    difference = _white(_read(_gdcm(plain, tmp_path / "other.dcm", name))) - _white(_read(plain))
    assert np.abs(difference).max() < 0.05


@pytest.mark.parametrize(
    "name",
    [
        "JPGExtended.dcm", "JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_16.dcm", "image_dfl.dcm",
        "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "SC_rgb_jpeg.dcm", "examples_palette.dcm", "examples_ybr_color.dcm",
        "SC_rgb_rle_16bit.dcm",
    ],
)  # fmt: skip
def test_files_of_other_makers_decode(name: str) -> None:
    picture = _white(_read(Path(str(get_testdata_file(name, download=False))), size=(32, 32)))
    assert picture.max() > picture.min()


def test_encodings_of_one_picture_agree() -> None:
    names = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
             "MR_small_bigendian.dcm", "MR_small_implicit.dcm")  # fmt: skip
    pictures = [_read(Path(str(get_testdata_file(name, download=False))), size=(24, 24)) for name in names]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)


def test_monochrome1_is_inverted(tmp_path: Path, dicom: Dicom) -> None:
    inverted = dicom(tmp_path / "1.dcm", 255 - RAMP8, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(_read(inverted), RAMP8)


def test_rescale_comes_before_the_window(tmp_path: Path, dicom: Dicom) -> None:
    """Stored 0..255, slope 2, intercept -100: the window 0..200 (LINEAR_EXACT) is stored 50..150."""
    path = dicom(
        tmp_path / "1.dcm", RAMP8, RescaleSlope="2", RescaleIntercept="-100", WindowCenter="100", WindowWidth="200",
        VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    expected = np.clip((RAMP8.astype(float) - 50) / 100, 0, 1)
    assert np.abs(_white(_read(path, "dicom")) - expected).max() < 1 / 255
    assert np.array_equal(_read(path, "full"), RAMP8)


def test_a_negative_slope_turns_the_picture(tmp_path: Path, dicom: Dicom) -> None:
    path = dicom(tmp_path / "1.dcm", RAMP8, RescaleSlope="-1", RescaleIntercept="255")
    assert np.array_equal(_read(path), 255 - RAMP8)


def test_the_first_of_several_windows_is_used_as_the_standard_says(tmp_path: Path, dicom: Dicom) -> None:
    path = dicom(tmp_path / "1.dcm", RAMP8, WindowCenter=["100", "7"], WindowWidth=["51", "3"])
    # PS3.3 C.11.2.1.2: black up to c - 0.5 - (w-1)/2 = 74.5, white from 124.5 on.
    expected = np.clip((RAMP8.astype(float) - 74.5) / 50, 0, 1)
    assert np.abs(_white(_read(path, "dicom")) - expected).max() < 1 / 255


def test_without_a_usable_window_the_whole_range_is_shown(tmp_path: Path, dicom: Dicom) -> None:
    for elements in ({}, {"WindowCenter": "10", "WindowWidth": "0"}):
        assert np.array_equal(_read(dicom(tmp_path / "1.dcm", RAMP8, **elements), "dicom"), RAMP8)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_stretch_the_window(tmp_path: Path, dicom: Dicom, photometric: str) -> None:
    pixels = (1000 + np.arange(256)).astype(np.int16).reshape(16, 16)
    pixels[:2] = -2000
    path = dicom(tmp_path / "1.dcm", pixels, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
    picture = _white(_read(path))
    assert not picture[:2].any()
    assert {picture[2, 0], picture[-1, -1]} == {0.0, 1.0}


def test_a_range_of_padding_is_understood(tmp_path: Path, dicom: Dicom) -> None:
    pixels = RAMP16.copy()
    path = dicom(tmp_path / "1.dcm", pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=512)
    assert not _read(path)[:2].any() and _read(path)[2, 1] == 0 and _read(path)[2, 2] > 0


def test_signed_values_keep_their_order(tmp_path: Path, dicom: Dicom) -> None:
    pixels = (np.arange(256) - 128).astype(np.int16).reshape(16, 16)
    assert np.all(np.diff(_read(dicom(tmp_path / "1.dcm", pixels)).reshape(-1).astype(int)) > 0)


def test_bits_above_the_stored_ones_are_not_pixels(tmp_path: Path, dicom: Dicom) -> None:
    """An overlay in bit 12 of 16, as old files have it."""
    pixels = RAMP16 | np.uint16(0x1000)
    plain = _read(dicom(tmp_path / "plain.dcm", RAMP16, bits=12))
    assert np.array_equal(_read(dicom(tmp_path / "1.dcm", pixels, bits=12)), plain)


def test_the_middle_frame_stands_for_many(tmp_path: Path, dicom: Dicom) -> None:
    frames = np.stack([np.zeros_like(RAMP8), RAMP8, np.zeros_like(RAMP8)])
    for syntax in (uid.ExplicitVRLittleEndian, uid.RLELossless):
        assert np.array_equal(_read(dicom(tmp_path / "1.dcm", frames, syntax=syntax)), RAMP8)


def test_colour_becomes_its_luminance(tmp_path: Path) -> None:
    path = Path(str(get_testdata_file("examples_rgb_color.dcm", download=False)))
    assert _read(path, size=(24, 32)).shape == (24, 32)


@pytest.mark.parametrize("shape", [(20, 40), (40, 20)])
def test_pictures_that_are_not_square_keep_their_aspect(tmp_path: Path, dicom: Dicom, shape: tuple[int, int]) -> None:
    pixels = np.full(shape, 200, dtype=np.uint8)
    pixels[0, 0] = 0
    picture = _read(dicom(tmp_path / "1.dcm", pixels), size=(16, 16))
    filled = picture > 0
    assert (filled.any(axis=1).sum(), filled.any(axis=0).sum()) == (shape[0] * 16 // 40, shape[1] * 16 // 40)
    assert np.array_equal(filled.any(axis=1), filled.any(axis=1)[::-1])


def test_pixels_that_are_not_square_count(tmp_path: Path, dicom: Dicom) -> None:
    pixels = np.full((20, 40), 200, dtype=np.uint8)
    pixels[0, 0] = 0
    picture = _read(dicom(tmp_path / "1.dcm", pixels, ImagerPixelSpacing=["2", "1"]), size=(16, 16))
    assert (picture > 0).all()


def test_shrinking_averages_areas(tmp_path: Path, dicom: Dicom) -> None:
    """A chessboard of single pixels becomes even grey: no pixel is dropped, nothing aliases."""
    pixels = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.all(np.abs(_read(dicom(tmp_path / "1.dcm", pixels)).astype(int) - 127.5) <= 0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_averages_keep_the_mean(before: int, after: int) -> None:
    weights = decode._averages(before, after)
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(weights.sum(axis=0), after / before, atol=1e-4)


def test_an_even_picture_is_black_and_no_division_by_zero(tmp_path: Path, dicom: Dicom) -> None:
    assert not _read(dicom(tmp_path / "1.dcm", np.full((16, 16), 9, np.uint8))).any()


def test_pixels_cut_off_or_damaged_are_a_typed_error(tmp_path: Path, dicom: Dicom) -> None:
    for syntax in (uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless):
        path = dicom(tmp_path / "1.dcm", np.kron(RAMP8, np.ones((4, 4), dtype=np.uint8)), syntax=syntax)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(PixelError) as caught:
            _read(path)
        assert caught.value.code == "PIXELS_CORRUPT"
    with pytest.raises(PixelError) as caught:
        _read(tmp_path / "gone.dcm")
    assert caught.value.code == "UNREADABLE"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_to_pixels_is_anything_but_a_picture_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small.dcm"]))
    body = bytearray(Path(str(get_testdata_file(name, download=False))).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(132, len(body) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "1.dcm"
    path.write_bytes(bytes(body[: data.draw(st.integers(200, len(body)))]))
    try:
        assert decode.read(path, size=(8, 8), window="dicom").shape == (8, 8)
    except PixelError as error:
        assert error.code.startswith("PIXELS_")


def _gdcm(source: Path, target: Path, name: str) -> Path:
    """The same file in another transfer syntax, written by GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(target))
    assert writer.Write()
    return target
