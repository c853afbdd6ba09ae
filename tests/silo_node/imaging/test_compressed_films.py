"""Films as real encoders write them: whatever the compression and the layout, the middle frame is the source's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid

from silo_node.imaging import decode, header
from silo_node.imaging.decoder_pool import DecoderPool
from silo_node.imaging.errors import PixelError
from tests.silo_node.imaging import encoders
from tests.silo_node.imaging.conftest import item_of, write_dicom

NEVER_SIGNED = {"jpeg_baseline", "jpeg_extended", "jpeg_ls_near"}
MOST_BITS = {"jpeg_baseline": 8, "jpeg_extended": 12}
FILMS = [
    (name, bits, signed)
    for name in encoders.ENCODERS
    for bits, signed in ((8, False), (12, False), (16, False), (12, True), (16, True))
    if bits <= MOST_BITS.get(name, 16) and not (signed and name in NEVER_SIGNED)
]


def _white(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    picture = decode.read(path, size=(shape[-2], shape[-1]))
    return picture.astype(np.float64) / np.iinfo(picture.dtype).max


def _wanted(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def _refused(path: Path) -> bool:
    with pytest.raises(PixelError) as caught:
        decode.read(path, size=(16, 16))
    return caught.value.code == "PIXELS_CORRUPT"


@pytest.mark.parametrize(("name", "bits", "signed"), FILMS)
def test_the_middle_frame_of_an_encoders_film_is_the_sources(
    tmp_path: Path, name: str, bits: int, signed: bool
) -> None:
    plain, values = encoders.film(tmp_path / "plain.dcm", bits, signed=signed)
    path = encoders.encoded(plain, tmp_path / "film.dcm", name)
    bound = encoders.ENCODERS[name][3] or 1 / (255 if bits <= 8 else 65535)
    frames = encoders.frames_of(path)
    for layout in encoders.LAYOUTS:
        assert header.read(encoders.laid_out(path, layout, frames)).problem is None, layout
        if "rle" in name and layout.endswith("fragments, no table"):
            assert _refused(path), "nothing says where a frame of run lengths ends"
            continue
        error = np.abs(_white(path, values.shape) - _wanted(values[2])).max()
        assert error <= bound, layout


COLOURS = ["jpeg_baseline", "jpeg_ls", "jpeg_ls_near", "rle", "gdcm_j2k", "gdcm_j2k_lossy", "gdcm_rle"]
PIXEL_BY_PIXEL = [
    "jpeg_sv1",
    "jpeg_14_6",
]  # DCMTK's own decoder gives other colours where the source was plane by plane


@pytest.mark.parametrize(
    ("name", "planar"),
    [*((name, plane) for name in COLOURS for plane in (0, 1)), *((name, 0) for name in PIXEL_BY_PIXEL)],
)
def test_the_middle_frame_of_a_film_in_colour_is_the_sources_luminance(tmp_path: Path, name: str, planar: int) -> None:
    _, grey = encoders.film(tmp_path / "grey.dcm", 8)
    values = np.stack([grey, np.roll(grey, 2, axis=0), np.roll(grey, 1, axis=0)], axis=-1).astype(np.uint8)
    stored = np.moveaxis(values, -1, 1) if planar else values
    plain = write_dicom(
        tmp_path / "plain.dcm", np.zeros(grey.shape, np.uint8), SamplesPerPixel=3, PlanarConfiguration=planar,
        PhotometricInterpretation="RGB", PixelData=stored.tobytes(), SOPClassUID=uid.SecondaryCaptureImageStorage,
    )  # fmt: skip
    path = encoders.encoded(plain, tmp_path / "film.dcm", name)
    frames = encoders.frames_of(path)
    wanted = values[2] @ [0.299, 0.587, 0.114] / 255
    for layout in ("basic table", "no table", "extended table", "fragments"):
        assert header.read(encoders.laid_out(path, layout, frames)).problem is None, layout
        assert np.abs(_white(path, grey.shape) - wanted).max() <= (encoders.ENCODERS[name][3] or 1 / 255), layout


@pytest.mark.parametrize("name", ["dcmcjpeg", "dcmcjpls", "dcmcrle"])
def test_fragments_as_an_encoder_cuts_them_are_put_together(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(6)
    values = rng.integers(0, 4096, (3, 80, 70), dtype=np.uint16)
    plain = write_dicom(tmp_path / "plain.dcm", values, bits=12)
    for table in ("+ot", "-ot"):
        path = encoders.run(name, ("+fs", "1", table), plain, tmp_path / f"film{table}.dcm")
        count = len(list(pydicom.encaps.generate_fragments(pydicom.dcmread(path).PixelData)))
        assert count > 3 * 3
        if (name, table) == ("dcmcrle", "-ot"):
            assert _refused(path)
        else:
            assert np.abs(_white(path, values.shape) - _wanted(values[1])).max() <= 1 / 65535


@pytest.mark.parametrize("name", ["jpeg_sv1", "jpeg_ls", "gdcm_j2k"])
@pytest.mark.parametrize(
    "table",
    ["zeros", "too short", "too long", "reversed", "inside a fragment", "beyond the end", "the first is not the first"],
)
def test_a_table_of_offsets_that_does_not_fit_is_refused(tmp_path: Path, name: str, table: str) -> None:
    """Each would give some picture, and perhaps that of another frame."""
    plain, _ = encoders.film(tmp_path / "plain.dcm", 8)
    path = encoders.encoded(plain, tmp_path / "film.dcm", name)
    parts = [[frame[:100], frame[100:]] for frame in encoders.frames_of(path)]
    right = [0]
    for frame in parts[:-1]:
        right.append(right[-1] + sum(8 + len(part) + len(part) % 2 for part in frame))
    wrong = {
        "zeros": [0] * 5, "too short": right[:3], "too long": [*right, right[-1] + 108], "reversed": right[::-1],
        "inside a fragment": [*right[:2], right[2] + 2, *right[3:]], "beyond the end": [*right[:4], 2**32 - 2],
        "the first is not the first": [108, *right[1:]],
    }[table]  # fmt: skip
    encoders.pixels(path, encoders.items(parts, table=wrong))
    assert _refused(path)
    encoders.pixels(path, encoders.items(parts, table=right))
    decode.read(path, size=(16, 16))


@pytest.mark.parametrize("name", ["jpeg_sv1", "jpeg_ls", "gdcm_j2k", "rle"])
@pytest.mark.parametrize("table", [True, False])
def test_a_film_that_says_one_frame_is_refused(tmp_path: Path, name: str, table: bool) -> None:
    plain, _ = encoders.film(tmp_path / "plain.dcm", 8)
    path = encoders.encoded(plain, tmp_path / "film.dcm", name)
    encoders.laid_out(path, "basic table" if table else "no table", encoders.frames_of(path))
    dataset = pydicom.dcmread(path)
    del dataset.NumberOfFrames
    dataset.save_as(path)
    assert _refused(path)


@pytest.mark.parametrize("name", ["jpeg_sv1", "jpeg_ls", "gdcm_j2k", "rle"])
def test_one_frame_in_many_fragments_is_read(tmp_path: Path, name: str) -> None:
    plain, values = encoders.film(tmp_path / "plain.dcm", 12)
    write_dicom(plain, values[1].astype(np.uint16), bits=12)
    path = encoders.encoded(plain, tmp_path / "one.dcm", name)
    (frame,) = encoders.frames_of(path)
    pieces = [frame[at : at + 50] for at in range(0, len(frame), 50)]
    for table in ([], [0]):
        encoders.pixels(path, encoders.items([pieces], table=table))
        assert np.abs(_white(path, values[1].shape) - _wanted(values[1])).max() <= 1 / 65535


@pytest.mark.parametrize("signed", [False, True])
def test_white_that_a_lossy_encoder_overshot_stays_white(tmp_path: Path, signed: bool) -> None:
    """Twelve bits in a code stream of sixteen: 4,095 comes back as 4,096 or more, of which twelve bits are black."""
    low = -2048 if signed else 0
    values = np.where(np.indices((64, 64)).sum(axis=0) // 8 % 3 > 0, low + 4095, low)
    kind = np.int16 if signed else np.uint16
    plain = write_dicom(tmp_path / "plain.dcm", values.astype(kind), SOPClassUID=uid.CTImageStorage)
    path = encoders.encoded(plain, tmp_path / "lossy.dcm", "gdcm_j2k_lossy")
    dataset = pydicom.dcmread(path)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.save_as(path)
    assert dataset.pixel_array.max() > low + 4095
    assert np.abs(_white(path, (64, 64)) - _wanted(values)).max() < 0.05


def test_run_lengths_of_more_pixels_than_said_are_damage_and_no_crash(tmp_path: Path) -> None:
    """The decoder panics; a crash would be tried again at each look."""
    path = write_dicom(tmp_path / "1.dcm", np.zeros((16, 16), np.uint16), syntax=uid.RLELossless)
    run = bytes([257 - 128, 7])  # 128 times the same
    first, second = run * 2, bytes([257 - 100, 7]) + run * 2
    head = np.array([2, 64, 64 + len(first), *[0] * 13], "<u4").tobytes()
    encoders.pixels(path, encoders.items([[head + first + second]]))
    with DecoderPool(size=(16, 16)) as pool:
        ((_, found),) = pool.decode([item_of(path)])
    assert found == "PIXELS_CORRUPT"


def test_a_film_without_its_last_end_of_picture_and_without_a_table_is_refused(tmp_path: Path) -> None:
    plain, _ = encoders.film(tmp_path / "plain.dcm", 8)
    path = encoders.encoded(plain, tmp_path / "film.dcm", "jpeg_sv1")
    parts = [[frame[:100], frame[100:]] for frame in encoders.frames_of(path)]
    parts[1][1] = parts[1][1].rstrip(b"\0")[:-2]
    encoders.pixels(path, encoders.items(parts, table=[]))
    assert _refused(path)


@pytest.mark.parametrize("frames", [None, 1, 2])
def test_more_uncompressed_pixels_than_said_are_refused(tmp_path: Path, frames: int | None) -> None:
    """A film without its number of frames, or 16 bits under a header that says 8: any picture from it would be a guess."""
    values = np.arange(3 * 16 * 16, dtype=np.uint16).reshape(3, 16, 16)
    path = write_dicom(tmp_path / "1.dcm", values)
    assert header.read(path).problem is None
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = frames
    if frames is None:
        del dataset.NumberOfFrames
    dataset.save_as(path)
    assert header.read(path).problem == "PIXELS_CORRUPT"
    assert _refused(path)


@pytest.mark.parametrize("padding", [1, 9, 253])
def test_padding_behind_the_pixels_is_no_second_picture(tmp_path: Path, padding: int) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = write_dicom(tmp_path / "1.dcm", values)
    dataset = pydicom.dcmread(path)
    dataset.PixelData += bytes(padding + padding % 2)[:padding]
    dataset.save_as(path)
    assert header.read(path).problem is None
    assert np.array_equal(decode.read(path, size=(16, 16)), values)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_picture_of_one_pixel_and_its_padding_is_read(tmp_path: Path, syntax: uid.UID) -> None:
    path = write_dicom(tmp_path / "1.dcm", np.full((1, 1), 7, np.uint8), syntax=syntax)
    assert header.read(path).problem is None
    assert decode.read(path, size=(2, 2)).shape == (2, 2)
